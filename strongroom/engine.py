"""onnxruntime: sessions made of admitted models.

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
    constant folding is bounded (`engine_options.FOLDING_BYTES`): it runs operators while the model loads.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from strongroom import models
from strongroom.engine_options import ENTRIES, FOLDING_BYTES, INLINE_BYTES
from strongroom.errors import AdmissionRefused, Error, Failure, InvalidRequest, LimitExceeded
from strongroom.jobs import THREADS, Job, Loaded, Source
from strongroom.kernel import trim_heap
from strongroom.models.info import Admitted, ModelInfo
from strongroom.oip import DATATYPES, Array, bytes_array
from strongroom.stages import TYPES, layout

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before the import below
import onnxruntime as onnxruntime  # for `staging`, too: no other module imports it
from onnxruntime.capi import onnxruntime_pybind11_state as _native

_FATAL: Final = 4
_FOLDER: Final = "session.model_external_initializers_file_folder_path"
onnxruntime.set_default_logger_severity(_FATAL)

# Besides its own classes, pybind11 turns C++'s standard exceptions into these.
FOREIGN: Final[tuple[type[Exception], ...]] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

NO_MEMORY: Final = ("std::bad_alloc", "Failed to allocate memory")
"""What onnxruntime says where C++ or its own allocators get no memory; it has no class for it."""

_DATATYPES: Final = {
    "tensor(bool)": "BOOL", "tensor(string)": "BYTES",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
}  # fmt: skip


def warm() -> None:
    """Makes onnxruntime set up what it sets up once, with a model of one node: for a process that will be forked."""
    session = onnxruntime.InferenceSession(
        _ONE_NODE, sess_options=session_options(0), providers=["CPUExecutionProvider"]
    )
    session.run(None, {"x": np.zeros(1, np.float32)})


_ONE_NODE: Final = bytes.fromhex(
    "08083a390a100a017812017922084964656e746974791201675a100a0178120b0a09080112050a0312016e62100a0179120b0a090801"
    "12050a0312016e42040a001011"
)
"""ONNX: y = Identity(x), a vector of floats."""


class InProcess:
    """Runs models in this process, all callers' in one: only what admission proved may be loaded here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, source: Source) -> Loaded:
        """See `jobs.Host`."""
        # Here alone: the processes that models run in have no cryptography in them.
        from strongroom.ring_filling import read_stage

        with source.stages() as stages:
            if len(stages) == 1:
                try:
                    return self._engine.load_prepared(read_stage(stages[0]), source.info)
                except (Error, OSError, MemoryError) as fault:
                    source.spoilt(stages, fault.code if isinstance(fault, Error) else "load_limits")
        return self._engine.load(
            models.reopen(
                source.read(),
                info=source.info,
                sha256=source.sha256,
                canonical_sha256=source.canonical_sha256,
            )
        )


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
                    sess_options=session_options(len(admitted.onnx)),
                    providers=["CPUExecutionProvider"],
                )
            except FOREIGN:
                _refuse_load("onnxruntime cannot load the model", "engine_refused")
            # onnxruntime's Python class keeps the file for a fallback to other providers, which there are not.
            native._model_bytes = None
            trim_heap()
            measured = grown()
        _check_interface(native, admitted.info)
        return Session(
            native,
            info=admitted.info,
            memory_bytes=_memory_bytes(len(admitted.onnx), measured=measured),
            gauge=self._gauge,
        )

    def load_prepared(self, stage: memoryview, info: ModelInfo, *, confined: bool = False) -> Session:
        """A session of a prepared form's only stage: no copy of its weights is made, so `stage` is the session's from
        here on, and nobody writes to it. `confined`: this process can open no file by a name, whatever a graph says,
        but may ask whether there is one; onnxruntime then copies no weights while it builds the graph.

        Raises:
            AdmissionRefused: it is no stage, onnxruntime cannot load it, or sees other inputs and outputs in it than
                admission did (codes `engine_refused`, `engine_interface`).
        """
        with self._gauge.measure() as grown:
            try:
                native, values = _prepared(stage, confined=confined)
            except FOREIGN:
                _refuse_load("onnxruntime cannot load the prepared form", "engine_refused")
            native._model_bytes = None
            trim_heap()
            measured = grown()
        _check_interface(native, info)
        return Session(
            native,
            info=info,
            memory_bytes=len(stage) + _memory_bytes(0, measured=measured),
            gauge=self._gauge,
            weights=values,
        )


def _prepared(stage: memoryview, *, confined: bool) -> tuple[Any, list[Any]]:
    found = layout(stage, size=len(stage))
    weights = np.frombuffer(stage, np.uint8)
    values = []
    for tensor in found.tensors:
        data = weights[tensor.offset : tensor.offset + tensor.length].view(TYPES[tensor.type])
        if data.ctypes.data % data.itemsize:  # as onnxruntime aligns its own
            data = data.copy()
        values.append(onnxruntime.OrtValue.ortvalue_from_numpy(data.reshape(tensor.dimensions)))
    names = [tensor.name for tensor in found.tensors]
    graph = bytes(stage[found.weights : found.weights + found.graph])
    if confined:
        # onnxruntime looks whether the place that the graph names is there (`engine_options.PLACE`), and reads nothing
        # from it: it has every tensor of the table already. Where it looks in another way than it may, it refuses.
        with contextlib.suppress(*FOREIGN):
            options = _prepared_options(names, values)
            options.add_session_config_entry(_FOLDER, "/")
            return _opened(graph, options), values
    # The first copies every tensor for as long as the graph is built; without the second, which is in the options, the
    # copies would be what kernels use.
    options = _prepared_options(names, values)
    options.add_external_initializers(names, values)
    return _opened(graph, options), values


def _prepared_options(names: list[str], values: list[Any]) -> Any:
    options = session_options(0)
    # What there was to be optimised, was; what is done to the result again would be done to no plain session's.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in zip(names, values, strict=True):
        options.add_initializer(name, value)
    return options


def _opened(graph: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])


def optimise(model: int, *, graph: int, weights: int, size: int) -> None:
    """Has onnxruntime read a model of `size` bytes from the pipe `model`, optimise it as `Engine.load` does, and write
    its graph to the file `graph` and its larger initializers, one behind the other, to the pipe `weights`. Descriptors;
    it opens them again by their names below /proc.

    Raises:
        AdmissionRefused: onnxruntime cannot load or write it (code `engine_refused`).
    """
    options = session_options(size)
    options.optimized_model_filepath = f"/proc/self/fd/{graph}"
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", str(weights)),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)),
        ("session.disable_prepacking", "1"),  # nothing is run here
    ):
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(
            f"/proc/self/fd/{model}", sess_options=options, providers=["CPUExecutionProvider"]
        )
    except FOREIGN:
        _refuse_load("onnxruntime cannot optimise the model", "engine_refused")


def _check_interface(native: Any, info: ModelInfo) -> None:
    for specs, values in ((info.inputs, native.get_inputs()), (info.outputs, native.get_outputs())):
        if {spec.name: spec.datatype for spec in specs} != {v.name: _DATATYPES.get(v.type) for v in values}:
            _refuse_load("onnxruntime sees other inputs or outputs than admission did", "engine_interface")


def _refuse_load(message: str, code: str) -> NoReturn:
    # `from None`: onnxruntime's text holds the model's names and paths of this machine.
    raise AdmissionRefused(message, code=code) from None


def session_options(model_bytes: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # plans the arena's reuse
    for key, value in (
        *ENTRIES,
        # Admission refuses external data. Were some overlooked, the base for relative paths would be the
        # process's working folder; below a device no path exists.
        (_FOLDER, os.devnull),
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

    stages = 1
    """See `jobs.Loaded`."""

    def __init__(
        self, native: Any, *, info: ModelInfo, memory_bytes: int, gauge: _Gauge, weights: object = None
    ) -> None:
        """`weights`: what has to stay in memory for as long as the session."""
        self._native = native
        self._weights = weights
        self.info = info
        self._datatypes = {spec.name: spec.datatype for spec in info.outputs}
        self._gauge = gauge
        self.memory_bytes = memory_bytes
        """Estimate of the memory it occupies between runs, in bytes."""

    def run(
        self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job | None = None
    ) -> dict[str, Array]:
        """Runs the model on arrays that `inputs.check_inputs` returned; () asks for all outputs. `job` changes
        nothing: a run in this process cannot be stopped, and all callers share it.

        Raises:
            InvalidRequest: no such output, text that is not UTF-8, or the model cannot be run on these inputs
                (codes `output_unknown`, `input_not_text`, `run_failed`).
            LimitExceeded: there is not the memory for it (code `run_memory`).
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
        feeds = {name: to_runtime(name, array) for name, array in inputs.items()}
        self._gauge.begin()
        try:
            values = native.run(list(names), feeds)
        except FOREIGN as exc:
            # `from None`: the text may hold shapes, names and values of the request.
            if isinstance(exc, MemoryError) or any(words in str(exc) for words in NO_MEMORY):
                raise LimitExceeded(
                    "the run takes more memory than there is for it", code="run_memory"
                ) from None
            raise InvalidRequest("the model cannot be run on these inputs", code="run_failed") from None
        finally:
            self._gauge.end()
        return {name: self._result(name, value) for name, value in zip(names, values, strict=True)}

    def begin(
        self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job
    ) -> dict[str, Array] | None:
        """See `jobs.Loaded`: quick runs only."""
        return self.run(inputs, outputs=outputs) if job.quick else None

    def shared(self, job: Job) -> bool:
        """See `jobs.Loaded`."""
        return job.caller is not None

    def _result(self, name: str, value: Any) -> Array:
        datatype = self._datatypes[name]
        if not isinstance(value, np.ndarray) or value.dtype != DATATYPES[datatype]:
            raise Failure(f"output {name!r} is not of the type that the model declares")
        if datatype == "BYTES":
            return bytes_array((text.encode("utf-8") for text in value.reshape(-1)), shape=value.shape)
        return value

    def close(self) -> None:
        """Gives the memory back. Runs under way finish first; later ones are refused."""
        self._native = self._weights = None
        trim_heap()


def to_runtime(name: str, array: Array) -> Array:
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
