"""What a whole server does to the world outside, seen by its system calls: nobody is called, nothing is left behind.

One story (start, upload ONNX and XGBoost, run, refuse, delete, stop) is traced over the whole tree of processes: the
server, what examines models, and whatever runs them. The checks know nothing of how many processes there are.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from plane import BOB, linear_onnx, xgboost_json
from serving import Serving, serving
from test_server import Caller

pytestmark = pytest.mark.slow

CANARY = b"CANARY-7f3a9e51-model"
SECRET = np.frombuffer(b"CANARY-9b1d-data", dtype=np.float32)
CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,"
    "unlink,unlinkat,truncate,write,pwrite64,writev,pwritev,pwritev2,sendfile,sendto,sendmsg,sendmmsg,connect,bind,"
    "socket,socketpair,mmap,memfd_create,io_uring_setup,execve,execveat"
)
HIDING = (
    "CI", "TF_BUILD", "GITHUB_ACTIONS", "TRAVIS", "JENKINS_URL", "CIRCLECI", "GITLAB_CI", "TEAMCITY_VERSION",
    "CODEBUILD_BUILD_ID",
)  # fmt: skip
"""Where one of these is set, onnxruntime's telemetry keeps quiet: such a trace would prove nothing."""
CHANGING = ("mkdir", "rename", "link", "symlink", "mknod", "unlink", "truncate", "creat")


def spelled(data: bytes) -> str:
    """As strace writes it."""
    return "".join(f"\\x{byte:02x}" for byte in data)


def paths(line: str) -> list[str]:
    """The paths that a call names, those below a descriptor's folder with that before them."""
    found = re.findall(r'(?:<([^>"]*)>, )?"([^"]*)"', line.partition("(")[2])
    root = spelled(b"/")
    return [name if name.startswith(root) else base + root + name for base, name in found]


@dataclass(frozen=True)
class Traced:
    """A server that has ended, and every system call of its processes."""

    server: Serving
    temporary: Path
    lines: list[str]

    def calls(self, *names: str) -> list[str]:
        """The calls of these names, and of those that begin like them; failed ones too."""
        found = re.compile(rf"^\d+ +(?:{'|'.join(names)})[a-z0-9]*\(")
        return [line for line in self.lines if found.match(line)]

    def processes(self) -> set[str]:
        """The threads that did anything."""
        return {line.split()[0] for line in self.lines}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """The story, with canaries in a model and in data."""
    if (strace := shutil.which("strace")) is None:
        pytest.skip("not exercised here: strace is not installed")
    folder = tmp_path_factory.mktemp("traced")
    temporary, trace = folder / "tmp", folder / "trace.txt"
    temporary.mkdir()
    # -D: the server stays our child, and the tracer is somebody else's. -yy: what a descriptor is.
    options = ("-D", "-f", "--seccomp-bpf", "-qq", "-xx", "-yy", "-s", "4000000", "-o", str(trace))
    unset = [part for name in HIDING for part in ("-u", name)]
    wrapper = ("/usr/bin/env", *unset, strace, *options, "-e", f"trace={CALLS}")
    environment = {"TMPDIR": str(temporary), "HOME": str(temporary)}
    settings = "[security]\nanonymous_upload = true"
    with serving(folder / "server", settings=settings, environment=environment, wrapper=wrapper) as running:
        _story(Caller(running.url, timeout=120))
    assert running.process.returncode == 0
    size = -1
    while size != (size := trace.stat().st_size):  # the tracer may still have something to say
        time.sleep(0.5)
    return Traced(running, temporary, trace.read_text().splitlines())


def _story(caller: Caller) -> None:
    model = linear_onnx(note=CANARY.decode() * 100)
    assert caller.put("m", model).status_code == 201
    trees = xgboost_json().replace(b'"feature_names":[]', b'"feature_names":["%s","b","c","d"]' % CANARY)
    assert caller.request("POST", "/model/upload", trees, key=None).status_code == 201
    for _ in range(3):
        assert caller.run("m", row=SECRET).status_code == 200
    row = {"features": SECRET.tolist()}
    assert caller.request("POST", "/model/predict", json.dumps(row).encode(), key=None).status_code == 200
    tensor = b'{"name": "%s", "shape": [1], "datatype": "FP32", "data": ["%s"]}' % (CANARY, CANARY)
    assert caller.request("POST", "/v2/models/m/infer", b'{"inputs": [%s]}' % tensor).status_code == 400
    assert caller.request("POST", "/model/upload", b"\x08\x08" + CANARY * 50, key=None).status_code >= 400
    assert caller.put("m", model, key=BOB).status_code == 409
    assert caller.request("DELETE", "/v1/models/m", changes=True).status_code == 200


def test_the_trace_shows_the_whole_tree(traced: Traced) -> None:
    """The server, the process that examines models and a child of it at least; what was said and what was sealed."""
    text = "\n".join(traced.lines)
    assert spelled(b"strongroom: serving on") in text and spelled(b"STRGSTAT") in text
    assert len(traced.processes()) >= 3
    programs = {line.split('"')[1] for line in traced.calls("execve") if line.endswith("= 0")}
    wanted = re.compile(r"/python[0-9.]*$|/env$")
    assert all(wanted.search(bytes.fromhex(one.replace("\\x", "")).decode()) for one in programs)


def test_canaries_appear_in_no_file(traced: Traced) -> None:
    """Of a model, its feature names and an input nothing is in any file of the store or in what was written."""
    running, wanted = traced.server, (CANARY, SECRET.tobytes())
    places = [running.state_dir, traced.temporary, running.log.parent]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path != running.config_path:
            assert not any(canary in data for canary in wanted), path
    # Between processes of the server models and data go through pairs of sockets and memory without a name.
    memory = re.compile(rf"^\d+ +\w+\(\d+<(UNIX|{re.escape(spelled(b'/memfd:'))}|/memfd:)")
    outside = [line for line in traced.lines if not memory.match(line)]
    shown = tuple(spelled(canary) for canary in wanted)
    assert not [line[:300] for line in outside if any(canary in line for canary in shown)]
    assert list(traced.temporary.iterdir()) == []


def test_nothing_is_written_outside_the_state_folder(traced: Traced) -> None:
    """Every file opened for writing, made, moved or removed lies in the state folder; no memory is shared with one."""
    state = spelled(str(traced.server.state_dir).encode())
    devices = {spelled(name) for name in (b"/dev/null", b"/dev/tty", b"/proc/self/oom_score_adj")}
    writing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_TMPFILE")
    for line in traced.calls("open"):
        if writing.search(line) and " = -1" not in line:
            (path,) = paths(line)
            assert path.startswith(state) or path in devices, line[:300]
    for line in traced.calls(*CHANGING):
        if " = -1" not in line:
            assert paths(line) and all(path.startswith(state) for path in paths(line)), line[:300]
    for line in traced.calls("mmap"):
        if "MAP_SHARED" in line and "PROT_WRITE" in line:
            assert "MAP_ANONYMOUS" in line or "memfd:" in line or spelled(b"memfd:") in line, line[:300]
    assert traced.calls("memfd_create") or sys.platform != "linux"


def test_the_server_calls_nobody(traced: Traced) -> None:
    """No connection is tried and no name looked up, not even here: no telemetry, no updates, no name service."""
    assert traced.calls("connect", "io_uring_setup") == []
    sockets = traced.calls("socket")
    listening = [line for line in sockets if "socket(AF_INET" in line]
    assert len(listening) == 1 and "SOCK_STREAM" in listening[0]
    others = [line for line in sockets if line not in listening]
    assert all("socketpair(AF_UNIX, SOCK_" in line for line in others), others
    bound = [line for line in traced.calls("bind") if " = -1" not in line]
    assert len(bound) == 1 and spelled(b"127.0.0.1") in bound[0]
    # To an address nothing is sent, only over what was accepted or is a pair.
    assert not [line[:300] for line in traced.calls("send") if "sa_family" in line]
    over = re.compile(r"^\d+ +send\w+\(\d+<(TCP|UNIX)")
    assert not [line[:300] for line in traced.calls("send") if not over.match(line)]
