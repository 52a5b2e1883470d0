"""Every byte of the recorded evidence and of its endorsements: flipped, it is refused, or it is in a stated list.

One bit of one byte at a time; which bit moves along. A run samples with fixed strides, closely in evidence, widely in
endorsements; STRONGROOM_FLIPS=all flips every byte. Where a flip is not noticed, the claims are the same to the letter,
and the byte is one that nobody signs and nothing reads: `free` says which, and why.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
import recorded
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from recorded import CASES, Case

from strongroom.attest.appraise import AnyMeasurement, NoReportData, appraise
from strongroom.attest.certificate import parse_certificate
from strongroom.attest.evidence import Claims, Evidence, Examination, Verdict
from strongroom.attest.quote import parse_quote
from strongroom.attest.tpm import examine_tpm
from strongroom.cli_appraise import _read_evidence
from strongroom.errors import Error
from strongroom.sources import load_endorsements

pytestmark = [
    pytest.mark.slow,  # thousands of verifications of recorded samples
    pytest.mark.skipif(not recorded.EVIDENCE.is_dir(), reason=recorded.ABSENT),
    # As in production: no refusal may rest on a warning of a library that tests turn into an error.
    pytest.mark.filterwarnings("ignore"),
]

ALL = os.environ.get("STRONGROOM_FLIPS") == "all"
STRIDES = {"sgx": 1, "tdx": 1, "snp": 1, "tpm": 1, "nitro": 3, "azure": 13, "ra-tls": 13}
"""Of evidence, by format: every byte where a verification takes a millisecond or so."""
ENDORSED = 67
"""Stride in endorsements; a flip there costs a whole verification."""
QUICK = 24
"""Flips of one file in the fast part of the tests."""
ELSEWHERE = {
    "sgx": ("test_dcap", "test_every_flip_of_recorded_quotes_is_refused"),
    "tdx": ("test_dcap", "test_every_flip_of_recorded_quotes_is_refused"),
    "snp": ("test_snp", "test_every_flipped_byte_is_refused"),
}
"""Formats of which another test flips every byte of all evidence already; only the list of them is held here."""
UNVERIFIED = {
    "pck_chain_invalid": "an altered chain: nothing below it is looked at",
    "chain_signature_invalid": "a forged leaf: nothing it says is looked at",
    "ratls_signature_invalid": "a certificate that its key did not sign",
}
"""Codes of recordings that give no claims as they are: a flip cannot be told from none, and is refused as well."""


TD_REPORT, TD_REPORT_DATA = range(32, 32 + 1024), range(32 + 128, 32 + 192)
"""Where a TD report lies in an Azure HCL report, and the report data in it."""


@dataclass(frozen=True)
class Outcome:
    """Ids of the failed checks, and the claims: what a flip must change, and what none may change alone."""

    failed: frozenset[str]
    claims: Claims | None


@dataclass(frozen=True)
class Part:
    """One file of a case, and the outcome with it replaced."""

    case: Case
    name: str
    data: bytes
    run: Callable[[bytes], Outcome]

    @property
    def is_evidence(self) -> bool:
        """Whether it is the evidence itself."""
        return self.name == "evidence"


def _outcome(found: Verdict | Examination) -> Outcome:
    claims = found.claims if isinstance(found.claims, Claims) else None
    return Outcome(frozenset(c.id for c in found.checks if not c.passed), claims)


def _tpm_roots(case: Case) -> tuple[str, ...]:
    """The root and key to be named for a recorded software TPM: without them nothing about it is accepted."""
    try:
        quote = json.loads((case.path / "quote.json").read_text())
        root = load_pem_x509_certificate((case.path / "root.pem").read_bytes()).fingerprint(SHA256()).hex()
        return root, quote["ak_name"][4:]
    except FileNotFoundError:  # a bare public key, without certificate or name
        document = json.loads((case.path / "tpm_evidence.json").read_text())
        return (hashlib.sha256(base64.b64decode(document["ak_public"])).hexdigest(),)


def parts(case: Case) -> list[Part]:
    """Evidence and each endorsement."""
    evidence, endorsements = _read_evidence(case.path, case.format), load_endorsements(case.endorsements)
    now = datetime.fromisoformat(case.at)

    def run(data: bytes, used: tuple[tuple[str, bytes], ...]) -> Outcome:
        if case.format == "tpm":
            return _outcome(examine_tpm(data, endorsements=used, roots=_tpm_roots(case), now=now))
        asked = NoReportData("nobody asked")
        given = Evidence(case.format, data, ())
        return _outcome(appraise(given, AnyMeasurement(), report_data=asked, endorsements=used, now=now))

    def with_endorsement(n: int) -> Callable[[bytes], Outcome]:
        before, (name, _), after = endorsements[:n], endorsements[n], endorsements[n + 1 :]
        return lambda data: run(evidence, (*before, (name, data), *after))

    found = [Part(case, "evidence", evidence, lambda data: run(data, endorsements))]
    found += [Part(case, Path(n).name, data, with_endorsement(i)) for i, (n, data) in enumerate(endorsements)]
    return found


BESIDE = (
    "the attestation key is named itself: an endorsement certificate that leads nowhere is not used beside it"
)


def without_endorsement(outcome: Outcome) -> Outcome:
    """The outcome without what an endorsement certificate says."""
    if outcome.claims is None:
        return outcome
    kept = tuple((k, v) for k, v in outcome.claims.details if not k.startswith("tpm.ek_"))
    return Outcome(outcome.failed, replace(outcome.claims, details=kept))


def free(part: Part) -> dict[int, str]:
    """The bytes of a part that nothing authenticates, with the reason of each."""
    data, positions = part.data, {}
    if part.name.endswith(".pem"):
        starts = [at for at in range(len(data)) if data.startswith(b"-----BEGIN", at)]
        ends = [*starts[1:], len(data)]
        unused = 0 if "vlek" in part.case.name else 2
        positions |= {at: "line breaks of PEM" for at, byte in enumerate(data) if byte == 0x0A}
        reason = "the certificate of the other kind of key (VLEK or VCEK), which the chain does not need"
        positions |= dict.fromkeys(range(starts[unused], ends[unused]), reason)
    if part.is_evidence and part.case.format in ("sgx", "tdx"):
        trailing = len(parse_quote(data).trailing)
        if any(data[len(data) - trailing :]):
            reason = "a text behind the quote, for which it is refused as it is"
            positions |= dict.fromkeys(range(len(data) - trailing, len(data)), reason)
    if part.is_evidence and part.case.format == "azure":
        document = json.loads(data)
        report = base64.b64decode(document["hcl_report"])
        if report[TD_REPORT.start : TD_REPORT.start + 1] == b"\x81":  # the type of a TD report
            begin = data.index(document["hcl_report"].encode())
            reason = "of the TD report only the report data are looked at: its MAC is for the machine itself"
            positions |= {
                begin + n: reason
                for n in range(len(document["hcl_report"]))
                for at in (n * 6 // 8, (n * 6 + 5) // 8)
                if at in TD_REPORT and at not in TD_REPORT_DATA
            }
    if part.is_evidence and part.case.name == "swtpm-recorded-ecc":
        document = json.loads(data)
        for text in (*document["certificates"], document["ek_certificate"]):
            begin = data.index(text.encode())
            positions |= dict.fromkeys(range(begin, begin + len(text)), BESIDE)
    if part.is_evidence and part.case.name == "prod-2023-in-tls-certificate-certificate":
        spki = parse_certificate(data).spki
        document_hex = (part.case.path.parent / "doc.cose").read_bytes().hex().encode()
        counted = [(data.index(one), data.index(one) + len(one)) for one in (spki, document_hex)]
        reason = "a certificate of a public authority: key and document alone count (docs/spec/ra-tls.md)"
        positions |= {at: reason for at in range(len(data)) if not any(s <= at < e for s, e in counted)}
    return positions


def flip(data: bytes, at: int) -> bytes:
    """One bit of one byte."""
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def assert_noticed(part: Part, positions: range) -> None:
    """Each flip costs the claims or fails one check more, or is free and changes nothing."""
    whole = part.run(part.data)
    allowed = free(part)
    for at in positions:
        found = part.run(flip(part.data, at))
        if part.case.code in UNVERIFIED:
            assert found.failed and found.claims is None, at
            continue
        lost = whole.claims is not None and found.claims is None
        if not lost and not found.failed - whole.failed:
            assert at in allowed, at
            if allowed[at] == BESIDE:
                found, expected = without_endorsement(found), without_endorsement(whole)
            else:
                expected = whole
            assert found == expected, (at, allowed[at])


def _stride(part: Part) -> int:
    if ALL:
        return 1
    if not part.is_evidence:
        return ENDORSED
    return STRIDES[part.case.format]


def _unique() -> list[Case]:
    """Cases without those whose files are all in cases before them."""
    seen: set[Path] = set()
    kept = []
    for case in CASES:
        if not seen >= {case.path, *case.endorsements}:
            kept.append(case)
        seen |= {case.path, *case.endorsements}
    return kept


UNIQUE = _unique() if recorded.EVIDENCE.is_dir() else CASES


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_flips_here_and_there(case: Case) -> None:
    """The fast part: some flips of every file of every case, the first and last bytes among them."""
    for part in parts(case):
        step = max(1, len(part.data) // (QUICK if part.is_evidence else QUICK // 2))
        assert_noticed(part, range(0, len(part.data), step))
        assert_noticed(part, range(len(part.data) - 2, len(part.data)))


@pytest.mark.slow
@pytest.mark.parametrize("case", UNIQUE, ids=lambda c: c.name)
def test_every_flip_of_evidence(case: Case) -> None:
    """Byte by byte where that is affordable."""
    if case.format in ELSEWHERE and not ALL:
        module, name = ELSEWHERE[case.format]
        assert callable(getattr(importlib.import_module(module), name))
        return
    part = parts(case)[0]
    assert_noticed(part, range(0, len(part.data), _stride(part)))


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in UNIQUE if c.endorsements], ids=lambda c: c.name)
def test_flips_of_endorsements(case: Case) -> None:
    """Bundles, certificates, chains."""
    for part in parts(case)[1:]:
        assert_noticed(part, range(0, len(part.data), _stride(part)))


@pytest.mark.parametrize("case", UNIQUE, ids=lambda c: c.name)
def test_what_is_free_is_little_and_stated(case: Case) -> None:
    """Of evidence: a text behind a quote that is refused for it, the TD report of a paravisor, and what stands around
    key and document in a public authority's certificate; beside a TPM's named key, its maker's certificates. Of
    endorsements: line breaks, and one certificate too many.
    """
    for part in parts(case):
        stated = {at: why for at, why in free(part).items() if why != BESIDE}
        assert all(stated.values())
        if part.is_evidence and case.format not in ("azure", "ra-tls"):
            assert not stated or case.code
        elif not part.is_evidence:
            assert not stated or part.name.endswith(".pem")
        assert len(stated) < len(part.data) / 2


@pytest.mark.parametrize("case", UNIQUE, ids=lambda c: c.name)
def test_truncations_and_noise_give_only_our_own_errors(case: Case) -> None:
    """No exception but ours, and no claims where the evidence was cut: in evidence and in every endorsement."""
    rng = random.Random(case.name)
    for part in parts(case):
        size = len(part.data)
        cuts = {0, 1, 2, size - 1, size // 2, *rng.sample(range(size), 8)}
        damaged = [part.data[:cut] for cut in cuts]
        damaged += [rng.randbytes(rng.randrange(1, 2 * size)) for _ in range(4)]
        for _ in range(6):
            noisy = bytearray(part.data)
            at, length = rng.randrange(size), rng.randrange(1, 64)
            noisy[at : at + length] = rng.randbytes(rng.randrange(64))
            damaged.append(bytes(noisy))
        whole = part.run(part.data)
        for data in damaged:
            try:
                found = part.run(data)
            except Error:
                continue
            if part.is_evidence and not found.failed - whole.failed and found.claims is not None:
                assert found == whole
                if part.case.format in ("sgx", "tdx"):  # fewer zeros, or less of a text, behind the quote
                    signed = size - len(parse_quote(part.data).trailing)
                    assert data[:signed] == part.data[:signed]
                else:
                    assert free(part)


def test_the_reasons_are_used() -> None:
    """Every code of recordings without claims, and every format, occurs."""
    assert {c.code for c in CASES} >= set(UNVERIFIED)
    assert {c.format for c in CASES} == set(STRIDES)
