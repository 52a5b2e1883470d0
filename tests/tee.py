"""Fake vendors, behind one import: mints any evidence of any TEE, at any time, with any one thing wrong.

Each function returns `Minted`: evidence, what is stapled to it, and the roots that accept it. What a test wants wrong
is said to the vendor's own object (`Intel`, `Machine`, `Tpm`, `Cloud`, `Server`, or the functions of `nitro` and
`ratls`), which are here as well. Nothing of it is random, and nothing looks at a clock: the same words mint the same
bytes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))

import fake_amd
import fake_aws as nitro
import fake_azure
import fake_keys as keys
import fake_ratls as ratls
import fake_tpm as tpm
import fake_x509 as x509
import worlds
from fake_amd import Machine
from fake_azure import Cloud
from fake_intel import SGX, SGX_BODY, TD_BODY, TDX4, TDX5, TDX5_10, Intel
from fake_tpm import Tpm
from worlds import NOW, Server

__all__ = [
    "NOW", "SGX", "TDX4", "TDX5", "TDX5_10", "Cloud", "Intel", "Machine", "Minted", "Server", "Tpm", "azure", "dcap",
    "document", "fake_amd", "fake_azure", "keys", "nitro", "quoted", "ratls", "ratls_certificate", "sim", "snp",
    "sworn", "tpm", "worlds", "x509",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Minted:
    """Evidence of `format`, what is stapled to it as (file name, bytes), and the roots that accept it: for each format
    the SHA-256 of `anchors` (file name, DER), unless a test names others. `measurement`, `report_data`: what it claims.
    """

    format: str
    data: bytes
    file: str
    endorsements: tuple[tuple[str, bytes], ...] = ()
    anchors: tuple[tuple[str, bytes], ...] = ()
    roots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measurement: str = ""
    report_data: bytes = b""
    now: datetime = NOW

    def but(self, **changes: Any) -> Minted:
        """The same with members replaced."""
        return replace(self, **changes)


def dcap(vendor: Intel = SGX) -> Minted:
    """An SGX or TDX quote with its collateral."""
    fields = (TD_BODY if vendor.tdx else SGX_BODY) | dict(vendor.body)
    return Minted(
        format=vendor.format,
        data=vendor.quote,
        file="quote.bin",
        endorsements=(("collateral.json", vendor.bundle),),
        anchors=(("root.der", vendor.certificate("root")),),
        roots={vendor.format: vendor.roots},
        measurement=fields["mr_td" if vendor.tdx else "mr_enclave"].hex(),
        report_data=fields["report_data"],
    )


def snp(machine: Machine | None = None) -> Minted:
    """An SEV-SNP report with the certificates of its chip."""
    machine = machine or Machine()
    report = machine.report
    leaf, chain = machine.endorsements
    return Minted(
        format="snp",
        data=report,
        file="report.bin",
        endorsements=(("leaf.der", leaf[1]), ("chain.pem", chain[1])),
        anchors=((f"ark-{machine.product.lower()}.der", fake_amd.root_der(machine.product)),),
        roots={"snp": (sha256(fake_amd.root_der(machine.product)),)},
        measurement=report[0x90:0xC0].hex(),
        report_data=report[0x50:0x90],
    )


def quoted(machine: Tpm | bytes, *, named: tuple[str, ...] = (tpm.ROOT_DIGEST,)) -> Minted:
    """A TPM's document, under the maker's root or whatever is `named`."""
    data = machine if isinstance(machine, bytes) else machine.document
    return Minted(
        format="tpm",
        data=data,
        file="evidence.json",
        anchors=(("maker-root.der", tpm.ROOT_DER),),
        roots={"tpm": named},
        report_data=tpm.QUALIFYING if isinstance(machine, bytes) else machine.qualifying,
    )


def document(data: bytes | None = None, **changes: object) -> Minted:
    """A Nitro document: `data`, or one with members changed."""
    return Minted(
        format="nitro",
        data=nitro.mint(**changes) if data is None else data,
        file="document.cose",
        anchors=(("root.der", nitro.CHAIN[0]),),
        roots={"nitro": (nitro.ROOT,)},
        measurement=nitro.PCR0.hex(),
        report_data=nitro.REPORT_DATA,
    )


def azure(cloud: Cloud | None = None) -> Minted:
    """The document of an Azure confidential machine."""
    cloud = cloud or Cloud()
    if cloud.tee == "snp":
        below = snp(cloud.snp)
        stapled = below.endorsements[1:]
    else:
        below = dcap(cloud.intel)
        stapled = below.endorsements
    return Minted(
        format="azure",
        data=cloud.document,
        file="evidence.json",
        endorsements=stapled,
        anchors=below.anchors,
        roots={"azure": below.roots[below.format]},
        report_data=cloud.vtpm.qualifying,
    )


def ratls_certificate(der: bytes, vendor: Intel = SGX) -> Minted:
    """A certificate with evidence in it; its quotes are `vendor`'s, whose collateral is stapled."""
    return Minted(
        format="ra-tls",
        data=der,
        file="certificate.der",
        endorsements=(("collateral.json", vendor.bundle),),
        anchors=(("intel-root.der", vendor.certificate("root")), ("nitro-root.der", nitro.CHAIN[0])),
        roots={"sgx": vendor.roots, "tdx": vendor.roots, "nitro": (nitro.ROOT,)},
    )


def sworn(digest: bytes, vendor: Intel = SGX) -> bytes:
    """A quote of `vendor` with `digest` for its report data, filled up with zeros."""
    return vendor.but(body={"report_data": digest.ljust(64, b"\0")}).quote


def sim(data: bytes | None = None, server: Server | None = None) -> Minted:
    """Simulated evidence. Its root is the policy's to name."""
    server = server or Server()
    return Minted(
        format="sim",
        data=server.evidence.data if data is None else data,
        file="evidence.json",
        measurement=server.measurement,
    )


def sha256(data: bytes) -> str:
    """How anchors are named."""
    return hashlib.sha256(data).hexdigest()
