"""`attest.tcb`: which level a platform reaches, and what becomes of several words."""

from __future__ import annotations

import random
from typing import Any

import dcap_qvl
import pytest
from fake_intel import NOW, SGX, TDX4, TDX5, Intel, enclave_levels, statuses

from strongroom.attest.collateral import parse_collateral
from strongroom.attest.dcap_trust import read_chain
from strongroom.attest.quote import TdReport, parse_quote
from strongroom.attest.tcb import (
    Evaluation,
    differs_from_identity,
    differs_from_module,
    evaluate,
    find_module,
)


def evaluation(vendor: Intel) -> Evaluation:
    """What this package finds about a vendor's quote."""
    quote, collateral = parse_quote(vendor.quote), parse_collateral(vendor.bundle)
    return evaluate(
        collateral.tcb_info,
        collateral.qe_identity,
        read_chain(quote.pck_chain).facts,
        qe_svn=quote.qe_report.isv_svn,
        report=quote.body if isinstance(quote.body, TdReport) else None,
    )


def theirs(vendor: Intel) -> str:
    """What dcap-qvl finds about it: a status, or the beginning of its refusal."""
    bundle = dcap_qvl.QuoteCollateralV3.from_json(vendor.bundle.decode())
    root = vendor.certificate("root")
    try:
        return str(dcap_qvl.verify_with_root_ca(vendor.quote, bundle, root, int(NOW.timestamp())).status)
    except ValueError as exc:
        text = str(exc)
        if "Revoked" in text:
            return "Revoked"
        below = ("No matching TCB level", "below minimum", "No TDX module identity")
        return "NotSupported" if any(words in text for words in below) else text


def top(status: str, vendor: Intel = SGX, **more: Any) -> Intel:
    """The vendor whose platform is at a level of `status`."""
    return vendor.but(tcb_info={"tcbLevels": statuses(tdx=vendor.tdx, top=status)}, **more)


def svn(minor: int, major: int = 1, third: int = 5) -> bytes:
    """TEE_TCB_SVN of a TDX module and the SVN behind."""
    return bytes([minor, major, third]) + bytes(13)


def level_two(status: str) -> list[dict[str, Any]]:
    """Levels whose second has this status."""
    levels = statuses(tdx=True)
    return [levels[0], levels[1] | {"tcbStatus": status}, *levels[2:]]


MODULE0 = [
    {
        "tcb": {
            "sgxtcbcomponents": [{"svn": 1}] * 16,
            "pcesvn": 1,
            "tdxtcbcomponents": [{"svn": 5}] + [{"svn": 0}] * 15,
        },
        "tcbDate": "2026-10-01T00:00:00Z",
        "tcbStatus": "UpToDate",
    }
]
OLD_QE, REVOKED_QE, UNKNOWN_QE = ({"isv_svn": bytes([n, 0])} for n in (6, 5, 4))
CASES: dict[str, tuple[Intel, str]] = {
    "up-to-date": (SGX, "UpToDate"),
    "sw-hardening": (top("SWHardeningNeeded"), "SWHardeningNeeded"),
    "configuration": (top("ConfigurationNeeded"), "ConfigurationNeeded"),
    "configuration-and-hardening": (
        top("ConfigurationAndSWHardeningNeeded"),
        "ConfigurationAndSWHardeningNeeded",
    ),
    "out-of-date-configuration": (top("OutOfDateConfigurationNeeded"), "OutOfDateConfigurationNeeded"),
    "second-level": (SGX.but(components=(4,) * 16), "OutOfDate"),
    "one-component-behind": (SGX.but(components=(9,) * 15 + (4,)), "OutOfDate"),
    "first-higher-second-lower": (SGX.but(components=(9, 4) + (9,) * 14), "OutOfDate"),
    "pce-behind": (SGX.but(pce_svn=4), "OutOfDate"),
    "revoked": (SGX.but(components=(2,) * 16), "Revoked"),
    "below-all": (SGX.but(components=(0,) * 16), "NotSupported"),
    "pce-below-all": (SGX.but(pce_svn=0), "NotSupported"),
    "no-levels": (SGX.but(tcb_info={"tcbLevels": []}), "NotSupported"),
    "old-qe": (SGX.but(qe=OLD_QE), "OutOfDate"),
    "old-qe-sw-hardening": (top("SWHardeningNeeded", qe=OLD_QE), "OutOfDate"),
    "old-qe-configuration": (top("ConfigurationNeeded", qe=OLD_QE), "OutOfDateConfigurationNeeded"),
    "old-qe-both": (top("ConfigurationAndSWHardeningNeeded", qe=OLD_QE), "OutOfDateConfigurationNeeded"),
    "old-qe-out-of-date": (SGX.but(components=(3,) * 16, qe=OLD_QE), "OutOfDate"),
    "old-qe-out-of-date-configuration": (
        top("OutOfDateConfigurationNeeded", qe=OLD_QE),
        "OutOfDateConfigurationNeeded",
    ),
    "revoked-qe": (SGX.but(qe=REVOKED_QE), "Revoked"),
    "unknown-qe": (SGX.but(qe=UNKNOWN_QE), "NotSupported"),
    "tdx": (TDX4, "UpToDate"),
    "tdx-third-svn-behind": (TDX4.but(body={"tee_tcb_svn": svn(5, third=4)}), "OutOfDate"),
    "tdx-old-module": (TDX4.but(body={"tee_tcb_svn": svn(3)}), "OutOfDate"),
    "tdx-old-module-configuration": (
        top("ConfigurationNeeded", TDX4, body={"tee_tcb_svn": svn(4)}),
        "OutOfDateConfigurationNeeded",
    ),
    "tdx-revoked-module": (TDX4.but(body={"tee_tcb_svn": svn(2)}), "Revoked"),
    "tdx-unknown-module": (TDX4.but(body={"tee_tcb_svn": svn(1)}), "NotSupported"),
    "tdx-unknown-major": (TDX4.but(body={"tee_tcb_svn": svn(5, 2)}), "NotSupported"),
    "tdx-module-0": (
        TDX4.but(tcb_info={"tcbLevels": MODULE0}, body={"tee_tcb_svn": svn(5, 0)}),
        "UpToDate",
    ),
    "tdx-module-0-counts-the-first-svns": (
        TDX4.but(tcb_info={"tcbLevels": MODULE0}, body={"tee_tcb_svn": svn(4, 0)}),
        "NotSupported",
    ),
    "tdx-15": (TDX5, "UpToDate"),
    "relaunch": (TDX5.but(body={"tee_tcb_svn": svn(3)}), "TDRelaunchAdvised"),
    "relaunch-configuration": (
        top("ConfigurationNeeded", TDX5, body={"tee_tcb_svn": svn(3)}),
        "TDRelaunchAdvisedConfigurationNeeded",
    ),
    "relaunch-from-configuration": (
        TDX5.but(
            tcb_info={"tcbLevels": level_two("OutOfDateConfigurationNeeded")},
            body={"tee_tcb_svn": svn(5, third=4)},
        ),
        "TDRelaunchAdvisedConfigurationNeeded",
    ),
    "relaunch-into-configuration": (
        top("ConfigurationNeeded", TDX5, body={"tee_tcb_svn": svn(5, third=4)}),
        "TDRelaunchAdvisedConfigurationNeeded",
    ),
    "relaunch-into-hardening": (
        top("SWHardeningNeeded", TDX5, body={"tee_tcb_svn": svn(5, third=4)}),
        "TDRelaunchAdvised",
    ),
    "no-relaunch-in-1.0": (TDX5.but(td15=False, body={"tee_tcb_svn": svn(3)}), "OutOfDate"),
    "both-old": (TDX5.but(body={"tee_tcb_svn": svn(3), "tee_tcb_svn2": svn(4)}), "OutOfDate"),
    "launch-revoked": (TDX5.but(body={"tee_tcb_svn": svn(2)}), "Revoked"),
    "current-revoked": (TDX5.but(body={"tee_tcb_svn2": svn(2)}), "Revoked"),
    "current-unknown": (TDX5.but(body={"tee_tcb_svn2": svn(1)}), "NotSupported"),
    "current-old": (TDX5.but(body={"tee_tcb_svn2": svn(3)}), "UpToDate"),
    "old-qe-no-relaunch": (TDX5.but(body={"tee_tcb_svn": svn(3)}, qe=OLD_QE), "OutOfDate"),
}


@pytest.mark.parametrize(("vendor", "status"), CASES.values(), ids=CASES.keys())
def test_status_and_agreement(vendor: Intel, status: str) -> None:
    """The status that the rules give, and that dcap-qvl gives over the same quote."""
    assert evaluation(vendor).status == status
    assert theirs(vendor) == status


def test_the_parts_are_told_apart() -> None:
    """A person sees which part is behind, with all advisories and the oldest date."""
    found = evaluation(top("SWHardeningNeeded", TDX5, qe=OLD_QE, body={"tee_tcb_svn": svn(3)}))
    assert (found.platform_status, found.module_status, found.qe_status) == (
        "SWHardeningNeeded",
        "OutOfDate",
        "OutOfDate",
    )
    assert found.advisories == ("INTEL-SA-00001", "INTEL-SA-00009")
    assert found.date is not None
    assert found.date.isoformat() == "2026-09-01T00:00:00+00:00"
    assert evaluation(SGX.but(pce_svn=0)).date is None


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("mr_signer", bytes(32), "MRSIGNER"),
        ("isv_prod_id", b"\x07\x00", "ISVPRODID"),
        ("misc_select", b"\1\0\0\0", "MISCSELECT"),
        ("attributes", bytes.fromhex("1700000000000000e700000000000000"), "ATTRIBUTES"),
        ("attributes", bytes.fromhex("0500000000000000e700000000000000"), "ATTRIBUTES"),
    ],
    ids=["signer", "product", "misc", "debug", "no-provision-key"],
)
def test_another_enclave_is_not_the_quoting_enclave(field: str, value: bytes, what: str) -> None:
    """CVE-2026-22696: each member of the identity is compared, and under its mask."""
    quote = parse_quote(SGX.but(qe={field: value}).quote)
    identity = parse_collateral(SGX.bundle).qe_identity
    assert differs_from_identity(quote.qe_report, identity).startswith(what)
    assert differs_from_identity(parse_quote(SGX.quote).qe_report, identity) == ""


def test_masked_bits_of_the_quoting_enclave_do_not_matter() -> None:
    """XFRM is masked out, and bit 2 of the flags (64-bit mode)."""
    attributes = bytes.fromhex("1100000000000000ff00000000000000")
    quote = parse_quote(SGX.but(qe={"attributes": attributes}).quote)
    assert differs_from_identity(quote.qe_report, parse_collateral(SGX.bundle).qe_identity) == ""


@pytest.mark.parametrize("field", ["mr_signer_seam", "seam_attributes"])
def test_another_module_is_not_intels(field: str) -> None:
    """Signer and attributes; the mask says which attribute bits may be there at all."""
    size = 48 if field == "mr_signer_seam" else 8
    body = parse_quote(TDX4.but(body={field: b"\1" + bytes(size - 1)}).quote).body
    assert isinstance(body, TdReport)
    module = find_module(parse_collateral(TDX4.bundle).tcb_info, body)
    assert module is not None
    assert differs_from_module(body, module) != ""
    masked = {"attributesMask": "00" * 8}
    identities = [TDX4.tcb_info_json["tdxModuleIdentities"][0] | masked]
    open_mask = parse_collateral(TDX4.but(tcb_info={"tdxModuleIdentities": identities}).bundle)
    module = find_module(open_mask.tcb_info, body)
    assert module is not None
    assert differs_from_module(body, module) != ""


def _any(rng: random.Random, status: tuple[str, ...]) -> Intel:
    """A vendor with random levels and SVNs: mostly near each other, so that every branch is met."""
    vendor = rng.choice((SGX, TDX4, TDX5))
    levels = []
    for _ in range(rng.randint(1, 4)):
        level = statuses(tdx=vendor.tdx, top=rng.choice(status), top_svn=rng.randint(1, 4))[0]
        for name in ("sgxtcbcomponents", "tdxtcbcomponents"):
            if name in level["tcb"]:
                level["tcb"][name] = [{"svn": rng.choice((0, 1, 2, 2, 2, 2, 2, 2, 3))} for _ in range(16)]
        levels.append(level)
    # Descending, as Intel writes them: dcap-qvl sorts what it reads, this package takes the order that was signed.
    levels.sort(key=lambda one: [c["svn"] for c in one["tcb"]["sgxtcbcomponents"]], reverse=True)
    parts = ("UpToDate", "OutOfDate", "Revoked")
    enclaves = [(n, rng.choice(parts)) for n in sorted({rng.randint(1, 9) for _ in range(3)}, reverse=True)]
    info: dict[str, Any] = {"tcbLevels": levels}
    if vendor.tdx:
        identity = vendor.tcb_info_json["tdxModuleIdentities"][0]
        modules = [
            (n, rng.choice(parts)) for n in sorted({rng.randint(1, 5) for _ in range(3)}, reverse=True)
        ]
        info["tdxModuleIdentities"] = [identity | {"tcbLevels": enclave_levels(*modules)}]
    report = {
        name: bytes([rng.randint(0, 5), rng.choice((0, 1, 1, 1)), *(rng.randint(2, 4) for _ in range(14))])
        for name in ("tee_tcb_svn", "tee_tcb_svn2")
    }
    return vendor.but(
        components=tuple(rng.choice((2, 3, 3, 4)) for _ in range(16)),
        pce_svn=rng.randint(1, 4),
        qe={"isv_svn": bytes([rng.randint(1, 9), 0])},
        tcb_info=info,
        qe_identity={"tcbLevels": enclave_levels(*enclaves)},
        body=report if vendor.tdx else {},
    )


def _agree(rounds: int) -> None:
    rng = random.Random("two evaluations")
    status = (
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    )
    met: dict[str, int] = {}
    for _ in range(rounds):
        vendor = _any(rng, status)
        ours = evaluation(vendor).status
        assert ours == theirs(vendor), vendor
        met[ours] = met.get(ours, 0) + 1
    print(dict(sorted(met.items())))
    assert len(met) >= 4


@pytest.mark.slow
def test_two_evaluations_agree_about_random_platforms() -> None:
    """This package and dcap-qvl, over levels and SVNs by chance."""
    _agree(60)


@pytest.mark.slow
def test_two_evaluations_agree_about_many_random_platforms() -> None:
    """The same, for longer."""
    _agree(600)
