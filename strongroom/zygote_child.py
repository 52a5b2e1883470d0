"""The zygote itself: imports what examiners and workers need, and forks one for each socket that it is handed.

Rules
  - One thread, no secret, no file: checked before it says that it is ready.
  - It looks at no byte of any model or request.
  - Each child leads a process group of its own, which ends when that child does, or when the server hangs up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from strongroom import (
    admission_child,
    form_child,
    frames,
    kernel,
    models,
    parting_child,
    preparation_child,
    zygote,
)

CHILDREN: Final = 256
"""Children at one time: examiners that hang, and a template for each loaded model."""
DESCRIPTORS: Final = 1024
"""That the zygote may have, and what it forks before it is locked down: `select` knows no number beyond."""
OFFERED: Final = 500
OFFERED_FIRST: Final = 800
"""How readily the kernel ends the zygote, and what it forked, where memory is short (-1000 to 1000; the server has 0):
a worker before its template, since it has the model and more; that before the zygote, which all others end with."""


def main(control: int, *, workers: bool, alone: bool) -> int:
    """Gets ready, says so with the sandbox layers that take hold here, and serves until the server hangs up.

    `alone`: no descriptor can be handed to it, so it forks nobody and examines one model itself.
    """
    _harden()
    models.warm()
    layers: tuple[str, ...] = ()
    if workers:
        from strongroom import engine, sandbox, worker  # noqa: F401 - for the templates

        engine.warm()
        if sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) != 1:
            return 1  # a fork would copy one thread of several, with the others' locks held
        layers = sandbox.probe()
    gc.collect()
    kernel.trim_heap()
    gc.freeze()  # children then write to no page of what was imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's to answer
    with socket.socket(fileno=control) as server:
        frames.send(server, {"layers": list(layers)})
        return _alone(server) if alone else _serve(server)


def _alone(server: socket.socket) -> int:
    kind = server.recv(1)  # b"" where the server has hung up
    known = kind in (zygote.EXAMINER, zygote.REDUCER)
    with contextlib.suppress(OSError):
        server.sendall((os.getpid() if known else 0).to_bytes(4, "big"))
    return _become(kind, server.detach()) if known else 0


def _serve(server: socket.socket) -> int:
    children: dict[int, int] = {}  # process id -> pidfd
    control = server.fileno()
    while True:
        watched = [fd for fd in children.values() if fd >= 0]
        # Where there are no pidfds (a library OS, macOS) children are looked at now and then.
        patience = None if len(watched) == len(children) else 0.1
        try:
            ready, _, _ = select.select([control, *watched], [], [], patience)
            _bury([pid for pid, fd in children.items() if fd in ready or (fd < 0 and _ended(pid))], children)
            if control not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        except OSError:
            message, descriptors = b"", []
        if not message:
            _bury(list(children), children)
            return 0
        pid = 0
        if message in zygote.KINDS and descriptors and len(children) < CHILDREN:
            pid = _fork(message, descriptors[0], [control, *children.values()])
        for descriptor in descriptors:
            os.close(descriptor)
        if pid:
            children[pid] = _pidfd(pid)
        with contextlib.suppress(OSError):
            # With a descriptor of the process, by which the server ends it: an id may be another's by then.
            process = [children[pid]] if children.get(pid, -1) >= 0 else []
            socket.send_fds(server, [pid.to_bytes(4, "big")], process)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid) if sys.platform == "linux" else -1
    except OSError:
        return -1


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(kind: bytes, end: int, ours: list[int]) -> int:
    """The id of a child with `end` and nothing of ours; 0 where the system makes none."""
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid:
        with contextlib.suppress(OSError):  # it was faster, or has ended
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        for descriptor in ours:
            if descriptor >= 0:
                os.close(descriptor)
        _end_with_parent()
        _offer(OFFERED_FIRST)  # refused to a plain user's, who keep what they have
        code = _become(kind, end)
    finally:
        os._exit(code)  # whatever it was: nothing of the zygote's stack runs twice


def _become(kind: bytes, end: int) -> int:
    if kind == zygote.EXAMINER:
        return admission_child.examine(end)
    if kind == zygote.PREPARER:
        return form_child.prepare(end)
    if kind == zygote.REDUCER:
        return preparation_child.prepare(end)
    if kind == zygote.PARTER:
        return parting_child.part(end)
    from strongroom import worker

    return worker.template(end)


def _bury(ended: list[int], children: dict[int, int]) -> None:
    """Ends whole groups. Their ids are nobody else's yet, for nobody has waited for the leaders."""
    for pid in ended:
        descriptor = children.pop(pid)
        for kill in (os.killpg, os.kill):  # of which the second is for a child that has no group yet
            with contextlib.suppress(OSError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if descriptor >= 0:
            os.close(descriptor)


def _harden() -> None:
    """No core dump, not readable by debuggers of the same user, no new privileges; ended before the server is."""
    os.umask(0o077)
    _offer(OFFERED)  # before the process is not dumpable: /proc is root's from there on
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    _prctl(4, 0)  # PR_SET_DUMPABLE
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def _offer(score: int) -> None:
    """Has the kernel end this process before others where memory is short: proc_pid_oom_score_adj(5)."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(score).encode())
        finally:
            os.close(descriptor)


def _end_with_parent() -> None:
    """Its parent is the zygote's only thread; the server's threads come and go, so the zygote waits for its socket."""
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
