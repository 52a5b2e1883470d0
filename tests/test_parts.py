"""A part in front of a model: what is kept, what is counted, what is compared, and that it is overwritten."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Conflict, Error, LimitExceeded
from strongroom.parts import Arriving
from strongroom.reduction import MAX_RANGES, Part

PART, MODEL = b"part bytes", b"model's bytes"


def sha256(data: bytes) -> str:
    """Hex."""
    return hashlib.sha256(data).hexdigest()


def part(data: bytes = PART, **changes: object) -> Part:
    """What the head says of it."""
    said: dict[str, object] = {"kind": "calibration", "size": len(data), "sha256": sha256(data), **changes}
    return Part(**said)  # type: ignore[arg-type]  # changed on purpose


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def arrive(arriving: Arriving, *chunks: bytes) -> tuple[bytes, int]:
    """The model that came out, and how many bytes were counted as the part's."""
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        taken += count

    async def run() -> bytes:
        out = b""
        async for chunk in arriving.model(_chunks(*chunks), take):
            arriving.saw(chunk)
            out += chunk
        return out

    return asyncio.run(run()), taken


@given(st.lists(st.integers(0, len(PART + MODEL)), max_size=5))
def test_however_the_body_is_cut(cuts: list[int]) -> None:
    """The same part and the same model come out."""
    whole, edges = PART + MODEL, sorted({0, *cuts, len(PART + MODEL)})
    arriving = Arriving(part(), most=100)
    out = arrive(arriving, *(whole[a:b] for a, b in itertools.pairwise(edges)))
    assert out == (MODEL, len(PART)) and bytes(arriving.data) == PART
    arriving.check(said=sha256(whole), model=sha256(MODEL))


def test_without_a_part_nothing_changes() -> None:
    """The digest in the head is the model's."""
    arriving = Arriving(None, most=0)
    assert arrive(arriving, MODEL) == (MODEL, 0)
    arriving.check(said=sha256(MODEL), model=sha256(MODEL))
    arriving.check(said=None, model=sha256(MODEL))


def test_it_is_overwritten() -> None:
    """In its place; again does no harm."""
    arriving = Arriving(part(), most=100)
    arrive(arriving, PART + MODEL)
    kept = arriving.data
    arriving.erase()
    arriving.erase()
    assert kept == bytes(len(PART))


@pytest.mark.parametrize(
    ("said", "body", "announced", "code"),
    [
        (sha256(MODEL), PART + MODEL, part(), "upload_digest_mismatch"),  # the model's alone
        (sha256(PART + MODEL), PART + MODEL, part(sha256=sha256(b"")), "upload_digest_mismatch"),
        (sha256(PART + MODEL), PART + MODEL, part(size=len(PART) + 1), "upload_digest_mismatch"),
        (sha256(PART[:3]), PART[:3], part(), "body_empty"),
        (None, PART + MODEL, part(sha256="0" * 64), "upload_digest_mismatch"),
    ],
)
def test_another_body_than_was_said(said: str | None, body: bytes, announced: Part, code: str) -> None:
    """Each digest is of what it is said to be of."""
    arriving = Arriving(announced, most=100)
    out, _ = arrive(arriving, body)
    with pytest.raises(Error) as caught:
        arriving.check(said=said, model=sha256(out))
    assert caught.value.code == code


def test_a_body_of_another_digest_without_a_part() -> None:
    """As ever."""
    with pytest.raises(Conflict):
        Arriving(None, most=0).check(said=sha256(b""), model=sha256(MODEL))


def test_a_part_that_is_too_large_is_refused_before_it_comes() -> None:
    """By what is announced: no byte of it is taken."""
    with pytest.raises(LimitExceeded) as caught:
        Arriving(part(), most=len(PART) - 1)
    assert caught.value.code == "calibration_too_large"


def test_ranges_are_small() -> None:
    """Whatever a set may have: they are a few kilobytes."""
    Arriving(part(kind="ranges", size=MAX_RANGES), most=1 << 30)
    with pytest.raises(LimitExceeded) as caught:
        Arriving(part(kind="ranges", size=MAX_RANGES + 1), most=1 << 30)
    assert caught.value.code == "calibration_too_large"


def test_what_is_counted_can_refuse() -> None:
    """Before the bytes are kept."""

    def take(count: int) -> None:
        raise LimitExceeded("full", code="calibration_too_large")

    async def run(arriving: Arriving) -> None:
        async for _ in arriving.model(_chunks(PART), take):
            pass

    arriving = Arriving(part(), most=100)
    with pytest.raises(LimitExceeded):
        asyncio.run(run(arriving))
    assert not arriving.data
