"""What is called missing: exactly what the verifier would lack, and nothing where fetching cannot help."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from fake_amd import Machine, certificate_table, intermediate_der, root_der, roots
from fake_intel import EVERY, NOW, PROCESSOR, SGX, TDX4, Intel
from fake_x509 import ec_key, pem, revocation_list, rsa_key
from recorded import ABSENT, CASES, EVIDENCE, Case

from strongroom.attest import azure, needs
from strongroom.attest.dcap import PINNED_ROOTS as INTEL_ROOTS
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.gather import fitting
from strongroom.attest.needs import (
    NOTHING,
    DcapCollateral,
    Missing,
    SnpChain,
    SnpRevocationList,
    Vcek,
    missing,
)
from strongroom.attest.releases import is_manifest
from strongroom.attest.snp import PINNED_ROOTS as AMD_ROOTS
from strongroom.attest.snp import examine_snp

DAY = timedelta(days=1)
LIST = revocation_list("ARK-Milan", rsa_key("ark"))


def of_quote(vendor: Intel, *endorsements: bytes, now=NOW, accepted=None, data=None) -> Missing:
    """What is missing for a quote of `vendor`."""
    return missing(
        vendor.format,
        vendor.quote if data is None else data,
        endorsements=tuple((f"x{i}", e) for i, e in enumerate(endorsements)),
        roots=vendor.roots if accepted is None else accepted,
        now=now,
    )


def of_report(machine: Machine, *endorsements: bytes, now=NOW, accepted=None) -> Missing:
    """What is missing for a report of `machine`."""
    return missing(
        "snp",
        machine.report,
        endorsements=tuple((f"x{i}", e) for i, e in enumerate(endorsements)),
        roots=roots() if accepted is None else accepted,
        now=now,
    )


def chain(product: str = "Milan", kind: str = "VCEK") -> bytes:
    """The issuers of leaves."""
    return pem(intermediate_der(product, kind)) + pem(root_der(product))


def vcek(machine: Machine) -> Vcek:
    """The need for a machine's leaf."""
    parts = {
        "Milan": (("bl", 3), ("tee", 0), ("snp", 8), ("ucode", 115)),
        "Genoa": (("bl", 10), ("tee", 0), ("snp", 23), ("ucode", 84)),
        "Turin": (("fmc", 1), ("bl", 1), ("tee", 1), ("snp", 4), ("ucode", 81)),
    }
    return Vcek((machine.product,), machine.hardware_id, parts[machine.product])


# --- quotes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", EVERY, ids=lambda v: f"{v.format}{v.version}{v.td15}")
def test_a_quote_without_collateral_lacks_the_bundle_of_its_platform(vendor: Intel) -> None:
    """TEE, FMSPC and authority, out of the quote."""
    assert of_quote(vendor) == Missing((DcapCollateral(vendor.format, vendor.fmspc, "platform"),))
    assert of_quote(vendor, vendor.bundle) == NOTHING


def test_a_platform_under_the_other_authority() -> None:
    """The list of revoked certificates is another one."""
    vendor = Intel(authority=PROCESSOR)
    assert of_quote(vendor).needs == (DcapCollateral("sgx", vendor.fmspc, "processor"),)


def test_a_bundle_for_another_platform_or_tee_is_not_at_hand() -> None:
    """The verifier would not take it."""
    other = Intel(fmspc=bytes(6))
    assert of_quote(SGX, other.bundle, TDX4.bundle).needs == (DcapCollateral("sgx", SGX.fmspc, "platform"),)


def test_a_bundle_that_ran_out_is_not_at_hand() -> None:
    """Whatever in it ran out first: lists do after 27 days here."""
    assert of_quote(SGX, SGX.bundle, now=NOW + 26 * DAY) == NOTHING
    assert of_quote(SGX, SGX.bundle, now=NOW + 27 * DAY).needs
    early = SGX.but(tcb_info={"nextUpdate": "2026-11-24T00:00:00Z"})
    assert of_quote(SGX, early.bundle, now=NOW + DAY).needs
    assert of_quote(SGX, SGX.bundle, now=NOW - 2 * DAY).needs


def test_a_forged_bundle_is_not_at_hand() -> None:
    """Signed by somebody else, or under another root; one beside it changes nothing where it counts for more."""
    forged = SGX.but(signers={"tcb_info": "pck"})
    assert of_quote(SGX, forged.bundle).needs
    assert of_quote(SGX, Intel(name="mallory").bundle).needs
    assert of_quote(SGX, forged.but(tcb_info={"tcbEvaluationDataNumber": 19}).bundle, SGX.bundle) == NOTHING


def test_malformed_quotes_and_bundles_lack_nothing() -> None:
    """The verifier refuses them, whatever is fetched."""
    for data in (b"", b"\x03\x00", SGX.quote[:-900], TDX4.quote, SGX.forge(pck_chain=b"x").quote):
        assert of_quote(SGX, data=data) == NOTHING
    assert of_quote(SGX, b"no bundle") == NOTHING
    assert of_quote(SGX, SGX.bundle[:-9]) == NOTHING


def test_manifests_and_event_logs_beside_collateral_are_passed_over() -> None:
    """They are the policy's, and those of what booted; an enclave has no log."""
    manifest = b'{"payloadType":"application/vnd.strongroom.release+json"}'
    log = bytes(4) + b"\x03\x00\x00\x00" + bytes(24) + b"Spec ID Event03\x00" + bytes(16)
    assert is_event_log(log) and is_manifest(manifest)
    assert of_quote(TDX4, log, manifest).needs and of_quote(SGX, manifest).needs
    assert of_quote(TDX4, log, manifest, TDX4.bundle) == NOTHING
    assert len(of_report(Machine(), manifest).needs) == 3
    kept = fitting("tdx", TDX4.quote, tuple(enumerate_named(log, manifest, TDX4.bundle, chain())))
    assert {data for _, data in kept} == {log, manifest, TDX4.bundle}
    kept = fitting("snp", Machine().report, tuple(enumerate_named(log, manifest, TDX4.bundle, chain())))
    assert {data for _, data in kept} == {manifest, chain()}


def enumerate_named(*documents: bytes) -> list[tuple[str, bytes]]:
    """Documents with names."""
    return [(f"x{i}", document) for i, document in enumerate(documents)]


def test_nobody_is_asked_about_a_platform_of_another_vendor() -> None:
    """Under a root that is not accepted there is nothing to be had."""
    assert of_quote(SGX, accepted=()) == NOTHING
    assert of_quote(SGX, accepted=INTEL_ROOTS) == NOTHING


# --- reports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_report_alone_lacks_leaf_chain_and_list(product: str) -> None:
    """Chip and TCB out of the report; Turin's identities have 8 bytes, its TCB five parts."""
    machine = Machine(product=product)
    assert of_report(machine).needs == (
        vcek(machine),
        SnpChain(product, "VCEK"),
        SnpRevocationList(product, "VCEK"),
    )


def test_what_is_at_hand_is_not_asked_for() -> None:
    """Leaf, chain, list: in any form, and out of a certificate table."""
    machine = Machine()
    leaf, issuers, listed = vcek(machine), SnpChain("Milan", "VCEK"), SnpRevocationList("Milan", "VCEK")
    assert of_report(machine, machine.leaf_der).needs == (issuers, listed)
    assert of_report(machine, chain()).needs == (leaf, listed)
    assert of_report(machine, LIST).needs == (leaf, issuers)
    assert of_report(machine, chain(), pem(machine.leaf_der), LIST) == NOTHING
    table = certificate_table(
        ("VCEK", machine.leaf_der), ("ASK", machine.issuer_der), ("ARK", machine.root_der)
    )
    assert of_report(machine, table).needs == (listed,)


def test_only_the_list_may_be_missing() -> None:
    """Without the others the verifier refuses."""
    assert [n.required for n in of_report(Machine()).needs] == [True, True, False]


@pytest.mark.parametrize(
    "machine",
    [
        Machine(key=ec_key("another chip")),
        Machine(product="Genoa"),
        Machine(leaf={"corrupt": True}),
        Machine(leaf={"signer": rsa_key("mallory")}),
        Machine(leaf={"not_after": NOW - DAY}),
        Machine(leaf={"subject": "SEV-VLEK"}),
    ],
    ids=["another key", "another product", "forged", "of another issuer", "past its time", "of another kind"],
)
def test_a_leaf_that_the_verifier_would_refuse_is_not_at_hand(machine: Machine) -> None:
    """It is asked for, with the issuers there."""
    assert vcek(Machine()) in of_report(Machine(), machine.leaf_der, chain(), LIST).needs


def test_issuers_of_another_product_or_without_the_pinned_root_are_not_at_hand() -> None:
    """Names alone are nothing."""
    machine = Machine()
    forged = Machine(ark={"key": rsa_key("mallory"), "signer": rsa_key("mallory")})
    for given in (chain("Genoa"), chain(kind="VLEK"), pem(machine.issuer_der), pem(forged.root_der)):
        assert SnpChain("Milan", "VCEK") in of_report(machine, machine.leaf_der, given).needs
    assert SnpChain("Milan", "VCEK") in of_report(machine, chain(), accepted=()).needs
    assert SnpChain("Milan", "VCEK") in of_report(machine, chain(), accepted=INTEL_ROOTS).needs


@pytest.mark.parametrize(
    ("data", "at_hand"),
    [
        (LIST, True),
        (revocation_list("ARK-Milan", rsa_key("ark"), [0x10001]), True),
        (revocation_list("ARK-Milan", rsa_key("mallory")), False),
        (revocation_list("ARK-Genoa", rsa_key("ark")), False),
        (revocation_list("ARK-Milan", rsa_key("ark"), next_update=NOW - DAY), False),
        (revocation_list("ARK-Milan", rsa_key("ark"), next_update=None), False),
        (revocation_list("ARK-Milan", rsa_key("ark"), this_update=NOW + DAY), False),
    ],
    ids=["good", "revokes", "forged", "another product", "old", "without end", "of tomorrow"],
)
def test_which_lists_are_at_hand(data: bytes, at_hand: bool) -> None:
    """One that revokes is: there is nothing better to be had."""
    machine = Machine()
    found = of_report(machine, machine.leaf_der, chain(), data).needs
    assert found == (() if at_hand else (SnpRevocationList("Milan", "VCEK"),))


def test_a_report_that_names_no_product() -> None:
    """Version 2: the chip may be of two products until its certificate says."""
    machine = Machine(version=2)
    both = replace(vcek(machine), products=("Milan", "Genoa"))
    assert of_report(machine).needs == (both,)
    assert of_report(machine, machine.leaf_der).needs == (
        SnpChain("Milan", "VCEK"),
        SnpRevocationList("Milan", "VCEK"),
    )
    assert of_report(machine, machine.leaf_der, chain(), LIST) == NOTHING


def test_a_vlek_cannot_be_had_its_issuers_can() -> None:
    """AMD gives it to the cloud."""
    machine = Machine(kind="VLEK")
    assert of_report(machine) == Missing(unobtainable=(needs.VLEK_IS_THE_CLOUDS,))
    assert of_report(machine, machine.leaf_der).needs == (
        SnpChain("Milan", "VLEK"),
        SnpRevocationList("Milan", "VLEK"),
    )
    old = Machine(kind="VLEK", leaf={"not_after": NOW - DAY})
    assert of_report(old, old.leaf_der, chain(kind="VLEK")).unobtainable == (needs.VLEK_IS_THE_CLOUDS,)


def test_a_hidden_chip() -> None:
    """AWS and some settings mask the identity: nobody can be asked."""
    assert of_report(Machine(fields={0x1A0: bytes(64)})) == Missing(unobtainable=(needs.CHIP_IS_HIDDEN,))
    turin = Machine(product="Turin", fields={0x1A8: b"\x01"})  # 9 bytes: no identity of Turin's
    assert of_report(turin).unobtainable == (needs.CHIP_IS_HIDDEN,)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(fields={0x188: b"\x17"}),
        Machine(fields={0x48: b"\x1c"}),
        Machine(fields={0x48: b"\x02"}),
        Machine(fields={0x00: b"\x09"}),
    ],
    ids=["unknown product", "signed by nobody", "masked key", "unknown version"],
)
def test_reports_that_no_document_helps_lack_nothing(machine: Machine) -> None:
    """The verifier refuses them."""
    assert of_report(machine) == NOTHING


def test_documents_that_cannot_be_read_lack_nothing() -> None:
    """The verifier refuses them, with whatever beside them."""
    assert of_report(Machine(), b"no certificate") == NOTHING
    assert missing("snp", b"short", endorsements=(), roots=roots(), now=NOW) == NOTHING


def test_what_is_at_hand_is_what_the_verifier_takes() -> None:
    """For every subset of leaf, chain, list: nothing is missing exactly where the examination passes with a list."""
    machine = Machine()
    documents = (machine.leaf_der, chain(), LIST)
    for bits in range(8):
        given = tuple(d for i, d in enumerate(documents) if bits >> i & 1)
        stapled = tuple((f"x{i}", d) for i, d in enumerate(given))
        found = examine_snp(machine.report, endorsements=stapled, roots=roots(), now=NOW)
        required = [n for n in of_report(machine, *given).needs if n.required]
        assert all(c.passed for c in found.checks) == (not required)


# --- other formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nitro", "tpm", "sim", "unknown"])
def test_formats_that_lack_nothing_that_could_be_fetched(name: str) -> None:
    """Nitro carries its certificates, a TPM's come with it or from its maker."""
    assert missing(name, b"anything", endorsements=(), roots=(), now=NOW) == NOTHING


def test_needs_hold_nothing_but_known_names_and_bytes_of_their_size() -> None:
    """No text of a stranger's gets into an address or a file's name."""
    for make in (
        lambda: DcapCollateral("sgx/../x", bytes(6), "platform"),
        lambda: DcapCollateral("sgx", bytes(7), "platform"),
        lambda: DcapCollateral("sgx", bytes(6), "platform&x=y"),
        lambda: Vcek(("Milan/..",), bytes(64), ()),
        lambda: Vcek((), bytes(64), ()),
        lambda: Vcek(("Turin",), bytes(64), ()),
        lambda: Vcek(("Milan", "Turin"), bytes(64), ()),
        lambda: Vcek(("Milan",), bytes(64), (("bl", 256),)),
        lambda: Vcek(("Milan",), bytes(64), (("x=", 1),)),
        lambda: SnpChain("Rome", "VCEK"),
        lambda: SnpChain("Milan", "VCEK/.."),
        lambda: SnpRevocationList("Milan", ""),
    ):
        with pytest.raises(ValueError):
            make()


def test_keys_are_distinct_and_plain() -> None:
    """They are names of files."""
    found = [*of_report(Machine()).needs, *of_report(Machine(product="Turin")).needs, *of_quote(SGX).needs]
    assert len({n.key for n in found}) == len(found)
    assert all(set(n.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(n.key) < 200 for n in found)


# --- recorded -----------------------------------------------------------------------------------------------

needs_recorded = pytest.mark.skipif(not EVIDENCE.is_dir(), reason=ABSENT)


def _read(case: Case) -> bytes:
    if case.format in ("azure", "tpm"):
        files = [
            p for p in ([case.path] if case.path.is_file() else sorted(case.path.iterdir())) if p.is_file()
        ]
        return azure.from_recorded({p.name: p.read_bytes() for p in files})
    return case.path.read_bytes()


def _recorded(*formats: str) -> list[Case]:
    return [c for c in CASES if c.format in formats]


@needs_recorded
@pytest.mark.parametrize(
    "case", _recorded("sgx", "tdx", "snp", "azure", "nitro", "ra-tls"), ids=lambda c: c.name
)
def test_genuine_evidence_lacks_what_it_was_recorded_without(case: Case) -> None:
    """With its documents nothing but AMD's list is missing, where it passes; without them, the very ones."""
    data, now = _read(case), datetime.fromisoformat(case.at)
    given = tuple((p.name, p.read_bytes()) for p in case.endorsements)
    pins = (*INTEL_ROOTS, *AMD_ROOTS)
    complete = missing(case.format, data, endorsements=given, roots=pins, now=now)
    if not case.code and case.format != "ra-tls":
        assert all(isinstance(n, SnpRevocationList) for n in complete.needs) and not complete.unobtainable
    bare = missing(case.format, data, endorsements=(), roots=pins, now=now)
    match case.format:
        case "sgx" | "tdx" if case.code == "pck_chain_invalid":
            assert bare == NOTHING
        case "sgx" | "tdx":
            tee, fmspc, authority = case.endorsements[0].name.split("-")[:3]
            assert bare.needs == (DcapCollateral(tee, bytes.fromhex(fmspc), authority),)
        case "snp" if "vlek" in case.name:
            assert bare == Missing(unobtainable=(needs.VLEK_IS_THE_CLOUDS,))
        case "snp":
            assert isinstance(bare.needs[0], Vcek)
        case "azure":
            assert bare.needs
        case "nitro":
            assert bare == NOTHING
        case "ra-tls" if "nitro" in str(case.path) or case.code == "ratls_signature_invalid":
            assert bare == NOTHING  # complete in itself; and one whose chain was altered
        case "ra-tls":
            assert bare.needs == (DcapCollateral("sgx", bytes.fromhex("00606a000000"), "platform"),)
