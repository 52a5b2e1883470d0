"""Seldon's MLServer: a runtime of ours over onnxruntime, its REST interface, JSON (it has no binary form there)."""

import json

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    (setting.folder / "bench_runtime.py").write_text((setting.here / "runtime.py").read_text())
    settings = {
        "host": "127.0.0.1", "http_port": setting.port, "grpc_port": setting.port + 1, "metrics_port": setting.port + 2,
        "parallel_workers": 0, "debug": False, "logging_settings": {"version": 1, "disable_existing_loggers": False},
    }  # fmt: skip
    (setting.folder / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "model",
        "implementation": "bench_runtime.Runtime",
        "parameters": {"uri": str(setting.model)},
    }
    (setting.folder / "model-settings.json").write_text(json.dumps(model))
    return [str(setting.bin / "mlserver"), "start", str(setting.folder)]


PEER = Peer(
    name="mlserver",
    title="MLServer",
    distributions=("mlserver", "onnxruntime"),
    command=_command,
    environment=lambda setting: {"PYTHONPATH": str(setting.folder)},
    protocol="oip-json",
    infer="/v2/models/model/infer",
    ready="/v2/models/model/ready",
    live="/v2/health/live",
    load="/v2/repository/models/model/load",
    unload="/v2/repository/models/model/unload",
    about="MLServer with a runtime over onnxruntime, REST, JSON, in-process (parallel_workers 0)",
)
