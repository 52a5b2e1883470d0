"""`attest.facts`, `attest.entries`: each member of each format's entry, met and not met, by claims that differ in that
one fact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from policies import AZURE_TDX, ENTRIES, MEASUREMENT_48, development, entry, production
from worlds import NOW

from strongroom.attest.appraisal import Policy
from strongroom.attest.entries import ENTRIES as GROUPS
from strongroom.attest.entries import MEMBER_MEANS
from strongroom.attest.evidence import Absent, Claims
from strongroom.attest.lint import DANGER, WARNING, lint
from strongroom.attest.policy import parse_policy, policy_for, render_policy
from strongroom.attest.requirements import Given, Requirement
from strongroom.errors import CODES, InvalidPolicy

GIVEN = Given(now=NOW, manifests=())
_PCRS = {f"pcr{i}": f"{i:02x}{'0' * 62}" for i in (0, 4, 7, 11)}
_INTEL = {
    "eval_data_number": "17",
    "tcb_date": "2025-03-12",
    "pck_components": "0c0c0303ffff010000000000000000ff",
    "pce_svn": "13",
    "qe_svn": "8",
    "ppid": "a1" * 16,
    "fmspc": "00906ea10000",
    "dynamic_platform": "true",
    "cached_keys": "false",
}
_AMD = {
    "product": "Milan",
    "vmpl": "0",
    "signing_key": "VCEK",
    "csp_id": "",
    **{
        f"{prefix}.{part}": value
        for prefix in ("tcb", "tcb.committed", "tcb.launch")
        for part, value in (("bl", "4"), ("tee", "0"), ("snp", "24"), ("ucode", "219"))
    },
    "firmware.committed": "1.55.22",
    "chip_id": "c1" * 64,
    "revocation": "checked",
    "policy.abi": "1.51",
    "policy.smt": "1",
    "policy.single_socket": "0",
    "policy.migrate_ma": "0",
    "platform.alias_check_complete": "1",
    "host_data": "dd" * 32,
    "family_id": "fa" * 16,
    "image_id": "1a" * 16,
    "id_key_digest": "1d" * 48,
    "author_key_digest": "ac" * 48,
}
_FACTS: dict[str, dict[str, str]] = {
    "sgx": _INTEL
    | {
        "attributes": "0500000000000000",
        "xfrm": "e700000000000000",
        "misc_select": "00000000",
        "config_id": "c0" * 64,
        "config_svn": "3",
        "isv_family_id": "fa" * 16,
        "isv_ext_prod_id": "e1" * 16,
    },
    "tdx": _INTEL
    | {f"rtmr{i}": f"{i + 1}{i + 1}{'0' * 94}" for i in range(4)}
    | {
        "tee_tcb_svn": "04010200000000000000000000000000",
        "mr_seam": "5e" * 48,
        "td_attributes": "0000001000000000",
        "xfam": "e718060000000000",
        "mr_config_id": "c1" * 48,
        "mr_owner": "01" * 48,
        "mr_owner_config": "02" * 48,
    },
    "snp": _AMD,
    "tpm": _PCRS,
    "nitro": {f"pcr{i}": f"{i:02x}" * 48 for i in (0, 1, 2, 3, 4, 8)},
    "azure": _AMD
    | _PCRS
    | {"azure.tee": "snp", "azure.launch_measurement": MEASUREMENT_48, "azure.vm_id": "0a-1b"}
    | {"azure.secure_boot": "true", "azure.user_data": "00" * 64},
}


def claims(name: str, **facts: str | None) -> Claims:
    """Claims of the format that meet its entry; facts of another value, or None for one that is not there."""
    details = _FACTS[name] | {k.replace("__", "."): v for k, v in facts.items()}
    return Claims(
        format=name,
        simulated=False,
        host_excluded=name != "tpm",
        measurement="5a" * (32 if name in ("sgx", "tpm", "azure") else 48),
        signer="",
        product=0,
        svn=1,
        debug=False,
        tcb_status="UpToDate" if name in ("sgx", "tdx") else "NotReported",
        advisories=(),
        report_data=bytes(64),
        root="ab" * 32,
        issued_at=NOW if name == "nitro" else None,
        details=tuple((k, v) for k, v in details.items() if v is not None),
    )


def codes(shown: Claims | Absent, by: Policy) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in by.appraise_claims(shown, given=GIVEN) if not c.passed]


def with_line(name: str, line: str) -> Policy:
    """The policy of the format with one member more, or in the place of what it says of it."""
    member = line.partition(" ")[0].partition(".")[0]
    kept = [old for old in ENTRIES[name].splitlines() if old.partition(" ")[0].partition(".")[0] != member]
    return parse_policy(production(entry(name, "\n".join([*kept, line]) + "\n")))


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_accepts_what_meets_it_and_nothing_that_says_nothing(name: str) -> None:
    """The claims pass; absent ones fail every check; and so do claims without one fact."""
    by = parse_policy(production(entry(name)))
    assert codes(claims(name), by) == []
    absent = by.appraise_claims(Absent(name, "nothing verified"), given=GIVEN)
    ids = by.requirements[0].ids()
    assert {c.id for c in absent if not c.passed} >= set(ids)
    assert codes(replace(claims(name), details=()), by) != [] or name in ("nitro",)


# Format, line of the entry that is met, the fact that then is another, and the code of the refusal.
OTHERS: list[tuple[str, str, dict[str, str | None], str]] = [
    ("sgx", "min_evaluation = 17", {"eval_data_number": "16"}, "evaluation_too_old"),
    ("sgx", "min_evaluation = 17", {"eval_data_number": None}, "evaluation_too_old"),
    ("sgx", "min_evaluation = 17", {"eval_data_number": "-18"}, "evaluation_too_old"),
    ("sgx", 'min_tcb_date = "2025-03-12"', {"tcb_date": "2025-03-11"}, "platform_tcb_too_low"),
    ("sgx", 'min_tcb_date = "2025-03-12"', {"tcb_date": "x"}, "platform_tcb_too_low"),
    (
        "sgx",
        'min_components = "0c0c0303ffff010000000000000000ff"',
        {"pck_components": "ff0b0303ffff010000000000000000ff"},
        "platform_tcb_too_low",
    ),
    (
        "sgx",
        'min_components = "00000000000000000000000000000000"',
        {"pck_components": "00"},
        "platform_tcb_too_low",
    ),
    ("sgx", "min_pce_svn = 13", {"pce_svn": "12"}, "platform_tcb_too_low"),
    ("sgx", "min_qe_svn = 8", {"qe_svn": "7"}, "platform_tcb_too_low"),
    ("sgx", f'chips = ["{"a1" * 16}"]', {"ppid": "a2" * 16}, "chip_not_accepted"),
    ("sgx", 'fmspcs = ["00906ea10000"]', {"fmspc": "00906ea10001"}, "chip_not_accepted"),
    ("sgx", 'attributes = ["0500000000000000"]', {"attributes": "0700000000000000"}, "attributes_not_accepted"),
    (
        "sgx",
        'attributes = ["0400000000000000/fe00000000000000"]',
        {"attributes": "1500000000000000"},
        "attributes_not_accepted",
    ),
    ("sgx", 'xfrm = ["0700000000000000/0700000000000000"]', {"xfrm": "0300000000000000"}, "attributes_not_accepted"),
    ("sgx", 'misc_select = ["00000000"]', {"misc_select": "01000000"}, "attributes_not_accepted"),
    ("sgx", f'config_ids = ["{"c0" * 64}"]', {"config_id": "00" * 64}, "identity_not_accepted"),
    ("sgx", "min_config_svn = 3", {"config_svn": "2"}, "svn_too_low"),
    ("sgx", f'family_ids = ["{"fa" * 16}"]', {"isv_family_id": "00" * 16}, "identity_not_accepted"),
    ("sgx", f'ext_product_ids = ["{"e1" * 16}"]', {"isv_ext_prod_id": "00" * 16}, "identity_not_accepted"),
    (
        "sgx",
        'require_settings = ["dynamic_platform"]\nrefuse_settings = ["cached_keys"]',
        {"cached_keys": "true"},
        "setting_not_accepted",
    ),
    (
        "sgx",
        'require_settings = []\nrefuse_settings = ["cached_keys"]',
        {"cached_keys": None},
        "setting_not_accepted",
    ),
    ("tdx", f'registers.rtmr3 = ["44{"0" * 94}"]', {"rtmr3": "00" * 48}, "register_not_accepted"),
    ("tdx", f'registers.rtmr3 = ["44{"0" * 94}"]', {"rtmr3": None}, "register_not_accepted"),
    (
        "tdx",
        'min_tee_tcb_svn = "04010200000000000000000000000000"',
        {"tee_tcb_svn": "ff010100000000000000000000000000"},
        "platform_tcb_too_low",
    ),
    ("tdx", f'mr_seams = ["{"5e" * 48}"]', {"mr_seam": "5f" * 48}, "identity_not_accepted"),
    ("tdx", 'td_attributes = ["0000001000000000"]', {"td_attributes": "0000000000000000"}, "attributes_not_accepted"),
    ("tdx", 'xfam = ["e718060000000000"]', {"xfam": "e71a060000000000"}, "attributes_not_accepted"),
    ("tdx", f'mr_config_ids = ["{"c1" * 48}"]', {"mr_config_id": "00" * 48}, "identity_not_accepted"),
    ("tdx", f'mr_owners = ["{"01" * 48}"]', {"mr_owner": "00" * 48}, "identity_not_accepted"),
    ("tdx", f'mr_owner_configs = ["{"02" * 48}"]', {"mr_owner_config": "00" * 48}, "identity_not_accepted"),
    ("snp", "vmpls = [0]", {"vmpl": "1"}, "vmpl_not_accepted"),
    ("snp", "vmpls = [0, 1]", {"vmpl": "2"}, "vmpl_not_accepted"),
    (
        "snp",
        'signing_keys = ["VCEK"]',
        {"signing_key": "VLEK", "csp_id": "CN=cc-us-east-2.amazonaws.com"},
        "signing_key_not_accepted",
    ),
    ("snp", 'signing_keys = ["VCEK"]', {"signing_key": None}, "signing_key_not_accepted"),
    ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 219 }", {"tcb__ucode": "0"}, "platform_tcb_too_low"),
    ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 219 }", {"tcb__bl": "3"}, "platform_tcb_too_low"),
    ("snp", "min_tcb.Milan = { bl = 0, tee = 0, snp = 0, ucode = 0 }", {"tcb__snp": None}, "platform_tcb_too_low"),
    ("snp", "min_tcb.Milan = { bl = 0, tee = 0, snp = 0, ucode = 0 }", {"product": "Genoa"}, "platform_tcb_too_low"),
    (
        "snp",
        "min_committed_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 219 }",
        {"tcb__committed__snp": "23"},
        "platform_tcb_too_low",
    ),
    (
        "snp",
        "min_launch_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 219 }",
        {"tcb__launch__ucode": "0"},
        "platform_tcb_too_low",
    ),
    ("snp", 'min_firmware = "1.55.22"', {"firmware__committed": "1.55.21"}, "firmware_too_old"),
    ("snp", 'min_firmware = "1.55"', {"firmware__committed": "1.54.99"}, "firmware_too_old"),
    ("snp", 'min_abi = "1.51"', {"policy__abi": "1.49"}, "firmware_too_old"),
    ("snp", f'chips = ["{"c1" * 64}"]', {"chip_id": "00" * 64}, "chip_not_accepted"),
    (
        "snp",
        'require_settings = ["platform.alias_check_complete"]\nrefuse_settings = []',
        {"platform__alias_check_complete": "0"},
        "setting_not_accepted",
    ),
    (
        "snp",
        'require_settings = ["policy.smt"]\nrefuse_settings = ["policy.single_socket"]',
        {"policy__single_socket": "1"},
        "setting_not_accepted",
    ),
    ("snp", f'host_data = ["{"dd" * 32}"]', {"host_data": "00" * 32}, "host_data_not_accepted"),
    ("snp", f'family_ids = ["{"fa" * 16}"]', {"family_id": "00" * 16}, "identity_not_accepted"),
    ("snp", f'image_ids = ["{"1a" * 16}"]', {"image_id": "00" * 16}, "identity_not_accepted"),
    ("snp", f'id_keys = ["{"1d" * 48}"]', {"id_key_digest": "00" * 48}, "identity_not_accepted"),
    ("snp", f'author_keys = ["{"ac" * 48}"]', {"author_key_digest": "00" * 48}, "identity_not_accepted"),
    ("snp", 'revocation = ["checked"]', {"revocation": "not checked"}, "revocation_not_checked"),
    ("snp", "min_svn = 1", {"policy__migrate_ma": "1"}, "migration_refused"),
    ("snp", "min_svn = 1", {"policy__migrate_ma": None}, "migration_refused"),
    ("tpm", f'registers.pcr11 = ["0b{"0" * 62}"]', {"pcr11": "00" * 32}, "register_not_accepted"),
    ("nitro", f'registers.pcr3 = ["{"03" * 48}"]', {"pcr3": "00" * 48}, "register_not_accepted"),
    (
        "azure",
        f'launch_measurements = ["{MEASUREMENT_48}"]',
        {"azure__launch_measurement": "00" * 48},
        "measurement_not_accepted",
    ),
    (
        "azure",
        'require_settings = ["azure.secure_boot", "policy.smt"]\nrefuse_settings = []',
        {"azure__secure_boot": "false"},
        "setting_not_accepted",
    ),
    ("azure", 'tee = "snp"', {"azure__tee": "tdx"}, "tee_not_accepted"),
    ("azure", 'vm_ids = ["0a-1b"]', {"azure__vm_id": "0a-1c"}, "identity_not_accepted"),
    ("azure", f'user_data = ["{"00" * 64}"]', {"azure__user_data": "01" * 64}, "host_data_not_accepted"),
    ("azure", "vmpls = [0]", {"vmpl": "1"}, "vmpl_not_accepted"),
    ("azure", "vmpls = [0]", {"policy__migrate_ma": "1"}, "migration_refused"),
    ("azure", "vmpls = [0]", {"pcr7": "ff" * 32}, "register_not_accepted"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "facts", "code"), OTHERS, ids=range(len(OTHERS)))
def test_a_fact_that_the_entry_does_not_name_is_refused(
    name: str, line: str, facts: dict[str, Any], code: str
) -> None:
    """With the fact as named the claims pass; with the other, that one check fails, and says why."""
    if line.startswith("registers.") and name in ("tdx", "tpm"):
        line = "\n".join([old for old in ENTRIES[name].splitlines() if old.startswith("registers")])
    by = with_line(name, line)
    assert codes(claims(name), by) == []
    assert codes(claims(name, **facts), by) == [code]
    assert code in CODES
    assert parse_policy(render_policy(by, heading="x")) == by
    for rule in by.requirements[0].rules:
        assert rule.explain().endswith(".")
        assert rule.expected()


def test_every_member_of_every_format_is_tried_here() -> None:
    """A member without a line above, or in an entry of `policies`, has no test."""
    lines = [(name, line) for name, text in ENTRIES.items() for line in text.splitlines()]
    lines += [(name, part) for name, line, _, _ in OTHERS for part in line.splitlines()]
    tried = {(name, line.partition(" ")[0].partition(".")[0]) for name, line in lines}
    elsewhere = {"release_keys", "release_product", "min_release_svn", "expires", "events", "measurements"}
    for names in (("sgx", "tdx"), ("snp", "azure", "azure-snp"), ("tpm",), ("nitro",)):
        members = {m.name for name in names for group in GROUPS.get(name, ()) for m in group.members}
        assert members - elsewhere <= {m for name, m in tried if name in names}


def test_versions_are_compared_as_numbers_and_may_be_higher() -> None:
    """1.100 is more than 1.55; more parts than asked for are no fault."""
    by = with_line("snp", 'min_firmware = "1.55"')
    for higher in ("1.55.0", "1.55.22", "1.100", "2.0"):
        assert codes(claims("snp", firmware__committed=higher), by) == []
    by = with_line("snp", 'min_firmware = "1.55.1"')
    assert codes(claims("snp", firmware__committed="1.55"), by) == ["firmware_too_old"]


def test_a_lent_key_counts_only_of_a_named_cloud() -> None:
    """VLEK with the cloud's name, as its certificate has it."""
    line = 'signing_keys = ["VLEK"]\ncsp_ids = ["CN=cc-us-east-2.amazonaws.com"]'
    kept = [x for x in ENTRIES["snp"].splitlines() if not x.startswith(("signing_keys", "csp_ids"))]
    by = parse_policy(production(entry("snp", "\n".join([*kept, line]) + "\n")))
    lent = {"signing_key": "VLEK", "csp_id": "CN=cc-us-east-2.amazonaws.com"}
    assert codes(claims("snp", **lent), by) == []
    assert codes(claims("snp", **(lent | {"csp_id": "CN=evil"})), by) == ["signing_key_not_accepted"]
    assert codes(claims("snp", **(lent | {"csp_id": ""})), by) == ["signing_key_not_accepted"]
    assert codes(claims("snp"), by) == ["signing_key_not_accepted"]
    assert "name no chip" in " ".join(f.text for f in lint(by, NOW) if f.level == WARNING)


# Events

LOG = (
    ("rtmr2", "aa" * 48, "EV_IPL"),
    ("rtmr2", "bb" * 48, "EV_EVENT_TAG"),
    ("rtmr1", "cc" * 48, "EV_SEPARATOR"),
)


def events(*, require: str = f'["{"aa" * 48}"]', allow: str = f'["{"bb" * 48}"]') -> Policy:
    """A TDX policy that takes RTMR2 by its events."""
    kept = [x for x in ENTRIES["tdx"].splitlines() if not x.startswith("registers.rtmr2")]
    line = f"events.rtmr2 = {{ require = {require}, allow = {allow} }}"
    return parse_policy(production(entry("tdx", "\n".join([*kept, line]) + "\n")))


def test_a_register_is_taken_by_its_events() -> None:
    """All required ones are there, and none that is unknown; the register's value then is no matter."""
    by = events()
    shown = replace(claims("tdx", rtmr2="99" * 48), events=LOG)
    assert codes(shown, by) == []
    assert parse_policy(render_policy(by, heading="x")) == by
    assert codes(replace(shown, events=()), by) == ["event_not_accepted"]
    assert codes(replace(shown, events=LOG[1:]), by) == ["event_not_accepted"]
    assert codes(replace(shown, events=LOG[2:]), by) == ["event_not_accepted"]
    assert codes(replace(shown, events=(*LOG, ("rtmr2", "dd" * 48, "EV_IPL"))), by) == ["event_not_accepted"]
    assert codes(replace(shown, events=(*LOG, ("rtmr1", "dd" * 48, "EV_IPL"))), by) == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('events.rtmr2 = { require = [], allow = ["{d}"] }', "policy_accepts_nothing"),
        ('events.rtmr2 = { require = ["{d}"] }', "policy_missing_member"),
        ('events.rtmr2 = { require = ["{d}"], allow = [], skip = [] }', "policy_missing_member"),
        ('events.rtmr2 = { require = ["{d}", "{d}"], allow = [] }', "policy_invalid"),
        ('events.rtmr2 = { require = ["{d}"], allow = ["{d}"] }', "policy_invalid"),
        ('events.rtmr2 = { require = ["zz"], allow = [] }', "policy_invalid"),
        ('events.rtmr2 = { require = "{d}", allow = [] }', "policy_invalid"),
        ('events.rtmr4 = { require = ["{d}"], allow = [] }', "policy_invalid"),
        ('registers.rtmr2 = ["{d}"]\nevents.rtmr2 = { require = ["{d}"], allow = [] }', "policy_invalid"),
        ("registers.rtmr2 = []", "policy_accepts_nothing"),
        ('registers.rtmr2 = ["{d}", "{d}"]', "policy_invalid"),
        ('registers.rtmr2 = "{d}"', "policy_invalid"),
        ("registers.rtmr2 = [1]", "policy_invalid"),
        ('registers.rtmr2 = ["{d}"]\nregisters.pcr4 = ["{d}"]', "policy_invalid"),
        ('registers.rtmr2 = ["{d}00"]', "policy_invalid"),
    ],
    ids=range(15),
)  # fmt: skip
def test_registers_and_events_out_of_form_are_refused(line: str, code: str) -> None:
    """One fault each."""
    kept = [x for x in ENTRIES["tdx"].splitlines() if not x.startswith("registers.rtmr2")]
    text = production(entry("tdx", "\n".join([*kept, line.replace("{d}", "ab" * 48)]) + "\n"))
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(text)
    assert caught.value.code == code


# Files out of form


@pytest.mark.parametrize(
    ("name", "line", "code"),
    [
        ("sgx", "chips = []", "policy_accepts_nothing"),
        ("sgx", 'chips = ["A1A1A1A1A1A1A1A1A1A1A1A1A1A1A1A1"]', "policy_invalid"),
        ("sgx", 'chips = ["a1"]', "policy_invalid"),
        ("sgx", "chips = [1]", "policy_invalid"),
        ("sgx", f'chips = ["{"a1" * 16}", "{"a1" * 16}"]', "policy_invalid"),
        ("sgx", 'attributes = ["0500000000000000/0000000000000000"]', "policy_too_weak"),
        ("sgx", 'attributes = ["05/ff"]', "policy_invalid"),
        ("sgx", 'min_tcb_date = "yesterday"', "policy_invalid"),
        ("sgx", "min_tcb_date = 2025-01-01", "policy_invalid"),
        ("sgx", 'min_components = "00"', "policy_invalid"),
        ("sgx", "min_pce_svn = -1", "policy_invalid"),
        ("sgx", "min_pce_svn = true", "policy_invalid"),
        ("sgx", "require_settings = []\nrefuse_settings = []", "policy_accepts_nothing"),
        ("sgx", 'require_settings = ["smt"]\nrefuse_settings = []', "policy_invalid"),
        ("sgx", 'require_settings = ["cached_keys"]\nrefuse_settings = ["cached_keys"]', "policy_invalid"),
        ("sgx", 'require_settings = ["cached_keys"]', "policy_missing_member"),
        ("sgx", "vmpls = [0]", "policy_unknown_member"),
        ("sgx", f'registers.rtmr0 = ["{"00" * 48}"]', "policy_unknown_member"),
        ("sgx", "unsafe_accept_migration = true", "policy_unknown_member"),
        ("snp", "vmpls = []", "policy_accepts_nothing"),
        ("snp", "vmpls = [0, 0]", "policy_invalid"),
        ("snp", "vmpls = [true]", "policy_invalid"),
        ("snp", 'vmpls = ["0"]', "policy_invalid"),
        ("snp", 'signing_keys = ["ASK"]', "policy_invalid"),
        ("snp", "signing_keys = []", "policy_accepts_nothing"),
        ("snp", 'signing_keys = ["VLEK"]', "policy_invalid"),
        ("snp", 'csp_ids = ["CN=x"]', "policy_invalid"),
        ("snp", "min_tcb = {}", "policy_accepts_nothing"),
        ("snp", "min_tcb.Rome = { bl = 4, tee = 0, snp = 24, ucode = 219 }", "policy_invalid"),
        ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24 }", "policy_missing_member"),
        ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 219, fmc = 0 }", "policy_missing_member"),
        ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = 256 }", "policy_invalid"),
        ("snp", "min_tcb.Milan = { bl = 4, tee = 0, snp = 24, ucode = true }", "policy_invalid"),
        ("snp", "min_tcb.Milan = 3", "policy_missing_member"),
        ("snp", "min_tcb = 3", "policy_invalid"),
        ("snp", 'min_firmware = "new"', "policy_invalid"),
        ("snp", "tcb_statuses = []", "policy_unknown_member"),
        ("azure", 'tee = "sgx"', "policy_invalid"),
        ("azure", 'tee = "tdx"', "policy_unknown_member"),
        ("azure", "tee = 1", "policy_invalid"),
        ("tpm", "roots = []", "policy_accepts_nothing"),
        ("tpm", f'registers.pcr16 = ["{"00" * 32}"]', "policy_invalid"),
        ("nitro", "tcb_statuses = []", "policy_unknown_member"),
    ],
    ids=range(43),
)  # fmt: skip
def test_members_out_of_form_are_refused(name: str, line: str, code: str) -> None:
    """One fault each: another type, an unknown name, an empty list, a table with a part too few or too many."""
    with pytest.raises(InvalidPolicy) as caught:
        with_line(name, line)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_without_a_member_that_it_needs_is_refused(name: str) -> None:
    """Every line of the entries here is needed, but for tables of which one line is enough."""
    for line in ENTRIES[name].splitlines():
        rest = "\n".join(x for x in ENTRIES[name].splitlines() if x != line) + "\n"
        text = production(entry(name, rest))
        if "min_tcb" in line or (name in ("tpm", "azure") and "registers" in line):
            parse_policy(text)
            continue
        with pytest.raises(InvalidPolicy) as caught:
            parse_policy(text)
        assert caught.value.code == ("policy_invalid" if line.startswith("tee") else "policy_missing_member")


def test_an_entry_of_a_tpm_without_any_code_is_refused() -> None:
    """Roots alone say which TPMs, and nothing of what started."""
    with pytest.raises(InvalidPolicy, match="measurements or registers"):
        parse_policy(production(entry("tpm", f'roots = ["{"ab" * 32}"]\n')))


def test_azure_on_tdx_has_its_own_members() -> None:
    """TCB statuses and evaluation as TDX, PCRs as a TPM."""
    by = parse_policy(production(entry("azure", AZURE_TDX)))
    shown = replace(
        claims("azure"),
        tcb_status="UpToDate",
        details=tuple(
            (_FACTS["azure"] | _INTEL | {"azure.tee": "tdx", "azure.launch_measurement": "5a" * 240}).items()
        ),
    )
    assert codes(shown, by) == []
    assert codes(replace(shown, tcb_status="OutOfDate"), by) == ["tcb_status_not_accepted"]
    assert parse_policy(render_policy(by, heading="x")) == by


# Development, expiry, drafts


def test_migration_and_debug_are_left_open_in_development_alone() -> None:
    """The permission must be stated; without it the checks are made; lint shouts."""
    by = parse_policy(development("snp", migration=True))
    assert codes(claims("snp", policy__migrate_ma="1"), by) == []
    assert "migration agent can take" in " ".join(f.text for f in lint(by, NOW) if f.level == DANGER)
    by = parse_policy(development("snp"))
    assert codes(claims("snp", policy__migrate_ma="1"), by) == ["migration_refused"]
    strict = parse_policy(production(entry("snp")))
    with pytest.raises(InvalidPolicy, match="migration"):
        replace(strict, requirements=parse_policy(development("snp", migration=True)).requirements)
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(development("snp").replace("unsafe_accept_migration = false\n", ""))
    assert caught.value.code == "policy_missing_member"


def test_an_entry_ends_at_its_own_time() -> None:
    """The old release of a roll-out goes, the new stays."""
    old = entry("nitro", ENTRIES["nitro"] + "expires = 2026-11-23T12:00:00Z\n")  # the fake clock's now
    new = entry("nitro", ENTRIES["nitro"].replace("5a" * 48, "6b" * 48))
    by = parse_policy(production(old, new))
    assert parse_policy(render_policy(by, heading="x")) == by
    assert codes(claims("nitro"), by) == ["reference_values_expired"]
    later = parse_policy(production(old.replace("T12:00:00Z", "T12:00:01Z"), new))
    assert codes(claims("nitro"), later) == []
    assert codes(replace(claims("nitro"), measurement="6b" * 48), by) == []
    with pytest.raises(InvalidPolicy, match="offset"):
        parse_policy(production(old.replace("00Z", "00")))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_policy_drafted_from_claims_accepts_them_and_not_others(name: str) -> None:
    """`policy init`: exactly what was shown."""
    from worlds import SECURITY

    shown = claims(name)
    security = replace(SECURITY, sealing="measurement", host_excluded=shown.host_excluded)
    by = parse_policy(policy_for(shown, security=security, now=NOW))
    assert by.kind == ("development" if name == "tpm" else "production")
    assert codes(shown, by) == []
    other = {"measurement": "00" * 32, "details": tuple((k, "00" * (len(v) // 2)) for k, v in shown.details)}
    assert codes(replace(shown, **other), by) != []


def test_what_the_entry_leaves_open_is_said() -> None:
    """PCRs that decide what started, without a value."""
    text = production(entry("tpm", f'roots = ["{"ab" * 32}"]\nregisters.pcr11 = ["{"00" * 32}"]\n'))
    warned = " ".join(f.text for f in lint(parse_policy(text), NOW) if f.level == WARNING)
    assert "pcr0 (the firmware), pcr4" in warned
    assert "pcr11 may be all zero" in warned
    firmware = production(entry("tpm", f'roots = ["{"ab" * 32}"]\nregisters.pcr0 = ["{"cd" * 32}"]\n'))
    for policy, found in ((text, False), (firmware, True)):  # nothing that was started after the firmware
        dangers = " ".join(f.text for f in lint(parse_policy(policy), NOW) if f.level == DANGER)
        assert ("any code counts that this firmware started" in dangers) == found
    weak = with_line("snp", "min_tcb.Milan = { bl = 0, tee = 0, snp = 0, ucode = 0 }")
    assert "every firmware" in " ".join(f.text for f in lint(weak, NOW) if f.level == WARNING)
    masked = with_line("sgx", 'attributes = ["0400000000000000/fe00000000000000"]')
    assert "leaves bits open" in " ".join(f.text for f in lint(masked, NOW) if f.level == WARNING)


def test_every_member_has_words() -> None:
    """For comments, lint and the reference."""
    assert all(MEMBER_MEANS.values())
    assert isinstance(parse_policy(production(entry("sgx"))).requirements[0], Requirement)
