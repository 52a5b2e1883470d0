"""A process that only uploads to and deletes from a store, and says so; and the driver that kills it.

`store_worker.py work FOLDER SEED` prints a line before each change ("upload NAME TOKEN", "delete NAME
VERSION") and one after its commit ("done ..."). `store_worker.py drive FOLDER SEED KILLS` starts such
workers, kills each at a random moment, opens the store and compares it with what was acknowledged; it
prints what it saw as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.anchor import UNANCHORED, Anchor, SimulatedAnchor
from strongroom.keys import SealingRoot, simulated_root
from strongroom.models.info import ONNX_RULES, Admission, ModelInfo, Room, TensorSpec
from strongroom.store import ModelVersion, Store

MEASUREMENT = "ab" * 32
SECURITY = hashlib.sha256(b"security configuration").digest()
CHUNK_SIZE = 1024
OWNERS = ("a1" * 32, "b2" * 32)
INFO = ModelInfo(
    format="onnx",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("rows", 4)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("rows", 1)),),
    primary_output="y",
    feature_names=("length", "width"),
    notes=(("opset", 17), ("classes", ("a", "b"))),
    rules=ONNX_RULES,
    admission=Admission(
        level="strict",
        flags=(),
        nodes=1,
        tensors=1,
        tensor_bytes=4,
        resident_bytes=0,
        load_operations=0,
        rooms=(Room(sizes=(64,), peak_bytes=100, operations=10, steps=1),),
        text_bytes=100,
        versions=(("rules", "1"),),
    ),
)


def root(*, seed: int = 7, measurement: str = MEASUREMENT) -> SealingRoot:
    """A simulated sealing root, always the same for the same arguments."""
    return simulated_root(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), measurement=measurement)


def anchored(folder: Path) -> SimulatedAnchor:
    """An anchor beside the store: an older copy of the folder is refused."""
    return SimulatedAnchor(folder.with_name(folder.name + "-anchor.json"))


def open_store(folder: Path, anchor: Anchor = UNANCHORED) -> Store:
    """The store under test, with small chunks."""
    return Store.open(
        folder,
        root=root(),
        security_digest=SECURITY,
        now=lambda: 1_800_000_000,
        anchor=anchor,
        chunk_size=CHUNK_SIZE,
    )


def upload(store: Store, name: str, data: bytes, *, owner: str = OWNERS[0], piece: int = 700) -> ModelVersion:
    """Uploads `data` in pieces and commits it."""
    with store.begin(name=name, owner=owner, access="private", format="onnx", max_bytes=1 << 20) as up:
        for start in range(0, len(data), piece):
            up.write(data[start : start + piece])
        sealed = up.seal()
        assert up.read_back() == data
        assert sealed.sha256 == hashlib.sha256(data).hexdigest()
        return up.commit(info=INFO, canonical_sha256=sealed.sha256)


def content(token: int) -> bytes:
    """The bytes of the model with this token: 1 to 6 chunks."""
    rng = random.Random(token)
    return rng.randbytes(rng.choice((1, 1023, 1024, 1025, 2048, rng.randrange(1, 6000))))


def work(folder: Path, seed: int) -> None:
    """Uploads and deletes until killed.

    Lines are written unbuffered, so what was said is what the parent reads.
    """
    rng = random.Random(seed)

    def say(line: str) -> None:
        os.write(1, line.encode() + b"\n")

    with open_store(folder, anchored(folder)) as store:
        while True:
            models = store.models()
            if models and rng.random() < len(models) / 16:
                model = rng.choice(models)
                version = None if rng.random() < 0.2 else model.version
                say(f"delete {model.name} {version or 0}")
                store.delete(model.name, version)
                say("done")
            else:
                name, token = f"model-{rng.randrange(6)}", rng.getrandbits(48)
                say(f"upload {name} {token}")
                say(f"done {upload(store, name, content(token)).version}")


class Truth:
    """What the acknowledgements say must be there, must not, and what may be either."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, int], int] = {}
        self.used: dict[str, int] = {}
        self.counts = {"uploads": 0, "deletes": 0, "in_flight_absent": 0, "in_flight_present": 0}

    def acknowledge(self, lines: list[str]) -> list[str] | None:
        """Applies every change that was answered; returns the one that was not, if any."""
        started: list[str] | None = None
        for line in lines:
            words = line.split()
            if words[0] != "done":
                started = words
                continue
            assert started is not None
            if started[0] == "upload":
                self._uploaded(started[1], int(words[1]), int(started[2]))
                self.counts["uploads"] += 1
            else:
                for key in self._meant(started):
                    del self.there[key]
                self.counts["deletes"] += 1
            started = None
        return started

    def compare(self, store: Store, started: list[str] | None) -> None:
        """Every acknowledged model is there with its bytes, none that was deleted.

        The change in flight is whole.
        """
        found = {(model.name, model.version): model for model in store.models()}
        if started is not None and started[0] == "upload":
            new = set(found) - set(self.there)
            assert len(new) <= 1, new
            for name, version in new:
                assert name == started[1]
                self._uploaded(name, version, int(started[2]))
            self.counts["in_flight_present" if new else "in_flight_absent"] += 1
        elif started is not None:
            meant = self._meant(started)
            gone = meant - set(found)
            assert gone in (set(), meant), (gone, meant)
            for key in gone:
                del self.there[key]
            self.counts["in_flight_present" if gone else "in_flight_absent"] += 1
        assert set(found) == set(self.there), (sorted(found), sorted(self.there))
        for key, token in self.there.items():
            data = content(token)
            assert store.read(found[key], verify="sha256") == data
            assert found[key].sha256 == hashlib.sha256(data).hexdigest()
        bad = [result for result in store.check() if not result.passed]
        assert not bad, bad

    def _uploaded(self, name: str, version: int, token: int) -> None:
        assert version > self.used.get(name, 0), "a version number came twice"
        self.used[name] = version
        self.there[name, version] = token

    def _meant(self, started: list[str]) -> set[tuple[str, int]]:
        return {key for key in self.there if key[0] == started[1] and started[2] in ("0", str(key[1]))}


def drive(folder: Path, seed: int, kills: int) -> dict[str, int]:
    """Kills `kills` workers and compares after each.

    Workers are forked: a Python start each would take minutes.
    """
    rng, truth, before_open = random.Random(seed), Truth(), 0
    with open_store(folder.with_name("calibration")) as store:
        begun = time.perf_counter()
        for token in range(4):
            upload(store, "model", content(token))
        longest = min(0.5, max(0.05, 3 * (time.perf_counter() - begun)))  # about a dozen changes on this disk
    for number in range(kills):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            os.dup2(write_end, 1)
            with contextlib.suppress(BaseException):
                work(folder, seed + number)
            os._exit(3)  # a worker ends by being killed only
        os.close(write_end)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"worker {number} ended by itself with status {status}"
        with os.fdopen(read_end, "rb") as stream:
            said = stream.read().decode()
        before_open += not said
        started = truth.acknowledge(said.splitlines())
        with open_store(folder, anchored(folder)) as store:
            truth.compare(store, started)
    return {
        "kills": kills,
        "before_the_first_change": before_open,
        "models": len(truth.there),
        **truth.counts,
    }


def main() -> None:
    """Command line of the module's docstring."""
    mode, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if mode == "work":
        work(folder, seed)
    print(json.dumps(drive(folder, seed, int(sys.argv[4]))))


if __name__ == "__main__":
    main()
