"""`attest.verify`: what it accepts, and one refusal per check, wrong in that respect only."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from worlds import (
    MEASUREMENT,
    NONCE,
    NOW,
    OTHER_MEASUREMENT,
    SECURITY,
    Server,
    ed25519,
    leaf,
    p256,
    policy,
    spki,
    verify,
)

from strongroom import attest
from strongroom.attest import sim
from strongroom.attest.appraise import AnyMeasurement
from strongroom.attest.batch import Inclusion, Single
from strongroom.attest.evidence import (
    Appraised,
    Attested,
    Evidence,
    Leaf,
    NoChannel,
    Stated,
    Statement,
    Verdict,
    boot_report_data,
    report_data,
    statement_report_data,
)
from strongroom.attest.keyset import Keyset, encode_keyset
from strongroom.attest.policy import Policy, named_policy, parse_policy
from strongroom.attest.requirements import HARDWARE_FORMATS
from strongroom.attest.strict import canonical
from strongroom.errors import CODES, AttestationRefused, InvalidPolicy

SERVER = Server()


def refused(server: Server, *, by: Policy | None = None, channel: Leaf | None = None) -> Verdict:
    """The verdict of a refusal; its code is that of its first failure, and known."""
    with pytest.raises(AttestationRefused) as caught:
        verify(server, by=by, channel=channel)
    verdict = caught.value.verdict
    assert verdict is not None
    assert not verdict.passed
    assert caught.value.code == verdict.code == verdict.failures[0].code
    assert all(c.code in CODES for c in verdict.failures)
    assert not any(c.code for c in verdict.checks if c.passed)
    return verdict


def only(verdict: Verdict) -> tuple[str, str]:
    """(check id, code) of the one failure."""
    assert len(verdict.failures) == 1, verdict.failures
    return verdict.failures[0].id, verdict.failures[0].code


# What passes


def test_a_genuine_server_is_attested() -> None:
    """A server that the policy names passes every check; the proof says what to pin, for how long, and
    SIMULATED.
    """
    attested = verify(SERVER)
    assert type(attested) is Attested
    assert attested.verdict.passed
    assert attested.verdict.code is None
    assert attested.verdict.label == "SIMULATED"
    assert attested.simulated
    assert attested.spki_sha256 == hashlib.sha256(spki(p256("server tls"))).hexdigest()
    assert attested.keyset == SERVER.keyset
    assert attested.keyset_digest == hashlib.sha256(SERVER.keyset_bytes).digest()
    assert attested.claims.measurement == MEASUREMENT
    assert attested.expires_in_s == 3600
    ids = [c.id for c in attested.verdict.checks]
    assert len(ids) == len(set(ids)), "one line for one check"


def test_without_a_channel_there_is_an_appraisal_and_no_attestation() -> None:
    """`NoChannel` yields `Appraised`, a type that no client takes, and its verdict says that nothing was tied
    to it.
    """
    evidence = SERVER.evidence
    appraised = attest.verify(
        evidence,
        policy(),
        nonce=NONCE,
        keyset_bytes=SERVER.keyset_bytes,
        inclusion=Single(),
        channel=NoChannel("a receipt"),
        endorsements=(),
        now=NOW,
    )
    assert type(appraised) is Appraised
    assert not isinstance(appraised, Attested)
    assert appraised.verdict.channel == "no channel: a receipt"
    assert "channel.spki" not in {c.id for c in appraised.verdict.checks}


@pytest.mark.parametrize(
    ("not_after_s", "max_age_s", "policy_s", "expected"),
    [(43200, 3600, 86400, 3600), (60, 3600, 86400, 60), (43200, 3600, 90, 90), (43200, 5, 86400, 5)],
)
def test_a_verdict_ends_with_the_first_thing_that_ends(
    not_after_s: int, max_age_s: int, policy_s: int, expected: int
) -> None:
    """A verdict lasts until keyset, policy or its own age run out, whichever is first."""
    by = replace(policy(), max_verdict_age_s=max_age_s, expires=NOW + timedelta(seconds=policy_s))
    server = replace(SERVER, not_after=int(NOW.timestamp()) + not_after_s)
    assert verify(server, by=by).expires_in_s == expected


def stated(server: Server, statement: bytes, *, nonce: bytes = NONCE) -> Stated:
    """What a server does that was shown a statement."""
    return attest.verify(
        server.evidence,
        policy(),
        nonce=nonce,
        keyset_bytes=server.keyset_bytes,
        inclusion=Single(),
        channel=Statement(statement),
        endorsements=(),
        now=NOW,
    )


def speaking(server: Server, statement: bytes, *, nonce: bytes = NONCE) -> Server:
    """The server, whose evidence makes this statement."""
    data = statement_report_data(nonce=nonce, keyset_bytes=server.keyset_bytes, statement=statement)
    return server.forge(report_data=data)


def test_a_statement_is_verified_in_the_place_of_a_connection() -> None:
    """docs/spec/reseal.md §3.4: by its label, the nonce, the keyset and every byte; it is no attestation."""
    proof = stated(speaking(SERVER, b"a key"), b"a key")
    assert type(proof) is Stated and not isinstance(proof, Attested)
    assert hashlib.sha256(b"a key").hexdigest() in proof.verdict.channel
    assert proof.keyset == SERVER.keyset


@pytest.mark.parametrize(
    ("server", "statement"),
    [
        (speaking(SERVER, b"a key"), b"another key"),
        (speaking(SERVER, b"a key", nonce=bytes(32)), b"a key"),
        (speaking(SERVER, b"a key").forge(keyset=Server(name="mallory").keyset_bytes), b"a key"),
        (SERVER, b"a key"),
        (SERVER, b""),
    ],
    ids=["another statement", "another nonce", "another keyset", "an answer to a nonce", "no statement"],
)
def test_what_the_evidence_does_not_state_is_refused(server: Server, statement: bytes) -> None:
    """Also the answer that anybody gets to a nonce: it states nothing, whatever the nonce."""
    with pytest.raises(AttestationRefused) as caught:
        stated(server, statement)
    assert caught.value.code == "report_data_mismatch"


def test_a_statement_answers_no_client() -> None:
    """Nor does it pass as an answer to a nonce, nor as one of a batch."""
    assert only(refused(speaking(SERVER, b"a key"))) == ("evidence.report_data", "report_data_mismatch")
    with pytest.raises(TypeError):
        attest.verify(  # type: ignore[call-overload]
            SERVER.evidence,
            policy(),
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            inclusion=Inclusion(index=0, size=2, path=(bytes(32),)),
            channel=Statement(b""),
            endorsements=(),
            now=NOW,
        )


# Proofs


def test_proofs_are_made_by_verification_only() -> None:
    """Nobody else's call makes an `Attested`, nor `dataclasses.replace` another one out of it."""
    attested = verify(SERVER)
    values = {f.name: getattr(attested, f.name) for f in dataclasses.fields(attested)}
    with pytest.raises(TypeError):
        Attested(**values)
    with pytest.raises(TypeError, match="verify only"):
        Attested(**values, proof=object())  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="proof"):  # the type differs between versions of Python
        replace(attested, spki_sha256="00")


# Attacks on the answer to the nonce


def test_an_old_nonce_is_refused() -> None:
    """Genuine evidence for another nonce, with the right keyset on the right connection, does not answer
    ours.
    """
    old = replace(SERVER, nonce=hashlib.sha256(b"yesterday").digest())
    assert only(refused(old)) == ("evidence.report_data", "report_data_mismatch")


def test_a_swapped_keyset_is_refused() -> None:
    """Genuine evidence beside the keyset of whoever sits in between, on the connection that ends there."""
    attacker = Server(name="attacker")
    server = SERVER.forge(report_data=report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes))
    server = server.forge(keyset=encode_keyset(attacker.keyset))
    verdict = refused(server, channel=attacker.leaf)
    assert only(verdict) == ("evidence.report_data", "report_data_mismatch")


def test_a_configuration_changed_on_the_way_is_refused() -> None:
    """The keyset with one setting turned is another keyset: the evidence does not speak of it."""
    shown = encode_keyset(replace(SERVER.keyset, security=replace(SECURITY, verify_on_load="sha256")))
    server = SERVER.forge(report_data=report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes)).forge(
        keyset=shown
    )
    assert only(refused(server)) == ("evidence.report_data", "report_data_mismatch")


def test_boot_evidence_does_not_answer_a_nonce() -> None:
    """Right shape, other label: evidence made for the certificate of the very same key is told apart and
    refused.
    """
    server = SERVER.forge(report_data=boot_report_data(spki=SERVER.keyset.key("tls").spki))
    assert only(refused(server)) == ("evidence.report_data", "report_data_other_label")


def test_old_evidence_beside_an_unreadable_keyset_or_certificate_is_refused() -> None:
    """Telling boot-time evidence apart needs keyset and certificate; else it is just a mismatch."""
    old = SERVER.forge(report_data=bytes(63) + b"x")
    for server, channel in ((old.forge(keyset=b"{}"), SERVER.leaf), (old, Leaf(b""))):
        assert refused(server, channel=channel).code == "report_data_mismatch"


def _signed(body: dict[str, object], label: bytes = b"strongroom simulated evidence v1") -> Evidence:
    """A sim document with a valid signature of the genuine root over `label` and `body`."""
    signature = ed25519("root").sign(label + b"\x00" + canonical(body))  # type: ignore[arg-type]
    document = {"body": body, "signature": base64.b64encode(signature).decode()}
    return Evidence("sim", canonical(document), ())  # type: ignore[arg-type]


def _refused_evidence(evidence: Evidence, *, by: Policy | None = None) -> Verdict:
    with pytest.raises(AttestationRefused) as caught:
        attest.verify(
            evidence,
            by or policy(),
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            inclusion=Single(),
            channel=SERVER.leaf,
            endorsements=evidence.endorsements,
            now=NOW,
        )
    assert caught.value.verdict is not None
    assert caught.value.code == caught.value.verdict.code
    return caught.value.verdict


@pytest.mark.parametrize(
    "data", ["", "00", "00" * 64, report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes)[:32].hex()]
)
def test_missing_short_or_empty_report_data_is_refused(data: str) -> None:
    """Report data that is not there, all zero or a prefix of the right one is refused before it is
    compared.
    """
    body = json.loads(SERVER.evidence.data)["body"] | {"report_data": data}
    verdict = _refused_evidence(_signed(body))
    assert verdict.code == "report_data_missing"
    assert {c.id for c in verdict.failures} == {"evidence.report_data_present", "evidence.report_data"}


# Attacks on the channel


def test_relayed_evidence_of_another_genuine_server_is_refused() -> None:
    """Another accepted server answers our nonce; the connection ends at somebody else's key."""
    other = Server(name="another genuine server")
    assert only(refused(other, channel=SERVER.leaf)) == ("channel.spki", "channel_key_mismatch")


def test_a_man_in_the_middle_with_another_certificate_is_refused() -> None:
    """The genuine evidence and keyset through somebody who ends the connection with a certificate of his
    own.
    """
    assert only(refused(SERVER, channel=leaf(p256("mallory")))) == ("channel.spki", "channel_key_mismatch")


@pytest.mark.parametrize("key", [ed25519("mallory"), ec.derive_private_key(7, ec.SECP384R1())])
def test_a_certificate_of_another_algorithm_is_refused(
    key: ec.EllipticCurvePrivateKey,
) -> None:
    """A certificate whose key is of another algorithm is another key."""
    assert only(refused(SERVER, channel=leaf(key))) == ("channel.spki", "channel_key_mismatch")


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"not a certificate", SERVER.leaf.der[:-1]])
def test_an_unreadable_certificate_is_refused(der: bytes) -> None:
    """What is no certificate has no key to compare."""
    assert only(refused(SERVER, channel=Leaf(der))) == ("channel.spki", "leaf_malformed")


# Attacks on the keyset; the evidence speaks of these very bytes, as a dishonest but accepted server could
# make it


def test_a_keyset_with_a_duplicate_member_is_refused() -> None:
    """A member there twice, where one reader takes the first and another the last."""
    bad = SERVER.keyset_bytes.replace(b'"binding":"spki"', b'"binding":"spki","binding":"spki"')
    verdict = refused(SERVER.forge(keyset=bad))
    assert verdict.code == "keyset_duplicate_member"
    assert verdict.failures[0].id == "keyset.form"


def test_a_keyset_in_another_spelling_is_refused() -> None:
    """White space is enough: one keyset has one spelling."""
    assert refused(SERVER.forge(keyset=SERVER.keyset_bytes + b"\n")).code == "keyset_not_canonical"


def test_an_unreadable_keyset_fails_every_check_that_needs_it() -> None:
    """What could not be checked has failed, and says why; nothing is left out."""
    verdict = refused(SERVER.forge(keyset=b"{}"))
    assert verdict.code == "keyset_malformed"
    failed = {c.id: c.got for c in verdict.failures}
    assert {"keyset.form", "keyset.expiry", "channel.spki", "security.sealing", "security.consistent"} <= set(
        failed
    )
    assert failed["channel.spki"] == "could not be checked: the keyset is malformed"
    assert {c.id for c in verdict.checks} == {c.id for c in verify(SERVER).verdict.checks}


def test_an_expired_keyset_is_refused() -> None:
    """An epoch that has ended, to the second."""
    now = int(NOW.timestamp())
    assert only(refused(replace(SERVER, not_after=now))) == ("keyset.expiry", "keyset_expired")
    assert verify(replace(SERVER, not_after=now + 1)).expires_in_s == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sealing", "operator"),
        ("anonymous_upload", True),
        ("sandbox", ("no_dumps",)),
        ("verify_on_load", "sha256"),
        ("isolation", "model"),
    ],
)
def test_a_weaker_configuration_is_refused(name: str, value: object) -> None:
    """A genuine server that runs with a setting that the policy does not accept."""
    server = replace(SERVER, security=replace(SECURITY, **{name: value}))  # type: ignore[arg-type]
    required = replace(
        policy().security, sandbox=SECURITY.sandbox, verify_on_load=("tags",), isolation=("in_process",)
    )
    by = replace(policy(), security=required)
    verify(SERVER, by=by)
    assert only(refused(server, by=by)) == (f"security.{name}", f"security_{name}_refused")


@pytest.mark.parametrize(("name", "value"), [("host_excluded", True), ("sealing", "measurement")])
def test_a_configuration_that_claims_more_than_the_evidence_shows_is_refused(
    name: str, value: object
) -> None:
    """A simulated server that says of itself what only hardware can show, under a policy that would take its
    word.
    """
    server = replace(SERVER, security=replace(SECURITY, **{name: value}))  # type: ignore[arg-type]
    trusting = replace(policy().security, host_excluded=(False, True), sealing=("simulated", "measurement"))
    verdict = refused(server, by=replace(policy(), security=trusting))
    assert only(verdict) == ("security.consistent", "security_contradicts_evidence")


# Attacks on the evidence itself


def test_a_policy_for_hardware_refuses_simulation_first_of_all() -> None:
    """The embedded production policy against simulated evidence: `simulation_refused`, and the whole picture
    beside it.
    """
    verdict = refused(SERVER, by=named_policy("production"))
    assert verdict.code == "simulation_refused"
    assert verdict.label == "SIMULATED"
    assert verdict.claims is not None
    assert verdict.claims.measurement == MEASUREMENT
    assert {c.code for c in verdict.failures} >= {"policy_accepts_nothing", "root_not_accepted"}


def test_an_empty_policy_refuses() -> None:
    """A policy of the right kind that names no code accepts none."""
    verdict = refused(SERVER, by=replace(policy(), requirements=()))
    assert verdict.code == "policy_accepts_nothing"


def test_an_expired_policy_refuses() -> None:
    """A policy is over at `expires`, to the second."""
    assert only(refused(SERVER, by=replace(policy(), expires=NOW))) == ("policy.expires", "policy_expired")


def test_a_root_that_is_not_named_is_refused() -> None:
    """Anybody can make a root key; only the named one counts. The stranger's claims are shown, but prove
    nothing.
    """
    verdict = refused(replace(SERVER, root="mallory's root"))
    assert [c.id for c in verdict.failures] == ["evidence.root", "policy.root"]
    assert verdict.code == "root_not_accepted"


def test_roots_and_measurements_are_accepted_in_pairs() -> None:
    """Of two entries, one's root does not vouch for the other's code."""
    second = policy(root="second root", measurement=OTHER_MEASUREMENT)
    both = replace(policy(), requirements=policy().requirements + second.requirements)
    verify(SERVER, by=both)
    verify(replace(SERVER, root="second root", measurement=OTHER_MEASUREMENT), by=both)
    crossed = replace(SERVER, measurement=OTHER_MEASUREMENT)
    assert refused(crossed, by=both).code in {"measurement_not_accepted", "root_not_accepted"}


def test_other_code_is_refused() -> None:
    """Another measurement under the right root."""
    verdict = refused(replace(SERVER, measurement=OTHER_MEASUREMENT))
    assert only(verdict) == ("policy.measurement", "measurement_not_accepted")
    assert verdict.failures[0].expected == MEASUREMENT
    assert verdict.failures[0].got == OTHER_MEASUREMENT


def test_an_old_release_is_refused() -> None:
    """A security version below the policy's minimum."""
    assert only(refused(replace(SERVER, svn=0))) == ("policy.svn", "svn_too_low")


@pytest.mark.parametrize("ahead", [301, 86400])
def test_evidence_from_the_future_is_refused(ahead: int) -> None:
    """More than five minutes ahead of our clock is no skew but a statement about a time that has not come."""
    verdict = refused(replace(SERVER, issued_at=NOW + timedelta(seconds=ahead)))
    assert verdict.code == "evidence_from_future"
    assert [c.id for c in verdict.failures] == ["evidence.time", "policy.age"]


def test_five_minutes_of_skew_are_accepted() -> None:
    """Clocks may differ by five minutes ahead, and by the policy's age behind."""
    verify(replace(SERVER, issued_at=NOW + timedelta(seconds=300)))
    verify(replace(SERVER, issued_at=NOW - timedelta(seconds=300)))


def test_stale_evidence_is_refused() -> None:
    """Older than the policy's `max_evidence_age_s`."""
    verdict = refused(replace(SERVER, issued_at=NOW - timedelta(seconds=301)))
    assert only(verdict) == ("policy.age", "evidence_stale")


def test_a_document_with_another_label_is_refused() -> None:
    """A sim document that states another label, signed as it should be."""
    body = json.loads(SERVER.evidence.data)["body"] | {"label": "strongroom simulated evidence v2"}
    verdict = _refused_evidence(_signed(body))
    assert [c.code for c in verdict.failures] == ["evidence_wrong_label"]


def test_a_signature_under_another_label_is_refused() -> None:
    """The root signed the same bytes for another purpose: not a signature of this evidence. Its claims are
    not shown.
    """
    verdict = _refused_evidence(
        _signed(json.loads(SERVER.evidence.data)["body"], label=b"strongroom receipt v1")
    )
    assert verdict.code == "evidence_signature_invalid"
    assert verdict.claims is None
    made = {c.id for c in verify(SERVER).verdict.checks}
    assert {c.id for c in verdict.checks} == made, "every check is there, failed where it could not be made"


def test_an_endorsement_that_the_format_does_not_have_is_refused() -> None:
    """Simulated evidence comes without endorsements; something stapled to it is not ignored."""
    evidence = replace(SERVER.evidence, endorsements=(("crl", b"x"),))
    assert _refused_evidence(evidence).code == "evidence_malformed"


@pytest.mark.parametrize("name", HARDWARE_FORMATS)
def test_hardware_formats_are_refused_by_a_simulation_policy_and_garbage_by_their_verifiers(
    name: str,
) -> None:
    """Every format has a verifier, and it makes nothing of garbage."""
    verdict = _refused_evidence(Evidence(name, b"\x03\x00", ()))
    assert verdict.code == "evidence_format_not_accepted"
    assert verdict.claims is None
    assert verdict.label == ""


def test_what_is_no_policy_is_refused() -> None:
    """`UNSAFE_ANY_MEASUREMENT` is for recorded evidence: no connection rests on it."""
    with pytest.raises(InvalidPolicy) as caught:
        verify(SERVER, by=AnyMeasurement())  # type: ignore[arg-type]
    assert caught.value.code == "policy_appraise_only"


def test_an_unknown_format_is_refused() -> None:
    """A format that nobody knows."""
    assert _refused_evidence(Evidence("abc", b"", ())).code == "evidence_format_unsupported"


def test_a_sim_document_under_another_name_is_refused() -> None:
    """The peer names the format; the name does not get simulated evidence past a hardware policy."""
    disguised = replace(SERVER.evidence, format="sgx")
    assert _refused_evidence(disguised, by=named_policy("production")).code == "policy_accepts_nothing"


def test_the_registry_holds_what_this_version_verifies() -> None:
    """The simulated format, and every one that policies can name."""
    assert set(attest.VERIFIERS) == {"sim", *HARDWARE_FORMATS}


# The verdict


def test_a_refusal_says_simulated_and_what_was_expected_and_came() -> None:
    """The message of a refusal names the check, the expected and the found value, and SIMULATED."""
    with pytest.raises(AttestationRefused) as caught:
        verify(replace(SERVER, measurement=OTHER_MEASUREMENT))
    text = caught.value.message
    assert text.startswith("[SIMULATED] policy.measurement: ")
    assert MEASUREMENT in text
    assert OTHER_MEASUREMENT in text


def test_a_verdict_is_json() -> None:
    """`to_json` holds every check and survives `json`."""
    verdict = refused(replace(SERVER, svn=0))
    again = json.loads(json.dumps(verdict.to_json()))
    assert again["code"] == "svn_too_low"
    assert again["label"] == "SIMULATED"
    assert len(again["checks"]) == len(verdict.checks)
    assert again["claims"]["host_excluded"] is False
    assert again["keyset_digest"] == hashlib.sha256(SERVER.keyset_bytes).hexdigest()


@pytest.mark.slow
def test_every_single_wrong_byte_of_the_evidence_is_refused() -> None:
    """Each byte of genuine evidence flipped in one bit: never accepted."""
    genuine = SERVER.evidence.data
    for at in range(len(genuine)):
        data = genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :]
        _refused_evidence(Evidence("sim", data, ()))


def test_a_time_without_a_zone_is_a_fault_of_the_caller() -> None:
    """A naive clock would mean another moment on every machine."""
    with pytest.raises(TypeError, match="aware"):
        attest.verify(
            SERVER.evidence,
            policy(),
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            inclusion=Single(),
            channel=SERVER.leaf,
            endorsements=(),
            now=datetime(2026, 11, 23),  # noqa: DTZ001
        )


# The policy that a server's own evidence suggests


def test_a_drafted_policy_accepts_the_server_it_was_drafted_from_and_no_other() -> None:
    """`draft_policy` writes what `verify` then accepts from this server, and refuses from another."""
    drafted = parse_policy(attest.draft_policy(SERVER.evidence, keyset_bytes=SERVER.keyset_bytes, now=NOW))
    assert drafted.simulated
    verify(SERVER, by=drafted)
    assert (
        refused(replace(SERVER, measurement=OTHER_MEASUREMENT), by=drafted).code == "measurement_not_accepted"
    )
    weaker = replace(SERVER, security=replace(SECURITY, sandbox=()))
    assert only(refused(weaker, by=drafted)) == ("security.sandbox", "security_sandbox_refused")


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (Evidence("abc", b"", ()), "evidence_format_unsupported"),
        (Evidence("tdx", b"", ()), "quote_malformed"),
        (Evidence("sim", b"{}", ()), "evidence_malformed"),
        (
            Evidence("sim", SERVER.evidence.data.replace(b'"svn":1', b'"svn":2'), ()),
            "evidence_signature_invalid",
        ),
    ],
)
def test_nothing_is_drafted_from_evidence_that_does_not_verify(evidence: Evidence, code: str) -> None:
    """A policy is not written from claims that nobody signed."""
    with pytest.raises(AttestationRefused) as caught:
        attest.draft_policy(evidence, keyset_bytes=SERVER.keyset_bytes, now=NOW)
    assert caught.value.code == code


def test_the_keyset_type_is_what_the_proof_holds() -> None:
    """The receipt key comes out of the proof, and nowhere else."""
    keyset = verify(SERVER).keyset
    assert isinstance(keyset, Keyset)
    assert keyset.key("receipt").spki == spki(ed25519("server receipt"))
    assert sim.root_digest(ed25519("root").public_key()) == verify(SERVER).claims.root
