"""`attest.nitro`: AWS Nitro attestation documents, minted ones and recorded ones."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
import pytest
from conftest import SHARED
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from fake_aws import (
    ABSENT,
    CHAIN,
    MADE_AT,
    NONCE,
    NOW,
    OTHER_HASH,
    PCR0,
    PCR8,
    PLAN,
    REPORT_DATA,
    ROOT,
    chain,
    envelope,
    key,
    members,
    mint,
    open_map,
    sign,
)
from fake_ratls import rsa_key, seq

from strongroom.attest.evidence import NOT_MADE, Absent, Claims, Examination
from strongroom.attest.nitro import PINNED_ROOTS, check_nonce, examine_nitro, parse_document
from strongroom.errors import CODES, MalformedInput

DATA = mint()
PAYLOAD = cbor2.dumps(members())
RECORDED = SHARED / "evidence" / "nitro"


def examine(data: bytes, *, roots: tuple[str, ...] = (ROOT,), now: datetime = NOW) -> Examination:
    """What is found about `data`."""
    return examine_nitro(data, endorsements=(), roots=roots, now=now)


def failures(found: Examination) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in found.checks if not c.passed]


def claims_of(data: bytes, **options: Any) -> Claims:
    """The claims of a document that passes."""
    found = examine(data, **options)
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    return found.claims


# --- what passes --------------------------------------------------------------------------------------------


def test_a_genuine_document_gives_its_claims() -> None:
    """PCR0 is the measurement, PCR8 the signer, user data the report data, the timestamp the time."""
    claims = claims_of(DATA)
    assert (claims.format, claims.simulated, claims.host_excluded, claims.debug) == (
        "nitro",
        False,
        True,
        False,
    )
    assert (claims.measurement, claims.signer, claims.root) == (PCR0.hex(), PCR8.hex(), ROOT)
    assert (claims.report_data, claims.issued_at) == (REPORT_DATA, MADE_AT)
    assert (claims.tcb_status, claims.advisories) == ("NotReported", ())
    details = dict(claims.details)
    assert details["module_id"] == "i-0123456789abcdef0-enc0123456789abcdef"
    assert (details["pcr0"], details["nonce"]) == (PCR0.hex(), NONCE.hex())
    assert "public_key" not in details


def test_every_check_is_listed_once_and_has_a_code() -> None:
    """Nine checks, in the order of the docstring, with codes that the table knows."""
    found = examine(DATA, roots=(), now=NOW + timedelta(days=1))
    ids = [c.id for c in found.checks]
    assert len(set(ids)) == len(ids) == 9
    assert set(failures(found)) <= set(CODES)
    expected = {c.id: c.expected for c in examine(DATA).checks}
    assert expected["evidence.root"] == ROOT
    assert expected["nitro.validity"] == f"valid at {NOW.isoformat()}"


def test_minting_is_the_same_every_time() -> None:
    """Vectors can be compared byte by byte."""
    assert mint() == DATA


@pytest.mark.parametrize(
    "data",
    [
        mint(open_ended=True),
        envelope(open_map(members(pcrs=cbor2.CBORSimpleValue(0))).replace(b"\xe0", open_map({0: PCR0}), 1)),
        mint(user_data=ABSENT, nonce=ABSENT, public_key=ABSENT),
        mint(user_data=None, nonce=None),
        mint(user_data=b"", nonce=b""),
        mint(user_data=b"u" * 1024, nonce=b"n" * 1024, public_key=b"k" * 1024),
        mint(pcrs={n: bytes([n]) * 48 for n in range(1, 32)} | {0: PCR0}),
        mint(pcrs={0: PCR0}),
        mint(certificates=[CHAIN[0], *chain(leaf={"issuer": "root"})[-1:]]),
    ],
    ids=[
        "open map",
        "open pcrs",
        "absent",
        "null",
        "empty",
        "largest",
        "32 pcrs",
        "one pcr",
        "root and leaf",
    ],
)
def test_what_aws_may_write_passes(data: bytes) -> None:
    """Maps with and without a length, members at their limits, absent, null."""
    assert claims_of(data).measurement == PCR0.hex()


def test_debug_is_a_claim_and_excludes_no_host() -> None:
    """An enclave in debug mode has PCRs of zeros; its document is genuine, and a policy refuses it."""
    claims = claims_of(mint(pcrs={n: bytes(48) for n in range(16)}))
    assert (claims.debug, claims.host_excluded, claims.measurement) == (True, False, "00" * 48)


def test_user_data_is_taken_as_it_is() -> None:
    """Nothing is padded or cut to the size of report data; absent is empty, which no nonce answers to."""
    assert claims_of(mint(user_data=b"short")).report_data == b"short"
    assert claims_of(mint(user_data=None)).report_data == b""


# --- one thing wrong ----------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": b"",
    "tagged": cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(DATA))),
    "bytes behind": DATA + b"\x00",
    "cut": DATA[:-1],
    "an array without a length": b"\x9f" + DATA[1:] + b"\xff",
    "three parts": cbor2.dumps(cbor2.loads(DATA)[:3]),
    "five parts": cbor2.dumps([*cbor2.loads(DATA), b""]),
    "too long": DATA[:-96] + bytes(40_000),
    "an unprotected header": envelope(PAYLOAD, unprotected={4: b"kid"}),
    "the algorithm unprotected": envelope(PAYLOAD, protected=b"\xa0", unprotected={1: -35}),
    "an empty protected header": envelope(PAYLOAD, protected=b"\xa0"),
    "an absent protected header": envelope(PAYLOAD, protected=b""),
    "a critical header": envelope(PAYLOAD, protected=cbor2.dumps({1: -35, 2: [4]})),
    "another header alone": envelope(PAYLOAD, protected=cbor2.dumps({4: -35})),
    "the algorithm in another spelling": envelope(PAYLOAD, protected=b"\xa1\x01\x39\x00\x22"),
    "the algorithm twice": envelope(PAYLOAD, protected=b"\xa2\x01\x38\x22\x01\x38\x22"),
    "the algorithm as text": envelope(PAYLOAD, protected=cbor2.dumps({1: "ES384"})),
    "bytes behind the protected header": envelope(PAYLOAD, protected=b"\xa1\x01\x38\x22\x00"),
    "a signature in DER": envelope(PAYLOAD, signature=sign(PAYLOAD, in_der=True)),
    "a short signature": envelope(PAYLOAD, signature=bytes(95)),
    "no payload": cbor2.dumps([b"\xa1\x01\x38\x22", {}, None, bytes(96)]),
    "a payload that is an array": envelope(cbor2.dumps(list(members().values()))),
    "bytes behind the payload": envelope(PAYLOAD + b"\x00"),
    "a member twice": envelope(b"\xaa" + PAYLOAD[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"another")),
    "a member twice in an open map": envelope(open_map(members())[:-1] + cbor2.dumps("nonce") + b"\x40\xff"),
    "an unknown member": mint(public_key=ABSENT, extra=1),
    "a tenth member": mint(extra=1),
    "a NitroTPM's document": mint(pcrs=ABSENT, nitrotpm_pcrs={0: PCR0}),
    "no module_id": mint(module_id=ABSENT),
    "an empty module_id": mint(module_id=""),
    "a module_id with a line break": mint(module_id="i-0\nPASS"),
    "a module_id beyond ASCII": mint(module_id="i-0\u00e9"),
    "a module_id with an override": mint(module_id="i-0\u202e"),
    "no digest": mint(digest=ABSENT),
    "another digest": mint(digest="SHA256"),
    "no timestamp": mint(timestamp=ABSENT),
    "a timestamp of zero": mint(timestamp=0),
    "a negative timestamp": mint(timestamp=-1),
    "a timestamp beyond the calendar": mint(timestamp=2**64 - 1),
    "a timestamp as a float": mint(timestamp=1.0),
    "no pcrs": mint(pcrs=ABSENT),
    "empty pcrs": mint(pcrs={}),
    "no PCR0": mint(pcrs={1: PCR0}),
    "a PCR beyond 31": mint(pcrs={0: PCR0, 32: PCR0}),
    "a PCR of 32 bytes": mint(pcrs={0: PCR0[:32]}),
    "an empty PCR0": mint(pcrs={0: b""}),
    "a PCR of 64 bytes": mint(pcrs={0: PCR0 + bytes(16)}),
    "PCR numbers as text": mint(pcrs={"0": PCR0}),
    "a PCR twice": envelope(
        open_map(members(pcrs=0)).replace(
            b"\x64pcrs\x00", b"\x64pcrs\xa2" + 2 * (b"\x00" + cbor2.dumps(PCR0)), 1
        )
    ),
    "no certificate": mint(certificate=ABSENT),
    "an empty certificate": mint(certificate=b""),
    "no certificate in the certificate": mint(certificate=b"\x30\x00"),
    "bytes behind the certificate": mint(certificate=CHAIN[-1] + b"\x00"),
    "a certificate too large": mint(certificate=CHAIN[-1] + bytes(1024)),
    "no cabundle": mint(cabundle=ABSENT),
    "an empty cabundle": mint(cabundle=[]),
    "a cabundle of nine": mint(cabundle=[CHAIN[0]] * 9),
    "a cabundle of text": mint(cabundle=["root"]),
    "a number as nonce": mint(nonce=1),
    "text as user data": mint(user_data="text"),
    "user data too large": mint(user_data=bytes(1025)),
    "an extension twice": mint(
        certificate=CHAIN[-1].replace(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x13", 1)
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_document_is_refused_and_gives_no_claims(name: str) -> None:
    """One fault of form each; what follows could not be checked, and has failed."""
    found = examine(MALFORMED[name])
    assert failures(found)[0] == "evidence_malformed"
    assert len(failures(found)) == len(found.checks) == 9
    assert all(c.got.startswith(NOT_MADE) for c in found.checks[1:])
    assert isinstance(found.claims, Absent)


def certificates(**changes: dict[str, Any]) -> bytes:
    """A document whose chain has these changes, signed by the key of its leaf."""
    return mint(certificates=chain(**changes))


def unknown(critical: bool) -> dict[str, Any]:
    """An extension that nobody knows."""
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return {"more": ((extension, critical),)}


def of_rsa() -> bytes:
    """A leaf whose key is RSA's."""
    name = x509.Name([])
    authority = x509.load_der_x509_certificate(CHAIN[-2])
    builder = x509.CertificateBuilder(
        authority.subject,
        name,
        rsa_key().public_key(),
        1,
        NOW - timedelta(minutes=1),
        NOW + timedelta(hours=1),
    )
    for extension in x509.load_der_x509_certificate(CHAIN[-1]).extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(key("instance"), SHA384()).public_bytes(Encoding.DER)


def of_version_1() -> bytes:
    """The leaf as a certificate of version 1: without extensions, so nothing limits what its key may do."""
    tbs = x509.load_der_x509_certificate(CHAIN[-1]).tbs_certificate_bytes
    begins = tbs.index(bytes.fromhex("a003020102")) + 5
    tbs = seq(tbs[begins : tbs.rindex(b"\xa3")])
    signature = key("instance").sign(tbs, ec.ECDSA(SHA384()))
    return seq(tbs + bytes.fromhex("300a06082a8648ce3d040303") + seq(b"\x00" + signature, 3))


P256 = ec.SECP256R1()
UNAUTHENTIC = {
    # 2 the algorithm
    "ES256 in the header": (envelope(PAYLOAD, protected=cbor2.dumps({1: -7})), "nitro_algorithm"),
    "ES512 in the header": (envelope(PAYLOAD, protected=cbor2.dumps({1: -36})), "nitro_algorithm"),
    "HS384 in the header": (envelope(PAYLOAD, protected=cbor2.dumps({1: 6})), "nitro_algorithm"),
    # 3 the root
    "the root in another place": (mint(cabundle=[CHAIN[1], CHAIN[0], *CHAIN[2:-1]]), "root_not_accepted"),
    "no root in the bundle": (mint(cabundle=CHAIN[1:-1]), "root_not_accepted"),
    "a root of the same name and key": (
        certificates(root={"ends": NOW + timedelta(days=8001)}),
        "root_not_accepted",
    ),
    "a root of the same name": (
        certificates(root={"signer": "mallory"}, regional={"signer": "mallory"}),
        "root_not_accepted",
    ),
    # 4 the chain
    "an intermediate left out": (mint(cabundle=[*CHAIN[:2], CHAIN[3]]), "nitro_chain_invalid"),
    "intermediates in another order": (
        mint(cabundle=[CHAIN[0], CHAIN[2], CHAIN[1], CHAIN[3]]),
        "nitro_chain_invalid",
    ),
    "a regional of another key's": (certificates(regional={"signer": "mallory"}), "nitro_chain_invalid"),
    "a zonal of another key's": (certificates(zonal={"signer": "mallory"}), "nitro_chain_invalid"),
    "an instance of another key's": (certificates(instance={"signer": "mallory"}), "nitro_chain_invalid"),
    "a leaf of another key's": (certificates(leaf={"signer": "mallory"}), "nitro_chain_invalid"),
    "a leaf of another issuer's name": (
        certificates(leaf={"issuer": "zonal", "signer": "instance"}),
        "nitro_chain_invalid",
    ),
    "a leaf signed by itself": (certificates(leaf={"issuer": "leaf"}), "nitro_chain_invalid"),
    # 5 the certificates
    "an intermediate that is no authority": (
        certificates(zonal={"ca": False, "path_length": None}),
        "nitro_certificate_not_allowed",
    ),
    "authority that is not critical": (
        certificates(zonal={"critical": False}),
        "nitro_certificate_not_allowed",
    ),
    "an intermediate without constraints": (
        certificates(zonal={"constraints": False}),
        "nitro_certificate_not_allowed",
    ),
    "an intermediate without key usage": (
        certificates(zonal={"usage": False}),
        "nitro_certificate_not_allowed",
    ),
    "an intermediate that may not certify": (
        certificates(instance={"may_certify": False, "may_sign": True}),
        "nitro_certificate_not_allowed",
    ),
    "a path that is too long": (certificates(zonal={"path_length": 0}), "nitro_certificate_not_allowed"),
    "a leaf that is an authority": (certificates(leaf={"ca": True}), "nitro_certificate_not_allowed"),
    "a leaf that may certify": (certificates(leaf={"may_certify": True}), "nitro_certificate_not_allowed"),
    "a leaf that may not sign": (
        certificates(leaf={"may_sign": False, "may_certify": False}),
        "nitro_certificate_not_allowed",
    ),
    "a leaf without constraints": (
        certificates(leaf={"constraints": False}),
        "nitro_certificate_not_allowed",
    ),
    "a critical extension nobody knows": (certificates(zonal=unknown(True)), "nitro_certificate_not_allowed"),
    "a certificate signed with SHA-256": (
        certificates(leaf={"algorithm": OTHER_HASH}),
        "nitro_certificate_not_allowed",
    ),
    "an intermediate of P-256": (
        certificates(instance={"curve": P256}, leaf={"issuer_curve": P256}),
        "nitro_certificate_not_allowed",
    ),
    "a leaf of P-256": (
        envelope(
            cbor2.dumps(members(certificate=chain(leaf={"curve": P256})[-1])),
            signer=key("leaf", P256),
            signature=bytes(32) + b"r" * 64,
        ),
        "nitro_certificate_not_allowed",
    ),
    "a leaf of version 1": (mint(certificate=of_version_1()), "nitro_certificate_not_allowed"),
    "a leaf of RSA": (mint(certificate=of_rsa()), "nitro_certificate_not_allowed"),
    # 6 the signature
    "a signature of zeros": (envelope(PAYLOAD, signature=bytes(96)), "evidence_signature_invalid"),
    "a signature of ones": (envelope(PAYLOAD, signature=b"\xff" * 96), "evidence_signature_invalid"),
    "another key's signature": (envelope(PAYLOAD, signer=key("mallory")), "evidence_signature_invalid"),
    "the instance's signature": (envelope(PAYLOAD, signer=key("instance")), "evidence_signature_invalid"),
    "a signature with SHA-256": (envelope(PAYLOAD, algorithm=OTHER_HASH), "evidence_signature_invalid"),
    "a signature with SHA-512": (envelope(PAYLOAD, algorithm=SHA512()), "evidence_signature_invalid"),
    "a signature over another header": (
        envelope(PAYLOAD, signed_protected=cbor2.dumps({1: -7})),
        "evidence_signature_invalid",
    ),
    "a countersignature": (envelope(PAYLOAD, context="CounterSignature"), "evidence_signature_invalid"),
    "a signature for several signers": (envelope(PAYLOAD, context="Signature"), "evidence_signature_invalid"),
    "another document's signature": (
        envelope(PAYLOAD, signature=sign(cbor2.dumps(members(nonce=b"another")))),
        "evidence_signature_invalid",
    ),
}


@pytest.mark.parametrize("name", UNAUTHENTIC)
def test_what_is_not_signed_under_the_root_is_refused_and_gives_no_claims(name: str) -> None:
    """One fault each, with its own code; claims that nobody vouches for are not shown."""
    data, code = UNAUTHENTIC[name]
    found = examine(data)
    assert failures(found)[0] == code
    assert isinstance(found.claims, Absent)


def test_the_only_fault_is_the_only_failure() -> None:
    """Where nothing else depends on it, the other checks pass: one wrong thing is one refusal."""
    shared = {"the root in another place", "no root in the bundle", "a root of the same name"}
    shared |= {"a leaf of P-256", "a leaf of RSA", "intermediates in another order"}
    for name, (data, code) in UNAUTHENTIC.items():
        if name not in shared:
            assert failures(examine(data)) == [code], name


def test_an_extension_that_is_not_critical_may_be_unknown() -> None:
    """As X.509 has it: the genuine chains carry key identifiers and distribution points."""
    claims_of(certificates(zonal=unknown(False)))


def test_without_roots_nothing_is_accepted() -> None:
    """An empty list of roots is not "any root"; and the vendor's own roots do not accept a test root."""
    assert failures(examine(DATA, roots=())) == ["root_not_accepted"]
    found = examine(DATA, roots=PINNED_ROOTS)
    assert failures(found) == ["root_not_accepted"]
    assert isinstance(found.claims, Absent)


def test_a_remembered_chain_decides_nothing_but_its_signatures() -> None:
    """A document that passed is refused under no roots, after its chain ended and with another signature; a chain
    that was refused is refused again, and the good one passes again.
    """
    forged = mint(certificates=chain(zonal={"signer": "mallory"}))
    for _ in range(2):
        assert failures(examine(DATA)) == []
        assert failures(examine(DATA, roots=())) == ["root_not_accepted"]
        assert failures(examine(DATA, now=NOW + timedelta(days=2))) == ["nitro_certificate_expired"]
        assert failures(examine(DATA[:-1] + bytes([DATA[-1] ^ 1]))) == ["evidence_signature_invalid"]
        assert failures(examine(forged)) == ["nitro_chain_invalid"]


def test_a_root_is_named_by_its_certificate_and_not_by_another_digest() -> None:
    """An intermediate's digest, or an upper-case one, accepts nothing."""
    assert failures(examine(DATA, roots=(ROOT.upper(),))) == ["root_not_accepted"]
    assert failures(examine(DATA, roots=(ROOT[:-2],))) == ["root_not_accepted"]


def test_a_stapled_endorsement_is_refused() -> None:
    """The format has none."""
    found = examine_nitro(DATA, endorsements=(("crl", b""),), roots=(ROOT,), now=NOW)
    assert failures(found)[0] == "evidence_malformed"


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLAN)
def test_each_certificate_must_be_valid_now(place: str) -> None:
    """To the very second at its end; claims are still shown, for their signature holds."""
    made = chain(**{place: {"ends": NOW + timedelta(seconds=60)}})
    data, roots = mint(certificates=made), (sha256(made[0]).hexdigest(),)
    assert failures(examine(data, roots=roots, now=NOW + timedelta(seconds=60))) == []
    found = examine(data, roots=roots, now=NOW + timedelta(seconds=61))
    assert failures(found) == ["nitro_certificate_expired"]
    assert isinstance(found.claims, Claims)


@pytest.mark.parametrize("place", [place for place in PLAN if place != "leaf"])
def test_a_certificate_may_begin_five_minutes_from_now_and_no_later(place: str) -> None:
    """AWS's clock may be ahead of ours: leaves begin seconds before their document."""
    for late, expected in ((0, []), (1, ["nitro_certificate_expired"])):
        made = chain(**{place: {"begins": NOW + timedelta(seconds=300 + late)}})
        roots = (sha256(made[0]).hexdigest(),)
        assert failures(examine(mint(certificates=made), roots=roots)) == expected


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (PLAN["leaf"].begins - timedelta(milliseconds=1), "nitro_timestamp_outside_certificate"),
        (PLAN["leaf"].begins, None),
        (NOW + timedelta(seconds=300), None),
        (NOW + timedelta(seconds=301), "evidence_from_future"),
    ],
)
def test_the_time_of_the_document(at: datetime, code: str | None) -> None:
    """Within the leaf's validity, and at most five minutes ahead of ours."""
    found = examine(mint(timestamp=int(at.timestamp() * 1000)))
    assert failures(found) == ([code] if code else [])


def test_a_document_from_after_its_certificate_is_refused() -> None:
    """The leaf has ended before the document says that it was made: a key that outlived its certificate."""
    data = certificates(leaf={"ends": NOW - timedelta(seconds=2), "begins": NOW - timedelta(hours=3)})
    found = examine(data, now=NOW - timedelta(seconds=2))
    assert failures(found) == ["nitro_timestamp_outside_certificate"]


def test_an_old_document_under_a_valid_leaf_is_the_policys_matter() -> None:
    """A leaf lives three hours; how old evidence may be is what `max_evidence_age_s` says."""
    assert claims_of(DATA, now=NOW + timedelta(hours=2)).issued_at == MADE_AT


# --- the nonce ----------------------------------------------------------------------------------------------


def test_the_nonce_of_our_envelope_is_compared() -> None:
    """The very bytes, whole."""
    assert check_nonce(claims_of(DATA), nonce=NONCE).passed


@pytest.mark.parametrize(
    ("shown", "asked"),
    [(ABSENT, NONCE), (None, NONCE), (b"", NONCE), (NONCE[:16], NONCE), (NONCE + b"\x00", NONCE), (b"x" * 32, NONCE),
     (ABSENT, b""), (b"", b"")],
    ids=["absent", "null", "empty", "half", "longer", "another", "nothing asked", "nothing for nothing"],
)  # fmt: skip
def test_skipped_comparison_of_the_nonce_cocos(shown: object, asked: bytes) -> None:
    """A missing or empty nonce skips no comparison (the class of the two advisories against Cocos)."""
    made = check_nonce(claims_of(mint(nonce=shown)), nonce=asked)
    assert (made.passed, made.code) == (False, "nitro_nonce_mismatch")


def test_the_nonce_of_claims_that_did_not_verify_is_not_compared() -> None:
    """It has failed."""
    made = check_nonce(examine(DATA, roots=()).claims, nonce=NONCE)
    assert not made.passed
    assert made.got.startswith(NOT_MADE)


# --- damage -------------------------------------------------------------------------------------------------


def test_every_authenticated_byte_flipped_is_refused() -> None:
    """All of a document is: each head has one spelling, and the rest is signed or the signature."""
    for at in [*range(16), *range(16, len(DATA), 19), *range(len(DATA) - 100, len(DATA), 3)]:
        for bit in (0, 7):
            damaged = bytearray(DATA)
            damaged[at] ^= 1 << bit
            found = examine(bytes(damaged))
            assert failures(found), (at, bit)
            assert isinstance(found.claims, Absent), (at, bit)


def test_every_truncation_is_refused() -> None:
    """Whatever is left."""
    for size in range(0, len(DATA), 7):
        assert failures(examine(DATA[:size]))[0] == "evidence_malformed"


def test_parsing_raises_ours_and_nothing_else() -> None:
    """`parse_document` is for tools that show a document without believing it."""
    assert parse_document(DATA).pcrs[0] == (0, PCR0)
    assert parse_document(mint(timestamp=253_402_300_799_999)).timestamp.year == 9999
    for data in (b"\x84", mint(certificate=b""), mint(certificate=ABSENT)):
        with pytest.raises(MalformedInput) as caught:
            parse_document(data)
        assert caught.value.code == "evidence_malformed"


# --- recorded documents -------------------------------------------------------------------------------------


def recorded(name: str) -> tuple[bytes, dict[str, Any]]:
    """The recorded document and what is expected of it."""
    folder: Path = RECORDED / name
    if not folder.is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    return (folder / "doc.cose").read_bytes(), json.loads((folder / "expect.json").read_text())


NAMES = ["debug-2025", "prod-2022-nonce", "prod-2023-in-tls-certificate", "prod-2025"]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_documents_give_the_recorded_outcome(name: str) -> None:
    """At their time, under AWS's own root: every member as recorded."""
    data, expected = recorded(name)
    claims = claims_of(data, roots=PINNED_ROOTS, now=datetime.fromisoformat(expected["as_of"]))
    said, details = expected["expect"], dict(claims.details)
    assert claims.debug is said["debug"]
    assert claims.host_excluded is not said["debug"]
    assert claims.measurement == said["pcr0"]
    assert claims.report_data.hex() == said["user_data"]
    assert (details["module_id"], details.get("nonce", "")) == (said["module_id"], said["nonce"])
    assert claims.issued_at is not None
    assert claims.issued_at.replace(microsecond=0) == datetime.fromisoformat(said["timestamp"])
    ends = datetime.fromisoformat(said["leaf_validity"].split("..")[1])
    assert datetime.fromisoformat(details["certificate_expires"]) == ends


@pytest.mark.parametrize("name", NAMES)
def test_recorded_documents_are_refused_at_another_time_and_under_another_root(name: str) -> None:
    """A day later, a day earlier, and by a verifier who knows the test root only."""
    data, expected = recorded(name)
    now = datetime.fromisoformat(expected["as_of"])
    assert failures(examine(data, roots=PINNED_ROOTS, now=now + timedelta(days=1))) == [
        "nitro_certificate_expired"
    ]
    early = failures(examine(data, roots=PINNED_ROOTS, now=now - timedelta(days=1)))
    assert early == ["nitro_certificate_expired", "evidence_from_future"]
    assert failures(examine(data, now=now)) == ["root_not_accepted"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_recorded_documents_with_a_byte_flipped_are_refused(name: str) -> None:
    """Every authenticated byte is refused; sampled, since each costs five signatures."""
    data, expected = recorded(name)
    now = datetime.fromisoformat(expected["as_of"])
    for at in [*range(16), *range(16, len(data), 23), *range(len(data) - 98, len(data), 5)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        found = examine(bytes(damaged), roots=PINNED_ROOTS, now=now)
        assert isinstance(found.claims, Absent), at


def test_a_genuine_root_with_another_vendors_chain_is_refused() -> None:
    """AWS's root in front of the test chain: being there is not enough, it must have issued what follows."""
    data, _ = recorded("prod-2025")
    genuine = parse_document(data).cabundle[0]
    found = examine(mint(certificates=[genuine, *CHAIN[1:]]), roots=PINNED_ROOTS)
    assert failures(found) == ["nitro_chain_invalid"]


def test_a_genuine_chain_with_another_leaf_is_refused() -> None:
    """AWS's authorities above a leaf of the attacker's own."""
    data, expected = recorded("prod-2025")
    now = datetime.fromisoformat(expected["as_of"])
    document = parse_document(data)
    leaf = replace(PLAN["leaf"], begins=now - timedelta(seconds=3), ends=now + timedelta(hours=3)).der()
    forged = mint(certificates=[*document.cabundle, leaf], timestamp=int(now.timestamp() * 1000))
    assert failures(examine(forged, roots=PINNED_ROOTS, now=now)) == ["nitro_chain_invalid"]
