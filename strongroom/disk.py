"""The file system as the store uses it: durable writes, positional reads, one lock (`docs/spec/sealed.md`).

Rules
  - Every call of the store to the file system goes through this module, so a test can make each of them
    fail in turn.
  - The disk belongs to the host. Files are made with O_EXCL and opened with O_NOFOLLOW, and nothing that is
    read is believed before it has authenticated.
  - A full disk is `Unavailable` (code `disk_full`), any other fault `Failure` (code `store_io`); neither
    message repeats the operating system's text.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from strongroom.errors import Failure, SealRefused, Unavailable

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_HERE: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR})
"""What a library OS or a network file system answers where it lacks `flock` or the sync of a folder."""


@contextlib.contextmanager
def faults(doing: str) -> Iterator[None]:
    """Turns the operating system's errors into ours; `doing` names the attempt ("write a data file").

    Raises:
        Unavailable: the disk, a quota or the largest file size is used up (code `disk_full`).
        Failure: anything else (code `store_io`).
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_SPACE:
            message = f"could not {doing}: the disk is full"
            raise Unavailable(message, code="disk_full", retry_after_s=60) from exc
        raise Failure(f"could not {doing}: {fault_name(exc)}", code="store_io") from exc


def fault_name(error: OSError) -> str:
    """The symbol of an operating system error, like ENOENT."""
    return errno.errorcode.get(error.errno or 0, "an unknown fault")


def make_folder(path: Path) -> None:
    """Makes a folder that only its owner may enter, and those above it, where there are none."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_folder(path.parent)


def create(path: Path) -> int:
    """Makes a new file that only its owner may read, and opens it to write and read."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def open_to_read(path: Path) -> int:
    """Opens an existing file, which must not be a symbolic link."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def close(fd: int) -> None:
    """Closes a file. An error here means nothing: whatever must survive was synced before."""
    with contextlib.suppress(OSError):
        os.close(fd)


def write(fd: int, data: bytes) -> None:
    """Writes all of `data`; the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def size(fd: int) -> int:
    """Bytes in an open file."""
    return os.fstat(fd).st_size


def check_room(path: Path, *, keep: int) -> None:
    """Returns while the file system of `path` has more than `keep` bytes free for this user; 0 asks nothing.

    Where the system does not tell (a library OS), nothing is refused before the disk itself refuses.

    Raises:
        Unavailable: it has not (code `disk_full`).
    """
    if not keep:
        return
    try:
        found = os.statvfs(path)
    except OSError:
        return
    if found.f_bavail * found.f_frsize <= keep:
        raise Unavailable(f"uploads leave {keep} bytes of the disk free", code="disk_full", retry_after_s=60)


def read_at(fd: int, offset: int, buffer: memoryview) -> int:
    """Fills `buffer` from `offset` on, as far as the file goes; returns the bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = os.pread(fd, len(buffer), offset)  # macOS before 11
    buffer[: len(data)] = data
    return len(data)


def read_small(path: Path, *, limit: int) -> bytes | None:
    """A whole file of at most `limit` bytes, or None where there is none.

    Raises:
        SealRefused: it is larger (code `store_malformed`): a host may put anything there.
    """
    try:
        fd = open_to_read(path)
    except FileNotFoundError:
        return None
    try:
        length = size(fd)
        if length > limit:
            raise SealRefused(
                f"a file of at most {limit} bytes expected, got {length}", code="store_malformed"
            )
        data = bytearray(length)
        done = 0
        while done < length:
            got = read_at(fd, done, memoryview(data)[done:])
            if got == 0:
                break  # it shrank: what came will not authenticate
            done += got
        return bytes(data[:done])
    finally:
        close(fd)


def sync(fd: int) -> None:
    """Returns once a file's content is on the medium."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: its fsync stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_folder(path: Path) -> None:
    """Returns once a folder's entries are on the medium, where the platform can say so."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as exc:
        # A library OS may have no sync of folders. A power cut may then lose what was acknowledged, as on any
        # platform without it, but the record in force is still a whole one.
        if exc.errno not in _NOT_HERE:
            raise
    finally:
        close(fd)


def replace(source: Path, target: Path) -> None:
    """Puts one file in the place of another, in one step."""
    source.replace(target)


def bring(source: Path, temporary: Path, target: Path) -> None:
    """Gives a file that is never changed a second name, or a copy where that cannot be: another disk, a library OS.

    `target` appears whole or not at all; where it is already, nothing is done.
    """
    if target.exists():
        return
    try:
        os.link(source, target, follow_symlinks=False)
        return
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:
        pass  # another disk, or a file system without second names: a copy
    except NotImplementedError:
        pass  # what `os.link` raises where the system cannot link without following (macOS): a copy
    reading = open_to_read(source)
    try:
        writing = create(temporary)
        try:
            offset, buffer = 0, memoryview(bytearray(1 << 20))
            while got := read_at(reading, offset, buffer):
                write(writing, bytes(buffer[:got]))
                offset += got
            sync(writing)
        finally:
            close(writing)
    finally:
        close(reading)
    replace(temporary, target)


def discard(path: Path) -> None:
    """Removes a file if that can be done; what remains is swept when the store is next opened."""
    with contextlib.suppress(OSError):
        path.unlink()


def names(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(entry.name for entry in path.iterdir())


class Guard:
    """Keeps a second server out of a folder (§6.7).

    `flock` ends with the process whatever happens to it. A library OS may lack it; then a file with the
    process id stands in, taken over when that process is gone. Neither keeps out a host, which can copy the
    folder.
    """

    _held: Final[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        """Locks the folder.

        Raises:
            Unavailable: another process, or this one, has it (code `store_locked`).
            OSError: the lock file cannot be made.
        """
        self._pid_file: Path | None = None
        self._fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(folder)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets the next process in."""
        if self._pid_file is not None:
            self._held.discard(self._pid_file)
            discard(self._pid_file)
            self._pid_file = None
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def _lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Unavailable("another process has this store open", code="store_locked") from exc
        except OSError as exc:
            if exc.errno not in _NOT_HERE:
                raise
            self._take_pid_file(folder.resolve() / "lock.pid")

    def _take_pid_file(self, path: Path) -> None:
        if path in self._held:
            raise Unavailable("this process has this store open already", code="store_locked")
        if _abandoned(path):
            discard(path)
        try:
            fd = create(path)
        except FileExistsError as exc:
            message = "another process has this store open; if none does, remove the file lock.pid"
            raise Unavailable(message, code="store_locked") from exc
        try:
            write(fd, str(os.getpid()).encode())
        finally:
            close(fd)
        self._held.add(path)
        self._pid_file = path


def _abandoned(path: Path) -> bool:
    """Whether a process id file was left behind by a process that no longer runs."""
    try:
        content = read_small(path, limit=64)
    except SealRefused:
        return False  # whatever that is, it is not ours
    if content is None or not content.isdigit():
        return False
    if int(content) == os.getpid():
        return True  # an earlier process with our number: a library OS starts counting anew every time
    try:
        os.kill(int(content), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
