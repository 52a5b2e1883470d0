"""Vectors of the format `snp` (docs/spec/snp.md)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cases_dcap import PSYCHIC, SKIPPED_SNP
from cryptography.hazmat.primitives.asymmetric import ec
from fake_amd import (
    AMD,
    CLOUD,
    CSP_ID,
    HARDWARE_ID,
    PRODUCT_NAME,
    PRODUCTS,
    REPORT_DATA,
    TCB,
    certificate_table,
    intermediate_der,
    root_der,
    roots,
)
from fake_x509 import (
    NOW,
    SINCE,
    UNTIL,
    basic_constraints,
    ec_key,
    extension,
    integer,
    key_usage,
    oid,
    pem,
    revocation_list,
    rsa_key,
    sequence,
    tlv,
)
from tee import Machine, Minted, snp
from vector_model import STRICT, Book, Vector

from strongroom.attest.snp import PINNED_ROOTS

# fmt: off

DAY = timedelta(days=1)
SIGNED = 0x2A0
MALLORY = ec_key("mallory")
MILAN = Machine()
FORGED_ROOTS = (
    "https://github.com/google/go-sev-guest/issues/185",
    "https://github.com/google/go-sev-guest/pull/190",
)
SAME_NAME = ("https://github.com/microsoft/TEE-Attestation-Verification/issues/140",)
_HIDES = ("length", "version", "endorsements", "leaf", "product", "chain_names", "chain_algorithms", "signature_form",
          "signature")


def u64(value: int) -> bytes:
    """Eight bytes, little endian."""
    return value.to_bytes(8, "little")


def tcb_with(product: str, at: int, value: int = 1) -> bytes:
    """The product's TCB version with one byte changed."""
    tcb = bytearray(TCB[product])
    tcb[at] = value
    return bytes(tcb)


def explicit_curve() -> bytes:
    """The leaf's key with its curve spelled out, and another generator than the curve's (CVE-2020-0601)."""
    numbers = ec_key("Milan VCEK").public_key().public_numbers()
    point = b"\x04" + numbers.x.to_bytes(48) + numbers.y.to_bytes(48)
    p = 2**384 - 2**128 - 2**96 + 2**32 - 1
    b = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
    field = sequence(oid("1.2.840.10045.1.1"), integer(p))
    curve = sequence(tlv(0x04, (p - 3).to_bytes(48)), tlv(0x04, b.to_bytes(48)))
    parameters = sequence(integer(1), field, curve, tlv(0x04, point), integer(order), integer(1))
    return sequence(sequence(oid("1.2.840.10045.2.1"), parameters), tlv(0x03, b"\0", point))


def also_stapled(machine: Machine, *more: tuple[str, bytes]) -> Minted:
    """The machine's report with more stapled to it."""
    made = snp(machine)
    return made.but(endorsements=(*made.endorsements, *more))


def instead(machine: Machine, *documents: tuple[str, bytes]) -> Minted:
    """The machine's report with other documents stapled to it."""
    return snp(machine).but(endorsements=documents)


def accepting(machine: Machine, *digests: str) -> Minted:
    """The machine's report where other roots are accepted."""
    return snp(machine).but(roots={"snp": digests}, anchors=())


def crl(**arguments: Any) -> bytes:
    """A revocation list of the Milan root's."""
    return revocation_list("ARK-Milan", **({"key": rsa_key("ark")} | arguments))


def cases() -> Iterator[Vector]:
    """Accepted, then refused: form, documents, product, chain, key, certificate, signature, answers."""
    book = Book("snp", document="docs/spec/snp.md")
    _accepted(book)
    _form(book)
    _product(book)
    _chain(book)
    _key(book)
    _signature(book)
    _answers(book)
    yield from book.done()


def _accepted(book: Book) -> None:
    fine: dict[str, Any] = {"tcb_status": "NotReported"}
    book.section(1, to=59, **fine)
    book.accept("genuine", "Milan, report version 3, signed by the chip's key.", snp(), spec="§1.2",
                claims={"svn": 7, "debug": False, "host_excluded": True})
    for product in PRODUCTS:
        for kind in ("VCEK", "VLEK"):
            for version in (2, 3, 5):
                if (product, kind, version) != ("Milan", "VCEK", 3):
                    made = snp(Machine(product=product, kind=kind, version=version))
                    book.accept(f"{product}-{kind}-v{version}".lower(),
                                f"{product}, report version {version}, signed by a {kind}.", made, spec="§1.1")
    book.accept("version-4", "Report version 4, laid out as 3.", snp(Machine(version=4)), spec="§2")
    book.accept("bergamo", "Genoa's sibling with model 0xA0.", snp(Machine(product="Genoa", fields={0x189: b"\xa0"})),
                spec="§4.1")
    book.accept("turin-dense", "Turin's sibling with model 0x11.",
                snp(Machine(product="Turin", fields={0x189: b"\x11"})), spec="§4.1")
    book.accept("stepping-in-the-product-name", "An older chip certificate names its stepping: Milan-B0.",
                snp(Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Milan-B0")})), spec="§4.2")
    book.accept("vmpl-3", "A guest below an SVSM asked at VMPL 3.", snp(Machine(fields={0x30: b"\x03"})), spec="§3.2")
    table = certificate_table(
        ("VCEK", MILAN.leaf_der), ("other", b"x" * 8), ("ASK", MILAN.issuer_der), ("ARK", MILAN.root_der)
    )
    book.accept("certificate-table", "The certificates come in a table, as a host hands them out.",
                instead(MILAN, ("auxblob.bin", table)), spec="§3.3")
    book.accept("two-leaves", "Of two certificates for the chip the one counts whose key signed.",
                also_stapled(MILAN, ("other-leaf.der", Machine(key=ec_key("other")).leaf_der)), spec="§3.3")
    book.accept("revocation-list", "A current list of the root's that names nobody here.",
                also_stapled(MILAN, ("ark.crl", crl(serials=[5, 0x10009]))), spec="§5.1")
    book.accept("list-of-another-product", "A list of another product's root is passed over.",
                also_stapled(MILAN, ("genoa.crl", revocation_list("ARK-Genoa", rsa_key("ark"), [0x10001]))),
                spec="§5.1")
    book.accept("first-second", "The first second of the certificates.", snp().but(now=SINCE), spec="§5.1")
    book.accept("last-second", "The last second of the certificates.", snp().but(now=UNTIL), spec="§5.1")
    alias = Machine(fields={0x40: b"\x05"})
    book.accept("alias-check-incomplete", "The firmware did not look for memory modules that lie about their size: "
                "genuine all the same, and said in the claims, for a policy to refuse.", snp(alias), spec="§10.2",
                refs=("CVE-2024-21944", "AMD-SB-3015"), claims={"details": {"platform.alias_check_complete": "0"}})
    microcode = {0x180: tcb_with("Genoa", 7, 0x53)}
    made = snp(Machine(product="Genoa", fields=microcode, leaf_extensions={AMD + "3.8": integer(0x53)}))
    book.accept("microcode-before-the-fix", "Genoa's certified microcode is 0x53, and 0x54 is the first that takes "
                "no forged patches: genuine all the same, and said in the claims, for a policy to refuse.", made,
                spec="§10.2", refs=("CVE-2024-56161", "AMD-SB-3019"), claims={"details": {"tcb.ucode": "83"}})
    agent = Machine(fields={0x08: u64(0x3001F | 1 << 18)})
    book.accept("migration-agent", "The guest policy allows a migration agent, which the host chooses: the claims "
                "say that the host is not excluded.", snp(agent), spec="§9", claims={"host_excluded": False})
    book.accept("report-data", "The report data is what was asked for.", snp(), spec="§1.2",
                asked=("report_data", REPORT_DATA))


class _Refuse:
    """Refusals of one check; where its failure hides the claims, no TCB status is expected."""

    def __init__(self, book: Book, check: str, code: str, spec: str) -> None:
        hidden = check in _HIDES or check.startswith("chain.")
        self._usual = {"spec": spec, "tcb_status": "" if hidden else "NotReported"}
        self._book, self._check, self._code = book, f"snp.{check}", code

    def __call__(self, name: str, title: str, made: Machine | Minted, **more: Any) -> None:
        minted = made if isinstance(made, Minted) else snp(made)
        code = more.pop("code", self._code)
        self._book.refuse(name, title, minted, self._check, code, **(self._usual | more))


def _form(book: Book) -> None:
    report = MILAN.report
    book.section(101, to=159, twin="genuine")
    length = _Refuse(book, "length", "snp_length", "§3.1")
    for name, title, data in (
        ("empty", "There are no bytes.", b""),
        ("cut", "The last byte is missing.", report[:-1]),
        ("unsigned", "Only what is signed is there, without the signature.", report[:SIGNED]),
        ("with-its-header", "The firmware's 32 bytes of header are left in front.", bytes(32) + report),
        ("trailing", "A byte follows the report.", report + b"\0"),
    ):
        length(name, title, snp().but(data=data))
    version = _Refuse(book, "version", "snp_version", "§3.1")
    for number in (1, 6):
        version(f"version-{number}", f"The report is of version {number}.", Machine(fields={0: bytes([number])}),
                grade=STRICT)
    version("version-high-byte", "The version is 3 in its lowest byte only.", Machine(fields={3: b"\1"}),
            grade=STRICT)
    policy = _Refuse(book, "policy_form", "snp_policy_malformed", "§3.2")
    for bit, value in ((17, 0x1001F), (26, 0x3001F | 1 << 26)):
        policy(f"policy-bit-{bit}", f"Bit {bit} of the guest policy is not as the ABI has it.",
               Machine(fields={0x08: u64(value)}), grade=STRICT)
    reserved = _Refuse(book, "reserved", "snp_reserved", "§3.2")
    for at in (0x4C, 0x29F):
        reserved(f"reserved-{at:x}", f"The reserved byte at {at:#x} is not zero.", Machine(fields={at: b"\1"}),
                 grade=STRICT)
    reserved("reserved-mitigations", "A report of version 3 has the mitigation vectors of version 5.",
             Machine(fields={0x1F8: b"\1"}), grade=STRICT)
    reserved("reserved-key-information", "A reserved bit of the key information is set.",
             Machine(fields={0x48: b"\x20"}), grade=STRICT)
    reserved("cpuid-in-version-2", "A report of version 2 has the CPUID fields of version 3.",
             Machine(version=2, fields={0x188: b"\x19"}), grade=STRICT)
    guest = _Refuse(book, "from_guest", "snp_not_from_guest", "§3.2")
    guest("asked-by-the-host", "The host asked for the report, with report data of its own.",
          Machine(fields={0x30: b"\xff\xff\xff\xff"}))
    guest("vmpl-4", "The VMPL is 4, which there is not.", Machine(fields={0x30: b"\x04"}))
    documents = _Refuse(book, "endorsements", "snp_endorsement_malformed", "§3.3")
    garbage: tuple[tuple[str, str, bytes], ...] = (
        ("document-garbage", "A stapled document is none of the known kinds.", b"garbage"),
        ("document-cut", "A stapled certificate lacks its last byte.", MILAN.leaf_der[:-1]),
        ("document-trailing", "A byte follows a stapled certificate.", MILAN.leaf_der + b"\0"),
        ("document-pem-cut", "A PEM block has no end.", pem(MILAN.root_der)[:-9]),
    )
    for name, title, data in garbage:
        documents(name, title, also_stapled(MILAN, ("document.bin", data)), grade=STRICT)
    table = certificate_table(("VCEK", MILAN.leaf_der))
    documents("table-cut", "The certificate table names bytes beyond its end.",
              instead(MILAN, ("auxblob.bin", table[:-1])))
    leaf = _Refuse(book, "leaf", "snp_leaf_missing", "§3.3")
    leaf("no-endorsements", "No certificate is there.", instead(MILAN))
    leaf("no-leaf", "The certificate of the signing key is missing.", instead(MILAN, *snp().endorsements[1:]))
    leaf("two-foreign-leaves", "Two certificates of chips are there, and the report is of neither's.",
         instead(MILAN, ("a.der", Machine(key=MALLORY).leaf_der), ("b.der", Machine(key=ec_key("x")).leaf_der),
                 snp().endorsements[1]))
    leaf("leaf-by-another-name", "The leaf's common name is SEV-VCEK2.", Machine(leaf={"subject": "SEV-VCEK2"}))
    documents("leaf-with-explicit-curve", "The leaf's key spells its curve out, with a generator that its owner chose.",
              Machine(leaf={"spki": explicit_curve()}), refs=("CVE-2020-0601",))


def _product(book: Book) -> None:
    book.section(161, to=199, twin="genuine")
    unknown = _Refuse(book, "product", "snp_product_unknown", "§4.1")
    unknown("cpuid-naples", "The CPUID is that of Naples, which has no SNP.", Machine(fields={0x188: b"\x17\x01"}))
    unknown("cpuid-unknown-model", "The CPUID's model is none of Milan, Genoa and Turin.",
            Machine(product="Genoa", fields={0x189: b"\x20"}))
    unknown("cpuid-zero", "A report of version 3 without a CPUID: no product may be assumed in its place.",
            Machine(fields={0x188: b"\0\0\0"}), refs=FORGED_ROOTS)
    unknown("version-2-of-unknown-product", "A report of version 2 whose chain is of no known product.",
            Machine(version=2, leaf={"issuer": "SEV-Rome"}, issuer={"subject": "SEV-Rome"}), also=("snp.chain_names",))
    agrees = _Refuse(book, "product_agrees", "snp_product_mismatch", "§4.2")
    agrees("cpuid-genoa-chain-milan", "The report says Genoa, the chain is Milan's.",
           Machine(fields={0x189: b"\x11"}))
    agrees("product-name-genoa", "The chip certificate names Genoa, its issuer Milan.",
           Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Genoa")}))
    agrees("product-name-milano", "The product's name begins with Milan, and is another.",
           Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Milano")}))
    agrees("product-name-none", "The chip certificate names no product.", Machine(leaf_extensions={PRODUCT_NAME: None}),
           grade=STRICT)
    tcb = _Refuse(book, "tcb_form", "snp_tcb_reserved", "§4.3")
    for what, at, byte in (("current", 0x38, 2), ("committed", 0x1E0, 3), ("launch", 0x1F0, 4)):
        tcb(f"tcb-reserved-{what}", f"A reserved byte of the {what} TCB is not zero.",
            Machine(fields={at: tcb_with("Milan", byte)}), grade=STRICT)
    tcb("tcb-reserved-turin", "Turin's TCB has a byte where Milan's has one.",
        Machine(product="Turin", fields={0x1F0: tcb_with("Turin", 4)}), grade=STRICT)


def _chain(book: Book) -> None:
    book.section(201, to=279, twin="genuine")
    path = _Refuse(book, "chain.path", "chain_incomplete", "§5.1")
    leaf, issuer, root = (
        ("leaf.der", MILAN.leaf_der),
        ("issuer.der", MILAN.issuer_der),
        ("root.der", MILAN.root_der),
    )
    path("no-issuer", "The certificate of the leaf's issuer is missing.", instead(MILAN, leaf, root),
         also=("snp.chain.root", "snp.chain_names"))
    path("no-root", "The root is missing.", instead(MILAN, leaf, issuer), also=("snp.chain.root", "snp.chain_names"))
    signed = _Refuse(book, "chain.signatures", "chain_signature_invalid", "§5.1")
    signed("leaf-signature", "The leaf's signature has a flipped bit.", Machine(leaf={"corrupt": True}))
    signed("leaf-by-mallory", "The leaf is signed by another key by the issuer's name.",
           Machine(leaf={"signer": rsa_key("mallory")}))
    signed("issuer-signature", "The issuer's signature has a flipped bit.", Machine(issuer={"corrupt": True}))
    signed("issuer-by-mallory", "The issuer is signed by another key by the root's name.",
           Machine(issuer={"signer": rsa_key("mallory")}))
    corrupt = Machine(ark={"corrupt": True})
    signed("root-signature", "The root's own signature has a flipped bit.", snp(corrupt), also=("snp.chain.root",),
           refs=SAME_NAME, grade=STRICT)
    authority = _Refuse(book, "chain.authority", "chain_issuer_not_authority", "§5.1")
    authority("issuer-no-authority", "The issuer is no certification authority.",
              Machine(issuer={"extensions": (basic_constraints(None, ca=False), key_usage(0x04))}))
    authority("issuer-without-constraints", "The issuer does not say that it is an authority.",
              Machine(issuer={"extensions": (key_usage(0x04),)}))
    authority("issuer-key-usage", "The issuer's key may not sign certificates.",
              Machine(issuer={"extensions": (basic_constraints(0), key_usage(0x80))}))
    critical = _Refuse(book, "chain.critical", "chain_critical_extension", "§5.1")
    critical("issuer-critical-extension", "The issuer has a critical extension that nobody knows.",
             Machine(issuer={"extensions": (basic_constraints(0), extension("1.2.3", b"", critical=True))}))
    permitted = sequence(tlv(0xA0, sequence(tlv(0xA4, sequence()))))
    critical("issuer-name-constraints", "The issuer has critical name constraints, which are not understood here: "
             "passing them over would accept names that the root excluded.",
             Machine(issuer={"extensions": (basic_constraints(0), extension("2.5.29.30", permitted, critical=True))}))
    valid = _Refuse(book, "chain.validity", "chain_not_valid_now", "§5.1")
    valid("leaf-expired", "The leaf has ended.", Machine(leaf={"not_after": NOW - DAY}))
    valid("leaf-to-come", "The leaf has not begun.", Machine(leaf={"not_before": NOW + DAY}))
    valid("issuer-expired", "The issuer has ended.", Machine(issuer={"not_after": NOW - DAY}))
    valid("issuer-to-come", "The issuer has not begun.", Machine(issuer={"not_before": NOW + DAY}))
    valid("root-expired", "A second after the end of the root.", snp().but(now=UNTIL + timedelta(seconds=1)))
    pinned = _Refuse(book, "chain.root", "root_not_accepted", "§5.4")
    pinned("no-roots", 'No root is named: that is not "any root".', accepting(MILAN))
    pinned("roots-of-other-products", "Only the roots of the other products are named.",
           accepting(MILAN, *roots()[1:]))
    pinned("roots-of-amd", "AMD's own roots are named, and the chain is under another of the same name.",
           accepting(MILAN, *PINNED_ROOTS))
    mallory = Machine(
        ark={"key": rsa_key("mallory"), "signer": rsa_key("mallory")}, issuer={"signer": rsa_key("mallory")}
    )
    pinned("root-of-the-same-name", "The whole chain is forged under a root of the right name.", snp(mallory),
           refs=FORGED_ROOTS)
    pinned("root-reissued", "The root has the accepted one's name and key, and another serial number: what else is "
           "in it its sender chose.", snp(Machine(ark={"serial": 2})), refs=SAME_NAME, grade=STRICT)
    pinned("root-named-in-capitals", "The root is named in capitals.",
           accepting(MILAN, *(digest.upper() for digest in roots())), grade=STRICT)
    revoked = _Refuse(book, "chain.revocation", "chain_certificate_revoked", "§5.1")

    def lists(**arguments: Any) -> Minted:
        return also_stapled(MILAN, ("ark.crl", pem(crl(**arguments), "X509 CRL")))

    revoked("issuer-revoked", "The issuer is on the root's revocation list.", lists(serials=[0x10001]))
    revoked("root-revoked", "The root is on its own revocation list.", lists(serials=[7, 0x10000]))
    stale = "revocation_list_not_current"
    revoked("list-old", "The revocation list is past its next update.", lists(next_update=NOW - DAY), code=stale)
    revoked("list-to-come", "The revocation list is from tomorrow.", lists(this_update=NOW + DAY), code=stale)
    revoked("list-without-end", "The revocation list does not name its successor.", lists(next_update=None), code=stale,
            grade=STRICT)
    revoked("list-by-mallory", "The revocation list is signed by another key by the root's name.",
            lists(key=rsa_key("mallory")), code="revocation_list_signature_invalid")
    revoked("list-partial", "The revocation list is a delta: it is not whole.",
            lists(extensions=[extension("2.5.29.27", integer(1), critical=True)]), code="revocation_list_unsupported")
    names = _Refuse(book, "chain_names", "snp_chain_names", "§5.2")
    names("vcek-by-the-issuer-of-lent-keys", "A chip's certificate is issued by the authority of lent keys.",
          also_stapled(Machine(leaf={"issuer": "SEV-VLEK-Milan", "signer": rsa_key("asvk")}),
                       ("asvk.der", intermediate_der("Milan", "VLEK"))))
    names("issuer-under-another-root", "Milan's issuer is signed by Genoa's root.",
          also_stapled(Machine(issuer={"issuer": "ARK-Genoa"}), ("genoa.der", root_der("Genoa"))).but(
              roots={"snp": roots()}, anchors=tuple((f"ark-{p.lower()}.der", root_der(p)) for p in PRODUCTS)))
    weak = _Refuse(book, "chain_algorithms", "snp_chain_algorithm", "§5.3")
    weak("issuer-rsa-2048", "The issuer's key has 2048 bits.", Machine(issuer={"key": rsa_key("weak")}), grade=STRICT)
    weak("leaf-pkcs1", "The leaf is signed with RSASSA-PKCS1-v1_5.", Machine(leaf={"scheme": "RSA-PKCS1"}),
         grade=STRICT)
    weak("leaf-sha256", "The leaf is signed with SHA-256.", Machine(leaf={"digest": "SHA-256"}), grade=STRICT)


def _key(book: Book) -> None:
    book.section(281, to=339, twin="genuine")
    signing = _Refuse(book, "signing_key", "snp_signing_key", "§6.1")
    signing("nothing-signed", "The report says that nothing signed it.", Machine(fields={0x48: b"\x1c"}))
    signing("signing-key-2", "The report names a kind of key that there is not.", Machine(fields={0x48: b"\x08"}))
    signer = _Refuse(book, "signer", "snp_signer_mismatch", "§6.2")
    signer("vlek-said-certificate-vcek", "The report says VLEK, the certificate VCEK.",
           Machine(fields={0x48: b"\x04"}))
    signer("vcek-said-certificate-vlek", "The report says VCEK, the certificate VLEK.",
           Machine(kind="VLEK", fields={0x48: b"\0"}))
    _Refuse(book, "chip_key", "snp_chip_key_masked", "§6.3")("chip-key-masked", "The host has masked the chip's key.",
                                                             Machine(fields={0x48: b"\x02"}))
    key = _Refuse(book, "leaf_key", "snp_leaf_key", "§7.1")
    key("leaf-p256", "The signing key is on P-256.", Machine(key=ec_key("p256", ec.SECP256R1())), grade=STRICT)
    tcb = _Refuse(book, "tcb", "snp_tcb_mismatch", "§7.2")
    for part, at in (("bl", 0), ("tee", 1), ("snp", 6), ("ucode", 7)):
        tcb(f"tcb-{part}", f"The reported {part} is not the certified one.",
            Machine(fields={0x180: tcb_with("Milan", at, 99)}))
    tcb("tcb-fmc-turin", "Turin's reported fmc is not the certified one.",
        Machine(product="Turin", fields={0x180: tcb_with("Turin", 0, 2)}))
    tcb("tcb-rolled-back", "The microcode that is reported is older than the certificate says: a key of another "
        "version signed.", Machine(fields={0x180: tcb_with("Milan", 7, 114)}), refs=("CVE-2024-56161", "AMD-SB-3019"))
    tcb("tcb-not-certified", "The certificate names no snp version.", Machine(leaf_extensions={AMD + "3.3": None}))
    tcb("tcb-certified-negative", "The certified ucode is the negative number of the same byte.",
        Machine(leaf_extensions={AMD + "3.8": b"\x02\x01\xf3"}), grade=STRICT)
    tcb("tcb-certified-trailing", "Bytes follow the certified snp version.",
        Machine(leaf_extensions={AMD + "3.3": b"\x02\x01\x08\x00"}), grade=STRICT)
    tcb("tcb-certified-reserved", "A reserved part is certified as 1, the report's is 0.",
        Machine(leaf_extensions={AMD + "3.4": integer(1)}), grade=STRICT)
    chip = _Refuse(book, "chip", "snp_chip_mismatch", "§7.3")
    chip("chip-of-another", "The report is of another chip than the certificate.",
         Machine(fields={0x1A0: b"\xff" * 64}))
    chip("chip-hidden", "The host hides the chip's identity.", Machine(fields={0x1A0: bytes(64)}))
    chip("chip-not-certified", "The certificate names no chip.", Machine(leaf_extensions={HARDWARE_ID: None}))
    chip("chip-empty", "The certificate names the chip \"\", and the report hides its own.",
         Machine(leaf_extensions={HARDWARE_ID: b""}, fields={0x1A0: bytes(64)}))
    chip("chip-prefix", "The certificate names the first eight bytes of the identity.",
         Machine(leaf_extensions={HARDWARE_ID: b"12345678"}, fields={0x1A0: b"12345678".ljust(64, b"\0")}))
    chip("chip-of-a-lent-key", "A lent key's certificate names a chip.",
         Machine(kind="VLEK", leaf_extensions={HARDWARE_ID: bytes(64)}), grade=STRICT)
    csp = _Refuse(book, "csp", "snp_csp_mismatch", "§7.4")
    csp("cloud-not-named", "A lent key's certificate names no cloud.",
        Machine(kind="VLEK", leaf_extensions={CSP_ID: None}))
    csp("cloud-empty", "The name of the cloud is empty.", Machine(kind="VLEK", leaf_extensions={CSP_ID: tlv(0x16)}))
    csp("cloud-with-escapes", "The name of the cloud has control characters, for a person's terminal.",
        Machine(kind="VLEK", leaf_extensions={CSP_ID: tlv(0x16, b"CN=\x1b[31m")}))
    csp("cloud-of-a-chip", "A chip's own key names a cloud.",
        Machine(leaf_extensions={CSP_ID: tlv(0x16, CLOUD.encode())}), grade=STRICT)


def _signature(book: Book) -> None:
    book.section(341, to=379, twin="genuine")
    form = _Refuse(book, "signature_form", "snp_signature_malformed", "§8.1")
    both = ("snp.signature",)
    form("signature-psychic", "R and S are zero.", Machine(after={SIGNED: bytes(144)}), also=both, refs=PSYCHIC)
    form("signature-r-zero", "R is zero.", Machine(after={SIGNED: bytes(72)}), also=both, refs=PSYCHIC)
    form("signature-s-zero", "S is zero.", Machine(after={SIGNED + 72: bytes(72)}), also=both, refs=PSYCHIC)
    form("signature-algorithm-0", "The signature algorithm is 0.", Machine(fields={0x34: b"\0"}))
    form("signature-algorithm-2", "The signature algorithm is 2.", Machine(fields={0x34: b"\2"}))
    form("signature-r-padding", "The padding of R is not zero.", Machine(after={SIGNED + 71: b"\1"}), also=both)
    form("signature-tail", "The last byte behind the signature is not zero.", Machine(after={0x49F: b"\1"}),
         grade=STRICT)
    signature = _Refuse(book, "signature", "evidence_signature_invalid", "§8.2")
    signature("signed-by-mallory", "Another key signed the report.", Machine(signs_with=MALLORY))
    report = MILAN.report
    r, s = report[SIGNED : SIGNED + 48], report[SIGNED + 72 : SIGNED + 120]
    signature("signature-big-endian", "R and S are big endian.",
              Machine(after={SIGNED: r[::-1], SIGNED + 72: s[::-1]}))
    signature("signature-exchanged", "R and S are exchanged.", Machine(after={SIGNED: s, SIGNED + 72: r}))
    for name, what, at in (("measurement", "measurement", 0x90), ("report-data", "report data", 0x50),
                           ("host-data", "host data", 0xC0)):
        signature(f"changed-{name}", f"The {what} was changed after signing.", Machine(after={at: b"\xee"}))
    signature("changed-debug", "The debug bit was cleared after signing.",
              Machine(fields={0x08: u64(0xB0000)}, after={0x08: u64(0x30000)}))
    signature("changed-vmpl", "The VMPL was set to 0 after signing.",
              Machine(fields={0x30: b"\1"}, after={0x30: b"\0"}))
    signature("leaf-of-another-chip", "The only certificate there is that of another key.",
              instead(MILAN, ("leaf.der", Machine(key=ec_key("another")).leaf_der), snp().endorsements[1]))


def _answers(book: Book) -> None:
    book.section(381, to=399, twin="genuine", tcb_status="NotReported", spec="§9")
    debug = snp(Machine(fields={0x08: u64(0x3001F | 1 << 19)}))
    book.refuse("debug", "The guest policy allows debugging: the host can read the guest.", debug, "policy.debug",
                "debug_platform")
    book.section(401, to=429, twin="report-data", tcb_status="NotReported", spec="§1.2")
    mismatch = ("evidence.report_data", "report_data_mismatch")
    for name, title, data in (
        ("report-data-of-another", "Other report data was asked for.", bytes(64)),
        ("report-data-half", "The first half of what was asked for is right.", REPORT_DATA[:32] + bytes(32)),
        (
            "report-data-prefix",
            "32 bytes were asked for, and the report data begins with them.",
            REPORT_DATA[:32],
        ),
    ):
        book.refuse(name, title, snp(), *mismatch, asked=("report_data", data))
    book.refuse("report-data-empty", "Nothing was asked for, in the word of a caller who lost it: no comparison passes "
                "for want of a value.", snp(), *mismatch, asked=("report_data", b""), refs=SKIPPED_SNP)
    book.refuse("report-data-of-zeros", "The guest gave no report data, and some was asked for.",
                snp(Machine(fields={0x50: bytes(64)})), *mismatch, asked=("report_data", REPORT_DATA),
                refs=SKIPPED_SNP)
    book.refuse("nonce-in-a-format-without-one", "A nonce was asked for, which a report has no place for.", snp(),
                "", "report_data_mismatch", asked=("nonce", REPORT_DATA))
