"""The age file format, version 1, for X25519 recipients and one small secret (age-encryption.org/v1).

Ours is the small part of the format that wraps a store's key to the operator's escrow (`docs/spec/recovery.md`): one
recipient, one chunk. Files made here open with any age program, and keys made by one are taken here.

Rules
  - One recipient stanza and one chunk, or the file is refused: a reader that skips what it does not know can be shown
    more than one thing.
  - Bech32 (BIP 173) without its limit of 90 characters, in one case; a checksum that does not hold is refused.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.errors import AccessRefused, MalformedInput
from strongroom.sealed import Random

MAX_FILE: Final = 4096
"""Bytes of a file that is read: one with a secret of 32 bytes has 216."""
MAX_SECRET: Final = 1024
"""Bytes of a secret; the format's chunk would take 64 KiB."""
_INTRO: Final = b"age-encryption.org/v1\n"
_LABEL: Final = b"age-encryption.org/v1/X25519"
_FILE: Final = re.compile(
    rb"(age-encryption\.org/v1\n-> X25519 ([A-Za-z0-9+/]{43})\n([A-Za-z0-9+/]{43})\n---) ([A-Za-z0-9+/]{43})\n(.*)",
    re.DOTALL,
)
_CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_PUBLIC, _SECRET = "age", "age-secret-key-"
_CODE: Final = "recovery_key_malformed"


def recipient_of(identity: X25519PrivateKey) -> str:
    """The recipient, `age1...`, whose files this identity opens."""
    return _bech32(_PUBLIC, identity.public_key().public_bytes_raw())


def parse_recipient(text: str) -> bytes:
    """The 32 bytes of the X25519 public key that a recipient names.

    Raises:
        MalformedInput: not `age1...` with a right checksum, or no key to encrypt to (code `recovery_key_malformed`).
    """
    key = _parse_bech32(text, _PUBLIC, "a recipient, age1...")
    try:  # a point of small order, for which everybody knows the shared secret
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        raise MalformedInput("age: the recipient is no key that can be encrypted to", code=_CODE) from None
    return key


def encode_identity(identity: X25519PrivateKey) -> str:
    """The secret key as age writes it: `AGE-SECRET-KEY-1...`."""
    return _bech32(_SECRET, identity.private_bytes_raw()).upper()


def parse_identity(text: str) -> X25519PrivateKey:
    """The one secret key in an identity file; empty lines and lines that begin with # are passed over.

    Raises:
        MalformedInput: not exactly one `AGE-SECRET-KEY-1...` (code `recovery_key_malformed`).
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or lines[0] != lines[0].upper():
        raise MalformedInput("age: expected one secret key, AGE-SECRET-KEY-1...", code=_CODE)
    return X25519PrivateKey.from_private_bytes(
        _parse_bech32(lines[0].lower(), _SECRET, "a secret key, AGE-SECRET-KEY-1...")
    )


def encrypt(secret: bytes, recipient: str, *, random: Random) -> bytes:
    """The age file that holds `secret` (1 to 1024 bytes) for one recipient.

    Raises:
        MalformedInput: the recipient is none, or the secret has another size (code `recovery_key_malformed`).
    """
    public = parse_recipient(recipient)
    if not 1 <= len(secret) <= MAX_SECRET:
        raise MalformedInput(f"age: a secret of 1 to {MAX_SECRET} bytes expected", code=_CODE)
    file_key, nonce = random(16), random(16)
    ephemeral = X25519PrivateKey.from_private_bytes(random(32))
    share = ephemeral.public_key().public_bytes_raw()
    wrapping = _wrapping_key(ephemeral, public, share, public)
    body = ChaCha20Poly1305(wrapping).encrypt(bytes(12), file_key, None)
    header = _INTRO + b"-> X25519 " + _base64(share) + b"\n" + _base64(body) + b"\n---"
    payload = ChaCha20Poly1305(_hkdf(file_key, nonce, b"payload")).encrypt(_LAST, secret, None)
    return header + b" " + _base64(_mac(file_key, header)) + b"\n" + nonce + payload


def decrypt(data: bytes, identity: X25519PrivateKey) -> bytes:
    """The secret in an age file that was made for this identity.

    1. the file has one X25519 stanza and one chunk
    2. the file key in the stanza opens with this identity
    3. the header's MAC is right
    4. the chunk authenticates as the last one

    Raises:
        MalformedInput: 1 (code `recovery_file_malformed`).
        AccessRefused: 2 (`recovery_other_key`), 3 or 4 (`recovery_file_tampered`).
    """
    # 1
    match = _FILE.fullmatch(data) if len(data) <= MAX_FILE else None
    if match is None or not 16 + 16 < len(match[5]) <= 16 + 16 + MAX_SECRET:
        raise MalformedInput(
            "age: not a file of one X25519 stanza and one chunk", code="recovery_file_malformed"
        )
    header, rest = match[1], match[5]
    share, body, mac = (_unbase64(match[i]) for i in (2, 3, 4))
    # 2
    public = identity.public_key().public_bytes_raw()
    try:
        file_key = ChaCha20Poly1305(_wrapping_key(identity, share, share, public)).decrypt(
            bytes(12), body, None
        )
    except (InvalidTag, ValueError):  # ValueError: a share of small order
        raise AccessRefused("age: the file is not for this identity", code="recovery_other_key") from None
    # 3
    if not hmac.compare_digest(mac, _mac(file_key, header)):
        raise AccessRefused("age: the header was altered", code="recovery_file_tampered")
    # 4
    try:
        return ChaCha20Poly1305(_hkdf(file_key, rest[:16], b"payload")).decrypt(_LAST, rest[16:], None)
    except InvalidTag:
        raise AccessRefused("age: the content was altered", code="recovery_file_tampered") from None


_LAST: Final = bytes(11) + b"\x01"
"""The nonce of the first chunk where it is the last, too."""


def _wrapping_key(private: X25519PrivateKey, peer: bytes, share: bytes, public: bytes) -> bytes:
    shared = private.exchange(X25519PublicKey.from_public_bytes(peer))
    return _hkdf(shared, share + public, _LABEL)


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_hkdf(file_key, b"", b"header"), header, "sha256")


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    """Without padding, and canonical: the unused bits are zero."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:  # pragma: no cover - the pattern lets nothing else through
        data = b""
    if _base64(data) != text:
        raise MalformedInput("age: not canonical base64", code="recovery_file_malformed")
    return data


# Bech32 (BIP 173)


def _bech32(prefix: str, data: bytes) -> str:
    values = _regrouped(data, 8, 5, pad=True) or []
    checksum = _polymod([*_expanded(prefix), *values, *[0] * 6]) ^ 1
    tail = [(checksum >> 5 * (5 - i)) & 31 for i in range(6)]
    return prefix + "1" + "".join(_CHARSET[v] for v in (*values, *tail))


def _parse_bech32(text: str, prefix: str, what: str) -> bytes:
    body = text[len(prefix) + 1 :]
    values = [_CHARSET.find(c) for c in body]
    right = text.startswith(prefix + "1") and len(body) > 6 and min(values, default=-1) >= 0
    if right and _polymod([*_expanded(prefix), *values]) == 1:
        data = _regrouped(values[:-6], 5, 8, pad=False)
        if data is not None and len(data) == 32:
            return bytes(data)
    raise MalformedInput(f"age: expected {what}", code=_CODE)


def _expanded(prefix: str) -> list[int]:
    return [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix)]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            if top >> i & 1:
                check ^= generator
    return check


def _regrouped(values: bytes | list[int], size: int, to: int, *, pad: bool) -> list[int] | None:
    """Bits in groups of another size; None where bits are left that are not zero padding."""
    held = bits = 0
    out = []
    for value in values:
        held, bits = held << size | value, bits + size
        while bits >= to:
            bits -= to
            out.append(held >> bits & (1 << to) - 1)
        held &= (1 << bits) - 1
    if pad and bits:
        out.append(held << to - bits & (1 << to) - 1)
    elif not pad and (bits >= size or held):
        return None
    return out
