"""Single nodes that weigh more than a stage may, divided: tables by rows, forests by trees.

Rules
  - To the last bit what the whole node gives, or the node stays whole.
  - Rows are copied and never computed with: onnxruntime's Where adds its two sides, which makes 0 of -0, so rows
    are chosen by Gather. An index that the whole table refuses is refused still.
  - A forest is a sum in the order of its trees, in float32 that begin with +0: that is how onnxruntime sums with one
    thread, whatever the numbers of rows, trees and targets (`tests/models/test_dividing.py` asks it). Each part gives
    the value of each tree as a target of its own; CumSum goes on from the sum so far, one tree after the other.
  - Not divided: classifiers, whose votes are put together in other ways; averages, minima and maxima; other inputs
    than float32 (sums are then in float64, and only their end is rounded); whatever is applied behind the sum.
  - As in `stages`, names are unique, and the same model gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from strongroom.models.rewrite import attribute, inner, reads_below, standard
from strongroom.models.stages import Value, tensor_bytes

OPSET: Final = 14
"""Version of ai.onnx from which tables and forests are divided: Reshape knows empty tensors from there on."""
_FLOAT: Final = int(TensorProto.FLOAT)
_INT64: Final = int(TensorProto.INT64)
Numbers = npt.NDArray[Any]


def divide(model: Any, values: Mapping[str, Value], *, limit: int) -> tuple[Any, dict[str, Value]]:
    """The model (ModelProto; the given one is not changed) with all nodes divided that weigh more than `limit` bytes
    and can be; and `values` together with those that are new.
    """
    known = dict(values)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", versions.get("ai.onnx", 0)) < OPSET:
        return model, known
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in model.graph.input}
    kinds |= {name: value.kind for name, value in values.items()}
    tables = _tables(model.graph, kinds, limit)
    forests = {n: f for n, f in enumerate(map(_forest_of, model.graph.node)) if f is not None}
    forests = {n: f for n, f in forests.items() if kinds.get(f.features) == _FLOAT and f.size > limit}
    if not tables and not forests:
        return model, known
    made = onnx.ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made.graph, known)
    nodes = []
    for number, node in enumerate(model.graph.node):
        if number in forests:
            _write_forest(writer, node.output[0], forests[number], limit)
        elif number in tables:
            _write_table(writer, node, tables[number], limit, kinds[node.input[1]])
        else:
            writer.nodes.append(node)
        nodes += writer.nodes
        writer.nodes = []
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    gone = {table.name for table in tables.values()}
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in gone]
    del made.graph.initializer[:]
    made.graph.initializer.extend((*kept, *writer.constants.values()))
    return made, known


class _Writer:
    """Nodes and constants on their way into a graph; names that nothing has."""

    def __init__(self, graph: Any, known: dict[str, Value]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._known = known
        self._names = set(_names(graph))
        self._number = 0

    def fresh(self, what: str) -> str:
        """A name."""
        while True:
            self._number += 1
            name = f"divided_{self._number}_{what}"
            if name not in self._names:
                return name

    def constant(self, value: npt.ArrayLike, kind: type[Any] = np.int64) -> str:
        """A constant array; its name."""
        return self.add(numpy_helper.from_array(np.asarray(value, kind), self.fresh("constant")))

    def add(self, tensor: Any) -> str:
        """A constant; its name."""
        self.constants[tensor.name] = tensor
        return str(tensor.name)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        kind: int,
        *,
        name: str = "",
        shape: Any = None,
        **more: Any,
    ) -> str:
        """A node with one output of this kind; its name."""
        output = name or self.fresh(operator)
        self.nodes.append(helper.make_node(operator, inputs, [output], **more))
        if not name:
            self._known[output] = Value(kind, shape)
        return output


def _names(graph: Any) -> Iterator[str]:
    for entries in (graph.input, graph.output, graph.initializer):
        yield from (entry.name for entry in entries)
    for node in graph.node:
        yield from node.output
        for below in inner(node):
            yield from _names(below)


# Tables


def _tables(graph: Any, kinds: Mapping[str, int], limit: int) -> dict[int, Any]:
    """Number of a Gather -> its table, where that is too large and nothing but such nodes read it."""
    large = {tensor.name: tensor for tensor in graph.initializer if tensor_bytes(tensor) > limit}
    found: dict[int, Any] = {}
    for number, node in enumerate(graph.node):
        for below in inner(node):
            for name in reads_below(below):
                large.pop(name, None)
        by_rows = (
            standard(node)
            and node.op_type == "Gather"
            and attribute(node, "axis", 0) == 0
            and kinds.get(node.input[1]) in (TensorProto.INT32, TensorProto.INT64)
            and node.input[1] not in large
        )
        for position, name in enumerate(node.input):
            if name in large and not (by_rows and position == 0):
                large.pop(name)
        if by_rows and node.input[0] in large:
            found[number] = large[node.input[0]]
    for name in (entry.name for entry in graph.output):
        large.pop(name, None)
    return {
        number: table
        for number, table in found.items()
        if table.name in large
        and table.data_type != TensorProto.STRING
        and len(table.dims)
        and table.dims[0] > 1
    }


def _write_table(writer: _Writer, node: Any, table: Any, limit: int, kind: int) -> None:
    """Gather by a chain of parts: each gathers from its own rows, as near as they come, and replaces what is its."""
    rows, width = table.dims[0], list(table.dims[1:])
    add = writer.node
    ids = node.input[1] if kind == _INT64 else add("Cast", [node.input[1]], _INT64, to=_INT64)
    zeros = add(
        "Expand", [writer.constant(0, np.uint8), writer.constant([rows])], TensorProto.UINT8, shape=(rows,)
    )
    refused = add("Cast", [add("Gather", [zeros, ids], TensorProto.UINT8)], _INT64, to=_INT64)
    counted = add("Where", [
        add("Less", [ids, writer.constant(0)], TensorProto.BOOL), add("Add", [ids, writer.constant(rows)], _INT64), ids,
    ], _INT64)  # fmt: skip
    flat = add(
        "Reshape", [add("Add", [counted, refused], _INT64), writer.constant([-1])], _INT64, shape=(None,)
    )
    count = add("Size", [flat], _INT64, shape=())
    places = add("Range", [writer.constant(0), count, writer.constant(1)], _INT64, shape=(None,))
    shape = (None, *width)
    step = max(1, limit // max(1, tensor_bytes(table) // rows))
    so_far = ""
    for first in range(0, rows, step):
        end = min(rows, first + step)
        part = writer.add(rows_of(table, first, end, writer.fresh("rows")))
        local = add("Sub", [flat, writer.constant(first)], _INT64, shape=(None,))
        local = add("Max", [local, writer.constant(0)], _INT64, shape=(None,))
        local = add("Min", [local, writer.constant(end - first - 1)], _INT64, shape=(None,))
        mine = add("Gather", [part, local], table.data_type, axis=0, shape=shape)
        if so_far:
            here = add("GreaterOrEqual", [flat, writer.constant(first)], TensorProto.BOOL, shape=(None,))
            other = add("Add", [places, count], _INT64, shape=(None,))
            choice = add("Where", [here, other, places], _INT64, shape=(None,))
            both = add("Concat", [so_far, mine], table.data_type, axis=0, shape=shape)
            mine = add("Gather", [both, choice], table.data_type, axis=0, shape=shape)
        so_far = mine
    whole = add("Concat", [add("Shape", [ids], _INT64), writer.constant(width)], _INT64, axis=0)
    add("Reshape", [so_far, whole], table.data_type, name=node.output[0], allowzero=1)


def rows_of(tensor: Any, first: int, end: int, name: str) -> Any:
    """A TensorProto of some rows of another: a piece of the same file where its data lie outside."""
    dims = [end - first, *tensor.dims[1:]]
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor)[first:end]), name)
    made = TensorProto(name=name, data_type=tensor.data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    where = {entry.key: entry.value for entry in tensor.external_data}
    row = int(where["length"]) // tensor.dims[0]
    where |= {"offset": str(int(where.get("offset", "0")) + first * row), "length": str((end - first) * row)}
    for key in ("location", "offset", "length"):
        made.external_data.add(key=key, value=where[key])
    return made


# Forests


@dataclass(frozen=True, slots=True)
class _Forest:
    """A node that sums trees: which entries of its attributes are which tree's."""

    node: Any
    features: str
    targets: int
    size: int
    trees: int
    base: tuple[float, ...]

    def part(self, first: int, end: int) -> Any:
        """A node of trees `first` up to `end`, each target of each tree as a target of its own."""
        write = _regressor_part if self.node.op_type == "TreeEnsembleRegressor" else _ensemble_part
        return write(self.node, first, end, self.targets)


def _forest_of(node: Any) -> _Forest | None:
    """The node as a forest that can be divided."""
    if node.domain != "ai.onnx.ml" or node.op_type not in ("TreeEnsembleRegressor", "TreeEnsemble"):
        return None
    given = {entry.name for entry in node.attribute}
    if node.op_type == "TreeEnsembleRegressor":
        plain = attribute(node, "post_transform", b"NONE") == b"NONE"
        plain = plain and attribute(node, "aggregate_function", b"SUM") == b"SUM"
        if not plain or any(name.endswith("_as_tensor") for name in given):
            return None
        trees = _trees_of(node)
    else:
        if attribute(node, "post_transform", 0) != 0 or attribute(node, "aggregate_function", 1) != 1:
            return None
        trees = len(attribute(node, "tree_roots", ())) if _separate(node) else 0
    base = tuple(attribute(node, "base_values", ()))
    targets = attribute(node, "n_targets", 1)
    if trees < 2 or (base and len(base) != targets):
        return None
    return _Forest(node, node.input[0], targets, int(node.ByteSize()), trees, base)


def _trees_of(node: Any) -> int:
    """Trees of a regressor; 0 where its sum may have another order: nodes of a tree that do not stand together, or a
    leaf with two values for one target.
    """
    ids = np.asarray(attribute(node, "nodes_treeids", ()), np.int64)
    changes = int((ids[1:] != ids[:-1]).sum()) + 1 if ids.size else 0
    names = ("target_treeids", "target_nodeids", "target_ids")
    leaves = list(zip(*(attribute(node, name, ()) for name in names), strict=True))
    apart = changes == len(set(ids.tolist())) and len(set(leaves)) == len(leaves)
    return changes if apart else 0


def _separate(node: Any) -> bool:
    """Whether no two splits of an ensemble share a child, so that each tree has nodes of its own."""
    seen: dict[tuple[bool, int], int] = {}
    given = {entry.name: entry for entry in node.attribute}
    for branch in ("true", "false"):
        children, to_leaf = given[f"nodes_{branch}nodeids"].ints, given[f"nodes_{branch}leafs"].ints
        for split, key in enumerate(zip(map(bool, to_leaf), children, strict=True)):
            if seen.setdefault(key, split) != split:
                return False
    roots = list(given["tree_roots"].ints)
    return len(set(roots)) == len(roots) and not any((False, root) in seen for root in roots)


def _write_forest(writer: _Writer, output: str, forest: _Forest, limit: int) -> None:
    """The forest as a chain of parts; each adds its trees to the sum so far, float32 [rows, targets]."""
    parts = min(forest.trees, -(-forest.size // limit))
    ends = [forest.trees * number // parts for number in range(parts + 1)]
    add, targets = writer.node, forest.targets
    sums = ""
    for first, end in pairwise(ends):
        node = forest.part(first, end)
        node.output[0] = leaves = writer.fresh("leaves")
        writer.nodes.append(node)
        writer._known[leaves] = Value(_FLOAT, (None, (end - first) * targets))
        wide = (None, end - first, targets)
        shaped = add("Reshape", [leaves, writer.constant([-1, end - first, targets])], _FLOAT, shape=wide)
        if sums:
            before = add("Unsqueeze", [sums, writer.constant([1])], _FLOAT, shape=(None, 1, targets))
            terms = add("Concat", [before, shaped], _FLOAT, axis=1, shape=wide)
        else:
            terms = add("Add", [shaped, writer.constant(0, np.float32)], _FLOAT, shape=wide)  # -0 becomes 0
        running = add("CumSum", [terms, writer.constant(1)], _FLOAT, shape=wide)
        last = end - first if sums else end - first - 1
        done = end == forest.trees and not forest.base
        sums = add(
            "Gather", [running, writer.constant(last)], _FLOAT, axis=1, name=output if done else "",
            shape=(None, targets),
        )  # fmt: skip
    if forest.base:
        add("Add", [sums, writer.constant(forest.base, np.float32)], _FLOAT, name=output)


def _regressor_part(node: Any, first: int, end: int, targets: int) -> Any:
    tree_of = np.asarray(attribute(node, "nodes_treeids", ()), np.int64)
    order = {tree: number for number, tree in enumerate(dict.fromkeys(tree_of.tolist()))}
    number = np.array([order[tree] for tree in tree_of.tolist()], np.int64)
    kept = (number >= first) & (number < end)
    leaf_tree = [order.get(tree, -1) for tree in attribute(node, "target_treeids", ())]
    leaf_number = np.array(leaf_tree, np.int64)
    leaves = (leaf_number >= first) & (leaf_number < end)
    made = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=node.input, output=[""])
    for entry in node.attribute:
        if entry.name in ("n_targets", "base_values", "target_ids"):
            continue
        if entry.name.startswith(("nodes_", "target_")):
            _keep(made, entry, kept if entry.name.startswith("nodes_") else leaves)
        else:
            made.attribute.append(entry)
    ids = np.asarray(attribute(node, "target_ids", ()), np.int64)
    own = ids[leaves] + targets * (leaf_number[leaves] - first)
    made.attribute.append(helper.make_attribute("target_ids", own.tolist()))
    made.attribute.append(helper.make_attribute("n_targets", targets * (end - first)))
    return made


def _keep(made: Any, entry: Any, kept: npt.NDArray[np.bool_]) -> None:
    """An attribute's entries where `kept` says so; one that is empty stays so."""
    copy = made.attribute.add(name=entry.name, type=entry.type)
    for name in ("ints", "floats", "strings"):
        values = getattr(entry, name)
        if len(values):
            getattr(copy, name).extend(value for value, keep in zip(values, kept, strict=True) if keep)


def _ensemble_part(node: Any, first: int, end: int, targets: int) -> Any:
    given = {entry.name: _array(entry) for entry in node.attribute}
    roots = given["tree_roots"][first:end]
    splits, leaves, tree_of_leaf = _below(given, roots)
    split_number = {old: new for new, old in enumerate(splits)}
    leaf_number = {old: new for new, old in enumerate(leaves)}
    made = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=node.input, output=[""])
    for entry in node.attribute:
        name, values = entry.name, given[entry.name]
        if name in ("n_targets", "aggregate_function", "post_transform"):
            new = targets * (end - first) if name == "n_targets" else values
        elif name == "tree_roots":
            new = np.array([split_number[root] for root in roots.tolist()])
        elif name == "membership_values":
            new = _sets(given, splits)
        elif name in ("nodes_truenodeids", "nodes_falsenodeids"):
            to_leaf = given[name.replace("nodeids", "leafs")]
            new = np.array(
                [(leaf_number if to_leaf[s] else split_number)[values[s]] for s in splits], np.int64
            )
        elif name == "leaf_targetids":
            new = values[leaves] + targets * np.array([tree_of_leaf[leaf] for leaf in leaves], np.int64)
        else:
            new = values[splits if name.startswith("nodes_") else leaves]
        made.attribute.append(_attribute(entry, new))
    return made


def _below(given: Mapping[str, Numbers], roots: Numbers) -> tuple[list[int], list[int], dict[int, int]]:
    """Splits and leaves of the trees with these roots, in their order, and each leaf's tree, counted from 0."""
    splits: set[int] = set()
    tree_of: dict[int, int] = {}
    for tree, root in enumerate(roots.tolist()):
        waiting = [root]
        while waiting:
            split = waiting.pop()
            splits.add(split)
            for branch in ("true", "false"):
                child = int(given[f"nodes_{branch}nodeids"][split])
                if given[f"nodes_{branch}leafs"][split]:
                    tree_of[child] = tree
                else:
                    waiting.append(child)
    return sorted(splits), sorted(tree_of), tree_of


_MEMBER: Final = 6


def _sets(given: Mapping[str, Numbers], splits: Sequence[int]) -> Numbers:
    """Of the sets of members, each of which ends with NaN, those of these splits."""
    values = given["membership_values"]
    ends = np.flatnonzero(np.isnan(values)) + 1
    starts = np.concatenate(([0], ends[:-1])) if ends.size else ends
    members = np.flatnonzero(given["nodes_modes"] == _MEMBER)
    number = {split: place for place, split in enumerate(members.tolist())}
    own = [values[starts[number[s]] : ends[number[s]]] for s in splits if s in number]
    return np.concatenate(own) if own else values[:0]


def _array(entry: Any) -> Any:
    value = helper.get_attribute_value(entry)
    return numpy_helper.to_array(value) if entry.type == onnx.AttributeProto.TENSOR else np.asarray(value)


def _attribute(entry: Any, value: Any) -> Any:
    """The attribute with another value of the same type."""
    if entry.type == onnx.AttributeProto.TENSOR:
        kind = helper.tensor_dtype_to_np_dtype(entry.t.data_type)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, kind), entry.t.name)
        return helper.make_attribute(entry.name, tensor)
    if entry.type == onnx.AttributeProto.INT:
        return helper.make_attribute(entry.name, int(value))
    copy = onnx.AttributeProto(name=entry.name, type=entry.type)
    copy.ints.extend(np.asarray(value).tolist())
    return copy
