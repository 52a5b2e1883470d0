"""A model's optimised form, whole and in stages, run by onnxruntime: for tests of partitions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
from onnx import ValueInfoProto, helper

from strongroom.engine import FOREIGN, onnxruntime
from strongroom.models.stages import Line, Partition, Value, build

_KINDS = {
    "float": "FLOAT", "double": "DOUBLE", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "string": "STRING",
    "bool": "BOOL",
}  # fmt: skip


def options(*, optimise: bool) -> Any:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.log_severity_level = 4
    made.enable_cpu_mem_arena = made.enable_mem_pattern = False
    if not optimise:
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return made


def session(model: Any, *, optimise: bool = False) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), options(optimise=optimise))


def session_faults() -> tuple[type[Exception], ...]:
    """What onnxruntime raises."""
    return FOREIGN


def optimised(data: bytes) -> Any:
    """What onnxruntime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        setting = options(optimise=True)
        setting.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(data, setting)
        return onnx.load(setting.optimized_model_filepath)


def kind_of(text: str) -> int | None:
    """`tensor(float)` as TensorProto's number; None for what is no tensor."""
    if not text.startswith("tensor("):
        return None
    word = text[7:-1]
    return int(getattr(onnx.TensorProto, _KINDS.get(word, word.upper())))


def values_of(model: Any) -> dict[str, Value]:
    """Types and shapes of all that nodes make, by onnxruntime's own inference."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    have = {entry.name for entry in shown.graph.output}
    names = [name for node in shown.graph.node for name in node.output if name and name not in have]
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names)
    found = {}
    for entry in session(shown).get_outputs():
        kind = kind_of(entry.type)
        if kind is not None:
            shape = tuple(size if isinstance(size, int) else None for size in entry.shape)
            found[entry.name] = Value(kind, shape)
    return found


def run_stages(line: Line, partition: Partition, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the stages one after the other; each is a valid model. The graph's outputs."""
    held = dict(feeds)
    for stage in partition.stages:
        made = build(line, stage)
        native = session(type(made).FromString(made.SerializeToString()))
        names = list(stage.outputs)
        got = native.run(names, {name: held[name] for name in stage.inputs}) if names else []
        held |= zip(names, got, strict=True)
        for name in stage.drops:
            if name not in line.outputs:
                del held[name]
    return {name: held[name] for name in line.outputs}


def everywhere(line: Line) -> Partition:
    """Every place where there can be a cut is one."""
    cuts = [position for position in range(1, len(line.reads)) if line.crossing[position] is not None]
    ends = (0, *cuts, len(line.reads))
    return Partition(tuple(line.stage(a, b) for a, b in pairwise(ends)), 0)


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same bytes."""
    if isinstance(one, list):
        return isinstance(other, list) and all(map(same, one, other))
    if one.dtype.kind == "O":
        return one.shape == other.shape and one.tolist() == other.tolist()
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def model_of(nodes: Any, inputs: Any, outputs: Any, constants: Any = (), *, opset: int = 17) -> Any:
    """A ModelProto; `inputs`, `outputs`: (name, kind, shape)."""
    graph = helper.make_graph(
        list(nodes), "net", *([helper.make_tensor_value_info(*each) for each in some] for some in (inputs, outputs)),
        list(constants),
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
