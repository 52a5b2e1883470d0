"""What is known about an admitted model: tensors, metadata, rules for its inputs; and admission limits.

Rules
  - `Admitted` is a proof, not a record: only `strongroom.models.admit` holds the token that makes one, so
    code that takes an `Admitted` (the engine) cannot be handed bytes that nobody checked.
  - `ModelInfo` is stored sealed beside its model and comes back through `from_json`, which is as strict as
    a parser of foreign input: unknown members, missing members and wrong types are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any, Final, TypeVar

from strongroom.errors import Failure, MalformedInput, check_member
from strongroom.oip import DATATYPES
from strongroom.partition import check_partition
from strongroom.reduction import NOT_LOOKED_AT, Precision

FORMATS: Final = ("onnx", "xgboost-json", "xgboost-ubj")
"""Formats a model may be uploaded in, as `strongroom.formats.detect` names them."""

Scalar = str | int | float | bool | None
NoteValue = Scalar | tuple[Scalar, ...]
Dimension = int | str | None

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, Open Inference Protocol datatype and shape.

    A dimension is a fixed size (int), a symbol (str; the same symbol means the same size in all inputs of one
    request) or unknown (None). `shape` is None where even the rank is unknown.
    """

    name: str
    datatype: str
    shape: tuple[Dimension, ...] | None

    def to_json(self) -> dict[str, Any]:
        """The JSON object form; a symbol stays a string, an unknown dimension is null."""
        return {
            "name": self.name,
            "datatype": self.datatype,
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_json(cls, value: object) -> TensorSpec:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: unknown or missing members, or a wrong type (code `model_info_malformed`).
        """
        members = _members(value, ("name", "datatype", "shape"))
        datatype = _text(members, "datatype")
        _check(datatype in DATATYPES, "tensor datatype is not one of the Open Inference Protocol")
        shape = members["shape"]
        if shape is None:
            return cls(name=_text(members, "name"), datatype=datatype, shape=None)
        dimensions = tuple(_dimension(entry) for entry in _list(shape, "shape"))
        return cls(name=_text(members, "name"), datatype=datatype, shape=dimensions)


@dataclass(frozen=True, slots=True)
class InputRules:
    """What a request's values must satisfy beyond names, shapes and datatypes, and what is done to them."""

    round_to_float32: bool
    """FP64 and integer tensors are accepted and rounded to float32 *before* any comparison in the model."""
    reject_infinite: bool
    """Infinities are refused, as XGBoost itself does."""
    integer_columns: tuple[int, ...]
    """Columns of a matrix input that hold category codes: whole numbers or NaN, nothing between."""
    allow_nan: bool
    """NaN is a legal value (for tree models it means "missing")."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "round_to_float32": self.round_to_float32,
            "reject_infinite": self.reject_infinite,
            "integer_columns": list(self.integer_columns),
            "allow_nan": self.allow_nan,
        }

    @classmethod
    def from_json(cls, value: object) -> InputRules:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: unknown or missing members, or a wrong type (code `model_info_malformed`).
        """
        members = _members(value, ("round_to_float32", "reject_infinite", "integer_columns", "allow_nan"))
        columns: list[int] = []
        for column in _list(members["integer_columns"], "integer_columns"):
            _check(
                type(column) is int and column >= 0,
                "integer_columns holds something else than column numbers",
            )
            columns.append(column)
        _check(columns == sorted(set(columns)), "integer_columns is not strictly increasing")
        return cls(
            round_to_float32=_flag(members, "round_to_float32"),
            reject_infinite=_flag(members, "reject_infinite"),
            integer_columns=tuple(columns),
            allow_nan=_flag(members, "allow_nan"),
        )


ONNX_RULES: Final = InputRules(
    round_to_float32=False, reject_infinite=False, integer_columns=(), allow_nan=True
)
"""ONNX gives no meaning to particular values: what the tensors' types allow is allowed."""


LEVELS: Final = ("permissive", "strict")
"""How much admission asks for. `strict`: a bound for everything. `permissive`: what has none is left to the
limits of the process that runs the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Requests up to these sizes, and what one of them costs at most (`docs/spec/admission.md` §8.2).

    `sizes` holds for dimensions that the model leaves open, by their position in an input: the first number for
    first dimensions, and so on, the last number for all that follow. Empty where the model leaves none open.
    """

    sizes: tuple[int, ...]
    peak_bytes: int
    """Bytes of all values that are alive at one time, in the order of the graph."""
    operations: int
    """Multiplications, additions and the like; a function such as Exp counts for 20."""
    steps: int
    """Nodes that run, each iteration of a loop counted."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {"sizes": list(self.sizes), **{name: getattr(self, name) for name in _ROOM}}

    @classmethod
    def from_json(cls, value: object) -> Room:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: unknown or missing members, or a wrong type (code `model_info_malformed`).
        """
        members = _members(value, ("sizes", *_ROOM))
        sizes = _list(members["sizes"], "sizes")
        _check(all(type(size) is int and size > 0 for size in sizes), "sizes holds something else than sizes")
        return cls(sizes=tuple(sizes), **{name: _count(members, name) for name in _ROOM})

    def fits(self, axis: int, size: int) -> bool:
        """Whether an open dimension at this position may have that size."""
        return bool(self.sizes) and size <= self.sizes[min(axis, len(self.sizes) - 1)]


_ROOM: Final = ("peak_bytes", "operations", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What admission found besides metadata: what the model costs at most, and what is particular about it.

    A request fits if it fits into one of `rooms`. They are a staircase: larger batches of smaller other
    dimensions, and the reverse.
    """

    level: str
    flags: tuple[str, ...]
    """Sorted words: `data_dependent_output`, `unbounded`, ... (§8.3)."""
    nodes: int
    """Nodes with functions expanded; of the file, as are `tensors` and `tensor_bytes`."""
    tensors: int
    tensor_bytes: int
    resident_bytes: int
    """Bytes of values that the engine computes while it loads, and keeps."""
    load_operations: int
    rooms: tuple[Room, ...]
    text_bytes: int
    """Bytes of one string in a request, at most."""
    versions: tuple[tuple[str, str], ...]
    """(name, version) of the software that looked."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "level": self.level,
            "flags": list(self.flags),
            **{name: getattr(self, name) for name in _COUNTS},
            "rooms": [room.to_json() for room in self.rooms],
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: object) -> Admission:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: unknown or missing members, or a wrong type (code `model_info_malformed`).
        """
        members = _members(value, ("level", "flags", *_COUNTS, "rooms", "versions"))
        _check(members["level"] in LEVELS, "level is not one of " + ", ".join(LEVELS))
        flags = tuple(_of(str, flag, "flags") for flag in _list(members["flags"], "flags"))
        _check(flags == tuple(sorted(set(flags))), "flags are not sorted, each once")
        versions = _of(dict, members["versions"], "versions")
        return cls(
            level=members["level"],
            flags=flags,
            rooms=tuple(Room.from_json(room) for room in _list(members["rooms"], "rooms")),
            versions=tuple((name, _of(str, text, "versions")) for name, text in versions.items()),
            **{name: _count(members, name) for name in _COUNTS},
        )


_COUNTS: Final = ("nodes", "tensors", "tensor_bytes", "resident_bytes", "load_operations", "text_bytes")

UNEXAMINED: Final = Admission(
    level="none", flags=(), nodes=0, tensors=0, tensor_bytes=0, resident_bytes=0, load_operations=0, rooms=(),
    text_bytes=0, versions=(),
)  # fmt: skip
"""Stands in a `ModelInfo` until the model was looked at; cannot be read back."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The metadata of an admitted model, as clients see it and as requests are checked against.

    `notes` holds format-specific facts for people (opset, objective, `best_iteration`, class labels ...):
    names with a JSON scalar or a tuple of scalars, in the order they are shown.
    """

    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    primary_output: str
    feature_names: tuple[str, ...]
    notes: tuple[tuple[str, NoteValue], ...]
    rules: InputRules
    admission: Admission
    precision: Precision = NOT_LOOKED_AT
    partition: str = "auto"
    """Whether it is cut into stages: `auto` where it is larger than memory, `off`, or a number of them."""
    batching: bool = False
    """Whether requests of one caller may share a run: the owner's word, not the model's."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form; `ModelInfo.from_json(info.to_json()) == info`."""
        looked = self.precision != NOT_LOOKED_AT
        return {
            "format": self.format,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "primary_output": self.primary_output,
            "feature_names": list(self.feature_names),
            "notes": {name: list(value) if isinstance(value, tuple) else value for name, value in self.notes},
            "rules": self.rules.to_json(),
            "admission": self.admission.to_json(),
            **({"precision": self.precision.to_json()} if looked else {}),
            **({"partition": self.partition} if self.partition != "auto" else {}),
            **({"batching": True} if self.batching else {}),
        }

    @classmethod
    def from_json(cls, value: object) -> ModelInfo:
        """Reads what `to_json` wrote, after `json.loads`.

        Raises:
            MalformedInput: unknown or missing members, a wrong type, a repeated tensor name, or a primary
                output that is not among the outputs (code `model_info_malformed`).
        """
        names = (
            "format",
            "inputs",
            "outputs",
            "primary_output",
            "feature_names",
            "notes",
            "rules",
            "admission",
        )
        # Records of releases that did not look have no such member; written again they have none, either.
        looked = isinstance(value, dict) and "precision" in value
        batching = isinstance(value, dict) and "batching" in value
        asked = isinstance(value, dict) and "partition" in value
        there = {"precision": looked, "batching": batching, "partition": asked}
        members = _members(value, (*names, *(name for name, is_there in there.items() if is_there)))
        _check(not batching or members["batching"] is True, "batching is not true")
        _check(members["format"] in FORMATS, "format is not one of " + ", ".join(FORMATS))
        inputs = tuple(TensorSpec.from_json(entry) for entry in _list(members["inputs"], "inputs"))
        outputs = tuple(TensorSpec.from_json(entry) for entry in _list(members["outputs"], "outputs"))
        for specs in (inputs, outputs):
            _check(len({spec.name for spec in specs}) == len(specs), "two tensors have the same name")
        primary = _text(members, "primary_output")
        _check(any(spec.name == primary for spec in outputs), "primary_output is not among the outputs")
        features = tuple(
            _of(str, entry, "feature_names") for entry in _list(members["feature_names"], "feature_names")
        )
        notes = _of(dict, members["notes"], "notes")
        return cls(
            format=_text(members, "format"),
            inputs=inputs,
            outputs=outputs,
            primary_output=primary,
            feature_names=features,
            notes=tuple((_of(str, name, "notes"), _note(entry)) for name, entry in notes.items()),
            rules=InputRules.from_json(members["rules"]),
            admission=Admission.from_json(members["admission"]),
            precision=Precision.from_json(members["precision"]) if looked else NOT_LOOKED_AT,
            partition=_partition(members["partition"]) if asked else "auto",
            batching=batching,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one request, or loading, may cost at most (`docs/spec/admission.md` §7)."""

    value_bytes: int
    """One value while a model runs."""
    peak_bytes: int
    """All values that are alive at one time."""
    operations: int
    """One request."""
    load_operations: int
    """What the engine can compute while it loads: nobody waits for that but the server."""
    steps: int
    """Nodes that run in one request, each iteration of a loop counted."""
    trips: int
    """Iterations of one Loop or Scan."""
    elements: int
    """Elements of an input of a fixed shape: what the server takes in one request."""
    text_bytes: int
    """Bytes of one string in a request."""
    looks: int
    """Nodes that are looked at, bodies of loops once for each try."""


STANDARD_BUDGET: Final = Budget(
    value_bytes=1 << 30,  # the largest weights that a published network makes of constants have 411 MB (VGG)
    peak_bytes=4 << 30,
    operations=10**12,  # about half a minute of one core; a sentence through GPT-2 takes 2.5e11
    load_operations=10**11,
    steps=10**7,
    trips=10**5,
    elements=16 << 20,  # what the server takes in one request
    text_bytes=64 << 10,
    looks=400_000,
)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How large a model may be. Each limit is on what arrives or is counted, never on what a file declares.

    Bytes of a file do not bound its cost, so the parts that cost memory or time have limits of their own.
    """

    model_bytes: int
    """Bytes of the upload."""
    nesting: int
    """Depth of JSON or UBJSON containers, and of ONNX subgraphs within each other."""
    name_length: int
    """Characters in the name of a tensor, feature or node."""
    nodes: int
    """ONNX: nodes of the graph with its subgraphs and functions."""
    tensors: int
    """ONNX: initializers, constants, inputs and outputs."""
    tensor_bytes: int
    """ONNX: bytes of all constant tensors together, once unpacked."""
    values: int
    """JSON and UBJSON: scalars plus containers in the document."""
    trees: int
    """XGBoost: trees in the ensemble."""
    tree_nodes: int
    """XGBoost: nodes of all trees together."""
    features: int
    """XGBoost: columns of the input."""
    outputs: int
    """XGBoost: classes, targets or quantiles, whichever are more."""
    categories: int
    """XGBoost: members of all category sets together."""
    metadata_bytes: int
    """Bytes of `ModelInfo.to_json` as ASCII JSON: names, tensors and notes, as the store's record keeps them."""
    level: str
    """One of `LEVELS`."""
    confined: bool
    """Whether models run in processes of their own, so that the end of one is no more than that."""
    budget: Budget


STANDARD_LIMITS: Final = AdmissionLimits(
    model_bytes=2 << 30,  # the largest protobuf message, and so the largest ONNX file without external data
    nesting=64,  # XGBoost nests 7 deep; protobuf parsers stop at 100
    name_length=512,
    nodes=100_000,  # the largest exported transformers have about 20,000
    tensors=100_000,
    tensor_bytes=2 << 30,
    values=24_000_000,  # a forest of 2 million nodes has about 22 million
    trees=100_000,
    tree_nodes=2_000_000,
    features=100_000,
    outputs=10_000,
    categories=2_000_000,
    metadata_bytes=128 << 10,  # every record and every answer repeats it; 5,000 columns of 20 characters fit
    level="strict",
    confined=True,
    budget=STANDARD_BUDGET,
)
"""Room for the published networks and forests we know of; a server may configure smaller limits."""


_TOKEN: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A model that passed admission: the only thing the engine runs.

    `onnx` is what the engine loads (re-serialised, or written here from trees), `sha256` the digest of the
    bytes as they were uploaded, `canonical_sha256` that of `onnx`; both lower-case hex.
    """

    info: ModelInfo
    onnx: bytes
    sha256: str
    canonical_sha256: str
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _TOKEN:
            raise Failure("only strongroom.models.admit makes an Admitted")


# Strict reading of our own JSON: sealed bytes are authenticated, but another release may have written them.


def _check(condition: bool, message: str) -> None:
    check_member(condition, f"model metadata: {message}", MalformedInput, code="model_info_malformed")


def _of(kind: type[_T], value: object, name: str) -> _T:
    if not isinstance(value, kind):
        raise MalformedInput(f"model metadata: {name} has the wrong type", code="model_info_malformed")
    return value


def _members(value: object, names: tuple[str, ...]) -> Mapping[str, Any]:
    members = _of(dict, value, "object")
    _check(set(members) == set(names), f"members expected: {', '.join(names)}")
    return members


def _list(value: object, name: str) -> list[Any]:
    return _of(list, value, name)


def _text(members: Mapping[str, Any], name: str) -> str:
    return _of(str, members[name], name)


def _flag(members: Mapping[str, Any], name: str) -> bool:
    return _of(bool, members[name], name)


def _count(members: Mapping[str, Any], name: str) -> int:
    value = members[name]
    _check(type(value) is int and value >= 0, f"{name} is no count")
    return int(value)


def _partition(value: object) -> str:
    word = _of(str, value, "partition")
    _check(word != "auto" and check_partition(word), "partition is neither off nor a number of stages")
    return word


def _dimension(value: object) -> Dimension:
    if value is None or isinstance(value, str):
        return value
    # bool is an int to isinstance, hence type().
    if type(value) is not int or value < 0:
        raise MalformedInput("model metadata: a dimension has the wrong type", code="model_info_malformed")
    return value


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise MalformedInput("model metadata: a note has the wrong type", code="model_info_malformed")


def _note(value: object) -> NoteValue:
    if isinstance(value, list):
        return tuple(_scalar(entry) for entry in value)
    return _scalar(value)
