"""What a quote's chain and its collateral show once their signatures verified (docs/spec/dcap.md §3 and §4).

Both functions are pure and remembered: a platform's chain and a bundle serve every quote of weeks, and their signatures
cost more than the rest together. Time, root and revocation change or are the policy's, so they are checked elsewhere,
each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from strongroom.attest.collateral import REMEMBERED, Collateral
from strongroom.attest.pck import (
    PCK,
    PCK_CAS,
    ROOT,
    SIGNING,
    PckFacts,
    common_name,
    fingerprint,
    key_of,
    load_chain,
    load_crl,
    parse_pck,
    parse_pem_chain,
    signed_by,
    validity,
)
from strongroom.errors import MalformedInput


@dataclass(frozen=True, slots=True)
class Platform:
    """What a quote's chain shows: its certificates (leaf, authority, root), what the leaf says, which authority, and
    the fingerprint of the root. Whether that root counts, and now, is checked elsewhere.
    """

    chain: tuple[x509.Certificate, ...]
    ders: tuple[bytes, ...]
    facts: PckFacts
    authority: str
    root: str


@dataclass(frozen=True, slots=True)
class Lists:
    """The two revocation lists, the signers of TCB info and identity, and when all collateral is valid."""

    root: x509.CertificateRevocationList
    pck: x509.CertificateRevocationList
    signers: tuple[x509.Certificate, ...]
    since: datetime
    until: datetime


@lru_cache(maxsize=REMEMBERED)
def read_chain(text: bytes) -> Platform:
    """Returns what the PEM chain of a quote shows.

    Raises:
        MalformedInput: code `pck_chain_invalid`.
    """
    ders = parse_pem_chain(text, nul=True)
    chain = load_chain(ders, ((PCK,), tuple(PCK_CAS), (ROOT,)), code="pck_chain_invalid")
    return Platform(
        chain=chain,
        ders=ders,
        facts=parse_pck(chain[0]),
        authority=PCK_CAS[common_name(chain[1])],
        root=fingerprint(ders[-1]),
    )


@lru_cache(maxsize=REMEMBERED)
def verify_collateral(collateral: Collateral, authority_der: bytes, root_der: bytes) -> Lists:
    """Returns the revocation lists and signers, once every signature verified under the very root of the quote's
    chain and, for the PCK list, the very authority.

    Raises:
        MalformedInput: code `collateral_malformed` or `collateral_signature_invalid`.
    """
    code = "collateral_signature_invalid"
    authority, root = x509.load_der_x509_certificate(authority_der), x509.load_der_x509_certificate(root_der)
    info, identity = collateral.tcb_info, collateral.qe_identity
    ends = [(info.issued, info.next_update), (identity.issued, identity.next_update)]
    signers = []
    for name, ders, signature, document in (
        (
            "TCB info",
            collateral.tcb_info_issuer_chain,
            collateral.tcb_info_signature,
            collateral.tcb_info_bytes,
        ),
        (
            "QE identity",
            collateral.qe_identity_issuer_chain,
            collateral.qe_identity_signature,
            collateral.qe_identity_bytes,
        ),
    ):
        if ders[-1:] != (root_der,):
            raise MalformedInput(f"{name}: its chain ends at another root than the quote's", code=code)
        chain = load_chain(ders, ((SIGNING,), (ROOT,)), code=code)
        if not signed_by(key_of(chain[0]), signature, document):
            raise MalformedInput(f"{name}: its signature does not verify", code=code)
        signers.append(chain[0])
        ends.append(validity(chain))
    if collateral.pck_crl_issuer_chain[-1:] != (root_der,):
        raise MalformedInput("PCK CRL: its chain ends at another root than the quote's", code=code)
    issuer = load_chain(collateral.pck_crl_issuer_chain, (tuple(PCK_CAS), (ROOT,)), code=code)
    if common_name(issuer[0]) != common_name(authority) or key_of(issuer[0]) != key_of(authority):
        raise MalformedInput("PCK CRL: its chain is of another authority than the quote's", code=code)
    ends.append(validity(issuer))
    root_list = load_crl(collateral.root_ca_crl, root, name="root CRL")
    pck_list = load_crl(collateral.pck_crl, authority, name="PCK CRL")
    ends += [
        (crl.last_update_utc, crl.next_update_utc or crl.last_update_utc) for crl in (root_list, pck_list)
    ]
    return Lists(
        root=root_list,
        pck=pck_list,
        signers=tuple(signers),
        since=max(since for since, _ in ends),
        until=min(until for _, until in ends),
    )
