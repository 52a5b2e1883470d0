"""Sizes of enclaves: sums of what admission bounds, powers of two, and refusals. `bench/size.py` measures."""

from __future__ import annotations

import dataclasses

import pytest

from strongroom.errors import InvalidRequest
from strongroom.models.info import ONNX_RULES, Admission, ModelInfo, Room, TensorSpec
from strongroom.sizing import (
    ENGINE,
    EPC,
    FOREST,
    LEAST_ENCLAVE,
    LOADED,
    PAGE,
    SERVER,
    WHILE_LOADING,
    Demand,
    Model,
    gramine_size,
    size,
)

DEMAND = Demand(
    concurrent_runs=2,
    concurrent_uploads=4,
    loaded_bytes=4 << 30,
    request_bytes=64 << 20,
    response_bytes=64 << 20,
)


def model(
    name: str = "m",
    *,
    runs: int = 100 << 20,
    tensors: int = 100 << 20,
    resident: int = 0,
    rooms: tuple[Room, ...] = (Room(sizes=(8,), peak_bytes=1 << 20, operations=1, steps=1),),
    shape: tuple[int | str | None, ...] | None = ("n", 4),
    datatype: str = "FP32",
) -> Model:
    """A model of 100 MiB of tensors that takes up to 8 rows of 4 columns."""
    admission = Admission(
        level="strict", flags=(), nodes=1, tensors=1, tensor_bytes=tensors, resident_bytes=resident,
        load_operations=0, rooms=rooms, text_bytes=0, versions=(),
    )  # fmt: skip
    info = ModelInfo(
        format="onnx",
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=shape),),
        primary_output="y",
        feature_names=(),
        notes=(),
        rules=ONNX_RULES,
        admission=admission,
    )
    return Model(name=name, info=info, runs_bytes=runs, upload_bytes=runs)


def test_one_model_is_a_sum() -> None:
    """Server, engine, the loaded model, and the more of loading and requests."""
    found = size([model()], DEMAND)
    loaded, loading = round(LOADED * (100 << 20)), round(WHILE_LOADING * (100 << 20))
    assert found.resident_bytes == SERVER + ENGINE + loading
    assert found.working_bytes == SERVER + ENGINE + loaded + 2 * (8 * 16 * 3 + (1 << 20))
    assert sum(part.size for part in found.parts) == found.resident_bytes


def test_small_tensors_are_not_given_back() -> None:
    """The allocator keeps blocks below 32 MiB: requests come on top of what loading took."""
    runs = 2 * (8 * 16 * 3 + (1 << 20))
    kept = model()
    kept = dataclasses.replace(
        kept,
        info=dataclasses.replace(kept.info, admission=dataclasses.replace(kept.info.admission, tensors=10)),
    )
    assert model().gives_back and not kept.gives_back
    assert size([kept], DEMAND).resident_bytes == size([model()], DEMAND).resident_bytes + runs


def test_dear_requests_count_as_often_as_they_run_at_once() -> None:
    """Two runs of 1 GiB each are 2 GiB; one is one."""
    rooms = (Room(sizes=(8,), peak_bytes=1 << 30, operations=1, steps=1),)
    two = size([model(rooms=rooms)], DEMAND)
    one = size([model(rooms=rooms)], dataclasses.replace(DEMAND, concurrent_runs=1))
    assert two.resident_bytes - one.resident_bytes == (1 << 30) + 8 * 16 * 3
    assert two.threads == one.threads + 1


def test_the_dearest_room_counts() -> None:
    """Rooms are a staircase: many small rows, or few large ones."""
    cheap = Room(sizes=(64,), peak_bytes=1 << 20, operations=1, steps=1)
    dear = Room(sizes=(1,), peak_bytes=1 << 28, operations=1, steps=1)
    assert size([model(rooms=(cheap, dear))], DEMAND) == size([model(rooms=(dear, cheap))], DEMAND)
    assert model(rooms=(cheap, dear)).run_bytes(DEMAND) >= 1 << 28


def test_requests_and_answers_are_no_larger_than_their_limits() -> None:
    """A room for more rows than a body can hold does not count the rows that cannot come."""
    rooms = (Room(sizes=(1 << 30,), peak_bytes=1 << 40, operations=1, steps=1),)
    assert model(rooms=rooms).run_bytes(DEMAND) == (1 << 40) + (64 << 20) + 2 * (64 << 20)


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        (("n", 4), "FP32", 8 * 4 * 4),
        ((3, 4), "INT64", 12 * 8),
        ((None, None), "UINT8", 64),
        ((), "FP64", 8),
        (None, "FP32", 0),
        (("n",), "BYTES", 8 * 16),
    ],
)
def test_bytes_of_a_request(shape: tuple[int | str | None, ...] | None, datatype: str, expected: int) -> None:
    """Open dimensions have the room's sizes, fixed ones their own, an unknown rank none."""
    assert model(shape=shape, datatype=datatype).run_bytes(DEMAND) == (1 << 20) + 3 * expected


def test_tables_of_trees_grow_more_than_tensors() -> None:
    """A file that is hardly tensors is nodes and tables, which are larger in memory."""
    assert model(tensors=0, runs=1 << 20).loaded_bytes == FOREST * (1 << 20)
    assert model(tensors=1 << 20, runs=1 << 20).loaded_bytes == LOADED * (1 << 20)


def test_values_computed_at_load_count() -> None:
    """Nine kilobytes that become 400 MB are 400 MB."""
    grown = model(resident=400 << 20).loaded_bytes - model().loaded_bytes
    assert grown == 400 << 20


def test_several_models_load_one_at_a_time_up_to_the_budget_of_loaded_models() -> None:
    """All loaded as far as `loaded_bytes` goes, the largest loading, requests besides."""
    models = [model(str(n)) for n in range(30)]
    found = size(models, DEMAND)
    assert {part.what: part.size for part in found.parts}["loaded models"] == 4 << 30
    assert found.resident_bytes > size(models[:2], DEMAND).resident_bytes


def test_an_enclave_is_a_power_of_two_with_room_to_spare() -> None:
    """Never below the least, never below the addresses, and as Gramine writes it."""
    small = size([model(runs=100, tensors=100)], DEMAND).enclave_bytes
    large = size([model(runs=1 << 30, tensors=1 << 30)], DEMAND)
    assert small >= LEAST_ENCLAVE and small.bit_count() == 1
    assert large.enclave_bytes.bit_count() == 1 and large.enclave_bytes > large.address_bytes
    assert [gramine_size(n) for n in (512 << 20, 1 << 30, 8 << 30)] == ["512M", "1G", "8G"]


def test_pages_that_do_not_fit_an_epc() -> None:
    """What is beyond the EPC, in pages; nothing where all of it fits."""
    found = size([model()], DEMAND)
    assert found.paging(found.working_bytes) == 0 and found.paging(found.working_bytes - 1) == 1
    assert found.paging(EPC[0][1]) - found.paging(EPC[1][1]) == (EPC[1][1] - EPC[0][1]) // PAGE


def test_no_model_has_no_size() -> None:
    """A server without models is no server to size."""
    with pytest.raises(InvalidRequest) as caught:
        size([], DEMAND)
    assert caught.value.code == "size_impossible"


def test_a_model_larger_than_all_may_be_is_refused() -> None:
    """It would be refused at its first load too; both numbers are said."""
    with pytest.raises(InvalidRequest, match=r"m takes 209715200 bytes once it is loaded.*is 1000") as caught:
        size([model()], dataclasses.replace(DEMAND, loaded_bytes=1000))
    assert caught.value.code == "size_impossible"
