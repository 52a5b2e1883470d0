"""Vectors of the format `nitro` (docs/spec/nitro.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import cbor2
from cases_dcap import PSYCHIC, SKIPPED_SNP, ZEROS, der_signed
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from fake_ratls import seq
from tee import Minted, document, keys
from tee import nitro as aws
from vector_model import STRICT, Book, Vector

from strongroom.attest.nitro import PINNED_ROOTS

# fmt: off

NOW, CHAIN, ABSENT, PCR0 = aws.NOW, aws.CHAIN, aws.ABSENT, aws.PCR0
PAYLOAD = cbor2.dumps(aws.members())
P256 = ec.SECP256R1()
SECOND = timedelta(seconds=1)
OPEN_HEADER = ("CVE-2026-21218",)


def changed(**places: dict[str, Any]) -> Minted:
    """A document whose chain is changed in these places; the root that it begins with is accepted."""
    made = aws.chain(**places)
    minted = document(aws.mint(certificates=made))
    return minted.but(anchors=(("root.der", made[0]),), roots={"nitro": (hashlib.sha256(made[0]).hexdigest(),)})


def sealed(**options: Any) -> Minted:
    """The genuine payload in another envelope."""
    return document(aws.envelope(PAYLOAD, **options))


def unknown(critical: bool) -> dict[str, Any]:
    """An extension that nobody knows."""
    made = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return {"more": ((made, critical),)}


def leaf_of_rsa() -> bytes:
    """A leaf whose key is RSA's."""
    authority = x509.load_der_x509_certificate(CHAIN[-2])
    builder = x509.CertificateBuilder(
        authority.subject, x509.Name([]), keys.rsa_key("weak", 2048).public_key(), 1, NOW - timedelta(minutes=1),
        NOW + timedelta(hours=1),
    )
    for extension in x509.load_der_x509_certificate(CHAIN[-1]).extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(aws.key("instance"), SHA384(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def leaf_of_version_1() -> bytes:
    """The leaf as a certificate of version 1, which nothing limits."""
    tbs = x509.load_der_x509_certificate(CHAIN[-1]).tbs_certificate_bytes
    begins = tbs.index(bytes.fromhex("a003020102")) + 5
    tbs = seq(tbs[begins : tbs.rindex(b"\xa3")])
    signature = aws.key("instance").sign(tbs, ec.ECDSA(SHA384(), deterministic_signing=True))
    return seq(tbs + bytes.fromhex("300a06082a8648ce3d040303") + seq(b"\x00" + signature, 3))


def cases() -> Iterator[Vector]:
    """Accepted, then refused in the order of the checks."""
    book = Book("nitro", document="docs/spec/nitro.md")
    book.section(1, to=29, tcb_status="NotReported")
    book.accept("genuine", "A document as AWS makes it.", document(), spec="§4",
                claims={"signer": aws.PCR8.hex(), "debug": False})
    book.accept("map-without-length", "The payload is a map that a break ends, as AWS writes it since 2025.",
                document(aws.mint(open_ended=True)), spec="§2.1")
    bare = document(aws.mint(user_data=ABSENT, nonce=ABSENT, public_key=ABSENT)).but(report_data=b"")
    book.accept("nothing-optional", "No user data, nonce or public key.", bare, spec="§2.3", claims={"report_data": ""})
    nulls = document(aws.mint(user_data=None, nonce=None)).but(report_data=b"")
    book.accept("nulls", "User data and nonce are null.", nulls, spec="§2.3", claims={"report_data": ""})
    book.accept("pcr0-alone", "PCR0 is the only PCR.", document(aws.mint(pcrs={0: PCR0})), spec="§2.3")
    book.accept("short-chain", "The leaf is issued by the root itself.",
                document(aws.mint(certificates=[CHAIN[0], aws.chain(leaf={"issuer": "root"})[-1]])), spec="§3.1")
    book.accept("extension-not-critical", "An authority has an unknown extension that is not critical.",
                changed(zonal=unknown(False)), spec="§3.5")
    book.accept("leaf-begins-later", "The verifier's clock is behind: the leaf begins in five minutes.",
                changed(instance={"begins": NOW + timedelta(seconds=300)}), spec="§3.3")
    book.accept("nonce", "The document carries the nonce that was asked for.", document(), spec="§5.2",
                asked=("nonce", aws.NONCE))
    book.accept("report-data", "The user data are what was asked for.", document(), spec="§5.1",
                asked=("report_data", aws.REPORT_DATA))
    _form(book)
    _chain(book)
    _signature(book)
    _answers(book)
    yield from book.done()


def _form(book: Book) -> None:
    book.section(101, to=169, twin="genuine", grade=STRICT)

    def form(name: str, title: str, data: bytes, spec: str = "§2.2", **more: Any) -> None:
        book.refuse(name, title, document(data), "evidence.form", "evidence_malformed", spec=spec, **more)

    data = document().data
    form("empty", "There are no bytes.", b"", grade="must")
    form("cut", "The last byte is missing.", data[:-1], grade="must")
    form("trailing", "A byte follows the document.", data + b"\0")
    form("tagged", "The COSE_Sign1 has its tag.", cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(data))))
    form("array-without-length", "The envelope is an array that a break ends.", b"\x9f" + data[1:] + b"\xff", "§2.1")
    form("unprotected-header", "Something stands in the unprotected header.",
         aws.envelope(PAYLOAD, unprotected={4: b"kid"}))
    form("algorithm-unprotected", "The algorithm stands in the unprotected header, where nobody signed it.",
         aws.envelope(PAYLOAD, protected=b"\xa0", unprotected={1: -35}), grade="must")
    form("algorithm-absent", "The protected header is empty.", aws.envelope(PAYLOAD, protected=b"\xa0"))
    form("algorithm-twice", "The algorithm is in the protected header twice.",
         aws.envelope(PAYLOAD, protected=b"\xa2\x01\x38\x22\x01\x38\x22"))
    form("critical-header", "The protected header has critical members.",
         aws.envelope(PAYLOAD, protected=cbor2.dumps({1: -35, 2: [4]})), grade="must")
    form("CVE-2026-21218-header-without-length", "The protected header is a map that a break ends: a reader that finds "
         "no members in it verifies nothing.", aws.envelope(PAYLOAD, protected=b"\xbf\x01\x38\x22\xff"), "§2.1",
         grade="must", refs=OPEN_HEADER)
    form("signature-in-der", "The signature is in DER.",
         aws.envelope(PAYLOAD, signature=aws.sign(PAYLOAD, in_der=True)))
    form("signature-short", "The signature has 95 bytes.", aws.envelope(PAYLOAD, signature=bytes(95)), grade="must")
    form("payload-detached", "The payload is null.", cbor2.dumps([b"\xa1\x01\x38\x22", {}, None, bytes(96)]),
         grade="must")
    form("payload-trailing", "A byte follows the payload.", aws.envelope(PAYLOAD + b"\0"), "§2.1")
    twice = aws.envelope(b"\xaa" + PAYLOAD[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"another"))
    form("member-twice", "The nonce is in the document twice, and differs.", twice, "§2.1", grade="must")
    open_twice = aws.envelope(aws.open_map(aws.members())[:-1] + cbor2.dumps("nonce") + b"\x40\xff")
    form("member-twice-without-length", "The same in a map that a break ends.", open_twice, "§2.1", grade="must")
    pcr_twice = aws.open_map(aws.members(pcrs=0)).replace(
        b"\x64pcrs\x00", b"\x64pcrs\xa2\x00" + cbor2.dumps(PCR0) + b"\x00" + cbor2.dumps(bytes(48)), 1)
    form("pcr-twice", "PCR0 is in the document twice, and differs.", aws.envelope(pcr_twice), "§2.1", grade="must")
    form("member-unknown", "The document has an unknown member.", aws.mint(public_key=ABSENT, extra=1), "§2.3")
    form("nitrotpm", "The document is a NitroTPM's, under the same root: it says nothing of an enclave.",
         aws.mint(pcrs=ABSENT, nitrotpm_pcrs={0: PCR0}), "§2.3", grade="must")
    form("module-id-with-a-line-break", "The module's name would print a line of its own.",
         aws.mint(module_id="i-0\nPASS"), "§2.3")
    form("digest-sha256", "The digest is said to be SHA256.", aws.mint(digest="SHA256"), "§2.3")
    form("timestamp-beyond-the-calendar", "The timestamp is the largest number.", aws.mint(timestamp=2**64 - 1), "§2.3")
    form("pcrs-absent", "There are no PCRs.", aws.mint(pcrs=ABSENT), "§2.3", grade="must")
    form("pcr0-absent", "There is no PCR0.", aws.mint(pcrs={1: PCR0}), "§2.3", grade="must")
    form("pcr0-empty", "PCR0 has no bytes.", aws.mint(pcrs={0: b""}), "§2.3", grade="must")
    form("certificate-absent", "There is no certificate.", aws.mint(certificate=ABSENT), "§2.3", grade="must")
    form("certificate-trailing", "A byte follows the certificate.", aws.mint(certificate=CHAIN[-1] + b"\0"), "§3.1")
    form("cabundle-empty", "The bundle is empty.", aws.mint(cabundle=[]), "§2.3", grade="must")
    repeated = CHAIN[-1].replace(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x13", 1)
    form("certificate-extension-twice", "The leaf has an extension twice.", aws.mint(certificate=repeated), "§3.1",
         grade="must")


def _chain(book: Book) -> None:
    book.section(171, to=179, twin="genuine", spec="§3.1 check 2")
    for name, number in (("es256", -7), ("hs384", 6)):
        book.refuse(f"algorithm-{name}", f"The header says {name.upper()}, and the signature is one of ES384.",
                    sealed(protected=cbor2.dumps({1: number})), "nitro.algorithm", "nitro_algorithm")
    book.section(181, to=199, twin="genuine", spec="§1.1")
    root = ("evidence.root", "root_not_accepted")
    book.refuse("no-roots", "No root is named: that is not \"any root\".",
                document().but(roots={"nitro": ()}, anchors=()), *root, spec="§1.2")
    book.refuse("root-of-aws", "AWS's own root is named, and the chain is under another.",
                document().but(roots={"nitro": PINNED_ROOTS}, anchors=()), *root)
    book.refuse("root-named-in-capitals", "The root is named in capitals.",
                document().but(roots={"nitro": (aws.ROOT.upper(),)}, anchors=()), *root, grade=STRICT)
    made = aws.chain(root={"ends": NOW + timedelta(days=8001)})
    book.refuse("root-reissued", "The root has the accepted one's name and key, and other dates.",
                document(aws.mint(certificates=made)), *root, grade=STRICT)
    made = aws.chain(root={"signer": "mallory"}, regional={"signer": "mallory"})
    book.refuse("root-of-the-same-name", "The root is another's by the same name, and issued the rest.",
                document(aws.mint(certificates=made)), *root, also=("nitro.chain",))
    book.refuse("root-left-out", "The bundle begins below the root.", document(aws.mint(cabundle=CHAIN[1:-1])), *root)
    book.refuse("root-last", "The root stands last in the bundle.",
                document(aws.mint(cabundle=[*CHAIN[1:-1], CHAIN[0]])), *root,
                also=("nitro.chain", "nitro.certificates"), grade=STRICT)
    book.section(201, to=219, twin="genuine", spec="§3.1 check 4")
    chain = ("nitro.chain", "nitro_chain_invalid")
    book.refuse("intermediate-left-out", "An authority is missing.",
                document(aws.mint(cabundle=[*CHAIN[:2], CHAIN[3]])), *chain)
    book.refuse("intermediates-exchanged", "Two authorities are exchanged.",
                document(aws.mint(cabundle=[CHAIN[0], CHAIN[2], CHAIN[1], CHAIN[3]])), *chain,
                also=("nitro.certificates",), grade=STRICT)
    for place in ("regional", "zonal", "instance", "leaf"):
        book.refuse(f"{place}-by-mallory", f"The {place} certificate is signed by another key by its issuer's name.",
                    changed(**{place: {"signer": "mallory"}}), *chain)
    book.refuse("leaf-of-another-issuers-name", "The leaf names another issuer than the one that signed it.",
                changed(leaf={"issuer": "zonal", "signer": "instance"}), *chain)
    book.refuse("leaf-signed-by-itself", "The leaf signed itself.", changed(leaf={"issuer": "leaf"}), *chain)
    book.refuse("leaf-psychic", "The signature of the leaf is two zeros.",
                document(aws.mint(certificate=der_signed(CHAIN[-1], ZEROS))), *chain, refs=PSYCHIC)
    book.refuse("zonal-psychic", "The signature of an authority is two zeros.",
                document(aws.mint(cabundle=[*CHAIN[:2], der_signed(CHAIN[2], ZEROS), CHAIN[3]])), *chain, refs=PSYCHIC)
    book.section(221, to=249, twin="genuine", spec="§3.5")
    what = ("nitro.certificates", "nitro_certificate_not_allowed")
    for name, title, minted in (
        ("zonal-no-authority", "An authority is none.", changed(zonal={"ca": False, "path_length": None})),
        ("zonal-without-constraints", "An authority does not say that it is one.",
         changed(zonal={"constraints": False})),
        ("instance-may-not-certify", "An authority's key may not sign certificates.",
         changed(instance={"may_certify": False, "may_sign": True})),
        ("path-too-long", "More authorities follow than one allows.", changed(zonal={"path_length": 0})),
        ("leaf-is-an-authority", "The leaf is an authority.", changed(leaf={"ca": True})),
        ("leaf-may-certify", "The leaf's key may sign certificates.", changed(leaf={"may_certify": True})),
        ("leaf-may-not-sign", "The leaf's key may sign nothing.", changed(leaf={"may_sign": False})),
        ("critical-extension", "An authority has a critical extension that nobody knows.",
         changed(zonal=unknown(True))),
        ("leaf-of-version-1", "The leaf is of version 1: nothing says what its key may do.",
         document(aws.mint(certificate=leaf_of_version_1()))),
    ):
        book.refuse(name, title, minted, *what)
    book.refuse("authority-not-critical", "An authority's constraints are not critical.",
                changed(zonal={"critical": False}), *what, grade=STRICT)
    book.refuse("leaf-signed-with-sha256", "The leaf is signed with SHA-256.",
                changed(leaf={"algorithm": aws.OTHER_HASH}), *what, grade=STRICT)
    book.refuse("instance-of-p256", "An authority's key is on P-256.",
                changed(instance={"curve": P256}, leaf={"issuer_curve": P256}), *what, grade=STRICT)
    book.refuse("leaf-of-rsa", "The leaf's key is RSA's.", document(aws.mint(certificate=leaf_of_rsa())), *what,
                also=("evidence.signature",))


def _signature(book: Book) -> None:
    book.section(251, to=279, twin="genuine", spec="§3.1 check 6")
    signature = ("evidence.signature", "evidence_signature_invalid")
    other = aws.sign(cbor2.dumps(aws.members(nonce=b"another")))
    for name, title, minted, refs in (
        ("signature-psychic", "The signature is two zeros.", sealed(signature=bytes(96)), PSYCHIC),
        ("signature-of-ones", "r and s are above the order of the group.", sealed(signature=b"\xff" * 96), ()),
        ("signature-of-another-key", "Another key signed.", sealed(signer=aws.key("mallory")), ()),
        ("signature-of-the-authority", "The leaf's issuer signed.", sealed(signer=aws.key("instance")), ()),
        ("signature-with-sha256", "The signature is made with SHA-256.", sealed(algorithm=aws.OTHER_HASH), ()),
        ("signature-over-another-header", "The signature covers another protected header.",
         sealed(signed_protected=cbor2.dumps({1: -7})), ()),
        ("signature-of-another-structure", "The signature is one of COSE_Sign, for several signers.",
         sealed(context="Signature"), ()),
        ("signature-of-another-document", "The signature is over another document.", sealed(signature=other), ()),
    ):
        book.refuse(name, title, minted, *signature, refs=refs)
    book.section(281, to=309, twin="genuine", tcb_status="NotReported", spec="§3.1 check 7")
    expired = ("nitro.validity", "nitro_certificate_expired")
    for place in ("root", "zonal", "leaf"):
        minted = changed(**{place: {"ends": NOW}}).but(now=NOW + SECOND)
        book.refuse(f"{place}-expired", f"The {place} certificate ended a second ago.", minted, *expired)
    book.refuse("instance-to-come", "An authority begins in more than five minutes.",
                changed(instance={"begins": NOW + timedelta(seconds=301)}), *expired)
    book.refuse("timestamp-before-the-leaf", "The document was made before its certificate began.",
                document(aws.mint(timestamp=int((aws.PLAN["leaf"].begins - SECOND).timestamp() * 1000))),
                "nitro.timestamp", "nitro_timestamp_outside_certificate", spec="§3.1 check 8")
    book.refuse("timestamp-after-the-leaf", "The document was made after its certificate ended.",
                changed(leaf={"ends": NOW - 2 * SECOND, "begins": NOW - timedelta(hours=3)}).but(now=NOW - 2 * SECOND),
                "nitro.timestamp", "nitro_timestamp_outside_certificate", spec="§3.1 check 8")
    book.refuse("from-the-future", "The document is from more than five minutes ahead.",
                document(aws.mint(timestamp=int((NOW + timedelta(seconds=301)).timestamp() * 1000))), "evidence.time",
                "evidence_from_future", spec="§3.1 check 9")


def _answers(book: Book) -> None:
    book.section(311, to=319, twin="genuine", tcb_status="NotReported", spec="§4")
    book.refuse("debug", "The enclave runs in debug mode: its PCRs are zero.",
                document(aws.mint(pcrs={n: bytes(48) for n in range(16)})), "policy.debug", "debug_platform")
    book.section(321, to=349, twin="nonce", tcb_status="NotReported", spec="§5.2")
    nonce = ("nitro.nonce", "nitro_nonce_mismatch")
    for name, title, shown, asked, refs in (
        ("nonce-of-another", "Another nonce was asked for.", aws.NONCE, bytes(32), ()),
        ("nonce-half", "The document carries half of the nonce.", aws.NONCE[:16], aws.NONCE, ()),
        ("nonce-longer", "The document's nonce goes on behind the one that was asked for.",
         aws.NONCE + b"\0", aws.NONCE, ()),
        ("nonce-absent", "The document carries no nonce: the comparison is not left out.",
         ABSENT, aws.NONCE, SKIPPED_SNP),
        ("nonce-null", "The document's nonce is null.", None, aws.NONCE, SKIPPED_SNP),
        ("nonce-empty", "The document's nonce is empty.", b"", aws.NONCE, SKIPPED_SNP),
        ("nothing-for-nothing", "No nonce was asked for, and none is there: two empty values are not equal.", b"", b"",
         SKIPPED_SNP),
    ):
        book.refuse(name, title, document(aws.mint(nonce=shown)), *nonce, asked=("nonce", asked), refs=refs)
    mismatch = ("evidence.report_data", "report_data_mismatch")
    book.refuse("report-data-of-another", "Other report data was asked for.", document(), *mismatch,
                asked=("report_data", bytes(64)), spec="§5.1")
    book.refuse("report-data-absent", "The document has no user data, and some was asked for.",
                document(aws.mint(user_data=ABSENT)), *mismatch, asked=("report_data", aws.REPORT_DATA), spec="§5.1",
                refs=SKIPPED_SNP)
    book.refuse("report-data-empty", "Nothing was asked for, and nothing is there: two empty values are not equal.",
                document(aws.mint(user_data=b"")), *mismatch, asked=("report_data", b""), spec="§5.1", refs=SKIPPED_SNP)
