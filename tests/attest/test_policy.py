"""`attest.policy`, `attest.lint`: policy files say everything, and nothing that their kind cannot accept."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import policies
import pytest
from worlds import MEASUREMENT, NOW, OTHER_MEASUREMENT, SECURITY, Server, policy, verify

from strongroom.attest.evidence import Absent
from strongroom.attest.lint import DANGER, INFO, MEMBER_MEANS, WARNING
from strongroom.attest.policy import (
    NAMED_POLICIES,
    Policy,
    lint,
    named_policy,
    parse_policy,
    policy_for,
    policy_for_measurement,
    render_policy,
)
from strongroom.attest.requirements import (
    HARDWARE_FORMATS,
    TCB_STATUSES,
    Code,
    Given,
    NotDebug,
    Requirement,
    Root,
)
from strongroom.errors import CODES, AttestationRefused, InvalidPolicy
from strongroom.reduction import WORDS

ROOT = "ab" * 32
ENTRY = f"""
measurements = ["{MEASUREMENT}"]
signers = []
products = []
min_svn = 1
tcb_statuses = ["UpToDate"]
accepted_advisories = []
min_evaluation = 17
"""
PRODUCTION = f"{policies.HEAD}[[sgx]]{ENTRY}{policies.SECURITY}"
DEVELOPMENT = PRODUCTION.replace("production", "development").replace(
    "accepted_advisories = []", "accepted_advisories = []\nunsafe_accept_debug = true"
)
SIMULATION = policy_for_measurement(MEASUREMENT, root=ROOT, now=NOW)


def code_of(text: str) -> str:
    """The code with which the policy file is refused."""
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(text)
    assert caught.value.code in CODES
    return caught.value.code


# Reading


def test_each_kind_is_read() -> None:
    """One file of each kind; the default age of a verdict is an hour."""
    production = parse_policy(PRODUCTION)
    assert (production.kind, production.max_verdict_age_s, production.simulated) == (
        "production",
        3600,
        False,
    )
    assert production.expires == datetime(2027, 1, 1, tzinfo=UTC)
    development = parse_policy(DEVELOPMENT)
    assert not any(isinstance(rule, NotDebug) for rule in development.requirements[0].rules)
    simulation = parse_policy(SIMULATION)
    assert simulation.simulated
    assert simulation.roots("sim") == (ROOT,)
    assert simulation.roots("sgx") == ()


@pytest.mark.parametrize("name", HARDWARE_FORMATS)
def test_every_hardware_format_can_be_named(name: str) -> None:
    """An entry of each parses, and is written back as it was read."""
    read = parse_policy(policies.production(policies.entry(name)))
    assert read.requirements[0].format == name
    assert parse_policy(render_policy(read, heading="x")) == read
    development = parse_policy(policies.development(name, debug=True))
    assert parse_policy(render_policy(development, heading="x")) == development


def test_several_entries_are_several_requirements() -> None:
    """A roll-out names the old release beside the new."""
    second = f"[[sgx]]{ENTRY.replace(MEASUREMENT, OTHER_MEASUREMENT)}"
    assert len(parse_policy(f"{policies.HEAD}[[sgx]]{ENTRY}{second}{policies.SECURITY}").requirements) == 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "policy_empty"),
        ("# only a comment\n", "policy_empty"),
        ("kind = ", "policy_invalid"),
        ("kind = 1\nkind = 2\n", "policy_invalid"),
        ("a = " + "[" * 5000, "policy_invalid"),
        ("# " + "x" * 70_000 + "\n" + PRODUCTION, "policy_invalid"),
        (PRODUCTION.replace("production", "Production"), "policy_invalid"),
        (PRODUCTION.replace('"production"', "1"), "policy_invalid"),
        (PRODUCTION + "\n[security2]\n", "policy_unknown_member"),
        ("skip = true\n" + PRODUCTION, "policy_unknown_member"),
        (PRODUCTION.replace("expires", "#expires"), "policy_missing_member"),
        (PRODUCTION.replace("kind =", "#kind ="), "policy_missing_member"),
        (policies.HEAD, "policy_missing_member"),
        (PRODUCTION.replace("2027-01-01T00:00:00Z", '"2027-01-01T00:00:00Z"'), "policy_invalid"),
        (PRODUCTION.replace("2027-01-01T00:00:00Z", "2027-01-01T00:00:00"), "policy_invalid"),
        (PRODUCTION.replace("2027-01-01T00:00:00Z", "2027-01-01"), "policy_invalid"),
        ("max_verdict_age_s = 0\n" + PRODUCTION, "policy_invalid"),
        ("max_verdict_age_s = 86401\n" + PRODUCTION, "policy_invalid"),
        ("max_verdict_age_s = true\n" + PRODUCTION, "policy_invalid"),
        ("max_verdict_age_s = 3600.0\n" + PRODUCTION, "policy_invalid"),
        # entries
        (PRODUCTION.replace("[[sgx]]", "[sgx]"), "policy_invalid"),
        ("sgx = []\n" + PRODUCTION.replace(f"[[sgx]]{ENTRY}", "") + "[[sgx2]]\n", "policy_unknown_member"),
        (PRODUCTION.replace(MEASUREMENT, MEASUREMENT.upper()), "policy_invalid"),
        (PRODUCTION.replace(MEASUREMENT, MEASUREMENT[:-1]), "policy_invalid"),
        (PRODUCTION.replace(f'["{MEASUREMENT}"]', "[1]"), "policy_invalid"),
        (PRODUCTION.replace(f'["{MEASUREMENT}"]', f'"{MEASUREMENT}"'), "policy_invalid"),
        (PRODUCTION.replace(f'["{MEASUREMENT}"]', f'["{MEASUREMENT}", "{MEASUREMENT}"]'), "policy_invalid"),
        (PRODUCTION.replace(f'["{MEASUREMENT}"]', "[]"), "policy_accepts_nothing"),
        (PRODUCTION.replace("signers = []", f'signers = ["{MEASUREMENT}"]'), "policy_invalid"),
        (PRODUCTION.replace("products = []", "products = [1]"), "policy_invalid"),
        (PRODUCTION.replace("min_svn = 1", "min_svn = -1"), "policy_invalid"),
        (PRODUCTION.replace("min_svn = 1", "min_svn = true"), "policy_invalid"),
        (PRODUCTION.replace("min_svn = 1", ""), "policy_missing_member"),
        (PRODUCTION.replace('["UpToDate"]', "[]"), "policy_accepts_nothing"),
        (PRODUCTION.replace("UpToDate", "Revoked"), "policy_too_weak"),
        (PRODUCTION.replace("UpToDate", "Uptodate"), "policy_invalid"),
        (PRODUCTION.replace("accepted_advisories = []", 'accepted_advisories = ["*"]'), "policy_invalid"),
        (PRODUCTION.replace("min_svn = 1", "min_svn = 1\nmax_evidence_age_s = 1"), "policy_unknown_member"),
        (
            PRODUCTION.replace("min_svn = 1", "min_svn = 1\nunsafe_accept_debug = true"),
            "policy_unknown_member",
        ),
        (PRODUCTION.replace("production", "development"), "policy_missing_member"),
        # security
        (PRODUCTION.replace("anonymous_upload = [false]", ""), "policy_missing_member"),
        (PRODUCTION.replace("sandbox = []", "sandbox = []\nsandbox2 = []"), "policy_unknown_member"),
        (PRODUCTION.replace('logging = ["no_content"]', "logging = []"), "policy_accepts_nothing"),
        (PRODUCTION + "handover = []\n", "policy_accepts_nothing"),
        (PRODUCTION + 'handover = ["any"]\n', "policy_invalid"),
        (PRODUCTION + 'handover = ["none", "none"]\n', "policy_invalid"),
        (PRODUCTION + "handover = [true]\n", "policy_invalid"),
        (PRODUCTION + 'recovery = ["age1short"]\n', "policy_invalid"),
        (PRODUCTION + 'recovery = "none"\n', "policy_invalid"),
        (PRODUCTION.replace('"no_content"', '"everything"'), "policy_invalid"),
        (PRODUCTION.replace("anonymous_upload = [false]", "anonymous_upload = false"), "policy_invalid"),
        (PRODUCTION.replace("anonymous_upload = [false]", "anonymous_upload = [0]"), "policy_invalid"),
        (
            PRODUCTION.replace("anonymous_upload = [false]", "anonymous_upload = [false, false]"),
            "policy_invalid",
        ),
        (PRODUCTION.replace("sandbox = []", 'sandbox = ["No Dumps"]'), "policy_invalid"),
        (PRODUCTION.replace("host_excluded = [true]", "host_excluded = [true, false]"), "policy_too_weak"),
        # simulation
        (PRODUCTION.replace('["measurement"]', '["measurement", "simulated"]'), "policy_mixes_simulation"),
        (DEVELOPMENT.replace('["measurement"]', '["simulated"]'), "policy_mixes_simulation"),
        (SIMULATION.replace("UNSAFE_SIMULATION", "production"), "policy_mixes_simulation"),
        (SIMULATION.replace("UNSAFE_SIMULATION", "development"), "policy_mixes_simulation"),
        (SIMULATION + f"\n[[sgx]]{ENTRY}", "policy_mixes_simulation"),
        (PRODUCTION.replace("production", "UNSAFE_SIMULATION"), "policy_mixes_simulation"),
        (SIMULATION.replace("root =", "#root ="), "policy_missing_member"),
        (SIMULATION.replace("measurements =", "#measurements ="), "policy_missing_member"),
        (SIMULATION.replace("max_evidence_age_s =", "#max_evidence_age_s ="), "policy_missing_member"),
        (SIMULATION.replace("max_evidence_age_s = 300", "max_evidence_age_s = 0"), "policy_invalid"),
        (SIMULATION.replace("max_evidence_age_s = 300", "max_evidence_age_s = 604801"), "policy_invalid"),
        (SIMULATION.replace(ROOT, "*"), "policy_invalid"),
        (SIMULATION.replace("min_svn = 1", "min_svn = 1\nsigners = []"), "policy_unknown_member"),
    ],
    ids=range(68),
)
def test_a_file_that_says_too_little_too_much_or_nothing_is_refused(text: str, code: str) -> None:
    """One fault each: unknown, missing, mistyped, empty, out of range, or more than the kind can accept."""
    parse_policy(PRODUCTION)
    assert code_of(text) == code


def test_messages_name_the_member_of_the_readers_own_file() -> None:
    """The file is the reader's: what is unknown or missing is named."""
    with pytest.raises(InvalidPolicy, match=r"unknown: 'security\.sandbox2'"):
        parse_policy(PRODUCTION.replace("sandbox = []", "sandbox = []\nsandbox2 = []"))
    with pytest.raises(InvalidPolicy, match=r"missing: sgx\.min_svn"):
        parse_policy(PRODUCTION.replace("min_svn = 1", ""))


def test_the_object_keeps_the_rules_of_the_file() -> None:
    """A policy made in code cannot be what no file could be."""
    simulation, production = policy(), parse_policy(PRODUCTION)
    with pytest.raises(InvalidPolicy) as caught:
        replace(production, requirements=simulation.requirements)
    assert caught.value.code == "policy_mixes_simulation"
    with pytest.raises(InvalidPolicy) as caught:
        replace(simulation, requirements=production.requirements)
    assert caught.value.code == "policy_mixes_simulation"
    with pytest.raises(InvalidPolicy, match="debug"):
        replace(production, requirements=parse_policy(DEVELOPMENT).requirements)
    with pytest.raises(InvalidPolicy, match="kind"):
        replace(production, kind="UNSAFE_ANY")
    with pytest.raises(InvalidPolicy, match="offset"):
        replace(production, expires=datetime(2027, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidPolicy, match="at most 64"):
        replace(production, requirements=production.requirements * 65)
    with pytest.raises(InvalidPolicy, match="no such evidence format"):
        replace(production, requirements=(replace(production.requirements[0], format="sev"),))


def test_a_requirement_has_all_rules_of_its_format() -> None:
    """A requirement made in code without a rule does not skip the check; it cannot be made."""
    rules = policy().requirements[0].rules
    for rule in rules:
        rest = tuple(r for r in rules if r is not rule)
        with pytest.raises(InvalidPolicy, match="missing"):
            Requirement("sim", rest)
    with pytest.raises(InvalidPolicy, match="twice"):
        Requirement("sim", (*rules, Root(ROOT)))
    with pytest.raises(InvalidPolicy, match="no time"):
        Requirement("sgx", (*parse_policy(PRODUCTION).requirements[0].rules, rules[3]))
    with pytest.raises(InvalidPolicy) as caught:
        Code((), (), ())
    assert caught.value.code == "policy_accepts_nothing"


# Named profiles


@pytest.mark.parametrize("name", ["production", "development", "UNSAFE_SIMULATION"])
def test_a_profile_is_a_floor_that_accepts_no_code(name: str) -> None:
    """It parses, is of the kind of its name, names nothing, and lints as such; even the genuine server is refused."""
    floor = named_policy(name)
    assert floor.kind == name
    assert floor.requirements == ()
    assert set(NAMED_POLICIES) == {"production", "development", "UNSAFE_SIMULATION"}
    assert any("refuses every server" in f.text for f in lint(floor, NOW))
    assert "strict" in floor.security.admission  # what servers do unless told otherwise
    assert "structural" not in floor.security.admission  # what none does any more
    with pytest.raises(AttestationRefused):
        verify(Server(), by=floor)


@pytest.mark.parametrize("name", ["", "Production", "UNSAFE_ANYTHING", "../production"])
def test_other_names_are_refused(name: str) -> None:
    """No other profile goes by a name."""
    with pytest.raises(InvalidPolicy) as caught:
        named_policy(name)
    assert caught.value.code == "policy_unknown_name"


# Writing


@pytest.mark.parametrize(
    "text", [PRODUCTION, DEVELOPMENT, SIMULATION, *NAMED_POLICIES.values()], ids=range(6)
)
def test_what_is_written_is_read_back(text: str) -> None:
    """`render_policy` and `parse_policy` are inverse, and every member carries a comment."""
    read = parse_policy(text)
    written = render_policy(read, heading="For a test.")
    assert parse_policy(written) == read
    lines = written.splitlines()
    for before, line in pairwise(lines):
        if re.match(r"[a-z_]+ =", line):
            assert before.startswith("# "), line


def test_a_nitro_entry_with_signers_is_written_back() -> None:
    """Signers, products, ages and advisories survive writing."""
    text = policies.production(policies.entry("nitro")).replace("signers = []", f'signers = ["{"cd" * 48}"]')
    read = parse_policy(text)
    assert parse_policy(render_policy(read, heading="x")) == read
    text = PRODUCTION.replace("accepted_advisories = []", 'accepted_advisories = ["INTEL-SA-00615"]')
    read = parse_policy(text)
    assert parse_policy(render_policy(read, heading="x")) == read


def test_a_policy_for_what_a_server_showed_accepts_that_and_names_its_kind() -> None:
    """From simulated claims comes an UNSAFE_SIMULATION file that accepts this server and expires."""
    attested = verify(Server())
    text = policy_for(attested.claims, security=SECURITY, now=NOW)
    assert "# SIMULATED evidence only" in text
    drafted = parse_policy(text)
    verify(Server(), by=drafted)
    assert drafted.expires == NOW + timedelta(days=90)
    assert drafted.security.anonymous_upload == (False,)


def test_a_policy_for_hardware_claims_is_production_or_says_development() -> None:
    """Debug mode and an included host lead to kind development; the rest to production."""
    attested = verify(Server())
    claims = replace(
        attested.claims,
        format="sgx",
        simulated=False,
        host_excluded=True,
        tcb_status="UpToDate",
        root="",
        details=(("eval_data_number", "17"),),
    )
    security = replace(SECURITY, sealing="measurement", host_excluded=True)
    assert parse_policy(policy_for(claims, security=security, now=NOW)).kind == "production"
    debug = policy_for(replace(claims, debug=True), security=security, now=NOW)
    assert parse_policy(debug).kind == "development"
    assert "unsafe_accept_debug = true" in debug
    weak = replace(security, host_excluded=False)
    assert parse_policy(policy_for(claims, security=weak, now=NOW)).kind == "development"
    with pytest.raises(InvalidPolicy) as caught:
        policy_for(replace(claims, tcb_status="Revoked"), security=security, now=NOW)
    assert caught.value.code == "policy_too_weak"


@pytest.mark.parametrize(
    ("measurement", "root"), [("", ROOT), (MEASUREMENT, ""), ("*", ROOT), (MEASUREMENT, "x" * 64)]
)
def test_no_policy_is_written_for_what_is_no_digest(measurement: str, root: str) -> None:
    """A slip of the keyboard does not become a file."""
    with pytest.raises(InvalidPolicy):
        policy_for_measurement(measurement, root=root, now=NOW)


# Lint


def told(read: Policy, level: str) -> str:
    """All texts of one level."""
    return " ".join(f"{f.member}: {f.text}" for f in lint(read, NOW) if f.level == level)


def test_lint_explains_every_member_in_the_files_order() -> None:
    """Each member of the file has a line that says what it means."""
    members = [f.member for f in lint(parse_policy(PRODUCTION), NOW) if f.level == INFO]
    assert members[:3] == ["kind", "expires", "max_verdict_age_s"]
    assert "sgx[0]" in members
    assert [m for m in members if m.startswith("security.")] == [
        f"security.{name}" for name in type(policy().security).__dataclass_fields__
    ]


def test_a_good_production_policy_has_nothing_to_complain_about() -> None:
    """No warning and no danger."""
    read = parse_policy(PRODUCTION)
    assert told(read, WARNING) == told(read, DANGER) == ""
    assert "named build(s) of the code" in told(read, INFO)


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        (SIMULATION, DANGER, "SIMULATED evidence is accepted"),
        (SIMULATION, DANGER, "the host may read the server's memory"),
        (SIMULATION, DANGER, "operator holds the root key"),
        (SIMULATION.replace("300", "7200"), WARNING, "7200 s old"),
        (DEVELOPMENT, WARNING, "development accepts"),
        (DEVELOPMENT, DANGER, "debug mode are accepted"),
        (PRODUCTION.replace("min_svn = 1", "min_svn = 0"), WARNING, "every old release"),
        (PRODUCTION.replace('"UpToDate"', '"UpToDate", "OutOfDate"'), WARNING, "published vulnerabilities"),
        (
            PRODUCTION.replace("advisories = []", 'advisories = ["INTEL-SA-00615"]'),
            WARNING,
            "INTEL-SA-00615 may apply",
        ),
        (
            PRODUCTION.replace("upload = [false]", "upload = [false, true]"),
            WARNING,
            "anybody can place models",
        ),
        (PRODUCTION.replace('["measurement"]', '["signer"]'), WARNING, "same signer"),
        (PRODUCTION.replace('["measurement"]', '["operator"]'), DANGER, "operator holds the key"),
        (
            PRODUCTION.replace('["no_content"]', f'["no_content"]\nhandover = ["none", "{"ab" * 32}"]'),
            WARNING,
            f"{'ab' * 32} is accepted: whatever code the policy file",
        ),
        (
            PRODUCTION.replace('["no_content"]', f'["no_content"]\nrecovery = ["age1{"q" * 58}"]'),
            WARNING,
            "whoever holds this key and a copy of the disk",
        ),
        (PRODUCTION.replace("2027-01-01", "2026-01-01"), DANGER, "has expired"),
        (PRODUCTION.replace("2027-01-01", "2099-01-01"), WARNING, "400 days"),
        ("max_verdict_age_s = 86400\n" + PRODUCTION, WARNING, "stolen key"),
        (
            PRODUCTION.replace("signers = []", f'signers = ["{ROOT}"]').replace(
                "products = []", "products = [1]"
            ),
            WARNING,
            "No measurement is needed",
        ),
    ],
    ids=range(18),
)
def test_lint_finds_what_accepts_too_much(text: str, level: str, words: str) -> None:
    """One finding per hole, in plain words."""
    assert words in told(parse_policy(text), level)


def test_every_status_but_the_best_is_explained() -> None:
    """A TCB status that stands for known holes never passes lint silently."""
    for status in TCB_STATUSES:
        complaints = told(parse_policy(PRODUCTION.replace("UpToDate", status)), WARNING)
        assert (status in complaints) == (status not in {"UpToDate", "SWHardeningNeeded"}), status


def test_findings_are_json() -> None:
    """For `--json`."""
    assert lint(policy(), NOW)[0].to_json() == {
        "level": "info",
        "member": "kind",
        "text": lint(policy(), NOW)[0].text,
    }


# The documents


def test_every_member_is_documented_and_every_example_is_read() -> None:
    """docs/policy.md and docs/policy-entries.md name every member that a file can have, and the TOML parses."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "policy.md").read_text(encoding="utf-8")
    reference = text + (docs / "policy-entries.md").read_text(encoding="utf-8")
    for name in ("kind", "expires", "max_verdict_age_s", *MEMBER_MEANS, *TCB_STATUSES):
        assert f"`{name}`" in reference, name
    for name in HARDWARE_FORMATS:
        assert f"[[{name}]]" in text
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert [parse_policy(example).kind for example in examples] == [
        "UNSAFE_SIMULATION",
        "production",
        "UNSAFE_SIMULATION",
    ]


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_dates_at_the_ends_of_the_calendar_are_compared_without_fault(when: str) -> None:
    """Offsets beyond the calendar's ends are no fault of ours."""
    read = parse_policy(PRODUCTION.replace("2027-01-01T00:00:00Z", when))
    assert lint(read, NOW)
    assert parse_policy(render_policy(read, heading="x")) == read
    assert any(
        c.id == "policy.expires"
        for c in read.appraise(
            Absent("sgx", "x"), security=Absent("sgx", "x"), given=Given(now=NOW, manifests=())
        )
    )


def test_nobody_else_is_accepted_who_is_not_named() -> None:
    """A file without a word on hand-over and recovery accepts servers that have neither."""
    read = parse_policy(PRODUCTION).security
    assert (read.handover, read.recovery) == (("none",), ("none",))
    for name in NAMED_POLICIES:
        assert named_policy(name).security.handover == named_policy(name).security.recovery == ("none",)


# Precisions of models


def with_precision(value: str) -> str:
    """A policy that says something about precisions."""
    return PRODUCTION.replace("kind =", f"precision = {value}\nkind =", 1)


def test_a_policy_need_not_say_anything_about_precisions() -> None:
    """Then it takes all, says nothing about them, and is written again without the member."""
    policy = parse_policy(PRODUCTION)
    assert policy.precision == WORDS
    assert "precision" not in render_policy(policy, heading="x")
    assert not [found for found in lint(policy, NOW) if found.member == "precision"]


def test_accepted_precisions_are_read_explained_and_written() -> None:
    """In the file's order; what nobody vouches for is a warning."""
    policy = parse_policy(with_precision('["fp32", "as-uploaded"]'))
    assert policy.precision == ("fp32", "as-uploaded")
    assert parse_policy(render_policy(policy, heading="x")) == policy
    said = [found for found in lint(policy, NOW) if found.member == "precision"]
    assert [found.level for found in said] == ["info", "warning"]
    assert "fp32 or as-uploaded" in said[0].text and "as-uploaded is accepted" in said[1].text


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("[]", "policy_accepts_nothing"),
        ('["bf16"]', "policy_invalid"),
        ('["FP32"]', "policy_invalid"),
        ('["fp32", "fp32"]', "policy_invalid"),
        ('"fp32"', "policy_invalid"),
        ("[1]", "policy_invalid"),
    ],
)
def test_precisions_that_no_model_has(value: str, code: str) -> None:
    """An empty list takes nothing; an unknown word is a mistake."""
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(with_precision(value))
    assert caught.value.code == code
