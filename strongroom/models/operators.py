"""Which operators run here, and what one node of them may say (`docs/spec/admission.md` §4).

Rules
  - What is not in a table here is refused: operators, attributes, words, element types.
  - The number of values, attributes and types are those of the operator's definition in the model's own
    operator set; onnx's checker is not asked.
  - Integers have ranges. onnxruntime leaves memory unwritten for `Cast(saturate=4)`, divides by zero for
    `DepthToSpace(blocksize=2**32)`, and follows a null pointer for a value that is left out where one is needed.
  - Nothing is random and nothing trains: results are repeatable, and no state stays behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx

from strongroom.models import arranging, kernels, selecting, shapes
from strongroom.models.values import T, refuse

_A = onnx.AttributeProto
CONTROL: Final = frozenset({"If", "Loop", "Scan"})
STANDARD: Final = frozenset({*shapes.RULES, *arranging.RULES, *kernels.RULES, *selecting.RULES, *CONTROL})
"""Operators of ai.onnx that run here: those whose shapes and costs can be told."""
LEARNERS: Final = frozenset({
    "ArrayFeatureExtractor", "Binarizer", "CategoryMapper", "FeatureVectorizer", "Imputer", "LabelEncoder",
    "LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMClassifier", "SVMRegressor",
    "Scaler", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap",
})  # fmt: skip
"""Operators of ai.onnx.ml that run here. ZipMap is cut off where it makes an output, and refused elsewhere."""
RANDOM: Final = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip

_FLAG, _AXIS, _SIDE, _KIND, _ANY = (0, 1), (-32, 31), (1, 65_535), (0, 26), (-(1 << 63), (1 << 63) - 1)
_FLAGS: Final = (
    "align_corners", "allowzero", "antialias", "center_point_box", "ceil_mode", "count_include_pad",
    "detect_negative", "detect_positive", "exclude_outside", "exclusive", "fmod", "input_forget", "interleaved",
    "is_causal", "is_test", "keepdims", "largest", "layout", "linear_before_reset", "multi_class",
    "noop_with_empty_axes", "one_class", "onesided", "output_sequence", "periodic", "reverse", "saturate",
    "select_last_index", "sorted", "spatial", "storage_order", "training_mode", "transA", "transB", "upper",
    "zeros", "nodes_missing_value_tracks_true",
)  # fmt: skip
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(_FLAGS, _FLAG),
    **dict.fromkeys(("axes", "axis", "batch_axis", "time_axis", "scan_input_axes", "scan_output_axes"), _AXIS),
    **dict.fromkeys(("scan_input_directions", "scan_output_directions", "directions"), _FLAG),
    **dict.fromkeys(("strides", "dilations", "kernel_shape", "pooled_shape", "size", "output_height",
                     "output_width", "num_outputs", "inputdimensions", "group", "num_groups"), _SIDE),
    **dict.fromkeys(("to", "dtype", "output_datatype", "output_dtype", "softmax_precision", "stash_type",
                     "precision"), _KIND),
    "pads": (-65_535, 65_535), "paddings": (-65_535, 65_535), "output_padding": (0, 65_535),
    "output_shape": (1, 1 << 24), "blocksize": (1, 1024), "block_size": (0, 1 << 20),
    "perm": (0, 31), "batch_dims": (0, 31), "p": (1, 16), "k": (-(1 << 31), 1 << 31), "split": (0, 1 << 40),
    "num_scan_inputs": (1, 1024), "num_heads": (0, 4096), "q_num_heads": (0, 4096), "kv_num_heads": (0, 4096),
    "sampling_ratio": (0, 64), "rotary_embedding_dim": (0, 65_535), "qk_matmul_output_mode": (0, 3),
    "left_window_size": (-1, 1 << 31), "right_window_size": (-1, 1 << 31),
    "n_supports": (0, 1 << 24), "aggregate_function": (0, 3),
    "post_transform": (0, 4),
    # Contents, or numbers that are checked where they are used.
    **dict.fromkeys(("start", "end", "starts", "ends", "hidden_size", "n_targets", "targets", "value_int", "value_ints",
                     "cats_int64s", "default_int64",
                     "keys_int64s", "values_int64s", "imputed_value_int64s", "replaced_value_int64",
                     "classlabels_int64s", "classlabels_ints", "class_ids", "class_nodeids", "class_treeids",
                     "target_ids", "target_nodeids", "target_treeids", "nodes_falsenodeids", "nodes_featureids",
                     "nodes_nodeids", "nodes_treeids", "nodes_truenodeids", "nodes_trueleafs", "nodes_falseleafs",
                     "tree_roots", "leaf_targetids", "vectors_per_class", "seed"), _ANY),
}  # fmt: skip
"""Integer attribute -> its least and greatest value, also of each entry of a list."""

_PADS: Final = frozenset(
    {"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
)
_PADDING: Final = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_TRANSFORMS: Final = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "auto_pad": _PADDING, "direction": ("forward", "reverse", "bidirectional", "LEFT", "RIGHT"),
    "mode": ("constant", "reflect", "edge", "wrap", "nearest", "linear", "cubic", "bilinear", "bicubic", "avg",
             "max", "DCR", "CRD"),
    "padding_mode": ("zeros", "border", "reflection"), "reduction": ("none", "add", "mul", "max", "min"),
    "coordinate_transformation_mode": (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
        "tf_crop_and_resize", "output_half_pixel"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"), "approximate": ("none", "tanh"),
    "round_mode": ("up", "down", "nearest"),
    "activations": ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh",
                    "HardSigmoid", "Elu", "Softsign", "Softplus"),
    "post_transform": _TRANSFORMS, "aggregate_function": ("AVERAGE", "SUM", "MIN", "MAX"),
    "kernel_type": ("LINEAR", "POLY", "RBF", "SIGMOID"), "norm": ("MAX", "L1", "L2"),
    "nodes_modes": ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "LEAF"),
}  # fmt: skip
"""String attribute -> the words it may be. Others hold contents (labels), or are read where they are used."""


def type_of(text: str) -> int | None:
    """Element type of a schema's `tensor(...)`; None of anything that is not a dense tensor."""
    if not text.startswith("tensor("):
        return None
    name = text[len("tensor(") : -1].upper()
    return T.Value(name) if name in T.keys() else None  # noqa: SIM118 - protobuf's, not a dictionary's


@dataclass(frozen=True, slots=True)
class Formal:
    """One input or output of a definition."""

    variable: str
    """Name of its type variable, or its one type."""
    kinds: frozenset[int]
    optional: bool
    variadic: bool
    alike: bool
    """Whether all values of a variadic one have one type."""


@dataclass(frozen=True, slots=True)
class Definition:
    """An operator in one version of its operator set."""

    name: str
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    least_inputs: int
    least_outputs: int
    attributes: Mapping[str, tuple[int, bool]]
    """Name -> declared type, whether it is required."""


@functools.lru_cache(maxsize=4096)
def definition(name: str, version: int, domain: str) -> Definition | None:
    """The operator as its set has it, or None where it has not."""
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None
    return Definition(
        name=name,
        inputs=tuple(map(_formal, schema.inputs)),
        outputs=tuple(map(_formal, schema.outputs)),
        least_inputs=schema.min_input,
        least_outputs=schema.min_output,
        attributes={a.name: (int(a.type.value), a.required) for a in schema.attributes.values()},
    )


def _formal(formal: Any) -> Formal:
    option = onnx.defs.OpSchema.FormalParameterOption
    kinds = {kind for kind in map(type_of, formal.types) if kind is not None}
    return Formal(
        variable=formal.type_str,
        kinds=frozenset(kinds),
        optional=formal.option == option.Optional,
        variadic=formal.option == option.Variadic,
        alike=formal.is_homogeneous,
    )


def find(name: str, version: int, domain: str) -> Definition:
    """The definition of an operator that runs here (§4.1 to §4.3).

    Raises:
        AdmissionRefused: codes `onnx_operator`, `onnx_operator_refused`, `onnx_random`.
    """
    found = definition(name, version, domain)
    if found is None:
        refuse("a node uses an operator that its operator set does not have", "onnx_operator")
    if domain == "" and name in RANDOM:
        refuse(f"{name}: its results are random", "onnx_random")
    allowed = STANDARD if domain == "" else LEARNERS
    if name not in allowed or (name == "Scan" and version < 9):
        refuse(f"{name}: this operator is not run here", "onnx_operator_refused")
    return found


def check_arity(found: Definition, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Enough values, not too many, and an empty name only where a value is optional (§4.4)."""
    for names, formals, least in (
        (tuple(inputs), found.inputs, found.least_inputs),
        (tuple(outputs), found.outputs, found.least_outputs),
    ):
        variadic = bool(formals) and formals[-1].variadic
        if len(names) < least or (len(names) > len(formals) and not variadic):
            refuse(f"{found.name}: more or fewer values than the operator takes", "onnx_arity")
        for position, name in enumerate(names):
            if not name and not formals[min(position, len(formals) - 1)].optional:
                refuse(f"{found.name}: leaves out a value that the operator needs", "onnx_arity")


def check_attributes(found: Definition, attributes: Mapping[str, tuple[int, Any]]) -> None:
    """Known, of the declared type, complete, in range (§4.5, §4.6). `attributes`: name -> type and value."""
    for name, (kind, value) in attributes.items():
        if name not in found.attributes:
            refuse(f"{found.name}: has an attribute that the operator does not", "onnx_attribute")
        if kind != found.attributes[name][0]:
            refuse(f"{found.name}: the attribute {name} is of another type", "onnx_attribute")
        check_range(found.name, name, kind, value)
    for name, (_, required) in found.attributes.items():
        if required and name not in attributes:
            refuse(f"{found.name}: lacks the attribute {name}", "onnx_attribute")
    training = attributes.get("training_mode")
    if training is not None and training[1] != 0:
        refuse(f"{found.name}: is in training mode", "onnx_random")


def check_range(operator: str, name: str, kind: int, value: Any) -> None:
    """One attribute's value (§4.6).

    Raises:
        AdmissionRefused: out of range, or none of the words (code `onnx_attribute_range`).
    """
    if kind in (_A.INT, _A.INTS):
        low, high = RANGES.get(name, (1, 0))
        if name == "pads" and operator in _PADS:
            low = 0
        values = (value,) if kind == _A.INT else value
        if values and not low <= min(values) <= max(values) <= high:
            refuse(
                f"{operator}: the attribute {name} is not between {low} and {high}", "onnx_attribute_range"
            )
        if name in ("to", "dtype", "output_datatype", "stash_type") and 0 in values:
            refuse(f"{operator}: the attribute {name} names no element type", "onnx_attribute_range")
        if name == "axes" and len(set(values)) != len(values):
            refuse(f"{operator}: the attribute axes names one twice", "onnx_attribute_range")
    elif kind in (_A.STRING, _A.STRINGS) and name in WORDS:
        words = {word.encode() for word in WORDS[name]}
        if not {value} <= words if kind == _A.STRING else not set(value) <= words:
            refuse(f"{operator}: the attribute {name} is none of the known words", "onnx_attribute_range")


def bind(found: Definition, kinds: Iterable[int | None]) -> tuple[int | None, ...]:
    """Types of the outputs as far as the inputs' tell (§4.7). `kinds`: types of the inputs, None where left out.

    Raises:
        AdmissionRefused: an input of a type that the operator does not take (code `onnx_type`).
    """
    bound: dict[str, int] = {}
    for position, kind in enumerate(kinds):
        if kind is None:
            continue
        formal = found.inputs[min(position, len(found.inputs) - 1)]
        if kind not in formal.kinds:
            refuse(f"{found.name}: input {position} is of a type that it does not take", "onnx_type")
        if formal.variadic and not formal.alike:
            continue
        if bound.setdefault(formal.variable, kind) != kind:
            refuse(f"{found.name}: inputs of different types", "onnx_type")
    return tuple(
        bound.get(formal.variable, next(iter(formal.kinds)) if len(formal.kinds) == 1 else None)
        for formal in found.outputs
    )
