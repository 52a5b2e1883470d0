"""tract, the inference engine in Rust that BlindAI used: in a process, no server."""

from strongroom_bench.peer import Peer

PEER = Peer(
    name="tract", title="tract", distributions=("tract",), engine=True, about="BlindAI's engine, in a process"
)
