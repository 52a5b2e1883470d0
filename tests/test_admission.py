"""Admission in processes that can be killed: the same verdicts as in this one, and an answer whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, SHARED

sys.path.insert(0, str(REPOSITORY / "tests" / "models"))
sys.path.insert(0, str(REPOSITORY / "fuzz"))

import hostile
import own_corpus
import samples
import targets_data
from onnx import TensorProto, helper

from strongroom import admission
from strongroom.admission import STANDARD_CHILD, ChildLimits, Examiner
from strongroom.admission_child import FACTORS, _more
from strongroom.errors import Error, Failure, LimitExceeded, MalformedInput
from strongroom.formats import HEAD_BYTES, detect
from strongroom.frames import receive, send
from strongroom.groups import Group
from strongroom.launch import CHILD, dependency_folders
from strongroom.measure import measure_at
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.zygote import EXAMINER, Launch, Nursery, Timely
from strongroom.zygote_child import OFFERED, OFFERED_FIRST

CORPUS = SHARED / "hostile-models"
FORMATS = {"onnx": "onnx", "xgb_json": "xgboost-json", "xgb_ubj": "xgboost-ubj"}


def launch(**changes: Any) -> Launch:
    """The zygote as the command starts it."""
    usual = {
        "paths": dependency_folders("simulated"),
        "environment": CHILD,
        "folder": Path("/"),
        "measured": None,
    }
    return Launch(**{**usual, "flags": ("-I", "-S"), "workers": False, **changes})


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote for all tests of this module."""
    with Nursery(launch()) as made:
        yield made


@pytest.fixture(scope="module")
def examiner(nursery: Nursery) -> Examiner:
    """Examines in its children."""
    return Examiner(nursery, limits=STANDARD_CHILD)


def test_the_same_proof_comes_out(examiner: Examiner) -> None:
    """As `models.admit` makes it here; a bytearray is empty afterwards."""
    data = bytearray(targets_data.MODEL)
    assert examiner.admit(data, format="onnx", limits=STANDARD_LIMITS) == admit(
        targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS
    )
    assert not data


@pytest.mark.parametrize(
    "name", ["unwritten output", "laughs", "two models", "endless", "child that is not there"]
)
def test_the_same_refusal_comes_out(examiner: Examiner, name: str) -> None:
    """Class, code and sentence."""
    data = hostile.encoded(hostile.VECTORS[name].bad())
    with pytest.raises(Error) as here:
        admit(data, format="onnx", limits=STANDARD_LIMITS)
    with pytest.raises(type(here.value)) as there:
        examiner.admit(data, format="onnx", limits=STANDARD_LIMITS)
    assert (there.value.code, there.value.message) == (here.value.code, here.value.message)


def test_limits_are_those_of_the_caller(examiner: Examiner) -> None:
    """The child knows no others."""
    small = dataclasses.replace(STANDARD_LIMITS, nodes=1)
    with pytest.raises(LimitExceeded) as caught:
        examiner.admit(targets_data.MODEL, format="onnx", limits=small)
    assert caught.value.code == "onnx_too_complex"
    with pytest.raises(LimitExceeded) as caught:
        examiner.admit(b"x" * 9, format="onnx", limits=dataclasses.replace(STANDARD_LIMITS, model_bytes=8))
    assert caught.value.code == "model_too_large"


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        ChildLimits(wall_s=0.001, cpu_s=50, memory_bytes=1 << 30),
        ChildLimits(wall_s=60, cpu_s=50, memory_bytes=1 << 12),
    ],
    ids=["time", "memory"],
)
def test_a_child_that_reaches_a_limit_is_a_refusal(nursery: Nursery, limits: ChildLimits) -> None:
    """The kernel ends it; the zygote goes on."""
    if sys.platform != "linux" and limits.memory_bytes < 1 << 20:
        pytest.skip("not exercised here: address space is limited on Linux only")
    data = hostile.encoded(hostile.doubling(34))
    nursery.wait()
    before = nursery.pid
    for _ in range(2):
        with pytest.raises((LimitExceeded, MalformedInput)) as caught:
            Examiner(nursery, limits=limits).admit(data, format="onnx", limits=STANDARD_LIMITS)
        # Where free memory of the zygote's heap lets the parser begin, it is what runs out, and says no more than that.
        assert caught.value.code in ("admission_limits", "onnx_malformed")
    assert nursery.pid == before and nursery._current.process.poll() is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: address space is limited on Linux")
@pytest.mark.parametrize(("times", "more", "admitted"), [(2.2, 200 << 20, True), (1.05, 0, False)])
def test_examining_takes_little_more_than_the_file(
    nursery: Nursery, times: float, more: int, admitted: bool
) -> None:
    """Of a network of 100 MB: 2.2 times the file and 200 MB are enough for all that its examination takes, the file
    as it arrived among it, counted in address space; next to nothing is not, so the limit is one.
    """
    size = 25 << 20
    weights = helper.make_tensor("w", TensorProto.FLOAT, [size], bytes(4 * size), raw=True)
    made = hostile.model(
        hostile.node("Slice", ["w", "zero", "four"], ["few"]),
        hostile.node("Add", ["x", "few"]),
        constants=[weights, hostile.constant("zero", [0]), hostile.constant("four", [4])],
    )
    data = hostile.encoded(made)
    # The file is there already when the limit is set, and a multiple of it is given beside.
    given = int((times - 1) * len(data)) + more - int(FACTORS["onnx"] * len(data))
    examiner = Examiner(nursery, limits=ChildLimits(wall_s=60, cpu_s=50, memory_bytes=given))
    if admitted:
        assert (
            examiner.admit(data, format="onnx", limits=STANDARD_LIMITS).info.admission.tensor_bytes
            == 4 * size + 16
        )
        return
    with pytest.raises(Error) as caught:
        examiner.admit(data, format="onnx", limits=STANDARD_LIMITS)
    assert caught.value.code in ("admission_limits", "onnx_malformed")  # protobuf does not tell the two apart


def _forest(nodes: int, format: str) -> bytearray:
    """One tree of about so many nodes, of numbers as long as XGBoost writes them, as a document of this format."""
    depth = nodes.bit_length() - 1
    count = 2**depth - 1
    at = np.arange(count)
    split = at < count // 2
    number = np.random.default_rng(3).normal(size=count).astype(np.float32)
    arrays = {
        "default_left": np.zeros(count, np.uint8),
        "left_children": np.where(split, 2 * at + 1, -1).astype(np.int32),
        "right_children": np.where(split, 2 * at + 2, -1).astype(np.int32),
        "parents": np.where(at, (at - 1) // 2, 2**31 - 1).astype(np.int32),
        "split_indices": np.where(split, at % 3, 0).astype(np.int32),
        "split_type": np.zeros(count, np.uint8),
        **dict.fromkeys(("base_weights", "loss_changes", "split_conditions", "sum_hessian"), number),
    }
    size = {**samples.tree()["tree_param"], "num_nodes": str(count)}
    document = samples.model(samples.tree(tree_param=size, **{name: f"@{name}" for name in arrays}))
    binary = format == "xgboost-ubj"
    out = bytearray(samples.as_ubj(document) if binary else samples.as_json(document))
    for name, array in arrays.items():
        if binary:
            marker = {"f": b"d", "i": b"l", "u": b"U"}[array.dtype.kind]
            body = array.astype(array.dtype.newbyteorder(">")).tobytes()
            written = b"[$" + marker + b"#L" + count.to_bytes(8, "big") + body
        else:
            written = json.dumps(array.tolist(), separators=(",", ":")).encode()
        place = samples.as_ubj(f"@{name}") if binary else b'"@%b"' % name.encode()
        out = out.replace(place, written)
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: address space is limited on Linux")
@pytest.mark.parametrize("format", ["xgboost-json", "xgboost-ubj"])
def test_examining_a_forest_takes_little_more_than_its_file(nursery: Nursery, format: str) -> None:
    """2.2 times the file and 200 MB, counted in address space, is all that there is, and is enough; a server that
    gives other models more does not give it more, and with next to nothing it is a refusal.
    """
    data = _forest(1 << 18, format)
    assert _more(format, len(data), {"memory_bytes": 8 << 30}) + (8 << 30) == int(1.2 * len(data)) + (
        200 << 20
    )
    admitted = Examiner(nursery, limits=STANDARD_CHILD).admit(
        bytes(data), format=format, limits=STANDARD_LIMITS
    )
    assert dict(admitted.info.notes)["trees"] == 1
    little = dataclasses.replace(STANDARD_CHILD, memory_bytes=1 << 20)
    with pytest.raises(LimitExceeded) as caught:
        Examiner(nursery, limits=little).admit(data, format=format, limits=STANDARD_LIMITS)
    assert caught.value.code == "admission_limits"


@pytest.mark.slow
def test_a_zygote_that_ends_is_started_again() -> None:
    """Once: a caller does not see it."""
    with Nursery(launch()) as nursery:
        nursery.wait()
        os.kill(nursery.pid, signal.SIGKILL)
        nursery._current.process.wait()
        admitted = Examiner(nursery, limits=STANDARD_CHILD).admit(
            targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS
        )
        assert admitted.info.format == "onnx"


def test_a_zygote_that_cannot_start_is_a_failure() -> None:
    """Nothing is admitted without it."""
    with Nursery(launch(paths=[])) as nursery, pytest.raises(Failure) as caught:
        nursery.wait()
    assert caught.value.code == "start_refused"


def test_children_inherit_nothing(nursery: Nursery) -> None:
    """Neither variables nor descriptors of this process: a secret that stands here is not in theirs."""
    if sys.platform != "linux":
        pytest.skip("not exercised here: looks into /proc")
    nursery.wait()
    environment = Path(f"/proc/{nursery.pid}/environ").read_bytes().split(b"\0")
    assert {entry.partition(b"=")[0].decode() for entry in environment if entry} <= {*CHILD, "LC_CTYPE"}
    descriptors = list(Path(f"/proc/{nursery.pid}/fd").iterdir())
    assert len(descriptors) <= 5  # standard ones, the control socket, and one that was being looked at


def test_the_kernel_ends_them_first(nursery: Nursery, examiner: Examiner) -> None:
    """Where memory is short the zygote goes before the server, and what it forked before the zygote."""
    if sys.platform != "linux":
        pytest.skip("not exercised here: looks into /proc")
    nursery.wait()

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert score(os.getpid()) < score(nursery.pid) == OFFERED
    with nursery.fork(EXAMINER) as child:
        eventually = time.monotonic() + 10
        wanted = OFFERED_FIRST if os.geteuid() == 0 else OFFERED
        while score(child.pid) != wanted and time.monotonic() < eventually:
            time.sleep(0.01)
        assert score(child.pid) == wanted


@pytest.mark.slow
def test_a_zygote_is_put_into_its_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From outside and before it has forked; a group that is gone is said, and hinders nobody."""
    group = Group(folder=tmp_path, memory_bytes=1 << 30, processes=64)
    (tmp_path / "cgroup.procs").write_text("")
    with Nursery(launch(group=group)) as made:
        assert (tmp_path / "cgroup.procs").read_text() == str(made.pid)
    assert caplog.messages == []
    (tmp_path / "cgroup.procs").unlink()
    with Nursery(launch(group=group)):
        assert caplog.messages == ["the control group does not take the processes that models come into"]


@pytest.mark.slow
def test_only_measured_files_become_code() -> None:
    """As in a server: with a measurement that lacks a file the zygote does not start."""
    folders = dependency_folders("simulated")
    package = REPOSITORY / "strongroom"
    from strongroom import boot, config

    security = boot.security_configuration(
        config.load(None, variables={"STRONGROOM_PLATFORM": "simulated"}, base=Path("/"))
    )
    files = dict(measure_at(package, search_path=folders, security=security, preload=()).files)
    flags = ("-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent")
    with Nursery(launch(measured=files, flags=flags)) as nursery:
        examiner = Examiner(nursery, limits=STANDARD_CHILD)
        assert examiner.admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS).info.format == "onnx"
    changed = {**files, "strongroom/models/look.py": "00" * 32}
    with Nursery(launch(measured=changed, flags=flags)) as nursery, pytest.raises(Failure):
        nursery.wait()


# What a child says


def told(answer: dict[str, Any], data: bytes = b"") -> Any:
    """What the caller makes of an answer."""
    return admission._read(answer, bytearray(data))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"error": "AdmissionRefused", "code": "no_such_code", "message": "x"},
        {"error": "AdmissionRefused", "code": "onnx_graph", "message": "a\x1b[31m"},
        {"error": "SystemExit", "code": "onnx_graph", "message": "x"},
        {"info": {}, "sha256": "", "canonical_sha256": ""},
        {"info": None, "sha256": 1, "canonical_sha256": None},
    ],
)
def test_an_answer_of_another_form_is_an_error(answer: dict[str, Any]) -> None:
    """A child that was taken over says what it likes: it gets no proof, and writes no terminal's commands."""
    with pytest.raises(Error):
        told(answer)


def test_bytes_that_are_not_those_of_the_digest_are_refused() -> None:
    """The digest of what runs is computed by whoever keeps it."""
    admitted = admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS)
    facts = {
        "info": admitted.info.to_json(),
        "sha256": admitted.sha256,
        "canonical_sha256": admitted.canonical_sha256,
    }
    assert told(facts, admitted.onnx) == admitted
    with pytest.raises(Error):
        told(facts, admitted.onnx + b"\0")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 15, b"\xff" * 16, (9).to_bytes(8, "big") + b"\0" * 8 + b"not a JSON"]
)
def test_messages_are_read_strictly(data: bytes) -> None:
    """Too short, too long, or no JSON object: the other side counts as gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            receive(ours)


def test_a_long_message_arrives_whole() -> None:
    """Longer than the socket's buffer, in both directions' way."""
    ours, theirs = socket.socketpair()
    body = os.urandom(1 << 20)
    with ours, theirs:
        sender = threading.Thread(target=send, args=(theirs, {"a": 1}, body))
        sender.start()
        assert receive(ours) == ({"a": 1}, bytearray(body))
        sender.join()


def test_more_than_is_expected_is_not_made_room_for() -> None:
    """Whoever has no bytes to send says so beforehand, and cannot have us allocate two gigabytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(theirs, {"loaded": True}, b"x")
        with pytest.raises(EOFError):
            receive(ours, most=0)
        send(ours, {"loaded": True})
        assert receive(theirs, most=0)[0] == {"loaded": True}


def test_an_answer_byte_by_byte_has_one_time_in_all() -> None:
    """Not one for each byte, in which a taken-over process would hold a thread for days."""
    now = [0.0]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timely = Timely(ours, 10.0, clock=lambda: now[0])
        timely.sendall(b"?")
        for _ in range(9):
            now[0] += 1.0
            theirs.sendall(b"x")
            assert timely.recv(1) == b"x" and ours.gettimeout() == 10.0 - now[0]
        now[0] += 1.0
        theirs.sendall(b"xx")
        for late in (
            lambda: timely.recv(1),
            lambda: timely.recv_into(bytearray(1)),
            lambda: timely.sendall(b"?"),
        ):
            with pytest.raises(TimeoutError):
                late()


@pytest.mark.skipif(
    sys.platform != "linux", reason="not exercised here: descriptors of processes are Linux's"
)
def test_a_process_that_does_not_look_is_ended(nursery: Nursery) -> None:
    """A parser that hangs does not see us hang up, and one that was taken over does not care."""
    with nursery.fork(EXAMINER) as child:
        os.kill(child.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.close()  # once is enough


@pytest.mark.parametrize("lacking", ["subprocess.Popen", "os.pipe", "socket.socketpair"])
def test_a_zygote_that_cannot_be_executed_keeps_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Whoever tries again, with each request, would have none left in the end."""
    zygote = "strongroom.zygote"
    monkeypatch.setattr(f"{zygote}.descriptors_travel", lambda: True)

    def none(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(f"{zygote}.{lacking}", none)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(Failure) as caught:
            Nursery(launch(measured={}))
        assert caught.value.code == "start_refused"
        del caught
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_a_zygote_that_did_not_start_is_not_the_last(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hindered it may be over: the next caller has another one executed; also where it does not fork."""
    monkeypatch.setattr("strongroom.zygote.descriptors_travel", lambda: not alone)
    with Nursery(launch(paths=[])) as nursery:
        with pytest.raises(Failure):
            nursery.fork(EXAMINER)
        nursery._launch = launch()
        for _ in range(2):  # the one that was executed meanwhile could not start, either
            with contextlib.suppress(Failure):
                nursery.fork(EXAMINER).close()
                return
    raise AssertionError("no zygote starts any more")


# Hostile models: those that this clone makes, and the corpus where it is beside this checkout


@pytest.mark.slow
def test_our_own_corpus_comes_out_as_it_says(nursery: Nursery) -> None:
    """Each hostile file is refused with its code within 2 s of a core and 1 GB, each innocent one is admitted."""
    examiner = Examiner(nursery, limits=ChildLimits(wall_s=60, cpu_s=2, memory_bytes=1 << 30))
    wrong, counted = [], {"hostile": 0, "innocent": 0}
    for file in own_corpus.files():
        counted["hostile" if file.codes else "innocent"] += 1
        try:
            detected = detect(file.data[:HEAD_BYTES]) if file.data else file.format  # as uploads are
            examiner.admit(file.data, format=detected, limits=STANDARD_LIMITS)
            code = ""
        except Error as error:
            code = error.code
        if code not in (file.codes or ("",)):
            wrong.append((file.what, code, file.codes))
    assert not wrong
    assert counted["hostile"] > 300 and counted["innocent"] > 50, counted


def test_our_own_corpus_can_be_written(tmp_path: Path) -> None:
    """As files, with what is expected of each; all are named, and small."""
    own_corpus.write(tmp_path)
    listing = json.loads((tmp_path / "manifest.json").read_text())
    assert {entry["file"] for entry in listing} == {path.name for path in tmp_path.iterdir()} - {
        "manifest.json"
    }
    assert all(path.stat().st_size < 1 << 20 for path in tmp_path.iterdir())


REASONS: dict[str, set[str]] = {
    "admission_limits": {"memory_limit", "compute_limit"},
    "format_mismatch": {"not_a_model"},
    "format_not_accepted": {"format_not_allowed"},
    "format_unknown": {"not_a_model"},
    "onnx_arity": {"graph_invalid"},
    "onnx_attribute": {"graph_invalid", "attribute_invalid"},
    "onnx_attribute_range": {"attribute_invalid"},
    "onnx_compute": {"compute_limit"},
    "onnx_domain": {"op_not_allowed"},
    "onnx_external_data": {"external_data"},
    "onnx_function": {"graph_invalid"},
    "onnx_graph": {"graph_invalid"},
    "onnx_io_type": {"graph_invalid"},
    "onnx_loop": {"compute_limit"},
    "onnx_malformed": {"not_a_model"},
    "onnx_memory": {"memory_limit"},
    "onnx_merged": {"not_a_model"},
    "onnx_name": {"name_invalid"},
    "onnx_operator": {"op_not_allowed"},
    "onnx_operator_refused": {"op_not_allowed"},
    "onnx_random": {"nondeterminism"},
    "onnx_shape": {"graph_invalid"},
    "onnx_sparse": {"op_not_allowed"},
    "onnx_table": {"tensor_invalid"},
    "onnx_tensor": {"tensor_invalid"},
    "onnx_too_complex": {"complexity_limit"},
    "onnx_training_info": {"graph_invalid"},
    "onnx_tree": {"tree_invalid"},
    "onnx_type": {"graph_invalid"},
    "onnx_unbounded": {"unbounded"},
    "onnx_unknown_field": {"not_a_model"},
    "onnx_version": {"opset_not_allowed"},
    "tree_too_deep": {"complexity_limit", "not_a_model"},
    "xgboost_feature_names": {"name_invalid"},
}
"""Code -> the corpus' own words for the reason; all other codes of XGBoost's documents are of the last line's kind."""
OF_DOCUMENTS = {"not_a_model", "tree_invalid", "param_invalid"}


@pytest.mark.slow
def test_the_corpus_comes_out_as_its_manifest_says(examiner: Examiner) -> None:
    """Every hostile file is refused for one of its reasons, or flagged; every innocent one is admitted."""
    if not CORPUS.is_dir():
        pytest.skip("not exercised here: the corpus of hostile models is not beside this checkout")
    manifest = json.loads((CORPUS / "manifest.json").read_bytes())
    wrong, slowest = [], 0.0
    for entry in manifest["models"]:
        data, expected = (CORPUS / entry["file"]).read_bytes(), entry["expect"]
        start = time.monotonic()
        try:
            flags = examiner.admit(
                data, format=FORMATS[entry["format"]], limits=STANDARD_LIMITS
            ).info.admission.flags
            code = "admitted"
        except Error as error:
            code, flags = error.code, ()
        slowest = max(slowest, time.monotonic() - start)
        reasons = REASONS.get(code, OF_DOCUMENTS if code.startswith(("tree_", "xgboost_")) else set())
        right = {
            "admit": code == "admitted",
            "admit_bad_feed_fails": code == "admitted",
            "reject": bool(reasons & set(expected.get("reasons", ()))),
            "reject_or_kill": bool(reasons & set(expected.get("reasons", ()))),
            "reject_or_flag": "data_dependent_output" in flags
            or bool(reasons & set(expected.get("reasons", ()))),
        }[expected["outcome"]]
        if not right:
            wrong.append((entry["file"], code, expected.get("reasons")))
    print(f"slowest of {len(manifest['models'])}: {slowest:.2f} s")
    assert not wrong
    assert not Path(manifest["marker_path_must_not_exist"]).exists()
