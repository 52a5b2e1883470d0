"""Firmware images of confidential machines: what they say about themselves, and the MRTD that follows
(docs/spec/reference-values.md §4).

An OVMF image ends with a table of entries that are named by GUIDs, read backwards from 32 bytes before its end (edk2,
OvmfPkg/ResetVector). One entry leads to the TDVF descriptor, others are SEV's.

MRTD (Intel TDX module, base architecture specification, "Measurement and attestation"; TDVF design guide, section 11):
a SHA-384 over what the VMM does, in its order: for each page of 4096 bytes that it adds, "MEM.PAGE.ADD" with the page's
address, 128 bytes in all; for each 256 bytes that are measured, "MR.EXTEND" with their address, 128 bytes in all, and
the 256 bytes.

Rules of this file: every offset is checked before use, and what is hashed is bounded.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NoReturn
from uuid import UUID

from strongroom.errors import MalformedInput

MAX_IMAGE: Final = 64 << 20
"""Bytes of an image; usual ones have 2 to 16 MiB."""
MAX_MEMORY: Final = 256 << 20
"""Bytes of all sections of a TDVF together: what is measured is hashed, page by page."""
MAX_SECTIONS: Final = 64
PAGE: Final = 4096
CHUNK: Final = 256
SEV_METADATA: Final = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
"""The entry of images that SEV-SNP can start."""
_FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_TDVF: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_ENTRY: Final = 18
"""Bytes of an entry's length and GUID, which stand behind its data."""
_BEHIND: Final = 32
"""Bytes between the table and the image's end: the reset vector."""
_SECTION: Final = struct.Struct("<IIQQII")
"""data_offset, raw_data_size, memory_address, memory_data_size, type, attributes."""
_EXTENDED, _LATER = 1, 2
"""Attributes: the section is measured (MR.EXTEND); its pages are added once the TD runs (PAGE.AUG)."""

Order = Literal["page", "section"]
"""Whether the VMM measures each page as it adds it (Linux 6.16 and later), or a section once its pages are there."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a TDVF: `address` and `size` in the TD's memory, `data` from the image (perhaps less, or none)."""

    address: int
    size: int
    attributes: int
    data: bytes

    @property
    def unmeasured(self) -> bool:
        """Whether nothing of it goes into the MRTD: memory that the TD accepts later, of any size."""
        return self.attributes & (_EXTENDED | _LATER) == _LATER


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"firmware: {why}", code="artefact_malformed")


def guided_entries(image: bytes) -> dict[UUID, bytes]:
    """Returns the entries of the table at the image's end by their GUIDs.

    Raises:
        MalformedInput: code `artefact_malformed`: no such table, or more bytes than `MAX_IMAGE`.
    """
    if len(image) > MAX_IMAGE:
        _refuse(f"{len(image)} bytes, at most {MAX_IMAGE} are read")
    end = len(image) - _BEHIND
    size, guid = _entry_head(image, end)
    if guid != _FOOTER or not _ENTRY <= size <= end:
        _refuse("no table of GUIDs at its end: not an OVMF image for confidential machines")
    begin, end = end - size, end - _ENTRY
    found: dict[UUID, bytes] = {}
    while end > begin:
        size, guid = _entry_head(image, end)
        if not _ENTRY <= size <= end - begin or guid in found:
            _refuse("its table of GUIDs has an entry of another form, or one twice")
        found[guid] = image[end - size : end - _ENTRY]
        end -= size
    return found


def _entry_head(image: bytes, end: int) -> tuple[int, UUID]:
    if end < _ENTRY:
        _refuse(f"{len(image)} bytes are no image")
    return int.from_bytes(image[end - _ENTRY : end - 16], "little"), UUID(bytes_le=image[end - 16 : end])


def parse_tdvf(image: bytes) -> tuple[Section, ...]:
    """Returns the sections of the TDVF descriptor in `image`, in its order, which is that of the VMM.

    Raises:
        MalformedInput: code `artefact_malformed`.
    """
    entry = guided_entries(image).get(_TDVF)
    if entry is None or len(entry) != 4:
        _refuse("it has no TDVF descriptor: TDX cannot start it")
    at = len(image) - int.from_bytes(entry, "little")
    if not 0 <= at <= len(image) - 16 or image[at : at + 4] != b"TDVF":
        _refuse("its TDVF descriptor is not where the table says")
    length, version, count = struct.unpack_from("<III", image, at + 4)
    if version != 1 or not 1 <= count <= MAX_SECTIONS or length != 16 + count * _SECTION.size:
        _refuse(f"TDVF descriptor: version {version}, {count} sections in {length} bytes")
    if at + length > len(image):
        _refuse("its TDVF descriptor is longer than the image")
    sections = tuple(_section(image, at + 16 + i * _SECTION.size) for i in range(count))
    total = sum(section.size for section in sections if not section.unmeasured)
    if total > MAX_MEMORY:
        _refuse(f"TDVF sections: {total} bytes of memory, at most {MAX_MEMORY}")
    return sections


def _section(image: bytes, at: int) -> Section:
    offset, raw, address, size, _type, attributes = _SECTION.unpack_from(image, at)
    if offset + raw > len(image) or raw > size or address % PAGE or size % PAGE or address + size > 1 << 52:
        _refuse("a TDVF section lies outside the image, or not on pages")
    return Section(address, size, attributes, image[offset : offset + raw])


def mrtd(image: bytes, *, order: Order) -> bytes:
    """Returns the MRTD (48 bytes) of a TD that is started with this firmware by a VMM that measures in this `order`.

    Raises:
        MalformedInput: code `artefact_malformed`: not a TDVF.
    """
    digest = hashlib.sha384()
    for section in parse_tdvf(image):
        if section.unmeasured:
            continue
        pages = range(0, section.size, PAGE)
        groups = [[page] for page in pages] if order == "page" else [list(pages)]
        for group in groups:
            for page in group:
                if not section.attributes & _LATER:
                    digest.update(_operation(b"MEM.PAGE.ADD", section.address + page))
            for page in group:
                if section.attributes & _EXTENDED:
                    for piece in _extensions(section, page):
                        digest.update(piece)
    return digest.digest()


def _extensions(section: Section, page: int) -> Iterator[bytes]:
    for at in range(page, page + PAGE, CHUNK):
        yield _operation(b"MR.EXTEND", section.address + at)
        yield section.data[at : at + CHUNK].ljust(CHUNK, b"\x00")


def _operation(name: bytes, address: int) -> bytes:
    return (name.ljust(16, b"\x00") + address.to_bytes(8, "little")).ljust(128, b"\x00")
