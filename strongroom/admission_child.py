"""The processes behind `admission`: a template that forks, and children that examine one model each.

Rules
  - One thread, no secret, no file: what a child could do is what its limits and its one socket allow.
  - A child is locked down (`sandbox`) before it looks at a byte of its model, with whatever layers hold here.
  - A child answers once and ends; the template looks at no byte of any model.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any, Final

from strongroom import admission, models, sandbox
from strongroom.errors import Error, Failure, LimitExceeded
from strongroom.models.info import AdmissionLimits, Budget

CHILDREN: Final = 16
"""Children at one time; the server has one admission at a time, unless one of them hangs."""
GRACE_S: Final = 2.0
"""Seconds after its deadline at which the template kills a child that its own timer did not end."""
FACTORS: Final = {"onnx": 3, "xgboost-json": 24, "xgboost-ubj": 24}
"""Bytes of memory for each byte of the model: two copies and one in the making; Python objects of a document."""


def main(control: int) -> int:
    """The template: imports what admission needs, says that it is ready, and forks a child for each socket."""
    _harden()
    models.warm()
    gc.collect()
    gc.freeze()  # children then write to no page of what was imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's to answer
    with socket.socket(fileno=control) as server:
        server.sendall(b"+")
        return _serve(server)


def _serve(server: socket.socket) -> int:
    deadlines: dict[int, float] = {}
    while True:
        ready, _, _ = select.select([server], [], [], 0.1 if deadlines else None)
        _reap(deadlines)
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        if not message:
            for pid in deadlines:
                os.kill(pid, signal.SIGKILL)
            return 0
        pid = -1
        if len(deadlines) < CHILDREN and descriptors:
            pid = os.fork()
        if pid == 0:
            server.close()
            os._exit(_child(descriptors[0]))
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            deadlines[pid] = time.monotonic() + LONGEST_S
        server.sendall(b"+" if pid > 0 else b"-")


LONGEST_S: Final = 3600.0
"""Seconds after which any child is killed; its own timer ends it long before."""


def _reap(deadlines: dict[int, float]) -> None:
    now = time.monotonic()
    for pid, deadline in list(deadlines.items()):
        if now > deadline:
            os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            del deadlines[pid]


def _child(descriptor: int) -> int:
    """Examines one model; whatever goes wrong is an answer or a death."""
    try:
        with socket.socket(fileno=descriptor) as end:
            header, data = _first(end)
            _confine(end.fileno(), header, len(data))
            answer, canonical = _answer(header, data)
            admission.send(end, answer, canonical)
    except MemoryError:
        return 1  # the caller takes silence for a limit
    except Exception:  # noqa: BLE001 - a bug here must not look like a verdict: the caller sees a death
        return 1
    return 0


def _first(end: socket.socket) -> tuple[dict[str, Any], bytearray]:
    # Until the model is here only time is limited: its size says how much memory there may be.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, admission.START_S)
    header, data = admission.receive(end)
    signal.setitimer(signal.ITIMER_REAL, header["child"]["wall_s"])
    return header, data


def _confine(descriptor: int, header: dict[str, Any], size: int) -> None:
    """Leaves this process its socket, and memory for a model of this many bytes."""
    child, factor = header["child"], FACTORS.get(header["format"], 3)
    sandbox.lock_down(
        sandbox.Profile(
            memory_bytes=_occupied() + child["memory_bytes"] + factor * size,
            cpu_s=child["cpu_s"],
            read_fds=(descriptor,),
            write_fds=(descriptor,),
            fork=False,
            receive_fds=False,
        )
    )


def _occupied() -> int:
    """Bytes of address space now, the model among them; elsewhere than on Linux it is no measure of memory."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - no more than is needed
        return int(file.read().split()[0]) * resource.getpagesize()


def _answer(header: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], bytes]:
    given = dict(header["limits"])
    limits = AdmissionLimits(**{**given, "budget": Budget(**given["budget"])})
    try:
        admitted = models.admit(data, format=header["format"], limits=limits)
    except Error as error:
        return {"error": _kind(error), "code": error.code, "message": error.message}, b""
    except RecursionError:
        deep = LimitExceeded("the model is nested too deeply to be examined", code="admission_limits")
        return {"error": _kind(deep), "code": deep.code, "message": deep.message}, b""
    facts = {
        "info": admitted.info.to_json(),
        "sha256": admitted.sha256,
        "canonical_sha256": admitted.canonical_sha256,
    }
    return facts, admitted.onnx


def _kind(error: Error) -> str:
    """The family that the server knows the error by."""
    for kind in type(error).__mro__:
        if kind.__name__ in admission.KINDS:
            return kind.__name__
    return Failure.__name__


def _harden() -> None:
    """No core dump, not readable by debuggers of the same user, no new privileges."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        for option, value in ((4, 0), (38, 1), (1, signal.SIGKILL)):  # DUMPABLE, NO_NEW_PRIVS, PDEATHSIG
            libc.prctl(option, value, 0, 0, 0)
