"""A Flask service for one ONNX model: runs in the peer's own environment."""

import io
import os
import threading

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from flask import Flask, Response, request

application = Flask(__name__)
_lock = threading.Lock()
_loaded = []


def _session():
    with _lock:
        if not _loaded:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            path = os.environ["BENCH_MODEL"]
            _loaded.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        return _loaded[0]


@application.get("/ready")
def ready():
    """Loads the model and says so."""
    _session()
    return "ready"


@application.post("/unload")
def unload():
    """Lets go of the model; the next request loads it."""
    with _lock:
        _loaded.clear()
    return "unloaded"


@application.post("/infer")
def infer():
    """`.npy` in and out, `.npz` where there are several."""
    session = _session()
    data = io.BytesIO(request.get_data())
    given = np.load(data, allow_pickle=False)
    names = [value.name for value in session.get_inputs()]
    feed = (
        {name: given[name] for name in names}
        if isinstance(given, np.lib.npyio.NpzFile)
        else {names[0]: given}
    )
    results = session.run(None, feed)
    sink = io.BytesIO()
    if len(results) == 1:
        np.save(sink, results[0], allow_pickle=False)
    else:
        np.savez(sink, *results)
    return Response(sink.getvalue(), mimetype="application/octet-stream")
