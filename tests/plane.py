"""A data plane in this process, over a real store in a temporary folder: for tests of `service` and `rest`.

with plane(tmp_path) as world:
    response = asyncio.run(world.request("GET", "/health"))
"""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from strongroom.anchor import UNANCHORED
from strongroom.attester import SimulatedAttester, root_digest
from strongroom.attesters import Machine, no_activation
from strongroom.boot import security_configuration
from strongroom.config import Config, Limits, Security
from strongroom.engine import Engine, InProcess
from strongroom.epochs import Epochs, Origin
from strongroom.jobs import Host
from strongroom.models import admit, calibration
from strongroom.models.info import AdmissionLimits, Admitted
from strongroom.models.precision import measure, rewrite
from strongroom.npy import decode_npz
from strongroom.observer import Observer
from strongroom.platforms import PLATFORMS
from strongroom.preparation import Prepared, Waiting, check_network, prepared
from strongroom.reduction import CALIBRATION, Reduction, encode_ranges, parse_ranges
from strongroom.rest import Rest
from strongroom.runner import Preloaded
from strongroom.server import _service, _wire_limits
from strongroom.service import Call, Service
from strongroom.store import Store
from strongroom.tokens import Action, issue_token

MEASUREMENT = "ab" * 32
ROOT_KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
ALICE = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
BOB = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)


@dataclass
class World:
    """One server's inside, without its listener."""

    service: Service
    store: Store
    epochs: Epochs
    rest: Rest
    settings: Config
    serial: int = field(default=0)

    def token(
        self, key: Ed25519PrivateKey, *, method: str = "", path: str = "", body: bytes | None = None
    ) -> str:
        """A token of `key`; bound to a changing call where `body` is given."""
        action = Action(method, path, hashlib.sha256(body).hexdigest()) if body is not None else None
        return issue_token(
            key,
            keyset_digest=self.epochs.current.keyset_digest,
            nonce=self.service.nonces.issue(),
            now=int(time.time()),
            action=action,
        )

    def call(
        self,
        method: str = "GET",
        target: str = "/",
        *,
        key: Ed25519PrivateKey | None = None,
        body: bytes | None = None,
        address: str = "192.0.2.1",
    ) -> Call:
        """What a front end would hand over."""
        token = None if key is None else self.token(key, method=method, path=target, body=body)
        return Call(method=method, target=target, token=token, address=address, epoch=self.epochs.current)

    async def request(
        self,
        method: str,
        path: str,
        *,
        key: Ed25519PrivateKey | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        changes: bool | None = None,
        **more: Any,
    ) -> httpx.Response:
        """One HTTP request, with a fitting token where `key` is given."""
        fields = dict(headers or {})
        changing = changes if changes is not None else method in ("PUT", "DELETE") or path.endswith("load")
        if key is not None:
            token = self.token(key, method=method, path=path, body=body if changing else None)
            fields.setdefault("Authorization", f"Bearer {token}")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.rest, client=("192.0.2.1", 5)), base_url="https://server"
        ) as client:
            return await client.request(method, path, content=body, headers=fields, **more)

    async def put(
        self, name: str, data: bytes, *, format: str, key: Ed25519PrivateKey | None = ALICE, **headers: str
    ) -> httpx.Response:
        """Uploads a model; keyword `strongroom_access` and the like become headers."""
        fields = {"Content-Digest": content_digest(data), "Strongroom-Format": format}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("PUT", f"/v1/models/{name}", key=key, body=data, headers=fields)


@contextmanager
def plane(
    folder: Path,
    *,
    limits: Mapping[str, int] | None = None,
    anonymous_upload: bool = False,
    verify_on_load: str = "tags",
    preloaded: tuple[Preloaded, ...] = (),
    host: Host | None = None,
    one_owner: bool = False,
) -> Iterator[World]:
    """A world over the store in `folder`; the same folder again means the same store. `one_owner`: as a server that
    runs models in one process is; else several owners share this one, as they share a server with workers.
    """
    settings = Config(
        platform="simulated",
        state_dir=str(folder),
        limits=replace(Limits(), **(limits or {})),
        security=Security(
            anonymous_upload=anonymous_upload, verify_on_load=verify_on_load, isolation="in_process"
        ),
    )
    attester = SimulatedAttester(ROOT_KEY, MEASUREMENT)
    security = security_configuration(settings)
    store = Store.open(
        folder / "store",
        root=attester.sealing_root(),
        security_digest=security.digest(),
        anchor=UNANCHORED,
        now=lambda: int(time.time()),
    )
    origin = Origin(
        attester=attester,
        roots=(root_digest(ROOT_KEY),),
        security=security,
        store_id=store.store_id,
        hosts=("localhost",),
        lifetime_s=3600,
    )
    epochs = Epochs(origin, now=lambda: datetime.now(UTC))
    here = Machine(
        platform=PLATFORMS["simulated"],
        attester=attester,
        roots=origin.roots,
        says=(),
        anchor=UNANCHORED,
        activate=no_activation,
        close=lambda: None,
        confirm=lambda: None,
    )
    service = _service(
        settings,
        store,
        here,
        preloaded,
        admit=admit,
        prepare=prepare_here,
        host=host or InProcess(Engine()),
        forms=None,
    )
    quotas = service._quotas
    quotas._limits = replace(quotas._limits, one_owner=quotas._limits.one_owner and one_owner)
    rest = Rest(
        service,
        wire=_wire_limits(settings),
        epoch_of=lambda scope: epochs.current,
        current_epoch=lambda: epochs.current,
    )
    try:
        yield World(service, store, epochs, rest, settings)
    finally:
        service.close()
        store.close()


WAITING = Waiting()
"""Whoever asked is there until the end."""


def prepare_here(
    admitted: Admitted,
    *,
    asked: Reduction,
    part: bytes | bytearray,
    limits: AdmissionLimits,
    waiting: Waiting = WAITING,
) -> Prepared:
    """`preparation.Preparer.prepare` without its processes: the same functions in the same order."""
    check_network(admitted)
    ranges = bytes(part)
    if asked.part is not None and asked.part.kind == CALIBRATION:
        arrays = decode_npz(part, limits=calibration.LIMITS)
        examples = calibration.requests_of(admitted.info, arrays, what="the calibration set")
        found = measure(admitted, options=asked.options, examples=examples, run=Observer(Engine(), limits))
        ranges = encode_ranges(found, model=admitted.canonical_sha256)
    read = parse_ranges(ranges, model=admitted.canonical_sha256) if ranges else None
    made = rewrite(admitted, options=asked.options, ranges=read)
    return prepared(
        admitted,
        admit(made.data, format="onnx", limits=limits),
        asked=asked,
        counts=(made.rewritten, made.left),
        ranges=ranges,
        limits=limits,
    )


def content_digest(data: bytes) -> str:
    """The Content-Digest field of a body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body in these chunks."""
    for chunk in chunks:
        yield chunk


def linear_onnx(*, factor: float = 2.0, note: str = "") -> bytes:
    """y = factor * x, for a FP32 matrix of any number of rows with 4 columns."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])
    z = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows", 1])
    constant = numpy_helper.from_array(np.array([factor], np.float32), "factor")
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axes"], ["sum"], keepdims=1),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = helper.make_graph(nodes, "linear", [x], [y, z], [constant, axes], doc_string=note)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def two_inputs_onnx() -> bytes:
    """sum = a + b, for FP32 vectors of the same length, and a BYTES echo."""
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"])
    b = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["total"])], "add", [a, b], [total])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@functools.cache
def xgboost_json() -> bytes:
    """A small three-class classifier of four columns, trained here."""
    import xgboost

    rng = np.random.default_rng(7)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5).astype(int)
    options = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1, "seed": 1}
    booster = xgboost.train(options, xgboost.DMatrix(x, y), 3)
    return bytes(booster.save_raw("json"))
