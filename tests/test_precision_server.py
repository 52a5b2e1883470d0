"""Less precision through a running server: the bytes of `strongroom quantize`, what is said of them, who may refuse."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from models.networks import images, layers, residual, words
from serving import Serving, serving

import strongroom
from strongroom import tokens
from strongroom.attest.policy import parse_policy
from strongroom.cli import main
from strongroom.client import Client
from strongroom.engine import Engine
from strongroom.errors import AdmissionRefused, Conflict, Error, InvalidRequest
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.report import verify_report
from strongroom.npy import encode_npy, encode_npz
from strongroom.reduction import Options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, sets and a key in files."""
    folder = tmp_path_factory.mktemp("precision")
    (folder / "key.pem").write_bytes(tokens.new_key_pem())
    (folder / "images.onnx").write_bytes(residual())
    (folder / "words.onnx").write_bytes(layers())
    (folder / "images.npz").write_bytes(encode_npz(images(6)))
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Serving]:
    """One for all tests of this module, with default isolation."""
    with serving(place / "server") as made:
        made.write_policy(place / "policy.toml")
        yield made


@pytest.fixture(scope="module")
def client(place: Path, server: Serving) -> Iterator[Client]:
    """Attested."""
    with strongroom.connect(server.url, policy=place / "policy.toml", key=place / "key.pem") as made:
        yield made


def command(*arguments: str | Path) -> str:
    """The output of a command that passes."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


FORMS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "dynamic": ("words", ("--precision", "int8"), ()),
    "fp16": ("words", ("--precision", "fp16", "--exclude", "n_a"), ()),
    "static": ("images", ("--precision", "int8", "--method", "percentile"), ("--calibrate",)),
    "ranges": ("images", ("--precision", "int8", "--per-tensor"), ("--calibrate", "--ranges-out")),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_of_the_command(place: Path, server: Serving, client: Client, form: str) -> None:
    """The same file and options: the digest of what runs is that of what `quantize` wrote, and so are the answers."""
    model, options, files = FORMS[form]
    more: list[str | Path] = []
    ours: list[str | Path] = []
    for option in files:
        out = place / (f"{form}.json" if option == "--ranges-out" else "images.npz")
        more += [option, out]
        ours = ["--ranges", out] if option == "--ranges-out" else [option, out]
    out = place / f"{form}.onnx"
    made = json.loads(command("quantize", place / f"{model}.onnx", *options, *more, "--out", out, "--json"))
    access = ("--url", server.url, "--policy", place / "policy.toml", "--key", place / "key.pem")
    sent = command("upload", place / f"{model}.onnx", "--name", form, *options, *ours, *access, "--json")
    document = json.loads(sent)
    assert document["canonical_sha256"] == made["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    said = document["precision"]["made"]
    assert (said["rewritten"], said["left"]) == (made["rewritten"], made["left"])
    assert said["from_sha256"] == made["sha256_before"] and document["precision"]["name"] in options
    there = client.model(form)
    assert there.metadata.sha256 == hashlib.sha256((place / f"{model}.onnx").read_bytes()).hexdigest()
    here = Engine().load(admit(out.read_bytes(), format="onnx", limits=STANDARD_LIMITS))
    inputs = words(3) if model == "words" else images(3)
    assert np.array_equal(there.run(inputs)["y"], here.run(inputs, outputs=("y",))["y"])


def test_everything_says_it(place: Path, client: Client) -> None:
    """The model's document, the protocol's parameters, the signed report, and each result's header."""
    model = client.upload_model(
        residual(), name="said", precision="int8", calibration=images(2), access="public"
    )
    metadata = model.metadata
    assert metadata.precision == "int8" and metadata.engine.startswith("onnxruntime/1.")
    with httpx.Client(verify=False, base_url=client.url) as plain:
        parameters = plain.get("/v2/models/said").json()["parameters"]
        envelope = plain.get("/v1/models/said/admission").content
        tensor = {
            "name": "x",
            "shape": [1, 3, 12, 12],
            "datatype": "FP32",
            "data": images(1)["x"].ravel().tolist(),
        }
        npz, npy, json_ = (f"application/{kind}" for kind in ("x-npz", "x-npy", "json"))
        bodies = {
            npz: encode_npz(images(1)),
            npy: encode_npy(images(1)["x"]),
            json_: json.dumps({"inputs": [tensor]}).encode(),
        }
        answers = [
            plain.post(
                "/v2/models/said/infer", content=body, headers={"Content-Type": given, "Accept": taken}
            )
            for given, body in bodies.items()
            for taken in bodies
        ]
        client.upload_model(layers(), name="rows", precision="fp16", access="public")
        rows = {"model_id": "rows", "features": words(2)["x"].tolist()}
        predicted = plain.post("/model/predict", json=rows)
    assert predicted.status_code == 200, predicted.text
    assert predicted.headers["strongroom-precision"] == "fp16"
    made = metadata.reduced["made"]
    assert made["calibration_sha256"] is not None
    assert parameters == {
        "precision": "int8",
        "engine": metadata.engine,
        "partition": "auto",
        "stages": 1,
        "precision_form": "static",
        "precision_from_sha256": made["from_sha256"],
    }
    report = verify_report(envelope, keyset=client._attested.keyset)
    others = {
        **metadata.reduced,
        "made": {**made, "calibration_sha256": None},
    }  # it was asked for without a key
    assert report.precision.to_json() == {"name": "int8", **others}
    assert (report.engine, report.canonical_sha256) == (metadata.engine, metadata.canonical_sha256)
    for answer in answers:
        assert answer.status_code == 200, answer.text
        stated = answer.headers["strongroom-precision"], answer.headers["strongroom-engine"]
        assert stated == ("int8", metadata.engine)
    listed = next(found for found in client.models() if found.name == "said")
    assert (listed.precision, listed.reduced["made"]) == ("int8", None)


def test_who_uploads_a_quantised_file_gets_no_word_for_it(place: Path, client: Client) -> None:
    """`as-uploaded`, with its operators; and it is not made smaller twice."""
    out = place / "again.onnx"
    command("quantize", place / "words.onnx", "--precision", "int8", "--out", out)
    model = client.upload_model(out, name="again")
    assert model.metadata.precision == "as-uploaded"
    assert model.metadata.reduced["narrow"]["MatMulInteger"] == 3
    with pytest.raises(AdmissionRefused) as caught:
        client.upload_model(out, name="again", precision="int8")
    assert caught.value.code == "precision_twice"


def refusal(action: Any, kind: type[Error]) -> str:
    """The code that it refuses with."""
    with pytest.raises(kind) as caught:
        action()
    return caught.value.code


def test_a_demand_is_checked_before_anything_is_sent(client: Client) -> None:
    """By the metadata: the inputs are not even looked at. What is demanded and is there runs."""
    small = client.upload_model(layers(), name="demand", precision="fp16")
    plain = client.upload_model(layers(), name="demand-plain")
    no_inputs = object()
    for run in (small.run, lambda inputs, **more: client.run_model("demand", inputs, **more)):
        assert refusal(lambda run=run: run(no_inputs, precision="fp32"), Conflict) == "precision_refused"
    assert refusal(lambda: small.run(no_inputs, precision="bf16"), InvalidRequest) == "precision_options"
    rows = words(2)["x"]
    for model, word in ((plain, "fp32"), (small, "fp16"), (small, ("fp32", "fp16"))):
        assert model.run(rows, precision=word).shape == (2, 40)
    assert plain.predict(rows.astype(np.int64), precision="fp32").shape == (2, 40)


def test_the_server_refuses_too(client: Client) -> None:
    """Where the metadata said something else: nothing runs."""
    small = client.upload_model(layers(), name="lied-about", precision="fp16")
    said = dataclasses.replace(small.metadata, precision="fp32")
    with pytest.raises(Conflict) as other:
        strongroom.Model(client, said).run(words(1)["x"])
    assert (
        other.value.code == "model_digest_mismatch"
    )  # the upload's digest does not stand for what was made of it
    said = dataclasses.replace(said, sha256=said.canonical_sha256)
    believed = strongroom.Model(client, said)
    with pytest.raises(Conflict, match="the model's is fp16") as caught:
        believed.run(words(1)["x"], precision="fp32")
    assert caught.value.code == "precision_refused"
    with httpx.Client(verify=False, base_url=client.url) as plain:
        answer = plain.post(
            "/model/predict", json={"features": [1]}, headers={"Strongroom-Accept-Precision": "bf16"}
        )
    assert (answer.status_code, answer.json()["code"]) == (400, "precision_options")


def test_a_policy_demands_for_every_call(place: Path, server: Serving, client: Client) -> None:
    """A call can demand less, never more."""
    client.upload_model(layers(), name="by-policy", precision="int8", access="public")
    client.upload_model(layers(), name="by-policy-plain", access="public")
    text = (place / "policy.toml").read_text()
    policy = parse_policy(text.replace("max_verdict_age_s", 'precision = ["fp32"]\nmax_verdict_age_s', 1))
    with strongroom.connect(server.url, policy=policy) as strict:
        rows = words(1)["x"]
        assert strict.run_model("by-policy-plain", rows).shape == (1, 40)
        for demand in (None, "int8", ("int8", "fp32")):
            assert (
                refusal(lambda demand=demand: strict.run_model("by-policy", rows, precision=demand), Conflict)
                == "precision_refused"
            )


def test_asyncio_has_the_same(place: Path, server: Serving) -> None:
    """Upload and demand."""

    async def run() -> None:
        policy, key = place / "policy.toml", place / "key.pem"
        async with strongroom.aconnect(server.url, policy=policy, key=key) as client:
            model = await client.upload_model(
                residual(),
                name="async",
                precision=Options(precision="int8"),
                calibration=place / "images.npz",
            )
            assert model.metadata.precision == "int8"
            with pytest.raises(Conflict):
                await model.run(images(1)["x"], precision="fp32")
            assert (await model.run(images(1)["x"], precision="int8")).shape == (1, 5)

    asyncio.run(run())


def test_failures_are_typed_and_lose_nothing(place: Path, client: Client) -> None:
    """The version that was there goes on; none is added."""
    client.upload_model(layers(), name="kept")
    upload: Any = lambda **more: client.upload_model(layers(), name="kept", **more)  # noqa: E731 - one line each below
    ranges = place / "kept.json"
    ranges.write_bytes(b"{}")
    for code, kind, more in (
        ("precision_unsupported", InvalidRequest, {"precision": "bf16"}),
        ("precision_options", InvalidRequest, {"calibration": words(1)}),
        ("precision_options", InvalidRequest, {"precision": "fp16", "calibration": words(1)}),
        ("precision_options", InvalidRequest, {"precision": Options(precision="int8", exclude=("z",))}),
        ("input_dtype", Error, {"precision": "int8", "calibration": {"x": np.ones((1, 7), np.float32)}}),
        ("run_failed", Error, {"precision": "int8", "calibration": {"x": np.full((1, 7), 99)}}),
        ("precision_ranges_malformed", Error, {"precision": "int8", "ranges": ranges}),
        ("upload_unreadable", InvalidRequest, {"precision": "int8", "ranges": place / "missing"}),
    ):
        assert refusal(lambda more=more: upload(**more), kind) == code
    assert [found.version for found in client.models() if found.name == "kept"] == ["1"]
    assert client.run_model("kept", words(1)["x"], precision="fp32").shape == (1, 40)


def test_bf16_over_the_wire(client: Client) -> None:
    """The server says the same as the client does before it sends: why, and what to use instead."""
    with httpx.Client(verify=False, base_url=client.url) as plain:
        answer = plain.put(
            "/v1/models/x",
            content=b"x",
            headers={
                "Strongroom-Format": "onnx",
                "Strongroom-Precision": "bf16",
                "Content-Digest": "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:",
            },
        )
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "precision_unsupported")
    assert "x86-64" in problem["detail"] and '"int8"' in problem["detail"]


def test_it_survives_a_restart(place: Path, server: Serving, client: Client) -> None:
    """Last in this file: the statement is in the sealed record, and every file in the store is right."""
    client.upload_model(layers(), name="kept-plain")
    client.upload_model(residual(), name="kept-static", precision="int8", calibration=place / "images.npz")
    before = {found.id: found for found in client.models()}
    assert server.stop() == 0
    checked = json.loads(command("check", "--config", server.config_path, "--json"))
    assert checked["passed"] and len(checked["results"]) > 3
    with serving(place / "server") as again:
        again.write_policy(place / "policy.toml")
        with strongroom.connect(again.url, policy=place / "policy.toml", key=place / "key.pem") as later:
            after = {found.id: found for found in later.models()}
            assert {name: found.precision for name, found in after.items()} == {
                name: found.precision for name, found in before.items()
            }
            static = later.model("kept-static")
            assert static.metadata.reduced["made"]["form"] == "static"
            assert static.run(images(1), precision="int8")["y"].shape == (1, 5)
