"""The worker's side of `feeding`: stages that are asked for ahead, and run where they lie.

Rules
  - Two stages are asked for ahead; the next one when one is given back.
  - What was asked for in a run that ended early is not waited for: its words carry that run's number.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from strongroom.errors import InvalidRequest

if TYPE_CHECKING:
    import socket

WORD: Final = struct.Struct("<II")
"""The number of a run, counted from 1 on both sides, and that of a stage."""
GONE: Final = 0xFFFFFFFF
"""In place of a stage's number: it cannot be had."""
AHEAD: Final = 2
"""Stages that are asked for before they are needed, and slots for them."""


class Fetching:
    """The stages of a model that do not stay, one run after the other."""

    def __init__(
        self, end: socket.socket, slots: memoryview, *, lengths: list[int], moving: list[int], slot: int
    ) -> None:
        """`slots`: what the server fills, two of `slot` bytes; `moving`: the stages' numbers, in their order."""
        self._end, self._slots, self._slot = end, slots, slot
        self._lengths, self._moving = lengths, moving
        self._run = 0
        self._asked = 0
        self._there: set[int] = set()

    def begin(self) -> None:
        """A run begins: asks for its first stages."""
        self._run, self._asked, self._there = self._run + 1, 0, set()
        for _ in range(AHEAD):
            self._ask()

    def _ask(self) -> None:
        if self._asked < len(self._moving):
            self._end.sendall(WORD.pack(self._run, self._moving[self._asked]))
            self._asked += 1

    def fetch(self, number: int) -> memoryview:
        """See `staging.Fetch`.

        Raises:
            InvalidRequest: it cannot be had (code `run_failed`): the server knows why. EOFError: the server ended.
        """
        while number not in self._there:
            said = b""
            while len(said) < WORD.size:
                more = self._end.recv(WORD.size - len(said))
                if not more:
                    raise EOFError
                said += more
            run, stage = WORD.unpack(said)
            if run != self._run:
                continue
            if stage == GONE:
                raise InvalidRequest("a stage of the model is not there", code="run_failed")
            self._there.add(stage)
        at = self._moving.index(number) % AHEAD * self._slot
        return self._slots[at : at + self._lengths[number]]

    def back(self, number: int) -> None:
        """See `staging.Back`."""
        self._there.discard(number)
        self._ask()
