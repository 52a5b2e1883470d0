"""Vectors of certificates with evidence in them, `ra-tls` (docs/spec/ra-tls.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import cbor2
from cases_dcap import GRAMINE_32, PSYCHIC, RELAYED, SKIPPED_SNP, ZEROS, der_signed
from cases_nitro import PCR0
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fake_ratls import (
    DICE,
    GRAMINE,
    INTEL,
    NOW,
    OPEN_ENCLAVE,
    OPEN_ENCLAVE_NEW,
    PLAIN,
    WITH_NULL,
    Key,
    certificate,
    claims_map,
    header,
    key,
    nitro_name,
    pem,
    respelt,
    rsa_key,
    seq,
    spki,
    tagged,
)
from tee import SGX, TDX5, Minted, ratls_certificate, sworn
from tee import Intel as Vendor
from tee import nitro as aws
from vector_model import STRICT, Book, Vector

from strongroom.attest.evidence import boot_report_data, report_data

# fmt: off

MINE, OTHER, P384 = key(), key("mallory"), key(curve=ec.SECP384R1())
RSA = rsa_key()
BINDING, INSIDE = "certificate.binding", "evidence.binding"
SECOND = timedelta(seconds=1)


def sha256(data: bytes) -> bytes:
    """The digest."""
    return hashlib.sha256(data).digest()


def tcg(private: Key = MINE, *, vendor: Vendor = SGX, of: Key | None = None, **claims: Any) -> tuple[str, bytes]:
    """The extension as the CCC describes it, with a quote for the key `of` (its own)."""
    said = claims_map(of or private, **claims)
    return DICE, tagged(said, sworn(sha256(said), vendor))


def made(*extensions: tuple[str, bytes], vendor: Vendor = SGX, **options: Any) -> Minted:
    """A certificate with these extensions."""
    return shown(certificate(*extensions, **options), vendor)


def shown(der: bytes, vendor: Vendor = SGX) -> Minted:
    """A certificate, where the SGX and TDX vendor's root is accepted."""
    minted = ratls_certificate(der, vendor)
    roots = {name: digests for name, digests in minted.roots.items() if name != "nitro"}
    return minted.but(roots=roots, anchors=minted.anchors[:1])


def nitro(der: bytes) -> Minted:
    """A certificate with a Nitro document in it."""
    minted = ratls_certificate(der)
    return minted.but(roots={"nitro": minted.roots["nitro"]}, anchors=minted.anchors[1:], endorsements=())


def own(evidence_format: str, evidence: bytes, **claims: Any) -> tuple[str, bytes]:
    """The extension as our servers write it."""
    return DICE, tagged(claims_map(MINE, format=evidence_format.encode(), **claims), evidence)


def gramine(of: Key = MINE) -> tuple[str, bytes]:
    """Gramine's own extension."""
    return GRAMINE, sworn(sha256(spki(of)))


def cases() -> Iterator[Vector]:
    """Accepted in every form, then refused in the order of the checks."""
    book = Book("ra-tls", document="docs/spec/ra-tls.md")
    _accepted(book)
    _form(book)
    _evidence(book)
    _binding(book)
    yield from book.done()


def _accepted(book: Book) -> None:
    book.section(1, to=39, tcb_status="UpToDate")
    book.accept("genuine", "Interoperable RA-TLS with an SGX quote.", made(tcg()), spec="§3.1",
                claims={"measurement": sha256(b"the enclave").hex()})
    book.accept("tdx-version-5", "Interoperable RA-TLS with a TDX quote of version 5.",
                made(tcg(vendor=TDX5), vendor=TDX5), spec="§3.1")
    book.accept("p384", "The key is on P-384.", made(tcg(P384), private=P384), spec="§2.2")
    book.accept("rsa", "The key is RSA's.", made(tcg(RSA), private=RSA), spec="§2.2")
    for number, name in ((7, "sha384"),):
        hashed = cbor2.dumps([number, hashlib.new(name, spki(MINE)).digest()])
        book.accept(f"key-hash-{name}", f"The hash of the key is a {name.upper()}.", made(tcg(pubkey_hash=hashed)),
                    spec="§3.1")
    book.accept("critical", "The extension is critical.", made(tcg(), critical=[DICE]), spec="§2.1")
    book.accept("gramine", "Gramine's own form.", made(gramine()), spec="§3.3")
    both = certificate((GRAMINE, sworn(sha256(spki(P384)))), tcg(P384), private=P384)
    book.accept("gramine-both-with-null", "Both of Gramine's forms in one certificate, whose algorithm has the "
                "explicit NULL of older Mbed TLS.", shown(respelt(both, private=P384)), spec="§2.3")
    book.accept("open-enclave", "Open Enclave's form: the hash is of the key's text.",
                made((OPEN_ENCLAVE, header(sworn(sha256(pem(MINE)))))), spec="§3.4")
    book.accept("ego", "EGo's form: the hash is of the key's DER.",
                made((OPEN_ENCLAVE_NEW, header(sworn(sha256(spki(MINE)))))), spec="§3.4")
    book.accept("intel-sdk", "The form of Intel's SDK.", made((INTEL, sworn(sha256(pem(MINE))))), spec="§3.5")
    boot = boot_report_data(spki=spki(MINE))
    book.accept("strongroom-sgx", "Our own form with an SGX quote.", made(own("sgx", sworn(boot))), spec="§3.2")
    book.section(41, to=59, tcb_status="NotReported")
    book.accept("strongroom-nitro", "Our own form with a Nitro document.",
                nitro(certificate(own("nitro", aws.mint(user_data=boot)))), spec="§3.2")
    book.accept("nitro-name", "A Nitro document in a DNS name, in a certificate that somebody else issued.",
                nitro(nitro_name()), spec="§3.6", claims={"measurement": PCR0.hex()})


def _form(book: Book) -> None:
    book.section(101, to=139, twin="genuine", spec="§2.1")
    genuine = certificate(tcg())
    loaded = x509.load_der_x509_certificate(genuine)

    def form(name: str, title: str, der: bytes, code: str = "leaf_malformed", **more: Any) -> None:
        book.refuse(name, title, shown(der), "certificate.form", code, **more)

    form("cut", "The last byte is missing.", genuine[:-1])
    form("trailing", "A byte follows the certificate.", genuine + b"\0", grade=STRICT)
    form("version-1", "The certificate says version 1, and has extensions.",
         genuine.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020100"), 1))
    form("two-algorithms", "The algorithm inside has a NULL, the one outside has none.",
         respelt(genuine, inner=WITH_NULL, outer=PLAIN))
    form("other-parameters", "The algorithm's parameters are neither absent nor NULL.",
         respelt(genuine, inner=_PARAMETERS, outer=_PARAMETERS), grade=STRICT, spec="§2.3")
    twice = certificate(gramine(), ("0.6.9.42.840.113741.1337.7", sworn(bytes(32)))).replace(
        bytes.fromhex("06092a864886f84d8a3907"), bytes.fromhex("06092a864886f84d8a3906"))
    form("extension-twice", "The evidence's extension is there twice, and differs.", twice)
    form("critical-extension", "The certificate has a critical extension that nobody knows.",
         certificate(tcg(), ("1.2.3.4", b"x"), critical=["1.2.3.4"]))
    form("signature-bits", "The signature lacks its last bit.",
         seq(loaded.tbs_certificate_bytes + PLAIN + seq(b"\x01" + loaded.signature, 3)), grade=STRICT)
    off_curve = genuine.replace(spki(MINE)[-64:], bytes(64), 1)
    form("key-off-the-curve", "The key is no point of its curve.", off_curve)
    book.section(141, to=159, twin="genuine", spec="§2.2")
    unsupported = ("certificate.key", "ratls_key_unsupported")
    small = rsa_key(1024)
    book.refuse("key-rsa-1024", "The key has 1024 bits.", made(gramine(small), private=small), *unsupported,
                tcb_status="UpToDate")
    k256 = key("e", ec.SECP256K1())
    book.refuse("key-secp256k1", "The key is on secp256k1.", made(gramine(k256), private=k256), *unsupported,
                tcb_status="UpToDate", grade=STRICT)


_PARAMETERS = bytes.fromhex("300c06082a8648ce3d0403020400")


def _evidence(book: Book) -> None:
    book.section(161, to=209, twin="genuine", spec="§3.1")
    said = claims_map(MINE)
    quote = sworn(sha256(said))

    def evidence(name: str, title: str, minted: Minted, code: str = "ratls_extension", **more: Any) -> None:
        book.refuse(name, title, minted, "certificate.evidence", code, **more)

    unsupported = "ratls_evidence_unsupported"
    evidence("no-evidence", "No evidence is in the certificate.", made(("1.2.3.4", b"x")), spec="§3.7")
    evidence("open-enclave-evidence", "Only Open Enclave's other kind of evidence is there.",
             made(("1.3.6.1.4.1.311.105.2", b"x")), unsupported, spec="§3.4", grade=STRICT)
    evidence("gramine-oid-spelled-right", "Gramine's OID in its right spelling, which Gramine does not use.",
             made(("1.2.840.113741.1337.6", sworn(sha256(spki(MINE))))), spec="§3.3", grade=STRICT)
    evidence("local-report", "The evidence is a local report, which nobody else can verify.",
             made((DICE, tagged(said, quote, tag=60001))), unsupported)
    evidence("evidence-trailing", "A byte follows the evidence.", made((DICE, tagged(said, quote) + b"\0")),
             grade=STRICT)
    doubled = b"\xa2" + said[1:] + said[1:]
    evidence("claim-twice", "The hash of the key is among the claims twice.",
             made((DICE, tagged(doubled, sworn(sha256(doubled))))))
    evidence("key-hash-absent", "The claims name no key: whoever takes the hash for optional accepts the evidence in "
             "anybody's certificate.", made(tcg(pubkey_hash=None)), refs=SKIPPED_SNP)
    evidence("key-hash-no-array", "The hash of the key stands there without its algorithm.",
             made(tcg(pubkey_hash=sha256(spki(MINE)))), grade=STRICT)
    evidence("quote-empty", "The quote is empty.", made((DICE, tagged(said, b""))), unsupported)
    evidence("quote-of-epid", "The quote is EPID's.", made((GRAMINE, b"\x02" + sworn(sha256(spki(MINE)))[1:])),
             unsupported, spec="§3.8")
    evidence("quote-cut", "The quote ends in its report data.", made((GRAMINE, sworn(sha256(spki(MINE)))[:431])),
             spec="§3.8")
    text = sworn(sha256(pem(MINE)))
    evidence("header-absent", "Open Enclave's header is missing.", made((OPEN_ENCLAVE, text)), spec="§3.4")
    evidence("header-local", "Open Enclave's header says that the report is local.",
             made((OPEN_ENCLAVE, header(text, kind=1))), spec="§3.4")
    evidence("format-of-another", "The format of our own form says TDX, the quote is SGX's.",
             made(own("tdx", sworn(boot_report_data(spki=spki(MINE))))), spec="§3.2")
    named = aws.mint(user_data=spki(MINE)).hex()
    evidence("document-cut", "The document in the DNS name lacks its last byte.",
             nitro(nitro_name(names=[f"{named[:-2]}.example.org"])), "evidence_malformed", spec="§3.6",
             also=("certificate.signature",))
    book.section(211, to=239, twin="genuine", spec="§4 check 4", tcb_status="UpToDate")
    signature = ("certificate.signature", "ratls_signature_invalid")
    book.refuse("signed-by-another", "Another key signed the certificate.", made(tcg(), signer=OTHER), *signature)
    book.refuse("issued-by-another", "An authority issued the certificate: its word is no evidence.",
                made(tcg(), signer=OTHER, issuer="authority"), *signature)
    book.refuse("signature-psychic", "The signature is two zeros.", shown(der_signed(certificate(tcg()), ZEROS)),
                *signature, refs=PSYCHIC)
    sha1 = bytes.fromhex("300906072a8648ce3d0401")
    book.refuse("signature-with-sha1", "The certificate is signed with SHA-1.",
                shown(respelt(certificate(tcg()), inner=sha1, outer=sha1)), *signature)
    plain = certificate(gramine())
    unsigned = respelt(plain, sign=False)
    body = unsigned[4 : 4 + 4 + int.from_bytes(unsigned[6:8])]
    repaired = seq(body + WITH_NULL + seq(b"\0" + x509.load_der_x509_certificate(plain).signature, 3))
    book.refuse("signature-over-the-repaired", "The explicit NULL is there, and the signature covers the bytes "
                "without it.", shown(repaired), *signature, spec="§2.3")
    validity = ("certificate.validity", "ratls_certificate_expired")
    book.refuse("expired", "The certificate ended a second ago.", made(tcg(), ends=NOW - SECOND), *validity,
                spec="§4 check 5")


def _binding(book: Book) -> None:
    book.section(241, to=269, twin="genuine", spec="§4 check 6", tcb_status="UpToDate")
    key_hash = ("certificate.key_hash", "ratls_key_mismatch")
    book.refuse("CVE-2026-33697-relayed", "The evidence of a genuine certificate, whole, in the attacker's own.",
                made(tcg(OTHER)), *key_hash, refs=RELAYED)
    digest = sha256(spki(MINE))
    for name, title, hashed, refs in (
        ("key-hash-empty", "The hash of the key is empty: nothing to compare is not equal.", [1, b""], SKIPPED_SNP),
        ("key-hash-half", "The hash of the key is cut to half.", [1, digest[:16]], ()),
        ("key-hash-of-another-algorithm", "The hash is a SHA-256 that says SHA-384.", [7, digest], ()),
        ("key-hash-short-algorithm", "The algorithm is SHA-256 cut to 120 bits.", [3, digest[:15]], ()),
    ):
        book.refuse(name, title, made(tcg(pubkey_hash=cbor2.dumps(hashed))), *key_hash, refs=refs)
    book.section(271, to=319, twin="genuine", spec="§4 check 7", tcb_status="UpToDate")

    def binding(name: str, title: str, minted: Minted, **more: Any) -> None:
        book.refuse(name, title, minted, BINDING, "ratls_binding", also=(INSIDE,), **more)

    said, others = claims_map(MINE), claims_map(OTHER)
    binding("CVE-2026-33697-own-claims", "The attacker's own claims beside a relayed quote.",
            made((DICE, tagged(said, sworn(sha256(others))))), refs=RELAYED)
    binding("CVE-2026-33697-gramine", "Gramine's quote of another key.", made(gramine(OTHER)), refs=RELAYED)
    binding("CVE-2026-33697-open-enclave", "Open Enclave's quote of another key.",
            made((OPEN_ENCLAVE, header(sworn(sha256(pem(OTHER)))))), refs=RELAYED)
    binding("CVE-2026-33697-intel", "The quote of Intel's SDK of another key.",
            made((INTEL, sworn(sha256(pem(OTHER))))), refs=RELAYED)
    binding("CVE-2026-33697-strongroom", "Our own form with the quote of another key.",
            made(own("sgx", sworn(boot_report_data(spki=spki(OTHER))))), refs=RELAYED)
    binding("answer-to-a-nonce", "Our own form with a quote that answers a nonce.",
            made(own("sgx", sworn(report_data(nonce=bytes(32), keyset_bytes=b"{}")))))
    binding("second-half", "The first 32 bytes of the report data are right, and something stands behind.",
            made((GRAMINE, sworn(sha256(spki(MINE)) + b"\1" + bytes(31)))), refs=GRAMINE_32)
    binding("report-data-of-zeros", "The enclave gave no report data.", made((GRAMINE, sworn(b""))), refs=SKIPPED_SNP)
    book.section(321, to=339, twin="gramine-both-with-null", tcb_status="UpToDate")
    two = made(gramine(OTHER), tcg())
    book.refuse("second-of-two", "Of two forms in one certificate the second is bound to another key.", two,
                f"{BINDING}.2", "ratls_binding", also=(f"{INSIDE}.2",), spec="§3.7")
    other = SGX.but(body={"mr_enclave": sha256(b"another enclave")})
    apart = made((GRAMINE, sworn(sha256(spki(MINE)), other)), tcg())
    book.refuse("contradiction", "The two forms in one certificate are of different code.", apart,
                "certificate.agreement", "ratls_contradiction", spec="§5.1")
    book.section(341, to=359, twin="nitro-name", tcb_status="NotReported", spec="§3.6")
    for name, title, user_data, refs in (
        ("CVE-2026-33697-nitro", "The document in the name was made for another key.", spki(OTHER), RELAYED),
        ("user-data-empty", "The document in the name has no user data.", b"", SKIPPED_SNP),
        ("user-data-half", "The document's user data are the beginning of the key.", spki(MINE)[:64], ()),
    ):
        binding_minted = nitro(nitro_name(user_data=user_data))
        book.refuse(name, title, binding_minted, BINDING, "ratls_binding", also=(INSIDE,), refs=refs)
    book.section(361, to=389, twin="genuine", spec="§5.1")
    claims = claims_map(MINE)

    def inside(vendor: Vendor) -> Minted:
        return made((DICE, tagged(claims, sworn(sha256(claims), vendor))), vendor=vendor)

    book.refuse("quote-psychic", "The quote inside is signed with two zeros.", inside(SGX.forge(signature=bytes(64))),
                "quote.signature", "evidence_signature_invalid", refs=PSYCHIC)
    book.refuse("quote-of-a-debug-enclave", "The quote inside is a debug enclave's.",
                inside(SGX.but(body={"attributes": bytes.fromhex("0700000000000000e700000000000000")})), "tee.debug",
                "quote_debug", also=("dcap.second", "policy.debug"), tcb_status="UpToDate")
    book.refuse("quote-by-any-enclave", "The quote inside was made by an enclave that is no quoting enclave.",
                inside(SGX.but(qe={"mr_signer": sha256(b"mallory")})), "qe.identity", "qe_identity_mismatch",
                refs=("CVE-2026-22696",))
    book.refuse("no-collateral", "Nothing judges the quote inside.", made(tcg()).but(endorsements=()),
                "collateral.form", "collateral_missing")
    unnamed = made(tcg()).but(roots={"sgx": (), "tdx": ()}, anchors=())
    book.refuse("no-roots", "No root is named for the quote inside.", unnamed, "pck.root", "root_not_accepted")
