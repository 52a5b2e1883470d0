"""A Ray Serve deployment for one ONNX model: runs in the peer's own environment."""

import io
import os
import signal
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Onnx:
    """onnxruntime behind Ray Serve."""

    def __init__(self):
        """Makes the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    async def __call__(self, request):
        """`.npy` in and out, `.npz` where there are several."""
        given = np.load(io.BytesIO(await request.body()), allow_pickle=False)
        many = isinstance(given, np.lib.npyio.NpzFile)
        feed = {name: given[name] for name in self.names} if many else {self.names[0]: given}
        results, sink = self.session.run(None, feed), io.BytesIO()
        if len(results) == 1:
            np.save(sink, results[0], allow_pickle=False)
        else:
            np.savez(sink, *results)
        return Response(sink.getvalue(), media_type="application/octet-stream")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000,
        runtime_env={"env_vars": {"BENCH_MODEL": os.environ["BENCH_MODEL"]}},
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Onnx.bind(), route_prefix="/infer")
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
        ray.shutdown()
