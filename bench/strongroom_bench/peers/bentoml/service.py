"""A BentoML service for one ONNX model: runs in the peer's own environment."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import bentoml
import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
DATATYPES = {np.dtype(v): k for k, v in DTYPES.items()}


@bentoml.service(workers=1)
class Bench:
    """onnxruntime behind BentoML."""

    def __init__(self):
        """Makes the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]

    @bentoml.api
    def infer(self, inputs: list[dict]) -> dict:
        """JSON to arrays, one request, arrays to JSON."""
        feed = {i["name"]: np.array(i["data"], DTYPES[i["datatype"]]).reshape(i["shape"]) for i in inputs}
        pairs = zip(self.names, self.session.run(None, feed), strict=True)
        return {"outputs": [
            {"name": n, "datatype": DATATYPES[v.dtype], "shape": list(v.shape), "data": v.ravel().tolist()}
            for n, v in pairs
        ]}  # fmt: skip
