"""When workers die: who has to wait, and when their template has to be made anew.

Rules
  - Siblings of one template share the layout of their memory, and executing a new one renews it. So no layout
    sees more than `DEATHS` deaths within `WINDOW_S`: a fourth try at guessing it starts from nothing.
  - The caller whose runs kill workers waits first, each time longer; that is nobody else's wait.
  - Making a template anew costs seconds of processor time, so it has a back-off too: many callers together (keys
    cost nothing) cannot keep the server busy with it. Meanwhile the model is not there; other models are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

DEATHS: Final = 3
WINDOW_S: Final = 60.0
CALM_S: Final = 600.0
"""Seconds without a death after which all is forgotten."""
FIRST_S: Final = 10.0
"""Seconds that a caller waits first; doubled each time."""
LONGEST_S: Final = 300.0
"""Less than `CALM_S`: having waited is no calm."""
CALLERS: Final = 1024
"""Callers that are remembered for each model; the one not seen for longest is forgotten."""


class Deaths:
    """Deaths of the workers of one model; `now` is monotonic seconds. Not thread-safe."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=DEATHS)
        self._renewals = 0
        self._last = 0.0
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def wait_s(self, caller: str, *, now: float) -> float:
        """Seconds that this caller has to wait before its next run of the model; 0 where it has not."""
        entry = self._callers.get(caller)
        return max(0.0, entry.until - now) if entry is not None else 0.0

    def died(self, caller: str, *, now: float) -> bool:
        """Counts a death in a run of `caller`; True where the template has to be made anew."""
        if now - self._last > CALM_S:
            self._renewals = 0
        self._last = now
        entry = self._callers.pop(caller, None) or _Caller()
        self._callers[caller] = entry
        if len(self._callers) > CALLERS:
            self._callers.popitem(last=False)
        entry.died(now)
        self._recent.append(now)
        return len(self._recent) == DEATHS and now - self._recent[0] <= WINDOW_S

    def renewed(self) -> float:
        """Counts a renewal and forgets the deaths of the former template; seconds to wait before it is made."""
        self._recent.clear()
        self._renewals += 1
        return 0.0 if self._renewals == 1 else float(min(60.0, 2.0 ** (self._renewals - 1)))


class _Caller:
    __slots__ = ("last", "recent", "strikes", "until")

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=DEATHS)
        self.strikes = 0
        self.until = self.last = 0.0

    def died(self, now: float) -> None:
        if now - self.last > CALM_S:
            self.strikes = 0
        self.last = now
        self.recent.append(now)
        if len(self.recent) == DEATHS and now - self.recent[0] <= WINDOW_S:
            self.until = now + min(LONGEST_S, FIRST_S * 2.0**self.strikes)
            self.strikes += 1
            self.recent.clear()
