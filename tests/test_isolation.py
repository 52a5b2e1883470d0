"""Nothing of one data owner reaches another: not the answers, not the memory of any process; and no key is in them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import single_nodes
from onnx import TensorProto, helper, numpy_helper
from plane import ALICE, BOB, linear_onnx, plane

from strongroom import epochs, store
from strongroom.engine import Engine, InProcess
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit
from strongroom.models.info import _TOKEN, STANDARD_LIMITS, Admitted
from strongroom.planned import FEWEST
from strongroom.processes import WorkerLimits
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: workers are Linux's"),
]
LIMITS = WorkerLimits(
    processes=32,
    run_bytes=1 << 30,
    run_longest_s=60,
    input_bytes=4 << 20,
    response_bytes=4 << 20,
    idle_bytes=64 << 20,
    elements=1 << 16,
)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote, executed before there is any secret in this process."""
    launch = Launch(
        paths=dependency_folders("simulated"),
        environment=CHILD,
        folder=Path("/"),
        measured=None,
        flags=("-I", "-S"),
        workers=True,
    )
    with Nursery(launch) as made:
        held = made.wait()
        if not set(FEWEST) <= set(held):
            pytest.skip(f"not exercised here: of the sandbox only {', '.join(held)} can be had")
        yield made


def workers(nursery: Nursery, isolation: str) -> Workers:
    """All processes of a server."""
    return Workers(nursery, isolation=isolation, layers=FEWEST, limits=LIMITS)


def source(admitted: Admitted) -> Source:
    """Where a host has it from."""
    return Source(
        info=admitted.info,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        read=lambda: admitted.onnx,
    )


# Answers


@pytest.mark.parametrize("isolation", ["in_process", "model", "owner", "request"])
def test_no_operator_gives_one_owners_input_to_another(nursery: Nursery, isolation: str) -> None:
    """Every operator that is admitted, after a run of another owner: bit for bit what a session says that saw nothing
    else, and none of the words of the other's input.
    """
    host: Any = InProcess(Engine()) if isolation == "in_process" else workers(nursery, isolation)
    rng = np.random.default_rng(7)
    covered: set[str] = set()
    for names, data in single_nodes.packs():
        admitted = admit(data, format="onnx", limits=STANDARD_LIMITS)
        fresh = Engine().load(admitted).run(single_nodes.feed(admitted.info, None), outputs=())
        model = host.load(source(admitted))
        try:
            canary = single_nodes.feed(admitted.info, rng)
            model.run(canary, outputs=(), job=Job(caller="a", seconds=60))
            got = model.run(
                single_nodes.feed(admitted.info, None), outputs=(), job=Job(caller="b", seconds=60)
            )
        finally:
            model.close()
        for name, expected in fresh.items():
            assert got[name].dtype == expected.dtype and got[name].shape == expected.shape, name
            assert got[name].tobytes() == expected.tobytes() or got[name].dtype == object, name
            if got[name].dtype == object:
                assert got[name].tolist() == expected.tolist(), name
        said = b"".join(a.tobytes() for a in got.values() if a.dtype != object)
        said += b"".join(t for a in got.values() if a.dtype == object for t in a.reshape(-1).tolist())
        words = {w for a in canary.values() for w in _words(a)}
        assert not [word for word in words if word in said]
        covered |= set(names)
    assert covered == set(single_nodes.every())


def test_the_documents_say_how_many_operators_the_leak_test_runs() -> None:
    """All that admission knows, but for those of which it is said why they run nowhere."""
    runs, left = len(single_nodes.every()), single_nodes.NOT_RUN
    assert None not in single_nodes.every().values()
    assert {"If", "Loop", "Scan"} <= single_nodes.every().keys()
    text = Path(__file__).parents[1].joinpath("docs", "sandbox.md").read_text()
    assert f"the {runs} operators of the {runs + len(left)} that admission knows" in text
    assert all(f"`{name}`: {why}" in text for name, why in left.items())


def _words(array: Any) -> Iterator[bytes]:
    """The parts of an input that would show: strings, and numbers of four bytes and more."""
    if array.dtype == object:
        yield from array.reshape(-1).tolist()
    elif array.dtype.itemsize >= 4 and array.dtype.kind == "f":
        yield from (value.tobytes() for value in array.reshape(-1))


def leaky() -> Admitted:
    """A model that admission refuses: its output is left as the memory was (docs/spec/admission.md §4.5). Under the
    facts of one that it admits, to see what isolation alone does.
    """

    def build(saturate: int | None) -> bytes:
        more = {} if saturate is None else {"saturate": saturate}
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["q"], ["r"], to=TensorProto.FLOAT, **more),
                helper.make_node("Mul", ["x", "two"], ["z"]),
                helper.make_node("Add", ["z", "two"], ["y"]),
            ],
            "leak",
            [
                helper.make_tensor_value_info("q", TensorProto.INT32, [4096]),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096]),
            ],
            [
                helper.make_tensor_value_info("r", TensorProto.FLOAT, [4096]),
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096]),
            ],
            [numpy_helper.from_array(np.array([2], np.float32), "two")],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return bytes(made.SerializeToString())

    import hashlib

    innocent = admit(build(None), format="onnx", limits=STANDARD_LIMITS)
    onnx = build(4)
    digest = hashlib.sha256(onnx).hexdigest()
    return Admitted(info=innocent.info, onnx=onnx, sha256=digest, canonical_sha256=digest, token=_TOKEN)


@pytest.mark.parametrize("isolation", ["owner", "request"])
def test_a_model_that_leaks_has_nothing_to_leak(nursery: Nursery, isolation: str) -> None:
    """What another owner's run left is in another process; what the template left is nobody's, and overwritten."""
    model = workers(nursery, isolation).load(source(leaky()))
    secret = np.random.default_rng(3).uniform(1000, 2000, 4096).astype(np.float32)
    zeros = {"q": np.zeros(4096, np.int32), "x": np.zeros(4096, np.float32)}
    made = [secret, secret * 2, secret * 2 + 2]  # the input, and what the model makes of it
    seen = {array[i : i + 1].tobytes() for array in made for i in range(4096)}
    try:
        for _ in range(3):
            job = Job(caller="a", seconds=60)
            model.run({"q": np.full(4096, 7, np.int32), "x": secret}, outputs=("y",), job=job)
            caller = "b" if isolation == "owner" else "a"
            got = model.run(zeros, outputs=("r",), job=Job(caller=caller, seconds=60))["r"]
            assert got.any()  # it was left as it was: a cast of zeros is zeros
            assert not seen & {got[i : i + 1].tobytes() for i in range(4096)}
    finally:
        model.close()


# Memory


def memory_holds(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """Which of these byte strings lie in a process's memory, shared mappings included."""
    found: set[str] = set()
    maps = Path(f"/proc/{pid}/maps").read_text()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end, rights in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (\S+)", maps, re.MULTILINE):
            if not rights.startswith("rw"):  # the rest is code and constants of files
                continue
            at, last, tail = int(start, 16), int(end, 16), b""
            while at < last:
                try:
                    memory.seek(at)
                    piece = memory.read(min(8 << 20, last - at))
                except (OSError, ValueError, OverflowError):  # the kernel's own pages
                    break
                if not piece:
                    break
                found |= {name for name, value in wanted.items() if value in tail + piece}
                tail, at = piece[-64:], at + len(piece)
            if len(found) == len(wanted):
                break
    return found


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="not exercised here: only root may look"
)
def test_no_process_has_a_key_or_another_owners_data(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS scalar, receipt seed, data key, sealing keys and Alice's input: in the server, and neither in the zygote nor
    in the template nor in a spare worker nor in Bob's.
    """
    secrets: dict[str, bytes] = {}
    identity, wrap = epochs.new_server_identity, store.wrap_key

    def remembered(**given: Any) -> Any:
        made = identity(**given)
        scalar = made.key.private_numbers().private_value.to_bytes(32, "big")
        secrets.update({"tls": scalar, "tls, as OpenSSL has it": scalar[::-1]})
        return made

    def wrapped(kek: bytes, data_key: bytes, **given: Any) -> Any:
        secrets.update({"data key": bytes(data_key), "key of an owner": bytes(kek)})
        return wrap(kek, data_key, **given)

    monkeypatch.setattr(epochs, "new_server_identity", remembered)
    monkeypatch.setattr(store, "wrap_key", wrapped)
    host = workers(nursery, "owner")
    rows = np.random.default_rng(1).uniform(1, 2, (64, 4)).astype(np.float32)

    async def story(world: Any) -> None:
        assert (
            await world.put("m", linear_onnx(), format="onnx", strongroom_access="public")
        ).status_code == 201
        for key, values in ((ALICE, rows), (BOB, np.ones((64, 4), np.float32))):
            tensor = {"name": "x", "shape": [64, 4], "datatype": "FP32", "data": values.reshape(-1).tolist()}
            done = await world.request(
                "POST", "/v2/models/m/infer", key=key, body=_json({"inputs": [tensor]})
            )
            assert done.status_code == 200

    with plane(tmp_path, host=host) as world:
        secrets["receipt seed"] = world.epochs.current.receipt_key.private_bytes_raw()
        asyncio.run(story(world))
        canary = {"input": rows.tobytes()[:32], "more input": rows.tobytes()[512:544]}
        result = {"result": (rows * 2).tobytes()[:32]}
        wanted = {**secrets, **canary, **result}
        assert memory_holds(os.getpid(), secrets) == set(secrets)  # what looks, finds
        kept = {owner[1]: one.pid for one, owner in host._idle.items() if isinstance(owner[1], str)}
        others = [one for one, owner in host._idle.items() if not isinstance(owner[1], str)]
        (model,) = {owner[0] for owner in host._idle.values()}
        assert model._template is not None and len(kept) == 2 and others
        spare = [one.pid for one in others if one.pid or (model._settle(one) and one.pid)]
        bobs = next(pid for owner, pid in kept.items() if owner == world_id(BOB))
        for pid in (nursery.pid, model._template.pid, bobs, *spare):
            assert memory_holds(pid, wanted) == set(), pid
        alices = next(pid for owner, pid in kept.items() if owner == world_id(ALICE))
        assert not memory_holds(alices, wanted) & set(secrets)


def world_id(key: Any) -> str:
    """The principal of a key."""
    from strongroom.tokens import principal_id

    return principal_id(key.public_key())


def _json(document: object) -> bytes:
    import json

    return json.dumps(document).encode()
