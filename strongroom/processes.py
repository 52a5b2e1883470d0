"""Templates and workers as the server holds them: one process each, never believed.

Rules
  - What a worker answers is copied before it is looked at: shapes, types and lengths are checked as a stranger's.
    What does not fit ends the worker.
  - Who a worker is, the kernel says: a child of the template, born after it was asked for. It gets its memory from
    the server directly, and no caller's data before.
  - Processes are killed by descriptors that refer to them and to nobody else, whatever became of their ids.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from strongroom import frames, proc, records
from strongroom.errors import AdmissionRefused, Error, Failure, InvalidRequest, LimitExceeded, SealRefused
from strongroom.feeding import FAMILY, Feeding, Plan, Slots
from strongroom.jobs import Source, too_long
from strongroom.models.info import ModelInfo, TensorSpec
from strongroom.oip import DATATYPES, Array
from strongroom.records import Place
from strongroom.ring_filling import send_stage
from strongroom.waiting import Waiting
from strongroom.zygote import Child, Timely

BIRTH_S: Final = 10.0
"""Seconds for a worker to be forked and to say so; a few thousandths usually."""
MOST_TEMPLATES: Final = 192
"""Models in memory at a time, less than `zygote_child.CHILDREN`: models never run must not take examiners' places."""
ENDING: Final = 32
"""Processes of a template beyond those that it may have: itself, and workers that were ended and are still going."""
SLACK: Final = 192 << 20
"""Bytes of address space for whatever neither the model nor its values take: buffers of kernels, the heap's gaps."""
MODEL_FACTOR: Final = 6
"""Bytes for each byte of the model while it loads: the file, its parsed form, weights, packed weights."""
PEAK_FACTOR: Final = 2
"""Bytes for each byte that admission bounded: kernels lay their inputs out anew."""
KEPT: Final = 1 << 20
"""Bytes of shared memory that stay a worker's between runs, overwritten; what is beyond goes back to the system."""
SWEEP: Final = 64
"""Runs after which all memory but that goes back, whether it was used or not."""
AT_ONCE: Final = 32 << 10
"""Bytes of a record that a socket takes without being read from: a sixth of what Linux gives it."""
FIXED: Final = 4 << 20
"""Bytes that the smallest model is taken to occupy."""
_CREDENTIALS: Final = struct.Struct("3i")
_PAGE: Final = mmap.PAGESIZE


class Died(Exception):
    """The worker ended, or said what it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """How much workers may take; units and meanings are those of the settings of the same names."""

    processes: int
    run_bytes: int
    run_longest_s: int
    input_bytes: int
    """Of one request's tensors together; as `response_bytes` and `elements`, what the server takes anyway."""
    response_bytes: int
    elements: int
    idle_bytes: int

    @property
    def cpu_s(self) -> int:
        """Seconds of processor time in a process's life; a worker that ran for half of it is replaced."""
        return max(600, 4 * self.run_longest_s)

    @property
    def answer_bytes(self) -> int:
        """Of all outputs together as they lie in shared memory: an empty string takes 4 bytes there, and 3 in JSON."""
        return -(-4 * self.response_bytes // 3)

    def room(self, info: ModelInfo) -> int:
        """Bytes of shared memory: the largest request and the largest answer. Pages are taken when they are written."""
        texts = 4 * self.elements + records.ALIGNMENT * (len(info.inputs) + len(info.outputs))
        fixed = [size for spec in info.inputs if (size := _fixed_bytes(spec)) is not None]
        inputs = self.input_bytes
        if len(fixed) == len(info.inputs):
            inputs = min(inputs, sum(fixed))
        return -(-(inputs + self.response_bytes + texts) // _PAGE) * _PAGE

    def memory(self, info: ModelInfo, size: int) -> int:
        """Bytes of address space for loading and running a model of `size` bytes, besides what its process has."""
        found = info.admission
        peak = max((room.peak_bytes for room in found.rooms), default=self.run_bytes)
        run = min(PEAK_FACTOR * peak, self.run_bytes)
        loading = MODEL_FACTOR * max(size, found.tensor_bytes) + 2 * found.resident_bytes
        return SLACK + loading + run + self.room(info)


def _fixed_bytes(spec: TensorSpec) -> int | None:
    """Bytes of a tensor of which every size is known."""
    if spec.shape is None or spec.datatype == "BYTES":
        return None
    sizes = [size for size in spec.shape if isinstance(size, int)]
    return DATATYPES[spec.datatype].itemsize * math.prod(sizes) if len(sizes) == len(spec.shape) else None


class Template:
    """The process that has loaded one model. Callers see that it is used by one thread at a time."""

    def __init__(self, waiting: Waiting, source: Source, *, limits: WorkerLimits) -> None:
        """Takes one that waits, or has one forked, and has it load the model.

        Raises:
            As `jobs.Host.load` and `Waiting.take`.
        """
        self.child: Child
        """The process."""
        self.memory_bytes: int
        self.resident = 0
        """Bytes of memory that it had once the model was loaded: what each of its workers begins with."""
        self._limits = limits
        self.feeding: Feeding | None = None
        """Of a model in stages: what its workers get them from."""
        if not self._from_form(waiting, source):
            whole = [source.read()]  # before it is taken: what cannot be read needs no process
            size = len(whole[0])
            self.child = waiting.take(limits.memory(source.info, size))
            self._born(source, None, lambda timely: frames.send(timely, {}, whole.pop()), size)

    def _from_form(self, waiting: Waiting, source: Source) -> bool:
        """Loads the prepared form, where there is one; False: what was admitted has to be loaded."""
        with source.stages() as stages:
            if not stages:
                return False
            plan = Plan([stage.length for stage in stages], source.room) if len(stages) > 1 else None
            staying = [stages[number] for number in (sorted(plan.stay) if plan else (0,))]
            header = {
                "staying": [{"length": stage.length, "chunk_size": stage.chunk_size} for stage in staying],
                "plan": None if plan is None else plan.to_json(),
            }

            def give(timely: Timely) -> None:
                for number, stage in enumerate(staying):
                    # One behind the other: what comes next must not come together with the last word of this one.
                    if number and timely.recv(1) != records.STAGE:
                        raise EOFError
                    send_stage(self.child.end, timely, stage)

            size = sum(stage.length for stage in staying)
            self.child = waiting.take(self._limits.memory(source.info, size))
            try:
                self._born(source, header, give, size)
                if plan is not None:
                    self.feeding = Feeding(plan)
                    self.memory_bytes = max(self.memory_bytes - size, plan.memory_bytes + FAMILY)
            except (SealRefused, AdmissionRefused, LimitExceeded, Failure) as fault:
                # What may be over by the next load costs a model in stages none: it is not to be loaded as a whole.
                if plan is None or isinstance(fault, SealRefused | AdmissionRefused):
                    source.spoilt(stages, fault.code)
                if plan is not None:
                    raise
                return False
            return True

    @property
    def stages(self) -> int:
        """In how many the model runs; 1: as a whole."""
        return 1 if self.feeding is None else len(self.feeding.plan.lengths)

    def bear(self, size: int, *, most: int) -> Worker:
        """Has a worker forked; parameters and exceptions are those of `Worker`."""
        if self.feeding is None:
            return Worker(self, size, most=most)
        return StagedWorker(self, self.feeding, size, most=most)

    def _born(
        self,
        source: Source,
        stage: dict[str, Any] | None,
        give: Callable[[Timely], None],
        size: int,
    ) -> None:
        """Has it load what `give` sends, of `size` bytes."""
        try:
            self.memory_bytes = self._loaded(source, stage, give, size)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    def _loaded(
        self, source: Source, stage: dict[str, Any] | None, give: Callable[[Timely], None], size: int
    ) -> int:
        limits, end = self._limits, self.child.end
        timely = Timely(end, limits.run_longest_s)
        header = {
            "info": source.info.to_json(),
            "sha256": source.sha256,
            "canonical_sha256": source.canonical_sha256,
            "stage": stage,
        }
        try:
            before = proc.resident(self.pid)
            frames.send(timely, header)
            give(timely)
            answer, _ = frames.receive(timely, most=0)
            self.resident = proc.resident(self.pid)
        except (OSError, EOFError):
            raise LimitExceeded(
                "loading the model took more time or memory than it may", code="load_limits"
            ) from None
        end.settimeout(BIRTH_S)
        if (code := answer.get("refused")) in _REFUSALS:
            kind, sentence = _REFUSALS[code]
            raise kind(sentence, code=code)
        if answer != {"loaded": True}:
            raise Failure("the process that loads models answers what it cannot")
        # What it took, and never less than twice the model: it may have filled memory that was free before.
        return max(self.resident - before, 2 * size + FIXED)

    def alive(self) -> bool:
        """Whether it has not ended; it says nothing more, so whatever could be read is its end."""
        return self.child.quiet()

    def fork(self, end: socket.socket) -> None:
        """Has it fork a worker that gets `end`. OSError where it has ended."""
        socket.send_fds(self.child.end, [records.FORK], [end.fileno()])

    def close(self, *, wait_s: float = 0.0) -> None:
        """Ends it; the zygote ends what it forked. `wait_s`: as `Child.close`."""
        self.child.close(wait_s=wait_s)
        if self.feeding is not None:
            self.feeding.stop()


_REFUSALS: Final[Mapping[object, tuple[type[Error], str]]] = {
    "engine_refused": (AdmissionRefused, "onnxruntime cannot load the model"),
    "engine_interface": (AdmissionRefused, "onnxruntime sees other inputs or outputs than admission did"),
    "load_limits": (LimitExceeded, "loading the model took more memory than it may"),
    "seal_digest": (SealRefused, "the model's bytes do not have the digest in the record"),
}
"""What a template may answer instead of being ready."""


class Worker:
    """One process and the memory it shares with us. One thread runs it at a time; `kill` may come from any other."""

    def __init__(self, template: Template, size: int, *, most: int) -> None:
        """Has it forked; `size`: bytes of shared memory, `most`: bytes of all outputs of a run together.

        Raises:
            OSError: the template has ended, or there are no descriptors.
        """
        self.template = template
        self.pid = 0
        """Its process id, once it is there; for logs and tests, never to kill it by."""
        self.spent_s = 0.0
        self._runs = 0
        self._size, self._most = size, most
        self._started, self._used, self._said = 0.0, 0, b""
        self._wanted: list[int] = []
        self._datatypes: list[str] = []
        self._found: tuple[Place, ...] = ()
        self._laid: records.Laid | None = None
        self._lock, self._process, self._statm = threading.Lock(), -1, -1
        self._shared: mmap.mmap | None = None
        self._area: Array | None = None
        self._end, theirs = socket.socketpair()
        with theirs:
            self._end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._end.settimeout(BIRTH_S)
            self._asked = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
            try:
                template.fork(theirs)
            except BaseException:
                self._end.close()
                raise

    def settle(self) -> None:
        """Waits until it is there, sees that it is who it has to be, and gives it its memory.

        In order: 1. the kernel says who speaks, 2. a descriptor of that process, 3. it is a child of the template,
        4. that was born after it was asked for: no process that could know another caller's data, 5. it is still
        that process.

        Raises:
            OSError, EOFError: it is not there, or another.
        """
        message, ancillary, _, _ = self._end.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        if message != records.HELLO or len(ancillary) != 1 or ancillary[0][1] != socket.SCM_CREDENTIALS:
            raise EOFError
        pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2])
        process = os.pidfd_open(pid)
        try:
            parent, born = proc.birth(pid)
            self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
            if parent != self.template.pid or born < self._asked or _readable(process):
                raise EOFError
        except BaseException:
            os.close(process)  # whoever it is: nobody that we may kill
            raise
        self.pid, self._process = pid, process
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        descriptor = proc.memory_file(self._size)
        try:
            self._shared = mmap.mmap(descriptor, self._size)
            self._area = np.frombuffer(self._shared, np.uint8)
            socket.send_fds(self._end, [records.MEMORY + self._size.to_bytes(8, "little")], [descriptor])
        finally:
            os.close(descriptor)
        self._end.settimeout(0)

    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process >= 0 and not _readable(self._process)

    def swollen(self, most: int) -> bool:
        """Whether it holds `most` bytes of memory more than its model took: a hostile model's worker would keep, idle,
        what a run may take. Pages of the model that it wrote to are not seen, and are no more than the model is.
        """
        if self._statm < 0:
            return False
        try:  # a descriptor of this process's file and no other's: it is asked after each run, and costs one call
            found = int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE
        except (OSError, IndexError):  # it has ended
            return False
        return found > self.template.resident + most

    def spoke(self) -> bool:
        """Whether it has said something, so that `settle` need not wait."""
        return _readable(self._end.fileno())

    def fileno(self) -> int:
        """The descriptor that can be read from once there is something for `step`."""
        return self._end.fileno()

    def wait(self, seconds: float) -> None:
        """Waits until there is something for `step`, or so long."""
        _readable(self._end.fileno(), seconds)

    def begin(self, inputs: Mapping[str, Array], wanted: list[int], info: ModelInfo, seconds: float) -> None:
        """Begins a run: each input is copied into the shared memory. It does not wait, unless there are so many
        tensors that their places are longer than `AT_ONCE`.

        Raises:
            LimitExceeded: the inputs do not fit (code `input_too_large`). Died: it is not there any more.
        """
        area = self._area
        if area is None:
            raise Failure("the worker is not there")
        self._started, self._used, self._said = time.monotonic(), 0, b""
        arrays = [inputs[spec.name] for spec in info.inputs]
        laid, self._wanted = self._laid, wanted
        try:
            if laid is not None and laid.fits(arrays, wanted):
                self._used = laid.used
                self._ask(laid.put(arrays), seconds)
            else:
                self._ask(self._lay(area, arrays, info), seconds)
        except BaseException:
            self.over()
            raise

    def _lay(self, area: Array, arrays: list[Array], info: ModelInfo) -> bytes:
        """Copies inputs as no run before had them; the record of the run."""
        self._datatypes, self._laid = [spec.datatype for spec in info.outputs], None
        places = []
        used, room = 0, len(area)
        for position, array in enumerate(arrays):
            if records.stored_bytes(array) > room - used:
                raise LimitExceeded("the request is larger than the model's memory", code="input_too_large")
            place = records.put(area, used, array, position=position)
            self._used = place.offset + place.size
            used = records.aligned(self._used)
            places.append(place)
        record = records.pack_run(places, self._wanted)
        if all(array.dtype.kind != "O" for array in arrays):
            self._laid = records.Laid(area, places, arrays, self._wanted, record=record)
        return record

    def step(self) -> int | None:
        """Takes what the worker has said. Once that is an answer: how many bytes its outputs have, for `results`; None
        where there is more to come.

        Raises:
            InvalidRequest, LimitExceeded: how the run ended. Died: the worker has, or says what it cannot. In either
                case the run is over.
        """
        try:
            said = self._end.recv(records.FIRST)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        try:
            if not said:
                raise Died
            self._said += said
            return self._answered()
        except BaseException:
            self.over()
            raise

    def _answered(self) -> int | None:
        try:
            answer = records.parse_answer(self._said, outputs=len(self._wanted))
        except EOFError:
            raise Died from None
        if answer is None:
            return None
        outcome, self._found = answer
        if outcome != records.DONE:
            self._used = self._size  # some outputs may be there, and nobody says where
            _refuse(outcome)
        size = sum(place.size for place in self._found)
        self._used = max(self._used, *(place.offset + place.size for place in self._found), 0)
        # Before anything is copied: they may lie on one another, and be millions of strings.
        if size > self._most:
            _refuse(records.TOO_LARGE)
        return size

    def results(self) -> list[Array]:
        """The outputs, each copied out of the shared memory. The run is over then.

        Raises:
            Died: they are not what was asked for.
        """
        try:
            return [
                self._output(place, position)
                for place, position in zip(self._found, self._wanted, strict=True)
            ]
        finally:
            self.over()

    def _ask(self, run: bytes, seconds: float) -> None:
        try:
            if len(run) <= AT_ONCE:  # what an empty socket takes
                if self._end.send(run) != len(run):
                    raise Died
                return
            try:
                self._end.settimeout(seconds)
                self._end.sendall(run)
            finally:
                self._end.settimeout(0)
        except TimeoutError:
            self.kill()
            raise too_long(seconds) from None
        except OSError:
            raise Died from None

    def over(self) -> None:
        """Ends a run, however it went: nothing of it stays in the shared memory."""
        self.spent_s += time.monotonic() - self._started
        self._said = b""
        if self._area is not None:
            self._scrub(min(self._used, len(self._area)))

    def _output(self, place: Place, position: int) -> Array:
        if place.position != position or self._area is None:
            raise Died
        try:
            return records.take(self._area, place, datatype=self._datatypes[position])
        except EOFError:
            raise Died from None

    def _scrub(self, used: int) -> None:
        """Nothing of a request stays in shared memory; what it grew to goes back to the system."""
        if self._area is None or self._shared is None:
            return
        self._area[: min(used, KEPT)] = 0
        self._runs += 1
        # Now and then in any case: a worker may write where nothing belongs, to have us keep it.
        if len(self._area) > KEPT and (used > KEPT or not self._runs % SWEEP):
            self._shared.madvise(mmap.MADV_REMOVE, KEPT, len(self._area) - KEPT)

    def kill(self) -> None:
        """Ends the process now. Thread-safe."""
        with self._lock:
            if self._process >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and gives its memory back."""
        self.kill()
        with self._lock:
            for descriptor in (self._process, self._statm):
                if descriptor >= 0:
                    os.close(descriptor)
            self._process = self._statm = -1
        self._end.close()
        # Given back with the last reference: an exception that is on its way may still hold one.
        self._area = self._shared = self._laid = None


class StagedWorker(Worker):
    """A worker of a model in stages: it has a second socket, by which it asks for them."""

    def __init__(self, template: Template, feeding: Feeding, size: int, *, most: int) -> None:
        self._feeding = feeding
        self._number = 0  # of its run
        self._slots = Slots(feeding.plan.slot)
        try:
            self._feed, self._theirs = socket.socketpair()
        except BaseException:
            self._slots.close()
            raise
        try:
            super().__init__(template, size, most=most)
        except BaseException:
            self._give_back()
            raise

    def settle(self) -> None:
        """As `Worker.settle`; then the slots, to be read, and the socket."""
        super().settle()
        with self._theirs:
            for descriptor in (self._slots.readable, self._theirs.fileno()):
                socket.send_fds(self._end, [records.MEMORY], [descriptor])

    def begin(self, inputs: Mapping[str, Array], wanted: list[int], info: ModelInfo, seconds: float) -> None:
        """As `Worker.begin`, within `Feeding.turn`."""
        self._number += 1
        self._feeding.serve(self._feed, self._slots, self._number)
        super().begin(inputs, wanted, info, seconds)

    def over(self) -> None:
        """As `Worker.over`."""
        self._feeding.stop(self._slots)
        super().over()

    def close(self) -> None:
        """As `Worker.close`."""
        super().close()
        self._give_back()

    def _give_back(self) -> None:
        self._feeding.stop(self._slots)  # before their numbers may be somebody else's
        self._feed.close()
        self._theirs.close()
        self._slots.close()


def _refuse(outcome: bytes) -> NoReturn:
    if outcome == records.NO_TEXT:
        raise InvalidRequest("an input holds bytes that are not UTF-8", code="input_not_text")
    if outcome == records.NO_MEMORY:
        raise LimitExceeded("the run takes more memory than there is for it", code="run_memory")
    if outcome == records.TOO_LARGE:
        raise LimitExceeded("the result is longer than results may be", code="response_too_large")
    raise InvalidRequest("the model cannot be run on these inputs", code="run_failed")


def _readable(descriptor: int, seconds: float = 0.0) -> bool:
    """Whether there is something to be read within so many seconds. Not by `select`, which knows no number from 1024
    on.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(math.ceil(1000 * seconds)))
