"""`attest.evidence`: the answer on the wire, and report data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import NONCE, NOW, Server, leaf, p256, spki, verify

from strongroom.attest.batch import Single
from strongroom.attest.evidence import (
    MAX_ANSWER,
    MAX_EVIDENCE,
    Check,
    Evidence,
    EvidenceAnswer,
    Leaf,
    boot_report_data,
    check,
    check_impossible,
    encode_answer,
    one_of,
    parse_answer,
    parse_nonce,
    report_data,
)
from strongroom.errors import CODES, InvalidRequest, MalformedInput

ANSWER = EvidenceAnswer(
    Evidence("sim", b"evidence", (("crl", b"\x00\x01"), ("tcb-info.json", b""))), b"keyset", Single()
)


def test_an_answer_is_read_as_it_was_written() -> None:
    """Format, evidence, endorsements and the keyset's bytes survive the wire."""
    assert parse_answer(encode_answer(ANSWER)) == ANSWER


def test_an_answer_need_not_be_canonical() -> None:
    """Nothing hashes the answer itself, so its white space says nothing."""
    assert parse_answer(json.dumps(json.loads(encode_answer(ANSWER)), indent=2).encode()) == ANSWER


def _changed(**members: Any) -> bytes:
    return json.dumps(json.loads(encode_answer(ANSWER)) | members).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        _changed(extra=1),
        _changed(format="SGX"),
        _changed(format=""),
        _changed(format="a" * 33),
        _changed(format=None),
        _changed(evidence="AA"),
        _changed(evidence=[1]),
        _changed(keyset=None),
        _changed(endorsements={}),
        _changed(endorsements=[["crl", "AA=="]]),
        _changed(endorsements=[{"name": "crl"}]),
        _changed(endorsements=[{"name": "../crl", "data": ""}]),
        _changed(endorsements=[{"name": "crl", "data": ""}, {"name": "crl", "data": "AA=="}]),
        _changed(endorsements=[{"name": f"n{i}", "data": ""} for i in range(17)]),
        _changed(evidence=base64.b64encode(bytes(MAX_EVIDENCE + 1)).decode()),
        encode_answer(ANSWER).replace(b'"format":"sim"', b'"format":"sgx","format":"sim"'),
        encode_answer(ANSWER) + b" " * MAX_ANSWER,
    ],
    ids=range(19),
)
def test_a_malformed_answer_is_refused(data: bytes) -> None:
    """One fault each: unknown members, wrong types, spellings, sizes, numbers, and members there twice."""
    with pytest.raises(MalformedInput) as caught:
        parse_answer(data)
    assert caught.value.code == "answer_malformed"


def test_a_missing_member_is_refused() -> None:
    """All four members are there, or it is no answer."""
    for name in ("format", "evidence", "endorsements", "keyset"):
        value = json.loads(encode_answer(ANSWER))
        del value[name]
        with pytest.raises(MalformedInput, match=f"missing: {name}"):
            parse_answer(json.dumps(value).encode())


def test_report_data_is_as_specified() -> None:
    """§2.2, computed here by hand: SHA-512(label, 0, nonce, SHA-256(keyset))."""
    digest = hashlib.sha256(b"keyset").digest()
    expected = hashlib.sha512(b"strongroom evidence v1" + bytes(1) + NONCE + digest).digest()
    assert report_data(nonce=NONCE, keyset_bytes=b"keyset") == expected
    assert len(expected) == 64


def test_report_data_of_different_purposes_differ() -> None:
    """The label keeps evidence of one purpose out of the other."""
    der = spki(p256("server tls"))
    assert (
        boot_report_data(spki=der)
        == hashlib.sha512(b"strongroom ratls v1" + bytes(1) + hashlib.sha256(der).digest()).digest()
    )
    assert boot_report_data(spki=der) != report_data(nonce=NONCE, keyset_bytes=der)


@pytest.mark.parametrize("nonce", [b"", NONCE[:31], NONCE + b"\x00"])
def test_a_nonce_of_another_size_is_refused(nonce: bytes) -> None:
    """With another size the same bytes could be cut elsewhere into nonce and digest."""
    with pytest.raises(MalformedInput) as caught:
        report_data(nonce=nonce, keyset_bytes=b"")
    assert caught.value.code == "nonce_malformed"


def test_a_nonce_is_64_lower_case_hex_characters() -> None:
    """The query's form, and nothing close to it."""
    assert parse_nonce(NONCE.hex()) == NONCE
    for text in (
        "",
        NONCE.hex().upper(),
        NONCE.hex()[:-1],
        NONCE.hex() + "\n",
        "０" * 64,
        " " + NONCE.hex()[1:],
    ):
        with pytest.raises(InvalidRequest) as caught:
            parse_nonce(text)
        assert caught.value.code == "nonce_malformed"


def test_a_leaf_gives_the_key_of_its_certificate() -> None:
    """The SPKI is that of the certificate's key."""
    assert leaf(p256("a")).spki() == spki(p256("a"))


@pytest.mark.parametrize(
    "der",
    [b"", b"\x00", b"-----BEGIN CERTIFICATE-----", leaf(p256("a")).der[:100]],
    ids=["empty", "zero", "pem", "cut"],
)
def test_an_unreadable_leaf_is_refused(der: bytes) -> None:
    """No certificate, no key."""
    with pytest.raises(MalformedInput) as caught:
        Leaf(der).spki()
    assert caught.value.code == "leaf_malformed"


def test_a_passed_check_has_no_code_and_one_that_could_not_be_made_has_failed() -> None:
    """The code belongs to the refusal; what was not made is never a pass."""
    assert check("a.b", "t", True, expected="1", got="1", code="root_not_accepted").code == ""
    assert (
        check("a.b", "t", False, expected="1", got="2", code="root_not_accepted").code == "root_not_accepted"
    )
    missing = check_impossible("a.b", "t", expected="1", why="nothing came", code="root_not_accepted")
    assert missing == Check("a.b", "t", False, "1", "could not be checked: nothing came", "root_not_accepted")
    assert missing.to_json()["passed"] is False


def test_long_lists_are_cut_in_messages() -> None:
    """A policy with a hundred measurements does not print them all."""
    assert one_of(()) == "none is named"
    assert one_of(("a", "b")) == "a or b"
    assert one_of(tuple("abcdef")) == "a or b or c or d or 2 more"


def test_claims_without_a_time_are_json_too() -> None:
    """Formats without a clock have no `issued_at`."""
    claims = verify(Server()).claims
    assert claims.to_json()["issued_at"] == NOW.isoformat()
    assert replace(claims, issued_at=None).to_json()["issued_at"] is None


def test_the_specifications_examples_are_true() -> None:
    """The two values of report data in docs/spec/evidence.md are what the code makes, and so is every code it
    names.
    """
    text = (Path(__file__).resolve().parents[2] / "docs" / "spec" / "evidence.md").read_text(encoding="utf-8")
    assert report_data(nonce=bytes(range(32)), keyset_bytes=b"{}").hex() in text
    assert boot_report_data(spki=b"spki").hex() in text
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text))
    for made in verify(Server()).verdict.checks:
        assert f"`{made.id}`" in text or made.id.startswith("security."), made.id
    codes = {
        name
        for name in named
        if name.endswith(("_refused", "_mismatch", "_malformed", "_unsupported", "_missing"))
    }
    assert codes <= set(CODES)
    assert len(codes) >= 8
