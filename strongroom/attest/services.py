"""The vendors' services, without the network: what to ask for a need, and how to read what they answer
(docs/endorsements.md §4).

Intel's provisioning certification service (PCS, API version 4) and caches of it (PCCS); AMD's key distribution
service (KDS, document 57230). Pure, and nothing is verified: the verifiers do that.

Rules of this file:

1. Paths are made of names that this package knows and of bytes as hex, never of a stranger's text.
2. An answer becomes a document in the one form that the verifiers read, with nothing else in it, or it is refused.
3. A document that is for something else is refused here already (`fetch_mismatch`), so that no cache keeps it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn
from urllib.parse import unquote_to_bytes

from strongroom.attest.certificate import parse_certificate, parse_revocation_list
from strongroom.attest.collateral import parse_collateral
from strongroom.attest.needs import DcapCollateral, Need, SnpChain, SnpRevocationList, Vcek
from strongroom.attest.pck import PCK_CAS, ROOT, pem
from strongroom.attest.snp import HARDWARE_ID, certified_tcb
from strongroom.attest.strict import canonical
from strongroom.attest.x509 import pem_blocks, sort_documents
from strongroom.errors import MalformedInput

PCS, ROOT_LIST, KDS = "pcs", "root-list", "kds"
"""Services by name. The root's revocation list is one of its own: Intel has it on another host than the rest, a PCCS on
the same.
"""
MAX_COLLATERAL: Final = 128 * 1024
"""Bytes of one answer of a PCS; TCB infos have about 15,000, revocation lists up to 60,000."""
MAX_CERTIFICATE: Final = 8 * 1024
"""Bytes of one certificate; those of chips have about 1,400."""
MAX_CHAIN: Final = 16 * 1024
"""Bytes of a chain, in PEM, and percent-encoded in a header; both kinds have about 4,500."""
_LINE: Final = 64

_TCB_HEADERS: Final = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
"""Its name in version 4, and in version 3, which some caches have kept."""
_QE_HEADERS: Final = ("sgx-enclave-identity-issuer-chain",)
_CRL_HEADERS: Final = ("sgx-pck-crl-issuer-chain",)


@dataclass(frozen=True, slots=True)
class Question:
    """A `GET`: which service, path and query, and how many bytes its answer may have."""

    service: str
    path: str
    limit: int


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with status 200: its body, and its headers by lower-case name."""

    body: bytes
    headers: Mapping[str, str]


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"the answer: {why}", code="fetch_malformed")


def _other(why: str) -> NoReturn:
    raise MalformedInput(f"the answer is for {why}", code="fetch_mismatch")


def plans(need: Need) -> tuple[tuple[Question, ...], ...]:
    """Returns the questions whose answers make the document for `need`. Of several plans, a later one is for where
    the service knows nothing under the earlier one.
    """
    match need:
        case DcapCollateral(tee, fmspc, authority):
            return (
                (
                    Question(PCS, f"/{tee}/certification/v4/tcb?fmspc={fmspc.hex().upper()}", MAX_COLLATERAL),
                    Question(PCS, f"/{tee}/certification/v4/qe/identity", MAX_COLLATERAL),
                    Question(
                        PCS, f"/sgx/certification/v4/pckcrl?ca={authority}&encoding=der", MAX_COLLATERAL
                    ),
                    Question(ROOT_LIST, "/sgx/certification/v4/rootcacrl", MAX_COLLATERAL),
                ),
            )
        case Vcek(products, hardware_id, tcb):
            query = "&".join(f"{name}SPL={value:02d}" for name, value in tcb)
            paths = (f"/vcek/v1/{product}/{hardware_id.hex()}?{query}" for product in products)
            return tuple((Question(KDS, path, MAX_CERTIFICATE),) for path in paths)
        case SnpChain(product, kind):
            return ((Question(KDS, f"/{kind.lower()}/v1/{product}/cert_chain", MAX_CHAIN),),)
        case SnpRevocationList(product, kind):
            return ((Question(KDS, f"/{kind.lower()}/v1/{product}/crl", MAX_COLLATERAL),),)


def assemble(need: Need, replies: tuple[Reply, ...]) -> bytes:
    """Returns the document that the answers to one of the `plans` of `need` make.

    Raises:
        MalformedInput: `fetch_malformed`, they are not what was asked for; `fetch_mismatch`, for something else.
    """
    if isinstance(need, DcapCollateral):
        data = _bundle(replies)
    elif isinstance(need, SnpChain):
        certificates = sort(replies[0].body)
        data = b"".join(
            pem(certificates[name], width=_LINE) for name in _chain_names(need) if name in certificates
        )
    elif isinstance(need, SnpRevocationList):
        data = read_list(replies[0].body)
    else:
        data = replies[0].body
    check_document(need, data)
    return data


def check_document(need: Need, data: bytes) -> None:
    """Checks that `data` is a document for `need`, by its form and by what it says that it is for.

    Raises:
        MalformedInput: `fetch_malformed` or `fetch_mismatch`.
    """
    try:
        match need:
            case DcapCollateral():
                _check_bundle(need, data)
            case Vcek():
                _check_vcek(need, data)
            case SnpChain():
                if tuple(sort(data)) != _chain_names(need):
                    _other("another chain")
            case SnpRevocationList(product, _):
                if parse_revocation_list(data).issuer_name != f"ARK-{product}":
                    _other("another product")
    except MalformedInput as exc:
        if exc.code.startswith("fetch_"):
            raise
        raise MalformedInput(f"the answer: {exc.message}", code="fetch_malformed") from exc


def _check_bundle(need: DcapCollateral, data: bytes) -> None:
    bundle = parse_collateral(data)
    info = bundle.tcb_info
    if (info.tee, info.fmspc) != (need.tee, need.fmspc):
        _other(f"another platform, {info.tee} {info.fmspc.hex()}")
    if bundle.qe_identity.tee != need.tee:
        _other("another TEE's quoting enclave")
    issuers = [parse_revocation_list(one).issuer_name for one in (bundle.root_ca_crl, bundle.pck_crl)]
    if issuers[0] != ROOT or PCK_CAS.get(issuers[1]) != need.authority:
        _other("another authority's certificates")


def _check_vcek(need: Vcek, data: bytes) -> None:
    leaf = parse_certificate(data)
    if leaf.common_name != "SEV-VCEK":
        _other("another kind of key")
    if leaf.extension(HARDWARE_ID) != need.hardware_id:
        _other("another chip")
    certified = certified_tcb(leaf)
    if any(certified.get(part) != value for part, value in need.tcb):
        _other("another TCB")


def _chain_names(need: SnpChain) -> tuple[str, str]:
    issuer = f"SEV-{need.product}" if need.kind == "VCEK" else f"SEV-VLEK-{need.product}"
    return issuer, f"ARK-{need.product}"


def sort(data: bytes) -> dict[str, bytes]:
    """Returns the certificates in a PEM text by their common names; of two with one name the first.

    Raises:
        MalformedInput: `fetch_malformed`.
    """
    try:
        documents = sort_documents((("chain", data),))
    except MalformedInput as exc:
        raise MalformedInput(f"the answer: {exc.message}", code="fetch_malformed") from exc
    found: dict[str, bytes] = {}
    for certificate in documents.certificates:
        found.setdefault(certificate.common_name, certificate.der)
    return found


def valid_until(need: Need, data: bytes) -> datetime | None:
    """Returns until when a document for `need` that `check_document` passed is worth keeping: the earliest next update
    that it states. None: for ever, it is a certificate.

    Raises:
        MalformedInput: a date is missing or cannot be read.
    """
    match need:
        case DcapCollateral():
            bundle = parse_collateral(data)
            lists = (parse_revocation_list(bundle.root_ca_crl), parse_revocation_list(bundle.pck_crl))
            ends = [one.next_update for one in lists]
            return min(
                _stated(end) for end in [bundle.tcb_info.next_update, bundle.qe_identity.next_update, *ends]
            )
        case SnpRevocationList():
            return _stated(parse_revocation_list(data).next_update)
        case Vcek() | SnpChain():
            return None


def _stated(end: datetime | None) -> datetime:
    if end is None:
        _refuse("a revocation list that does not say when the next one comes")
    return end


# --- the bundle ---------------------------------------------------------------------------------------------


def _bundle(replies: tuple[Reply, ...]) -> bytes:
    """The DCAP bundle that four answers make: TCB info, QE identity, PCK revocation list, the root's list."""
    tcb_info, qe_identity, pck_list, root_list = replies
    info, info_signature = read_signed(tcb_info.body, "tcbInfo")
    identity, identity_signature = read_signed(qe_identity.body, "enclaveIdentity")
    return canonical(
        {
            "pck_crl_issuer_chain": read_chain_header(pck_list.headers, _CRL_HEADERS),
            "root_ca_crl": read_list(root_list.body).hex(),
            "pck_crl": read_list(pck_list.body).hex(),
            "tcb_info_issuer_chain": read_chain_header(tcb_info.headers, _TCB_HEADERS),
            "tcb_info": info,
            "tcb_info_signature": info_signature,
            "qe_identity_issuer_chain": read_chain_header(qe_identity.headers, _QE_HEADERS),
            "qe_identity": identity,
            "qe_identity_signature": identity_signature,
        }
    )


def read_signed(body: bytes, member: str) -> tuple[str, str]:
    """Returns the text of the document and its signature (hex) in `{"<member>": {…}, "signature": "…"}`.

    The signature is over the document's very characters, so they are cut out, not read and written again. Where the
    document ends is found by reading it; `collateral` reads it strictly.

    Raises:
        MalformedInput: `fetch_malformed`.
    """
    try:
        text = body.decode("utf-8")
        head = re.match(rf'\s*\{{\s*"{member}"\s*:\s*(?=\{{)', text)
        if head is None:
            _refuse(f"expected a JSON object that begins with {member}")
        _, end = json.JSONDecoder().raw_decode(text, head.end())
    except (ValueError, RecursionError):
        # `from None`: the foreign exceptions carry the document.
        raise MalformedInput(f"the answer: {member} is not JSON in UTF-8", code="fetch_malformed") from None
    tail = re.fullmatch(r'\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]{128})"\s*\}\s*', text[end:])
    if tail is None:
        _refuse(f"expected a signature of 64 bytes in hex behind {member}, and nothing else")
    return text[head.end() : end], tail[1].lower()


def read_chain_header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Returns the percent-encoded PEM chain in the first of the headers `names` that is there, in its one spelling.

    Raises:
        MalformedInput: `fetch_malformed`, none is there, or what is there is no chain.
    """
    value = next((headers[name] for name in names if name in headers), None)
    if value is None:
        _refuse(f"no header {names[0]}")
    if re.fullmatch(rf"[ -~]{{1,{MAX_CHAIN}}}", value) is None:
        _refuse(f"{names[0]}: expected at most {MAX_CHAIN} characters of ASCII")
    try:
        blocks = pem_blocks(unquote_to_bytes(value))
    except MalformedInput as exc:
        raise MalformedInput(f"the answer: {names[0]}: {exc.message}", code="fetch_malformed") from exc
    if not blocks or any(label != "CERTIFICATE" for label, _ in blocks):
        _refuse(f"{names[0]}: expected certificates in PEM")
    return b"".join(pem(der, width=_LINE) for _, der in blocks).decode("ascii")


def read_list(body: bytes) -> bytes:
    """Returns the DER of a revocation list that came as DER (PCS), as hex (most caches) or as PEM.

    Raises:
        MalformedInput: `fetch_malformed`.
    """
    if body[:1] == b"\x30":  # hex begins with the character 3
        return body
    text = body.strip()
    if re.fullmatch(rb"30(?:[0-9A-Fa-f]{2})+", text):
        return bytes.fromhex(text.decode("ascii"))
    try:
        blocks = pem_blocks(text)
    except MalformedInput as exc:
        raise MalformedInput(f"the answer: {exc.message}", code="fetch_malformed") from exc
    if len(blocks) != 1 or blocks[0][0] != "X509 CRL" or blocks[0][1][:1] != b"\x30":
        _refuse("expected a revocation list in DER, hex or PEM")
    return blocks[0][1]


__all__ = [
    "KDS", "PCS", "ROOT_LIST", "Question", "Reply", "assemble", "check_document", "plans", "read_chain_header",
    "read_list", "read_signed", "sort", "valid_until",
]  # fmt: skip
