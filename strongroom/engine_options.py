"""How models are loaded and run, in the words of onnxruntime's options: known without importing it.

What the engine derives from a model depends on them, so they are part of what a prepared form is made for.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from strongroom.jobs import THREADS
from strongroom.jobs import engine as version

FOLDING_BYTES: Final = 16 << 20
"""Bytes of one operator's result that constant folding may keep, or four times the model if that is more: for
weights stored transposed or as halves, not for a file of 9 KB that makes one of 400 MB. (At 1 MB, a network
whose weights are computed was fused in another way, and its results differed in the last bit.)"""
INLINE_BYTES: Final = 1024
"""Bytes up to which an initializer of a prepared form stays in its graph."""
REVISION: Final = 1
"""Of how forms are made and cut here: counted up with whatever makes other ones of the same model, so that none of an
earlier release's is run."""
PLACE: Final = "."
"""Where a prepared form's graph says that its other initializers are: a folder, which is there and cannot be read."""
ENTRIES: Final = (
    ("session.intra_op.allow_spinning", "0"),
    ("session.inter_op.allow_spinning", "0"),
    ("session.load_model_format", "ONNX"),
)
"""Entries of every session's configuration."""


def identity() -> str:
    """The engine, its version and the digest of its options: `onnxruntime/1.32.0 options 0123456789abcdef`."""
    options = json.dumps([ENTRIES, FOLDING_BYTES, INLINE_BYTES, THREADS, "all", PLACE, REVISION]).encode()
    return f"{version()} options {hashlib.sha256(options).hexdigest()[:16]}"
