"""A store goes from one TEE to another: everything arrives, one copy lives, and nobody else gets any of it."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import handovers
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from faulty_disk import Crash, FaultyDisk
from handovers import (
    FAMILY,
    NEW,
    OLD,
    OTHER,
    Cut,
    Party,
    Running,
    Tap,
    policy_text,
    put,
    receive,
    serves,
    writable,
)
from store_worker import INFO, OWNERS

from strongroom import handover, handover_source
from strongroom.attest.evidence import Evidence
from strongroom.attester import SimulatedAttester
from strongroom.errors import AttestationRefused, Conflict, Error, MalformedInput, SealRefused, Unavailable
from strongroom.handover import (
    Request,
    agree,
    encode_done,
    encode_take,
    parse_done,
    parse_request,
    parse_take,
    proof_of,
    verify_proof,
)
from strongroom.models.values import TRAPS
from strongroom.state import GIVEN, TAKEN, Handing

MODELS = ("a", "b", "c")


@pytest.fixture
def old(tmp_path: Path) -> Party:
    """A server with models of two owners, a deleted one, and a second version."""
    party = Party(tmp_path / "old", OLD)
    with party.open() as store:
        for name, owner in (
            ("a", OWNERS[0]),
            ("b", OWNERS[1]),
            ("gone", OWNERS[1]),
            ("c", ""),
            ("a", OWNERS[0]),
        ):
            put(store, name, owner)
        store.delete("gone", None)
    return party


@pytest.fixture
def new(tmp_path: Path) -> Party:
    """Its successor: other code, another folder."""
    return Party(tmp_path / "new", NEW)


def code_of(action: Callable[[], object]) -> str:
    """The code with which it fails."""
    with pytest.raises(Error) as caught:
        action()
    return caught.value.code


# What arrives


def test_everything_arrives_and_one_copy_lives(old: Party, new: Party) -> None:
    """Models, owners, access, versions, tombstones, store id; the old one answers and changes nothing, for ever."""
    running = Running(old)
    before, files = running.store.models(), {f.name for f in (old.folder / "store" / "data").iterdir()}
    assert receive(new, running) == running.store.store_id
    with new.open() as store:
        assert store.models() == before and store.store_id == running.store.store_id
        assert serves(store, *MODELS) and writable(store)
        assert store.owner_of("gone") == OWNERS[1] and store.handing is None
        assert all(result.passed for result in store.check())
        # The very files: nothing is encrypted anew.
        assert {f.name for f in (new.folder / "store" / "data").iterdir()} == files
        put(store, "a")
        assert store.get("a", None).version == 3
    assert serves(running.store, *MODELS) and not writable(running.store)
    assert (
        code_of(lambda: put(running.store, "d"))
        == code_of(lambda: running.store.delete("a", 1))
        == "store_moved"
    )
    running.stop()
    with old.open() as store:
        assert serves(store, *MODELS) and not writable(store)
    running = Running(old)
    assert code_of(lambda: receive(Party(new.folder.with_name("again"), NEW), running)) == "store_moved"
    running.stop()


def test_files_are_copied_where_they_cannot_be_linked(
    old: Party, new: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file system, or a library OS."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", no_links)
    running = Running(old)
    receive(new, running)
    shutil.rmtree(old.folder)
    with new.open() as store:
        assert serves(store, *MODELS) and all(result.passed for result in store.check())
    running.stop()


def test_an_older_anchor_keeps_the_old_store_from_coming_back(old: Party, new: Party, tmp_path: Path) -> None:
    """On a platform with memory of its own the given store, put back as it was before, does not open."""
    shutil.copytree(old.folder, tmp_path / "kept")
    running = Running(old)
    receive(new, running)
    running.stop()
    shutil.rmtree(old.folder)
    shutil.copytree(tmp_path / "kept", old.folder)
    assert code_of(old.open) == "store_rolled_back"


def test_a_chain_of_successors(old: Party, new: Party, tmp_path: Path) -> None:
    """The same policy goes on: what was received can be handed over again."""
    family = policy_text(OLD, NEW, OTHER)
    first, second, third = (
        Party(tmp_path / name, code, policy_text=family)
        for name, code in (("1", OLD), ("2", NEW), ("3", OTHER))
    )
    with first.open() as store:
        put(store, "a")
    for giver, taker in ((first, second), (second, third)):
        running = Running(giver)
        receive(taker, running)
        running.stop()
    with third.open() as store:
        assert serves(store, "a") and writable(store)


def test_a_successor_with_another_policy_that_the_old_one_names(old: Party, tmp_path: Path) -> None:
    """Policies can change, to those that the giver's names: a receiver may give on only as the giver could."""
    later = policy_text(NEW, OLD) + "# later\n"
    taker = Party(tmp_path / "taker", NEW, policy_text=later)
    named = FAMILY.replace('handover = ["none"]', f'handover = ["{taker.security.handover}"]')
    giver = Party(tmp_path / "giver", OLD, policy_text=named)
    with giver.open() as store:
        put(store, "a")
    running = Running(giver)
    receive(taker, running)
    running.stop()
    with taker.open() as store:
        assert serves(store, "a")


# Who gets nothing


def refused(new: Party, running: Running, **more: Any) -> str:
    """The code with which a hand-over is refused; nothing lies at the receiver, and the source goes on."""
    code = code_of(lambda: receive(new, running, **more))
    assert not (new.folder / "store" / "state").exists()
    assert serves(running.store, *MODELS)
    return code


def test_receivers_that_the_policy_does_not_accept(old: Party, new: Party, tmp_path: Path) -> None:
    """Other code, another root of trust, a weaker or another configuration, an older security version."""
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    both = policy_text(OLD, NEW, OTHER)
    weak = replace(new.security, anonymous_upload=True)
    cases = [
        (Party(tmp_path / "r0", OTHER), "handover_receiver_refused"),
        # Its own policy would accept the source; the source's does not accept it.
        (Party(tmp_path / "r1", OTHER, policy_text=both), "handover_receiver_refused"),
        # The right code, which would give on to whom its own policy says.
        (Party(tmp_path / "r2", NEW, policy_text=both), "handover_receiver_refused"),
        (Party(tmp_path / "r3", NEW, security=weak), "handover_receiver_refused"),
        (
            Party(tmp_path / "r4", NEW, security=replace(new.security, recovery="age1" + "q" * 58)),
            "handover_receiver_refused",
        ),
        (Party(tmp_path / "r5", NEW, security_version=0), "handover_receiver_older"),
    ]
    for party, code in cases:
        running = Running(old)
        assert refused(party, running) == code, party
        assert writable(running.store)
        running.stop()
    # The right code by its own word, under a root that the source does not trust.
    imitation = Party(tmp_path / "r6", NEW, root_key=stranger)
    imitation.policy_text = FAMILY  # accepts the source
    running = Running(old)
    assert refused(imitation, running) == "handover_receiver_refused"
    running.stop()


def test_a_source_that_the_receivers_policy_does_not_accept(old: Party, tmp_path: Path) -> None:
    """A host cannot have a forged store taken over: nothing but the question for evidence is sent to a stranger."""
    seen: list[str] = []

    def listen(what: str, data: bytes) -> bytes:
        seen.append(what)
        return data

    running = Running(old)
    for i, policy in enumerate(
        (
            policy_text(NEW, OTHER),
            policy_text(OLD, NEW, root=Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)),
            FAMILY.replace('sealing = ["simulated"]', 'sealing = ["operator"]'),
        )
    ):
        wary = Party(tmp_path / f"wary{i}", NEW, policy_text=policy)
        with pytest.raises(AttestationRefused):
            receive(wary, running, tap=listen)
    assert set(seen) == {"evidence", "evidence answer"} and writable(running.store)
    running.stop()


@dataclass(frozen=True)
class Wider:
    """A source's hand-over policy that differs from the receiver's, but for `receiver` in the place of its digest."""

    name: str
    text: str


NAMES = FAMILY.replace('handover = ["none"]', 'handover = ["none", "receiver"]')
"""What the receiver's policy says, and gives to it: a policy that another one follows."""


@pytest.mark.parametrize(
    "wider",
    [
        Wider("other code", policy_text(OLD, NEW, OTHER).replace('handover = ["none"]', 'handover = ["receiver"]')),
        Wider("another configuration", NAMES.replace("anonymous_upload = [false]", "anonymous_upload = [false, true]")),
        Wider("another policy", NAMES.replace('"receiver"', f'"receiver", "{"77" * 32}"')),
        Wider("another recovery key", NAMES.replace('recovery = ["none"]', f'recovery = ["age1{"q" * 58}"]')),
    ],
    ids=lambda wider: wider.name,
)  # fmt: skip
def test_a_source_whose_own_policy_accepts_more(new: Party, tmp_path: Path, wider: Wider) -> None:
    """A host starts the genuine old code with a policy of its own, lets that take over a store that it has made, and
    offers this as the source: genuine code is no genuine store.
    """
    assert wider.text not in (FAMILY, NAMES)
    between = Party(tmp_path / "between", OLD, wider.text.replace("receiver", new.security.handover))
    with between.open() as store:
        put(store, "forged")
    running = Running(between)
    seen: list[str] = []

    def listen(what: str, data: bytes) -> bytes:
        seen.append(what)
        return data

    assert code_of(lambda: receive(new, running, tap=listen)) == "handover_source_refused"
    assert not (new.folder / "store" / "state").exists()
    assert seen == ["evidence", "evidence answer", "challenge", "challenge answer"] and writable(
        running.store
    )
    running.stop()


def test_a_policy_that_is_not_the_sources(new: Party, tmp_path: Path) -> None:
    """It shows another policy than its evidence names, or none."""
    forged = policy_text(OLD, NEW, OTHER).replace(
        'handover = ["none"]', f'handover = ["{new.security.handover}"]'
    )
    with (between := Party(tmp_path / "between", OLD, forged)).open() as store:
        put(store, "forged")
    for shown in (NAMES.replace("receiver", new.security.handover), ""):
        running = Running(between)

        def instead(what: str, data: bytes, shown: str = shown) -> bytes:
            if what != "challenge answer":
                return data
            return handover.encode_challenge(handover.parse_challenge(data)[0], shown.encode())

        assert code_of(lambda: receive(new, running, tap=instead)) == "handover_source_refused"  # noqa: B023
        running.stop()


@pytest.mark.parametrize(
    ("field", "value"), [("recovery", "age1" + "q" * 58), ("key_release", "ab" * 32 + "/models")]
)
def test_a_source_that_somebody_else_could_fill(new: Party, tmp_path: Path, field: str, value: str) -> None:
    """Whoever has its recovery key, or keeps its key as a broker, can have put a store of his own in there."""
    security = replace(new.security, **{field: value})  # type: ignore[arg-type]
    with (between := Party(tmp_path / "between", OLD, security=security)).open() as store:
        put(store, "forged")
    running = Running(between)
    assert code_of(lambda: receive(new, running)) == f"security_{field}_refused"
    assert not (new.folder / "store" / "state").exists()
    running.stop()


def test_a_stranger_stops_nothing(old: Party, new: Party) -> None:
    """Without the operator's token nobody gets as far as a challenge, however genuine its code."""
    running = Running(old)
    for token in ("", "00" * 32, "é"):
        assert refused(new, running, operator=token) == "handover_operator_refused"
    assert writable(running.store)
    running.stop()


def test_nothing_is_taken_over_a_store_that_is_there(old: Party, new: Party) -> None:
    """A hand-over begins a new store; one that is in use stays."""
    with new.open() as store:
        put(store, "mine")
    running = Running(old)
    assert code_of(lambda: receive(new, running)) == "handover_store_exists"
    assert writable(running.store)
    running.stop()
    with new.open() as store:
        assert serves(store, "mine")


@pytest.mark.parametrize(
    ("flag", "lax"),
    [("unbounded", {"admission": "permissive"}), (TRAPS, {"isolation": "owner"})],
)
def test_models_that_the_receiver_would_not_admit(
    new: Party, tmp_path: Path, flag: str, lax: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand-over to a stricter configuration makes no exception from what that promises; the same one takes them."""
    info = replace(INFO, admission=replace(INFO.admission, level="permissive", flags=(flag,)))
    monkeypatch.setattr(handovers, "INFO", info)
    weak = replace(new.security, **lax)
    giver = Party(tmp_path / "giver", OLD, security=weak)
    with giver.open() as store:
        put(store, "a")
    running = Running(giver)
    strict = Party(tmp_path / "strict", NEW)
    assert code_of(lambda: receive(strict, running)) == "brought_model_refused"
    assert not (strict.folder / "store" / "state").exists() and not any(
        (strict.folder / "store" / "data").iterdir()
    )
    receive(same := Party(tmp_path / "same", NEW, security=weak), running)
    running.stop()
    with same.open() as store:
        assert serves(store, "a") and writable(store)


def test_files_of_an_interrupted_hand_over_are_named(
    old: Party, new: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first commit, and the source has deleted a model since: nothing is removed unasked."""
    from strongroom import handover_receiver

    bring = handover_receiver.bring_files

    def killed(*given: Any, **more: Any) -> None:
        bring(*given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(handover_receiver, "bring_files", killed)
        running = Running(old)
        with pytest.raises(KeyboardInterrupt):
            receive(new, running)
        running.stop()
    running = Running(old)
    running.store.delete("b", None)
    folder = new.folder / "store" / "data"
    with pytest.raises(SealRefused, match="remove them") as caught:
        receive(new, running)
    assert caught.value.code == "store_state_missing" and str(folder) in caught.value.message
    shutil.rmtree(folder)
    receive(new, running)
    running.stop()


# What happens in flight


def keep(kept: dict[str, bytes]) -> Tap:
    """Remembers what passes."""

    def tap(what: str, data: bytes) -> bytes:
        kept[what] = data
        return data

    return tap


def test_a_replayed_request_is_refused(old: Party, new: Party, tmp_path: Path) -> None:
    """A recorded request opens nothing twice: neither at once, nor in answer to another challenge."""
    kept: dict[str, bytes] = {}
    running = Running(old)

    def record_and_cut(what: str, data: bytes) -> bytes:
        kept[what] = data
        if what == "take answer":
            raise Cut
        return data

    assert code_of(lambda: receive(new, running, tap=record_and_cut)) == "connection_lost"
    replayed: Tap = lambda what, data: kept["take"] if what == "take" else data  # noqa: E731
    assert refused(new, running, tap=replayed) == "handover_challenge_unknown"

    async def once_more() -> bytes:
        async def body() -> Any:
            yield kept["take"]

        return await running.source.take("ab" * 32, body(), keyset=b"")

    assert code_of(lambda: asyncio.run(once_more())) == "handover_challenge_unknown"
    running.stop()


def test_a_challenge_ends(old: Party, new: Party) -> None:
    """Evidence that comes late is not fresh."""
    running = Running(old)

    def slow(what: str, data: bytes) -> bytes:
        if what == "take":
            running.clock.seconds += handover_source.CHALLENGE_S
        return data

    assert refused(new, running, tap=slow) == "handover_challenge_unknown"
    running.stop()


def test_a_request_relayed_from_another_source_is_refused(old: Party, new: Party, tmp_path: Path) -> None:
    """The statement names the keyset of the source that the receiver verified."""
    twin = Party(tmp_path / "twin", OLD)
    genuine, relayed = Running(old), Running(twin)

    def relay(what: str, data: bytes) -> bytes:
        # In the middle: the receiver talks to `genuine`, its request goes to `relayed`.
        if what == "challenge answer":
            return asyncio.run(relayed.source.challenge("ab" * 32))
        if what == "take":
            status, answer = relayed.answer(_request("take"), data)
            raise AssertionError(json.loads(answer)["code"] if status != 200 else "given")
        return data

    with pytest.raises(AssertionError, match="handover_other_source"):
        receive(new, genuine, tap=relay)
    genuine.stop()
    relayed.stop()


def _request(what: str) -> Any:
    from strongroom.calls import Request as HttpRequest

    return HttpRequest(
        method="POST", path=f"/v1/handover/{what}", headers=(("Strongroom-Operator", "ab" * 32),)
    )


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("take answer", "handover_tampered"),
        ("take", "answer_malformed"),
        ("done answer", "handover_proof_refused"),
        ("done", "handover_proof_refused"),
    ],
)
def test_what_is_altered_in_flight_is_refused(old: Party, new: Party, where: str, code: str) -> None:
    """One bit, in each message. TLS would not let it pass; this does not rest on TLS."""

    def flip(what: str, data: bytes) -> bytes:
        if what != where:
            return data
        at = 20 if where in ("take", "done") else len(data) - 4
        digit = data[at : at + 1]
        other = (b"0" if digit != b"0" else b"1") if where != "take answer" else bytes([digit[0] ^ 1])
        return data[:at] + other + data[at + 1 :]

    running = Running(old)
    assert code_of(lambda: receive(new, running, tap=flip)) == code
    assert serves(running.store, *MODELS)
    running.stop()


@pytest.mark.parametrize("change", ["key", "security_version", "challenge", "source"])
def test_a_statement_that_the_evidence_did_not_sign(old: Party, new: Party, change: str) -> None:
    """Every fact in it is under the evidence: another key to encrypt to, above all."""
    running = Running(old)

    def swap(what: str, data: bytes) -> bytes:
        if what != "take":
            return data
        statement, _ = parse_take(data)
        answer = base64.b64decode(json.loads(data)["answer"])
        request = parse_request(statement)
        mallory = X25519PrivateKey.generate().public_key().public_bytes_raw()
        value: Any = 7 if change == "security_version" else mallory
        return encode_take(replace(request, **{change: value}).encode(), answer)

    expected = {
        "challenge": "handover_challenge_unknown",
        "source": "handover_other_source",
    }.get(change, "handover_receiver_refused")
    assert refused(new, running, tap=swap) == expected
    assert writable(running.store)
    running.stop()


def test_evidence_of_another_purpose_states_nothing(
    old: Party, new: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that any client gets to a nonce of its choice is no statement."""
    from strongroom import handover_receiver
    from strongroom.attest.evidence import report_data

    monkeypatch.setattr(
        handover_receiver,
        "statement_report_data",
        lambda *, nonce, keyset_bytes, statement: report_data(nonce=nonce, keyset_bytes=keyset_bytes),
    )
    running = Running(old)
    with pytest.raises(Error, match="report_data_mismatch") as caught:
        receive(new, running)
    assert caught.value.code == "handover_receiver_refused"
    running.stop()


def test_the_receivers_evidence_answers_the_challenge_itself(
    old: Party, new: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Nitro document has a place of its own for the nonce, and the source looks there: the attester is told."""
    told: list[bytes] = []
    issue = SimulatedAttester.evidence

    def evidence(
        self: SimulatedAttester, report_data: bytes, *, now: datetime, nonce: bytes = b""
    ) -> Evidence:
        if self is new.attester:
            told.append(nonce)
        return issue(self, report_data, now=now, nonce=nonce)

    monkeypatch.setattr(SimulatedAttester, "evidence", evidence)
    kept: dict[str, bytes] = {}
    running = Running(old)
    receive(new, running, tap=keep(kept))
    assert told == [handover.parse_challenge(kept["challenge answer"])[0]]
    running.stop()


def test_a_file_that_is_missing_or_altered_stops_it_in_time(old: Party, new: Party, tmp_path: Path) -> None:
    """Everything is read before the source lets go; with the file put right, it goes through."""
    copy = shutil.copytree(old.folder / "store" / "data", tmp_path / "copy")
    victim = sorted(copy.iterdir())[0]
    data = victim.read_bytes()
    running = Running(old)
    victim.unlink()
    assert code_of(lambda: receive(new, running, files=copy)) == "seal_missing"
    victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert code_of(lambda: receive(new, running, files=copy)) == "seal_chunk"
    assert running.store.handing is None and serves(running.store, *MODELS)
    victim.write_bytes(data)
    receive(new, running, files=copy)
    with new.open() as store:
        assert serves(store, *MODELS) and writable(store)
    running.stop()


# Who may change what, and when


def test_nothing_changes_from_the_giving_on_and_the_hold_ends(old: Party, new: Party) -> None:
    """What is acknowledged after the record was sealed would be lost. A receiver that is never heard of again does not
    stop the source for ever, and its copy is void.
    """
    running = Running(old)

    def die(what: str, data: bytes) -> bytes:
        if what == "done":
            raise Cut
        return data

    assert code_of(lambda: receive(new, running, tap=die)) == "store_moving"
    assert not writable(running.store) and code_of(lambda: put(running.store, "d")) == "store_moving"
    with new.open() as store:
        assert serves(store, *MODELS) and not writable(store)
    running.clock.seconds += handover_source.HOLD_S
    put(running.store, "d")
    # The first copy learns that it is void, and all is taken again.
    receive(new, running)
    with new.open() as store:
        assert serves(store, *MODELS, "d") and writable(store)
    running.stop()


def test_a_hold_that_ended_does_not_come_back_with_the_clock(old: Party, new: Party) -> None:
    """A host that sets the clock on and back, with a change in between: letting go now would lose that change."""
    running = Running(old)

    def meddle(what: str, data: bytes) -> bytes:
        if what == "done":
            running.clock.seconds += handover_source.HOLD_S
            put(running.store, "between")
            running.clock.seconds -= handover_source.HOLD_S
        return data

    assert code_of(lambda: receive(new, running, tap=meddle)) == "handover_unknown"
    assert writable(running.store)
    receive(new, running)
    with new.open() as store:
        assert serves(store, *MODELS, "between") and writable(store)
    running.stop()


def test_an_upload_under_way_is_not_acknowledged(old: Party, new: Party) -> None:
    """It began before and would end behind: it is refused, not lost."""
    running = Running(old)
    with running.store.begin(name="late", owner="", access="public", format="onnx", max_bytes=100) as upload:
        upload.write(b"x" * 50)
        upload.seal()
        receive(new, running)
        from store_worker import INFO

        with pytest.raises(Unavailable):
            upload.commit(info=INFO, canonical_sha256="0" * 64)
    with new.open() as store:
        assert store.versions("late") == ()
    running.stop()


def test_of_two_receivers_one_lives(old: Party, new: Party, tmp_path: Path) -> None:
    """A host that starts two gets one store that changes: the source lets go once."""
    first, second = new, Party(tmp_path / "second", NEW)
    running = Running(old)

    def die(what: str, data: bytes) -> bytes:
        if what == "done":
            raise Cut
        return data

    assert code_of(lambda: receive(first, running, tap=die)) == "store_moving"
    receive(second, running)
    assert code_of(lambda: receive(first, running)) == "store_moved"
    with first.open() as one, second.open() as two:
        assert not writable(one) and writable(two) and serves(one, *MODELS) and serves(two, *MODELS)
    running.stop()


def test_a_lost_answer_at_the_end_is_asked_for_again(old: Party, new: Party) -> None:
    """The source let go, and its answer did not arrive; it says so again, also after it was started anew."""
    running = Running(old)

    def deaf(what: str, data: bytes) -> bytes:
        if what == "done answer":
            raise Cut
        return data

    assert code_of(lambda: receive(new, running, tap=deaf)) == "store_moving"
    with new.open() as store:
        assert not writable(store) and serves(store, *MODELS)
    assert not writable(running.store)
    running.stop()
    running = Running(old)
    receive(new, running)
    with new.open() as store:
        assert writable(store) and serves(store, *MODELS)
    running.stop()


def test_a_source_started_anew_knows_nothing_of_a_hand_over(old: Party, new: Party) -> None:
    """A restart ends the hold: what was taken before is void, and changes made since arrive."""
    running = Running(old)

    def die(what: str, data: bytes) -> bytes:
        if what == "done":
            raise Cut
        return data

    assert code_of(lambda: receive(new, running, tap=die)) == "store_moving"
    running.stop()
    running = Running(old)
    put(running.store, "since")
    running.store.delete("b", None)
    receive(new, running)
    with new.open() as store:
        assert serves(store, "a", "c", "since") and store.versions("b") == () and writable(store)
        assert all(result.passed for result in store.check())
    running.stop()


# Killed at every step


def finish(old: Party, new: Party, names: tuple[str, ...] = MODELS) -> None:
    """Whatever happened: one of the two serves everything, never do both change, and it can be brought to its end."""
    running = Running(old)
    try:
        able = [serves(running.store, *names)]
        changing = [writable(running.store)]
        if (new.folder / "store" / "state").exists():
            with new.open() as store:
                able.append(serves(store, *names))
                changing.append(writable(store))
        assert any(able) and changing.count(True) <= 1, (able, changing)
        done = len(changing) == 2 and changing[1]
        if not done:
            receive(new, running)
        with new.open() as store:
            assert serves(store, *names) and writable(store) and not writable(running.store)
            assert all(result.passed for result in store.check())
    finally:
        running.stop()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["old", "new"])
def test_a_kill_at_every_call_to_the_disk_of_either_end(tmp_path: Path, end: str) -> None:
    """Before call 1, 2, 3 ... (of the new one: 1, 3, 5 ...) the process is gone, with all that it held in memory."""

    def parties(folder: Path) -> tuple[Party, Party]:
        old, new = Party(folder / "old", OLD), Party(folder / "new", NEW)
        with old.open() as store:
            for name in MODELS[:2]:
                put(store, name)
        (new.folder / "store").mkdir(parents=True)
        return old, new

    def attempt(folder: Path, at: int) -> tuple[Party, Party, FaultyDisk]:
        old, new = parties(folder)
        running = Running(old)
        with FaultyDisk({"old": old, "new": new}[end].folder / "store", at=at, error=None) as faulty:
            try:
                receive(new, running)
            except (Crash, Error):
                assert at
        running.stop()
        return old, new, faulty

    *_, faulty = attempt(tmp_path / "count", 0)
    total = faulty.calls
    assert total > (7 if end == "old" else 40)
    for at in range(1, total + 1, 1 if end == "old" else 2):
        old, new, faulty = attempt(tmp_path / str(at), at)
        assert faulty.dead
        finish(old, new, MODELS[:2])
        shutil.rmtree(tmp_path / str(at))


@pytest.mark.parametrize(
    "cut", ["evidence", "challenge answer", "take", "take answer", "done", "done answer"]
)
def test_a_kill_of_both_at_every_message(old: Party, new: Party, cut: str) -> None:
    """The connection ends there, and both are started anew."""

    def tap(what: str, data: bytes) -> bytes:
        if what == cut:
            raise Cut
        return data

    running = Running(old)
    with pytest.raises(Error):
        receive(new, running, tap=tap)
    running.stop()
    finish(old, new)


# Messages and keys


def test_both_ends_agree_and_nobody_else() -> None:
    """The same transfer on both sides; another statement, keyset or key, another transfer."""
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    source, receiver = (key.public_key().public_bytes_raw() for key in (a, b))
    one = agree(a, receiver, statement=b"s", keyset=b"k", key=source)
    two = agree(b, source, statement=b"s", keyset=b"k", key=source)
    assert (one.id, one.root.secret, one.proof_key) == (two.id, two.root.secret, two.proof_key)
    others = [
        agree(b, source, statement=b"t", keyset=b"k", key=source),
        agree(b, source, statement=b"s", keyset=b"l", key=source),
        agree(b, source, statement=b"s", keyset=b"k", key=receiver),
        agree(X25519PrivateKey.generate(), source, statement=b"s", keyset=b"k", key=source),
    ]
    secrets = {s for t in (one, *others) for s in (t.root.secret, t.proof_key, t.id)}
    assert len(secrets) == 15
    assert one.root.secret.hex() not in repr(one) and one.proof_key.hex() not in repr(one)


def test_a_key_of_small_order_is_refused() -> None:
    """With it everybody would know what was agreed."""
    for point in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(MalformedInput):
            agree(X25519PrivateKey.generate(), point, statement=b"", keyset=b"", key=b"")


def test_a_proof_is_of_one_end_of_one_hand_over() -> None:
    """The receiver's does not pass for the source's, nor that of another hand-over."""
    taken = Handing(end=TAKEN, transfer="ab" * 16, key=bytes(32))
    verify_proof(proof_of(taken), handing=taken)
    for other in (
        replace(taken, end=GIVEN),
        replace(taken, transfer="ac" * 16),
        replace(taken, key=bytes(31) + b"1"),
    ):
        with pytest.raises(Error) as caught:
            verify_proof(proof_of(taken), handing=other)
        assert caught.value.code == "handover_proof_refused"


REQUEST = Request(challenge=bytes(32), source=bytes(32), key=bytes(32), security_version=1)


def test_messages_come_back_as_they_went() -> None:
    """And in one spelling."""
    assert parse_request(REQUEST.encode()) == REQUEST
    handing = Handing(end=TAKEN, transfer="ab" * 16, key=bytes(32))
    assert parse_done(encode_done(handing)) == ("ab" * 16, proof_of(handing))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        REQUEST.encode() + b" ",
        REQUEST.encode().replace(b"handover v1", b"handover v2"),
        REQUEST.encode().replace(b'"key":"00', b'"key":"'),
        REQUEST.encode().replace(b'"security_version":1', b'"security_version":-1'),
        REQUEST.encode().replace(b'{"', b'{"more":1,"', 1),
        b"[" * 5000,
    ],
)
def test_statements_of_another_form_are_refused(data: bytes) -> None:
    """Strictly: the evidence signs bytes, and two readers must not read them differently."""
    for parse in (
        parse_request,
        parse_done,
        parse_take,
        handover.parse_challenge,
        lambda d: handover.parse_member(d, "proof"),
    ):
        with pytest.raises(MalformedInput) as caught:
            parse(data)
        assert caught.value.code == "handover_malformed"


def test_a_record_sealed_for_another_is_refused(old: Party) -> None:
    """Another configuration of the receiver's, another store, another transfer."""
    from strongroom.handover import open_transfer, seal_transfer

    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    key = a.public_key().public_bytes_raw()
    transfer = agree(a, b.public_key().public_bytes_raw(), statement=b"", keyset=b"", key=key)
    other = agree(a, b.public_key().public_bytes_raw(), statement=b"x", keyset=b"", key=key)
    store_id, security = bytes(16), bytes(32)
    with old.open() as store:
        record, keys = store._record, store._keys
    facts: dict[str, Any] = {"transfer": transfer, "store_id": store_id, "security_digest": security}
    sealed = seal_transfer(record, keys, digest="0" * 64, random=os.urandom, **facts)
    assert open_transfer(sealed, target=keys, random=os.urandom, **facts).names[0].name == "a"
    for change in ({"transfer": other}, {"store_id": bytes([1]) * 16}, {"security_digest": bytes([1]) * 32}):
        with pytest.raises(SealRefused) as caught:
            open_transfer(sealed, target=keys, random=os.urandom, **{**facts, **change})
        assert caught.value.code == "handover_tampered"


def test_no_key_of_the_source_travels(old: Party, new: Party) -> None:
    """Neither its root nor its store's key, nor a key derived from them, in what goes over the wire, opened."""
    running = Running(old)
    keys = running.store._keys
    kept: dict[str, bytes] = {}
    receive(new, running, tap=keep(kept))
    with new.open() as store:
        assert store._keys.store_key != keys.store_key
        assert not {e.wrapped_key for n in store._record.names for e in n.entries} & {
            e.wrapped_key for n in running.store._record.names for e in n.entries
        }
    for secret in (old.attester.sealing_root().secret, keys.store_key, keys.state_key, keys.owner_key("")):
        assert all(secret not in data for data in kept.values())
    running.stop()


def test_a_conflict_with_itself_cannot_be_let_go(old: Party) -> None:
    """`let_go` without a hold, or twice with another hand-over, changes nothing."""
    handing = Handing(end=GIVEN, transfer="ab" * 16, key=bytes(32))
    with old.open() as store:
        with pytest.raises(Conflict):
            store.let_go(handing)
        assert writable(store)
