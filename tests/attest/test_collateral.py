"""`attest.collateral`: bundles of DCAP collateral."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import SHARED
from fake_intel import NOW, SGX, TDX4, Intel, enclave_levels

from strongroom.attest.collateral import MAX_BUNDLE, parse_collateral, select_collateral
from strongroom.errors import MalformedInput

RECORDED = sorted((SHARED / "evidence" / "dcap-collateral").glob("*.json"))


def bundle(vendor: Intel = SGX, **members: Any) -> bytes:
    """The vendor's bundle with members of it replaced."""
    return json.dumps({**vendor.members, **members}).encode()


def info(vendor: Intel = SGX, **members: Any) -> bytes:
    """The vendor's bundle with members of the TCB info replaced."""
    return bundle(vendor, tcb_info=json.dumps(vendor.tcb_info_json | members))


def identity(**members: Any) -> bytes:
    """The vendor's bundle with members of the identity replaced."""
    return bundle(qe_identity=json.dumps(SGX.qe_identity_json | members))


def level(vendor: Intel = SGX, **members: Any) -> bytes:
    """The vendor's bundle with members of the first level replaced."""
    levels = vendor.tcb_info_json["tcbLevels"]
    return info(vendor, tcbLevels=[levels[0] | members, *levels[1:]])


def tcb(vendor: Intel = SGX, **members: Any) -> bytes:
    """The vendor's bundle with members of the first level's TCB replaced."""
    return level(vendor, tcb=vendor.tcb_info_json["tcbLevels"][0]["tcb"] | members)


def module(**members: Any) -> bytes:
    """The TDX bundle with members of the module identity replaced."""
    return info(TDX4, tdxModuleIdentities=[TDX4.tcb_info_json["tdxModuleIdentities"][0] | members])


def test_a_bundle_gives_its_documents() -> None:
    """Levels, identities, times and the very bytes that were signed."""
    got = parse_collateral(TDX4.bundle)
    assert got.tcb_info.tee == got.qe_identity.tee == "tdx"
    assert got.tcb_info.fmspc == TDX4.fmspc
    assert [one.status for one in got.tcb_info.levels] == ["UpToDate", "OutOfDate", "Revoked"]
    assert got.tcb_info.levels[1].advisories == ("INTEL-SA-00002", "INTEL-SA-00003")
    assert [one.major for one in got.tcb_info.modules] == [0, 1]
    assert got.tcb_info.issued == NOW - timedelta(days=1)
    assert got.qe_identity.next_update == NOW + timedelta(days=28)
    assert got.tcb_info_bytes.decode() == TDX4.members["tcb_info"]
    assert got.tcb_info_issuer_chain == (TDX4.certificate("signing"), TDX4.certificate("root"))
    assert got.root_ca_crl == TDX4.crl("root")


def test_the_bundle_is_sorted_out_by_content() -> None:
    """Names count for nothing; platform and TEE do."""
    other = SGX.but(fmspc=bytes(6))
    stapled = (("sgx.json", TDX4.bundle), ("tdx.json", other.bundle), ("x", SGX.bundle))
    assert select_collateral(stapled, tee="sgx", fmspc=SGX.fmspc).text == SGX.bundle.decode()
    assert select_collateral(stapled, tee="tdx", fmspc=SGX.fmspc).text == TDX4.bundle.decode()


def test_the_newest_evaluation_counts_and_not_the_kindest() -> None:
    """Whoever staples an old bundle beside the new one does not get a better status by it."""
    old = SGX.but(tcb_info={"tcbEvaluationDataNumber": 19})
    new = SGX.but(tcb_info={"tcbEvaluationDataNumber": 21})
    for stapled in ((old, SGX, new), (new, SGX, old)):
        named = tuple((f"b{i}", one.bundle) for i, one in enumerate(stapled))
        assert select_collateral(named, tee="sgx", fmspc=SGX.fmspc).tcb_info.evaluation == 21
    later = SGX.but(tcb_info={"issueDate": "2026-11-23T00:00:00Z"})
    named = (("a", later.bundle), ("b", SGX.bundle))
    chosen = select_collateral(named, tee="sgx", fmspc=SGX.fmspc)
    assert chosen.tcb_info.issued == datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    "stapled", [(), (TDX4.bundle,), (SGX.but(fmspc=bytes(6)).bundle,)], ids=["none", "tdx", "other"]
)
def test_no_bundle_for_the_platform_is_a_refusal_of_its_own(stapled: tuple[bytes, ...]) -> None:
    """The message says for what there are bundles."""
    with pytest.raises(MalformedInput) as refusal:
        select_collateral(tuple(("x", one) for one in stapled), tee="sgx", fmspc=SGX.fmspc)
    assert refusal.value.code == "collateral_missing"


def test_members_that_intel_adds_are_left_alone() -> None:
    """Unknown members of Intel's signed documents do not break a verifier; those of the bundle do."""
    parse_collateral(info(newMember=[1, {"a": None}]))
    parse_collateral(level(newMember="x"))
    parse_collateral(identity(newMember="x"))
    parse_collateral(tcb(TDX4, sgxtcbcomponents=[{"svn": 1, "category": "BIOS", "type": "x"}] * 16))
    with pytest.raises(MalformedInput):
        parse_collateral(bundle(pck_certificate_chain=""))


def test_a_tcb_info_without_module_identities_is_read() -> None:
    """The first ones of TDX had none."""
    members = {k: v for k, v in TDX4.tcb_info_json.items() if k != "tdxModuleIdentities"}
    got = parse_collateral(bundle(TDX4, tcb_info=json.dumps(members)))
    assert [one.major for one in got.tcb_info.modules] == [0]


CHAIN = SGX.members["tcb_info_issuer_chain"]
MALFORMED = {
    "empty": b"",
    "not-json": b"\x30\x82",
    "array": b"[]",
    "too-long": SGX.bundle + b" " * MAX_BUNDLE,
    "missing-member": json.dumps({k: v for k, v in SGX.members.items() if k != "pck_crl"}).encode(),
    "unknown-member": bundle(more=""),
    "member-twice": SGX.bundle[:-1] + b',"pck_crl":"00"}',
    "crl-upper-case": bundle(pck_crl=SGX.members["pck_crl"].upper()),
    "crl-odd": bundle(pck_crl=SGX.members["pck_crl"][1:]),
    "crl-empty": bundle(root_ca_crl=""),
    "crl-not-a-string": bundle(root_ca_crl=1),
    "signature-short": bundle(tcb_info_signature="00" * 63),
    "signature-long": bundle(qe_identity_signature="00" * 65),
    "chain-with-text": bundle(tcb_info_issuer_chain="x" + CHAIN),
    "chain-with-carriage-returns": bundle(tcb_info_issuer_chain=CHAIN.replace("\n", "\r\n")),
    "chain-without-last-line-feed": bundle(tcb_info_issuer_chain=CHAIN[:-1]),
    "chain-line-of-65": bundle(qe_identity_issuer_chain=CHAIN.replace("\n", "", 2).replace("-----M", "-----\nM", 1)),
    "tcb-info-an-object": bundle(tcb_info=SGX.tcb_info_json),
    "tcb-info-not-json": bundle(tcb_info="{x}"),
    "tcb-info-lone-surrogate": SGX.bundle.replace(b'"tcb_info": "{', b'"tcb_info": "{\\ud800'),
    "tcb-info-member-twice": bundle(tcb_info=SGX.members["tcb_info"].replace("{", '{"tcbType":0,', 1)),
    "version-2": info(version=2),
    "version-4": info(version=4),
    "version-true": info(version=True),
    "id-unknown": info(id="SEV"),
    "id-missing": bundle(tcb_info=json.dumps({k: v for k, v in SGX.tcb_info_json.items() if k != "id"})),
    "tcb-type-1": info(tcbType=1),
    "fmspc-short": info(fmspc="00"),
    "fmspc-number": info(fmspc=0),
    "pce-id-long": info(pceId="000000"),
    "evaluation-negative": info(tcbEvaluationDataNumber=-1),
    "evaluation-text": info(tcbEvaluationDataNumber="20"),
    "evaluation-float": info(tcbEvaluationDataNumber=20.0),
    "time-without-zone": info(issueDate="2026-11-22T12:00:00"),
    "time-with-offset": info(nextUpdate="2026-12-22T12:00:00+01:00"),
    "time-month-13": info(nextUpdate="2026-13-22T12:00:00Z"),
    "time-24-hours": info(nextUpdate="2026-12-22T25:00:00Z"),
    "time-missing": bundle(
        tcb_info=json.dumps({k: v for k, v in SGX.tcb_info_json.items() if k != "nextUpdate"})
    ),
    "levels-an-object": info(tcbLevels={}),
    "levels-257": info(tcbLevels=SGX.tcb_info_json["tcbLevels"][:1] * 257),
    "level-not-an-object": info(tcbLevels=[1]),
    "status-unknown": level(tcbStatus="Fine"),
    "status-relaunch": level(tcbStatus="TDRelaunchAdvised"),
    "status-lower-case": level(tcbStatus="uptodate"),
    "advisories-a-string": level(advisoryIDs="INTEL-SA-00001"),
    "advisories-129": level(advisoryIDs=["INTEL-SA-00001"] * 129),
    "advisory-with-line-feed": level(advisoryIDs=["INTEL-SA-00001\n"]),
    "advisory-number": level(advisoryIDs=[1]),
    "components-15": tcb(sgxtcbcomponents=[{"svn": 1}] * 15),
    "components-17": tcb(sgxtcbcomponents=[{"svn": 1}] * 17),
    "component-256": tcb(sgxtcbcomponents=[{"svn": 256}] * 16),
    "component-negative": tcb(sgxtcbcomponents=[{"svn": -1}] * 16),
    "component-true": tcb(sgxtcbcomponents=[{"svn": True}] * 16),
    "component-bare": tcb(sgxtcbcomponents=[1] * 16),
    "component-null": tcb(sgxtcbcomponents=[{}] * 16),
    "pce-svn-65536": tcb(pcesvn=65536),
    "tdx-components-missing": level(TDX4, tcb=SGX.tcb_info_json["tcbLevels"][0]["tcb"]),
    "tdx-components-empty": tcb(TDX4, tdxtcbcomponents=[]),
    "tdx-module-missing": bundle(
        TDX4, tcb_info=json.dumps({k: v for k, v in TDX4.tcb_info_json.items() if k != "tdxModule"})
    ),
    "module-id": module(id="TDX_1"),
    "module-signer-short": module(mrsigner="00" * 32),
    "module-status": module(tcbLevels=enclave_levels((1, "SWHardeningNeeded"))),
    "module-twice": info(TDX4, tdxModuleIdentities=TDX4.tcb_info_json["tdxModuleIdentities"] * 2),
    "module-zero-again": module(id="TDX_00"),
    "modules-an-object": info(TDX4, tdxModuleIdentities={}),
    "modules-65": info(TDX4, tdxModuleIdentities=TDX4.tcb_info_json["tdxModuleIdentities"] * 65),
    "identity-version-1": identity(version=1),
    "identity-of-qve": identity(id="QVE"),
    "identity-mask-short": identity(attributesMask="FF"),
    "identity-signer-short": identity(mrsigner="00" * 31),
    "identity-product": identity(isvprodid=65536),
    "identity-status": identity(tcbLevels=enclave_levels((1, "ConfigurationNeeded"))),
    "identity-level-svn": identity(tcbLevels=[{"tcb": {}, "tcbDate": "x", "tcbStatus": "UpToDate"}]),
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    """One fault of form each, of the bundle or of a document in it."""
    with pytest.raises(MalformedInput) as refusal:
        parse_collateral(data)
    assert refusal.value.code == "collateral_malformed"


@pytest.mark.skipif(not RECORDED, reason="not exercised here: recorded evidence is not beside this checkout")
def test_recorded_bundles_are_read() -> None:
    """Genuine bundles of 2023 to 2026, with the platform, TEE and evaluation that their names say."""
    assert len(RECORDED) == 12
    for path in RECORDED:
        got = parse_collateral(path.read_bytes()).tcb_info
        tee, fmspc, _, _, evaluation = path.stem.split("-")
        assert (got.tee, got.fmspc.hex().upper(), f"eval{got.evaluation}") == (tee, fmspc, evaluation)
