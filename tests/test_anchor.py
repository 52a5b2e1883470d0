"""`anchor`: an older, complete copy of the store is refused; a crash at any point loses nothing acknowledged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from store_worker import anchored, open_store, upload

from strongroom.anchor import NOTHING, Digests, SimulatedAnchor
from strongroom.errors import Failure, SealRefused, Unavailable
from strongroom.store import Store


class Memory(Digests):
    """Digests in memory; fails at the `at`-th save, before or after it took hold."""

    def __init__(self) -> None:
        self.kept = (NOTHING, NOTHING)
        self.at, self.takes_hold = 0, False

    def load(self) -> tuple[str, str]:
        return self.kept

    def save(self, current: str, following: str) -> None:
        self.at -= 1
        if self.at == 0 and not self.takes_hold:
            raise Failure("the anchor's power went", code="tpm_failed")
        self.kept = (current, following)
        if self.at == 0:
            raise Failure("the anchor's power went", code="tpm_failed")


def refused(folder: Path, anchor: Digests) -> str:
    """The code with which this store does not open."""
    with pytest.raises(SealRefused) as caught:
        open_store(folder, anchor)
    return caught.value.code


def test_an_older_copy_of_the_whole_store_is_refused(tmp_path: Path) -> None:
    """A deleted model does not come back; the newest store still opens."""
    folder, kept, anchor = tmp_path / "store", tmp_path / "kept", Memory()
    with open_store(folder, anchor) as store:
        upload(store, "a", b"x" * 3000)
    shutil.copytree(folder, kept)
    with open_store(folder, anchor) as store:
        store.delete("a", None)
    newest = shutil.copytree(folder, tmp_path / "newest")
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    assert refused(folder, anchor) == "store_rolled_back"
    shutil.rmtree(folder)
    shutil.copytree(newest, folder)
    with open_store(folder, anchor) as store:
        assert store.models() == ()


def test_a_store_that_is_gone_is_refused(tmp_path: Path) -> None:
    """An empty folder is as old as it gets."""
    folder, anchor = tmp_path / "store", Memory()
    with open_store(folder, anchor) as store:
        upload(store, "a", b"x")
    shutil.rmtree(folder)
    assert refused(folder, anchor) == "store_rolled_back"


def test_an_anchor_of_another_store_is_refused(tmp_path: Path) -> None:
    """Two stores, two anchors: exchanged, neither opens."""
    one, other = Memory(), Memory()
    open_store(tmp_path / "one", one).close()
    open_store(tmp_path / "other", other).close()
    assert refused(tmp_path / "one", other) == refused(tmp_path / "other", one) == "store_rolled_back"


def test_a_change_that_was_given_up_cannot_be_put_back_later(tmp_path: Path) -> None:
    """What a plain counter would allow: after a crash behind `prepare`, the host keeps the new file, lets the server go
    on from the old one, and then puts the kept one in the place of its successor.
    """
    folder, anchor = tmp_path / "store", Memory()
    with open_store(folder, anchor) as store:
        upload(store, "a", b"a")
        before = shutil.copytree(folder, tmp_path / "before")
        anchor.at, anchor.takes_hold = (
            2,
            False,
        )  # the confirmation fails: "crash" with the new file on the disk
        with pytest.raises(Failure):
            upload(store, "given-up", b"b")
    fork = shutil.copytree(folder, tmp_path / "fork")
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    with open_store(folder, anchor) as store:  # the host chose the old one, which was still in force
        upload(store, "acknowledged", b"c")
    shutil.rmtree(folder)
    shutil.copytree(fork, folder)
    assert refused(folder, anchor) == "store_rolled_back"


@pytest.mark.parametrize("takes_hold", [False, True])
@pytest.mark.parametrize("at", [1, 2])
def test_a_crash_at_each_step_of_a_change_loses_nothing_acknowledged(
    at: int, takes_hold: bool, tmp_path: Path
) -> None:
    """`prepare` and `confirm`, each failing before and after it took hold; then the store is opened again."""
    folder, anchor = tmp_path / "store", Memory()
    with open_store(folder, anchor) as store:
        upload(store, "acknowledged", b"a")
        anchor.at, anchor.takes_hold = at, takes_hold
        with pytest.raises(Failure) as caught:
            upload(store, "in-doubt", b"b")
        assert caught.value.code == ("store_uncertain" if at == 2 else "tpm_failed")
        if at == 2:
            with pytest.raises(Failure) as again:
                upload(store, "later", b"c")
            assert again.value.code == "store_uncertain"
    with open_store(folder, anchor) as store:
        names = {model.name for model in store.models()}
        assert names == ({"acknowledged"} if at == 1 else {"acknowledged", "in-doubt"})
        assert all(result.passed for result in store.check())
        upload(store, "later", b"c")
    assert anchor.kept[0] == anchor.kept[1]


def test_a_strangers_store_does_not_move_the_anchor(tmp_path: Path) -> None:
    """The anchor is asked only once the record has opened."""
    folder, anchor = tmp_path / "store", Memory()
    open_store(folder, anchor).close()
    kept = anchor.kept
    state = folder / "state"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    with pytest.raises(SealRefused) as caught:
        open_store(folder, anchor)
    assert caught.value.code != "store_rolled_back"
    assert anchor.kept == kept


def test_a_second_server_does_not_move_the_anchor(tmp_path: Path) -> None:
    """The store's lock comes first."""
    folder, anchor = tmp_path / "store", Memory()
    with open_store(folder, anchor):
        kept = anchor.kept
        with pytest.raises(Unavailable):
            open_store(folder, anchor)
        assert anchor.kept == kept


# The simulated one


def test_the_simulated_anchor_says_that_it_protects_nothing(tmp_path: Path) -> None:
    """In its file, in capitals."""
    folder = tmp_path / "store"
    open_store(folder, anchored(folder)).close()
    document = json.loads((tmp_path / "store-anchor.json").read_text())
    assert document["note"].startswith("SIMULATED") and "protects nothing" in document["note"]


def test_the_simulated_anchor_catches_an_older_store(tmp_path: Path) -> None:
    """Until whoever put it back puts the file back too."""
    folder = tmp_path / "store"

    def opened() -> Store:
        return open_store(folder, anchored(folder))

    with opened() as store:
        upload(store, "a", b"a")
    kept = shutil.copytree(folder, tmp_path / "kept")
    with opened() as store:
        upload(store, "b", b"b")
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    assert refused(folder, anchored(folder)) == "store_rolled_back"
    (tmp_path / "store-anchor.json").unlink()
    opened().close()
    shutil.rmtree(folder)
    opened().close()  # the store was moved away: it begins anew


@pytest.mark.parametrize("text", ["", "{", "[]", '{"current": 1}', '{"next": "' + "0" * 64 + '"}'])
def test_a_broken_simulated_anchor_is_refused(text: str, tmp_path: Path) -> None:
    """It is not taken for a missing one."""
    folder = tmp_path / "store"
    open_store(folder, anchored(folder)).close()
    (tmp_path / "store-anchor.json").write_text(text)
    assert refused(folder, SimulatedAnchor(tmp_path / "store-anchor.json")) == "store_rolled_back"
