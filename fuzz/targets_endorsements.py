"""Fuzz targets of fetched endorsements: answers of the vendors' services, documents in a cache, what is missing.

Oracle: a value or a `strongroom.errors.Error`, nothing else. Where there is more to say, the target says it: what was
cut out of an answer stands there, and what is asked for can be asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

from fake_amd import Machine, intermediate_der, root_der, roots
from fake_intel import NOW, SGX, TDX4
from fake_x509 import pem, revocation_list, rsa_key

from strongroom.attest.needs import DcapCollateral, SnpChain, SnpRevocationList, Vcek, missing
from strongroom.attest.services import (
    Reply,
    assemble,
    check_document,
    plans,
    read_chain_header,
    read_list,
    read_signed,
    valid_until,
)
from strongroom.errors import Error

MEMBERS = SGX.members
TCB_INFO = f'{{"tcbInfo":{MEMBERS["tcb_info"]},"signature":"{MEMBERS["tcb_info_signature"]}"}}'.encode()
IDENTITY = (
    f'{{"enclaveIdentity":{MEMBERS["qe_identity"]},"signature":"{MEMBERS["qe_identity_signature"]}"}}'
).encode()
HEADER = quote(MEMBERS["tcb_info_issuer_chain"]).encode()
LISTS = (SGX.crl("root"), SGX.crl("ca").hex().encode(), pem(SGX.crl("ca"), "X509 CRL"))
MACHINES = (Machine(), Machine(version=2), Machine(product="Turin"))
LEAF, CHAIN = MACHINES[0].leaf_der, pem(intermediate_der("Milan", "VCEK")) + pem(root_der("Milan"))
LIST = revocation_list("ARK-Milan", rsa_key("ark"), [1, 2])
ROOTS = (*roots(), *SGX.roots, *TDX4.roots)
EVIDENCE = (SGX.quote, TDX4.quote, *(m.report for m in MACHINES))
PLATFORM = DcapCollateral("sgx", SGX.fmspc, "platform")
NEEDS = (
    PLATFORM,
    Vcek(("Milan",), MACHINES[0].hardware_id, (("bl", 3), ("tee", 0), ("snp", 8), ("ucode", 115))),
    SnpChain("Milan", "VCEK"),
    SnpRevocationList("Milan", "VCEK"),
)

SEEDS = {
    "fuzz_pcs_answer": (TCB_INFO, IDENTITY),
    "fuzz_pcs_chain_header": (HEADER,),
    "fuzz_pcs_list": LISTS,
    "fuzz_fetched_document": (SGX.bundle, LEAF, CHAIN, LIST),
    "fuzz_needs_of_evidence": EVIDENCE,
    "fuzz_needs_beside_document": (SGX.bundle, LEAF, CHAIN, LIST),
}


def fuzz_pcs_answer(data: bytes) -> None:
    """The document and its signature stand in the answer as they came out."""
    for member in ("tcbInfo", "enclaveIdentity"):
        try:
            text, signature = read_signed(data, member)
        except Error:
            continue
        assert text.encode() in data and signature.encode() in data.lower()
    try:
        replies = (
            Reply(data, {"tcb-info-issuer-chain": HEADER.decode()}),
            Reply(IDENTITY, {"sgx-enclave-identity-issuer-chain": HEADER.decode()}),
            Reply(LISTS[1], {"sgx-pck-crl-issuer-chain": HEADER.decode()}),
            Reply(LISTS[0], {}),
        )
        assemble(PLATFORM, replies)
    except Error:
        return


def fuzz_pcs_chain_header(data: bytes) -> None:
    """A chain that was read has one spelling."""
    try:
        text = read_chain_header({"x": data.decode("latin-1")}, ("x",))
    except Error:
        return
    assert read_chain_header({"x": quote(text)}, ("x",)) == text


def fuzz_pcs_list(data: bytes) -> None:
    """DER, whatever it came as."""
    try:
        found = read_list(data)
    except Error:
        return
    assert found == data or read_list(found.hex().encode()) == found


def fuzz_fetched_document(data: bytes) -> None:
    """A document that is kept has a time until which it is; what answers a need is a document for it."""
    for need in NEEDS:
        try:
            check_document(need, data)
            valid_until(need, data)
        except Error:
            continue
    for need in NEEDS[1:]:
        try:
            made = assemble(need, (Reply(data, {}),))
        except Error:
            continue
        check_document(need, made)


def fuzz_needs_of_evidence(data: bytes) -> None:
    """What is asked for can be asked: an address of known words and hex."""
    for name in ("sgx", "tdx", "snp", "azure", "ra-tls"):
        found = missing(name, data, endorsements=(), roots=ROOTS, now=NOW)
        for need in found.needs:
            for question in (q for plan in plans(need) for q in plan):
                assert question.path.isascii() and not set(question.path) & set(" \r\n#@\\%")


def fuzz_needs_beside_document(data: bytes) -> None:
    """No document makes more missing than none does."""
    for name, evidence in (("sgx", EVIDENCE[0]), ("snp", EVIDENCE[2])):
        alone = missing(name, evidence, endorsements=(), roots=ROOTS, now=NOW)
        beside = missing(name, evidence, endorsements=(("x", data),), roots=ROOTS, now=NOW)
        assert set(beside.needs) <= set(alone.needs)
