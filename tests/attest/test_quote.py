"""`attest.quote`: SGX and TDX quotes, taken apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import dcap_qvl
import fake_intel
import pytest
from conftest import SHARED
from fake_intel import SGX, TDX4, TDX5, TDX5_10, Intel

from strongroom.attest.quote import (
    MAX_QUOTE,
    EnclaveReport,
    TdReport,
    parse_enclave_report,
    parse_quote,
    parse_td_report,
)
from strongroom.errors import MalformedInput

RECORDED = sorted((SHARED / "evidence").glob("[st][gd]x/*/quote.bin"))
recorded = pytest.mark.skipif(
    not RECORDED, reason="not exercised here: recorded evidence is not beside this checkout"
)


def test_every_field_of_an_sgx_quote_is_where_it_belongs() -> None:
    """Names and values of the structure, one by one."""
    quote = parse_quote(SGX.quote)
    assert (quote.version, quote.tee, quote.qe_svn, quote.pce_svn) == (3, "sgx", 0, 0)
    body = quote.body
    assert isinstance(body, EnclaveReport)
    assert body.mr_enclave == hashlib.sha256(b"the enclave").digest()
    assert body.mr_signer == hashlib.sha256(b"its signer").digest()
    assert (body.isv_prod_id, body.isv_svn, body.config_svn) == (7, 3, 0)
    assert body.attributes.hex() == "0500000000000000e700000000000000"
    assert body.config_id == body.report_data == bytes(range(64))
    assert not body.debug
    assert quote.signed == SGX.quote[: 48 + 384]
    assert quote.attestation_key == fake_intel.point(SGX.key("attestation"))
    assert quote.qe_report.raw == SGX.qe_report
    assert quote.qe_auth == bytes(range(32))
    assert quote.pck_chain == SGX.pck_chain
    assert quote.trailing == b""


@pytest.mark.parametrize(
    ("vendor", "size"), [(TDX4, 584), (TDX5, 648), (TDX5_10, 584)], ids=["4", "5", "5-1.0"]
)
def test_every_field_of_a_tdx_quote_is_where_it_belongs(vendor: Intel, size: int) -> None:
    """TD reports 1.0 and 1.5; version 5 signs its body's type and size with it."""
    quote = parse_quote(vendor.quote)
    body = quote.body
    assert isinstance(body, TdReport)
    assert (quote.version, quote.tee, len(body.raw)) == (vendor.version, "tdx", size)
    assert len(quote.signed) == 48 + size + (6 if vendor.version == 5 else 0)
    assert body.mr_td == hashlib.sha384(b"the trust domain").digest()
    assert body.mr_seam == hashlib.sha384(b"the module").digest()
    assert body.rtmrs[0] == hashlib.sha384(b"rtmr0").digest()
    assert body.rtmrs[3] == hashlib.sha384(b"rtmr3").digest()
    assert body.rtmrs[1] == body.rtmrs[2] == bytes(48)
    assert body.report_data == bytes(range(64))
    assert body.attribute_bits == {28}
    assert not body.debug
    assert (body.mr_service_td is None) == (size == 584)


@pytest.mark.parametrize("bit", range(8))
def test_each_bit_of_the_debug_byte_is_debugging(bit: int) -> None:
    """TUD, bits 0 to 7 of TDATTRIBUTES: debug, profiling, reserved; none may be set."""
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    body = parse_quote(TDX4.but(body={"td_attributes": attributes}).quote).body
    assert body.debug


def test_trailing_bytes_are_kept_for_the_examiner() -> None:
    """They are no part of the quote and are shown, not dropped."""
    assert parse_quote(SGX.but(trailing=b"\0x").quote).trailing == b"\0x"


MALFORMED = {
    "empty": b"",
    "too-long": SGX.quote + bytes(MAX_QUOTE),
    "sgx-version-4": SGX.but(header={"version": b"\x04\x00"}).quote,
    "sgx-version-5": SGX.but(header={"version": b"\x05\x00"}).quote,
    "sgx-version-2": SGX.but(header={"version": b"\x02\x00"}).quote,
    "tdx-version-3": TDX4.but(header={"version": b"\x03\x00"}).quote,
    "tdx-version-6": TDX5.but(header={"version": b"\x06\x00"}).quote,
    "tee-type-1": SGX.but(header={"tee_type": b"\x01\x00\x00\x00"}).quote,
    "tee-type-high-byte": TDX4.but(header={"tee_type": b"\x81\x00\x00\x01"}).quote,
    "key-type-p384": SGX.but(header={"key_type": b"\x03\x00"}).quote,
    "key-type-epid": SGX.but(header={"key_type": b"\x00\x00"}).quote,
    "other-vendor": SGX.but(header={"vendor": bytes(16)}).quote,
    "body-type-sgx-in-5": TDX5.forge(body_type=b"\x01\x00").quote,
    "body-type-4": TDX5.forge(body_type=b"\x04\x00").quote,
    "body-type-1.0-with-1.5-size": TDX5.forge(body_type=b"\x02\x00").quote,
    "body-size-one-less": TDX5.forge(body_size=(647).to_bytes(4, "little")).quote,
    "body-size-huge": TDX5.forge(body_size=b"\xff" * 4).quote,
    "signature-size-beyond": SGX.forge(signature_size=b"\xff\xff\xff\x7f").quote,
    "signature-size-zero": SGX.forge(signature_size=bytes(4)).quote,
    "qe-type-5": TDX4.forge(qe_type=b"\x05\x00").quote,
    "qe-size-one-less": TDX4.forge(qe_size=b"\x01\x00\x00\x00").quote,
    "chain-type-1-encrypted-ppid": SGX.forge(chain_type=b"\x01\x00").quote,
    "chain-type-3": SGX.forge(chain_type=b"\x03\x00").quote,
    "chain-type-4-leaf-only": SGX.forge(chain_type=b"\x04\x00").quote,
    "chain-type-7": TDX4.forge(chain_type=b"\x07\x00").quote,
    "chain-size-zero": SGX.forge(chain_size=bytes(4)).quote,
    "chain-size-beyond": SGX.forge(chain_size=b"\xff\xff\x00\x00").quote,
    "chain-too-long": SGX.forge(pck_chain=b"\n" * (16 * 1024 + 1)).quote,
    "qe-auth-31": SGX.forge(qe_auth=bytes(31)).quote,
    "qe-auth-none": SGX.forge(qe_auth=b"").quote,
    "reserved-1": SGX.but(body={"reserved1": b"\1" + bytes(11)}).quote,
    "reserved-2": SGX.but(body={"reserved2": b"\1" + bytes(31)}).quote,
    "reserved-3": SGX.but(body={"reserved3": bytes(31) + b"\1"}).quote,
    "reserved-4": SGX.but(body={"reserved4": b"\1" + bytes(41)}).quote,
    "qe-reserved": TDX4.but(qe={"reserved2": b"\1" + bytes(31)}).quote,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_quote_is_refused(data: bytes) -> None:
    """One fault of form each."""
    with pytest.raises(MalformedInput) as refusal:
        parse_quote(data)
    assert refusal.value.code == "quote_malformed"


@pytest.mark.parametrize("vendor", fake_intel.EVERY, ids=["3", "4", "5", "5-1.0"])
def test_every_truncation_is_refused(vendor: Intel) -> None:
    """There is no shorter quote inside a quote."""
    data = vendor.quote
    for end in range(len(data)):
        with pytest.raises(MalformedInput):
            parse_quote(data[:end])


def test_reports_of_another_size_are_refused() -> None:
    """The two report parsers take exactly one structure."""
    for size in (0, 383, 385):
        with pytest.raises(MalformedInput):
            parse_enclave_report(bytes(size))
    for size in (0, 583, 585, 647, 649):
        with pytest.raises(MalformedInput):
            parse_td_report(bytes(size))


@recorded
@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.parent.name)
def test_recorded_quotes_read_as_dcap_qvl_reads_them(path: Path) -> None:
    """Two readers of one quote agree about every field that both know."""
    data = path.read_bytes()
    ours, theirs = parse_quote(data), dcap_qvl.parse_quote(data)
    assert ours.version == theirs.header.version
    assert ours.user_data == bytes(theirs.header.user_data)
    assert ours.pck_chain.removesuffix(b"\0") == bytes(theirs.cert_chain_pem_bytes())
    report = theirs.report
    if isinstance(ours.body, EnclaveReport):
        names = ("cpu_svn", "attributes", "mr_enclave", "mr_signer", "report_data")
    else:
        names = (
            "tee_tcb_svn", "mr_seam", "mr_signer_seam", "seam_attributes", "td_attributes", "xfam", "mr_td",
            "mr_config_id", "mr_owner", "mr_owner_config", "report_data",
        )  # fmt: skip
        assert ours.body.rtmrs == tuple(bytes(getattr(report, f"rt_mr{i}")) for i in range(4))
        if ours.body.mr_service_td is not None:
            names = (*names, "tee_tcb_svn2", "mr_service_td")
    for name in names:
        assert getattr(ours.body, name) == bytes(getattr(report, name)), name
