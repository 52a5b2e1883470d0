"""`attest.firmware`: tables of GUIDs, TDVF descriptors and the MRTD that follows."""

from __future__ import annotations

import hashlib
import struct
from uuid import UUID

import fake_artefacts as fake
import pytest

from strongroom.attest.firmware import MAX_IMAGE, guided_entries, mrtd, parse_tdvf
from strongroom.errors import MalformedInput

OTHER = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")


def measured(image: bytes, *, by_section: bool) -> bytes:
    """MRTD of the sections of `fake.SECTIONS`, straight from the words of the specification."""
    stream = b""
    for offset, raw, address, size, _type, attributes in fake.SECTIONS:
        adds, extends = [], []
        for page in range(0, size, 4096):
            if not attributes & 2:
                adds.append((page, b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", address + page) + bytes(104)))
            if attributes & 1:
                for at in range(page, page + 4096, 256):
                    data = image[offset : offset + raw][at : at + 256]
                    head = b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", address + at) + bytes(104)
                    extends.append((page, head + data))
        pieces = [*adds, *extends]
        if not by_section:
            pieces.sort(key=lambda piece: piece[0])  # stable: an add stays before its page's extends
        stream += b"".join(piece for _, piece in pieces)
    return hashlib.sha384(stream).digest()


def test_mrtd_is_what_the_module_hashes() -> None:
    """In both orders, which are not the same; memory for later is not in it."""
    image = fake.firmware()
    assert mrtd(image, order="page") == measured(image, by_section=False)
    assert mrtd(image, order="section") == measured(image, by_section=True)
    assert mrtd(image, order="page") != mrtd(image, order="section")


def test_what_is_measured_changes_it_and_what_is_not_does_not() -> None:
    """Code is, variables are not."""
    image = bytearray(fake.firmware())
    before = mrtd(bytes(image), order="page")
    image[0] ^= 1
    assert mrtd(bytes(image), order="page") == before
    image[0x1000] ^= 1
    assert mrtd(bytes(image), order="page") != before


def test_memory_for_later_costs_nothing() -> None:
    """An image can declare any amount of it: nothing is done page by page."""
    image = with_sections(*fake.SECTIONS, section(address=0, size=1 << 51, raw=0, attributes=2))
    assert mrtd(image, order="page") == measured(image, by_section=False)
    assert mrtd(image, order="section") == measured(image, by_section=True)


def test_the_table_is_read_backwards() -> None:
    """Entries by GUID, each with its own data."""
    found = guided_entries(fake.firmware(more={OTHER: b"data"}))
    assert found[OTHER] == b"data"
    assert set(found) == {OTHER, fake.TDVF, fake.SEV_METADATA, fake.SEV_RESET, fake.SEV_HASHES}


def section(**changed: int) -> tuple[int, ...]:
    """The measured section with members changed."""
    names = ("data_offset", "raw", "address", "size", "type", "attributes")
    return tuple((dict(zip(names, fake.SECTIONS[0], strict=True)) | changed).values())


def with_sections(*sections: tuple[int, ...]) -> bytes:
    """An image with these sections."""
    return fake.firmware(descriptor=fake.tdvf(sections))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        bytes(100),
        bytes(MAX_IMAGE + 1),
        fake.firmware(footer=OTHER),
        fake.firmware(tdx=False),
        fake.firmware(more={OTHER: bytes(5)}).replace(
            struct.pack("<H", 23) + OTHER.bytes_le, b"\1\0" + OTHER.bytes_le
        ),
        fake.firmware(more={OTHER: b""}).replace(OTHER.bytes_le, fake.TDVF.bytes_le),
        fake.firmware(descriptor=b"TDVX" + fake.tdvf()[4:]),
        fake.firmware(descriptor=fake.tdvf(version=2)),
        fake.firmware(descriptor=fake.tdvf(())),
        fake.firmware(descriptor=fake.tdvf(length=16)),
        with_sections(*[fake.SECTIONS[2]] * 65),
        with_sections(section(data_offset=fake.SIZE)),
        with_sections(section(raw=fake.SIZE)),
        with_sections(section(address=0x801)),
        with_sections(section(size=fake.SIZE - 0x1000 + 1)),
        with_sections(section(address=(1 << 52) - 0x1000)),
        with_sections(section(size=512 << 20)),
        with_sections(section(size=512 << 20, attributes=3)),
    ],
)
def test_images_out_of_form_are_refused(image: bytes) -> None:
    """No table, no descriptor, sections outside the image, off their pages, or too much memory."""
    with pytest.raises(MalformedInput) as caught:
        parse_tdvf(image)
    assert caught.value.code == "artefact_malformed"


@pytest.mark.parametrize("offset", [0, 3, fake.SIZE + 1, 0xFFFFFFFF])
def test_a_descriptor_outside_the_image_is_not_looked_for(offset: int) -> None:
    """The table's word is checked."""
    image = fake.firmware(tdx=False, more={fake.TDVF: offset.to_bytes(4, "little")})
    with pytest.raises(MalformedInput):
        parse_tdvf(image)
