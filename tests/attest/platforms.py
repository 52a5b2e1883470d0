"""One fake machine for each format of hardware evidence, and a client that asks it: what it answers to a nonce, the
one policy that accepts it, and `attest.verify` with the fake vendor's root in the place of the pinned one.

Whatever a policy must say, and whatever `verify` must be given, is written here once: `policy` and `verify`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from unittest import mock

import fake_aws
import fake_azure
import fake_intel
import fake_tpm
from fake_amd import Machine
from fake_amd import roots as amd_roots
from worlds import NONCE, NOW, SECURITY, Server

from strongroom import attest
from strongroom.attest import verifiers
from strongroom.attest.batch import Single
from strongroom.attest.evidence import (
    Appraised,
    Attested,
    Channel,
    Claims,
    Evidence,
    Verdict,
    report_data,
)
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.policy import Policy, parse_policy, policy_for
from strongroom.errors import CODES, AttestationRefused

EXCLUDED = replace(SECURITY, sealing="measurement", host_excluded=True)
"""The configuration of a server whose host is kept out."""
OPEN = replace(SECURITY, sealing="operator")
"""That of a server on a machine whose host is not."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A machine of a format. `carry`: evidence of it that carries the given bytes in the place of its answer, with one
    thing or another changed. `code`: the member of a policy's entry that names what it runs.
    """

    name: str
    format: str
    carry: Callable[..., Evidence]
    roots: tuple[str, ...]
    security: SecurityConfiguration = EXCLUDED
    code: str = "measurements"

    @property
    def server(self) -> Server:
        """The server on it: its keyset and its certificate."""
        return Server(name=self.name, security=self.security)

    @property
    def pinned(self) -> bool:
        """Whether the vendor's root is pinned in the code, and not named in a policy."""
        return self.format in verifiers.PINS

    def answered(self, nonce: bytes = NONCE, keyset_bytes: bytes | None = None) -> bytes:
        """The bytes that answer `nonce` for the server's keyset, or for another."""
        shown = self.server.keyset_bytes if keyset_bytes is None else keyset_bytes
        return verifiers.carried(self.format, report_data(nonce=nonce, keyset_bytes=shown))

    def answer(self, **changes: Any) -> Evidence:
        """The genuine answer to the client's nonce, or one with something changed."""
        return self.carry(self.answered(), **changes)

    def __repr__(self) -> str:
        return self.name


# The machines


def _intel(vendor: fake_intel.Intel) -> Callable[..., Evidence]:
    def carry(data: bytes, *, by: dict[str, Any] | None = None, **body: bytes) -> Evidence:
        """`by` changes the vendor, `body` fields of the report."""
        made = vendor.but(**(by or {})).but(body={**body, "report_data": data})
        return Evidence(made.format, made.quote, made.endorsements)

    return carry


def _amd(machine: Machine) -> Callable[..., Evidence]:
    def carry(data: bytes, *, fields: dict[int, bytes] | None = None, **changed: Any) -> Evidence:
        """`fields` replace bytes of the report before it is signed, `changed` members of the machine."""
        made = machine.but(**changed).but(fields={**(fields or {}), 0x50: data})
        return Evidence("snp", made.report, made.endorsements)

    return carry


def _tpm(tpm: fake_tpm.Tpm) -> Callable[..., Evidence]:
    def carry(data: bytes, **changed: Any) -> Evidence:
        """`changed`: members of the TPM."""
        return Evidence("tpm", tpm.but(**changed).but(qualifying=data).document, ())

    return carry


def _azure(cloud: fake_azure.Cloud) -> Callable[..., Evidence]:
    def carry(data: bytes, *, vtpm: dict[str, Any] | None = None, **changed: Any) -> Evidence:
        """`vtpm` changes the virtual TPM, `changed` members of the cloud."""
        made = cloud.but(**changed)
        made = made.but(vtpm=made.vtpm.but(**(vtpm or {})).but(qualifying=data))
        return Evidence("azure", made.document, made.endorsements)

    return carry


def _aws(data: bytes, **changed: Any) -> Evidence:
    """`changed`: members of the document; its nonce is the client's."""
    return Evidence("nitro", fake_aws.mint(**({"user_data": data, "nonce": NONCE} | changed)), ())


NAMED, CERTIFIED = fake_tpm.Tpm(label="named"), fake_tpm.Tpm(label="certified", ak={})
SGX = Platform(
    name="sgx", format="sgx", carry=_intel(fake_intel.SGX), roots=fake_intel.SGX.roots
)  # fmt: skip
TDX4, TDX5 = (
    Platform(
        name=name,
        format="tdx",
        carry=_intel(vendor),
        roots=vendor.roots,
    )
    for name, vendor in (("tdx-4", fake_intel.TDX4), ("tdx-5", fake_intel.TDX5))
)
SNP = Platform(name="snp", format="snp", carry=_amd(Machine()), roots=amd_roots())
SNP_LENT = Platform(
    name="snp-vlek", format="snp", carry=_amd(Machine(product="Turin", kind="VLEK")), roots=amd_roots()
)
TPM_NAMED = Platform(
    name="tpm-named",
    format="tpm",
    carry=_tpm(NAMED),
    roots=(NAMED.ak_digest,),
    security=OPEN,
    code="registers.pcr4",
)
TPM_CERTIFIED = Platform(
    name="tpm-certified",
    format="tpm",
    carry=_tpm(CERTIFIED),
    roots=(fake_tpm.ROOT_DIGEST,),
    security=OPEN,
    code="registers.pcr4",
)
AZURE_SNP, AZURE_TDX = (
    Platform(
        name=f"azure-{cloud.tee}",
        format="azure",
        carry=_azure(cloud),
        roots=cloud.roots,
        code="launch_measurements",
    )
    for cloud in (fake_azure.CLOUD, fake_azure.TDX)
)
NITRO = Platform(name="nitro", format="nitro", carry=_aws, roots=(fake_aws.ROOT,))
PLATFORMS = (SGX, TDX4, TDX5, SNP, SNP_LENT, TPM_NAMED, TPM_CERTIFIED, AZURE_SNP, AZURE_TDX, NITRO)


# The client


@functools.cache
def claims(platform: Platform, **changes: Any) -> Claims:
    """What the genuine machine's answer claims."""
    evidence = platform.answer(**changes)
    examine = verifiers.VERIFIERS[platform.format]
    found = examine(evidence.data, endorsements=evidence.endorsements, roots=platform.roots, now=NOW)
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    return found.claims


def policy(platform: Platform, **members: object) -> Policy:
    """The policy that accepts this machine's code, platform and configuration and nothing else; `members` of its file
    are replaced (`**{"registers.pcr4": [...]}`).
    """
    text = policy_for(claims(platform), security=platform.security, now=NOW)
    for name, value in members.items():
        line = f"{name} = {_toml(value)}"
        text, count = re.subn(rf"^{re.escape(name)} = .*$", line, text, flags=re.MULTILINE)
        assert count == 1, f"{name}: {count} times in\n{text}"
    return parse_policy(text)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)


def verify(
    platform: Platform,
    evidence: Evidence,
    *,
    by: Policy | None = None,
    server: Server | None = None,
    channel: Channel | None = None,
    endorsements: tuple[tuple[str, bytes], ...] | None = None,
    now: datetime = NOW,
    accepted: tuple[str, ...] | None = None,
) -> Attested | Appraised:
    """What a client does that asked with `NONCE`, on a connection to `server` (the platform's), and has its policy; the
    vendor's pinned roots are `accepted` (the platform's).
    """
    shown = server or platform.server
    pins = {platform.format: platform.roots if accepted is None else accepted} if platform.pinned else {}
    with mock.patch.dict(verifiers.PINS, pins):
        return attest.verify(
            evidence,
            by or policy(platform),
            nonce=NONCE,
            keyset_bytes=shown.keyset_bytes,
            inclusion=Single(),
            channel=channel or shown.leaf,
            endorsements=evidence.endorsements if endorsements is None else endorsements,
            now=now,
        )


def refusal(platform: Platform, evidence: Evidence, **how: Any) -> Verdict:
    """The verdict of a refusal: with a failure, whose code is the refusal's, and codes that are all declared."""
    try:
        proof = verify(platform, evidence, **how)
    except AttestationRefused as refused:
        verdict = refused.verdict
        assert verdict is not None and not verdict.passed
        assert refused.code == verdict.code == verdict.failures[0].code
        assert all(c.code in CODES for c in verdict.failures)
        assert not any(c.code for c in verdict.checks if c.passed)
        return verdict
    raise AssertionError(f"{platform}: accepted: {proof.verdict}")


def codes(platform: Platform, evidence: Evidence, **how: Any) -> list[str]:
    """Codes of the failed checks, in order; none where it was accepted."""
    try:
        verify(platform, evidence, **how)
    except AttestationRefused:
        return [c.code for c in refusal(platform, evidence, **how).failures]
    return []


def digest(text: str) -> bytes:
    """Some 32 bytes."""
    return hashlib.sha256(text.encode()).digest()
