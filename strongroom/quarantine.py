"""When workers die: who has to wait, and when their template has to be made anew.

Rules
  - All that comes from one zygote shares the layout of its memory, and executing another one renews it. So deaths are
    counted for each zygote: `DEATHS` within `WINDOW_S`, of whatever models, and its layout is taken to be known. The
    template of that death is made anew from another zygote; of those that are left, each at its next death. They are
    not ended at once: whoever kills the workers of one model would take all others away.
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


class Layout:
    """Deaths in all that was forked from one zygote; `now` is monotonic seconds. Not thread-safe."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=DEATHS)
        self._known = False

    def died(self, *, now: float) -> bool:
        """Counts a death; True where the template of it has to come from another zygote."""
        self._recent.append(now)
        self._known |= len(self._recent) == DEATHS and now - self._recent[0] <= WINDOW_S
        return self._known


class Deaths:
    """Deaths of the workers of one model; `now` is monotonic seconds. Not thread-safe.

    A caller is a principal, or the address of somebody without a key: one of them keeps no other away.
    """

    def __init__(self) -> None:
        self._renewals = 0
        self._last = 0.0
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def wait_s(self, caller: str, *, now: float) -> float:
        """Seconds that this caller has to wait before its next run of the model; 0 where it has not."""
        entry = self._callers.get(caller)
        return max(0.0, entry.until - now) if entry is not None else 0.0

    def died(self, caller: str, *, now: float) -> None:
        """Counts a death in a run of `caller`."""
        if now - self._last > CALM_S:
            self._renewals = 0
        self._last = now
        entry = self._callers.pop(caller, None) or _Caller()
        self._callers[caller] = entry
        if len(self._callers) > CALLERS:
            self._callers.popitem(last=False)
        entry.died(now)

    def renewed(self) -> float:
        """Counts a renewal of the template; seconds to wait before it is made."""
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
