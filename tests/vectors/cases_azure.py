"""Vectors of the format `azure` (docs/spec/azure.md)."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from cases_dcap import SKIPPED_SNP
from cases_tpm import BLEICHENBACHER, cube_root, rsassa, short_padding
from fake_azure import VTPM, jwk
from tee import Cloud, Machine, Minted, azure, keys, snp
from tee import tpm as fake
from vector_model import STRICT, Book, Vector

from strongroom.attest.dcap import PINNED_ROOTS as INTEL
from strongroom.attest.snp import PINNED_ROOTS as AMD
from strongroom.attest.strict import canonical
from strongroom.attest.tpm_quote import qualifying_data

# fmt: off

SMALL: dict[str, Any] = {"keys": (jwk(VTPM.ak_key),), "padding": bytes(4)}
CLOUD = Cloud(members={"certificates": []}, **SMALL)
TDX = Cloud(tee="tdx", **SMALL)
OTHER_TPM = VTPM.but(label="mallory")


def machine(cloud: Cloud = CLOUD, **members: Any) -> Minted:
    """The machine's document, with the certificates of its processor beside it and not inside."""
    if members:
        cloud = cloud.but(members=dict(cloud.members) | members)
    made = azure(cloud)
    if cloud.tee == "snp":
        made = made.but(endorsements=snp(cloud.snp).endorsements)
    return made


def cases() -> Iterator[Vector]:
    """Accepted, then refused link by link."""
    book = Book("azure", document="docs/spec/azure.md")
    reported = {"tcb_status": "NotReported"}
    book.section(1, to=19)
    book.accept("genuine", "A guest above a paravisor on Milan.", machine(), spec="§1.1", **reported)
    for product in ("Genoa",):
        book.accept(product.lower(), f"A guest above a paravisor on {product}.",
                    machine(CLOUD.but(snp=Machine(product=product))), spec="§2.2", **reported)
    book.accept("tdx", "A guest above a paravisor in a TD, whose SEPT_VE_DISABLE is clear.", machine(TDX), spec="§3.1",
                tcb_status="UpToDate")
    book.accept("event-log", "A log of the start that gives the quoted PCRs.",
                machine(event_log=fake.event_log(fake.BOOT)), spec="§3", **reported)
    book.accept("nonce", "The qualifying data are the nonce that was asked for.", machine(), spec="§4.2",
                asked=("nonce", fake.QUALIFYING), **reported)
    wanted = bytes(range(64))
    book.accept("report-data", "The qualifying data are the SHA-256 of what was asked for.",
                machine(CLOUD.but(vtpm=VTPM.but(qualifying=qualifying_data(wanted)))), spec="§4.2",
                asked=("report_data", wanted), **reported)
    _form(book)
    _hardware(book)
    _key(book)
    _quote(book)
    yield from book.done()


def _form(book: Book) -> None:
    book.section(101, to=139, twin="genuine", spec="§2.1")
    document = machine().data

    def form(name: str, title: str, data: bytes, code: str = "evidence_malformed", *, of: Minted | None = None,
             **more: Any) -> None:
        book.refuse(name, title, (of or machine()).but(data=data), "evidence.form", code, **more)

    form("not-canonical", "A line break follows the document.", document + b"\n", grade=STRICT)
    form("member-unknown", "The document has an unknown member.", canonical(json.loads(document) | {"trusted": True}),
         grade=STRICT)
    form("td-quote-with-snp", "A TD quote stands beside an SEV-SNP report.",
         canonical(json.loads(document) | {"td_quote": "AAAA"}), grade=STRICT)
    form("td-quote-missing", "A TD report stands there without its quote, which only its own machine could check.",
         TDX.but(members={"td_quote": b""}).document, of=machine(TDX))
    form("certify-instead-of-quote", "The vTPM attested the creation of a key.",
         machine(CLOUD.but(vtpm=VTPM.but(type=0x8017))).data, "tpm_not_a_quote")

    def hcl(name: str, title: str, report: bytes, **more: Any) -> None:
        form(name, title, machine(hcl_report=report).data, "azure_hcl_malformed", spec="§2.2", **more)

    def patched(patches: dict[int, bytes]) -> bytes:
        return CLOUD.but(patches=patches).hcl

    hcl("hcl-cut", "The paravisor's report ends before the runtime data.", CLOUD.hcl[:1235])
    hcl("hcl-magic", "The paravisor's report does not begin with HCLA.", patched({0: b"HCLB"}), grade=STRICT)
    hcl("hcl-vbs", "The report is of virtualization-based security, which is no hardware.", patched({1216 + 8: b"\1"}))
    hcl("hcl-sha512", "The runtime data are said to be hashed with SHA-512.", patched({1216 + 12: b"\3"}), grade=STRICT)
    hcl("hcl-lengths", "The length of the runtime data contradicts that of the whole.", patched({1216: b"\0\0"}))
    hcl("hcl-beyond-the-end", "The runtime data are said to go on beyond the end.", patched({1216 + 16: b"\xff\xff"}))
    hcl("hcl-padding", "Something stands in the padding.", CLOUD.but(padding=bytes(3) + b"\1").hcl, grade=STRICT)


def _hardware(book: Book) -> None:
    book.section(141, to=189, twin="genuine")
    refused = ("azure.hardware",)
    invalid = "evidence_signature_invalid"
    broken = CLOUD.but(snp=Machine(after={0x2A0: b"\1\1\1"}))
    book.refuse("snp-signature", "The hardware report's signature was changed.", machine(broken), "snp.signature",
                invalid, also=refused, spec="§3 check 2")
    forged = CLOUD.but(snp=Machine(after={0x50: bytes(32)}))
    book.refuse("snp-report-data-changed", "The hardware report's report data were changed after signing.",
                machine(forged), "snp.signature", invalid, also=refused, spec="§3 check 2")
    book.refuse("no-leaf", "The certificate of the chip is missing.",
                machine().but(endorsements=snp().endorsements[1:]), "snp.leaf", "snp_leaf_missing", also=refused,
                spec="§3 check 2")
    book.refuse("roots-of-the-vendors", "AMD's and Intel's own roots are named, and the chain is under another.",
                machine().but(roots={"azure": (*AMD, *INTEL)}, anchors=()), "snp.chain.root", "root_not_accepted",
                also=refused, spec="§3 check 2")
    book.refuse("no-roots", "No root is named: that is not \"any root\".",
                machine().but(roots={"azure": ()}, anchors=()), "snp.chain.root", "root_not_accepted", also=refused,
                spec="§3 check 2")
    book.section(191, to=199, twin="genuine", spec="§3 check 2.3")
    for level in (1, 3):
        book.refuse(f"vmpl-{level}", f"The report was made at VMPL {level}: the guest itself may have asked for it, "
                    f"about any key.", machine(CLOUD.but(snp=Machine(fields={0x30: bytes([level])}))), "azure.vmpl",
                    "azure_vmpl")
    book.section(201, to=229, twin="tdx")
    unsigned = TDX.but(members={"td_quote": TDX.intel.forge(signature=bytes(64)).quote})
    book.refuse("td-signature-psychic", "The signature of the TD quote is two zeros.", machine(unsigned),
                "quote.signature", invalid, also=refused, spec="§3 check 2", refs=("CVE-2022-21449",))
    body = {"report_data": TDX.hardware_data, "td_attributes": b"\1" + bytes(7)}
    debug = TDX.but(members={"td_quote": TDX.td.but(body=body).quote})
    book.refuse("td-debug", "The paravisor's TD is under debug.", machine(debug), "tee.debug", "quote_debug",
                also=("dcap.second", "policy.debug"), spec="§3 check 2", tcb_status="UpToDate")
    revoked = TDX.but(td=TDX.td.but(components=(1,) * 16))
    book.refuse("td-revoked", "The platform is revoked.", machine(revoked), "tcb.revoked", "tcb_revoked",
                also=("dcap.second", "policy.tcb_status"), spec="§3 check 2", tcb_status="Revoked")
    book.refuse("td-report-of-another", "The TD quote is not for the TD report inside.",
                machine(TDX.but(td_report_data=bytes(64))), "azure.td_report", "azure_td_report_mismatch",
                spec="§3 check 2.4")
    other = TDX.but(members={"td_quote": TDX.td.but(body={"report_data": bytes(64), "td_attributes": bytes(8)}).quote})
    book.refuse("td-quote-of-another", "A genuine TD quote of other runtime data.", machine(other), "azure.td_report",
                "azure_td_report_mismatch", also=("azure.runtime_data",), spec="§3 check 2.4")
    book.section(231, to=249, twin="genuine", spec="§3 check 3")
    runtime = ("azure.runtime_data", "azure_runtime_data_mismatch")
    digest = hashlib.sha256(CLOUD.runtime_data).digest()
    for name, title, cloud in (
        ("runtime-data-of-another", "The hardware reports other runtime data.",
         CLOUD.but(report_data=hashlib.sha256(b"other").digest() + bytes(32))),
        ("runtime-data-changed", "The runtime data were changed after the report.",
         CLOUD.but(patches={1216 + 20: b" "})),
        ("runtime-data-unreported", "The hardware's report data are zero.", CLOUD.but(report_data=bytes(64))),
    ):
        book.refuse(name, title, machine(cloud), *runtime)
    book.refuse("runtime-data-with-more-behind", "Something stands behind the digest in the hardware's report data.",
                machine(CLOUD.but(report_data=digest + b"\1" * 32)), *runtime, grade=STRICT)


def _key(book: Book) -> None:
    book.section(251, to=279, twin="genuine", spec="§3 check 4")
    key = ("azure.ak", "azure_runtime_data_malformed")
    mine = VTPM.ak_key
    for name, title, listed, grade in (
        ("no-key", "The runtime data name no key.", (), "must"),
        ("no-attestation-key", "No key goes by the attestation key's name.", (jwk(mine, "HCLEkPub"),), "must"),
        ("two-attestation-keys", "Two keys go by the attestation key's name.",
         (jwk(mine), jwk(fake.rsa_key("x"))), "must"),
        ("key-that-encrypts", "The attestation key may encrypt as well.",
         (jwk(mine, key_ops=["sign", "encrypt"]),), STRICT),
        ("key-rsa-1024", "The attestation key has 1024 bits.", (jwk(fake.rsa_key("weak", 1024)),), "must"),
        ("key-member-unknown", "The attestation key has an unknown member.", (jwk(mine, x5c=[]),), STRICT),
    ):
        book.refuse(name, title, machine(CLOUD.but(keys=listed)), *key, grade=grade)
    cubed = CLOUD.but(keys=(jwk(mine, e="Aw"),))
    book.refuse("CVE-2006-4339-exponent-3", "The attestation key's exponent is 3, and the signature a cube root with "
                "whatever behind the hash.", machine(cubed, signature=rsassa(cube_root(VTPM.attest))), *key,
                refs=BLEICHENBACHER)
    twice = b'{"keys":[],' + CLOUD.runtime_data[1:]
    book.refuse("keys-twice", "The keys are in the runtime data twice, and differ.",
                machine(CLOUD.but(raw_runtime=twice)), *key)


def _quote(book: Book) -> None:
    book.section(281, to=309, twin="genuine", spec="§3 check 5")
    signature = ("tpm.signature", "evidence_signature_invalid")
    book.refuse("quoted-by-another-tpm", "Another TPM made the quote.", machine(CLOUD.but(vtpm=OTHER_TPM)), *signature)
    exchanged = CLOUD.but(keys=(jwk(VTPM.ak_key, "HCLEkPub"), jwk(fake.rsa_key("x"))))
    book.refuse("quoted-by-the-other-key", "The quote is signed by the runtime data's other key.", machine(exchanged),
                *signature)
    book.refuse("quote-replaced", "The quote was replaced by another.",
                machine(attest=VTPM.but(qualifying=b"q").attest), *signature)
    padded = keys.rsa_raw(VTPM.ak_key, short_padding(VTPM.attest))  # type: ignore[arg-type]
    book.refuse("CVE-2006-4339-short-padding", "Eight bytes of padding, the hash, and zeros behind it.",
                machine(signature=rsassa(padded)), *signature, refs=BLEICHENBACHER)
    book.refuse("quoted-with-sha384", "The signature is made with SHA-384.",
                machine(signature=fake.signature(VTPM.ak_key, VTPM.attest, hash_=fake.SHA384)), "tpm.signature",
                "tpm_signature_scheme")
    book.refuse("no-pcrs", "A bank is quoted, and no PCR of it.", machine(CLOUD.but(vtpm=VTPM.but(pcrs={}))),
                "tpm.pcr_selection", "tpm_pcr_selection")
    book.refuse("pcr-changed", "The PCRs are shown with other values.", machine(pcrs=["00" * 32] * len(VTPM.pcrs)),
                "tpm.pcr_digest", "tpm_pcr_digest")
    book.section(311, to=329, twin="genuine", tcb_status="NotReported")
    book.refuse("log-of-another-start", "The log has an event that PCR 4 does not.",
                machine(event_log=fake.event_log([*fake.BOOT, (4, 4, b"bootkit")])), "tpm.event_log",
                "event_log_mismatch", spec="§3 check 6")
    debug = CLOUD.but(snp=Machine(fields={0x08: struct.pack("<Q", 0x3001F | 1 << 19)}))
    book.refuse("debug", "The guest policy allows debugging.", machine(debug), "policy.debug", "debug_platform",
                spec="§4.2")
    mismatch = ("evidence.report_data", "report_data_mismatch")
    book.refuse("nonce-of-another", "Another nonce was asked for.", machine(), *mismatch, asked=("nonce", bytes(32)),
                spec="§4.2")
    book.refuse("nonce-empty", "Nothing was asked for, in the word of a caller who lost it.", machine(), *mismatch,
                asked=("nonce", b""), spec="§4.2", refs=SKIPPED_SNP)
    book.refuse("report-data-verbatim", "The report data were quoted themselves, not their SHA-256.", machine(),
                *mismatch, asked=("report_data", fake.QUALIFYING), spec="§4.2")
