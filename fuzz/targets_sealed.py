"""Fuzz targets of the sealed store's parsers.

A value or `strongroom.errors.Error`, nothing else, and no forgery opens.
"""

from __future__ import annotations

import contextlib
import random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import age
from strongroom.errors import Error
from strongroom.handover import (
    Request,
    encode_challenge,
    encode_done,
    encode_take,
    parse_challenge,
    parse_done,
    parse_member,
    parse_request,
    parse_take,
)
from strongroom.models.info import ONNX_RULES, Admission, ModelInfo, Room, TensorSpec
from strongroom.sealed import (
    Sealer,
    chunk_count,
    open_sealed,
    parse_container_header,
    sealed_size,
    unwrap_key,
    wrap_key,
)
from strongroom.state import (
    NO_PREDECESSOR,
    TAKEN,
    Entry,
    Handing,
    ModelVersion,
    Name,
    Record,
    StateHeader,
    encode_record,
    open_state,
    parse_record,
    parse_state_file,
    seal_state,
)

KEY = b"k" * 32
FILE_ID = b"f" * 32
CHUNK = 32
PLAIN = bytes(range(100))
FACTS = b"facts"
HEADER = StateHeader(store_id="0a" * 16, sealing_class="simulated", sealed_for="ab" * 32, security="cd" * 32)


def _container() -> bytes:
    sealer = Sealer(KEY, file_id=FILE_ID, chunk_size=CHUNK)
    return b"".join((sealer.header, *sealer.update(PLAIN), sealer.finish()))


ADMISSION = Admission(
    level="permissive", flags=("unbounded",), nodes=3, tensors=2, tensor_bytes=8, resident_bytes=0, load_operations=7,
    rooms=(Room(sizes=(4, 9), peak_bytes=100, operations=10, steps=3),), text_bytes=64, versions=(("rules", "1"),),
)  # fmt: skip


def record() -> Record:
    """A record with two versions of one name and a tombstone."""
    info = ModelInfo(
        format="onnx",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=("rows", None, 4)),),
        outputs=(TensorSpec(name="y", datatype="INT64", shape=None),),
        primary_output="y",
        feature_names=("a", "\ud800"),
        notes=(("opset", 17), ("missing", -1.5), ("classes", ("no", "yes", None))),
        rules=ONNX_RULES,
        admission=ADMISSION,
    )
    entries = tuple(
        Entry(
            model=ModelVersion(
                name="modèle",
                version=number,
                owner="a1" * 32,
                access="private",
                format="onnx",
                sha256="0d" * 32,
                canonical_sha256="0e" * 32,
                size=3000 + number,
                created=1_800_000_000,
                info=info,
            ),
            file=f"{number:032x}",
            file_id=bytes([number]) * 32,
            length=2900 + number,
            chunk_size=1024,
            chunks=chunk_count(2900 + number, chunk_size=1024),
            wrapped_key=bytes([number]) * 112,
        )
        for number in (2, 5)
    )
    names = (Name("modèle", "a1" * 32, 6, entries), Name("gone", "", 3, ()))
    return Record(epoch=9, previous=NO_PREDECESSOR, names=names)


CONTAINER = _container()
WRAPPED = wrap_key(KEY, PLAIN[:32], associated=FACTS, random=random.Random(1).randbytes)
STATE = seal_state(record(), header=HEADER, state_key=KEY, random=random.Random(2).randbytes)
HANDING = Handing(end=TAKEN, transfer="0b" * 16, key=KEY)
STATEMENT = Request(challenge=KEY, source=KEY, key=KEY, security_version=1).encode()
ANSWER = b'{"endorsements":[],"evidence":"e30=","format":"sim","keyset":"e30="}'
IDENTITY = X25519PrivateKey.from_private_bytes(KEY)
RECIPIENT = age.recipient_of(IDENTITY)
WRAPPED_FILE = age.encrypt(PLAIN[:32], RECIPIENT, random=random.Random(3).randbytes)
SEEDS = {
    "fuzz_sealed_handover": (
        STATEMENT,
        encode_take(STATEMENT, ANSWER),
        encode_done(HANDING),
        encode_challenge(KEY, ANSWER),
    ),
    "fuzz_sealed_age_file": (WRAPPED_FILE,),
    "fuzz_sealed_age_key": (RECIPIENT.encode(), age.encode_identity(IDENTITY).encode()),
    "fuzz_sealed_container": (CONTAINER,),
    "fuzz_sealed_header": (CONTAINER[:80],),
    "fuzz_sealed_key": (WRAPPED,),
    "fuzz_sealed_state": (STATE,),
    "fuzz_sealed_record": (
        encode_record(record()),
        encode_record(Record(epoch=1, previous=NO_PREDECESSOR, names=())),
        encode_record(Record(epoch=1, previous=NO_PREDECESSOR, names=(), handing=HANDING)),
    ),
}


def fuzz_sealed_container(data: bytes) -> None:
    """A file in the place of a sealed one: opens only if it is that very file."""

    def read(offset: int, buffer: memoryview) -> int:
        piece = data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    with contextlib.suppress(Error):
        opened = open_sealed(
            read, data_key=KEY, file_id=FILE_ID, chunk_size=CHUNK, length=len(PLAIN), file_size=len(data)
        )
        assert data == CONTAINER and opened == PLAIN, "a forgery opened"
        assert len(data) == sealed_size(len(PLAIN), chunk_size=CHUNK)


def fuzz_sealed_header(data: bytes) -> None:
    """A header that parses is written again as it was."""
    with contextlib.suppress(Error):
        assert parse_container_header(data).encode() == data


def fuzz_sealed_key(data: bytes) -> None:
    """A wrapped key opens only if it is that very one."""
    with contextlib.suppress(Error):
        assert unwrap_key(KEY, data, associated=FACTS) == PLAIN[:32]
        assert data == WRAPPED, "a forgery opened"


def fuzz_sealed_state(data: bytes) -> None:
    """A state file parses or is refused, and opens only if it is that very one."""
    with contextlib.suppress(Error):
        file = parse_state_file(data)
        assert open_state(file, state_key=KEY) == record()
        assert data == STATE, "a forgery opened"


def fuzz_sealed_record(data: bytes) -> None:
    """A record that parses is written again as it was."""
    with contextlib.suppress(Error):
        assert encode_record(parse_record(data)) == data


def fuzz_sealed_handover(data: bytes) -> None:
    """A statement that parses is written again as it was; the other messages parse or are refused."""
    with contextlib.suppress(Error):
        assert parse_request(data).encode() == data
    for parse in (parse_take, parse_done, parse_challenge, lambda given: parse_member(given, "proof")):
        with contextlib.suppress(Error):
            parse(data)


def fuzz_sealed_age_file(data: bytes) -> None:
    """A wrapped key opens only if the file is that very one."""
    with contextlib.suppress(Error):
        assert age.decrypt(data, IDENTITY) == PLAIN[:32]
        assert data == WRAPPED_FILE, "a forgery opened"


def fuzz_sealed_age_key(data: bytes) -> None:
    """A key that parses is written again as it was, but for comments."""
    text = data.decode("latin-1")
    with contextlib.suppress(Error):
        age.parse_recipient(text)
        assert text == RECIPIENT, "a checksum held"
    with contextlib.suppress(Error):
        assert age.encode_identity(age.parse_identity(text)) in text
