"""What is expected of a model in stages: sums over the server's own plan, and requests that there are not."""

from __future__ import annotations

import pytest

from strongroom.feeding import FAMILY, Plan
from strongroom.models.info import Admission, Room
from strongroom.outlook import COUNTED, PROCESSES, SERVED, SLACK, Rates, request_of, room_of, staged, whole

RATES = Rates(opened=1e9, loaded=5e8, session=0.0, operations=1e10, waiting=1.0, waiting_whole=1.0)


def admission(*rooms: tuple[tuple[int, ...], int, int]) -> Admission:
    """Of a model with these rooms: sizes, operations, bytes."""
    return Admission(
        level="strict", flags=(), nodes=1, tensors=1, tensor_bytes=1, resident_bytes=0, load_operations=0,
        rooms=tuple(Room(sizes=s, peak_bytes=b, operations=o, steps=1) for s, o, b in rooms), text_bytes=0,
        versions=(),
    )  # fmt: skip


def test_the_plan_is_the_servers() -> None:
    """Stages, those that stay, and memory are those of `feeding.Plan`, processes and one request on top."""
    lengths, room = [10_000_000] * 20, 90_000_000
    plan = Plan(lengths, room)
    found = staged(lengths, room=room, run_bytes=7, operations=0, sizes=(1,), rates=RATES)
    assert (found.stages, found.staying) == (20, len(plan.stay)) and 0 < found.staying < 20
    assert found.peak_bytes == PROCESSES + SERVED + 7 + plan.memory_bytes
    said = found.to_json()
    assert said["partition_bytes"] == room and said["loaded_bytes"] - room == COUNTED > FAMILY


def test_reading_goes_on_beside_running() -> None:
    """The slower side decides: loading at half of the rate of opening, but for the first stage, which is waited for."""
    lengths = [10_000_000] * 20
    found = staged(lengths, room=0, run_bytes=0, operations=0, sizes=(), rates=RATES)
    assert found.staying == 0 and found.latency_s == pytest.approx(20 * 0.02 + 0.01)
    slow = Rates(opened=1e8, loaded=5e8, session=0.0, operations=1e10, waiting=1.0, waiting_whole=1.0)
    found = staged(lengths, room=0, run_bytes=0, operations=0, sizes=(), rates=slow)
    assert found.latency_s == pytest.approx(20 * 0.1 + 0.02)


def test_two_slots_and_no_third() -> None:
    """A long run of one stage does not let more than two be read ahead."""
    lengths = [10_000_000] * 3
    rates = Rates(opened=1e9, loaded=1e12, session=1.0, operations=1e10, waiting=1.0, waiting_whole=1.0)
    found = staged(lengths, room=0, run_bytes=0, operations=0, sizes=(), rates=rates)
    assert found.latency_s == pytest.approx(3 * 1.0 + 0.01, abs=1e-3)


def test_what_stays_is_not_loaded_again() -> None:
    """Where all stages stay, a request takes what its operations take."""
    found = staged([10_000_000] * 4, room=80_000_000, run_bytes=0, operations=10**10, sizes=(), rates=RATES)
    assert found.staying == 4 and found.latency_s == pytest.approx(1.0)


def test_a_whole_model_is_one_stage() -> None:
    """Memory: processes, the request, and what it takes loaded."""
    found = whole(200, room=5, run_bytes=3, operations=10**10, sizes=(1,), rates=RATES)
    assert (found.stages, found.peak_bytes, found.latency_s) == (1, PROCESSES + SERVED + 203, 1.0)


def test_what_the_processes_take_is_not_the_models() -> None:
    """The rest of the budget is the model's; there is none below what processes and a request take."""
    fixed = PROCESSES + SERVED
    assert room_of(fixed + 4 * SLACK + 1, 0) == 4 * SLACK
    assert room_of(fixed + 4 * SLACK, SLACK) == 3 * SLACK
    assert room_of(fixed, 1) == room_of(0, 0) == 0


def test_a_request_costs_its_share_of_the_cheapest_room() -> None:
    """Operations and bytes go with the sizes; without sizes it is one row of the usual length, as far as admitted."""
    given = admission(((8, 512), 4096_000, 8192_000), ((512, 8), 8192_000, 4096_000))
    assert request_of(given) == ((1, 128), 128_000, 256_000)
    assert request_of(given, (1, 8)) == ((1, 8), 8_000, 16_000)
    assert request_of(given, (16, 4)) == ((16, 4), 128_000, 64_000)
    assert request_of(admission(((4, 16), 64, 64)))[0] == (1, 16)
    assert request_of(admission(((), 5, 6))) == ((), 5, 6)


@pytest.mark.parametrize("sizes", [(), (1,), (9, 512), (8, 513), (0, 1), (1, 1, 1)])
def test_a_request_that_is_not_admitted_has_no_outlook(sizes: tuple[int, ...]) -> None:
    """Too large, or of other dimensions than the model leaves open."""
    with pytest.raises(ValueError, match="no request of these sizes"):
        request_of(admission(((8, 512), 1, 1)), sizes)


def test_nothing_known_no_outlook() -> None:
    """A model without rooms was not examined."""
    with pytest.raises(ValueError, match="nothing is known"):
        request_of(admission())
