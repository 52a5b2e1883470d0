"""Fuzz targets of SEV-SNP evidence and of the certificates below every hardware format.

Oracle: a value or a `strongroom.errors.Error`, nothing else. Where there is more to say, the target says it: claims
come only out of the report that was signed, and are its own; what a certificate was read from is all there is of it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

from fake_amd import Machine, certificate_table, roots
from fake_x509 import NOW, pem, revocation_list, rsa_key

from strongroom.attest import der
from strongroom.attest.evidence import Absent, Claims
from strongroom.attest.snp import examine_snp
from strongroom.attest.snp_report import parse_certificate_table, parse_report
from strongroom.attest.x509 import parse_certificate, parse_revocation_list, sort_documents
from strongroom.errors import Error

MACHINES = (Machine(), Machine(product="Genoa", kind="VLEK"), Machine(product="Turin", version=5))
GENUINE = {machine.report: machine.endorsements for machine in MACHINES}
CLAIMS = {
    report: examine_snp(report, endorsements=stapled, roots=roots(), now=NOW).claims
    for report, stapled in GENUINE.items()
}
REPORT, STAPLED = next(iter(GENUINE.items()))
LEAF = STAPLED[0][1]
LIST = revocation_list("ARK-Milan", rsa_key("ark"), [1, 2, 300])
TABLE = certificate_table(("VCEK", LEAF), ("other", b"x"), ("ARK", MACHINES[0].root_der))

SEEDS = {
    "fuzz_snp_report": tuple(GENUINE),
    "fuzz_snp_endorsement": (LEAF, STAPLED[1][1], pem(LEAF) + STAPLED[1][1], TABLE, LIST),
    "fuzz_certificate": (LEAF, MACHINES[0].issuer_der, MACHINES[1].leaf_der),
    "fuzz_revocation_list": (LIST,),
    "fuzz_certificate_table": (TABLE,),
    "fuzz_documents": (pem(LEAF) + pem(LIST, "X509 CRL"), LEAF, LIST),
    "fuzz_der": (LEAF, b"\x02\x01\x00", b"\x06\x03\x2a\x03\x04", b"\x17\x0d250101000000Z"),
}


def fuzz_snp_report(data: bytes) -> None:
    """Nothing raises, and claims come only out of the reports that were signed."""
    for stapled in GENUINE.values():
        found = examine_snp(data, endorsements=stapled, roots=roots(), now=NOW)
        assert isinstance(found.claims, Absent) or found.claims == CLAIMS[data]
    try:
        parse_report(data)
    except Error:
        return


def fuzz_snp_endorsement(data: bytes) -> None:
    """Nothing raises, and no document beside the genuine ones, or instead of one, changes what is claimed."""
    for stapled in (
        (*STAPLED, ("x", data)),
        (STAPLED[0], ("x", data)),
        (STAPLED[1], ("x", data)),
        (("x", data),),
    ):
        claims = examine_snp(REPORT, endorsements=stapled, roots=roots(), now=NOW).claims
        assert isinstance(claims, Absent) or _said(claims) == _said(CLAIMS[REPORT])


def _said(claims: Claims | Absent) -> object:
    """The claims without what depends on the documents: whether a revocation list was among them."""
    return isinstance(claims, Claims) and replace(
        claims, details=tuple(d for d in claims.details if d[0] != "revocation")
    )


def fuzz_certificate(data: bytes) -> None:
    """A certificate that was read is these bytes, and its body is in them."""
    try:
        read = parse_certificate(data)
    except Error:
        return
    assert read.der == data and read.tbs in data and read.spki in read.tbs


def fuzz_revocation_list(data: bytes) -> None:
    """A list that was read is these bytes, and its body is in them."""
    try:
        read = parse_revocation_list(data)
    except Error:
        return
    assert read.der == data and read.tbs in data


def fuzz_certificate_table(data: bytes) -> None:
    """What is in a table is in its bytes."""
    try:
        found = parse_certificate_table(data)
    except Error:
        return
    assert found and all(entry in data for _, entry in found)


def fuzz_documents(data: bytes) -> None:
    """A document is certificates, lists, or another one; never two of these."""
    try:
        found = sort_documents((("x", data),))
    except Error:
        return
    assert bool(found.others) != bool(found.certificates or found.revocation_lists)


def fuzz_der(data: bytes) -> None:
    """Every reader of an element gives a value of its type or refuses."""
    for method in ("integer", "boolean", "oid", "time"):
        try:
            getattr(der.Reader(data, what="fuzz", code="certificate_malformed"), method)("x")
        except Error:
            continue
