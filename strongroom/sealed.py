"""The sealed container and key wrapping: bytes in, bytes out (`docs/spec/sealed.md` §2 and §3).

Rules
  - One data key seals one file, ever. Nonces count chunks, so a key used twice would give away the XOR of
    the two plaintexts (§2.2); `Sealer.new` draws a fresh key and file id, and a sealer cannot be rewound.
  - Plaintext leaves `open_sealed` only after the header, every tag and the last-chunk flag were checked.
    AES-GCM leaves what it decrypted in the buffer when a tag is wrong, so the buffer is overwritten on
    every failure (§2.4).
  - AES-GCM alone does not commit to its key: one ciphertext can open under two keys to two plaintexts.
    Every key is therefore committed to before it is used (§2.2, §3).
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.errors import Failure, LimitExceeded, MalformedInput, SealRefused

MAGIC: Final = b"STRGSEAL"
VERSION: Final = 1
KEY_BYTES: Final = 32
FILE_ID_BYTES: Final = 32
TAG_BYTES: Final = 16
WRAPPED_BYTES: Final = 32 + 32 + KEY_BYTES + TAG_BYTES
"""Bytes of a wrapped key: salt, commitment, sealed key (§3)."""
CHUNK_SIZE: Final = 1 << 20
"""Bytes of plaintext per chunk of new files: a tag costs nothing then, and a processor's cache holds it."""
MAX_CHUNK_SIZE: Final = 64 << 20
"""A header may not make the reader allocate more than this for one chunk; AES-GCM itself stops at 64 GiB."""
MAX_CHUNKS: Final = 1 << 32
"""The nonce counts chunks in 32 bits (§2.3)."""

_HEADER: Final = struct.Struct(">8sII32s32s")
HEADER_BYTES: Final = _HEADER.size

Bytes = bytes | bytearray | memoryview
Reader = Callable[[int, memoryview], int]
"""Like `pread`: fills the buffer from this offset on; returns how many bytes came, 0 at the end."""
Random = Callable[[int], bytes]
"""Gives that many fresh random bytes; `os.urandom` everywhere but in tests."""


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """The fixed header of a container (§2.1)."""

    chunk_size: int
    file_id: bytes
    commitment: bytes

    def encode(self) -> bytes:
        """The 80 bytes at the start of the file."""
        return _HEADER.pack(MAGIC, VERSION, self.chunk_size, self.file_id, self.commitment)


def parse_container_header(data: bytes) -> ContainerHeader:
    """Reads the fixed header (§2.1); says nothing yet about whether it is the expected one.

    Raises:
        SealRefused: wrong length, magic, version or chunk size (code `seal_header`).
    """
    if len(data) != HEADER_BYTES:
        raise SealRefused(f"a sealed header has {HEADER_BYTES} bytes, got {len(data)}", code="seal_header")
    magic, version, chunk_size, file_id, commitment = _HEADER.unpack(data)
    if magic != MAGIC:
        raise SealRefused("not a sealed file: it does not begin with the magic bytes", code="seal_header")
    if version != VERSION:
        raise SealRefused(f"sealed container version {VERSION} expected, got {version}", code="seal_header")
    if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
        raise SealRefused(f"chunk size 1 to {MAX_CHUNK_SIZE} expected, got {chunk_size}", code="seal_header")
    return ContainerHeader(chunk_size=chunk_size, file_id=file_id, commitment=commitment)


def chunk_count(length: int, *, chunk_size: int) -> int:
    """Chunks that `length` bytes of plaintext make: all full but the last, which is not empty (§2.3)."""
    return -(-length // chunk_size)


def sealed_size(length: int, *, chunk_size: int) -> int:
    """Bytes of the container for `length` bytes of plaintext."""
    return HEADER_BYTES + length + TAG_BYTES * chunk_count(length, chunk_size=chunk_size)


class Sealer:
    """Seals one stream in one pass (§2.3): write `header`, then what `update` and `finish` return."""

    def __init__(self, data_key: bytes, *, file_id: bytes, chunk_size: int) -> None:
        """Takes a key that never sealed anything before; `Sealer.new` makes one.

        Raises:
            Failure: a key, file id or chunk size of the wrong size: a fault of the caller.
        """
        if len(data_key) != KEY_BYTES or len(file_id) != FILE_ID_BYTES:
            raise Failure("a data key and a file id have 32 bytes each")
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise Failure(f"a chunk has 1 to {MAX_CHUNK_SIZE} bytes")
        self.data_key = data_key
        self.file_id = file_id
        self.chunk_size = chunk_size
        self.header = ContainerHeader(chunk_size, file_id, _commitment(data_key, file_id)).encode()
        self._cipher = AESGCM(_derive(data_key, salt=file_id, info=b"strongroom sealed v1 chunks"))
        self._associated = _sha256(self.header)
        self._held = bytearray(chunk_size)
        self._held_bytes = 0
        self._chunks = 0
        self._finished = False

    @classmethod
    def new(cls, *, chunk_size: int, random: Random) -> Sealer:
        """A sealer with a fresh data key and file id (§2.2)."""
        return cls(random(KEY_BYTES), file_id=random(FILE_ID_BYTES), chunk_size=chunk_size)

    def update(self, data: Bytes) -> tuple[bytes, ...]:
        """Takes the next plaintext bytes, in pieces of any size; returns the chunks that are now certain.

        A chunk is sealed only once a byte behind it has come: until then it may be the last, whose nonce
        differs.

        Raises:
            LimitExceeded: more chunks than the nonce can count (code `seal_too_long`).
            Failure: after `finish`.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        sealed: list[bytes] = []
        if self._held_bytes:
            view = self._hold(view)
            if not view:
                return ()
            sealed.append(self._seal(self._held, last=False))
            self._held_bytes = 0
        while len(view) > self.chunk_size:
            sealed.append(self._seal(view[: self.chunk_size], last=False))
            view = view[self.chunk_size :]
        self._hold(view)
        return tuple(sealed)

    def finish(self) -> bytes:
        """Returns the last sealed chunk; the sealer is then of no further use.

        Raises:
            MalformedInput: there was no plaintext at all (code `seal_empty`): a last chunk has at least one
                byte.
            Failure: called twice.
        """
        self._check_open()
        self._finished = True
        if not self._held_bytes:
            raise MalformedInput("nothing to seal: at least one byte is needed", code="seal_empty")
        last = self._seal(memoryview(self._held)[: self._held_bytes], last=True)
        self._held[:] = bytes(self.chunk_size)
        return last

    def _hold(self, view: memoryview) -> memoryview:
        """Keeps as much of `view` as fits in the held chunk, returns the rest."""
        take = min(self.chunk_size - self._held_bytes, len(view))
        self._held[self._held_bytes : self._held_bytes + take] = view[:take]
        self._held_bytes += take
        return view[take:]

    def _seal(self, chunk: Bytes, *, last: bool) -> bytes:
        if self._chunks >= MAX_CHUNKS:
            raise LimitExceeded(f"more than {MAX_CHUNKS} chunks", code="seal_too_long")
        sealed = self._cipher.encrypt(_nonce(self._chunks, last=last), chunk, self._associated)
        self._chunks += 1
        return sealed

    def _check_open(self) -> None:
        if self._finished:
            raise Failure("this sealer is finished: a data key seals one file only")


class Opening:
    """A container that is being opened, chunk by chunk and in any order (§2.4). Thread-safe.

    What `open_chunk` wrote may be used only when *every* chunk was opened without an exception: a file that was cut
    short shows in its last chunk alone. Whoever opens chunks elsewhere than in `open_sealed` keeps to that.
    """

    def __init__(
        self, read: Reader, *, data_key: bytes, file_id: bytes, chunk_size: int, length: int, file_size: int
    ) -> None:
        """Checks header, file id, commitment and size; parameters and exceptions are those of `open_sealed`."""
        # A container without a chunk would be one without a tag.
        if not 1 <= length <= MAX_CHUNKS * chunk_size:
            raise Failure(f"a container holds 1 to {MAX_CHUNKS} chunks")
        if file_size < HEADER_BYTES:
            raise SealRefused(f"the sealed file has only {file_size} bytes", code="seal_truncated")
        raw = bytearray(HEADER_BYTES)
        _fill(read, 0, memoryview(raw))
        fixed = bytes(raw)
        header = parse_container_header(fixed)
        if header.chunk_size != chunk_size:
            raise SealRefused(
                f"chunk size {chunk_size} expected, got {header.chunk_size}", code="seal_header"
            )
        if not hmac.compare_digest(header.file_id, file_id):
            raise SealRefused("the sealed file is another one than the record names", code="seal_other_file")
        if not hmac.compare_digest(header.commitment, _commitment(data_key, file_id)):
            raise SealRefused("the sealed file commits to another key", code="seal_commitment")
        expected = sealed_size(length, chunk_size=chunk_size)
        if file_size != expected:
            code = "seal_truncated" if file_size < expected else "seal_trailing"
            raise SealRefused(f"{expected} bytes of sealed file expected, got {file_size}", code=code)
        self.file_id = file_id
        """Of the container, as the record has it."""
        self.length = length
        """Bytes of plaintext."""
        self.chunk_size = chunk_size
        self.chunks = chunk_count(length, chunk_size=chunk_size)
        self._read = read
        self._cipher = AESGCM(_derive(data_key, salt=file_id, info=b"strongroom sealed v1 chunks"))
        self._associated = _sha256(fixed)

    def size_of(self, number: int) -> int:
        """Bytes of plaintext in a chunk."""
        return min(self.chunk_size, self.length - number * self.chunk_size)

    def open_chunk(self, number: int, plain: memoryview, *, scratch: memoryview) -> None:
        """Decrypts a chunk into `plain`, which has its size. `scratch`: private memory for `chunk_size` bytes and a tag
        (or the one chunk there is): ciphertext could change in a shared mapping between the check and the decryption.

        Raises:
            SealRefused: `seal_chunk` or `seal_truncated`; `plain` then holds bytes that are not authentic.
            OSError: whatever `read` raises.
        """
        sealed = scratch[: self.size_of(number) + TAG_BYTES]
        _fill(self._read, HEADER_BYTES + number * (self.chunk_size + TAG_BYTES), sealed)
        nonce = _nonce(number, last=number == self.chunks - 1)
        try:
            self._cipher.decrypt_into(nonce, sealed, self._associated, plain)
        except InvalidTag as exc:
            message = f"chunk {number} of {self.chunks} is not what was sealed there"
            raise SealRefused(message, code="seal_chunk") from exc


def open_sealed(
    read: Reader, *, data_key: bytes, file_id: bytes, chunk_size: int, length: int, file_size: int
) -> bytearray:
    """Opens a container into one private buffer and returns it once everything in it was checked (§2.4).

    `file_id`, `chunk_size` and `length` (bytes of plaintext) are what the authenticated record says, never
    what the file says; `file_size` is what the file system says. Ciphertext is copied into private memory
    before it is decrypted: a shared mapping could change between the check of a tag and the decryption.

    Raises:
        SealRefused: `seal_truncated`, `seal_trailing`, `seal_header` (its form or chunk size),
            `seal_other_file` (a good header of another file), `seal_commitment` (made under another key) or
            `seal_chunk` (altered, reordered, or taken from elsewhere).
        Failure: a length that no container has: a fault of the caller.
        OSError: whatever `read` raises.
    """
    opening = Opening(
        read, data_key=data_key, file_id=file_id, chunk_size=chunk_size, length=length, file_size=file_size
    )
    out = bytearray(length)
    scratch = memoryview(bytearray(min(chunk_size, length) + TAG_BYTES))
    try:
        with memoryview(out) as view:
            for number in range(opening.chunks):
                at = number * chunk_size
                opening.open_chunk(number, view[at : at + chunk_size], scratch=scratch)
    except BaseException:
        overwrite(out)
        raise
    return out


def overwrite(buffer: bytearray) -> None:
    """Fills a buffer with zeros in place, piece by piece: a second buffer of its size is not needed."""
    zeros = bytes(min(len(buffer), CHUNK_SIZE))
    with memoryview(buffer) as view:
        for start in range(0, len(buffer), CHUNK_SIZE):
            piece = view[start : start + CHUNK_SIZE]
            piece[:] = zeros[: len(piece)]


def wrap_key(wrapping_key: bytes, key: bytes, *, associated: bytes, random: Random) -> bytes:
    """Wraps a 32-byte key so that it opens only together with the same `associated` facts (§3)."""
    if len(wrapping_key) != KEY_BYTES or len(key) != KEY_BYTES:
        raise Failure("a key and the key that wraps it have 32 bytes each")
    salt = random(32)
    return (
        salt
        + _wrap_commitment(wrapping_key, salt)
        + _wrap_cipher(wrapping_key, salt).encrypt(bytes(12), key, associated)
    )


def unwrap_key(wrapping_key: bytes, wrapped: bytes, *, associated: bytes) -> bytes:
    """Opens what `wrap_key` made (§3).

    Raises:
        SealRefused: `seal_wrapped` (not a wrapped key), `seal_commitment` (wrapped under another key) or
            `seal_binding` (altered, or bound to other facts).
    """
    if len(wrapped) != WRAPPED_BYTES:
        raise SealRefused(f"a wrapped key has {WRAPPED_BYTES} bytes, got {len(wrapped)}", code="seal_wrapped")
    salt, commitment, sealed = wrapped[:32], wrapped[32:64], wrapped[64:]
    if not hmac.compare_digest(commitment, _wrap_commitment(wrapping_key, salt)):
        raise SealRefused("the key was wrapped under another key", code="seal_commitment")
    try:
        return _wrap_cipher(wrapping_key, salt).decrypt(bytes(12), sealed, associated)
    except InvalidTag as exc:
        raise SealRefused("the wrapped key is bound to other facts, or altered", code="seal_binding") from exc


def _fill(read: Reader, offset: int, buffer: memoryview) -> None:
    """Reads exactly `len(buffer)` bytes; a file that shrank since its size was taken is a truncated one."""
    while len(buffer):
        got = read(offset, buffer)
        if got == 0:
            raise SealRefused(f"the sealed file ends at byte {offset}", code="seal_truncated")
        offset += got
        buffer = buffer[got:]


def _nonce(number: int, *, last: bool) -> bytes:
    """7 zero bytes, the chunk's number, 0x01 for the last chunk and 0x00 for all others (§2.3)."""
    return bytes(7) + number.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


def _derive(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


def _commitment(data_key: bytes, file_id: bytes) -> bytes:
    return _derive(data_key, salt=file_id, info=b"strongroom sealed v1 commitment")


def _wrap_cipher(wrapping_key: bytes, salt: bytes) -> AESGCM:
    # The salt makes a key for this one message, so the nonce can be fixed: 96 random bits would be too few to
    # wrap without counting.
    return AESGCM(_derive(wrapping_key, salt=salt, info=b"strongroom sealed v1 wrap"))


def _wrap_commitment(wrapping_key: bytes, salt: bytes) -> bytes:
    return _derive(wrapping_key, salt=salt, info=b"strongroom sealed v1 wrap commitment")


def _sha256(data: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(data)
    return digest.finalize()
