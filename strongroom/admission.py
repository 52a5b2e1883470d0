"""Admission in a process that can be killed: parsers and checks of a stranger's model never run in the server.

    server --control socket--> template --fork--> child: reads one model, answers, ends

Rules
  - The template is executed before any secret exists and inherits nothing but the control socket: no key is in
    its memory, nor in that of its children. It imports what admission needs once, so that a child takes a few
    milliseconds and not seconds.
  - A child has one model, one socket, and limits on memory, processor and wall time that the kernel enforces;
    whatever happens to it, the caller gets a refusal.
  - Messages are JSON and bytes with a length before them, never objects; what comes back is read as strictly
    as a stranger's, for a child that was taken over says what it likes. The digest of what it wrote is computed
    here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from strongroom import models
from strongroom.errors import (
    CODES,
    AdmissionRefused,
    Conflict,
    Error,
    Failure,
    LimitExceeded,
    MalformedInput,
    Unavailable,
)
from strongroom.models.info import AdmissionLimits, Admitted, ModelInfo

HEADER_BYTES: Final = 1 << 20
"""JSON of one message; metadata has 128 KiB at most."""
MESSAGE_CHARACTERS: Final = 400
"""Of a refusal's sentence."""
SPARE_S: Final = 5
"""Seconds that the answer may come later than the child's own deadline."""
START_S: Final = 120
"""Seconds for the template to import what it needs; two on a machine of its own."""

KINDS: Final[Mapping[str, type[Error]]] = {
    kind.__name__: kind for kind in (AdmissionRefused, Conflict, LimitExceeded, MalformedInput, Failure)
}

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
if room["measured"]:
    from strongroom.importing import MeasuredImports
    imports = MeasuredImports(standard=standard, dependencies=room["paths"], package=Path(room["package"]))
    imports.install()
    with open(room["measured"], "rb") as listing:
        imports.admit(json.load(listing))
sys.path += room["paths"]
from strongroom import admission_child
sys.exit(admission_child.main(room["control"]))
"""


class Admit(Protocol):
    """What examines models: `models.admit`, or `Examiner.admit` in a process of its own."""

    def __call__(self, data: bytearray, *, format: str, limits: AdmissionLimits) -> Admitted:
        """The model, admitted; the bytearray may be emptied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What one admission may take, enforced by the kernel."""

    wall_s: float
    cpu_s: int
    memory_bytes: int
    """Beyond what the template occupies, and besides a multiple of the model's size."""


STANDARD_CHILD: Final = ChildLimits(wall_s=60.0, cpu_s=50, memory_bytes=1 << 30)
"""The largest networks take ten seconds; the files of the hostile corpus less than one each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the template is executed: folders of the dependencies, where to be, which files may become code."""

    paths: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    measured: Mapping[str, str] | None
    """Path -> SHA-256 (hex) of every file that may be imported; None outside a server."""
    flags: Sequence[str]
    """Of the interpreter."""


class Examiner:
    """Admits models in children of a template. Thread-safe; a context manager."""

    def __init__(self, launch: Launch, *, limits: ChildLimits) -> None:
        """Executes the template, which gets ready on its own.

        Raises:
            Failure: it cannot be executed (code `start_refused`).
        """
        self._limits = limits
        self._launch = launch
        self._lock = threading.Lock()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Returns when the template is ready.

        Raises:
            Failure: it does not start (code `start_refused`).
        """
        with self._lock:
            self._wait()

    def close(self) -> None:
        """Ends the template, and with it all children."""
        with self._lock:
            self._stop()

    def admit(
        self, data: bytes | bytearray | memoryview, *, format: str, limits: AdmissionLimits
    ) -> Admitted:
        """As `models.admit`, in a child. A bytearray is emptied once it was sent.

        Raises:
            LimitExceeded, MalformedInput, Conflict, AdmissionRefused: as `models.admit`; and LimitExceeded
                where the child died or took too long (code `admission_limits`).
            Unavailable: no child can be made now (code `overloaded`).
        """
        if len(data) > limits.model_bytes:
            raise LimitExceeded(
                f"the model has {len(data)} bytes, at most {limits.model_bytes}", code="model_too_large"
            )
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_over(theirs)
            ours.settimeout(self._limits.wall_s + SPARE_S)
            try:
                header = {
                    "format": format,
                    "limits": dataclasses.asdict(limits),
                    "child": dataclasses.asdict(self._limits),
                }
                send(ours, header, data)
                if isinstance(data, bytearray):
                    data.clear()
                answer, canonical = receive(ours)
            except (OSError, EOFError, MemoryError):
                raise LimitExceeded(
                    "examining the model took more time or memory than it may", code="admission_limits"
                ) from None
        return _read(answer, canonical)

    # The template

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # The listing is too long for a command line, and a file could be changed: it goes through a pipe.
        listing_end, pipe = os.pipe() if self._launch.measured is not None else (-1, -1)
        room = {
            "package": str(Path(__file__).resolve().parent),
            "paths": list(self._launch.paths),
            "control": theirs.fileno(),
            "measured": f"/dev/fd/{listing_end}" if listing_end >= 0 else "",
        }
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, *self._launch.flags, "-c", _BOOTSTRAP, json.dumps(room)],
                    env=dict(self._launch.environment),
                    cwd=self._launch.folder,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[fd for fd in (theirs.fileno(), listing_end) if fd >= 0],
                )
            if listing_end >= 0:
                os.close(listing_end)
                with open(pipe, "wb") as listing:  # noqa: PTH123 - a descriptor
                    listing.write(json.dumps(self._launch.measured).encode())
        except OSError as exc:
            raise Failure("the process that examines models cannot be started", code="start_refused") from exc
        self._control, self._ready = ours, False

    def _wait(self) -> None:
        if self._ready:
            return
        self._control.settimeout(START_S)
        try:
            self._ready = self._control.recv(1) == b"+"
        except OSError:
            self._ready = False
        if not self._ready:
            self._process.kill()
            raise Failure("the process that examines models does not start", code="start_refused")
        self._control.settimeout(SPARE_S)

    def _stop(self) -> None:
        self._control.close()  # the template ends its children, and itself, when the control socket ends
        try:
            self._process.wait(SPARE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hand_over(self, end: socket.socket) -> None:
        """Gives the template one end of a socket, for a child of its own; starts it again where it has ended."""
        with self._lock:
            for attempt in range(2):
                self._wait()
                try:
                    socket.send_fds(self._control, [b"?"], [end.fileno()])
                    if self._control.recv(1) == b"+":
                        return
                except OSError:
                    pass
                if attempt == 0:
                    self._stop()
                    self._start()
        raise Unavailable("no process can be made to examine the model", code="overloaded")


def _read(answer: Mapping[str, Any], canonical: bytearray) -> Admitted:
    """What a child says, believed as far as it can be checked."""
    if set(answer) == {"error", "code", "message"}:
        kind = KINDS.get(str(answer["error"]), Failure)
        code, message = str(answer["code"]), str(answer["message"])[:MESSAGE_CHARACTERS]
        if code not in CODES or not message.isprintable():
            raise Failure("the process that examines models answers what it cannot")
        raise kind(message, code=code)
    if set(answer) != {"info", "sha256", "canonical_sha256"}:
        raise Failure("the process that examines models answers what it cannot")
    digest = str(answer["canonical_sha256"])
    return models.reopen(
        canonical,
        info=ModelInfo.from_json(answer["info"]),
        sha256=str(answer["sha256"]),
        canonical_sha256=digest,
    )


# Messages


def send(end: socket.socket, header: Mapping[str, Any], data: bytes | bytearray | memoryview) -> None:
    """Sends a JSON object and bytes.

    Raises:
        OSError: the other side is gone, or does not read.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    end.sendall(len(text).to_bytes(8, "big") + len(data).to_bytes(8, "big") + text)
    with memoryview(data) as view:
        end.sendall(view)


def receive(end: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Receives what `send` sent.

    Raises:
        EOFError: the other side ended before, or says what it cannot.
        OSError: it does not write in time.
    """
    lengths = _exactly(end, 16)
    size, count = int.from_bytes(lengths[:8], "big"), int.from_bytes(lengths[8:], "big")
    if size > HEADER_BYTES or count > models.MAX_ONNX:
        raise EOFError
    try:
        header = json.loads(bytes(_exactly(end, size)))
    except (ValueError, RecursionError):
        raise EOFError from None
    if not isinstance(header, dict):
        raise EOFError
    return header, _exactly(end, count)


def _exactly(end: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    with memoryview(data) as view:
        done = 0
        while done < count:
            got = end.recv_into(view[done:])
            if not got:
                raise EOFError
            done += got
    return data
