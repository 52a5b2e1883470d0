"""Uploads that ask for less precision, through the data plane: the order, the part's fate, what is refused when."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.networks import images, layers, residual
from plane import ALICE, BOB, World, content_digest, plane, prepare_here, stream, xgboost_json

from strongroom.errors import Error
from strongroom.npy import encode_npz
from strongroom.preparation import Prepared
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
