"""Models in workers: the server's side of `worker`.

    Workers         all of them: how many there may be, who goes first
      Model         one loaded model: its template, deaths, and the way back from them
        Template    the process that loaded it and sees no input
        Worker      a process that runs it, for one caller

Rules
  - A worker runs one caller's requests, as `isolation` says: `owner`, every data owner has workers of its own, and
    callers without a key get a fresh one each time, for nobody can tell them apart; `request`, so does everybody;
    `model`, all callers of a model share them.
  - A worker that has seen nobody's data is kept in readiness for each model: who comes next does not wait for it.
  - No data goes to one worker while another one is being born, nor is one born of a template that sees data.
  - A death is one caller's error. What it means for the next ones, `quarantine` decides.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, NoReturn

from strongroom.errors import Error, Failure, InvalidRequest, LimitExceeded, Unavailable
from strongroom.jobs import Job, Source
from strongroom.oip import Array
from strongroom.processes import Died, Template, Worker, WorkerLimits
from strongroom.quarantine import Deaths, Layout
from strongroom.zygote import Nursery

log = logging.getLogger("strongroom.workers")

BIRTHS: Final = 3
"""Workers that are asked for one after the other before the template is taken to be at fault."""
_SPARE: Final = object()
"""Whose worker it is that has seen nobody's data."""
_NEWBORN: Final = object()
"""Whose worker it is that was asked for, and that nobody has waited for yet. It takes a place, and gives it up to
who needs one, as every idle one: else models that are loaded and not run would keep all places."""


class Workers:
    """All workers of a server. Thread-safe."""

    def __init__(
        self, nursery: Nursery, *, isolation: str, layers: tuple[str, ...], limits: WorkerLimits
    ) -> None:
        """`isolation`: `owner`, `request` or `model`. `layers` of the sandbox have to hold in every process."""
        self.nursery = nursery
        self.isolation = isolation
        self.layers = layers
        self.limits = limits
        self._lock = threading.Lock()
        self._count = 0
        self._idle: OrderedDict[Worker, tuple[Model, Hashable]] = OrderedDict()  # least recently used first
        self._layouts: weakref.WeakKeyDictionary[object, Layout] = weakref.WeakKeyDictionary()

    def load(self, source: Source) -> Model:
        """See `jobs.Host`. The template is ready when this returns; a worker is being made.

        Raises:
            Unavailable: no process can be made now (code `overloaded`).
        """
        return Model(self, source)

    def place(self, *, needed: bool) -> None:
        """Takes a place for one more worker. Where there is none, and it is needed, it is that of the idle one that
        was not used for longest, which ends.

        Raises:
            Unavailable: all of them are running, or it was not needed (code `overloaded`).
        """
        with self._lock:
            if self._count < self.limits.processes:
                self._count += 1
                return
            if not self._idle or not needed:
                raise Unavailable("as many workers are running as there may be", code="overloaded")
            oldest, _ = self._idle.popitem(last=False)  # its place is the new one's
        oldest.close()

    def leave(self) -> None:
        """Gives a place back."""
        with self._lock:
            self._count -= 1

    def keep(self, one: Worker, model: Model, caller: Hashable) -> None:
        """Keeps a worker for the next request of its caller."""
        with self._lock:
            self._idle[one] = (model, caller)

    def find(self, model: Model, caller: Hashable) -> Worker | None:
        """An idle worker of this model and caller, the last used first; it is the callee's from here on."""
        with self._lock:
            for one, owner in reversed(self._idle.items()):
                if owner == (model, caller):
                    del self._idle[one]
                    return one
        return None

    def has(self, model: Model, caller: Hashable) -> bool:
        """Whether there is an idle worker of this model and caller."""
        with self._lock:
            return (model, caller) in self._idle.values()

    def died(self, layout: object, *, now: float) -> bool:
        """Counts a death in what has this `zygote.Child.layout`; True where it is to be used no longer."""
        with self._lock:
            return self._layouts.setdefault(layout, Layout()).died(now=now)

    def drop(self, model: Model) -> None:
        """Ends all idle workers of a model."""
        with self._lock:
            gone = [one for one, owner in self._idle.items() if owner[0] is model]
            for one in gone:
                del self._idle[one]
            self._count -= len(gone)
        for one in gone:
            one.close()


class Model:
    """A model in workers. See `jobs.Loaded`."""

    def __init__(self, workers: Workers, source: Source) -> None:
        self._workers = workers
        self._source = source
        self.info = source.info
        self._positions = {spec.name: number for number, spec in enumerate(source.info.outputs)}
        self._room = workers.limits.room(source.info)
        self._lock = threading.Lock()
        self._deaths = Deaths()
        self._back: float = 0.0  # monotonic seconds at which it may be there again
        self._closed = False
        self._template: Template | None = self._make()
        self.memory_bytes = self._template.memory_bytes
        with self._lock:
            self._bear_spare()

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> dict[str, Array]:
        """See `jobs.Loaded`."""
        names = outputs or tuple(self._positions)
        if not set(names) <= self._positions.keys():
            raise InvalidRequest(
                f"expected outputs among {', '.join(map(repr, self._positions))}", code="output_unknown"
            )
        caller = self._caller(job)
        one = self._take(job, caller)
        again = False
        try:
            job.ticket.stop_with(one.kill)
            results = one.run(inputs, [self._positions[name] for name in names], self.info, job.seconds)
            again = True
        except Died:
            if not job.ticket.cancelled:  # else we have killed it
                self._died(job, one)
            _refuse_died()
        except InvalidRequest:
            again = True
            raise
        except LimitExceeded as error:
            again = error.code != "run_too_long"
            raise
        finally:
            job.ticket.stop_with(None)
            self._give_back(one, caller if again and not job.ticket.cancelled else None)
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Ends the template and its workers."""
        with self._lock:
            self._closed = True
            self._end()

    # Which worker

    def _caller(self, job: Job) -> Hashable:
        """Whose worker it is to be; None: nobody's after this run."""
        if self._workers.isolation == "model":
            return ""
        return job.caller if self._workers.isolation == "owner" else None

    def _take(self, job: Job, caller: Hashable) -> Worker:
        with self._lock:
            template = self._there(job)
            if (newborn := self._workers.find(self, _NEWBORN)) is not None and self._settle(newborn):
                self._workers.keep(newborn, self, _SPARE)
            if caller is not None and (found := self._idle(caller)) is not None:
                return found
            for _ in range(BIRTHS):
                if (found := self._idle(_SPARE)) is not None:
                    return found
                if (one := self._bear(template, needed=True)) is not None and self._settle(one):
                    return one
                if not template.alive():
                    break
            self._lost(template)
            self._there(job)  # says how long it takes
            raise Unavailable("no process can be made to run the model", code="overloaded")

    def _idle(self, caller: Hashable) -> Worker | None:
        """An idle worker of this caller that is still there. Callers hold the lock."""
        while (found := self._workers.find(self, caller)) is not None and not found.alive():
            self._workers.leave()
            found.close()
        return found

    def _give_back(self, one: Worker, caller: Hashable) -> None:
        """Keeps it for its caller, or ends it; and has another one made meanwhile, where none is spare."""
        keep = caller is not None and one.spent_s < self._workers.limits.cpu_s / 2
        with self._lock:
            if keep and not self._closed and one.template is self._template:
                self._workers.keep(one, self, caller)
            else:
                self._workers.leave()
                one.close()
            self._bear_spare()

    def _bear_spare(self) -> None:
        """So that who comes next need not wait; what hinders it hinders nobody else. Callers hold the lock."""
        if self._template is None or self._workers.has(self, _SPARE) or self._workers.has(self, _NEWBORN):
            return
        with contextlib.suppress(Error):
            if (one := self._bear(self._template, needed=False)) is not None:
                self._workers.keep(one, self, _NEWBORN)

    def _bear(self, template: Template, *, needed: bool) -> Worker | None:
        """Asks for a worker, which gets ready on its own; None where none can be had. Callers hold the lock."""
        self._workers.place(needed=needed)
        try:
            return Worker(template, self._room, most=self._workers.limits.answer_bytes)
        except OSError:  # the template has ended, or there are no descriptors
            self._workers.leave()
            return None

    def _settle(self, one: Worker) -> bool:
        """Waits for a worker that was asked for; False: there is none, and its place is given back. Callers hold the
        lock.
        """
        try:
            one.settle()
        except (OSError, EOFError):
            self._workers.leave()
            one.close()
            return False
        return True

    # Deaths

    def _there(self, job: Job | None) -> Template:
        """The template, alive; or who has to wait how long. Callers hold the lock."""
        if self._closed:
            raise Failure("the model is closed")
        now = time.monotonic()
        if job is not None and (wait := self._deaths.wait_s(_origin(job), now=now)):
            _refuse_now("runs of this caller ended the model's process several times", wait)
        if self._template is not None and not self._template.alive():
            self._lost(self._template)
        if self._template is None:
            _refuse_now("the model's process ended several times and is made anew", self._back - now)
        return self._template

    def _died(self, job: Job, one: Worker) -> None:
        with self._lock:
            if one.template is not self._template:
                return  # it ended with its template, which others' deaths did: this caller has no part in it
            if one.template.alive():
                now = time.monotonic()
                self._deaths.died(_origin(job), now=now)
                if not self._workers.died(one.template.child.layout, now=now):
                    return
            self._lost(one.template)

    def _lost(self, template: Template) -> None:
        """Ends what there is, and begins to make it anew, from another zygote: a template that died has a layout that
        somebody may know, too. Callers hold the lock.
        """
        if self._template is not template or self._closed:
            return
        self._end()
        delay = self._deaths.renewed()
        self._back = time.monotonic() + delay + 3
        log.warning("a model's template is made anew")
        threading.Thread(
            target=self._make_anew, args=(template, delay), name="workers-again", daemon=True
        ).start()

    def _make_anew(self, former: Template, delay: float) -> None:
        while True:
            time.sleep(delay)
            if self._is_closed():
                return
            try:
                self._workers.nursery.renew(former.child)
                made = self._make()
                break
            except Error as error:
                log.error("a model's template: %s", error.code)
            except (OSError, MemoryError) as error:  # whatever it is: the model must not stay away for ever
                log.error("a model's template: %s", type(error).__name__)
            with self._lock:
                delay = self._deaths.renewed()
                self._back = time.monotonic() + delay + 3
        with self._lock:
            if self._closed:
                made.close()
                return
            self._template = made
            self._bear_spare()

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def _make(self) -> Template:
        workers = self._workers
        return Template(workers.nursery, self._source, limits=workers.limits, layers=workers.layers)

    def _end(self) -> None:
        if self._template is not None:
            self._template.close()
            self._template = None
        self._workers.drop(self)


def _origin(job: Job) -> str:
    """Who waits where runs like this one kill workers."""
    return job.origin or job.caller or ""


def _refuse_died() -> NoReturn:
    raise InvalidRequest(
        "the process that ran the model ended before it answered", code="worker_died"
    ) from None


def _refuse_now(why: str, wait: float) -> NoReturn:
    raise Unavailable(why, code="model_quarantined", retry_after_s=max(1, math.ceil(wait)))
