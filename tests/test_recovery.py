"""A lost store comes back with the recovery key, to a server that names this key, and in no other way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from handovers import FAMILY, NEW, OLD, SECURITY, Clock, Party, policy_text, put, serves, writable
from store_worker import OWNERS

from strongroom import age
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, encode_answer, report_data
from strongroom.attest.policy import parse_policy
from strongroom.calls import Answer, Request
from strongroom.errors import AccessRefused, AttestationRefused, Error, LimitExceeded
from strongroom.flow import Endpoint, Open, Send, drive_to_end
from strongroom.problems import status_of
from strongroom.recovery import CHALLENGE_S, FILE, MAX_RESTORE, Recovery, open_lost, write_wrapped
from strongroom.recovery_client import read_lost, restore_flow
from strongroom.session import Session

KEY = X25519PrivateKey.from_private_bytes(b"\x42" * 32)
RECIPIENT = age.recipient_of(KEY)
OTHER_KEY = X25519PrivateKey.from_private_bytes(b"\x43" * 32)
NAMED = replace(SECURITY, recovery=RECIPIENT)


class Running:
    """A new server that runs, with a store that names a recovery key; also the wire to it."""

    def __init__(self, party: Party, recipient: str = RECIPIENT) -> None:
        self.party, self.clock, self.store = party, Clock(), party.open()
        self.keyset = party.keyset(self.store.store_id)
        self.sent: list[tuple[str, bytes]] = []
        self.recovery = Recovery(
            self.store,
            recipient=recipient,
            files=party.folder / "incoming",
            security=party.security,
            monotonic=self.clock.monotonic,
            random=os.urandom,
        )

    def stop(self) -> None:
        """Ends it."""
        self.recovery.close()
        self.store.close()

    def perform(self, command: Any) -> Any:
        """In the place of `Transport.perform`."""
        match command:
            case Open():
                gate = SimpleNamespace(leaf=self.party.identity.certificate_der, pin=lambda _pin: None)
                return Endpoint(gate=gate, link=None)  # type: ignore[arg-type]
            case Send(_, request):
                body = b"".join(request.body.chunks())
                self.sent.append((request.path, body))
                try:
                    return Answer(status=200, headers={}, data=self._answer(request, body))
                except Error as error:
                    document = json.dumps({"detail": error.message, "code": error.code}).encode()
                    return Answer(status=status_of(error), headers={}, data=document)
        raise AssertionError(command)

    def _answer(self, request: Request, body: bytes) -> bytes:
        if request.path == "/v1/evidence":
            data = report_data(
                nonce=bytes.fromhex(request.query.removeprefix("nonce=")), keyset_bytes=self.keyset
            )
            evidence = self.party.attester.evidence(data, now=self.clock.now())
            return encode_answer(EvidenceAnswer(evidence, self.keyset, Single()))
        if request.path == "/v1/recovery/challenge":
            return asyncio.run(self.recovery.challenge())
        return asyncio.run(self.recovery.restore(stream(body)))


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body."""
    for chunk in chunks:
        yield chunk


def policy_of(party: Party, recovery: str = RECIPIENT) -> str:
    """The policy of the recovery key's holder."""
    text = policy_text(party.measurement)
    text = text.replace('handover = ["none"]', f'handover = ["{party.security.handover}"]')
    return text.replace('recovery = ["none"]', f'recovery = ["{recovery}"]')


def recover(lost: Path, running: Running, *, key: X25519PrivateKey = KEY, policy: str = "") -> int:
    """What `strongroom recover` does."""
    text = policy or policy_of(running.party)
    found = open_lost((lost / "state").read_bytes(), (lost / FILE).read_bytes(), key)
    session = Session(
        policy=parse_policy(text), policy_text=text, origin="https://new", key=None, clock=running.clock,  # type: ignore[arg-type]
        random=os.urandom, patience_s=0,
    )  # fmt: skip
    return drive_to_end(restore_flow(session, found, key, random=os.urandom), running.perform)


def code_of(action: Callable[[], object]) -> str:
    """The code with which it fails."""
    with pytest.raises(Error) as caught:
        action()
    return caught.value.code


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """The store of a machine that is gone: its root is nowhere any more."""
    party = Party(tmp_path / "lost", OLD, security=NAMED)
    with party.open() as store:
        write_wrapped(store, party.folder / "store", recipient=RECIPIENT, random=os.urandom)
        for name, owner in (("a", OWNERS[0]), ("b", OWNERS[1]), ("gone", OWNERS[1]), ("a", OWNERS[0])):
            put(store, name, owner)
        store.delete("gone", None)
    return party.folder / "store"


@pytest.fixture
def new(tmp_path: Path, lost: Path) -> Party:
    """A server of another machine and another release, with the lost data files at hand."""
    party = Party(tmp_path / "new", NEW, policy_text=FAMILY + "# another\n", security=NAMED)
    shutil.copytree(lost / "data", party.folder / "incoming")
    return party


def test_everything_comes_back(lost: Path, new: Party) -> None:
    """Models, versions, owners, tombstones; under the new store's own id, and after a restart."""
    running = Running(new)
    own = running.store.store_id
    assert recover(lost, running) == 3
    running.stop()
    with new.open() as store:
        assert serves(store, "a", "b") and writable(store) and store.store_id == own
        assert store.owner_of("gone") == OWNERS[1] and [m.version for m in store.versions("a")] == [1, 2]
        assert all(result.passed for result in store.check())


def test_the_wrapped_key_opens_one_store_and_is_written_anew(lost: Path) -> None:
    """Neither the root nor a key of another configuration is in it; a start undoes what a host did to it."""
    party = Party(lost.parent, OLD, security=NAMED)
    # The anchor is in the memory of another process: this one is new.
    with_recovery, without = (
        Party(lost.parent.with_name(name), OLD, security=security)
        for name, security in (("x", NAMED), ("y", SECURITY))
    )
    key = age.decrypt((lost / FILE).read_bytes(), KEY)
    assert len(key) == 32 and key != party.attester.sealing_root().secret
    for other in (with_recovery, without):
        with other.open() as store:
            assert store.key != key
    with with_recovery.open() as store:
        folder = with_recovery.folder / "store"
        (folder / FILE).write_bytes(b"what a host likes")
        write_wrapped(store, folder, recipient=RECIPIENT, random=os.urandom)
        assert age.decrypt((folder / FILE).read_bytes(), KEY) == store.key
        assert sorted(p.name for p in folder.iterdir()) == ["data", "lock", FILE, "state"]


def test_another_key_opens_nothing(lost: Path, new: Party) -> None:
    """Neither the lost store, nor the new server's challenge."""
    running = Running(new)
    assert code_of(lambda: recover(lost, running, key=OTHER_KEY)) == "recovery_other_key"
    assert running.sent == []
    # A store of the other key's holder, offered to a server that names ours.
    party = Party(lost.parent.with_name("theirs"), OLD)
    with party.open() as store:
        put(store, "forged")
        write_wrapped(store, party.folder / "store", recipient=age.recipient_of(OTHER_KEY), random=os.urandom)
    theirs = party.folder / "store"
    assert code_of(lambda: recover(theirs, running, key=OTHER_KEY)) == "recovery_other_key"
    assert [path for path, _ in running.sent] == ["/v1/evidence"]
    assert running.store.models() == ()
    running.stop()


def test_a_server_that_the_holder_does_not_accept_gets_nothing(lost: Path, new: Party) -> None:
    """Other code, or a policy that names no recovery key: nothing but the question for evidence is sent."""
    running = Running(new)
    stranger = Party(new.folder.with_name("stranger"), OLD, security=NAMED)
    for policy in (policy_of(stranger), policy_of(new, recovery="none")):
        with pytest.raises(AttestationRefused):
            recover(lost, running, policy=policy)
    assert {path for path, _ in running.sent} == {"/v1/evidence"}
    running.stop()


def test_a_server_whose_challenge_is_for_another_key(lost: Path, new: Party) -> None:
    """What it says of itself and what it does must agree."""
    running = Running(new, recipient=age.recipient_of(OTHER_KEY))
    assert code_of(lambda: recover(lost, running)) == "recovery_other_key"
    assert [path for path, _ in running.sent][1:] == ["/v1/recovery/challenge"]
    running.stop()


def test_only_into_a_store_that_never_held_a_model(lost: Path, new: Party) -> None:
    """Nothing is replaced, also not by its own holder, and a tombstone counts."""
    running = Running(new)
    put(running.store, "mine")
    assert code_of(lambda: recover(lost, running)) == "recovery_store_in_use"
    running.store.delete("mine", None)
    assert code_of(lambda: recover(lost, running)) == "recovery_store_in_use"
    running.stop()


def test_who_does_not_hold_the_key_restores_nothing(lost: Path, new: Party) -> None:
    """No challenge, one of another run, one that ended, or one that was altered; and no body is kept for a stranger."""
    running = Running(new)
    challenge = age.decrypt(asyncio.run(running.recovery.challenge()), KEY)

    def restore(proof: bytes) -> str:
        return code_of(lambda: asyncio.run(running.recovery.restore(stream(proof + bytes(100)))))

    assert restore(challenge) == "handover_tampered"  # as far as the record
    for proof in (bytes(32), challenge[:-1] + bytes([challenge[-1] ^ 1]), b"\xff" * 8 + challenge[8:]):
        assert restore(proof) == "recovery_proof_refused"
    running.clock.seconds += CHALLENGE_S
    assert restore(challenge) == "recovery_proof_refused"
    again = Running(Party(new.folder.with_name("again"), NEW, security=NAMED))
    with pytest.raises(AccessRefused):
        asyncio.run(again.recovery.restore(stream(challenge, bytes(100))))
    again.stop()
    running.stop()


@pytest.mark.parametrize("size", [0, 5, 31])
def test_a_body_without_a_record_is_refused(new: Party, size: int) -> None:
    """Shorter than a challenge."""
    running = Running(new)
    assert (
        code_of(lambda: asyncio.run(running.recovery.restore(stream(bytes(size)))))
        == "recovery_file_malformed"
    )
    with pytest.raises((AccessRefused, LimitExceeded)):
        asyncio.run(running.recovery.restore(stream(bytes(MAX_RESTORE + 1))))
    running.stop()


def test_files_that_are_not_there_or_not_right(lost: Path, new: Party) -> None:
    """Nothing is committed; with the files put right, it goes through."""
    victim = sorted((new.folder / "incoming").iterdir())[0]
    data = victim.read_bytes()
    running = Running(new)
    victim.unlink()
    assert code_of(lambda: recover(lost, running)) == "seal_missing"
    assert running.store.models() == ()
    victim.write_bytes(data)
    assert recover(lost, running) == 3
    running.stop()


def test_a_state_file_of_another_store_does_not_open(lost: Path, new: Party) -> None:
    """State and wrapped key go together; every flipped byte of the state file shows."""
    state, wrapped = (lost / "state").read_bytes(), (lost / FILE).read_bytes()
    with new.open():
        other = (new.folder / "store" / "state").read_bytes()
    assert code_of(lambda: open_lost(other, wrapped, KEY)) == "store_other_root"
    for at in range(0, len(state), 97):
        flipped = state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :]
        assert code_of(lambda flipped=flipped: open_lost(flipped, wrapped, KEY)).startswith("store_")  # type: ignore[misc]
    long = age.encrypt(bytes(33), RECIPIENT, random=os.urandom)
    assert code_of(lambda: open_lost(state, long, KEY)) == "recovery_file_malformed"


def test_files_of_the_holder_are_read_or_refused(lost: Path, tmp_path: Path) -> None:
    """No key, no such file, a store that has no wrapped key."""
    identity = tmp_path / "key.txt"
    identity.write_text(f"# mine\n{age.encode_identity(KEY)}\n")
    found, key = read_lost(lost, identity)
    assert len(found.record.names) == 3 and key.private_bytes_raw() == KEY.private_bytes_raw()
    assert code_of(lambda: read_lost(lost, tmp_path / "absent")) == "usage_invalid"
    identity.write_text("AGE-SECRET-KEY-1")
    assert code_of(lambda: read_lost(lost, identity)) == "recovery_key_malformed"
    identity.write_text(age.encode_identity(KEY))
    (lost / FILE).unlink()
    assert code_of(lambda: read_lost(lost, identity)) == "usage_invalid"
