"""One model of each kind that is known to harm a server that runs strangers' models, made here: no file is needed.

The kinds are those of the corpus that this project was examined with, by the names of its files; the models are our
own, and most of them are vectors of a clause (`hostile`). `python tests/models/kinds.py DIR` writes them, with the
codes in `manifest.json`; `strongroom admit FILE` then says why each is refused.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import samples
from hostile import BOOL, FLOAT, INT64, constant, filled, loop, model, node, value, weights
from onnx import TensorProto, helper

ONNX, JSON, UBJ = "onnx", "xgboost-json", "xgboost-ubj"
BIG = 2147483647


@dataclass(frozen=True)
class Kind:
    """A format, the codes of which one is the refusal (empty: admitted), and what makes the file."""

    format: str
    codes: tuple[str, ...]
    make: Callable[[], bytes]


def vector(name: str) -> Kind:
    """A vector of a clause."""
    found = hostile.VECTORS[name]
    return Kind(ONNX, (found.code,), lambda: hostile.encoded(found.bad()))


def onnx(code: str, make: Callable[[], Any]) -> Kind:
    """An ONNX model that has no clause of its own."""
    return Kind(ONNX, (code,), lambda: hostile.encoded(make()))


def raw(code: str, make: Callable[[], bytes]) -> Kind:
    """Bytes that say they are ONNX."""
    return Kind(ONNX, (code,), make)


def document(code: str, path: str, what: Any, base: Callable[[], dict[str, Any]] = samples.model) -> Kind:
    """An XGBoost document with one member replaced."""
    return Kind(JSON, (code,), lambda: samples.as_json(samples.changed(base(), path, what)))


def tree(code: str, **changes: Any) -> Kind:
    """An XGBoost document with one tree altered."""
    return Kind(JSON, (code,), lambda: samples.as_json(samples.model(samples.tree(**changes))))


def text(code: str, change: Callable[[bytes], bytes]) -> Kind:
    """An XGBoost document altered as text."""
    return Kind(JSON, (code,), lambda: change(samples.as_json(samples.model())))


MODEL = "learner/gradient_booster/model"
PARAM = "learner/learner_model_param"


def _flipped(data: bytes, count: int, seed: int) -> bytes:
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(count):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


class _Harmless:
    """Pickled, it says what a hostile one would do."""

    def __reduce__(self) -> Any:
        return (print, ("this pickle was run",))


def _in_function() -> Any:
    made = hostile.function(
        body=[
            node("Constant", [], ["c"], value=hostile.external(weights([4]))),
            node("Add", ["a", "c"], ["b"]),
        ]
    )
    return hostile.call(made)


def _memory_marker() -> Any:
    made = hostile.external(weights([4]))
    made.external_data[0].value = "*/_ORT_MEM_ADDR_/*"
    return hostile.add(made)


def _relative() -> Any:
    made = hostile.external(weights([4]))
    made.external_data[0].value = "weights.bin"
    return hostile.add(made)


def _flag_only() -> Any:
    made = weights([4])
    made.data_location = TensorProto.EXTERNAL
    return hostile.add(made)


def _sparse_elsewhere() -> Any:
    made = model(node("Add", ["x", "v"]))
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(hostile.external(weights([1], "v")), constant("i", [0]), [4])
    )
    return made


def _expand(factor: float | None, shape: Any = None) -> Any:
    """x, expanded to a constant shape, or to one that is computed from its own values."""
    if factor is None:
        nodes = [node("Expand", ["x", "s"], ["y"])]
        return model(*nodes, inputs=[value("x", shape=[1])], constants=[constant("s", shape)])
    nodes = [
        node("Mul", ["x", "f"], ["m"]),
        node("Cast", ["m"], ["s"], to=INT64),
        node("Expand", ["one", "s"], ["y"]),
    ]
    constants = [constant("f", [factor], FLOAT), constant("one", [1.0], FLOAT)]
    return model(*nodes, inputs=[value("x", shape=[2])], constants=constants)


def _sequence() -> Any:
    nodes = [node("SequenceEmpty", [], ["s"]), node("SequenceInsert", ["s", "x"], ["t"])]
    return model(*nodes, node("SequenceAt", ["t", "zero"], ["y"]), constants=[constant("zero", 0)])


def _random_shape() -> Any:
    return model(
        node("RandomNormal", [], ["r"], shape=[1 << 36]),
        node("ReduceMax", ["r"], ["m"]),
        node("Add", ["x", "m"]),
    )


def _window() -> Any:
    nodes = [node("HannWindow", ["n"], ["w"]), node("ReduceMax", ["w"], ["m"]), node("Add", ["x", "m"])]
    return model(*nodes, constants=[constant("n", 1 << 38)])


def _conv_pads() -> Any:
    made = node("Conv", ["x", "w"], pads=[10**6] * 4)
    return model(made, inputs=[value("x", shape=[1, 1, 8, 8])], constants=[weights([1, 1, 3, 3])])


def _long_scan() -> Any:
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["s2"]), node("Identity", ["s2"], ["o"])],
        "body",
        [value("s", shape=[]), value("e", shape=[])],
        [value("s2", shape=[]), value("o", shape=[])],
    )
    nodes = [
        node("ConstantOfShape", ["n"], ["long"]),
        node("Scan", ["x", "long"], ["y", "z"], body=body, num_scan_inputs=1),
    ]
    return model(*nodes, inputs=[value("x", shape=[])], constants=[constant("n", [2 * 10**7])])


def _folding() -> Any:
    nodes = [node("ConstantOfShape", ["s"], ["v0"])]
    nodes += [node("Sin", [f"v{n}"], [f"v{n + 1}"]) for n in range(3000)]
    nodes += [node("ReduceMax", ["v3000"], ["m"]), node("Add", ["x", "m"])]
    return model(*nodes, constants=[constant("s", [4096, 4096])])


def _names() -> Any:
    ugly = 'v\n2026-01-01 INFO admitted\x1b[2K\0"../'
    return model(node("Relu", ["x"], [ugly]), node("Relu", [ugly]))


def _untidy(kind: int) -> Any:
    """An attribute twice, with two values."""
    made = node("LeakyRelu", alpha=0.1)
    made.attribute.append(helper.make_attribute("alpha", 0.9 if kind == FLOAT else 1))
    return model(made)


def _data_dependent() -> Any:
    return model(node("NonZero", ["x"], ["y"]), outputs=[value("y", INT64, None)])


def _division() -> Any:
    return model(
        node("Div", ["x", "z"]),
        inputs=[value("x", INT64, [1]), value("z", INT64, [1])],
        outputs=[value("y", INT64, [1])],
    )


def _bad_tensor(change: Callable[[Any], Any]) -> Any:
    made = weights([4])
    change(made)
    return hostile.add(made)


def _strings_raw() -> Any:
    made = helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])
    made.ClearField("string_data")
    made.raw_data = b"abcd"
    return hostile.add(made)


def _merged() -> bytes:
    other = model()
    other.ClearField("graph")
    other.graph.initializer.append(hostile.external(weights([4], "v")))
    return bytes(model().SerializeToString() + other.SerializeToString())


def _broken() -> bytes:
    return _flipped(bytes(model().SerializeToString()), 40, 11)


def _dropout() -> Any:
    return model(node("Dropout", ["x", "", "t"]), constants=[constant("t", True, BOOL)])


def _cast() -> Any:
    made = node("Cast", to=TensorProto.FLOAT8E4M3FN, saturate=4)
    return model(
        made, node("Cast", ["y"], ["z"], to=FLOAT), outputs=[value("z", shape=None)], opset=25, ir=11
    )


def _nested_document(depth: int) -> bytes:
    return samples.as_json(samples.model()).replace(
        b'"attributes":{}', b'"attributes":{"a":' + b"[" * depth + b"]" * depth + b"}"
    )


def _twice(data: bytes) -> bytes:
    at = data.index(b'"trees":')
    return data[:at] + b'"trees":[],' + data[at:]


def _ubj(change: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    return lambda: change(samples.as_ubj(samples.model()))


def _dart() -> dict[str, Any]:
    made = samples.model()
    booster = made["learner"]["gradient_booster"]
    made["learner"]["gradient_booster"] = {"gbtree": booster, "name": "dart", "weight_drop": []}
    return made


def _categories(**changes: Any) -> bytes:
    made = samples.model(samples.categorical_tree(**changes))
    made["learner"]["feature_types"] = ["float", "c", "float"]
    return samples.as_json(made)


def _vector_leaf(**changes: Any) -> bytes:
    return samples.as_json(samples.model(samples.vector_tree(rows=False, **changes), outputs=2))


KINDS: dict[str, Kind] = {
    # Data outside the file
    "ext_abs_path": vector("data elsewhere"),
    "ext_relative": onnx("onnx_external_data", _relative),
    "ext_const_attr": vector("data elsewhere, in an attribute"),
    "ext_in_subgraph": vector("data elsewhere, in a branch"),
    "ext_in_function": onnx("onnx_external_data", _in_function),
    "ext_mem_addr": onnx("onnx_external_data", _memory_marker),
    "ext_sparse": onnx("onnx_sparse", _sparse_elsewhere),
    "ext_flag_only": onnx("onnx_external_data", _flag_only),
    # Memory
    "mem_cos_static": onnx("onnx_memory", lambda: filled([1 << 18, 1 << 18])),
    "mem_cos_input": vector("shape that callers choose"),
    "mem_expand_input": onnx("onnx_unbounded", lambda: _expand(1e5)),
    "mem_expand_static": onnx("onnx_memory", lambda: _expand(None, [1 << 40])),
    "mem_range": vector("long range"),
    "mem_resize": vector("large factor"),
    "mem_concat_doubling": vector("doubling"),
    "mem_loop_doubling": vector("loop that grows"),
    "mem_loop_scan": onnx("onnx_loop", lambda: loop(10**6, carried=(1, 65536), scans=1)),
    "mem_string_concat": vector("texts that double"),
    "mem_sequence": onnx("onnx_operator_refused", _sequence),
    "mem_pad": vector("large pads"),
    "mem_sparse_init": vector("sparse"),
    "mem_random_shape": onnx("onnx_random", _random_shape),
    "mem_conv_pads": onnx("onnx_attribute_range", _conv_pads),
    "mem_hann": onnx("onnx_memory", _window),
    "mem_rnn_hidden": vector("hidden units"),
    "mem_init_dims": vector("sizes that wrap round"),
    "mem_input_decl": vector("input that nobody can send"),
    "mem_shape_lie": vector("declared shape that lies"),
    # Time
    "cpu_loop_forever": vector("endless"),
    "cpu_loop_trip": onnx("onnx_loop", lambda: loop(1 << 62)),
    "cpu_nested_loops": vector("iterations of iterations"),
    "cpu_matmul_chain": vector("products"),
    "cpu_fold_loop": Kind(ONNX, ("onnx_compute", "onnx_memory"), lambda: hostile.encoded(_folding())),
    "cpu_conv_big": vector("large convolution"),
    "cpu_scan_long": onnx("onnx_loop", _long_scan),
    # Structure
    "st_cycle": vector("cycle"),
    "st_dup_output": vector("twice"),
    "st_undefined": onnx("onnx_graph", lambda: model(node("Relu", ["nowhere"]))),
    "st_not_sorted": vector("not in order"),
    "st_func_recursive": vector("function that calls itself"),
    "st_func_laughs": vector("laughs"),
    "st_deep_if": vector("nested too deeply"),
    "st_custom_domain": vector("somebody's domain"),
    "st_unknown_op": vector("operator that is none"),
    "st_epcontext": onnx(
        "onnx_domain",
        lambda: model(
            node("EPContext", domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/passwd"),
            imports=[("com.microsoft", 1)],
        ),
    ),
    "st_attr_in_name": vector("function in place of an operator"),
    "st_opset_future": vector("opset of the future"),
    "st_ir_future": onnx("onnx_version", lambda: model(ir=BIG)),
    "st_training_info": vector("training"),
    "st_type_lie": vector("output of another type"),
    "st_branch_types": vector("branches of two types"),
    "st_names": onnx("onnx_name", _names),
    "st_attr_dup": onnx("onnx_attribute", lambda: _untidy(FLOAT)),
    "st_no_outputs": vector("no output"),
    # Tensors
    "tn_raw_short": vector("raw data short"),
    "tn_raw_long": vector("raw data long"),
    "tn_neg_dim": vector("negative size"),
    "tn_string_raw": onnx("onnx_tensor", _strings_raw),
    "tn_two_fields": vector("two sets of data"),
    # Files
    "fm_empty": raw("format_unknown", lambda: b""),
    "fm_random": raw("format_unknown", lambda: random.Random(1).randbytes(4096)),
    "fm_truncated": raw("onnx_malformed", lambda: bytes(model().SerializeToString()[:60])),
    "fm_huge_len": raw("onnx_malformed", lambda: b"\x08\x08\x3a\xfe\xff\xff\xff\x07" + b"x" * 10),
    "fm_pickle_as_onnx": raw("format_not_accepted", lambda: pickle.dumps(_Harmless())),
    "fm_ort_flatbuffer": raw("format_not_accepted", lambda: b"\x18\0\0\0ORTM" + bytes(64)),
    "fm_merged": raw("onnx_merged", _merged),
    "fm_fuzz1": Kind(ONNX, ("onnx_malformed", "format_unknown"), _broken),
    # What is left of others, and what cannot be had again
    "lk_random": vector("noise"),
    "lk_dropout_training": onnx("onnx_random", _dropout),
    "lk_bn_training": vector("normalisation that trains"),
    "lk_output_size": Kind(ONNX, (), lambda: hostile.encoded(_data_dependent())),
    "lk_cast_uninit": onnx("onnx_attribute_range", _cast),
    # What ends the process that loads or runs it
    "crash_max_empty": vector("input left out"),
    "crash_split_empty": vector("output left out"),
    "crash_depthtospace": vector("block size"),
    "crash_layernorm": vector("scale of another rank"),
    "crash_div_data": Kind(ONNX, (), lambda: hostile.encoded(_division())),
    # Tables of ai.onnx.ml
    "ml_tree_cycle": vector("child of its own"),
    "ml_tree_oob": vector("child that is not there"),
    "ml_tree_feature": vector("feature that is not there"),
    "ml_tree_targets": vector("too many targets"),
    "ml_tree_lens": vector("lists of different lengths"),
    "ml_linear_short": vector("coefficients"),
    "ml_svm_short": vector("vectors"),
    # XGBoost
    "xgb_cycle": tree(
        "xgboost_tree_child", left_children=[1, 3, -1, 0, -1], right_children=[2, 4, -1, 0, -1]
    ),
    "xgb_child_oob": tree("xgboost_tree_child", left_children=[1, 10**6, -1, -1, -1]),
    "xgb_dag": tree("xgboost_tree_shared_child", left_children=[2, 3, -1, -1, -1]),
    "xgb_feature_oob": tree("xgboost_split_feature", split_indices=[0, 1 << 30, 0, 0, 0]),
    "xgb_short_array": tree("xgboost_tree_size", split_conditions=[0.5]),
    "xgb_num_nodes": document("xgboost_tree_size", f"{MODEL}/trees/0/tree_param/num_nodes", str(BIG)),
    "xgb_num_trees": document("xgboost_tree_count", f"{MODEL}/gbtree_model_param/num_trees", str(BIG)),
    "xgb_size_leaf_vector": document(
        "xgboost_leaf_vector", f"{MODEL}/trees/0/tree_param/size_leaf_vector", str(BIG)
    ),
    "xgb_num_class": document("xgboost_too_many_outputs", f"{PARAM}/num_class", "1000000000"),
    "xgb_tree_info": document("xgboost_tree_info", f"{MODEL}/tree_info", [5_000_000]),
    "xgb_tree_info_neg": document("xgboost_tree_info", f"{MODEL}/tree_info", [-3]),
    "xgb_indptr": document("xgboost_iteration_indptr", f"{MODEL}/iteration_indptr", [0, 1_000_000, -5]),
    "xgb_num_feature_zero": document("xgboost_feature_count", f"{PARAM}/num_feature", "0"),
    "xgb_base_score_nan": document("xgboost_base_score", f"{PARAM}/base_score", "[nan]"),
    "xgb_nan_leaf": tree("xgboost_leaf_value", split_conditions=[0.5, -1.5, float("nan"), 2.0, -2.0]),
    "xgb_cat_oob": Kind(JSON, ("xgboost_categories",), lambda: _categories(categories_segments=[0, 10**6])),
    "xgb_cat_nodes": Kind(JSON, ("xgboost_categories",), lambda: _categories(categories_nodes=[0, 99])),
    "xgb_dart_short": document("xgboost_weight_drop", "learner/gradient_booster/weight_drop", [], _dart),
    "xgb_linear_short": document("xgboost_linear_weights", f"{MODEL}/weights", [0.5], samples.linear),
    "xgb_mt_leaf_index": Kind(
        JSON,
        ("xgboost_leaf_vector",),
        lambda: samples.as_json(
            samples.model(
                samples.vector_tree(rows=True, right_children=[2, 4, 1 << 30, 0, 1]),
                outputs=2,
            )
        ),
    ),
    "xgb_objective": document("xgboost_objective_unsupported", "learner/objective/name", "exec:rm"),
    "xgb_dup_keys": text("tree_duplicate_member", _twice),
    "xgb_deep_json": Kind(JSON, ("tree_too_deep",), lambda: _nested_document(60_000)),
    "xgb_truncated": text("tree_not_json", lambda data: data[: len(data) * 7 // 10]),
    "xgb_big_int": text("tree_number_too_long", lambda data: data.replace(b'"id":0', b'"id":' + b"9" * 5000)),
    "xgb_string_numbers": tree("tree_array_type", split_conditions=["0.5"] * 5),
    "xgb_feature_names": document(
        "xgboost_feature_names", "learner/feature_names", ["a\n2026 INFO admitted", "\x1b[2K", ""]
    ),
    "xgb_pickle": Kind(JSON, ("format_not_accepted",), lambda: pickle.dumps(_Harmless())),
    "ubj_count_bomb": Kind(
        UBJ,
        ("tree_truncated",),
        lambda: b"{L" + (1).to_bytes(8, "big") + b"a[$d#L" + (1 << 40).to_bytes(8, "big"),
    ),
    "ubj_cycle": Kind(
        UBJ,
        ("xgboost_tree_child",),
        lambda: samples.as_ubj(
            samples.model(samples.tree(left_children=[1, 3, -1, 0, -1], right_children=[2, 4, -1, 0, -1]))
        ),
    ),
    "ubj_deep": Kind(UBJ, ("tree_too_deep",), lambda: b"{L" + (1).to_bytes(8, "big") + b"a" + b"[" * 100_000),
    "ubj_fuzz": Kind(UBJ, ("tree_not_ubjson", "tree_truncated"), _ubj(lambda data: _flipped(data, 30, 12))),
}


def write(folder: Path) -> None:
    """Writes every model, and what becomes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = {ONNX: "onnx", JSON: "json", UBJ: "ubj"}
    listing = []
    for name, kind in KINDS.items():
        file = f"{name}.{suffixes[kind.format]}"
        (folder / file).write_bytes(kind.make())
        listing.append({"file": file, "format": kind.format, "codes": kind.codes or ["admitted"]})
    (folder / "manifest.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
