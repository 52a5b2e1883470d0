"""Lightning's LitServe: its own worker process and JSON over HTTP; the Open Inference Protocol's form is made by us."""

from strongroom_bench.peer import Peer, Setting


def _command(setting: Setting) -> list[str]:
    return [str(setting.python), str(setting.here / "server.py"), str(setting.model), str(setting.port)]


PEER = Peer(
    name="litserve",
    title="LitServe",
    distributions=("litserve", "onnxruntime"),
    command=_command,
    protocol="oip-json",
    infer="/predict",
    ready="/health",
    about="LitServe with one worker on onnxruntime, JSON",
)
