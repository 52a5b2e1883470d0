"""A fake AMD: roots, signing keys, chips, lent keys and reports of three products, with any one thing wrong.

`Machine()` is genuine in every respect under `ROOTS`; each argument makes one thing otherwise.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from fake_x509 import (
    Mint,
    PrivateKey,
    basic_constraints,
    ec_key,
    extension,
    integer,
    key_usage,
    pem,
    rsa_key,
    tlv,
)

from strongroom.attest.certificate import parse_certificate

PRODUCTS = ("Milan", "Genoa", "Turin")
CPUID = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}
TCB = {
    "Milan": bytes([3, 0, 0, 0, 0, 0, 8, 115]),
    "Genoa": bytes([10, 0, 0, 0, 0, 0, 23, 84]),
    "Turin": bytes([1, 1, 1, 4, 0, 0, 0, 81]),
}
PARTS = {
    "Milan": {"1": 0, "2": 1, "3": 6, "8": 7, "4": 2, "5": 3, "6": 4, "7": 5},
    "Genoa": {"1": 0, "2": 1, "3": 6, "8": 7, "4": 2, "5": 3, "6": 4, "7": 5},
    "Turin": {"9": 0, "1": 1, "2": 2, "3": 3, "8": 7, "5": 4, "6": 5, "7": 6},
}
"""Product -> the last arc of a TCB extension -> the byte of the TCB version that it certifies."""
AMD = "1.3.6.1.4.1.3704.1."
PRODUCT_NAME, HARDWARE_ID, CSP_ID = AMD + "2", AMD + "4", AMD + "5"
MEASUREMENT = bytes(range(48))
REPORT_DATA = bytes(range(64, 128))
CLOUD = "CN=cc-test-1.cloud.example"


def root(product: str) -> Mint:
    """The ARK."""
    return Mint(
        subject=f"ARK-{product}",
        issuer=f"ARK-{product}",
        key=rsa_key("ark"),
        signer=rsa_key("ark"),
        serial=0x10000,
        extensions=(basic_constraints(None), key_usage(0x06)),
    )


def intermediate(product: str, kind: str) -> Mint:
    """The ASK, or the ASVK."""
    return Mint(
        subject=f"SEV-{product}" if kind == "VCEK" else f"SEV-VLEK-{product}",
        issuer=f"ARK-{product}",
        key=rsa_key("ask" if kind == "VCEK" else "asvk"),
        signer=rsa_key("ark"),
        serial=0x10001 if kind == "VCEK" else 0x10002,
        extensions=(basic_constraints(0), key_usage(0x04)),
    )


@functools.cache
def root_der(product: str) -> bytes:
    """The ARK's one certificate."""
    return root(product).der


@functools.cache
def intermediate_der(product: str, kind: str) -> bytes:
    """The ASK's or ASVK's one certificate."""
    return intermediate(product, kind).der


@functools.cache
def roots() -> tuple[str, ...]:
    """The fingerprints of this AMD's roots."""
    return tuple(parse_certificate(root_der(product)).fingerprint for product in PRODUCTS)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A guest on a machine: what it reports, and with which certificates.

    `fields` replace bytes of the report (offset -> bytes) before it is signed, `after` when it was. `leaf`,
    `issuer`, `ark` replace members of the `Mint`s of the three certificates; `leaf_extensions` replaces values of the
    leaf's extensions, None takes one out.
    """

    product: str = "Milan"
    kind: str = "VCEK"
    version: int = 3
    fields: Mapping[int, bytes] = field(default_factory=dict)
    after: Mapping[int, bytes] = field(default_factory=dict)
    leaf: Mapping[str, Any] = field(default_factory=dict)
    leaf_extensions: Mapping[str, bytes | None] = field(default_factory=dict)
    issuer: Mapping[str, Any] = field(default_factory=dict)
    ark: Mapping[str, Any] = field(default_factory=dict)
    key: PrivateKey | None = None
    signs_with: ec.EllipticCurvePrivateKey | None = None

    def but(self, **changed: Any) -> Machine:
        """The same with members changed."""
        return replace(self, **changed)

    @property
    def chip_id(self) -> bytes:
        """The chip's identity as a report shows it: a lent key's report may hide it."""
        if self.kind == "VLEK":
            return bytes(64)
        return self.hardware_id.ljust(64, b"\x00")

    @property
    def hardware_id(self) -> bytes:
        """The chip's identity as its certificate has it."""
        return bytes(range(1, 9 if self.product == "Turin" else 65))

    @property
    def unsigned(self) -> bytes:
        """What is signed."""
        tcb = TCB[self.product]
        report = bytearray(0x2A0)
        struct.pack_into("<IIQ", report, 0, self.version, 7, 0x3001F)
        report[0x10:0x30] = b"family".ljust(16, b"\x00") + b"image".ljust(16, b"\x00")
        struct.pack_into("<II8sQI", report, 0x30, 0, 1, tcb, 0x25, 4 if self.kind == "VLEK" else 0)
        report[0x50:0xC0] = REPORT_DATA + MEASUREMENT
        report[0xC0:0xE0] = b"host data".ljust(32, b"\x00")
        report[0x140:0x180] = b"\x11" * 32 + b"\xff" * 32
        report[0x180:0x188] = tcb
        if self.version >= 3:
            report[0x188:0x18B] = bytes(CPUID[self.product])
        report[0x1A0:0x1E0] = self.chip_id
        report[0x1E0:0x1F8] = tcb + bytes([40, 55, 1, 0, 40, 55, 1, 0]) + tcb
        if self.version >= 5:
            struct.pack_into("<QQ", report, 0x1F8, 0x3F, 0x7F)
        return _patched(bytes(report), self.fields)

    @property
    def report(self) -> bytes:
        """The report, signed."""
        signer = self.signs_with or self.leaf_key
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(
            signer.sign(self.unsigned, ec.ECDSA(SHA384(), deterministic_signing=True))
        )
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return _patched(self.unsigned + signature.ljust(512, b"\x00"), self.after)

    @property
    def leaf_key(self) -> PrivateKey:
        """The key that the leaf certifies."""
        return self.key or ec_key(f"{self.product} {self.kind}")

    @property
    def leaf_der(self) -> bytes:
        """The certificate of the signing key."""
        tcb = TCB[self.product]
        values: dict[str, bytes | None] = {
            AMD + "1": integer(0),
            PRODUCT_NAME: tlv(0x16, self.product.encode()),
        }
        values |= {f"{AMD}3.{arc}": integer(tcb[at]) for arc, at in PARTS[self.product].items()}
        if self.kind == "VCEK":
            values[HARDWARE_ID] = self.hardware_id
        else:
            values[CSP_ID] = tlv(0x16, CLOUD.encode())
        values |= self.leaf_extensions
        mint = Mint(
            subject=f"SEV-{self.kind}",
            issuer=f"SEV-{self.product}" if self.kind == "VCEK" else f"SEV-VLEK-{self.product}",
            key=self.leaf_key,
            signer=self.issuer.get("key") or rsa_key("ask" if self.kind == "VCEK" else "asvk"),
            extensions=[extension(dotted, value) for dotted, value in values.items() if value is not None],
        )
        return mint.but(**self.leaf).der

    @property
    def issuer_der(self) -> bytes:
        """The certificate of the leaf's issuer."""
        if not self.issuer:
            return intermediate_der(self.product, self.kind)
        return intermediate(self.product, self.kind).but(**self.issuer).der

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return root(self.product).but(**self.ark).der if self.ark else root_der(self.product)

    @property
    def endorsements(self) -> tuple[tuple[str, bytes], ...]:
        """What is stapled: the leaf in DER, the others in one PEM file, as AMD's service hands them out."""
        return (("leaf", self.leaf_der), ("chain", pem(self.issuer_der) + pem(self.root_der)))


def _patched(data: bytes, patches: Mapping[int, bytes]) -> bytes:
    out = bytearray(data)
    for at, replaced in patches.items():
        assert at + len(replaced) <= len(out)
        out[at : at + len(replaced)] = replaced
    return bytes(out)


_ENTRY_GUIDS = {
    "VCEK": "63da758de6644564adc5f4b93be8accd",
    "VLEK": "a8074bc2a25a483eaae639c045a0b8a1",
    "ASK": "4ab7b379bbac4fe4a02f05aef327c782",
    "ARK": "c0b406a4a803495297433fb6014cd0ae",
    "other": "ecae0c0f950243b1afa20ae2e0d565b6",
}


def certificate_table(*entries: tuple[str, bytes]) -> bytes:
    """A certificate table (GHCB) of these entries, by the names in `_ENTRY_GUIDS`."""
    head, body, at = b"", b"", 24 * (len(entries) + 1)
    for kind, data in entries:
        head += bytes.fromhex(_ENTRY_GUIDS[kind]) + struct.pack("<II", at + len(body), len(data))
        body += data
    return head + bytes(24) + body
