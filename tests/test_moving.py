"""What settings say of hand-over and recovery: the policy that counts is the measured one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from handovers import FAMILY, OLD, Cut, Party, Running, Tap, receive

from strongroom import moving, planned
from strongroom.config import Config, Security
from strongroom.errors import Error, InvalidConfig, SealRefused

RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"


def settings(folder: Path, text: str | None = FAMILY, **security: str) -> Config:
    """Settings with this hand-over policy."""
    path = folder / "handover.toml"
    if text is not None:
        path.write_text(text)
        security["handover_policy"] = str(path)
    return Config(platform="simulated", state_dir=str(folder / "state"), security=Security(**security))


def code_of(action: Callable[[], object]) -> str:
    """The code with which it fails."""
    with pytest.raises(Error) as caught:
        action()
    return caught.value.code


def test_the_policy_and_the_key_are_in_the_attested_configuration(tmp_path: Path) -> None:
    """By the digest of the file, and by the key itself; each changes the digest that seals the store."""
    bare = planned.security_configuration(settings(tmp_path, None))
    assert (bare.handover, bare.recovery) == ("none", "none")
    one = planned.security_configuration(settings(tmp_path))
    assert one.handover == hashlib.sha256(FAMILY.encode()).hexdigest()
    other = planned.security_configuration(settings(tmp_path, FAMILY + "\n"))
    named = planned.security_configuration(settings(tmp_path, None, recovery_recipient=RECIPIENT))
    assert named.recovery == RECIPIENT
    assert len({s.digest() for s in (bare, one, other, named)}) == 4


@pytest.mark.parametrize("recipient", ["age1", RECIPIENT[:-1] + "q", "none", RECIPIENT.upper()])
def test_what_is_no_recovery_key_is_refused(tmp_path: Path, recipient: str) -> None:
    """Before anything is wrapped to it."""
    made = settings(tmp_path, None, recovery_recipient=recipient)
    assert code_of(lambda: planned.security_configuration(made)) == "recovery_recipient_unusable"


def test_policies_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Absent, or longer than a policy."""
    made = settings(tmp_path)
    Path(made.security.handover_policy).unlink()
    assert code_of(lambda: planned.security_configuration(made)) == "handover_policy_unusable"
    long = settings(tmp_path, "#" * (planned.MAX_HANDOVER_POLICY + 1))
    assert code_of(lambda: planned.security_configuration(long)) == "handover_policy_unusable"


def test_a_policy_changed_after_the_measurement_is_refused(tmp_path: Path) -> None:
    """The host swaps the file between measuring and reading: what counts is what was attested."""
    made = settings(tmp_path)
    security = planned.security_configuration(made)
    read = moving.load_policy(made, security=security, simulated=True)
    assert read is not None and read.simulated
    Path(made.security.handover_policy).write_text(FAMILY + "# anybody\n")
    with pytest.raises(SealRefused) as caught:
        moving.load_policy(made, security=security, simulated=True)
    assert caught.value.code == "handover_policy_changed"
    # And one that is set, but was not when it was measured, does not count.
    assert moving.load_policy(made, security=replace(security, handover="none"), simulated=True) is None


@pytest.mark.parametrize(
    ("text", "simulated"),
    [
        (FAMILY, False),
        ('kind = "production"\n' + FAMILY.split("\n", 3)[3], True),
        ("not a policy", True),
        ("", True),
        ("\xff\xfe", True),
    ],
    ids=range(5),
)
def test_policies_of_another_kind_or_none_are_refused(tmp_path: Path, text: str, simulated: bool) -> None:
    """A server on hardware gives nothing to simulation, whatever its policy says."""
    made = settings(tmp_path, text)
    Path(made.security.handover_policy).write_bytes(text.encode("latin-1"))
    security = planned.security_configuration(made)
    with pytest.raises(InvalidConfig) as caught:
        moving.load_policy(made, security=security, simulated=simulated)
    assert caught.value.code == "handover_policy_unusable"


def test_an_errand_needs_a_policy_and_a_token(tmp_path: Path) -> None:
    """Without them nothing is connected."""
    here: Any = SimpleNamespace(simulated=True)
    errand = {"from": "https://127.0.0.1:1", "files": str(tmp_path), "token": str(tmp_path / "token")}

    def run(made: Config) -> None:
        security = planned.security_configuration(made)
        moving.run_errand(
            errand, made, here, security=security, store_path=tmp_path / "store", keyset_of=lambda _: b""
        )

    assert code_of(lambda: run(settings(tmp_path, None))) == "handover_policy_unusable"
    assert code_of(lambda: run(settings(tmp_path))) == "handover_token_unreadable"
    moving.run_errand({}, settings(tmp_path), here, security=planned.security_configuration(settings(tmp_path)),
                      store_path=tmp_path / "store", keyset_of=lambda _: b"")  # fmt: skip


def test_a_source_that_gives_nothing_yet_is_no_reason_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at an end of a hand-over itself, and says `store_moving`: a server that went on would begin an empty store.
    Where all of it is here, and only the last word is missing, serving is right.
    """
    made = settings(tmp_path)
    (tmp_path / "token").write_text("00")
    first, second, third = (Party(tmp_path / name, OLD) for name in ("1", "2", "3"))

    def cut(what: str, data: bytes) -> bytes:
        if what == "done":
            raise Cut
        return data

    def run(taker: Party, giver: Running, tap: Tap) -> None:
        monkeypatch.setattr(moving, "take_over", lambda _receiver: receive(taker, giver, tap=tap))
        here: Any = SimpleNamespace(simulated=True, attester=taker.attester, anchor=taker.anchor)
        moving.run_errand(
            {"from": "https://127.0.0.1:1", "files": str(tmp_path), "token": str(tmp_path / "token")}, made, here,
            security=planned.security_configuration(made), store_path=taker.folder / "store", keyset_of=taker.keyset,
        )  # fmt: skip

    running = Running(first)
    run(second, running, cut)
    running.stop()
    waiting = Running(second)  # has what it took, and no word that the first let go
    assert waiting.store.handing is not None
    assert code_of(lambda: run(third, waiting, lambda _what, data: data)) == "store_moving"
    assert not (third.folder / "store" / "state").exists()
    waiting.stop()


def test_the_token_is_the_operators_alone_and_new_each_time(tmp_path: Path) -> None:
    """Mode 0600, in the state folder; without a policy there is none."""
    party = Party(tmp_path / "state", OLD)
    made = settings(tmp_path)
    security = planned.security_configuration(made)
    with party.open() as store:
        tokens = set()
        for _ in range(2):
            end = moving.source_of(made, store, security=security, simulated=True)
            assert end is not None
            end.close()
            path = made.state_path / moving.TOKEN_FILE
            assert path.stat().st_mode & 0o777 == 0o600
            tokens.add(path.read_text())
        assert len(tokens) == 2
        bare = settings(tmp_path / "..", None)
        nobody = planned.security_configuration(bare)
        assert moving.source_of(bare, store, security=nobody, simulated=True) is None
        assert moving.recovery_of(bare, store, security=nobody, folder=tmp_path) is None
