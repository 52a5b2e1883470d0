"""The preparer behind `forms`: a child of the zygote that has the engine optimise one model, answers and ends.

    model ──pipe──► onnxruntime ──pipe──► weights
                         └──memory file──► graph, and a table of the weights ──socket──► server

Rules
  - One thread, no secret, no file, no owner's data; locked down before it looks at a byte of the model.
  - onnxruntime reads and writes files by name, and nothing else here: the model and the weights go through pipes, the
    graph into a memory file of bounded size, each opened again below /proc/self/fd. Landlock, which does not see
    pipes and memory files, denies it all that has any other name (`sandbox.Profile.reopens`): without Landlock nothing
    is prepared.
  - Neither model nor weights are in its memory but as onnxruntime holds them.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

import onnx

from strongroom import admission_child, frames, kernel, sandbox
from strongroom.engine_options import PLACE
from strongroom.stages import GRAPH_BYTES, PIPES, TYPES, Tensor, tail

FACTOR: Final = 4
"""Bytes of memory for each byte of the model: parsed, as tensors, as tensors laid out anew."""
_DROPPED: Final = frozenset({"namespaces"})
"""The layer that it does without: its root is not empty, for /proc has to be there."""


def prepare(descriptor: int) -> int:
    """Prepares one model; whatever goes wrong is a death. Returns the exit code."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, admission_child.FIRST_S)
        with socket.socket(fileno=descriptor) as end:
            message, pipes, _, _ = socket.recv_fds(end, 1, 2)
            if message != PIPES or len(pipes) != 2:
                return 1
            header, _ = frames.receive(end, most=0)
            signal.setitimer(signal.ITIMER_REAL, header["child"]["wall_s"])
            frames.send(end, {"formed": True}, _formed(end, pipes[0], pipes[1], header))
    except Exception:  # noqa: BLE001 - whatever it is: the server does without a form
        return 1
    return 0


def _formed(end: socket.socket, model: int, weights: int, header: dict[str, Any]) -> bytes:
    """What follows the weights in the stage."""
    from strongroom import engine

    kernel.fill_blocks(0)  # nobody's memory but the model's comes here
    kernel.return_large_blocks()  # the model is laid out anew, tensor by tensor
    written = os.memfd_create("graph")
    for descriptor in (model, weights):
        os.fchmod(descriptor, 0o666)  # they are opened again by another user
    held = sandbox.lock_down(
        sandbox.Profile(
            memory_bytes=admission_child.occupied()
            + header["child"]["memory_bytes"]
            + FACTOR * header["size"],
            cpu_s=header["child"]["cpu_s"],
            read_fds=(end.fileno(), model, written),
            write_fds=(end.fileno(), weights, written),
            fork=False,
            receive_fds=True,
            file_bytes=GRAPH_BYTES,
            reopens=True,
        )
    )
    if not set(header["layers"]) - _DROPPED <= set(held) or "landlock" not in held:
        raise PermissionError
    engine.optimise(model, graph=written, weights=weights, size=header["size"])
    os.close(weights)
    data = os.read(written, GRAPH_BYTES)
    graph, tensors = _located(data, str(weights))
    return tail(graph, tensors, weights=max((t.offset + t.length for t in tensors), default=0))


def _located(data: bytes, file: str) -> tuple[bytes, list[Tensor]]:
    """The graph with another place for its weights than `file`, and the tensors that are there."""
    parsed = onnx.ModelProto.FromString(data)
    tensors = list(_tensors(parsed.graph, file))
    for initializer in parsed.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = PLACE
    return parsed.SerializeToString(), tensors


def _tensors(parsed: onnx.GraphProto, file: str) -> Iterator[Tensor]:
    """The tensors whose content is in the weights.

    Raises:
        ValueError: one of them is not where the engine takes it from while it loads.
    """
    if any(_external(inner) for node in parsed.node for inner in _inner(node)):
        raise ValueError("a tensor of an inner graph")
    for initializer in parsed.initializer:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in initializer.external_data}
        if said["location"] != file or initializer.data_type not in TYPES:
            raise ValueError("a tensor of another kind")
        dimensions = tuple(initializer.dims)
        yield Tensor(
            initializer.name, initializer.data_type, dimensions, int(said["offset"]), int(said["length"])
        )


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            yield graph
            for below in graph.node:
                yield from _inner(below)


def _external(graph: onnx.GraphProto) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer)
