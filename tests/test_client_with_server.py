"""The client and the real server, each as its users run it: the main job, through a restart, in every tensor form."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_server import lasting_port
from onnx import TensorProto, helper
from serving import Serving, serving

import strongroom
from strongroom import tokens
from strongroom.client import SYSTEM_CLOCK
from strongroom.compat.blindai import BlindAIClient
from strongroom.enrol import enrol_flow
from strongroom.errors import (
    AccessRefused,
    AdmissionRefused,
    AttestationRefused,
    Conflict,
    InvalidRequest,
    NotFound,
    Unusable,
)
from strongroom.flow import drive_to_end
from strongroom.transport import Transport, parse_origin

pytestmark = pytest.mark.slow
KEY = tokens.new_key_pem()


def onnx_model() -> bytes:
    """Inputs `a` (FP32), `b` (INT64), `s` (strings); outputs `sum` = a + b, `twice` = 2b, `same` = s."""
    nodes = [
        helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "bf"], ["sum"]),
        helper.make_node("Add", ["b", "b"], ["twice"]),
        helper.make_node("Identity", ["s"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("b", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("s", TensorProto.STRING, ["m"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("same", TensorProto.STRING, ["m"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def linear_model() -> bytes:
    """One input `x` (FP32, [n, 2]); output `y` = 3x."""
    three = helper.make_tensor("three", TensorProto.FLOAT, [1], [3.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "three"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [three],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One server for the tests of this file that do not stop it."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def policy(server: Serving, tmp_path: Path) -> Path:
    """A policy that accepts it."""
    return server.write_policy(tmp_path / "policy.toml")


def test_a_simulated_server_has_no_credential_to_activate(server: Serving) -> None:
    """Enrolment of a TPM's key says what the server shows instead."""
    transport = Transport(parse_origin(server.url), timeout_s=30)
    try:
        with pytest.raises((AttestationRefused, Unusable)) as caught:
            drive_to_end(
                enrol_flow(SYSTEM_CLOCK, lambda n: bytes(n), roots=("00" * 32,), certificates=()),
                transport.perform,
            )
    finally:
        transport.close()
    assert caught.value.code == "evidence_format_not_accepted"


def test_every_form_of_tensor(server: Serving, policy: Path) -> None:
    """Several inputs and outputs by .npz, strings by JSON; metadata says what there is."""
    with strongroom.connect(server.url, policy=policy, key=KEY) as client:
        model = client.upload_model(onnx_model(), name="forms")
        assert [(t.name, t.datatype) for t in model.metadata.inputs] == [
            ("a", "FP32"), ("b", "INT64"), ("s", "BYTES")
        ]  # fmt: skip
        inputs = {"a": [0.5, 1.5], "b": [1, 2**53 + 1], "s": ["ä", "b"]}
        result = model.run(inputs)
        assert result["twice"].tolist() == [2, 2**54 + 2]
        assert result["same"].tolist() == ["ä".encode(), b"b"]
        assert model.run(inputs, "sum").dtype == np.float32
        assert model.run(inputs, ["sum", "twice"]).keys() == {"sum", "twice"}
        with pytest.raises(InvalidRequest):
            model.run({**inputs, "b": [1, 2, 3]})


def test_versions_digests_and_owners(server: Serving, policy: Path) -> None:
    """A second upload is a new version; digests say which; others neither see nor take a private name."""
    with strongroom.connect(server.url, policy=policy, key=KEY) as client:
        first = client.upload_model(linear_model(), name="versions")
        second = client.upload_model(onnx_model(), name="versions")
        assert (first.id, second.id) == ("versions/versions/1", "versions/versions/2")
        assert client.model("versions").id == second.id
        assert client.model("versions", 1, expect_digest=first.metadata.sha256).id == first.id
        with pytest.raises(Conflict) as conflict:
            client.model("versions", expect_digest=first.metadata.sha256)
        assert conflict.value.code == "model_digest_mismatch"
        assert client.load_model(first).loaded
        assert not client.unload_model(first).loaded
        assert first.predict([[1, 2]]).tolist() == [[3.0, 6.0]]
        with strongroom.connect(server.url, policy=policy, key=tokens.new_key_pem()) as other:
            assert all(m.name != "versions" for m in other.models())
            with pytest.raises(NotFound):
                other.model("versions")
        assert client.delete_model("versions") == (first.id, second.id)
        with pytest.raises(NotFound):
            first.predict([[1, 2]])


def test_refusals_of_the_server(server: Serving, policy: Path) -> None:
    """No key, no upload; a model that is no model; each as its own error."""
    with strongroom.connect(server.url, policy=policy) as anonymous:
        with pytest.raises(AccessRefused) as refused:
            anonymous.upload_model(linear_model(), name="nobodys")
        assert refused.value.code == "auth_required"
    with strongroom.connect(server.url, policy=policy, key=KEY) as client:
        broken = linear_model()[:-40]
        with pytest.raises((AdmissionRefused, strongroom.Unusable)):
            client.upload_model(broken, name="broken", format="onnx")
        with pytest.raises(strongroom.Error):
            client.upload_model(linear_model(), name="wrong-format", format="xgboost-json")
        assert all(m.name not in {"broken", "wrong-format"} for m in client.models())


def test_asyncio(server: Serving, policy: Path) -> None:
    """The same, awaited, several at a time."""

    async def story() -> None:
        async with strongroom.aconnect(server.url, policy=policy, key=KEY) as client:
            model = await client.upload_model(linear_model(), name="asyncio", access="public")
            results = await asyncio.gather(*(model.predict([[i, i]]) for i in range(16)))
            assert [float(r[0, 0]) for r in results] == [3.0 * i for i in range(16)]
            assert await client.delete_model(model) == ("asyncio/versions/1",)

    asyncio.run(story())


def test_a_large_upload_and_result(server: Serving, policy: Path) -> None:
    """40 MB there and 4 MB back, with progress to the last byte."""
    weights = np.arange(10_000_000, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["w"], ["total"], keepdims=0), helper.make_node("Add", ["x", "total"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("w", TensorProto.FLOAT, [len(weights)], weights.tobytes(), raw=True)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = bytes(model.SerializeToString())
    sent: list[tuple[int, int]] = []
    received: list[tuple[int, int]] = []
    with strongroom.connect(server.url, policy=policy, key=KEY) as client:
        large = client.upload_model(data, name="large", progress=lambda *p: sent.append(p))
        result = large.run(np.zeros(1_000_000, np.float32), progress=lambda *p: received.append(p))
        assert len(result) == 1_000_000
        client.delete_model(large)
    assert sent[-1] == (len(data), len(data))
    assert received[-1][0] == received[-1][1] > 4_000_000


def test_blindai(server: Serving, policy: Path, tmp_path: Path) -> None:
    """BlindAI's five calls."""
    (tmp_path / "model.onnx").write_bytes(linear_model())
    client = BlindAIClient()
    client.connect_server(addr=server.host, port=server.port)
    assert client.attest_server(policy=policy).label == "SIMULATED"
    model_id = client.upload_model(str(tmp_path / "model.onnx"))
    assert np.asarray(client.run_model(model_id, np.float32([[1, 2]]))).tolist() == [[3.0, 6.0]]
    client.delete_model(model_id)
    with pytest.raises(NotFound):
        client.run_model(model_id, [[1, 2]])
    client.close()


def test_a_restart_between_two_requests(tmp_path: Path) -> None:
    """Same store, new keys, same port: the client verifies again and gets the same answer, bit for bit."""
    environment = {"STRONGROOM_BIND": f"127.0.0.1:{lasting_port()}"}
    rows = np.random.default_rng(7).normal(size=(50, 2)).astype(np.float32)
    with serving(tmp_path / "server", environment=environment) as server:
        policy = server.write_policy(tmp_path / "policy.toml")
        client = strongroom.connect(server.url, policy=policy, key=KEY)
        model = client.upload_model(linear_model(), name="kept")
        before, keys, store = model.run(rows), client.attestation.keyset_digest, client.store_id
    with serving(tmp_path / "server", environment=environment), client:
        assert model.run(rows).tobytes() == before.tobytes()
        assert client.attestation.keyset_digest != keys
        assert client.store_id == store
