"""Running servers that isolate: the hostile corpus, deaths, callers who hang up, and starts that are refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import library_os
import numpy as np
import own_corpus
import pytest
from conftest import SHARED
from plane import ALICE, BOB, content_digest, linear_onnx
from serving import Serving, serving, start
from test_admission import FORMATS
from test_server import Caller
from test_workers import DEADLY, DIVIDE, HARMLESS

import strongroom
from strongroom import planned
from strongroom.attest.evidence import parse_answer
from strongroom.attest.keyset import parse_keyset
from strongroom.engine import Engine
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, TensorSpec
from strongroom.oip import DATATYPES

CORPUS = SHARED / "hostile-models"
pytestmark = pytest.mark.slow
SETTINGS = """
[security]
anonymous_upload = true
isolation = "{}"
[limits]
evidence_per_minute = 100_000
models = 1000
models_per_owner = 1000
[workers]
run_shortest_s = 5
run_longest_s = 20
"""


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a worker for each data owner."""
    with serving(tmp_path_factory.mktemp("owner"), settings=SETTINGS.format("owner")) as running:
        yield running


def integers(values: dict[str, Any]) -> bytes:
    """A request for `DIVIDE`."""
    tensors = [
        {"name": name, "shape": [1], "datatype": "INT64", "data": value.tolist()}
        for name, value in values.items()
    ]
    return json.dumps({"inputs": tensors}).encode()


def test_the_attested_configuration_says_so(owner: Serving) -> None:
    """Isolation and layers are in the keyset that evidence signs, as they were planned."""
    caller = Caller(owner.url)
    answer = caller.http.get("/v1/evidence", params={"nonce": "ab" * 32})
    security = parse_keyset(parse_answer(answer.content).keyset).security
    assert (security.isolation, security.sandbox) == ("owner", planned.FEWEST)


def test_a_death_is_one_callers_error_over_http(owner: Serving) -> None:
    """422 for the one, 503 with a time for whoever goes on like that; health, other callers and models go on."""
    caller = Caller(owner.url)
    assert caller.put("deadly", DIVIDE.onnx, access="public").status_code == 201
    assert caller.put("other", linear_onnx(), access="public").status_code == 201
    path = "/v2/models/deadly/infer"
    assert caller.request("POST", path, integers(HARMLESS)).json()["outputs"][0]["data"] == [2]
    for _ in range(3):
        died = caller.request("POST", path, integers(DEADLY), key=BOB)
        assert (died.status_code, died.json()["code"]) == (422, "worker_died")
    waits = caller.request("POST", path, integers(HARMLESS), key=BOB)
    assert (waits.status_code, waits.json()["code"]) == (503, "model_quarantined")
    assert int(waits.headers["retry-after"]) >= 1
    assert caller.http.get("/health").status_code == 200
    assert caller.run("other", key=BOB).status_code == 200
    deadline = time.monotonic() + 60
    while (answer := caller.request("POST", path, integers(HARMLESS))).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.json()["outputs"][0]["data"] == [2]


def test_a_caller_who_hangs_up_ends_the_run(owner: Serving) -> None:
    """Long before the run's own end: its worker is gone, and the model answers others meanwhile."""
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [512, 512]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [512, 512]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [512, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [512, 512])],
        [
            numpy_helper.from_array(np.array(3000), "trips"),
            numpy_helper.from_array(np.eye(512, dtype=np.float32), "w"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    caller = Caller(owner.url)
    done = caller.put("long", made.SerializeToString(), access="public")
    assert done.status_code == 201, done.text
    tensor = {"name": "x", "shape": [512, 512], "datatype": "FP32", "data": [1.0] * (512 * 512)}
    busy = _workers(owner)
    hasty = Caller(owner.url, timeout=2)
    with pytest.raises(httpx.ReadTimeout):
        hasty.request("POST", "/v2/models/long/infer", json.dumps({"inputs": [tensor]}).encode())
    hasty.http.close()
    deadline = time.monotonic() + 5
    while spinning := [pid for pid in _workers(owner) - busy if _state(pid) == "R"]:
        assert time.monotonic() < deadline, spinning
        time.sleep(0.1)


def _workers(running: Serving) -> set[int]:
    """All processes below the server's zygote."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: set[int] = {running.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {running.pid}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_the_server_survives_our_own_corpus(owner: Serving) -> None:
    """Of a bare clone's files each hostile one is refused at its upload with its code; each innocent one answers what
    the engine answers here, or refuses what we sent in a sentence. No process of the server ends.
    """
    caller, engine = Caller(owner.url, timeout=120), Engine()
    log = owner.log.read_text()
    wrong: list[Any] = []
    answered = 0
    for number, file in enumerate((*own_corpus.of_kinds(), *own_corpus.innocent())):
        name = f"own-{number}"
        headers = {"Content_Digest": content_digest(file.data), "Strongroom_Format": file.format}
        put = caller.request("PUT", f"/v1/models/{name}", file.data, changes=True, **headers)
        if file.codes:
            # An upload's first bytes are looked at before it is examined, and by themselves.
            codes = (*file.codes, "format_unknown", "format_mismatch", "body_empty")
            if put.status_code not in (400, 409, 413, 422) or put.json()["code"] not in codes:
                wrong.append((file.what, put.status_code, put.text[:200]))
            continue
        if put.status_code != 201:
            wrong.append((file.what, put.status_code, put.text[:200]))
            continue
        admitted = admit(file.data, format="onnx", limits=STANDARD_LIMITS)
        feed = {spec.name: _sample(spec) for spec in admitted.info.inputs}
        ran = _feed(caller, name, {key: _spelled(array) for key, array in feed.items()})
        try:
            here = engine.load(admitted).run(feed, outputs=())
        except strongroom.InvalidRequest:  # what we sent does not fit
            if ran.status_code not in (200, 400, 413, 422):
                wrong.append((file.what, ran.status_code, ran.text[:200]))
        else:
            answered += 1
            if ran.status_code != 200:
                wrong.append((file.what, ran.status_code, ran.text[:200]))
                continue
            got = {output["name"]: output for output in ran.json()["outputs"]}
            wrong += [
                (file.what, key)
                for key, value in here.items()
                if value.dtype.kind in "fiub"
                and not np.allclose(np.array(got[key]["data"]).reshape(value.shape), value, equal_nan=True)
            ]
        assert caller.request("DELETE", f"/v1/models/{name}", changes=True).status_code == 200
    assert not wrong
    assert answered > 40
    assert caller.http.get("/health").status_code == 200
    assert "made anew" not in owner.log.read_text()[len(log) :]


def _sample(spec: TensorSpec) -> Any:
    """An input of ones; two where a size is the caller's to choose."""
    shape = [size if isinstance(size, int) else 2 for size in spec.shape or ()]
    if spec.datatype == "BYTES":
        array = np.empty(shape, object)
        array[...] = b"a"
        return array
    return np.ones(shape, DATATYPES[spec.datatype])


def _spelled(array: Any) -> dict[str, Any]:
    data = (
        [one.decode() for one in array.reshape(-1)] if array.dtype.kind == "O" else array.reshape(-1).tolist()
    )
    kind = "string" if array.dtype.kind == "O" else array.dtype.name
    return {"shape": list(array.shape), "dtype": kind, "data": data}


@pytest.mark.skipif(not CORPUS.is_dir(), reason="not exercised here: the corpus is not beside this checkout")
def test_the_server_survives_the_corpus(owner: Serving) -> None:
    """Each hostile file is refused at its upload, or its run ends within its limits; good ones answer as expected."""
    caller = Caller(owner.url, timeout=120)
    wrong: list[Any] = []
    for number, entry in enumerate(json.loads((CORPUS / "manifest.json").read_bytes())["models"]):
        data, expect = (CORPUS / entry["file"]).read_bytes(), entry["expect"]
        name = f"corpus-{number}"
        put = caller.request(
            "PUT",
            f"/v1/models/{name}",
            data,
            changes=True,
            Content_Digest=content_digest(data),
            Strongroom_Format=FORMATS[entry["format"]],
        )
        outcome = expect["outcome"]
        if outcome in ("reject", "reject_or_kill", "reject_or_flag") and put.status_code in (
            400,
            409,
            413,
            422,
        ):
            continue
        if put.status_code != 201 or outcome == "reject":
            wrong.append((entry["file"], put.status_code, put.text[:200]))
            continue
        if entry["format"] != "onnx":  # whose input has a name of ours
            entry["feed"] = dict(zip(("features",), entry["feed"].values(), strict=True))
        ran = _feed(caller, name, entry["feed"])
        if outcome in ("reject_or_kill", "admit_bad_feed_fails"):
            if ran.status_code not in (400, 413, 422):
                wrong.append((entry["file"], ran.status_code))
            if outcome == "admit_bad_feed_fails":
                good = _feed(caller, name, expect["feed_ok"])
                wrong += _differences(entry["file"], good, entry["outputs_ok"])
        elif outcome == "admit":
            wrong += _differences(entry["file"], ran, entry["outputs"])
        assert caller.request("DELETE", f"/v1/models/{name}", changes=True).status_code == 200
    assert not wrong
    assert caller.http.get("/health").status_code == 200


def _feed(caller: Caller, name: str, feed: dict[str, Any]) -> httpx.Response:
    kinds = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "float16": "FP16",
             "string": "BYTES", "float64": "FP64", "uint8": "UINT8", "int8": "INT8"}  # fmt: skip
    tensors = []
    for tensor, value in feed.items():
        count = int(np.prod(value["shape"], dtype=np.int64))
        values = value["data"] if "data" in value else [value["fill"]] * count
        tensors.append(
            {"name": tensor, "shape": value["shape"], "datatype": kinds[value["dtype"]], "data": values}
        )
    return caller.request("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": tensors}).encode())


def _differences(file: str, answer: httpx.Response, expected: dict[str, Any]) -> list[Any]:
    if answer.status_code != 200:
        return [(file, answer.status_code, answer.text[:200])]
    got = {output["name"]: output for output in answer.json()["outputs"]}
    wrong: list[Any] = []
    for name, value in expected.items():
        output = got.get(name) or next(iter(got.values()))  # XGBoost's primary output has a name of ours
        if isinstance(value, list):  # a list of dictionaries, of which we send the matrix
            continue
        if value["dtype"] == "string":
            wrong += [(file, name)] if output["data"] != value["data"] else []
        elif not np.allclose(output["data"], value["data"], atol=1e-4):
            wrong.append((file, name))
    return wrong


@pytest.mark.parametrize("isolation", ["request", "model"])
def test_other_isolation_serves_as_well(tmp_path: Path, isolation: str) -> None:
    """Two owners and somebody without a key; attested; and the client's policy can rule on it."""
    with serving(tmp_path / "server", settings=SETTINGS.format(isolation)) as running:
        caller = Caller(running.url)
        assert caller.put("m", linear_onnx(), access="public").status_code == 201
        for key in (ALICE, BOB, None, ALICE):
            assert caller.run("m", key=key).status_code == 200
        policy = running.write_policy(tmp_path / "policy.toml")
        with strongroom.connect(running.url, policy=policy) as client:
            shown = {check.id: check.got for check in client.attestation.checks}
            assert shown["security.isolation"] == isolation
            assert shown["security.sandbox"] == ", ".join(planned.FEWEST)
        text = policy.read_text()
        assert 'isolation = ["' in text
        policy.write_text(
            "\n".join(
                'isolation = ["owner"]' if line.startswith("isolation") else line
                for line in text.splitlines()
            )
        )
        with pytest.raises(strongroom.AttestationRefused) as caught:
            strongroom.connect(running.url, policy=policy)
        assert caught.value.code == "security_isolation_refused"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ('[security]\nisolation = "in_process"\nadmission = "permissive"', "isolation_unsupported"),
        ('[security]\nsandbox = ["seccomp"]', "isolation_unsupported"),
        ('[security]\nisolation = "thread"', "config_out_of_range"),
    ],
)
def test_a_server_that_cannot_isolate_does_not_start(tmp_path: Path, settings: str, code: str) -> None:
    """And names the setting."""
    with pytest.raises(RuntimeError, match=rf"ended with 20(?s:.*)security\.(?s:.*){code}"):
        start(tmp_path, settings=settings)


@pytest.mark.skipif(bool(library_os.missing()), reason=library_os.missing() or "it can be done")
def test_without_seccomp_it_does_not_start(tmp_path: Path) -> None:
    """On a system without it; with what one has to set to go on without."""
    with pytest.raises(
        RuntimeError, match=r'ended with 20(?s:.*)isolation = "in_process"(?s:.*)sandbox_missing'
    ):
        start(tmp_path, wrapper=(sys.executable, library_os.__file__))
    assert not (tmp_path / "state" / "store").exists()  # nothing secret had been made
