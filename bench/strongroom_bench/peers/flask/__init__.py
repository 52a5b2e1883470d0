"""The paper's stack: a Flask application over onnxruntime, `.npy` in and out, here behind gunicorn with threads.

What runs the paper's Flask application is not known here; gunicorn is what Flask's documentation recommends, and faster
than Flask's own development server.
"""

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    options = ["--workers", "1", "--threads", "16", "--keep-alive", "75", "--log-level", "warning"]
    bind = ["--bind", f"127.0.0.1:{setting.port}", "--chdir", str(setting.here)]
    return [str(setting.bin / "gunicorn"), *options, *bind, "server:application"]


PEER = Peer(
    name="flask",
    title="Flask + onnxruntime",
    distributions=("Flask", "gunicorn", "onnxruntime"),
    command=_command,
    environment=lambda setting: {"BENCH_MODEL": str(setting.model)},
    infer="/infer",
    ready="/ready",
    unload="/unload",
    about="the paper's stack: Flask and onnxruntime in one Python process (gunicorn, threads)",
)
