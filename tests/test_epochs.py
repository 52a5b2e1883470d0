"""Key epochs: verified before use, kept for each connection's whole life."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from plane import MEASUREMENT, ROOT_KEY

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))

import fake_aws
from fake_amd import Machine

from strongroom.attest.evidence import Evidence
from strongroom.attest.keyset import SecurityConfiguration, keyset_digest, parse_keyset
from strongroom.attest.releases import PAYLOAD_TYPE
from strongroom.attest.verifiers import PINS
from strongroom.attester import SimulatedAttester, root_digest
from strongroom.epochs import Epochs, Origin
from strongroom.errors import Failure

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECURITY = SecurityConfiguration(
    sealing="simulated",
    host_excluded=False,
    isolation="in_process",
    sandbox=(),
    admission="structural",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)
ORIGIN = Origin(
    attester=SimulatedAttester(ROOT_KEY, MEASUREMENT),
    roots=(root_digest(ROOT_KEY),),
    security=SECURITY,
    store_id="0" * 32,
    hosts=("localhost", "127.0.0.1"),
    lifetime_s=43_200,
)


class Clock:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_the_keyset_names_the_keys_the_store_and_the_configuration() -> None:
    """What clients receive is what this server was composed with, and ends when the epoch does."""
    epoch = Epochs(ORIGIN, now=Clock()).current
    keyset = parse_keyset(epoch.keyset_bytes)
    assert epoch.keyset_digest == keyset_digest(epoch.keyset_bytes)
    assert (keyset.store_id, keyset.security) == (ORIGIN.store_id, SECURITY)
    assert keyset.not_after == epoch.not_after == int(START.timestamp()) + ORIGIN.lifetime_s
    assert [key.role for key in keyset.keys] == ["tls", "receipt"]


def test_a_rotation_changes_all_keys_and_leaves_old_connections_theirs() -> None:
    """New connections get the new epoch; the old context still leads to the old one."""
    clock = Clock()
    epochs = Epochs(ORIGIN, now=clock)
    old_context, old = epochs._listener.current, epochs.current
    clock.now += timedelta(hours=11)
    epochs.rotate()
    assert epochs.current is not old
    assert epochs.of(old_context) is old
    assert epochs.of(epochs._listener.current) is epochs.current
    before, after = parse_keyset(old.keyset_bytes), parse_keyset(epochs.current.keyset_bytes)
    assert not {key.spki for key in before.keys} & {key.spki for key in after.keys}


def test_a_rotation_is_due_an_hour_before_the_end_or_at_three_quarters() -> None:
    """Clients rely on a verdict for up to an hour, so the next keys are there by then."""
    clock = Clock()
    epochs = Epochs(ORIGIN, now=clock)
    assert epochs.seconds_left() == 43_200 - 3600
    clock.now += timedelta(hours=12)
    assert epochs.seconds_left() < 0
    assert Epochs(replace(ORIGIN, lifetime_s=100), now=clock).seconds_left() == 75


def test_an_epoch_is_forgotten_with_its_last_connection() -> None:
    """Nothing but connections holds an old epoch's keys."""
    import gc

    epochs = Epochs(ORIGIN, now=Clock())
    epochs.rotate()
    epochs.rotate()
    gc.collect()
    assert len(epochs._by_context) == 1


class Lying:
    """An attester whose evidence is not what the server takes it for."""

    format = "sim"

    def __init__(self, inner: SimulatedAttester, *, measurement: str, spoil: bool = False) -> None:
        self._inner = inner
        self.measurement = measurement
        self._spoil = spoil

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        made = self._inner.evidence(report_data, now=now)
        return replace(made, data=made.data[:-20] + b"A" * 20) if self._spoil else made

    def sealing_root(self) -> Any:
        return self._inner.sealing_root()


@pytest.mark.parametrize(
    "origin",
    [
        replace(ORIGIN, attester=Lying(SimulatedAttester(ROOT_KEY, "cd" * 32), measurement=MEASUREMENT)),
        replace(ORIGIN, roots=("00" * 32,)),
        replace(
            ORIGIN,
            attester=Lying(SimulatedAttester(ROOT_KEY, MEASUREMENT), measurement=MEASUREMENT, spoil=True),
        ),
    ],
    ids=["other code", "other root", "evidence that does not verify"],
)
def test_a_server_whose_own_evidence_is_wrong_does_not_start(origin: Origin) -> None:
    """It verifies itself as a client would, and compares with what it measured."""
    with pytest.raises(Failure) as caught:
        Epochs(origin, now=Clock())
    assert caught.value.code == "start_refused"


def test_a_rotation_that_fails_leaves_the_old_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients keep what they verified."""
    epochs = Epochs(ORIGIN, now=Clock())
    old = epochs.current
    spoiled = Lying(SimulatedAttester(ROOT_KEY, MEASUREMENT), measurement=MEASUREMENT, spoil=True)
    monkeypatch.setattr(epochs, "_origin", replace(ORIGIN, attester=spoiled))
    with pytest.raises(Failure):
        epochs.rotate()
    assert epochs.current is old


def test_a_rotation_without_a_descriptor_left_is_a_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds all descriptors at that very moment: the old epoch goes on and the caller may try again."""
    epochs = Epochs(ORIGIN, now=Clock())
    old = epochs.current

    def exhausted(_identity: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("strongroom.epochs.server_context", exhausted)
        with pytest.raises(Failure) as caught:
            epochs.rotate()
    assert caught.value.code == "start_refused"
    assert epochs.current is old
    epochs.rotate()
    assert epochs.current is not old


class OnSnp:
    """An attester on SEV-SNP, as far as its evidence goes; `stapled` comes with every report."""

    format = "snp"
    measurement = "ab" * 48

    def __init__(self, *stapled: tuple[str, bytes]) -> None:
        self._stapled = stapled

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        return Evidence("snp", Machine(fields={0x50: report_data}).report, self._stapled)

    def sealing_root(self) -> Any:
        raise AssertionError("nothing is sealed here")


def test_a_manifest_beside_evidence_is_nothing_to_verify_it_with() -> None:
    """Without the vendor's documents clients verify, and the server starts, also where a release manifest is stapled;
    with documents that do not verify it does not start.
    """
    manifest = b'{"payloadType":"' + PAYLOAD_TYPE.encode() + b'"}'
    for stapled in ((), (("release", manifest),)):
        assert Epochs(replace(ORIGIN, attester=OnSnp(*stapled)), now=Clock()).current
    with pytest.raises(Failure):
        Epochs(replace(ORIGIN, attester=OnSnp(("leaf", Machine().leaf_der))), now=Clock())


class OnNitro:
    """An attester in a Nitro enclave of the test hypervisor's; `forgets`: it leaves the nonce out."""

    format = "nitro"

    def __init__(self, *, measurement: str = fake_aws.PCR0.hex(), forgets: bool = False) -> None:
        self.measurement, self._forgets = measurement, forgets

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        shown = None if self._forgets or not nonce else nonce
        return Evidence("nitro", fake_aws.mint(user_data=report_data, nonce=shown), ())

    def sealing_root(self) -> Any:
        raise AssertionError("nothing is sealed here")


def test_a_nitro_document_has_its_chain_inside_and_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be stapled. Another PCR0 than the attester's, another root, or a document without the nonce that
    was asked for is no start.
    """
    security = replace(SECURITY, sealing="operator", host_excluded=True, admission="strict")
    origin = replace(ORIGIN, attester=OnNitro(), roots=(fake_aws.ROOT,), security=security)
    with pytest.raises(Failure, match="root_not_accepted"):  # AWS's own is pinned
        Epochs(origin, now=Clock())
    monkeypatch.setitem(PINS, "nitro", (fake_aws.ROOT,))
    assert Epochs(origin, now=Clock()).current
    for wrong in (OnNitro(measurement="ab" * 48), OnNitro(forgets=True)):
        with pytest.raises(Failure):
            Epochs(replace(origin, attester=wrong), now=Clock())
