"""Uploads that ask for less precision, through the data plane: the order, the part's fate, what is refused when."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.networks import images, layers, residual
from plane import ALICE, BOB, World, content_digest, plane, prepare_here, stream, xgboost_json

from strongroom.errors import Error, LimitExceeded
from strongroom.npy import encode_npz
from strongroom.preparation import Prepared, Waiting
from strongroom.reduction import Options, Part, Reduction
from strongroom.reduction_fields import fields_of
from strongroom.service import View
from strongroom.upload import Upload

SET = encode_npz(images(3))
INT8 = Options(precision="int8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for the module."""
    with plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


def with_set(part: bytes = SET, **changes: Any) -> Reduction:
    """Asks for static int8."""
    said = {"kind": "calibration", "size": len(part), "sha256": hashlib.sha256(part).hexdigest(), **changes}
    return Reduction(options=INT8, part=Part(**said))


def upload(
    world: World,
    name: str,
    body: bytes,
    reduction: Reduction | None,
    *,
    said: bytes | None = None,
    **more: Any,
) -> View:
    """An upload in pieces of odd sizes."""
    claimed = body if said is None else said
    call = world.call("PUT", f"/v1/models/{name}", key=more.get("key", ALICE), body=claimed)
    chunks = [body[at : at + 997] for at in range(0, len(body), 997)]
    return asyncio.run(
        world.service.upload(
            call,
            name=name,
            access="private",
            format=more.get("format", "onnx"),
            sha256=hashlib.sha256(claimed).hexdigest(),
            body=stream(*chunks),
            reduction=reduction,
        )
    )


def code_of(action: Any) -> str:
    """Of what it refuses with."""
    with pytest.raises(Error) as caught:
        action()
    return caught.value.code


def test_the_part_is_not_the_model(world: World) -> None:
    """Digest and size are of the model; the set's digest stays in the record, and that is all that stays."""
    model = upload(world, "static", SET + residual(), with_set()).model
    assert (model.size, model.sha256) == (len(residual()), hashlib.sha256(residual()).hexdigest())
    made = model.info.precision.made
    assert made is not None and made.calibration_sha256 == hashlib.sha256(SET).hexdigest()
    assert model.canonical_sha256 != made.from_sha256


def test_the_set_is_not_written_and_is_overwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the upload comes to its end or not: no byte of it goes to the store, and none stays in memory."""
    written, parts = b"", []
    write = Upload.write

    def watch(self: Upload, chunk: Any) -> None:
        nonlocal written
        written += bytes(chunk)
        write(self, chunk)

    def keep(*given: Any, part: bytearray, **more: Any) -> Prepared:
        parts.append(part)
        assert bytes(part) == SET
        return prepare_here(*given, part=part, **more)

    monkeypatch.setattr(Upload, "write", watch)
    monkeypatch.setattr(world.service, "_prove", replace(world.service._prove, prepare=keep))
    upload(world, "watched", SET + residual(), with_set())
    assert written == residual()
    # Not for words: the set does not fit the model, which is found out by whoever measures.
    assert code_of(lambda: upload(world, "watched", SET + layers(), with_set())) == "input_dtype"
    assert [bytes(part) for part in parts] == [bytes(len(SET))] * 2
    assert world.service._budget.held == 0
    assert [model.version for model in world.store.versions("watched")] == [1]


@pytest.mark.parametrize(
    ("body", "reduction", "said", "code"),
    [
        (SET + residual(), with_set(), residual(), "upload_digest_mismatch"),
        (SET + residual(), with_set(sha256="0" * 64), None, "upload_digest_mismatch"),
        (SET + residual(), with_set(size=len(SET) - 1), None, "format_unknown"),
        (SET + residual(), with_set(size=len(SET) + 3), None, "format_unknown"),
        (SET, with_set(), None, "body_empty"),
        (SET[:50], with_set(), None, "body_empty"),
        (SET + residual(), with_set(size=1 << 40), None, "calibration_too_large"),
        (residual(), None, SET, "upload_digest_mismatch"),
        (residual(), Reduction(options=INT8), None, "precision_nothing"),
        (SET + residual(), None, None, "format_not_accepted"),
    ],
    ids=["digest of the model alone", "set of another digest", "set cut", "set that runs into the model",
         "no model", "half a set", "too large", "another body", "no set for convolutions", "a set nobody announced"],
)  # fmt: skip
def test_what_is_refused(
    world: World, body: bytes, reduction: Reduction | None, said: bytes | None, code: str
) -> None:
    """Each by its code, and nothing is stored."""
    before = world.store.models()
    assert code_of(lambda: upload(world, "refused", body, reduction, said=said)) == code
    assert world.store.models() == before


def test_trees_stay_as_they_are(world: World) -> None:
    """In their own words."""
    data = xgboost_json()
    asked = Reduction(options=INT8)
    assert code_of(lambda: upload(world, "trees", data, asked, format="xgboost-json")) == "precision_nothing"


def test_nobody_reads_a_set_before_the_caller_is_known(world: World) -> None:
    """The same order as for every upload: who, may they, limits."""
    upload(world, "mine", layers(), None)

    async def never() -> Any:
        raise AssertionError("the body was read")
        yield b""

    call = world.call("PUT", "/v1/models/mine", key=BOB, body=SET)
    action = world.service.upload(
        call, name="mine", access="private", format="onnx", sha256=hashlib.sha256(SET).hexdigest(), body=never(),
        reduction=with_set(),
    )  # fmt: skip
    assert code_of(lambda: asyncio.run(action)) == "name_taken"


def test_a_part_counts_among_the_bytes_in_memory(tmp_path: Path) -> None:
    """As bodies of requests do."""
    limits = {"body_bytes_in_flight": 2000, "request_bytes": 1000}
    with plane(tmp_path, limits=limits) as world:
        body = SET + residual()
        assert code_of(lambda: upload(world, "m", body, with_set())) in ("caller_too_busy", "overloaded")
        assert world.service._budget.held == 0


def test_through_the_front_end(world: World) -> None:
    """Header fields in, header fields and documents out; demands over HTTP."""
    body = SET + residual()
    fields = {name.replace("-", "_"): value for name, value in fields_of(with_set())}
    answer = asyncio.run(world.put("http", body, format="onnx", **fields))
    document = answer.json()
    assert answer.status_code == 201, document
    assert document["precision"]["name"] == "int8" and document["size"] == len(residual())
    npz = {"Content-Type": "application/x-npz", "Accept": "application/x-npz"}

    def ask(accept: str | None) -> Any:
        headers = npz | ({} if accept is None else {"Strongroom-Accept-Precision": accept})
        return asyncio.run(
            world.request(
                "POST", "/v2/models/http/infer", key=ALICE, body=encode_npz(images(1)), headers=headers
            )
        )

    for accept in (None, "int8", "fp32, int8"):
        assert ask(accept).headers["strongroom-precision"] == "int8"
    for accept, status, code in (("fp32", 409, "precision_refused"), ("fp8", 400, "precision_options")):
        refused = ask(accept)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    how = asyncio.run(world.put("http", residual(), format="onnx", Strongroom_Precision_Method="minmax"))
    assert (how.status_code, how.json()["code"]) == (400, "precision_options")
    wrong = {**fields, "Content_Digest": content_digest(residual())}
    mismatch = asyncio.run(world.put("http", body, format="onnx", **wrong))
    assert mismatch.status_code in (401, 409)


def test_one_upload_is_not_pinned_in_two_precisions(world: World) -> None:
    """Who pins the digest of a file gets no answer of what was made of it; that has a digest of its own."""
    plain = upload(world, "pinned", residual(), None).model
    body = encode_npz(images(1))
    npz = {"Content-Type": "application/x-npz", "Accept": "application/x-npz"}

    def ask(digest: str) -> tuple[int, str]:
        headers = npz | {"Strongroom-Model-Digest": digest}
        answer = asyncio.run(
            world.request("POST", "/v2/models/pinned/infer", key=ALICE, body=body, headers=headers)
        )
        return answer.status_code, answer.headers.get("strongroom-precision", answer.text)

    assert ask(plain.sha256) == (200, "fp32")
    made = upload(world, "pinned", SET + residual(), with_set()).model
    assert made.sha256 == plain.sha256 and made.version == plain.version + 1
    assert ask(made.canonical_sha256) == (200, "int8")
    status, text = ask(plain.sha256)
    assert status == 409 and "model_digest_mismatch" in text


def test_the_digest_of_a_set_is_its_owners(world: World) -> None:
    """Others, who could guess a small set and see that they are right, are not told; nor in the signed report."""
    call = world.call("PUT", "/v1/models/told", key=ALICE, body=SET + residual())
    whole = hashlib.sha256(SET + residual()).hexdigest()
    asyncio.run(
        world.service.upload(
            call, name="told", access="public", format="onnx", sha256=whole, body=stream(SET + residual()),
            reduction=with_set(),
        )
    )  # fmt: skip
    digest = hashlib.sha256(SET).hexdigest()
    for key, told in ((ALICE, True), (BOB, False), (None, False)):
        for path in ("/v1/models/told", "/v1/models/told/versions/1", "/v1/models/told/admission"):
            answer = asyncio.run(world.request("GET", path, key=key))
            text = answer.text
            if path.endswith("admission"):
                text = base64.b64decode(answer.json()["report"]).decode()
            assert answer.status_code == 200 and (digest in text) is told
            assert '"form":"static"' in text.replace(" ", "")


def test_the_seeds_upload_makes_no_precision(world: World) -> None:
    """Who asks there is refused: a field that says what to make is not passed over."""
    for field, code in (("int8", "precision_options"), ("bf16", "precision_unsupported")):
        headers = {"Strongroom-Precision": field, "Content-Digest": content_digest(residual())}
        answer = asyncio.run(
            world.request(
                "POST", "/model/upload?name=seed", key=ALICE, body=residual(), headers=headers, changes=True
            )
        )
        assert (answer.status_code, answer.json()["code"]) == (400, code)
    headers = {"Strongroom-Precision": "fp32", "Content-Digest": content_digest(residual())}
    answer = asyncio.run(
        world.request(
            "POST", "/model/upload?name=seed", key=ALICE, body=residual(), headers=headers, changes=True
        )
    )
    assert answer.status_code == 201


def test_who_hangs_up_ends_what_is_made(world: World) -> None:
    """And nothing is stored for them."""
    begun = threading.Event()

    def slow(*given: Any, waiting: Waiting, **more: Any) -> Prepared:
        begun.set()
        for _ in range(2000):
            if waiting.over:
                raise LimitExceeded("given up", code="preparation_limits")
            time.sleep(0.01)
        raise AssertionError("nobody gave up")

    async def run() -> None:
        body = SET + residual()
        call = world.call("PUT", "/v1/models/gone", key=ALICE, body=body)
        upload = asyncio.create_task(
            world.service.upload(
                call, name="gone", access="private", format="onnx", sha256=hashlib.sha256(body).hexdigest(),
                body=stream(body), reduction=with_set(),
            )
        )  # fmt: skip
        await asyncio.to_thread(begun.wait, 20)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    former = world.service._prove
    world.service._prove = replace(former, prepare=slow)
    try:
        asyncio.run(run())
    finally:
        world.service._prove = former
    assert not world.store.versions("gone") and world.service._budget.held == 0


def test_other_uploads_have_places_meanwhile(world: World) -> None:
    """Making less precision takes at most half of them, whoever asks; what waits for it keeps nobody else out."""
    begun, go = threading.Event(), threading.Event()

    def slow(*given: Any, **more: Any) -> Prepared:
        begun.set()
        assert go.wait(20)
        return prepare_here(*given, **more)

    service = world.service
    asked = Reduction(options=INT8)

    def call(name: str, key: Any, reduction: Reduction | None) -> Any:
        body = layers()
        return service.upload(
            world.call("PUT", f"/v1/models/{name}", key=key, body=body), name=name, access="private", format="onnx",
            sha256=hashlib.sha256(body).hexdigest(), body=stream(body), reduction=reduction,
        )  # fmt: skip

    async def run() -> None:
        first = asyncio.create_task(call("slow-1", ALICE, asked))
        second = asyncio.create_task(call("slow-2", ALICE, asked))
        await asyncio.to_thread(begun.wait, 20)
        with pytest.raises(Error) as refused:
            await call("slow-3", BOB, asked)
        assert refused.value.code == "uploads_busy"
        assert (await call("plain", BOB, None)).model.name == "plain"
        go.set()
        await asyncio.gather(first, second)

    former = service._prove
    service._prove = replace(former, prepare=slow)
    try:
        asyncio.run(run())
    finally:
        go.set()
        service._prove = former
