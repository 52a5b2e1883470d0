"""Kills a process that uploads and deletes, again and again, while its anchor is in a TPM: `tpm_kills.py FOLDER SEED
KILLS`. After each kill the machine is reset, the store opened and compared with what was acknowledged; prints what it
saw as JSON. A process of its own, because it forks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(repository), str(repository / "tests"), str(repository / "tools")]

import store_worker
from software_tpm import SoftwareTpm, software_tpm

from strongroom.tee.tpm import NvAnchor
from strongroom.tee.tpm_device import Device

INDEX, SECRET = 0x01805354, b"n" * 32


@contextlib.contextmanager
def anchor(machine: SoftwareTpm):  # type: ignore[no-untyped-def]
    """The anchor in the machine's TPM, over a connection of its own."""
    device = Device(machine.tcti)
    try:
        yield NvAnchor(device, INDEX, secret=SECRET)
    finally:
        device.close()


def killed(machine: SoftwareTpm, store: Path, seed: int, rng: random.Random) -> list[str]:
    """What a worker said before it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        mine = NvAnchor(Device(machine.tcti), INDEX, secret=SECRET)
        store_worker.anchored = lambda _folder: mine  # type: ignore[assignment,return-value]
        store_worker.work(store, seed)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        said = [lines.readline() for _ in range(rng.randrange(1, 9))]
        time.sleep(rng.random() / 50)
        os.kill(child, signal.SIGKILL)
        said += lines.readlines()
    os.waitpid(child, 0)
    return b"".join(said).decode().splitlines()


def main(folder: Path, seed: int, kills: int) -> None:
    """Kills and compares."""
    truth, rng = store_worker.Truth(), random.Random(seed)
    with software_tpm(folder / "machine") as machine:
        device = Device(machine.tcti)
        device.define_nv(INDEX, secret=SECRET, size=64)
        device.write_nv(INDEX, bytes(64), secret=SECRET)
        device.close()
        for number in range(kills):
            started = truth.acknowledge(killed(machine, folder / "store", seed + number, rng))
            machine.reset()
            with anchor(machine) as mine, store_worker.open_store(folder / "store", mine) as store:
                truth.compare(store, started)
    print(json.dumps({"kills": kills, **truth.counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
