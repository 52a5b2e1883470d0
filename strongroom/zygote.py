"""The process that all confined processes come from: the server's side.

    server --executes--> zygote --forks--> examiner of one model (`admission`)
                                --forks--> one step of making its precision (`preparation`)
                                --forks--> preparer of its form (`forms`)
                                --forks--> what finds out where to cut it (`partitioning`)
                                --forks--> template of one model (`workers`) --forks--> workers

Rules
  - It is executed, not forked, and before any secret exists: no key is in its memory, nor in that of what comes
    from it. It imports once what they need, and looks at no model and no request.
  - It has a control socket and nothing else of this process; when that ends it ends all that it forked.
  - What it forked may hang, or have been taken over: who asked for it ends it by a descriptor of the process, and
    gives everything that it says a time in all, not one for each byte.
  - What it forks shares the layout of its memory, canaries included. `Nursery.renew` executes another; the former
    one ends with the last of its children.
  - Where no descriptor can be sent over a socket (a library OS) it cannot hand a child its socket. Then it does not
    fork: it becomes the examiner itself, at the other end of its control socket, and the next one is executed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from strongroom import frames
from strongroom.errors import Failure, Unavailable
from strongroom.groups import Group

log = logging.getLogger("strongroom.zygote")

EXAMINER: Final = b"e"
REDUCER: Final = b"r"
PREPARER: Final = b"p"
PARTER: Final = b"s"
TEMPLATE: Final = b"t"
KINDS: Final = (EXAMINER, REDUCER, PREPARER, PARTER, TEMPLATE)
"""What may be asked of it: one byte, with the socket of the process to be."""
SPARE_S: Final = 5
"""Seconds that it may take to fork, and to end."""
START_S: Final = 120
"""Seconds to import what it needs; two on a machine of its own."""

# As `launch`: the import hook comes before anything but the standard library, where a measurement is given.
_BOOTSTRAP: Final = """\
import importlib.util, json, sys
from pathlib import Path
room, standard = json.loads(sys.argv[1]), list(sys.path)
found = importlib.util.spec_from_file_location(
    "strongroom", room["package"] + "/__init__.py", submodule_search_locations=[room["package"]]
)
sys.modules["strongroom"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["strongroom"])
if room["measured"] >= 0:
    from strongroom.importing import MeasuredImports
    imports = MeasuredImports(standard=standard, dependencies=room["paths"], package=Path(room["package"]))
    imports.install()
    with open(room["measured"], "rb") as listing:
        imports.admit(json.load(listing))
sys.path += room["paths"]
from strongroom import zygote_child
sys.exit(zygote_child.main(room["control"], workers=room["workers"], alone=room["alone"]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the zygote is executed: folders of the dependencies, where to be, which files may become code."""

    paths: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    measured: Mapping[str, str] | None
    """Path -> SHA-256 (hex) of every file that may be imported; None outside a server."""
    flags: Sequence[str]
    """Of the interpreter."""
    workers: bool
    """Whether models will run in what it forks: then it imports the engine, and measures the sandbox."""
    group: Group | None = None
    """The control group that it is put into; None: there is none."""


class _Zygote:
    """One process. Whoever calls holds the nursery's lock."""

    def __init__(self, launch: Launch, *, alone: bool) -> None:
        try:
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    self.process = _execute(launch, theirs.fileno(), alone=alone)
            except BaseException:
                ours.close()
                raise
        except OSError as exc:
            raise Failure(
                "the process that models come into cannot be started", code="start_refused"
            ) from exc
        if launch.group is not None and not launch.group.take(self.process.pid):
            log.warning("the control group does not take the processes that models come into")
        self._control = ours
        self.layers: tuple[str, ...] | None = None
        self.children = 0
        self.retired = False

    def wait(self) -> tuple[str, ...]:
        """The sandbox layers that take hold in what it forks, once it is ready."""
        if self.layers is None:
            self._control.settimeout(START_S)
            try:
                said, _ = frames.receive(self._control)
                layers = said["layers"]
                self.layers = tuple(str(layer) for layer in layers)
            except (OSError, EOFError, KeyError, TypeError):
                self.process.kill()
                raise Failure(
                    "the process that models come into does not start", code="start_refused"
                ) from None
            self._control.settimeout(SPARE_S)
        return self.layers

    def fork(self, kind: bytes, end: socket.socket) -> tuple[int, int]:
        """The new process's id, and a descriptor of it, -1 where the system has none; (0, -1) where no process can be
        made. OSError where the zygote has ended.
        """
        socket.send_fds(self._control, [kind], [end.fileno()])
        close_on_exec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        answer, descriptors, _, _ = socket.recv_fds(self._control, 4, 1, close_on_exec)
        process = descriptors[0] if descriptors else -1
        if len(answer) != 4:
            if process >= 0:
                os.close(process)
            raise ConnectionResetError
        return int.from_bytes(answer, "big"), process

    def become(self, kind: bytes) -> tuple[int, socket.socket]:
        """Its id, and its control socket, at whose other end it is what was asked for. As `fork`."""
        self._control.sendall(kind)
        try:
            return int.from_bytes(frames.exactly(self._control, 4), "big"), self._control
        except EOFError:
            raise ConnectionResetError from None

    def stop(self) -> None:
        """Ends it, and with it all that it forked."""
        self._control.close()
        try:
            self.process.wait(SPARE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _execute(launch: Launch, control: int, *, alone: bool) -> subprocess.Popen[bytes]:
    """Executes a zygote whose socket is `control`. OSError where that cannot be done; no descriptor is kept."""
    # The listing is too long for a command line, and a file could be changed: it goes through a pipe.
    listing_end, pipe = os.pipe() if launch.measured is not None else (-1, -1)
    room = {
        "package": str(Path(__file__).resolve().parent),
        "paths": list(launch.paths),
        "control": control,
        "measured": listing_end,  # by its number: not every system has /dev/fd
        "workers": launch.workers,
        "alone": alone,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, *launch.flags, "-c", _BOOTSTRAP, json.dumps(room)],
            env=dict(launch.environment),
            cwd=launch.folder,
            stdin=subprocess.DEVNULL,
            pass_fds=[fd for fd in (control, listing_end) if fd >= 0],
        )
    except BaseException:
        if pipe >= 0:
            os.close(pipe)
        raise
    finally:
        if listing_end >= 0:
            os.close(listing_end)
    if pipe >= 0:
        with open(pipe, "wb") as listing:  # noqa: PTH123 - a descriptor
            listing.write(json.dumps(launch.measured).encode())
    return process


class Timely:
    """A socket to somebody who may answer byte by byte: all that is done through it takes `seconds` together.

    A `frames.Stream`; where the time is over its methods raise TimeoutError.
    """

    def __init__(
        self, end: socket.socket, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._end, self._clock = end, clock
        self._until = clock() + seconds

    def sendall(self, data: Any, /) -> None:
        """See `frames.Stream`."""
        self._in_time().sendall(data)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See `frames.Stream`."""
        return self._in_time().recv(size, flags)

    def recv_into(self, buffer: Any, /) -> int:
        """See `frames.Stream`."""
        return self._in_time().recv_into(buffer)

    def _in_time(self) -> socket.socket:
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError
        self._end.settimeout(left)
        return self._end


class Child:
    """A process of the zygote's, by its socket and its id. A context manager: it is ended at the end."""

    def __init__(
        self, nursery: Nursery, zygote: _Zygote, end: socket.socket, pid: int, process: int = -1
    ) -> None:
        """`process`: a descriptor of it, which is this object's from here on; -1: there is none."""
        self._nursery, self._zygote = nursery, zygote
        self.end, self.pid, self._process = end, pid, process

    @property
    def layout(self) -> object:
        """What stands for the layout of its memory: the same for all that one zygote forked."""
        return self._zygote

    def quiet(self) -> bool:
        """Whether it has not ended, and has said nothing that was not read: whatever could be read is its end where it
        has nothing to say.
        """
        if self.end.fileno() < 0:
            return False
        poll = select.poll()  # not `select`, which knows no number from 1024 on
        poll.register(self.end.fileno(), select.POLLIN)
        return not poll.poll(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, wait_s: float = 0.0) -> None:
        """Hangs up and ends it, for it may not look; the zygote ends what it forked. `wait_s`: seconds to wait until
        it has ended, at most: its memory is there as long.
        """
        if self.end.fileno() < 0:
            return
        self.end.close()
        if self._process >= 0:
            with contextlib.suppress(OSError):  # it has ended
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            if wait_s:
                ended = select.poll()
                ended.register(self._process, select.POLLIN)
                ended.poll(1000 * wait_s)
            os.close(self._process)
        self._nursery._left(self._zygote)


def descriptors_travel() -> bool:
    """Whether a socket carries descriptors to whoever is at its other end (SCM_RIGHTS), tried with one of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            socket.send_fds(ours, [b"?"], [ours.fileno()])
            _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        except OSError:
            return False
        for descriptor in descriptors:
            os.close(descriptor)
        return len(descriptors) == 1


class Nursery:
    """Has processes forked, by one zygote at a time. Thread-safe; a context manager."""

    def __init__(self, launch: Launch) -> None:
        """Executes the zygote, which gets ready on its own.

        Raises:
            Failure: it cannot be executed (code `start_refused`).
        """
        self._launch = launch
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._alone = not descriptors_travel()
        self._current = self._fresh()
        self._closed = False
        self._watching: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the zygote in charge."""
        return self._current.process.pid

    def watch(self, replaced: Callable[[], None]) -> None:
        """Calls it, in some thread, whenever another zygote took the place of one by `renew`, and at the end."""
        self._watching.append(replaced)

    def in_charge(self, child: Child) -> bool:
        """Whether what is forked now would come from the zygote that `child` came from."""
        with self._lock:
            return child._zygote is self._current and not self._closed

    def wait(self) -> tuple[str, ...]:
        """Returns when the zygote is ready: the sandbox layers that take hold here, as it measured them.

        Raises:
            Failure: it does not start (code `start_refused`).
        """
        with self._lock:
            return self._current.wait()

    def fork(self, kind: bytes) -> Child:
        """A new process: one of `KINDS`. A zygote that has ended is executed again, once.

        Raises:
            Failure: the zygote does not start (code `start_refused`).
            Unavailable: no process can be made now (code `overloaded`).
        """
        if self._alone:
            return self._become(kind)
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # no descriptors are left
            raise _no_process() from None
        try:
            with theirs, self._lock:
                return self._fork(kind, ours, theirs)
        except BaseException:
            ours.close()
            raise

    def _fork(self, kind: bytes, ours: socket.socket, theirs: socket.socket) -> Child:
        for attempt in range(2):
            if self._closed:
                break
            try:
                self._current.wait()
                pid, process = self._current.fork(kind, theirs)
            except (OSError, Failure) as fault:
                if attempt:
                    raise fault if isinstance(fault, Failure) else _no_process() from None
                # Also one that did not start: what hindered it may be over, and it will not start any more.
                self._current.stop()
                self._current = self._fresh()
                continue
            if not pid:
                break
            self._current.children += 1
            return Child(self, self._current, ours, pid, process)
        raise _no_process()

    def _become(self, kind: bytes) -> Child:
        """As `fork`, where no socket can be handed over: the zygote itself, and the next one gets ready meanwhile."""
        with self._lock:
            for _ in range(2):
                if self._closed:
                    break
                zygote = self._current
                try:
                    zygote.wait()
                except Failure:  # the next caller meets another one
                    self._current = self._fresh()
                    zygote.stop()
                    raise
                try:
                    pid, end = zygote.become(kind)
                except OSError:
                    pid, end = 0, None
                self._current = self._fresh()
                if pid and end is not None:
                    zygote.children, zygote.retired = 1, True
                    return Child(self, zygote, end, pid)
                zygote.stop()
        raise _no_process()

    def _fresh(self) -> _Zygote:
        return _Zygote(self._launch, alone=self._alone)

    def renew(self, child: Child) -> None:
        """Sees to it that all that is forked from now on comes from another zygote than `child` did; returns when that
        is ready. Only where there is none yet one is executed: many that end together do not need one each.

        Raises:
            Failure: it does not start (code `start_refused`); then the former one stays in charge.
        """
        with self._renewing:
            if child._zygote is self._current:
                self._renew()

    def _renew(self) -> None:
        fresh = self._fresh()
        try:
            fresh.wait()
        except Failure:
            fresh.stop()
            raise
        with self._lock:
            former, self._current = self._current, fresh
            former.retired = True
            stopping = former if self._closed or not former.children else None
            if self._closed:
                fresh.stop()
        if stopping is not None:
            stopping.stop()
        self._tell()

    def _tell(self) -> None:
        for replaced in self._watching:
            replaced()

    def close(self) -> None:
        """Ends the zygote, and with it all that it forked."""
        with self._lock:
            self._closed = True
        self._tell()
        with self._lock:
            self._current.stop()

    def _left(self, zygote: _Zygote) -> None:
        with self._lock:
            zygote.children -= 1
            last = zygote.retired and not zygote.children
        if last:
            zygote.stop()


def _no_process() -> Unavailable:
    return Unavailable("no process can be made for the model", code="overloaded")
