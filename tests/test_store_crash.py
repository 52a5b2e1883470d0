"""The store stopped at every single call to the file system: by a crash, a power cut, a fault of the disk."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_disk import Crash, FaultyDisk
from store_worker import CHUNK_SIZE, OWNERS, open_store, upload

from strongroom.errors import Error, Failure, Unavailable
from strongroom.forms import _seal as seal_stage
from strongroom.prepared import Making
from strongroom.ring_filling import read_stage
from strongroom.store import Store

TOKENS = {("kept", 1): 11, ("doomed", 1): 12, ("kept", 2): 13, ("new", 1): 14}


def content(token: int) -> bytes:
    """The bytes of a model: three chunks and a bit."""
    return random.Random(token).randbytes(3 * CHUNK_SIZE + token)


def prepare(folder: Path) -> None:
    """A store with two models."""
    with open_store(folder) as store:
        upload(store, "kept", content(TOKENS["kept", 1]))
        upload(store, "doomed", content(TOKENS["doomed", 1]), owner=OWNERS[1])


def changes(store: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """A new version, a deletion, a new name: each with what it does when called."""
    yield "kept 2", lambda: upload(store, "kept", content(TOKENS["kept", 2]))
    yield "doomed gone", lambda: store.delete("doomed", None)
    yield "new 1", lambda: upload(store, "new", content(TOKENS["new", 1]))


def run(folder: Path, done: list[str], started: list[str]) -> None:
    """Opens the store and makes the changes, noting each when it starts and when it was acknowledged."""
    with open_store(folder) as store:
        started.append("opened")
        done.append("opened")
        for name, change in changes(store):
            started.append(name)
            change()
            done.append(name)


def verify(store: Store, done: list[str], started: list[str]) -> None:
    """What was acknowledged is there and right; what was in flight is wholly there or not.

    Nothing else is.
    """
    found = {(model.name, model.version) for model in store.models()}
    must = {("kept", 1)}
    may: set[tuple[str, int]] = set()
    for name, key in (("kept 2", ("kept", 2)), ("new 1", ("new", 1))):
        (must if name in done else may if name in started else set()).add(key)
    if "doomed gone" not in started:
        must.add(("doomed", 1))
    elif "doomed gone" not in done:
        may.add(("doomed", 1))
    assert must <= found <= must | may, (found, must, may)
    for model in store.models():
        assert store.read(model, verify="sha256") == content(TOKENS[model.name, model.version])
    bad = [result for result in store.check() if not result.passed]
    assert not bad, bad


def calls_of(folder: Path) -> int:
    """How many calls to the file system the whole run makes."""
    with FaultyDisk(folder, at=0, error=None) as disk:
        run(folder, [], [])
    return disk.calls


@pytest.mark.slow
def test_a_crash_at_every_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The process stops before call 1, 2, 3 ...: half writes, no clean-up; what it wrote is on the disk."""
    prepare(tmp_path / "count")
    total = calls_of(tmp_path / "count")
    assert total > 60
    outcomes: set[tuple[str, ...]] = set()
    for at in range(1, total + 1):
        folder, done, started = tmp_path / str(at), list[str](), list[str]()
        prepare(folder)
        with FaultyDisk(folder, at=at, error=None) as disk, pytest.raises(Crash):
            run(folder, done, started)
        assert disk.dead
        with open_store(folder) as store:
            verify(store, done, started)
        outcomes.add(tuple(done))
    assert len(outcomes) == 5  # nothing, opened, and after each change


@pytest.mark.slow
def test_a_power_cut_at_every_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """As above, but only what was synced is sure to be on the disk: folders' entries, and files' content.

    The eight ways in which the entries of the two folders, and the content of files, may or may not have
    reached the medium are all tried. A missing or misplaced sync fails here.
    """
    prepare(tmp_path / "count")
    total = calls_of(tmp_path / "count")
    prepare(tmp_path / "s")
    folder = tmp_path / "s"
    pristine = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for at in range(1, total + 2):  # the last: the cut comes when all was done
        done, started = list[str](), list[str]()
        _restore(folder, pristine)
        with FaultyDisk(folder, at=at, error=None) as disk:
            try:
                run(folder, done, started)
            except Crash:
                assert disk.dead
        for state, data, files in itertools.product((True, False), repeat=3):
            folders = frozenset(name for name, synced in (("s", state), ("data", data)) if synced)
            disk.leave(folders_synced=folders, files_synced=files)
            with open_store(folder) as store:
                verify(store, done, started)


@pytest.mark.slow
def test_a_crash_or_power_cut_while_a_store_is_made_leaves_one_or_none(tmp_path: Path) -> None:
    """Whatever remains of a creation, the next start makes a store or finds one.

    An acknowledged one is found.
    """
    folder = tmp_path / "s"
    with FaultyDisk(folder, at=0, error=None) as disk, open_store(folder):
        pass
    assert disk.calls > 10
    for at in range(1, disk.calls + 2):
        store_id = ""
        _restore(folder, None)
        with FaultyDisk(folder, at=at, error=None) as broken:
            try:
                with open_store(folder) as store:
                    store_id = store.store_id
            except Crash:
                assert broken.dead
        for state, data, files in itertools.product((True, False), repeat=3):
            folders = frozenset(name for name, synced in (("s", state), ("data", data)) if synced)
            if folder.exists():
                broken.leave(folders_synced=folders, files_synced=files)
            with open_store(folder) as store:
                assert store_id in ("", store.store_id)
                assert store.models() == () and all(result.passed for result in store.check())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kind", "codes"),
    [
        (errno.ENOSPC, Unavailable, {"disk_full", "store_uncertain"}),
        (errno.EIO, Failure, {"store_io", "store_uncertain"}),
    ],
)
def test_a_fault_at_every_call_has_its_code_and_loses_nothing(
    tmp_path: Path, number: int, kind: type[Error], codes: set[str]
) -> None:
    """One call answers with an error, then the disk works again.

    Our code, the store goes on or says that it cannot.
    """
    prepare(tmp_path / "s")
    folder = tmp_path / "s"
    pristine = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    total = calls_of(folder)
    seen: set[str] = set()
    for at in range(1, total + 1):
        done, started = list[str](), list[str]()
        _restore(folder, pristine)
        with FaultyDisk(folder, at=at, error=number) as disk:
            try:
                store = open_store(folder)
            except Error as exc:
                assert exc.code in codes, (disk.failed, exc.code)
                seen.add(exc.code)
                store = open_store(folder)
            with store:
                for name, change in changes(store):
                    started.append(name)
                    try:
                        change()
                    except Error as exc:
                        assert exc.code in codes, (disk.failed, exc.code)
                        assert isinstance(exc, kind | Failure), disk.failed
                        seen.add(exc.code)
                    else:
                        done.append(name)
                        continue
                    # Not acknowledged: the store still shows what was there before, and every byte of it.
                    if name == "doomed gone":
                        assert store.read(store.get("doomed", 1), verify="sha256") == content(
                            TOKENS["doomed", 1]
                        )
                    else:
                        assert name not in {f"{model.name} {model.version}" for model in store.models()}
        with open_store(folder) as store:
            verify(store, done, started)
    assert seen == codes


# Prepared forms


MAKING = Making(engine="engine/1 options 0", processor="some features 1")
STAGES = {"first": (b"a" * (CHUNK_SIZE + 7),), "second": (b"b" * 40, b"c" * (2 * CHUNK_SIZE))}
"""What its stages hold, for each form that the model gets."""


def put(store: Store, name: str) -> None:
    """Makes a form of the kept model, as `forms` does: files written and synced, then the record."""
    made = []
    for plain in STAGES.get(name, ()):
        sealer, path = store.begin_stage()
        made.append((sealer, path, seal_stage(sealer, path, [plain])))
    store.put_form(store.get("kept", 1), MAKING, tuple(made))


def prepare_forms(folder: Path) -> None:
    """A store with two models, of which one has a form, and left-overs of a form that was never put."""
    prepare(folder)
    with open_store(folder) as store:
        sealer, path = store.begin_stage()
        length = seal_stage(sealer, path, [b"d" * 50])
        store.put_form(store.get("doomed", 1), MAKING, ((sealer, path, length),))
        sealer, path = store.begin_stage()
        seal_stage(sealer, path, [b"left over"])


FORM_CHANGES: tuple[tuple[str, Callable[[Store], object]], ...] = (
    ("first", lambda store: put(store, "first")),
    ("second", lambda store: put(store, "second")),
    ("doomed gone", lambda store: store.delete("doomed", None)),
    ("none", lambda store: put(store, "none")),
)


def run_forms(folder: Path, done: list[str], started: list[str]) -> None:
    """Opens the store, which sweeps the left-overs, and makes the changes."""
    with open_store(folder) as store:
        for name, change in FORM_CHANGES:
            started.append(name)
            change(store)
            done.append(name)


def verify_forms(folder: Path, done: list[str], started: list[str]) -> None:
    """The kept model opens, with the whole form that was acknowledged last or the one in flight; the doomed one does
    with its form, or both are gone; no file is there that the record does not name.
    """
    with open_store(folder) as store:
        kept = store.get("kept", 1)
        assert store.read(kept, verify="sha256") == content(TOKENS["kept", 1])
        last = [name for name in done if name != "doomed gone"][-1:] or ["none"]
        allowed = {last[0], *(name for name in started[len(done) :] if name != "doomed gone")}
        form, found = store.form(kept), ()
        if form is not None:
            with store.stages(kept, form) as stages:
                found = tuple(bytes(read_stage(stage)) for stage in stages)
        assert found in {STAGES.get(name, ()) for name in allowed}, (allowed, len(found))
        gone = not store.versions("doomed")
        assert gone or "doomed gone" not in done
        assert not gone or "doomed gone" in started
        if not gone:
            assert store.read(store.get("doomed", 1), verify="sha256") == content(TOKENS["doomed", 1])
            assert store.verify_form(store.get("doomed", 1)) == 50
        files = {path.name for path in (folder / "data").iterdir()}
        assert files == store._named()
        assert not list(folder.glob("*.tmp"))
        assert all(result.passed for result in store.check())


@pytest.mark.slow
def test_a_crash_or_power_cut_at_every_call_leaves_a_whole_form_or_none(tmp_path: Path) -> None:
    """While a form is put, takes the place of another, goes with its model, is given up, or is swept.

    After a crash what was written is there; after a power cut, in eight ways, what was synced is sure to be.
    """
    folder = tmp_path / "s"
    prepare_forms(folder)
    pristine = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with FaultyDisk(folder, at=0, error=None) as disk:
        run_forms(folder, [], [])
    total = disk.calls
    assert total > 60
    outcomes: set[tuple[str, ...]] = set()
    for at in range(1, total + 2):  # the last: the cut comes when all was done
        done, started = list[str](), list[str]()
        _restore(folder, pristine)
        with FaultyDisk(folder, at=at, error=None) as disk:
            try:
                run_forms(folder, done, started)
            except Crash:
                assert disk.dead
        verify_forms(folder, done, started)  # a crash of the process alone
        for state, data, files in itertools.product((True, False), repeat=3):
            folders = frozenset(name for name, synced in (("s", state), ("data", data)) if synced)
            disk.leave(folders_synced=folders, files_synced=files)
            verify_forms(folder, done, started)
        outcomes.add(tuple(done))
    assert len(outcomes) == 5  # nothing, and after each change


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_at_every_call_leaves_a_whole_form_or_none(tmp_path: Path, number: int) -> None:
    """One call answers with an error, then the disk works again: our code, and the next open finds no stray file."""
    folder = tmp_path / "s"
    prepare_forms(folder)
    pristine = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with FaultyDisk(folder, at=0, error=None) as disk:
        run_forms(folder, [], [])
    for at in range(1, disk.calls + 1):
        done, started = list[str](), list[str]()
        _restore(folder, pristine)
        with FaultyDisk(folder, at=at, error=number) as broken:
            try:
                run_forms(folder, done, started)
            except Error as fault:
                assert fault.code in {"disk_full", "store_io", "store_uncertain"}, (broken.failed, fault.code)
        verify_forms(folder, done, started)


def _restore(folder: Path, files: dict[Path, bytes] | None) -> None:
    """The folder with exactly these files; with None, no folder."""
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    for path, data in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
