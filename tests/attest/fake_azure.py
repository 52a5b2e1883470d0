"""A fake Azure: a paravisor's report around a fake processor's, runtime data, and the virtual TPM behind them.

`Cloud()` is genuine in every respect; each argument makes one thing otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import fake_tpm as fake
from fake_amd import Machine, roots
from fake_intel import Intel
from fake_tpm import Tpm

VTPM = Tpm(label="vtpm", ak_kind="rsa2048", firmware=0x2020031200120003)
MACHINE, INTEL = Machine(), Intel(version=4)


def b64url(data: bytes) -> str:
    """Base64url without padding, as in a JWK."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: Any, kid: str = "HCLAkPub", **changes: Any) -> dict[str, Any]:
    """An RSA key in the runtime data."""
    n = key.public_key().public_numbers().n
    return {
        "kid": kid,
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": "AQAB",
        "n": b64url(n.to_bytes((n.bit_length() + 7) // 8)),
    } | changes


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """A confidential machine at a fake Azure. `runtime` replaces members of the runtime data, `patches` bytes of the
    paravisor's report at their offsets, `members` those of the document.
    """

    tee: str = "snp"
    vtpm: Tpm = VTPM
    snp: Machine = MACHINE
    td: Intel = INTEL
    keys: tuple[Any, ...] = (jwk(VTPM.ak_key), jwk(fake.rsa_key("ek"), "HCLEkPub", key_ops=["encrypt"]))
    runtime: Mapping[str, Any] = field(default_factory=dict)
    raw_runtime: bytes | None = None
    report_data: bytes | None = None
    td_report_data: bytes | None = None
    version: int = 2
    patches: Mapping[int, bytes] = field(default_factory=dict)
    padding: bytes = bytes(164)
    members: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Cloud:
        """The same machine with these fields changed."""
        return replace(self, **changes)

    @property
    def runtime_data(self) -> bytes:
        """What the paravisor says about its vTPM and the machine."""
        made = {
            "keys": list(self.keys),
            "vm-configuration": {
                "console-enabled": True,
                "secure-boot": True,
                "tpm-enabled": True,
                "vmUniqueId": "390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC",
            },
            "user-data": "AB" * 64,
        } | dict(self.runtime)
        return json.dumps(made).encode() if self.raw_runtime is None else self.raw_runtime

    @property
    def hardware_data(self) -> bytes:
        """The hardware's report data."""
        usual = hashlib.sha256(self.runtime_data).digest() + bytes(32)
        return usual if self.report_data is None else self.report_data

    @property
    def intel(self) -> Intel:
        """The TD of the paravisor, which leaves SEPT_VE_DISABLE clear."""
        return self.td.but(body={"report_data": self.hardware_data, "td_attributes": bytes(8)})

    @property
    def hardware(self) -> bytes:
        """The hardware's report, as the paravisor's report holds it."""
        if self.tee == "snp":
            fields = {0x50: self.hardware_data, **self.snp.fields}
            return self.snp.but(fields=fields).report
        inside = self.hardware_data if self.td_report_data is None else self.td_report_data
        return (bytes(128) + inside).ljust(1184, b"\0")

    @property
    def hcl(self) -> bytes:
        """The paravisor's report."""
        data = self.runtime_data
        size = 20 + len(data)
        out = b"HCLA" + struct.pack("<IIII", self.version, 1216 + size, 2, 0) + bytes(12) + self.hardware
        out += struct.pack("<5I", size, 1, 2 if self.tee == "snp" else 4, 1, len(data)) + data + self.padding
        made = bytearray(out)
        for at, replaced in self.patches.items():
            made[at : at + len(replaced)] = replaced
        return bytes(made)

    @property
    def document(self) -> bytes:
        """The evidence (docs/spec/azure.md §2.1)."""
        vtpm = json.loads(self.vtpm.document)
        made = {
            "version": 1,
            "hcl_report": self.hcl,
            "attest": vtpm["attest"],
            "signature": vtpm["signature"],
            "pcrs": vtpm["pcrs"],
            "event_log": b"",
            "td_quote": self.intel.quote if self.tee == "tdx" else b"",
            "certificates": [self.snp.leaf_der] if self.tee == "snp" else [],
        }
        return fake.document(made | dict(self.members))

    @property
    def endorsements(self) -> tuple[tuple[str, bytes], ...]:
        """What the machine's processor needs beside the document."""
        return self.snp.endorsements[1:] if self.tee == "snp" else self.intel.endorsements

    @property
    def roots(self) -> tuple[str, ...]:
        """The roots that accept it."""
        return roots() if self.tee == "snp" else self.td.roots


CLOUD = Cloud()
TDX = Cloud(tee="tdx")
