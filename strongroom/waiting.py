"""A template in waiting: forked and locked down before there is a model for it, so that a load waits for neither.

    asked for in the background ──► zygote forks it ──► it locks itself down, and says what holds ──► waits
    a load: it is taken ──► sets the limit that depends on the model ──► seen by the server ──► gets the model

Rules
  - It has seen no model and no input, and is what a template forked at the moment would be. It is used once: who takes
    it has it alone, and another one is made later, when the load is over.
  - One that has ended, has said something unasked, or comes from a zygote that is not in charge any more is dropped,
    and one is forked in its place. When a zygote is replaced, its waiting one ends then and not at the next load.
  - It promises its layers; all that the configuration promises have to be among them. Its limit of address space is
    read from the kernel, after it was set and before there is a byte of a model.
"""

from __future__ import annotations

import logging
import mmap
import re
import threading
from pathlib import Path
from typing import Final

from strongroom import frames, records
from strongroom.errors import Error, Failure, Unavailable
from strongroom.zygote import TEMPLATE, Child, Nursery, Timely

log = logging.getLogger("strongroom.waiting")

READY_S: Final = 10.0
"""Seconds to lock itself down, and to set a limit; some hundredths usually."""
LATER_S: Final = 1.0
"""Seconds after a load before the next one is made, unless the first run is over before: it needs the processors."""


class Waiting:
    """Templates that are ready for a model; one is kept. Thread-safe."""

    def __init__(self, nursery: Nursery, *, cpu_s: int, processes: int, layers: tuple[str, ...]) -> None:
        """Makes none yet. `cpu_s`: of processor time in the life of a template, and of each worker; `processes`: of one
        template at a time; `layers` of the sandbox have to hold.
        """
        self.nursery = nursery
        self._layers = layers
        self._promise = {"cpu_s": cpu_s, "processes": processes, "layers": list(layers)}
        self._lock = threading.Lock()
        self._kept: Child | None = None
        self._making = False
        self._hurry = threading.Event()
        nursery.watch(self.drop)

    @property
    def pid(self) -> int | None:
        """The process id of the one that waits; None: there is none."""
        with self._lock:
            return None if self._kept is None else self._kept.pid

    def take(self, memory_bytes: int) -> Child:
        """A template without a model that may take `memory_bytes` of address space besides what it has.

        Raises:
            Unavailable: no process can be made, or it ended (code `overloaded`).
            Failure: the zygote does not start (code `start_refused`); it is not confined as it has to be.
        """
        with self._lock:
            child, self._kept = self._kept, None
        if child is not None:
            try:
                if child.quiet() and self.nursery.in_charge(child):
                    return _limited(child, memory_bytes)
            except (OSError, EOFError):
                log.warning("a template in waiting ended")
            except BaseException:
                child.close()
                raise
            child.close()
        child = self._fork()
        try:
            return _limited(child, memory_bytes)
        except (OSError, EOFError):
            child.close()
            raise Unavailable("no process can be made for the model", code="overloaded") from None
        except BaseException:
            child.close()
            raise

    def make(self, *, after_s: float = 0.0) -> None:
        """Has one made in a thread, so many seconds from now at the latest, unless there is one or one is being made.
        What hinders it hinders nobody: the next load forks its own.
        """
        with self._lock:
            if self._kept is not None:
                return
            if not after_s:
                self._hurry.set()  # also one that was to be made later
            if self._making:
                return
            self._making = True
            if after_s:
                self._hurry.clear()
        try:
            threading.Thread(target=self._make, args=(after_s,), name="template-waiting", daemon=True).start()
        except RuntimeError:  # there is no thread: another time
            with self._lock:
                self._making = False

    def drop(self) -> None:
        """Ends the one that waits."""
        with self._lock:
            child, self._kept = self._kept, None
        if child is not None:
            child.close()

    def _make(self, after_s: float) -> None:
        child = None
        try:
            self._hurry.wait(after_s)
            child = self._fork()
        except Error as error:
            level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
            log.log(level, "no template in waiting: %s", error.code)
        finally:
            with self._lock:
                self._making = False
                # Under the lock: a zygote that is replaced after this look drops what is kept.
                if child is not None and self.nursery.in_charge(child):
                    self._kept, child = child, None
            if child is not None:
                child.close()

    def _fork(self) -> Child:
        """One that is locked down."""
        child = self.nursery.fork(TEMPLATE)
        try:
            timely = Timely(child.end, READY_S)
            frames.send(timely, self._promise)
            answer, _ = frames.receive(timely, most=0)
            held = answer.get("held")
            if not isinstance(held, list) or not all(layer in held for layer in self._layers):
                raise Failure("the process that loads models is not confined as the configuration says")
        except (OSError, EOFError):
            child.close()
            raise Unavailable("no process can be made for the model", code="overloaded") from None
        except BaseException:
            child.close()
            raise
        return child


def _limited(child: Child, memory_bytes: int) -> Child:
    """Has it set its limit, and sees that it did.

    Raises:
        OSError, EOFError: it ended. Failure: the kernel has another limit for it.
    """
    size = int(Path(f"/proc/{child.pid}/statm").read_bytes().split()[0]) * mmap.PAGESIZE
    most = str(size + memory_bytes)
    timely = Timely(child.end, READY_S)
    frames.send(timely, {"address_bytes": size + memory_bytes})
    if timely.recv(1) != records.LIMITED:
        raise EOFError
    if address_limits(child.pid) != (most, most):
        raise Failure("the process that loads models has another limit of memory than it was given")
    return child


def address_limits(pid: int) -> tuple[str, ...]:
    """The soft and the hard limit of a process's address space, bytes, as the kernel says: proc_pid_limits(5).

    Raises:
        OSError: it ended.
    """
    text = Path(f"/proc/{pid}/limits").read_text("ascii")
    found = re.search(r"^Max address space +(\w+) +(\w+) ", text, re.MULTILINE)
    return () if found is None else found.groups()
