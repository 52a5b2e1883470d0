"""The file system as the store uses it.

Modes, whole writes, faults with our codes, and the lock with and without flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom import disk
from strongroom.errors import Failure, SealRefused, Unavailable


def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    """0600 and 0700, also for folders made above the store's own, and whatever the umask would allow."""
    old = os.umask(0)
    try:
        disk.make_folder(tmp_path / "a" / "b")
        disk.close(disk.create(tmp_path / "a" / "b" / "file"))
    finally:
        os.umask(old)
    for path, mode in (("a", 0o700), ("a/b", 0o700), ("a/b/file", 0o600)):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode
    disk.make_folder(tmp_path / "a")  # there already: nothing to do


def test_a_planted_file_or_link_is_not_written_through(tmp_path: Path) -> None:
    """The host owns the folder: a name that exists is not taken, and a symbolic link is not followed."""
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("target", "link", "dangling"):
        with pytest.raises(FileExistsError):
            disk.create(tmp_path / name)
    with pytest.raises(OSError, match="symbolic links"):
        disk.open_to_read(tmp_path / "link")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_write_taken_in_parts_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.write may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    fd = disk.create(tmp_path / "file")
    disk.write(fd, b"0123456789")
    disk.close(fd)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.parametrize("positional", [True, False])
def test_reads_are_positional(tmp_path: Path, positional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With preadv and without (macOS before 11): at the offset, short at the end, nothing behind it."""
    if not positional:
        monkeypatch.delattr(os, "preadv", raising=False)
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = disk.open_to_read(tmp_path / "file")
    buffer = bytearray(4)
    assert disk.read_at(fd, 3, memoryview(buffer)) == 4 and buffer == b"3456"
    assert disk.read_at(fd, 8, memoryview(buffer)) == 2 and buffer == b"8956"
    assert disk.read_at(fd, 10, memoryview(buffer)) == 0
    assert disk.size(fd) == 10
    disk.close(fd)


def test_a_small_file_is_read_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent is None, larger than the limit is refused unread, and one that shrinks gives what there is."""
    assert disk.read_small(tmp_path / "file", limit=10) is None
    (tmp_path / "file").write_bytes(b"0123456789")
    assert disk.read_small(tmp_path / "file", limit=10) == b"0123456789"
    with pytest.raises(SealRefused) as caught:
        disk.read_small(tmp_path / "file", limit=9)
    assert caught.value.code == "store_malformed"
    monkeypatch.setattr(disk, "size", lambda fd: 12)
    assert disk.read_small(tmp_path / "file", limit=12) == b"0123456789"


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, Unavailable, "disk_full"),
        (errno.EDQUOT, Unavailable, "disk_full"),
        (errno.EFBIG, Unavailable, "disk_full"),
        (errno.EIO, Failure, "store_io"),
        (errno.EACCES, Failure, "store_io"),
        (errno.EROFS, Failure, "store_io"),
        (123456, Failure, "store_io"),
        (None, Failure, "store_io"),
    ],
)
def test_faults_get_our_codes_and_none_of_the_systems_words(
    number: int | None, kind: type[Exception], code: str
) -> None:
    """A full disk can be mended and tried again, the rest is ours.

    No path and no foreign text in the message.
    """
    with pytest.raises(kind) as caught, disk.faults("write a data file"):
        raise OSError(number, "text of the system", "/secret/path")
    assert caught.value.code == code
    assert "secret" not in str(caught.value) and "text of" not in str(caught.value)


def test_a_platform_without_the_sync_of_folders_is_tolerated_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL means "not here" (a library OS, some network file systems); EIO means that the disk failed."""

    def failing(number: int) -> None:
        def fsync(fd: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EINVAL)
    disk.sync_folder(tmp_path)
    failing(errno.EIO)
    with pytest.raises(OSError, match="error"):
        disk.sync_folder(tmp_path)


def test_macos_syncs_through_the_drives_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where F_FULLFSYNC exists it is used: fsync on macOS does not reach the medium."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append((fd, command)))
    disk.sync(99)
    assert calls == [(99, 51)]


@pytest.fixture(params=["flock", "pid file"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways of locking: the second is what runs where flock is missing."""
    if request.param == "pid file":

        def flock(fd: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)
    yield request.param


def test_a_folder_is_locked_once_at_a_time(tmp_path: Path, locking: str) -> None:
    """The second is refused with its code, until the first lets go."""
    first = disk.Guard(tmp_path)
    with pytest.raises(Unavailable) as caught:
        disk.Guard(tmp_path)
    assert caught.value.code == "store_locked"
    first.release()
    first.release()  # twice does no harm
    disk.Guard(tmp_path).release()
    assert not (tmp_path / "lock.pid").exists()


@pytest.mark.parametrize("kind", ["dead", "own number"])
def test_the_lock_of_a_process_that_died_is_taken_over(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves its file; a library OS gives every run the same process id."""
    monkeypatch.setattr(fcntl, "flock", _not_here)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    number = process.pid if kind == "dead" else os.getpid()
    (tmp_path / "lock.pid").write_text(str(number))
    guard = disk.Guard(tmp_path)
    assert (tmp_path / "lock.pid").read_text() == str(os.getpid())
    guard.release()


@pytest.mark.parametrize("content", ["parent", "1", "not a number", "", "9" * 30, "-5", "1" * 65])
def test_a_lock_that_may_be_held_is_not_taken_over(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living process, or a file nobody understands: refused, and the file stays."""
    monkeypatch.setattr(fcntl, "flock", _not_here)
    text = str(os.getppid()) if content == "parent" else content
    (tmp_path / "lock.pid").write_text(text)
    with pytest.raises(Unavailable) as caught:
        disk.Guard(tmp_path)
    assert caught.value.code == "store_locked"
    assert (tmp_path / "lock.pid").read_text() == text


def test_a_lock_that_fails_for_another_reason_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO from flock is not taken for "there is no flock here"."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        disk.Guard(tmp_path)
    assert not (tmp_path / "lock.pid").exists()


def _not_here(fd: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


# Second names


def _bring(tmp_path: Path) -> Path:
    disk.bring(tmp_path / "source", tmp_path / "temporary", tmp_path / "target")
    return tmp_path / "target"


def test_a_file_gets_a_second_name(tmp_path: Path) -> None:
    """No byte of it is copied; one that is there already stays as it is."""
    (tmp_path / "source").write_bytes(b"sealed")
    target = _bring(tmp_path)
    assert target.samefile(tmp_path / "source")
    (tmp_path / "source").unlink()
    assert _bring(tmp_path).read_bytes() == b"sealed"


@pytest.mark.parametrize(
    "fault", [OSError(errno.EXDEV, "another disk"), OSError(errno.EPERM, "no links"), NotImplementedError()]
)
def test_what_cannot_have_a_second_name_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Another disk, a file system without links, a system whose links follow links: a whole copy of its own."""

    def cannot(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(os, "link", cannot)
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "source").write_bytes(data)
    target = _bring(tmp_path)
    assert target.read_bytes() == data and not target.samefile(tmp_path / "source")
    assert not (tmp_path / "temporary").exists()


def test_a_file_that_is_not_there_is_no_reason_for_a_copy(tmp_path: Path) -> None:
    """The caller learns of it; nothing appears."""
    with pytest.raises(FileNotFoundError):
        _bring(tmp_path)
    assert list(tmp_path.iterdir()) == []
