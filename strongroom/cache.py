"""Loaded models in memory: loaded once, least recently used first to go, within one budget."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Callable, Hashable, Iterator

from strongroom.errors import Error, Failure, LimitExceeded, Unavailable
from strongroom.jobs import Loaded


class _Entry:
    """One model on its way into memory, in it, or on its way out."""

    __slots__ = ("done", "error", "evicted", "leases", "session")

    def __init__(self) -> None:
        self.done = threading.Event()  # loading ended, with a session or an error
        self.session: Loaded | None = None
        self.error: Error | None = None
        self.leases = 1  # callers that use it or wait for it
        self.evicted = False


class Lease:
    """A session that stays until `end`."""

    __slots__ = ("end", "session")

    def __init__(self, session: Loaded, end: Callable[[], None]) -> None:
        self.session = session
        self.end = end
        """Gives it back; once. It does not wait: where it was the last of what was evicted, a thread closes that."""


class SessionCache:
    """Sessions in memory, least recently used first to go. Thread-safe.

    Rules
      - A key is loaded once, however many ask for it; the others wait for that one load. Loaders run without
        the lock, so no load delays another key's load or run.
      - A leased session stays. What was evicted while leased is closed by its last lease.
      - The sum of `memory_bytes` of all sessions, evicted ones still leased included, is within the budget. What is
        known of a session before it is loaded is counted from then on, and what has to go for it goes before; what a
        loader takes beyond that comes on top: bound the number of loading threads.
      - There are `most` at a time, however small they are: each may be a process, and those are counted elsewhere.
      - A failed load is not remembered: the next caller tries again.
    """

    def __init__(self, budget_bytes: int, *, most: int = sys.maxsize) -> None:
        self._budget = budget_bytes
        self._most = most
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}  # least recently used first
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Memory of all sessions by their own estimate."""
        with self._lock:
            return self._used

    def loaded(self) -> tuple[Hashable, ...]:
        """Keys of the sessions in memory, least recently used first."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.session is not None)

    def has(self, key: Hashable) -> bool:
        """Whether there is a session of `key` in memory."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and entry.session is not None

    def stages(self, key: Hashable) -> int | None:
        """In how many stages the session of `key` runs; None where there is none in memory. It is not used by this."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None or entry.session is None else entry.session.stages

    def lease(self, key: Hashable) -> Lease | None:
        """A lease of the session of `key`, without waiting for one; None where there is none. The callee's to end."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.session is None:
                return None
            self._entries[key] = self._entries.pop(key)
            entry.leases += 1
            return Lease(entry.session, lambda: self._leave(entry, wait=False))

    @contextlib.contextmanager
    def get(
        self, key: Hashable, loader: Callable[[], Loaded], *, size: Callable[[], int] = lambda: 0
    ) -> Iterator[Loaded]:
        """Leases the session of `key` for the length of a `with` block; `loader` makes it if it is not there. `size`:
        bytes of memory that it will take at least.

        Raises:
            LimitExceeded: the session alone is larger than the budget (code `engine_model_too_large`).
            Unavailable: there is no room now, since what is loaded is in use (code `engine_memory_busy`).
            Error: whatever `loader` raises; those who waited for it get the same.
        """
        entry, mine = self._join(key)
        try:
            if mine:
                self._load(key, entry, loader, size)
            entry.done.wait()
            if entry.session is None:
                raise copy.copy(entry.error) if entry.error else Failure("loading the model failed")
            yield entry.session
        finally:
            self._leave(entry)

    def evict(self, key: Hashable) -> bool:
        """Forgets a session, at once for new callers; whether there was one."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                return False
            entry.evicted = True
            closing = [entry] if not entry.leases else []
            self._discount(closing)
        _close(closing)
        return True

    def close(self) -> None:
        """Forgets all sessions."""
        with self._lock:
            keys = tuple(self._entries)
        for key in keys:
            self.evict(key)

    def _join(self, key: Hashable) -> tuple[_Entry, bool]:
        """The entry with one lease more, as the latest used, and whether the caller is the one to load it."""
        with self._lock:
            entry = self._entries.pop(key, None)
            mine = entry is None
            if entry is None:
                entry = _Entry()
            else:
                entry.leases += 1
            self._entries[key] = entry
            return entry, mine

    def _leave(self, entry: _Entry, *, wait: bool = True) -> None:
        with self._lock:
            entry.leases -= 1
            closing = [entry] if entry.evicted and not entry.leases and entry.session else []
            self._discount(closing)
        if wait:
            _close(closing)
        elif closing:
            try:
                threading.Thread(target=_close, args=(closing,), name="cache-close").start()
            except RuntimeError:  # there is none: better late than never
                _close(closing)

    def _load(
        self, key: Hashable, entry: _Entry, loader: Callable[[], Loaded], size: Callable[[], int]
    ) -> None:
        session, victims, counted = None, [], 0
        try:
            if expected := size():
                with self._lock:
                    victims = self._room_for(expected)
                    self._used += (counted := expected)
                _close(victims)  # before it is loaded, or both would be there
                victims = []
            session = loader()
            with self._lock:
                self._used -= counted
                counted = 0
                victims = self._room_for(session.memory_bytes)
                entry.session = session
                self._used += session.memory_bytes
        except BaseException as exc:
            with self._lock:
                self._used -= counted
                # A copy: the original's traceback keeps the loader's frames, and the model in them, alive.
                entry.error = copy.copy(exc) if isinstance(exc, Error) else None
                if self._entries.get(key) is entry:
                    del self._entries[key]
            if session is not None:
                session.close()
            raise
        finally:
            _close(victims)
            entry.done.set()

    def _room_for(self, size: int) -> list[_Entry]:
        """Takes out as many unused sessions as must go for one of `size`; the caller closes them."""
        if size > self._budget:
            raise LimitExceeded(
                f"the model takes about {size} bytes of memory, all models together may take {self._budget}",
                code="engine_model_too_large",
            )
        victims: list[Hashable] = []
        room = self._budget - self._used
        places = self._most - sum(entry.session is not None for entry in self._entries.values())
        for key, entry in self._entries.items():
            if room >= size and places > 0:
                break
            if entry.session is not None and not entry.leases:
                victims.append(key)
                room += entry.session.memory_bytes
                places += 1
        if room < size or places <= 0:
            raise Unavailable(
                "all loaded models are in use; no memory for another", code="engine_memory_busy"
            )
        closing = [self._entries.pop(key) for key in victims]
        for entry in closing:
            entry.evicted = True
        self._discount(closing)
        return closing

    def _discount(self, entries: list[_Entry]) -> None:
        self._used -= sum(entry.session.memory_bytes for entry in entries if entry.session is not None)


def _close(entries: list[_Entry]) -> None:
    """Outside the lock: giving back a large model's memory takes a while."""
    for entry in entries:
        if entry.session is not None:
            entry.session.close()
