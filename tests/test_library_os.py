"""The server where much is missing: every call that fails under Gramine 1.9 answers ENOSYS, /dev/shm takes nothing,
`localhost` is in no file, and the code's files have no times. That is not Gramine, and shows nothing of SGX.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import library_os
import numpy as np
import pytest
from plane import linear_onnx
from serving import serving, snapshot, start

import strongroom
from strongroom.attester import load_or_create_root, root_digest
from strongroom.errors import InvalidConfig
from strongroom.tokens import new_key_pem

IN_PROCESS = '[security]\nisolation = "in_process"'
"""What such a system leaves; that the server does not choose it by itself, test_isolation_server.py shows."""
WRAPPER = (sys.executable, library_os.__file__)
here = pytest.mark.skipif(bool(library_os.missing()), reason=library_os.missing() or "it can be done")

PROBE = """
import errno, fcntl, mmap, os, resource, sys
def fails(call):
    try:
        call()
    except OSError as exc:
        return exc.errno == errno.ENOSYS
    return False
area = mmap.mmap(-1, 4096)
calls = (
    lambda: fcntl.flock(0, fcntl.LOCK_SH), lambda: os.utime("/"), lambda: os.link("/a", "/b"),
    lambda: os.symlink("/a", "/nowhere/b"), lambda: os.memfd_create("x"), lambda: area.resize(8192),
    lambda: resource.getrusage(resource.RUSAGE_SELF), lambda: os.pidfd_open(os.getpid()),
)
sys.exit(0 if all(map(fails, calls)) else 1)
"""


@here
def test_the_calls_do_fail() -> None:
    """The filter takes hold, so the tests below show something."""
    assert subprocess.run([*WRAPPER, sys.executable, "-c", PROBE], check=False).returncode == 0


@here
@pytest.mark.slow
def test_the_whole_job_works_with_less(tmp_path: Path) -> None:
    """Upload, run, kill, start again, run again: locks, keys, certificate and store manage without these calls."""
    code = snapshot(tmp_path / "code")
    for path in code.rglob("*"):
        os.utime(path, (0, 0))
    policy, key, rows = tmp_path / "policy.toml", tmp_path / "owner.pem", np.ones((2, 4), np.float32)
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    server = start(tmp_path / "server", settings=IN_PROCESS, wrapper=WRAPPER, cwd=code)
    with strongroom.connect(server.url, policy=str(server.write_policy(policy)), key=str(key)) as client:
        model = client.upload_model(linear_onnx(), name="m")
        before = model.predict(rows)
    server.kill()
    with (
        serving(tmp_path / "server", settings=IN_PROCESS, wrapper=WRAPPER, cwd=code) as again,
        strongroom.connect(again.url, policy=str(policy), key=str(key)) as client,
    ):
        assert np.array_equal(client.model("m").predict(rows), before)
        assert again.stop() == 0


def _no_links(*_paths: object) -> None:
    raise OSError(errno.ENOSYS, "no links here")


def test_a_root_key_is_made_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key for whoever comes later, and nothing else is left."""
    monkeypatch.setattr(os, "link", _no_links)
    path = tmp_path / "sim-root.pem"
    assert root_digest(load_or_create_root(path)) == root_digest(load_or_create_root(path))
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_root_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a second process may read meanwhile where there are no links; it is never taken for another key."""
    monkeypatch.setattr(os, "link", _no_links)
    path = tmp_path / "sim-root.pem"
    load_or_create_root(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InvalidConfig):
        load_or_create_root(path)
