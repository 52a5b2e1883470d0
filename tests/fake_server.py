"""A server small enough to misbehave: real TLS, real simulated evidence, real tokens, and any answer a test
wants.

It stands in for the real server where a test plays the attacker: it can show another certificate, relay or
replay evidence, answer with anything, count every byte it was given, restart and rotate its keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom import ratls, tokens
from strongroom.attest import sim
from strongroom.attest.batch import Single, Tree, batch_report_data, leaf_hash
from strongroom.attest.evidence import Evidence, EvidenceAnswer, encode_answer, report_data
from strongroom.attest.keyset import Key, Keyset, SecurityConfiguration, encode_keyset, keyset_digest
from strongroom.attest.policy import policy_for_measurement
from strongroom.errors import AccessRefused

MEASUREMENT = "ab" * 32
READING = (
    threading.Lock()
)  # numpy reads headers with `ast`, which Python 3.11 gets wrong in two threads at once
ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
SECURITY = SecurityConfiguration(
    sealing="simulated",
    host_excluded=False,
    isolation="in_process",
    sandbox=(),
    admission="structural",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)


def lasting_port() -> int:
    """A free port for a server that goes and comes back: below those that systems give to whoever asks for any, so
    that no other test has it meanwhile.
    """
    while True:
        port = secrets.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def policy_text(*, measurement: str = MEASUREMENT) -> str:
    """A policy that accepts the servers of this file."""
    root = sim.root_digest(ROOT.public_key())
    return policy_for_measurement(measurement, root=root, now=datetime.now(UTC))


@dataclass
class Got:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.split("?")[0]


Script = Callable[["FakeServer", Got, ssl.SSLSocket], bool]
"""Answers a request itself and returns True, or leaves it to the server and returns False."""


@dataclass
class Stored:
    """One model version."""

    data: bytes
    info: dict[str, Any]


@dataclass
class FakeServer:
    """See the module. `script` sees every request first."""

    port: int = 0
    measurement: str = MEASUREMENT
    security: SecurityConfiguration = SECURITY
    root: Ed25519PrivateKey = ROOT
    script: Script | None = None
    says_precision: bool = True
    context: ssl.SSLContext | None = None
    models: dict[str, list[Stored]] = field(default_factory=dict)
    requests: list[Got] = field(default_factory=list)
    application_bytes: int = 0
    handshakes: int = 0
    failed_handshakes: int = 0
    nonce_shift: float = 0.0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.live: set[ssl.SSLSocket] = set()
        self.stopped = False
        self.rotate()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # -- identity

    @property
    def evidence_format(self) -> str:
        """The format of what `evidence` gives."""
        return "sim"

    def rotate(self) -> None:
        """A new epoch: new key, new keyset, new nonces; open connections go on under the old one."""
        now = datetime.now(UTC)
        identity = ratls.new_server_identity(
            hosts=("127.0.0.1",),
            evidence_format=self.evidence_format,
            evidence=lambda data: self.evidence(data),
            now=now,
            lifetime_s=3600,
        )
        receipt = Ed25519PrivateKey.generate().public_key()
        keyset = Keyset(
            keys=(
                Key(role="tls", algorithm="ECDSA-P256", spki=identity.spki),
                Key(
                    role="receipt",
                    algorithm="Ed25519",
                    spki=receipt.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
                ),
            ),
            not_after=int(now.timestamp()) + 12 * 3600,
            store_id="5" * 32,
            binding="spki",
            security=self.security,
        )
        self.keyset = keyset
        self.keyset_bytes = encode_keyset(keyset)
        self.identity = identity
        self.nonces = tokens.NonceBook(clock=lambda: time.monotonic() + self.nonce_shift, random=os.urandom)
        self.server_context = self.context or ratls.server_context(identity)

    def evidence(self, data: bytes) -> Evidence:
        made = sim.issue(
            root_key=self.root, measurement=self.measurement, svn=1, report_data=data, now=datetime.now(UTC)
        )
        return Evidence("sim", made, ())

    def answer_for(self, nonce: bytes) -> bytes:
        """The honest answer to a question for evidence."""
        data = report_data(nonce=nonce, keyset_bytes=self.keyset_bytes)
        return encode_answer(EvidenceAnswer(self.evidence(data), self.keyset_bytes, Single()))

    def batch_for(self, *nonces: bytes, place: int) -> bytes:
        """The honest answer to the nonce at `place` of those that one quote answers."""
        leaves = tuple(leaf_hash(nonce=one, keyset_bytes=self.keyset_bytes) for one in nonces)
        tree = Tree(leaves)
        evidence = self.evidence(batch_report_data(root=tree.root))
        return encode_answer(EvidenceAnswer(evidence, self.keyset_bytes, tree.inclusion(place)))

    # -- connections

    def _accept(self) -> None:
        while not self.stopped:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw, self.server_context), daemon=True).start()

    def _serve(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        raw.settimeout(20)
        try:
            connection = context.wrap_socket(raw, server_side=True)
        except (OSError, ValueError):
            with self.lock:
                self.failed_handshakes += 1
            raw.close()
            return
        with self.lock:
            self.handshakes += 1
            self.live.add(connection)
        epoch = (self.keyset_bytes, self.nonces)
        try:
            with connection:
                reader = connection.makefile("rb")
                while (got := self._read(reader)) is not None:
                    if not self._answer(got, connection, epoch):
                        return
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.live.discard(connection)
            connection.close()

    def _read(self, reader: Any) -> Got | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return None
            head += line
            with self.lock:
                self.application_bytes += len(line)
        lines = head.decode().split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:] if x)}
        body = reader.read(int(headers.get("content-length", "0")))
        with self.lock:
            self.application_bytes += len(body)
        return Got(method, target, headers, body)

    def _answer(self, got: Got, connection: ssl.SSLSocket, epoch: tuple[bytes, tokens.NonceBook]) -> bool:
        with self.lock:
            self.requests.append(got)
        if self.script is not None and self.script(self, got, connection):
            return True
        try:
            status, headers, body = self._route(got, epoch)
        except AccessRefused as exc:
            status, headers, body = 401, {}, problem(401, exc.code)
        send(connection, status, body, {**headers, "Strongroom-Nonce": epoch[1].issue()})
        return True

    # -- routes

    def _route(self, got: Got, epoch: tuple[bytes, tokens.NonceBook]) -> tuple[int, dict[str, str], bytes]:
        if got.path == "/v1/evidence":
            nonce = re.fullmatch(r"nonce=([0-9a-f]{64})", got.target.partition("?")[2])
            return 200, {}, self.answer_for(bytes.fromhex(nonce[1])) if nonce else b"{}"
        if got.path == "/v2/health/live":
            return 200, {}, b'{"live":true}'
        principal = self._principal(got, epoch)
        if got.path == "/v1/models":
            every = [m.info for versions in self.models.values() for m in versions]
            return 200, {}, json.dumps({"models": every}).encode()
        match = re.fullmatch(r"/v[12]/models/([^/]+)(?:/versions/(\d+))?(?:/(load|unload|infer))?", got.path)
        if match is None:
            return 404, {}, problem(404, "not_found")
        name, version, action = match.groups()
        if got.method == "PUT":
            return self._upload(got, name, principal)
        versions = self.models.get(name, [])
        chosen = [m for m in versions if version in (None, m.info["version"])]
        if not chosen:
            return 404, {}, problem(404, "not_found")
        if action == "infer":
            return self._infer(got, chosen[-1])
        if got.method == "DELETE":
            gone = [{"name": name, "version": m.info["version"]} for m in chosen]
            self.models[name] = [m for m in versions if m not in chosen]
            return 200, {}, json.dumps({"deleted": gone, "erasure": "not_against_host_copies"}).encode()
        if action:
            chosen[-1].info["loaded"] = action == "load"
        return 200, {}, json.dumps(chosen[-1].info).encode()

    def _principal(self, got: Got, epoch: tuple[bytes, tokens.NonceBook]) -> str:
        changes = got.method in {"PUT", "DELETE"} or got.path.endswith("load")
        value = got.headers.get("authorization", "")
        if not value:
            if changes:
                raise AccessRefused("a key is needed", code="auth_required")
            return ""
        action = (
            tokens.Action(got.method, got.target, hashlib.sha256(got.body).hexdigest()) if changes else None
        )
        return tokens.check_token(
            value.removeprefix("Bearer "),
            keyset_digest=keyset_digest(epoch[0]),
            nonces=epoch[1],
            now=int(time.time()),
            action=action,
        ).id

    def _upload(self, got: Got, name: str, principal: str) -> tuple[int, dict[str, str], bytes]:
        versions = self.models.setdefault(name, [])
        info = metadata(name, got.body, version=str(len(versions) + 1), owner=principal)
        info["format"], info["access"] = got.headers["strongroom-format"], got.headers["strongroom-access"]
        versions.append(Stored(got.body, info))
        return 201, {}, json.dumps(info).encode()

    def _infer(self, got: Got, model: Stored) -> tuple[int, dict[str, str], bytes]:
        """Outputs: `y` = 2x (the primary one), `z` = -x, `words` = the text of each number's sign."""
        sha = model.info["sha256"]
        headers = {"Strongroom-Model-SHA256": sha, "Strongroom-Model-Version": model.info["version"]}
        if self.says_precision:
            headers["Strongroom-Precision"] = model.info["precision"]["name"]
        if got.headers.get("strongroom-model-digest", sha) != sha:
            return 409, headers, problem(409, "model_digest_mismatch")
        if got.headers["content-type"] == "application/json":
            return self._infer_json(got, headers)
        with READING:
            x = np.load(io.BytesIO(got.body))
            x = x if got.headers["content-type"] == "application/x-npy" else x["x"]
        results = {"y": x * 2, "z": -x}
        asked = re.findall(r"output=(\w+)", got.target)
        sink = io.BytesIO()
        if got.headers["accept"] == "application/x-npy":
            np.save(sink, results[asked[0]])
        else:
            np.savez(sink, **{name: results[name] for name in asked})
        return 200, {**headers, "Content-Type": got.headers["accept"]}, sink.getvalue()

    def _infer_json(self, got: Got, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        request = json.loads(got.body)
        shape = request["inputs"][0]["shape"]
        data = np.asarray(request["inputs"][0]["data"]).reshape(shape)
        results: dict[str, tuple[str, list[Any]]] = {
            "y": ("FP32", (data * 2).ravel().tolist()),
            "z": ("FP32", (-data).ravel().tolist()),
            "words": ("BYTES", [["minus", "plus"][int(v >= 0)] for v in data.ravel()]),
        }
        asked = [o["name"] for o in request.get("outputs", [{"name": "y"}])]
        outputs = [
            {"name": n, "datatype": results[n][0], "shape": shape, "data": results[n][1]} for n in asked
        ]
        body = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()
        return 200, {**headers, "Content-Type": "application/json"}, body

    # -- ends

    def drop_connections(self) -> None:
        """Ends every open connection."""
        with self.lock:
            live = list(self.live)
        for connection in live:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        self.stopped = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop_connections()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def paths(self) -> list[str]:
        """Paths of the requests so far, in order."""
        return [got.path for got in self.requests]


def metadata(name: str, data: bytes, *, version: str = "1", owner: str = "") -> dict[str, Any]:
    """A model's JSON form; the model is `_infer`'s."""
    digest = hashlib.sha256(data).hexdigest()
    return {
        "name": name, "version": version, "format": "onnx", "sha256": digest, "canonical_sha256": digest,
        "size": len(data), "owner": owner, "access": "public", "created": 1_700_000_000, "loaded": False,
        "erasure": "not_against_host_copies", "feature_names": [], "notes": {}, "simulated": True,
        "threads": 1, "stages": 1, "cpu": "x86-64-v3", "engine": "onnxruntime/1",
        "precision": {"name": "fp32", "narrow": {}, "made": None},
        "primary_output": "y",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "z", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [-1, 2]},
        ],
    }  # fmt: skip


def stored(name: str, data: bytes = b"model bytes", **more: Any) -> list[Stored]:
    """A model for `FakeServer(models={name: stored(name)})`."""
    return [Stored(data, {**metadata(name, data), **more})]


def problem(status: int, code: str, detail: str = "the server's words") -> bytes:
    """A problem document."""
    return json.dumps(
        {"type": "about:blank", "title": "t", "status": status, "detail": detail, "code": code}
    ).encode()


def send(
    connection: ssl.SSLSocket,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    sized: bool = True,
) -> None:
    """Writes one answer."""
    lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    lines += [f"Content-Length: {len(body)}"] if sized else []
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


class Balancer:
    """A layer-4 balancer: each new TCP connection goes to the next port of `ports`."""

    def __init__(self, ports: list[int]) -> None:
        self.turn = cycle(ports)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", next(self.turn)))
            except OSError:
                return
            self.pairs += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Ends every open connection."""
        pairs, self.pairs = self.pairs, []
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop()
