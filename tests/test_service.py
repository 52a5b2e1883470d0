"""The data plane: the order of checks, what each refuses, and what threads and memory may not do."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plane import ALICE, BOB, World, linear_onnx, plane, stream, two_inputs_onnx, xgboost_json

from strongroom import errors, models
from strongroom.attest import draft_policy, verify
from strongroom.attest.batch import Single
from strongroom.attest.evidence import NoChannel, parse_answer
from strongroom.attest.policy import parse_policy
from strongroom.engine import Engine, InProcess
from strongroom.errors import Error, SealRefused, Unavailable
from strongroom.jobs import Job, Source
from strongroom.models.info import STANDARD_LIMITS
from strongroom.oip import InferRequest, InferResponse, Tensor
from strongroom.parts import Arriving
from strongroom.runner import LOADERS, Preloaded
from strongroom.service import View, check_name
from strongroom.store import ModelVersion
from strongroom.tokens import principal_id

Key = Any


def upload(
    world: World,
    data: bytes,
    *,
    name: str = "m",
    key: Key = ALICE,
    access: str = "private",
    format: str | None = "onnx",
    claimed: bytes | None = None,
) -> View:
    """Uploads `data`, as a caller that says it sends `claimed`."""
    said = data if claimed is None else claimed
    call = world.call("PUT", f"/v1/models/{name}", key=key, body=said)
    sha256 = hashlib.sha256(said).hexdigest()
    return asyncio.run(
        world.service.upload(
            call, name=name, access=access, format=format, sha256=sha256, body=stream(data[:10], data[10:])
        )
    )


def decode(data: bytes, model: ModelVersion) -> InferRequest:
    """A body of little-endian FP32 numbers, four a row."""
    array = np.frombuffer(data, np.float32).reshape(-1, 4)
    return InferRequest(id=None, inputs=(Tensor("x", "FP32", array.copy()),), outputs=("y",), parameters=())


def encode(response: InferResponse) -> bytes:
    """The first output's bytes."""
    return response.outputs[0].array.tobytes()


ROW = np.arange(4, dtype=np.float32)


async def run(
    world: World, *, name: str = "m", version: int | None = None, key: Key = ALICE, expect: str | None = None
) -> np.ndarray[Any, Any]:
    """Runs model `name` on one row."""
    _, data = await world.service.infer(
        world.call(key=key),
        name=name,
        version=version,
        expect_sha256=expect,
        body=stream(ROW.tobytes()),
        decode=decode,
        encode=encode,
    )
    return np.frombuffer(data, np.float32)


def code_of(action: Any) -> str:
    """The code of the error that a coroutine or a function raises."""
    with pytest.raises(Error) as caught:
        if asyncio.iscoroutine(action):
            asyncio.run(action)
        else:
            action()
    return caught.value.code


class Watched(InProcess):
    """Models in this process, and for whom they ran."""

    def __init__(self) -> None:
        super().__init__(Engine())
        self.jobs: list[Job] = []

    def load(self, source: Source) -> Any:
        """See `jobs.Host`."""
        session, jobs = super().load(source), self.jobs

        class Session:
            info, memory_bytes, close = session.info, session.memory_bytes, session.close
            stages = session.stages

            def run(self, inputs: Any, *, outputs: tuple[str, ...], job: Job) -> Any:
                jobs.append(job)
                return session.run(inputs, outputs=outputs, job=job)

            def begin(self, inputs: Any, *, outputs: tuple[str, ...], job: Job) -> Any:
                begun = session.begin(inputs, outputs=outputs, job=job)
                if begun is not None:  # else it is `run` that runs
                    jobs.append(job)
                return begun

        return Session()


def test_a_run_is_for_a_principal_or_comes_from_a_network(tmp_path: Path) -> None:
    """The process is the principal's, or nobody's; whose deaths it counts among is the address's, too: an IPv6 caller
    has as many of these as it likes, but for the network's half.
    """
    host = Watched()
    with plane(tmp_path, host=host) as world:
        asyncio.run(world.put("m", linear_onnx(), format="onnx", strongroom_access="public"))

        def call(address: str, key: Key | None) -> None:
            given = world.call(key=key, address=address)
            fixed: dict[str, Any] = {"name": "m", "version": None, "expect_sha256": None}
            body = stream(ROW.tobytes())
            asyncio.run(world.service.infer(given, **fixed, body=body, decode=decode, encode=encode))

        for address in ("192.0.2.7", "2001:db8::1:2:3", "2001:db8::4:5:6"):
            call(address, None)
        call("192.0.2.7", ALICE)
    alice = principal_id(ALICE.public_key())
    assert [(job.caller, job.origin) for job in host.jobs] == [
        (None, "address 192.0.2.7"),
        (None, "address 2001:db8::"),
        (None, "address 2001:db8::"),
        (alice, alice),
    ]


# What works


def test_an_uploaded_model_runs_and_survives_a_restart(tmp_path: Path) -> None:
    """What was acknowledged runs, from memory and from the sealed store of a server that starts anew."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        view = upload(world, data)
        assert (view.model.version, view.model.sha256) == (1, hashlib.sha256(data).hexdigest())
        assert view.model.owner == principal_id(ALICE.public_key())
        assert not view.loaded
        assert asyncio.run(run(world)).tolist() == (2 * ROW).tolist()
        assert asyncio.run(world.service.model(world.call(key=ALICE), name="m", version=None)).loaded
    with plane(tmp_path) as world:
        assert asyncio.run(run(world)).tolist() == (2 * ROW).tolist()


def test_versions_are_immutable_and_the_name_means_the_latest(tmp_path: Path) -> None:
    """A second upload is version 2; version 1 still runs."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx(factor=2))
        assert upload(world, linear_onnx(factor=3)).model.version == 2
        assert asyncio.run(run(world)).tolist() == (3 * ROW).tolist()
        assert asyncio.run(run(world, version=1)).tolist() == (2 * ROW).tolist()
        assert asyncio.run(world.service.versions(world.call(key=ALICE), name="m")) == (1, 2)


def test_deleting_takes_versions_and_keeps_the_name(tmp_path: Path) -> None:
    """One version or all; the name stays its owner's, and version numbers are never used again."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx(factor=2))
        upload(world, linear_onnx(factor=3))
        asyncio.run(run(world))
        call = world.call("DELETE", "/x", key=ALICE, body=b"")
        gone = asyncio.run(world.service.delete(call, name="m", version=2))
        assert [model.version for model in gone] == [2]
        assert asyncio.run(run(world)).tolist() == (2 * ROW).tolist()
        call = world.call("DELETE", "/x", key=ALICE, body=b"")
        asyncio.run(world.service.delete(call, name="m", version=None))
        assert code_of(run(world)) == "not_found"
        assert code_of(lambda: upload(world, linear_onnx(), key=BOB)) == "name_taken"
        assert upload(world, linear_onnx()).model.version == 3


def test_what_was_deleted_leaves_memory_however_many_load(tmp_path: Path) -> None:
    """The line of loads may be full: whoever deletes is not refused when it is done, and the model goes."""

    async def main(world: World) -> None:
        await run(world)
        runner, release = world.service._runner, threading.Event()
        loads = [asyncio.ensure_future(runner._loads.run(release.wait)) for _ in range(LOADERS)]
        loads += [
            asyncio.ensure_future(runner._loads.run(int))
            for _ in range(world.settings.limits.concurrent_requests)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await runner._loads.run(int)
        try:
            call = world.call("DELETE", "/x", key=ALICE, body=b"")
            (gone,) = await world.service.delete(call, name="m", version=None)
            assert not runner.is_loaded(gone)
        finally:
            release.set()
            await asyncio.gather(*loads)

    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        asyncio.run(main(world))


def test_load_and_unload(tmp_path: Path) -> None:
    """The owner warms a model up and drops it; a run works either way."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        for action, expected in (("load", True), ("load", True), ("unload", False), ("unload", False)):
            call = world.call("POST", "/x", key=ALICE, body=b"")
            view = asyncio.run(getattr(world.service, action)(call, name="m", version=None))
            assert view.loaded is expected
        assert asyncio.run(run(world)).tolist() == (2 * ROW).tolist()


def test_evidence_answers_the_nonce_for_the_keyset_of_the_connection(tmp_path: Path) -> None:
    """The answer verifies with the function that clients use."""
    nonce = bytes(range(32))
    with plane(tmp_path) as world:
        answer = parse_answer(asyncio.run(world.service.evidence(world.call(), nonce=nonce)))
        now = world.epochs._now()
        policy = parse_policy(draft_policy(answer.evidence, keyset_bytes=answer.keyset, now=now))
        appraised = verify(
            answer.evidence,
            policy,
            nonce=nonce,
            keyset_bytes=answer.keyset,
            inclusion=Single(),
            channel=NoChannel("test"),
            endorsements=(),
            now=now,
        )
        assert appraised.claims.simulated
        assert answer.keyset == world.epochs.current.keyset_bytes


# Step 1: authenticate


def test_changing_calls_need_a_token_for_that_very_call(tmp_path: Path) -> None:
    """Another method, target or body, or a token for reading: each is refused by its own code."""
    data = linear_onnx()
    with plane(tmp_path) as world:

        def attempt(method: str, target: str, body: bytes | None, *, token_for: tuple[str, str]) -> str:
            call = world.call(*token_for, key=ALICE, body=body)
            call = replace(call, method=method, target=target)
            return code_of(
                world.service.upload(
                    call,
                    name="m",
                    access="private",
                    format="onnx",
                    sha256=hashlib.sha256(data).hexdigest(),
                    body=stream(data),
                )
            )

        target = "/v1/models/m"
        assert attempt("PUT", target, data, token_for=("PUT", "/v1/models/n")) == "auth_action_mismatch"
        assert attempt("PUT", target, data, token_for=("POST", target)) == "auth_action_mismatch"
        assert attempt("PUT", target, b"other", token_for=("PUT", target)) == "auth_body_mismatch"
        assert attempt("PUT", target, None, token_for=("PUT", target)) == "auth_action_required"
        assert world.store.models() == ()


def test_a_token_for_a_changing_call_works_once(tmp_path: Path) -> None:
    """The same token again is a replay, even where the first call failed later."""
    data = linear_onnx()
    with plane(tmp_path) as world:
        call = world.call("PUT", "/v1/models/m", key=ALICE, body=data)
        arguments: dict[str, Any] = {
            "name": "m",
            "access": "private",
            "format": "onnx",
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        asyncio.run(world.service.upload(call, **arguments, body=stream(data)))
        assert code_of(world.service.upload(call, **arguments, body=stream(data))) == "auth_replayed"


def test_a_token_is_bound_to_the_epoch_of_its_connection(tmp_path: Path) -> None:
    """After a rotation, tokens for the old keyset work on old connections only."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        old = world.call(key=ALICE)
        world.epochs.rotate()
        assert asyncio.run(world.service.models(old, encode=tuple))
        moved = replace(old, epoch=world.epochs.current)
        assert code_of(world.service.models(moved, encode=tuple)) == "auth_wrong_server"


def test_nothing_of_a_body_is_read_before_the_caller_is_known(tmp_path: Path) -> None:
    """Authentication and authorisation refuse before the first byte: no 100 Continue, no buffer."""

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with plane(tmp_path) as world:
        arguments: dict[str, Any] = {"name": "m", "access": "private", "format": "onnx", "sha256": "0" * 64}
        assert code_of(world.service.upload(world.call(), **arguments, body=never())) == "auth_required"
        bad = world.call("PUT", "/elsewhere", key=ALICE, body=b"")
        assert code_of(world.service.upload(bad, **arguments, body=never())) == "auth_body_mismatch"
        infer: dict[str, Any] = {"version": None, "expect_sha256": None, "decode": decode, "encode": encode}
        call = world.call()
        assert code_of(world.service.infer(call, name="m", **infer, body=never())) == "not_found"


# Step 2: authorise


def test_a_private_model_does_not_exist_for_others(tmp_path: Path) -> None:
    """Run, read, list, load, unload, delete: the same words as for a model that is not there."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx(), name="secret")
        for key in (BOB, None):
            told = []
            for name in ("secret", "absent"):
                calls = [
                    run(world, name=name, key=key),
                    world.service.model(world.call(key=key), name=name, version=None),
                    world.service.model(world.call(key=key), name=name, version=7),
                ]
                calls += [
                    getattr(world.service, action)(
                        world.call("POST", "/x", key=key, body=b""), name=name, version=None
                    )
                    for action in ("load", "unload", "delete")
                ]
                messages = []
                for call in calls:
                    with pytest.raises(errors.NotFound) as caught:
                        asyncio.run(call)
                    messages.append((caught.value.code, caught.value.message))
                told.append(messages)
            assert told[0] == told[1]
            assert asyncio.run(world.service.models(world.call(key=key), encode=tuple)) == ()
            assert asyncio.run(world.service.versions(world.call(key=key), name="secret")) == ()


def test_a_public_model_is_run_by_all_and_changed_by_its_owner(tmp_path: Path) -> None:
    """Everybody runs and reads it; nobody else replaces, deletes, loads or unloads it."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx(), access="public")
        for key in (BOB, None):
            assert asyncio.run(run(world, key=key)).tolist() == (2 * ROW).tolist()
            assert len(asyncio.run(world.service.models(world.call(key=key), encode=tuple))) == 1
            expected = "not_owner" if key else "auth_required"
            for action in ("load", "unload", "delete"):
                call = world.call("POST", "/x", key=key, body=b"")
                assert code_of(getattr(world.service, action)(call, name="m", version=None)) == expected
        assert code_of(lambda: upload(world, linear_onnx(), key=BOB)) == "name_taken"


def test_uploads_without_a_key_only_where_the_attested_configuration_says_so(tmp_path: Path) -> None:
    """Off by default; where it is on, what comes without a key is public."""
    with plane(tmp_path / "off") as world:
        assert code_of(lambda: upload(world, linear_onnx(), key=None, access="public")) == "auth_required"
    with plane(tmp_path / "on", anonymous_upload=True) as world:
        assert upload(world, linear_onnx(), key=None, access="public").model.owner == ""
        assert code_of(lambda: upload(world, linear_onnx(), key=None)) == "anonymous_private"
        assert asyncio.run(run(world, key=BOB)).tolist() == (2 * ROW).tolist()


# Step 3: limits


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "a\n", "x" * 129, "a%2Fb"])
def test_names_that_cannot_name_a_model(name: str) -> None:
    """Letters, digits, '.', '_', '-'; not only dots; not longer than the limit."""
    assert code_of(lambda: check_name(name, length=128)) == "model_name_invalid"


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 128, "..a", "-"])
def test_names_that_can(name: str) -> None:
    """To the last allowed character."""
    check_name(name, length=128)


def test_one_process_has_one_owners_models(tmp_path: Path) -> None:
    """`in_process`: whoever is first, until nothing of theirs is left; the settings of a server with workers do not
    say so (`plane` has several owners in one process, which no server has).
    """
    with plane(tmp_path / "a", one_owner=True) as world:
        upload(world, linear_onnx())
        upload(world, linear_onnx(), name="n")
        assert code_of(lambda: upload(world, linear_onnx(), name="o", key=BOB)) == "one_owner"
        assert [model.name for model in world.store.models()] == ["m", "n"]
    with plane(tmp_path / "b") as world:
        upload(world, linear_onnx())
        upload(world, linear_onnx(), name="n", key=BOB)


def test_quotas(tmp_path: Path) -> None:
    """Versions of one owner, versions in all, bytes in all: each refused by its code, others not affected."""
    size = len(linear_onnx())
    with plane(tmp_path / "a", limits={"models_per_owner": 1}) as world:
        upload(world, linear_onnx())
        assert code_of(lambda: upload(world, linear_onnx(), name="n")) == "owner_quota"
        upload(world, linear_onnx(), name="n", key=BOB)
    with plane(tmp_path / "b", limits={"models": 1}) as world:
        upload(world, linear_onnx())
        assert code_of(lambda: upload(world, linear_onnx(), name="n", key=BOB)) == "store_quota"
    with plane(tmp_path / "c", limits={"store_bytes": 2 * size - 1}) as world:
        upload(world, linear_onnx())
        assert code_of(lambda: upload(world, linear_onnx(), name="n")) == "store_quota"
        assert len(world.store.models()) == 1


def test_a_model_is_limited_by_what_arrives(tmp_path: Path) -> None:
    """One byte more than the limit, in however many pieces: refused, and nothing of it is left."""
    data = linear_onnx()
    with plane(tmp_path, limits={"model_bytes": len(data) - 1}) as world:
        assert code_of(lambda: upload(world, data)) == "body_too_large"
        assert world.store.models() == ()
        assert list((tmp_path / "store" / "data").iterdir()) == []
    with plane(tmp_path / "fits", limits={"model_bytes": len(data)}) as world:
        upload(world, data)


def test_a_request_body_is_limited_by_what_arrives(tmp_path: Path) -> None:
    """Size of one body, and of all bodies in flight."""
    for limit, code in (("request_bytes", "body_too_large"), ("body_bytes_in_flight", "overloaded")):
        with plane(tmp_path / limit, limits={limit: 15}) as world:
            upload(world, linear_onnx())
            assert code_of(run(world)) == code
            assert world.service._budget.held == 0


def test_a_result_is_limited(tmp_path: Path) -> None:
    """A result longer than the server sends is refused by its own code."""
    with plane(tmp_path, limits={"response_bytes": 15}) as world:
        upload(world, linear_onnx())
        assert code_of(run(world)) == "response_too_large"


def test_concurrent_requests_are_bounded_and_the_places_come_back(tmp_path: Path) -> None:
    """In all, of one caller, and uploads: each refused by its code while the places are taken."""

    async def story(world: World) -> None:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            await gate.wait()
            yield ROW.tobytes()

        def start(key: Key) -> asyncio.Future[Any]:
            return asyncio.ensure_future(
                world.service.infer(
                    world.call(key=key),
                    name="m",
                    version=None,
                    expect_sha256=None,
                    body=slow(),
                    decode=decode,
                    encode=encode,
                )
            )

        first = [start(ALICE), start(ALICE)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable) as caught:
            await run(world)
        assert caught.value.code == "caller_too_busy"
        first.append(start(BOB))
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable) as caught:
            await run(world, key=None)
        assert caught.value.code == "overloaded"
        # Evidence has a lane of its own: it is not held up, and neither are the listings.
        await world.service.evidence(world.call(), nonce=bytes(32))
        await world.service.models(world.call(), encode=tuple)
        gate.set()
        await asyncio.gather(*first)
        await run(world)

    limits = {"concurrent_requests": 3, "concurrent_requests_per_caller": 2}
    with plane(tmp_path, limits=limits) as world:
        upload(world, linear_onnx(), access="public")
        asyncio.run(story(world))


def test_concurrent_uploads_are_bounded(tmp_path: Path) -> None:
    """The next upload is refused while as many as may are under way."""

    async def story(world: World) -> None:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            await gate.wait()
            yield linear_onnx()

        def start(name: str, body: AsyncIterator[bytes]) -> Any:
            data = linear_onnx()
            call = world.call("PUT", f"/v1/models/{name}", key=ALICE, body=data)
            sha256 = hashlib.sha256(data).hexdigest()
            return world.service.upload(
                call, name=name, access="private", format="onnx", sha256=sha256, body=body
            )

        first = asyncio.ensure_future(start("a", slow()))
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable) as caught:
            await start("b", stream(linear_onnx()))
        assert caught.value.code == "uploads_busy"
        gate.set()
        await first
        await start("b", stream(linear_onnx()))

    with plane(tmp_path, limits={"concurrent_uploads": 1}) as world:
        asyncio.run(story(world))


def test_who_waits_for_a_form_keeps_no_place_of_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms are made one after the other, and take as long as a model makes them: others can upload meanwhile. What
    came with the model is gone by then.
    """

    async def story(world: World) -> None:
        gate, waiting = asyncio.Event(), asyncio.Semaphore(0)
        erased: list[bytes] = []
        erase = Arriving.erase
        monkeypatch.setattr(Arriving, "erase", lambda arriving: (erased.append(b""), erase(arriving))[1])

        async def prepare(_: ModelVersion) -> None:
            waiting.release()
            await gate.wait()

        monkeypatch.setattr(world.service._runner, "prepare", prepare)
        data, uploads = linear_onnx(), []
        for name in "abc":
            call = world.call("PUT", f"/v1/models/{name}", key=ALICE, body=data)
            sha256 = hashlib.sha256(data).hexdigest()
            one = world.service.upload(
                call, name=name, access="private", format="onnx", sha256=sha256, body=stream(data)
            )
            uploads.append(asyncio.ensure_future(one))
            await asyncio.wait_for(waiting.acquire(), 20)
        assert not any(one.done() for one in uploads) and len(erased) == 3
        gate.set()
        await asyncio.gather(*uploads)

    with plane(tmp_path, limits={"concurrent_uploads": 1}) as world:
        asyncio.run(story(world))


def test_evidence_has_a_rate_for_each_address(tmp_path: Path) -> None:
    """The address that asks too often is told to wait; another is served."""
    with plane(tmp_path, limits={"evidence_per_minute": 2}) as world:
        for _ in range(2):
            asyncio.run(world.service.evidence(world.call(), nonce=bytes(32)))
        assert code_of(world.service.evidence(world.call(), nonce=bytes(32))) == "evidence_rate"
        asyncio.run(world.service.evidence(world.call(address="192.0.2.9"), nonce=bytes(32)))


# Step 4: digest


def test_another_body_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    """The server hashes what arrived; a difference is a conflict, and nothing is kept."""
    with plane(tmp_path) as world:
        other = linear_onnx(factor=5)
        assert code_of(lambda: upload(world, linear_onnx(), claimed=other)) == "upload_digest_mismatch"
        assert world.store.models() == ()
        assert list((tmp_path / "store" / "data").iterdir()) == []
        assert upload(world, linear_onnx()).model.version == 1


def test_a_run_can_insist_on_the_models_digest(tmp_path: Path) -> None:
    """With the right digest it runs, with another nothing does."""
    with plane(tmp_path) as world:
        view = upload(world, linear_onnx())
        asyncio.run(run(world, expect=view.model.sha256))
        upload(world, linear_onnx(factor=3))
        assert code_of(run(world, expect=view.model.sha256)) == "model_digest_mismatch"
        asyncio.run(run(world, version=1, expect=view.model.sha256))


# Step 5: admit


@pytest.mark.parametrize(
    ("data", "format", "code"),
    [
        (b"", "onnx", "body_empty"),
        (b"\x80\x04\x95", "onnx", "format_not_accepted"),
        (b"no model at all, whatever it says", "onnx", "format_unknown"),
        (linear_onnx(), "xgboost-json", "format_mismatch"),
        (b'{"learner": 1}', "onnx", "format_mismatch"),
    ],
    ids=["empty", "pickle", "noise", "onnx as xgboost", "json as onnx"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, format: str, code: str) -> None:
    """Before anything of it is kept."""
    with plane(tmp_path) as world:
        assert code_of(lambda: upload(world, data, format=format)) == code
        assert world.store.models() == ()
        assert list((tmp_path / "store" / "data").iterdir()) == []


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Names, shapes and outputs are checked against the model before it runs."""

    def attempt(world: World, request: InferRequest) -> str:
        return code_of(
            world.service.infer(
                world.call(key=ALICE),
                name="m",
                version=None,
                expect_sha256=None,
                body=stream(),
                decode=lambda data, model: request,
                encode=encode,
            )
        )

    def request(name: str, shape: tuple[int, ...], outputs: tuple[str, ...] = ()) -> InferRequest:
        tensor = Tensor(name, "FP32", np.zeros(shape, np.float32))
        return InferRequest(id=None, inputs=(tensor,), outputs=outputs, parameters=())

    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        assert attempt(world, request("x", (1, 5))).startswith("input_")
        assert attempt(world, request("z", (1, 4))).startswith("input_")
        assert attempt(world, request("x", (1, 4), ("nope",))) == "output_unknown"


# Step 6: commit


def test_a_name_taken_during_an_upload_is_not_overwritten(tmp_path: Path) -> None:
    """Both began while the name was free; the first to commit has it, the other is refused."""

    async def story(world: World) -> None:
        gate = asyncio.Event()
        data = linear_onnx(note="x" * (2 << 20))

        async def slow() -> AsyncIterator[bytes]:
            yield data[: 3 << 19]
            await gate.wait()
            yield data[3 << 19 :]

        def start(key: Key, body: AsyncIterator[bytes]) -> Any:
            call = world.call("PUT", "/v1/models/m", key=key, body=data)
            sha256 = hashlib.sha256(data).hexdigest()
            return world.service.upload(
                call, name="m", access="private", format="onnx", sha256=sha256, body=body
            )

        late = asyncio.ensure_future(start(BOB, slow()))
        await asyncio.sleep(0.1)
        await start(ALICE, stream(data))
        gate.set()
        with pytest.raises((errors.AccessRefused, errors.Conflict)) as caught:
            await late
        assert caught.value.code == "name_taken"

    with plane(tmp_path) as world:
        asyncio.run(story(world))
        (model,) = world.store.models()
        assert model.owner == principal_id(ALICE.public_key())


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """The connection ends in the middle: no version, no file."""

    async def broken() -> AsyncIterator[bytes]:
        yield linear_onnx(note="x" * (3 << 20))[: 2 << 20]
        raise ConnectionError

    with plane(tmp_path) as world:
        call = world.call("PUT", "/v1/models/m", key=ALICE, body=b"x")
        sha256 = hashlib.sha256(b"x").hexdigest()
        with pytest.raises(ConnectionError):
            asyncio.run(
                world.service.upload(
                    call, name="m", access="private", format="onnx", sha256=sha256, body=broken()
                )
            )
        assert list((tmp_path / "store" / "data").iterdir()) == []
        assert world.store.models() == ()


# Loading


def test_a_cold_model_is_loaded_once_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests for a cold model read it once."""

    async def story(world: World) -> None:
        reads = []
        original = world.store.read

        def read(model: ModelVersion, **options: Any) -> bytearray:
            reads.append(model.name)
            return original(model, **options)

        monkeypatch.setattr(world.store, "read", read)
        results = await asyncio.gather(*(run(world) for _ in range(8)))
        assert all(result.tolist() == (2 * ROW).tolist() for result in results)
        assert reads == ["m"]

    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        asyncio.run(story(world))


def test_loading_a_model_does_not_hold_up_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one model is stuck on its way into memory, warm and other cold models run."""

    async def story(world: World) -> None:
        await run(world, name="warm")
        release = threading.Event()
        original = world.store.read

        def read(model: ModelVersion, **options: Any) -> bytearray:
            if model.name == "stuck":
                release.wait(30)
            return original(model, **options)

        monkeypatch.setattr(world.store, "read", read)
        waiting = [asyncio.ensure_future(run(world, name="stuck")) for _ in range(5)]
        await asyncio.sleep(0.05)
        for name in ("warm", "cold"):
            assert (await asyncio.wait_for(run(world, name=name), 20)).tolist() == (2 * ROW).tolist()
        assert not any(task.done() for task in waiting)
        release.set()
        await asyncio.gather(*waiting)

    with plane(tmp_path) as world:
        for name in ("warm", "cold", "stuck"):
            upload(world, linear_onnx(), name=name)
        asyncio.run(story(world))


def test_a_stored_model_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its canonical form is what lies in the store, so that loading it holds nobody up."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("admitted again")

    with plane(tmp_path) as world:
        upload(world, linear_onnx(note="dropped by admission"))
        upload(world, xgboost_json(), name="trees", format="xgboost-json")
        for model in world.store.models():
            data = world.store.read(model, verify="sha256")
            assert hashlib.sha256(data).hexdigest() == model.canonical_sha256 != model.sha256
        monkeypatch.setattr(models, "admit", never)
        assert asyncio.run(run(world)).tolist() == (2 * ROW).tolist()
        asyncio.run(world.service._runner.load(world.store.get("trees", 1)))


def test_large_models_are_loaded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes several times a model's size in memory; small ones do not wait for it."""
    loading, most = [], []

    async def story(world: World) -> None:
        original = world.store.read

        def read(model: ModelVersion, **options: Any) -> bytearray:
            loading.append(model.name)
            most.append(len(loading))
            time.sleep(0.02)
            loading.remove(model.name)
            return original(model, **options)

        monkeypatch.setattr(world.store, "read", read)
        await asyncio.gather(*(world.service._runner.load(model) for model in world.store.models()))

    with plane(tmp_path) as world:
        for name in ("a", "b", "c"):
            upload(world, linear_onnx(), name=name)
        monkeypatch.setattr("strongroom.runner.LARGE", 1)
        asyncio.run(story(world))
        assert most == [1, 1, 1]


def test_a_damaged_model_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A flipped byte in a sealed file: that model is refused with the store's code, others run."""
    with plane(tmp_path) as world:
        upload(world, linear_onnx())
        (file,) = (tmp_path / "store" / "data").iterdir()
        upload(world, linear_onnx(), name="whole")
        sealed = bytearray(file.read_bytes())
        sealed[-1] ^= 1
        file.write_bytes(sealed)
        with pytest.raises(SealRefused, match="model m version 1: chunk 0 of 1 "):
            asyncio.run(run(world))
        assert asyncio.run(run(world, name="whole")).tolist() == (2 * ROW).tolist()


def test_the_whole_digest_is_checked_on_load_where_that_is_configured(tmp_path: Path) -> None:
    """`verify_on_load = "sha256"` is handed to the store."""
    with plane(tmp_path, verify_on_load="sha256") as world:
        seen = []
        original = world.store.read
        world.store.read = lambda model, verify: (seen.append(verify), original(model, verify=verify))[1]  # type: ignore[method-assign]
        upload(world, linear_onnx())
        asyncio.run(run(world))
        assert seen == ["sha256"]


# Preloaded models


def preloaded(data: bytes, *, name: str = "shipped") -> Preloaded:
    """A model that is part of the server."""
    admitted = models.admit(data, format="onnx", limits=STANDARD_LIMITS)
    model = ModelVersion(
        name=name,
        version=1,
        owner="",
        access="public",
        format="onnx",
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        size=len(data),
        created=0,
        info=admitted.info,
    )
    return Preloaded(model=model, read=lambda: data)


def test_a_preloaded_model_is_run_by_all_and_changed_by_nobody(tmp_path: Path) -> None:
    """It is listed first, runs without a key, and its name cannot be taken."""
    with plane(tmp_path, preloaded=(preloaded(linear_onnx()),), anonymous_upload=True) as world:
        upload(world, linear_onnx())
        views = asyncio.run(world.service.models(world.call(key=ALICE), encode=tuple))
        assert [view.model.name for view in views] == ["shipped", "m"]
        assert asyncio.run(run(world, name="shipped", key=None)).tolist() == (2 * ROW).tolist()
        assert asyncio.run(run(world, name="shipped", version=1, key=None)).tolist() == (2 * ROW).tolist()
        assert asyncio.run(world.service.versions(world.call(), name="shipped")) == (1,)
        assert code_of(run(world, name="shipped", version=2)) == "not_found"
        for key in (ALICE, None):
            attempt = code_of(
                lambda key=key: upload(world, linear_onnx(), name="shipped", key=key, access="public")
            )
            assert attempt == "model_reserved"
            for action in ("load", "unload", "delete"):
                call = world.call("POST", "/x", key=key, body=b"")
                code = code_of(getattr(world.service, action)(call, name="shipped", version=None))
                assert code == "model_reserved"


# The seed's model


def test_predict_means_the_callers_last_upload(tmp_path: Path) -> None:
    """Through /model/upload: the caller's own before the public one; after a restart the newest."""

    def seed(world: World, name: str, key: Key) -> None:
        data = xgboost_json()
        call = world.call("POST", "/model/upload", key=key, body=data)
        sha256 = hashlib.sha256(data).hexdigest() if key else None
        asyncio.run(world.service.upload_seed(call, name=name, sha256=sha256, body=stream(data)))

    def meant(world: World, key: Key) -> str:
        who = world.service._authenticate(world.call(key=key))
        return world.service._seed_name(who)

    with plane(tmp_path, anonymous_upload=True) as world:
        assert meant(world, None) == "iris-classifier"
        seed(world, "first", None)
        seed(world, "second", None)
        seed(world, "first", None)
        assert (meant(world, None), meant(world, ALICE)) == ("first", "first")
        seed(world, "mine", ALICE)
        assert (meant(world, None), meant(world, ALICE), meant(world, BOB)) == ("first", "mine", "first")
    with plane(tmp_path, anonymous_upload=True) as world:
        assert (meant(world, None), meant(world, ALICE)) == ("first", "mine")


def test_an_upload_with_a_key_states_its_digest(tmp_path: Path) -> None:
    """Without it the token could not be bound to the body."""
    with plane(tmp_path, anonymous_upload=True) as world:
        call = world.call("POST", "/model/upload", key=ALICE, body=b"x")
        attempt = world.service.upload_seed(call, name="a", sha256=None, body=stream(b"x"))
        assert code_of(attempt) == "digest_required"


def test_models_with_several_inputs_run(tmp_path: Path) -> None:
    """Inputs go in by name; the symbolic size must agree."""

    def attempt(world: World, a: int, b: int) -> Any:
        tensors = tuple(
            Tensor(name, "FP32", np.ones(size, np.float32)) for name, size in (("a", a), ("b", b))
        )
        request = InferRequest(id="7", inputs=tensors, outputs=(), parameters=())
        return world.service.infer(
            world.call(key=ALICE),
            name="m",
            version=None,
            expect_sha256=None,
            body=stream(),
            decode=lambda data, model: request,
            encode=lambda response: f"{response.id} {response.outputs[0].array.tolist()}".encode(),
        )

    with plane(tmp_path) as world:
        upload(world, two_inputs_onnx())
        assert asyncio.run(attempt(world, 2, 2))[1] == b"7 [2.0, 2.0]"
        assert code_of(attempt(world, 2, 3)).startswith("input_")
