"""SIGSTRUCT: what an SGX enclave's signer signed, and so which enclave it is (docs/spec/reference-values.md §3).

Intel's Software Developer's Manual, volume 3D, 38.13: 1808 bytes, little-endian, an RSA signature of 3072 bits with the
exponent 3 over the first 128 bytes and those from 900 to 1028. `gramine-sgx-sign` writes one beside its manifest.

Rules of this file:

1. Nothing is returned of a structure whose signature does not verify: EINIT would refuse it, so it is no release.
2. MRSIGNER is computed from the modulus, as the processor does it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

from strongroom.attest.cursor import Cursor
from strongroom.errors import MalformedInput

SIZE = 1808
"""Bytes of the structure."""
EXPONENT = 3
_HEADER = bytes.fromhex("06000000E10000000000010000000000")
_HEADER2 = bytes.fromhex("01010000600000006000000001000000")
_KEY_SIZE = 384
_DEBUG = 1 << 1
_CODE = "artefact_malformed"


@dataclass(frozen=True, slots=True)
class SigStruct:
    """A verified SIGSTRUCT. `mr_enclave`, `mr_signer`: 32 bytes; `attributes`, `xfrm`: 8 bytes each, as quotes have
    them, and the masks say which bits count; `misc_select`: 4 bytes; `made`: the date that the signer wrote.
    """

    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    attributes: bytes
    xfrm: bytes
    misc_select: bytes
    attributes_mask: bytes
    xfrm_mask: bytes
    misc_mask: bytes
    isv_family_id: bytes
    isv_ext_prod_id: bytes
    made: date

    @property
    def debug(self) -> bool:
        """Whether the enclave may be started in debug mode: the bit is set, or the mask leaves it open."""
        flags, mask = (int.from_bytes(part, "little") for part in (self.attributes, self.attributes_mask))
        return bool(flags & _DEBUG) or not mask & _DEBUG


def parse_sigstruct(data: bytes) -> SigStruct:
    """Returns what the SIGSTRUCT `data` says of its enclave.

    Raises:
        MalformedInput: code `artefact_malformed`: another size or form, or a signature that does not verify.
    """
    read = Cursor(data, what="SIGSTRUCT", code=_CODE, order="little", limit=SIZE)
    if len(data) != SIZE:
        read.refuse(f"{len(data)} bytes, expected {SIZE}")
    if read.take(16) != _HEADER:
        read.refuse("it does not begin with its header")
    read.take(4, "vendor")
    made = _date(read)
    if read.take(16) != _HEADER2:
        read.refuse("its second header is another")
    read.take(4 + 84, "swdefined")
    modulus, exponent, signature = read.take(_KEY_SIZE), read.number(4), read.take(_KEY_SIZE)
    if exponent != EXPONENT:
        read.refuse(f"exponent {exponent}, expected {EXPONENT}")
    _verify(data[:128] + data[900:1028], modulus=modulus, signature=signature)
    misc_select, misc_mask = read.take(4), read.take(4)
    read.take(4)  # CET attributes and their mask
    family = read.take(16)
    attributes, xfrm, attributes_mask, xfrm_mask = (read.take(8) for _ in range(4))
    mr_enclave = read.take(32)
    read.take(16)
    return SigStruct(
        mr_enclave=mr_enclave,
        mr_signer=hashlib.sha256(modulus).digest(),
        isv_ext_prod_id=read.take(16),
        isv_prod_id=read.number(2),
        isv_svn=read.number(2),
        attributes=attributes,
        xfrm=xfrm,
        misc_select=misc_select,
        attributes_mask=attributes_mask,
        xfrm_mask=xfrm_mask,
        misc_mask=misc_mask,
        isv_family_id=family,
        made=made,
    )


def _date(read: Cursor) -> date:
    """Binary-coded decimals: 0x20261129."""
    text = f"{read.number(4, 'date'):08x}"
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        raise MalformedInput("SIGSTRUCT: no such date", code=_CODE) from None


def _verify(signed: bytes, *, modulus: bytes, signature: bytes) -> None:
    try:
        key = RSAPublicNumbers(EXPONENT, int.from_bytes(modulus, "little")).public_key()
        key.verify(signature[::-1], signed, PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):  # ValueError: a number that is no modulus
        raise MalformedInput("SIGSTRUCT: its signature does not verify", code=_CODE) from None
