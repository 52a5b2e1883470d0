"""XGBoost's files: every generation is read, and what is contradictory, unknown or too large is refused by its code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    NAN,
    VECTORS,
    as_json,
    as_ubj,
    categorical_tree,
    changed,
    linear,
    model,
    parse,
    tree,
    vector_tree,
)

from strongroom.errors import AdmissionRefused, Error, LimitExceeded, MalformedInput
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.xgboost import OBJECTIVES, Forest, Linear, parse_xgboost

LEARNER = "learner"
PARAM = "learner/learner_model_param"
BOOSTER = "learner/gradient_booster"
MODEL = "learner/gradient_booster/model"
TREE = "learner/gradient_booster/model/trees/0"


def classes(count: int = 3) -> dict[str, Any]:
    made = changed(model(*[tree()] * count), PARAM + "/num_class", str(count))
    made = changed(made, MODEL + "/tree_info", list(range(count)))
    return changed(
        made,
        LEARNER + "/objective",
        {"name": "multi:softprob", "softmax_multiclass_param": {"num_class": str(count)}},
    )


def dart(weights: list[float] | None = None) -> dict[str, Any]:
    """DART as up to 3.2: a gbtree within, the weights beside it."""
    made = model(tree(), tree())
    booster = made["learner"]["gradient_booster"]
    made["learner"]["gradient_booster"] = {
        "gbtree": booster,
        "name": "dart",
        "weight_drop": [0.5, 0.25] if weights is None else weights,
    }
    return made


def note(document: dict[str, Any], name: str) -> Any:
    return dict(parse(document).learner.notes).get(name)


# What is read


def test_json_and_ubjson_give_identical_arrays() -> None:
    """Every array, name and note of our own models is the same from both forms, to the bit and the type."""
    names = sorted(VECTORS.rglob("*.json"))
    assert len(names) > 50
    for path in names:
        text = parse_xgboost(path.read_bytes(), format="xgboost-json", limits=STANDARD_LIMITS)
        binary = parse_xgboost(
            path.with_suffix(".ubj").read_bytes(), format="xgboost-ubj", limits=STANDARD_LIMITS
        )
        assert _facts(text) == _facts(binary), path.name


def _facts(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        return [
            (f.name, _facts(getattr(value, f.name))) for f in dataclasses.fields(value) if f.name != "format"
        ]
    return value


def test_ubjson_with_a_marker_for_each_element_is_the_same() -> None:
    """Arrays may be typed or not: the same model comes out."""
    document = model(categorical_tree(), tree())
    binary = parse_xgboost(as_ubj(document), format="xgboost-ubj", limits=STANDARD_LIMITS)
    assert _facts(binary) == _facts(parse(document))


def test_files_of_1_x_are_read() -> None:
    """1.x wrote no cats, iterations or targets, one base score, leaf vectors of size 0; 1.0 no split types."""
    old = model()
    for path in (f"{MODEL}/cats", f"{MODEL}/iteration_indptr", f"{PARAM}/num_target", f"{PARAM}/boost_from_average",
                 f"{LEARNER}/feature_names", f"{LEARNER}/feature_types", f"{TREE}/split_type", f"{TREE}/categories",
                 f"{TREE}/categories_nodes", f"{TREE}/categories_segments", f"{TREE}/categories_sizes",
                 f"{TREE}/tree_param/num_deleted"):  # fmt: skip
        old = changed(old, path, None)
    old = changed(old, f"{PARAM}/base_score", "5E-1")
    old = changed(old, f"{MODEL}/gbtree_model_param", {"num_trees": "1", "size_leaf_vector": "0"})
    old = changed(old, f"{TREE}/tree_param/size_leaf_vector", "0")
    old = changed(old, f"{TREE}/default_left", [False, True, False, False, False])
    old = changed(old, "version", [1, 0, 0])
    new, read = parse(model()), parse(old)
    assert isinstance(new, Forest) and isinstance(read, Forest)
    assert _facts(read.trees) == _facts(new.trees)
    assert read.learner.base_score == new.learner.base_score


def test_dart_is_the_same_in_both_generations() -> None:
    """Weights beside the booster (up to 3.2) or within the model (3.4) scale the same leaves."""
    within = changed(model(tree(), tree()), f"{MODEL}/weight_drop", [0.5, 0.25])
    first, second = parse(dart()), parse(within)
    assert isinstance(first, Forest) and isinstance(second, Forest)
    assert _facts(first.trees) == _facts(second.trees)
    assert first.trees.leaf_values.ravel().tolist() == [0.125, 1.0, -1.0, 0.0625, 0.5, -0.5]


def test_a_linear_model_is_weights_and_a_bias() -> None:
    """The last row of the weights is the bias."""
    read = parse(linear())
    assert isinstance(read, Linear)
    assert read.weights.tolist() == [[0.5], [-1.0], [2.0]] and read.bias.tolist() == [0.25]


def test_a_base_score_serves_all_outputs_or_each_has_one() -> None:
    """`5E-1` and `[5E-1]` are one for all; a vector has one for each output."""
    for text, expected in (
        ("5E-1", [0.5] * 3),
        ("[5E-1]", [0.5] * 3),
        ("[1E0,-2E0,+.5e1]", None),
        ("[1E0,-2E0,3.25]", [1, -2, 3.25]),
    ):
        document = changed(classes(), f"{PARAM}/base_score", text)
        if expected is None:
            with pytest.raises(AdmissionRefused):
                parse(document)
        else:
            assert parse(document).learner.base_score.tolist() == expected


def test_feature_names_and_types_are_kept() -> None:
    """Names for people, and the columns whose values are category codes: by type, or by a split on categories."""
    named = changed(model(categorical_tree()), f"{LEARNER}/feature_names", ["größe", "a b", "[x] <1>"])
    typed = changed(named, f"{LEARNER}/feature_types", ["c", "q", "float"])
    learner = parse(typed).learner
    assert learner.feature_names == ("größe", "a b", "[x] <1>")
    assert learner.categorical_columns == (0, 1)
    assert dict(learner.notes)["feature_types"] == ("c", "q", "float")


def test_best_iteration_and_missing_are_stated() -> None:
    """What training wrote down goes into the notes; all iterations are used, as Booster.predict does."""
    attributes = {
        "best_iteration": "7",
        "best_score": "0.5",
        "scikit_learn": json.dumps({"missing": -999.0, "n_jobs": 1}),
    }
    document = changed(model(), f"{LEARNER}/attributes", attributes)
    assert note(document, "best_iteration") == 7 and note(document, "missing") == -999.0
    assert note(document, "iterations_used") == "all, as xgboost.Booster.predict does without iteration_range"


@pytest.mark.parametrize(
    "attributes",
    [
        {"scikit_learn": '{"missing": NaN}'},
        {"scikit_learn": '{"missing": true}'},
        {"scikit_learn": '{"missing": "x"}'},
        {"scikit_learn": "[" * 60},
        {"scikit_learn": "\ud800"},
        {"scikit_learn": [1]},
        {"best_iteration": "-1"},
        {"best_iteration": "1e400"},
        {"best_iteration": 3},
        {"x": {"y": [1, "z"]}},
    ],
)
def test_attributes_that_are_not_understood_are_left_out(attributes: dict[str, Any]) -> None:
    """Attributes are anybody's free text: they give no note, and no refusal either."""
    notes = dict(parse(changed(model(), f"{LEARNER}/attributes", attributes)).learner.notes)
    assert "missing" not in notes and "best_iteration" not in notes


def test_notes_say_what_the_model_is() -> None:
    """Booster, version, objective, classes or targets, trees and iterations."""
    notes = dict(parse(classes()).learner.notes)
    assert (notes["booster"], notes["xgboost_version"], notes["objective"]) == (
        "gbtree",
        "3.2.0",
        "multi:softprob",
    )
    assert (notes["classes"], notes["trees"], notes["iterations"]) == (3, 3, 3)
    quantiles = changed(
        changed(model(tree(), tree(), outputs=2), f"{MODEL}/tree_info", [0, 1]),
        f"{LEARNER}/objective",
        {"name": "reg:quantileerror", "quantile_loss_param": {"quantile_alpha": "[1E-1,9E-1]"}},
    )
    assert note(quantiles, "quantiles") == (0.1, 0.9) and note(quantiles, "targets") == 2


def test_every_generation_is_in_the_vectors() -> None:
    """Files of 2.1, 3.0, 3.1, 3.2 and 3.4 lie in this repository and are read as such."""
    found = {dict(_read(path).learner.notes)["xgboost_version"] for path in VECTORS.rglob("*.json")}
    assert found == {"2.1.4", "3.0.5", "3.1.3", "3.2.0", "3.4.1"}


def test_every_objective_on_the_list_is_in_the_vectors_or_an_alias() -> None:
    """No objective is claimed that was not compared with XGBoost."""
    assert set(OBJECTIVES) - {_read(path).learner.objective for path in VECTORS.glob("*.json")} == {
        "reg:linear"
    }


def _read(path: Path) -> Forest | Linear:
    return parse_xgboost(path.read_bytes(), format="xgboost-json", limits=STANDARD_LIMITS)


# What is refused

REFUSED = {
    "an XGBoost of tomorrow": (changed(model(), "version", [3, 5, 0]), "xgboost_version_unsupported"),
    "an XGBoost 4": (changed(model(), "version", [4, 0, 0]), "xgboost_version_unsupported"),
    "an XGBoost of before JSON": (changed(model(), "version", [0, 90, 0]), "xgboost_version_unsupported"),
    "an unknown member of the file": (changed(model(), "Config", {}), "tree_member_unknown"),
    "an unknown member of the learner": (changed(model(), f"{LEARNER}/metrics", []), "tree_member_unknown"),
    "an unknown learner parameter": (changed(model(), f"{PARAM}/scale", "2"), "tree_member_unknown"),
    "an unknown member of the booster": (
        changed(model(), f"{BOOSTER}/weight_drop", [1.0]),
        "tree_member_unknown",
    ),
    "an unknown member of the model": (
        changed(model(), f"{MODEL}/tree_weights", [1.0]),
        "tree_member_unknown",
    ),
    "an unknown model parameter": (
        changed(model(), f"{MODEL}/gbtree_model_param/x", "1"),
        "tree_member_unknown",
    ),
    "an unknown member of a tree": (changed(model(), f"{TREE}/leaf_scale", 2), "tree_member_unknown"),
    "an unknown tree parameter": (changed(model(), f"{TREE}/tree_param/scale", "2"), "tree_member_unknown"),
    "an unknown member of gblinear": (changed(linear(), f"{MODEL}/bias", [1.0]), "tree_member_unknown"),
    "an unknown member of DART": (changed(dart(), f"{BOOSTER}/normalize", "1"), "tree_member_unknown"),
    "an unknown booster": (changed(model(), f"{BOOSTER}/name", "gbforest"), "xgboost_booster_unsupported"),
    "an unknown objective": (
        changed(model(), f"{LEARNER}/objective/name", "reg:mystery"),
        "xgboost_objective_unsupported",
    ),
    "an objective of 3.4 that couples outputs": (
        changed(model(), f"{LEARNER}/objective/name", "reg:expectileerror"),
        "xgboost_objective_unsupported",
    ),
    "an objective with a control character": (
        changed(model(), f"{LEARNER}/objective/name", "\x1b[2J"),
        "xgboost_objective_unsupported",
    ),
    "no features": (changed(model(), f"{PARAM}/num_feature", "0"), "xgboost_feature_count"),
    "classes and targets": (changed(classes(), f"{PARAM}/num_target", "2"), "xgboost_outputs"),
    "a class too few": (
        changed(model(), f"{LEARNER}/objective", {"name": "multi:softmax"}),
        "xgboost_outputs",
    ),
    "objective and learner disagree on classes": (
        changed(classes(), f"{LEARNER}/objective/softmax_multiclass_param/num_class", "4"),
        "xgboost_outputs",
    ),
    "base scores for two of three": (
        changed(classes(), f"{PARAM}/base_score", "[1E0,1E0]"),
        "xgboost_base_score",
    ),
    "no base score": (changed(model(), f"{PARAM}/base_score", "[]"), "xgboost_base_score"),
    "a base score of NaN": (changed(model(), f"{PARAM}/base_score", "[nan]"), "xgboost_base_score"),
    "an infinite base score": (changed(model(), f"{PARAM}/base_score", "inf"), "xgboost_base_score"),
    "a base score beyond float32": (changed(model(), f"{PARAM}/base_score", "1E39"), "xgboost_base_score"),
    "a base score with code": (
        changed(model(), f"{PARAM}/base_score", "5E-1; import os"),
        "xgboost_base_score",
    ),
    "a base score with digits of another script": (
        changed(model(), f"{PARAM}/base_score", "٥"),
        "xgboost_base_score",
    ),
    "a probability of 1": (
        changed(
            changed(model(), f"{LEARNER}/objective/name", "binary:logistic"), f"{PARAM}/base_score", "1E0"
        ),
        "xgboost_base_score",
    ),
    "a rate of 0": (
        changed(changed(model(), f"{LEARNER}/objective/name", "count:poisson"), f"{PARAM}/base_score", "0E0"),
        "xgboost_base_score",
    ),
    "too few feature names": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b"]),
        "xgboost_feature_names",
    ),
    "a feature name twice": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "a"]),
        "xgboost_feature_names",
    ),
    "an empty feature name": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", ""]),
        "xgboost_feature_names",
    ),
    "a feature name with a line break": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "c\n2026 INFO admitted"]),
        "xgboost_feature_names",
    ),
    "a feature name with an escape": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "\x1b[2J"]),
        "xgboost_feature_names",
    ),
    "a feature name that turns the text around": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "\u202ec"]),
        "xgboost_feature_names",
    ),
    "a feature name with half a character": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "\ud800"]),
        "xgboost_feature_names",
    ),
    "a feature name with a path": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "../../x"]),
        "xgboost_feature_names",
    ),
    "a long feature name": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", "c" * 513]),
        "xgboost_feature_names",
    ),
    "a feature name that is a number": (
        changed(model(), f"{LEARNER}/feature_names", ["a", "b", 3]),
        "xgboost_feature_names",
    ),
    "too few feature types": (changed(model(), f"{LEARNER}/feature_types", ["c"]), "xgboost_feature_types"),
    "an unknown feature type": (
        changed(model(), f"{LEARNER}/feature_types", ["q", "q", "z"]),
        "xgboost_feature_types",
    ),
    "a feature type that is a list": (
        changed(model(), f"{LEARNER}/feature_types", ["q", "q", []]),
        "xgboost_feature_types",
    ),
    "gblinear with a weight too few": (
        changed(linear(), f"{MODEL}/weights", [1.0] * 3),
        "xgboost_linear_weights",
    ),
    "gblinear with a weight too many": (
        changed(linear(), f"{MODEL}/weights", [1.0] * 5),
        "xgboost_linear_weights",
    ),
    "gblinear with NaN": (
        changed(linear(), f"{MODEL}/weights", [1.0, NAN, 1.0, 1.0]),
        "xgboost_linear_weights",
    ),
    "gblinear untrained": (changed(linear(), f"{MODEL}/boosted_rounds", 0), "xgboost_untrained"),
    "no trees": (
        changed(changed(model(), f"{MODEL}/trees", []), f"{MODEL}/gbtree_model_param/num_trees", "0"),
        "xgboost_untrained",
    ),
    "more trees than there are": (
        changed(model(), f"{MODEL}/gbtree_model_param/num_trees", "2147483647"),
        "xgboost_tree_count",
    ),
    "fewer trees than there are": (
        changed(model(), f"{MODEL}/gbtree_model_param/num_trees", "0"),
        "xgboost_tree_count",
    ),
    "a tree for output 1 of 1": (changed(model(), f"{MODEL}/tree_info", [1]), "xgboost_tree_info"),
    "a tree for output 5000000": (
        changed(classes(), f"{MODEL}/tree_info", [0, 5000000, 2]),
        "xgboost_tree_info",
    ),
    "a tree for output -3": (changed(classes(), f"{MODEL}/tree_info", [0, -3, 2]), "xgboost_tree_info"),
    "outputs for two of three trees": (changed(classes(), f"{MODEL}/tree_info", [0, 1]), "xgboost_tree_info"),
    "an output without a tree": (changed(classes(), f"{MODEL}/tree_info", [0, 1, 1]), "xgboost_tree_info"),
    "10000 outputs and one tree": (changed(model(), f"{PARAM}/num_target", "10000"), "xgboost_tree_info"),
    "a vector tree for one output": (
        changed(model(vector_tree(rows=True), outputs=2), f"{MODEL}/tree_info", [1]),
        "xgboost_tree_info",
    ),
    "iterations that do not begin at 0": (
        changed(model(), f"{MODEL}/iteration_indptr", [1, 1]),
        "xgboost_iteration_indptr",
    ),
    "iterations that end elsewhere": (
        changed(model(), f"{MODEL}/iteration_indptr", [0, 1000000]),
        "xgboost_iteration_indptr",
    ),
    "iterations that go back": (
        changed(model(), f"{MODEL}/iteration_indptr", [0, 5, -5, 1]),
        "xgboost_iteration_indptr",
    ),
    "no iterations": (changed(model(), f"{MODEL}/iteration_indptr", []), "xgboost_iteration_indptr"),
    "DART with a weight too few": (dart([0.5]), "xgboost_weight_drop"),
    "DART without weights": (dart([]), "xgboost_weight_drop"),
    "DART with a weight of NaN": (dart([0.5, NAN]), "xgboost_weight_drop"),
    "DART with weights in both places": (
        changed(dart(), "learner/gradient_booster/gbtree/model/weight_drop", [0.5, 0.25]),
        "xgboost_weight_drop",
    ),
    "a tree with another's id": (changed(model(tree(), tree()), f"{MODEL}/trees/1/id", 0), "xgboost_tree_id"),
    "a tree with an id of true": (
        changed(model(tree(), tree()), f"{MODEL}/trees/1/id", True),
        "xgboost_tree_id",
    ),
    "a tree with an id of 1.0": (
        changed(model(tree(), tree()), f"{MODEL}/trees/1/id", 1.0),
        "xgboost_tree_id",
    ),
    "a short array": (changed(model(), f"{TREE}/split_conditions", [0.5]), "xgboost_tree_size"),
    "more nodes than there are": (
        changed(model(), f"{TREE}/tree_param/num_nodes", "2147483647"),
        "xgboost_tree_size",
    ),
    "a tree without nodes": (
        changed(
            model({**tree(), **{name: [] for name in tree() if isinstance(tree()[name], list)}}),
            f"{TREE}/tree_param/num_nodes",
            "0",
        ),
        "xgboost_tree_size",
    ),
}
MALFORMED = {
    "a list": ([], "tree_member_type"),
    "an empty object": ({}, "tree_member_missing"),
    "no version": (changed(model(), "version", None), "tree_member_missing"),
    "a version of two numbers": (changed(model(), "version", [3, 2]), "tree_member_type"),
    "a version in text": (changed(model(), "version", "3.2.0"), "tree_array_type"),
    "a negative version": (changed(model(), "version", [3, -2, 0]), "tree_member_type"),
    "a learner that is a list": (changed(model(), "learner", []), "tree_member_type"),
    "no objective": (changed(model(), f"{LEARNER}/objective", None), "tree_member_missing"),
    "an objective without name": (changed(model(), f"{LEARNER}/objective", {}), "tree_member_type"),
    "an objective that is text": (changed(model(), f"{LEARNER}/objective", "reg:gamma"), "tree_member_type"),
    "a booster without name": (changed(model(), f"{BOOSTER}/name", None), "tree_member_type"),
    "a booster without model": (changed(model(), MODEL, None), "tree_member_missing"),
    "a model that is a list": (changed(model(), MODEL, []), "tree_member_type"),
    "a number of features that is a number": (
        changed(model(), f"{PARAM}/num_feature", 3),
        "tree_member_number",
    ),
    "a negative number of classes": (changed(model(), f"{PARAM}/num_class", "-1"), "tree_member_number"),
    "a base score that is a number": (changed(model(), f"{PARAM}/base_score", 0.5), "tree_member_type"),
    "attributes that are a list": (changed(model(), f"{LEARNER}/attributes", []), "tree_member_type"),
    "feature names that are text": (changed(model(), f"{LEARNER}/feature_names", "abc"), "tree_member_type"),
    "feature types that are an object": (
        changed(model(), f"{LEARNER}/feature_types", {}),
        "tree_member_type",
    ),
    "trees that are an object": (changed(model(), f"{MODEL}/trees", {}), "tree_member_type"),
    "a tree that is a number": (changed(model(), TREE, 1), "tree_member_type"),
    "a tree without parents": (changed(model(), f"{TREE}/parents", None), "tree_member_missing"),
    "a tree without parameters": (changed(model(), f"{TREE}/tree_param", None), "tree_member_missing"),
    "children in text": (
        changed(model(), f"{TREE}/left_children", ["1", "3", "-1", "-1", "-1"]),
        "tree_array_type",
    ),
    "children that are fractions": (
        changed(model(), f"{TREE}/left_children", [1.0, 3.0, -1.0, -1.0, -1.0]),
        "tree_array_type",
    ),
    "thresholds in text": (changed(model(), f"{TREE}/split_conditions", ["0"] * 5), "tree_array_type"),
    "a tree_info of null": (changed(model(), f"{MODEL}/tree_info", [{}]), "tree_array_type"),
    "weights of text": (changed(linear(), f"{MODEL}/weights", "1234"), "tree_array_type"),
    "vectors without values": (
        changed(model(vector_tree(rows=False), outputs=2), f"{TREE}/base_weights", None),
        "tree_array_type",
    ),
}


@pytest.mark.parametrize(("document", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_unknown_or_contradictory_is_refused(document: Any, code: str) -> None:
    """Readable, but not to be run: each wrong in one respect only, and refused with that respect's code."""
    with pytest.raises(AdmissionRefused) as caught:
        parse(document)
    assert caught.value.code == code


@pytest.mark.parametrize(("document", "code"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_model_is_malformed(document: Any, code: str) -> None:
    """Missing members and wrong types are the caller's to mend."""
    with pytest.raises(MalformedInput) as caught:
        parse(document)
    assert caught.value.code == code


def test_refusals_show_no_control_characters() -> None:
    """An objective's name is repeated only where it is plain; feature names never are."""
    with pytest.raises(AdmissionRefused) as plain:
        parse(changed(model(), f"{LEARNER}/objective/name", "reg:expectileerror"))
    assert "reg:expectileerror" in plain.value.message
    with pytest.raises(AdmissionRefused) as strange:
        parse(changed(model(), f"{LEARNER}/objective/name", "a\nb"))
    assert strange.value.message.isprintable()


LIMITS = {
    "model_too_large": ({"model_bytes": 1000}, model()),
    "tree_too_deep": ({"nesting": 5}, model()),
    "tree_too_many_values": ({"values": 60}, model()),
    "xgboost_too_many_trees": ({"trees": 1}, model(tree(), tree())),
    "xgboost_too_many_nodes": ({"tree_nodes": 9}, model(tree(), tree())),
    "xgboost_too_many_categories": ({"categories": 5}, model(categorical_tree(), categorical_tree())),
    "xgboost_too_many_features": ({"features": 2}, model()),
    "xgboost_too_many_outputs": ({"outputs": 2}, classes()),
}


@pytest.mark.parametrize("code", LIMITS)
def test_limits_hold(code: str) -> None:
    """Each document passes the standard limits and fails one lower limit with that limit's code."""
    lower, document = LIMITS[code]
    parse(document)
    with pytest.raises(LimitExceeded) as caught:
        parse(document, limits=dataclasses.replace(STANDARD_LIMITS, **lower))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{PARAM}/num_class", "xgboost_too_many_outputs"),
        (f"{PARAM}/num_target", "xgboost_too_many_outputs"),
        (f"{PARAM}/num_feature", "xgboost_too_many_features"),
    ],
)
def test_declared_counts_size_nothing(path: str, code: str) -> None:
    """A thousand million classes, targets or features in a small file cost nothing and are refused."""
    with pytest.raises(LimitExceeded) as caught:
        parse(changed(model(), path, "1000000000"))
    assert caught.value.code == code


def test_vectors_on_categories_count_once_for_each_output() -> None:
    """In ONNX such a tree is written once an output, so its nodes count that often."""
    both = {**vector_tree(rows=True), "categories": [1], "categories_nodes": [0], "categories_segments": [0],
            "categories_sizes": [1], "split_type": [1, 0, 0, 0, 0]}  # fmt: skip
    document = model(both, outputs=2)
    parse(document, limits=dataclasses.replace(STANDARD_LIMITS, tree_nodes=10, categories=2))
    for lower in ({"tree_nodes": 9}, {"categories": 1}):
        with pytest.raises(LimitExceeded):
            parse(document, limits=dataclasses.replace(STANDARD_LIMITS, **lower))


# Recorded hostile files and mutations


def _hostile() -> list[dict[str, Any]]:
    manifest = SHARED / "hostile-models" / "manifest.json"
    if not manifest.is_file():
        return []
    parts = json.loads(manifest.read_text())
    entries = [entry for part in parts.values() if isinstance(part, list) for entry in part]
    return [
        entry for entry in entries if isinstance(entry, dict) and entry.get("format", "").startswith("xgb_")
    ]


@pytest.mark.skipif(
    not _hostile(), reason="not exercised here: ../shared/hostile-models is not beside this checkout"
)
def test_the_hostile_collection_is_refused_and_its_good_models_are_not() -> None:
    """Every hostile XGBoost file that crashes or misleads libxgboost is refused here, every good one is read."""
    for entry in _hostile():
        data = (SHARED / "hostile-models" / entry["file"]).read_bytes()
        form = {"xgb_json": "xgboost-json", "xgb_ubj": "xgboost-ubj"}[entry["format"]]
        try:
            parse_xgboost(data, format=form, limits=STANDARD_LIMITS)
            outcome = "admit"
        except Error:
            outcome = "reject"
        assert outcome == entry["expect"]["outcome"], entry["file"]


SEEDS = [as_json(model(tree(), categorical_tree())), as_json(dart()), as_json(linear()), as_json(classes())]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_any_bytes_give_a_model_or_our_error(seed: bytes, changes: list[tuple[int, int]]) -> None:
    """A value or strongroom.errors.Error, nothing else."""
    data = bytearray(seed)
    for place, byte in changes:
        data[place % len(data)] = byte
    for form in ("xgboost-json", "xgboost-ubj"):
        try:
            parse_xgboost(data, format=form, limits=STANDARD_LIMITS)
        except Error as exc:
            assert exc.__cause__ is None
