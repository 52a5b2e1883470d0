"""The HTTP front end: every route, every header that decides something, and what never appears in an answer."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from plane import ALICE, BOB, World, content_digest, linear_onnx, plane, two_inputs_onnx, xgboost_json

from strongroom import bodies, errors, problems, rest, state
from strongroom.attest.evidence import parse_answer
from strongroom.attest.keyset import parse_keyset
from strongroom.errors import CODES, Error, walk
from strongroom.jobs import engine
from strongroom.models.info import STANDARD_BUDGET, STANDARD_LIMITS
from strongroom.models.report import verify_report
from strongroom.rest import Rest

sys.path.insert(0, str(REPOSITORY / "fuzz"))

ROW = [[0.0, 1.0, 2.0, 3.0]]


def get(world: World, path: str, **more: Any) -> httpx.Response:
    """One GET."""
    return asyncio.run(world.request("GET", path, **more))


def post(world: World, path: str, body: bytes | object = b"", **more: Any) -> httpx.Response:
    """One POST, of bytes or of something as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(world.request("POST", path, body=data, **more))


def put(world: World, name: str, data: bytes, **more: Any) -> httpx.Response:
    """One upload."""
    return asyncio.run(world.put(name, data, **{"format": "onnx", **more}))


def npy(array: Any) -> bytes:
    """An array as numpy itself writes it."""
    out = io.BytesIO()
    np.save(out, np.asarray(array), allow_pickle=False)
    return out.getvalue()


def npz(**arrays: Any) -> bytes:
    """Arrays as numpy itself writes them."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def code(response: httpx.Response, status: int) -> str:
    """The code of a problem document, which must be one in form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert set(document) == {"type", "title", "status", "detail", "code"}
    assert document["status"] == status
    assert document["code"] in CODES
    return str(document["code"])


# The native interface


def test_a_model_goes_through_its_life(tmp_path: Path) -> None:
    """Upload, list, read, load, run, unload, delete."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        created = put(world, "m", data)
        assert created.status_code == 201
        document = created.json()
        assert document["sha256"] == hashlib.sha256(data).hexdigest()
        assert (document["name"], document["version"], document["format"]) == ("m", "1", "onnx")
        assert (document["access"], document["loaded"], document["size"]) == ("private", False, len(data))
        assert document["simulated"] is True
        assert document["erasure"] == "not_against_host_copies"
        assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert document["primary_output"] == "y"
        listed = {**document, "feature_names": [], "notes": {}}
        assert get(world, "/v1/models", key=ALICE).json() == {"models": [listed]}
        assert get(world, "/v1/models/m", key=ALICE).json() == document
        assert get(world, "/v1/models/m/versions/1", key=ALICE).json() == document
        assert post(world, "/v1/models/m/load", key=ALICE).json() == {**document, "loaded": True}
        assert post(world, "/v1/models/m/versions/1/unload", key=ALICE).json() == document
        gone = asyncio.run(world.request("DELETE", "/v1/models/m", key=ALICE))
        assert gone.json() == {
            "deleted": [{"name": "m", "version": "1"}],
            "erasure": "not_against_host_copies",
        }
        assert code(get(world, "/v1/models/m", key=ALICE), 404) == "not_found"
        assert get(world, "/v1/models", key=ALICE).json() == {"models": []}


def test_the_admission_report_is_signed_by_the_receipt_key(tmp_path: Path) -> None:
    """Of the keyset that the connection attested; it is about the very file, and only for who may see the model."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        put(world, "m", data)
        keyset = parse_keyset(world.epochs.current.keyset_bytes)
        for path in ("/v1/models/m/admission", "/v1/models/m/versions/1/admission"):
            report = verify_report(get(world, path, key=ALICE).content, keyset=keyset)
            assert report.verdict == "admitted" and report.sha256 == hashlib.sha256(data).hexdigest()
            assert report.level == "strict" and report.size == len(data)
            assert (report.partition, report.stages) == ("auto", 1)
        assert code(get(world, "/v1/models/m/admission", key=BOB), 404) == "not_found"
        assert code(get(world, "/v1/models/n/admission", key=ALICE), 404) == "not_found"


def test_requests_larger_than_what_was_bounded_are_refused(tmp_path: Path) -> None:
    """A model that is admitted with rooms runs what fits into one."""
    with plane(
        tmp_path, limits={"tensor_bytes": 1 << 27, "tensors_bytes": 1 << 27, "elements": 1 << 24}
    ) as world:
        world.service.limits = replace(
            world.service.limits,
            admission=replace(STANDARD_LIMITS, budget=replace(STANDARD_BUDGET, value_bytes=16 * 8)),
        )
        put(world, "m", linear_onnx())
        fits, large = npy(np.zeros((8, 4), np.float32)), npy(np.zeros((9, 4), np.float32))
        headers = {"Content-Type": "application/x-npy"}
        answer = post(world, "/v2/models/m/infer?output=y", fits, key=ALICE, headers=headers)
        assert answer.status_code == 200
        refused = post(world, "/v2/models/m/infer?output=y", large, key=ALICE, headers=headers)
        assert code(refused, 400) == "input_too_large"


def test_a_long_list_comes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much metadata strangers upload, one answer stays short; `next` is where the next one begins."""
    with plane(tmp_path) as world:
        for name in ("a", "b", "c"):
            put(world, name, linear_onnx(), strongroom_access="public")
        put(world, "secret", linear_onnx())
        monkeypatch.setattr(bodies, "LIST_BYTES", 1000)
        found, path = [], "/v1/models"
        for _ in range(3):
            page = get(world, path).json()
            assert len(page["models"]) == 1
            found.append(page["models"][0]["name"])
            path = f"/v1/models?after={page.get('next')}"
        assert found == ["a", "b", "c"] and "next" not in page
        for unknown in ("x/versions/1", "secret/versions/1", "a"):
            assert code(get(world, f"/v1/models?after={unknown}"), 400) == "parameter_invalid"


def test_an_owner_whose_share_of_the_record_is_full_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the refused upload stays; others go on."""
    monkeypatch.setattr(state, "OWNER_RECORD_BYTES", 2000)
    with plane(tmp_path) as world:
        assert put(world, "one", linear_onnx()).status_code == 201
        assert code(put(world, "two", linear_onnx()), 409) == "owner_record_full"
        assert [model.name for model in world.store.models()] == ["one"]
        assert len(list((tmp_path / "store" / "data").iterdir())) == 1
        assert put(world, "three", linear_onnx(), key=BOB).status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/attestation/report"),
        ("GET", "/v1/models/m"),
        ("DELETE", "/v1/models/m"),
        ("POST", "/v1/models/m/load"),
        ("GET", "/v2"),
        ("GET", "/v2/models/m"),
        ("GET", "/v2/models/m/ready"),
    ],
)
def test_no_query_is_passed_over(tmp_path: Path, method: str, path: str) -> None:
    """A parameter that a path does not have is refused: its author meant something by it."""
    with plane(tmp_path) as world:
        put(world, "m", linear_onnx())
        assert code(asyncio.run(world.request(method, path + "?version=2", key=ALICE)), 400) == (
            "parameter_invalid"
        )
        assert [model.name for model in world.store.models()] == ["m"]


def test_every_response_is_framed_and_carries_a_nonce(tmp_path: Path) -> None:
    """Content-Length always; the nonce for the next token also in refusals; nothing may be cached or sniffed."""
    with plane(tmp_path) as world:
        for response in (
            get(world, "/health"),
            get(world, "/nope"),
            post(world, "/health"),
            get(world, "/v1/models/m"),
            asyncio.run(world.request("HEAD", "/health")),
        ):
            assert "content-length" in response.headers
            assert response.headers["strongroom-nonce"] == world.service.nonces.issue()
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in response.headers
            assert response.headers["strongroom-evidence"] == "SIMULATED"


def test_evidence_is_for_the_nonce_asked(tmp_path: Path) -> None:
    """The endpoint answers in the form that clients parse; anything but one nonce of 64 hex digits is refused."""
    with plane(tmp_path) as world:
        answer = parse_answer(get(world, "/v1/evidence?nonce=" + "ab" * 32).content)
        assert answer.keyset == world.epochs.current.keyset_bytes
        for query in ("", "?nonce=", "?nonce=" + "AB" * 32, "?nonce=" + "ab" * 31):
            assert code(get(world, "/v1/evidence" + query), 400) == "nonce_malformed"
        both = "?nonce=" + "ab" * 32 + "&nonce=" + "cd" * 32
        assert code(get(world, "/v1/evidence" + both), 400) == "parameter_invalid"
        other = "?nonce=" + "ab" * 32 + "&report_data=" + "cd" * 64
        assert code(get(world, "/v1/evidence" + other), 400) == "parameter_invalid"


@pytest.mark.parametrize(
    ("drop", "add", "status", "expected"),
    [
        ("Content-Digest", {}, 400, "digest_required"),
        ("Strongroom-Format", {}, 400, "format_required"),
        ("", {"Content-Digest": "sha-512=:AAAA:"}, 400, "digest_malformed"),
        ("", {"Content-Digest": "sha-256=:AAAA:"}, 400, "digest_malformed"),
        ("", {"Content-Digest": f"{content_digest(b'a')}, {content_digest(b'b')}"}, 400, "digest_malformed"),
        ("", {"Content-Digest": content_digest(b"another body")}, 401, "auth_body_mismatch"),
        ("", {"Strongroom-Format": "xgboost-json"}, 409, "format_mismatch"),
        ("", {"Strongroom-Access": "everybody"}, 400, "access_invalid"),
        ("", {"Content-Encoding": "gzip"}, 415, "media_type_unsupported"),
        ("", {"Authorization": "Basic YTpi"}, 400, "parameter_invalid"),
        ("", {"Authorization": "Bearer x.y.z"}, 401, "auth_malformed"),
        ("Authorization", {}, 401, "auth_required"),
    ],
)
def test_uploads_that_are_refused(
    tmp_path: Path, drop: str, add: dict[str, str], status: int, expected: str
) -> None:
    """Each is wrong in one respect."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        fields = {
            "Content-Digest": content_digest(data),
            "Strongroom-Format": "onnx",
            "Authorization": "Bearer " + world.token(ALICE, method="PUT", path="/v1/models/m", body=data),
        }
        fields = {**fields, **add}
        fields.pop(drop, None)
        response = asyncio.run(world.request("PUT", "/v1/models/m", body=data, headers=fields))
        assert code(response, status) == expected
        assert world.store.models() == ()
        assert ("www-authenticate" in response.headers) is (status == 401)


def test_a_digest_among_others_is_found(tmp_path: Path) -> None:
    """RFC 9530 lets a sender state several algorithms; ours must be among them."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        several = f"sha-512=:AAAA:, {content_digest(data)}"
        assert put(world, "m", data, Content_Digest=several).status_code == 201


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/a%20b", "model_name_invalid"),
        ("/v1/models/%C3%A4", "model_name_invalid"),
        ("/v1/models/...", "model_name_invalid"),
        ("/v1/models/" + "x" * 129, "model_name_invalid"),
        ("/v1/models/m/versions/0", "model_version_invalid"),
        ("/v1/models/m/versions/01", "model_version_invalid"),
        ("/v1/models/m/versions/-1", "model_version_invalid"),
        ("/v1/models/m/versions/latest", "model_version_invalid"),
        ("/v1/models/m/versions/" + "9" * 10, "model_version_invalid"),
        ("/v2/models/a%20b", "model_name_invalid"),
        ("/v2/models/m/versions/1e3/ready", "model_version_invalid"),
    ],
)
def test_path_parameters_are_checked(tmp_path: Path, path: str, expected: str) -> None:
    """A name or version out of form is a fault of its own, not an absent model."""
    with plane(tmp_path) as world:
        assert code(get(world, path), 400) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/health/",
        "/v2/",
        "/v1/models/m/versions",
        "/v1/models/m/x",
        "/v3",
        "//health",
    ],
)
def test_unknown_paths_are_not_found_and_never_redirected(tmp_path: Path, path: str) -> None:
    """404 with a problem document; no redirect to a path with or without a slash."""
    with plane(tmp_path) as world:
        assert code(get(world, path), 404) == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("GET", "/model/predict", "POST"),
        ("PATCH", "/v1/models/m", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/v1/models/m/versions/1", "DELETE, GET, HEAD"),
        ("GET", "/v2/models/m/infer", "POST"),
        ("DELETE", "/v2/models/m", "GET, HEAD"),
        ("OPTIONS", "/v1/models/m", "DELETE, GET, HEAD, PUT"),
    ],
)
def test_other_methods_are_refused_with_allow(tmp_path: Path, method: str, path: str, allow: str) -> None:
    """405 names what is allowed."""
    with plane(tmp_path) as world:
        response = asyncio.run(world.request(method, path))
        assert code(response, 405) == "method_not_allowed"
        assert response.headers["allow"] == allow


def test_others_see_public_models_only(tmp_path: Path) -> None:
    """Lists and documents depend on who asks."""
    with plane(tmp_path) as world:
        put(world, "secret", linear_onnx())
        put(world, "open", linear_onnx(), strongroom_access="public")

        def names(**more: Any) -> list[str]:
            return [model["name"] for model in get(world, "/v1/models", **more).json()["models"]]

        assert names(key=ALICE) == ["secret", "open"]
        assert names(key=BOB) == names() == ["open"]
        for path in ("/v1/models/secret", "/v2/models/secret", "/v2/models/secret/ready"):
            assert code(get(world, path), 404) == code(get(world, path, key=BOB), 404) == "not_found"


# The Open Inference Protocol


def test_server_and_model_metadata(tmp_path: Path) -> None:
    """The documents of the protocol, with the JSON bodies that KServe's client parses."""
    with plane(tmp_path) as world:
        put(world, "m", linear_onnx())
        put(world, "m", linear_onnx(factor=3))
        server = get(world, "/v2").json()
        assert (server["name"], server["extensions"]) == ("strongroom", [])
        assert get(world, "/v2/health/live").json() == {"live": True}
        assert get(world, "/v2/health/ready").json() == {"ready": True}
        assert get(world, "/v2/models/m", key=ALICE).json() == {
            "name": "m",
            "versions": ["1", "2"],
            "platform": "onnx_onnxv1",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "sum", "datatype": "FP32", "shape": [-1, 1]},
            ],
            "parameters": {"precision": "fp32", "engine": engine(), "partition": "auto", "stages": 1},
        }
        assert get(world, "/v2/models/m/versions/2/ready", key=ALICE).json() == {"name": "m", "ready": True}
        assert code(get(world, "/v2/models/m/versions/3/ready", key=ALICE), 404) == "not_found"


REQUEST = {
    "id": "42",
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW[0]}],
}


def test_inference_in_json(tmp_path: Path) -> None:
    """All outputs where none is named, the named ones otherwise; the version that served in headers and body."""
    with plane(tmp_path) as world:
        document = put(world, "m", linear_onnx()).json()
        put(world, "m", linear_onnx(factor=3))
        response = post(world, "/v2/models/m/versions/1/infer", REQUEST, key=ALICE)
        assert response.headers["strongroom-model-sha256"] == document["sha256"]
        assert response.headers["strongroom-model-version"] == "1"
        assert response.json() == {
            "model_name": "m",
            "model_version": "1",
            "id": "42",
            "parameters": {"simulated": True},
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 2.0, 4.0, 6.0]},
                {"name": "sum", "datatype": "FP32", "shape": [1, 1], "data": [12.0]},
            ],
        }
        for wanted in (
            {"body": {**REQUEST, "outputs": [{"name": "sum"}]}, "path": "/v2/models/m/infer"},
            {"body": REQUEST, "path": "/v2/models/m/infer?output=sum"},
        ):
            response = post(world, str(wanted["path"]), wanted["body"], key=ALICE)
            assert [o["data"] for o in response.json()["outputs"]] == [[18.0]]


def test_inference_in_npy_and_npz(tmp_path: Path) -> None:
    """One array in, one out; several in, several out; each form can be asked for."""
    with plane(tmp_path) as world:
        put(world, "m", linear_onnx())
        put(world, "two", two_inputs_onnx())
        array = np.array(ROW, np.float32)

        def infer(model: str, body: bytes, form: str, query: str = "", **headers: str) -> httpx.Response:
            fields = {"Content-Type": form, **headers}
            return post(world, f"/v2/models/{model}/infer{query}", body, key=ALICE, headers=fields)

        response = infer("m", npy(array), "application/x-npy")
        assert response.headers["content-type"] == "application/x-npy"
        assert np.array_equal(np.load(io.BytesIO(response.content)), 2 * array)
        response = infer("m", npy(array), "application/x-npy", "?output=sum")
        assert np.load(io.BytesIO(response.content)).tolist() == [[12.0]]
        response = infer("m", npy(array), "application/x-npy", Accept="application/x-npz")
        assert sorted(np.load(io.BytesIO(response.content))) == ["sum", "y"]
        response = infer(
            "m", npy(array), "application/x-npy", "?output=sum&output=y", Accept="application/json"
        )
        assert [output["name"] for output in response.json()["outputs"]] == ["sum", "y"]
        vector = np.ones(3, np.float32)
        response = infer("two", npz(a=vector, b=vector), "application/x-npz")
        assert np.load(io.BytesIO(response.content))["total"].tolist() == [2.0, 2.0, 2.0]
        response = infer("two", npz(a=vector, b=vector), "application/x-npz", Accept="application/x-npy")
        assert np.load(io.BytesIO(response.content)).tolist() == [2.0, 2.0, 2.0]
        response = infer("m", npy(np.asfortranarray(np.repeat(array, 3, 0))), "application/x-npy")
        assert np.load(io.BytesIO(response.content)).shape == (3, 4)


@pytest.mark.parametrize(
    ("body", "headers", "query", "status", "expected"),
    [
        (b"{", {}, "", 400, "oip_not_json"),
        (b'{"inputs": 1}', {}, "", 400, "oip_member_type"),
        (npy(ROW), {"Content-Type": "text/csv"}, "", 415, "media_type_unsupported"),
        (b"x", {"Content-Type": "application/x-npy"}, "", 400, "npy_malformed"),
        (npy(ROW), {"Content-Type": "application/x-npy", "Accept": "text/html"}, "", 406, "not_acceptable"),
        (
            npy(ROW),
            {"Content-Type": "application/x-npy", "Accept": "application/x-npy;q=0"},
            "",
            406,
            "not_acceptable",
        ),
        (
            npy(ROW),
            {"Content-Type": "application/x-npy", "Content-Encoding": "gzip"},
            "",
            415,
            "media_type_unsupported",
        ),
        (npy(ROW), {"Content-Type": "application/x-npy"}, "?output=y&output=sum", 400, "parameter_invalid"),
        (npy(ROW), {"Content-Type": "application/x-npy"}, "?output=z", 400, "output_unknown"),
        (npy(ROW), {"Content-Type": "application/x-npy"}, "?outputs=y", 400, "parameter_invalid"),
        (b"{}", {"Inference-Header-Content-Length": "2"}, "", 415, "media_type_unsupported"),
        (
            json.dumps({**REQUEST, "outputs": [{"name": "y"}]}).encode(),
            {},
            "?output=y",
            400,
            "parameter_invalid",
        ),
        (json.dumps({**REQUEST, "outputs": [{"name": "z"}]}).encode(), {}, "", 400, "output_unknown"),
        (
            json.dumps(REQUEST).encode(),
            {"Strongroom-Model-Digest": "00" * 32},
            "",
            409,
            "model_digest_mismatch",
        ),
        (json.dumps(REQUEST).encode(), {"Strongroom-Model-Digest": "AB" * 32}, "", 400, "digest_malformed"),
    ],
)
def test_inference_requests_that_are_refused(
    tmp_path: Path, body: bytes, headers: dict[str, str], query: str, status: int, expected: str
) -> None:
    """Each is wrong in one respect; nothing runs."""
    with plane(tmp_path) as world:
        put(world, "m", linear_onnx())
        response = post(world, "/v2/models/m/infer" + query, body, key=ALICE, headers=headers)
        assert code(response, status) == expected


def test_one_array_for_a_model_of_two_inputs_is_refused(tmp_path: Path) -> None:
    """A .npy file has no names, so it cannot feed two inputs."""
    with plane(tmp_path) as world:
        put(world, "two", two_inputs_onnx())
        headers = {"Content-Type": "application/x-npy"}
        response = post(world, "/v2/models/two/infer", npy([1.0]), key=ALICE, headers=headers)
        assert code(response, 400) == "input_names"


def test_nan_means_missing_only_where_the_model_says_so(tmp_path: Path) -> None:
    """A tree model takes NaN as missing and refuses infinity."""
    with plane(tmp_path) as world:
        put(world, "trees", xgboost_json(), format="xgboost-json")

        def infer(value: str) -> httpx.Response:
            body = (
                f'{{"inputs":[{{"name":"features","shape":[1,4],"datatype":"FP32","data":[1,{value},0,0]}}]}}'
            )
            return post(world, "/v2/models/trees/infer", body.encode(), key=ALICE)

        assert infer("NaN").status_code == 200
        assert infer("Infinity").status_code == 400


# The plain endpoints


def test_the_seeds_examples_work_word_for_word(tmp_path: Path) -> None:
    """Upload an XGBoost JSON body, send {"features": [...]}, get {"predictions": [...], "model_id": "..."}."""
    import xgboost

    data = xgboost_json()
    booster = xgboost.Booster(model_file=bytearray(data))
    with plane(tmp_path, anonymous_upload=True) as world:
        assert get(world, "/health").json()["status"] == "ok"
        curl = {"Content-Type": "application/json"}
        uploaded = post(world, "/model/upload", data, headers=curl)
        assert uploaded.status_code == 201
        assert uploaded.json()["model_id"] == "iris-classifier"
        assert uploaded.json()["access"] == "public"
        row = [5.1, 3.5, 1.4, 0.2]
        answer = post(world, "/model/predict", {"features": row}, headers=curl).json()
        assert set(answer) == {"predictions", "model_id"}
        assert answer["model_id"] == "iris-classifier"
        expected = booster.predict(xgboost.DMatrix(np.array([row], np.float32)))
        np.testing.assert_allclose(answer["predictions"], expected[0], rtol=1e-5)
        rows = [row, [6.0, None, 4.5, 1.5]]
        answer = post(world, "/model/predict", {"features": rows, "model_id": "iris-classifier"}).json()
        filled = np.array([row, [6.0, np.nan, 4.5, 1.5]], np.float32)
        np.testing.assert_allclose(answer["predictions"], booster.predict(xgboost.DMatrix(filled)), rtol=1e-5)
        report = get(world, "/attestation/report").json()
        assert report["format"] == "sim" and report["simulated"] is True


def test_seed_uploads_by_name_and_by_key(tmp_path: Path) -> None:
    """`?name=` names the model; with a key it is that key's, and private."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        path = "/model/upload?name=mine"
        token = world.token(ALICE, method="POST", path=path, body=data)
        headers = {"Authorization": f"Bearer {token}", "Content-Digest": content_digest(data)}
        response = post(world, path, data, headers=headers)
        assert response.status_code == 201 and response.json()["access"] == "private"
        body = {"features": ROW[0], "model_id": "mine"}
        assert post(world, "/model/predict", body, key=ALICE).json()["predictions"] == [0.0, 2.0, 4.0, 6.0]
        body = {"features": ROW + ROW, "model_id": "mine/versions/1"}
        assert len(post(world, "/model/predict", body, key=ALICE).json()["predictions"]) == 2
        assert code(post(world, "/model/predict", body), 404) == "not_found"
        other = linear_onnx(factor=3)
        put(world, "other", other)
        for body, path in (
            ({"features": ROW[0]}, "/model/predict?name=mine"),
            ({"features": ROW[0], "model_id": "mine"}, "/model/predict"),
        ):
            assert post(world, path, body, key=ALICE).json()["model_id"] == "mine"
        for path, status, expected in (
            ("/model/predict?name=absent", 404, "not_found"),
            ("/model/predict?name=a/b", 400, "model_name_invalid"),
            ("/model/predict?model=mine", 400, "parameter_invalid"),
        ):
            assert code(post(world, path, {"features": ROW[0]}, key=ALICE), status) == expected
        both = {"features": ROW[0], "model_id": "mine"}
        assert code(post(world, "/model/predict?name=mine", both, key=ALICE), 400) == "parameter_invalid"
        assert code(post(world, "/model/upload", data), 401) == "auth_required"
        assert code(post(world, "/model/upload?format=onnx", data), 400) == "parameter_invalid"
        assert code(post(world, "/model/upload?name=a/b", data), 400) == "model_name_invalid"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"features": []}',
        b'{"features": [[]]}',
        b'{"features": [1, [2]]}',
        b'{"features": [[1], [2, 3]]}',
        b'{"features": ["1"]}',
        b'{"features": [true]}',
        b'{"features": [NaN]}',
        b'{"features": [1e999]}',
        b'{"features": [1], "features": [2]}',
        b'{"features": [1], "model": "m"}',
        b'{"features": [1], "model_id": 1}',
        b'{"features": [1], "model_id": "a/b"}',
        b"\xff",
    ],
)
def test_predictions_that_are_refused(tmp_path: Path, body: bytes) -> None:
    """Anything but rows of finite numbers (or null) and a model's id."""
    with plane(tmp_path) as world:
        put(world, "m", linear_onnx())
        assert code(post(world, "/model/predict", body, key=ALICE), 400) == "predict_invalid"


def test_predictions_that_the_model_cannot_take(tmp_path: Path) -> None:
    """A number too large for the model's type, the wrong width, a model of another kind, none at all."""
    with plane(tmp_path) as world:
        assert code(post(world, "/model/predict", {"features": [1]}), 404) == "not_found"
        put(world, "m", linear_onnx())
        put(world, "two", two_inputs_onnx())
        for features, name, expected in (
            ([1e39, 0, 0, 0], "m", "predict_invalid"),
            ([1.0], "two", "predict_unsuitable"),
        ):
            body = {"features": features, "model_id": name}
            assert code(post(world, "/model/predict", body, key=ALICE), 400) == expected
        response = post(world, "/model/predict", {"features": [1.0], "model_id": "m"}, key=ALICE)
        assert code(response, 400).startswith("input_")


# Errors


def test_the_table_of_statuses_is_about_real_codes() -> None:
    """Every code that has a status of its own exists, and every error class gets a status of its family."""
    assert set(problems.CODES) <= set(CODES)
    for kind in (kind for kind in walk(Error) if kind.__module__ == "strongroom.errors"):
        assert 400 <= problems.status_of(kind("x")) <= 599
    assert problems.status_of(errors.AccessRefused("x", code="auth_required")) == 401
    assert problems.status_of(errors.AccessRefused("x", code="not_owner")) == 403
    assert problems.status_of(errors.Unavailable("x", code="auth_busy")) == 503
    assert problems.status_of(errors.SealRefused("x")) == 500


def test_busy_answers_say_when_to_come_back(tmp_path: Path) -> None:
    """429 and 503 carry Retry-After."""
    with plane(tmp_path, limits={"evidence_per_minute": 1}) as world:
        path = "/v1/evidence?nonce=" + "ab" * 32
        assert get(world, path).status_code == 200
        response = get(world, path)
        assert code(response, 429) == "evidence_rate"
        assert int(response.headers["retry-after"]) == 60
    document = problems.problem(errors.Unavailable("x", code="overloaded", retry_after_s=7))
    assert document.status == 503 and (b"retry-after", b"7") in document.fields


def test_busy_answers_and_no_others_are_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who comes back at once, again and again, waits for each refusal; nobody else waits for anything."""
    held: list[int] = []

    async def hold_back() -> None:
        held.append(1)

    monkeypatch.setattr(rest, "_hold_back", hold_back)
    with plane(tmp_path, limits={"evidence_per_minute": 1}) as world:
        assert get(world, "/v1/evidence?nonce=" + "ab" * 32).status_code == 200
        assert get(world, "/v2/models/none").status_code == 404
        assert get(world, "/v1/evidence?nonce=short").status_code == 400
        assert not held
        for count in (1, 2):
            assert code(get(world, "/v1/evidence?nonce=" + "ab" * 32), 429) == "evidence_rate"
            assert len(held) == count
        assert get(world, "/v2/health/live").status_code == 200
    assert len(held) == 2


def test_a_fault_shows_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign exception becomes a 500 in our words; its text is neither in the answer nor in the log."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a patient's name")

    with plane(tmp_path) as world:
        monkeypatch.setattr(world.store, "models", broken)
        response = get(world, "/v1/models")
        assert code(response, 500) == "internal_error"
        assert "patient" not in response.text and "Traceback" not in response.text
    assert "RuntimeError at" in caplog.text
    assert "patient" not in caplog.text


def test_a_client_that_leaves_gets_no_answer_and_makes_no_noise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection ends within the body: nothing is sent, nothing is logged, nothing is kept."""
    sent: list[Any] = []

    async def story(world: World) -> None:
        messages = iter(
            [{"type": "http.request", "body": b"\x08\x08", "more_body": True}, {"type": "http.disconnect"}]
        )
        data = linear_onnx()
        headers = {
            "authorization": "Bearer " + world.token(ALICE, method="PUT", path="/v1/models/m", body=data),
            "content-digest": content_digest(data),
            "strongroom-format": "onnx",
        }
        scope = {
            "type": "http",
            "method": "PUT",
            "path": "/v1/models/m",
            "raw_path": b"/v1/models/m",
            "query_string": b"",
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            "client": ("192.0.2.1", 1),
        }

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        await world.rest(scope, receive, send)

    with plane(tmp_path) as world:
        asyncio.run(story(world))
        assert world.store.models() == ()
    assert sent == [] and caplog.text == ""


def test_a_connection_of_an_old_epoch_ends_with_its_next_answer(tmp_path: Path) -> None:
    """After a rotation, clients are moved to the new keys: their connection closes once it was answered."""
    with plane(tmp_path) as world:
        old = world.epochs.current
        world.rest = Rest(
            world.service,
            wire=world.rest._wire,
            epoch_of=lambda scope: old,
            current_epoch=lambda: world.epochs.current,
        )
        assert "connection" not in get(world, "/health").headers
        world.epochs.rotate()
        assert get(world, "/health").headers["connection"] == "close"


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
)
def test_any_prediction_body_gives_a_question_or_our_error(data: bytes) -> None:
    """Oracle: a Question or a strongroom Error, nothing else."""
    from targets_server import SEEDS, fuzz_question

    fuzz_question(data)
    for seed in SEEDS["fuzz_question"]:
        fuzz_question(seed[: len(data)] + data + seed[len(data) :])


def test_documents_are_utf8_json() -> None:
    """Names outside ASCII travel as they are; what has no UTF-8 form is escaped instead of failing."""
    assert bodies.dump({"a": "ä"}) == '{"a":"ä"}'.encode()
    assert bodies.dump({"a": "\ud800"}) == b'{"a":"\\ud800"}'


PAGE = REPOSITORY / "docs" / "http.md"


BODIES = {
    "<ONNX model>": linear_onnx(),
    "<XGBoost JSON>": xgboost_json(),
    "<array.npy>": npy(np.array(ROW, np.float32)),
}


def test_the_examples_of_the_reference_are_what_happens(tmp_path: Path) -> None:
    """Every request in docs/http.md, in order: its status and the members of its answer are those of the page."""
    exchanges = re.findall(r"```http\n(.*?)```\n```http\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(exchanges) == PAGE.read_text().count("```http") / 2 > 15
    with plane(tmp_path, anonymous_upload=True) as world:
        for request, expected in exchanges:
            head, _, text = request.strip().partition("\n\n")
            method, path = head.splitlines()[0].replace("<nonce>", "ab" * 32).split()
            fields = dict(line.split(": ", 1) for line in head.splitlines()[1:])
            body = BODIES.get(text, text.encode())
            if "Content-Digest" in fields:
                fields["Content-Digest"] = content_digest(body)
            key = ALICE if fields.pop("Authorization", None) else None
            response = asyncio.run(world.request(method, path, key=key, body=body, headers=fields))
            status, _, shown = expected.strip().partition("\n")
            assert response.status_code == int(status), (head, response.text)
            _alike(json.loads(shown), response.json(), head)


def _alike(shown: Any, real: Any, where: str) -> None:
    """Members and types agree; strings agree unless the page abbreviates them."""
    if isinstance(shown, str) and shown.startswith("<"):
        return
    assert type(shown) is type(real), (where, shown, real)
    if isinstance(shown, dict):
        assert set(shown) == set(real), where
        for name, value in shown.items():
            _alike(value, real[name], f"{where}: {name}")
    elif isinstance(shown, list):
        assert len(shown) == len(real), where
        for one, other in zip(shown, real, strict=True):
            _alike(one, other, where)
    elif not isinstance(shown, int | float):
        assert shown == real, where


def test_the_reference_names_every_route(tmp_path: Path) -> None:
    """docs/http.md has a heading or a line for each method and path."""
    page = PAGE.read_text()
    with plane(tmp_path) as world:
        for route in world.rest._router.routes:
            path = route.path
            for method in route.methods:
                assert f"`{method} {path}`" in page, f"{method} {path}"


# Credential activation


def test_activation_reaches_the_tpm_and_answers_the_secret(tmp_path: Path) -> None:
    """The two parts of the credential go in, the secret comes out, as base64; no token is needed."""
    with plane(tmp_path) as world:
        world.service._activate = lambda credential, secret: credential + secret
        response = post(world, "/v1/tpm/activate", {"credential": "YWI=", "encrypted_secret": "Y2Q="})
        assert response.status_code == 200 and response.json() == {"secret": "YWJjZA=="}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "credential_malformed"),
        (b"[]", "credential_malformed"),
        ({"credential": "YWI="}, "credential_malformed"),
        ({"credential": "YWI=", "encrypted_secret": "?"}, "credential_malformed"),
        ({"credential": "YWI=", "encrypted_secret": "Y2Q=", "more": 1}, "credential_malformed"),
        ({"credential": "YWJj" * 400, "encrypted_secret": "Y2Q="}, "credential_malformed"),
        (b" " * 5000, "body_too_large"),
    ],
)
def test_a_body_that_is_no_credential_does_not_reach_the_tpm(
    body: object, expected: str, tmp_path: Path
) -> None:
    """Strict, and bounded as it arrives."""
    asked: list[bytes] = []
    with plane(tmp_path) as world:
        world.service._activate = lambda credential, secret: asked.append(credential) or b""  # type: ignore[func-returns-value]
        response = post(world, "/v1/tpm/activate", body)
        assert code(response, 413 if expected == "body_too_large" else 400) == expected
    assert not asked


def test_activation_shares_the_rate_of_evidence(tmp_path: Path) -> None:
    """Both keep the TPM busy."""
    with plane(tmp_path, limits={"evidence_per_minute": 1}) as world:
        body = {"credential": "YWI=", "encrypted_secret": "Y2Q="}
        assert code(post(world, "/v1/tpm/activate", body), 404) == "activation_unsupported"
        assert code(post(world, "/v1/tpm/activate", body), 429) == "evidence_rate"
        assert code(get(world, "/v1/evidence?nonce=" + "ab" * 32), 429) == "evidence_rate"
