"""Whose turn it is: a bounded line of waiting work, fair between callers and between models.

Rules
  - Work waits for a place under the caller and the subject (a model) it is for. A free place goes to the caller
    with the fewest places now; among those to whoever waited longest *since its caller and its model last had a
    place*. So a crowd of one caller's, or for one model, delays another's work by the work in progress and no
    more, and nobody waits for ever: whoever is passed over now is older than all who come later.
  - How many places a model has now does not count: one caller's long run would keep a model's others out. But for
    those of which one run goes on at a time anyway (`Turn.alone`): the next ones wait in the line, not in a place
    that somebody else could have.
  - A line, each caller's part of it and the time in it are bounded; what is beyond is refused, with a time to
    come back.
  - Nothing is remembered of who has no work here, so a crowd of names takes no memory.

Pure: the clock is handed in, nothing sleeps, and nothing here knows of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from strongroom.errors import Unavailable

_T = TypeVar("_T")

MAX_RETRY_S: Final = 60
"""Longest time after which a caller is asked back."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose work it is (a principal's id, an address) and what it is for (a model and version, or "")."""

    caller: str
    subject: str
    alone: bool = False
    """Whether of this subject one piece of work has a place at a time."""


NOBODY: Final = Turn("", "")
"""Work that is not any caller's in particular."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[_T]):
    """One piece of work, waiting or in its place."""

    turn: Turn
    work: _T
    number: int
    since: float
    waiting: bool = True
    placed: bool = False
    """Whether it has a place."""


@dataclass(slots=True)
class _Presence:
    """A caller or a subject that has work here."""

    waiting: int = 0
    places: int = 0
    left: int = -1
    """Count of the moment at which it last gave back a place."""


class Line(Generic[_T]):
    """`places` pieces of work at a time and at most `waiting` more, `per_caller` of one caller's among them.

    `wait_s`: seconds after which waiting work is `late`. `code`: of the refusal when the line is full.
    """

    def __init__(
        self,
        *,
        places: int,
        waiting: int,
        per_caller: int,
        wait_s: float,
        clock: Callable[[], float],
        code: str,
    ) -> None:
        self._places = places
        self._most = waiting
        self._per_caller = per_caller
        self._wait_s = wait_s
        self._clock = clock
        self._code = code
        self._busy = 0
        self._count = 0
        self._waiting = 0
        self._groups: dict[Turn, deque[Ticket[_T]]] = {}
        self._callers: dict[str, _Presence] = {}
        self._subjects: dict[str, _Presence] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    @property
    def known(self) -> int:
        """Callers and subjects that are remembered."""
        return len(self._callers) + len(self._subjects)

    def join(self, turn: Turn, work: _T) -> Ticket[_T]:
        """Puts work at the end of its line; `next` says when it is its turn.

        Raises:
            Unavailable: the line is full (the code given to the constructor), or this caller's part of it
                (`caller_too_busy`).
        """
        free = self._places - self._busy
        if self.waiting >= self._most + free:
            raise Unavailable("too many requests of this kind are waiting", code=self._code)
        mine = self._callers.get(turn.caller)
        if mine is not None and mine.waiting >= self._per_caller + free:
            raise Unavailable(
                f"at most {self._per_caller} requests of one caller wait", code="caller_too_busy"
            )
        self._count += 1
        ticket = Ticket(turn, work, self._count, self._clock())
        self._waiting += 1
        self._groups.setdefault(turn, deque()).append(ticket)
        for presence in self._presences(turn):
            presence.waiting += 1
        return ticket

    def start(self, turn: Turn, work: _T) -> Ticket[_T] | None:
        """As `join` and `next`, where nobody waits and a place is free: that refuses nobody. Else None."""
        if self._groups or self._busy >= self._places or self._taken(turn):
            return None
        if turn.alone and turn.subject in self._subjects and self._subjects[turn.subject].places:
            return None
        self._count += 1
        self._busy += 1
        for presence in self._presences(turn):
            presence.places += 1
        return Ticket(turn, work, self._count, 0.0, waiting=False, placed=True)

    def next(self) -> Ticket[_T] | None:
        """The work whose turn it is, from now on in its place; None where no place is free, or nobody waits who could
        have it.
        """
        if self._busy >= self._places or not self._groups:
            return None
        turn = min((turn for turn in self._groups if not self._taken(turn)), key=self._rank, default=None)
        if turn is None:
            return None
        ticket = self._groups[turn][0]
        self._remove(ticket)
        ticket.placed = True
        self._busy += 1
        for presence in self._presences(turn):
            presence.places += 1
        return ticket

    def _taken(self, turn: Turn) -> bool:
        known = self._subjects.get(turn.subject) if turn.alone else None
        return known is not None and known.places > 0

    def done(self, ticket: Ticket[_T]) -> None:
        """Gives back the place of work that has ended; nothing where it has none: it was late, or gave it back."""
        if not ticket.placed:
            return
        ticket.placed = False
        self._busy -= 1
        self._count += 1
        for presence in self._presences(ticket.turn):
            presence.places -= 1
            presence.left = self._count
        self._forget(ticket.turn)

    def leave(self, ticket: Ticket[_T]) -> bool:
        """Takes work out of the line; False where it does not wait any more."""
        if not ticket.waiting:
            return False
        self._remove(ticket)
        self._forget(ticket.turn)
        return True

    def late(self, ticket: Ticket[_T]) -> Unavailable | None:
        """The refusal of work that has waited too long, which is then out of the line; else None."""
        if not ticket.waiting or self._clock() - ticket.since < self._wait_s:
            return None
        self.leave(ticket)
        return Unavailable(
            f"nothing was free for this request within {self._wait_s:g} seconds",
            code="queue_too_long",
            retry_after_s=max(1, min(MAX_RETRY_S, int(self._wait_s))),
        )

    def _rank(self, turn: Turn) -> tuple[int, int, int, int]:
        caller, subject = self._presences(turn)
        number = self._groups[turn][0].number
        mine = max(number, caller.left)
        return caller.places, max(mine, subject.left), mine, number

    def _presences(self, turn: Turn) -> tuple[_Presence, _Presence]:
        caller, subject = self._callers.get(turn.caller), self._subjects.get(turn.subject)
        if caller is None:
            caller = self._callers[turn.caller] = _Presence()
        if subject is None:
            subject = self._subjects[turn.subject] = _Presence()
        return caller, subject

    def _remove(self, ticket: Ticket[_T]) -> None:
        self._waiting -= 1
        group = self._groups[ticket.turn]
        group.remove(ticket)
        if not group:
            del self._groups[ticket.turn]
        ticket.waiting = False
        for presence in self._presences(ticket.turn):
            presence.waiting -= 1

    def _forget(self, turn: Turn) -> None:
        """What has no work here is as one that was never seen: whatever it does next comes after all that waits."""
        for known, name in ((self._callers, turn.caller), (self._subjects, turn.subject)):
            if not known[name].waiting and not known[name].places:
                del known[name]
