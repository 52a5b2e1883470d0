"""A KServe model server for one ONNX model: runs in the peer's own environment."""

import argparse
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer, model_server
from kserve.utils.utils import generate_uuid

DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32"}


class Onnx(Model):
    """onnxruntime behind KServe."""

    def load(self):
        """Makes the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]
        self.ready = True
        return self.ready

    def predict(self, payload, headers=None, response_headers=None):
        """Runs one request."""
        results = self.session.run(None, {i.name: i.as_numpy() for i in payload.inputs})
        outputs = []
        for name, value in zip(self.names, results, strict=True):
            output = InferOutput(name=name, shape=list(value.shape), datatype=DATATYPES[str(value.dtype)])
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return InferResponse(response_id=generate_uuid(), model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    arguments, _ = argparse.ArgumentParser(parents=[model_server.parser]).parse_known_args()
    model = Onnx(arguments.model_name)
    model.load()
    ModelServer().start([model])
