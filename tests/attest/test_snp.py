"""`attest.snp`: AMD SEV-SNP reports, from a fake AMD with one thing wrong at a time, and from genuine ones."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from cryptography.hazmat.primitives.asymmetric import ec
from fake_amd import (
    AMD,
    CLOUD,
    CSP_ID,
    HARDWARE_ID,
    MEASUREMENT,
    PRODUCT_NAME,
    REPORT_DATA,
    TCB,
    Machine,
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
    pem,
    revocation_list,
    rsa_key,
    tlv,
)

from strongroom.attest.evidence import Absent, Claims, Examination
from strongroom.attest.snp import PINNED_ROOTS, examine_snp
from strongroom.attest.snp_report import SIGNED_SIZE, parse_certificate_table, parse_report
from strongroom.errors import CODES, MalformedInput

EVIDENCE = SHARED / "evidence" / "snp"
GENUINE = ("milan-v2-vcek", "milan-v2-debug-policy", "milan-v3-vlek-aws", "genoa-v3-vcek", "turin-v5-vcek")
ABSENT = "not exercised here: recorded evidence is not beside this checkout"
recorded = pytest.mark.skipif(not EVIDENCE.is_dir(), reason=ABSENT)
NEXT_DAY = timedelta(days=1)


def examine(
    machine: Machine,
    *,
    endorsements: tuple[tuple[str, bytes], ...] | None = None,
    extra: tuple[tuple[str, bytes], ...] = (),
    accepted: tuple[str, ...] | None = None,
    now: datetime = NOW,
) -> Examination:
    """What is found about the machine's report and certificates, or those given instead."""
    stapled = machine.endorsements if endorsements is None else endorsements
    pinned = roots() if accepted is None else accepted
    return examine_snp(machine.report, endorsements=stapled + extra, roots=pinned, now=now)


def failures(found: Examination) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in found.checks if not c.passed]


def details(found: Examination) -> dict[str, str]:
    """The details of claims that are there."""
    assert isinstance(found.claims, Claims)
    return dict(found.claims.details)


# What is accepted


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_genuine_report_gives_its_claims(product: str, kind: str, version: int) -> None:
    """Three products, two kinds of keys, four versions: every check passes, and the claims are the report's."""
    found = examine(Machine(product=product, kind=kind, version=version))
    assert failures(found) == []
    claims = found.claims
    assert isinstance(claims, Claims)
    assert (claims.format, claims.simulated, claims.host_excluded, claims.debug) == (
        "snp",
        False,
        True,
        False,
    )
    assert (claims.measurement, claims.report_data, claims.svn) == (MEASUREMENT.hex(), REPORT_DATA, 7)
    assert (claims.tcb_status, claims.signer, claims.issued_at) == ("NotReported", "", None)
    assert claims.root == roots()[("Milan", "Genoa", "Turin").index(product)]
    said = details(found)
    assert (said["product"], said["signing_key"], said["report_version"]) == (product, kind, str(version))
    assert said["csp_id"] == (CLOUD if kind == "VLEK" else "")
    assert ("mitigations.current" in said) == (version == 5)


def test_every_check_is_there_and_has_its_own_code() -> None:
    """The checks of one examination: ids and codes are distinct, and every code is explained."""
    found = examine(Machine())
    broken = examine_snp(b"", endorsements=(("x", b"x"),), roots=(), now=NOW)
    assert [c.id for c in found.checks] == [c.id for c in broken.checks]
    assert (
        len({c.id for c in broken.checks}) == len({c.code for c in broken.checks}) == len(broken.checks) == 27
    )
    assert all(c.code in CODES for c in broken.checks)


def test_details_are_the_fields_of_the_report() -> None:
    """Integers decimal, bytes as lower-case hex; the parts of the four TCB versions by name."""
    machine = Machine(
        product="Turin",
        version=5,
        fields={
            0x08: (0x3011F | 1 << 20 | 1 << 24).to_bytes(8, "little"),
            0x30: b"\x01",
            0x38: bytes([9, 8, 7, 6, 0, 0, 0, 99]),
            0x40: b"\x25",
            0x1E8: bytes([1, 2, 3, 0, 4, 5, 6, 0]),
        },
    )
    said = details(examine(machine))
    assert (said["vmpl"], said["policy.abi_major"], said["policy.abi_minor"]) == ("1", "1", "31")
    assert (said["policy.smt"], said["policy.single_socket"], said["policy.ciphertext_hiding"]) == (
        "1",
        "1",
        "1",
    )
    assert (said["policy.debug"], said["policy.migrate_ma"], said["policy"]) == (
        "0",
        "0",
        str(0x3011F | 0x1100000),
    )
    assert [said[f"tcb.current.{part}"] for part in ("fmc", "bl", "tee", "snp", "ucode")] == [
        "9",
        "8",
        "7",
        "6",
        "99",
    ]
    assert [said[f"tcb.{part}"] for part in ("fmc", "bl", "tee", "snp", "ucode")] == [
        "1",
        "1",
        "1",
        "4",
        "81",
    ]
    assert (said["firmware"], said["firmware.committed"]) == ("3.2.1", "6.5.4")
    assert (said["mitigations.launch"], said["mitigations.current"]) == ("63", "127")
    assert said["host_data"] == b"host data".hex().ljust(64, "0")
    assert said["family_id"] == b"family".hex().ljust(32, "0")
    assert said["chip_id"] == "0102030405060708".ljust(128, "0")
    assert said["collateral_expires"] == UNTIL.isoformat()


def test_cve_2024_21944_badram_the_alias_check_is_reported() -> None:
    """Memory modules that lie about their size: firmware says whether it looked, and policies can demand it."""
    assert details(examine(Machine(fields={0x40: b"\x20"})))["platform.alias_check_complete"] == "1"
    assert details(examine(Machine(fields={0x40: b"\x05"})))["platform.alias_check_complete"] == "0"


@pytest.mark.parametrize(
    ("bit", "debug"),
    [(19, True), (18, False)],
    ids=["debug", "migration"],
)
def test_debug_and_migration_leave_the_host_in(bit: int, debug: bool) -> None:
    """The report is genuine; that the host may read the guest, or hand it to an agent of its choice, is in the
    claims."""
    found = examine(Machine(fields={0x08: (0x30000 | 1 << bit).to_bytes(8, "little")}))
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert (found.claims.debug, found.claims.host_excluded) == (debug, False)


def test_the_signer_is_the_author_key_or_else_the_id_key() -> None:
    """Digests of keys that signed the guest's identity block."""
    keys = {0xE0: b"\xaa" * 48, 0x110: b"\xbb" * 48}
    found = examine(Machine(fields=keys | {0x48: b"\x01"})).claims
    assert isinstance(found, Claims) and found.signer == "bb" * 48
    found = examine(Machine(fields={0xE0: b"\xaa" * 48})).claims
    assert isinstance(found, Claims) and found.signer == "aa" * 48


MILAN = Machine()
ALL_PEM = b"".join(pem(der) for der in (MILAN.root_der, MILAN.leaf_der, MILAN.issuer_der))
TABLE = certificate_table(
    ("VCEK", MILAN.leaf_der), ("other", b"x" * 8), ("ASK", MILAN.issuer_der), ("ARK", MILAN.root_der)
)
OTHERS = tuple(
    (p, root_der(p) if i else intermediate_der(p, "VLEK")) for i in (0, 1) for p in ("Genoa", "Turin")
)


@pytest.mark.parametrize(
    "endorsements",
    [
        (("a", MILAN.leaf_der), ("b", MILAN.issuer_der), ("c", MILAN.root_der)),
        (("a", ALL_PEM),),
        (("a", b"some text\n" + ALL_PEM.replace(b"\n", b"\r\n")),),
        (("table", TABLE),),
        (("ark.crl", MILAN.root_der), ("report", MILAN.leaf_der), ("", MILAN.issuer_der)),
        (*MILAN.endorsements, *OTHERS),
        (*MILAN.endorsements, ("again", ALL_PEM)),
        (*MILAN.endorsements, ("lent", Machine(kind="VLEK").leaf_der)),
        (*MILAN.endorsements, ("other", Machine(key=ec_key("other")).leaf_der)),
        (*MILAN.endorsements, ("old", Machine(leaf={"not_after": SINCE}).leaf_der)),
        (*MILAN.endorsements, ("key", pem(b"x", "EC PARAMETERS") + pem(MILAN.root_der))),
    ],
    ids=[
        "der",
        "pem",
        "crlf",
        "table",
        "names",
        "others",
        "twice",
        "both-kinds",
        "another-chips",
        "another-time",
        "other-block",
    ],
)
def test_endorsements_are_sorted_by_content(endorsements: tuple[tuple[str, bytes], ...]) -> None:
    """Whatever form, order, names and company."""
    assert failures(examine(MILAN, endorsements=endorsements)) == []


@pytest.mark.parametrize("model", [0x00, 0x01, 0x0F])
def test_models_of_milan(model: int) -> None:
    """Models 0x00 to 0x0f."""
    assert failures(examine(Machine(fields={0x189: bytes([model])}))) == []


@pytest.mark.parametrize("model", [0x10, 0x11, 0x1F, 0xA0, 0xAF])
def test_models_of_genoa(model: int) -> None:
    """Models 0x10 to 0x1f, and 0xa0 to 0xaf (Bergamo, Siena)."""
    assert failures(examine(Machine(product="Genoa", fields={0x189: bytes([model])}))) == []


def test_among_several_chip_certificates_any_kind_of_key_may_be() -> None:
    """A stranger's certificate whose key is RSA beside the genuine one, and beside a report that cannot be read: it is
    not taken, and nothing breaks over it.
    """
    foreign = (("x", MILAN.but(key=rsa_key("weak")).leaf_der),)
    assert failures(examine(MILAN, extra=foreign)) == []
    twice = (*MILAN.endorsements, *foreign)
    for report in (b"", MILAN.report[:-1], b"\x09" + MILAN.report[1:]):
        found = examine_snp(report, endorsements=twice, roots=roots(), now=NOW)
        assert isinstance(found.claims, Absent)
        assert failures(found)[0] in ("snp_length", "snp_version")
        assert "snp_leaf_missing" in failures(found)


def test_a_product_name_may_name_a_stepping() -> None:
    """Older chip certificates say Milan-B0."""
    assert failures(examine(Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Milan-B0")}))) == []


def test_a_revocation_list_that_names_nobody_here_is_a_check_more() -> None:
    """A current list of the root's, with other serial numbers; other products' lists are passed over."""
    lists = tuple((p, revocation_list(f"ARK-{p}", rsa_key("ark"), [5, 0x10009])) for p in ("Milan", "Genoa"))
    found = examine(Machine(), extra=lists)
    assert failures(found) == []
    assert [c.id for c in found.checks].count("snp.chain.revocation") == 1
    assert len(found.checks) == 28
    assert (details(found)["revocation"], details(examine(MILAN))["revocation"]) == ("checked", "not checked")


def test_validity_ends_are_included() -> None:
    """At the first and the last second of the certificates."""
    assert failures(examine(Machine(), now=SINCE)) == []
    assert failures(examine(Machine(), now=UNTIL)) == []


# What is refused: one thing wrong each, and one check fails


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def tcb_with(product: str, at: int, value: int = 1) -> bytes:
    tcb = bytearray(TCB[product])
    tcb[at] = value
    return bytes(tcb)


MALLORY = ec_key("mallory")
ONE_REFUSAL: dict[str, tuple[Machine, str]] = {
    "policy-bit-17": (Machine(fields={0x08: u64(0x1001F)}), "snp_policy_malformed"),
    "policy-bit-26": (Machine(fields={0x08: u64(0x3001F | 1 << 26)}), "snp_policy_malformed"),
    "policy-bit-63": (Machine(fields={0x08: u64(0x3001F | 1 << 63)}), "snp_policy_malformed"),
    "reserved-4c": (Machine(fields={0x4C: b"\x01"}), "snp_reserved"),
    "reserved-cpuid-v2": (Machine(version=2, fields={0x188: b"\x19"}), "snp_reserved"),
    "reserved-18b": (Machine(fields={0x18B: b"\x01"}), "snp_reserved"),
    "reserved-19f": (Machine(fields={0x19F: b"\x01"}), "snp_reserved"),
    "reserved-1eb": (Machine(fields={0x1EB: b"\x01"}), "snp_reserved"),
    "reserved-1ef": (Machine(fields={0x1EF: b"\x01"}), "snp_reserved"),
    "reserved-mitigations-v3": (Machine(fields={0x1F8: b"\x01"}), "snp_reserved"),
    "reserved-208-v5": (Machine(version=5, fields={0x208: b"\x01"}), "snp_reserved"),
    "reserved-29f": (Machine(fields={0x29F: b"\x01"}), "snp_reserved"),
    "reserved-key-information": (Machine(fields={0x48: b"\x20"}), "snp_reserved"),
    "vmpl-4": (Machine(fields={0x30: b"\x04"}), "snp_not_from_guest"),
    "asked-by-host": (Machine(fields={0x30: b"\xff\xff\xff\xff"}), "snp_not_from_guest"),
    "cpuid-genoa-chain-milan": (Machine(fields={0x189: b"\x11"}), "snp_product_mismatch"),
    "product-name-genoa": (Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Genoa")}), "snp_product_mismatch"),
    "product-name-prefix": (Machine(leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Milano")}), "snp_product_mismatch"),
    "product-name-none": (Machine(leaf_extensions={PRODUCT_NAME: None}), "snp_product_mismatch"),
    "product-name-utf8": (Machine(leaf_extensions={PRODUCT_NAME: tlv(0x0C, b"Milan")}), "snp_product_mismatch"),
    "product-name-v2": (
        Machine(version=2, leaf_extensions={PRODUCT_NAME: tlv(0x16, b"Genoa")}),
        "snp_product_mismatch",
    ),
    "tcb-reserved-current": (Machine(fields={0x38: tcb_with("Milan", 2)}), "snp_tcb_reserved"),
    "tcb-reserved-reported": (Machine(fields={0x180: tcb_with("Milan", 5)}), "snp_tcb_reserved"),
    "tcb-reserved-committed": (Machine(fields={0x1E0: tcb_with("Milan", 3)}), "snp_tcb_reserved"),
    "tcb-reserved-launch": (Machine(fields={0x1F0: tcb_with("Milan", 4)}), "snp_tcb_reserved"),
    "tcb-reserved-turin": (Machine(product="Turin", fields={0x1F0: tcb_with("Turin", 4)}), "snp_tcb_reserved"),
    "leaf-signature": (Machine(leaf={"corrupt": True}), "chain_signature_invalid"),
    "leaf-by-mallory": (Machine(leaf={"signer": rsa_key("mallory")}), "chain_signature_invalid"),
    "issuer-signature": (Machine(issuer={"corrupt": True}), "chain_signature_invalid"),
    "issuer-by-mallory": (Machine(issuer={"signer": rsa_key("mallory")}), "chain_signature_invalid"),
    "issuer-no-authority": (
        Machine(issuer={"extensions": (basic_constraints(None, ca=False), key_usage(0x04))}),
        "chain_issuer_not_authority",
    ),
    "issuer-silent": (Machine(issuer={"extensions": (key_usage(0x04),)}), "chain_issuer_not_authority"),
    "issuer-key-usage": (
        Machine(issuer={"extensions": (basic_constraints(0), key_usage(0x80))}),
        "chain_issuer_not_authority",
    ),
    "issuer-critical": (
        Machine(issuer={"extensions": (basic_constraints(0), extension("1.2.3", b"", critical=True))}),
        "chain_critical_extension",
    ),
    "leaf-expired": (Machine(leaf={"not_after": NOW - NEXT_DAY}), "chain_not_valid_now"),
    "leaf-to-come": (Machine(leaf={"not_before": NOW + NEXT_DAY}), "chain_not_valid_now"),
    "issuer-expired": (Machine(issuer={"not_after": NOW - NEXT_DAY}), "chain_not_valid_now"),
    "issuer-to-come": (Machine(issuer={"not_before": NOW + NEXT_DAY}), "chain_not_valid_now"),
    "issuer-rsa-2048": (Machine(issuer={"key": rsa_key("weak")}), "snp_chain_algorithm"),
    "leaf-pkcs1": (Machine(leaf={"scheme": "RSA-PKCS1"}), "snp_chain_algorithm"),
    "leaf-sha256": (Machine(leaf={"digest": "SHA-256"}), "snp_chain_algorithm"),
    "issuer-sha512": (Machine(issuer={"digest": "SHA-512"}), "snp_chain_algorithm"),
    "kind-vlek-certificate-vcek": (Machine(fields={0x48: b"\x04"}), "snp_signer_mismatch"),
    "kind-vcek-certificate-vlek": (Machine(kind="VLEK", fields={0x48: b"\x00"}), "snp_signer_mismatch"),
    "chip-key-masked": (Machine(fields={0x48: b"\x02"}), "snp_chip_key_masked"),
    "leaf-p256": (Machine(key=ec_key("p256", ec.SECP256R1())), "snp_leaf_key"),
    "tcb-bl-above": (Machine(fields={0x180: tcb_with("Milan", 0, 4)}), "snp_tcb_mismatch"),
    "tcb-bl-below": (Machine(fields={0x180: tcb_with("Milan", 0, 2)}), "snp_tcb_mismatch"),
    "tcb-tee": (Machine(fields={0x180: tcb_with("Milan", 1)}), "snp_tcb_mismatch"),
    "tcb-snp": (Machine(fields={0x180: tcb_with("Milan", 6)}), "snp_tcb_mismatch"),
    "tcb-ucode": (Machine(fields={0x180: tcb_with("Milan", 7)}), "snp_tcb_mismatch"),
    "tcb-fmc-turin": (Machine(product="Turin", fields={0x180: tcb_with("Turin", 0, 2)}), "snp_tcb_mismatch"),
    "tcb-snp-turin": (Machine(product="Turin", fields={0x180: tcb_with("Turin", 3)}), "snp_tcb_mismatch"),
    "tcb-certified-other": (Machine(leaf_extensions={AMD + "3.8": integer(0xD1)}), "snp_tcb_mismatch"),
    "tcb-certified-negative": (Machine(leaf_extensions={AMD + "3.8": b"\x02\x01\xf3"}), "snp_tcb_mismatch"),
    "tcb-certified-none": (Machine(leaf_extensions={AMD + "3.3": None}), "snp_tcb_mismatch"),
    "tcb-certified-no-number": (Machine(leaf_extensions={AMD + "3.3": b"\x08"}), "snp_tcb_mismatch"),
    "tcb-certified-trailing": (Machine(leaf_extensions={AMD + "3.3": b"\x02\x01\x08\x00"}), "snp_tcb_mismatch"),
    "tcb-certified-spl4": (Machine(leaf_extensions={AMD + "3.4": integer(1)}), "snp_tcb_mismatch"),
    "tcb-certified-fmc-milan": (Machine(leaf_extensions={AMD + "3.9": integer(1)}), "snp_tcb_mismatch"),
    "tcb-certified-no-fmc-turin": (
        Machine(product="Turin", leaf_extensions={AMD + "3.9": None}),
        "snp_tcb_mismatch",
    ),
    "chip-other": (Machine(fields={0x1A0: b"\xff" * 64}), "snp_chip_mismatch"),
    "chip-hidden": (Machine(fields={0x1A0: bytes(64)}), "snp_chip_mismatch"),
    "chip-last-byte": (Machine(fields={0x1DF: b"\x00"}), "snp_chip_mismatch"),
    "chip-none": (Machine(leaf_extensions={HARDWARE_ID: None}), "snp_chip_mismatch"),
    "chip-empty": (Machine(leaf_extensions={HARDWARE_ID: b""}, fields={0x1A0: bytes(64)}), "snp_chip_mismatch"),
    "chip-short": (
        Machine(leaf_extensions={HARDWARE_ID: b"12345678"}, fields={0x1A0: b"12345678".ljust(64, b"\x00")}),
        "snp_chip_mismatch",
    ),
    "chip-turin-long": (
        Machine(product="Turin", leaf_extensions={HARDWARE_ID: bytes(range(1, 9)).ljust(64, b"\x00")}),
        "snp_chip_mismatch",
    ),
    "chip-turin-behind": (Machine(product="Turin", fields={0x1A8: b"\x01"}), "snp_chip_mismatch"),
    "chip-of-lent-key": (Machine(kind="VLEK", leaf_extensions={HARDWARE_ID: bytes(64)}), "snp_chip_mismatch"),
    "csp-none": (Machine(kind="VLEK", leaf_extensions={CSP_ID: None}), "snp_csp_mismatch"),
    "csp-empty": (Machine(kind="VLEK", leaf_extensions={CSP_ID: tlv(0x16)}), "snp_csp_mismatch"),
    "csp-utf8": (Machine(kind="VLEK", leaf_extensions={CSP_ID: tlv(0x0C, b"CN=x")}), "snp_csp_mismatch"),
    "csp-control": (Machine(kind="VLEK", leaf_extensions={CSP_ID: tlv(0x16, b"CN=\x1b[31m")}), "snp_csp_mismatch"),
    "csp-of-chip": (Machine(leaf_extensions={CSP_ID: tlv(0x16, b"CN=x")}), "snp_csp_mismatch"),
    "csp-of-chip-no-text": (Machine(leaf_extensions={CSP_ID: b""}), "snp_csp_mismatch"),
    "signature-algorithm-0": (Machine(fields={0x34: b"\x00"}), "snp_signature_malformed"),
    "signature-algorithm-2": (Machine(fields={0x34: b"\x02"}), "snp_signature_malformed"),
    "signature-tail": (Machine(after={0x4_9F: b"\x01"}), "snp_signature_malformed"),
    "signature-tail-first": (Machine(after={SIGNED_SIZE + 144: b"\x01"}), "snp_signature_malformed"),
    "signed-by-mallory": (Machine(signs_with=MALLORY), "evidence_signature_invalid"),
    "changed-measurement": (Machine(after={0x90: b"\xff"}), "evidence_signature_invalid"),
    "changed-report-data": (Machine(after={0x50: b"\xff"}), "evidence_signature_invalid"),
    "changed-host-data": (Machine(after={0xC0: b"\xff"}), "evidence_signature_invalid"),
    "changed-debug": (Machine(fields={0x08: u64(0xB0000)}, after={0x08: u64(0x30000)}), "evidence_signature_invalid"),
    "changed-vmpl": (Machine(fields={0x30: b"\x01"}, after={0x30: b"\x00"}), "evidence_signature_invalid"),
    "changed-signature": (Machine(after={SIGNED_SIZE: bytes(16)}), "evidence_signature_invalid"),
}  # fmt: skip


@pytest.mark.parametrize("vector", sorted(ONE_REFUSAL))
def test_one_thing_wrong_is_one_check_failed(vector: str) -> None:
    """Genuine but for one thing: exactly the check of that thing fails."""
    machine, code = ONE_REFUSAL[vector]
    assert failures(examine(machine)) == [code]


MANY: dict[str, tuple[Machine, dict[str, Any], str]] = {
    "no-endorsements": (MILAN, {"endorsements": ()}, "snp_leaf_missing"),
    "no-leaf": (MILAN, {"endorsements": MILAN.endorsements[1:]}, "snp_leaf_missing"),
    "two-chips": (
        MILAN,
        {"endorsements": (("a", Machine(key=MALLORY).leaf_der), ("b", Machine(key=ec_key("x")).leaf_der))},
        "snp_leaf_missing",
    ),
    "leaf-p521": (Machine(key=ec_key("p521", ec.SECP521R1())), {}, "snp_leaf_key"),
    "leaf-rsa": (Machine(key=rsa_key("weak"), signs_with=MALLORY), {}, "snp_leaf_key"),
    "leaf-by-name": (Machine(leaf={"subject": "SEV-VCEK2"}), {}, "snp_leaf_missing"),
    "leaf-without-name": (Machine(leaf={"subject_der": b"\x30\x00"}), {}, "snp_leaf_missing"),
    "no-issuer": (MILAN, {"endorsements": (("a", MILAN.leaf_der), ("b", MILAN.root_der))}, "chain_incomplete"),
    "no-root": (MILAN, {"endorsements": (("a", MILAN.leaf_der), ("b", MILAN.issuer_der))}, "chain_incomplete"),
    "no-roots-accepted": (MILAN, {"accepted": ()}, "root_not_accepted"),
    "other-roots-accepted": (MILAN, {"accepted": roots()[1:]}, "root_not_accepted"),
    "genuine-roots-accepted": (MILAN, {"accepted": PINNED_ROOTS}, "root_not_accepted"),
    "root-in-capitals": (MILAN, {"accepted": tuple(r.upper() for r in roots())}, "root_not_accepted"),
    "root-of-same-name": (
        Machine(ark={"key": rsa_key("mallory"), "signer": rsa_key("mallory")},
                issuer={"signer": rsa_key("mallory")}),
        {},
        "root_not_accepted",
    ),
    "root-reissued": (Machine(ark={"serial": 2}), {}, "root_not_accepted"),
    "root-expired": (MILAN, {"now": UNTIL + NEXT_DAY}, "chain_not_valid_now"),
    "before-everything": (MILAN, {"now": SINCE - NEXT_DAY}, "chain_not_valid_now"),
    "leaf-issued-by-leaf": (
        Machine(leaf={"issuer": "SEV-VLEK", "signer": MALLORY, "scheme": "ECDSA"}),
        {"extra": (("x", Machine(kind="VLEK", key=MALLORY).leaf_der),
                   ("y", intermediate_der("Milan", "VLEK")))},
        "snp_product_mismatch",
    ),
    "vcek-by-asvk": (
        Machine(leaf={"issuer": "SEV-VLEK-Milan", "signer": rsa_key("asvk")}),
        {"extra": (("x", intermediate_der("Milan", "VLEK")),)},
        "snp_chain_names",
    ),
    "vlek-by-ask": (
        Machine(kind="VLEK", leaf={"issuer": "SEV-Milan", "signer": rsa_key("ask")}),
        {"extra": (("x", intermediate_der("Milan", "VCEK")),)},
        "snp_chain_names",
    ),
    "issuer-under-other-ark": (
        Machine(issuer={"issuer": "ARK-Genoa"}),
        {"extra": (("x", root_der("Genoa")),)},
        "snp_chain_names",
    ),
    "v2-unknown-product": (
        Machine(version=2, leaf={"issuer": "SEV-Rome"}, issuer={"subject": "SEV-Rome"}),
        {},
        "snp_product_unknown",
    ),
    "cpuid-naples": (Machine(fields={0x188: b"\x17\x01"}), {}, "snp_product_unknown"),
    "cpuid-genoa-like": (Machine(product="Genoa", fields={0x189: b"\x20"}), {}, "snp_product_unknown"),
    "cpuid-after-turin": (Machine(product="Turin", fields={0x189: b"\x50"}), {}, "snp_product_unknown"),
    "cpuid-zero": (Machine(fields={0x188: b"\x00\x00\x00"}), {}, "snp_product_unknown"),
    "no-signing-key": (Machine(fields={0x48: b"\x1c"}), {}, "snp_signing_key"),
    "signing-key-2": (Machine(fields={0x48: b"\x08"}), {}, "snp_signing_key"),
    "version-0": (Machine(fields={0x00: b"\x00"}), {}, "snp_version"),
    "version-1": (Machine(fields={0x00: b"\x01"}), {}, "snp_version"),
    "version-6": (Machine(fields={0x00: b"\x06"}), {}, "snp_version"),
    "version-high": (Machine(fields={0x03: b"\x01"}), {}, "snp_version"),
    "signature-r-zero": (Machine(after={SIGNED_SIZE: bytes(72)}), {}, "snp_signature_malformed"),
    "signature-s-zero": (Machine(after={SIGNED_SIZE + 72: bytes(72)}), {}, "snp_signature_malformed"),
    "signature-r-padding": (Machine(after={SIGNED_SIZE + 71: b"\x01"}), {}, "snp_signature_malformed"),
    "signature-s-padding": (Machine(after={SIGNED_SIZE + 72 + 48: b"\x01"}), {}, "snp_signature_malformed"),
    "signature-absent": (Machine(after={SIGNED_SIZE: bytes(512)}), {}, "snp_signature_malformed"),
    "endorsement-garbage": (MILAN, {"extra": (("x", b"garbage"),)}, "snp_endorsement_malformed"),
    "endorsement-empty": (MILAN, {"extra": (("x", b""),)}, "snp_endorsement_malformed"),
    "endorsement-cut": (MILAN, {"extra": (("x", MILAN.leaf_der[:-1]),)}, "snp_endorsement_malformed"),
    "endorsement-trailing": (MILAN, {"extra": (("x", MILAN.leaf_der + b"\x00"),)}, "snp_endorsement_malformed"),
    "endorsement-pem-cut": (MILAN, {"extra": (("x", ALL_PEM[:-9]),)}, "snp_endorsement_malformed"),
    "endorsement-pem-not-base64": (
        MILAN,
        {"extra": (("x", b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----"),)},
        "snp_endorsement_malformed",
    ),
    "endorsement-other-pem": (MILAN, {"extra": (("x", pem(b"x", "PRIVATE KEY")),)}, "snp_endorsement_malformed"),
    "endorsement-other-der": (MILAN, {"extra": (("x", b"\x30\x00"),)}, "snp_endorsement_malformed"),
    "table-cut": (MILAN, {"endorsements": (("t", TABLE[:-1]),)}, "snp_endorsement_malformed"),
    "table-endless": (MILAN, {"endorsements": (("t", TABLE[:24] * 3),)}, "snp_endorsement_malformed"),
    "table-of-garbage": (
        MILAN,
        {"endorsements": (("t", certificate_table(("VCEK", b"garbage"))),)},
        "snp_endorsement_malformed",
    ),
    "table-in-table": (
        MILAN,
        {"endorsements": (("t", certificate_table(("VCEK", TABLE))),)},
        "snp_endorsement_malformed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("vector", sorted(MANY))
def test_what_leaves_nothing_to_check_fails_those_checks_too(vector: str) -> None:
    """One thing wrong, on which later checks depend: its own code is the first, and every check is still there."""
    machine, arguments, code = MANY[vector]
    found = examine(machine, **arguments)
    assert failures(found)[0] == code
    assert len(found.checks) == 27


@pytest.mark.parametrize("size", [0, 1, SIGNED_SIZE, 1183, 1185, 1184 + 32, 4000])
def test_another_size_is_no_report(size: int) -> None:
    """Truncated, with a header left in front, or padded."""
    found = examine_snp(MILAN.report.ljust(size, b"\x00")[:size], endorsements=(), roots=roots(), now=NOW)
    assert failures(found)[0] == "snp_length"
    assert isinstance(found.claims, Absent)


def test_big_endian_signatures_are_not_read() -> None:
    """R and S are little-endian, and nothing tries the other way."""
    report = MILAN.report
    r, s = report[SIGNED_SIZE : SIGNED_SIZE + 48], report[SIGNED_SIZE + 72 : SIGNED_SIZE + 120]
    swapped = MILAN.but(after={SIGNED_SIZE: r[::-1], SIGNED_SIZE + 72: s[::-1]})
    assert "evidence_signature_invalid" in failures(examine(swapped))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"serials": [0x10001]}, "chain_certificate_revoked"),
        ({"serials": [7, 0x10000]}, "chain_certificate_revoked"),
        ({"next_update": NOW - NEXT_DAY}, "revocation_list_not_current"),
        ({"this_update": NOW + NEXT_DAY}, "revocation_list_not_current"),
        ({"next_update": None}, "revocation_list_not_current"),
        ({"corrupt": True}, "revocation_list_signature_invalid"),
        ({"key": rsa_key("mallory")}, "revocation_list_signature_invalid"),
        ({"extensions": [extension("2.5.29.27", integer(1), critical=True)]}, "revocation_list_unsupported"),
    ],
    ids=["issuer", "root", "old", "to-come", "endless", "corrupt", "mallory", "delta"],
)
def test_a_stapled_revocation_list_counts(arguments: dict[str, Any], code: str) -> None:
    """It is the root's, current, whole, and names none of the chain; else it refuses, and nothing is claimed."""
    crl = revocation_list("ARK-Milan", **({"key": rsa_key("ark")} | arguments))
    found = examine(MILAN, extra=(("crl", pem(crl, "X509 CRL")),))
    assert failures(found) == [code]
    assert isinstance(found.claims, Absent)


@pytest.mark.parametrize(
    "vector",
    [
        *(
            n
            for n in ONE_REFUSAL
            if n.startswith(("leaf-", "issuer-", "changed-", "signed-")) and "p256" not in n
        ),
        *(n for n in MANY if n.startswith(("no-", "root-", "other-", "vcek-", "vlek-", "version-"))),
    ],
)
def test_unverified_reports_claim_nothing(vector: str) -> None:
    """Where the chain or the signature fails there are no claims that anything could be decided on."""
    if vector in ("leaf-p521", "no-signing-key"):
        return
    machine, *rest = (ONE_REFUSAL | MANY)[vector]
    arguments = rest[0] if isinstance(rest[0], dict) else {}
    assert isinstance(examine(machine, **arguments).claims, Absent)


def test_parse_report_refuses_by_itself() -> None:
    """The parser is of use without the checks: size and version."""
    for data, code in ((b"", "snp_length"), (bytes(1184), "snp_version")):
        with pytest.raises(MalformedInput) as caught:
            parse_report(data)
        assert caught.value.code == code
    assert parse_report(MILAN.report).measurement == MEASUREMENT


@pytest.mark.parametrize(
    "data",
    [b"", bytes(24), TABLE[:23], b"\x01" * 24 * 20, certificate_table(("other", b"x"))],
    ids=["empty", "no-entries", "cut", "too-many", "no-certificates"],
)
def test_tables_without_certificates_are_refused(data: bytes) -> None:
    """Nothing to use, or no table."""
    with pytest.raises(MalformedInput) as caught:
        parse_certificate_table(data)
    assert caught.value.code == "snp_table_malformed"


# Genuine evidence


def genuine(sample: str) -> tuple[bytes, tuple[tuple[str, bytes], ...], datetime, dict[str, Any]]:
    """Report, endorsements, time and expectations of a recorded sample."""
    folder = EVIDENCE / sample
    expect = json.loads((folder / "expect.json").read_text())
    family = sample.partition("-")[0]
    chain = (EVIDENCE / f"roots-{family}" / f"{family}_ask_ark_asvk.pem").read_bytes()
    stapled = (("leaf.der", (folder / "leaf.der").read_bytes()), ("chain.pem", chain))
    return (
        (folder / "report.bin").read_bytes(),
        stapled,
        datetime.fromisoformat(expect["as_of"]),
        expect["expect"],
    )


@recorded
@pytest.mark.parametrize("sample", GENUINE)
def test_genuine_reports_give_exactly_the_expected_outcome(sample: str) -> None:
    """Every check passes, and every recorded fact is in the claims."""
    report, stapled, now, expect = genuine(sample)
    found = examine_snp(report, endorsements=stapled, roots=PINNED_ROOTS, now=now)
    assert failures(found) == []
    claims, said = found.claims, details(found)
    assert isinstance(claims, Claims)
    assert said["report_version"] == str(expect["version"])
    assert (said["product"], said["signing_key"], said["vmpl"]) == (
        expect["product"], expect["signing_key"], str(expect["vmpl"]),
    )  # fmt: skip
    assert claims.measurement == expect["measurement"]
    assert claims.report_data.hex() == expect["report_data"]
    assert claims.debug == expect["debug"]
    assert claims.host_excluded == (not expect["debug"])
    assert (said["policy.debug"], said["policy.migrate_ma"], said["policy.smt"]) == tuple(
        str(int(expect[name])) for name in ("debug", "migrate_ma", "smt")
    )
    assert (int(said["policy"]), int(said["platform_info"])) == (
        int(expect["policy"], 16), int(expect["platform_info"], 16),
    )  # fmt: skip
    assert (said["host_data"], said["chip_id"]) == (expect["host_data"], expect["chip_id"])
    for prefix, name in (
        ("tcb", "reported_tcb"),
        ("tcb.committed", "committed_tcb"),
        ("tcb.launch", "launch_tcb"),
    ):
        wanted = dict(part.split("=") for part in expect[name][4:-1].split(", "))
        assert {p: said.get(f"{prefix}.{p}", "0") for p in wanted} == wanted
    assert said["csp_id"] == ("CN=cc-us-east-2.amazonaws.com" if sample.endswith("aws") else "")


@recorded
@pytest.mark.parametrize("sample", ["neg_vcek_invalid_legacy.der", "neg_vcek_invalid_new.der"])
def test_chip_certificates_that_amd_did_not_sign_are_refused(sample: str) -> None:
    """Both recorded forgeries: the certificate's signature, before anything else that is wrong with them."""
    report, stapled, now, _ = genuine("milan-v2-vcek")
    forged = (sample, (EVIDENCE / "milan-v2-vcek" / sample).read_bytes())
    found = examine_snp(report, endorsements=(forged, stapled[1]), roots=PINNED_ROOTS, now=now)
    assert failures(found)[0] == "chain_signature_invalid"
    assert isinstance(found.claims, Absent)


@recorded
def test_the_pinned_roots_are_amds() -> None:
    """The fingerprints of the three recorded root certificates."""
    from strongroom.attest.x509 import sort_documents

    files = tuple((p.name, p.read_bytes()) for p in EVIDENCE.glob("roots-*/*.pem"))
    found = {c.fingerprint for c in sort_documents(files).certificates if c.common_name.startswith("ARK-")}
    assert found == set(PINNED_ROOTS)


@recorded
@pytest.mark.parametrize("sample", GENUINE)
def test_genuine_reports_are_refused_before_and_after_their_certificates(sample: str) -> None:
    """One second outside the leaf's validity."""
    report, stapled, _, expect = genuine(sample)
    first, last = (datetime.fromisoformat(t) for t in expect["leaf_validity"].split(".."))
    for now in (first - timedelta(seconds=1), last + timedelta(seconds=1)):
        found = examine_snp(report, endorsements=stapled, roots=PINNED_ROOTS, now=now)
        assert failures(found) == ["chain_not_valid_now"]
    for now in (first, last):
        assert failures(examine_snp(report, endorsements=stapled, roots=PINNED_ROOTS, now=now)) == []


@recorded
@pytest.mark.parametrize("sample", GENUINE)
def test_another_genuine_chip_does_not_vouch(sample: str) -> None:
    """A genuine chain of another machine with this report."""
    report, _, _, _ = genuine(sample)
    other = "genoa-v3-vcek" if sample != "genoa-v3-vcek" else "turin-v5-vcek"
    _, stapled, now, _ = genuine(other)
    found = examine_snp(report, endorsements=stapled, roots=PINNED_ROOTS, now=now)
    assert "evidence_signature_invalid" in failures(found)
    assert isinstance(found.claims, Absent)


@recorded
@pytest.mark.parametrize("sample", ["snp-vtpm-milan-v1", "snp-vtpm-genoa"])
def test_reports_inside_azures_wrapping(sample: str) -> None:
    """The hardware report of Azure's HCL report, with the chip certificate from beside it."""
    import base64

    folder = SHARED / "evidence" / "azure" / sample
    expect = json.loads((folder / "expect.json").read_text())
    wrapped = json.loads(next(folder.glob("evidence*.json")).read_text())
    if "hcl_report" in wrapped:
        blob = base64.urlsafe_b64decode(wrapped["hcl_report"] + "==")
        leaf = base64.urlsafe_b64decode(wrapped["vcek"] + "==")
    else:
        blob, leaf = bytes(wrapped["report"]), wrapped["vcek"].encode()
    chains = tuple((p.name, p.read_bytes()) for p in EVIDENCE.glob("roots-*/*.pem"))
    now = datetime.fromisoformat(expect["as_of"])
    found = examine_snp(
        blob[32 : 32 + 1184], endorsements=(("vcek", leaf), *chains), roots=PINNED_ROOTS, now=now
    )
    assert failures(found) == []


def flips(data: bytes, step: int) -> list[bytes]:
    """`data` with one bit of every `step`-th byte flipped; which bit moves along."""
    flipped = []
    for at in range(0, len(data), step):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        flipped.append(bytes(changed))
    return flipped


def assert_all_flips_refused(sample: str, *, step: int) -> None:
    report, stapled, now, _ = genuine(sample)
    for changed in flips(report, step):
        found = examine_snp(changed, endorsements=stapled, roots=PINNED_ROOTS, now=now)
        assert failures(found)
    for changed in flips(stapled[0][1], step):
        found = examine_snp(
            report, endorsements=(("leaf.der", changed), stapled[1]), roots=PINNED_ROOTS, now=now
        )
        assert failures(found)
        assert isinstance(found.claims, Absent)


@pytest.mark.slow
@recorded
@pytest.mark.parametrize("sample", GENUINE)
def test_bytes_flipped_here_and_there_are_refused(sample: str) -> None:
    """Every 41st byte of report and chip certificate."""
    assert_all_flips_refused(sample, step=41)


@recorded
@pytest.mark.slow
@pytest.mark.parametrize("sample", GENUINE)
def test_every_flipped_byte_is_refused(sample: str) -> None:
    """All 1184 bytes of the report and all of the chip certificate: none is unauthenticated."""
    assert_all_flips_refused(sample, step=1)


@recorded
@pytest.mark.slow
def test_every_flipped_byte_of_issuer_and_root_is_refused() -> None:
    """As DER: in PEM, line breaks and what stands around the blocks are not authenticated."""
    from strongroom.attest.x509 import sort_documents

    report, stapled, now, _ = genuine("milan-v2-vcek")
    wanted = {"SEV-Milan", "ARK-Milan"}
    chain = [c.der for c in sort_documents(stapled).certificates if c.common_name in wanted]
    for which in (0, 1):
        for changed in flips(chain[which], 1):
            others = (("a", changed), ("b", chain[1 - which]))
            found = examine_snp(report, endorsements=(stapled[0], *others), roots=PINNED_ROOTS, now=now)
            assert failures(found)
            assert isinstance(found.claims, Absent)


@recorded
def test_what_is_not_authenticated() -> None:
    """Text around PEM blocks, line breaks in them, names of documents, certificates that the chain does not need."""
    report, stapled, now, _ = genuine("milan-v2-vcek")
    loose = b"any text\n" + stapled[1][1].replace(b"\n", b"\r\n") + b"more"
    found = examine_snp(
        report, endorsements=(("x", loose), ("y", stapled[0][1])), roots=PINNED_ROOTS, now=now
    )
    assert failures(found) == []


def test_recorded_folder_is_whole() -> None:
    """Every recorded SNP sample is in the tests above."""
    if not EVIDENCE.is_dir():
        pytest.skip(ABSENT)
    folders = {p.name for p in Path(EVIDENCE).iterdir() if (p / "report.bin").exists()}
    assert folders == set(GENUINE)
