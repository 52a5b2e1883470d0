"""Fuzz targets of what builds of releases make: SIGSTRUCTs, firmware images, descriptions of enclave images.

Oracle: a value or a `strongroom.errors.Error`, nothing else; and a SIGSTRUCT that is read is the genuine one.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from strongroom.attest.firmware import guided_entries, mrtd
from strongroom.attest.reference import nitro_reference
from strongroom.attest.sigstruct import parse_sigstruct
from strongroom.errors import Error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

import fake_artefacts as fake

SIGSTRUCT = fake.sigstruct()
FOUND = parse_sigstruct(SIGSTRUCT)

SEEDS = {
    "fuzz_sigstruct": (SIGSTRUCT,),
    "fuzz_firmware": (fake.firmware(), fake.firmware(sev=False)),
    "fuzz_enclave_image": (fake.eif_json(), fake.eif_json(PCR8="ab" * 48)),
}


def fuzz_sigstruct(data: bytes) -> None:
    """Whatever is read says of the enclave what the signer signed."""
    with contextlib.suppress(Error):
        found = parse_sigstruct(data)
        assert (found.mr_enclave, found.mr_signer) == (FOUND.mr_enclave, FOUND.mr_signer)


def fuzz_firmware(data: bytes) -> None:
    """Tables, descriptors and what is measured."""
    with contextlib.suppress(Error):
        guided_entries(data)
        assert len(mrtd(data, order="page")) == 48


def fuzz_enclave_image(data: bytes) -> None:
    """A value has a PCR0 that is not debug mode's."""
    with contextlib.suppress(Error):
        found = nitro_reference(data).value
        assert found is not None and int(found.measurement, 16)
