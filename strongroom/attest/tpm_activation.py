"""Credential activation, the client's half: proof that an attestation key and an endorsement key live in one TPM
(docs/spec/tpm.md §7; TCG "Trusted Platform Module Library, Part 1", section 24 and annexes B.10, C.6).

The client encrypts a secret to the endorsement key, tied to the *name* of the attestation key. A genuine TPM
decrypts it only if it holds a key of that name. Whoever returns the secret therefore speaks for a TPM that holds
both; whether the endorsement key is a genuine TPM's is what its certificate says.

Rules of this file: the caller brings the secret and the entropy, fresh for every challenge; a challenge is used
once; nothing here chooses an algorithm by what the other side says, but by the kind of its certified key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import InitVar, dataclass, field
from typing import TypeAlias

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from strongroom.errors import AttestationRefused, MalformedInput

SECRET_SIZE = 32
"""Bytes of a challenge's secret; every TPM takes as many as its EK's hash has, 32 at least."""
ENTROPY_SIZE = 64
"""Bytes of fresh random entropy for the seed, or for the ephemeral key."""
_LABEL = b"IDENTITY\x00"

EndorsementKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class _Token:
    __slots__ = ()


_TOKEN = _Token()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the client keeps (`secret`, and which keys it is about, as hex SHA-256 of the AK's public area and of
    the EK's certificate) and sends (`credential`, `encrypted_secret`: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET).
    """

    ak: str
    ek: str
    credential: bytes
    encrypted_secret: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """Proof that the attestation key `ak` lives in the TPM whose endorsement certificate is `ek` (both hex
    SHA-256). Made by `verify_activation` only.
    """

    ak: str
    ek: str
    proof: InitVar[_Token]

    def __post_init__(self, proof: _Token) -> None:
        if proof is not _TOKEN:
            raise TypeError("Activated is made by verify_activation only")


def verify_activation(answer: bytes, *, challenge: Challenge) -> Activated:
    """Returns the proof that the TPM returned the challenge's secret; compared in constant time.

    Raises:
        AttestationRefused: code `tpm_activation_failed`.
    """
    if not hmac.compare_digest(answer, challenge.secret):
        raise AttestationRefused(
            f"credential activation: expected the secret of {len(challenge.secret)} bytes; got {len(answer)} "
            "other bytes",
            code="tpm_activation_failed",
        )
    return Activated(ak=challenge.ak, ek=challenge.ek, proof=_TOKEN)


@dataclass(frozen=True, slots=True)
class _Template:
    """What the TCG's EK template of a kind of key says: hash, and bits of the AES key of its storage."""

    hash: str
    aes_bits: int


def template(key: EndorsementKey) -> _Template:
    """Returns the template of the TCG's EK Credential Profile for a key of this kind: RSA-2048 and P-256 (L-1,
    L-2, H-1, H-2), P-384 and RSA-3072 (H-3, H-6).

    Raises:
        MalformedInput: code `tpm_key_unsupported`.
    """
    size = key.key_size
    if isinstance(key, rsa.RSAPublicKey) and size == 2048:
        return _Template("sha256", 128)
    if isinstance(key, rsa.RSAPublicKey) and size == 3072:
        return _Template("sha384", 256)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return _Template("sha256", 128) if size == 256 else _Template("sha384", 256)
    raise MalformedInput(
        f"endorsement key: {size} bits; expected RSA-2048, RSA-3072, P-256 or P-384",
        code="tpm_key_unsupported",
    )


def make_credential(
    key: EndorsementKey, *, ak_name: bytes, secret: bytes, entropy: bytes
) -> tuple[bytes, bytes]:
    """Returns TPM2_MakeCredential's outputs: credential (TPM2B_ID_OBJECT) and encrypted seed
    (TPM2B_ENCRYPTED_SECRET) of `secret` for the AK of `ak_name`. `entropy`: `ENTROPY_SIZE` fresh random bytes.

    Raises:
        MalformedInput: code `tpm_key_unsupported`, or `malformed_input` for a secret or entropy of another size.
    """
    kind = template(key)
    if len(entropy) != ENTROPY_SIZE or len(secret) != SECRET_SIZE:  # a shorter secret could be guessed
        raise MalformedInput(f"credential: expected {SECRET_SIZE} bytes of secret, {ENTROPY_SIZE} of entropy")
    seed, encrypted = _encrypted_seed(key, kind, entropy)
    bits = hashlib.new(kind.hash).digest_size * 8
    storage_key = kdf_a(kind.hash, seed, b"STORAGE", ak_name, b"", kind.aes_bits)
    encryptor = Cipher(algorithms.AES(storage_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity_key = kdf_a(kind.hash, seed, b"INTEGRITY", b"", b"", bits)
    integrity = hmac.new(integrity_key, identity + ak_name, kind.hash).digest()
    return _sized(_sized(integrity) + identity), _sized(encrypted)


def _encrypted_seed(key: EndorsementKey, kind: _Template, entropy: bytes) -> tuple[bytes, bytes]:
    size = hashlib.new(kind.hash).digest_size
    if isinstance(key, rsa.RSAPublicKey):
        digest = hashes.SHA256() if kind.hash == "sha256" else hashes.SHA384()
        oaep = padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=_LABEL)
        return entropy[:size], key.encrypt(entropy[:size], oaep)
    order = ec.SECP256R1.group_order if key.key_size == 256 else ec.SECP384R1.group_order
    ephemeral = ec.derive_private_key(int.from_bytes(entropy) % (order - 1) + 1, key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key)
    width = key.key_size // 8
    mine, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = mine.x.to_bytes(width), mine.y.to_bytes(width)
    seed = kdf_e(kind.hash, shared, b"IDENTITY", x, theirs.x.to_bytes(width), size * 8)
    return seed, _sized(x) + _sized(y)


def kdf_a(name: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """Returns `bits` of key material: HMAC in counter mode (Part 1, section 11.4.10.2)."""
    out, counter = b"", 0
    while len(out) * 8 < bits:
        counter += 1
        text = counter.to_bytes(4) + label + b"\x00" + context_u + context_v + bits.to_bytes(4)
        out += hmac.new(key, text, name).digest()
    return out[: bits // 8]


def kdf_e(name: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Returns `bits` of key material out of an ECDH secret (Part 1, section 11.4.10.3)."""
    out, counter = b"", 0
    while len(out) * 8 < bits:
        counter += 1
        text = counter.to_bytes(4) + shared + label + b"\x00" + party_u + party_v
        out += hashlib.new(name, text).digest()
    return out[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
