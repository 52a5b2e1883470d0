"""BlindAI's published snippet runs with only its import changed, and nothing leaves before attestation."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_server import FakeServer, policy_text

from strongroom import tokens
from strongroom.compat.blindai import BlindAIClient, BlindAiClient, ModelId
from strongroom.errors import AccessRefused, AttestationRefused, InvalidRequest, NotFound

ONNX = b"\x08\x08\x12\x04test:\x00" * 40

SNIPPET = """\
from {package} import BlindAIClient

client = BlindAIClient()
client.connect_server(addr="127.0.0.1", port={port})
client.attest_server(policy="{policy}")
model_id = client.upload_model("{model}")
result = client.run_model(model_id, inputs)
client.delete_model(model_id)
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """An honest server."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy file that accepts it."""
    path = tmp_path / "policy.toml"
    path.write_text(policy_text())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file."""
    path = tmp_path / "my model.onnx"
    path.write_bytes(ONNX)
    return path


def test_the_published_snippet(server: FakeServer, policy: Path, model: Path, tmp_path: Path) -> None:
    """Connect, attest, upload, run, delete: as published, but for the import."""
    script = tmp_path / "snippet.py"
    script.write_text(
        SNIPPET.format(package="strongroom.compat.blindai", port=server.port, policy=policy, model=model)
    )
    names = runpy.run_path(str(script), {"inputs": np.array([[1.0, 2.0]], np.float32)})
    assert names["result"].tolist() == [[2.0, 4.0]]
    assert server.models[names["model_id"].split("/")[0]] == []
    names["client"].close()


def test_nothing_is_sent_before_attestation(server: FakeServer, model: Path) -> None:
    """Upload, run and delete before `attest_server` are refused here; the server does not even see a connection."""
    client = BlindAIClient()
    client.connect_server("127.0.0.1", server.port)
    for attempt in (
        lambda: client.upload_model(model),
        lambda: client.run_model("m", [[1.0]]),
        lambda: client.delete_model("m"),
    ):
        with pytest.raises(AttestationRefused) as refusal:
            attempt()
        assert refusal.value.code == "not_attested"
    assert (server.handshakes, server.application_bytes) == (0, 0)


def test_nothing_is_sent_after_a_refused_attestation(server: FakeServer, policy: Path, model: Path) -> None:
    """A refusal by a stricter policy also ends an attestation that had passed."""
    client = BlindAIClient()
    client.connect_server("127.0.0.1", server.port)
    assert client.attest_server(policy=policy).passed
    with pytest.raises(AttestationRefused):
        client.attest_server(policy="production")
    with pytest.raises(AttestationRefused) as refusal:
        client.upload_model(model)
    assert refusal.value.code == "not_attested"
    assert set(server.paths()) == {"/v1/evidence"}


def test_attesting_needs_an_address(policy: Path) -> None:
    """`connect_server` comes first."""
    with pytest.raises(InvalidRequest) as refusal:
        BlindAIClient().attest_server(policy=policy)
    assert refusal.value.code == "not_connected"


def test_simulation_is_not_an_argument(server: FakeServer) -> None:
    """`simulation=True` switched every check off there; here a policy says what is accepted."""
    with pytest.raises(InvalidRequest) as refusal:
        BlindAIClient().connect_server("127.0.0.1", server.port, simulation=True)
    assert refusal.value.code == "simulation_by_policy"


def test_older_spellings(server: FakeServer, policy: Path, model: Path) -> None:
    """BlindAiClient, a policy given to `connect_server`, `model=`, `shape=`, `dtype=`, and `run_model(data)`."""
    with BlindAiClient() as client:
        client.connect_server(
            addr="127.0.0.1", port=server.port, policy=str(policy), certificate="host_server.pem"
        )
        response = client.upload_model(model=str(model), shape=(1, 2), dtype="F32")
        assert response.model_id == response
        assert np.asarray(client.run_model([[1.0, 2.0]])).tolist() == [[2.0, 4.0]]
        assert np.asarray(client.run_model(response.model_id, [[1.0, 2.0]])).tolist() == [[2.0, 4.0]]


def test_run_needs_a_model(server: FakeServer, policy: Path) -> None:
    """Inputs alone, with nothing uploaded."""
    with BlindAIClient() as client:
        client.connect_server("127.0.0.1", server.port, policy=policy)
        with pytest.raises(InvalidRequest) as refusal:
            client.run_model([[1.0, 2.0]])
    assert refusal.value.code == "input_names"


def test_ids_are_fresh_and_readable(server: FakeServer, policy: Path, model: Path) -> None:
    """Names belong to keys, and keys are made for each client: the same file never collides."""
    ids = []
    for _ in range(2):
        with BlindAIClient() as client:
            client.connect_server("127.0.0.1", server.port, policy=policy)
            ids.append(client.upload_model(model))
    assert len(set(ids)) == 2
    assert all(i.startswith("my-model-") and i.endswith("/versions/1") for i in ids)
    assert isinstance(ids[0], ModelId)


def test_a_key_of_ones_own_keeps_the_models(server: FakeServer, policy: Path, model: Path) -> None:
    """With `key=`, the owner is the same in the next session; under a fixed name, versions count up."""
    key = tokens.new_key_pem()
    owners = []
    for version in ("1", "2"):
        with BlindAIClient(key=key) as client:
            client.connect_server("127.0.0.1", server.port, policy=policy)
            assert client.upload_model(model, model_name="mine").endswith(f"mine/versions/{version}")
        owners.append(server.models["mine"][-1].info["owner"])
    assert owners[0] == owners[1] != ""


def test_errors_are_strongrooms(server: FakeServer, policy: Path) -> None:
    """A model that is not there, and a call that the server refuses."""
    with BlindAIClient() as client:
        client.connect_server("127.0.0.1", server.port, policy=policy)
        with pytest.raises(NotFound):
            client.run_model("absent", [[1.0, 2.0]])
        server.nonces.check = _refuse  # type: ignore[method-assign]
        with pytest.raises(AccessRefused):
            client.delete_model("absent")


def _refuse(_nonce: str) -> None:
    raise AccessRefused("no", code="auth_signature")


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        ("host", "https://host:8443"),
        ("host:9", "https://host:9"),
        ("https://host", "https://host:8443"),
        ("https://host:9", "https://host:9"),
        ("::1", "https://[::1]:8443"),
        ("[::1]", "https://[::1]:8443"),
    ],
)
def test_addresses(addr: str, expected: str) -> None:
    """A host, with or without scheme and port."""
    client = BlindAIClient()
    client.connect_server(addr)
    assert client._url == expected
