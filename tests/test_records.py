"""Records between the server and its processes: what was written comes out, and nothing else is believed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from strongroom import records
from strongroom.oip import DATATYPES, bytes_array, datatype_of
from strongroom.records import Place

AREA = 1 << 16


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        yield ours, theirs


def area() -> Any:
    """Shared memory, as both sides see it."""
    return np.zeros(AREA, np.uint8)


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(7, np.int64),
    np.zeros((0, 3), np.float64),
    np.array([True, False]),
    np.array([1.5, -2], np.float16),
    bytes_array([b"", "é".encode(), b"a\0b"], shape=(3, 1)),
    bytes_array([], shape=(0,)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_tensors_come_out_as_they_went_in(array: Any) -> None:
    """On both sides: bit for bit, with their shapes; `take` gives a copy that is one's own."""
    shared = area()
    place = records.put(shared, 128, array, position=3)
    assert place.position == 3 and records.stored_bytes(array) >= place.size
    for read in (records.view, records.take):
        got = read(shared, place, datatype=datatype_of(array))
        assert got.dtype == array.dtype and got.shape == array.shape and got.tolist() == array.tolist()
    taken = records.take(shared, place, datatype=datatype_of(array))
    shared[:] = 255
    assert taken.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("place", "datatype"),
    [
        (Place(0, (4,), 64, 15), "FP32"),  # shorter than its shape
        (Place(0, (4,), 64, 17), "FP32"),
        (Place(0, (4,), 63, 16), "FP32"),  # not aligned
        (Place(0, (4,), AREA, 16), "FP32"),  # behind the end
        (Place(0, (4,), 1 << 63, 16), "FP32"),
        (Place(0, (1 << 62, 4), 0, 16), "FP32"),  # more than 64 bits of bytes
        (Place(0, (1 << 60, 1 << 60, 0), 0, 0), "FP32"),  # none at all, of a shape that is no array's
        (Place(0, (AREA,), 0, AREA * 4), "FP32"),
        (Place(0, (2,), 0, 7), "BYTES"),  # no room for two lengths
        (Place(0, (1 << 40,), 0, 8), "BYTES"),
    ],
)
def test_places_that_are_none_are_refused(place: Place, datatype: str) -> None:
    """Whatever the other side says, nothing outside the area is read, and nothing large is made."""
    for read in (records.view, records.take):
        with pytest.raises(EOFError):
            read(area(), place, datatype=datatype)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1,), struct.pack("<I", 5) + b"abcd"),
        ((1,), struct.pack("<I", 3) + b"abcd"),
        ((2,), struct.pack("<I", 4) + b"abcd"),
        ((1,), struct.pack("<I", 0xFFFFFFFF)),
    ],
)
def test_strings_fill_their_place_exactly(shape: tuple[int, ...], data: bytes) -> None:
    """Neither beyond nor short of it."""
    shared = area()
    shared[: len(data)] = np.frombuffer(data, np.uint8)
    with pytest.raises(EOFError):
        records.take(shared, Place(0, shape, 0, len(data)), datatype="BYTES")


def test_a_bool_is_zero_or_one() -> None:
    """Anything else is undefined behaviour in whatever reads it next."""
    shared = area()
    shared[:2] = [1, 2]
    with pytest.raises(EOFError):
        records.take(shared, Place(0, (2,), 0, 2), datatype="BOOL")


def test_what_is_looked_at_is_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that changes its memory while it is read changes nothing that was checked."""
    shared = area()
    place = records.put(shared, 0, np.array([True, True]), position=0)
    real = records.np.ndarray.max

    class Changing(np.ndarray):  # type: ignore[type-arg]
        def copy(self, *args: Any, **kwargs: Any) -> Any:
            made = np.asarray(self).copy()
            shared[:2] = 77  # after the copy, before the look
            return made

    got = records.take(shared.view(Changing), place, datatype="BOOL")
    assert real(got.view(np.uint8)) == 1 and got.tolist() == [True, True]


def test_runs_and_answers_arrive_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    """Numbers of any size, no input, no output, and several."""
    ours, theirs = pair
    for places, wanted in (([], []), ([Place(1, (2, 3), 64, 24), Place(0, (), 128, 8)], [4, 0])):
        theirs.sendall(records.pack_run(places, wanted))
        assert records.receive_run(ours) == (tuple(places), tuple(wanted))
        answer = records.pack_answer(records.DONE, places)
        assert records.parse_answer(answer, outputs=len(places)) == (records.DONE, tuple(places))
        for end in range(len(answer)):  # however it is cut
            assert records.parse_answer(answer[:end], outputs=len(places)) is None
    assert records.parse_answer(records.pack_answer(records.NO_MEMORY), outputs=3) == (records.NO_MEMORY, ())


def test_inputs_of_the_same_form_lie_where_others_did() -> None:
    """Values are this run's; another shape, dtype, number of inputs or other outputs lie anew."""
    area = np.zeros(1 << 10, np.uint8)
    first = [np.array([[1.0, 2.0]], np.float32), np.empty((0, 3), np.int64), np.array(7, np.int8)]
    places, at = [], 0
    for position, array in enumerate(first):
        places.append(records.put(area, at, array, position=position))
        at = records.aligned(places[-1].offset + places[-1].size)
    laid = records.Laid(area, places, first, [0], record=b"the record")
    then = [np.array([[-3.0, np.nan]], np.float32), np.empty((0, 3), np.int64), np.array(-7, np.int8)]
    assert laid.fits(then, [0]) and laid.put(then) == b"the record"
    assert laid.used == places[-1].offset + 1
    for array, place, datatype in zip(then, places, ("FP32", "INT64", "INT8"), strict=True):
        np.testing.assert_array_equal(records.view(area, place, datatype=datatype), array)
    assert not laid.fits(then, [0, 1]) and not laid.fits(then[:2], [0])
    assert not laid.fits([then[0].T, *then[1:]], [0])
    assert not laid.fits([then[0].astype(np.float64), *then[1:]], [0])
    assert not laid.fits([then[0].astype(">f4"), *then[1:]], [0])


ONE = Place(0, (1,), 0, 4)


@pytest.mark.parametrize(
    "data",
    [
        records.pack_answer(b"?"),  # no outcome
        records.pack_answer(records.DONE),  # without what was asked for
        records.pack_answer(records.DONE, [ONE, ONE]),
        records.pack_answer(records.FAILED, [ONE]),  # with what cannot be
        struct.pack("<cHI", b"+", 1, 0xFFFFFFFF),  # endless
        struct.pack("<cHI", b"+", 1, 3) + b"abc",  # too short for a place
        struct.pack("<cHI", b"+", 1, 19)
        + struct.pack("<HBQQ", 0, 33, 0, 0),  # more dimensions than there are
        struct.pack("<cHI", b"+", 1, 19) + struct.pack("<HBQQ", 0, 2, 0, 0),  # dimensions beyond the record
        struct.pack("<cHI", b"+", 1, 27) + struct.pack("<HBQQ", 0, 0, 0, 0) + b"trailing",
    ],
)
def test_an_answer_of_another_form_counts_as_none(data: bytes) -> None:
    """A worker that was taken over says what it likes."""
    with pytest.raises(EOFError):
        records.parse_answer(data, outputs=1)


@pytest.mark.parametrize(
    "data",
    [b"", b"X" + bytes(8), struct.pack("<cHHI", b"R", 0, 2, 2) + b"ab", struct.pack("<cHHI", b"R", 1, 0, 0)],
)
def test_a_run_of_another_form_counts_as_none(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    """The worker ends then."""
    ours, theirs = pair
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        records.receive_run(ours)


def test_every_datatype_has_a_form() -> None:
    """None is left out."""
    for name, dtype in DATATYPES.items():
        array = bytes_array([b"x"], shape=(1,)) if name == "BYTES" else np.ones(1, dtype)
        shared = area()
        assert (
            records.take(shared, records.put(shared, 0, array, position=0), datatype=name).tolist()
            == array.tolist()
        )
