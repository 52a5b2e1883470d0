"""The sandbox: which layers hold, and what a process may still do under each profile."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from strongroom import sandbox
from strongroom.errors import Failure

linux = pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: the layers are Linux's")


def test_the_layers_that_hold_are_measured_in_a_throw_away_child() -> None:
    """Known names, sorted; this process keeps everything."""
    held = sandbox.probe()
    assert set(held) <= set(sandbox.LAYERS) and list(held) == sorted(held)
    assert {"closed_descriptors", "rlimits"} <= set(held)
    assert not sandbox._held
    assert any(Path("/").iterdir())


@linux
def test_a_process_with_two_threads_is_not_confined() -> None:
    """The second one would go on without the filter: nothing is done."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(Failure) as caught:
            sandbox.lock_down(
                sandbox.Profile(
                    memory_bytes=1, cpu_s=1, read_fds=(), write_fds=(), fork=False, receive_fds=False
                )
            )
    finally:
        done.set()
        other.join()
    assert caught.value.code == "sandbox_threads"
    assert not sandbox._held
