"""A broker and a server as users start them: the store opens with the key that the broker releases, and not without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from plane import linear_onnx
from serving import REPOSITORY, clean_environment, policy_text, start

import strongroom
from strongroom.attester import load_or_create_root, root_digest
from strongroom.boot import planned_measurement
from strongroom.config import load
from strongroom.errors import AttestationRefused
from strongroom.tokens import new_key_pem

pytestmark = pytest.mark.slow
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A running broker; yields its URL."""
    log = folder / "broker.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "strongroom", "keybroker", "serve", "--config", str(folder / "broker.toml")],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=clean_environment(), cwd=REPOSITORY,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "key broker on " not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield log.read_text().partition("key broker on ")[2].split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def write(path: Path, text: str) -> None:
    """A file of the owner's alone."""
    path.write_text(text)
    path.chmod(0o600)


def test_the_store_opens_with_the_released_key_and_not_without(tmp_path: Path) -> None:
    """Upload, restart, run; clients that do not name the broker refuse; without a broker nothing starts (30)."""
    owner, place = tmp_path / "owner", tmp_path / "server"
    (place / "state").mkdir(parents=True, mode=0o700)
    owner.mkdir()
    public = load_or_create_root(owner / "broker.pem").public_key().public_bytes_raw().hex()
    root = root_digest(load_or_create_root(place / "state" / "sim-root.pem"))
    settings = f'[key_release]\nurl = "{{}}"\nbroker_key = "{public}"\nname = "a"\n[security]\nisolation = "in_process"'
    draft = tmp_path / "draft.toml"
    draft.write_text('platform = "simulated"\n' + settings.format("https://127.0.0.1:1"))
    measurement = planned_measurement(load(draft, variables={}, base=tmp_path)).digest
    text = policy_text(measurement=measurement, root=root).replace('["simulated"]', '["operator"]')
    write(owner / "a.toml", text)
    write(owner / "a.key", os.urandom(32).hex())
    write(
        owner / "broker.toml",
        'bind = "127.0.0.1:0"\nsigning_key = "broker.pem"\nsimulated = true\n'
        '[keys.a]\nkey = "a.key"\npolicy = "a.toml"\n',
    )
    policy, key = tmp_path / "policy.toml", tmp_path / "client.pem"
    policy.write_text(text.replace('key_release = ["none"]', f'key_release = ["{public}/a"]'))
    write(key, new_key_pem().decode())
    with broker(owner) as url:
        server = start(place, settings=settings.format(url))
        try:
            assert f"key broker {public}/a" in server.output()
            with pytest.raises(AttestationRefused) as refused:
                strongroom.connect(server.url, policy=owner / "a.toml")
            assert refused.value.code == "security_key_release_refused"
            with strongroom.connect(server.url, policy=policy, key=str(key)) as client:
                client.upload_model(linear_onnx(), name="m")
        finally:
            assert server.stop() == 0
        server = start(place, settings=settings.format(url))
        try:
            with strongroom.connect(server.url, policy=policy, key=str(key)) as client:
                assert client.model("m").run(ROWS).tolist() == (2 * ROWS).tolist()
        finally:
            assert server.stop() == 0
    log = (owner / "broker.log").read_text()
    assert log.count(f"released a to sim code {measurement}") == 2
    with pytest.raises(RuntimeError, match=r"(?s)ended with 30:.*key broker: .*\[server_unreachable\]"):
        start(place, settings=settings.format(url))
