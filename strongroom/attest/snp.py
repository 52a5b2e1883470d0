"""AMD SEV-SNP evidence, format `snp`: an attestation report with the certificates of the chip that signed it
(docs/spec/snp.md).

Rules of this file:

1. Every check is in `_CHECKS`, in the order of the specification; one that was not made has failed.
2. Claims come out only where a chain to an accepted root verified, and the report's signature with its leaf.
3. What a guest may be (debug, VMPL, minimum TCB, host data) is the policy's matter: this file reports it, and
   refuses only what no genuine report can be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from strongroom.attest import der
from strongroom.attest.certificate import RSA_PSS, Certificate, describe_key
from strongroom.attest.evidence import Absent, Check, Claims, Examination, check, check_impossible
from strongroom.attest.snp_report import (
    PLATFORM_BITS,
    POLICY_BITS,
    PRODUCTS,
    REPORT_SIZE,
    TURIN,
    VERSIONS,
    Report,
    parse_certificate_table,
    parse_report,
    product_of,
    reserved_in_tcb,
    tcb_parts,
)
from strongroom.attest.x509 import (
    Chain,
    Documents,
    check_revocation,
    no_chain,
    sort_documents,
    verify_chain,
)
from strongroom.errors import MalformedInput

FORMAT = "snp"
PINNED_ROOTS: tuple[str, ...] = (
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
)
"""AMD's root certificates ARK-Milan, ARK-Genoa and ARK-Turin: SHA-256 of their DER."""

KINDS = ("VCEK", "VLEK")
"""What signs a report, by the number in its key information: the chip's key, or one that AMD lent to a cloud."""
_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, HARDWARE_ID, _CSP_ID = _AMD + "2", _AMD + "4", _AMD + "5"
_TCB_EXTENSIONS = {
    "bl": _AMD + "3.1",
    "tee": _AMD + "3.2",
    "snp": _AMD + "3.3",
    "spl4": _AMD + "3.4",
    "spl5": _AMD + "3.5",
    "spl6": _AMD + "3.6",
    "spl7": _AMD + "3.7",
    "ucode": _AMD + "3.8",
    "fmc": _AMD + "3.9",
}
_CHAIN = "snp.chain"

# The checks of this format in their order: id -> title, what is expected, the code of a refusal. The checks of the
# chain (`x509.verify_chain`) stand in the place of `_CHAIN`.
_CHECKS = {
    "snp.length": ("The report has its size", f"{REPORT_SIZE} bytes", "snp_length"),
    "snp.version": (
        "The report is of a version whose layout is known",
        f"{VERSIONS[0]} to {VERSIONS[-1]}",
        "snp_version",
    ),
    "snp.policy_form": (
        "The guest policy has the form of this ABI",
        "bit 17 one, bits from 26 on zero",
        "snp_policy_malformed",
    ),
    "snp.reserved": ("Reserved bytes are zero", "zeros", "snp_reserved"),
    "snp.from_guest": ("The guest itself asked for the report", "VMPL 0 to 3", "snp_not_from_guest"),
    "snp.endorsements": (
        "What is stapled can be read",
        "certificates, revocation lists, certificate tables",
        "snp_endorsement_malformed",
    ),
    "snp.leaf": (
        "The certificate of the signing key is there",
        "one SEV-VCEK or SEV-VLEK",
        "snp_leaf_missing",
    ),
    "snp.product": ("The processor is of a known product", ", ".join(PRODUCTS), "snp_product_unknown"),
    "snp.product_agrees": (
        "Report, chip certificate and its issuer name one product",
        "",
        "snp_product_mismatch",
    ),
    "snp.tcb_form": ("The TCB versions have the product's layout", "reserved bytes zero", "snp_tcb_reserved"),
    _CHAIN: ("", "", ""),
    "snp.chain_names": ("The chain is one of AMD's by its names", "", "snp_chain_names"),
    "snp.chain_algorithms": (
        "The chain is signed as AMD signs",
        "RSA-4096 keys, RSA-PSS with SHA-384",
        "snp_chain_algorithm",
    ),
    "snp.signing_key": ("The report is signed by a VCEK or VLEK", "0 (VCEK) or 1 (VLEK)", "snp_signing_key"),
    "snp.signer": ("The certificate is of the kind of key that the report names", "", "snp_signer_mismatch"),
    "snp.chip_key": ("The host has not masked the chip's key", "MASK_CHIP_KEY 0", "snp_chip_key_masked"),
    "snp.leaf_key": ("The signing key is on P-384", "an EC key on secp384r1", "snp_leaf_key"),
    "snp.tcb": ("The signing key is that of the reported TCB", "", "snp_tcb_mismatch"),
    "snp.chip": ("The signing key is that of the reporting chip", "", "snp_chip_mismatch"),
    "snp.csp": ("A lent key names the cloud that it was lent to", "", "snp_csp_mismatch"),
    "snp.signature_form": (
        "The signature has its form",
        "algorithm 1, two numbers of 48 bytes other than zero, then zeros",
        "snp_signature_malformed",
    ),
    "snp.signature": (
        "The report is signed by its key",
        "a valid ECDSA signature, P-384 with SHA-384",
        "evidence_signature_invalid",
    ),
}


@dataclass(slots=True)
class _Findings:
    """Checks as they are made, by id; `finish` puts them in order and fails those that were not made."""

    made: dict[str, tuple[Check, ...]] = field(default_factory=dict)
    why: str = ""

    def record(self, check_id: str, passed: bool, got: str, expected: str = "") -> bool:
        """Records the check `check_id`, and returns whether it passed."""
        title, usual, code = _CHECKS[check_id]
        self.made[check_id] = (
            check(check_id, title, passed, expected=expected or usual, got=got, code=code),
        )
        return passed

    def stop(self, why: str) -> None:
        """Says why checks that are never recorded could not be made; the first reason stands."""
        self.why = self.why or why

    def passed(self, *check_ids: str) -> bool:
        """Whether all of `check_ids` were made and passed."""
        return all(made and all(c.passed for c in made) for made in (self.made.get(i, ()) for i in check_ids))

    def finish(self) -> tuple[Check, ...]:
        """Every check of this format, in order."""
        checks: list[Check] = []
        for check_id, (title, expected, code) in _CHECKS.items():
            if check_id in self.made:
                checks += self.made[check_id]
            elif check_id == _CHAIN:
                checks += no_chain(name=_CHAIN, why=self.why)
            else:
                checks.append(
                    check_impossible(check_id, title, expected=expected or "–", why=self.why, code=code)
                )
        return tuple(checks)


def examine_snp(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines an SEV-SNP report; `endorsements` hold its chip certificate, that one's issuer and the root, in any
    order, form and company; `roots` are the SHA-256 (hex) of the root certificates that are accepted.

    The numbers are the clauses of docs/spec/snp.md.

    3. What is there
       3.1 the report's length and version  3.2 its guest policy and reserved bytes, and that the guest asked for it
       3.3 the stapled documents can be read, and the signing key's certificate is there
    4. The product
       4.1 known  4.2 the same in report, chip certificate and issuer  4.3 TCB versions in its layout
    5. The chain, at `now`
       5.1 the checks of `x509.verify_chain`, and of `x509.check_revocation` where a list is stapled
       5.2 AMD's names  5.3 AMD's key sizes and algorithms
    6. Which key signed
       6.1 a VCEK or VLEK  6.2 as in the certificate  6.3 not masked
    7. Its certificate
       7.1 a P-384 key  7.2 for the reported TCB  7.3 for the reporting chip  7.4 lent to a cloud that is named
    8. The signature
       8.1 form  8.2 verified

    Claims come back only where 5 and 8 passed, for a product that is known.
    """
    found = _Findings()
    report = _examine_form(found, data)
    documents = _examine_documents(found, endorsements)
    leaf = _examine_leaf(found, documents, report)
    product = _examine_product(found, report, leaf)
    chain = _examine_chain(found, documents, leaf, roots=roots, now=now)
    if report is not None:
        _examine_key(found, report, leaf)
        if leaf is not None:
            _examine_certificate(found, report, leaf, product)
        _examine_signature(found, report, leaf)
    checks = found.finish()
    proven = (_CHAIN, "snp.chain_names", "snp.chain_algorithms", "snp.signature_form", "snp.signature")
    if report is None or chain is None or product is None or leaf is None or not found.passed(*proven):
        failed = next((c.title for c in checks if not c.passed), "")
        return Examination(checks, Absent(FORMAT, f"the report did not verify ({failed})"))
    return Examination(checks, _claims(report, chain, leaf, product, checks))


def _examine_form(found: _Findings, data: bytes) -> Report | None:
    """Clauses 3.1 and 3.2."""
    # 3.1
    if not found.record("snp.length", len(data) == REPORT_SIZE, f"{len(data)} bytes"):
        found.stop("the report has another size")
        return None
    version = int.from_bytes(data[:4], "little")
    if not found.record("snp.version", version in VERSIONS, str(version)):
        found.stop("the report is of an unknown version")
        return None
    report = parse_report(data)
    # 3.2
    form = report.policy >> 17 & 1 == 1 and report.policy >> 26 == 0
    found.record("snp.policy_form", form, f"{report.policy:#x}")
    stray = report.key_information >> 5
    clean = not any(report.reserved) and not stray
    found.record("snp.reserved", clean, "zeros" if clean else "other bytes")
    # a host can ask for a report as well, with report data that no guest chose; it says VMPL 2**32 - 1
    found.record("snp.from_guest", report.vmpl <= 3, f"VMPL {report.vmpl}")
    return report


def _examine_documents(found: _Findings, endorsements: tuple[tuple[str, bytes], ...]) -> Documents:
    """Clause 3.3, the documents; nothing where they cannot be read."""
    try:
        documents = read_documents(endorsements)
    except MalformedInput as exc:
        found.record("snp.endorsements", False, exc.message)
        found.stop("the endorsements cannot be read")
        return Documents((), (), ())
    got = f"{len(documents.certificates)} certificates, {len(documents.revocation_lists)} revocation lists"
    found.record("snp.endorsements", True, got)
    return documents


def read_documents(endorsements: tuple[tuple[str, bytes], ...]) -> Documents:
    """Returns the certificates and revocation lists in `endorsements`, those in certificate tables included.

    Raises:
        MalformedInput: a document is none of the three; a code of `x509.sort_documents`, or `snp_table_malformed`.
    """
    sorted_once = sort_documents(endorsements)
    if not sorted_once.others:
        return sorted_once
    unpacked = endorsements
    for name, data in sorted_once.others:
        unpacked = tuple(e for e in unpacked if e != (name, data)) + parse_certificate_table(data)
    documents = sort_documents(unpacked)
    if documents.others:
        raise MalformedInput("certificate table: an entry that is no certificate", code="snp_table_malformed")
    return documents


def _examine_leaf(found: _Findings, documents: Documents, report: Report | None) -> Certificate | None:
    """Clause 3.3: the certificate of a signing key. Of several, the one of the kind that the report names, whose key
    made its signature, that lasts longest: a service may hand out one for each TCB, and a new one at each request.
    Which one is taken decides nothing; whatever is taken must pass every check.
    """
    if not found.passed("snp.endorsements"):
        return None
    leaves = [c for c in documents.certificates if c.common_name in ("SEV-VCEK", "SEV-VLEK")]
    count = len(leaves)
    if count > 1 and report is not None:
        kind = KINDS[report.signing_key] if report.signing_key < len(KINDS) else ""
        leaves = [c for c in leaves if _kind(c) == kind and is_signed_by(report, c)]
        leaves = sorted(leaves, key=lambda c: c.not_after)[-1:]
    got = f"{count} of {len(documents.certificates)} certificates" + (", none that fits" if count > 1 else "")
    if not found.record("snp.leaf", len(leaves) == 1, got if not leaves else leaves[0].common_name):
        found.stop("the signing key's certificate is missing")
        return None
    return leaves[0]


def _kind(leaf: Certificate) -> str:
    return leaf.common_name.removeprefix("SEV-")


def _issuer_product(leaf: Certificate) -> str:
    """The product in the name of the leaf's issuer (SEV-Milan, SEV-VLEK-Milan): the only one of a version 2 report."""
    return leaf.issuer_name.removeprefix("SEV-").removeprefix("VLEK-")


def _examine_product(found: _Findings, report: Report | None, leaf: Certificate | None) -> str | None:
    """Clause 4."""
    if report is None:
        return None
    # 4.1
    if report.cpuid is not None:
        product = product_of(report.cpuid)
        got = f"{product or 'none'}: family {report.cpuid[0]:#x}, model {report.cpuid[1]:#x}"
    elif leaf is not None:
        product, got = (
            _issuer_product(leaf),
            f"{leaf.issuer_name or '(unnamed)'}, the chip certificate's issuer",
        )
        product = product if product in PRODUCTS else None
    else:
        return None
    found.record("snp.product", product is not None, got)
    if product is None:
        found.stop("the product is unknown")
        return None
    # 4.2
    if leaf is not None:
        named = _text(leaf.extension(_PRODUCT_NAME))
        agrees = (
            _issuer_product(leaf) == product and named.partition("-")[0] == product
        )  # Milan-B0 is a stepping
        got = f"{leaf.issuer_name or '(unnamed)'}, {named or 'no product name'}"
        found.record("snp.product_agrees", agrees, got, product)
    # 4.3
    tcbs = (report.current_tcb, report.reported_tcb, report.committed_tcb, report.launch_tcb)
    clean = not any(any(reserved_in_tcb(tcb, product)) for tcb in tcbs)
    found.record("snp.tcb_form", clean, "zeros" if clean else "other bytes")
    return product


def _examine_chain(
    found: _Findings,
    documents: Documents,
    leaf: Certificate | None,
    *,
    roots: tuple[str, ...],
    now: datetime,
) -> Chain | None:
    """Clause 5."""
    if leaf is None:
        return None
    # 5.1
    chain = verify_chain(leaf, others=documents.certificates, roots=roots, now=now, name=_CHAIN)
    revocation = check_revocation(chain, lists=documents.revocation_lists, now=now, name=_CHAIN)
    found.made[_CHAIN] = chain.checks + revocation
    # 5.2
    product, kind = _issuer_product(leaf), _kind(leaf)
    issuer = f"SEV-{product}" if kind == "VCEK" else f"SEV-VLEK-{product}"
    expected = (leaf.common_name, issuer, f"ARK-{product}")
    names = tuple(c.common_name for c in chain.path)
    right = names == expected and product in PRODUCTS
    found.record("snp.chain_names", right, " <- ".join(names), " <- ".join(expected))
    # 5.3
    weak = [
        f"{c.common_name}: {describe_key(c.key)}" for c in chain.path[1:] if describe_key(c.key) != "RSA-4096"
    ]
    weak += [
        f"{c.common_name}: {c.algorithm} with {c.digest}"
        for c in chain.path
        if (c.algorithm, c.digest) != (RSA_PSS, "SHA-384")
    ]
    found.record("snp.chain_algorithms", not weak, "; ".join(weak) or "RSA-4096, RSA-PSS with SHA-384")
    return chain


def _examine_key(found: _Findings, report: Report, leaf: Certificate | None) -> None:
    """Clause 6."""
    # 6.1: 7 means that nothing signed
    number = report.signing_key
    known = found.record("snp.signing_key", number < len(KINDS), str(number))
    # 6.2
    if leaf is not None and known:
        kind = KINDS[number]
        found.record("snp.signer", _kind(leaf) == kind, leaf.common_name, f"SEV-{kind}")
    elif not known:
        found.stop("the report names no key that could have signed")
    # 6.3
    found.record("snp.chip_key", not report.chip_key_masked, f"MASK_CHIP_KEY {int(report.chip_key_masked)}")


def _examine_certificate(found: _Findings, report: Report, leaf: Certificate, product: str | None) -> None:
    """Clause 7."""
    # 7.1
    on_p384 = isinstance(leaf.key, ec.EllipticCurvePublicKey) and isinstance(leaf.key.curve, ec.SECP384R1)
    found.record("snp.leaf_key", on_p384, describe_key(leaf.key))
    kind = _kind(leaf)
    # 7.2
    if product is not None:
        wanted, got = dict(tcb_parts(report.reported_tcb, product)), certified_tcb(leaf)
        same = all(got.get(part) == value for part, value in wanted.items())
        same = same and not any(value for part, value in got.items() if part not in wanted)
        found.record("snp.tcb", same, _show_tcb(got), _show_tcb(wanted))
        # 7.3: Turin's identities have 8 bytes
        identity = leaf.extension(HARDWARE_ID)
        if kind == "VCEK":
            size = 8 if product == TURIN else 64
            matches = (
                identity is not None
                and len(identity) == size
                and identity.ljust(64, b"\x00") == report.chip_id
            )
            found.record(
                "snp.chip", matches, "none" if identity is None else identity.hex(), report.chip_id.hex()
            )
        else:
            got_chip = "none" if identity is None else identity.hex()
            found.record("snp.chip", identity is None, got_chip, "none: a lent key belongs to no chip")
    # 7.4
    csp = leaf.extension(_CSP_ID)
    name = _text(csp)
    if kind == "VLEK":
        found.record("snp.csp", bool(name), name or "none", "the name of a cloud")
    else:
        found.record(
            "snp.csp", csp is None, name or ("none" if csp is None else "no text"), "none: a chip's own key"
        )


def _text(value: bytes | None) -> str:
    """A string in an extension of AMD's, "" where there is none or one that is not printable ASCII."""
    if value is None:
        return ""
    try:
        read = der.Reader(value, what="extension", code="certificate_malformed")
        content = read.take(der.IA5_STRING, "text").content
        read.end("text")
    except MalformedInput:
        return ""
    printable = 0 < len(content) <= 256 and all(0x20 <= byte < 0x7F for byte in content)
    return content.decode("ascii") if printable else ""


def certified_tcb(leaf: Certificate) -> dict[str, int | None]:
    """Returns the TCB version that the certificate was made for; None for a part that cannot be read."""
    parts: dict[str, int | None] = {}
    for part, oid in _TCB_EXTENSIONS.items():
        if (value := leaf.extension(oid)) is None:
            continue
        try:
            read = der.Reader(value, what="extension", code="certificate_malformed")
            parts[part] = read.integer(part)
            read.end(part)
        except MalformedInput:
            parts[part] = None
    return parts


def _show_tcb(parts: dict[str, int] | dict[str, int | None]) -> str:
    return " ".join(f"{part}={value}" for part, value in parts.items() if value or not part.startswith("spl"))


def _examine_signature(found: _Findings, report: Report, leaf: Certificate | None) -> None:
    """Clause 8."""
    # 8.1: little-endian, 72 bytes each, of which 48 count
    r, s = report.signature[:72], report.signature[72:144]
    padding_clean = not any(r[48:] + s[48:] + report.signature[144:])
    form = report.signature_algorithm == 1 and padding_clean and any(r) and any(s)
    got = f"algorithm {report.signature_algorithm}, " + (
        "zeros behind" if padding_clean else "other bytes behind"
    )
    found.record("snp.signature_form", form, got if any(r) and any(s) else got + ", a number that is zero")
    # 8.2: also where 8.1 failed, so that a person sees whether the rest is genuine
    if leaf is None or not isinstance(leaf.key, ec.EllipticCurvePublicKey):
        found.stop("there is no key to verify with")
        return
    valid = is_signed_by(report, leaf)
    found.record("snp.signature", valid, "a valid signature" if valid else "a signature that does not verify")


def is_signed_by(report: Report, leaf: Certificate) -> bool:
    """Returns whether the key of `leaf` made the report's signature."""
    r, s = (int.from_bytes(report.signature[at : at + 72], "little") for at in (0, 72))
    if not isinstance(leaf.key, ec.EllipticCurvePublicKey):
        return False
    try:
        leaf.key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _claims(
    report: Report, chain: Chain, leaf: Certificate, product: str, checks: tuple[Check, ...]
) -> Claims:
    """What a verified report says (docs/spec/snp.md §9)."""
    signer = report.author_key_digest if report.author_key_enabled else report.id_key_digest
    return Claims(
        format=FORMAT,
        simulated=False,
        # A migration agent, which the host chooses, gets the guest's memory.
        host_excluded=not report.debug and not report.policy_bit("migrate_ma"),
        measurement=report.measurement.hex(),
        signer=signer.hex() if any(signer) else "",
        product=0,
        svn=report.guest_svn,
        debug=report.debug,
        tcb_status="NotReported",
        advisories=(),
        report_data=report.report_data,
        root=chain.root.fingerprint,
        issued_at=None,
        details=_details(report, chain, leaf, product, checks),
    )


def _details(
    report: Report, chain: Chain, leaf: Certificate, product: str, checks: tuple[Check, ...]
) -> tuple[tuple[str, str], ...]:
    """The facts of SNP alone, by the names of docs/spec/snp.md §9: integers decimal, bytes lower-case hex."""
    details = [
        ("product", product),
        ("report_version", str(report.version)),
        ("signing_key", _kind(leaf)),
        ("csp_id", _text(leaf.extension(_CSP_ID))),
        ("chip_id", report.chip_id.hex()),
        ("vmpl", str(report.vmpl)),
        ("host_data", report.host_data.hex()),
        ("family_id", report.family_id.hex()),
        ("image_id", report.image_id.hex()),
        ("id_key_digest", report.id_key_digest.hex()),
        ("author_key_digest", report.author_key_digest.hex()),
        ("author_key_enabled", str(int(report.author_key_enabled))),
        ("report_id", report.report_id.hex()),
        ("report_id_ma", report.report_id_ma.hex()),
        ("policy", str(report.policy)),
        ("policy.abi", f"{report.policy >> 8 & 0xFF}.{report.policy & 0xFF}"),
        ("policy.abi_major", str(report.policy >> 8 & 0xFF)),
        ("policy.abi_minor", str(report.policy & 0xFF)),
    ]
    details += [(f"policy.{name}", str(report.policy >> bit & 1)) for name, bit in POLICY_BITS]
    details.append(("platform_info", str(report.platform_info)))
    details += [(f"platform.{name}", str(report.platform_info >> bit & 1)) for name, bit in PLATFORM_BITS]
    for prefix, tcb in (
        ("tcb", report.reported_tcb),
        ("tcb.committed", report.committed_tcb),
        ("tcb.current", report.current_tcb),
        ("tcb.launch", report.launch_tcb),
    ):
        details += [(f"{prefix}.{part}", str(value)) for part, value in tcb_parts(tcb, product)]
    details.append(("firmware", ".".join(map(str, report.firmware))))
    details.append(("firmware.committed", ".".join(map(str, report.committed_firmware))))
    if report.mitigations is not None:
        details.append(("mitigations.launch", str(report.mitigations[0])))
        details.append(("mitigations.current", str(report.mitigations[1])))
    revocation = any(c.id == f"{_CHAIN}.revocation" for c in checks)
    details.append(("revocation", "checked" if revocation else "not checked"))
    details.append(("collateral_expires", chain.expires.isoformat()))
    return tuple(details)
