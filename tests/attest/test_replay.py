"""`attest.replay`: a bundle's verification made again says what it said, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import fake_x509
import pytest
from bundles import GENUINE, POLICY, SERVER, bundle, entries, reseal
from fake_amd import Machine, roots
from worlds import MEASUREMENT, NONCE, NOW, OTHER_MEASUREMENT, SECURITY, Server, p256, policy
from worlds import leaf as certificate

from strongroom import attest
from strongroom.attest import bundle as container
from strongroom.attest import policy as policies
from strongroom.attest.appraise import AnyMeasurement
from strongroom.attest.batch import Single
from strongroom.attest.bundle import Bundle, encode_bundle, parse_bundle
from strongroom.attest.evidence import (
    Claims,
    Evidence,
    EvidenceAnswer,
    Leaf,
    Verdict,
    encode_answer,
    parse_answer,
    report_data,
)
from strongroom.attest.policy import parse_policy, policy_for
from strongroom.attest.replay import Bundled, appraise_bundle
from strongroom.attest.snp import examine_snp
from strongroom.errors import AttestationRefused, InvalidPolicy

OWN = Bundled()


def again(one: Bundle, by: Any = OWN, at: Any = OWN) -> Verdict:
    """The verdict, by way of the bytes of a file."""
    return appraise_bundle(parse_bundle(encode_bundle(one)), policy=by, now=at)


def codes(verdict: Verdict) -> list[str]:
    """Codes of the failures."""
    return [c.code for c in verdict.failures]


def live(server: Server, **changed: Any) -> Verdict:
    """What a client said on the connection: a leaf of this very connection, and the policy for the genuine server."""
    given = {"nonce": NONCE, "leaf": server.leaf, "policy": policy(), "now": NOW} | changed
    evidence = server.evidence
    try:
        return attest.verify(
            evidence,
            given["policy"],
            nonce=given["nonce"],
            keyset_bytes=server.keyset_bytes,
            inclusion=Single(),
            channel=given["leaf"],
            endorsements=evidence.endorsements,
            now=given["now"],
        ).verdict
    except AttestationRefused as refused:
        assert refused.verdict is not None
        return refused.verdict


# --- what passes --------------------------------------------------------------------------------------------


def test_a_genuine_bundle_verifies_by_its_own_policy_at_its_own_time() -> None:
    """Years later: no clock is asked. What rests on the author's word is said."""
    verdict = again(bundle())
    assert verdict.passed and verdict.code is None and verdict.label == "SIMULATED"
    assert verdict.channel == "no channel: a bundle, whose connection is over"
    subjects = [text.split(":")[0] for text in verdict.not_checked]
    assert subjects == ["the time", "the nonce", "the connection", "the origin", "the policy"]
    assert "https://host.example:8443" in verdict.not_checked[3]


def test_another_policy_and_another_time_are_used_and_said() -> None:
    """The policy is no longer the author's word then; the bundle's time is not used."""
    verdict = again(bundle(policy="none of yours"), policy(), NOW + timedelta(minutes=1))
    assert verdict.passed
    subjects = [text.split(":")[0] for text in verdict.not_checked]
    assert subjects == ["the time of the bundle", "the nonce", "the connection", "the origin"]


def test_the_same_checks_are_made_as_on_the_connection() -> None:
    """In the same order, but that the leaf is compared as a file."""
    on_line = [c.id for c in live(SERVER).checks]
    assert [c.id for c in again(bundle()).checks] == [
        i if i != "channel.spki" else "bundle.leaf" for i in on_line
    ]


def test_it_never_makes_a_proof_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """`attest.verify` is called without a channel; what comes back is a verdict, which no client accepts."""
    channels = []
    genuine = attest.verify

    def watched(*given: Any, **named: Any) -> Any:
        channels.append(named["channel"])
        return genuine(*given, **named)

    monkeypatch.setattr(attest, "verify", watched)
    verdict = again(bundle())
    assert type(verdict) is Verdict
    assert len(channels) == 1 and not isinstance(channels[0], Leaf)


WRONG_SERVERS: dict[str, tuple[Server, dict[str, Any]]] = {
    "other code": (Server(measurement=OTHER_MEASUREMENT), {}),
    "another root": (Server(root="other"), {}),
    "another nonce": (Server(nonce=bytes(32)), {}),
    "no report data": (SERVER.forge(report_data=bytes(64)), {}),
    "an expired keyset": (Server(not_after=int(NOW.timestamp())), {}),
    "a malformed keyset": (SERVER.forge(keyset=b"{}"), {}),
    "relayed": (SERVER, {"leaf": certificate(p256("somebody else"))}),
    "relayed, and other code": (
        Server(measurement=OTHER_MEASUREMENT), {"leaf": certificate(p256("somebody else"))},
    ),
    "no certificate": (SERVER, {"leaf": Leaf(b"")}),
    "evidence of an hour ago": (Server(issued_at=NOW - timedelta(hours=1)), {}),
    "evidence from the future": (Server(issued_at=NOW + timedelta(hours=1)), {}),
    "another configuration": (Server(security=replace(SECURITY, anonymous_upload=True)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SERVERS)
def test_a_refused_verification_is_refused_again_for_the_same_reason(name: str) -> None:
    """The same failures in the same order as on the connection."""
    server, changed = WRONG_SERVERS[name]
    leaf = changed.get("leaf", server.leaf)
    verdict = again(bundle(server, leaf=leaf.der))
    assert codes(live(server, **changed)) == codes(verdict) != []
    assert verdict.code == codes(verdict)[0]


# --- what somebody made of it -------------------------------------------------------------------------------


def _mixed(**changed: bytes) -> Bundle:
    """The genuine bundle with members replaced by somebody who wrote the manifest anew."""
    return parse_bundle(container._zip(list(reseal(GENUINE, **changed).items())))


OTHER = Server(name="other", nonce=bytes(range(32)))


def test_two_bundles_mixed_are_refused() -> None:
    """Answer, leaf or nonce of another genuine server, or of another session with this one."""
    other = bundle(OTHER, nonce=OTHER.nonce)
    assert again(other).passed
    assert codes(again(_mixed(answer_json=other.answer))) == ["report_data_mismatch", "channel_key_mismatch"]
    assert codes(again(_mixed(leaf_der=other.leaf))) == ["channel_key_mismatch"]
    assert codes(again(bundle(nonce=other.nonce))) == ["report_data_mismatch"]
    session = replace(SERVER, nonce=OTHER.nonce)
    assert codes(again(_mixed(answer_json=bundle(session).answer))) == ["report_data_mismatch"]


def test_an_answer_with_another_keyset_or_evidence_is_refused() -> None:
    """Parts of the answer itself, mixed."""
    answer, other = parse_answer(bundle().answer), parse_answer(bundle(OTHER).answer)
    for mixed in (replace(answer, keyset=other.keyset), replace(answer, evidence=other.evidence)):
        assert "report_data_mismatch" in codes(again(bundle(answer=encode_answer(mixed))))


@pytest.mark.parametrize("answer", [b"", b"{}", b"\xff", bundle().answer[:-1], b"[]"], ids=range(5))
def test_an_answer_that_cannot_be_read_is_refused(answer: bytes) -> None:
    """It was refused so on the connection, and is kept as it came; nothing is claimed of it."""
    verdict = again(bundle(answer=answer))
    assert (verdict.passed, verdict.code, verdict.claims) == (False, "answer_malformed", None)
    assert [c.id for c in verdict.failures] == ["evidence.answer"]
    assert verdict.not_checked


def test_an_answer_of_an_unknown_format_is_refused() -> None:
    """Every check that had nothing to check has failed."""
    evidence = Evidence("abc", b"", ())
    verdict = again(bundle(answer=encode_answer(EvidenceAnswer(evidence, SERVER.keyset_bytes, Single()))))
    assert verdict.code == "evidence_format_unsupported"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "policy_empty"),
        ("\n# nothing\n", "policy_empty"),
        ("kind", "policy_invalid"),
        (
            'kind = "UNSAFE_ANY_MEASUREMENT"\nexpires = 2027-01-01T00:00:00Z\n[security]\n',
            "policy_appraise_only",
        ),
        (POLICY.replace("measurements", "measurement"), "policy_unknown_member"),
        (POLICY.split("[security]")[0], "policy_missing_member"),
    ],
    ids=range(6),
)
def test_an_empty_or_broken_policy_in_the_bundle_is_no_policy(text: str, code: str) -> None:
    """Nothing is appraised by it; another may be given."""
    for one in (bundle(policy=text), _mixed(policy_toml=text.encode())):
        with pytest.raises(InvalidPolicy) as caught:
            again(one)
        assert caught.value.code == code
        assert again(one, policy()).passed


def test_a_policy_that_accepts_nothing_refuses_the_bundle() -> None:
    """`production` names no code, and refuses simulation besides."""
    verdict = again(bundle(policy=policies.NAMED_POLICIES["production"]))
    assert verdict.code == "simulation_refused"
    assert not again(bundle(), policies.named_policy("production")).passed


def test_the_authors_own_policy_and_root_are_accepted_only_as_the_authors() -> None:
    """Anybody can make a server, a root, a policy and a bundle that agree: by your policy it is refused."""
    made = Server(name="mallory", root="mallory's", measurement=MEASUREMENT)
    text = policies.render_policy(policy(root="mallory's"), heading="mine")
    forged = bundle(made, policy=text)
    assert again(forged).passed
    assert any(t.startswith("the policy: it came in the bundle") for t in again(forged).not_checked)
    assert "root_not_accepted" in codes(again(forged, policy()))


def test_any_measurement_is_no_policy_for_a_bundle() -> None:
    """As for a connection."""
    with pytest.raises(InvalidPolicy) as caught:
        again(bundle(), AnyMeasurement())
    assert caught.value.code == "policy_appraise_only"


# --- time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later", "code"),
    [
        (timedelta(minutes=6), "evidence_stale"),
        (timedelta(hours=12), "keyset_expired"),
        (timedelta(days=91), "policy_expired"),
        (timedelta(minutes=-6), "evidence_from_future"),
    ],
    ids=str,
)
def test_another_time_is_another_verdict(later: timedelta, code: str) -> None:
    """By --at, or by a bundle whose time somebody changed."""
    assert code in codes(again(bundle(), at=NOW + later))
    assert code in codes(again(bundle(verified_at=NOW + later)))
    assert again(bundle(verified_at=NOW + later), at=NOW).passed


def test_a_time_without_zone_is_a_mistake() -> None:
    """As in `verify`."""
    with pytest.raises(TypeError):
        again(bundle(), at=datetime(2026, 11, 23))  # noqa: DTZ001


def test_origin_and_software_decide_nothing() -> None:
    """They are printed, and that is all."""
    verdict = again(bundle(origin="https://evil.example", software="other/9"))
    assert verdict.passed
    assert verdict.checks == again(bundle()).checks
    assert any(text == "the origin: none is a comment" for text in again(bundle(origin="")).not_checked)


# --- hardware, with endorsements ----------------------------------------------------------------------------

HOST = Server(security=replace(SECURITY, sealing="measurement", host_excluded=True))


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with a report of a fake AMD's machine; its certificates stapled, and used."""

    def examine(data: bytes, **arguments: Any) -> Any:
        return examine_snp(data, **(arguments | {"roots": roots()}))

    monkeypatch.setitem(attest.VERIFIERS, "snp", examine)
    machine = Machine(fields={0x50: report_data(nonce=NONCE, keyset_bytes=HOST.keyset_bytes)})
    found = examine_snp(machine.report, endorsements=machine.endorsements, roots=roots(), now=fake_x509.NOW)
    assert isinstance(found.claims, Claims)
    evidence = Evidence(
        "snp", machine.report, tuple((f"e{n}", d) for n, (_, d) in enumerate(machine.endorsements))
    )
    return bundle(
        HOST,
        answer=encode_answer(EvidenceAnswer(evidence, HOST.keyset_bytes, Single())),
        endorsements=evidence.endorsements,
        policy=policy_for(found.claims, security=HOST.security, now=fake_x509.NOW),
        verified_at=fake_x509.NOW,
    )


def test_a_bundle_of_hardware_verifies_with_the_endorsements_that_were_used(amd: Bundle) -> None:
    """Those of the bundle, not those that the answer staples."""
    assert codes(again(amd)) == []
    assert not again(amd).simulated
    answer = parse_answer(amd.answer)
    bare = replace(answer, evidence=replace(answer.evidence, endorsements=()))
    assert again(replace(amd, answer=encode_answer(bare))).passed
    unendorsed = again(replace(amd, endorsements=()))
    assert not unendorsed.passed and unendorsed.claims is None


def test_every_endorsement_counts(amd: Bundle) -> None:
    """Removed, emptied, or of another machine."""
    others = Machine(product="Genoa").endorsements
    for n, (name, _) in enumerate(amd.endorsements):
        kept = amd.endorsements[:n] + amd.endorsements[n + 1 :]
        for used in (kept, (*kept, (name, b"")), (*kept, *others[n : n + 1])):
            verdict = again(replace(amd, endorsements=used))
            assert not verdict.passed and verdict.claims is None


def test_a_hardware_bundle_has_a_time_too(amd: Bundle) -> None:
    """Certificates expire; the keyset first."""
    assert "keyset_expired" in codes(again(amd, at=amd.verified_at + timedelta(days=30)))


def test_the_report_of_another_session_is_refused(amd: Bundle) -> None:
    """The hardware answered somebody else's nonce."""
    assert codes(again(replace(amd, nonce=bytes(32)))) == ["report_data_mismatch"]


def test_a_manifest_with_another_nonce_is_another_question() -> None:
    """Somebody who writes the manifest anew can claim any nonce, and is refused."""
    said = json.loads(entries(GENUINE)["manifest.json"])
    assert said["nonce"] == NONCE.hex()
    forged = reseal(GENUINE, manifest={"nonce": "00" * 32})
    assert codes(again(parse_bundle(container._zip(list(forged.items()))))) == ["report_data_mismatch"]
    assert parse_policy(POLICY) == policy()
