"""An MLServer runtime for one ONNX model: runs in the peer's own environment."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Runtime(MLModel):
    """onnxruntime behind MLServer's numpy codec."""

    async def load(self):
        """Makes the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        """Runs one request."""
        feed = {value.name: NumpyCodec.decode_input(value) for value in payload.inputs}
        results = self.session.run(None, feed)
        outputs = [
            NumpyCodec.encode_output(name, value) for name, value in zip(self.names, results, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
