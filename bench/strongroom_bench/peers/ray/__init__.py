"""Ray Serve: one deployment over onnxruntime, `.npy` in and out."""

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    return [str(setting.python), str(setting.here / "server.py"), str(setting.port), str(setting.folder)]


PEER = Peer(
    name="ray",
    title="Ray Serve",
    distributions=("ray", "onnxruntime"),
    command=_command,
    environment=lambda setting: {
        "BENCH_MODEL": str(setting.model), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    },
    infer="/infer",
    ready="/-/healthz",
    about="Ray Serve with one replica on onnxruntime, npy",
)  # fmt: skip
