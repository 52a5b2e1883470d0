"""Vectors of policies over genuine evidence (docs/policy.md, docs/spec/evidence.md §4 step 6): of what entries of every
format have in common; what each format's can say is in `cases_entries`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import cases_entries
from cases_azure import machine
from cases_dcap import matrix_levels
from cases_entries import DOMAIN, ENCLAVE, GUEST, azure_measurement, pcr_measurement
from cases_ratls import made, tcg
from cases_sim import POLICY as SIMULATION
from cases_tpm import TPM
from fake_intel import SGX_BODY
from tee import NOW, SGX, TDX5, Machine, Minted, dcap, document, quoted, sim, snp
from tee import nitro as aws
from tee import tpm as fake
from vector_model import Book, Vector, policy, registers, tcb

from strongroom.attest.appraisal import MAX_ENTRIES
from strongroom.attest.requirements import MAX_EVIDENCE_AGE

# fmt: off

SIGNER = SGX_BODY["mr_signer"].hex()
OTHER = "ab" * 32
DEBUG_GUEST = Machine(fields={0x08: (0x3001F | 1 << 19).to_bytes(8, "little")})
OUTDATED = SGX.but(components=(8,) * 16, tcb_info={"tcbLevels": matrix_levels(tdx=False)})


def bare() -> Minted:
    """A TPM whose key the policy has to name: no root is given beside it."""
    return quoted(TPM).but(roots={}, anchors=())


def cases() -> Iterator[Vector]:
    """Accepted, refused, and files that cannot be used."""
    book = Book("policy", document="docs/policy.md")
    _accepted(book)
    _refused(book)
    _unusable(book)
    cases_entries.add(book)
    yield from book.done()


def tpm_entry(**changes: Any) -> tuple[str, dict[str, Any]]:
    """An entry for the TPM: its own key and its maker's root."""
    roots = [fake.ROOT_DIGEST, TPM.ak_digest]
    return "tpm", {"roots": roots, "measurements": [pcr_measurement(TPM.pcrs)]} | changes


def _accepted(book: Book) -> None:
    book.section(1, to=49, spec="§[[sgx]], [[snp]]")
    up, none = {"tcb_status": "UpToDate"}, {"tcb_status": "NotReported"}
    book.accept("sgx-measurement", "The enclave is named.", dcap(),
                policy=policy(("sgx", {"measurements": [ENCLAVE]})), **up)
    book.accept("sgx-signer", "The enclave's signer is named, with the product.", dcap(),
                policy=policy(("sgx", {"signers": [SIGNER], "products": [7], "min_svn": 3})), **up)
    book.accept("snp-production", "A production policy names the guest.", snp(),
                policy=policy(("snp", {"measurements": [GUEST]}), kind="production"), **none)
    book.accept("nitro-measurement", "The enclave's image is named.", document(),
                policy=policy(("nitro", {"measurements": [aws.PCR0.hex()]})), **none)
    book.accept("tpm-measurement", "The TPM's key is named, and what its PCRs measured.", bare(),
                policy=policy(tpm_entry()), **none)
    book.accept("azure-measurement", "Paravisor and guest are named together.", machine(),
                policy=policy(("azure", {"measurements": [azure_measurement(GUEST)]})), **none)
    book.accept("ra-tls-measurement", "The enclave in the certificate's evidence is named.", made(tcg()),
                policy=policy(("sgx", {"measurements": [ENCLAVE]})), **up)
    book.accept("second-entry", "Of two releases the second is the one that runs.", snp(),
                policy=policy(("snp", {"measurements": ["cd" * 48]}), ("snp", {"measurements": [GUEST]})), **none)
    book.accept("debug-accepted", "A development policy accepts debugging by its unsafe name.", snp(DEBUG_GUEST),
                policy=policy(("snp", {"measurements": [GUEST], "unsafe_accept_debug": True})),
                claims={"debug": True}, **none)
    book.accept("out-of-date-accepted", "The policy accepts the status, and each of its advisories.", dcap(OUTDATED),
                policy=policy(("sgx", {"measurements": [ENCLAVE], "tcb_statuses": ["UpToDate", "OutOfDate"],
                                       "accepted_advisories": ["INTEL-SA-00008"]})), tcb_status="OutOfDate")
    book.accept("tdx-registers", "The trust domain is named, with what was measured into each of its registers.",
                dcap(TDX5), policy=policy(("tdx", {"measurements": [DOMAIN]})), **up)


def _refused(book: Book) -> None:
    book.section(51, to=149, twin="sgx-measurement", document="docs/spec/evidence.md", spec="§4 step 6")
    up, none = {"tcb_status": "UpToDate"}, {"tcb_status": "NotReported"}
    names = {"measurements": [ENCLAVE]}
    expired = policy(("sgx", names), expires="2026-11-23T12:00:00Z")
    book.refuse("expired", "The policy expired this very second.", dcap(), "policy.expires", "policy_expired",
                policy=expired, **up)
    code = ("policy.measurement", "measurement_not_accepted")
    guest = {"measurements": [GUEST]}
    for name, title, minted, text, status in (
        ("sgx-another-enclave", "Another enclave is named.", dcap(), policy(("sgx", {"measurements": [OTHER]})), up),
        ("sgx-another-signer", "Another signer is named.", dcap(),
         policy(("sgx", {"signers": [OTHER], "products": [7]})), up),
        ("sgx-another-product", "The signer is named, for another product.", dcap(),
         policy(("sgx", {"signers": [SIGNER], "products": [8]})), up),
        ("sgx-signer-as-measurement", "The signer's digest is named as a measurement.", dcap(),
         policy(("sgx", {"measurements": [SIGNER]})), up),
        ("snp-another-guest", "Another guest is named.", snp(), policy(("snp", {"measurements": ["cd" * 48]})), none),
        ("snp-half-a-measurement", "The first 32 bytes of the guest's measurement are named.", snp(),
         policy(("snp", {"measurements": [GUEST[:64]]})), none),
        ("snp-no-signer", "The guest has no signer, and one of zeros is named: what is absent equals nothing.", snp(),
         policy(("snp", {"signers": ["00" * 48]})), none),
        ("nitro-another-image", "Another image is named.", document(),
         policy(("nitro", {"measurements": ["cd" * 48]})), none),
        ("tpm-other-pcrs", "Other PCRs are named.", bare(), policy(tpm_entry(measurements=[OTHER])), none),
        ("azure-paravisor-alone", "The paravisor's launch digest is named, which says nothing about the guest.",
         machine(), policy(("azure", {"measurements": [GUEST]})), none),
    ):
        book.refuse(name, title, minted, *code, policy=text, **status)
    for name, minted, text, status in (
        ("sgx-svn", dcap(), policy(("sgx", names | {"min_svn": 4})), up),
        ("snp-svn", snp(), policy(("snp", guest | {"min_svn": 8})), none),
    ):
        book.refuse(name, "The security version is below the minimum.", minted, "policy.svn", "svn_too_low",
                    policy=text, **status)
    book.refuse("tcb-status", "The platform is OutOfDate, and the policy does not accept that.", dcap(OUTDATED),
                "policy.tcb_status", "tcb_status_not_accepted",
                policy=policy(("sgx", names | {"accepted_advisories": ["INTEL-SA-00008"]})), tcb_status="OutOfDate")
    book.refuse("advisory", "An advisory applies that the policy does not accept.", dcap(OUTDATED), "policy.advisories",
                "advisory_not_accepted", policy=policy(("sgx", names | {"tcb_statuses": ["OutOfDate"]})),
                tcb_status="OutOfDate")
    book.refuse("snp-product-not-named", "The guest is named, and of products only Genoa: this is Milan.", snp(),
                "policy.tcb_version", "platform_tcb_too_low",
                policy=policy(("snp", guest | {"min_tcb": {"Genoa": tcb("Genoa")}})), twin="snp-production", **none)
    book.refuse("snp-debug", "The guest allows debugging.", snp(DEBUG_GUEST), "policy.debug", "debug_platform",
                policy=policy(("snp", guest)), **none)
    zeros = document(aws.mint(pcrs={n: bytes(48) for n in range(16)}))
    book.refuse("nitro-debug", "The enclave is in debug mode, and a measurement of zeros is named.", zeros,
                "policy.debug", "debug_platform", policy=policy(("nitro", {"measurements": ["00" * 48]})), **none)
    stale = document().but(now=NOW + timedelta(seconds=301))
    book.refuse("nitro-stale", "The document is older than the policy allows; its certificate is still valid.", stale,
                "policy.age", "evidence_stale", policy=policy(("nitro", {"measurements": [aws.PCR0.hex()]})), **none)
    halves = policy(("sgx", names | {"min_svn": 4}), ("sgx", {"measurements": [OTHER]}))
    book.refuse("half-by-each-entry", "One entry has the measurement and a higher SVN, the other the SVN and another "
                "measurement: one has to hold entirely.", dcap(), "policy.svn", "svn_too_low", policy=halves, **up)
    parts = policy(tpm_entry(roots=[fake.ROOT_DIGEST]), tpm_entry(roots=[TPM.ak_digest], measurements=[OTHER]))
    book.refuse("tpm-root-of-another-entry", "The key is named beside other PCRs, the PCRs beside a root that does "
                "not tie the key.", bare(), "policy.root", "root_not_accepted", policy=parts, **none)
    book.refuse("tdx-another-domain", "Another trust domain is named, with these registers.", dcap(TDX5), *code,
                policy=policy(("tdx", {"measurements": ["cd" * 48]})), twin="tdx-registers", **up)
    for i in range(4):
        book.refuse(f"tdx-another-rtmr{i}", f"The trust domain is named, with another value of RTMR{i}: MRTD alone "
                    "names firmware.", dcap(TDX5), f"policy.register.rtmr{i}", "register_not_accepted",
                    policy=policy(("tdx", {"measurements": [DOMAIN],
                                           "registers": registers(**{f"rtmr{i}": ["cd" * 48]})})),
                    twin="tdx-registers", **up)
    book.section(151, to=179, twin="sgx-measurement", document="docs/spec/evidence.md", spec="§4 step 3")
    other = "evidence_format_not_accepted"
    production = policy(("snp", guest), kind="production")
    book.refuse("simulation-in-production", "Simulated evidence before a production policy.", sim(), "evidence.root",
                "root_not_accepted", also=("policy.simulation", "policy.kind", "policy.format"), policy=production,
                **none)
    book.refuse("simulation-as-any-measurement", "Simulated evidence where any measurement is accepted.", sim(),
                "evidence.root", "root_not_accepted", also=("policy.simulation",), **none)
    book.refuse("hardware-in-simulation", "Genuine hardware evidence before a policy for simulation.", dcap(),
                "policy.simulation", other, also=("policy.kind", "policy.format"), policy=SIMULATION, **up)
    book.refuse("format-not-named", "The policy names SEV-SNP, the evidence is SGX's.", dcap(), "policy.format", other,
                policy=production, **up)
    book.refuse("profile-production", "The profile names no code, so it refuses every server.", snp(), "policy.format",
                "policy_accepts_nothing", policy="production", **none)
    book.refuse("format-unknown", "The evidence is of a format that no verifier here has.",
                dcap().but(format="cca", roots={}, anchors=()), "evidence.format", "evidence_format_unsupported")


def _unusable(book: Book) -> None:
    book.section(201, to=249, twin="snp-production", spec="§Rules")
    guest, enclave = {"measurements": [GUEST]}, {"measurements": [ENCLAVE]}
    entry = ("snp", guest)

    def bad(name: str, title: str, text: str, code: str = "policy_invalid") -> None:
        book.unusable(name, title, snp(), code, policy=text)

    weak, nothing, mixed = "policy_too_weak", "policy_accepts_nothing", "policy_mixes_simulation"
    bad("empty", "The file is empty.", "", "policy_empty")
    bad("not-toml", "The file is not TOML.", "kind: production\n")
    bad("member-unknown", "An entry has a member that nobody knows: a rule that is not understood is not passed over.",
        policy(("snp", guest | {"vmpl": 0})), "policy_unknown_member")
    bad("member-missing", "An entry says nothing about privilege levels.", policy(("snp", guest | {"vmpls": None})),
        "policy_missing_member")
    bad("security-missing", "The file says nothing about the server's configuration.",
        policy(entry, leave_out=("security",)), "policy_missing_member")
    bad("kind-unknown", "The kind is one that nobody knows.", policy(entry, kind="relaxed"))
    bad("kind-any-measurement", "The kind is that of the profile for appraisals.",
        policy(entry, kind="UNSAFE_ANY_MEASUREMENT"), "policy_appraise_only")
    bad("production-with-debug", "A production policy speaks of debugging.",
        policy(("snp", guest | {"unsafe_accept_debug": True}), kind="production"), "policy_unknown_member")
    bad("production-without-host-excluded", "A production policy accepts servers whose host is not excluded.",
        policy(entry, kind="production", security={"host_excluded": [True, False]}), weak)
    bad("revoked-accepted", "Revoked stands among the accepted statuses.",
        policy(("sgx", enclave | {"tcb_statuses": ["Revoked"]})), weak)
    bad("status-unknown", "An accepted status is one that no vendor says.",
        policy(("sgx", enclave | {"tcb_statuses": ["uptodate"]})))
    bad("no-code", "An entry names neither measurements nor signers.", policy(("snp", {})), nothing)
    bad("no-statuses", "An entry accepts no TCB status.", policy(("sgx", enclave | {"tcb_statuses": []})), nothing)
    bad("no-roots", "An entry for TPMs names no root.", policy(tpm_entry(roots=[])), nothing)
    bad("measurement-empty", "A measurement is the empty text.", policy(("snp", {"measurements": [""]})))
    bad("measurement-in-capitals", "A measurement is in capitals.", policy(("snp", {"measurements": ["AB" * 48]})))
    bad("measurement-twice", "A measurement is there twice.", policy(("snp", {"measurements": [GUEST, GUEST]})))
    bad("products-without-signers", "Products are named without signers.", policy(("sgx", enclave | {"products": [1]})))
    bad("svn-as-boolean", "The minimum SVN is true.", policy(("snp", guest | {"min_svn": True})))
    bad("svn-negative", "The minimum SVN is negative.", policy(("snp", guest | {"min_svn": -1})))
    bad("age-of-years", "Evidence may be older than a week.", policy(
        ("nitro", {"measurements": [aws.PCR0.hex()], "max_evidence_age_s": MAX_EVIDENCE_AGE + 1})))
    bad("expires-as-text", "The end of the policy is a string.", policy(entry, expires='"2027-06-30T00:00:00Z"'))
    bad("expires-without-offset", "The end of the policy has no offset from UTC.",
        policy(entry, expires="2027-06-30T00:00:00"))
    bad("simulation-beside-hardware", "An entry for simulation stands beside one for SEV-SNP.",
        policy(entry, ("sim", {"root": OTHER, "measurements": [OTHER]})), mixed)
    bad("simulation-in-production", "A production policy has an entry for simulation.",
        policy(("sim", {"root": OTHER, "measurements": [OTHER]}), kind="production"), mixed)
    bad("simulated-sealing", "A development policy accepts simulated sealing.",
        policy(entry, security={"sealing": ["simulated"]}), mixed)
    bad("too-many-entries", "The file has 65 entries.", policy(*[entry] * (MAX_ENTRIES + 1)))
