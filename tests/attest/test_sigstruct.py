"""`attest.sigstruct`: which enclave a signer signed."""

from __future__ import annotations

import hashlib
from datetime import date

import fake_artefacts as fake
import pytest

from strongroom.attest.sigstruct import parse_sigstruct
from strongroom.errors import MalformedInput


def test_it_says_which_enclave_and_whose() -> None:
    """Every member from its place; MRSIGNER is the digest of the modulus."""
    found = parse_sigstruct(fake.sigstruct())
    assert found.mr_enclave == fake.MRENCLAVE
    assert found.mr_signer == hashlib.sha256(fake.modulus()).digest()
    assert (found.isv_prod_id, found.isv_svn, found.made) == (7, 3, date(2026, 11, 29))
    assert (found.isv_family_id, found.isv_ext_prod_id) == (b"f" * 16, b"e" * 16)
    assert (found.attributes.hex(), found.xfrm.hex(), found.misc_select) == (
        "0400000000000000",
        "e700000000000000",
        bytes(4),
    )
    assert found.xfrm_mask.hex() == "1bffffffffffffff"
    assert not found.debug


@pytest.mark.parametrize(
    "changed",
    [
        {"attributes": bytes.fromhex("0600000000000000")},
        {"attributes_mask": bytes.fromhex("fdffffffffffffff")},
    ],
)
def test_debug_mode_is_open_where_the_bit_is_set_or_not_looked_at(changed: dict[str, bytes]) -> None:
    """The mask says which attributes must be as signed."""
    assert parse_sigstruct(fake.sigstruct(**changed)).debug


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (fake.sigstruct()[:-1], "1807 bytes"),
        (fake.sigstruct() + b"\x00", "1809 bytes"),
        (fake.sigstruct(header=bytes(16)), "begin with its header"),
        (fake.sigstruct(header2=bytes(16)), "second header"),
        (fake.sigstruct(exponent=(65537).to_bytes(4, "little")), "exponent 65537"),
        (fake.sigstruct(date=(0x20261340).to_bytes(4, "little")), "date"),
        (fake.sigstruct(date=(0x2026AB01).to_bytes(4, "little")), "date"),
        (fake.sigstruct(shown="mallory signer"), "does not verify"),
    ],
)
def test_what_is_no_sigstruct_is_refused(data: bytes, why: str) -> None:
    """By its form, or because no processor would start it."""
    with pytest.raises(MalformedInput, match=why) as caught:
        parse_sigstruct(data)
    assert caught.value.code == "artefact_malformed"


@pytest.mark.parametrize("at", [20, 40, 130, 400, 520, 899, 900, 930, 960, 991, 1024, 1027])
def test_no_signed_byte_can_be_changed(at: int) -> None:
    """One in each signed member, in the modulus and in the signature."""
    data = bytearray(fake.sigstruct())
    data[at] ^= 1
    with pytest.raises(MalformedInput):
        parse_sigstruct(bytes(data))
