"""Other servers, each in an environment of its own, behind the interface of every contender.

Rules
  - A peer is a folder `peers/NAME`: `requirements.txt` (every version pinned), files that run in that environment, and
    `__init__.py` with one `Peer`.
  - Environments are made when a peer is first asked for, below the cache folder, and kept; their name has the digest
    of the requirements and the Python version.
  - One server process serves one model, pinned to the servers' core like ours, one thread for the engine. It speaks
    plain HTTP: no peer attests, encrypts or authenticates anything here, which is the comparison's point.
  - A peer that cannot be installed, started or asked says so in the report, and is never left out in silence.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from click import ClickException

from strongroom_bench import codec
from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Contender, Engine, Outputs, Unable, end, one_thread, unknown
from strongroom_bench.load import Target
from strongroom_bench.machine import Cores, pinned

HOST: Final = "127.0.0.1"
START_S: Final = 90.0
"""Seconds for a peer to start and load a model."""
NAMES: Final = ("flask", "triton", "mlserver", "litserve", "bentoml", "kserve", "ray", "tract")
"""The folders below `peers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a peer is started with."""

    python: Path
    """The interpreter of its environment."""
    here: Path
    """Its folder in this package."""
    folder: Path
    """An empty folder of its own."""
    model: Path
    """The ONNX file."""
    inputs: Mapping[str, codec.Array]
    port: int
    """A free TCP port; `port + 1` and `port + 2` were free as well."""

    @property
    def bin(self) -> Path:
        """Where the environment's programs lie."""
        return self.python.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How one peer is started and asked. `protocol`: `npy`, `oip-json` or `oip-binary`.

    `unload`, `load`: paths that take a POST and do that, where the peer has such. `engine`: it is no server but an
    engine in a process, of `engine_child.py`.
    """

    name: str
    title: str
    distributions: tuple[str, ...]
    """Those whose versions are named; the first is the peer itself."""
    command: Callable[[Setting], list[str]] | None = None
    protocol: str = "npy"
    infer: str = "/infer"
    ready: str = "/ready"
    live: str = ""
    """Path for the probe under load; empty: `ready`."""
    load: str = ""
    unload: str = ""
    environment: Callable[[Setting], dict[str, str]] = field(default=lambda _setting: {})
    engine: bool = False
    about: str = ""


def peer(name: str) -> Peer:
    """The peer of this name.

    Raises:
        ClickException: there is none.
    """
    if name not in NAMES:
        raise unknown(name, NAMES)
    found: Peer = importlib.import_module(f"strongroom_bench.peers.{name}").PEER
    return found


def open_peer(name: str, *, cache: Path, cores: Cores) -> Contender:
    """The peer as a contender, its environment made where it is missing.

    Raises:
        Unable: its environment cannot be made here.
    """
    chosen = peer(name)
    python = environment(chosen, cache=cache)
    if chosen.engine:
        return Engine(chosen.name, chosen.title, cores=cores, python=python)
    return Server(chosen, python=python, cores=cores)


# --- environments -------------------------------------------------------------------------------------------


def here(chosen: Peer) -> Path:
    """The peer's folder in this package."""
    return Path(__file__).with_name("peers") / chosen.name


def environment_folder(chosen: Peer, *, cache: Path) -> Path:
    """Where its environment lies, or will."""
    text = (here(chosen) / "requirements.txt").read_text(encoding="ascii")
    wanted = [line for line in text.splitlines() if not line.startswith("#")] + [platform.python_version()]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    return cache / "peers" / f"{chosen.name}-{digest}"


def environment(chosen: Peer, *, cache: Path) -> Path:
    """The interpreter of the peer's environment, which is made with pip where it is missing.

    Raises:
        Unable: pip failed; its last line is in the text.
    """
    folder = environment_folder(chosen, cache=cache)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        requirements = here(chosen) / "requirements.txt"
        _run([sys.executable, "-m", "venv", str(folder)], chosen)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
        _run([*pip, "--require-hashes", "-r", str(requirements)], chosen)
        (folder / "complete").touch()
    return python


def _run(words: list[str], chosen: Peer) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unable(f"{chosen.title} cannot be installed here: {lines[-1] if lines else done.returncode}")


def version_in(python: Path, distribution: str) -> str:
    """The installed version of a distribution in another environment; "" where it is not there."""
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    done = subprocess.run(
        [str(python), "-c", code, distribution], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


# --- the contender ------------------------------------------------------------------------------------------


class Server:
    """A peer's server for one model at a time."""

    def __init__(self, chosen: Peer, *, python: Path, cores: Cores) -> None:
        self.peer = chosen
        self.name, self.title = chosen.name, chosen.title
        versions = [f"{d} {v}" for d in chosen.distributions if (v := version_in(python, d))]
        self.version = ", ".join(versions)
        self.facts: dict[str, Any] = {"transport": f"plain HTTP, {chosen.protocol}", "about": chosen.about}
        self._python, self._core = python, cores.server
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._inputs: Mapping[str, codec.Array] = {}
        self._port = 0

    def load(self, workload: Workload) -> None:
        """Starts a server for this model and waits until it answers."""
        if self.peer.command is None:
            raise Unable(f"{self.title} has no server")
        self._folder = tempfile.TemporaryDirectory(prefix="strongroom-bench-")
        self._inputs, self._port = workload.inputs, free_port()
        setting = Setting(
            python=self._python, here=here(self.peer), folder=Path(self._folder.name), model=workload.engine_path,
            inputs=workload.inputs, port=self._port,
        )  # fmt: skip
        log = (Path(self._folder.name) / "log.txt").open("wb")
        with log:
            self._process = subprocess.Popen(
                self.peer.command(setting), cwd=self._folder.name, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=pinned(self._core), env={**one_thread(), **self.peer.environment(setting)},
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(workload)
            self._connection = http.client.HTTPConnection(HOST, self._port, timeout=120)
            self.outputs()
        except BaseException:
            self.unload()
            raise

    def _wait(self, workload: Workload) -> None:
        until, process = time.monotonic() + START_S, self._process
        while time.monotonic() < until:
            if process is not None and process.poll() is not None:
                raise Unable(f"{self.title} ended with code {process.returncode}: {self._last_line()}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise Unable(f"{self.title} was not ready for {workload.name} within {START_S:g} s")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=2)
        try:
            connection.request("GET", self.peer.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_line(self) -> str:
        if self._folder is None:
            return ""
        text = (Path(self._folder.name) / "log.txt").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""

    def once(self) -> float:
        """Encode, one request on an open connection, decode."""
        started = time.perf_counter()
        self.outputs()
        return time.perf_counter() - started

    def cold(self) -> float:
        """One request after the model was unloaded; loading it is part of the figure."""
        if not self.peer.unload:
            raise Unable(f"{self.title} cannot unload a model")
        self._post(self.peer.unload, {}, b"")
        started = time.perf_counter()
        if self.peer.load:
            self._post(self.peer.load, {}, b"")
        self.outputs()
        return time.perf_counter() - started

    def outputs(self) -> Outputs:
        """Every output."""
        headers, body = encode(self.peer.protocol, self._inputs)
        answer, data = self._post(self.peer.infer, headers, body)
        return decode(self.peer.protocol, answer, data)

    def _post(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection
        if connection is None:
            raise Unable(f"{self.title}: no model is loaded")
        try:
            connection.request("POST", path, body=body, headers=dict(headers))
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Unable(f"{self.title} gave no answer: {type(exc).__name__}") from exc
        if response.status != 200:
            raise Unable(f"{self.title} answered {response.status} to {path}")
        return response, data

    def target(self) -> Target:
        """The same request for the load generator."""
        headers, body = encode(self.peer.protocol, self._inputs)
        whole = codec.http_request("POST", self.peer.infer, host=HOST, headers=headers, body=body)
        probe = codec.http_request("GET", self.peer.live or self.peer.ready, host=HOST)
        return Target(host=HOST, port=self._port, request=lambda: whole, probe=probe)

    def unload(self) -> None:
        """Ends the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            end(self._process)
            end_group(self._process.pid)
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def close(self) -> None:
        """Ends the server."""
        self.unload()


def end_group(leader: int) -> None:
    """Ends what a server of ours started and left behind: the processes of the session that it led."""
    import contextlib
    import os
    import signal

    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """A port with two free ones behind it; peers want up to three."""
    for _ in range(100):
        with socket.create_server((HOST, 0)) as first:
            port: int = first.getsockname()[1]
        try:
            for more in (port + 1, port + 2):
                socket.create_server((HOST, more)).close()
        except OSError:
            continue
        return port
    raise ClickException("no three free ports in a row")


# --- protocols ----------------------------------------------------------------------------------------------


def encode(protocol: str, inputs: Mapping[str, codec.Array]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request."""
    if protocol == "npy":
        if len(inputs) == 1:
            return {"Content-Type": "application/x-npy"}, codec.npy(next(iter(inputs.values())))
        return {"Content-Type": "application/x-npz"}, codec.npz(inputs)
    if protocol == "oip-json":
        return {"Content-Type": "application/json"}, codec.oip_json(inputs)
    if protocol == "oip-binary":
        body, length = codec.oip_binary(inputs)
        kind = "application/octet-stream"
        return {"Content-Type": kind, "Inference-Header-Content-Length": str(length)}, body
    raise ValueError(protocol)


def decode(protocol: str, answer: http.client.HTTPResponse, data: bytes) -> Outputs:
    """The arrays of an answer."""
    if protocol == "npy":
        return codec.read_npz(data) if data[:2] == b"PK" else codec.read_npy(data)
    if protocol == "oip-json":
        return codec.read_oip_json(data)
    length = answer.getheader("Inference-Header-Content-Length")
    return codec.read_oip_binary(data, int(length)) if length else codec.read_oip_json(data)
