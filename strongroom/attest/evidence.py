"""Evidence and what becomes of it: the answer on the wire, report data, claims, checks, verdicts, and the
proofs.

`Evidence` can be made by anybody. `Attested`, `Appraised` and `Stated` are proofs: only `strongroom.attest.verify`
makes them, so code that takes one cannot be reached with evidence that nobody verified. Words follow RFC
9334; formats are in docs/spec/evidence.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import InvalidVersion, load_der_x509_certificate

from strongroom.attest.batch import HASH_SIZE, MAX_BATCH, MAX_DEPTH, Inclusion, Single
from strongroom.attest.keyset import MAX_KEYSET, Keyset
from strongroom.attest.strict import Members, canonical, parse_object
from strongroom.errors import InvalidRequest, MalformedInput

MAX_ANSWER = 1 << 20
"""Bytes of one evidence answer that a client reads (§2.1); a TDX quote with its collateral stapled takes
about 30 KiB.
"""
MAX_EVIDENCE = 256 * 1024
"""Bytes of the evidence inside; the largest known (TDX quotes, Nitro documents, TPM event logs) stay below
100 KiB.
"""
MAX_ENDORSEMENTS = 16
"""Stapled documents; DCAP needs 9."""
NONCE_SIZE = 32
"""Bytes of a nonce (§2.2)."""
REPORT_DATA_SIZE = 64
"""Bytes of report data in SGX, TDX and SEV-SNP."""
MAX_SVN = 65535
"""The largest security version number: SGX and TDX keep 16 bits."""
MAX_SKEW = timedelta(minutes=5)
"""How far an evidence's clock may be ahead of ours (§4): two machines without good clocks, no more."""
FORMAT = r"[a-z][a-z0-9-]{0,31}"
"""The form of an evidence format's name."""

_HASH = f"[0-9a-f]{{{2 * HASH_SIZE}}}"
_LABEL_EVIDENCE = b"strongroom evidence v1"
_LABEL_RATLS = b"strongroom ratls v1"
_LABEL_STATEMENT = b"strongroom statement v1"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as it arrived: unverified bytes of `format`, and the documents stapled to it as (name,
    bytes).
    """

    format: str
    data: bytes
    endorsements: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class EvidenceAnswer:
    """What `GET /v1/evidence` answers: evidence, the keyset's bytes exactly as received, and whether the evidence was
    made for this nonce alone or for a batch with it.
    """

    evidence: Evidence
    keyset: bytes
    inclusion: Inclusion | Single


def encode_answer(answer: EvidenceAnswer) -> bytes:
    """Returns the JSON bytes of `answer` (docs/spec/evidence.md §2.1)."""
    return complete_answer(encode_plain(answer.evidence, keyset=answer.keyset), answer.inclusion)


def encode_plain(evidence: Evidence, *, keyset: bytes) -> bytes:
    """Returns the JSON bytes of an answer without a batch: what all answers of one batch and keyset have in common."""
    return canonical(
        {
            "format": evidence.format,
            "evidence": _base64(evidence.data),
            "endorsements": [{"name": n, "data": _base64(d)} for n, d in evidence.endorsements],
            "keyset": _base64(keyset),
        }
    )


def complete_answer(plain: bytes, inclusion: Inclusion | Single) -> bytes:
    """Returns the answer that `encode_plain` began, with its proof. Evidence is large and the same for everybody in a
    batch, so it is encoded once.
    """
    if isinstance(inclusion, Single):
        return plain
    path = [one.hex() for one in inclusion.path]
    batch = json.dumps({"index": inclusion.index, "size": inclusion.size, "path": path})
    return b'{"batch":' + batch.encode("ascii") + b"," + plain[1:]


def parse_answer(data: bytes) -> EvidenceAnswer:
    """Returns the evidence answer that `data` is (docs/spec/evidence.md §2.1). Nothing in it is verified.

    Raises:
        MalformedInput: code `answer_malformed`.
    """
    what, code = "evidence answer", "answer_malformed"
    top = parse_object(data, limit=MAX_ANSWER, what=what, code=code)
    names = ("format", "evidence", "endorsements", "keyset", *(("batch",) if "batch" in top else ()))
    read = Members(top, names, what=what, code=code)
    stapled = []
    for item in read.array("endorsements", MAX_ENDORSEMENTS):
        entry = Members(item, ("name", "data"), what=f"{what}: endorsement", code=code)
        stapled.append((entry.text("name", r"[a-z0-9][a-z0-9._-]{0,63}"), entry.base64("data", MAX_EVIDENCE)))
    if len({name for name, _ in stapled}) != len(stapled):
        read.refuse("endorsements: a name is there twice")
    evidence = Evidence(
        format=read.text("format", FORMAT),
        data=read.base64("evidence", MAX_EVIDENCE),
        endorsements=tuple(stapled),
    )
    return EvidenceAnswer(
        evidence=evidence,
        keyset=read.base64("keyset", MAX_KEYSET),
        inclusion=_parse_batch(read.object("batch")) if "batch" in top else Single(),
    )


def _parse_batch(value: object) -> Inclusion:
    """The member `batch`. Whether its three parts go together is verified with the rest (§4 step 4.1)."""
    what, code = "evidence answer: batch", "answer_malformed"
    read = Members(value, ("index", "size", "path"), what=what, code=code)
    path = []
    for one in read.array("path", MAX_DEPTH):
        if not isinstance(one, str) or re.fullmatch(_HASH, one, re.ASCII) is None:
            read.refuse(f"path: expected hashes of {HASH_SIZE} bytes in lower-case hex")
        path.append(bytes.fromhex(one))
    size = read.integer("size", 2, MAX_BATCH)
    return Inclusion(index=read.integer("index", 0, size - 1), size=size, path=tuple(path))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def parse_nonce(text: str) -> bytes:
    """Returns the 32 bytes of a nonce as it stands in the query: 64 lower-case hex characters.

    Raises:
        InvalidRequest: code `nonce_malformed`.
    """
    if re.fullmatch(r"[0-9a-f]{64}", text, re.ASCII) is None:
        raise InvalidRequest("nonce: expected 64 lower-case hex characters", code="nonce_malformed")
    return bytes.fromhex(text)


def report_data(*, nonce: bytes, keyset_bytes: bytes) -> bytes:
    """Returns the 64 bytes that evidence must carry to answer `nonce` (32 bytes) for this keyset (§2.2).

    Every purpose has its own label, and no caller chooses report data: evidence made for one purpose says
    nothing in another.

    Raises:
        MalformedInput: code `nonce_malformed`, a nonce of another size.
    """
    if len(nonce) != NONCE_SIZE:
        raise MalformedInput(f"nonce: expected {NONCE_SIZE} bytes, got {len(nonce)}", code="nonce_malformed")
    return hashlib.sha512(_LABEL_EVIDENCE + b"\x00" + nonce + hashlib.sha256(keyset_bytes).digest()).digest()


def boot_report_data(*, spki: bytes) -> bytes:
    """Returns the 64 bytes of the boot-time evidence in the RA-TLS certificate of the key `spki` (DER)
    (§2.3).

    It holds no nonce, so it proves nothing about now; its own label keeps it from ever passing as an answer
    to one.
    """
    return hashlib.sha512(_LABEL_RATLS + b"\x00" + hashlib.sha256(spki).digest()).digest()


def statement_report_data(*, nonce: bytes, keyset_bytes: bytes, statement: bytes) -> bytes:
    """Returns the 64 bytes of evidence by which the owner of this keyset makes a statement, in answer to `nonce`
    (docs/spec/reseal.md §3).

    What is stated is made inside the TEE for one purpose; nobody can ask for evidence of a statement of theirs.

    Raises:
        MalformedInput: code `nonce_malformed`, a nonce of another size.
    """
    if len(nonce) != NONCE_SIZE:
        raise MalformedInput(f"nonce: expected {NONCE_SIZE} bytes, got {len(nonce)}", code="nonce_malformed")
    parts = (nonce, hashlib.sha256(keyset_bytes).digest(), hashlib.sha256(statement).digest())
    return hashlib.sha512(_LABEL_STATEMENT + b"\x00" + b"".join(parts)).digest()


@dataclass(frozen=True, slots=True)
class Claims:
    """What verified evidence says, in the same words for every format.

    `measurement`, `signer`, `root`: lower-case hex ("" where the format has none; `root` is the SHA-256 of the
    trust anchor's certificate, of a simulation root's SPKI, or of a named TPM key's public area). `product`,
    `svn`: 0 where the format has none. `host_excluded`: whether evidence of this kind shows that the host
    cannot read the memory; never true in simulation. `tcb_status`: the vendor's word, "NotReported" where there
    is none. `report_data`: as the format carries it, unverified to be of any size. `issued_at`: when the
    evidence says that it was made, None where the format carries no time. `details`: facts of the one format,
    as (name, value). `events`: (register, digest in hex, type) of an event log that, replayed, gives the signed
    registers; empty where none was shown.
    """

    format: str
    simulated: bool
    host_excluded: bool
    measurement: str
    signer: str
    product: int
    svn: int
    debug: bool
    tcb_status: str
    advisories: tuple[str, ...]
    report_data: bytes
    root: str
    issued_at: datetime | None
    details: tuple[tuple[str, str], ...]
    events: tuple[tuple[str, str, str], ...] = ()

    def fact(self, name: str) -> str | None:
        """The detail of this name; None where there is none."""
        return dict(self.details).get(name)

    def to_json(self) -> dict[str, Any]:
        """The claims for `--json`; report data as hex."""
        return {
            "format": self.format,
            "simulated": self.simulated,
            "host_excluded": self.host_excluded,
            "measurement": self.measurement,
            "signer": self.signer,
            "product": self.product,
            "svn": self.svn,
            "debug": self.debug,
            "tcb_status": self.tcb_status,
            "advisories": list(self.advisories),
            "report_data": self.report_data.hex(),
            "root": self.root,
            "issued_at": self.issued_at.isoformat() if self.issued_at else None,
            "details": dict(self.details),
            "events": [{"register": r, "digest": d, "type": t} for r, d, t in self.events],
        }


@dataclass(frozen=True, slots=True)
class Leaf:
    """The certificate (DER) that the server showed on *this very* connection."""

    der: bytes

    def spki(self) -> bytes:
        """The canonical DER SubjectPublicKeyInfo of the certificate's key.

        Raises:
            MalformedInput: code `leaf_malformed`.
        """
        try:
            key = load_der_x509_certificate(self.der).public_key()
            return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, UnsupportedAlgorithm, InvalidVersion, Warning) as exc:
            # cryptography warns of oddities such as a negative serial number; ours has none, so it is not ours.
            raise MalformedInput(
                "leaf: not an X.509 certificate with a known key", code="leaf_malformed"
            ) from exc


@dataclass(frozen=True, slots=True)
class NoChannel:
    """No connection to bind to, and why. Yields `Appraised`, which no client and no key server accepts."""

    reason: str


@dataclass(frozen=True, slots=True)
class Statement:
    """No connection, but bytes that the evidence signs in its place, such as a key to encrypt to. Yields `Stated`."""

    data: bytes


Channel = Leaf | NoChannel | Statement


@dataclass(frozen=True, slots=True)
class Check:
    """One check that was made, or failed because it could not be: `id` such as "channel.spki", what was
    expected, what came.

    `code` is the refusal's code where it failed, "" where it passed.
    """

    id: str
    title: str
    passed: bool
    expected: str
    got: str
    code: str

    def to_json(self) -> dict[str, Any]:
        """The check for `--json`."""
        return {
            "id": self.id,
            "title": self.title,
            "passed": self.passed,
            "expected": self.expected,
            "got": self.got,
            "code": self.code or None,
        }


NOT_MADE = "could not be checked: "
"""How `Check.got` begins where an earlier failure left nothing to check. Such a check has failed."""


def check(check_id: str, title: str, passed: bool, *, expected: str, got: str, code: str) -> Check:
    """Returns the check with `code` kept only if it failed."""
    return Check(
        id=check_id, title=title, passed=passed, expected=expected, got=got, code="" if passed else code
    )


def check_impossible(check_id: str, title: str, *, expected: str, why: str, code: str) -> Check:
    """Returns the failed check that stands for one that could not be made, because of `why`."""
    return Check(id=check_id, title=title, passed=False, expected=expected, got=NOT_MADE + why, code=code)


def one_of(values: tuple[str, ...]) -> str:
    """Returns `values` for a check's `expected`: all of a few, the first of many."""
    shown = values[:4]
    more = f" or {len(values) - len(shown)} more" if len(values) > len(shown) else ""
    return " or ".join(shown) + more if values else "none is named"


@dataclass(frozen=True, slots=True)
class Absent:
    """Stands where claims or a configuration would be that did not verify; every check on it fails, for the
    reason `why`.
    """

    format: str
    why: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What the examiner of one format found: its own checks, and the claims once their signature verified."""

    checks: tuple[Check, ...]
    claims: Claims | Absent


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every check of one verification, in the order of its steps.

    `code` is the code of the first failure, None where all passed. `claims` is None where the evidence's own
    signature did not verify: unauthenticated claims are not shown. `keyset_digest`: hex. `channel`: what the
    evidence was tied to, for a person. `not_checked`: what nobody asked to be checked, for a
    person: a check that was not made is never a pass, and a verdict with one is never a proof.
    """

    passed: bool
    format: str
    simulated: bool
    checks: tuple[Check, ...]
    code: str | None
    claims: Claims | None
    keyset_digest: str | None
    channel: str
    not_checked: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """ "SIMULATED" where the verdict rests on simulated evidence, else "". Print it wherever the verdict
        is shown.
        """
        return "SIMULATED" if self.simulated else ""

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed, in order."""
        return tuple(c for c in self.checks if not c.passed)

    def to_json(self) -> dict[str, Any]:
        """The verdict for `--json`."""
        return {
            "passed": self.passed,
            "code": self.code,
            "label": self.label,
            "format": self.format,
            "simulated": self.simulated,
            "channel": self.channel,
            "keyset_digest": self.keyset_digest,
            "checks": [c.to_json() for c in self.checks],
            "not_checked": list(self.not_checked),
            "claims": self.claims.to_json() if self.claims else None,
        }


class ProofToken:
    """Shown by `strongroom.attest.verify`, and by nobody else, to make a proof. `tests/attest` finds other
    uses.
    """

    __slots__ = ()


PROOF = ProofToken()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proof:
    """What all proofs hold. `expires_in_s`: whole seconds, counted from `verified_at`, for which it may be
    relied on.
    """

    verdict: Verdict
    claims: Claims
    keyset: Keyset
    keyset_bytes: bytes
    spki_sha256: str
    verified_at: datetime
    expires_in_s: int
    proof: InitVar[ProofToken]

    def __post_init__(self, proof: ProofToken) -> None:
        if proof is not PROOF:
            raise TypeError(f"{type(self).__name__} is made by strongroom.attest.verify only")

    @property
    def keyset_digest(self) -> bytes:
        """SHA-256 of the keyset's bytes, 32 bytes."""
        return hashlib.sha256(self.keyset_bytes).digest()

    @property
    def simulated(self) -> bool:
        """Whether this rests on simulated evidence, which protects nothing from the host."""
        return self.claims.simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested(_Proof):
    """This very connection ends inside code, on a platform, that the policy accepts. `spki_sha256` (hex) is
    what to pin.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised(_Proof):
    """The evidence and keyset pass the policy, but no connection was tied to them: nothing may be sent on the
    strength of it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated(_Proof):
    """Code, on a platform, that the policy accepts made the `Statement` that this was verified with, and in answer to
    the nonce. What it does not say was not said: encrypt to the key in it, or to nobody.
    """
