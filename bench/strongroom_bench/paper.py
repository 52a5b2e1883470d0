"""What the paper publishes (Python-based ONNX inference in Intel SGX, 2026): its figures, as far as known here.

Its evaluation has thirteen models; figures of three are known here, and only those are shown. Seconds, medians of 25
runs after 5 warm-ups, one thread, batch 1, timed by the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Published:
    """One model's published medians in seconds; None: not known here."""

    native: float | None
    tee: float | None

    @property
    def overhead(self) -> float | None:
        """How many times the native figure the one in the TEE is."""
        return self.tee / self.native if self.native and self.tee else None


MEMORY: Final = {
    "squeezenet": Published(0.076, 0.089),
    "resnet50": Published(0.283, None),
    "efficientnet_v2_l": Published(0.994, 1.958),
}
"""Model in memory (its Tables 2 and 3)."""
DISK: Final = {
    "resnet50": Published(0.321, 8.142),
    "efficientnet_v2_l": Published(0.905, 25.412),
}
"""Model read from its encrypted disk, caches dropped (its Table 4)."""
SIZES_MB: Final = {
    "minimal Python": (120, 150),
    "with NumPy": (170, 200),
    "with ONNX Runtime": (250, 300),
    "with PyTorch": (800, None),
}
"""Trusted image by component in MB, from and to (its Figure 1; PyTorch: "beyond 800")."""
UNKNOWN: Final = "The paper's figures of the other models are not known to this project."


def published(command: str) -> dict[str, Published]:
    """The table that compares with `warm` or `cold`; empty for other commands."""
    return {"warm": MEMORY, "cold": DISK}.get(command, {})
