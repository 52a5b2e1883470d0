"""Fuzz targets of the CBOR reader, Nitro documents, and certificates with evidence in them.

Oracle: a value or a `strongroom.errors.Error`, nothing else; an examination never raises. Claims come only out of
documents that the test root signed: no mutation makes any, for every byte of a document is authenticated.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

import fake_aws
import fake_ratls
import platforms

from strongroom.attest.cbor import Reader
from strongroom.attest.evidence import Absent, boot_report_data
from strongroom.attest.nitro import examine_nitro, parse_document
from strongroom.attest.ratls_evidence import examine_certificate, examine_ratls
from strongroom.attest.ratls_forms import parse_certificate
from strongroom.attest.sim import examine_sim
from strongroom.attest.verifiers import carried
from strongroom.errors import Error

DOCUMENT = fake_aws.mint()
OPEN_DOCUMENT = fake_aws.mint(open_ended=True)


def own(platform: platforms.Platform) -> bytes:
    """A certificate of our server's on this platform, for the formats that nobody else describes one for."""
    key, name = fake_ratls.key(), platform.format
    evidence = platform.carry(carried(name, boot_report_data(spki=fake_ratls.spki(key)))).data
    claims = fake_ratls.claims_map(key, format=name.encode())
    return fake_ratls.certificate((fake_ratls.DICE, fake_ratls.tagged(claims, evidence)), private=key)


CERTIFICATES = (
    fake_ratls.interoperable(),
    fake_ratls.both_gramine(),
    fake_ratls.nitro_name(),
    fake_ratls.own_sim(),
    *map(own, (platforms.SNP, platforms.TPM_NAMED, platforms.AZURE_SNP, platforms.AZURE_TDX)),
    fake_ratls.certificate((fake_ratls.OPEN_ENCLAVE, fake_ratls.header(fake_ratls.quote(bytes(64))))),
)
SEEDS = {
    "fuzz_cbor": (
        fake_aws.open_map(fake_aws.members()),
        b"\xa2\x01\x02\x61a\x43abc",
        b"\xd9\xea\x60\x82\x40\x40",
    ),
    "fuzz_nitro_document": (DOCUMENT, OPEN_DOCUMENT),
    "fuzz_nitro_certificate": tuple(fake_aws.CHAIN),
    "fuzz_ratls_certificate": CERTIFICATES,
}


def fuzz_cbor(data: bytes) -> None:
    """Every item is read by asking for each kind in turn, or refused; the cursor never stands still."""
    read = Reader(data, limit=1 << 20, what="fuzzing", code="evidence_malformed")
    asked = (
        read.integer,
        lambda: read.byte_string(1 << 20),
        lambda: read.text(1 << 20),
        lambda: read.array(0, 1 << 20),
        lambda: [
            read.null() or read.integer()
            for _ in read.keys(lambda: read.text(64), limit=32, may_be_open=True)
        ],
        lambda: read.tag(60000),
    )
    for kind in range(64):
        try:
            asked[(kind + len(data)) % len(asked)]()
        except Error:
            continue


def fuzz_nitro_document(data: bytes) -> None:
    """Nothing raises but ours, and only what the root signed gives claims."""
    found = examine_nitro(data, endorsements=(), roots=(fake_aws.ROOT,), now=fake_aws.NOW)
    assert isinstance(found.claims, Absent) or data in (DOCUMENT, OPEN_DOCUMENT)
    try:
        document = parse_document(data)
    except Error:
        return
    assert document.pcrs and document.cabundle


def fuzz_nitro_certificate(data: bytes) -> None:
    """A hostile certificate in the place of each of the chain's."""
    for place in range(len(fake_aws.CHAIN)):
        chain = list(fake_aws.CHAIN)
        chain[place] = data[:1024] or b"\x00"
        found = examine_nitro(
            fake_aws.mint(certificates=chain), endorsements=(), roots=(fake_aws.ROOT,), now=fake_aws.NOW
        )
        assert isinstance(found.claims, Absent) or data in fake_aws.CHAIN


def fuzz_ratls_certificate(data: bytes) -> None:
    """A certificate that passes is one of the genuine ones, or differs where nothing is authenticated (§3.6)."""
    found = examine_certificate(data, now=fake_ratls.NOW)
    if found.passed and data not in CERTIFICATES:
        assert not parse_certificate(data).self_issued
        assert [one.source for one in found.found] == ["nitro-name"]
        assert found.spki == fake_ratls.spki(fake_ratls.key())
    whole = examine_ratls(
        data,
        endorsements=(),
        roots={"nitro": (fake_aws.ROOT,)},
        now=fake_ratls.NOW,
        examiners={"nitro": examine_nitro, "sim": examine_sim, "sgx": fake_ratls.examine_quote},
    )
    assert whole.checks
