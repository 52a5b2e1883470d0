"""The sealed store: what was uploaded comes back, every meddling with its folder is refused, nothing lies in
the clear."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import store_worker
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from store_worker import CHUNK_SIZE, INFO, OWNERS, SECURITY, open_store, root, upload

from strongroom import disk, sealed
from strongroom.anchor import UNANCHORED
from strongroom.errors import (
    CODES,
    Conflict,
    Error,
    Failure,
    LimitExceeded,
    NotFound,
    SealRefused,
    Unavailable,
)
from strongroom.keys import SealingRoot, StoreKeys
from strongroom.state import MAX_STATE_BYTES, Record, open_state, parse_state_file, seal_state
from strongroom.store import ModelVersion, Store, Upload

ALICE, BOB = OWNERS


def payload(token: int, size: int = 5000) -> bytes:
    """Random bytes, always the same for a token: 5 chunks unless told."""
    return random.Random(token).randbytes(size)


def code_of(action: Callable[[], object], kind: type[Error] = SealRefused) -> str:
    """The code with which `action` fails."""
    with pytest.raises(kind) as caught:
        action()
    return caught.value.code


def data_files(folder: Path) -> list[Path]:
    """The data files, sorted by their random names."""
    return sorted((folder / "data").iterdir())


def file_of(store: Store, model: ModelVersion) -> Path:
    """The data file of a model."""
    return store._data / store._entry(model.name, model.version).file


def rewrite(folder: Path, change: Callable[[Record], Record]) -> None:
    """Seals another record into the state file, as only the very same code could.

    For vectors no host could make.
    """
    file = parse_state_file((folder / "state").read_bytes())
    keys = StoreKeys.from_root(root(), security_digest=SECURITY, store_id=bytes.fromhex(file.header.store_id))
    record = change(open_state(file, state_key=keys.state_key))
    data = seal_state(record, header=file.header, state_key=keys.state_key, random=os.urandom)
    (folder / "state").write_bytes(data)


# What comes back


def test_what_was_uploaded_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    """Bytes, digest, facts and metadata, before and after the store is opened again."""
    data = payload(1)
    with open_store(tmp_path / "s") as store:
        model = upload(store, "iris", data)
        assert store.read(model, verify="tags") == data
        store_id = store.store_id
    with open_store(tmp_path / "s") as store:
        assert store.store_id == store_id and len(store_id) == 32
        assert store.models() == (model,)
        again = store.get("iris", None)
        assert again == ModelVersion(
            name="iris",
            version=1,
            owner=ALICE,
            access="private",
            format="onnx",
            sha256=hashlib.sha256(data).hexdigest(),
            canonical_sha256=hashlib.sha256(data).hexdigest(),
            size=5000,
            created=1_800_000_000,
            info=INFO,
        )
        assert store.read(again, verify="sha256") == data
        assert all(result.passed for result in store.check())


@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
def test_sizes_around_a_chunk(tmp_path: Path, size: int) -> None:
    """Also those that fill their last chunk exactly."""
    with open_store(tmp_path) as store:
        assert store.read(upload(store, "m", payload(size, size), piece=333), verify="sha256") == payload(
            size, size
        )


def test_a_second_upload_is_a_new_version_and_the_first_remains(tmp_path: Path) -> None:
    """Versions are immutable; the name alone means the latest."""
    with open_store(tmp_path) as store:
        first, second = upload(store, "m", payload(1)), upload(store, "m", payload(2))
        assert (first.version, second.version) == (1, 2)
        assert store.versions("m") == (first, second)
        assert store.get("m", None) == second and store.get("m", 1) == first
        assert store.read(first, verify="sha256") == payload(1)
        assert store.read(second, verify="sha256") == payload(2)
        assert store.versions("none") == () and store.owner_of("none") is None


def test_deletion_removes_files_and_keys_and_keeps_the_name(tmp_path: Path) -> None:
    """A deleted version is gone after a restart too.

    The name stays its owner's, and no version number comes twice.
    """
    with open_store(tmp_path) as store:
        models = [upload(store, "m", payload(n)) for n in range(3)]
        other = upload(store, "other", payload(9), owner=BOB)
        assert store.delete("m", 2) == (models[1],)
        assert store.versions("m") == (models[0], models[2])
        assert store.delete("m", None) == (models[0], models[2])
        assert store.versions("m") == () and store.owner_of("m") == ALICE
        assert len(data_files(tmp_path)) == 1
        assert code_of(lambda: store.read(models[0], verify="tags"), NotFound) == "not_found"
        assert code_of(lambda: store.get("m", 1), NotFound) == "not_found"
        assert code_of(lambda: store.delete("m", None), NotFound) == "not_found"
    with open_store(tmp_path) as store:
        assert store.models() == (other,) and store.owner_of("m") == ALICE
        taken = code_of(lambda: upload(store, "m", payload(4), owner=BOB), Conflict)
        assert taken == "name_taken"
        assert upload(store, "m", payload(4)).version == 4


def test_deletion_seals_the_record_under_a_fresh_key_without_the_wrapped_key(tmp_path: Path) -> None:
    """What is left on the disk does not open the deleted model, even with its data file kept."""
    with open_store(tmp_path) as store:
        model = upload(store, "m", payload(1))
        wrapped = store._entry("m", 1).wrapped_key
        kept = file_of(store, model).read_bytes()
        before = parse_state_file((tmp_path / "state").read_bytes())
        store.delete("m", None)
        after = parse_state_file((tmp_path / "state").read_bytes())
        assert after.wrapped_key != before.wrapped_key
        assert bytes(after.container[:80]) != bytes(before.container[:80])
        record = open_state(after, state_key=store._keys.state_key)
        assert wrapped.hex() not in repr(record) and record.names[0].entries == ()
        assert kept  # a host can keep it; without the wrapped key it is noise


def test_every_change_counts_the_epoch_and_names_its_predecessor(tmp_path: Path) -> None:
    """The record of epoch n carries the digest of the state file of epoch n - 1."""
    digests = ["0" * 64]
    with open_store(tmp_path) as store:
        for number in range(1, 5):
            data = (tmp_path / "state").read_bytes()
            record = open_state(parse_state_file(data), state_key=store._keys.state_key)
            assert (record.epoch, record.previous) == (number, digests[-1]) == (store.epoch, digests[-1])
            digests.append(hashlib.sha256(data).hexdigest())
            upload(store, "m", payload(number))


def test_an_upload_left_without_commit_leaves_nothing(tmp_path: Path) -> None:
    """Whether the block ends quietly, with an exception or with abort."""
    with open_store(tmp_path) as store:
        with store.begin(name="m", owner=ALICE, access="private", format="onnx", max_bytes=10) as up:
            up.write(b"abc")
            assert up.size == 3 and len(data_files(tmp_path)) == 1
        with pytest.raises(ZeroDivisionError), _begin(store) as up:
            up.write(b"abc")
            raise ZeroDivisionError
        with _begin(store) as up:
            up.write(b"abc")
            up.seal()
            up.abort()
            up.abort()
            assert data_files(tmp_path) == []
            assert (
                code_of(lambda: up.commit(info=INFO, canonical_sha256="0" * 64), Failure) == "internal_error"
            )
        assert data_files(tmp_path) == [] and store.models() == () and store.owner_of("m") is None
        assert store.epoch == 1 and all(result.passed for result in store.check())


def test_an_upload_in_flight_is_no_orphan(tmp_path: Path) -> None:
    """`check` while somebody uploads does not call the half file a stranger's."""
    with open_store(tmp_path) as store, _begin(store) as up:
        up.write(payload(1))
        assert all(result.passed for result in store.check())


def test_the_limit_counts_what_arrives(tmp_path: Path) -> None:
    """One byte more than the limit ends the upload and removes its file; exactly the limit passes."""
    with open_store(tmp_path) as store:
        with _begin(store, max_bytes=5000) as up:
            up.write(payload(1, 5000))
            up.seal()
            up.commit(info=INFO, canonical_sha256="0" * 64)
        with _begin(store, max_bytes=5000) as up:
            up.write(payload(1, 4999))
            assert code_of(lambda: up.write(b"ab"), LimitExceeded) == "upload_too_large"
            assert len(data_files(tmp_path)) == 1
            for call in (lambda: up.write(b""), up.seal, up.read_back):
                assert code_of(call, Failure) == "internal_error"


def test_an_upload_is_used_in_its_order_only(tmp_path: Path) -> None:
    """No commit before seal, no write or second seal after it, no empty model, no unfit metadata."""
    with open_store(tmp_path) as store:
        with _begin(store) as up:
            for call in (up.read_back, lambda: up.commit(info=INFO, canonical_sha256="0" * 64)):
                assert code_of(call, Failure) == "internal_error"
            up.write(b"x")
            up.seal()
            for call in (lambda: up.write(b"x"), up.seal):
                assert code_of(call, Failure) == "internal_error"
            other = replace(INFO, format="xgboost-json")
            assert (
                code_of(lambda: up.commit(info=other, canonical_sha256="0" * 64), Failure) == "internal_error"
            )
            assert up.commit(info=INFO, canonical_sha256="0" * 64).size == 1
        with _begin(store) as up:
            up.write(b"x")
            up.seal()
            unfit = code_of(lambda: up.commit(info=INFO, canonical_sha256="short"), Failure)
            assert unfit == "internal_error"
        with _begin(store) as up:
            assert code_of(up.seal, Error) == "seal_empty"


@pytest.mark.parametrize(
    "facts",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "a\0"},
        {"name": "\ud800"},
        {"name": "é" * 128},
        {"owner": "alice"},
        {"owner": ALICE.upper()},
        {"owner": ALICE + "\n"},
        {"access": "secret"},
        {"format": "pickle"},
    ],
)
def test_an_upload_with_unusable_facts_is_refused_before_its_first_byte(
    tmp_path: Path, facts: dict[str, str]
) -> None:
    """The name, owner, access or format; nothing is made on the disk."""
    good = {"name": "m", "owner": ALICE, "access": "private", "format": "onnx"}
    with open_store(tmp_path) as store:
        assert code_of(lambda: store.begin(**{**good, **facts}, max_bytes=1), Error) == "upload_malformed"
        assert data_files(tmp_path) == []


def test_two_uploads_of_a_new_name_only_the_first_commit_takes_it(tmp_path: Path) -> None:
    """The second was begun while the name was free; at its commit it is not."""
    with open_store(tmp_path) as store, _begin(store, owner=BOB) as late:
        late.write(b"late")
        late.seal()
        upload(store, "m", payload(1))
        taken = code_of(lambda: late.commit(info=INFO, canonical_sha256="0" * 64), Conflict)
        assert taken == "name_taken" and len(data_files(tmp_path)) == 1
        assert [model.owner for model in store.models()] == [ALICE]


def test_anonymous_uploads_have_a_key_of_their_own(tmp_path: Path) -> None:
    """The empty owner is an owner: a principal cannot take its names."""
    with open_store(tmp_path) as store:
        model = upload(store, "m", payload(1), owner="")
        assert store.owner_of("m") == "" and store.read(model, verify="sha256") == payload(1)
        assert code_of(lambda: upload(store, "m", payload(2)), Conflict) == "name_taken"


def test_threads_upload_read_and_delete_at_once(tmp_path: Path) -> None:
    """Commits wait for one another, readers for nobody; afterwards everything adds up."""
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            for turn in range(4):
                data = payload(number * 10 + turn)
                model = upload(store, f"m{number}", data)
                assert store.read(model, verify="sha256") == data
                if turn % 2:
                    store.delete(model.name, model.version)
        except BaseException as exc:  # noqa: BLE001 – shown by the assertion below
            failures.append(exc)

    with open_store(tmp_path) as store:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store.models()) == 8 and store.epoch == 1 + 16 + 8
        assert all(result.passed for result in store.check())


# Who may open it


def test_another_measurement_configuration_class_or_root_is_told_so(tmp_path: Path) -> None:
    """Each has its own code, and nothing in the folder is touched: not even an orphan is swept."""
    with open_store(tmp_path) as store:
        upload(store, "m", payload(1))
    orphan = tmp_path / "data" / ("0" * 32)
    orphan.write_bytes(b"x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def opened(who: SealingRoot, security: bytes = SECURITY) -> str:
        return code_of(
            lambda: Store.open(tmp_path, root=who, security_digest=security, now=lambda: 0, anchor=UNANCHORED)
        )

    assert opened(root(measurement="cd" * 32)) == "store_other_measurement"
    assert opened(root(), hashlib.sha256(b"anonymous_upload = true").digest()) == "store_other_configuration"
    assert opened(root(measurement="cd" * 32), bytes(32)) == "store_other_configuration"
    assert opened(replace(root(), sealing_class="operator")) == "store_other_class"
    assert opened(root(seed=8)) == "store_other_root"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with open_store(tmp_path) as store:
        assert not orphan.exists() and len(store.models()) == 1
        (swept,) = (result for result in store.check() if result.subject == "left-overs")
        assert swept.passed and swept.detail.startswith("1 files ")


@pytest.mark.parametrize("field", ["sealed_for", "security"])
def test_a_header_made_to_fit_the_stranger_does_not_open(tmp_path: Path, field: str) -> None:
    """The host rewrites the clear header so that other code passes the first check.

    Its keys are other ones.
    """
    with open_store(tmp_path):
        pass
    other = root(measurement="cd" * 32) if field == "sealed_for" else root()
    security = bytes(32) if field == "security" else SECURITY
    state = tmp_path / "state"
    old, new = ("ab" * 32, "cd" * 32) if field == "sealed_for" else (SECURITY.hex(), "00" * 32)
    state.write_bytes(state.read_bytes().replace(old.encode(), new.encode()))

    def stranger() -> Store:
        return Store.open(tmp_path, root=other, security_digest=security, now=lambda: 0, anchor=UNANCHORED)

    assert code_of(stranger) == "store_other_root"


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second open is refused, from this process and from another one; after close it is not."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; import store_worker; from pathlib import Path\n"
        "try: store_worker.open_store(Path(sys.argv[1]))\n"
        "except Exception as e: print(e.code)\n"
        "else: print('open')"
    )
    tests = Path(store_worker.__file__).parent
    command = [sys.executable, "-c", script, tmp_path, tests, tests.parent]
    with open_store(tmp_path):
        assert code_of(lambda: open_store(tmp_path), Unavailable) == "store_locked"
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "store_locked\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "open\n"


def test_a_closed_store_changes_and_reads_nothing(tmp_path: Path) -> None:
    """The folder may be another process's by then; an upload still in flight cannot be committed."""
    store = open_store(tmp_path)
    model = upload(store, "m", payload(1))
    with _begin(store, name="n") as up:
        up.write(b"x")
        up.seal()
        store.close()
        store.close()
        assert code_of(lambda: up.commit(info=INFO, canonical_sha256="0" * 64), Unavailable) == "store_closed"
    for call in (
        lambda: _begin(store),
        lambda: store.delete("m", 1),
        lambda: store.read(model, verify="tags"),
    ):
        assert code_of(call, Unavailable) == "store_closed"


# Meddling with the folder


def _two_versions(folder: Path) -> tuple[ModelVersion, ModelVersion]:
    """Two versions of the same size, told apart by keys and ids only, and a model of another owner."""
    with open_store(folder) as store:
        models = upload(store, "m", payload(1)), upload(store, "m", payload(2))
        upload(store, "other", payload(3), owner=BOB)
        return models


def _swap(a: Path, b: Path) -> None:
    left, right = a.read_bytes(), b.read_bytes()
    a.write_bytes(right)
    b.write_bytes(left)


def _patch(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def _exchange_chunks(path: Path, first: int, second: int) -> None:
    content = path.read_bytes()
    step = CHUNK_SIZE + 16
    chunks = [content[80 + n * step : 80 + (n + 1) * step] for n in range(5)]
    chunks[first], chunks[second] = chunks[second], chunks[first]
    path.write_bytes(content[:80] + b"".join(chunks))


def _graft(path: Path, other: Path) -> None:
    """Chunk 1 of another version in the place of this one's."""
    step = CHUNK_SIZE + 16
    _patch(path, 80 + step, other.read_bytes()[80 + step : 80 + 2 * step])


MEDDLING: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "file-swapped-with-another-version": (_swap, "seal_other_file"),
    "file-replaced-by-another-version": (lambda mine, other: shutil.copy(other, mine), "seal_other_file"),
    "chunk-flipped": (lambda mine, other: _patch(mine, 500, b"\0\0"), "seal_chunk"),
    "chunks-reordered": (lambda mine, other: _exchange_chunks(mine, 0, 2), "seal_chunk"),
    "chunk-of-another-version": (_graft, "seal_chunk"),
    "header-of-another-version-kept-chunks": (
        lambda mine, other: _patch(mine, 0, other.read_bytes()[:80]),
        "seal_other_file",
    ),
    "own-header-on-another-versions-chunks": (
        lambda mine, other: mine.write_bytes(mine.read_bytes()[:80] + other.read_bytes()[80:]),
        "seal_chunk",
    ),
    "forged-magic": (lambda mine, other: _patch(mine, 0, b"X"), "seal_header"),
    "forged-version": (lambda mine, other: _patch(mine, 11, b"\2"), "seal_header"),
    "forged-chunk-size": (lambda mine, other: _patch(mine, 12, b"\0\0\x08\0"), "seal_header"),
    "forged-commitment": (lambda mine, other: _patch(mine, 48, bytes(32)), "seal_commitment"),
    "truncated-by-a-byte": (lambda mine, other: mine.write_bytes(mine.read_bytes()[:-1]), "seal_truncated"),
    "truncated-at-a-chunk": (
        lambda mine, other: mine.write_bytes(mine.read_bytes()[: 80 + 2 * (CHUNK_SIZE + 16)]),
        "seal_truncated",
    ),
    "emptied": (lambda mine, other: mine.write_bytes(b""), "seal_truncated"),
    "byte-appended": (lambda mine, other: mine.write_bytes(mine.read_bytes() + b"\0"), "seal_trailing"),
    "removed": (lambda mine, other: mine.unlink(), "seal_missing"),
}


@pytest.mark.parametrize("name", MEDDLING)
def test_a_meddled_data_file_is_refused_with_its_code_and_check_names_it(tmp_path: Path, name: str) -> None:
    """Swapped, reordered, truncated, forged.

    Read refuses with the code, `check` reports it, the others still open.
    """
    meddle, code = MEDDLING[name]
    first, second = _two_versions(tmp_path)
    with open_store(tmp_path) as store:
        meddle(file_of(store, first), file_of(store, second))
        assert code_of(lambda: store.read(first, verify="tags")) == code
        failed = {result.subject: result.code for result in store.check() if not result.passed}
        assert failed.pop("m version 1") == code
        assert set(failed) <= {"m version 2"}  # where files were swapped, both are wrong
        assert store.read(store.get("other", 1), verify="sha256") == payload(3)


def test_a_link_in_the_place_of_a_data_file_is_not_followed(tmp_path: Path) -> None:
    """Even to a good copy of the file."""
    first, _ = _two_versions(tmp_path)
    with open_store(tmp_path) as store:
        path = file_of(store, first)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert code_of(lambda: store.read(first, verify="tags"), Failure) == "store_io"


@pytest.mark.parametrize(
    "field", ["version", "owner", "name", "sha256", "access", "created", "info", "canonical_sha256"]
)
def test_a_record_entry_with_other_facts_does_not_open_its_key(tmp_path: Path, field: str) -> None:
    """Sealed by the right key but with a fact exchanged: the wrapped key is bound to the old one."""
    _two_versions(tmp_path)
    values = {
        "version": 9, "owner": BOB, "name": "n", "sha256": "1" * 64, "access": "public", "created": 5,
        "canonical_sha256": "1" * 64, "info": replace(INFO, feature_names=("x",)),
    }  # fmt: skip

    def change(record: Record) -> Record:
        name = record.names[0]
        entry = name.entries[0]
        entry = replace(entry, model=replace(entry.model, **{field: values[field]}))
        renamed = replace(
            name, name=entry.model.name, owner=entry.model.owner, next_version=10, entries=(entry,)
        )
        return replace(record, names=(renamed, *record.names[1:]))

    rewrite(tmp_path, change)
    with open_store(tmp_path) as store:
        model = store.models()[0]
        # Another owner's key is another wrapping key: that is seen first.
        assert code_of(lambda: store.read(model, verify="tags")) == (
            "seal_commitment" if field == "owner" else "seal_binding"
        )


def test_wrapped_keys_and_files_cannot_be_exchanged_between_versions(tmp_path: Path) -> None:
    """Version 1 with the key, or the file, or both, of version 2: refused at the key."""
    _two_versions(tmp_path)
    kept = (tmp_path / "state").read_bytes()
    for fields in (("wrapped_key",), ("file", "file_id"), ("file", "file_id", "wrapped_key")):

        def change(record: Record, fields: tuple[str, ...] = fields) -> Record:
            name = record.names[0]
            one, two = name.entries
            swapped = replace(one, **{field: getattr(two, field) for field in fields})
            back = replace(two, **{field: getattr(one, field) for field in fields})
            return replace(record, names=(replace(name, entries=(swapped, back)), *record.names[1:]))

        (tmp_path / "state").write_bytes(kept)
        rewrite(tmp_path, change)
        with open_store(tmp_path) as store:
            for model in store.versions("m"):
                assert code_of(lambda model=model: store.read(model, verify="tags")) == "seal_binding"


def test_a_digest_that_is_not_that_of_the_bytes_is_found_by_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify="sha256"` hashes again what the tags already prove.

    Only a fault of our own could be found by it.
    """
    with open_store(tmp_path) as store:
        with _begin(store) as up:
            up.write(payload(1))
            up.seal()
            model = up.commit(info=INFO, canonical_sha256="0" * 64)
        wiped: list[bytearray] = []
        monkeypatch.setattr("strongroom.store.overwrite", wiped.append)
        assert store.read(model, verify="tags") == payload(1)
        assert code_of(lambda: store.read(model, verify="sha256")) == "seal_digest"
        assert len(wiped) == 1


def test_what_runs_takes_the_place_of_what_arrived(tmp_path: Path) -> None:
    """One file stays, under a name and key of its own; the record keeps size and digest of both forms."""
    canonical = payload(2, 7000)
    with open_store(tmp_path) as store:
        with _begin(store) as up:
            up.write(payload(1))
            up.seal()
            (first,) = data_files(tmp_path)
            head = first.read_bytes()[:80]
            assert up.read_back() == payload(1)
            up.rewrite(canonical)
            assert up.read_back() == canonical
            model = up.commit(info=INFO, canonical_sha256=hashlib.sha256(canonical).hexdigest())
        (second,) = data_files(tmp_path)
        assert second.name != first.name and second.read_bytes()[:80] != head
        assert (model.size, model.sha256) == (5000, hashlib.sha256(payload(1)).hexdigest())
        assert all(result.passed for result in store.check())
    with open_store(tmp_path) as store:
        assert store.read(store.get("m", 1), verify="sha256") == canonical


def test_a_rewritten_upload_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """Neither the first file nor the second."""
    with open_store(tmp_path) as store:
        with _begin(store) as up:
            assert code_of(lambda: up.rewrite(b"x"), Failure) == "internal_error"
        with _begin(store) as up:
            up.write(payload(1))
            up.seal()
            up.rewrite(payload(2))
        assert data_files(tmp_path) == []
        assert all(result.passed for result in store.check())


@pytest.mark.parametrize(
    ("meddle", "code"),
    [
        (lambda state: state.write_bytes(b""), "store_malformed"),
        (lambda state: state.write_bytes(state.read_bytes()[:-1]), "store_malformed"),
        (lambda state: os.truncate(state, MAX_STATE_BYTES + 1), "store_malformed"),
        (lambda state: _patch(state, len(state.read_bytes()) - 20, b"\0\0"), "store_tampered"),
        (lambda state: state.unlink(), "store_state_missing"),
    ],
)
def test_a_meddled_state_file_is_refused_and_nothing_is_begun_anew(
    tmp_path: Path, meddle: Callable[[Path], object], code: str
) -> None:
    """Emptied, cut, oversized, flipped or removed.

    Refused, the data files stay, and a running store reports it.
    """
    _two_versions(tmp_path)
    with open_store(tmp_path) as store:
        meddle(tmp_path / "state")
        result = store.check()[0]
        assert not result.passed
        assert result.code in ("store_tampered", "store_malformed", "store_state_missing")
    for _ in range(2):
        assert code_of(lambda: open_store(tmp_path)) == code
    assert len(data_files(tmp_path)) == 3


def test_left_overs_are_swept_and_foreign_files_are_not(tmp_path: Path) -> None:
    """Data files that nobody names and temporary state files go.

    What does not look like ours stays and is reported.
    """
    first, _ = _two_versions(tmp_path)
    ours = [tmp_path / "data" / ("f" * 32), tmp_path / f"state.{'0' * 32}.tmp"]
    foreign = [tmp_path / "data" / "notes.txt", tmp_path / "state.bak"]
    for path in (*ours, *foreign):
        path.write_bytes(b"left over")
    with open_store(tmp_path) as store:
        assert not any(path.exists() for path in ours) and all(path.exists() for path in foreign)
        assert store.read(first, verify="sha256") == payload(1)
        failed = [result for result in store.check() if not result.passed]
        assert [result.code for result in failed] == ["store_orphan"]
        assert "notes.txt" in failed[0].detail


def test_an_older_copy_of_the_whole_folder_is_accepted(tmp_path: Path) -> None:
    """What this store does not claim (docs/spec/sealed.md §7.2).

    Without a platform counter a host can go back.
    """
    with open_store(tmp_path / "s") as store:
        upload(store, "m", payload(1))
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    with open_store(tmp_path / "s") as store:
        store.delete("m", None)
    with open_store(tmp_path / "old") as store:
        assert store.read(store.get("m", 1), verify="sha256") == payload(1)


def test_an_older_state_file_alone_does_not_bring_a_deleted_model_back(tmp_path: Path) -> None:
    """The record names the model again, but its file is gone."""
    with open_store(tmp_path) as store:
        upload(store, "m", payload(1))
        old = (tmp_path / "state").read_bytes()
        store.delete("m", None)
    (tmp_path / "state").write_bytes(old)
    with open_store(tmp_path) as store:
        assert code_of(lambda: store.read(store.get("m", 1), verify="tags")) == "seal_missing"


def test_a_file_deleted_while_it_is_being_opened_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes too late is told that the model is gone, not that the store is damaged."""
    with open_store(tmp_path) as store:
        model = upload(store, "m", payload(1))
        real = disk.open_to_read

        def late(path: Path) -> int:
            monkeypatch.setattr(disk, "open_to_read", real)
            store.delete("m", None)
            return real(path)

        monkeypatch.setattr(disk, "open_to_read", late)
        assert code_of(lambda: store.read(model, verify="tags"), NotFound) == "not_found"


# What the host sees


def test_no_byte_of_model_or_metadata_lies_in_the_clear(tmp_path: Path) -> None:
    """Canaries in the model, its name, owner, tensor names and digests.

    In no file of the folder, in no encoding.
    """
    canary = b"CANARY-in-the-model-weights-0123456789"
    data = (canary + bytes(100)) * 200
    info = replace(
        INFO, feature_names=("canary-feature-name",), notes=(("canary-note", "canary-note-value"),)
    )
    with open_store(tmp_path) as store:
        with store.begin(
            name="canary-model-name", owner=ALICE, access="private", format="onnx", max_bytes=1 << 20
        ) as up:
            for start in range(0, len(data), 999):
                up.write(data[start : start + 999])
            up.seal()
            _no_trace(tmp_path, canary)  # also while the upload is on its way
            up.read_back()
            model = up.commit(info=info, canonical_sha256="ca" * 32)
        store.read(model, verify="tags")
    with open_store(tmp_path) as store:
        store.check()
        words = (
            b"canary-model-name",
            b"canary-feature-name",
            b"canary-note",
            ALICE.encode(),
            b"onnx",
            b"private",
        )
        digests = (bytes.fromhex(model.sha256), bytes.fromhex("ca" * 32))
        _no_trace(tmp_path, canary, *words, *digests)
        store.delete("canary-model-name", None)
    _no_trace(tmp_path, canary, *words, *digests)


def _no_trace(folder: Path, *patterns: bytes) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes() + os.fsencode(path.relative_to(folder))
        for pattern in patterns:
            forms = {pattern, pattern.hex().encode(), pattern.hex().upper().encode()}
            # base64 at each of the three alignments, without the characters that depend on the neighbours
            forms |= {base64.b64encode(bytes(shift) + pattern)[4:-4] for shift in range(3)}
            forms |= {bytes(reversed(pattern)), pattern.decode("latin-1").encode("utf-16-le")}
            assert not any(form in content for form in forms if len(form) >= 4), (path.name, pattern)


def test_files_are_for_their_owner_only_and_their_names_say_nothing(tmp_path: Path) -> None:
    """0600, folders 0700, and data files under random names that do not repeat when a model is uploaded
    again."""
    old = os.umask(0)
    try:
        with open_store(tmp_path / "s") as store:
            upload(store, "m", payload(1))
            upload(store, "m", payload(1))
    finally:
        os.umask(old)
    for path in (tmp_path / "s", *(tmp_path / "s").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    names = [path.name for path in data_files(tmp_path / "s")]
    assert len(set(names)) == 2 and all(len(name) == 32 for name in names)


def test_a_retried_upload_uses_no_key_nonce_or_file_id_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, aborted half way, and repeated twice: no (key, nonce) pair comes twice in the store.

    With a counter for a nonce a repeated key would give the XOR of two plaintexts to whoever kept both files.
    """
    used: list[tuple[bytes, bytes]] = []

    class Recording:
        def __init__(self, key: bytes) -> None:
            self.key, self.real = key, AESGCM(key)
            self.decrypt, self.decrypt_into = self.real.decrypt, self.real.decrypt_into

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            used.append((self.key, nonce))
            return self.real.encrypt(nonce, data, associated)

    monkeypatch.setattr(sealed, "AESGCM", Recording)
    headers: list[bytes] = []
    with open_store(tmp_path) as store:
        with _begin(store) as up:
            up.write(payload(1))
            headers.append(data_files(tmp_path)[0].read_bytes())
        for _ in range(2):
            model = upload(store, "m", payload(1))
            headers.append(file_of(store, model).read_bytes())
    assert len({header[16:48] for header in headers}) == len({header[48:80] for header in headers}) == 3
    assert len({header[80:200] for header in headers}) == 3
    assert len(used) == len(set(used)) > 15


# The disk itself


def test_a_disk_without_folder_sync_or_flock_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library OS lacks both: the store falls back, and cleans its lock up."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(22, "Invalid argument")
        real(fd)

    def flock(fd: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("fcntl.flock", flock)
    with open_store(tmp_path) as store:
        model = upload(store, "m", payload(1))
        assert code_of(lambda: open_store(tmp_path), Unavailable) == "store_locked"
    with open_store(tmp_path) as store:
        assert store.read(model, verify="sha256") == payload(1)
    assert not (tmp_path / "lock.pid").exists()


def test_a_fault_at_the_commit_itself_stops_changes_until_the_store_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync of the folder nobody knows which record a crash would bring back.

    No file is removed.
    """
    with open_store(tmp_path) as store:
        model = upload(store, "m", payload(1))
        real = disk.sync_folder

        def failing(path: Path) -> None:
            if path == tmp_path:
                raise OSError(5, "Input/output error")
            real(path)

        monkeypatch.setattr(disk, "sync_folder", failing)
        assert code_of(lambda: upload(store, "m", payload(2)), Failure) == "store_uncertain"
        assert len(data_files(tmp_path)) == 2
        monkeypatch.setattr(disk, "sync_folder", real)
        for call in (lambda: store.delete("m", 1), lambda: _begin(store), lambda: upload(store, "n", b"x")):
            assert code_of(call, Failure) == "store_uncertain"
        assert store.models() == (model,) and store.read(model, verify="sha256") == payload(1)
    with open_store(tmp_path) as store:
        assert [m.version for m in store.models()] == [1, 2]  # here the rename had reached the disk
        assert store.read(store.get("m", 2), verify="sha256") == payload(2)
        assert all(result.passed for result in store.check())


def test_an_interrupt_right_behind_the_commit_does_not_remove_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record names the file by then; giving the upload up must leave it."""
    with open_store(tmp_path) as store:
        real = Store._publish

        def interrupted(self: Store, *arguments: object) -> ModelVersion:
            real(self, *arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(Store, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            upload(store, "m", payload(1))
        monkeypatch.undo()
        assert store.read(store.get("m", 1), verify="sha256") == payload(1)
        assert all(result.passed for result in store.check())


def test_a_record_that_is_full_refuses_the_upload_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest record is a limit like any other: refused before the commit, nothing left behind."""
    with open_store(tmp_path) as store:
        upload(store, "m", payload(1))
        monkeypatch.setattr("strongroom.state.MAX_RECORD_BYTES", 1500)
        assert code_of(lambda: upload(store, "m", payload(2)), LimitExceeded) == "store_record_full"
        assert len(data_files(tmp_path)) == 1 and store.epoch == 2
        store.delete("m", None)
        assert upload(store, "m", payload(3)).version == 2


def test_every_code_of_the_specification_exists() -> None:
    """docs/spec/sealed.md §8 names codes of the error table only, and all of ours."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "spec" / "sealed.md").read_text(encoding="utf-8")
    table = text[text.index("## 8") :]
    named = {
        word for line in table.splitlines() if line.startswith("| `") for word in _codes(line.split("|")[1])
    }
    assert named <= set(CODES)
    ours = {code for code in CODES if code.startswith(("seal_", "disk_")) and code != "seal_refused"}
    assert ours <= named


def _codes(cell: str) -> list[str]:
    return [word.strip("` ") for word in cell.split(",")]


def _begin(store: Store, *, name: str = "m", owner: str = ALICE, max_bytes: int = 1 << 20) -> Upload:
    return store.begin(name=name, owner=owner, access="private", format="onnx", max_bytes=max_bytes)
