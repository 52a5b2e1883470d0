"""A vendor that is not Intel: mints SGX and TDX quotes with their whole chain and collateral under a root of its own.

`Intel()` is a platform that is up to date and an SGX enclave on it; `but` changes one respect, everything else is
signed anew around it, so a vector is wrong in that respect only. `forge` replaces bytes after signing. All keys come
from names and all signatures are deterministic: the same vendor mints the same bytes every time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier
from worlds import NOW, p256

ROOT, PLATFORM, PCK, SIGNING = (
    "Intel SGX Root CA",
    "Intel SGX PCK Platform CA",
    "Intel SGX PCK Certificate",
    "Intel SGX TCB Signing",
)
PROCESSOR = "Intel SGX PCK Processor CA"
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SGX_FIELDS = (
    ("cpu_svn", 16), ("misc_select", 4), ("reserved1", 12), ("isv_ext_prod_id", 16), ("attributes", 16),
    ("mr_enclave", 32), ("reserved2", 32), ("mr_signer", 32), ("reserved3", 32), ("config_id", 64),
    ("isv_prod_id", 2), ("isv_svn", 2), ("config_svn", 2), ("reserved4", 42), ("isv_family_id", 16),
    ("report_data", 64),
)  # fmt: skip
TD_FIELDS = (
    ("tee_tcb_svn", 16), ("mr_seam", 48), ("mr_signer_seam", 48), ("seam_attributes", 8), ("td_attributes", 8),
    ("xfam", 8), ("mr_td", 48), ("mr_config_id", 48), ("mr_owner", 48), ("mr_owner_config", 48),
    ("rtmr0", 48), ("rtmr1", 48), ("rtmr2", 48), ("rtmr3", 48), ("report_data", 64),
)  # fmt: skip
TD15_FIELDS = (*TD_FIELDS, ("tee_tcb_svn2", 16), ("mr_service_td", 48))
SGX_BODY = {
    "attributes": bytes.fromhex("0500000000000000e700000000000000"),
    "mr_enclave": hashlib.sha256(b"the enclave").digest(),
    "mr_signer": hashlib.sha256(b"its signer").digest(),
    "config_id": bytes(range(64)),
    "isv_prod_id": b"\x07\x00",
    "isv_svn": b"\x03\x00",
    "report_data": bytes(range(64)),
}
TD_BODY = {
    "tee_tcb_svn": bytes([5, 1, 5]) + bytes(13),
    "mr_seam": hashlib.sha384(b"the module").digest(),
    "td_attributes": bytes.fromhex("0000001000000000"),
    "xfam": bytes.fromhex("e718060000000000"),
    "mr_td": hashlib.sha384(b"the trust domain").digest(),
    "rtmr0": hashlib.sha384(b"rtmr0").digest(),
    "rtmr3": hashlib.sha384(b"rtmr3").digest(),
    "report_data": bytes(range(64)),
    "tee_tcb_svn2": bytes([5, 1, 5]) + bytes(13),
}
QE_SIGNER = hashlib.sha256(b"the quoting enclave's signer").digest()
DAY = timedelta(days=1)


def build(fields: tuple[tuple[str, int], ...], values: Mapping[str, bytes]) -> bytes:
    """A structure: fields in order, zeros where no value is given."""
    sizes = dict(fields)
    assert all(len(v) == sizes[k] for k, v in values.items() if k in sizes), values
    return b"".join(values.get(name, bytes(size)) for name, size in fields)


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """A raw signature, r and s."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
    return r.to_bytes(32) + s.to_bytes(32)


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The coordinates of the public key, x and y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def pem(*ders: bytes) -> bytes:
    """Certificates as PEM."""
    return b"".join(x509.load_der_x509_certificate(d).public_bytes(Encoding.PEM) for d in ders)


def tlv(tag: int, *contents: bytes) -> bytes:
    """A DER element."""
    data = b"".join(contents)
    size = len(data)
    head = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + head + data


def entry(numbers: tuple[int, ...], value: bytes) -> bytes:
    """A pair of an OID under Intel's SGX arc and a value."""
    return tlv(0x30, tlv(0x06, bytes.fromhex("2a864886f84d010d01") + bytes(numbers)), value)


def integer(number: int, tag: int = 0x02) -> bytes:
    """A DER integer."""
    return tlv(tag, number.to_bytes(number.bit_length() // 8 + 1))


def statuses(*, tdx: bool, top: str = "UpToDate", top_svn: int = 5) -> list[dict[str, Any]]:
    """Levels: `top` from `top_svn`, OutOfDate from 3, Revoked from 1; below that nothing."""

    def level(svn: int, status: str, advisories: tuple[str, ...]) -> dict[str, Any]:
        tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": svn}
        if tdx:
            tcb["tdxtcbcomponents"] = [{"svn": svn}, {"svn": 1}, {"svn": svn}] + [{"svn": 0}] * 13
        found = {"tcb": tcb, "tcbDate": "2026-10-01T00:00:00Z", "tcbStatus": status}
        return found | ({"advisoryIDs": list(advisories)} if advisories else {})

    top_advisories = () if top == "UpToDate" else ("INTEL-SA-00001",)
    return [
        level(top_svn, top, top_advisories),
        level(3, "OutOfDate", ("INTEL-SA-00002", "INTEL-SA-00003")),
        level(1, "Revoked", ("INTEL-SA-00004",)),
    ]


def enclave_levels(*levels: tuple[int, str]) -> list[dict[str, Any]]:
    """Levels of a quoting enclave or module."""
    return [
        {"tcb": {"isvsvn": svn}, "tcbDate": "2026-09-01T00:00:00Z", "tcbStatus": status}
        | ({"advisoryIDs": ["INTEL-SA-00009"]} if status != "UpToDate" else {})
        for svn, status in levels
    ]


@dataclass(frozen=True, kw_only=True)
class Intel:
    """A vendor, one platform and one TEE on it. `version`: 3 is SGX, 4 and 5 are TDX; `td15`: TD report 1.5 in 5.

    Mappings are laid over the defaults: `body` and `qe` by field of the report, `tcb_info` and `qe_identity` by member,
    `replaced` by the name of a made part (see `_part`), after signing. `critical`: roles whose certificates have a
    critical extension that nobody knows.
    """

    name: str = "test intel"
    version: int = 3
    td15: bool = True
    header: Mapping[str, bytes] = field(default_factory=dict)
    body: Mapping[str, bytes] = field(default_factory=dict)
    qe: Mapping[str, bytes] = field(default_factory=dict)
    fmspc: bytes = bytes.fromhex("aabbccddeeff")
    pce_id: bytes = bytes(2)
    components: tuple[int, ...] = (5,) * 16
    pce_svn: int = 5
    authority: str = PLATFORM
    names: Mapping[str, str] = field(default_factory=dict)
    not_after: Mapping[str, datetime] = field(default_factory=dict)
    not_before: Mapping[str, datetime] = field(default_factory=dict)
    issuer: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    revoked: tuple[str, ...] = ()
    critical: tuple[str, ...] = ()
    tcb_info: Mapping[str, Any] = field(default_factory=dict)
    qe_identity: Mapping[str, Any] = field(default_factory=dict)
    crl_next_update: Mapping[str, datetime] = field(default_factory=dict)
    signers: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, bytes] = field(default_factory=dict)
    trailing: bytes = b""

    def but(self, **changes: Any) -> Self:
        """The same with fields replaced; mappings are laid over the ones that are there."""
        merged = {k: {**getattr(self, k), **v} if isinstance(v, Mapping) else v for k, v in changes.items()}
        return replace(self, **merged)

    def forge(self, **parts: bytes) -> Self:
        """The same with parts replaced after signing."""
        return self.but(replaced=parts)

    def _part(self, name: str, made: bytes) -> bytes:
        return self.replaced.get(name, made)

    @property
    def tdx(self) -> bool:
        """Whether it is a TDX platform."""
        return self.version != 3

    @property
    def format(self) -> str:
        """The evidence format."""
        return "tdx" if self.tdx else "sgx"

    @property
    def root(self) -> str:
        """What a policy names: the fingerprint of the root's certificate."""
        return hashlib.sha256(self.certificate("root")).hexdigest()

    @property
    def roots(self) -> tuple[str, ...]:
        """The roots of a policy that accepts this vendor."""
        return (self.root,)

    @property
    def endorsements(self) -> tuple[tuple[str, bytes], ...]:
        """What is stapled."""
        return (("dcap.json", self.bundle),)

    # --- certificates ---

    def key(self, role: str) -> ec.EllipticCurvePrivateKey:
        """The key of `root`, `ca`, `pck`, `signing` or `attestation`."""
        return self.keys.get(role) or p256(f"{self.name} {role}")

    def _name(self, role: str) -> x509.Name:
        usual = {"root": ROOT, "ca": self.authority, "pck": PCK, "signing": SIGNING}[role]
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.names.get(role, usual))])

    @staticmethod
    def serial(role: str) -> int:
        """The serial number of a certificate."""
        return int.from_bytes(hashlib.sha256(role.encode()).digest()[:16]) | 1

    def certificate(self, role: str) -> bytes:
        """The DER of the certificate of `root`, `ca`, `pck` or `signing`."""
        issuer = self.issuer.get(role, {"root": "root", "ca": "root", "pck": "ca", "signing": "root"}[role])
        is_ca = role in ("root", "ca")
        usage = dict.fromkeys(
            (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
            ),
            False,
        ) | ({"key_cert_sign": True, "crl_sign": True} if is_ca else {"digital_signature": True})  # fmt: skip
        builder = x509.CertificateBuilder(
            self._name(issuer),
            self._name(role),
            self.key(role).public_key(),
            self.serial(role),
            self.not_before.get(role, NOW - 400 * DAY),
            self.not_after.get(role, NOW + 2000 * DAY),
        )
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        if role == "pck" and "no_sgx_extension" not in self.replaced:
            value = self._part("sgx_extension", self.sgx_extension)
            oid = ObjectIdentifier("1.2.840.113741.1.13.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
        if role in self.critical:
            unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        made = builder.sign(self.key(issuer), SHA256(), ecdsa_deterministic=True)
        return self._part(f"{role}_certificate", made.public_bytes(Encoding.DER))

    @property
    def sgx_extension(self) -> bytes:
        """What the PCK certificate says about the platform."""
        tcb = [entry((2, i + 1), integer(svn)) for i, svn in enumerate(self.components)]
        tcb += [
            entry((2, 17), integer(self.pce_svn)),
            entry((2, 18), tlv(0x04, bytes(self.components))),
        ]
        entries = [
            entry((1,), tlv(0x04, hashlib.md5(self.name.encode(), usedforsecurity=False).digest())),
            entry((2,), tlv(0x30, *tcb)),
            entry((3,), tlv(0x04, self.pce_id)),
            entry((4,), tlv(0x04, self.fmspc)),
            entry((5,), integer(1 if self.authority == PLATFORM else 0, 0x0A)),
        ]
        if self.authority == PLATFORM:
            flags = [entry((7, i), tlv(0x01, b"\xff")) for i in (1, 2, 3)]
            entries += [entry((6,), tlv(0x04, bytes(range(16)))), entry((7,), tlv(0x30, *flags))]
        return tlv(0x30, *entries)

    @property
    def pck_chain(self) -> bytes:
        """The PEM chain in the quote."""
        made = pem(*(self.certificate(role) for role in ("pck", "ca", "root"))) + b"\x00"
        return self._part("pck_chain", made)

    # --- the quote ---

    @property
    def _header(self) -> bytes:
        fields = (
            ("version", 2), ("key_type", 2), ("tee_type", 4), ("qe_svn", 2), ("pce_svn", 2), ("vendor", 16),
            ("user_data", 20),
        )  # fmt: skip
        usual = {
            "version": self.version.to_bytes(2, "little"),
            "key_type": b"\x02\x00",
            "tee_type": b"\x81\x00\x00\x00" if self.tdx else bytes(4),
            "vendor": VENDOR,
        }
        return build(fields, {**usual, **self.header})

    @property
    def _body(self) -> bytes:
        if not self.tdx:
            return build(SGX_FIELDS, {**SGX_BODY, **self.body})
        later = self.version == 5 and self.td15
        made = build(TD15_FIELDS if later else TD_FIELDS, {**TD_BODY, **self.body})
        if self.version == 4:
            return made
        kind = self.replaced.get("body_type", b"\x03\x00" if later else b"\x02\x00")
        return kind + self._part("body_size", len(made).to_bytes(4, "little")) + made

    @property
    def qe_report(self) -> bytes:
        """The quoting enclave's report, which vouches for the attestation key."""
        vouched = hashlib.sha256(point(self.key("attestation")) + bytes(range(32))).digest() + bytes(32)
        usual = {
            "attributes": bytes.fromhex("1500000000000000e700000000000000"),
            "mr_enclave": hashlib.sha256(b"the quoting enclave").digest(),
            "mr_signer": QE_SIGNER,
            "isv_prod_id": b"\x02\x00" if self.tdx else b"\x01\x00",
            "isv_svn": b"\x08\x00",
            "report_data": vouched,
        }
        return build(SGX_FIELDS, {**usual, **self.qe})

    @property
    def quote(self) -> bytes:
        """The quote, with `trailing` behind it."""
        signed = self._header + self._body
        chain = self.pck_chain
        auth = self._part("qe_auth", bytes(range(32)))
        qe = (
            self._part("qe_report", self.qe_report)
            + self._part("qe_signature", sign(self.key("pck"), self.qe_report))
            + len(auth).to_bytes(2, "little")
            + auth
            + self._part("chain_type", b"\x05\x00")
            + self._part("chain_size", len(chain).to_bytes(4, "little"))
            + chain
        )
        if self.version >= 4:
            size = self._part("qe_size", len(qe).to_bytes(4, "little"))
            qe = self._part("qe_type", b"\x06\x00") + size + qe
        data = (
            self._part("signature", sign(self.key("attestation"), signed))
            + self._part("attestation_key", point(self.key("attestation")))
            + qe
        )
        size = self._part("signature_size", len(data).to_bytes(4, "little"))
        return self._part("signed", signed) + size + data + self.trailing

    # --- the collateral ---

    @property
    def tcb_info_json(self) -> dict[str, Any]:
        """The members of the TCB info."""
        usual: dict[str, Any] = {
            "id": "TDX" if self.tdx else "SGX",
            "version": 3,
            "issueDate": _time(NOW - DAY),
            "nextUpdate": _time(NOW + 29 * DAY),
            "fmspc": self.fmspc.hex().upper(),
            "pceId": self.pce_id.hex().upper(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": 20,
            "tcbLevels": statuses(tdx=self.tdx),
        }
        if self.tdx:
            who = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            levels = enclave_levels((5, "UpToDate"), (3, "OutOfDate"), (2, "Revoked"))
            usual |= {
                "tdxModule": who,
                "tdxModuleIdentities": [{"id": "TDX_01"} | who | {"tcbLevels": levels}],
            }
        return usual | dict(self.tcb_info)

    @property
    def qe_identity_json(self) -> dict[str, Any]:
        """The members of the quoting enclave's identity."""
        usual = {
            "id": "TD_QE" if self.tdx else "QE",
            "version": 2,
            "issueDate": _time(NOW - DAY),
            "nextUpdate": _time(NOW + 28 * DAY),
            "tcbEvaluationDataNumber": 20,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": 2 if self.tdx else 1,
            "tcbLevels": enclave_levels((8, "UpToDate"), (6, "OutOfDate"), (5, "Revoked")),
        }
        return usual | dict(self.qe_identity)

    def crl(self, role: str) -> bytes:
        """The revocation list of `root` or `ca`, with the certificates of `revoked`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name(role))
            .last_update(self.not_before.get(f"{role}_crl", NOW - DAY))
            .next_update(self.crl_next_update.get(role, NOW + 27 * DAY))
            .add_extension(x509.CRLNumber(7), critical=False)
        )
        listed = ("pck", "other") if role == "ca" else ("root", "ca", "signing", "another")
        for one in listed:
            if one in self.revoked or one in ("other", "another"):
                revoked = x509.RevokedCertificateBuilder().serial_number(self.serial(one))
                builder = builder.add_revoked_certificate(revoked.revocation_date(NOW - DAY).build())
        by = self.key(self.signers.get(f"{role}_crl", role))
        made = builder.sign(by, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)
        return self._part(f"{role}_crl", made)

    @property
    def members(self) -> dict[str, str]:
        """The members of the DCAP bundle."""
        info = json.dumps(self.tcb_info_json, separators=(",", ":"))
        identity = json.dumps(self.qe_identity_json, separators=(",", ":"))
        chain = pem(self.certificate("signing"), self.certificate("root"))
        by = {name: self.key(self.signers.get(name, "signing")) for name in ("tcb_info", "qe_identity")}
        return {
            "pck_crl_issuer_chain": pem(self.certificate("ca"), self.certificate("root")).decode(),
            "root_ca_crl": self.crl("root").hex(),
            "pck_crl": self.crl("ca").hex(),
            "tcb_info_issuer_chain": self._part("tcb_info_chain", chain).decode(),
            "tcb_info": self._part("tcb_info", info.encode()).decode(),
            "tcb_info_signature": sign(by["tcb_info"], info.encode()).hex(),
            "qe_identity_issuer_chain": self._part("qe_identity_chain", chain).decode(),
            "qe_identity": self._part("qe_identity", identity.encode()).decode(),
            "qe_identity_signature": sign(by["qe_identity"], identity.encode()).hex(),
        }

    @property
    def bundle(self) -> bytes:
        """The DCAP bundle."""
        return self._part("bundle", json.dumps(self.members).encode())


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


SGX = Intel()
TDX4 = Intel(version=4)
TDX5 = Intel(version=5)
TDX5_10 = Intel(version=5, td15=False)
EVERY = (SGX, TDX4, TDX5, TDX5_10)
