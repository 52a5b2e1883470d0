"""`attest.appraisal`, `attest.requirements`: one refusal per requirement, over claims that hardware could
make.

No hardware evidence is verified in this version; the claims here are written by hand, to show what the policy
does with them.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from policies import entry, production
from test_policy import DEVELOPMENT, PRODUCTION
from worlds import MEASUREMENT, NOW, OTHER_MEASUREMENT, SECURITY, Server, policy

from strongroom.attest.appraisal import Policy
from strongroom.attest.evidence import Absent, Check, Claims
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.policy import parse_policy
from strongroom.attest.requirements import Given, Rule
from strongroom.errors import CODES

CLAIMS = Claims(
    format="sgx",
    simulated=False,
    host_excluded=True,
    measurement=MEASUREMENT,
    signer="cd" * 32,
    product=7,
    svn=1,
    debug=False,
    tcb_status="UpToDate",
    advisories=(),
    report_data=bytes(range(64)),
    root="ef" * 32,
    issued_at=None,
    details=(("eval_data_number", "17"),),
)
GIVEN = Given(now=NOW, manifests=())
HARDENED = replace(SECURITY, sealing="measurement", host_excluded=True)


def appraise(
    claims: Claims | Absent = CLAIMS,
    *,
    by: str | Policy = PRODUCTION,
    security: SecurityConfiguration = HARDENED,
) -> tuple[Check, ...]:
    """The checks of the policy over the claims."""
    read = parse_policy(by) if isinstance(by, str) else by
    return read.appraise(claims, security=security, given=GIVEN)


def failures(checks: tuple[Check, ...]) -> list[tuple[str, str]]:
    """(id, code) of the failed checks; every code is known."""
    assert all(c.code in CODES for c in checks if not c.passed)
    return [(c.id, c.code) for c in checks if not c.passed]


def test_good_claims_pass_every_check() -> None:
    """Production code on an up-to-date platform with a strict configuration."""
    assert failures(appraise()) == []


@pytest.mark.parametrize(
    ("changed", "check_id", "code"),
    [
        ({"measurement": OTHER_MEASUREMENT}, "policy.measurement", "measurement_not_accepted"),
        ({"svn": 0}, "policy.svn", "svn_too_low"),
        ({"debug": True}, "policy.debug", "debug_platform"),
        ({"tcb_status": "OutOfDate"}, "policy.tcb_status", "tcb_status_not_accepted"),
        ({"tcb_status": "Revoked"}, "policy.tcb_status", "tcb_status_not_accepted"),
        ({"tcb_status": ""}, "policy.tcb_status", "tcb_status_not_accepted"),
        ({"tcb_status": "NotReported"}, "policy.tcb_status", "tcb_status_not_accepted"),
        ({"advisories": ("INTEL-SA-00615",)}, "policy.advisories", "advisory_not_accepted"),
        ({"simulated": True}, "policy.simulation", "simulation_refused"),
        ({"host_excluded": False}, "security.consistent", "security_contradicts_evidence"),
    ],
)
def test_one_wrong_claim_is_one_refusal(changed: dict[str, Any], check_id: str, code: str) -> None:
    """Debug platform, TCB out of date, an advisory, other code: each with its own code."""
    failed = failures(appraise(replace(CLAIMS, **changed)))
    assert failed[0] == (check_id, code)
    assert len(failed) == 1 or changed == {"simulated": True}


@pytest.mark.parametrize("name", ["tdx", "snp", "tpm", "nitro", "abc"])
def test_claims_of_a_format_that_is_not_named_are_refused(name: str) -> None:
    """The peer chooses the format; the policy names which."""
    assert failures(appraise(replace(CLAIMS, format=name))) == [
        ("policy.format", "evidence_format_not_accepted")
    ]


def test_simulated_claims_are_refused_whatever_the_lists_say() -> None:
    """Claims that call themselves sgx and simulated, of a measurement that the policy names."""
    for by in (PRODUCTION, DEVELOPMENT):
        codes = [code for _, code in failures(appraise(replace(CLAIMS, simulated=True), by=by))]
        assert codes[0] == "simulation_refused"


def test_hardware_claims_are_refused_by_a_simulation_policy() -> None:
    """UNSAFE_SIMULATION accepts simulated claims only: it is no weaker production policy."""
    codes = {code for _, code in failures(appraise(by=policy()))}
    assert "evidence_format_not_accepted" in codes
    disguised = replace(CLAIMS, format="sim", issued_at=NOW, root=policy().roots("sim")[0])
    assert ("policy.simulation", "evidence_format_not_accepted") in failures(appraise(disguised, by=policy()))


def test_accepted_statuses_and_advisories_are_accepted() -> None:
    """What the policy names beside the best is let through, and nothing else."""
    by = PRODUCTION.replace('["UpToDate"]', '["UpToDate", "SWHardeningNeeded"]')
    by = by.replace("advisories = []", 'advisories = ["INTEL-SA-00615"]')
    claims = replace(CLAIMS, tcb_status="SWHardeningNeeded", advisories=("INTEL-SA-00615",))
    assert failures(appraise(claims, by=by)) == []
    more = replace(claims, advisories=("INTEL-SA-00615", "INTEL-SA-00657"))
    assert failures(appraise(more, by=by)) == [("policy.advisories", "advisory_not_accepted")]


def test_debug_mode_is_let_through_by_a_development_policy_that_says_so() -> None:
    """`unsafe_accept_debug = true`, and not otherwise."""
    debug = replace(CLAIMS, debug=True)
    assert failures(appraise(debug, by=DEVELOPMENT)) == []
    strict = DEVELOPMENT.replace("unsafe_accept_debug = true", "unsafe_accept_debug = false")
    assert failures(appraise(debug, by=strict)) == [("policy.debug", "debug_platform")]


def test_a_signer_vouches_for_its_products_only() -> None:
    """Code of an accepted signer passes unseen if it is an accepted product; another signer's or product does
    not.
    """
    by = PRODUCTION.replace("signers = []", f'signers = ["{CLAIMS.signer}"]').replace(
        "products = []", "products = [7]"
    )
    unseen = replace(CLAIMS, measurement=OTHER_MEASUREMENT)
    assert failures(appraise(unseen, by=by)) == []
    refusal = [("policy.measurement", "measurement_not_accepted")]
    assert failures(appraise(replace(unseen, product=8), by=by)) == refusal
    assert failures(appraise(replace(unseen, signer="00" * 32), by=by)) == refusal
    assert failures(appraise(replace(unseen, signer=""), by=by)) == refusal


def test_evidence_with_a_time_is_young_enough_or_refused() -> None:
    """Nitro documents carry a time: too old, from the future and missing are refused."""
    by = production(entry("nitro").replace("300", "60").replace("5a" * 48, MEASUREMENT))
    nitro = replace(CLAIMS, format="nitro", issued_at=NOW - timedelta(seconds=60))
    assert failures(appraise(nitro, by=by)) == []
    refusal = [("policy.age", "evidence_stale")]
    for issued in (NOW - timedelta(seconds=61), NOW + timedelta(seconds=301), None):
        assert failures(appraise(replace(nitro, issued_at=issued), by=by)) == refusal


def test_of_several_entries_one_must_hold_entirely() -> None:
    """The halves of two entries do not add up; the checks of the nearest entry are shown."""
    second = policy(measurement=OTHER_MEASUREMENT).requirements[0]
    strict = replace(second, rules=tuple(replace(r, svn=5) if hasattr(r, "svn") else r for r in second.rules))
    both = replace(policy(), requirements=(*policy().requirements, strict))
    claims = replace(
        CLAIMS,
        format="sim",
        simulated=True,
        host_excluded=False,
        issued_at=NOW,
        root=policy().roots("sim")[0],
    )
    assert failures(appraise(claims, by=both, security=SECURITY)) == []
    other = replace(claims, measurement=OTHER_MEASUREMENT)
    assert len(failures(appraise(other, by=both, security=SECURITY))) == 1
    assert failures(appraise(replace(other, svn=5), by=both, security=SECURITY)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sealing", "signer"),
        ("sealing", "operator"),
        ("sealing", "simulated"),
        ("host_excluded", False),
        ("isolation", "in_process"),
        ("sandbox", ()),
        ("anonymous_upload", True),
        ("verify_on_load", "tags"),
    ],
)
def test_one_weaker_setting_is_one_refusal(name: str, value: object) -> None:
    """Each field of the configuration has a check and a code of its own."""
    by = PRODUCTION.replace("sandbox = []", 'sandbox = ["no_dumps"]')
    by = by.replace('["tags", "sha256"]', '["sha256"]').replace(
        '["in_process", "model", "owner", "request"]', '["owner"]'
    )
    good = replace(HARDENED, isolation="owner", verify_on_load="sha256")
    assert failures(appraise(by=by, security=good)) == []
    weaker = replace(good, **{name: value})  # type: ignore[arg-type]
    failed = failures(appraise(by=by, security=weaker))
    assert failed[0] == (f"security.{name}", f"security_{name}_refused")
    # Hardware evidence beside a simulated sealing root contradicts itself on top.
    assert len(failed) == (2 if value == "simulated" else 1)


def test_more_sandbox_layers_than_required_are_welcome() -> None:
    """`sandbox` is the one field that is a minimum."""
    by = PRODUCTION.replace("sandbox = []", 'sandbox = ["no_dumps"]')
    assert failures(appraise(by=by)) == []


def test_an_expired_policy_refuses() -> None:
    """To the second."""
    read = parse_policy(PRODUCTION)
    assert failures(appraise(by=replace(read, expires=NOW))) == [("policy.expires", "policy_expired")]
    assert failures(appraise(by=replace(read, expires=NOW + timedelta(seconds=1)))) == []


def test_a_policy_without_entries_refuses_everything() -> None:
    """It is a floor, and says so."""
    empty = replace(parse_policy(PRODUCTION), requirements=())
    failed = [c for c in appraise(by=empty) if not c.passed]
    assert [c.code for c in failed] == ["policy_accepts_nothing"]
    assert failed[0].expected == "nothing: this policy names no code at all"


def test_absent_claims_fail_every_check_that_needs_them() -> None:
    """No check is skipped because there is nothing to check, and none of them passes."""
    checks = {c.id: c for c in appraise(Absent("sgx", "the signature did not verify"))}
    assert set(checks) == {c.id for c in appraise()}
    for name in (
        "policy.simulation",
        "policy.measurement",
        "policy.debug",
        "policy.tcb_status",
        "security.consistent",
    ):
        assert checks[name].got == "could not be checked: the signature did not verify"


def test_an_absent_configuration_fails_every_field() -> None:
    """The same for the keyset's half."""
    checks = parse_policy(PRODUCTION).appraise(CLAIMS, security=Absent("sgx", "no keyset"), given=GIVEN)
    assert {c.id for c in checks if not c.passed} == {c.id for c in checks if c.id.startswith("security.")}


def test_every_rule_explains_itself() -> None:
    """What a person reads comes from the object that decides."""
    simulated, hardware = policy(), parse_policy(PRODUCTION)
    for rule in (*simulated.requirements[0].rules, *hardware.requirements[0].rules):
        assert rule.explain().endswith(".")
        assert rule.expected()
        assert rule.head()[2] in CODES


def test_a_rule_is_abstract_until_it_says_what_it_requires() -> None:
    """A requirement without a check cannot pass by accident."""
    for call in (
        lambda: Rule().expected(),
        lambda: Rule().holds(CLAIMS, GIVEN),
        lambda: Rule().explain(),
        lambda: Rule().members(),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert Server().evidence.format == "sim"
