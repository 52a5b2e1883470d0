"""Where models run: the template of one model, and the workers that it forks, one for each data owner.

    zygote --forks--> template: one model, loaded under lock-down --forks--> workers: one caller's inputs each

Rules
  - The template gives up everything before it looks at a byte of the model, usually before there is one (`waiting`),
    and never sees an input: what it is at the time of a fork is all that workers of different callers have in common.
  - A worker gives up the rest before its first input. It has one socket, and one piece of memory that it shares
    with the server and nobody else.
  - Neither tells anybody what went wrong but by a word of a closed set: onnxruntime's texts stay here, and end here.
  - If the template is taken over while it loads, it must not become a way from one worker to another: it cannot
    keep what it passes on (one free descriptor, and a worker's memory is sent only to the worker), and learns
    nothing from a worker's end.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from strongroom import frames, heap, kernel, models, records, ring, sandbox, staging
from strongroom.engine import Engine, Session, warm
from strongroom.errors import AdmissionRefused, Error, InvalidRequest, LimitExceeded
from strongroom.models.info import ModelInfo
from strongroom.oip import Array
from strongroom.records import Place
from strongroom.staging import Staged

_CONTROL: Final = 3
"""Descriptor of the template's socket to the server."""
FILL: Final = 165
"""As MALLOC_PERTURB_ has it in `launch.CHILD`."""
_UNKNOWN: Final = 1 << 46
"""Bytes of address space for as long as no model is known that it depends on: a limit, which can be made less."""
_WORKER: Final = 4
"""Descriptor of a worker's; the only other one that there can be at a time."""


def template(descriptor: int) -> int:
    """Locks itself down, waits for a model, which comes through `descriptor`, loads it, and forks workers until the
    server hangs up; the exit code.
    """
    if descriptor != _CONTROL:
        os.dup2(descriptor, _CONTROL)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: their ends tell nothing
    with socket.socket(fileno=_CONTROL) as server:
        promise, _ = frames.receive(server, most=0)
        held = sandbox.lock_down(_profile(promise, fork=True))
        # One free number: whoever wants a second descriptor has to close the first; 0 to 2 cannot be closed.
        resource.setrlimit(resource.RLIMIT_NOFILE, (_WORKER + 1, _WORKER + 1))
        sandbox.prepare(_profile(promise, fork=False))
        warm()  # once more: pages that a session writes to become its own now, and not while a model loads
        frames.send(server, {"held": list(held)})
        if not _enough(promise, held):
            return 1
        try:  # here it waits, with what is so far known to be anybody's
            limit, _ = frames.receive(server, most=0)
        except EOFError:
            return 0
        resource.setrlimit(resource.RLIMIT_AS, (limit["address_bytes"], limit["address_bytes"]))
        server.sendall(records.LIMITED)
        header, _ = frames.receive(server, most=0)
        header |= promise
        sandbox.prepare(_profile(header, fork=False))  # another one for stages
        # There is no memory of anybody's here yet but the model's, several times its size is handed out and freed, and
        # filling all of that takes as long as the rest.
        kernel.fill_blocks(0)
        try:
            session, room = _load(server, header)
        except Error as refusal:
            frames.send(server, {"refused": refusal.code})
            return 0
        except MemoryError:
            frames.send(server, {"refused": "load_limits"})
            return 0
        gc.collect()
        heap.loaded(room)  # loading left several times the model in holes, which each fork would keep
        kernel.fill_blocks(FILL)
        gc.freeze()
        frames.send(server, {"loaded": True})
        return _fork_workers(server, session, header)


def _load(server: socket.socket, header: dict[str, Any]) -> tuple[Session | Staged, heap.Room]:
    """What runs the model, and where in the heap it was made."""
    info, form = ModelInfo.from_json(header["info"]), header["stage"]
    if form is not None:
        staying = _staying(server, form["staying"])
        if form["plan"] is not None:
            return staging.of_plan(info, form["plan"], staying), heap.Room(0, 0)
        stage = next(staying)
        room = heap.spacious(len(stage) + heap.LOAD_BYTES)
        return Engine().load_prepared(stage, info, confined=True), room
    _, data = frames.receive_bytes(server)
    admitted = models.reopen(
        data, info=info, sha256=header["sha256"], canonical_sha256=header["canonical_sha256"]
    )
    return Engine().load(admitted), heap.Room(0, 0)


def _staying(server: socket.socket, stages: list[dict[str, int]]) -> Iterator[memoryview]:
    for number, stage in enumerate(stages):
        if number:
            server.sendall(records.STAGE)
        yield ring.receive_stage(server, length=stage["length"], chunk_size=stage["chunk_size"])


def _enough(header: dict[str, Any], held: tuple[str, ...]) -> bool:
    """Whether all layers that the server promised hold from here on."""
    return set(header["layers"]) <= set(held)


def _profile(header: dict[str, Any], *, fork: bool) -> sandbox.Profile:
    """What is left to the template, which forks, and to a worker, which does not. `header`: with or without a model."""
    form = header.get("stage")
    # The socket by which a worker asks for stages takes the first free number (`_fed`).
    staged = form is not None and form["plan"] is not None
    own = (_CONTROL,) if fork else (_WORKER, *((_CONTROL,) if staged else ()))
    return sandbox.Profile(
        memory_bytes=_UNKNOWN if fork else resource.getrlimit(resource.RLIMIT_AS)[1],
        cpu_s=header["cpu_s"],
        read_fds=own,
        write_fds=own,
        fork=fork,
        receive_fds=fork,
        tend=False,
        looks=fork,
        processes=header["processes"] if fork else None,
    )


def _fork_workers(server: socket.socket, session: Session | Staged, header: dict[str, Any]) -> int:
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        if message != records.FORK or descriptors != [_WORKER]:
            return 0
        own = os.getpid()
        if os.fork() == 0:
            code = 1
            try:
                server.close()
                code = _work(session, header, parent=own)
            finally:
                os._exit(code)
        os.close(_WORKER)


# A worker


def _work(session: Session | Staged, header: dict[str, Any], *, parent: int) -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return 1
    with socket.socket(fileno=_WORKER) as server:
        server.sendall(records.HELLO)
        if isinstance(session, Session):
            kernel.fill_blocks(0)  # nothing of anybody's is here yet
            heap.for_runs()
            kernel.fill_blocks(FILL)
        message, descriptors, _, _ = socket.recv_fds(server, 9, 1)
        if message[:1] != records.MEMORY or len(descriptors) != 1:
            return 1
        area = _map(descriptors[0], int.from_bytes(message[1:], "little"))
        os.close(descriptors[0])
        if isinstance(session, Staged) and not _fed(server, session):
            return 1
        if not _enough(header, sandbox.lock_down(_profile(header, fork=False))):
            return 1
        arrays = _Inputs(session.info, area)
        while True:
            try:
                places, wanted = records.receive_run(server)
            except EOFError:
                return 0
            server.sendall(_run(session, area, arrays, places, wanted))


def _fed(server: socket.socket, session: Staged) -> bool:
    """Takes the slots that stages come into, and the socket by which they are asked for; whether that is where the
    profile has it.
    """
    received = []
    for _ in range(2):
        message, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        if message != records.MEMORY or len(descriptors) != 1:
            raise EOFError
        received.append(descriptors[0])
        if len(received) == 1:
            size = max(2 * session.slot, resource.getpagesize())
            slots = _map(descriptors[0], size, writable=False)
            os.close(descriptors[0])  # its number is the socket's
    session.feed(socket.socket(fileno=received[1]), slots.data)
    return received[1] == _CONTROL


def _map(descriptor: int, size: int, *, writable: bool = True) -> Array:
    """The memory that is shared with the server, uint8 [size]. Not by `mmap`, which keeps another descriptor of it."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = call(None, size, 3 if writable else 1, 1, descriptor, 0)  # PROT_READ, PROT_WRITE; MAP_SHARED
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "the shared memory cannot be mapped")
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)


class _Inputs:
    """The inputs of runs, by name: views of the shared memory, good for as long as their places are the same."""

    def __init__(self, info: ModelInfo, area: Array) -> None:
        self._info, self._area = info, area
        self._lasting = all(spec.datatype != "BYTES" for spec in info.inputs)
        self._places: tuple[Place, ...] | None = None
        self._views: dict[str, Array] = {}

    def at(self, places: tuple[Place, ...]) -> dict[str, Array]:
        """Those of this run. EOFError: there are no such tensors."""
        if places is not self._places:
            specs = self._info.inputs
            self._views = {
                specs[place.position].name: records.view(
                    self._area, place, datatype=specs[place.position].datatype
                )
                for place in places
            }
            self._places = places if self._lasting else None
        return self._views


def _run(
    session: Session | Staged,
    area: Array,
    arrays: _Inputs,
    places: tuple[Place, ...],
    wanted: tuple[int, ...],
) -> bytes:
    """One run, and the record that answers it."""
    info = session.info
    try:
        inputs = arrays.at(places)
        names = tuple(info.outputs[position].name for position in wanted)
        results = session.run(inputs, outputs=names)
        return _put(area, places, [(position, results[n]) for position, n in zip(wanted, names, strict=True)])
    except EOFError:  # the server's arrays are not of the model's types
        return records.pack_answer(records.FAILED)
    except InvalidRequest as refusal:
        return records.pack_answer(records.NO_TEXT if refusal.code == "input_not_text" else records.FAILED)
    except AdmissionRefused:  # a stage cannot be loaded
        return records.pack_answer(records.FAILED)
    except (LimitExceeded, MemoryError):
        return records.pack_answer(records.NO_MEMORY)


def _put(area: Array, inputs: tuple[Place, ...], results: list[tuple[int, Array]]) -> bytes:
    """Outputs go behind the inputs: onnxruntime's own memory is copied once, into memory that the server sees."""
    offset = max((records.aligned(place.offset + place.size) for place in inputs), default=0)
    places = []
    for position, array in results:
        size = records.stored_bytes(array)
        if size > len(area) - offset:
            return records.pack_answer(records.TOO_LARGE)
        places.append(records.put(area, offset, array, position=position))
        offset += size
    return records.pack_answer(records.DONE, places)
