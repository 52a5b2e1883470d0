"""BentoML: a service class over onnxruntime, its HTTP server, JSON."""

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    (setting.folder / "service.py").write_text((setting.here / "service.py").read_text())
    address = ["--host", "127.0.0.1", "--port", str(setting.port)]
    return [
        str(setting.bin / "bentoml"),
        "serve",
        "service:Bench",
        "--working-dir",
        str(setting.folder),
        *address,
    ]


PEER = Peer(
    name="bentoml",
    title="BentoML",
    distributions=("bentoml", "onnxruntime"),
    command=_command,
    environment=lambda setting: {
        "BENCH_MODEL": str(setting.model), "BENTOML_HOME": str(setting.folder / "home"), "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{setting.bin}:/usr/bin:/bin",
    },
    protocol="oip-json",
    infer="/infer",
    ready="/readyz",
    about="BentoML service with one worker on onnxruntime, JSON",
)  # fmt: skip
