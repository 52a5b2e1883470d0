"""Admission reports: canonical, signed by the receipt key of an attested keyset, read strictly."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import hostile
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.keyset import BINDING, ROLES, Key, Keyset, SecurityConfiguration
from strongroom.errors import AttestationRefused, MalformedInput
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.report import MAX_REPORT, parse_report, report_of, sign_report, verify_report

DATA = hostile.encoded(hostile.model())
REPORT = report_of(admit(DATA, format="onnx", limits=STANDARD_LIMITS), size=len(DATA), engine="onnxruntime/1")
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
SECURITY = SecurityConfiguration(
    sealing="simulated", host_excluded=False, isolation="in_process", sandbox=(), admission="strict",
    anonymous_upload=False, verify_on_load="tags", logging="no_content",
)  # fmt: skip


def keyset(receipt: Ed25519PrivateKey = KEY) -> Keyset:
    """One whose receipt key is this one."""
    tls = generate_private_key(SECP256R1()).public_key()
    spki = (
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for key in (tls, receipt.public_key())
    )
    keys = tuple(Key(role, ROLES[role], der) for role, der in zip(("tls", "receipt"), spki, strict=True))
    return Keyset(keys=keys, not_after=1_900_000_000, store_id="0a" * 16, binding=BINDING, security=SECURITY)


def test_a_signed_report_verifies() -> None:
    """And is the report that was signed."""
    assert verify_report(sign_report(REPORT.encode(), KEY), keyset=keyset()) == REPORT


def test_another_keys_signature_is_refused() -> None:
    """Whoever signed it is not the server that was attested."""
    with pytest.raises(AttestationRefused) as caught:
        verify_report(sign_report(REPORT.encode(), OTHER), keyset=keyset())
    assert caught.value.code == "report_signature"


def test_a_changed_report_is_refused() -> None:
    """One byte of it."""
    envelope = json.loads(sign_report(REPORT.encode(), KEY))
    changed = dataclasses.replace(REPORT, level="permissive").encode()
    envelope["report"] = base64.b64encode(changed).decode()
    with pytest.raises(AttestationRefused):
        verify_report(json.dumps(envelope).encode(), keyset=keyset())


def test_the_signature_says_what_it_is_for() -> None:
    """The bare bytes, signed for another purpose, are no report."""
    envelope = {
        "report": base64.b64encode(REPORT.encode()).decode(),
        "signature": base64.b64encode(KEY.sign(REPORT.encode())).decode(),
    }
    with pytest.raises(AttestationRefused):
        verify_report(json.dumps(envelope).encode(), keyset=keyset())


def altered(**members: Any) -> bytes:
    document = {**json.loads(REPORT.encode()), **members}
    return json.dumps({k: v for k, v in document.items() if v is not KeyError}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", REPORT.encode() + b" ", altered(verdict="fine"), altered(type="x"), altered(extra=1),
        altered(bounds=None), altered(bounds={}), altered(sha256="AB"), altered(rules=[{"rule": "1.1"}]),
        altered(rules=KeyError), altered(size=-1),
        altered(partition="0"), altered(stages=-1), altered(stages=1025), altered(stages=KeyError),
        b'{"a": "' + b"x" * MAX_REPORT + b'"}',
    ],
)  # fmt: skip
def test_anything_else_is_malformed(data: bytes) -> None:
    """Two readers of a report read the same."""
    with pytest.raises(MalformedInput) as caught:
        parse_report(data)
    assert caught.value.code == "report_malformed"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"report": "", "signature": ""}', REPORT.encode()])
def test_an_envelope_of_another_form_is_malformed(data: bytes) -> None:
    """Before any key is used; an empty signature is none."""
    with pytest.raises((MalformedInput, AttestationRefused)):
        verify_report(data, keyset=keyset())


def test_a_report_names_every_clause_with_its_result() -> None:
    """All passed, those of other formats do not apply; bounds, digests and versions are there."""
    document = json.loads(REPORT.encode())
    results = {entry["rule"]: entry["result"] for entry in document["rules"]}
    assert results["8.2"] == "passed" and results["9.4"] == "not_applicable"
    assert document["bounds"]["rooms"] and document["bounds"]["versions"]["onnx"]
    assert len(document["canonical_sha256"]) == len(document["sha256"]) == 64
