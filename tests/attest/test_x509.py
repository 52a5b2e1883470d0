"""`attest.der`, `attest.certificate`, `attest.x509`: strict DER, certificates, and chains to a pinned root."""

from __future__ import annotations

import random
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import SHARED
from cryptography import x509 as reference
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fake_x509 import (
    NOW,
    SINCE,
    UNTIL,
    Mint,
    algorithm,
    basic_constraints,
    ec_key,
    extension,
    integer,
    key_usage,
    name,
    oid,
    pem,
    pss,
    revocation_list,
    rsa_key,
    sequence,
    time,
    tlv,
)

from strongroom.attest import der
from strongroom.attest.certificate import is_accepted, load_x509
from strongroom.attest.x509 import (
    MAX_CERTIFICATES,
    Certificate,
    Chain,
    check_revocation,
    no_chain,
    parse_certificate,
    parse_revocation_list,
    pem_blocks,
    sort_documents,
    verify_chain,
)
from strongroom.errors import MalformedInput

RECORDED = SHARED / "evidence"
P256 = ec.SECP256R1()
ECDSA = {"scheme": "ECDSA", "digest": "SHA-256"}
DAY = timedelta(days=1)
ROOT = Mint(
    subject="root",
    issuer="root",
    key=ec_key("root", P256),
    signer=ec_key("root", P256),
    extensions=(basic_constraints(None), key_usage(0x06)),
    **ECDSA,
)
MIDDLE = Mint(
    subject="middle",
    issuer="root",
    key=ec_key("middle", P256),
    signer=ec_key("root", P256),
    extensions=(basic_constraints(0), key_usage(0x06)),
    serial=5,
    **ECDSA,
)
LEAF = Mint(subject="leaf", issuer="middle", key=ec_key("leaf", P256), signer=ec_key("middle", P256), **ECDSA)
ROOT_READ, MIDDLE_READ, LEAF_READ = (parse_certificate(m.der) for m in (ROOT, MIDDLE, LEAF))


def chain_of(
    leaf: Mint = LEAF, *others: Mint, roots: tuple[str, ...] | None = None, now: datetime = NOW
) -> Chain:
    """The chain from `leaf` over the usual issuers, or `others` instead; the root among them is pinned."""
    read = tuple(parse_certificate(m.der) for m in others) if others else (MIDDLE_READ, ROOT_READ)
    pinned = tuple(c.fingerprint for c in read if c.subject == c.issuer) if roots is None else roots
    return verify_chain(parse_certificate(leaf.der), others=read, roots=pinned, now=now)


def failures(chain: Chain) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in chain.checks if not c.passed]


# Chains that are accepted


def test_a_chain_leads_from_leaf_to_root() -> None:
    """Six checks, the path in order, the end of what ends first."""
    chain = chain_of()
    assert chain.passed and failures(chain) == []
    assert [c.common_name for c in chain.path] == ["leaf", "middle", "root"]
    assert [c.id for c in chain.checks] == [
        f"chain.{w}" for w in ("path", "signatures", "authority", "critical", "validity", "root")
    ]
    assert (chain.root.fingerprint, chain.expires) == (ROOT_READ.fingerprint, UNTIL)


def test_the_name_of_the_chain_stands_in_its_checks() -> None:
    """For formats with several chains."""
    chain = verify_chain(LEAF_READ, others=(), roots=(), now=NOW, name="tcb.chain")
    assert {c.id.rpartition(".")[0] for c in chain.checks} == {"tcb.chain"}
    assert [c.id for c in no_chain(name="tcb.chain", why="x")] == [c.id for c in chain.checks]


@pytest.mark.parametrize("seed", range(5))
def test_order_and_company_do_not_matter(seed: int) -> None:
    """Others in any order, with others among them: also of the same name."""
    company = [
        MIDDLE.but(key=ec_key("x", P256)),
        ROOT.but(key=ec_key("y", P256), signer=ec_key("y", P256)),
        LEAF.but(subject="z"),
        MIDDLE.but(issuer="elsewhere", signer=ec_key("z", P256)),
        MIDDLE,
    ]
    random.Random(seed).shuffle(company)
    read = (*(parse_certificate(m.der) for m in company), ROOT_READ)
    chain = verify_chain(LEAF_READ, others=read, roots=(ROOT_READ.fingerprint,), now=NOW)
    assert chain.passed


def test_a_pinned_root_is_preferred() -> None:
    """Of two self-signed certificates of one key, the pinned one ends the chain."""
    again = parse_certificate(ROOT.but(serial=9).der)
    for others in ((MIDDLE_READ, again, ROOT_READ), (MIDDLE_READ, ROOT_READ, again)):
        assert verify_chain(LEAF_READ, others=others, roots=(ROOT_READ.fingerprint,), now=NOW).passed


@pytest.mark.parametrize(
    ("key", "scheme", "digest"),
    [
        (rsa_key("weak"), "RSA-PKCS1", "SHA-256"),
        (rsa_key("weak"), "RSA-PKCS1", "SHA-384"),
        (rsa_key("weak"), "RSA-PKCS1", "SHA-512"),
        (rsa_key("weak"), "RSA-PSS", "SHA-256"),
        (rsa_key("ark"), "RSA-PSS", "SHA-512"),
        (ec_key("a", P256), "ECDSA", "SHA-256"),
        (ec_key("a"), "ECDSA", "SHA-384"),
        (ec_key("a", ec.SECP521R1()), "ECDSA", "SHA-512"),
    ],
)
def test_accepted_algorithms(key: Any, scheme: str, digest: str) -> None:
    """RSA from 2048 bits, PKCS #1 v1.5 and PSS; ECDSA on three curves; SHA-2 from 256 bits."""
    root = ROOT.but(key=key, signer=key, scheme=scheme, digest=digest)
    assert chain_of(LEAF.but(issuer="root", signer=key, scheme=scheme, digest=digest), root).passed


def test_a_self_signed_pinned_leaf_is_a_chain_of_one() -> None:
    """The format that calls says how many certificates it expects."""
    chain = verify_chain(ROOT_READ, others=(), roots=(ROOT_READ.fingerprint,), now=NOW)
    assert chain.passed and len(chain.path) == 1


def test_null_parameters_of_ecdsa_are_read() -> None:
    """One TEE library writes them; the signature is the same."""
    null = sequence(oid("1.2.840.10045.4.3.2"), tlv(0x05))
    assert chain_of(LEAF.but(inner_algorithm=null)).passed


# Chains that are refused: one thing wrong


def deep(length: int) -> tuple[Mint, ...]:
    """Issuers i1 .. i<length> above the leaf, the last under the root."""
    key = ec_key("middle", P256)
    usual = {"key": key, "signer": key, "extensions": (basic_constraints(None),)}
    made = [MIDDLE.but(subject=f"i{n}", issuer=f"i{n + 1}", **usual) for n in range(1, length)]
    last = MIDDLE.but(subject=f"i{length}", key=key, extensions=(basic_constraints(None),))
    return (*made, last, ROOT)


REFUSED: dict[str, tuple[tuple[Mint, ...], str]] = {
    "leaf-corrupt": ((LEAF.but(corrupt=True),), "chain_signature_invalid"),
    "leaf-by-other-key": ((LEAF.but(signer=ec_key("x", P256)),), "chain_signature_invalid"),
    "middle-corrupt": ((LEAF, MIDDLE.but(corrupt=True), ROOT), "chain_signature_invalid"),
    "root-corrupt": ((LEAF, MIDDLE, ROOT.but(corrupt=True)), "chain_signature_invalid"),
    "root-self-issued-not-signed": (
        (LEAF, MIDDLE, ROOT.but(signer=ec_key("x", P256))), "chain_signature_invalid",
    ),
    "rsa-1024": (
        (LEAF.but(issuer="root", signer=rsa_key("tiny"), scheme="RSA-PKCS1"),
         ROOT.but(key=rsa_key("tiny"), signer=rsa_key("tiny"), scheme="RSA-PKCS1")),
        "chain_signature_invalid",
    ),
    "curve-not-listed": (
        (LEAF.but(issuer="root", signer=ec_key("k", ec.SECP256K1())),
         ROOT.but(key=ec_key("k", ec.SECP256K1()), signer=ec_key("k", ec.SECP256K1()))),
        "chain_signature_invalid",
    ),
    "algorithm-of-other-key": (
        (LEAF.but(inner_algorithm=algorithm("RSA-PKCS1", "SHA-256")),), "chain_signature_invalid",
    ),
    "hash-of-other-size": (
        (LEAF.but(inner_algorithm=algorithm("ECDSA", "SHA-384")),), "chain_signature_invalid",
    ),
    "issuer-not-ca": (
        (LEAF, MIDDLE.but(extensions=(basic_constraints(None, ca=False),)), ROOT), "chain_issuer_not_authority",
    ),
    "issuer-silent": ((LEAF, MIDDLE.but(extensions=()), ROOT), "chain_issuer_not_authority"),
    "root-silent": ((LEAF, MIDDLE, ROOT.but(extensions=())), "chain_issuer_not_authority"),
    "issuer-key-usage": (
        (LEAF, MIDDLE.but(extensions=(basic_constraints(0), key_usage(0x80))), ROOT),
        "chain_issuer_not_authority",
    ),
    "issuer-key-usage-none": (
        (LEAF, MIDDLE.but(extensions=(basic_constraints(0), extension("2.5.29.15", b"\x03\x01\x00"))), ROOT),
        "chain_issuer_not_authority",
    ),
    "root-path-length": (
        (LEAF, MIDDLE, ROOT.but(extensions=(basic_constraints(0),))), "chain_issuer_not_authority",
    ),
    "middle-path-length": (
        (LEAF.but(issuer="under", signer=ec_key("under", P256)),
         MIDDLE.but(subject="under", issuer="middle", key=ec_key("under", P256), signer=ec_key("middle", P256)),
         MIDDLE, ROOT),
        "chain_issuer_not_authority",
    ),
    "leaf-critical": (
        (LEAF.but(extensions=(extension("1.2.3.4", b"", critical=True),)),), "chain_critical_extension",
    ),
    "middle-critical-name-constraints": (
        (LEAF, MIDDLE.but(extensions=(basic_constraints(0), extension("2.5.29.30", b"\x30\x00", critical=True))),
         ROOT),
        "chain_critical_extension",
    ),
    "leaf-expired": ((LEAF.but(not_after=NOW - DAY),), "chain_not_valid_now"),
    "leaf-to-come": ((LEAF.but(not_before=NOW + DAY),), "chain_not_valid_now"),
    "middle-expired": ((LEAF, MIDDLE.but(not_after=NOW - DAY), ROOT), "chain_not_valid_now"),
    "root-expired": ((LEAF, MIDDLE, ROOT.but(not_after=NOW - DAY)), "chain_not_valid_now"),
}  # fmt: skip


@pytest.mark.parametrize("vector", sorted(REFUSED))
def test_one_thing_wrong_is_one_check_failed(vector: str) -> None:
    """Exactly the check of what is wrong fails."""
    mints, code = REFUSED[vector]
    assert failures(chain_of(*mints)) == [code]


@pytest.mark.parametrize(
    "roots",
    [
        (),
        ("",),
        ("00" * 32,),
        (ROOT_READ.fingerprint.upper(),),
        (MIDDLE_READ.fingerprint,),
        (LEAF_READ.fingerprint,),
        (ROOT_READ.fingerprint[:-2],),
    ],
    ids=["none", "empty", "zeros", "capitals", "middle", "leaf", "short"],
)
def test_only_a_pinned_root_is_accepted(roots: tuple[str, ...]) -> None:
    """No roots accept nothing; an issuer or a leaf is no root, whatever is pinned."""
    assert failures(chain_of(roots=roots)) == ["root_not_accepted"]


def test_a_remembered_signature_decides_nothing_but_itself() -> None:
    """A chain that passed is refused at another time, under other roots, and with another byte in a signature; one
    that was refused for its signature is refused again, and the good one passes again.
    """
    corrupt = LEAF.but(corrupt=True)
    for _ in range(2):
        assert chain_of().passed
        assert failures(chain_of(now=UNTIL + DAY)) == ["chain_not_valid_now"]
        assert failures(chain_of(roots=())) == ["root_not_accepted"]
        assert failures(chain_of(corrupt, MIDDLE, ROOT)) == ["chain_signature_invalid"]


def test_certificates_too_large_to_remember_are_verified_alike() -> None:
    """Above 8 KiB: a good signature passes, another does not, each time."""
    large = LEAF.but(extensions=(extension("1.2.3.4", b"\x04\x82\x23\x28" + bytes(9000)),))
    for _ in range(2):
        assert chain_of(large, MIDDLE, ROOT).passed
        assert failures(chain_of(large.but(corrupt=True), MIDDLE, ROOT)) == ["chain_signature_invalid"]


def test_a_root_of_the_same_name_is_another() -> None:
    """The whole certificate is pinned: neither name, nor key, nor serial number stand for it."""
    for changed in ({"serial": 2}, {"not_after": UNTIL + DAY}):
        again = parse_certificate(ROOT.but(**changed).der)
        chain = verify_chain(LEAF_READ, others=(MIDDLE_READ, again), roots=(ROOT_READ.fingerprint,), now=NOW)
        assert failures(chain) == ["root_not_accepted"]


@pytest.mark.parametrize("others", [(), (ROOT_READ,), (MIDDLE_READ,), (LEAF_READ,)], ids=range(4))
def test_missing_issuers_leave_the_chain_incomplete(others: tuple[Certificate, ...]) -> None:
    """The path fails, and with it what depends on it."""
    chain = verify_chain(LEAF_READ, others=others, roots=(ROOT_READ.fingerprint,), now=NOW)
    assert failures(chain) == ["chain_incomplete", "chain_signature_invalid", "root_not_accepted"]
    assert not chain.passed


def test_chains_have_a_length() -> None:
    """At most six certificates from leaf to root."""
    leaf = LEAF.but(issuer="i1")
    assert chain_of(leaf, *deep(4)).passed
    assert failures(chain_of(leaf, *deep(5)))[0] == "chain_incomplete"


def test_certificates_that_issue_each_other_end() -> None:
    """A circle is no chain."""
    one = MIDDLE.but(issuer="other")
    two = MIDDLE.but(subject="other", issuer="middle", signer=ec_key("middle", P256))
    assert failures(chain_of(LEAF, one, two, roots=("00" * 32,)))[0] == "chain_incomplete"


@pytest.mark.parametrize(
    ("now", "passes"),
    [
        (SINCE, True),
        (UNTIL, True),
        (SINCE - timedelta(seconds=1), False),
        (UNTIL + timedelta(seconds=1), False),
    ],
)
def test_both_ends_of_the_validity_are_included(now: datetime, passes: bool) -> None:
    """To the second, by the time that is passed in."""
    assert chain_of(now=now).passed == passes


# Revocation lists


def revocation(*lists: bytes) -> list[str]:
    """Codes of the checks of these lists ("" for one that passed)."""
    read = tuple(parse_revocation_list(data) for data in lists)
    return [c.code for c in check_revocation(chain_of(), lists=read, now=NOW)]


def crl(issuer: str = "root", serials: tuple[int, ...] = (), **changed: Any) -> bytes:
    """A list by an issuer of the chain."""
    return revocation_list(
        issuer, ec_key(changed.pop("key", issuer), P256), serials, scheme="ECDSA", **changed
    )


def test_lists_that_revoke_nobody_here() -> None:
    """A check for each list of an issuer in the chain; lists of others make none, nor does no list."""
    assert revocation(crl(serials=(6, 7))) == [""]
    assert revocation(crl(), crl("middle", (5, 6))) == ["", ""]
    assert revocation(crl("elsewhere", (5,))) == []
    assert revocation() == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (crl(serials=(1, 5)), "chain_certificate_revoked"),
        (crl("middle", (0,)), "chain_certificate_revoked"),
        (crl(key="middle"), "revocation_list_signature_invalid"),
        (crl(corrupt=True), "revocation_list_signature_invalid"),
        (crl(this_update=NOW + DAY), "revocation_list_not_current"),
        (crl(next_update=NOW - DAY), "revocation_list_not_current"),
        (crl(next_update=None), "revocation_list_not_current"),
        (crl(extensions=[extension("2.5.29.28", b"\x30\x00", critical=True)]), "revocation_list_unsupported"),
        (
            crl(serials=(9,), entry_extensions=[extension("2.5.29.29", b"\x30\x00", critical=True)]),
            "revocation_list_unsupported",
        ),
    ],
    ids=range(9),
)
def test_lists_that_refuse(data: bytes, code: str) -> None:
    """A certificate revoked, or a list that cannot be relied on."""
    assert revocation(data) == [code]


def test_an_issuer_that_may_not_sign_lists() -> None:
    """Its key usage says so."""
    chain = chain_of(LEAF, MIDDLE.but(extensions=(basic_constraints(0), key_usage(0x04))), ROOT)
    lists = (parse_revocation_list(crl("middle")),)
    assert [c.code for c in check_revocation(chain, lists=lists, now=NOW)] == [
        "revocation_list_signature_invalid"
    ]


# Reading certificates and lists

MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "no-sequence": b"\x31\x00",
    "cut": LEAF.der[:-1],
    "trailing": LEAF.der + b"\x00",
    "behind-signature": LEAF.but(behind_signature=b"\x05\x00").der,
    "behind-body": LEAF.but(behind_body=b"\x05\x00").der,
    "version-1": LEAF.but(version=b"").der,
    "version-2": LEAF.but(version=tlv(0xA0, integer(1))).der,
    "version-4": LEAF.but(version=tlv(0xA0, integer(3))).der,
    "version-trailing": LEAF.but(version=tlv(0xA0, integer(2), b"\x05\x00")).der,
    "two-algorithms": LEAF.but(
        inner_algorithm=algorithm("ECDSA", "SHA-256"), outer_algorithm=algorithm("ECDSA", "SHA-384")
    ).der,
    "sha1-ecdsa": LEAF.but(inner_algorithm=algorithm("ECDSA", "SHA-1")).der,
    "sha1-rsa": LEAF.but(inner_algorithm=algorithm("RSA-PKCS1", "SHA-1")).der,
    "md5": LEAF.but(inner_algorithm=sequence(oid("1.2.840.113549.1.1.4"), tlv(0x05))).der,
    "ed25519-signature": LEAF.but(inner_algorithm=sequence(oid("1.3.101.112"))).der,
    "algorithm-parameters": LEAF.but(inner_algorithm=sequence(oid("1.2.840.10045.4.3.2"), integer(1))).der,
    "pss-sha1": LEAF.but(inner_algorithm=pss(digest="SHA-1", mask="SHA-1", salt=20)).der,
    "pss-other-mask": LEAF.but(inner_algorithm=pss(mask="SHA-256")).der,
    "pss-salt-0": LEAF.but(inner_algorithm=pss(salt=0)).der,
    "pss-salt-20": LEAF.but(inner_algorithm=pss(salt=20)).der,
    "pss-trailer": LEAF.but(inner_algorithm=pss(trailer=2)).der,
    "pss-defaults": LEAF.but(inner_algorithm=sequence(oid("1.2.840.113549.1.1.10"), sequence())).der,
    "key-ed25519": LEAF.but(
        spki=Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).der,
    "key-none": LEAF.but(spki=b"\x30\x00").der,
    "extension-twice": LEAF.but(extensions=(extension("1.2.3", b"a"), extension("1.2.3", b"b"))).der,
    "critical-twice-encoded": LEAF.but(
        extensions=(sequence(oid("1.2.3"), tlv(0x01, b"\x01"), tlv(0x04)),)
    ).der,
    "extension-trailing": LEAF.but(extensions=(sequence(oid("1.2.3"), tlv(0x04), b"\x05\x00"),)).der,
    "constraints-malformed": LEAF.but(extensions=(extension("2.5.29.19", b"\x04\x00"),)).der,
    "constraints-length-without-ca": LEAF.but(extensions=(basic_constraints(1, ca=False),)).der,
    "constraints-negative": LEAF.but(extensions=(basic_constraints(-1),)).der,
    "usage-malformed": LEAF.but(extensions=(extension("2.5.29.15", b"\x03\x02\x08\x00"),)).der,
    "usage-unused-bits": LEAF.but(extensions=(extension("2.5.29.15", b"\x03\x02\x01\x01"),)).der,
    "time-without-seconds": LEAF.but(validity=sequence(tlv(0x17, b"2501010000Z"), time(UNTIL))).der,
    "time-with-zone": LEAF.but(validity=sequence(tlv(0x17, b"250101000000+0100"), time(UNTIL))).der,
    "time-with-fraction": LEAF.but(validity=sequence(tlv(0x18, b"20250101000000.5Z"), time(UNTIL))).der,
    "time-no-such": LEAF.but(validity=sequence(tlv(0x17, b"250230000000Z"), time(UNTIL))).der,
    "time-one": LEAF.but(validity=sequence(time(UNTIL))).der,
    "time-three": LEAF.but(validity=sequence(time(SINCE), time(UNTIL), time(UNTIL))).der,
    "name-malformed": LEAF.but(subject_der=sequence(b"\x30\x00")).der,
    "length-indefinite": b"\x30\x80" + LEAF.der[4:] + b"\x00\x00",
    "length-padded": b"\x30\x83\x00" + LEAF.der[2:],
    "length-long-for-short": b"\x30\x81\x02\x05\x00",
}  # fmt: skip


@pytest.mark.parametrize("vector", sorted(MALFORMED))
def test_malformed_certificates_are_refused(vector: str) -> None:
    """One fault of form each."""
    with pytest.raises(MalformedInput) as caught:
        parse_certificate(MALFORMED[vector])
    assert caught.value.code == "certificate_malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        LEAF.der,
        crl()[:-1],
        crl() + b"\x00",
        sequence(sequence(integer(0), algorithm("ECDSA", "SHA-384"), name("root"), time(SINCE))),
        sequence(sequence(integer(1)), algorithm("ECDSA", "SHA-384"), tlv(0x03, b"\x00")),
    ],
    ids=range(6),
)
def test_malformed_revocation_lists_are_refused(data: bytes) -> None:
    """One fault of form each."""
    with pytest.raises(MalformedInput) as caught:
        parse_revocation_list(data)
    assert caught.value.code == "revocation_list_malformed"


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        (name("chip"), "chip"),
        (b"\x30\x00", ""),
        (sequence(tlv(0x31, sequence(oid("2.5.4.10"), tlv(0x0C, b"chip")))), ""),
        (name("a")[:2] + name("a")[2:], "a"),
        (sequence(*(tlv(0x31, sequence(oid("2.5.4.3"), tlv(0x0C, c))) for c in (b"a", b"b"))), ""),
        (name("a\x1b[31m"), ""),
        (name("ä"), ""),
        (name("x" * 129), ""),
        (sequence(tlv(0x31, sequence(oid("2.5.4.3"), tlv(0x1E, b"\x00a")))), ""),
    ],
    ids=range(9),
)
def test_only_one_printable_common_name_is_shown(subject: bytes, shown: str) -> None:
    """Names decide by their DER; what is shown of them is for a person's terminal."""
    assert parse_certificate(LEAF.but(subject_der=subject).der).common_name == shown


def test_serial_number_zero_is_read_without_a_warning() -> None:
    """AMD's chip certificates have it, and `cryptography` warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_certificate(LEAF.but(serial=0).der).serial == 0


def test_times_of_both_kinds() -> None:
    """UTCTime until 2049, with the last century from 50 on; GeneralizedTime after."""
    late = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert parse_certificate(LEAF.but(not_after=late).der).not_after == late
    old = parse_certificate(LEAF.but(validity=sequence(tlv(0x17, b"500101000000Z"), time(UNTIL))).der)
    assert old.not_before == datetime(1950, 1, 1, tzinfo=UTC)


# Reading with `cryptography`

UNREAD: dict[str, bytes] = {
    "empty": b"",
    "cut": LEAF.der[:-1],
    "trailing": LEAF.der + b"\x00",
    "version-1": LEAF.but(version=b"").der,
    "version-4": LEAF.but(version=tlv(0xA0, integer(3))).der,
    "key-none": LEAF.but(spki=b"\x30\x00").der,
    "extension-twice": LEAF.but(extensions=(extension("1.2.3", b"a"), extension("1.2.3", b"b"))).der,
    "constraints-malformed": LEAF.but(extensions=(extension("2.5.29.19", b"\x04\x00"),)).der,
    "name-of-a-kind-that-nobody-supports": LEAF.but(
        extensions=(extension("2.5.29.17", sequence(tlv(0xA3, sequence()))),)
    ).der,
    "time-no-such": LEAF.but(validity=sequence(tlv(0x17, b"250230000000Z"), time(UNTIL))).der,
    "serial-negative": LEAF.but(serial=-5).der,
}


@pytest.mark.parametrize("vector", sorted(UNREAD))
def test_what_cryptography_cannot_read_is_refused_at_once_with_the_documents_code(vector: str) -> None:
    """Whatever it raises, and what it would raise only when it is asked; where warnings are errors, of oddities too."""
    with pytest.raises(MalformedInput) as caught:
        load_x509(UNREAD[vector], what="test", code="evidence_malformed")
    assert caught.value.code == "evidence_malformed"
    assert caught.value.message.startswith("test: ")


def test_what_cryptography_reads_is_the_certificate() -> None:
    """The same bytes."""
    assert (
        load_x509(MIDDLE.der, what="test", code="evidence_malformed").public_bytes(Encoding.DER) == MIDDLE.der
    )


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        (rsa_key("weak").public_key(), True),
        (rsa_key("ark").public_key(), True),
        (rsa_key("tiny").public_key(), False),
        (ec_key("k", P256).public_key(), True),
        (ec_key("k", ec.SECP521R1()).public_key(), True),
        (ec_key("k", ec.SECP256K1()).public_key(), False),
        (ec_key("k", ec.BrainpoolP256R1()).public_key(), False),
        (Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key(), False),
        (None, False),
    ],
    ids=range(9),
)
def test_keys_that_count(key: object, accepted: bool) -> None:
    """RSA within its bounds, three curves of NIST's, nothing else."""
    assert is_accepted(key) is accepted


# DER


def read(data: bytes) -> der.Reader:
    """A reader."""
    return der.Reader(data, what="test", code="certificate_malformed")


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, -1, -128, -129, 2**64, 2**500])
def test_integers(value: int) -> None:
    """As they were written."""
    assert read(integer(value)).integer("x") == value


@pytest.mark.parametrize(
    "dotted", ["1.2.840.113549", "2.5.29.15", "0.9", "1.39.0", "2.999.3", "2.16.840.1.101"]
)
def test_object_identifiers(dotted: str) -> None:
    """As they were written."""
    assert read(oid(dotted)).oid("x") == dotted


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("integer", b"\x02\x00"),
        ("integer", b"\x02\x02\x00\x01"),
        ("integer", b"\x02\x02\xff\x80"),
        ("integer", b"\x02\x41" + b"\x01" * 65),
        ("integer", b"\x02\x01"),
        ("integer", b"\x02"),
        ("integer", b"\x03\x01\x00"),
        ("boolean", b"\x01\x01\x01"),
        ("boolean", b"\x01\x00"),
        ("boolean", b"\x01\x02\xff\xff"),
        ("oid", b"\x06\x00"),
        ("oid", b"\x06\x01\x80"),
        ("oid", b"\x06\x02\x80\x01"),
        ("oid", b"\x06\x03\x2a\x80\x01"),
        ("oid", b"\x06\x41" + b"\x01" * 65),
    ],
    ids=range(15),
)
def test_what_is_not_der_is_refused(method: str, data: bytes) -> None:
    """Second spellings, wrong tags, elements cut short."""
    with pytest.raises(MalformedInput):
        getattr(read(data), method)("x")


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"\x03\x00", False),
        (b"\x03\x01\x01", False),
        (b"\x03\x02\x08\x00", False),
        (b"\x03\x02\x01\x01", False),
        (b"\x03\x02\x01\x00", True),
    ],
    ids=range(5),
)
def test_bit_strings_that_are_none(data: bytes, whole: bool) -> None:
    """Unused bits are fewer than eight, there, and zero; a signature has none."""
    with pytest.raises(MalformedInput):
        read(data).bits("x", whole=whole)


# Documents


def test_documents_are_sorted_by_content() -> None:
    """Certificates, lists and others, whatever they are called; twice counts once."""
    both = pem(LEAF_READ.der) + pem(one := crl(), "X509 CRL")
    found = sort_documents(
        (("a.crl", LEAF_READ.der), ("b.pem", both), ("c.der", one), ("d", b"other"), ("e", b""))
    )
    assert [c.der for c in found.certificates] == [LEAF_READ.der]
    assert [r.der for r in found.revocation_lists] == [one]
    assert found.others == (("d", b"other"), ("e", b""))


@pytest.mark.parametrize(
    ("documents", "code"),
    [
        ((b"\x30\x00",), "certificate_malformed"),
        ((LEAF.der[:-1],), "certificate_malformed"),
        ((crl()[:-1],), "certificate_malformed"),
        ((b"-----BEGIN CERTIFICATE-----\nAAAA",), "certificate_malformed"),
        ((b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----",), "certificate_malformed"),
        ((b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END X509 CRL-----",), "certificate_malformed"),
        ((b"-----BEGIN -----",), "certificate_malformed"),
        ((b"-----BEGIN " + b"x" * 65 + b"-----",), "certificate_malformed"),
        ((b"-----BEGIN CERTIFICATE-----" + b"A" * (1 << 18),), "certificate_malformed"),
        (tuple(LEAF.but(serial=n).der for n in range(MAX_CERTIFICATES + 1)), "certificate_too_many"),
    ],
    ids=range(10),
)
def test_documents_that_are_not_what_they_begin_like(documents: tuple[bytes, ...], code: str) -> None:
    """Nothing that begins as a certificate or list is passed over."""
    with pytest.raises(MalformedInput) as caught:
        sort_documents(tuple((str(at), data) for at, data in enumerate(documents)))
    assert caught.value.code == code


def test_many_blocks_without_an_end_are_refused_at_once() -> None:
    """Not searched for again from each beginning."""
    with pytest.raises(MalformedInput):
        pem_blocks(b"-----BEGIN A-----\n" * 14_000)


# Against an independent reader


@pytest.mark.skipif(
    not RECORDED.is_dir(), reason="not exercised here: recorded evidence is not beside this checkout"
)
def test_recorded_certificates_read_as_another_reader_reads_them() -> None:
    """Every certificate of the recorded evidence, field by field, against `cryptography`."""
    files = [p for p in RECORDED.rglob("*") if p.suffix in (".pem", ".der") and p.is_file()]
    compared = 0
    for path in sorted(files):
        data = path.read_bytes()
        blocks = (
            [b for label, b in pem_blocks(data) if label == "CERTIFICATE"]
            if path.suffix == ".pem"
            else [data]
        )
        for block in blocks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    other = reference.load_der_x509_certificate(block)
                    known = other.public_key()
                    serial, extensions = other.serial_number, list(other.extensions)
                except ValueError:
                    continue
            ours = parse_certificate(block)
            assert (ours.serial, ours.not_before, ours.not_after) == (
                serial, other.not_valid_before_utc, other.not_valid_after_utc,
            )  # fmt: skip
            assert (ours.tbs, ours.signature) == (other.tbs_certificate_bytes, other.signature)
            assert (ours.subject, ours.issuer) == (other.subject.public_bytes(), other.issuer.public_bytes())
            assert ours.spki == known.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert [(o, c) for o, c, _ in ours.extensions] == [
                (e.oid.dotted_string, e.critical) for e in extensions
            ]
            constraints = [e.value for e in extensions if isinstance(e.value, reference.BasicConstraints)]
            if constraints:
                assert (ours.ca, ours.path_length) == (constraints[0].ca, constraints[0].path_length)
            compared += 1
    assert compared >= 20
