"""What running a model takes and gives, wherever it runs: in this process (`engine`) or in workers (`workers`)."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from strongroom.errors import LimitExceeded
from strongroom.models.info import ModelInfo
from strongroom.oip import Array

if TYPE_CHECKING:  # the processes that models run in have no cryptography in them
    from strongroom.sealed import Opening

THREADS: Final = 1
"""Threads of one run. With two, sums are made in another order, and answers differ in the last bits."""


@functools.cache
def engine() -> str:
    """What runs models here: `onnxruntime/1.32.0`; without a number where the installation does not tell it. Not by
    importing it: a server whose models run in other processes has no engine in it.
    """
    try:
        return f"onnxruntime/{importlib.metadata.version('onnxruntime')}"
    except importlib.metadata.PackageNotFoundError:
        return "onnxruntime"


class Ticket:
    """Somebody waits for a run; once nobody does, it is not worth its end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more: stops what runs, and what would begin."""
        with self._lock:
            self.cancelled = True
            # Under the lock: a stop that comes late would end whatever the process does for somebody else by then.
            if self._stop is not None:
                self._stop()

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """What stops the run that begins now; None: it has ended. At once, where nobody waits any more."""
        with self._lock:
            self._stop = stop
            if self.cancelled and stop is not None:
                stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: for whom, and how long."""

    caller: str | None
    """The data owner's principal; None: nobody who could be told from others."""
    seconds: float
    """Wall time, after which it is stopped."""
    origin: str = ""
    """Where it comes from, for whoever counts what its data do: the principal, or the address of somebody without a
    key. Never whose process it runs in."""
    ticket: Ticket = field(default_factory=Ticket)
    quick: bool = False
    """Whether admission bounded it by so little that nobody is kept waiting meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that was admitted, and where its canonical bytes come from: again and again, for as long as it is loaded.

    The digests (lower-case hex) and `info` come from an authenticated record, or from admission itself.
    """

    info: ModelInfo
    sha256: str
    canonical_sha256: str
    read: Callable[[], bytes | bytearray]
    stages: Callable[[], contextlib.AbstractContextManager[tuple[Opening, ...]]] = field(
        default=lambda: contextlib.nullcontext(())
    )
    """The stages of its prepared form, opened; () where it has none."""
    spoilt: Callable[[tuple[Opening, ...], str], None] = field(default=lambda _stages, _why: None)
    """To be told, with a code, that these stages of the prepared form could not be used."""
    room: int = 0
    """Bytes of memory that it may take where it has several stages."""


def too_long(seconds: float) -> LimitExceeded:
    """What becomes of a run whose time is over."""
    return LimitExceeded(f"the run took longer than the {seconds:.0f} s that it may", code="run_too_long")


class Run(Protocol):
    """A run under way. Whoever began it calls `step` whenever `fileno` can be read from, `results` once there are some,
    and `stop` when its time is over or nobody waits any more: one thread at a time.
    """

    def fileno(self) -> int:
        """A descriptor that can be read from when there is something for `step`."""

    def step(self) -> int | None:
        """How many bytes the results have, where they are there by now. Once it raises, the run has ended.

        Raises:
            As `Loaded.run`.
        """

    def results(self) -> dict[str, Array]:
        """The results, and with them the run's end.

        Raises:
            As `Loaded.run`.
        """

    def stop(self) -> None:
        """Ends it: there will be no results."""


class Loaded(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    memory_bytes: int
    """Estimate of the memory it occupies between runs, in bytes."""
    stages: int
    """In how many it runs; 1: as a whole."""

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> dict[str, Array]:
        """Runs the model on arrays that `inputs.check_inputs` returned; () asks for all outputs.

        Raises:
            InvalidRequest: no such output, or the model cannot be run on these inputs (codes `output_unknown`,
                `input_not_text`, `run_failed`, `worker_died`).
            LimitExceeded: more time, memory or output than it may (codes `run_too_long`, `run_memory`,
                `response_too_large`).
            Unavailable: not now (codes `model_quarantined`, `overloaded`).
            Failure: the model is closed, or an output is not of the type that it declares.
        """

    def begin(
        self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job
    ) -> Run | dict[str, Array] | None:
        """As `run`, without waiting for anything or anybody: the results of a quick run, or one that is under way;
        None where there would be a wait before it could begin, which is `run`'s to do.

        Raises:
            As `run`.
        """

    def shared(self, job: Job) -> bool:
        """Whether runs of this one's caller may be one: not where each has a process of its own."""

    def close(self) -> None:
        """Gives the memory back; later runs are refused."""


class Host(Protocol):
    """Where models run."""

    def load(self, source: Source) -> Loaded:
        """A model that is ready to run.

        Raises:
            AdmissionRefused: the engine cannot load it, or sees other inputs and outputs in it than admission did
                (codes `engine_refused`, `engine_interface`).
            LimitExceeded: loading takes more time or memory than it may, or ends the process (`load_limits`).
            SealRefused: the bytes are not those that were admitted (code `seal_digest`).
        """
