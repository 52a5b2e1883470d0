"""The sealed container and wrapped keys: what opens, what does not, and that nothing is used twice."""

from __future__ import annotations

import hashlib
import hmac
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import sealed
from strongroom.errors import Error, Failure, MalformedInput, SealRefused
from strongroom.sealed import Sealer, open_sealed, parse_container_header, sealed_size, unwrap_key, wrap_key

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import targets_sealed

KEY = bytes(range(32))
FILE_ID = bytes(range(100, 132))
CHUNK = 64
OTHER_KEY = bytes(32)


def seal(data: bytes, *, key: bytes = KEY, file_id: bytes = FILE_ID, chunk_size: int = CHUNK) -> bytes:
    """A whole container, sealed in one go."""
    sealer = Sealer(key, file_id=file_id, chunk_size=chunk_size)
    return b"".join((sealer.header, *sealer.update(data), sealer.finish()))


def reader(blob: bytes) -> sealed.Reader:
    """A pread over bytes, a few at a time, as a slow disk would."""

    def read(offset: int, buffer: memoryview) -> int:
        piece = blob[offset : offset + min(len(buffer), 50)]
        buffer[: len(piece)] = piece
        return len(piece)

    return read


def unseal(
    blob: bytes,
    length: int,
    *,
    key: bytes = KEY,
    file_id: bytes = FILE_ID,
    chunk_size: int = CHUNK,
    file_size: int | None = None,
) -> bytearray:
    """Opens a container held in memory."""
    size = len(blob) if file_size is None else file_size
    return open_sealed(
        reader(blob), data_key=key, file_id=file_id, chunk_size=chunk_size, length=length, file_size=size
    )


DATA = random.Random(1).randbytes(3 * CHUNK + 10)
BLOB = seal(DATA)
AT = [sealed.HEADER_BYTES + number * (CHUNK + 16) for number in range(4)] + [len(BLOB)]


def _chunk(number: int) -> bytes:
    return BLOB[AT[number] : AT[number + 1]]


def _patched(offset: int, data: bytes) -> bytes:
    return BLOB[:offset] + data + BLOB[offset + len(data) :]


def _flipped(offset: int) -> bytes:
    return _patched(offset, bytes([BLOB[offset] ^ 1]))


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block, by hand: the derivations are checked against something that is not our code."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7])
@pytest.mark.parametrize("piece", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK])
def test_what_was_sealed_opens_however_it_arrived(length: int, piece: int) -> None:
    """The pieces in which plaintext arrives change neither the container nor what opens."""
    data = random.Random(length).randbytes(length)
    sealer = Sealer(KEY, file_id=FILE_ID, chunk_size=CHUNK)
    parts = [sealer.header]
    for start in range(0, length, piece):
        parts += sealer.update(memoryview(data)[start : start + piece])
    blob = b"".join((*parts, sealer.finish()))
    assert blob == seal(data)
    assert len(blob) == sealed_size(length, chunk_size=CHUNK)
    assert unseal(blob, length) == data


def test_the_container_is_what_the_specification_says() -> None:
    """§2.1 to §2.3, written out a second time with HMAC and AES-GCM alone."""
    header = struct.pack(">8sII", b"STRGSEAL", 1, CHUNK) + FILE_ID
    header += _hkdf(KEY, FILE_ID, b"strongroom sealed v1 commitment")
    assert BLOB[:80] == header
    cipher = AESGCM(_hkdf(KEY, FILE_ID, b"strongroom sealed v1 chunks"))
    associated = hashlib.sha256(header).digest()
    for number in range(4):
        nonce = bytes(7) + struct.pack(">I", number) + (b"\x01" if number == 3 else b"\x00")
        plain = cipher.decrypt(nonce, _chunk(number), associated)
        assert plain == DATA[number * CHUNK : (number + 1) * CHUNK]


REFUSALS: dict[str, tuple[bytes, str]] = {
    "magic": (_patched(0, b"STRGSEAM"), "seal_header"),
    "version": (_patched(8, struct.pack(">I", 2)), "seal_header"),
    "chunk-size-zero": (_patched(12, struct.pack(">I", 0)), "seal_header"),
    "chunk-size-too-large": (_patched(12, struct.pack(">I", (64 << 20) + 1)), "seal_header"),
    "chunk-size-other": (_patched(12, struct.pack(">I", CHUNK * 2)), "seal_header"),
    "file-id": (_flipped(16), "seal_other_file"),
    "whole-file-of-another-model": (seal(DATA, key=OTHER_KEY, file_id=bytes(32)), "seal_other_file"),
    "commitment": (_flipped(48), "seal_commitment"),
    "same-file-id-other-key": (seal(DATA, key=OTHER_KEY), "seal_commitment"),
    "own-header-chunks-of-another-model": (BLOB[:80] + seal(DATA, key=OTHER_KEY)[80:], "seal_chunk"),
    "first-byte-of-first-chunk": (_flipped(AT[0]), "seal_chunk"),
    "tag-of-a-middle-chunk": (_flipped(AT[2] - 1), "seal_chunk"),
    "last-byte": (_flipped(len(BLOB) - 1), "seal_chunk"),
    "two-chunks-swapped": (BLOB[: AT[0]] + _chunk(1) + _chunk(0) + BLOB[AT[2] :], "seal_chunk"),
    "chunk-repeated": (BLOB[: AT[1]] + _chunk(0) + BLOB[AT[2] :], "seal_chunk"),
    "chunk-of-another-version": (
        BLOB[: AT[1]] + seal(DATA, file_id=bytes(32))[AT[1] : AT[2]] + BLOB[AT[2] :],
        "seal_chunk",
    ),
    "empty-file": (b"", "seal_truncated"),
    "header-only": (BLOB[:80], "seal_truncated"),
    "half-a-header": (BLOB[:40], "seal_truncated"),
    "last-byte-cut": (BLOB[:-1], "seal_truncated"),
    "last-chunk-cut": (BLOB[: AT[3]], "seal_truncated"),
    "chunk-left-out": (BLOB[: AT[1]] + BLOB[AT[2] :], "seal_truncated"),
    "byte-appended": (BLOB + b"\0", "seal_trailing"),
    "chunk-appended": (BLOB + _chunk(3), "seal_trailing"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_container_wrong_in_one_respect_is_refused_with_its_code(name: str) -> None:
    """One vector per check, each wrong in that respect only."""
    blob, code = REFUSALS[name]
    with pytest.raises(SealRefused) as caught:
        unseal(blob, len(DATA))
    assert caught.value.code == code


def test_the_wrong_key_or_file_id_is_refused_before_anything_is_decrypted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commitment and file id are checked first: no cipher is even made."""

    def never(key: bytes) -> AESGCM:
        raise AssertionError("a cipher was made")

    monkeypatch.setattr(sealed, "AESGCM", never)
    for arguments, code in (
        ({"key": OTHER_KEY}, "seal_commitment"),
        ({"file_id": bytes(32)}, "seal_other_file"),
    ):
        with pytest.raises(SealRefused) as caught:
            unseal(BLOB, len(DATA), **arguments)
        assert caught.value.code == code


def test_a_cut_at_a_chunk_end_with_a_matching_length_is_refused() -> None:
    """The last-chunk flag is in the nonce.

    Even a record that lied about the length would not open a shorter stream.
    """
    with pytest.raises(SealRefused) as caught:
        unseal(BLOB[: AT[2]], 2 * CHUNK)
    assert caught.value.code == "seal_chunk"


def test_a_stream_continued_behind_its_last_chunk_is_refused() -> None:
    """A last chunk in the middle does not open either."""
    whole = seal(DATA[: 2 * CHUNK])
    with pytest.raises(SealRefused) as caught:
        unseal(whole + _chunk(2), 3 * CHUNK)
    assert caught.value.code == "seal_chunk"


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    """The size came from the file system, the bytes did not: truncated, not a crash and not a short model."""
    with pytest.raises(SealRefused) as caught:
        unseal(BLOB[:-5], len(DATA), file_size=len(BLOB))
    assert caught.value.code == "seal_truncated"


@pytest.mark.parametrize("bad", [AT[0], AT[3] + 3])
def test_the_buffer_is_overwritten_when_a_tag_is_wrong(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """AES-GCM leaves unauthenticated plaintext in the buffer.

    Nothing of it, and of no good chunk before, remains.
    """
    buffers: list[bytearray] = []
    real = sealed.overwrite

    def spy(out: bytearray) -> None:
        assert any(out), "the test would be vacuous: nothing had been decrypted"
        buffers.append(out)
        real(out)

    monkeypatch.setattr(sealed, "overwrite", spy)
    with pytest.raises(SealRefused):
        unseal(_flipped(bad), len(DATA))
    assert len(buffers) == 1
    assert not any(buffers[0])


def test_the_buffer_is_overwritten_when_the_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError in the middle passes through, and leaves no plaintext either."""
    buffers: list[bytearray] = []
    monkeypatch.setattr(sealed, "overwrite", buffers.append)
    good = reader(BLOB)

    def read(offset: int, buffer: memoryview) -> int:
        if offset >= AT[2]:
            raise OSError(5, "Input/output error")
        return good(offset, buffer)

    with pytest.raises(OSError, match="Input/output"):
        open_sealed(
            read, data_key=KEY, file_id=FILE_ID, chunk_size=CHUNK, length=len(DATA), file_size=len(BLOB)
        )
    assert len(buffers) == 1


def test_overwrite_reaches_every_byte() -> None:
    """Also where the buffer is longer than one piece and no multiple of it."""
    buffer = bytearray(b"\xff") * (2 * sealed.CHUNK_SIZE + 5)
    sealed.overwrite(buffer)
    assert not any(buffer)
    sealed.overwrite(bytearray())


def test_no_key_and_no_nonce_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model sealed twice.

    Other data key, other file id, and no (key, nonce) pair comes twice anywhere.
    """
    used: list[tuple[bytes, bytes]] = []

    class Recording:
        def __init__(self, key: bytes) -> None:
            self.key, self.real = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            used.append((self.key, nonce))
            return self.real.encrypt(nonce, data, associated)

    monkeypatch.setattr(sealed, "AESGCM", Recording)
    rng = random.Random(5).randbytes
    first, second = (Sealer.new(chunk_size=CHUNK, random=rng) for _ in range(2))
    blobs = [b"".join((s.header, *s.update(DATA), s.finish())) for s in (first, second)]
    for sealer in (first, second):
        for _ in range(2):
            wrap_key(KEY, sealer.data_key, associated=b"same", random=rng)
    assert first.data_key != second.data_key and first.file_id != second.file_id
    assert len(used) == 2 * 4 + 4
    assert len(set(used)) == len(used)
    # What a repeated key gives away: the XOR of ciphertexts would be that of the plaintexts, here zero.
    assert blobs[0][80 : 80 + CHUNK] != blobs[1][80 : 80 + CHUNK]


def test_a_sealer_seals_one_stream_only() -> None:
    """After finish neither update nor finish works: a key could otherwise be made to seal two streams."""
    sealer = Sealer(KEY, file_id=FILE_ID, chunk_size=CHUNK)
    sealer.update(b"x")
    sealer.finish()
    with pytest.raises(Failure):
        sealer.update(b"y")
    with pytest.raises(Failure):
        sealer.finish()


def test_nothing_cannot_be_sealed_and_not_opened() -> None:
    """A container without a chunk would have no tag at all."""
    sealer = Sealer(KEY, file_id=FILE_ID, chunk_size=CHUNK)
    assert sealer.update(b"") == ()
    with pytest.raises(MalformedInput) as caught:
        sealer.finish()
    assert caught.value.code == "seal_empty"
    with pytest.raises(Failure):
        unseal(BLOB[:80], 0)


def test_the_chunk_counter_cannot_wrap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that came round again would repeat nonces: the sealer stops before."""
    monkeypatch.setattr(sealed, "MAX_CHUNKS", 2)
    sealer = Sealer(KEY, file_id=FILE_ID, chunk_size=1)
    sealer.update(b"ab")
    with pytest.raises(Error) as caught:
        sealer.update(b"cd")
    assert caught.value.code == "seal_too_long"
    with pytest.raises(Failure):
        unseal(BLOB, len(DATA), chunk_size=CHUNK)  # and the reader asks for no such number


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sealer(KEY[:31], file_id=FILE_ID, chunk_size=CHUNK),
        lambda: Sealer(KEY, file_id=FILE_ID[:31], chunk_size=CHUNK),
        lambda: Sealer(KEY, file_id=FILE_ID, chunk_size=0),
        lambda: Sealer(KEY, file_id=FILE_ID, chunk_size=(64 << 20) + 1),
        lambda: wrap_key(KEY[:31], KEY, associated=b"", random=bytes),
        lambda: wrap_key(KEY, KEY[:31], associated=b"", random=bytes),
    ],
)
def test_keys_and_sizes_of_the_wrong_length_are_our_fault(make: Callable[[], object]) -> None:
    """A caller inside the package that passes them is wrong: Failure, not a weak key."""
    with pytest.raises(Failure):
        make()


def test_a_header_of_another_length_is_refused() -> None:
    """79 and 81 bytes are no header."""
    for data in (BLOB[:79], BLOB[:81]):
        with pytest.raises(SealRefused) as caught:
            parse_container_header(data)
        assert caught.value.code == "seal_header"
    assert parse_container_header(BLOB[:80]).encode() == BLOB[:80]


WRAPPED = wrap_key(KEY, OTHER_KEY, associated=b"name=a version=1", random=random.Random(3).randbytes)


def test_a_wrapped_key_opens_with_its_facts_and_is_what_the_specification_says() -> None:
    """§3, written out a second time."""
    assert unwrap_key(KEY, WRAPPED, associated=b"name=a version=1") == OTHER_KEY
    salt = WRAPPED[:32]
    assert WRAPPED[32:64] == _hkdf(KEY, salt, b"strongroom sealed v1 wrap commitment")
    cipher = AESGCM(_hkdf(KEY, salt, b"strongroom sealed v1 wrap"))
    assert cipher.decrypt(bytes(12), WRAPPED[64:], b"name=a version=1") == OTHER_KEY


@pytest.mark.parametrize(
    ("key", "wrapped", "facts", "code"),
    [
        (KEY, WRAPPED, b"name=a version=2", "seal_binding"),
        (KEY, WRAPPED, b"name=b version=1", "seal_binding"),
        (KEY, WRAPPED, b"", "seal_binding"),
        (KEY, WRAPPED[:-1] + bytes([WRAPPED[-1] ^ 1]), b"name=a version=1", "seal_binding"),
        (KEY, WRAPPED[:64] + bytes([WRAPPED[64] ^ 1]) + WRAPPED[65:], b"name=a version=1", "seal_binding"),
        (KEY, bytes([WRAPPED[0] ^ 1]) + WRAPPED[1:], b"name=a version=1", "seal_commitment"),
        (KEY, WRAPPED[:32] + bytes(32) + WRAPPED[64:], b"name=a version=1", "seal_commitment"),
        (OTHER_KEY, WRAPPED, b"name=a version=1", "seal_commitment"),
        (KEY, WRAPPED[:-1], b"name=a version=1", "seal_wrapped"),
        (KEY, WRAPPED + b"\0", b"name=a version=1", "seal_wrapped"),
        (KEY, b"", b"name=a version=1", "seal_wrapped"),
    ],
)
def test_a_wrapped_key_wrong_in_one_respect_is_refused_with_its_code(
    key: bytes, wrapped: bytes, facts: bytes, code: str
) -> None:
    """Other facts, an altered byte, another wrapping key, another length."""
    with pytest.raises(SealRefused) as caught:
        unwrap_key(key, wrapped, associated=facts)
    assert caught.value.code == code


def test_refusals_say_nothing_of_keys_or_content() -> None:
    """No message and no cause carries a byte of key or plaintext."""
    for blob, _ in REFUSALS.values():
        with pytest.raises(SealRefused) as caught:
            unseal(blob, len(DATA))
        text = f"{caught.value} {caught.value.__cause__}"
        assert KEY.hex() not in text and repr(DATA[:4])[2:-1] not in text


@pytest.mark.parametrize("target", ["fuzz_sealed_container", "fuzz_sealed_header", "fuzz_sealed_key"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_give_a_value_or_our_error(target: str, data: st.DataObject) -> None:
    """The oracle: a value or strongroom.errors.Error, nothing else; and nothing unauthentic opens."""
    raw = data.draw(
        st.binary(max_size=400) | st.sampled_from(targets_sealed.SEEDS[target]).flatmap(_mutations)
    )
    getattr(targets_sealed, target)(raw)


def _mutations(seed: bytes) -> st.SearchStrategy[bytes]:
    cut = st.integers(0, len(seed)).map(lambda at: seed[:at])
    flip = st.tuples(st.integers(0, len(seed) - 1), st.integers(1, 255)).map(
        lambda change: seed[: change[0]] + bytes([seed[change[0]] ^ change[1]]) + seed[change[0] + 1 :]
    )
    return cut | flip
