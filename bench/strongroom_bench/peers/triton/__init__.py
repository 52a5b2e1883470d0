"""NVIDIA Triton Inference Server: the binary that the nvidia-pytriton wheel carries, with its Python backend.

That wheel has no onnxruntime backend; the model runs in onnxruntime within Triton's Python backend, whose tensors
travel through shared memory. The request is Triton's own binary form, its fastest over HTTP.
"""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strongroom_bench.codec import DATATYPES
from strongroom_bench.peer import Peer, Setting

_TYPES = {"FP32": "TYPE_FP32", "FP64": "TYPE_FP64", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32"}


def _package(setting: Setting) -> Path:
    (found,) = setting.python.parents[1].glob("lib/python*/site-packages/pytriton")
    return found


def _command(setting: Setting) -> list[str]:
    package = _package(setting)
    repository = setting.folder / "models"
    _write_model(repository / "model", setting)
    program = package / "tritonserver" / "bin" / "tritonserver"
    _write_backend(setting.folder / "backends" / "python", package / "tritonserver")
    return [
        str(program), "--model-repository", str(repository), "--backend-directory", str(setting.folder / "backends"),
        "--http-address", "127.0.0.1", "--http-port", str(setting.port), "--allow-grpc", "false", "--allow-metrics",
        "false", "--model-control-mode", "explicit", "--load-model", "model", "--exit-timeout-secs", "3",
        "--disable-auto-complete-config",
    ]  # fmt: skip


def _write_backend(folder: Path, server: Path) -> None:
    """The backend's files with the stub for this Python beside them, where Triton looks for it."""
    folder.mkdir(parents=True)
    version = ".".join(platform.python_version_tuple()[:2])
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for path in (*(server / "backends" / "python").iterdir(), stub):
        (folder / path.name).symlink_to(path)


def _write_model(folder: Path, setting: Setting) -> None:
    import onnx

    graph = onnx.load(setting.model, load_external_data=False).graph
    lines = ['name: "model"', 'backend: "python"', "max_batch_size: 0"]
    lines += _tensors("input", graph.input) + _tensors("output", graph.output)
    lines += ["instance_group [ { kind: KIND_CPU, count: 1 } ]"]
    lines += [f'parameters: {{ key: "model", value: {{ string_value: "{setting.model}" }} }}']
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
    (folder / "1" / "model.py").write_text((setting.here / "backend.py").read_text())


def _tensors(word: str, values: Iterable[Any]) -> list[str]:
    import onnx

    lines = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        kind = _TYPES[DATATYPES[dtype]]
        lines.append(f'{word} [ {{ name: "{value.name}", data_type: {kind}, dims: {dims} }} ]')
    return lines


def _environment(setting: Setting) -> dict[str, str]:
    stubs = _package(setting) / "tritonserver" / "python_backend_stubs"
    libraries = setting.python.parents[1].glob("lib/python*/site-packages/nvidia_pytriton.libs")
    path = ":".join(str(p) for p in (stubs, *libraries))
    site = str(_package(setting).parent)
    return {"LD_LIBRARY_PATH": path, "PYTHONPATH": site, "PATH": f"{setting.bin}:/usr/bin:/bin"}


PEER = Peer(
    name="triton",
    title="Triton, Python backend",
    distributions=("nvidia-pytriton", "onnxruntime"),
    command=_command,
    environment=_environment,
    protocol="oip-binary",
    infer="/v2/models/model/infer",
    ready="/v2/models/model/ready",
    live="/v2/health/live",
    load="/v2/repository/models/model/load",
    unload="/v2/repository/models/model/unload",
    about="tritonserver of the nvidia-pytriton wheel, onnxruntime in its Python backend, binary tensors",
)
