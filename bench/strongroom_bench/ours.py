"""Our own server, started as users start it (`strongroom serve` with a configuration, simulated TEE), behind our own
client. With `--target` a server that is there already, on whatever platform it runs.

Rules
  - Nothing is switched off: attested TLS 1.3, tokens signed by a key, validation, the server's default isolation unless
    another is asked for. What the configuration says beyond the defaults is in the result.
  - The isolation that is reported is the one that the server's evidence states, not the one that was asked for.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from click import ClickException

import strongroom
from strongroom_bench import codec
from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Outputs, Unable, end
from strongroom_bench.load import Target
from strongroom_bench.machine import Cores, pinned

OURS: Final = "strongroom"
"""Name of our server, or the first of several, in results."""
READY: Final = "strongroom: serving on "
START_S: Final = 120.0
TIMEOUT_S: Final = 300.0
"""Seconds without a byte after which a request is given up: a large upload is examined for longer than a minute."""


class Ours:
    """Strongroom as a contender.

    `target_url`: a server to measure instead of starting one, with the policy that accepts it and a key that may
    upload there. `limits`: settings of `[limits]` beyond the defaults. `batching`: of the models that are uploaded.
    """

    def __init__(
        self, *, cores: Cores, name: str = OURS, isolation: str | None = None, limits: Mapping[str, int] | None = None,
        target_url: str | None = None, policy: Path | None = None, key: Path | None = None,
        batching: bool = False,
    ) -> None:  # fmt: skip
        words = [*([isolation] if isolation else []), *(["batching"] if batching else [])]
        self.name, self.title = name, ", ".join(["Strongroom", *words])
        self._batching = batching
        self.version = f"strongroom {strongroom.__version__}"
        self._folder = tempfile.TemporaryDirectory(prefix="strongroom-bench-")
        self._core = cores.server
        self._server: subprocess.Popen[bytes] | None = None
        self._model: strongroom.Model | None = None
        self._inputs: Any = None
        self._token: tuple[float, str] | None = None
        try:
            self._start(isolation, limits or {}, target_url, policy, key)
        except BaseException:
            self.close()
            raise

    # --- starting

    def _start(
        self, isolation: str | None, limits: Mapping[str, int], url: str | None, policy: Path | None, key: Path | None
    ) -> None:  # fmt: skip
        folder = Path(self._folder.name)
        self._key = key or folder / "owner.pem"
        if key is None:
            _command("keygen", str(self._key))
        if url is None:
            url = self._serve(folder, isolation, limits)
        elif policy is None:
            raise ClickException("--target needs --policy: the file that says which server is accepted")
        self.policy = policy or folder / "policy.toml"
        if policy is None:
            _command("policy", "init", url, "--out", str(self.policy))
        self.url = url
        self.client = strongroom.connect(url, policy=self.policy, key=self._key, timeout=TIMEOUT_S)
        verdict = self.client.attestation
        stated = [check.got for check in verdict.checks if check.id == "security.isolation"]
        self.facts: dict[str, Any] = {
            "transport": "TLS 1.3, attested, with tokens",
            "platform": verdict.format + (" (simulated)" if verdict.simulated else ""),
            "isolation": stated[0] if stated else "not stated",
            "settings": dict(limits),
            "batching": self._batching,
            "client": "strongroom.Client",
        }

    def _serve(self, folder: Path, isolation: str | None, limits: Mapping[str, int]) -> str:
        lines = ['platform = "simulated"', 'bind = "127.0.0.1:0"', f'state_dir = "{folder / "state"}"']
        if isolation is not None:
            lines += ["[security]", f'isolation = "{isolation}"']
        # Connecting afresh again and again is one of the things measured here, all from one address.
        lines += ["[limits]", *(f"{name} = {value}" for name, value in limits.items())]
        config = folder / "strongroom.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log = folder / "server.log"  # a file, for nobody reads a pipe once the server is ready
        with log.open("wb") as sink:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "strongroom", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, preexec_fn=pinned(self._core),
            )  # fmt: skip
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            ended = self._server.poll() is not None  # asked first: what it said last is read afterwards
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                if line.startswith(READY):
                    return line.removeprefix(READY).split()[0]
            if ended:
                raise ClickException(f"our server ended before it was ready: {lines[-1] if lines else ''}")
            time.sleep(0.05)
        raise ClickException(f"our server was not ready within {START_S:g} s")

    @property
    def pid(self) -> int | None:
        """The server's process; None where it is not ours."""
        return None if self._server is None else self._server.pid

    # --- a contender

    def load(self, workload: Workload) -> None:
        """Uploads the model, as its owner does, and runs it once."""
        try:
            self._model = self.client.upload_model(
                workload.path, name=workload.name, access="private", batching=self._batching
            )
        except strongroom.Error as error:
            raise Unable(f"the upload: {error.message} [{error.code}]") from error
        metadata = self._model.metadata
        # One array in, one out, as `.npy`: what a caller with such a model writes.
        single = len(metadata.inputs) == 1 and (len(metadata.outputs) == 1 or metadata.format != "onnx")
        self._inputs = next(iter(workload.inputs.values())) if single else workload.inputs
        self.once()

    def _ready(self) -> strongroom.Model:
        if self._model is None:
            raise Unable("no model is loaded")
        return self._model

    def once(self) -> float:
        """`Model.run`, from arrays to arrays."""
        model = self._ready()
        started = time.perf_counter()
        try:
            model.run(self._inputs)
        except strongroom.Error as error:
            raise Unable(f"a request: {error.message} [{error.code}]") from error
        return time.perf_counter() - started

    def cold(self) -> float:
        """The same after the model was unloaded: read from the sealed store, authenticated, decrypted, loaded, run."""
        self.evict()
        return self.once()

    def evict(self) -> None:
        """Unloads the model from memory; it stays in the store."""
        self.client.unload_model(self._ready())

    def outputs(self) -> Outputs:
        """Every output."""
        result = self._ready().run(self._inputs)
        return list(result.values()) if isinstance(result, dict) else [np.asarray(result)]

    def unload(self) -> None:
        """Deletes the model, so that the next one finds the memory free."""
        if self._model is not None:
            self.client.delete_model(self._model)
            self._model = None

    def close(self) -> None:
        """Closes the client, ends the server."""
        client = getattr(self, "client", None)
        if client is not None:
            client.close()
        if self._server is not None:
            end(self._server)
        self._folder.cleanup()

    # --- for the load generator

    def target(self) -> Target:
        """`POST /v2/models/NAME/infer` with `.npy` or `.npz`, over TLS to the verified key, with a token."""
        model, inputs = self._ready(), self._inputs
        path = f"/v2/models/{model.metadata.name}/infer"
        kind = "application/x-npz" if isinstance(inputs, dict) else "application/x-npy"
        body = codec.npz(inputs) if isinstance(inputs, dict) else codec.npy(inputs)
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or 443

        def request() -> bytes:
            headers = {"Content-Type": kind, "Authorization": f"Bearer {self._bearer()}"}
            return codec.http_request("POST", path, host=host, headers=headers, body=body)

        probe = codec.http_request("GET", "/v2/health/live", host=host)
        return Target(host=host, port=port, request=request, context=self.verified_context(), probe=probe)

    def verified_context(self) -> ssl.SSLContext:
        """TLS 1.3 to exactly the certificate that the client verified, for generators that attest nothing."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.client.certificate)
        return context

    def _bearer(self) -> str:
        """A reading token (docs/spec/channel.md, part 5); one serves for a minute."""
        if self._token is None or time.monotonic() - self._token[0] > 60.0:
            self._token = (time.monotonic(), self._issue())
        return self._token[1]

    def _issue(self) -> str:
        from strongroom.tokens import issue_token, load_key

        parts = urlsplit(self.url)
        nonce = codec.fetch_header(
            parts.hostname or "", parts.port or 443, "/v2/health/live", "Strongroom-Nonce", self.verified_context()
        )  # fmt: skip
        digest = self.client.attestation.keyset_digest or ""
        key = load_key(self._key.read_bytes())
        return issue_token(
            key, keyset_digest=bytes.fromhex(digest), nonce=nonce, now=int(time.time()), action=None
        )


def _command(*words: str) -> None:
    """Runs our own command."""
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClickException(f"strongroom {words[0]}: {done.stderr.strip()}")
