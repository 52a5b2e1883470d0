"""`attest.dcap`: SGX and TDX quotes with their collateral, from a fake vendor and from genuine recordings."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import fake_intel
import pytest
from conftest import SHARED
from fake_intel import DAY, NOW, SGX, TDX4, TDX5, TDX5_10, Intel, pem, statuses

from strongroom.attest.dcap import (
    PINNED_ROOTS,
    examine_sgx,
    examine_tdx,
    examine_tdx_below_paravisor,
)
from strongroom.attest.evidence import NOT_MADE, Absent, Claims, Examination
from strongroom.attest.quote import parse_quote
from strongroom.errors import CODES

EVIDENCE = SHARED / "evidence"
recorded = pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason="not exercised here: recorded evidence is not beside this checkout"
)
EVERY = {"sgx-3": SGX, "tdx-4": TDX4, "tdx-5": TDX5, "tdx-5-1.0": TDX5_10}


def examine(vendor: Intel, *, now: datetime = NOW, **given: Any) -> Examination:
    """What is found about a vendor's quote by who accepts its root."""
    function = examine_tdx if vendor.tdx else examine_sgx
    given = {"endorsements": vendor.endorsements, "roots": vendor.roots} | given
    return function(given.pop("data", None) or vendor.quote, now=now, **given)


def failures(found: Examination) -> list[tuple[str, str]]:
    """Failed checks, as (id, code)."""
    return [(c.id, c.code) for c in found.checks if not c.passed]


def made(found: Examination) -> list[str]:
    """Ids of the failed checks that were made."""
    return [c.id for c in found.checks if not c.passed and not c.got.startswith(NOT_MADE)]


# --- acceptances ---


@pytest.mark.parametrize("vendor", EVERY.values(), ids=EVERY.keys())
def test_a_genuine_quote_passes_every_check(vendor: Intel) -> None:
    """SGX makes 19 checks, TDX 23; the claims are those of the quote."""
    found = examine(vendor)
    assert failures(found) == []
    assert len(found.checks) == (23 if vendor.tdx else 19)
    assert all(c.expected and c.got and c.title for c in found.checks)
    claims = found.claims
    assert isinstance(claims, Claims)
    assert (claims.format, claims.simulated, claims.host_excluded) == (vendor.format, False, True)
    assert (claims.tcb_status, claims.advisories, claims.debug) == ("UpToDate", (), False)
    assert (claims.report_data, claims.root, claims.issued_at) == (bytes(range(64)), vendor.root, None)


def test_sgx_claims() -> None:
    """Measurement, signer, product, version, and what else policy may ask for."""
    claims = examine(SGX).claims
    assert isinstance(claims, Claims)
    assert claims.measurement == hashlib.sha256(b"the enclave").hexdigest()
    assert claims.signer == hashlib.sha256(b"its signer").hexdigest()
    assert (claims.product, claims.svn) == (7, 3)
    details = dict(claims.details)
    assert len(details) == len(claims.details)
    assert details["attributes"] == "0500000000000000"
    assert details["config_id"] == bytes(range(64)).hex()
    assert details["misc_select"] == "00000000"
    assert details["fmspc"] == "aabbccddeeff"
    assert details["ppid"] == hashlib.md5(b"test intel", usedforsecurity=False).hexdigest()
    assert details["eval_data_number"] == "20"
    assert details["collateral_expires"] == (NOW + 27 * DAY).isoformat()
    assert (details["platform_status"], details["qe_status"]) == ("UpToDate", "UpToDate")
    assert details["pck_authority"] == "platform"
    assert "rtmr0" not in details


def test_tdx_claims() -> None:
    """MRTD is the measurement; a TD has no signer; all registers are there."""
    claims = examine(TDX5).claims
    assert isinstance(claims, Claims)
    assert claims.measurement == hashlib.sha384(b"the trust domain").hexdigest()
    assert (claims.signer, claims.product, claims.svn) == ("", 0, 0)
    details = dict(claims.details)
    assert details["rtmr0"] == hashlib.sha384(b"rtmr0").hexdigest()
    assert details["rtmr1"] == "00" * 48
    assert details["mr_seam"] == hashlib.sha384(b"the module").hexdigest()
    assert (details["td_attributes"], details["sept_ve_disable"]) == ("0000001000000000", "true")
    assert details["mr_service_td"] == "00" * 48
    assert (details["tdx_module_status"], details["current_status"]) == ("UpToDate", "UpToDate")
    for name in ("xfam", "mr_config_id", "mr_owner", "mr_owner_config", "tee_tcb_svn2"):
        assert name in details
    assert "mr_service_td" not in dict(examine(TDX4).claims.details)  # type: ignore[union-attr]


def test_the_processor_authority_counts_as_well() -> None:
    """Single-socket platforms are certified by it."""
    found = examine(SGX.but(authority=fake_intel.PROCESSOR))
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert dict(found.claims.details)["pck_authority"] == "processor"


@pytest.mark.parametrize(
    "status",
    ["SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate"],
)
def test_the_status_is_a_claim_and_not_a_pass(status: str) -> None:
    """An outdated platform is authentic; whether it is good enough is the policy's word. It never reads UpToDate."""
    found = examine(SGX.but(tcb_info={"tcbLevels": statuses(tdx=False, top=status)}))
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert (found.claims.tcb_status, found.claims.advisories) == (status, ("INTEL-SA-00001",))


def test_zeros_behind_the_quote_are_accepted() -> None:
    """Platforms that fill a fixed buffer."""
    assert failures(examine(SGX.but(trailing=bytes(3065)))) == []
    assert failures(examine(TDX5.but(trailing=bytes(1)))) == []


@pytest.mark.parametrize("bit", [27, 30, 31, 63])
def test_harmless_attributes_are_accepted(bit: int) -> None:
    """LASS, PKS, KL, PERFMON beside SEPT_VE_DISABLE."""
    assert failures(examine(TDX4.but(body={"td_attributes": _bits(28, bit)}))) == []


def _bits(*bits: int) -> bytes:
    return sum(1 << bit for bit in bits).to_bytes(8, "little")


# --- refusals: one vector for each check, wrong in that respect only ---

OTHER = Intel(name="other vendor")
SIGNED_BY_PCK = pem(*(SGX.certificate(role) for role in ("pck", "ca", "root")))
REFUSED: dict[str, tuple[Intel, str, str]] = {
    # the quote
    "form": (SGX.but(header={"version": b"\x09\x00"}), "quote.form", "quote_malformed"),
    "chain-empty": (SGX.forge(pck_chain=b""), "pck.chain", "pck_chain_invalid"),
    "chain-leaf-of-another": (
        SGX.forge(pck_certificate=OTHER.certificate("pck")),
        "pck.chain",
        "pck_chain_invalid",
    ),
    "chain-leaf-under-root": (SGX.but(issuer={"pck": "root"}), "pck.chain", "pck_chain_invalid"),
    "chain-leaf-is-the-collateral-signer": (
        SGX.forge(pck_certificate=SGX.certificate("signing")),
        "pck.chain",
        "pck_chain_invalid",
    ),
    "leaf-expired": (SGX.but(not_after={"pck": NOW}), "pck.time", "pck_chain_expired"),
    "authority-expired": (SGX.but(not_after={"ca": NOW - DAY}), "pck.time", "pck_chain_expired"),
    "root-expired": (SGX.but(not_after={"root": NOW - DAY}), "pck.time", "pck_chain_expired"),
    "leaf-from-future": (
        SGX.but(not_before={"pck": NOW + timedelta(seconds=1)}),
        "pck.time",
        "pck_chain_from_future",
    ),
    "qe-signature": (SGX.forge(qe_signature=bytes(64)), "qe.signature", "qe_report_signature_invalid"),
    "qe-signature-by-another": (
        SGX.forge(qe_signature=OTHER.but(qe={}).quote[48 + 384 + 4 + 128 + 384 :][:64]),
        "qe.signature",
        "qe_report_signature_invalid",
    ),
    "key-not-vouched-for": (
        SGX.but(keys={"attestation": OTHER.key("attestation")}, qe={"report_data": bytes(64)}),
        "qe.key",
        "attestation_key_unbound",
    ),
    "key-vouched-for-with-more-behind": (
        SGX.but(qe={"report_data": SGX.qe_report[320:352] + b"\1" * 32}),
        "qe.key",
        "attestation_key_unbound",
    ),
    "qe-auth-changed": (SGX.forge(qe_auth=bytes(32)), "qe.key", "attestation_key_unbound"),
    "signature": (SGX.forge(signature=bytes(64)), "quote.signature", "evidence_signature_invalid"),
    "signature-over-another": (
        TDX4.forge(signed=TDX4.but(body={"mr_td": bytes(48)}).quote[: 48 + 584]),
        "quote.signature",
        "evidence_signature_invalid",
    ),
    "signature-of-version-5-without-its-descriptor": (
        TDX5.forge(signature=fake_intel.sign(TDX5.key("attestation"), TDX5.quote[:48] + TDX5.quote[54:702])),
        "quote.signature",
        "evidence_signature_invalid",
    ),
    # the collateral
    "bundle-malformed": (SGX.forge(bundle=b"{}"), "collateral.form", "collateral_malformed"),
    "bundle-of-another-platform": (
        SGX.but(tcb_info={"fmspc": "00" * 6}),
        "collateral.form",
        "collateral_missing",
    ),
    "bundle-of-tdx": (SGX.forge(bundle=TDX4.bundle), "collateral.form", "collateral_missing"),
    "bundle-of-sgx": (TDX4.forge(bundle=SGX.bundle), "collateral.form", "collateral_missing"),
    "bundle-of-another-vendor": (
        SGX.forge(bundle=OTHER.bundle),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "tcb-info-changed": (
        SGX.forge(tcb_info=SGX.members["tcb_info"].replace("OutOfDate", "UpToDate").encode()),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "tcb-info-spelled-otherwise": (
        SGX.forge(tcb_info=SGX.members["tcb_info"].replace(",", ", ", 1).encode()),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "identity-changed": (
        SGX.forge(qe_identity=SGX.members["qe_identity"].replace("FBFF", "0000").encode()),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "tcb-info-signed-by-the-platform": (
        SGX.but(signers={"tcb_info": "pck"}).forge(tcb_info_chain=SIGNED_BY_PCK),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "identity-signed-by-the-authority": (
        SGX.but(signers={"qe_identity": "ca"}).forge(
            qe_identity_chain=pem(SGX.certificate("ca"), SGX.certificate("root"))
        ),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "identity-chain-of-another-root": (
        SGX.forge(qe_identity_chain=pem(OTHER.certificate("signing"), OTHER.certificate("root"))),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "signer-named-otherwise": (
        SGX.but(names={"signing": fake_intel.PCK}),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "root-crl-by-the-authority": (
        SGX.but(signers={"root_crl": "ca"}),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "pck-crl-by-the-root": (
        SGX.but(signers={"ca_crl": "root"}),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "pck-crl-of-another": (
        SGX.forge(ca_crl=OTHER.crl("ca")),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "pck-crl-is-the-root-crl": (
        SGX.forge(ca_crl=SGX.crl("root")),
        "collateral.signature",
        "collateral_signature_invalid",
    ),
    "root-crl-malformed": (SGX.forge(root_crl=b"\x30\x00"), "collateral.signature", "collateral_malformed"),
    "tcb-info-expired": (
        SGX.but(tcb_info={"nextUpdate": "2026-11-23T12:00:00Z"}),
        "collateral.time",
        "collateral_expired",
    ),
    "tcb-info-from-future": (
        SGX.but(tcb_info={"issueDate": "2026-11-23T12:00:01Z"}),
        "collateral.time",
        "collateral_from_future",
    ),
    "identity-expired": (
        SGX.but(qe_identity={"nextUpdate": "2026-11-23T12:00:00Z"}),
        "collateral.time",
        "collateral_expired",
    ),
    "identity-from-future": (
        SGX.but(qe_identity={"issueDate": "2026-11-23T12:00:01Z"}),
        "collateral.time",
        "collateral_from_future",
    ),
    "root-crl-expired": (SGX.but(crl_next_update={"root": NOW}), "collateral.time", "collateral_expired"),
    "pck-crl-expired": (SGX.but(crl_next_update={"ca": NOW}), "collateral.time", "collateral_expired"),
    "pck-crl-from-future": (
        SGX.but(not_before={"ca_crl": NOW + DAY}),
        "collateral.time",
        "collateral_from_future",
    ),
    "signer-expired": (SGX.but(not_after={"signing": NOW}), "collateral.time", "collateral_expired"),
    "platform-revoked": (SGX.but(revoked=("pck",)), "pck.revocation", "certificate_revoked"),
    "authority-revoked": (SGX.but(revoked=("ca",)), "pck.revocation", "certificate_revoked"),
    "signer-revoked": (SGX.but(revoked=("signing",)), "pck.revocation", "certificate_revoked"),
    "root-revoked": (SGX.but(revoked=("root",)), "pck.revocation", "certificate_revoked"),
    # who made the quote
    "CVE-2026-22696-any-enclave-as-quoting-enclave": (
        SGX.but(qe={"mr_signer": hashlib.sha256(b"mallory").digest()}),
        "qe.identity",
        "qe_identity_mismatch",
    ),
    "CVE-2026-22696-another-product-of-the-signer": (
        SGX.but(qe={"isv_prod_id": b"\x02\x00"}),
        "qe.identity",
        "qe_identity_mismatch",
    ),
    "CVE-2026-22696-debug-quoting-enclave": (
        SGX.but(qe={"attributes": bytes.fromhex("1700000000000000e700000000000000")}),
        "qe.identity",
        "qe_identity_mismatch",
    ),
    "CVE-2026-22696-misc-select": (
        TDX4.but(qe={"misc_select": b"\x01\0\0\0"}),
        "qe.identity",
        "qe_identity_mismatch",
    ),
    "CVE-2026-22696-identity-of-the-other-quoting-enclave": (
        TDX4.but(qe_identity={"id": "QE"}),
        "qe.identity",
        "qe_identity_mismatch",
    ),
    "pce-of-another-platform": (
        SGX.but(tcb_info={"pceId": "0001"}),
        "tcb.platform",
        "tcb_info_other_platform",
    ),
    "module-signer": (
        TDX4.but(body={"mr_signer_seam": b"\1" * 48}),
        "tdx.module",
        "tdx_module_mismatch",
    ),
    "module-attributes": (
        TDX4.but(body={"seam_attributes": b"\1" + bytes(7)}),
        "tdx.module",
        "tdx_module_mismatch",
    ),
    "module-unknown-major-version": (
        TDX4.but(body={"tee_tcb_svn": bytes([5, 9, 5]) + bytes(13)}),
        "tdx.module",
        "tdx_module_mismatch",
    ),
    # the TCB
    "below-every-level": (SGX.but(components=(0,) * 16), "tcb.level", "tcb_level_unknown"),
    "quoting-enclave-below-every-level": (
        SGX.but(qe={"isv_svn": b"\1\0"}),
        "tcb.level",
        "tcb_level_unknown",
    ),
    "module-below-every-level": (
        TDX4.but(body={"tee_tcb_svn": bytes([1, 1, 5]) + bytes(13)}),
        "tcb.level",
        "tcb_level_unknown",
    ),
    "running-module-below-every-level": (
        TDX5.but(body={"tee_tcb_svn2": bytes([1, 1, 5]) + bytes(13)}),
        "tcb.level",
        "tcb_level_unknown",
    ),
    "sgx-revoked": (SGX.but(components=(1,) * 16), "tcb.revoked", "tcb_revoked"),
    "tdx-revoked": (TDX4.but(components=(1,) * 16), "tcb.revoked", "tcb_revoked"),
    "quoting-enclave-revoked": (SGX.but(qe={"isv_svn": b"\5\0"}), "tcb.revoked", "tcb_revoked"),
    # the TEE itself
    "sgx-debug": (
        SGX.but(body={"attributes": bytes.fromhex("0700000000000000e700000000000000")}),
        "tee.debug",
        "quote_debug",
    ),
    "tdx-debug": (TDX4.but(body={"td_attributes": _bits(0, 28)}), "tee.debug", "quote_debug"),
    "tdx-profiling": (TDX4.but(body={"td_attributes": _bits(5, 28)}), "tee.debug", "quote_debug"),
    "tdx-migratable": (
        TDX4.but(body={"td_attributes": _bits(28, 29)}),
        "tdx.attributes",
        "tdx_attributes_refused",
    ),
    "tdx-service-td-extended": (
        TDX4.but(body={"td_attributes": _bits(17, 28)}),
        "tdx.attributes",
        "tdx_attributes_refused",
    ),
    "tdx-reserved-bit": (
        TDX4.but(body={"td_attributes": _bits(28, 45)}),
        "tdx.attributes",
        "tdx_attributes_refused",
    ),
    "tdx-bit-that-dcap-qvl-lets-through": (
        TDX4.but(body={"td_attributes": _bits(16, 28)}),
        "tdx.attributes",
        "tdx_attributes_refused",
    ),
    "tdx-sept-ve": (TDX4.but(body={"td_attributes": bytes(8)}), "tdx.sept_ve", "tdx_sept_ve_enabled"),
    "tdx-service-td": (TDX5.but(body={"mr_service_td": b"\1" * 48}), "tdx.service_td", "tdx_service_td"),
    "trailing": (SGX.but(trailing=b"\0\0x\0"), "quote.trailing", "quote_trailing"),
}


HIDES = ("quote", "pck", "qe", "collateral.form", "collateral.signature", "tcb.platform", "tdx.module")


@pytest.mark.parametrize(("vendor", "check_id", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_one_wrong_thing_is_refused_by_its_own_check(vendor: Intel, check_id: str, code: str) -> None:
    """The check of that very thing fails first; of those that were made no other fails, but the second opinion may.

    Claims are hidden where a signature, a certificate or the quoting enclave is wrong; then nothing passes unchecked.
    """
    found = examine(vendor)
    assert failures(found)[0] == (check_id, code)
    assert set(made(found)) <= {check_id, "dcap.second"}
    assert all(c.code in CODES for c in found.checks if not c.passed)
    hidden = check_id.startswith(HIDES) and check_id != "quote.trailing"
    assert isinstance(found.claims, Absent) == hidden
    if hidden:
        assert {"tcb.level", "tcb.revoked", "tee.debug", "dcap.second"} <= {i for i, _ in failures(found)}


def test_a_vector_for_every_check() -> None:
    """Each check that exists refuses something above (or below: kind, root, second opinion)."""
    ids = {c.id for c in examine(TDX5).checks}
    assert ids - {check_id for _, check_id, _ in REFUSED.values()} == {"quote.tee", "pck.root", "dcap.second"}


def test_a_quote_of_the_other_tee_is_refused() -> None:
    """An SGX quote is no TDX evidence, whatever its collateral, and the other way round."""
    for function, vendor in ((examine_tdx, SGX), (examine_sgx, TDX4), (examine_tdx_below_paravisor, SGX)):
        found = function(vendor.quote, endorsements=vendor.endorsements, roots=vendor.roots, now=NOW)
        assert failures(found)[0] == ("quote.tee", "quote_wrong_tee")
        assert isinstance(found.claims, Absent)


@pytest.mark.parametrize(
    "roots",
    [(), (OTHER.root,), PINNED_ROOTS, (SGX.root.upper(),), (SGX.root[:-2],), ("",)],
    ids=["none", "other", "intel", "upper-case", "cut", "empty"],
)
def test_only_named_roots_count(roots: tuple[str, ...]) -> None:
    """No roots accept nothing, and Intel's own is not built in."""
    found = examine(SGX, roots=roots)
    assert failures(found)[0] == ("pck.root", "root_not_accepted")
    assert isinstance(found.claims, Absent)


def test_a_root_with_the_same_key_is_another_root() -> None:
    """The anchor is the whole certificate: bytes of the embedded root that nobody signed matter as well."""
    again = SGX.but(not_after={"root": NOW + 3000 * DAY})
    assert failures(examine(again, roots=SGX.roots))[0] == ("pck.root", "root_not_accepted")
    assert failures(examine(again)) == []


def test_several_roots_and_bundles() -> None:
    """Any named root counts, and the fitting bundle is found."""
    stapled = (("a", TDX4.bundle), ("b", SGX.bundle))
    assert failures(examine(SGX, roots=(OTHER.root, SGX.root), endorsements=stapled)) == []
    assert failures(examine(TDX4, endorsements=stapled)) == []


@pytest.mark.parametrize("endorsements", [(), (("x", b""),), (("x", b"{}"), ("y", SGX.bundle))], ids=range(3))
def test_without_collateral_nothing_is_claimed(endorsements: tuple[tuple[str, bytes], ...]) -> None:
    """A quote alone does not show who made it (CVE-2026-22696); a document that is no bundle is not skipped."""
    found = examine(SGX, endorsements=endorsements)
    assert failures(found)[0][0] == "collateral.form"
    assert isinstance(found.claims, Absent)


def test_time_is_the_one_that_is_given() -> None:
    """The first second, the last one, and one beyond each."""
    first, last = NOW - DAY, NOW + 27 * DAY - timedelta(seconds=1)
    assert failures(examine(SGX, now=first)) == []
    assert failures(examine(SGX, now=last)) == []
    early = failures(examine(SGX, now=first - timedelta(seconds=1)))
    assert early[0] == ("collateral.time", "collateral_from_future")
    late = failures(examine(SGX, now=last + timedelta(seconds=1)))
    assert late[0] == ("collateral.time", "collateral_expired")


def test_expired_collateral_still_shows_whose_quote_it_is() -> None:
    """A person sees the claims; the check has failed all the same, and so has the second opinion, unmade."""
    found = examine(SGX, now=NOW + 100 * DAY)
    assert [i for i, _ in failures(found)] == ["collateral.time", "dcap.second"]
    assert isinstance(found.claims, Claims)


@pytest.mark.parametrize("year", [1, 1969, 2261, 9999])
def test_far_times_are_refusals(year: int) -> None:
    """No exception from clocks that are wrong by centuries."""
    found = examine(SGX, now=NOW.replace(year=year))
    assert failures(found)[0][0] == "pck.time"


# --- the second opinion ---


def test_where_two_evaluations_differ_neither_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library says better than this package does."""

    class Kinder:
        status = "UpToDate"
        advisory_ids: tuple[str, ...] = ()

    monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", lambda *_: Kinder)
    assert failures(examine(SGX)) == []
    found = examine(SGX.but(components=(4,) * 16))
    assert failures(found) == [("dcap.second", "dcap_disagreement")]
    Kinder.advisory_ids = ("INTEL-SA-99999",)
    assert failures(examine(SGX)) == [("dcap.second", "dcap_disagreement")]


@pytest.mark.parametrize("words", ["something of its own", "", "\x00secret"])
def test_foreign_words_stay_inside(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library says in an error is turned into a code of ours."""

    def refuse(*_: object) -> None:
        raise ValueError(words)

    monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", refuse)
    found = examine(SGX)
    assert failures(found) == [("dcap.second", "dcap_refused")]
    assert not words or words not in found.checks[-1].got


def test_without_the_library_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot be made is no pass."""
    import sys

    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    assert failures(examine(SGX)) == [("dcap.second", "dcap_unavailable")]


def test_strangers_bytes_do_not_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called with what verified here, and without what stands behind the quote."""
    seen: list[bytes] = []
    real = dcap_qvl.verify_with_root_ca

    def listen(quote: bytes, *rest: Any) -> object:
        seen.append(quote)
        return real(quote, *rest)

    monkeypatch.setattr(dcap_qvl, "verify_with_root_ca", listen)
    examine(SGX.but(trailing=b"junk"))
    assert seen == [SGX.quote]
    for vendor, check_id, _ in REFUSED.values():
        if check_id.startswith(HIDES) and check_id != "quote.trailing":
            examine(vendor)
    assert seen == [SGX.quote]


@pytest.mark.parametrize(
    "vendor",
    [
        SGX.but(tcb_info={"pceId": "0001"}),
        SGX.but(names={"pck": "x", "ca": "y", "root": "z"}),
        SGX.but(issuer={"pck": "root"}),
        SGX.but(names={"signing": fake_intel.PCK}),
        SGX.but(trailing=b"junk"),
        SGX.but(body={"reserved4": b"\1" * 42}),
        SGX.forge(pck_chain=SGX.pck_chain.replace(b"-----\n-----", b"-----\n# x\n-----", 1)),
        SGX.forge(root_certificate=OTHER.certificate("root")),
        TDX4.but(body={"td_attributes": _bits(16, 28)}),
        TDX4.but(body={"td_attributes": _bits(28, 62)}),
        SGX.but(signers={"tcb_info": "pck"}).forge(tcb_info_chain=SIGNED_BY_PCK),
    ],
    ids=[
        "pce-id", "names", "leaf-under-root", "signer-name", "trailing", "reserved", "pem-text", "embedded-root",
        "bit-16", "bit-62", "tcb-info-signed-by-a-platform",
    ],
)  # fmt: skip
def test_what_the_library_leaves_open_is_closed_here(vendor: Intel) -> None:
    """dcap-qvl accepts each of these, measured; this package refuses it."""
    bundle = dcap_qvl.QuoteCollateralV3.from_json(vendor.bundle.decode())
    root = SGX.certificate("root") if "root_certificate" in vendor.replaced else vendor.certificate("root")
    dcap_qvl.verify_with_root_ca(vendor.quote, bundle, root, int(NOW.timestamp()))
    assert failures(examine(vendor)) != []


# --- a paravisor's TD ---


def test_a_paravisors_quote_passes_without_sept_ve_disable() -> None:
    """All else is checked, and the second opinion says what it could not judge."""

    def below(vendor: Intel) -> Examination:
        return examine_tdx_below_paravisor(
            vendor.quote, endorsements=vendor.endorsements, roots=vendor.roots, now=NOW
        )

    clear = TDX4.but(body={"td_attributes": bytes(8)})
    found = below(clear)
    assert failures(found) == []
    assert "tdx.sept_ve" not in {c.id for c in found.checks}
    assert "no other objection" in found.checks[-1].got
    assert isinstance(found.claims, Claims)
    assert dict(found.claims.details)["sept_ve_disable"] == "false"
    assert failures(below(TDX4)) == []
    for vendor in (
        clear.but(components=(0,) * 16),
        clear.but(components=(1,) * 16),
        clear.but(qe={"mr_signer": bytes(32)}),
        clear.but(body={"td_attributes": _bits(0)}),
        clear.but(body={"td_attributes": _bits(29)}),
        clear.but(revoked=("pck",)),
        TDX5.but(body={"td_attributes": bytes(8), "mr_service_td": b"\1" * 48}),
        clear.forge(signature=bytes(64)),
    ):
        assert failures(below(vendor)) != []


# --- hostile bytes ---


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("vendor", EVERY.values(), ids=EVERY.keys())
def test_no_byte_of_a_quote_is_unauthenticated(vendor: Intel) -> None:
    """Every 23rd byte of the quote flipped; the slow test below flips all of recorded ones."""
    quote = vendor.quote
    given = {"endorsements": vendor.endorsements, "roots": vendor.roots}
    for at in range(vendor.version, len(quote), 23):
        assert failures(examine(vendor, data=_flip(quote, at), **given)) != [], at


@pytest.mark.slow
def test_no_byte_of_a_bundle_is_unauthenticated_but_its_own_spelling() -> None:
    """Documents, signatures, chains and lists are signed or pinned; spaces between the bundle's members are free."""
    bundle, quote, roots = SGX.bundle, SGX.quote, SGX.roots
    for at in range(0, len(bundle), 61):
        stapled = (("x", _flip(bundle, at)),)
        found = examine(SGX, data=quote, endorsements=stapled, roots=roots)
        assert failures(found) != [] or bundle[at : at + 1] in b" ", at


def test_truncations_and_noise_give_examinations() -> None:
    """Never an exception, never claims."""
    quote, given = SGX.quote, {"endorsements": SGX.endorsements, "roots": SGX.roots}
    noise = [hashlib.shake_256(bytes([n])).digest(n * 40) for n in range(60)]
    for data in [quote[:end] for end in range(1, len(quote), 97)] + noise[1:]:
        found = examine(SGX, data=data, **given)
        assert failures(found) != []
        assert isinstance(found.claims, Absent)


# --- genuine recordings ---


def _bundle(name: str) -> tuple[tuple[str, bytes], ...]:
    return ((name, (EVIDENCE / "dcap-collateral" / f"{name}.json").read_bytes()),)


def _recordings() -> list[tuple[Path, str, str, dict[str, Any]]]:
    found = []
    for path in sorted(EVIDENCE.glob("[st][gd]x/*/expect.json")):
        wanted = json.loads(path.read_text())
        results = wanted["expect"].get("dcap_qvl_0.7.0") or {wanted["expect"]["bundle_used"]: {}}
        for bundle, result in results.items():
            found.append(
                (path.parent, bundle, result.get("as_of", wanted["as_of"]), wanted["expect"] | result)
            )
    return found


RECORDED = _recordings()
FLIPPED = sorted({folder for folder, _, _, wanted in RECORDED if "pure_python" not in wanted})
REASONS = {
    "Verification failed: Debug mode is enabled": [("tee.debug", "quote_debug")],
    "Verification failed: Invalid MR service TD": [("tdx.service_td", "tdx_service_td")],
    # This one is wrong in three respects: no level, SEPT_VE_DISABLE clear, and a text behind the quote.
    "Verification failed: No matching TCB level found": [
        ("tcb.level", "tcb_level_unknown"),
        ("tdx.sept_ve", "tdx_sept_ve_enabled"),
        ("quote.trailing", "quote_trailing"),
    ],
}


def _examine_recorded(folder: Path, bundle: str, as_of: str, data: bytes) -> Examination:
    function: Callable[..., Examination] = examine_sgx if folder.parent.name == "sgx" else examine_tdx
    now = datetime.fromisoformat(as_of)
    return function(data, endorsements=_bundle(bundle), roots=PINNED_ROOTS, now=now)


@recorded
@pytest.mark.parametrize(
    ("folder", "bundle", "as_of", "wanted"), RECORDED, ids=[f"{f.name}-{b}" for f, b, _, _ in RECORDED]
)
def test_recorded_quotes_give_the_expected_outcome(
    folder: Path, bundle: str, as_of: str, wanted: dict[str, Any]
) -> None:
    """Status, advisories, measurement, or the reason of the refusal, as they were recorded."""
    found = _examine_recorded(folder, bundle, as_of, (folder / "quote.bin").read_bytes())
    if "pure_python" in wanted:
        assert failures(found)[0] == ("pck.chain", "pck_chain_invalid")
        assert "names another issuer" in next(c.got for c in found.checks if not c.passed)
        assert isinstance(found.claims, Absent)
        return
    expected = REASONS[wanted["error"]] if "error" in wanted else []
    assert failures(found)[:-1] == expected if expected else failures(found) == []
    if expected:
        assert failures(found)[-1] == ("dcap.second", expected[0][1])
    claims = found.claims
    assert isinstance(claims, Claims)
    assert claims.report_data.hex() == wanted["report_data"]
    assert claims.measurement == wanted["measurement"]
    assert claims.signer == wanted.get("mr_signer", "")
    assert claims.debug == wanted["debug"]
    assert claims.root == PINNED_ROOTS[0]
    details = dict(claims.details)
    assert details["fmspc"].upper() == wanted["fmspc"]
    assert details["pck_authority"] == wanted["pck_ca"]
    assert details["quote_version"] == str(wanted["quote_version"])
    if "status" in wanted:
        assert (claims.tcb_status, list(claims.advisories)) == (wanted["status"], wanted["advisories"])


@recorded
def test_recorded_quotes_expire_with_their_collateral() -> None:
    """By today's clock nothing recorded passes: time is what was given."""
    for folder, bundle, _, _ in RECORDED:
        data = (folder / "quote.bin").read_bytes()
        assert failures(_examine_recorded(folder, bundle, NOW.isoformat(), data)) != []


@recorded
def test_azures_quote_is_authentic_and_named_unsupported_or_judged_below_its_paravisor() -> None:
    """dcap-qvl rejects it whatever else holds; here it is evaluated, and only SEPT_VE_DISABLE stands against it."""
    folder = EVIDENCE / "azure" / "tdx-vtpm-v1"
    text = json.loads((folder / "evidence-v1.json").read_text())["td_quote"]
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    now = datetime.fromisoformat("2025-10-31T14:17:11Z")
    stapled = _bundle(json.loads((folder / "expect.json").read_text())["expect"]["bundle"])
    found = examine_tdx(data, endorsements=stapled, roots=PINNED_ROOTS, now=now)
    assert failures(found) == [
        ("tdx.sept_ve", "tdx_sept_ve_enabled"),
        ("dcap.second", "tdx_sept_ve_enabled"),
    ]
    found = examine_tdx_below_paravisor(data, endorsements=stapled, roots=PINNED_ROOTS, now=now)
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert found.claims.tcb_status == "OutOfDate"


@pytest.mark.slow
@recorded
@pytest.mark.parametrize("folder", FLIPPED, ids=lambda p: p.name)
def test_flips_of_recorded_quotes_are_refused(folder: Path) -> None:
    """Every 41st byte, PEM text, embedded root, lengths and zeros behind included."""
    _flip_recorded(folder, 41)


@recorded
@pytest.mark.slow
@pytest.mark.parametrize("folder", FLIPPED, ids=lambda p: p.name)
def test_every_flip_of_recorded_quotes_is_refused(folder: Path) -> None:
    """Every byte of every recorded quote: none is unauthenticated, for what nobody signed has one accepted spelling."""
    _flip_recorded(folder, 1)


def _flip_recorded(folder: Path, step: int) -> None:
    bundle, as_of = next((b, a) for f, b, a, _ in RECORDED if f == folder)
    data = (folder / "quote.bin").read_bytes()

    def failed(quote: bytes) -> set[str]:
        return {i for i, _ in failures(_examine_recorded(folder, bundle, as_of, quote))}

    whole, signed = failed(data), len(data) - len(parse_quote(data).trailing)
    for at in range(0, len(data), step):
        # A quote that is refused anyway fails one check more; a text behind the quote stays one.
        assert failed(_flip(data, at)) > whole or (at >= signed and "quote.trailing" in whole), at
