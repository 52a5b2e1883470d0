"""The AMD SEV-SNP attestation report and the certificate table that hosts hand out with it: bytes to values.

Offsets and names are those of AMD's SEV Secure Nested Paging Firmware ABI (document 56860), `ATTESTATION_REPORT`;
docs/spec/snp.md §2 has the table. Nothing here is verified: `snp.py` does that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from strongroom.errors import MalformedInput

REPORT_SIZE = 1184
"""Bytes of a report of every version."""
SIGNED_SIZE = 0x2A0
"""Bytes in front of the signature: what it is over."""
VERSIONS = (2, 3, 4, 5)
"""Report versions whose layout is known. 3 added the CPUID fields, 5 the mitigation vectors."""
MILAN, GENOA, TURIN = "Milan", "Genoa", "Turin"
PRODUCTS = (MILAN, GENOA, TURIN)

TCB_PARTS: dict[str, tuple[tuple[str, int], ...]] = {
    MILAN: (("bl", 0), ("tee", 1), ("snp", 6), ("ucode", 7)),
    GENOA: (("bl", 0), ("tee", 1), ("snp", 6), ("ucode", 7)),
    TURIN: (("fmc", 0), ("bl", 1), ("tee", 2), ("snp", 3), ("ucode", 7)),
}
"""Product -> parts of a TCB version and the byte that each takes; the other bytes are reserved, and zero."""
POLICY_BITS = (
    ("smt", 16),
    ("migrate_ma", 18),
    ("debug", 19),
    ("single_socket", 20),
    ("cxl_allow", 21),
    ("mem_aes_256_xts", 22),
    ("rapl_dis", 23),
    ("ciphertext_hiding", 24),
    ("page_swap_disable", 25),
)
"""Bits of the guest policy by name. Bit 17 is always one, bits from 26 on are reserved."""
PLATFORM_BITS = (
    ("smt", 0),
    ("tsme", 1),
    ("ecc", 2),
    ("rapl_dis", 3),
    ("ciphertext_hiding", 4),
    ("alias_check_complete", 5),
    ("tio", 7),
)
"""Bits of the platform information by name; genuine reports have others set, so none is refused."""
CERTIFICATE_GUIDS = {
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
}
"""Entries of a certificate table that are certificates (GHCB specification, document 56421)."""
MAX_TABLE_ENTRIES = 16
"""Entries of a certificate table; hosts fill four."""


@dataclass(frozen=True, slots=True)
class Report:
    """A report's fields. The four TCB versions are the 8 bytes as they stand, for their layout is the product's.

    `cpuid`: family, model and stepping, None before version 3. `firmware`, `committed_firmware`: major, minor, build.
    `mitigations`: the vectors at launch and now, None before version 5. `reserved`: every reserved byte. `signed`: the
    bytes that the signature is over; `signature`: the 512 bytes behind them.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    key_information: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    firmware: tuple[int, int, int]
    committed_firmware: tuple[int, int, int]
    launch_tcb: bytes
    mitigations: tuple[int, int] | None
    reserved: bytes
    signed: bytes
    signature: bytes

    def policy_bit(self, name: str) -> bool:
        """Whether the guest policy has the bit `name` of `POLICY_BITS`."""
        return bool(self.policy >> dict(POLICY_BITS)[name] & 1)

    @property
    def debug(self) -> bool:
        """Whether the host may decrypt the guest's memory for debugging."""
        return self.policy_bit("debug")

    @property
    def author_key_enabled(self) -> bool:
        """Whether the author key's digest is there."""
        return bool(self.key_information & 1)

    @property
    def chip_key_masked(self) -> bool:
        """Whether the host chose that no chip key signs."""
        return bool(self.key_information >> 1 & 1)

    @property
    def signing_key(self) -> int:
        """0 for the VCEK, 1 for the VLEK, 7 for none."""
        return self.key_information >> 2 & 7


def parse_report(data: bytes) -> Report:
    """Returns the report that `data` is.

    Raises:
        MalformedInput: code `snp_length`, not 1184 bytes; `snp_version`, a version whose layout is not known.
    """
    if len(data) != REPORT_SIZE:
        raise MalformedInput(f"SNP report: expected {REPORT_SIZE} bytes, got {len(data)}", code="snp_length")
    number = int.from_bytes
    version = number(data[0x00:0x04], "little")
    if version not in VERSIONS:
        raise MalformedInput(
            f"SNP report: expected version {VERSIONS[0]} to {VERSIONS[-1]}, got {version}", code="snp_version"
        )
    identified, mitigated = version >= 3, version >= 5
    reserved = (
        data[0x4C:0x50]
        + data[0x18B if identified else 0x188 : 0x1A0]
        + data[0x1EB:0x1EC]
        + data[0x1EF:0x1F0]
        + data[0x208 if mitigated else 0x1F8 : SIGNED_SIZE]
    )
    return Report(
        version=version,
        guest_svn=number(data[0x04:0x08], "little"),
        policy=number(data[0x08:0x10], "little"),
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=number(data[0x30:0x34], "little"),
        signature_algorithm=number(data[0x34:0x38], "little"),
        current_tcb=data[0x38:0x40],
        platform_info=number(data[0x40:0x48], "little"),
        key_information=number(data[0x48:0x4C], "little"),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=data[0x180:0x188],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if identified else None,
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=data[0x1E0:0x1E8],
        firmware=(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed_firmware=(data[0x1EE], data[0x1ED], data[0x1EC]),
        launch_tcb=data[0x1F0:0x1F8],
        mitigations=struct.unpack("<QQ", data[0x1F8:0x208]) if mitigated else None,
        reserved=reserved,
        signed=data[:SIGNED_SIZE],
        signature=data[SIGNED_SIZE:],
    )


def product_of(cpuid: tuple[int, int, int]) -> str | None:
    """Returns the product of a processor by family and model, None for one that is not known here."""
    family, model = cpuid[0], cpuid[1] >> 4
    if family == 0x19:
        return {0x0: MILAN, 0x1: GENOA, 0xA: GENOA}.get(model)
    return TURIN if family == 0x1A and model in (0x0, 0x1) else None


def tcb_parts(tcb: bytes, product: str) -> tuple[tuple[str, int], ...]:
    """Returns the parts of a TCB version of `product`, as (name, value)."""
    return tuple((name, tcb[at]) for name, at in TCB_PARTS[product])


def reserved_in_tcb(tcb: bytes, product: str) -> bytes:
    """Returns the bytes of a TCB version that are reserved for `product`."""
    used = [at for _, at in TCB_PARTS[product]]
    return bytes(byte for at, byte in enumerate(tcb) if at not in used)


def parse_certificate_table(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Returns the certificates (name, bytes) of a certificate table, as `auxblob` and extended guest requests have it:
    GUID, offset and length of each, an entry of zeros, and then the certificates. Entries of other kinds are left out.

    Raises:
        MalformedInput: code `snp_table_malformed`.
    """

    def refuse(why: str) -> MalformedInput:
        return MalformedInput(f"certificate table: {why}", code="snp_table_malformed")

    found = []
    for at in range(0, 24 * (MAX_TABLE_ENTRIES + 1), 24):
        entry = data[at : at + 24]
        if len(entry) < 24:
            raise refuse("no entry of zeros at its end")
        if not any(entry):
            break
        guid = "-".join(entry[:16].hex()[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
        offset, length = struct.unpack("<II", entry[16:])
        if offset < at + 24 or offset + length > len(data):
            raise refuse(f"an entry of {length} bytes at {offset}, in a table of {len(data)}")
        if guid in CERTIFICATE_GUIDS:
            found.append((CERTIFICATE_GUIDS[guid], data[offset : offset + length]))
    else:
        raise refuse(f"more than {MAX_TABLE_ENTRIES} entries")
    if not found:
        raise refuse("no certificates")
    return tuple(found)
