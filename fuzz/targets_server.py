"""Fuzz targets of the server: its configuration file and the parts of requests that are parsed here."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from strongroom import bodies, config
from strongroom.errors import Error
from strongroom.oip import WireLimits
from strongroom.reduction import parse_ranges
from strongroom.tee import tpm

LIMITS = WireLimits(tensors=8, tensor_bytes=1 << 16, total_bytes=1 << 17, elements=1 << 12, name_length=64)

SEEDS = {
    "fuzz_config": (
        b'platform = "simulated"\nbind = "127.0.0.1:8443"\n[limits]\nmodel_bytes = 1000\n',
        b'[security]\nanonymous_upload = true\n[[preload]]\nname = "a"\npath = "b"\n',
    ),
    "fuzz_credential": (b'{"credential": "YWI=", "encrypted_secret": "Y2Q="}',),
    "fuzz_ranges": (b'{"type":"strongroom-ranges/1","model":"ab","ranges":{"a":[-1.5,0.25],"b":[0,1]}}\n',),
    "fuzz_sealed_root": (b'{"pcrs":[0,13],"private":"YWI=","public":"Y2Q=","version":1}',),
    "fuzz_question": (
        b'{"features": [5.1, 3.5, 1.4, 0.2]}',
        b'{"features": [[1, null], [3.5, -1e9]], "model_id": "iris-classifier/versions/2"}',
    ),
}


def fuzz_config(data: bytes) -> None:
    """Any file gives a Config or our error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.toml"
        path.write_bytes(data)
        try:
            config.load(path, variables={}, base=Path("/base"))
        except Error:
            return


def fuzz_question(data: bytes) -> None:
    """Any body of /model/predict gives a Question or our error."""
    try:
        bodies.parse_question(data, limits=LIMITS)
    except Error:
        return


def fuzz_credential(data: bytes) -> None:
    """Any body of /v1/tpm/activate gives two strings of bytes or our error."""
    try:
        bodies.parse_credential(data)
    except Error:
        return


def fuzz_ranges(data: bytes) -> None:
    """Any file gives ranges, finite ones, or our error."""
    try:
        ranges = parse_ranges(data, model="ab")
    except Error:
        return
    assert all(math.isfinite(end) for ends in ranges.values() for end in ends)


def fuzz_sealed_root(data: bytes) -> None:
    """Any file in the place of a TPM's sealed root gives a blob or our error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tpm-root.json"
        path.write_bytes(data)
        try:
            tpm.read_root(path, pcrs=(0, 13))
        except Error:
            return
