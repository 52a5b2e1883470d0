"""Less precision, made in processes that can be killed: the server's side. The order of an upload that asks for it:

    admitted -> [measured on a calibration set: ranges] -> rewritten -> admitted again -> sealed

Rules
  - Each step has a process of its own, forked from the zygote like an examiner. The engine runs in the one that
    measures, and nowhere else: what it ran in says numbers (ranges) and nothing more, and ends.
  - Ranges are not read here: they go on as they came, bounded, to the process that rewrites.
  - What was rewritten is a stranger's file again: the examiner decides, and what it wrote is what is sealed. So the
    owner's machine and the server make the same bytes of the same model, options and ranges (docs/precision.md).
  - The set goes to one process, once. Whoever holds it overwrites it (`service`).
  - A process that ends without a word may have been made to: deaths are counted as those of workers are
    (`quarantine`), for somebody may be learning the layout of the zygote's memory, which workers share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from strongroom import models
from strongroom.admission import KINDS, MESSAGE_CHARACTERS, SPARE_S, Admit, ChildLimits
from strongroom.errors import (
    CODES,
    AdmissionRefused,
    Error,
    Failure,
    InvalidRequest,
    LimitExceeded,
    MalformedInput,
)
from strongroom.frames import receive, send
from strongroom.models.info import AdmissionLimits, Admitted, ModelInfo
from strongroom.quarantine import Layout
from strongroom.reduction import (
    AS_UPLOADED,
    CALIBRATION,
    MAX_RANGES,
    Made,
    Precision,
    Reduction,
    counts_of,
)
from strongroom.zygote import REDUCER, Child, Nursery, Timely

log = logging.getLogger("strongroom.preparation")

MEASURE: Final = "measure"
REWRITE: Final = "rewrite"
_KINDS: Final[Mapping[str, type[Error]]] = {**KINDS, InvalidRequest.__name__: InvalidRequest}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in less precision: admitted, with what is to be said of it. `info` is the original's but for that."""

    info: ModelInfo
    onnx: bytes
    canonical_sha256: str


class Waiting:
    """Whether whoever asked for a precision still waits for it: making it takes minutes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: socket.socket | None = None
        self.over = False

    def give_up(self) -> None:
        """Nobody waits any more: what is under way ends, and nothing begins."""
        with self._lock:
            self.over = True
            if self._end is not None:
                with contextlib.suppress(OSError):  # it has ended
                    self._end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def for_answers(self, end: socket.socket) -> Iterator[None]:
        """While the block waits for what comes through `end`. EOFError where nobody waits any more."""
        with self._lock:
            if self.over:
                raise EOFError
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None


class Prepare(Protocol):
    """What makes less precision: `Preparer.prepare`, or the same steps in one process."""

    def __call__(
        self,
        admitted: Admitted,
        *,
        asked: Reduction,
        part: bytes | bytearray,
        limits: AdmissionLimits,
        waiting: Waiting,
    ) -> Prepared:
        """The model as `asked`; `part`: the bytes of `asked.part`, b"" without one."""


class Preparer:
    """Makes less precision in children of the zygote. Thread-safe."""

    def __init__(
        self, nursery: Nursery, *, admit: Admit, limits: ChildLimits, layers: tuple[str, ...]
    ) -> None:
        """`admit` examines what comes out; `layers` of the sandbox have to hold in each process."""
        self._nursery = nursery
        self._admit = admit
        self._limits = limits
        self._layers = layers
        self._lock = threading.Lock()
        self._layouts: weakref.WeakKeyDictionary[object, Layout] = weakref.WeakKeyDictionary()

    def prepare(
        self,
        admitted: Admitted,
        *,
        asked: Reduction,
        part: bytes | bytearray,
        limits: AdmissionLimits,
        waiting: Waiting,
    ) -> Prepared:
        """As `Prepare`.

        Raises:
            InvalidRequest: options, ranges or examples that do not go with the model (codes `precision_...`,
                `input_...`, `run_failed`).
            MalformedInput: no ranges, or no `.npz` (codes `precision_ranges_malformed`, `npz_...`).
            AdmissionRefused: nothing can be made of it (codes `precision_...`), or as `models.admit`.
            LimitExceeded: as `models.admit`; a process died or took too long (code `preparation_limits`).
            Unavailable: no process can be made now (code `overloaded`).
        """
        check_network(admitted)
        ranges = part
        if asked.part is not None and asked.part.kind == CALIBRATION:
            _, ranges = self._ask(MEASURE, admitted, asked, part, limits, most=MAX_RANGES, waiting=waiting)
        answer, written = self._ask(
            REWRITE, admitted, asked, ranges, limits, most=limits.model_bytes, waiting=waiting
        )
        if set(answer) != {"rewritten", "left"}:
            raise _unbelievable()
        try:
            counts = counts_of(answer["rewritten"]), counts_of(answer["left"])
        except MalformedInput:
            raise _unbelievable() from None
        made = self._admit(written, format="onnx", limits=limits)
        return prepared(admitted, made, asked=asked, counts=counts, ranges=ranges, limits=limits)

    def _ask(
        self,
        step: str,
        admitted: Admitted,
        asked: Reduction,
        part: bytes | bytearray,
        limits: AdmissionLimits,
        *,
        most: int,
        waiting: Waiting,
    ) -> tuple[dict[str, Any], bytearray]:
        header = {
            "step": step,
            "info": admitted.info.to_json(),
            "sha256": admitted.sha256,
            "canonical_sha256": admitted.canonical_sha256,
            "options": asked.options.to_json(),
            "limits": dataclasses.asdict(limits),
            "child": dataclasses.asdict(self._limits),
            "layers": list(self._layers),
        }
        with self._nursery.fork(REDUCER) as child:
            timely = Timely(child.end, self._limits.wall_s + SPARE_S)
            try:
                with waiting.for_answers(child.end):
                    send(timely, header, admitted.onnx)
                    send(timely, {}, part)
                    answer, data = receive(timely, most=most)
            except (OSError, EOFError, MemoryError) as fault:
                if not (isinstance(fault, TimeoutError) or waiting.over):
                    self._died(child)
                raise LimitExceeded(
                    "making the model's precision took more time or memory than it may, or ended its process",
                    code="preparation_limits",
                ) from None
        if set(answer) == {"error", "code", "message"}:
            raise _refusal(answer)
        return answer, data

    def _died(self, child: Child) -> None:
        with self._lock:
            known = self._layouts.setdefault(child.layout, Layout()).died(now=time.monotonic())
        if known:
            try:
                self._nursery.renew(child)
            except Failure as error:  # the former zygote stays in charge, and the next death tries again
                log.error("the process that models come into: %s", error.code)


def check_network(admitted: Admitted) -> None:
    """Returns if less precision can be made of models of this format.

    Raises:
        AdmissionRefused: it cannot (code `precision_nothing`).
    """
    if admitted.info.format != "onnx":
        raise AdmissionRefused(
            f"less precision is made of networks in ONNX, got a model in {admitted.info.format}",
            code="precision_nothing",
        )


def prepared(
    admitted: Admitted,
    made: Admitted,
    *,
    asked: Reduction,
    counts: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]],
    ranges: bytes | bytearray,
    limits: AdmissionLimits,
) -> Prepared:
    """What is said of `made`, which was admitted, and of `admitted`, which it was made from. `counts`: what was
    rewritten and what was left.

    Raises:
        Failure: they are not the same model in two precisions. LimitExceeded: too much to say (code
            `model_metadata_too_large`).
    """
    before, after = admitted.info, made.info
    edges = [
        [(spec.name, spec.datatype) for spec in (*info.inputs, *info.outputs)] for info in (before, after)
    ]
    if edges[0] != edges[1] or after.precision.name != AS_UPLOADED:
        raise Failure("what was made of the model is not that model in less precision")
    part = asked.part
    precision = Precision(
        name=asked.options.precision,
        narrow=after.precision.narrow,
        made=Made(
            form=asked.form,
            options=asked.options,
            rewritten=counts[0],
            left=counts[1],
            from_sha256=admitted.canonical_sha256,
            ranges_sha256=hashlib.sha256(ranges).hexdigest() if ranges else None,
            calibration_sha256=part.sha256 if part is not None and part.kind == CALIBRATION else None,
        ),
    )
    # Notes and names of features are not in what was rewritten: its canonical form holds none.
    info = replace(after, notes=before.notes, feature_names=before.feature_names, precision=precision)
    models.check_metadata(info, limits)
    return Prepared(info=info, onnx=made.onnx, canonical_sha256=made.canonical_sha256)


def _refusal(answer: Mapping[str, Any]) -> Error:
    """What a child says it refuses, believed as far as it has a form."""
    kind = _KINDS.get(str(answer["error"]), Failure)
    code, message = str(answer["code"]), str(answer["message"])[:MESSAGE_CHARACTERS]
    if code not in CODES or not message.isprintable():
        return _unbelievable()
    return kind(message, code=code)


def _unbelievable() -> Failure:
    return Failure("the process that makes less precision answers what it cannot")
