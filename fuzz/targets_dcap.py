"""Fuzz targets of the DCAP formats: quotes, PCK chains, collateral bundles, whole examinations.

Oracle: a value, an `Examination` or a `strongroom.errors.Error`, nothing else. Where there is more to say, the target
says it: what is not the genuine quote or bundle never passes every check, and its claims are shown only if it verified.
"""

from __future__ import annotations

import sys
from pathlib import Path

from strongroom.attest.collateral import parse_collateral
from strongroom.attest.dcap import examine_sgx, examine_tdx
from strongroom.attest.evidence import Claims
from strongroom.attest.pck import load_chain, parse_pck, parse_pem_chain, pem
from strongroom.attest.quote import parse_quote
from strongroom.errors import Error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

from fake_intel import NOW, SGX, TDX4, TDX5

QUOTES = (SGX.quote, TDX4.quote, TDX5.quote)
CHAIN = SGX.pck_chain
BUNDLES = (SGX.bundle, TDX4.bundle)
SGX_ROOTS, SGX_STAPLED = SGX.roots, SGX.endorsements
TDX_ROOTS, TDX_STAPLED = TDX5.roots, TDX5.endorsements
NAMES = (("Intel SGX PCK Certificate",), ("Intel SGX PCK Platform CA",), ("Intel SGX Root CA",))

SEEDS = {
    "fuzz_quote": QUOTES,
    "fuzz_pck_chain": (CHAIN,),
    "fuzz_pck_certificate": (SGX.certificate("pck"),),
    "fuzz_dcap_collateral": BUNDLES,
    "fuzz_sgx_evidence": (SGX.quote,),
    "fuzz_tdx_evidence": (TDX5.quote,),
    "fuzz_sgx_endorsement": (SGX.bundle,),
}


def fuzz_quote(data: bytes) -> None:
    """Every byte of a quote that was read is in one of its parts."""
    try:
        quote = parse_quote(data)
    except Error:
        return
    assert data.startswith(quote.signed)
    assert data.endswith(quote.pck_chain + quote.trailing)
    # 4: size of the signature data; 12: in versions 4 and 5, type and size of the QE's part and of the chain
    lengths = 4 + 2 + 6 + (6 if quote.version > 3 else 0)
    parts = (
        quote.signed,
        bytes(64),
        bytes(64),
        quote.qe_report.raw,
        bytes(64),
        quote.qe_auth,
        quote.pck_chain,
    )
    assert len(data) == sum(map(len, parts)) + lengths + len(quote.trailing)


def fuzz_pck_chain(data: bytes) -> None:
    """PEM that was read has one spelling but for the width of its lines."""
    try:
        ders = parse_pem_chain(data, nul=True)
    except Error:
        return
    text = b"".join(pem(der, width=64) for der in ders)
    assert text.replace(b"\n", b"") == data.removesuffix(b"\0").replace(b"\n", b"")


def fuzz_pck_certificate(data: bytes) -> None:
    """A leaf that was read is the one that was signed."""
    try:
        chain = load_chain(
            (data, SGX.certificate("ca"), SGX.certificate("root")), NAMES, code="pck_chain_invalid"
        )
        parse_pck(chain[0])
    except Error:
        return
    assert data == SEEDS["fuzz_pck_certificate"][0]


def fuzz_dcap_collateral(data: bytes) -> None:
    """A bundle or our error."""
    try:
        found = parse_collateral(data)
    except Error:
        return
    assert found.text.encode() == data


def fuzz_sgx_evidence(data: bytes) -> None:
    """Only the genuine quote passes, with nothing but zeros behind it, and only it has claims."""
    found = examine_sgx(data, endorsements=SGX_STAPLED, roots=SGX_ROOTS, now=NOW)
    if isinstance(found.claims, Claims):
        assert data.startswith(QUOTES[0])
    if all(c.passed for c in found.checks):
        assert data.rstrip(b"\0") == QUOTES[0].rstrip(b"\0")


def fuzz_tdx_evidence(data: bytes) -> None:
    """The same for TDX."""
    found = examine_tdx(data, endorsements=TDX_STAPLED, roots=TDX_ROOTS, now=NOW)
    if isinstance(found.claims, Claims):
        assert data.startswith(QUOTES[2])
    if all(c.passed for c in found.checks):
        assert data.rstrip(b"\0") == QUOTES[2].rstrip(b"\0")


def fuzz_sgx_endorsement(data: bytes) -> None:
    """A bundle that passes has the genuine documents."""
    found = examine_sgx(QUOTES[0], endorsements=(("x", data),), roots=SGX_ROOTS, now=NOW)
    if all(c.passed for c in found.checks):
        got, genuine = parse_collateral(data), parse_collateral(BUNDLES[0])
        assert (got.tcb_info, got.qe_identity) == (genuine.tcb_info, genuine.qe_identity)
