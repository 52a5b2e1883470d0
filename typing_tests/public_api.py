"""Checked by mypy, never run: what programs that use Strongroom may rely on, and what must be an error."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import strongroom
from strongroom.compat.blindai import BlindAIClient, ModelId

Array = npt.NDArray[Any]


def blocking(rows: Array) -> None:
    with strongroom.connect("https://h:1", policy=Path("policy.toml"), key="key.pem", timeout=5) as client:
        assert_type(client, strongroom.Client)
        assert_type(client.attestation, strongroom.Verdict)
        assert_type(client.attestation.checks[0], strongroom.Check)
        assert_type(client.attestation.claims, strongroom.Claims | None)
        assert_type(client.bundle, strongroom.Bundle)
        assert_type(client.models(), tuple[strongroom.ModelMetadata, ...])
        model = client.upload_model(b"...", name="m", access="public", progress=lambda done, total: None)
        assert_type(model, strongroom.Model)
        assert_type(model.metadata, strongroom.ModelMetadata)
        assert_type(model.metadata.inputs, tuple[strongroom.TensorInfo, ...])
        assert_type(model.run(rows), Array)
        assert_type(model.run([[1.0, 2.0]]), Array)
        assert_type(model.run({"x": rows}), dict[str, Array])
        assert_type(model.run(rows, "margin"), Array)
        assert_type(model.run({"x": rows}, ["a", "b"]), dict[str, Array])
        assert_type(model.predict(np.zeros((1, 2))), Array)
        assert_type(client.delete_model("m", 1), tuple[str, ...])
        assert_type(client.model("m", expect_digest="00"), strongroom.Model)
        client.model("m", digest="00")  # type: ignore[call-arg]
        client.upload_model(1, name="m")  # type: ignore[arg-type]
        client.upload_model(b"...")  # type: ignore[call-arg]


async def awaiting(rows: Array) -> None:
    client = await strongroom.aconnect("https://h:1", policy="production")
    assert_type(client, strongroom.AsyncClient)
    async with strongroom.aconnect("https://h:1", policy="production") as other:
        assert_type(other, strongroom.AsyncClient)
        model = await other.model("m")
        assert_type(model, strongroom.AsyncModel)
        assert_type(await model.run(rows), Array)
        assert_type(await model.run({"x": rows}), dict[str, Array])
        assert_type(await model.predict(rows), Array)
        assert_type(await other.models(), tuple[strongroom.ModelMetadata, ...])


def security_arguments_have_no_defaults(policy: strongroom.Policy) -> None:
    strongroom.connect("https://h:1")  # type: ignore[call-arg]
    strongroom.connect("https://h:1", policy)  # type: ignore[call-arg]
    strongroom.connect("https://h:1", policy=None)  # type: ignore[arg-type]
    strongroom.connect("https://h:1", policy=policy)


def refusals() -> None:
    try:
        strongroom.connect("https://h:1", policy="production")
    except strongroom.AttestationRefused as refusal:
        assert_type(refusal.verdict, strongroom.Verdict | None)
        assert_type(refusal.code, str)
    except strongroom.Unavailable as error:
        assert_type(error.retry_after_s, int)


def blindai(rows: Array) -> None:
    client = BlindAIClient()
    client.connect_server(addr="localhost", port=8443)
    assert_type(client.attest_server(policy="policy.toml"), strongroom.Verdict)
    assert_type(client.upload_model("model.onnx"), ModelId)
    assert_type(client.run_model("m", rows), Array | dict[str, Array])


def keeping(kept: bytes, policy: strongroom.Policy) -> None:
    bundle = strongroom.parse_bundle(kept)
    assert_type(strongroom.encode_bundle(bundle), bytes)
    own = strongroom.Bundled()
    assert_type(strongroom.appraise_bundle(bundle, policy=own, now=own), strongroom.Verdict)
    strongroom.appraise_bundle(bundle, policy=policy, now=bundle.verified_at)
    strongroom.appraise_bundle(bundle, policy=None, now=own)  # type: ignore[arg-type]
    strongroom.appraise_bundle(bundle)  # type: ignore[call-arg]
