"""A real server for tests: its own process, its own state folder, TLS on a free port of 127.0.0.1.

    with serving(tmp_path / "server") as server:
        client = strongroom.connect(server.url, policy=server.write_policy(tmp_path / "policy.toml"))

The process is started as users start it, through `python -m strongroom.launch`, and killed at the end if it
does not stop by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

REPOSITORY = Path(__file__).resolve().parents[1]
START_S = 90
"""Seconds until a server must be ready: it compiles every module, on machines with other work to do."""
READY = "strongroom: serving on "
MEASUREMENT = "strongroom: measurement "


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A running server."""

    url: str
    host: str
    port: int
    state_dir: Path
    config_path: Path
    root_key_path: Path
    root_sha256: str
    """Hex SHA-256 of the simulated root's SPKI: what a policy names."""
    measurement: str
    process: subprocess.Popen[bytes]
    log: Path
    """Everything the server wrote to stdout and stderr."""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def write_policy(self, path: Path) -> Path:
        """Writes a policy that accepts this very server and nothing else; returns `path`."""
        path.write_text(policy_text(measurement=self.measurement, root=self.root_sha256))
        return path

    def output(self) -> str:
        """What the server has written so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """`kill -9`, and waits."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def policy_text(*, measurement: str, root: str) -> str:
    """An UNSAFE_SIMULATION policy for one measurement under one simulated root, with any anonymous_upload.

    The measurement covers the configuration, so nothing more is accepted by it.
    """
    from strongroom.attest.policy import policy_for_measurement

    text = policy_for_measurement(measurement, root=root, now=datetime.now(UTC))
    return text.replace("anonymous_upload = [false]", "anonymous_upload = [false, true]")


def snapshot(folder: Path) -> Path:
    """A copy of the package, to start servers from (`cwd=`) while the files of the clone may change."""
    shutil.copytree(
        REPOSITORY / "strongroom", folder / "strongroom", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def root_digest(path: Path) -> str:
    """Hex SHA-256 of the SPKI of the simulated root key in `path`."""
    key = load_pem_private_key(path.read_bytes(), password=None)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without STRONGROOM_* settings, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
    return {**kept, **(extra or {})}


@contextmanager
def serving(
    folder: Path | None = None,
    *,
    settings: str = "",
    environment: Mapping[str, str] | None = None,
    command: tuple[str, ...] = (sys.executable, "-m", "strongroom.launch"),
    wrapper: tuple[str, ...] = (),
    cwd: Path = REPOSITORY,
) -> Iterator[Serving]:
    """Starts a server on a free port and yields it once it serves; SIGTERM at the end.

    `folder` holds its configuration, state and log; the same folder again means the same store and root key.
    None: a temporary one. `settings` is appended to the configuration (TOML; top-level keys first, then
    tables). `wrapper` stands before the command (strace ...).
    """
    with tempfile.TemporaryDirectory(prefix="strongroom-test-") as temporary:
        place = Path(temporary) if folder is None else folder
        server = start(
            place, settings=settings, environment=environment, command=command, wrapper=wrapper, cwd=cwd
        )
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
                try:
                    server.process.wait(30)
                except subprocess.TimeoutExpired:
                    server.process.kill()
                    server.process.wait()


def start(
    folder: Path,
    *,
    settings: str = "",
    environment: Mapping[str, str] | None = None,
    command: tuple[str, ...] = (sys.executable, "-m", "strongroom.launch"),
    wrapper: tuple[str, ...] = (),
    cwd: Path = REPOSITORY,
) -> Serving:
    """The server of `serving`, for tests that end it themselves; RuntimeError where it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    config = folder / "strongroom.toml"
    config.write_text(f'platform = "simulated"\nbind = "127.0.0.1:0"\nstate_dir = "{state}"\n{settings}\n')
    log = folder / f"log-{time.time_ns()}.txt"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*wrapper, *command, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=clean_environment(environment),
            cwd=cwd,
        )
    try:
        lines = _wait(process, log)
    except BaseException:
        process.kill()
        process.wait()
        raise
    ready = next(line for line in lines if line.startswith(READY))
    url = ready.removeprefix(READY).split()[0]
    host, _, port = url.removeprefix("https://").rpartition(":")
    root = state / "sim-root.pem"
    return Serving(
        url=url,
        host=host,
        port=int(port),
        state_dir=state,
        config_path=config,
        root_key_path=root,
        root_sha256=root_digest(root) if root.exists() else "",
        measurement=next(line for line in lines if line.startswith(MEASUREMENT)).split()[2],
        process=process,
        log=log,
    )


def _wait(process: subprocess.Popen[bytes], log: Path) -> list[str]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        lines = log.read_text(errors="replace").splitlines(keepends=True)
        whole = [line.rstrip("\n") for line in lines if line.endswith("\n")]
        if any(line.startswith(READY) for line in whole):
            return whole
        if process.poll() is not None:
            raise RuntimeError(
                f"the server ended with {process.returncode}:\n{log.read_text(errors='replace')}"
            )
        time.sleep(0.05)
    raise RuntimeError(f"the server was not ready within {START_S} s:\n{log.read_text(errors='replace')}")
