"""Whether a model is cut into stages: the words of uploads and metadata (`docs/partitioning.md`)."""

from __future__ import annotations

from typing import Final

from strongroom.errors import InvalidRequest

AUTO: Final = "auto"
"""Where it is larger than the memory for models."""
OFF: Final = "off"
MOST: Final = 512
"""Stages of one model."""


def check_partition(word: str) -> bool:
    """Whether it is a way to cut a model: `auto`, `off`, or a number of stages from 2 on without leading zeros."""
    if word in (AUTO, OFF):
        return True
    return word.isascii() and word.isdecimal() and len(word) < 4 and word[0] != "0" and 2 <= int(word) <= MOST


def read_partition(word: str) -> str:
    """The same word.

    Raises:
        InvalidRequest: it is none (code `partition_unsupported`).
    """
    if not check_partition(word):
        message = f"partition: expected auto, off or a number of stages from 2 to {MOST}"
        raise InvalidRequest(message, code="partition_unsupported")
    return word
