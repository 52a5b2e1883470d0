"""A LitServe service for one ONNX model: runs in the peer's own environment."""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import litserve
import numpy as np
import onnxruntime

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
DATATYPES = {np.dtype(v): k for k, v in DTYPES.items()}


class Api(litserve.LitAPI):
    """onnxruntime behind LitServe."""

    def setup(self, device):
        """Makes the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]

    def decode_request(self, request):
        """JSON to arrays."""
        return {
            i["name"]: np.array(i["data"], DTYPES[i["datatype"]]).reshape(i["shape"])
            for i in request["inputs"]
        }

    def predict(self, x):
        """Runs one request."""
        return self.session.run(None, x)

    def encode_response(self, output):
        """Arrays to JSON."""
        pairs = zip(self.names, output, strict=True)
        return {"outputs": [
            {"name": n, "datatype": DATATYPES[v.dtype], "shape": list(v.shape), "data": v.ravel().tolist()}
            for n, v in pairs
        ]}  # fmt: skip


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
