"""A model in stages, run one after the other by the engine: where only a part of its weights is in memory.

    stage 0      stage 1      stage 2      stage 3           a run, in one thread
    [ slot 0 ]   [ stays  ]   [ slot 1 ]   [ slot 0 ] ...

Rules
  - A stage's bytes are those of `stages.layout`; they are used where they lie and not copied, until they are given
    back.
  - A stage's session lives as long as the stage is there: its kernels pack weights, and what they packed goes with it.
    Prepacking is not left out: results would differ in the last bit from the whole model's.
  - Optimisation is off: the graph was optimised as a whole, and no node of it is changed again.
  - What one stage gives another stays in this process, until no later one reads it, and never outlives the run.
"""

from __future__ import annotations

import json
import mmap
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto

from strongroom.engine import (
    FOREIGN,
    NO_MEMORY,
    onnxruntime,
    session_options,
    to_runtime,
)
from strongroom.errors import AdmissionRefused, Error, Failure, InvalidRequest, LimitExceeded
from strongroom.fetching import Fetching
from strongroom.kernel import keep_heap, trim_heap
from strongroom.models.info import ModelInfo
from strongroom.models.parting import DROPS
from strongroom.models.stages import Value
from strongroom.oip import DATATYPES, Array, bytes_array
from strongroom.stages import TYPES, Tensor, layout

_KEPT: Final = 64 << 20
"""Bytes that the heap keeps while a model runs: what a stage's kernels packed, the next one's do in the same pages."""

_KINDS: Final = {
    "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "string": TensorProto.STRING, "bool": TensorProto.BOOL,
    **{name.lower(): getattr(TensorProto, name) for name in (
        "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    )},
}  # fmt: skip
"""What onnxruntime calls the types of tensors -> ONNX's numbers."""


def values_of(graph: bytes, tensors: Sequence[Tensor]) -> dict[str, Value]:
    """What onnxruntime knows of all that an optimised graph's nodes make: types, and shapes as far as they are known.

    Nothing is run, and the weights are not needed: memory that nobody touches stands for them.

    Raises:
        AdmissionRefused: onnxruntime cannot load the graph (code `engine_refused`).
    """
    shown = onnx.ModelProto.FromString(graph)
    have = {entry.name for entry in shown.graph.output}
    names = [name for node in shown.graph.node for name in node.output if name and name not in have]
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = _whole_options(packing=False)
    # One mapping for all of them, of whose pages none is ever there.
    largest = max((tensor.length for tensor in tensors), default=1)
    nothing = np.frombuffer(mmap.mmap(-1, largest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    standing = [_placed(nothing, tensor._replace(offset=0)) for tensor in tensors]
    options.add_external_initializers([tensor.name for tensor in tensors], standing)
    native = _session(shown.SerializeToString(), options)
    found = {}
    for entry in native.get_outputs():
        word = entry.type.removeprefix("tensor(").removesuffix(")")
        if entry.type == f"tensor({word})" and word in _KINDS:
            shape = tuple(size if isinstance(size, int) else None for size in entry.shape)
            found[entry.name] = Value(int(_KINDS[word]), shape)
    return found


class Loaded:
    """One stage, ready to run: of bytes that stay where they are as long as it lives."""

    __slots__ = ("_drops", "_inputs", "_native", "_outputs", "_weights")

    def __init__(self, stage: memoryview) -> None:
        """Raises:
        AdmissionRefused: it is no stage, or onnxruntime cannot load it (code `engine_refused`).
        """
        try:
            found = layout(stage, size=len(stage))
            graph = bytes(stage[found.weights : found.weights + found.graph])
            whole = np.frombuffer(stage, np.uint8)
            self._weights = [_placed(whole, tensor) for tensor in found.tensors]
            options = _whole_options(packing=True)
            # Both: see `engine._prepared`.
            options.add_external_initializers([tensor.name for tensor in found.tensors], self._weights)
            for tensor, value in zip(found.tensors, self._weights, strict=True):
                options.add_initializer(tensor.name, value)
            self._native = _session(graph, options)
            drops = json.loads(self._native.get_modelmeta().custom_metadata_map.get(DROPS, "[]"))
        except (ValueError, KeyError, RecursionError):
            raise _refused() from None
        self._drops = [name for name in drops if isinstance(name, str)]
        self._inputs = [entry.name for entry in self._native.get_inputs()]
        self._outputs = [entry.name for entry in self._native.get_outputs()]

    def run(self, held: dict[str, Any]) -> None:
        """Runs it on what is held: what it makes is added, what nobody reads any more is taken away."""
        feeds = {name: held[name] for name in self._inputs}
        if self._outputs:
            held.update(zip(self._outputs, self._native.run(self._outputs, feeds), strict=True))
        del feeds
        for name in self._drops:
            held.pop(name, None)


class Staged:
    """A model in stages, some of which stay. One run at a time."""

    def __init__(self, info: ModelInfo, plan: Mapping[str, Any]) -> None:
        """`plan`: what `feeding.Plan.to_json` wrote."""
        self.info = info
        self.slot: int = plan["slot"]
        """Bytes of a slot."""
        self._lengths: list[int] = plan["lengths"]
        self._moving: list[int] = plan["moving"]
        self._stay: dict[int, Loaded] = {}
        self._fetching: Fetching | None = None

    def keep(self, number: int, stage: memoryview) -> None:
        """Loads a stage that stays.

        Raises:
            AdmissionRefused: as `Loaded`.
        """
        self._stay[number] = Loaded(stage)

    def feed(self, end: socket.socket, slots: memoryview) -> None:
        """Where the others come from."""
        self._fetching = Fetching(end, slots, lengths=self._lengths, moving=self._moving, slot=self.slot)

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...]) -> dict[str, Array]:
        """As `engine.Session.run`.

        Raises:
            AdmissionRefused: as `Loaded`. As `Fetching.fetch`.
        """
        fetching = self._fetching
        if fetching is None:
            raise Failure("nobody gives the stages")
        held: dict[str, Any] = {name: to_runtime(name, array) for name, array in inputs.items()}
        fetching.begin()
        for number in range(len(self._lengths)):
            if (staying := self._stay.get(number)) is not None:
                _run(staying, held)
                continue
            stage = fetching.fetch(number)
            loaded = Loaded(stage)
            _run(loaded, held)
            del loaded  # before its bytes are given back
            fetching.back(number)
        trim_heap()  # what the last stage took goes back until the next run
        if not set(outputs) <= held.keys():
            raise Failure("the stages do not make all outputs")
        datatypes = {spec.name: spec.datatype for spec in self.info.outputs}
        return {name: _result(name, datatypes[name], held[name]) for name in outputs}


def of_plan(info: ModelInfo, plan: Mapping[str, Any], staying: Iterator[memoryview]) -> Staged:
    """A model in stages, for a process that forks the ones that run it; `staying`: the stages that stay, in order.

    Raises:
        AdmissionRefused: as `Loaded`. Whatever `staying` raises.
    """
    keep_heap(_KEPT)
    made = Staged(info, plan)
    for number in plan["stay"]:
        made.keep(number, next(staying))
    return made


def _run(stage: Loaded, held: dict[str, Any]) -> None:
    try:
        stage.run(held)
    except KeyError:
        raise _refused() from None
    except FOREIGN as fault:
        raise _run_fault(fault) from None


def _placed(whole: Any, tensor: Tensor) -> Any:
    data = whole[tensor.offset : tensor.offset + tensor.length].view(TYPES[tensor.type])
    return onnxruntime.OrtValue.ortvalue_from_numpy(data.reshape(tensor.dimensions))


def _session(graph: bytes, options: Any) -> Any:
    try:
        native = onnxruntime.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
    except FOREIGN:
        raise _refused() from None
    native._model_bytes = None
    return native


def _refused() -> AdmissionRefused:
    return AdmissionRefused("onnxruntime cannot load a stage of the model", code="engine_refused")


def _whole_options(*, packing: bool) -> Any:
    options = session_options(0)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not packing:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _result(name: str, datatype: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype != DATATYPES[datatype]:
        raise Failure(f"output {name!r} is not of the type that the model declares")
    if datatype == "BYTES":
        return bytes_array((text.encode("utf-8") for text in value.reshape(-1)), shape=value.shape)
    return value


def _run_fault(fault: Exception) -> Error:
    # The text may hold shapes, names and values of the request.
    if isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY):
        return LimitExceeded("the run takes more memory than there is for it", code="run_memory")
    return InvalidRequest("the model cannot be run on these inputs", code="run_failed")
