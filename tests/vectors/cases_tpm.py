"""Vectors of the format `tpm` (docs/spec/tpm.md)."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cases_dcap import PSYCHIC, SKIPPED_SNP, ZEROS, der_signed
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tee import NOW, Minted, Tpm, keys, quoted
from tee import tpm as fake
from vector_model import STRICT, Book, Vector

from strongroom.attest.strict import canonical
from strongroom.attest.tpm_quote import qualifying_data

# fmt: off

TPM = Tpm()
RSA_TPM = Tpm(ak_kind="rsa2048")
SECOND = timedelta(seconds=1)
BLEICHENBACHER = ("CVE-2006-4339",)
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""What stands in front of a SHA-256 in an RSASSA-PKCS1-v1_5 encoding."""


def named(tpm: Tpm, **changes: Any) -> Minted:
    """A TPM whose attestation key is named beside its maker's root."""
    return beside(quoted(tpm, named=(fake.ROOT_DIGEST, tpm.ak_digest)).but(**changes))


def certified(tpm: Tpm) -> Minted:
    """A TPM whose attestation key has a certificate; only its maker's root is named."""
    return beside(quoted(tpm))


def beside(minted: Minted) -> Minted:
    """The same with the maker's certificates beside the document, where vectors can share them."""
    top = json.loads(minted.data)
    ders = [base64.b64decode(text) for text in top["certificates"]]
    named = tuple((f"certificate-{i}.der", der) for i, der in enumerate(ders, start=1))
    return minted.but(data=canonical(top | {"certificates": []}), endorsements=named)


def short_padding(message: bytes) -> bytes:
    """An encoding with eight bytes of padding, the hash, and then whatever: what a lax reader takes for the whole."""
    begin = b"\0\1" + b"\xff" * 8 + b"\0" + _DIGEST_INFO + hashlib.sha256(message).digest()
    return begin + bytes(256 - len(begin))


def cube_root(message: bytes) -> bytes:
    """A "signature" for any key with the exponent 3: its cube begins as `short_padding`."""
    target = int.from_bytes(short_padding(message))
    low, high = 0, 1 << 688
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**3 < target else (low, middle)
    made = low**3
    assert made.to_bytes(256)[:62] == short_padding(message)[:62]
    return low.to_bytes(256)


def rsassa(signature: bytes) -> bytes:
    """A TPMT_SIGNATURE around it."""
    return struct.pack(">HH", fake.RSASSA, fake.SHA256) + fake.sized(signature)


def ecdsa(r: bytes, s: bytes) -> bytes:
    """A TPMT_SIGNATURE of r and s."""
    return struct.pack(">HH", fake.ECDSA, fake.SHA256) + fake.sized(r) + fake.sized(s)


def cases() -> Iterator[Vector]:
    """Accepted, then refused in the order of the checks."""
    book = Book("tpm", document="docs/spec/tpm.md")
    book.section(1, to=39, tcb_status="NotReported")
    book.accept("genuine", "An ECC key on P-256 that is named, beside an endorsement certificate.", named(TPM),
                spec="§5.2")
    for kind in ("p384", "rsa2048", "rsa3072"):
        book.accept(f"named-{kind}", f"A named attestation key of the kind {kind}.", named(Tpm(ak_kind=kind)),
                    spec="§2.2")
    for kind in ("p256", "rsa2048"):
        book.accept(f"certified-{kind}", f"A certified attestation key of the kind {kind}.",
                    certified(Tpm(ak_kind=kind, ak={})), spec="§5.2")
    bare = TPM.but(members={"ek_certificate": b"", "certificates": []})
    book.accept("named-alone", "A named key without any certificate.", quoted(bare, named=(bare.ak_digest,)),
                spec="§5.2")
    for hash_, name in ((fake.SHA384, "sha384"), (fake.SHA512, "sha512")):
        book.accept(f"signed-with-{name}", f"The key signs with {name.upper()}.", named(Tpm(sign_hash=hash_)),
                    spec="§2.2")
    bank = fake.extended(fake.BOOT, bank=fake.SHA384)
    book.accept("bank-sha384", "The PCRs are those of the bank of SHA-384.", named(Tpm(bank=fake.SHA384, pcrs=bank)),
                spec="§3")
    book.accept("certificates-inside", "The maker's certificates are in the document itself.",
                quoted(TPM, named=(fake.ROOT_DIGEST, TPM.ak_digest)), spec="§2.1")
    book.accept("event-log", "A log of the start that gives the quoted PCRs.",
                named(TPM.but(members={"event_log": fake.event_log(fake.BOOT)})), spec="§6.4")
    book.accept("event-log-padded", "The same with the firmware's padding.",
                named(TPM.but(members={"event_log": fake.event_log(fake.BOOT) + b"\xff" * 64})), spec="§6.1")
    book.accept("software-named", "A software TPM whose root is named.",
                named(TPM.but(firmware=fake.SWTPM_FIRMWARE, ek={"model": fake.SWTPM})), spec="§5.3")
    google = replace(fake.CA, uses=(fake.EK_USE,)).der()
    book.accept("use-of-the-issuer", "A certificate states no use, and its issuer is for endorsement keys alone.",
                named(TPM.but(ek={"uses": ()}, members={"certificates": [google, fake.ROOT_DER]})), spec="§5.1")
    book.accept("nonce", "The qualifying data are the nonce that was asked for.", named(TPM), spec="§3.2",
                asked=("nonce", fake.QUALIFYING))
    wanted = bytes(range(64))
    book.accept("report-data", "The qualifying data are the SHA-256 of the report data that were asked for.",
                named(TPM.but(qualifying=qualifying_data(wanted))), spec="§3.2", asked=("report_data", wanted))
    _form(book)
    _key(book)
    _quote(book)
    _certificates(book)
    _answers(book)
    yield from book.done()


def _form(book: Book) -> None:
    book.section(101, to=149, twin="genuine")
    document = TPM.document

    def form(name: str, title: str, made: Tpm | bytes, code: str = "evidence_malformed", spec: str = "§2.1",
             **more: Any) -> None:
        minted = named(TPM).but(data=made) if isinstance(made, bytes) else named(made)
        book.refuse(name, title, minted, "evidence.form", code, spec=spec, **more)

    def again(**members: Any) -> bytes:
        return canonical(json.loads(document) | members)

    form("not-canonical", "A line break follows the document.", document + b"\n", grade=STRICT)
    form("member-unknown", "The document has an unknown member.", again(trusted=True), grade=STRICT)
    form("member-twice", "The PCRs are in the document twice, and differ.",
         document.replace(b'"pcrs":[', b'"pcrs":["' + b"00" * 32 + b'"],"pcrs":[', 1))
    form("version-2", "The document is of version 2.", again(version=2), grade=STRICT)
    form("nine-certificates", "Nine certificates.", again(certificates=[""] * 9), grade=STRICT)
    form("pcr-in-capitals", "A PCR is written in capitals.", again(pcrs=["AB" * 32]), grade=STRICT)
    form("not-generated", "The magic is another: the key signed something from outside the TPM.",
         TPM.but(magic=0xFF544346), "tpm_not_generated", "§2.2")
    form("certify-instead-of-quote", "The TPM attested the creation of a key.", TPM.but(type=0x8017), "tpm_not_a_quote",
         "§2.2")
    attest = TPM.attest
    form("attest-cut", "The TPMS_ATTEST lacks its last byte.", TPM.but(members={"attest": attest[:-1]}), spec="§2.2")
    form("attest-trailing", "A byte follows the TPMS_ATTEST.", TPM.but(members={"attest": attest + b"\0"}), spec="§2.2",
         grade=STRICT)
    form("signature-trailing", "A byte follows the TPMT_SIGNATURE.",
         TPM.but(members={"signature": fake.signature(TPM.ak_key, attest) + b"\0"}), spec="§2.2", grade=STRICT)
    unsupported = "tpm_key_unsupported"
    form("key-rsa-1024", "The attestation key has 1024 bits.", TPM.but(ak_kind="rsa1024"), unsupported, "§2.2")
    form("key-p521", "The attestation key is on P-521.", TPM.but(ak_kind="p521"), unsupported, "§2.2", grade=STRICT)
    form("key-name-of-sha1", "The key's name is made with SHA-1.", TPM.but(public={"name_hash": fake.SHA1}),
         unsupported, "§2.2")
    form("key-of-keyed-hash", "The key is one of a keyed hash.", TPM.but(public={"kind": 0x0008}), unsupported, "§2.2")
    form("key-without-scheme", "The key states no scheme.", TPM.but(public={"scheme": fake.NULL}), unsupported, "§2.2",
         grade=STRICT)
    form("key-with-sha1", "The key signs with SHA-1.", TPM.but(public={"scheme_hash": fake.SHA1}), unsupported, "§2.2")
    cubed = Tpm(ak_kind="rsa2048", public={"exponent": 3})
    form("CVE-2006-4339-exponent-3", "The key's exponent is 3, and the signature a cube root with whatever behind the "
         "hash: nobody's private key made it.",
         cubed.but(members={"signature": rsassa(cube_root(cubed.attest))}), unsupported, "§2.2", refs=BLEICHENBACHER)
    scheme = "tpm_signature_scheme"
    form("signature-pss", "The signature says RSASSA-PSS.",
         RSA_TPM.but(members={"signature": fake.signature(RSA_TPM.ak_key, RSA_TPM.attest, scheme=fake.RSAPSS)}), scheme,
         "§2.2", grade=STRICT)
    form("signature-with-sha1", "The signature says SHA-1.",
         TPM.but(members={"signature": fake.signature(TPM.ak_key, attest, hash_=fake.SHA1)}), scheme, "§2.2")


def _key(book: Book) -> None:
    book.section(151, to=179, twin="genuine", spec="§3.1")
    check = ("tpm.ak_attributes", "tpm_ak_attributes")
    for name, bit in (("fixedTPM", 1), ("fixedParent", 4), ("sensitiveDataOrigin", 5), ("restricted", 16),
                      ("sign", 18)):
        tpm = TPM.but(public={"attributes": fake.ATTRIBUTES & ~(1 << bit)})
        book.refuse(f"key-not-{name}", f"The attestation key is not {name}.", named(tpm), *check)
    for name, bit, grade in (("decrypt", 17, "must"), ("x509sign", 19, "must"), ("encryptedDuplication", 11, "must"),
                             ("reserved-31", 31, STRICT), ("reserved-0", 0, STRICT)):
        tpm = TPM.but(public={"attributes": fake.ATTRIBUTES | 1 << bit})
        book.refuse(f"key-{name}", f"The attestation key has the attribute {name}.", named(tpm), *check, grade=grade)
    spki = TPM.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bare = quoted(TPM.but(members={"ak_public": spki}), named=(fake.ROOT_DIGEST, fake.digest(spki)))
    book.refuse("key-without-attributes", "The attestation key is a bare public key: nobody knows what else it signs.",
                bare, *check)


def _quote(book: Book) -> None:
    book.section(181, to=229, twin="genuine", spec="§3 check 3.1")

    def signed(name: str, title: str, tpm: Tpm, code: str = "evidence_signature_invalid", **more: Any) -> None:
        book.refuse(name, title, named(tpm), "tpm.signature", code, **more)

    def with_signature(signature: bytes, tpm: Tpm = TPM) -> Tpm:
        return tpm.but(members={"signature": signature})

    attest = TPM.attest
    other = TPM.but(qualifying=bytes(32))
    signed("signature-psychic", "r and s are zero.", with_signature(ecdsa(bytes(32), bytes(32))), refs=PSYCHIC)
    signed("signature-psychic-empty", "r and s are there, and empty.", with_signature(ecdsa(b"", b"")), refs=PSYCHIC)
    signed("signature-psychic-p384", "r and s are zero; the key is on P-384.",
           with_signature(ecdsa(bytes(48), bytes(48)), Tpm(ak_kind="p384")), refs=PSYCHIC)
    signed("signature-of-another-key", "Another key signed.",
           with_signature(fake.signature(fake.ec_key("mallory"), attest)))
    signed("signature-of-another-quote", "The signature is over another quote of the same key.",
           with_signature(fake.signature(TPM.ak_key, other.attest)))
    signed("quote-replaced", "The quote was replaced by another.", TPM.but(members={"attest": other.attest}))
    rsa_attest = RSA_TPM.attest
    signed("CVE-2006-4339-short-padding", "Eight bytes of padding, the hash, and zeros behind it.",
           with_signature(rsassa(keys.rsa_raw(RSA_TPM.ak_key, short_padding(rsa_attest))), RSA_TPM),
           refs=BLEICHENBACHER)
    bare = b"\0\1" + b"\xff" * 221 + b"\0" + hashlib.sha256(rsa_attest).digest()
    signed("signature-without-digest-info", "The hash stands in the padding without the name of its algorithm.",
           with_signature(rsassa(keys.rsa_raw(RSA_TPM.ak_key, bare)), RSA_TPM))
    raw = hashlib.sha256(rsa_attest).digest().rjust(256, b"\0")
    signed("signature-without-padding", "The hash was signed without any padding.",
           with_signature(rsassa(keys.rsa_raw(RSA_TPM.ak_key, raw)), RSA_TPM))
    signed("signature-with-leading-zero", "A zero stands in front of the RSA signature.",
           with_signature(rsassa(b"\0" + keys.rsa_raw(RSA_TPM.ak_key, _whole(rsa_attest))), RSA_TPM), grade=STRICT)
    signed("hash-not-the-keys", "The signature is made with SHA-384, the key signs with SHA-256.",
           with_signature(fake.signature(TPM.ak_key, attest, hash_=fake.SHA384)), "tpm_signature_scheme")
    signed("scheme-not-the-keys", "An RSA signature beside an ECC key.",
           with_signature(fake.signature(fake.rsa_key("mallory"), attest)), "tpm_signature_scheme")
    book.section(231, to=249, twin="genuine", spec="§3 check 3.2")

    def selected(name: str, title: str, tpm: Tpm, **more: Any) -> None:
        book.refuse(name, title, named(tpm), "tpm.pcr_selection", "tpm_pcr_selection", **more)

    sha256 = fake.selection(fake.SHA256, TPM.pcrs)
    selected("two-banks", "Two banks are quoted.", TPM.but(selections=(sha256, fake.selection(fake.SHA384, (0,)))),
             grade=STRICT)
    selected("no-bank", "No bank is quoted.", TPM.but(selections=()))
    selected("bank-sha1", "The bank of SHA-1 is quoted.", TPM.but(selections=(fake.selection(fake.SHA1, TPM.pcrs),)))
    selected("no-pcrs", "A bank is quoted, and no PCR of it.", TPM.but(pcrs={}))
    selected("only-resettable", "Only PCRs are quoted that any program resets.",
             TPM.but(pcrs={16: bytes(32), 23: bytes(32)}))
    book.section(251, to=279, twin="genuine", spec="§3 check 3.3")
    values = [TPM.pcrs[i].hex() for i in sorted(TPM.pcrs)]

    def shown(name: str, title: str, pcrs: list[str]) -> None:
        book.refuse(name, title, named(TPM.but(members={"pcrs": pcrs})), "tpm.pcr_digest", "tpm_pcr_digest")

    shown("pcr-changed", "PCR 0 is shown with another value.", ["11" * 32, *values[1:]])
    shown("pcrs-exchanged", "The values of two PCRs are exchanged.", [values[4], *values[1:4], values[0], *values[5:]])
    shown("a-value-too-few", "A value is missing.", values[1:])
    shown("no-values", "No values are shown: none to compare is not equal.", [])
    joined = values[0] + values[1]
    shown("values-joined-otherwise", "The same bytes, cut into values at another place.",
          [joined[:62], joined[62:128], *values[2:]])
    book.section(281, to=299, twin="event-log", spec="§6.4", tcb_status="NotReported")

    def logged(name: str, title: str, log: bytes, code: str = "event_log_mismatch", **more: Any) -> None:
        book.refuse(name, title, named(TPM.but(members={"event_log": log})), "tpm.event_log", code, **more)

    logged("log-of-another-start", "The log has an event that PCR 4 does not.",
           fake.event_log([*fake.BOOT, (4, 0x80000003, b"bootkit")]))
    logged("log-without-an-event", "The log leaves the boot loader out.",
           fake.event_log([e for e in fake.BOOT if e[0] != 4] + [(4, 0x80000003, b"another")]))
    logged("log-of-an-unquoted-pcr", "The log extends a PCR that is not quoted.",
           fake.event_log([*fake.BOOT, (9, 0x0000000D, b"initrd")]))
    logged("log-of-nothing", "The log extends nothing.", fake.event_log([]), grade=STRICT)
    malformed = "event_log_malformed"
    logged("log-of-another-bank", "The log keeps SHA-384 only, SHA-256 is quoted.",
           fake.event_log(fake.BOOT, banks=(fake.SHA384,)), malformed)
    logged("log-cut", "The log lacks its last byte.", fake.event_log(fake.BOOT)[:-1], malformed)
    logged("log-with-text-behind", "Something follows the padding.", fake.event_log(fake.BOOT) + bytes(16) + b"x",
           malformed, grade=STRICT)


def _whole(message: bytes) -> bytes:
    """The right encoding."""
    body = _DIGEST_INFO + hashlib.sha256(message).digest()
    return b"\0\1" + b"\xff" * (253 - len(body)) + b"\0" + body


def _certificates(book: Book) -> None:
    refused = "tpm_certificate_refused"
    book.section(301, to=349, twin="genuine", spec="§5.1", tcb_status="NotReported")

    def ek(name: str, title: str, code: str = refused, members: Any = None, **changes: Any) -> None:
        tpm = TPM.but(ek=changes, members=members or {})
        book.refuse(name, title, named(tpm), "tpm.ek_certificate", code)

    what = "The endorsement certificate"
    genuine = fake.leaf(TPM.ek_key, fake.EK_USE).der()
    ek("ek-of-another-signer", f"{what} is signed by another key.", signer=fake.ec_key("mallory"))
    book.refuse("ek-psychic", f"{what}'s signature is two zeros.",
                named(TPM.but(members={"ek_certificate": der_signed(genuine, ZEROS)})), "tpm.ek_certificate", refused,
                refs=PSYCHIC)
    ek("ek-of-an-unknown-issuer", f"{what}'s issuer is not there.", issuer="Some CA")
    ek("ek-expired", f"{what} ended a second ago.", end=NOW - SECOND)
    ek("ek-to-come", f"{what} begins in a second.", begin=NOW + SECOND)
    ek("ek-of-a-ca", f"{what} is that of an authority.", ca=True)
    ek("ek-for-no-use", f"{what} states no use, nor does its issuer.", uses=())
    ek("ek-for-web-servers", f"{what} is for web servers.", uses=("1.3.6.1.5.5.7.3.1",))
    ek("ek-for-attestation", f"{what} is for attestation keys.", uses=(fake.AK_USE,))
    ek("ek-critical-extension", f"{what} has a critical extension that nobody knows.", extra=(("1.2.3.4", True),))
    ek("ek-key-usage", f"{what}'s key may only sign certificates.", key_usage="keyCertSign")
    ek("ek-signed-with-sha224", f"{what} is signed with SHA-224.", hash=hashes.SHA224())
    for name, title, changes in (
        ("ca-no-authority", "The issuer is no authority.", {"ca": False, "path_length": None}),
        ("ca-without-constraints", "The issuer does not say that it is an authority.", {"ca": None}),
        ("ca-may-not-sign", "The issuer's key may not sign certificates.", {"key_usage": "digitalSignature"}),
        ("ca-expired", "The issuer ended a second ago.", {"end": NOW - SECOND}),
        ("ca-critical-extension", "The issuer has a critical extension that nobody knows.",
         {"extra": (("1.2.3.4", True),)}),
        ("ca-name-constraints", "The issuer has critical name constraints, which are not understood here.",
         {"extra": (("2.5.29.30", True),)}),
    ):
        ek(name, title, members={"certificates": [replace(fake.CA, **changes).der(), fake.ROOT_DER]})
    book.section(351, to=379, twin="certified-p256", spec="§5.1")
    bound = ("tpm.ak_binding",)

    def ak(name: str, title: str, **changes: Any) -> None:
        book.refuse(name, title, certified(TPM.but(ak=changes)), "tpm.ak_certificate", refused, also=bound)

    what = "The attestation key's certificate"
    ak("ak-of-another-signer", f"{what} is signed by another key.", signer=fake.ec_key("mallory"))
    ak("ak-of-another-key", f"{what} is for another key.", key=fake.ec_key("another ak"))
    ak("ak-for-endorsement", f"{what} is for endorsement keys.", uses=(fake.EK_USE,))
    ak("ak-expired", f"{what} ended a second ago.", end=NOW - SECOND)
    ak("ak-of-a-ca", f"{what} is that of an authority.", ca=True)
    ak("ak-critical-extension", f"{what} has a critical extension that nobody knows.", extra=(("1.2.3.4", True),))
    book.section(381, to=399, twin="genuine")
    root = "root_not_accepted"
    bare = TPM.but(members={"ek_certificate": b"", "certificates": []})
    book.refuse("no-roots", "No root and no key is named: that is not \"any root\".", quoted(bare, named=()),
                "evidence.root", root, also=bound, spec="§3 check 6")
    book.refuse("another-key-named", "Another attestation key is named.",
                quoted(bare, named=(Tpm(label="another").ak_digest,)), "evidence.root", root, also=bound,
                spec="§3 check 6")
    book.refuse("another-root", "The certificates lead to a root that is not named.",
                beside(quoted(TPM, named=("00" * 32,))), "tpm.ek_certificate", root, also=("evidence.root", *bound),
                spec="§5.1")
    book.refuse("root-reissued", "The root has the named one's name and key, and other dates.",
                certified(TPM.but(ak={}, members={
                    "certificates": [fake.CA_DER, replace(fake.ROOT, end=NOW + timedelta(days=9)).der()]})),
                "tpm.ek_certificate", root, also=("tpm.ak_certificate", "evidence.root", *bound), spec="§5.1",
                grade=STRICT)
    software = TPM.but(firmware=fake.SWTPM_FIRMWARE)
    book.refuse("software-not-named", "A software TPM whose root nobody named.",
                beside(quoted(software, named=("00" * 32,))), "tpm.ek_certificate", root,
                also=("evidence.root", "tpm.software", *bound), spec="§5.3")
    book.refuse("endorsement-certificate-alone", "A genuine endorsement certificate stands beside a key that "
                "nothing ties to it: anybody can put one there.", beside(quoted(TPM)), "tpm.ak_binding",
                "tpm_ak_not_bound", spec="§5.2")
    mallory = Tpm(label="mallory", ak_kind="p256",
                  members={"ek_certificate": fake.leaf(TPM.ek_key, fake.EK_USE).der()})
    book.refuse("another-tpms-endorsement-certificate", "Mallory's key beside somebody else's endorsement certificate.",
                beside(quoted(mallory)), "tpm.ak_binding", "tpm_ak_not_bound", spec="§5.2")


def _answers(book: Book) -> None:
    book.section(401, to=429, twin="nonce", spec="§3.2", tcb_status="NotReported")
    mismatch = ("evidence.report_data", "report_data_mismatch")
    for name, title, asked in (
        ("nonce-of-another", "Another nonce was asked for.", ("nonce", bytes(32))),
        ("nonce-prefix", "The nonce is what the qualifying data begin with.", ("nonce", fake.QUALIFYING[:16])),
        ("nonce-longer", "The nonce goes on behind the qualifying data.", ("nonce", fake.QUALIFYING + b"\0")),
        ("report-data-verbatim", "The qualifying data are the report data themselves, not their SHA-256.",
         ("report_data", fake.QUALIFYING)),
    ):
        book.refuse(name, title, named(TPM), *mismatch, asked=asked)
    book.refuse("nonce-empty", "Nothing was asked for, in the word of a caller who lost it.", named(TPM), *mismatch,
                asked=("nonce", b""), refs=SKIPPED_SNP)
    book.refuse("nothing-for-nothing", "The quote carries no qualifying data, and an empty nonce was asked for: two "
                "empty values are not equal.", named(TPM.but(qualifying=b"")), *mismatch, asked=("nonce", b""),
                refs=SKIPPED_SNP)
