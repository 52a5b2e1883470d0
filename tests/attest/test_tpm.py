"""`attest.tpm`: quotes of TPMs, what ties their attestation keys, and credential activation."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_tpm as fake
import pytest
from conftest import REPOSITORY, SHARED
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fake_tpm import NOW, ROOT_DIGEST, Tpm
from worlds import ed25519

from strongroom import attest
from strongroom.attest.evidence import NOT_MADE, Absent, Claims, Evidence, Examination
from strongroom.attest.strict import canonical
from strongroom.attest.tpm import (
    PINNED_ROOTS,
    activation_challenge,
    examine_activated,
    examine_tpm,
    from_recorded,
)
from strongroom.attest.tpm_activation import Activated, Challenge, make_credential, verify_activation
from strongroom.attest.tpm_quote import RESETTABLE, pcr_measurement, qualifying_data, software_firmware
from strongroom.errors import AttestationRefused, Error, MalformedInput

TPM = Tpm()
RECORDED = SHARED / "evidence" / "tpm"
SECRET, ENTROPY = hashlib.sha256(b"secret").digest(), hashlib.sha512(b"entropy").digest()


def examine(tpm: Tpm | bytes, *, roots: tuple[str, ...] | None = None, now: datetime = NOW) -> Examination:
    """What is found about the TPM's evidence where its root and AK are accepted."""
    data = tpm if isinstance(tpm, bytes) else tpm.document
    own = TPM.ak_digest if isinstance(tpm, bytes) else tpm.ak_digest
    return examine_tpm(data, endorsements=(), roots=(ROOT_DIGEST, own) if roots is None else roots, now=now)


def failures(found: Examination) -> list[tuple[str, str]]:
    """(id, code) of the checks that were made and failed."""
    return [(c.id, c.code) for c in found.checks if not c.passed and not c.got.startswith(NOT_MADE)]


def claims(found: Examination) -> Claims:
    """The claims of evidence that passed."""
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    return found.claims


@pytest.mark.parametrize("ak_kind", ["p256", "p384", "rsa2048"])
@pytest.mark.parametrize("sign_hash", [fake.SHA256, fake.SHA384, fake.SHA512])
def test_a_genuine_quote_gives_its_claims(ak_kind: str, sign_hash: int) -> None:
    """Both kinds of key, three hashes: every check passes, and the claims are the quote's."""
    found = claims(examine(TPM.but(ak_kind=ak_kind, sign_hash=sign_hash)))
    assert found.report_data == fake.QUALIFYING
    assert (found.simulated, found.host_excluded, found.debug) == (False, False, False)
    details = dict(found.details)
    assert details["pcr7"] == TPM.pcrs[7].hex()
    assert details["tpm.hierarchy"] == "owner"
    assert details["tpm.kind"] == "not recognised as software"
    assert details["tpm.ek_manufacturer"] == "id:49465800"


def test_a_bank_of_sha384_is_quoted_as_well() -> None:
    """The PCRs' hash and the signature's are two things."""
    tpm = TPM.but(bank=fake.SHA384, pcrs=fake.extended(fake.BOOT, bank=fake.SHA384))
    assert dict(claims(examine(tpm)).details)["tpm.bank"] == "sha384"


# what ties the attestation key


def test_a_named_key_needs_no_certificate() -> None:
    """Who enrolled an AK names it; the anchor of the claims is the AK itself."""
    bare = TPM.but(members={"ek_certificate": b"", "certificates": []})
    assert claims(examine(bare, roots=(bare.ak_digest,))).root == bare.ak_digest


def test_a_certified_key_is_tied_to_the_root_of_its_certificate() -> None:
    """An attestation certificate ties offline."""
    found = claims(examine(TPM.but(ak={}), roots=(ROOT_DIGEST,)))
    assert found.root == ROOT_DIGEST
    assert dict(found.details)["tpm.ak_bound_by"] == "certified"


def test_an_endorsement_certificate_alone_ties_nothing() -> None:
    """It is public: anybody can put it beside a key of his own. No claims come out."""
    mallory = TPM.but(
        ak_kind="p256", label="mallory", members={"ek_certificate": fake.leaf(TPM.ek_key, fake.EK_USE).der()}
    )
    for tpm in (TPM, mallory):
        found = examine(tpm, roots=(ROOT_DIGEST,))
        assert failures(found) == [("tpm.ak_binding", "tpm_ak_not_bound")]
        assert isinstance(found.claims, Absent)


def test_without_roots_nothing_is_accepted() -> None:
    """An empty list is not "any root"."""
    found = examine(TPM, roots=())
    assert failures(found)[0] == ("tpm.ek_certificate", "root_not_accepted")
    assert isinstance(found.claims, Absent)
    bare = TPM.but(members={"ek_certificate": b"", "certificates": []})
    assert failures(examine(bare, roots=()))[0] == ("evidence.root", "root_not_accepted")
    assert PINNED_ROOTS == ()


def test_the_anchor_of_the_claims_is_the_one_that_ties_the_key() -> None:
    """A named AK beside a genuine but unrelated endorsement certificate speaks for the name, not for the maker."""
    other = fake.leaf(fake.ec_key("another tpm's ek"), fake.EK_USE).der()
    assert claims(examine(TPM.but(members={"ek_certificate": other}))).root == TPM.ak_digest


@pytest.mark.parametrize("how", ["named", "certified"])
def test_an_endorsement_certificate_of_another_maker_is_not_used_where_the_key_is_tied_without_it(
    how: str,
) -> None:
    """Who enrolled an AK names it, and not its maker too, whose other keys would then count as well. Nothing is
    taken from the certificate; one that is wrong in itself is refused all the same, and without a tie it is too.
    """
    key = fake.ec_key("other root")
    root = replace(fake.ROOT, subject="Other Root", issuer="Other Root", key=key, signer=key)
    tpm = TPM.but(
        ek={"issuer": "Other Root", "signer": key, "model": fake.SWTPM},
        ak={} if how == "certified" else None,
        members={"certificates": [fake.CA_DER, fake.ROOT_DER, root.der()]},
    )
    roots = (ROOT_DIGEST,) if how == "certified" else (tpm.ak_digest,)
    found = claims(examine(tpm, roots=roots))
    assert (found.root, dict(found.details)["tpm.ak_bound_by"]) == (roots[0], how)
    assert not [name for name, _ in found.details if name.startswith("tpm.ek_")]
    assert dict(found.details)["tpm.kind"] == "not recognised as software"
    expired = tpm.but(ek=tpm.ek | {"end": NOW - timedelta(seconds=1)})
    assert failures(examine(expired, roots=roots)) == [("tpm.ek_certificate", "tpm_certificate_refused")]
    loose = examine(tpm.but(ak=None), roots=("ab" * 32,))
    assert failures(loose)[0] == ("tpm.ek_certificate", "root_not_accepted")
    assert isinstance(loose.claims, Absent)


# one thing wrong


def member(**changes: Any) -> dict[str, Any]:
    """Members of the document, replaced after signing."""
    return {"members": changes}


def resigned(**changes: Any) -> dict[str, Any]:
    """A signature with something wrong, over the genuine quote."""
    return member(signature=fake.signature(**{"key_": TPM.ak_key, "message": TPM.attest} | changes))


OTHER = TPM.but(qualifying=bytes(32))
JOINED = (TPM.pcrs[0] + TPM.pcrs[1]).hex()
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "magic": ({"magic": 0xFF544346}, "evidence.form", "tpm_not_generated"),
    "certify instead of quote": ({"type": 0x8017}, "evidence.form", "tpm_not_a_quote"),
    "other key": (resigned(key_=fake.ec_key("mallory")), "tpm.signature", "evidence_signature_invalid"),
    "other quote": (resigned(message=OTHER.attest), "tpm.signature", "evidence_signature_invalid"),
    "quote replaced": (member(attest=OTHER.attest), "tpm.signature", "evidence_signature_invalid"),
    "hash not the key's": (resigned(hash_=fake.SHA384), "tpm.signature", "tpm_signature_scheme"),
    "scheme not the key's": (
        resigned(key_=fake.rsa_key("mallory")),
        "tpm.signature",
        "tpm_signature_scheme",
    ),
    "scheme PSS": (
        resigned(key_=fake.rsa_key("mallory"), scheme=fake.RSAPSS),
        "evidence.form",
        "tpm_signature_scheme",
    ),
    "hash SHA-1": (resigned(hash_=fake.SHA1), "evidence.form", "tpm_signature_scheme"),
    "two banks": (
        {"selections": (fake.selection(fake.SHA256, TPM.pcrs), fake.selection(fake.SHA384, (0,)))},
        "tpm.pcr_selection",
        "tpm_pcr_selection",
    ),
    "no bank": ({"selections": ()}, "tpm.pcr_selection", "tpm_pcr_selection"),
    "bank SHA-1": (
        {"selections": (fake.selection(fake.SHA1, TPM.pcrs),)},
        "tpm.pcr_selection",
        "tpm_pcr_selection",
    ),
    "no PCRs": ({"pcrs": {}}, "tpm.pcr_selection", "tpm_pcr_selection"),
    "only PCRs that anybody resets": (
        {"pcrs": {16: bytes(32), 23: bytes(32)}},
        "tpm.pcr_selection",
        "tpm_pcr_selection",
    ),
    "a PCR's value": (
        member(pcrs=["11" * 32, *(TPM.pcrs[i].hex() for i in sorted(TPM.pcrs)[1:])]),
        "tpm.pcr_digest",
        "tpm_pcr_digest",
    ),
    "a value too few": (
        member(pcrs=[TPM.pcrs[i].hex() for i in sorted(TPM.pcrs)][1:]),
        "tpm.pcr_digest",
        "tpm_pcr_digest",
    ),
    "no values": (member(pcrs=[]), "tpm.pcr_digest", "tpm_pcr_digest"),
    "values joined otherwise": (
        member(pcrs=[JOINED[:62], JOINED[62:128], *(TPM.pcrs[i].hex() for i in sorted(TPM.pcrs)[2:])]),
        "tpm.pcr_digest",
        "tpm_pcr_digest",
    ),
    "log of another start": (
        member(event_log=fake.event_log([*fake.BOOT, (4, 0x80000003, b"bootkit")])),
        "tpm.event_log",
        "event_log_mismatch",
    ),
    "log of a PCR that is not quoted": (
        member(event_log=fake.event_log([*fake.BOOT, (9, 0x0000000D, b"initrd")])),
        "tpm.event_log",
        "event_log_mismatch",
    ),
    "log of another bank": (
        member(event_log=fake.event_log(fake.BOOT, banks=(fake.SHA384,))),
        "tpm.event_log",
        "event_log_malformed",
    ),
    "log cut": (member(event_log=fake.event_log(fake.BOOT)[:-1]), "tpm.event_log", "event_log_malformed"),
    "log of nothing": (member(event_log=fake.event_log([])), "tpm.event_log", "event_log_mismatch"),
    "key RSA-1024": ({"ak_kind": "rsa1024"}, "evidence.form", "tpm_key_unsupported"),
    "key P-521": ({"ak_kind": "p521"}, "evidence.form", "tpm_key_unsupported"),
    "key with SHA-1 name": ({"public": {"name_hash": fake.SHA1}}, "evidence.form", "tpm_key_unsupported"),
    "key of a keyed hash": ({"public": {"kind": 0x0008}}, "evidence.form", "tpm_key_unsupported"),
    "key without a scheme": ({"public": {"scheme": fake.NULL}}, "evidence.form", "tpm_key_unsupported"),
    "key with RSA's scheme": ({"public": {"scheme": fake.RSASSA}}, "evidence.form", "tpm_key_unsupported"),
    "key with SHA-1": ({"public": {"scheme_hash": fake.SHA1}}, "evidence.form", "tpm_key_unsupported"),
    "software by its firmware": (
        {"firmware": fake.SWTPM_FIRMWARE, "ek": {"signer": fake.ec_key("mallory")}},
        "tpm.ek_certificate",
        "tpm_certificate_refused",
    ),
}
for name, bit in (
    ("fixedTPM", 1),
    ("fixedParent", 4),
    ("sensitiveDataOrigin", 5),
    ("restricted", 16),
    ("sign", 18),
):
    WRONG[f"key not {name}"] = (
        {"public": {"attributes": fake.ATTRIBUTES & ~(1 << bit)}},
        "tpm.ak_attributes",
        "tpm_ak_attributes",
    )
for name, bit in (
    ("decrypt", 17),
    ("x509sign", 19),
    ("encryptedDuplication", 11),
    ("reserved", 31),
    ("reserved 0", 0),
):
    WRONG[f"key {name}"] = (
        {"public": {"attributes": fake.ATTRIBUTES | 1 << bit}},
        "tpm.ak_attributes",
        "tpm_ak_attributes",
    )
EK_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "signed by another": ({"signer": fake.ec_key("mallory")}, "tpm_certificate_refused"),
    "issuer not here": ({"issuer": "Some CA"}, "tpm_certificate_refused"),
    "expired": ({"end": NOW - timedelta(seconds=1)}, "tpm_certificate_refused"),
    "not yet valid": ({"begin": NOW + timedelta(seconds=1)}, "tpm_certificate_refused"),
    "of a CA": ({"ca": True}, "tpm_certificate_refused"),
    "for no use": ({"uses": ()}, "tpm_certificate_refused"),
    "for web servers": ({"uses": ("1.3.6.1.5.5.7.3.1",)}, "tpm_certificate_refused"),
    "for attestation": ({"uses": (fake.AK_USE,)}, "tpm_certificate_refused"),
    "unknown critical extension": ({"extra": (("1.2.3.4", True),)}, "tpm_certificate_refused"),
    "with another key usage": ({"key_usage": "keyCertSign"}, "tpm_certificate_refused"),
    "signed with SHA-224": ({"hash": hashes.SHA224()}, "tpm_certificate_refused"),
}
for name, (changes, code) in EK_WRONG.items():
    WRONG[f"endorsement certificate {name}"] = ({"ek": changes}, "tpm.ek_certificate", code)
    if name != "for attestation":
        WRONG[f"attestation certificate {name}"] = ({"ak": changes}, "tpm.ak_certificate", code)
WRONG["attestation certificate for endorsement"] = (
    {"ak": {"uses": (fake.EK_USE,)}},
    "tpm.ak_certificate",
    "tpm_certificate_refused",
)
WRONG["attestation certificate of another key"] = (
    {"ak": {"key": fake.ec_key("another ak")}},
    "tpm.ak_certificate",
    "tpm_certificate_refused",
)


@pytest.mark.parametrize("wrong", WRONG)
def test_one_thing_wrong_is_refused_by_its_own_check(wrong: str) -> None:
    """Everything else is genuine, the AK is named, the root accepted: only the check in question fails."""
    changes, check_id, code = WRONG[wrong]
    found = examine(TPM.but(**changes))
    assert failures(found)[0] == (check_id, code)
    assert {i for i, _ in failures(found)} == {check_id}


@pytest.mark.parametrize(
    "wrong",
    [w for w in WRONG if WRONG[w][1] not in ("tpm.event_log", "tpm.ek_certificate", "tpm.ak_certificate")],
)
def test_what_nobody_signed_gives_no_claims(wrong: str) -> None:
    """Where form, AK, signature, selection or digest fail, no claims come out."""
    assert isinstance(examine(TPM.but(**WRONG[wrong][0])).claims, Absent)


def test_an_unknown_extension_that_is_not_critical_is_no_matter() -> None:
    """Makers add their own."""
    assert failures(examine(TPM.but(ek={"extra": (("1.2.3.4", False),)}))) == []


GOOGLE_CA = replace(fake.CA, uses=(fake.EK_USE,)).der()
"""As Google's: for TPM keys alone, and its leaves state no extended use."""


@pytest.mark.parametrize("member", ["ek", "ak"])
def test_a_certificate_without_a_stated_use_is_for_what_its_issuer_is(member: str) -> None:
    """The key usage tells EK from AK; an issuer that certifies other things as well vouches for neither."""
    tpm = TPM.but(**{member: {"uses": ()}}, members={"certificates": [GOOGLE_CA, fake.ROOT_DER]})
    assert failures(examine(tpm)) == []
    for uses in ((), (fake.EK_USE, "1.3.6.1.5.5.7.3.1")):
        ca = replace(fake.CA, uses=uses).der()
        found = examine(tpm.but(members={"certificates": [ca, fake.ROOT_DER]}))
        assert failures(found) == [(f"tpm.{member}_certificate", "tpm_certificate_refused")]
    wrong = "digitalSignature" if member == "ek" else "keyEncipherment"
    for key_usage in (wrong, ""):
        found = examine(tpm.but(**{member: {"uses": (), "key_usage": key_usage}}))
        assert failures(found) == [(f"tpm.{member}_certificate", "tpm_certificate_refused")]


CA_WRONG: dict[str, dict[str, Any]] = {
    "no CA": {"ca": False, "path_length": None},
    "without constraints": {"ca": None},
    "may not sign": {"key_usage": "digitalSignature"},
    "expired": {"end": NOW - timedelta(seconds=1)},
    "unknown critical extension": {"extra": (("1.2.3.4", True),)},
}


@pytest.mark.parametrize("wrong", CA_WRONG)
def test_a_wrong_intermediate_is_refused(wrong: str) -> None:
    """The path ends where a certificate may not issue."""
    der = replace(fake.CA, **CA_WRONG[wrong]).der()
    found = examine(TPM.but(members={"certificates": [der, fake.ROOT_DER]}))
    assert failures(found) == [("tpm.ek_certificate", "tpm_certificate_refused")]


def test_a_renewed_intermediate_beside_the_old_one_is_found() -> None:
    """The expired one of the same key and name does not end the path."""
    old = replace(fake.CA, end=NOW - timedelta(days=1)).der()
    assert failures(examine(TPM.but(members={"certificates": [old, fake.CA_DER, fake.ROOT_DER]}))) == []


def test_a_path_longer_than_its_ca_allows_is_refused() -> None:
    """ "Maker CA" has path length 0: it issues no further CA."""
    low = replace(
        fake.CA, subject="Low CA", issuer="Maker CA", key=fake.ec_key("low"), signer=fake.ec_key("ca")
    )
    tpm = TPM.but(
        ek={"issuer": "Low CA", "signer": fake.ec_key("low")},
        members={"certificates": [low.der(), fake.CA_DER, fake.ROOT_DER]},
    )
    assert failures(examine(tpm)) == [("tpm.ek_certificate", "tpm_certificate_refused")]


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    """Not DER; an extension twice; a name of a kind that is not supported: our refusal, whatever the reader raises."""
    der = fake.leaf(TPM.ek_key, fake.EK_USE).der()
    twice = der.replace(b"\x55\x1d\x25", b"\x55\x1d\x0f")
    at = der.index(b"\x55\x1d\x11")
    foreign_name = der[:at] + der[at:].replace(b"\xa4", b"\xa3", 1)
    assert twice != der and foreign_name != der
    for wrong in (b"no certificate", der[:-1], twice, foreign_name):
        found = examine(TPM.but(members={"ek_certificate": wrong}))
        assert failures(found) == [("tpm.ek_certificate", "tpm_certificate_refused")]


WEAK: dict[str, Any] = {
    "RSA-1024": fake.rsa_key("weak", 1024),
    "secp256k1": fake.ec_key("k", fake.ec.SECP256K1()),
    "brainpool": fake.ec_key("k", fake.ec.BrainpoolP256R1()),
}


@pytest.mark.parametrize("kind", WEAK)
@pytest.mark.parametrize("place", ["leaf", "intermediate", "root"])
def test_a_path_over_a_weak_key_is_refused(kind: str, place: str) -> None:
    """Whoever breaks the key of one issuer makes endorsement certificates: RSA from 2048 bits, NIST's curves."""
    weak = WEAK[kind]
    ca, root = replace(fake.CA, key=fake.ec_key("ca")), fake.ROOT
    ek: dict[str, Any] = {}
    if place == "leaf":
        ek = {"key": weak}
    elif place == "intermediate":
        ca, ek = replace(fake.CA, key=weak), {"signer": weak}
    else:
        root, ca = replace(fake.ROOT, key=weak, signer=weak), replace(fake.CA, signer=weak)
    tpm = TPM.but(ek=ek, members={"certificates": [ca.der(), root.der()]})
    found = examine(tpm, roots=(fake.digest(root.der()), tpm.ak_digest))
    assert failures(found) == [("tpm.ek_certificate", "tpm_certificate_refused")]


def test_a_ring_of_certificates_ends() -> None:
    """Two CAs that issued each other lead nowhere."""
    a = replace(fake.CA, issuer="B", signer=fake.ec_key("b"), path_length=None).der()
    b = replace(
        fake.CA,
        subject="B",
        issuer="Maker CA",
        key=fake.ec_key("b"),
        signer=fake.ec_key("ca"),
        path_length=None,
    ).der()
    found = examine(TPM.but(members={"certificates": [a, b]}))
    assert failures(found) == [("tpm.ek_certificate", "tpm_certificate_refused")]


def test_the_root_is_accepted_by_its_certificate_and_by_nothing_else() -> None:
    """Another certificate of the same name, and even of the same key, is another root."""
    for key in ("mallory", "root"):
        root = replace(fake.ROOT, key=fake.ec_key(key), signer=fake.ec_key(key), end=NOW + timedelta(days=9))
        ca = replace(fake.CA, signer=fake.ec_key(key)).der()
        tpm = TPM.but(members={"certificates": [ca, root.der()]})
        assert failures(examine(tpm, roots=(ROOT_DIGEST,)))[0] == ("tpm.ek_certificate", "root_not_accepted")


def test_makers_certificates_may_come_as_endorsements() -> None:
    """In DER or PEM, beside documents of other formats."""
    pem = x509.load_der_x509_certificate(fake.ROOT_DER).public_bytes(Encoding.PEM)
    tpm = TPM.but(members={"certificates": []})
    stapled = (("collateral.json", b"{}"), ("ca", fake.CA_DER), ("root.pem", b"text\n" + pem))
    found = examine_tpm(tpm.document, endorsements=stapled, roots=(ROOT_DIGEST, tpm.ak_digest), now=NOW)
    assert failures(found) == []


# software


@pytest.mark.parametrize(
    "changes",
    [
        {"firmware": fake.SWTPM_FIRMWARE},
        {"ek": {"model": fake.SWTPM}},
        {"ek": {"model": ("id:4D534654", "vTPM", "id:1")}},
        {"ek": {"model": ("id:49465800", "swtpm", "id:1")}},
    ],
    ids=["firmware", "maker", "virtual", "model"],
)
def test_a_software_tpm_is_labelled_and_refused_unless_its_root_or_key_is_named(
    changes: dict[str, Any],
) -> None:
    """Named by root or by key it passes, and says what it is; unnamed it is refused as software too."""
    tpm = TPM.but(ak={}, **changes)
    for roots in ((ROOT_DIGEST,), (ROOT_DIGEST, tpm.ak_digest)):
        assert dict(claims(examine(tpm, roots=roots)).details)["tpm.kind"] == "software"
    if "firmware" in changes:
        assert ("tpm.software", "tpm_software_not_named") in failures(examine(tpm, roots=()))


@pytest.mark.parametrize(
    ("firmware", "software"),
    [
        (0x2019102300163636, True),
        (0x2020031200120003, True),
        (0x2024012500120000, True),
        (0x0007005500118000, False),
        (0x2019130100000000, False),
        (0x2019023200000000, False),
        (0x20190A0100000000, False),
        (0, False),
    ],
)
def test_the_reference_code_numbers_its_firmware_by_dates(firmware: int, software: bool) -> None:
    """As 0x20191023 of libtpms; chips do not."""
    assert software_firmware(firmware) is software


# measurement and answer


def test_the_measurement_names_its_pcrs() -> None:
    """The same values in other PCRs are another measurement: a resettable PCR cannot stand for a real one."""
    values = [bytes([i]) * 32 for i in range(3)]
    assert pcr_measurement(fake.SHA256, dict(zip((0, 4, 7), values, strict=True))) != pcr_measurement(
        fake.SHA256, dict(zip((0, 4, 8), values, strict=True))
    )
    assert pcr_measurement(fake.SHA256, {0: values[0]}) != pcr_measurement(fake.SHA384, {0: values[0]})


def test_resettable_pcrs_are_in_no_measurement() -> None:
    """What any software can reset changes nothing."""
    plain = claims(examine(TPM)).measurement
    noisy = TPM.but(pcrs=TPM.pcrs | dict.fromkeys(RESETTABLE, b"w" * 32))
    assert claims(examine(noisy)).measurement == plain
    assert claims(examine(TPM.but(pcrs=TPM.pcrs | {9: bytes(32)}))).measurement != plain


def test_the_measurement_is_that_of_the_specification() -> None:
    """docs/spec/tpm.md §4.1, spelled out."""
    text = b"strongroom tpm measurement v1\x00\x00\x0b" + b"\x00" + b"a" * 32 + b"\x07" + b"b" * 32
    assert (
        pcr_measurement(0x000B, {0: b"a" * 32, 7: b"b" * 32, 16: b"c" * 32})
        == hashlib.sha256(text).hexdigest()
    )


def test_qualifying_data_is_the_sha256_of_the_report_data() -> None:
    """docs/spec/tpm.md §3.2; it comes back as it was quoted, neither padded nor cut: an empty one is empty, for
    the comparison to refuse (GHSA-4r6g-mp48-j2rw, GHSA-4px3-wj2x-xx47: comparisons skipped).
    """
    assert qualifying_data(bytes(range(64))) == hashlib.sha256(bytes(range(64))).digest()
    for size in (0, 9, 32, 48, 64):
        assert claims(examine(TPM.but(qualifying=b"q" * size))).report_data == b"q" * size


def test_a_replayed_event_log_is_checked() -> None:
    """The log of the very start passes."""
    found = examine(TPM.but(members={"event_log": fake.event_log(fake.BOOT)}))
    assert failures(found) == []
    assert [c.passed for c in found.checks if c.id == "tpm.event_log"] == [True]


# form


def reshaped(**changes: Any) -> bytes:
    """The genuine document with members replaced as they stand in JSON."""
    return canonical(json.loads(TPM.document) | changes)


FORM = {
    "empty": b"",
    "no object": b"[]",
    "another spelling": json.dumps(json.loads(TPM.document), indent=1).encode(),
    "a member twice": TPM.document.replace(b'"version":1', b'"version":1,"version":1'),
    "another version": reshaped(version=2),
    "an unknown member": reshaped(trusted=True),
    "a missing member": canonical({k: v for k, v in json.loads(TPM.document).items() if k != "event_log"}),
    "base64url": reshaped(attest="-_8="),
    "attest empty": reshaped(attest=""),
    "attest and more": reshaped(attest=base64.b64encode(TPM.attest + b"\0").decode()),
    "attest cut": reshaped(attest=base64.b64encode(TPM.attest[:-1]).decode()),
    "signature empty": reshaped(signature=""),
    "AK empty": reshaped(ak_public=""),
    "AK and more": reshaped(ak_public=base64.b64encode(TPM.ak_public + b"\0").decode()),
    "PCRs no array": reshaped(pcrs={}),
    "a PCR a number": reshaped(pcrs=[1]),
    "a PCR in upper case": reshaped(pcrs=["AA" * 32]),
    "a PCR too short": reshaped(pcrs=["00" * 19]),
    "too many PCRs": reshaped(pcrs=["00" * 32] * 25),
    "too many certificates": reshaped(certificates=[""] * 9),
    "a certificate no base64": reshaped(certificates=["?"]),
    "a certificate too long": reshaped(ek_certificate=base64.b64encode(bytes(8193)).decode()),
}


@pytest.mark.parametrize("wrong", FORM)
def test_a_malformed_document_is_refused_and_gives_no_claims(wrong: str) -> None:
    """One fault of form each; every other check has failed as well."""
    found = examine(FORM[wrong])
    assert failures(found) == [("evidence.form", "evidence_malformed")]
    assert not any(c.passed for c in found.checks)
    assert isinstance(found.claims, Absent)


def test_a_bare_public_key_verifies_but_its_attributes_are_unknown() -> None:
    """Some recordings keep only the SPKI of the AK: the quote holds, the key might be anything."""
    spki = TPM.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    tpm = TPM.but(members={"ak_public": spki})
    found = examine_tpm(tpm.document, endorsements=(), roots=(ROOT_DIGEST, fake.digest(spki)), now=NOW)
    assert failures(found) == [("tpm.ak_attributes", "tpm_ak_attributes")]
    assert isinstance(found.claims, Absent)


@pytest.mark.parametrize(
    "spki",
    [
        fake.rsa_key("weak", 1024).public_key(),
        fake.ec_key("k", fake.ec.SECP256K1()).public_key(),
        ed25519("k").public_key(),
    ],
    ids=["RSA-1024", "secp256k1", "Ed25519"],
)
def test_a_weak_or_foreign_bare_key_is_refused(spki: Any) -> None:
    """Sizes that the TPM's own structure would not pass either."""
    der = spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert failures(examine(TPM.but(members={"ak_public": der}).document))[0][1] == "evidence_malformed"


@pytest.mark.slow
def test_every_byte_of_the_quote_counts() -> None:
    """Flip any byte of quote, signature, AK or PCR values: refused, and no claims (the AK is named)."""
    document = json.loads(TPM.document)
    for name in ("attest", "signature", "ak_public"):
        data = base64.b64decode(document[name])
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            found = examine(reshaped(**{name: base64.b64encode(bytes(flipped)).decode()}))
            assert isinstance(found.claims, Absent), (name, at)
    for index, value in enumerate(document["pcrs"]):
        for at in range(0, 64, 7):
            digit = "0" if value[at] != "0" else "1"
            pcrs = [
                *document["pcrs"][:index],
                value[:at] + digit + value[at + 1 :],
                *document["pcrs"][index + 1 :],
            ]
            assert isinstance(examine(reshaped(pcrs=pcrs)).claims, Absent)


@pytest.mark.slow
@pytest.mark.parametrize("member", ["ek_certificate", "certificates"])
def test_every_byte_of_the_certificates_counts(member: str) -> None:
    """Flip any byte of leaf, intermediate or root: the path does not verify."""
    document = json.loads(TPM.document)
    ders = [
        base64.b64decode(v) for v in ([document[member]] if member == "ek_certificate" else document[member])
    ]
    for index, der in enumerate(ders):
        for at in range(0, len(der), 3):
            flipped = bytearray(der)
            flipped[at] ^= 1 << (at % 8)
            changed = [
                base64.b64encode(d).decode() for d in [*ders[:index], bytes(flipped), *ders[index + 1 :]]
            ]
            found = examine(
                reshaped(**{member: changed if member == "certificates" else changed[0]}),
                roots=(ROOT_DIGEST,),
            )
            assert failures(found)[0][0] == "tpm.ek_certificate", (index, at)


# activation


def challenge(tpm: Tpm = TPM, *, roots: tuple[str, ...] = (ROOT_DIGEST,)) -> Challenge:
    """What the client sends to the TPM, and keeps."""
    return activation_challenge(
        tpm.document, endorsements=(), roots=roots, now=NOW, secret=SECRET, entropy=ENTROPY
    )


@pytest.mark.parametrize("ek_kind", ["p256", "p384", "rsa2048", "rsa3072"])
@pytest.mark.parametrize("name_hash", [fake.SHA256, fake.SHA384])
def test_activation_ties_the_key_to_the_endorsement_certificate(ek_kind: str, name_hash: int) -> None:
    """The TPM returns the secret; the evidence then passes under the maker's root alone."""
    tpm = TPM.but(ek_kind=ek_kind, public={"name_hash": name_hash})
    sent = challenge(tpm)
    activated = verify_activation(tpm.activate(sent.credential, sent.encrypted_secret), challenge=sent)
    found = examine_activated(
        tpm.document, endorsements=(), roots=(ROOT_DIGEST,), now=NOW, activated=(activated,)
    )
    assert claims(found).root == ROOT_DIGEST
    assert dict(claims(found).details)["tpm.ak_bound_by"] == "activated"


def test_a_tpm_without_the_attestation_key_does_not_activate() -> None:
    """The credential is for one Name: a TPM that holds another AK gets nothing out of it."""
    sent = challenge()
    with pytest.raises(ValueError, match="INTEGRITY"):
        TPM.activate(sent.credential, sent.encrypted_secret, ak_name=b"\x00\x0b" + bytes(32))


def test_another_tpm_does_not_activate() -> None:
    """Another endorsement key decrypts to another seed."""
    sent = challenge()
    with pytest.raises(ValueError, match="INTEGRITY"):
        TPM.but(label="other").activate(sent.credential, sent.encrypted_secret, ak_name=TPM.ak_name)


@pytest.mark.parametrize("answer", [b"", SECRET[:-1], SECRET + b"\0", bytes(32)])
def test_another_answer_proves_nothing(answer: bytes) -> None:
    """Only the very secret does."""
    with pytest.raises(AttestationRefused) as caught:
        verify_activation(answer, challenge=challenge())
    assert caught.value.code == "tpm_activation_failed"


def test_an_activation_is_for_one_key_and_one_certificate() -> None:
    """The proof of one TPM does not tie another's AK, nor this AK to another's certificate."""
    activated = verify_activation(SECRET, challenge=challenge())
    other = TPM.but(label="other")
    mixed = TPM.but(members={"ek_certificate": fake.leaf(other.ek_key, fake.EK_USE).der()})
    mallory = other.but(members={"ek_certificate": fake.leaf(TPM.ek_key, fake.EK_USE).der()})
    for tpm in (other, mixed, mallory):
        found = examine_activated(
            tpm.document, endorsements=(), roots=(ROOT_DIGEST,), now=NOW, activated=(activated,)
        )
        assert failures(found) == [("tpm.ak_binding", "tpm_ak_not_bound")]


def test_an_activation_does_not_replace_the_root() -> None:
    """A TPM of a maker that is not accepted is not accepted for being able to activate."""
    activated = verify_activation(SECRET, challenge=challenge())
    found = examine_activated(TPM.document, endorsements=(), roots=(), now=NOW, activated=(activated,))
    assert ("tpm.ak_binding", "tpm_ak_not_bound") in failures(found)


def test_no_challenge_goes_to_an_unknown_maker() -> None:
    """The certificate is verified first."""
    with pytest.raises(AttestationRefused) as caught:
        challenge(roots=())
    assert caught.value.code == "root_not_accepted"


EK_FOR_ACTIVATION: dict[str, dict[str, Any]] = {
    "of a key that signs": {"key_usage": "digitalSignature"},
    "of a key that certifies": {"key_usage": "keyCertSign"},
    "of an attestation key": {"uses": (fake.AK_USE,), "key_usage": "digitalSignature"},
    "of a web server": {"uses": ("1.3.6.1.5.5.7.3.1",)},
    "for no use, by an issuer for any": {"uses": ()},
    "of a CA": {"ca": True},
    "expired": {"end": NOW - timedelta(seconds=1)},
    "signed by another": {"signer": fake.ec_key("mallory")},
}


@pytest.mark.parametrize("wrong", EK_FOR_ACTIVATION)
def test_no_challenge_goes_to_a_key_that_is_no_endorsement_key(wrong: str) -> None:
    """A storage or signing key would answer the same way: the maker's certificate says that this one is restricted to
    decrypting for its TPM. Its use and key usage are checked before anything is encrypted to it.
    """
    with pytest.raises(AttestationRefused) as caught:
        challenge(TPM.but(ek=EK_FOR_ACTIVATION[wrong]))
    assert caught.value.code == "tpm_certificate_refused"


@pytest.mark.parametrize(
    "attributes",
    [
        *(fake.ATTRIBUTES & ~(1 << bit) for bit in (1, 4, 5, 16, 18)),
        *(fake.ATTRIBUTES | 1 << bit for bit in (11, 17, 19, 31)),
    ],
)
def test_no_challenge_goes_out_for_a_key_that_attests_nothing(attributes: int) -> None:
    """A TPM activates a credential for any of its keys: one that signs what its owner likes must not be enrolled."""
    with pytest.raises(AttestationRefused) as caught:
        challenge(TPM.but(public={"attributes": attributes}))
    assert caught.value.code == "tpm_ak_attributes"


def test_an_answer_to_an_older_challenge_proves_nothing() -> None:
    """Secrets are fresh, so a replayed answer is another secret; and two challenges have nothing in common."""
    old = challenge()
    answer = TPM.activate(old.credential, old.encrypted_secret)
    assert verify_activation(answer, challenge=old).ak == TPM.ak_digest
    new = activation_challenge(
        TPM.document,
        endorsements=(),
        roots=(ROOT_DIGEST,),
        now=NOW,
        secret=hashlib.sha256(b"another secret").digest(),
        entropy=hashlib.sha512(b"other entropy").digest(),
    )
    with pytest.raises(AttestationRefused) as caught:
        verify_activation(answer, challenge=new)
    assert caught.value.code == "tpm_activation_failed"
    assert (old.credential, old.encrypted_secret) != (new.credential, new.encrypted_secret)
    with pytest.raises(ValueError, match="INTEGRITY"):
        TPM.activate(old.credential, new.encrypted_secret)


def test_a_changed_credential_is_not_activated() -> None:
    """Whoever sits in between can neither read the secret nor exchange it: every byte is under the integrity key."""
    sent = challenge()
    for at in range(2, len(sent.credential), 5):
        changed = bytearray(sent.credential)
        changed[at] ^= 1
        with pytest.raises((ValueError, struct.error)):
            TPM.activate(bytes(changed), sent.encrypted_secret)
    assert SECRET not in sent.credential + sent.encrypted_secret


def test_an_activation_does_not_outlast_the_certificate() -> None:
    """The proof ties two keys; whether the endorsement certificate counts is decided anew each time."""
    activated = verify_activation(SECRET, challenge=challenge())
    later = NOW + timedelta(days=3651)
    found = examine_activated(
        TPM.document, endorsements=(), roots=(ROOT_DIGEST,), now=later, activated=(activated,)
    )
    assert ("tpm.ek_certificate", "tpm_certificate_refused") in failures(found)
    assert isinstance(found.claims, Absent)


def test_activation_needs_a_public_area_and_a_certificate() -> None:
    """Without them there is no Name, or no key to encrypt to."""
    spki = TPM.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for members in ({"ek_certificate": b""}, {"ak_public": spki}, {"ak_public": b""}):
        with pytest.raises(MalformedInput) as caught:
            challenge(TPM.but(members=members))
        assert caught.value.code == "evidence_malformed"


def test_an_endorsement_key_of_another_kind_is_refused() -> None:
    """Its template, and with it the hash and cipher, would be a guess."""
    with pytest.raises(MalformedInput) as caught:
        challenge(TPM.but(ek={"key": fake.ec_key("k", fake.ec.SECP521R1())}))
    assert caught.value.code == "tpm_key_unsupported"


@pytest.mark.parametrize(
    ("secret", "entropy"),
    [
        (b"", ENTROPY),
        (b"s", ENTROPY),
        (SECRET[1:], ENTROPY),
        (bytes(33), ENTROPY),
        (SECRET, b""),
        (SECRET, ENTROPY[1:]),
    ],
)
def test_a_credential_needs_its_randomness(secret: bytes, entropy: bytes) -> None:
    """Sizes are not padded into shape."""
    with pytest.raises(MalformedInput):
        make_credential(TPM.ek_key.public_key(), ak_name=TPM.ak_name, secret=secret, entropy=entropy)  # type: ignore[arg-type]


def test_nobody_else_makes_the_proof_and_it_does_not_print_the_secret() -> None:
    """`Activated` comes out of `verify_activation` only."""
    with pytest.raises(TypeError):
        Activated(ak="00", ek="00", proof=None)  # type: ignore[arg-type]
    assert SECRET.hex() not in repr(challenge()) and repr(SECRET) not in repr(challenge())


def documented() -> Any:
    """The function `enrol` of docs/spec/tpm.md §7.4."""
    text = (REPOSITORY / "docs" / "spec" / "tpm.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    return names["enrol"]


def test_the_documented_enrolment_names_a_key_that_then_needs_no_maker() -> None:
    """As an owner runs it, with the public names of `strongroom.attest`: the digest that a policy then names."""
    enrol = documented()
    evidence = Evidence("tpm", TPM.document, ())
    named = enrol(evidence, makers=(ROOT_DIGEST,), activate=TPM.activate, now=NOW)
    assert named == TPM.ak_digest
    assert claims(examine(TPM, roots=(named,))).root == named
    assert isinstance(examine(TPM.but(label="other"), roots=(named,)).claims, Absent)


def other_tpm(credential: bytes, encrypted: bytes) -> bytes:
    """Another TPM, that says something instead of nothing."""
    try:
        return TPM.but(label="other").activate(credential, encrypted, ak_name=TPM.ak_name)
    except ValueError:
        return bytes(32)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"activate": other_tpm}, "tpm_activation_failed"),
        ({"activate": lambda credential, encrypted: credential}, "tpm_activation_failed"),
        ({"makers": ()}, "root_not_accepted"),
        ({"makers": (fake.digest(fake.CA_DER + b"x"),)}, "root_not_accepted"),
        ({"now": NOW + timedelta(days=3651)}, "tpm_certificate_refused"),
    ],
    ids=["another TPM", "an echo", "no makers", "another maker", "expired"],
)
def test_the_documented_enrolment_names_nothing_else(how: dict[str, Any], code: str) -> None:
    """One thing wrong, and no key is named."""
    usual = {"makers": (ROOT_DIGEST,), "activate": TPM.activate, "now": NOW}
    with pytest.raises(AttestationRefused) as caught:
        documented()(Evidence("tpm", TPM.document, ()), **(usual | how))
    assert caught.value.code == code


def test_both_halves_of_activation_are_public() -> None:
    """`strongroom.attest` names them; nothing of theirs asks for a file, socket or random generator."""
    assert attest.activation_challenge is activation_challenge
    assert attest.verify_activation is verify_activation
    assert attest.examine_activated is examine_activated
    assert (attest.Activated, attest.Challenge) == (Activated, Challenge)


# recorded evidence


def recorded(name: str) -> dict[str, bytes]:
    """A folder of recorded evidence."""
    if not (RECORDED / name).is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    return {p.name: p.read_bytes() for p in Path(RECORDED / name).iterdir()}


def test_recorded_swtpm_is_valid_where_its_root_and_key_are_named() -> None:
    """Quote signature, nonce, PCR digest, AK attributes, EK chain; and it is labelled as software."""
    files = recorded("swtpm-recorded-ecc")
    quote = json.loads(files["quote.json"])
    root = x509.load_pem_x509_certificate(files["root.pem"]).public_bytes(Encoding.DER)
    roots = (fake.digest(root), quote["ak_name"][4:])
    now = datetime.fromisoformat(json.loads(files["expect.json"])["as_of"])
    data = from_recorded(files)
    found = claims(examine_tpm(data, endorsements=(), roots=roots, now=now))
    assert found.report_data.hex() == quote["nonce"]
    details = dict(found.details)
    assert {k.removeprefix("pcr"): v for k, v in details.items() if k.startswith("pcr")} == quote["pcrs"]
    assert details["tpm.kind"] == "software"
    assert details["tpm.ek_model"] == "swtpm"
    # nothing in the recording shows that AK and EK live in one TPM, so the root alone does not accept it
    assert failures(examine_tpm(data, endorsements=(), roots=roots[:1], now=now)) == [
        ("tpm.ak_binding", "tpm_ak_not_bound")
    ]
    # and a policy that names neither refuses it as software
    codes = [code for _, code in failures(examine_tpm(data, endorsements=(), roots=(), now=now))]
    assert codes == ["root_not_accepted", "root_not_accepted", "tpm_software_not_named", "tpm_ak_not_bound"]
    # before the certificate was made
    early = examine_tpm(data, endorsements=(), roots=roots, now=datetime(2020, 1, 1, tzinfo=UTC))
    assert failures(early)[0] == ("tpm.ek_certificate", "tpm_certificate_refused")


def test_recorded_trustee_quote_verifies_and_is_refused_for_what_it_lacks() -> None:
    """RSASSA and PCR digest hold, the nonce is the recorded one; without a public area its AK could be anything."""
    files = recorded("swtpm-trustee")
    found = examine_tpm(from_recorded(files), endorsements=(), roots=(), now=NOW)
    passed = {c.id for c in found.checks if c.passed}
    assert passed == {"evidence.form", "tpm.signature", "tpm.pcr_selection", "tpm.pcr_digest"}
    assert failures(found)[0] == ("tpm.ak_attributes", "tpm_ak_attributes")
    nonce = json.loads(files["expect.json"])["expect"]["nonce"]
    message = json.loads(files["tpm_evidence.json"])["tpm_quote"]["message"]
    assert bytes.fromhex(nonce) in base64.b64decode(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swtpm-recorded-ecc", "swtpm-trustee"])
def test_every_byte_of_the_recorded_quotes_counts(name: str) -> None:
    """Flip any byte of quote or signature, or any PCR: the quote is refused."""
    document = json.loads(from_recorded(recorded(name)))
    quote = {"evidence.form", "tpm.signature", "tpm.pcr_selection", "tpm.pcr_digest"}
    for member in ("attest", "signature"):
        data = base64.b64decode(document[member])
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            changed = canonical(document | {member: base64.b64encode(bytes(flipped)).decode()})
            found = examine_tpm(changed, endorsements=(), roots=(), now=NOW)
            assert {i for i, _ in failures(found)} & quote, (member, at)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tpm_evidence.json": b"{}"},
        {"tpm_evidence.json": b'{"ak_public":"","tpm_quote":1}'},
        {"attest.bin": b"", "signature.bin": b"", "ak_public.bin": b""},
        {"attest.bin": b"", "signature.bin": b"", "ak_public.bin": b"", "quote.json": b"{}"},
        {"attest.bin": b"", "signature.bin": b"", "ak_public.bin": b"", "quote.json": b'{"pcrs":{"x":""}}'},
    ],
    ids=range(6),
)
def test_a_folder_that_is_no_recording_is_refused(files: dict[str, bytes]) -> None:
    """Our error, nothing else."""
    with pytest.raises(Error):
        from_recorded(files)
