"""A model cut as a server would cut it: for `strongroom size`, without a server.

    admitted model ──► sealed ──► preparer ──► whole form, sealed ──► parter ──► bytes of each stage

Rules
  - The processes are the server's, confined as there (`forms`, `partitioning`). Nothing is written in the clear: what
    goes to the disk is sealed with keys that nobody keeps, in files without a name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator

from strongroom import disk
from strongroom.admission import ChildLimits
from strongroom.errors import LimitExceeded
from strongroom.forms import form_pieces
from strongroom.models.parting import Part
from strongroom.partitioning import Reading, parts_of
from strongroom.sealed import CHUNK_SIZE, Opening, Sealer
from strongroom.stages import Tensor, tail
from strongroom.upload import begin_file
from strongroom.zygote import Nursery


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
            sealed((canonical,)) as model,
            sealed(form_pieces(nursery, model, limits=limits, layers=())) as form,
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
def sealed(pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[Opening]:
    """These bytes in a sealed file without a name, with a key that nobody keeps; opened.

    Raises:
        Unavailable, Failure: as `disk.faults`.
    """
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
