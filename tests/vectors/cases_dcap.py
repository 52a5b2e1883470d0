"""Vectors of the formats `sgx` and `tdx` (docs/spec/dcap.md)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography import x509
from fake_intel import (
    DAY,
    PCK,
    PLATFORM,
    PROCESSOR,
    enclave_levels,
    entry,
    pem,
    sign,
    statuses,
    tlv,
)
from tee import NOW, SGX, TDX4, TDX5, TDX5_10, Intel, Minted, dcap
from vector_model import STRICT, Book, Vector

from strongroom.attest.dcap import PINNED_ROOTS

# fmt: off

SECOND = ("dcap.second",)
OTHER = Intel(name="other vendor")
SECOND_LATER = timedelta(seconds=1)
PSYCHIC = ("CVE-2022-21449",)
QE_IDENTITY = ("CVE-2026-22696", "GHSA-796p-j2gh-9m2q")
RELAYED = ("CVE-2026-33697", "GHSA-vfgg-mvxx-mgg7")
SKIPPED_TDX, SKIPPED_SNP = ("GHSA-4px3-wj2x-xx47",), ("GHSA-4r6g-mp48-j2rw",)
STALE = ("GHSA-j7r9-wq7m-6hcp",)

GRAMINE_32 = (
    "https://github.com/gramineproject/gramine/blob/031b7fed36f1704b03463b1de946bed9a41609d9"
    "/tools/sgx/ra-tls/ra_tls_verify_common.c",
)
"""It compares 32 bytes of report data of 64, and so do others."""

PLATFORM_LEVELS = {
    "UpToDate": 12,
    "SWHardeningNeeded": 11,
    "ConfigurationNeeded": 10,
    "ConfigurationAndSWHardeningNeeded": 9,
    "OutOfDate": 8,
    "OutOfDateConfigurationNeeded": 7,
    "Revoked": 6,
}
"""What Intel says of a platform, and the SVN of every component that reaches it in the collateral of the matrix."""
PARTS = {"UpToDate": 8, "OutOfDate": 6, "Revoked": 5}
MODULES = {"UpToDate": 5, "OutOfDate": 3, "Revoked": 2}
"""The same for the quoting enclave's ISVSVN, and for the minor version of the TDX module."""
WITH_PART_OUT_OF_DATE = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "OutOfDate": "OutOfDate",
    "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
}
"""What becomes of a platform's status where its quoting enclave or TDX module is out of date (Intel's convergence)."""


def together(platform: str, *parts: str) -> str:
    """The status that platform and parts come to, by Intel's rules, written down here a second time."""
    if "Revoked" in (platform, *parts):
        return "Revoked"
    return WITH_PART_OUT_OF_DATE[platform] if "OutOfDate" in parts else platform


def bits(*numbers: int) -> bytes:
    """TDATTRIBUTES with these bits set."""
    return sum(1 << bit for bit in numbers).to_bytes(8, "little")


def der_signed(der: bytes, signature: bytes) -> bytes:
    """A certificate or list with another signature in its place."""
    loaded: Any = (
        x509.load_der_x509_crl(der) if der.find(b"\x55\x1d\x14") > 0 else x509.load_der_x509_certificate(der)
    )
    body = (
        loaded.tbs_certlist_bytes if hasattr(loaded, "tbs_certlist_bytes") else loaded.tbs_certificate_bytes
    )
    rest = der[der.index(body) + len(body) :]
    algorithm = rest[: 2 + rest[1]]
    return tlv(0x30, body, algorithm, tlv(0x03, b"\x00", signature))


ZEROS = bytes.fromhex("3006020100020100")
"""The DER of an ECDSA signature of two zeros."""


def bundle(vendor: Intel, **members: Any) -> bytes:
    """The vendor's collateral with members replaced (None: left out)."""
    made = {**vendor.members, **members}
    return json.dumps({k: v for k, v in made.items() if v is not None}).encode()


def stapled(vendor: Intel, *bundles: bytes) -> Minted:
    """The vendor's quote with these bundles."""
    named = tuple((f"collateral-{i}.json", data) for i, data in enumerate(bundles, start=1))
    return dcap(vendor).but(endorsements=named if len(named) != 1 else (("collateral.json", bundles[0]),))


def under(vendor: Intel, *roots: str) -> Minted:
    """The vendor's quote where other roots are accepted."""
    return dcap(vendor).but(roots={vendor.format: roots}, anchors=())


def lines_of_76(vendor: Intel) -> bytes:
    """The chain of the quote as older clouds have it."""
    out = b""
    for role in ("pck", "ca", "root"):
        text = base64.b64encode(vendor.certificate(role))
        lines = b"".join(text[i : i + 76] + b"\n" for i in range(0, len(text), 76))
        out += b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"
    return out + b"\x00"


def renamed(role: str, name: str, **changes: Any) -> bytes:
    """A certificate of SGX's `ca` key that is made like the leaf `role`: no authority, by whatever name."""
    vendor = SGX.but(names={role: name}, keys={role: SGX.key("ca")}, issuer={role: "root"}, **changes)
    return vendor.forge(sgx_extension=b"\x30\x00").certificate(role)


def extension_with(*more: bytes, left_out: int = 0) -> bytes:
    """The SGX extension of SGX's PCK certificate with more entries behind, and perhaps its last one missing."""
    inner = SGX.sgx_extension
    content = inner[2 + (inner[1] & 0x7F if inner[1] >= 0x80 else 0) :]
    return tlv(0x30, content[: len(content) - left_out], *more)


def matrix_levels(*, tdx: bool) -> list[dict[str, Any]]:
    """A level for every status that Intel has."""
    found = []
    for status, svn in PLATFORM_LEVELS.items():
        tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": 5}
        if tdx:
            tcb["tdxtcbcomponents"] = [{"svn": 0}] * 16
        level = {"tcb": tcb, "tcbDate": "2026-10-01T00:00:00Z", "tcbStatus": status}
        found.append(level | ({} if status == "UpToDate" else {"advisoryIDs": [f"INTEL-SA-000{svn:02}"]}))
    return found


def sgx() -> Iterator[Vector]:
    """The format `sgx`."""
    book = Book("sgx", document="docs/spec/dcap.md")
    up = {"tcb_status": "UpToDate"}
    # --- accepted
    book.section(1, to=29)
    book.accept("genuine", "An enclave on a platform that is up to date.", dcap(SGX), spec="§1.1", **up,
                claims={"signer": hashlib.sha256(b"its signer").hexdigest(), "product": 7, "svn": 3})
    book.accept("processor-authority", "The platform is certified by the Processor CA.",
                dcap(SGX.but(authority=PROCESSOR)), spec="§3.1", **up)
    book.accept("zeros-behind", "A buffer of zeros follows the quote.", dcap(SGX.but(trailing=bytes(39))),
                spec="§2.4", **up)
    book.accept("pem-lines-of-76", "The PEM chain has lines of 76 characters.",
                dcap(SGX.forge(pck_chain=lines_of_76(SGX))), spec="§3.2", **up)
    book.accept("first-second", "The first second at which all collateral is valid.",
                dcap(SGX).but(now=NOW - DAY), spec="§4.5", **up)
    book.accept("last-second", "The last second at which all collateral is valid.",
                dcap(SGX).but(now=NOW + 27 * DAY - SECOND_LATER), spec="§4.5", **up)
    newer = SGX.but(tcb_info={"tcbEvaluationDataNumber": 21, "tcbLevels": statuses(tdx=False, top_svn=6)})
    book.accept("two-bundles", "Of two valid bundles the one with the higher evaluation number counts, "
                "which calls the platform out of date.", stapled(SGX, SGX.bundle, newer.bundle),
                spec="§4.1", tcb_status="OutOfDate")
    book.accept("bundle-of-another-platform-beside", "A bundle for TDX beside the fitting one is passed over.",
                stapled(SGX, TDX4.bundle, SGX.bundle), spec="§4.1", **up)
    book.accept("report-data", "The report data is what was asked for.", dcap(SGX), spec="§1.2",
                asked=("report_data", bytes(range(64))), **up)
    book.accept("unknown-members-of-intel", "TCB info with a member that Intel may add.",
                dcap(SGX.but(tcb_info={"tcbNews": "none"})), spec="§4.3", **up)
    # --- every status: platform x quoting enclave
    book.section(31, to=59, twin="genuine")
    vendor = SGX.but(tcb_info={"tcbLevels": matrix_levels(tdx=False)})
    for platform, svn in PLATFORM_LEVELS.items():
        for part, isv_svn in PARTS.items():
            made = dcap(vendor.but(components=(svn,) * 16, qe={"isv_svn": isv_svn.to_bytes(2, "little")}))
            status = together(platform, part)
            name, title = (
                f"platform-{platform}-qe-{part}",
                f"A platform that is {platform}, a QE that is {part}.",
            )
            if status == "Revoked":
                book.refuse(name, title, made, "tcb.revoked", "tcb_revoked", spec="§6.2",
                            also=(*SECOND, "policy.tcb_status"), tcb_status=status)
            else:
                book.accept(name, title, made, spec="§6.2", tcb_status=status)
    _form(book)
    _chain(book)
    _signatures(book)
    _collateral(book)
    _judgement(book)
    yield from book.done()


def _form(book: Book) -> None:
    quote = SGX.quote
    genuine = dcap(SGX)
    book.section(101, to=139, twin="genuine", grade=STRICT)

    def malformed(name: str, title: str, data: bytes, spec: str = "§2.2", **more: Any) -> None:
        book.refuse(name, title, genuine.but(data=data), "quote.form", "quote_malformed", spec=spec, **more)

    malformed("empty", "There are no bytes.", b"", grade="must")
    malformed("cut", "The last byte is missing.", quote[:-1], grade="must")
    malformed("cut-in-the-report", "The quote ends in the middle of the report.", quote[:300], grade="must")
    malformed("version-9", "The quote is of version 9.", SGX.but(header={"version": b"\x09\0"}).quote, "§2.1")
    malformed("version-2-epid", "The quote is of version 2, as EPID's are.",
              SGX.but(header={"version": b"\x02\0"}).quote, "§2.1")
    malformed("sgx-in-version-4", "An SGX report in a quote of version 4.",
              SGX.but(header={"version": b"\x04\0"}).quote, "§2.1")
    malformed("unknown-tee", "The TEE type is 0x82.", SGX.but(header={"tee_type": b"\x82\0\0\0"}).quote, "§2.1")
    malformed("key-type-epid", "The attestation key type is 0 (EPID).",
              SGX.but(header={"key_type": b"\0\0"}).quote, "§2.1")
    malformed("key-type-p384", "The attestation key type is 3 (ECDSA P-384), the key is of P-256.",
              SGX.but(header={"key_type": b"\3\0"}).quote, "§2.1")
    malformed("qe-vendor", "The quoting enclave's vendor is not Intel.",
              SGX.but(header={"vendor": bytes(16)}).quote, "§2.1",
              refs=("https://github.com/Phala-Network/dcap-qvl/issues/127",))
    malformed("reserved", "A reserved field of the enclave's report is not zero.",
              SGX.but(body={"reserved4": b"\1" * 42}).quote, "§2.3")
    malformed("qe-reserved", "A reserved field of the quoting enclave's report is not zero.",
              SGX.but(qe={"reserved1": b"\1" * 12}).quote, "§2.3")
    malformed("signature-size-short", "The signature data is said to be a byte shorter than it is.",
              SGX.forge(signature_size=(len(quote) - 437).to_bytes(4, "little")).quote)
    malformed("signature-size-long", "The signature data is said to be longer than what is there.",
              SGX.forge(signature_size=b"\xff\xff\xff\xff").quote, grade="must")
    malformed("certification-data-of-ppid", "The certification data is of type 1: no certificates are there.",
              SGX.forge(chain_type=b"\1\0").quote)
    malformed("certification-data-size", "The certification data does not fill the signature data.",
              SGX.forge(chain_size=(len(SGX.pck_chain) - 1).to_bytes(4, "little")).quote)
    malformed("qe-authentication-data-size", "The QE's authentication data has 33 bytes.",
              SGX.forge(qe_auth=bytes(33)).quote)
    book.section(141, to=149, twin="genuine")
    book.refuse("tdx-as-sgx", "A genuine TDX quote where SGX was expected.",
                dcap(TDX4).but(format="sgx", roots={"sgx": TDX4.roots}), "quote.tee", "quote_wrong_tee",
                spec="§7 check 2")


def _chain(book: Book) -> None:
    book.section(151, to=199, twin="genuine")

    def chain(name: str, title: str, vendor: Intel, spec: str = "§3.1", **more: Any) -> None:
        book.refuse(name, title, dcap(vendor), "pck.chain", "pck_chain_invalid", spec=spec, **more)

    ders = [SGX.certificate(role) for role in ("pck", "ca", "root")]
    genuine = SGX.pck_chain
    chain("chain-empty", "No certificates are in the quote.", SGX.forge(pck_chain=b""))
    chain("chain-without-root", "The chain ends below the root.", SGX.forge(pck_chain=pem(*ders[:2])))
    chain("chain-without-authority", "The authority's certificate is missing.",
          SGX.forge(pck_chain=pem(ders[0], ders[2])))
    chain("chain-out-of-order", "The root comes first.", SGX.forge(pck_chain=pem(*reversed(ders))), grade=STRICT)
    chain("leaf-of-another-vendor", "The leaf is signed under another root.",
          SGX.forge(pck_certificate=OTHER.certificate("pck")))
    chain("leaf-psychic", "The signature of the PCK certificate is two zeros.",
          SGX.forge(pck_certificate=der_signed(ders[0], ZEROS)), refs=PSYCHIC)
    chain("authority-psychic", "The signature of the authority's certificate is two zeros.",
          SGX.forge(ca_certificate=der_signed(ders[1], ZEROS)), refs=PSYCHIC)
    chain("leaf-under-the-root", "The leaf is issued by the root itself.", SGX.but(issuer={"pck": "root"}))
    chain("leaf-is-the-collateral-signer", "The certificate of the signer of TCB info passes as a platform's.",
          SGX.forge(pck_chain=pem(SGX.certificate("signing"), *ders[1:])))
    chain("leaf-signed-by-a-leaf", "The authority's certificate is that of an end entity by the right name.",
          SGX.forge(ca_certificate=renamed("pck", PLATFORM)))
    chain("leaf-named-otherwise", "The leaf has another common name.",
          SGX.but(names={"pck": "Intel SGX PCK Certificate 2"}), grade=STRICT)
    chain("leaf-critical-extension", "The leaf has a critical extension that nobody knows.",
          SGX.but(critical=("pck",)))
    chain("no-sgx-extension", "The leaf says nothing about the platform.", SGX.forge(no_sgx_extension=b""), "§3.3")
    chain("sgx-extension-twice", "The FMSPC is in the SGX extension twice, and differs.",
          SGX.forge(sgx_extension=extension_with(entry((4,), tlv(0x04, bytes(6))))), "§3.3")
    between = genuine.replace(b"-----\n-----", b"-----\n# text\n-----", 1)
    chain("text-between-certificates", "Text stands between the PEM certificates, signed by nobody.",
          SGX.forge(pck_chain=between), "§3.2", grade=STRICT)
    chain("pem-line-breaks-of-windows", "The PEM has carriage returns.",
          SGX.forge(pck_chain=genuine.replace(b"\n", b"\r\n")), "§3.2", grade=STRICT)
    book.section(201, to=229, twin="genuine")

    def root(name: str, title: str, minted: Minted, **more: Any) -> None:
        book.refuse(name, title, minted, "pck.root", "root_not_accepted", spec="§3.4", **more)

    root("no-roots", 'No root is named: that is not "any root".', under(SGX))
    root("another-root", "Another root is named.", under(SGX, OTHER.root))
    root("root-of-intel", "Intel's own root is named, and the chain is under another of the same name.",
         under(SGX, *PINNED_ROOTS))
    again = SGX.but(not_after={"root": NOW + 3000 * DAY})
    root("root-with-the-same-key", "The embedded root has the accepted one's name and key, but other dates: "
         "what is in a root that is not the anchor, its owner chose.", under(again, SGX.root),
         refs=("https://github.com/microsoft/TEE-Attestation-Verification/issues/140",), grade=STRICT)
    root("root-in-capitals", "The root is named in capitals.", under(SGX, SGX.root.upper()), grade=STRICT)
    root("authority-as-root", "The authority's fingerprint is named as a root.",
         under(SGX, hashlib.sha256(ders[1]).hexdigest()), grade=STRICT)
    for role, what in (("pck", "leaf"), ("ca", "authority")):
        vendor = SGX.but(not_after={role: NOW})
        book.refuse(f"{what}-expired", f"The {what}'s certificate ended this very second.", dcap(vendor),
                    "pck.time", "pck_chain_expired", spec="§7 check 5")
    book.refuse("leaf-from-future", "The leaf's certificate begins in a second.",
                dcap(SGX.but(not_before={"pck": NOW + SECOND_LATER})), "pck.time", "pck_chain_from_future",
                spec="§7 check 5")


def _signatures(book: Book) -> None:
    book.section(251, to=299, twin="genuine")

    def by(check: str, code: str) -> Any:
        def refuse(name: str, title: str, vendor: Intel, **more: Any) -> None:
            book.refuse(name, title, dcap(vendor), check, code, spec="§5.1", **more)

        return refuse

    qe = by("qe.signature", "qe_report_signature_invalid")
    qe("qe-signature-psychic", "The signature of the QE report is two zeros.", SGX.forge(qe_signature=bytes(64)),
       refs=PSYCHIC)
    qe("qe-signature-of-another-platform", "The QE report is signed by another platform's key.",
       SGX.forge(qe_signature=sign(OTHER.key("pck"), SGX.qe_report)))
    qe("qe-signature-by-the-authority", "The QE report is signed by the authority's key.",
       SGX.forge(qe_signature=sign(SGX.key("ca"), SGX.qe_report)))
    qe("qe-report-changed", "The QE report was changed after it was signed.",
       SGX.forge(qe_report=SGX.but(qe={"isv_svn": b"\x09\0"}).qe_report))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    genuine = sign(SGX.key("pck"), SGX.qe_report)
    qe("qe-signature-r-plus-order", "r is not below the order of the group.",
       SGX.forge(qe_signature=order.to_bytes(32) + genuine[32:]))
    key = by("qe.key", "attestation_key_unbound")
    key("key-not-vouched-for", "The quoting enclave's report data is zero.", SGX.but(qe={"report_data": bytes(64)}))
    other = SGX.but(keys={"attestation": OTHER.key("attestation")})
    key("key-of-another", "Another key signed the quote than the one that the quoting enclave vouches for.",
        other.but(qe={"report_data": SGX.qe_report[320:384]}))
    key("key-with-more-behind", "The second half of the quoting enclave's report data is not zero.",
        SGX.but(qe={"report_data": SGX.qe_report[320:352] + b"\1" * 32}), grade=STRICT)
    key("authentication-data-changed", "The QE's authentication data is not what was hashed.",
        SGX.forge(qe_auth=bytes(32)))
    quote = by("quote.signature", "evidence_signature_invalid")
    quote("signature-psychic", "The signature of the quote is two zeros.", SGX.forge(signature=bytes(64)),
          refs=PSYCHIC)
    quote("signature-of-another-key", "The quote is signed by another key.",
          SGX.forge(signature=sign(OTHER.key("attestation"), SGX.quote[:432])))
    quote("report-data-changed", "The report data was changed after signing.",
          SGX.forge(signed=SGX.quote[:368] + b"\xff" + SGX.quote[369:432]))
    quote("debug-bit-cleared", "The debug bit was cleared after signing.",
          SGX.but(body={"attributes": bytes.fromhex("0700000000000000e700000000000000")}).forge(
              signed=SGX.quote[:432]))
    quote("signature-without-header", "The signature covers the report, and not the header.",
          SGX.forge(signature=sign(SGX.key("attestation"), SGX.quote[48:432])))
    no_point = b"\1" * 64
    vouched = hashlib.sha256(no_point + bytes(range(32))).digest() + bytes(32)
    quote("key-off-the-curve", "The attestation key is no point of P-256, and vouched for all the same.",
          SGX.but(qe={"report_data": vouched}).forge(attestation_key=no_point))
    zero = bytes(64)
    vouched = hashlib.sha256(zero + bytes(range(32))).digest() + bytes(32)
    quote("key-of-zeros", "The attestation key is all zero, and vouched for all the same.",
          SGX.but(qe={"report_data": vouched}).forge(attestation_key=zero))


def _collateral(book: Book) -> None:
    book.section(301, to=339, twin="genuine")
    info = SGX.members["tcb_info"]
    genuine = SGX.bundle

    def form(name: str, title: str, *bundles: bytes, code: str = "collateral_malformed", spec: str = "§4.1",
             **more: Any) -> None:
        book.refuse(name, title, stapled(SGX, *bundles), "collateral.form", code, spec=spec, **more)

    def signed(**documents: str) -> bytes:
        """The bundle with documents that the genuine signer signed."""
        made = {}
        for name, text in documents.items():
            made |= {name: text, f"{name}_signature": sign(SGX.key("signing"), text.encode()).hex()}
        return bundle(SGX, **made)

    form("no-collateral", "Nothing judges the platform.", code="collateral_missing")
    form("collateral-of-another-platform", "The TCB info is for another FMSPC.",
         SGX.but(tcb_info={"fmspc": "00" * 6}).bundle, code="collateral_missing", spec="§5.4")
    form("collateral-of-tdx", "The TCB info is that of TDX for the same platform.", TDX4.bundle,
         code="collateral_missing")
    form("one-bundle-malformed", "A second bundle, beside a fitting one, is malformed.", genuine,
         bundle(SGX, tcb_info="{}"), grade=STRICT)
    form("member-missing", "The bundle has no root CRL.", bundle(SGX, root_ca_crl=None))
    form("member-twice", "The TCB info is in the bundle twice.",
         genuine[:-1] + b', "tcb_info": ' + json.dumps(info).encode() + b"}")
    form("tcb-info-member-twice", "A status of the signed TCB info is there twice, and differs.",
         signed(tcb_info=info.replace('"tcbStatus":"OutOfDate"', '"tcbStatus":"OutOfDate","tcbStatus":"UpToDate"')),
         spec="§4.3")
    form("tcb-info-version-2", "The TCB info is of version 2.", SGX.but(tcb_info={"version": 2}).bundle, spec="§4.2")
    book.section(341, to=389, twin="genuine")

    def signature(name: str, title: str, vendor: Intel, *, code: str = "collateral_signature_invalid",
                  **more: Any) -> None:
        book.refuse(name, title, dcap(vendor), "collateral.signature", code, spec="§4.4", **more)

    def pasted(**members: str) -> Intel:
        return SGX.forge(bundle=bundle(SGX, **members))

    signature("collateral-of-another-vendor", "The whole bundle is under another root.",
              SGX.forge(bundle=OTHER.bundle))
    signature("tcb-info-psychic", "The signature of the TCB info is two zeros.", pasted(tcb_info_signature="00" * 64),
              refs=PSYCHIC)
    signature("identity-psychic", "The signature of the QE identity is two zeros.",
              pasted(qe_identity_signature="00" * 64), refs=PSYCHIC)
    signature("tcb-info-changed", "An outdated level was made UpToDate after signing.",
              pasted(tcb_info=info.replace('"OutOfDate"', '"UpToDate"')))
    platform = pem(*(SGX.certificate(role) for role in ("pck", "ca", "root")))
    signature("tcb-info-signed-by-a-platform", "The TCB info is signed by the platform's own PCK key.",
              SGX.but(signers={"tcb_info": "pck"}).forge(tcb_info_chain=platform))
    signature("identity-signed-by-the-authority", "The QE identity is signed by the PCK authority.",
              SGX.but(signers={"qe_identity": "ca"}).forge(
                  qe_identity_chain=pem(SGX.certificate("ca"), SGX.certificate("root"))))
    signature("identity-chain-of-another-root", "The QE identity's chain ends at another root than the quote's.",
              SGX.forge(qe_identity_chain=pem(OTHER.certificate("signing"), OTHER.certificate("root"))))
    signature("signer-named-otherwise", "The signer of the collateral has a platform's name.",
              SGX.but(names={"signing": PCK}))
    signature("root-crl-by-the-authority", "The root CRL is signed by the authority.",
              SGX.but(signers={"root_crl": "ca"}))
    signature("pck-crl-by-the-root", "The PCK CRL is signed by the root.", SGX.but(signers={"ca_crl": "root"}))
    signature("pck-crl-psychic", "The signature of the PCK CRL is two zeros.",
              SGX.forge(ca_crl=der_signed(SGX.crl("ca"), ZEROS)), refs=PSYCHIC)
    signature("root-crl-psychic", "The signature of the root CRL is two zeros.",
              SGX.forge(root_crl=der_signed(SGX.crl("root"), ZEROS)), refs=PSYCHIC)
    signature("pck-crl-is-the-root-crl", "The root CRL stands in the PCK CRL's place.",
              SGX.forge(ca_crl=SGX.crl("root")))
    signature("pck-crl-of-the-other-authority", "The CRL chain is that of the Processor CA, the platform's is not.",
              pasted(pck_crl_issuer_chain=pem(SGX.but(authority=PROCESSOR).certificate("ca"),
                                              SGX.certificate("root")).decode()))
    signature("root-crl-malformed", "The root CRL is an empty sequence.", SGX.forge(root_crl=b"\x30\0"),
              code="collateral_malformed")
    book.section(391, to=419, twin="genuine", spec="§4.5")

    def time(name: str, title: str, vendor: Intel, code: str) -> None:
        # Where the collateral is not valid now, the second evaluation cannot be made.
        book.refuse(name, title, dcap(vendor), "collateral.time", code, tcb_status="UpToDate")

    end, begin = "2026-11-23T12:00:00Z", "2026-11-23T12:00:01Z"
    expired, future = "collateral_expired", "collateral_from_future"
    time("tcb-info-expired", "The TCB info ended this very second.", SGX.but(tcb_info={"nextUpdate": end}), expired)
    time("tcb-info-from-future", "The TCB info begins in a second.", SGX.but(tcb_info={"issueDate": begin}), future)
    time("identity-expired", "The QE identity ended this very second.", SGX.but(qe_identity={"nextUpdate": end}),
         expired)
    time("root-crl-expired", "The root CRL ended this very second.", SGX.but(crl_next_update={"root": NOW}), expired)
    time("pck-crl-expired", "The PCK CRL ended this very second.", SGX.but(crl_next_update={"ca": NOW}), expired)
    time("signer-expired", "The signer's certificate ended this very second.", SGX.but(not_after={"signing": NOW}),
         expired)
    book.section(421, to=439, twin="genuine", spec="§4.6")
    for role, what in (("pck", "platform"), ("ca", "authority"), ("signing", "signer")):
        book.refuse(f"{what}-revoked", f"The {what}'s certificate is on its issuer's list.",
                    dcap(SGX.but(revoked=(role,))), "pck.revocation", "certificate_revoked")


def _judgement(book: Book) -> None:
    book.section(451, to=479, twin="genuine", refs=QE_IDENTITY, spec="§5.2")

    def identity(name: str, title: str, vendor: Intel, **more: Any) -> None:
        book.refuse(name, title, dcap(vendor), "qe.identity", "qe_identity_mismatch", **more)

    identity("CVE-2026-22696-any-enclave", "An enclave of another signer on a genuine machine made the quote.",
             SGX.but(qe={"mr_signer": hashlib.sha256(b"mallory").digest()}))
    identity("CVE-2026-22696-another-product", "Another product of the quoting enclave's signer made the quote.",
             SGX.but(qe={"isv_prod_id": b"\2\0"}))
    identity("CVE-2026-22696-debug-enclave", "The quoting enclave runs in debug mode.",
             SGX.but(qe={"attributes": bytes.fromhex("1700000000000000e700000000000000")}))
    identity("CVE-2026-22696-misc-select", "The quoting enclave has another MISCSELECT.",
             SGX.but(qe={"misc_select": b"\1\0\0\0"}))
    identity("CVE-2026-22696-application", "The application's own enclave vouches for a key of its own.",
             SGX.but(qe={"mr_signer": hashlib.sha256(b"its signer").digest(), "isv_prod_id": b"\7\0",
                         "mr_enclave": hashlib.sha256(b"the enclave").digest()}))
    book.refuse("pce-of-another-platform", "The TCB info is for another PCE.",
                dcap(SGX.but(tcb_info={"pceId": "0001"})), "tcb.platform", "tcb_info_other_platform",
                spec="§5.4", refs=())
    book.section(481, to=499, twin="genuine", spec="§6.1")

    def level(name: str, title: str, vendor: Intel, **more: Any) -> None:
        book.refuse(name, title, dcap(vendor), "tcb.level", "tcb_level_unknown",
                    also=SECOND, tcb_status="NotSupported", **more)

    level("below-every-level", "The platform reaches no level.", SGX.but(components=(0,) * 16))
    level("pce-below-every-level", "The PCE's SVN reaches no level.", SGX.but(pce_svn=0))
    level("last-component-below", "The last of sixteen components reaches no level, the others the best.",
          SGX.but(components=(5,) * 15 + (0,)))
    level("quoting-enclave-below", "The quoting enclave reaches no level.", SGX.but(qe={"isv_svn": b"\1\0"}),
          spec="§6.2")
    book.section(501, to=519, twin="genuine")
    debug = SGX.but(body={"attributes": bytes.fromhex("0700000000000000e700000000000000")})
    book.refuse("debug", "The enclave runs in debug mode: the host can read it.", dcap(debug), "tee.debug",
                "quote_debug", spec="§7 check 18", also=(*SECOND, "policy.debug"), tcb_status="UpToDate")
    book.refuse("trailing", "A byte that is not zero follows the quote.", dcap(SGX.but(trailing=b"\0\0x\0")),
                "quote.trailing", "quote_trailing", spec="§2.4", grade=STRICT, tcb_status="UpToDate")
    book.section(521, to=549, twin="report-data", tcb_status="UpToDate", spec="§1.2")

    def asked(name: str, title: str, data: bytes, *, minted: Minted | None = None, **more: Any) -> None:
        book.refuse(name, title, minted or dcap(SGX), "evidence.report_data", "report_data_mismatch",
                    asked=("report_data", data), **more)

    asked("report-data-of-another", "Other report data was asked for.", bytes(64))
    asked("report-data-half", "The first half of what was asked for is right.", bytes(range(32)) + bytes(32))
    asked("report-data-prefix", "32 bytes were asked for, and the report data begins with them.", bytes(range(32)),
          refs=GRAMINE_32)
    asked("report-data-longer", "What was asked for goes on behind 64 bytes.", bytes(range(65)))
    asked("report-data-empty", "Nothing was asked for, in the word of a caller who lost it: no comparison passes for "
          "want of a value.", b"", refs=SKIPPED_SNP)
    nothing = dcap(SGX.but(body={"report_data": bytes(64)}))
    asked("report-data-of-zeros", "The enclave gave no report data, and some was asked for.", bytes(range(64)),
          minted=nothing, refs=SKIPPED_TDX)


def tdx() -> Iterator[Vector]:
    """The format `tdx`: what is TDX's own, and the common checks once more where a quote differs."""
    book = Book("tdx", document="docs/spec/dcap.md")
    up = {"tcb_status": "UpToDate"}
    book.section(1, to=29)
    book.accept("genuine", "A TD on a platform that is up to date; quote version 4.", dcap(TDX4), spec="§1.1", **up)
    book.accept("version-5", "Quote version 5 with a TD report 1.5.", dcap(TDX5), spec="§2.1", **up)
    book.accept("version-5-report-1.0", "Quote version 5 with a TD report 1.0.", dcap(TDX5_10), spec="§2.1", **up)
    book.accept("zeros-behind", "A buffer of zeros follows the quote.", dcap(TDX5.but(trailing=bytes(70))),
                spec="§2.4", **up)
    for bit, what in ((30, "PKS"), (63, "PERFMON")):
        book.accept(f"attribute-{what}", f"The TD has the harmless attribute {what}.",
                    dcap(TDX4.but(body={"td_attributes": bits(28, bit)})), spec="§7 check 19", **up)
    book.accept("module-without-version", "A TDX module of version 1.0 states no major version: `tdxModule` counts.",
                dcap(TDX4.but(body={"tee_tcb_svn": bytes([5, 0, 5]) + bytes(13)},
                              tcb_info={"tcbLevels": _unversioned()})), spec="§5.3", **up)
    book.accept("report-data", "The report data is what was asked for.", dcap(TDX5), spec="§1.2",
                asked=("report_data", bytes(range(64))), **up)
    # --- the TCB that runs now beside that of the launch
    book.section(31, to=49, twin="version-5", spec="§6.3")
    old, new = bytes([3, 1, 5]) + bytes(13), bytes([5, 1, 5]) + bytes(13)
    levels = TDX5.but(tcb_info={"tcbLevels": matrix_levels(tdx=True)})

    def running(platform: str, launch: bytes, now: bytes) -> Minted:
        vendor = levels.but(components=(PLATFORM_LEVELS[platform],) * 16)
        return dcap(vendor.but(body={"tee_tcb_svn": launch, "tee_tcb_svn2": now}))

    book.accept("relaunch-advised", "Launched on an outdated module, which was updated since.",
                running("UpToDate", old, new), tcb_status="TDRelaunchAdvised")
    book.accept("relaunch-advised-configuration", "The same on a platform whose configuration needs a look.",
                running("ConfigurationNeeded", old, new), tcb_status="TDRelaunchAdvisedConfigurationNeeded")
    book.accept("still-out-of-date", "Launched on an outdated module that runs still.",
                running("UpToDate", old, old), tcb_status="OutOfDate")
    book.accept("relaunch-of-no-use", "The module was updated, but the platform itself is out of date.",
                running("OutOfDate", old, new), tcb_status="OutOfDate")
    revoked, below = bytes([2, 1, 5]) + bytes(13), bytes([1, 1, 5]) + bytes(13)
    book.refuse("running-module-revoked", "The module that runs now is revoked, the one of the launch was not.",
                running("UpToDate", new, revoked), "tcb.revoked", "tcb_revoked",
                also=(*SECOND, "policy.tcb_status"), tcb_status="Revoked")
    book.refuse("running-module-below", "The module that runs now is below every level.",
                running("UpToDate", new, below), "tcb.level", "tcb_level_unknown", also=SECOND,
                tcb_status="NotSupported")
    # --- every status: platform x quoting enclave x module
    book.section(51, to=129, twin="genuine", spec="§6.2")
    vendor = TDX4.but(tcb_info={"tcbLevels": matrix_levels(tdx=True)})
    for platform, svn in PLATFORM_LEVELS.items():
        for part, isv_svn in PARTS.items():
            for module, minor in MODULES.items():
                if not _in_matrix(platform, part, module):
                    continue
                made = dcap(vendor.but(components=(svn,) * 16, qe={"isv_svn": isv_svn.to_bytes(2, "little")},
                                       body={"tee_tcb_svn": bytes([minor, 1, 5]) + bytes(13)}))
                status = together(platform, part, module)
                name = f"platform-{platform}-qe-{part}-module-{module}"
                title = f"A platform that is {platform}, a QE that is {part}, a TDX module that is {module}."
                if status == "Revoked":
                    book.refuse(name, title, made, "tcb.revoked", "tcb_revoked",
                                also=(*SECOND, "policy.tcb_status"), tcb_status=status)
                else:
                    book.accept(name, title, made, tcb_status=status)
    _tdx_refusals(book)
    yield from book.done()


def _in_matrix(platform: str, part: str, module: str) -> bool:
    """A platform of every status with a module of every status; two of them with a quoting enclave of every status; and
    both parts out of date.
    """
    if part == "UpToDate":
        return True
    few = platform in ("UpToDate", "ConfigurationNeeded")
    return few and (module == "UpToDate" or part == module == "OutOfDate")


def _unversioned() -> list[dict[str, Any]]:
    """Levels for a module that states no major version: all sixteen TDX components count."""
    levels = statuses(tdx=True)
    for level in levels:
        level["tcb"]["tdxtcbcomponents"] = [{"svn": 1}, {"svn": 0}, {"svn": 1}] + [{"svn": 0}] * 13
    return levels


def _tdx_refusals(book: Book) -> None:
    genuine = dcap(TDX5)
    book.section(151, to=179, twin="version-5", grade=STRICT)

    def malformed(name: str, title: str, data: bytes, spec: str = "§2.2", **more: Any) -> None:
        book.refuse(name, title, genuine.but(data=data), "quote.form", "quote_malformed", spec=spec, **more)

    malformed("cut", "The last byte is missing.", TDX5.quote[:-1], grade="must")
    malformed("version-3", "A TD report in a quote of version 3.", TDX4.but(header={"version": b"\3\0"}).quote,
              "§2.1")
    malformed("body-type-1", "Version 5 with body type 1 (SGX) around a TD report.",
              TDX5.forge(body_type=b"\1\0").quote, "§2.1")
    malformed("body-type-4", "Version 5 with the unknown body type 4.", TDX5.forge(body_type=b"\4\0").quote, "§2.1")
    malformed("body-type-of-1.0", "A TD report 1.5 that is said to be one of 1.0: its last two fields would be read "
              "as a signature.", TDX5.forge(body_type=b"\2\0").quote, "§2.1", grade="must")
    malformed("body-size", "The size of the body is not that of its type.",
              TDX5.forge(body_size=(649).to_bytes(4, "little")).quote)
    malformed("certification-data-of-no-qe", "The outer certification data is of type 5.",
              TDX5.forge(qe_type=b"\5\0").quote)
    malformed("qe-size", "The outer certification data does not fill the signature data.",
              TDX4.forge(qe_size=b"\0\1\0\0").quote)
    book.refuse("sgx-as-tdx", "A genuine SGX quote where TDX was expected.",
                dcap(SGX).but(format="tdx", roots={"tdx": SGX.roots}), "quote.tee", "quote_wrong_tee",
                spec="§7 check 2", grade="must")
    book.section(181, to=219, twin="version-5", spec="§5.1")
    chain, time = "pck_chain_invalid", "pck_chain_expired"
    book.refuse("leaf-of-another-vendor", "The leaf is signed under another root.",
                dcap(TDX5.forge(pck_certificate=OTHER.certificate("pck"))), "pck.chain", chain, spec="§3.1")
    book.refuse("another-root", "Another root is named.", under(TDX5, OTHER.root), "pck.root", "root_not_accepted",
                spec="§3.4")
    book.refuse("root-of-intel", "Intel's own root is named, and the chain is under another of the same name.",
                under(TDX4, *PINNED_ROOTS), "pck.root", "root_not_accepted", spec="§3.4")
    book.refuse("leaf-expired", "The leaf's certificate ended this very second.",
                dcap(TDX5.but(not_after={"pck": NOW})), "pck.time", time, spec="§7 check 5")
    book.refuse("qe-signature-psychic", "The signature of the QE report is two zeros.",
                dcap(TDX5.forge(qe_signature=bytes(64))), "qe.signature", "qe_report_signature_invalid",
                refs=PSYCHIC)
    book.refuse("authentication-data-changed", "The QE's authentication data is not what was hashed.",
                dcap(TDX4.forge(qe_auth=bytes(32))), "qe.key", "attestation_key_unbound")
    invalid = "evidence_signature_invalid"
    book.refuse("signature-psychic", "The signature of the quote is two zeros.", dcap(TDX5.forge(signature=bytes(64))),
                "quote.signature", invalid, refs=PSYCHIC)
    book.refuse("signature-without-descriptor", "The signature of a version 5 quote leaves out type and size of the "
                "body.",
                dcap(TDX5.forge(signature=sign(TDX5.key("attestation"), TDX5.quote[:48] + TDX5.quote[54:702]))),
                "quote.signature", invalid)
    book.refuse("rtmr-changed", "RTMR3 was changed after signing.",
                dcap(TDX4.forge(signed=TDX4.but(body={"rtmr3": bytes(48)}).quote[:632])), "quote.signature", invalid)
    book.refuse("mrtd-changed", "MRTD was changed after signing.",
                dcap(TDX5.forge(signed=TDX5.but(body={"mr_td": bytes(48)}).quote[:702])), "quote.signature", invalid)
    book.section(221, to=259, twin="version-5")
    missing, bad = "collateral_missing", "collateral_signature_invalid"
    book.refuse("no-collateral", "Nothing judges the platform.", stapled(TDX5), "collateral.form", missing,
                spec="§4.1")
    book.refuse("collateral-of-sgx", "The TCB info is that of SGX for the same platform.", stapled(TDX5, SGX.bundle),
                "collateral.form", missing, spec="§4.1")
    changed = TDX5.members["tcb_info"].replace('"mrsigner":"' + "00" * 48, '"mrsigner":"' + "01" * 48)
    book.refuse("tcb-info-changed", "The signer of the TDX module was changed after signing.",
                stapled(TDX5, bundle(TDX5, tcb_info=changed)), "collateral.signature", bad, spec="§4.4")
    twice = [
        {"id": "TDX_01", "mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8,
         "tcbLevels": enclave_levels((5, "UpToDate"))}
    ] * 2
    book.refuse("module-identity-twice", "The identity of the module's version is in the TCB info twice.",
                dcap(TDX4.but(tcb_info={"tdxModuleIdentities": twice})), "collateral.form", "collateral_malformed",
                spec="§4.3", grade=STRICT)
    book.refuse("no-module", "The TCB info of TDX says nothing about the TDX module.",
                stapled(TDX4, _without_module()), "collateral.form", "collateral_malformed", spec="§5.3",
                refs=("https://github.com/Phala-Network/dcap-qvl/issues/124",))
    book.section(261, to=299, twin="genuine")
    other = hashlib.sha256(b"mallory").digest()
    mismatch = ("qe.identity", "qe_identity_mismatch")
    book.refuse("CVE-2026-22696-any-enclave", "An enclave of another signer on a genuine machine made the quote.",
                dcap(TDX5.but(qe={"mr_signer": other})), *mismatch, spec="§5.2", refs=QE_IDENTITY)
    book.refuse("CVE-2026-22696-sgx-quoting-enclave", "SGX's quoting enclave, of the same signer, made the quote.",
                dcap(TDX4.but(qe={"isv_prod_id": b"\1\0"})), *mismatch, spec="§5.2", refs=QE_IDENTITY)
    book.refuse("CVE-2026-22696-identity-of-sgx", "The identity that was handed in is that of SGX's quoting enclave.",
                dcap(TDX4.but(qe_identity={"id": "QE"})), *mismatch, spec="§5.2", refs=QE_IDENTITY)
    book.refuse("pce-of-another-platform", "The TCB info is for another PCE.",
                dcap(TDX4.but(tcb_info={"pceId": "0001"})), "tcb.platform", "tcb_info_other_platform", spec="§5.4")
    module = ("tdx.module", "tdx_module_mismatch")
    refs = ("https://github.com/Phala-Network/dcap-qvl/issues/124",)
    book.refuse("module-of-another-signer", "The TDX module is signed by somebody else.",
                dcap(TDX4.but(body={"mr_signer_seam": b"\1" * 48})), *module, spec="§5.3", refs=refs)
    book.refuse("module-attributes", "The TDX module has an attribute that Intel's does not: it is a debug build.",
                dcap(TDX4.but(body={"seam_attributes": b"\1" + bytes(7)})), *module, spec="§5.3", refs=refs)
    book.refuse("module-of-unknown-version", "The TDX module is of a major version that Intel does not list.",
                dcap(TDX4.but(body={"tee_tcb_svn": bytes([5, 9, 5]) + bytes(13)})), *module, spec="§5.3", refs=refs)
    book.section(301, to=339, twin="genuine")
    level = ("tcb.level", "tcb_level_unknown")
    low = {"also": SECOND, "tcb_status": "NotSupported"}
    book.refuse("below-every-level", "The platform reaches no level.", dcap(TDX4.but(components=(0,) * 16)), *level,
                spec="§6.1", **low)
    book.refuse("tdx-component-below", "The third TDX component reaches no level, SGX's the best.",
                dcap(TDX4.but(body={"tee_tcb_svn": bytes([5, 1, 0]) + bytes(13)})), *level, spec="§6.1", **low)
    book.refuse("module-below-every-level", "The TDX module reaches no level.",
                dcap(TDX4.but(body={"tee_tcb_svn": bytes([1, 1, 5]) + bytes(13)})), *level, spec="§6.2", **low)
    book.refuse("quoting-enclave-below", "The quoting enclave reaches no level.",
                dcap(TDX4.but(qe={"isv_svn": b"\1\0"})), *level, spec="§6.2", **low)
    book.section(341, to=379, twin="genuine", tcb_status="UpToDate")
    debug = (*SECOND, "policy.debug")
    for number, what in ((0, "DEBUG"), (5, "profiling")):
        book.refuse(f"debug-bit-{number}", f"The TD is under debug: {what} is set.",
                    dcap(TDX4.but(body={"td_attributes": bits(number, 28)})), "tee.debug", "quote_debug",
                    also=debug, spec="§7 check 18")
    for number, what, second in (
        (29, "MIGRATABLE: its memory may be moved", SECOND),
        (17, "that a service TD may be extended", SECOND),
        (45, "a reserved bit", SECOND),
        (16, "a reserved bit that a common library lets through", ()),
    ):
        book.refuse(f"attribute-{number}", f"The TD has the attribute {number}: {what}.",
                    dcap(TDX4.but(body={"td_attributes": bits(number, 28)})), "tdx.attributes",
                    "tdx_attributes_refused", also=second, spec="§7 check 19",
                    grade=STRICT if number in (16, 45) else "must")
    book.refuse("sept-ve-enabled", "SEPT_VE_DISABLE is clear: the host can inject exceptions.",
                dcap(TDX4.but(body={"td_attributes": bytes(8)})), "tdx.sept_ve", "tdx_sept_ve_enabled", also=SECOND,
                spec="§7 check 20")
    book.refuse("service-td", "A service TD is bound.", dcap(TDX5.but(body={"mr_service_td": b"\1" * 48})),
                "tdx.service_td", "tdx_service_td", also=SECOND, spec="§7 check 21")
    book.refuse("trailing", "A byte that is not zero follows the quote.", dcap(TDX5.but(trailing=b"\0x")),
                "quote.trailing", "quote_trailing", spec="§2.4", grade=STRICT)
    book.section(381, to=399, twin="report-data", tcb_status="UpToDate", spec="§1.2")
    mismatch = ("evidence.report_data", "report_data_mismatch")
    book.refuse("report-data-of-another", "Other report data was asked for: the value that a session expects is "
                "compared with the quote's.", dcap(TDX5), *mismatch, asked=("report_data", b"\7" * 64),
                refs=SKIPPED_TDX)
    book.refuse("report-data-of-zeros", "The TD gave no report data, and some was asked for.",
                dcap(TDX5.but(body={"report_data": bytes(64)})), *mismatch,
                asked=("report_data", bytes(range(64))), refs=SKIPPED_TDX)
    book.refuse("report-data-half", "The first half of what was asked for is right.", dcap(TDX5), *mismatch,
                asked=("report_data", bytes(range(32)) + bytes(32)))
    book.refuse("report-data-empty", "Nothing was asked for, in the word of a caller who lost it.", dcap(TDX5),
                *mismatch, asked=("report_data", b""), refs=SKIPPED_SNP)


def _without_module() -> bytes:
    """The collateral of TDX4 with a signed TCB info that has no module in it."""
    members = {k: v for k, v in TDX4.tcb_info_json.items() if not k.startswith("tdxModule")}
    text = json.dumps(members, separators=(",", ":"))
    return bundle(TDX4, tcb_info=text, tcb_info_signature=sign(TDX4.key("signing"), text.encode()).hex())


def cases() -> Iterator[Vector]:
    """Both formats."""
    yield from sgx()
    yield from tdx()
