"""The simulated TEE's evidence: format `sim`, signed by a root key that the operator made
(docs/spec/evidence.md §5).

It shows that the protocol works and which code the operator *says* is running. It protects nothing from the
host: whoever holds the root key can sign any measurement. So it is a format of its own and not a mode
(docs/adr/0002-simulation-is-a-format.md), its claims say `simulated`, and only a policy of the kind
`UNSAFE_SIMULATION` that names this very root accepts it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from strongroom.attest.evidence import (
    MAX_EVIDENCE,
    MAX_SKEW,
    MAX_SVN,
    REPORT_DATA_SIZE,
    Absent,
    Check,
    Claims,
    Examination,
    check,
    check_impossible,
    one_of,
)
from strongroom.attest.strict import JSON, Members, canonical, parse_object
from strongroom.errors import MalformedInput

FORMAT = "sim"
LABEL = "strongroom simulated evidence v1"
"""Signed in front of the body, and stated in it: the root's signature under another label is no evidence
(§5.2).
"""
_MAX_TIME = 253_402_300_799
"""The last second of the year 9999: the end of Python's calendar."""
_BODY = ("label", "root", "measurement", "svn", "report_data", "issued_at")


def root_digest(public_key: Ed25519PublicKey) -> str:
    """Returns the name of a simulation root in policies: the SHA-256 of its DER SPKI, as lower-case hex."""
    return hashlib.sha256(
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def issue(
    *, root_key: Ed25519PrivateKey, measurement: str, svn: int, report_data: bytes, now: datetime
) -> bytes:
    """Returns simulated evidence, signed by `root_key`, that code of `measurement` (64 hex characters) asked
    for `report_data` (64 bytes).

    Raises:
        MalformedInput: code `evidence_malformed`, an argument out of form.
    """
    if re.fullmatch(r"[0-9a-f]{64}", measurement, re.ASCII) is None or len(report_data) != REPORT_DATA_SIZE:
        raise MalformedInput(
            f"simulated evidence: measurement: 64 hex characters; report data: {REPORT_DATA_SIZE} bytes",
            code="evidence_malformed",
        )
    spki = root_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    body: dict[str, JSON] = {
        "label": LABEL,
        "root": base64.b64encode(spki).decode("ascii"),
        "measurement": measurement,
        "svn": svn,
        "report_data": report_data.hex(),
        "issued_at": int(now.timestamp()),
    }
    signature = base64.b64encode(root_key.sign(_message(body))).decode("ascii")
    return canonical({"body": body, "signature": signature})


def _message(body: JSON) -> bytes:
    return LABEL.encode("ascii") + b"\x00" + canonical(body)


# The checks of this format in their order: id -> title, what is expected, the code of a refusal.
_CHECKS = {
    "evidence.form": (
        "The evidence is well-formed",
        "a sim document in its one spelling",
        "evidence_malformed",
    ),
    "evidence.label": ("The evidence was made for this purpose", LABEL, "evidence_wrong_label"),
    "evidence.signature": (
        "The evidence is signed by its root",
        "a valid Ed25519 signature",
        "evidence_signature_invalid",
    ),
    "evidence.root": ("The root is one that the policy names", "", "root_not_accepted"),
    "evidence.time": ("The evidence is not from the future", "", "evidence_from_future"),
}


def examine_sim(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines simulated evidence; `roots` are the digests (hex) of the root keys that the policy names.

    1. form: the strict document of §5.1, and no endorsements, for this format has none
    2. label: the document states this version's label
    3. signature: by the root key that the document carries, over label and body
    4. root: the digest of that key is in `roots`; no roots accept no evidence
    5. time: made at most `MAX_SKEW` after `now`

    Claims come back only where 1 to 3 passed: whoever signed them said so. Checks after a failure that left
    nothing to check have failed as well.
    """
    made: list[Check] = []

    def record(check_id: str, passed: bool, got: str, expected: str = "") -> None:
        title, usual, code = _CHECKS[check_id]
        made.append(check(check_id, title, passed, expected=expected or usual, got=got, code=code))

    def stop(why: str) -> Examination:
        for check_id in list(_CHECKS)[len(made) :]:
            title, expected, code = _CHECKS[check_id]
            made.append(check_impossible(check_id, title, expected=expected or "–", why=why, code=code))
        return Examination(checks=tuple(made), claims=Absent(FORMAT, why))

    # 1. form
    try:
        body, public_key, signature, claims = _parse(data, endorsements)
    except MalformedInput as exc:
        record("evidence.form", False, exc.message)
        return stop("the evidence is malformed")
    record("evidence.form", True, f"{len(data)} bytes")
    # 2. label
    label = str(body["label"])
    record("evidence.label", label == LABEL, label)
    # 3. signature
    try:
        public_key.verify(signature, _message(body))
    except InvalidSignature:
        record("evidence.signature", False, "a signature that does not verify")
        return stop("the evidence's signature did not verify")
    record("evidence.signature", True, "a valid signature")
    # 4. root: an empty list accepts nothing
    record("evidence.root", claims.root in roots, claims.root, expected=one_of(roots))
    # 5. time
    ahead = (claims.issued_at or now) - now
    latest = (now + MAX_SKEW).isoformat(timespec="seconds")
    got = claims.issued_at.isoformat(timespec="seconds") if claims.issued_at else ""
    record("evidence.time", ahead <= MAX_SKEW, got, expected=f"made before {latest}")
    return Examination(checks=tuple(made), claims=claims)


def _parse(
    data: bytes, endorsements: tuple[tuple[str, bytes], ...]
) -> tuple[dict[str, JSON], Ed25519PublicKey, bytes, Claims]:
    """Returns body, root key, signature and the claims (not verified yet) of a document of §5.1."""
    what, code = "simulated evidence", "evidence_malformed"
    top = parse_object(data, limit=MAX_EVIDENCE, what=what, code=code)
    outer = Members(top, ("body", "signature"), what=what, code=code)
    read = Members(outer.object("body"), _BODY, what=what, code=code)
    if endorsements:
        outer.refuse(f"{len(endorsements)} endorsement(s) stapled to a format that has none")
    spki = read.base64("root", 128)
    try:
        public_key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise MalformedInput(f"{what}: root: not a DER public key", code=code) from exc
    if (
        not isinstance(public_key, Ed25519PublicKey)
        or root_digest(public_key) != hashlib.sha256(spki).hexdigest()
    ):
        outer.refuse("root: not the canonical DER of an Ed25519 key")
    measurement, svn = read.hexadecimal("measurement", 32), read.integer("svn", 0, MAX_SVN)
    report_data = read.text("report_data", r"([0-9a-f]{2}){0,64}")
    issued_at = read.integer("issued_at", 0, _MAX_TIME)
    body: dict[str, JSON] = {
        "label": read.text("label", r"[a-z0-9 ]{1,64}"),
        "root": base64.b64encode(spki).decode("ascii"),
        "measurement": measurement,
        "svn": svn,
        "report_data": report_data,
        "issued_at": issued_at,
    }
    signature = outer.base64("signature", 64)
    # §5.1: one document, one spelling.
    if canonical({"body": body, "signature": base64.b64encode(signature).decode("ascii")}) != data:
        outer.refuse("not in RFC 8785 form")
    claims = Claims(
        format=FORMAT,
        simulated=True,
        host_excluded=False,
        measurement=measurement,
        signer="",
        product=0,
        svn=svn,
        debug=False,
        tcb_status="NotReported",
        advisories=(),
        report_data=bytes.fromhex(report_data),
        root=root_digest(public_key),
        issued_at=datetime.fromtimestamp(issued_at, UTC),
        details=(("protects", "nothing: whoever holds the root key can sign any measurement"),),
    )
    return body, public_key, signature, claims
