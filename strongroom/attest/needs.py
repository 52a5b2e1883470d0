"""What is missing: the documents that a verifier of this evidence will ask for and that are not at hand
(docs/endorsements.md §2).

Pure: evidence, documents, accepted roots and one time go in, frozen values come out; nothing is fetched here.

Rules of this file:

1. A need is made of nothing but names that this package knows and bytes of a fixed size: whatever is made of it
   later (an address, a file's name) holds no text that a stranger chose.
2. Nothing is decided here. What is called missing or at hand changes what is asked for, never what is accepted: the
   verifier looks at every document again, and at everything else.
3. "At hand" means that the verifier would take it: signed up to an accepted root as far as the documents show, and
   valid now. So a document that was forged or ran out is missing.
4. Where fetching cannot help there are no needs: the verifier refuses the evidence, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from strongroom.attest import azure
from strongroom.attest.certificate import Certificate, RevocationList
from strongroom.attest.collateral import select_collateral
from strongroom.attest.dcap_trust import read_chain, verify_collateral
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.pck import PCK_CAS
from strongroom.attest.quote import SGX, TDX, parse_quote
from strongroom.attest.ratls_forms import find_evidence, parse_certificate
from strongroom.attest.snp import KINDS, is_signed_by, read_documents
from strongroom.attest.snp_report import (
    GENOA,
    MILAN,
    PRODUCTS,
    TURIN,
    Report,
    parse_report,
    product_of,
    tcb_parts,
)
from strongroom.attest.verifiers import endorsements_for, split_manifests
from strongroom.attest.x509 import Chain, Documents, check_revocation, verify_chain
from strongroom.errors import MalformedInput

VCEK, VLEK = KINDS
HARDWARE_ID_SIZES: Final = {MILAN: 64, GENOA: 64, TURIN: 8}
"""Bytes of a chip's identity by product, as its certificate and AMD's service have it."""
WITHOUT_CPUID: Final = (MILAN, GENOA)
"""Products whose reports of version 2 do not say which product they are of. Their TCB versions have one layout."""
_PARTS: Final = ("fmc", "bl", "tee", "snp", "ucode")

VLEK_IS_THE_CLOUDS: Final = (
    "the report is signed with a VLEK, whose certificate AMD gives to the cloud alone: "
    "the server has to send it"
)
CHIP_IS_HIDDEN: Final = (
    "the report does not say which chip it is of, so nobody can be asked for its certificate"
)


@dataclass(frozen=True, slots=True)
class DcapCollateral:
    """Intel's signed word on one kind of platform, as one DCAP bundle. `tee`: "sgx" or "tdx"; `fmspc`: 6 bytes;
    `authority`: who issued its certificate, "platform" or "processor".
    """

    tee: str
    fmspc: bytes
    authority: str

    def __post_init__(self) -> None:
        if self.tee not in (SGX, TDX) or len(self.fmspc) != 6 or self.authority not in PCK_CAS.values():
            raise ValueError("not a kind of platform that Intel has collateral for")

    @property
    def required(self) -> bool:
        """Whether the verifier refuses without it."""
        return True

    @property
    def key(self) -> str:
        """A name for it: lower-case letters, digits, hyphens."""
        return f"dcap-{self.tee}-{self.fmspc.hex()}-{self.authority}"

    @property
    def label(self) -> str:
        """What it is, for a person."""
        return f"DCAP collateral for {self.tee} {self.fmspc.hex()} ({self.authority})"


@dataclass(frozen=True, slots=True)
class Vcek:
    """The certificate of the key of one chip at one TCB. `products`: the one it is of, or those that it may be of;
    `hardware_id`: 64 bytes, 8 for Turin; `tcb`: parts of the reported TCB version, as (name, value).
    """

    products: tuple[str, ...]
    hardware_id: bytes
    tcb: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        sizes = {HARDWARE_ID_SIZES.get(product) for product in self.products}
        if sizes != {len(self.hardware_id)}:
            raise ValueError("not the identity of a chip of a known product")
        if not all(name in _PARTS and 0 <= value <= 255 for name, value in self.tcb):
            raise ValueError("not a TCB version")

    @property
    def required(self) -> bool:
        """Whether the verifier refuses without it."""
        return True

    @property
    def key(self) -> str:
        """A name for it: lower-case letters, digits, hyphens."""
        tcb = "-".join(f"{name}{value}" for name, value in self.tcb)
        return f"vcek-{'-'.join(self.products).lower()}-{self.hardware_id.hex()}-{tcb}"

    @property
    def label(self) -> str:
        """What it is, for a person."""
        tcb = " ".join(f"{name}={value}" for name, value in self.tcb)
        return f"VCEK of a {' or '.join(self.products)} chip {self.hardware_id.hex()[:16]} at {tcb}"


@dataclass(frozen=True, slots=True)
class _OfProduct:
    """A document of AMD's about the issuer of VCEKs or VLEKs (`kind`) of one product."""

    product: str
    kind: str

    def __post_init__(self) -> None:
        if self.product not in PRODUCTS or self.kind not in KINDS:
            raise ValueError("not a product of AMD's")


@dataclass(frozen=True, slots=True)
class SnpChain(_OfProduct):
    """The issuer of VCEKs or VLEKs (`kind`) of one product, and AMD's root."""

    @property
    def required(self) -> bool:
        """Whether the verifier refuses without it."""
        return True

    @property
    def key(self) -> str:
        """A name for it: lower-case letters, digits, hyphens."""
        return f"{self.kind}-chain-{self.product}".lower()

    @property
    def label(self) -> str:
        """What it is, for a person."""
        return f"issuers of {self.product} {self.kind}s"


@dataclass(frozen=True, slots=True)
class SnpRevocationList(_OfProduct):
    """AMD's list of revoked issuers of VCEKs or VLEKs (`kind`) of one product. The verifier looks at one where it is
    there, a verdict says where none was, and a policy can demand it.
    """

    @property
    def required(self) -> bool:
        """Whether the verifier refuses without it."""
        return False

    @property
    def key(self) -> str:
        """A name for it: lower-case letters, digits, hyphens."""
        return f"{self.kind}-crl-{self.product}".lower()

    @property
    def label(self) -> str:
        """What it is, for a person."""
        return f"revocation list for {self.product} {self.kind}s"


Need: TypeAlias = DcapCollateral | Vcek | SnpChain | SnpRevocationList


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not at hand: `needs` could be fetched; `unobtainable` says of the rest why nobody can be asked."""

    needs: tuple[Need, ...] = ()
    unobtainable: tuple[str, ...] = ()


NOTHING: Final = Missing()


def missing(
    evidence_format: str,
    data: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: datetime,
) -> Missing:
    """Returns which documents a verifier of `data` (evidence of `evidence_format`) lacks beside `endorsements`, at
    `now`; `roots`: fingerprints of the vendors' roots that are accepted.

    | format | may be missing |
    | --- | --- |
    | `sgx`, `tdx` | the DCAP bundle for the platform; also where the one at hand is not valid now |
    | `snp` | the VCEK, the chain of its issuer, the revocation list. A VLEK cannot be fetched, its chain can |
    | `azure` | what the report or quote inside lacks |
    | `ra-tls` | what the evidence in the certificate lacks |
    | `nitro` | nothing: the document carries its own certificates |
    | `tpm` | nothing that could be fetched: no service has the certificates of every maker's TPMs |
    | `sim`, others | nothing |

    Malformed evidence, and evidence with endorsements that cannot be read, lacks nothing. Release manifests and event
    logs among the endorsements are passed over.
    """
    _, endorsements = split_manifests(endorsements)
    try:
        match evidence_format:
            case "sgx" | "tdx":
                return _of_quote(data, evidence_format, endorsements, roots=roots, now=now)
            case "snp":
                return _of_report(data, endorsements, roots=roots, now=now)
            case "azure":
                return _of_azure(data, endorsements, roots=roots, now=now)
            case "ra-tls":
                return _of_certificate(data, endorsements, roots=roots, now=now)
            case _:
                return NOTHING
    except MalformedInput:
        return NOTHING  # its verifier refuses it, and says why


def _of_quote(
    data: bytes,
    tee: str,
    endorsements: tuple[tuple[str, bytes], ...],
    *,
    roots: tuple[str, ...],
    now: datetime,
) -> Missing:
    quote = parse_quote(data)
    platform = read_chain(quote.pck_chain)
    if quote.tee != tee or platform.root not in roots:
        return NOTHING
    if tee == TDX:
        endorsements = tuple(e for e in endorsements if not is_event_log(e[1]))
    need = Missing((DcapCollateral(tee, platform.facts.fmspc, platform.authority),))
    try:
        collateral = select_collateral(endorsements, tee=tee, fmspc=platform.facts.fmspc)
    except MalformedInput as exc:
        return need if exc.code == "collateral_missing" else NOTHING
    try:
        lists = verify_collateral(collateral, *platform.ders[1:])
    except MalformedInput:
        return need
    return NOTHING if lists.since <= now < lists.until else need


def _of_azure(
    data: bytes, endorsements: tuple[tuple[str, bytes], ...], *, roots: tuple[str, ...], now: datetime
) -> Missing:
    document = azure.parse_azure(data)
    inside = tuple((f"certificate-{i}", c) for i, c in enumerate(document.certificates)) + endorsements
    if document.hcl.tee == TDX:
        return _of_quote(document.td_quote, TDX, inside, roots=roots, now=now)
    return _of_report(document.hcl.hardware, inside, roots=roots, now=now)


def _of_certificate(
    data: bytes, endorsements: tuple[tuple[str, bytes], ...], *, roots: tuple[str, ...], now: datetime
) -> Missing:
    found = [
        missing(
            one.format,
            one.data,
            endorsements=endorsements_for(one.format, one.data, endorsements),
            roots=roots,
            now=now,
        )
        for one in find_evidence(parse_certificate(data), now=now)
    ]
    return Missing(
        tuple(dict.fromkeys(need for one in found for need in one.needs)),
        tuple(dict.fromkeys(why for one in found for why in one.unobtainable)),
    )


# --- SEV-SNP ------------------------------------------------------------------------------------------------


def _of_report(
    data: bytes, endorsements: tuple[tuple[str, bytes], ...], *, roots: tuple[str, ...], now: datetime
) -> Missing:
    report = parse_report(data)
    if report.signing_key >= len(KINDS) or report.chip_key_masked:
        return NOTHING  # no key of AMD's has signed it
    kind = KINDS[report.signing_key]
    documents = read_documents(endorsements)
    leaf = _leaf(documents, report, kind)
    named = product_of(report.cpuid) if report.cpuid is not None else _issuer_product(leaf)
    if report.cpuid is not None and named is None:
        return NOTHING  # a product that is not known here
    chain = _chain(documents, named, kind, roots=roots, now=now) if named is not None else None
    if chain is not None and leaf is not None:
        verified = verify_chain(leaf, others=documents.certificates, roots=roots, now=now)
        leaf = leaf if verified.passed else None
    needs: list[Need] = []
    if leaf is None:
        if kind == VLEK:
            return Missing(unobtainable=(VLEK_IS_THE_CLOUDS,))
        vcek = _vcek(report, (named,) if named is not None else WITHOUT_CPUID)
        if vcek is None:
            return Missing(unobtainable=(CHIP_IS_HIDDEN,))
        needs.append(vcek)
    if named is not None:
        if chain is None:
            needs.append(SnpChain(named, kind))
        if not any(_is_current(one, named, chain, now) for one in documents.revocation_lists):
            needs.append(SnpRevocationList(named, kind))
    return Missing(tuple(needs))


def _leaf(documents: Documents, report: Report, kind: str) -> Certificate | None:
    """The certificate that the verifier takes: of those whose key signed the report, the one that lasts longest."""
    signers = [
        c for c in documents.certificates if c.common_name == f"SEV-{kind}" and is_signed_by(report, c)
    ]
    return max(signers, key=lambda c: c.not_after, default=None)


def _issuer_product(leaf: Certificate | None) -> str | None:
    """The product that a chip's certificate names as its issuer, the only one of a report of version 2."""
    product = "" if leaf is None else leaf.issuer_name.removeprefix("SEV-").removeprefix("VLEK-")
    return product if product in PRODUCTS else None


def _chain(
    documents: Documents, product: str, kind: str, *, roots: tuple[str, ...], now: datetime
) -> Chain | None:
    """The chain from the issuer of such leaves to an accepted root, None where it is not there."""
    issuer = f"SEV-{product}" if kind == VCEK else f"SEV-VLEK-{product}"
    for one in documents.certificates:
        if one.common_name == issuer:
            chain = verify_chain(one, others=documents.certificates, roots=roots, now=now)
            if chain.passed and chain.root.common_name == f"ARK-{product}":
                return chain
    return None


def _is_current(one: RevocationList, product: str, chain: Chain | None, now: datetime) -> bool:
    """Whether a list is the root's, and of now. One that revokes is: there is nothing better to be had."""
    if chain is None:
        in_time = one.next_update is not None and one.this_update <= now <= one.next_update
        return one.issuer_name == f"ARK-{product}" and in_time
    checks = check_revocation(chain, lists=(one,), now=now)
    return any(c.passed or c.code == "chain_certificate_revoked" for c in checks)


def _vcek(report: Report, products: tuple[str, ...]) -> Vcek | None:
    """The need for a chip's certificate; None where the report hides the chip, or does not name one of the product."""
    size = HARDWARE_ID_SIZES[products[0]]
    hardware_id, rest = report.chip_id[:size], report.chip_id[size:]
    if not any(hardware_id) or any(rest):
        return None
    return Vcek(products, hardware_id, tcb_parts(report.reported_tcb, products[0]))


__all__ = [
    "CHIP_IS_HIDDEN", "NOTHING", "VLEK_IS_THE_CLOUDS", "DcapCollateral", "Missing", "Need", "SnpChain",
    "SnpRevocationList", "Vcek", "missing",
]  # fmt: skip
