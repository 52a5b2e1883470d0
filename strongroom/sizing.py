"""How large an enclave has to be: memory and threads of a server, from what admission bounds and what was measured.

Rules
  - A model's part comes from its admission report: bytes that run, tensors, values computed at load, and the most
    that one request keeps alive. The server's own part is constants, measured by `bench/size.py` on Linux; nothing
    here was measured in an enclave.
  - `resident` is what is expected (docs/performance.md says how well it was met); `enclave` is what is given: more,
    because an enclave's size cannot grow and what does not fit ends the server.
  - Isolation is `in_process`, the only one under a library OS: models, requests and the server in one process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from strongroom.errors import InvalidRequest

if TYPE_CHECKING:
    from strongroom.models.info import ModelInfo, TensorSpec

MIB: Final = 1 << 20
SERVER: Final = 95 * MIB
"""Resident bytes of a server that has no model, after its first requests."""
ENGINE: Final = 15 * MIB
"""More, once the first model was loaded: onnxruntime's own."""
WHILE_LOADING: Final = 3.3
"""Bytes at the peak of loading, for each byte that runs: the model as read, as parsed, and as its kernels keep it.
Measured 3.0 (matrices) to 3.9 (convolutions of 9 MB each, which the allocator does not give back at once)."""
LOADED: Final = 2.0
"""Bytes of a loaded model for each byte that runs: initializers, and copies that kernels pack."""
FOREST: Final = 20.0
"""The same for an ensemble of trees, whose nodes are numbers of a few bytes in the file and records in memory."""
GIVEN_BACK: Final = 32 * MIB
"""Blocks from which on the allocator gives memory back at once (glibc's M_MMAP_THRESHOLD_MAX): what smaller tensors
took while they were loaded stays with the process, and requests come on top.
"""
OUTPUTS: Final = 2
"""Copies of a result while it is answered: the arrays, and the body."""
EXAMINING: Final = {"onnx": 2.7, "xgboost-json": 2.5, "xgboost-ubj": 4.8}
"""Bytes of the process that examines a model, for each byte of the upload."""
TEMPLATE: Final = 50 * MIB
"""Resident bytes of the process that the examining ones are forked from, and of each before it has a model."""

MAPPED: Final = 400 * MIB
"""Address space beyond what is resident: libraries as a whole, reserved and not touched. A library OS without EDMM
commits all of it."""
FOR_A_THREAD: Final = 24 * MIB
"""Address space of a thread: its stack (8 MiB), and its share of the allocator's arenas (64 MiB each)."""
LIBRARY_OS: Final = 64 * MIB
"""Gramine's own code and data. Not measured: there was no SGX."""
SPARE: Final = 1.2
"""What is given for what is expected, before it is rounded up to a power of two (docs/performance.md: within 20 %)."""
LEAST_ENCLAVE: Final = 512 * MIB

OWN_THREADS: Final = 12
"""Event loop; threads for evidence, activation, admission, parsing, small loads (2), large loads; rotation of keys
and others of the event loop's own pool (5)."""
GRAMINE_THREADS: Final = 4
"""Gramine's IPC, timers, and handshakes of pipes; one to spare."""

EPC: Final = (
    ("SGX1, 128 MB PRM", 93 * MIB),
    ("SGX1, 256 MB PRM", 188 * MIB),
)
"""What older parts keep for enclaves, all together. Ice Lake servers and later: 8 to 512 GB a socket."""
PAGE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of a model: facts of its admission, and bytes of the form that runs and of the upload."""

    name: str
    info: ModelInfo
    runs_bytes: int
    upload_bytes: int

    @property
    def _factor(self) -> float:
        # What is not tensors is nodes, or tables of trees.
        return LOADED if self.info.admission.tensor_bytes >= self.runs_bytes // 2 else FOREST

    @property
    def loaded_bytes(self) -> int:
        """Resident while it is loaded."""
        return math.ceil(self._factor * self.runs_bytes) + self.info.admission.resident_bytes

    @property
    def loading_bytes(self) -> int:
        """Resident at the peak of loading, in which `loaded_bytes` is counted."""
        factor = max(self._factor, WHILE_LOADING)
        return math.ceil(factor * self.runs_bytes) + self.info.admission.resident_bytes

    @property
    def gives_back(self) -> bool:
        """Whether what loading took beyond `loaded_bytes` is free again for requests."""
        admission = self.info.admission
        return admission.tensor_bytes >= GIVEN_BACK * max(1, admission.tensors)

    def run_bytes(self, demand: Demand) -> int:
        """One request, at its worst: every value alive at one time, what came, and the answer."""
        most = 0
        for room in self.info.admission.rooms:
            came = sum(_tensor_bytes(spec, room.sizes) for spec in self.info.inputs)
            goes = sum(_tensor_bytes(spec, room.sizes) for spec in self.info.outputs)
            # A result was alive at one time too, so it has no more than that, whatever its shape may be.
            answer = OUTPUTS * min(goes, room.peak_bytes, demand.response_bytes)
            most = max(most, room.peak_bytes + min(came, demand.request_bytes) + answer)
        return most

    @property
    def examining_bytes(self) -> int:
        """Resident in the process that examines it."""
        return math.ceil(EXAMINING.get(self.info.format, 3.0) * self.upload_bytes)


_ITEM: Final = {
    "BOOL": 1, "BYTES": 16, "FP16": 2, "FP32": 4, "FP64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8,
}  # fmt: skip
"""Datatype -> bytes of an element; of a string, the pointer and length that stand for it."""


def _tensor_bytes(spec: TensorSpec, sizes: tuple[int, ...]) -> int:
    """Bytes of a tensor where the dimensions that the model leaves open have these sizes; 0 for an unknown rank."""
    count = 1
    for place, dimension in enumerate((0,) if spec.shape is None else spec.shape):
        known = dimension if isinstance(dimension, int) and dimension >= 0 else None
        count *= known if known is not None else (sizes[min(place, len(sizes) - 1)] if sizes else 1)
    return count * _ITEM[spec.datatype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What of the settings decides memory: `limits` of the same names (docs/configuration.md)."""

    concurrent_runs: int
    concurrent_uploads: int
    loaded_bytes: int
    request_bytes: int
    response_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of the sum; bytes."""

    what: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What a server needs. Bytes, but for `threads`."""

    parts: tuple[Part, ...]
    """What `resident_bytes` is made of."""
    resident_bytes: int
    """The server's process at its peak."""
    working_bytes: int
    """What warm requests touch: every loaded model and the runs, nothing of loading."""
    examining_bytes: int
    """The template and one process that examines the largest of the models. A second enclave each, under Gramine."""
    address_bytes: int
    enclave_bytes: int
    """A power of two, as SGX has it."""
    threads: int

    def paging(self, epc: int) -> int:
        """Pages of the working set that do not lie in an EPC of `epc` bytes: so many are exchanged, at the most,
        by requests that touch everything in turn.
        """
        return max(0, math.ceil((self.working_bytes - epc) / PAGE))

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "parts": [{"what": part.what, "bytes": part.size} for part in self.parts],
            "resident_bytes": self.resident_bytes,
            "working_bytes": self.working_bytes,
            "examining_bytes": self.examining_bytes,
            "address_bytes": self.address_bytes,
            "enclave_bytes": self.enclave_bytes,
            "threads": self.threads,
            "epc": [{"part": name, "bytes": size, "pages_beyond": self.paging(size)} for name, size in EPC],
        }


def size(models: Sequence[Model], demand: Demand) -> Sizing:
    """What a server with these models needs: all loaded, one loading, as many of the dearest runs as may be at once.

    Raises:
        InvalidRequest: no model, or one that takes more than all together may (code `size_impossible`).
    """
    if not models:
        raise InvalidRequest("expected at least one model", code="size_impossible")
    largest = max(models, key=lambda model: model.loading_bytes)
    if largest.loaded_bytes > demand.loaded_bytes:
        raise InvalidRequest(
            f"{largest.name} takes {largest.loaded_bytes} bytes once it is loaded, limits.loaded_bytes is "
            f"{demand.loaded_bytes}",
            code="size_impossible",
        )
    loaded = min(sum(model.loaded_bytes for model in models), demand.loaded_bytes)
    loading = largest.loading_bytes - largest.loaded_bytes
    runs = demand.concurrent_runs * max(model.run_bytes(demand) for model in models)
    # Where one model is all there is, nothing runs while it is loaded; with others, they do.
    parts = [Part(what="server", size=SERVER + ENGINE), Part(what="loaded models", size=loaded)]
    if len(models) == 1 and largest.gives_back:
        parts.append(Part(what="loading it, or requests", size=max(loading, runs)))
    else:
        parts.append(Part(what="loading the largest", size=loading))
        parts.append(Part(what="requests", size=runs))
    resident = sum(part.size for part in parts)
    threads = OWN_THREADS + demand.concurrent_runs + demand.concurrent_uploads + 1
    address = resident + MAPPED + threads * FOR_A_THREAD
    return Sizing(
        parts=tuple(parts),
        resident_bytes=resident,
        working_bytes=SERVER + ENGINE + loaded + runs,
        examining_bytes=2 * TEMPLATE + max(model.examining_bytes for model in models),
        address_bytes=address,
        enclave_bytes=_power_of_two(math.ceil(SPARE * address) + LIBRARY_OS),
        threads=threads + GRAMINE_THREADS,
    )


def _power_of_two(count: int) -> int:
    return 1 << (max(count, LEAST_ENCLAVE) - 1).bit_length()


def gramine_size(count: int) -> str:
    """A power of two as Gramine's manifests write it: `512M`, `2G`."""
    return f"{count >> 30}G" if count % (1 << 30) == 0 else f"{count >> 20}M"
