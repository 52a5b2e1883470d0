"""A disk that stops the process, or answers with an error, at the n-th call, and remembers what was synced.

`FaultyDisk` stands between the store and `os` for one folder. What a power cut may leave of that folder is
modelled as POSIX promises it: a file has what it had at its last fsync, a folder the entries it had at its
own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = (
    "open",
    "write",
    "fsync",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "listdir",
    "scandir",
    "fstat",
    "preadv",
    "close",
)


class Crash(BaseException):
    """The process is dead: whatever it tries from now on raises this again."""


@dataclass
class Inode:
    """A file: what was written, and what of it was synced."""

    written: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


class FaultyDisk:
    """Patches `os` while entered.

    `at` is the number of the call that fails, 0 for none; `error` None means a crash.
    """

    def __init__(self, folder: Path, *, at: int, error: int | None) -> None:
        self.folder = folder
        self.at = at
        self.error = error
        self.calls = 0
        self.failed = ""
        self.dead = False
        self._real: dict[str, Callable[..., Any]] = {}
        self._fds: dict[int, Path] = {}
        self._now: dict[Path, dict[str, Inode | None]] = {folder.parent: {}}
        if folder.is_dir():
            self._now[folder.parent][folder.name] = None
            for here in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                self._now[here] = {p.name: None if p.is_dir() else _inode(p) for p in here.iterdir()}
        self._synced = {here: dict(entries) for here, entries in self._now.items()}

    def __enter__(self) -> FaultyDisk:
        for name in NAMES:
            if hasattr(os, name):
                self._real[name] = getattr(os, name)
                setattr(os, name, getattr(self, f"_{name}"))
        self._real_fcntl = fcntl.fcntl
        fcntl.fcntl = self._fcntl
        return self

    def __exit__(self, *exc: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)
        fcntl.fcntl = self._real_fcntl
        for fd in list(self._fds):  # as the kernel does when a process dies: this also frees the lock
            os.close(fd)

    def leave(self, *, folders_synced: frozenset[str], files_synced: bool) -> None:
        """Makes the folder what a power cut may leave.

        These folders (by name) lose entries since their last sync.
        """
        shutil.rmtree(self.folder)

        def build(here: Path) -> None:
            here.mkdir(mode=0o700, exist_ok=True)
            known = self._synced if here.name in folders_synced else self._now
            for name, inode in known.get(here, {}).items():
                if inode is None:
                    build(here / name)
                else:
                    (here / name).write_bytes(inode.synced if files_synced else bytes(inode.written))

        build(self.folder)

    def _mine(self, path: object) -> Path | None:
        if isinstance(path, int):
            return self._fds.get(path)
        found = Path(os.fspath(path))
        return found if found == self.folder or self.folder in found.parents else None

    def _tick(self, name: str, path: object) -> Path | None:
        mine = self._mine(path)
        if mine is None:
            return None
        if self.dead:
            raise Crash
        self.calls += 1
        if self.calls == self.at:
            self.failed = f"{name} {mine.name}"
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            self.dead = True
            raise Crash
        return mine

    def _open(self, path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        mine = self._tick("open", path)
        fd: int = self._real["open"](path, flags, mode, **rest)
        if mine is not None or Path(os.fspath(path)) == self.folder.parent:
            mine = Path(os.fspath(path))
            self._fds[fd] = mine
            if flags & os.O_CREAT and mine.name not in self._now[mine.parent]:
                self._now[mine.parent][mine.name] = Inode()
        return fd

    def _write(self, fd: int, data: Any) -> int:
        try:
            mine = self._tick("write", fd)
        except Crash:
            if self.calls == self.at and fd in self._fds:  # the half that got through
                half = bytes(data)[: len(data) // 2]
                self._real["write"](fd, half)
                self._file(self._fds[fd]).written += half
            raise
        done: int = self._real["write"](fd, data)
        if mine is not None:
            self._file(mine).written += bytes(data)[:done]
        return done

    def _fsync(self, fd: int) -> None:
        mine = self._tick("fsync", fd)
        if mine is not None and mine in self._now:
            self._synced[mine] = dict(self._now[mine])
        elif mine is not None:
            inode = self._file(mine)
            inode.synced = bytes(inode.written)
        # The real sync is left out: it would only make the test slow.

    def _fcntl(self, fd: int, command: int, *rest: Any) -> Any:
        if command == getattr(fcntl, "F_FULLFSYNC", None):  # macOS
            return self._fsync(fd)
        return self._real_fcntl(fd, command, *rest)

    def _replace(self, source: Any, target: Any, **rest: Any) -> None:
        mine = self._tick("replace", source)
        self._real["replace"](source, target, **rest)
        if mine is not None:
            self._now[mine.parent][Path(target).name] = self._now[mine.parent].pop(mine.name)

    def _link(self, source: Any, target: Any, **rest: Any) -> None:
        mine = self._tick("link", target)
        self._real["link"](source, target, **rest)
        if mine is not None:
            self._now[mine.parent][mine.name] = _inode(mine)

    def _unlink(self, path: Any, **rest: Any) -> None:
        mine = self._tick("unlink", path)
        self._real["unlink"](path, **rest)
        if mine is not None:
            del self._now[mine.parent][mine.name]

    def _mkdir(self, path: Any, mode: int = 0o777, **rest: Any) -> None:
        mine = self._tick("mkdir", path)
        self._real["mkdir"](path, mode, **rest)
        if mine is not None:
            self._now[mine.parent][mine.name] = None
            self._now[mine] = {}
            self._synced[mine] = {}

    def _listdir(self, path: Any = ".") -> Any:
        self._tick("listdir", path)
        return self._real["listdir"](path)

    def _scandir(self, path: Any = ".") -> Any:
        self._tick("scandir", path)
        return self._real["scandir"](path)

    def _fstat(self, fd: int) -> Any:
        self._tick("fstat", fd)
        return self._real["fstat"](fd)

    def _preadv(self, fd: int, buffers: Any, offset: int, *rest: Any) -> Any:
        self._tick("pread", fd)
        return self._real["preadv"](fd, buffers, offset, *rest)

    def _close(self, fd: int) -> None:
        try:
            self._tick("close", fd)
        except OSError:
            self._fds.pop(fd, None)
            self._real["close"](fd)
            raise
        self._fds.pop(fd, None)
        self._real["close"](fd)

    def _file(self, path: Path) -> Inode:
        inode = self._now[path.parent].get(path.name)
        assert inode is not None
        return inode


def _inode(path: Path) -> Inode:
    content = path.read_bytes()
    return Inode(written=bytearray(content), synced=content)
