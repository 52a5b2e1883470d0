"""A model in stages in the server's own process: what `processes.StagedWorker` is for workers.

Rules
  - As there: two slots, one run at a time, nothing used before all of it was authentic.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Mapping, Sequence

from strongroom.engine import InProcess
from strongroom.errors import AdmissionRefused, InvalidRequest, SealRefused
from strongroom.feeding import Feeding, Plan, Slots
from strongroom.jobs import Job, Loaded, Source
from strongroom.oip import Array
from strongroom.ring_filling import read_stage
from strongroom.sealed import Opening
from strongroom.staging import Staged


class StagedHere:
    """See `jobs.Loaded`."""

    def __init__(self, source: Source, stages: Sequence[Opening]) -> None:
        """Loads the stages that stay.

        Raises:
            AdmissionRefused: a stage cannot be loaded. SealRefused, OSError: as `Opening.open_chunk`.
        """
        plan = Plan([stage.length for stage in stages], source.room)
        self._source, self.info = source, source.info
        self._outputs = tuple(spec.name for spec in source.info.outputs)
        self._staged = Staged(source.info, plan.to_json())
        for number in sorted(plan.stay):
            self._staged.keep(number, read_stage(stages[number]))
        self._feeding = Feeding(plan)
        self._number = 0
        self._end, self._theirs = socket.socketpair()
        self._slots = Slots(plan.slot)
        seen = mmap.mmap(self._slots.readable, self._slots.size, prot=mmap.PROT_READ)
        self._staged.feed(self._theirs, memoryview(seen))
        self.memory_bytes = plan.memory_bytes
        self.stages = len(plan.lengths)

    def run(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> dict[str, Array]:
        """See `jobs.Loaded`."""
        names = outputs or self._outputs
        if not set(names) <= set(self._outputs):
            raise InvalidRequest(
                f"expected outputs among {', '.join(map(repr, self._outputs))}", code="output_unknown"
            )
        with self._feeding.turn(self._source, seconds=job.seconds + self._feeding.plan.seconds):
            self._number += 1
            self._feeding.serve(self._end, self._slots, self._number)
            return self._staged.run(inputs, outputs=names)

    def begin(self, inputs: Mapping[str, Array], *, outputs: tuple[str, ...], job: Job) -> None:
        """See `jobs.Loaded`: stages have to be waited for."""

    def shared(self, job: Job) -> bool:
        """See `jobs.Loaded`."""
        return job.caller is not None

    def close(self) -> None:
        """See `jobs.Loaded`. A run under way ends first."""
        self._feeding.stop()
        self._slots.close()
        self._end.close()
        self._theirs.close()


class Here:
    """`engine.InProcess`, for models in stages too. See `jobs.Host`."""

    def __init__(self, whole: InProcess) -> None:
        self._whole = whole

    def load(self, source: Source) -> Loaded:
        """See `jobs.Host`."""
        with source.stages() as stages:
            if len(stages) > 1:
                try:
                    return StagedHere(source, stages)
                except (
                    SealRefused,
                    AdmissionRefused,
                ) as fault:  # what else is wrong may be over by the next load
                    source.spoilt(stages, fault.code)
                    raise
        return self._whole.load(source)
