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
  - A worker that holds much memory after its run ends: what idle ones hold is bounded by their number.
  - A death is one caller's error. What it means for the next ones, `quarantine` decides.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, NoReturn, Self

from strongroom.errors import Error, Failure, InvalidRequest, LimitExceeded, Unavailable
from strongroom.feeding import Feeding
from strongroom.jobs import Job, Source, too_long
from strongroom.oip import Array
from strongroom.processes import ENDING, Died, Template, Worker, WorkerLimits
from strongroom.quarantine import Deaths, Layout
from strongroom.waiting import LATER_S, Waiting
from strongroom.zygote import Nursery

log = logging.getLogger("strongroom.workers")

BIRTHS: Final = 3
"""Workers that are asked for one after the other before the template is taken to be at fault."""
FEW: Final = 64
"""Tensors of a run whose record a socket takes at once."""
GONE_S: Final = 1.0
"""Seconds that a model's end waits for its template's, whose memory the next model may be about to take."""
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
        self.limits = limits
        self._lock = threading.Lock()
        self._later = ThreadPoolExecutor(max_workers=1, thread_name_prefix="workers-later")
        self._count = 0
        self._idle: OrderedDict[Worker, tuple[Model, Hashable]] = OrderedDict()  # least recently used first
        self._of: dict[tuple[Model, Hashable], list[Worker]] = {}  # the same, the last used last
        self.waiting = Waiting(
            nursery, cpu_s=limits.cpu_s, processes=limits.processes + ENDING, layers=layers
        )
        """The template that a load takes."""
        self._layouts: weakref.WeakKeyDictionary[object, Layout] = weakref.WeakKeyDictionary()

    def ready(self) -> Self:
        """Has a template made for the first load; later ones follow on their own."""
        self.waiting.make()
        return self

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
            self._forget(oldest := next(iter(self._idle)))  # its place is the new one's
        oldest.close()

    def leave(self) -> None:
        """Gives a place back."""
        with self._lock:
            self._count -= 1

    def keep(self, one: Worker, model: Model, caller: Hashable) -> None:
        """Keeps a worker for the next request of its caller."""
        with self._lock:
            self._idle[one] = (model, caller)
            self._of.setdefault((model, caller), []).append(one)

    def find(self, model: Model, caller: Hashable) -> Worker | None:
        """An idle worker of this model and caller, the last used first; it is the callee's from here on."""
        with self._lock:
            mine = self._of.get((model, caller))
            if not mine:
                return None
            self._forget(one := mine[-1])
            return one

    def has(self, model: Model, caller: Hashable) -> bool:
        """Whether there is an idle worker of this model and caller."""
        with self._lock:
            return (model, caller) in self._of

    def later(self, work: Callable[..., None], *args: Any) -> None:
        """Does what may have to wait, in a thread."""
        self._later.submit(_logged, work, *args)

    def died(self, layout: object, *, now: float) -> bool:
        """Counts a death in what has this `zygote.Child.layout`; True where it is to be used no longer."""
        with self._lock:
            return self._layouts.setdefault(layout, Layout()).died(now=now)

    def drop(self, model: Model) -> None:
        """Ends all idle workers of a model."""
        with self._lock:
            gone = [one for one, owner in self._idle.items() if owner[0] is model]
            for one in gone:
                self._forget(one)
            self._count -= len(gone)
        for one in gone:
            one.close()

    def _forget(self, one: Worker) -> None:
        """It is nobody's idle worker any more. Callers hold the lock."""
        owner = self._idle.pop(one)
        mine = self._of[owner]
        mine.remove(one)
        if not mine:
            del self._of[owner]


class Model:
    """A model in workers. See `jobs.Loaded`."""

    def __init__(self, workers: Workers, source: Source) -> None:
        self._workers = workers
        self._source = source
        self.info = source.info
        self._positions = {spec.name: number for number, spec in enumerate(source.info.outputs)}
        self._room = workers.limits.room(source.info)
        self._lock = threading.Lock()
        self._undone: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._deaths = Deaths()
        self._back: float = 0.0  # monotonic seconds at which it may be there again
        self._closed = False
        self._new = True
        self._former: tuple[Template, float] | None = None  # what is to be made anew, and nobody does yet
        self._template: Template | None = self._make()
        self.memory_bytes = self._template.memory_bytes
        self.stages = self._template.stages
        with self._lock:
            self._bear_spare()

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> dict[str, Array]:
        """See `jobs.Loaded`."""
        names = self._names(outputs)
        feeding = self._feeding()
        if feeding is None:
            return self._run(inputs, names, job, None)
        seconds = job.seconds + feeding.plan.seconds
        with feeding.turn(self._source, seconds=seconds):
            return self._run(inputs, names, replace(job, seconds=seconds), feeding)

    def _feeding(self) -> Feeding | None:
        """Of a model in stages: what gives them to its workers."""
        template = self._template
        return None if template is None else template.feeding

    def _run(
        self, inputs: Mapping[str, Array], names: tuple[str, ...], job: Job, feeding: Feeding | None
    ) -> dict[str, Array]:
        one = self._take(job, self._caller(job))
        if one.template.feeding is not feeding:  # it was made anew meanwhile: this run has not the turn there
            self.give_back(one, job, again=True)
            raise Unavailable("the model's process was made anew", code="overloaded")
        under = _Under(self, one, job, names)
        try:
            under.start(inputs)
        except Died:
            under.died()
        return under.wait()

    def begin(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> _Under | None:
        """See `jobs.Loaded`."""
        names = self._names(outputs)
        if (
            self._feeding() is not None
            or len(self.info.inputs) + len(names) > FEW
            or (one := self._at_hand(job)) is None
        ):
            return None
        under = _Under(self, one, job, names)
        try:
            under.start(inputs)
        except Died:
            return None  # it had ended while it was idle: nobody is told, and another one takes the request
        return under

    def shared(self, job: Job) -> bool:
        """See `jobs.Loaded`."""
        return job.caller is not None and self._caller(job) is not None

    def positions(self, names: tuple[str, ...]) -> list[int]:
        """Of outputs, in the model's metadata."""
        return [self._positions[name] for name in names]

    def _names(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        names = outputs or tuple(self._positions)
        if not all(name in self._positions for name in names):
            raise InvalidRequest(
                f"expected outputs among {', '.join(map(repr, self._positions))}", code="output_unknown"
            )
        return names

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
            self._catch_up()
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

    def _at_hand(self, job: Job) -> Worker | None:
        """A worker for this caller, where one can be had without waiting: for it, or for a lock, which may be held for
        as long as a birth takes.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if (
                self._template is None
                or self._closed
                or self._deaths.wait_s(_origin(job), now=time.monotonic())
            ):
                return None
            if (newborn := self._workers.find(self, _NEWBORN)) is not None:
                kind = _NEWBORN
                if newborn.spoke():  # as in `_take`: no data while one is being born
                    if not self._settle(newborn):
                        return None
                    kind = _SPARE
                self._workers.keep(newborn, self, kind)
                if kind is _NEWBORN:
                    return None
            caller = self._caller(job)
            one = self._workers.find(self, caller) if caller is not None else None
            return one or self._workers.find(self, _SPARE)
        finally:
            self._lock.release()

    def _idle(self, caller: Hashable) -> Worker | None:
        """An idle worker of this caller that is still there. Callers hold the lock."""
        while (found := self._workers.find(self, caller)) is not None and not found.alive():
            self._workers.leave()
            found.close()
        return found

    def give_back(self, one: Worker, job: Job, *, again: bool) -> None:
        """Takes back a worker after a run: for its caller's next one, where it may be used `again`."""
        limits = self._workers.limits
        keep = again and one.spent_s < limits.cpu_s / 2 and not one.swollen(limits.idle_bytes)
        self._soon(self._take_back, one, self._caller(job) if keep else None)

    def died(self, job: Job, one: Worker) -> None:
        """Counts the death of a worker in a run."""
        self._soon(self._count_death, job, one)

    def _soon(self, work: Callable[..., None], *args: Any) -> None:
        """Does it under the lock; where that is held, which may be as long as a birth takes, somebody else waits."""
        if not self._lock.acquire(blocking=False):
            self._undone.append((work, args))
            self._workers.later(self._locked)
            return
        try:
            work(*args)
        finally:
            self._lock.release()

    def _locked(self) -> None:
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        """Does what was left for whoever has the lock next: a worker that is not given back yet is not to be had, and
        has a place all the same. Callers hold the lock.
        """
        while self._undone:
            work, args = self._undone.popleft()
            work(*args)

    def _take_back(self, one: Worker, caller: Hashable) -> None:
        """Keeps it for its caller, or ends it; and has another one made meanwhile, where none is spare. Callers hold
        the lock.
        """
        if caller is not None and not self._closed and one.template is self._template:
            self._workers.keep(one, self, caller)
        else:
            self._workers.leave()
            one.close()
        self._bear_spare()
        if self._new:  # the processors are free
            self._new = False
            self._workers.waiting.make()

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
            return template.bear(self._room, most=self._workers.limits.answer_bytes)
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
            self._begin_anew()
            _refuse_now("the model's process ended several times and is made anew", self._back - now)
        return self._template

    def _count_death(self, job: Job, one: Worker) -> None:
        """Callers hold the lock."""
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
        self._template = None
        self._workers.drop(self)
        delay = self._deaths.renewed()
        self._back = time.monotonic() + delay + 3
        log.warning("a model's template is made anew")
        self._former = template, delay
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Begins to make the template anew, where nothing does yet. Callers hold the lock."""
        if self._former is None:
            return
        try:
            threading.Thread(
                target=self._make_anew, args=self._former, name="workers-again", daemon=True
            ).start()
            self._former = None
        except RuntimeError:  # there is no thread: the next request tries again
            log.error("a model's template: no thread")

    def _make_anew(self, former: Template, delay: float) -> None:
        former.close()  # here, for zygotes take their time to end
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
            except Exception as error:  # noqa: BLE001 - whatever it is: the model must not stay away for ever
                log.error("a model's template: %s", type(error).__name__)
            with self._lock:
                delay = self._deaths.renewed()
                self._back = time.monotonic() + delay + 3
        with self._lock:
            if self._closed:
                made.close()
                return
            self._template, self.stages = made, made.stages
            self._bear_spare()

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def _make(self) -> Template:
        workers = self._workers
        try:
            return Template(workers.waiting, self._source, limits=workers.limits)
        finally:
            workers.waiting.make(after_s=LATER_S)

    def _end(self) -> None:
        for template in (self._template, self._former[0] if self._former is not None else None):
            if template is not None:
                template.close(wait_s=GONE_S)
        self._template = self._former = None
        self._workers.drop(self)


class _Under:
    """A run of a worker. See `jobs.Run`."""

    __slots__ = ("_job", "_model", "_names", "_one", "_until")

    def __init__(self, model: Model, one: Worker, job: Job, names: tuple[str, ...]) -> None:
        self._model, self._one, self._job, self._names = model, one, job, names
        self._until = 0.0

    def start(self, inputs: Mapping[str, Array]) -> None:
        """Gives the worker its inputs.

        Raises:
            Died: it has ended. LimitExceeded: as `Worker.begin`. In either case it was given back.
        """
        self._until = time.monotonic() + self._job.seconds
        try:
            self._job.ticket.stop_with(self._one.kill)
            wanted = self._model.positions(self._names)
            self._one.begin(inputs, wanted, self._model.info, self._job.seconds)
        except LimitExceeded as error:
            self._end(again=error.code != "run_too_long")
            raise
        except BaseException:
            self._end(again=False)
            raise

    def fileno(self) -> int:
        """See `jobs.Run`."""
        return self._one.fileno()

    def step(self) -> int | None:
        """See `jobs.Run`."""
        with self._ending():
            return self._one.step()

    def results(self) -> dict[str, Array]:
        """See `jobs.Run`."""
        with self._ending():
            results = self._one.results()
        self._end(again=True)
        return dict(zip(self._names, results, strict=True))

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except (InvalidRequest, LimitExceeded):  # what it said, and it goes on
            self._end(again=True)
            raise
        except Died:
            self._end(again=False)
            self.died()
        except BaseException:
            self._end(again=False)
            raise

    def stop(self) -> None:
        """See `jobs.Run`."""
        self._one.kill()
        self._one.over()
        self._end(again=False)

    def wait(self) -> dict[str, Array]:
        """Waits for it, in a thread.

        Raises:
            As `jobs.Loaded.run`.
        """
        while True:
            left = self._until - time.monotonic()
            if left <= 0:
                self.stop()
                raise too_long(self._job.seconds)
            self._one.wait(left)  # first: hardly any answer is there already
            if self.step() is not None:
                return self.results()

    def died(self) -> NoReturn:
        """The worker has ended; unless it was us, that is counted.

        Raises:
            InvalidRequest: code `worker_died`.
        """
        if not self._job.ticket.cancelled:
            self._model.died(self._job, self._one)
        raise InvalidRequest(
            "the process that ran the model ended before it answered", code="worker_died"
        ) from None

    def _end(self, *, again: bool) -> None:
        ticket = self._job.ticket
        ticket.stop_with(None)
        self._model.give_back(self._one, self._job, again=again and not ticket.cancelled)


def _origin(job: Job) -> str:
    """Who waits where runs like this one kill workers."""
    return job.origin or job.caller or ""


def _logged(work: Callable[..., None], *args: Any) -> None:
    try:
        work(*args)
    except Exception as error:  # noqa: BLE001 - nobody else would be told
        log.error("a worker's end: %s", type(error).__name__)


def _refuse_now(why: str, wait: float) -> NoReturn:
    raise Unavailable(why, code="model_quarantined", retry_after_s=max(1, math.ceil(wait)))
