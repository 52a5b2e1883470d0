"""onnxruntime: sessions made of admitted models, and the cache that holds them.

This is the only module that imports onnxruntime; others take it from here.

Rules
  - Its telemetry is off before it is imported. The wheels start an upload thread otherwise, and write files.
  - It runs what `models.admit` wrote and nothing else, and is told so again: ONNX only (it would recognise
    its own FlatBuffers format by content and skip every check), and no folder for external data.
  - Options come from here alone: it can read them from a model's metadata, but admission writes none.
  - Its texts stay here. They hold names, shapes and values; callers get fixed sentences, logging is off.
  - No memory is kept from one run for the next. An arena hands a kernel the buffer that another caller's data
    lay in; a kernel that does not write all of its output then gives that data away.
  - One thread a run: results do not depend on the machine's cores, and one run cannot starve the others.
  - Graph optimisation is onnxruntime's default, so results are those of a plain session, bit for bit. Only
    constant folding is bounded (see `FOLDING_BYTES`): it runs operators while the model loads.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from strongroom.errors import AdmissionRefused, Error, Failure, InvalidRequest, LimitExceeded, Unavailable
from strongroom.models.info import Admitted, ModelInfo
from strongroom.oip import DATATYPES, Array, bytes_array

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before the import below
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

FOLDING_BYTES: Final = 16 << 20
"""Bytes of one operator's result that constant folding may keep, or four times the model if that is more: for
weights stored transposed or as halves, not for a file of 9 KB that makes one of 400 MB. (At 1 MB, a network
whose weights are computed was fused in another way, and its results differed in the last bit.)"""

_FATAL: Final = 4
onnxruntime.set_default_logger_severity(_FATAL)

# Besides its own classes, pybind11 turns C++'s standard exceptions into these.
_FOREIGN: Final[tuple[type[Exception], ...]] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

_DATATYPES: Final = {
    "tensor(bool)": "BOOL", "tensor(string)": "BYTES",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
}  # fmt: skip


class Engine:
    """Makes sessions of admitted models. Thread-safe; one a process."""

    def __init__(self) -> None:
        self._gauge = _Gauge()

    def load(self, admitted: Admitted) -> Session:
        """A session that is ready to run.

        Raises:
            AdmissionRefused: onnxruntime cannot load the model, or sees other inputs and outputs in it than
                admission did (codes `engine_refused`, `engine_interface`).
        """
        with self._gauge.measure() as grown:
            try:
                native = onnxruntime.InferenceSession(
                    admitted.onnx,
                    sess_options=_options(len(admitted.onnx)),
                    providers=["CPUExecutionProvider"],
                )
            except _FOREIGN:
                _refuse_load("onnxruntime cannot load the model", "engine_refused")
            measured = grown()
        for specs, values in (
            (admitted.info.inputs, native.get_inputs()),
            (admitted.info.outputs, native.get_outputs()),
        ):
            if {spec.name: spec.datatype for spec in specs} != {
                v.name: _DATATYPES.get(v.type) for v in values
            }:
                _refuse_load(
                    "onnxruntime sees other inputs or outputs than admission did", "engine_interface"
                )
        return Session(
            native,
            info=admitted.info,
            memory_bytes=_memory_bytes(len(admitted.onnx), measured=measured),
            gauge=self._gauge,
        )


def _refuse_load(message: str, code: str) -> NoReturn:
    # `from None`: onnxruntime's text holds the model's names and paths of this machine.
    raise AdmissionRefused(message, code=code) from None


def _options(model_bytes: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # plans the arena's reuse
    for key, value in (
        ("session.intra_op.allow_spinning", "0"),
        ("session.inter_op.allow_spinning", "0"),
        ("session.load_model_format", "ONNX"),
        # Admission refuses external data. Were some overlooked, the base for relative paths would be the
        # process's working folder; below a device no path exists.
        ("session.model_external_initializers_file_folder_path", os.devnull),
        ("optimization.constant_folding_max_output_size_in_bytes", str(max(FOLDING_BYTES, 4 * model_bytes))),
    ):
        options.add_session_config_entry(key, value)
    return options


def _memory_bytes(model_bytes: int, *, measured: int | None) -> int:
    """What a session is taken to occupy.

    A file's size says little: 9 KB can become 500 MB of constants, and kernels keep packed copies of weights.
    So the growth of the process while the session was made counts, if that was the only thing going on (and
    the system tells); but never less than twice the model, since it may have filled freed memory. Where
    nothing could be measured, three times the model, which published networks stay near or below. Four
    megabytes on top are for the graph. Memory of a run is not in it.
    """
    fixed = 4 << 20
    return 3 * model_bytes + fixed if measured is None else max(measured, 2 * model_bytes + fixed)


class _Gauge:
    """The growth of the process's memory over a stretch in which nothing else was loaded or run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._begun = 0

    def begin(self) -> tuple[int, bool]:
        """Marks the beginning of a load or run; its number, and whether it is alone so far."""
        with self._lock:
            self._begun += 1
            self._active += 1
            return self._begun, self._active == 1

    def end(self) -> None:
        """Marks its end."""
        with self._lock:
            self._active -= 1

    @contextlib.contextmanager
    def measure(self) -> Iterator[Callable[[], int | None]]:
        """Marks a stretch; yields a function that tells the growth so far, None if others were busy too."""
        number, alone = self.begin()
        before = _resident_bytes()

        def grown() -> int | None:
            after = _resident_bytes()
            if not alone or before is None or after is None or number != self._begun:
                return None
            return max(0, after - before)

        try:
            yield grown
        finally:
            self.end()


def _resident_bytes() -> int | None:
    if sys.platform != "linux":
        return None
    try:
        # proc(5): the second number is resident pages. A library OS may not have the file.
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class Session:
    """One loaded model. `run` may be called from several threads at once."""

    def __init__(self, native: Any, *, info: ModelInfo, memory_bytes: int, gauge: _Gauge) -> None:
        self._native = native
        self._datatypes = {spec.name: spec.datatype for spec in info.outputs}
        self._gauge = gauge
        self.memory_bytes = memory_bytes
        """Estimate of the memory it occupies between runs, in bytes."""

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Runs the model on arrays that `inputs.check_inputs` returned; () asks for all outputs.

        Raises:
            InvalidRequest: no such output, text that is not UTF-8, or the model cannot be run on these inputs
                (codes `output_unknown`, `input_not_text`, `run_failed`).
            Failure: the session is closed, or an output is not of the type the model declares.
        """
        names = outputs or tuple(self._datatypes)
        if not set(names) <= self._datatypes.keys():
            raise InvalidRequest(
                f"expected outputs among {', '.join(map(repr, self._datatypes))}", code="output_unknown"
            )
        native = self._native
        if native is None:
            raise Failure("the session is closed")
        feeds = {name: _to_runtime(name, array) for name, array in inputs.items()}
        self._gauge.begin()
        try:
            values = native.run(list(names), feeds)
        except _FOREIGN:
            # `from None`: the text may hold shapes, names and values of the request.
            raise InvalidRequest("the model cannot be run on these inputs", code="run_failed") from None
        finally:
            self._gauge.end()
        return {name: self._result(name, value) for name, value in zip(names, values, strict=True)}

    def _result(self, name: str, value: Any) -> Array:
        datatype = self._datatypes[name]
        if not isinstance(value, np.ndarray) or value.dtype != DATATYPES[datatype]:
            raise Failure(f"output {name!r} is not of the type that the model declares")
        if datatype == "BYTES":
            return bytes_array((text.encode("utf-8") for text in value.reshape(-1)), shape=value.shape)
        return value

    def close(self) -> None:
        """Gives the memory back. Runs under way finish first; later ones are refused."""
        self._native = None


def _to_runtime(name: str, array: Array) -> Array:
    """BYTES as the `str` objects that onnxruntime's binding wants: it would print bytes objects instead."""
    if array.dtype.kind != "O":
        return array
    texts = np.empty(array.size, dtype=np.object_)
    try:
        texts[:] = [element.decode("utf-8") for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"input {name!r} holds bytes that are not UTF-8", code="input_not_text"
        ) from None
    return texts.reshape(array.shape)


class _Entry:
    """One model on its way into memory, in it, or on its way out."""

    __slots__ = ("done", "error", "evicted", "leases", "session")

    def __init__(self) -> None:
        self.done = threading.Event()  # loading ended, with a session or an error
        self.session: Session | None = None
        self.error: Error | None = None
        self.leases = 1  # callers that use it or wait for it
        self.evicted = False


class SessionCache:
    """Sessions in memory, least recently used first to go. Thread-safe.

    Rules
      - A key is loaded once, however many ask for it; the others wait for that one load. Loaders run without
        the lock, so no load delays another key's load or run.
      - A leased session stays. What was evicted while leased is closed by its last lease.
      - The sum of `memory_bytes` of all sessions, evicted ones still leased included, is within the budget.
        What a loader takes before its session is counted comes on top: bound the number of loading threads.
      - A failed load is not remembered: the next caller tries again.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}  # least recently used first
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Memory of all sessions by their own estimate."""
        with self._lock:
            return self._used

    def loaded(self) -> tuple[Hashable, ...]:
        """Keys of the sessions in memory, least recently used first."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.session is not None)

    @contextlib.contextmanager
    def get(self, key: Hashable, loader: Callable[[], Session]) -> Iterator[Session]:
        """Leases the session of `key` for the length of a `with` block; `loader` makes it if it is not there.

        Raises:
            LimitExceeded: the session alone is larger than the budget (code `engine_model_too_large`).
            Unavailable: there is no room now, since what is loaded is in use (code `engine_memory_busy`).
            Error: whatever `loader` raises; those who waited for it get the same.
        """
        entry, mine = self._join(key)
        try:
            if mine:
                self._load(key, entry, loader)
            entry.done.wait()
            if entry.session is None:
                raise copy.copy(entry.error) if entry.error else Failure("loading the model failed")
            yield entry.session
        finally:
            self._leave(entry)

    def evict(self, key: Hashable) -> bool:
        """Forgets a session, at once for new callers; whether there was one."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                return False
            entry.evicted = True
            closing = [entry] if not entry.leases else []
            self._discount(closing)
        _close(closing)
        return True

    def close(self) -> None:
        """Forgets all sessions."""
        with self._lock:
            keys = tuple(self._entries)
        for key in keys:
            self.evict(key)

    def _join(self, key: Hashable) -> tuple[_Entry, bool]:
        """The entry with one lease more, as the latest used, and whether the caller is the one to load it."""
        with self._lock:
            entry = self._entries.pop(key, None)
            mine = entry is None
            if entry is None:
                entry = _Entry()
            else:
                entry.leases += 1
            self._entries[key] = entry
            return entry, mine

    def _leave(self, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
            closing = [entry] if entry.evicted and not entry.leases and entry.session else []
            self._discount(closing)
        _close(closing)

    def _load(self, key: Hashable, entry: _Entry, loader: Callable[[], Session]) -> None:
        session, victims = None, []
        try:
            session = loader()
            with self._lock:
                victims = self._room_for(session.memory_bytes)
                entry.session = session
                self._used += session.memory_bytes
        except BaseException as exc:
            with self._lock:
                # A copy: the original's traceback keeps the loader's frames, and the model in them, alive.
                entry.error = copy.copy(exc) if isinstance(exc, Error) else None
                if self._entries.get(key) is entry:
                    del self._entries[key]
            if session is not None:
                session.close()
            raise
        finally:
            _close(victims)
            entry.done.set()

    def _room_for(self, size: int) -> list[_Entry]:
        """Takes out as many unused sessions as must go for one of `size`; the caller closes them."""
        if size > self._budget:
            raise LimitExceeded(
                f"the model takes about {size} bytes of memory, all models together may take {self._budget}",
                code="engine_model_too_large",
            )
        victims: list[Hashable] = []
        room = self._budget - self._used
        for key, entry in self._entries.items():
            if room >= size:
                break
            if entry.session is not None and not entry.leases:
                victims.append(key)
                room += entry.session.memory_bytes
        if room < size:
            raise Unavailable(
                "all loaded models are in use; no memory for another", code="engine_memory_busy"
            )
        closing = [self._entries.pop(key) for key in victims]
        for entry in closing:
            entry.evicted = True
        self._discount(closing)
        return closing

    def _discount(self, entries: list[_Entry]) -> None:
        self._used -= sum(entry.session.memory_bytes for entry in entries if entry.session is not None)


def _close(entries: list[_Entry]) -> None:
    """Outside the lock: giving back a large model's memory takes a while."""
    for entry in entries:
        if entry.session is not None:
            entry.session.close()
