"""A model cut as a server would cut it, and what this machine does: for `strongroom size`, without a server.

    admitted model ──► sealed ──► preparer ──► whole form, sealed ──► parter ──► bytes of each stage

Rules
  - The processes are the server's, confined as there (`forms`, `partitioning`). Nothing is written in the clear: what
    goes to the disk is sealed with keys that nobody keeps, in files without a name.
  - Rates are measured with a stage of our own making: the model itself is run nowhere here.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from strongroom import disk
from strongroom.admission import ChildLimits
from strongroom.errors import LimitExceeded
from strongroom.forms import form_pieces
from strongroom.models.parting import Part
from strongroom.outlook import Rates
from strongroom.partitioning import Reading, parts_of
from strongroom.sealed import CHUNK_SIZE, TAG_BYTES, Opening, Sealer
from strongroom.stages import Tensor, tail
from strongroom.upload import begin_file
from strongroom.zygote import Nursery

_SIDE: Final = 1024
_MATRICES: Final = 2
_ROWS: Final = 128
_TIMES: Final = 7
_READ_BYTES: Final = 32 << 20


def stage_lengths(
    canonical: bytes | bytearray, nursery: Nursery, *, limits: ChildLimits, limit: int
) -> tuple[int, ...]:
    """Bytes of each stage that a server cuts the model into, with at most `limit` bytes of weights in each as far as
    single nodes allow; one number where nothing can be cut.

    Raises:
        LimitExceeded: a process took more time or memory than it may, or ended (code `preparation_limits`).
        Unavailable, Failure: as `Nursery.fork`; sealed files cannot be written (as `disk.faults`).
    """
    try:
        with (
            _sealed((canonical,)) as model,
            _sealed(form_pieces(nursery, model, limits=limits, layers=())) as form,
        ):
            parts = parts_of(Reading(form), nursery, count=None, limit=limit, child=limits, layers=())
            return tuple(map(_length, parts)) if len(parts) > 1 else (form.length,)
    except ValueError:
        raise LimitExceeded(
            "a process that prepares the model says what it cannot", code="preparation_limits"
        ) from None


def _length(part: Part) -> int:
    tensors = [Tensor(t.name, t.kind, t.dims, t.offset, t.length) for t in part.tensors]
    return part.weights + len(tail(part.graph, tensors, weights=part.weights))


@contextlib.contextmanager
def _sealed(pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[Opening]:
    sealer = Sealer.new(chunk_size=CHUNK_SIZE, random=os.urandom)
    length = 0
    with disk.faults("use a temporary file"), tempfile.TemporaryFile() as file:
        disk.write(file.fileno(), sealer.header)
        for piece in pieces:
            length += len(piece)
            for chunk in sealer.update(piece):
                disk.write(file.fileno(), chunk)
        disk.write(file.fileno(), sealer.finish())
        yield begin_file(
            file.fileno(),
            data_key=sealer.data_key,
            file_id=sealer.file_id,
            chunk_size=sealer.chunk_size,
            length=length,
        )


def rates(clock: Callable[[], float] = time.thread_time) -> Rates:
    """What this machine does in a second with one thread: processor time, so that others who keep it busy do not count.
    Takes about half a second. `clock`: seconds.
    """
    from strongroom import staging

    large, small = _stage(_SIDE), _stage(16)
    values = np.full((1, _ROWS, _SIDE), 0.5, np.float32)
    times: dict[str, list[float]] = {"large": [], "small": [], "run": []}
    for _ in range(_TIMES):
        started = clock()
        staging.Loaded(memoryview(small))
        times["small"].append(clock() - started)
        started = clock()
        loaded = staging.Loaded(memoryview(large))
        times["large"].append(clock() - started)
        started = clock()
        loaded.run({"x": values})
        times["run"].append(clock() - started)
        del loaded
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    operations = 2 * _MATRICES * _ROWS * _SIDE * _SIDE
    return Rates(
        opened=_opened(clock),
        loaded=len(large) / max(1e-6, median["large"] - median["small"]),
        session=median["small"],
        operations=operations / max(1e-6, median["run"]),
    )


def _opened(clock: Callable[[], float]) -> float:
    """Bytes of a sealed file that are read, decrypted and written into a slot in a second."""
    piece = bytes(1 << 20)
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    try:
        with _sealed(piece for _ in range(_READ_BYTES // len(piece))) as opening:
            scratch = memoryview(bytearray(opening.chunk_size + TAG_BYTES))
            plain = memoryview(bytearray(opening.chunk_size))
            started = clock()
            for number in range(opening.chunks):
                chunk = plain[: opening.size_of(number)]
                opening.open_chunk(number, chunk, scratch=scratch)
                os.pwrite(slot, chunk, number * opening.chunk_size % (8 << 20))
            return opening.length / max(1e-6, clock() - started)
    finally:
        os.close(slot)


def _stage(side: int) -> bytearray:
    """A stage of two matrix products."""
    names = [f"w{number}" for number in range(_MATRICES)]
    size = 4 * side * side
    tensors, initializers = [], []
    for number, name in enumerate(names):
        tensors.append(Tensor(name, TensorProto.FLOAT, (side, side), number * size, size))
        given = TensorProto(
            name=name, data_type=TensorProto.FLOAT, dims=(side, side), data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "weights"), ("offset", str(number * size)), ("length", str(size))):
            given.external_data.add(key=key, value=value)
        initializers.append(given)
    nodes, last = [], "x"
    for name in names:
        nodes.append(helper.make_node("MatMul", [last, name], [f"y_{name}"]))
        last = f"y_{name}"
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, side])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, None, side])],
        initializer=initializers,
    )
    model = helper.make_model(graph, opset_imports=[onnx.OperatorSetIdProto(version=17)], ir_version=8)
    weights = np.full(_MATRICES * side * side, 1 / side, np.float32).tobytes()
    return bytearray(weights + tail(model.SerializeToString(), tensors, weights=len(weights)))
