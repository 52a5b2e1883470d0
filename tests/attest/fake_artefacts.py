"""What builds of releases make: signed SIGSTRUCTs, firmware images, descriptions of enclave images. One thing wrong at
a time, and the same in every run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Iterable
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from fake_keys import _start

MRENCLAVE = hashlib.sha256(b"the enclave").digest()
"""That of the fake vendor's quotes."""
PCR0, PCR1, PCR2 = (
    hashlib.sha384(name).digest() for name in (b"the enclave's image", b"kernel", b"application")
)
_PRIMES = {"enclave signer": (465, 1147), "mallory signer": (1834, 1302)}
"""Which odd number after its start each prime is; both are 2 modulo 3, as the exponent 3 wants it."""


@functools.cache
def signer(name: str = "enclave signer") -> rsa.RSAPrivateKey:
    """An RSA key of 3072 bits with the exponent 3."""
    p, q = (_start(name, letter, 3072) + 2 * o for letter, o in zip("pq", _PRIMES[name], strict=True))
    d = pow(3, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(3, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def modulus(name: str = "enclave signer") -> bytes:
    """As a SIGSTRUCT has it."""
    return signer(name).public_key().public_numbers().n.to_bytes(384, "little")


FIELDS = {
    "header": (0, bytes.fromhex("06000000E10000000000010000000000")),
    "date": (20, (0x20261129).to_bytes(4, "little")),
    "header2": (24, bytes.fromhex("01010000600000006000000001000000")),
    "exponent": (512, (3).to_bytes(4, "little")),
    "misc_select": (900, bytes(4)),
    "misc_mask": (904, b"\xff" * 4),
    "isv_family_id": (912, b"f" * 16),
    "attributes": (928, bytes.fromhex("0400000000000000")),
    "xfrm": (936, bytes.fromhex("e700000000000000")),
    "attributes_mask": (944, bytes.fromhex("ffffffffffffffff")),
    "xfrm_mask": (952, bytes.fromhex("1bffffffffffffff")),
    "mr_enclave": (960, MRENCLAVE),
    "isv_ext_prod_id": (1008, b"e" * 16),
    "isv_prod_id": (1024, (7).to_bytes(2, "little")),
    "isv_svn": (1026, (3).to_bytes(2, "little")),
}
"""Member -> its place and usual value (Intel SDM, volume 3D, table 38-19)."""


def sigstruct(*, by: str = "enclave signer", shown: str = "", **changes: bytes) -> bytes:
    """A SIGSTRUCT with members changed, signed by `by`; `shown`: whose modulus it shows, if not the signer's."""
    made = bytearray(1808)
    for name, (at, usual) in FIELDS.items():
        value = changes.get(name, usual)
        made[at : at + len(value)] = value
    made[128:512] = modulus(shown or by)
    signature = signer(by).sign(bytes(made[:128] + made[900:1028]), PKCS1v15(), SHA256())
    made[516:900] = signature[::-1]
    return bytes(made)


# Firmware

FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
SEV_RESET = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_HASHES = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
TDVF = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
SIZE = 0x8000
"""Bytes of a test's image: code in the last seven pages, variables in the first."""
SECTIONS = (
    # data_offset, raw_data_size, memory_address, memory_data_size, type, attributes
    (0x1000, SIZE - 0x1000, (1 << 32) - SIZE + 0x1000, SIZE - 0x1000, 0, 1),
    (0, 0x1000, (1 << 32) - SIZE, 0x1000, 1, 0),
    (0, 0, 0x810000, 0x2000, 3, 0),
    (0, 0, 0x809000, 0x2000, 2, 0),
    (0, 0, 0x1000000, 0x4000, 4, 2),
)
"""A TDVF's usual ones: code that is measured, variables, temporary memory, hand-off block, memory for later."""


def table(entries: dict[UUID, bytes], *, footer: UUID = FOOTER) -> bytes:
    """A table of GUIDs as it stands before the reset vector."""
    inner = b"".join(
        data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in entries.items()
    )
    return inner + struct.pack("<H", len(inner) + 18) + footer.bytes_le


def tdvf(
    sections: Iterable[tuple[int, ...]] = SECTIONS, *, version: int = 1, length: int | None = None
) -> bytes:
    """A TDVF descriptor."""
    packed = b"".join(struct.pack("<IIQQII", *section) for section in sections)
    count = len(packed) // 32
    return (
        b"TDVF" + struct.pack("<III", 16 + len(packed) if length is None else length, version, count) + packed
    )


def sev_metadata() -> bytes:
    """SEV metadata: memory, secrets, CPUID and a page for the digests of a kernel."""
    sections = ((0x800000, 0x1000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x810000, 0x1000, 0x10))
    packed = b"".join(struct.pack("<III", *section) for section in sections)
    return b"ASEV" + struct.pack("<III", 16 + len(packed), 1, len(sections)) + packed


def firmware(
    *, descriptor: bytes | None = None, sev: bool = True, tdx: bool = True, more: dict[UUID, bytes] | None = None,
    footer: UUID = FOOTER, code: bytes = b"code",
) -> bytes:  # fmt: skip
    """An image that both TDX and SEV-SNP can start."""
    image = bytearray((code * (SIZE // len(code) + 1))[:SIZE])
    described, metadata = tdvf() if descriptor is None else descriptor, sev_metadata()
    image[0x2000 : 0x2000 + len(described)] = described
    image[0x3000 : 0x3000 + len(metadata)] = metadata
    entries = dict(more or {})
    if tdx:
        entries[TDVF] = (SIZE - 0x2000).to_bytes(4, "little")
    if sev:
        entries[SEV_METADATA] = (SIZE - 0x3000).to_bytes(4, "little")
        entries[SEV_RESET] = (0x0080B004).to_bytes(4, "little")
        entries[SEV_HASHES] = struct.pack("<II", 0x810000, 0x1000)
    made = table(entries, footer=footer)
    image[SIZE - 32 - len(made) : SIZE - 32] = made
    return bytes(image)


def eif_json(**changes: object) -> bytes:
    """What `nitro-cli build-enclave` prints, with members of its measurements changed or (None) left out."""
    found: dict[str, object] = {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": PCR0.hex(),
        "PCR1": PCR1.hex(),
        "PCR2": PCR2.hex(),
    }
    found |= changes
    return json.dumps({"Measurements": {k: v for k, v in found.items() if v is not None}}).encode()
