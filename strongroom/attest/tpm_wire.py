"""The TPM's structures on the wire: TPMS_ATTEST of a quote, TPMT_PUBLIC, TPMT_SIGNATURE (docs/spec/tpm.md §2).

Rules of this file:

1. Big-endian, every length is checked before it is used, and nothing may follow a structure: two readers that
   disagree about the rest of it are an attack.
2. Only what a quote needs is known: another magic, type, algorithm or scheme is refused, not skipped.
3. Nothing here is verified. `parse_*` say what bytes claim.

Names are those of the TCG's "Trusted Platform Module Library, Part 2: Structures".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from strongroom.attest.cursor import Cursor

MAX_STRUCTURE = 4096
"""Bytes of one structure; a quote takes about 150, the public area of an RSA-4096 key about 550."""
MAX_QUALIFYING = 66
"""Bytes of qualifying data that any TPM takes: a TPMT_HA of SHA-512."""
MAX_SELECTIONS = 4
"""Banks of PCRs in one selection; a quote that counts here has one."""
PCR_COUNT = 24
"""PCRs of a TPM of the PC Client profile."""

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key signs nothing from outside that begins with it."""
ATTEST_QUOTE = 0x8018
_ALG_RSA, _ALG_ECC, _ALG_NULL = 0x0001, 0x0023, 0x0010
_ALG_RSASSA, _ALG_ECDSA = 0x0014, 0x0018
_SCHEMES = {_ALG_RSASSA: "RSASSA", _ALG_ECDSA: "ECDSA"}

HASHES: dict[int, tuple[str, type[hashes.SHA256] | type[hashes.SHA384] | type[hashes.SHA512]]] = {
    0x000B: ("sha256", hashes.SHA256),
    0x000C: ("sha384", hashes.SHA384),
    0x000D: ("sha512", hashes.SHA512),
}
"""TPM_ALG_ID -> `hashlib`'s name and the class. SHA-1 is not among them: nothing is believed because of it."""
_DIGEST_SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64}
_CURVES: dict[int, type[ec.SECP256R1] | type[ec.SECP384R1]] = {0x0003: ec.SECP256R1, 0x0004: ec.SECP384R1}
_RSA_BITS = (2048, 3072, 4096)

ATTRIBUTES = {
    "fixedTPM": 1 << 1,
    "stClear": 1 << 2,
    "fixedParent": 1 << 4,
    "sensitiveDataOrigin": 1 << 5,
    "userWithAuth": 1 << 6,
    "adminWithPolicy": 1 << 7,
    "noDA": 1 << 10,
    "encryptedDuplication": 1 << 11,
    "restricted": 1 << 16,
    "decrypt": 1 << 17,
    "sign": 1 << 18,
    "x509sign": 1 << 19,
}
"""TPMA_OBJECT; every other bit is reserved."""


@dataclass(frozen=True, slots=True)
class Selection:
    """One TPMS_PCR_SELECTION: the bank by its TPM_ALG_ID, and the PCRs in ascending order."""

    hash: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attest:
    """The TPMS_ATTEST of a quote. `clock` in milliseconds; `firmware` as the TPM states it, which an AK
    outside the endorsement hierarchy sees obfuscated.
    """

    signer: bytes
    qualifying: bytes
    clock: int
    resets: int
    restarts: int
    safe: bool
    firmware: int
    selections: tuple[Selection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class Public:
    """A TPMT_PUBLIC: `scheme` is "RSASSA" or "ECDSA", `scheme_hash` its TPM_ALG_ID. `name` is the key's Name: the
    TPM_ALG_ID of a hash, and the hash of the public area.
    """

    attributes: int
    scheme: str
    scheme_hash: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    name: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE: for RSASSA `first` is the signature, for ECDSA `first` and `second` are r and s."""

    scheme: str
    hash: int
    first: bytes
    second: bytes


def parse_attest(data: bytes) -> Attest:
    """Returns the quote that the TPMS_ATTEST `data` is.

    Raises:
        MalformedInput: code `tpm_not_generated` (another magic), `tpm_not_a_quote` (another type) or
        `evidence_malformed`.
    """
    read = _Reader(data, "TPMS_ATTEST")
    if (magic := read.number(4)) != GENERATED:
        read.refuse(f"magic: expected {GENERATED:08x}, got {magic:08x}", code="tpm_not_generated")
    if (kind := read.number(2)) != ATTEST_QUOTE:
        read.refuse(f"type: expected {ATTEST_QUOTE:04x} (a quote), got {kind:04x}", code="tpm_not_a_quote")
    signer, qualifying = read.sized(MAX_QUALIFYING), read.sized(MAX_QUALIFYING)
    clock, resets, restarts, safe = read.number(8), read.number(4), read.number(4), read.number(1)
    if safe > 1:
        read.refuse("clockInfo.safe: neither 0 nor 1")
    firmware, count = read.number(8), read.number(4)
    if count > MAX_SELECTIONS:
        read.refuse(f"pcrSelect: {count} banks, at most {MAX_SELECTIONS} are read")
    selections = tuple(_selection(read) for _ in range(count))
    pcr_digest = read.sized(64)
    read.end()
    return Attest(signer, qualifying, clock, resets, restarts, bool(safe), firmware, selections, pcr_digest)


def _selection(read: _Reader) -> Selection:
    bank, size = read.number(2), read.number(1)
    if size != PCR_COUNT // 8:
        read.refuse(f"pcrSelect: a bitmap of {size} bytes; expected {PCR_COUNT // 8}")
    bits = int.from_bytes(read.take(size), "little")
    return Selection(bank, tuple(i for i in range(PCR_COUNT) if bits >> i & 1))


def parse_public(data: bytes) -> Public:
    """Returns the key that the TPMT_PUBLIC `data` is: RSA of 2048 to 4096 bits, or ECC on P-256 or P-384.

    Raises:
        MalformedInput: code `evidence_malformed`; `tpm_key_unsupported` for another kind, size or hash.
    """
    read = _Reader(data, "TPMT_PUBLIC")
    kind, name_hash, attributes = read.number(2), read.number(2), read.number(4)
    if name_hash not in HASHES:
        read.refuse(f"nameAlg: {name_hash:#06x} is not used here", code="tpm_key_unsupported")
    read.sized(64)  # authPolicy: who may use the key, not what it is
    if kind not in (_ALG_RSA, _ALG_ECC):
        read.refuse(f"type: {kind:#06x} is neither RSA nor ECC", code="tpm_key_unsupported")
    if read.number(2) != _ALG_NULL:  # symmetric: only storage keys have one
        read.number(2), read.number(2)
    scheme = read.number(2)
    if scheme != (_ALG_RSASSA if kind == _ALG_RSA else _ALG_ECDSA):  # a restricted key states one
        read.refuse(
            f"scheme: {scheme:#06x}; expected RSASSA for RSA, ECDSA for ECC", code="tpm_key_unsupported"
        )
    if (scheme_hash := read.number(2)) not in HASHES:
        read.refuse(f"scheme: hash {scheme_hash:#06x} is not used here", code="tpm_key_unsupported")
    key = _rsa_key(read) if kind == _ALG_RSA else _ecc_key(read)
    read.end()
    name = name_hash.to_bytes(2) + hashlib.new(HASHES[name_hash][0], data).digest()
    return Public(attributes, _SCHEMES[scheme], scheme_hash, key, name)


def _rsa_key(read: _Reader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = read.number(2), read.number(4), read.sized(_RSA_BITS[-1] // 8)
    if bits not in _RSA_BITS or exponent not in (0, 65537):
        read.refuse(f"RSA with {bits} bits, exponent {exponent}", code="tpm_key_unsupported")
    number = int.from_bytes(modulus)
    if len(modulus) != bits // 8 or number.bit_length() != bits or number % 2 == 0:
        read.refuse("unique: not a modulus of the size that is stated")
    try:
        return rsa.RSAPublicNumbers(65537, number).public_key()
    except ValueError:
        read.refuse("unique: no RSA modulus")


def _ecc_key(read: _Reader) -> ec.EllipticCurvePublicKey:
    curve, kdf = read.number(2), read.number(2)
    if kdf != _ALG_NULL:
        read.number(2)
    if curve not in _CURVES:
        read.refuse(f"curveID: {curve:#06x} is neither P-256 nor P-384", code="tpm_key_unsupported")
    known = _CURVES[curve]()
    size = known.key_size // 8
    x, y = read.sized(size), read.sized(size)
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), known).public_key()
    except ValueError:
        read.refuse("unique: not a point of the curve")


def parse_signature(data: bytes) -> Signature:
    """Returns the signature that the TPMT_SIGNATURE `data` is: RSASSA or ECDSA with SHA-256, -384 or -512.

    Raises:
        MalformedInput: code `evidence_malformed`; `tpm_signature_scheme` for another scheme or hash.
    """
    read = _Reader(data, "TPMT_SIGNATURE")
    scheme, digest = read.number(2), read.number(2)
    if scheme not in _SCHEMES or digest not in HASHES:
        expected = "RSASSA or ECDSA with SHA-256, SHA-384 or SHA-512"
        read.refuse(f"{scheme:#06x} with {digest:#06x}: expected {expected}", code="tpm_signature_scheme")
    first = read.sized(_RSA_BITS[-1] // 8)
    second = read.sized(64) if scheme == _ALG_ECDSA else b""
    read.end()
    return Signature(_SCHEMES[scheme], digest, first, second)


def digest_size(algorithm: int) -> int:
    """Returns the bytes of a digest of the TPM_ALG_ID `algorithm` (SHA-1 is known here, to be stepped over), or
    0.
    """
    return _DIGEST_SIZES.get(algorithm, 0)


class _Reader(Cursor):
    """A cursor over one structure of the TPM's."""

    __slots__ = ()

    def __init__(self, data: bytes, what: str) -> None:
        super().__init__(data, what=what, code="evidence_malformed", order="big", limit=MAX_STRUCTURE)

    def sized(self, limit: int) -> bytes:
        """A TPM2B: two bytes of length, then so many bytes."""
        size = self.number(2)
        if size > limit:
            self.refuse(f"a value of {size} bytes, at most {limit} are read")
        return self.take(size)
