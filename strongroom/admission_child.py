"""The examiner behind `admission`: a child of the zygote that examines one model, answers and ends.

Rules
  - One thread, no secret, no file: what it could do is what its limits and its one socket allow.
  - It is locked down (`sandbox`) before it looks at a byte of its model, with whatever layers hold here.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
from typing import Any, Final

from strongroom import admission, frames, models, sandbox
from strongroom.errors import Error, Failure, InvalidRequest, LimitExceeded
from strongroom.models.info import AdmissionLimits, Budget

FIRST_S: Final = 120
"""Seconds in which the model has to arrive."""
FACTORS: Final = {"onnx": 3.0, "xgboost-json": 1.2, "xgboost-ubj": 1.2}
"""Bytes of memory for each byte of the model, besides its own: copies in the making; what a document's numbers take."""
FOREST_BYTES: Final = 200 << 20
"""Besides, for XGBoost's models: whatever a server gives other models, their examination needs no more than this."""


def _more(format: str, size: int, limits: dict[str, Any]) -> int:
    """Bytes of memory for a model of this size, beyond what the child's limits give any."""
    more = int(FACTORS.get(format, 3.0) * size)
    return more if format == "onnx" else more + min(0, FOREST_BYTES - int(limits["memory_bytes"]))


def examine(descriptor: int) -> int:
    """Examines one model; whatever goes wrong is an answer or a death. Returns the exit code."""
    try:
        with socket.socket(fileno=descriptor) as end:
            header, data = first(end)
            confine(end.fileno(), header["child"], _more(header["format"], len(data), header["child"]))
            answer, canonical = _answer(header, data)
            frames.send(end, answer, canonical)
    except MemoryError:
        return 1  # the caller takes silence for a limit
    except Exception:  # noqa: BLE001 - a bug here must not look like a verdict: the caller sees a death
        return 1
    return 0


def first(end: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """What the server sends first: its header and a model. From here on the time of the whole work runs."""
    # Until the model is here only time is limited: its size says how much memory there may be.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, FIRST_S)
    header, data = frames.receive(end)
    signal.setitimer(signal.ITIMER_REAL, header["child"]["wall_s"])
    return header, data


def confine(descriptor: int, child: dict[str, Any], more: int) -> tuple[str, ...]:
    """Leaves this process its socket, and `more` bytes of memory besides what its limits give; the layers that hold."""
    return sandbox.lock_down(
        sandbox.Profile(
            memory_bytes=occupied() + child["memory_bytes"] + more,
            cpu_s=child["cpu_s"],
            read_fds=(descriptor,),
            write_fds=(descriptor,),
            fork=False,
            receive_fds=False,
        )
    )


def occupied() -> int:
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
        return refusal(error), b""
    except RecursionError:
        deep = LimitExceeded("the model is nested too deeply to be examined", code="admission_limits")
        return refusal(deep), b""
    facts = {
        "info": admitted.info.to_json(),
        "sha256": admitted.sha256,
        "canonical_sha256": admitted.canonical_sha256,
    }
    return facts, admitted.onnx


def refusal(error: Error) -> dict[str, Any]:
    """An error as the server reads it: by the family that it knows it by."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in FAMILIES)
    return {"error": next(known, Failure.__name__), "code": error.code, "message": error.message}


FAMILIES: Final = frozenset({*admission.KINDS, InvalidRequest.__name__})
