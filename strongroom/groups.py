"""The control group of the processes that models come into: Linux cgroup v2, where it was delegated to the server.

    group of the service (delegated)  --  server   this process
                                      \\-  models   zygote, and all that comes from it: memory.max, pids.max, no swap

Rules
  - Limits of a process (`sandbox`) bound each; the group bounds all of them together, pages of tmpfs and of the kernel
    among them. Where it has no more memory the kernel ends one of its processes: one caller's error, not the server's.
  - It protects the service and no secret, and whether it can be had is up to whoever started the server. So it is
    taken where it is there, said in the log and by `strongroom doctor`, and neither attested nor demanded.
  - A process is put in from outside, by the server, before it has forked anything: its children begin there.
  - Controllers are given to children of a group that has no process of its own (the kernel's rule), so the server
    moves to a group beside the models'. Where somebody else is in its group nothing is done: they would be in the way.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst; systemd's "Control Group APIs and Delegation".
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVER: Final = "server"
MODELS: Final = "models"
MOUNT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
MACHINE: Final = Path("/proc/meminfo")
LEFT: Final = 8
"""What the service itself keeps of the memory that there is: one part of so many."""
OTHERS: Final = 1024
"""Processes besides workers: two zygotes at a time, their children (`zygote_child.CHILDREN`), workers that end."""
LEAST_BYTES: Final = 256 << 20
"""Below this no group is made: a zygote and one model would not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group that is ready for processes; `memory_bytes` and `processes` are its limits as the kernel has them."""

    folder: Path
    memory_bytes: int
    processes: int | None
    """None: without the controller that counts them."""

    def take(self, pid: int) -> bool:
        """Puts a process in; False where the kernel does not (it has ended, or the group is gone)."""
        return _wrote(self.folder / "cgroup.procs", str(pid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the group can be made: the service's own group, and which controllers it has to give."""

    folder: Path
    controllers: tuple[str, ...]


def find(*, mount: Path = MOUNT, own: Path = OWN, pid: int | None = None) -> Place | str:
    """Where a group can be made, or in a sentence why none can. Changes nothing.

    In order: 1. the kernel has version 2, with this process in it, 2. its group has the memory controller, 3. it may
    be changed (it was delegated), 4. nobody else is in it.
    """
    # 1.
    match = re.search(r"^0::(/.*)$", _text(own), re.MULTILINE)
    if match is None or not (mount / "cgroup.controllers").is_file():
        return "there is no cgroup version 2"
    name = match[1].strip("/")
    if ".." in Path(name).parts:
        return "the group of this process is outside of what is mounted"
    folder = mount / name
    if folder.name == SERVER and (folder.parent / MODELS).is_dir():
        folder = folder.parent  # an earlier start moved this process
    # 2.
    controllers = tuple(
        one for one in ("memory", "pids") if one in _text(folder / "cgroup.controllers").split()
    )
    if "memory" not in controllers:
        return "the group of this process cannot limit memory"
    # 3.
    files = [folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"]
    if not all(os.access(file, os.W_OK) for file in files):
        return "the group of this process was not delegated to it"
    # 4.
    mine = str(os.getpid() if pid is None else pid)
    if set(_text(folder / "cgroup.procs").split()) - {mine}:
        return "other processes are in the group of this process"
    return Place(folder=folder, controllers=controllers)


def make(
    *, memory_bytes: int, processes: int, mount: Path = MOUNT, own: Path = OWN, machine: Path = MACHINE
) -> Group | str:
    """Makes the group, after moving this process out of the way; or says in a sentence why there is none, with this
    process where it was.

    `memory_bytes`: of all its processes together; 0: all but an eighth of what the machine or the service's group has.
    `processes`: at one time.
    """
    place = find(mount=mount, own=own)
    if isinstance(place, str):
        return place
    wanted = memory_bytes or _most(place.folder, mount=mount, machine=machine)
    if wanted < LEAST_BYTES:
        return f"{wanted >> 20} MB are too little for a group"
    me = str(os.getpid())
    server, models = place.folder / SERVER, place.folder / MODELS
    try:
        server.mkdir(exist_ok=True)
        if not _wrote(server / "cgroup.procs", me):
            return "this process cannot be moved"
        given = all(_wrote(place.folder / "cgroup.subtree_control", f"+{one}") for one in place.controllers)
        if given:
            models.mkdir(exist_ok=True)
            if (made := _limit(models, wanted, processes)) is not None:
                return made
    except OSError:
        pass
    _undo(place, me)
    return "the kernel does not take the limits"


def _limit(folder: Path, memory_bytes: int, processes: int) -> Group | None:
    """The group with its limits, as they were read back; None where they do not hold."""
    for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "0"), ("pids.max", str(processes))):
        if (folder / name).exists():  # a kernel without swap, an older one, no such controller
            _wrote(folder / name, value)
    _wrote(folder / "memory.max", str(memory_bytes))
    held = _text(folder / "memory.max").strip()
    if not held.isdigit() or int(held) > memory_bytes:  # the kernel rounds down to pages
        return None
    counted = _text(folder / "pids.max").strip()
    return Group(
        folder=folder,
        memory_bytes=int(held),
        processes=int(counted) if counted.isdigit() else None,
    )


def _undo(place: Place, me: str) -> None:
    for one in place.controllers:
        _wrote(place.folder / "cgroup.subtree_control", f"-{one}")
    _wrote(place.folder / "cgroup.procs", me)
    for name in (MODELS, SERVER):
        with contextlib.suppress(OSError):
            (place.folder / name).rmdir()


def _most(folder: Path, *, mount: Path, machine: Path) -> int:
    """All but an eighth of the least that the machine, or a group above, has."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(machine), re.MULTILINE)
    limits = [int(found[1]) << 10] if found else []
    while folder != mount.parent:
        if (text := _text(folder / "memory.max").strip()).isdigit():
            limits.append(int(text))
        folder = folder.parent
    least = min(limits, default=0)
    return least - least // LEFT


def _wrote(path: Path, text: str) -> bool:
    """One write into a file of the kernel's, which is never made here."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(descriptor, text.encode()) == len(text)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
