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
from strongroom.errors import Error, InvalidConfig
from strongroom.tokens import new_key_pem

IN_PROCESS = '[security]\nisolation = "in_process"'
"""What such a system leaves; that the server does not choose it by itself, test_isolation_server.py shows."""
WRAPPER = (sys.executable, library_os.__file__)
STRICTER = (*WRAPPER, "--no-ancillary")
here = pytest.mark.skipif(bool(library_os.missing()), reason=library_os.missing() or "it can be done")

PROBE = """
import ctypes, errno, fcntl, mmap, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def raw(number):  # with arguments that a kernel which has the call would refuse in another way
    if libc.syscall(number, -1, 0, -1, -1, -1, -1) == -1:
        raise OSError(ctypes.get_errno(), "")
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
    *(lambda number=number: raw(number) for number in map(int, sys.argv[1:])),
)
sys.exit(0 if all(map(fails, calls)) else 1)
"""


@here
def test_the_calls_do_fail() -> None:
    """The filter takes hold of each, so the tests below show something; without it, not one probe passes."""
    numbers = [str(number) for number in library_os.CALLS.values()]
    done = subprocess.run([*WRAPPER, sys.executable, "-c", PROBE, *numbers], check=False)
    assert done.returncode == 0
    both = [str(number) for number in library_os.ANCILLARY.values()]
    assert subprocess.run([*STRICTER, sys.executable, "-c", PROBE, *both], check=False).returncode == 0
    assert subprocess.run([*WRAPPER, sys.executable, "-c", PROBE, *both], check=False).returncode == 1


@here
@pytest.mark.slow
def test_the_whole_job_works_with_less(tmp_path: Path) -> None:
    """Upload, run, kill, start again, run again: locks, keys, certificate and store manage without these calls; and
    models are examined one after the other where no descriptor can be handed over, each in a process of its own.
    """
    code = snapshot(tmp_path / "code")
    for path in code.rglob("*"):
        os.utime(path, (0, 0))
    policy, key, rows = tmp_path / "policy.toml", tmp_path / "owner.pem", np.ones((2, 4), np.float32)
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    server = start(tmp_path / "server", wrapper=WRAPPER, cwd=code, settings=IN_PROCESS)
    with strongroom.connect(server.url, policy=str(server.write_policy(policy)), key=str(key)) as client:
        model = client.upload_model(linear_onnx(), name="m")
        before = model.predict(rows)
    server.kill()
    with (
        serving(tmp_path / "server", wrapper=STRICTER, cwd=code, settings=IN_PROCESS) as again,
        strongroom.connect(again.url, policy=str(policy), key=str(key)) as client,
    ):
        assert np.array_equal(client.model("m").predict(rows), before)
        assert np.array_equal(client.upload_model(linear_onnx(factor=3.0), name="n").predict(rows), 3 * rows)
        with pytest.raises(Error) as caught:
            client.upload_model(linear_onnx()[:-7], name="torn")
        assert caught.value.code == "onnx_malformed"
        assert np.array_equal(client.upload_model(linear_onnx(), name="o").predict(rows), 2 * rows)
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
