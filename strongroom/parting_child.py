"""The process behind `partitioning`: a child of the zygote that finds out where to cut one model, answers and ends.

Rules
  - One thread, no secret, no file, no owner's data; locked down before it looks at a byte of the graph.
  - It has no weights. onnxruntime is there to say which types and shapes the graph's values have; it runs nothing.
"""

from __future__ import annotations

import socket
from typing import Final

from strongroom import admission_child, frames

FACTOR: Final = 24
"""Bytes of memory for each byte of the graph: parsed, copied, and as onnxruntime holds it."""


def part(descriptor: int) -> int:
    """Cuts one model; whatever goes wrong is a death. Returns the exit code."""
    from strongroom import staging
    from strongroom.models import parting
    from strongroom.stages import layout

    try:
        with socket.socket(fileno=descriptor) as end:
            header, data = admission_child.first(end)
            more = FACTOR * len(data) + header["largest"]
            layers = admission_child.confine(end.fileno(), header["child"], more)
            if not set(header["layers"]) <= set(layers):
                return 1
            found = layout(memoryview(data), size=header["size"])
            graph = bytes(data[: found.graph])
            values = staging.values_of(graph, found.tensors)
            parts = parting.part(graph, values, count=header["count"], limit=header["limit"])
            frames.send(end, *parting.pack(parts))
    except MemoryError:
        return 1  # the caller takes silence for a limit
    except Exception:  # noqa: BLE001 - whatever it is: the server goes on without stages
        return 1
    return 0
