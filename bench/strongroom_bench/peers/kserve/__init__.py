"""KServe's Python model server (`kserve.ModelServer`) over onnxruntime, binary tensors over HTTP."""

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    options = ["--model_name", "model", "--http_port", str(setting.port), "--enable_grpc", "false"]
    return [str(setting.python), str(setting.here / "server.py"), *options]


PEER = Peer(
    name="kserve",
    title="KServe",
    distributions=("kserve", "onnxruntime"),
    command=_command,
    environment=lambda setting: {"BENCH_MODEL": str(setting.model)},
    protocol="oip-binary",
    infer="/v2/models/model/infer",
    ready="/v2/models/model/ready",
    live="/v2/health/live",
    about="KServe's Python model server on onnxruntime, binary tensors over HTTP",
)
