"""Runs a network on examples, one after the other, for whoever measures it: `models.calibration`, evaluation.

Rules
  - What runs is admitted first, like anything that runs here.
  - The session is the engine's own, with the options that serve requests: what is measured is what will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from strongroom import models
from strongroom.engine import Engine
from strongroom.models.calibration import Request
from strongroom.models.info import AdmissionLimits

_METADATA_BYTES: Final = 16 << 20
"""Of the names of a network's inner values, which become outputs for a while and are stored nowhere."""


@dataclass(frozen=True, slots=True)
class Observer:
    """A `models.calibration.Run` on this machine's engine."""

    engine: Engine
    limits: AdmissionLimits

    def __call__(
        self, model: bytes, requests: Sequence[Request], *, outputs: tuple[str, ...]
    ) -> Iterator[Request]:
        """The outputs of each request, by name; () asks for all.

        Raises:
            Error: as `models.admit`, `Engine.load` and `Session.run`.
        """
        limits = replace(self.limits, metadata_bytes=_METADATA_BYTES)
        session = self.engine.load(models.admit(model, format="onnx", limits=limits))
        try:
            for request in requests:
                yield session.run(request, outputs=outputs)
        finally:
            session.close()
