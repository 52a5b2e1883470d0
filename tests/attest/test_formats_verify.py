"""`attest.verify` from end to end with genuine evidence of every hardware format, by fake vendors: one thing wrong at a
time, and which check of it all refuses that.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import fake_aws
import fake_azure
import fake_tpm
import pytest
from fake_amd import Machine
from fake_intel import enclave_levels, statuses
from platforms import (
    AZURE_SNP,
    AZURE_TDX,
    CERTIFIED,
    NAMED,
    NITRO,
    PLATFORMS,
    SGX,
    SNP,
    SNP_LENT,
    TDX4,
    TDX5,
    TPM_CERTIFIED,
    TPM_NAMED,
    Platform,
    claims,
    codes,
    digest,
    policy,
    refusal,
    verify,
)
from worlds import NONCE, NOW, Server, leaf, p256
from worlds import policy as simulation_policy

from strongroom import attest
from strongroom.attest import verifiers
from strongroom.attest.evidence import (
    NOT_MADE,
    Appraised,
    Attested,
    Evidence,
    NoChannel,
    boot_report_data,
    report_data,
)
from strongroom.attest.keyset import encode_keyset
from strongroom.attest.policy import parse_policy, render_policy
from strongroom.attest.requirements import HARDWARE_FORMATS
from strongroom.errors import AttestationRefused

REGISTER, MEASUREMENT = "register_not_accepted", "measurement_not_accepted"
every = pytest.mark.parametrize("platform", PLATFORMS, ids=repr)
LONG = 40 * 366 * 24 * 3600
"""Seconds: longer than any certificate of this world."""


def test_every_format_that_a_policy_can_name_is_exercised_here() -> None:
    """Each has a machine in this world."""
    assert {platform.format for platform in PLATFORMS} == set(HARDWARE_FORMATS)


# What passes


@every
def test_a_genuine_answer_is_attested(platform: Platform) -> None:
    """It answers our nonce for this keyset, on this connection, and the policy names its code."""
    assert codes(platform, platform.answer()) == []
    attested = verify(platform, platform.answer())
    assert type(attested) is Attested
    assert attested.claims.format == attested.verdict.format == platform.format
    assert attested.verdict.label == ""
    assert not attested.simulated
    assert attested.claims.report_data == platform.answered()
    assert attested.spki_sha256 == hashlib.sha256(platform.server.leaf.spki()).hexdigest()
    ids = [c.id for c in attested.verdict.checks]
    assert len(ids) == len(set(ids)), "one line for one check"


@every
def test_without_a_channel_there_is_an_appraisal(platform: Platform) -> None:
    """The type that no client takes."""
    channel = NoChannel("a receipt")
    assert type(verify(platform, platform.answer(), channel=channel)) is Appraised


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.pinned], ids=repr)
def test_a_policy_drafted_from_the_answer_accepts_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`draft_policy` of hardware evidence, and what it writes is read back and met by this machine."""
    monkeypatch.setitem(verifiers.PINS, platform.format, platform.roots)
    drafted = attest.draft_policy(platform.answer(), keyset_bytes=platform.server.keyset_bytes, now=NOW)
    assert codes(platform, platform.answer(), by=parse_policy(drafted)) == []


@pytest.mark.parametrize("platform", [TPM_NAMED, TPM_CERTIFIED], ids=repr)
def test_no_policy_is_drafted_from_a_tpm_that_nothing_ties(platform: Platform) -> None:
    """There is no pinned root for TPMs, so nothing vouches for what was shown: enrol it first."""
    with pytest.raises(AttestationRefused) as caught:
        attest.draft_policy(platform.answer(), keyset_bytes=platform.server.keyset_bytes, now=NOW)
    assert caught.value.code == "root_not_accepted"


def test_an_enrolled_tpm_needs_no_maker_in_the_policy() -> None:
    """Its everyday evidence still shows the endorsement certificate; the policy names the key alone."""
    assert TPM_NAMED.roots == (NAMED.ak_digest,)
    details = dict(verify(TPM_NAMED, TPM_NAMED.answer()).claims.details)
    assert details["tpm.ak_bound_by"] == "named" and "tpm.ek_certificate" not in details
    by = policy(TPM_NAMED, roots=[NAMED.ak_digest, fake_tpm.ROOT_DIGEST])
    details = dict(verify(TPM_NAMED, TPM_NAMED.answer(), by=by).claims.details)
    assert details["tpm.ak_bound_by"] == "named" and "tpm.ek_certificate" in details


# The answer to the nonce


@every
def test_an_answer_to_another_nonce_is_refused(platform: Platform) -> None:
    """Genuine evidence of the right server, made for an older question (or for somebody else's)."""
    old = platform.carry(platform.answered(nonce=digest("yesterday")))
    assert codes(platform, old) == ["report_data_mismatch"]


@every
def test_an_answer_for_another_keyset_is_refused(platform: Platform) -> None:
    """The keyset of whoever sits in between, on the connection that ends there, beside genuine evidence."""
    mallory = replace(platform.server, name="mallory")
    assert codes(platform, platform.answer(), server=mallory) == ["report_data_mismatch"]
    changed = replace(platform.security, verify_on_load="sha256")
    by = replace(policy(platform), security=replace(policy(platform).security, verify_on_load=("sha256",)))
    shown = platform.server.forge(keyset=encode_keyset(replace(platform.server.keyset, security=changed)))
    assert codes(platform, platform.answer(), server=shown, by=by) == ["report_data_mismatch"]


@every
def test_evidence_from_start_answers_no_nonce(platform: Platform) -> None:
    """What stands in the certificate of the very same key is told apart and refused."""
    boot = verifiers.carried(platform.format, boot_report_data(spki=platform.server.leaf.spki()))
    assert codes(platform, platform.carry(boot)) == ["report_data_other_label"]


@every
def test_report_data_of_zeros_is_missing(platform: Platform) -> None:
    """GHSA-4r6g-mp48-j2rw: a verifier compared only where there was something to compare."""
    zeros = platform.carry(bytes(len(platform.answered())))
    assert codes(platform, zeros) == ["report_data_missing", "report_data_mismatch"]


@pytest.mark.parametrize("platform", [SGX, TDX4, TDX5, SNP, SNP_LENT, NITRO], ids=repr)
def test_half_of_the_report_data_is_not_enough(platform: Platform) -> None:
    """The first 32 bytes right and zeros behind, or the last 32, or something else behind."""
    whole = platform.answered()
    for data in (whole[:32] + bytes(32), bytes(32) + whole[32:], whole[:63] + bytes([whole[63] ^ 1])):
        assert codes(platform, platform.carry(data)) == ["report_data_mismatch"]


@pytest.mark.parametrize("platform", [TPM_NAMED, TPM_CERTIFIED, AZURE_SNP, AZURE_TDX], ids=repr)
def test_qualifying_data_are_the_digest_of_the_report_data_and_nothing_else(platform: Platform) -> None:
    """Not the report data themselves, of which a TPM takes 64 bytes, nor half of them, nor the digest cut or longer,
    nor the digest under another hash, nor the bare nonce.
    """
    asked = report_data(nonce=NONCE, keyset_bytes=platform.server.keyset_bytes)
    whole = hashlib.sha256(asked).digest()
    assert platform.answered() == whole
    for data in (hashlib.sha256(asked[:32]).digest(), asked[:32], NONCE, whole[:31] + b"\0"):
        assert codes(platform, platform.carry(data)) == ["report_data_mismatch"], data
    for data in (asked, hashlib.sha384(asked).digest(), whole[:31], whole + b"\0", whole + bytes(32), b""):
        found = codes(platform, platform.carry(data))
        assert found == ["report_data_missing", "report_data_mismatch"], data


@pytest.mark.parametrize(
    "data", [b"", NITRO.answered()[:32], NITRO.answered()[:63], NITRO.answered() + b"\0", None]
)
def test_a_nitro_document_carries_the_report_data_whole(data: bytes | None) -> None:
    """Its user data have any length: neither filled up nor cut to fit, and absent ones skip nothing."""
    assert codes(NITRO, NITRO.answer(user_data=data)) == ["report_data_missing", "report_data_mismatch"]


@pytest.mark.parametrize(
    "nonce", [digest("another"), NONCE[:31], NONCE + b"\0", b"", bytes(32), None, fake_aws.ABSENT]
)
def test_a_nitro_document_carries_the_nonce_itself_too(nonce: object) -> None:
    """Right report data beside another nonce, or none: the document was not asked for by our server's code."""
    assert codes(NITRO, NITRO.answer(nonce=nonce)) == ["nitro_nonce_mismatch"]


def test_a_nitro_documents_nonce_does_not_replace_its_report_data() -> None:
    """The other way round: the nonce alone ties no keyset."""
    other = report_data(nonce=NONCE, keyset_bytes=b"{}")
    assert codes(NITRO, NITRO.carry(other)) == ["report_data_mismatch"]
    assert codes(NITRO, NITRO.carry(other, nonce=None)) == ["report_data_mismatch", "nitro_nonce_mismatch"]
    swapped = NITRO.carry(NONCE, nonce=NITRO.answered())
    assert codes(NITRO, swapped) == [
        "report_data_missing", "report_data_mismatch", "nitro_nonce_mismatch",
    ]  # fmt: skip


def test_the_public_key_member_of_a_nitro_document_answers_nothing() -> None:
    """Report data and nonce in another member than theirs."""
    moved = NITRO.answer(user_data=None, public_key=NITRO.answered())
    assert codes(NITRO, moved) == ["report_data_missing", "report_data_mismatch"]
    assert codes(NITRO, NITRO.answer(nonce=None, public_key=NONCE)) == ["nitro_nonce_mismatch"]


# The channel and the keyset


@every
def test_evidence_relayed_over_another_connection_is_refused(platform: Platform) -> None:
    """CVE-2026-33697's class: genuine evidence and keyset, on a connection that ends at another key."""
    assert codes(platform, platform.answer(), channel=leaf(p256("mallory"))) == ["channel_key_mismatch"]


@every
def test_an_expired_keyset_is_refused(platform: Platform) -> None:
    """Its epoch ended this very second; the evidence speaks of it all the same."""
    over = replace(platform.server, not_after=int(NOW.timestamp()))
    evidence = platform.carry(platform.answered(keyset_bytes=over.keyset_bytes))
    assert codes(platform, evidence, server=over) == ["keyset_expired"]


@every
@pytest.mark.parametrize(
    ("shown", "code"),
    [
        (b"", "keyset_malformed"),
        (b"{}", "keyset_malformed"),
        (SGX.server.keyset_bytes + b"\n", "keyset_not_canonical"),
        (SGX.server.keyset_bytes.replace(b'"spki"', b'"none"', 1), "keyset_binding_unknown"),
    ],
    ids=["empty", "no members", "another spelling", "another binding"],
)
def test_a_malformed_keyset_is_refused(platform: Platform, shown: bytes, code: str) -> None:
    """Evidence that speaks of just these bytes does not make a keyset of them."""
    server = platform.server.forge(keyset=shown)
    evidence = platform.carry(platform.answered(keyset_bytes=shown))
    verdict = refusal(platform, evidence, server=server)
    made = [c.code for c in verdict.failures if not c.got.startswith(NOT_MADE)]
    assert made == [code]
    assert {"channel.spki", "security.consistent"} <= {c.id for c in verdict.failures}


# The policy


@every
def test_a_policy_for_simulation_accepts_no_hardware(platform: Platform) -> None:
    """Nor do simulated lists become hardware's: the kind decides."""
    by = simulation_policy()
    assert codes(platform, platform.answer(), by=by)[:2] == ["evidence_format_not_accepted"] * 2


@every
def test_a_policy_that_names_other_formats_only_is_refused(platform: Platform) -> None:
    """The peer chooses the format of its evidence; the policy says which count."""
    other = next(p for p in PLATFORMS if (p.format != platform.format and p.security == platform.security)
                 or p.format not in ("tpm", platform.format))  # fmt: skip
    assert codes(platform, platform.answer(), by=policy(other))[0] == "evidence_format_not_accepted"


@every
def test_code_that_is_not_named_is_refused(platform: Platform) -> None:
    """A policy for other code."""
    text = render_policy(policy(platform), heading="a test")
    (named,) = re.findall(rf'^{re.escape(platform.code)} = \["(.*)"\]$', text, re.MULTILINE)
    by = policy(platform, **{platform.code: ["ab" * (len(named) // 2)]})
    expected = REGISTER if platform.code.startswith("registers") else MEASUREMENT
    assert codes(platform, platform.answer(), by=by) == [expected]


LOADER = {4: digest("other boot loader")}
OTHER_CODE: list[tuple[Platform, dict[str, Any], list[str]]] = [
    (SGX, {"mr_enclave": digest("other code")}, [MEASUREMENT]),
    (TDX4, {"mr_td": digest("other firmware") + bytes(16)}, [MEASUREMENT]),
    (TDX5, {"mr_td": digest("other firmware") + bytes(16)}, [MEASUREMENT]),
    *((TDX5, {f"rtmr{i}": digest("other boot") + bytes(16)}, [REGISTER]) for i in range(4)),
    (TDX4, {"rtmr0": bytes(48), "rtmr3": bytes(48)}, [REGISTER, REGISTER]),
    (SNP, {"fields": {0x90: b"\xff"}}, [MEASUREMENT]),
    (SNP_LENT, {"fields": {0x90: b"\xff"}}, [MEASUREMENT]),
    (TPM_NAMED, {"pcrs": NAMED.pcrs | LOADER}, [REGISTER]),
    (TPM_CERTIFIED, {"pcrs": CERTIFIED.pcrs | LOADER}, [REGISTER]),
    (TPM_NAMED, {"pcrs": {i: v for i, v in NAMED.pcrs.items() if i != 14}}, [REGISTER]),
    (AZURE_SNP, {"snp": Machine(fields={0x90: b"\xff"})}, [MEASUREMENT]),
    (AZURE_SNP, {"vtpm": {"pcrs": NAMED.pcrs | LOADER}}, [REGISTER]),
    (AZURE_TDX, {"td": fake_azure.TDX.td.but(body={"mr_td": bytes(48)})}, [MEASUREMENT]),
    (AZURE_TDX, {"td": fake_azure.TDX.td.but(body={"rtmr0": bytes(48)})}, [MEASUREMENT]),
    (AZURE_TDX, {"td": fake_azure.TDX.td.but(body={"rtmr2": digest("x") + bytes(16)})}, [MEASUREMENT]),
    (AZURE_TDX, {"vtpm": {"pcrs": NAMED.pcrs | {7: bytes(32)}}}, [REGISTER]),
    (NITRO, {"pcrs": dict.fromkeys(range(9), fake_aws.PCR8)}, [MEASUREMENT]),
]


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    OTHER_CODE,
    ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(OTHER_CODE)],
)
def test_other_code_is_refused(platform: Platform, changes: dict[str, Any], expected: list[str]) -> None:
    """A machine of the same maker that runs something else, in each place where code is measured."""
    assert codes(platform, platform.answer(**changes)) == expected


@every
def test_an_expired_policy_refuses(platform: Platform) -> None:
    """To the second."""
    assert codes(platform, platform.answer(), by=replace(policy(platform), expires=NOW)) == ["policy_expired"]


@pytest.mark.parametrize(
    ("platform", "older"),
    [(SGX, {"isv_svn": b"\x02\x00"}), (SNP, {"fields": {4: b"\x06"}}), (SNP_LENT, {"fields": {4: b"\x06"}})],
    ids=["sgx", "snp", "snp-vlek"],
)
def test_an_old_release_is_refused(platform: Platform, older: dict[str, Any]) -> None:
    """A security version below the policy's minimum, under a signer or measurement that is still named."""
    assert codes(platform, platform.answer(**older)) == ["svn_too_low"]


def levels(**changed: Any) -> dict[str, Any]:
    """A vendor whose TCB info has these levels."""
    return {"by": {"tcb_info": {"tcbLevels": statuses(**changed)}}}


BEHIND: dict[str, tuple[Platform, dict[str, Any], list[str]]] = {
    "sgx out of date": (
        SGX, {"by": {"components": (4,) * 16}}, ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "sgx hardening needed": (
        SGX, levels(tdx=False, top="SWHardeningNeeded"), ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "sgx revoked": (
        SGX, {"by": {"components": (2,) * 16}},
        ["tcb_revoked", "tcb_revoked", "tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "sgx below every level": (
        SGX, {"by": {"components": (0,) * 16}},
        ["tcb_level_unknown", "tcb_level_unknown", "tcb_status_not_accepted"],
    ),
    "sgx with an outdated quoting enclave": (
        SGX, {"by": {"qe": {"isv_svn": b"\x06\x00"}}}, ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "tdx 4 out of date": (
        TDX4, {"by": {"components": (4,) * 16}}, ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "tdx 5 out of date": (
        TDX5, {"by": {"components": (4,) * 16}}, ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "tdx 5 with an outdated module": (
        TDX5,
        {"by": {"tcb_info": {"tdxModuleIdentities": [
            {"id": "TDX_01", "mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8,
             "tcbLevels": enclave_levels((6, "UpToDate"), (3, "OutOfDate"))}
        ]}}},
        ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
    "azure tdx out of date": (
        AZURE_TDX, {"td": fake_azure.TDX.td.but(components=(4,) * 16)},
        ["tcb_status_not_accepted", "advisory_not_accepted"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_a_platform_that_is_behind_is_refused(name: str) -> None:
    """Authentic all the same: the vendor's word about it is not one that the policy accepts."""
    platform, changes, expected = BEHIND[name]
    found = codes(platform, platform.answer(**changes))
    assert found == expected


def test_an_accepted_status_with_another_advisory_is_refused() -> None:
    """The status is named, one of its two advisories is not."""
    old = {"by": {"components": (4,) * 16}}
    by = policy(SGX, tcb_statuses=["OutOfDate"], accepted_advisories=["INTEL-SA-00002"])
    assert codes(SGX, SGX.answer(**old), by=by) == ["advisory_not_accepted"]
    by = policy(SGX, tcb_statuses=["OutOfDate"], accepted_advisories=["INTEL-SA-00002", "INTEL-SA-00003"])
    assert codes(SGX, SGX.answer(**old), by=by) == []


def test_collateral_of_an_older_evaluation_is_refused() -> None:
    """Valid, and kinder: the policy's lowest evaluation data number."""
    for platform in (SGX, TDX4, TDX5):
        older = {"by": {"tcb_info": {"tcbEvaluationDataNumber": 19}}}
        assert codes(platform, platform.answer(**older)) == ["evaluation_too_old"]
    older_td = fake_azure.TDX.td.but(qe_identity={"tcbEvaluationDataNumber": 19})
    assert codes(AZURE_TDX, AZURE_TDX.answer(td=older_td)) == ["evaluation_too_old"]


@pytest.mark.parametrize(
    ("platform", "product", "part"),
    [
        *((SNP, "Milan", part) for part in ("bl", "snp", "ucode")),
        *((SNP_LENT, "Turin", part) for part in ("fmc", "bl", "tee", "snp", "ucode")),
        *((AZURE_SNP, "Milan", part) for part in ("bl", "snp", "ucode")),
    ],
    ids=str,
)
def test_each_part_of_amds_tcb_has_its_minimum(platform: Platform, product: str, part: str) -> None:
    """One part lower than the policy asks for, whatever the others are."""
    genuine = dict(claims(platform).details)
    parts = ("fmc", "bl", "tee", "snp", "ucode") if product == "Turin" else ("bl", "tee", "snp", "ucode")
    least = {name: int(genuine[f"tcb.{name}"]) for name in parts}
    assert codes(platform, platform.answer(), by=policy(platform, **{f"min_tcb.{product}": least})) == []
    by = policy(platform, **{f"min_tcb.{product}": least | {part: least[part] + 1}})
    assert codes(platform, platform.answer(), by=by) == ["platform_tcb_too_low"]


def test_levels_keys_and_clouds_of_amd_are_the_policys() -> None:
    """VMPL, kind of signing key, and the cloud that it was lent to, each where the rest is accepted."""
    assert codes(SNP, SNP.answer(fields={0x30: b"\1"})) == ["vmpl_not_accepted"]
    assert codes(SNP, SNP.answer(), by=policy(SNP, vmpls=[1, 2])) == ["vmpl_not_accepted"]
    by = policy(SNP_LENT, csp_ids=["CN=another.cloud.example"])
    assert codes(SNP_LENT, SNP_LENT.answer(), by=by) == ["signing_key_not_accepted"]
    by = policy(SNP_LENT, signing_keys=["VCEK"], csp_ids=[])
    assert set(codes(SNP_LENT, SNP_LENT.answer(), by=by)) == {"signing_key_not_accepted"}


def test_the_other_hardware_below_azure_is_refused() -> None:
    """`tee` says which: with TDX named, SEV-SNP's claims meet nothing, and the other way round."""
    assert "tee_not_accepted" in codes(AZURE_SNP, AZURE_SNP.answer(), by=policy(AZURE_TDX))
    assert "tee_not_accepted" in codes(AZURE_TDX, AZURE_TDX.answer(), by=policy(AZURE_SNP))


DEBUG: dict[str, tuple[Platform, dict[str, Any], list[str]]] = {
    "sgx": (
        SGX, {"attributes": bytes.fromhex("0700000000000000e700000000000000")},
        ["quote_debug", "quote_debug", "debug_platform", "security_contradicts_evidence"],
    ),
    "tdx 4": (
        TDX4, {"td_attributes": bytes.fromhex("0100001000000000")},
        ["quote_debug", "quote_debug", "debug_platform", "security_contradicts_evidence"],
    ),
    "tdx 5": (
        TDX5, {"td_attributes": bytes.fromhex("0100001000000000")},
        ["quote_debug", "quote_debug", "debug_platform", "security_contradicts_evidence"],
    ),
    "tdx, under another debug bit": (
        TDX5, {"td_attributes": bytes.fromhex("8000001000000000")},
        ["quote_debug", "tdx_attributes_refused", "debug_platform", "security_contradicts_evidence"],
    ),
    "snp": (
        SNP, {"fields": {8: (0xB001F).to_bytes(8, "little")}},
        ["debug_platform", "security_contradicts_evidence"],
    ),
    "azure snp": (
        AZURE_SNP, {"snp": Machine(fields={8: (0xB001F).to_bytes(8, "little")})},
        ["debug_platform", "security_contradicts_evidence"],
    ),
    "nitro": (
        NITRO, {"pcrs": {n: bytes(48) for n in range(16)}},
        ["measurement_not_accepted", "debug_platform", "security_contradicts_evidence"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEBUG)
def test_debug_mode_is_refused(name: str) -> None:
    """The host can read the memory: refused by the format or the policy, and the server's claim of the opposite too."""
    platform, changes, expected = DEBUG[name]
    assert codes(platform, platform.answer(**changes)) == expected


def test_an_azure_td_in_debug_mode_is_refused() -> None:
    """The paravisor's own TD: whoever debugs it reads the guest."""
    body = {"report_data": fake_azure.TDX.hardware_data, "td_attributes": b"\1" + bytes(7)}
    quote = fake_azure.TDX.td.but(body=body).quote
    found = codes(AZURE_TDX, AZURE_TDX.answer(members={"td_quote": quote}))
    assert found == ["quote_debug", "quote_debug", "debug_platform", "security_contradicts_evidence"]


def test_a_migration_agent_contradicts_a_server_that_says_its_host_is_excluded() -> None:
    """SNP: whoever the host chooses gets the guest's memory (bit 18 of the guest policy)."""
    fields = {8: (0x7001F).to_bytes(8, "little")}
    expected = ["migration_refused", "security_contradicts_evidence"]
    assert codes(SNP, SNP.answer(fields=fields)) == expected
    assert codes(AZURE_SNP, AZURE_SNP.answer(snp=Machine(fields=fields))) == expected


@pytest.mark.parametrize("platform", [TPM_NAMED, TPM_CERTIFIED], ids=repr)
def test_a_tpm_excludes_no_host(platform: Platform) -> None:
    """A server behind a TPM that says so of itself is refused by a policy that would take its word."""
    lying = replace(platform, security=replace(platform.security, host_excluded=True))
    by = policy(platform)
    by = replace(by, security=replace(by.security, host_excluded=(False, True)))
    assert codes(lying, lying.answer(), by=by) == ["security_contradicts_evidence"]
    assert codes(platform, platform.answer(), by=by) == []


@every
def test_simulated_sealing_contradicts_hardware(platform: Platform) -> None:
    """Keys of a simulated TEE on a genuine one: the configuration is refused by policy and by the evidence."""
    lying = replace(platform, security=replace(platform.security, sealing="simulated"))
    expected = ["security_sealing_refused", "security_contradicts_evidence"]
    assert codes(lying, lying.answer(), by=policy(platform)) == expected


# Roots, endorsements, time


@pytest.mark.parametrize("platform", [p for p in PLATFORMS if p.pinned], ids=repr)
@pytest.mark.parametrize("accepted", ["none", "the true vendor's"])
def test_a_vendor_that_is_not_pinned_vouches_for_nothing(platform: Platform, accepted: str) -> None:
    """Another root, or no roots at all: nobody's claims are shown, and every later check has failed."""
    roots = () if accepted == "none" else verifiers.PINS[platform.format]
    verdict = refusal(platform, platform.answer(), accepted=roots)
    assert "root_not_accepted" in {c.code for c in verdict.failures}
    assert verdict.claims is None
    failed = {c.id for c in verdict.failures}
    assert {"evidence.report_data_present", "evidence.report_data", "policy.simulation"} <= failed
    about_claims = {c.id for c in verdict.checks if c.id.startswith("policy.")} - {
        "policy.kind", "policy.format", "policy.expires",
    }  # fmt: skip
    assert len(about_claims) > 2 and about_claims <= failed


@pytest.mark.parametrize("platform", [TPM_NAMED, TPM_CERTIFIED], ids=repr)
def test_a_tpm_is_tied_to_what_the_policy_names(platform: Platform) -> None:
    """Another root or key in the policy: neither is the TPM's."""
    by = policy(platform, roots=["ab" * 32])
    verdict = refusal(platform, platform.answer(), by=by)
    found = {c.code for c in verdict.failures}
    assert {"root_not_accepted", "tpm_ak_not_bound"} <= found
    assert verdict.claims is None


def test_an_endorsement_certificate_beside_a_strangers_key_is_refused() -> None:
    """The maker's root is named, the EK certificate is genuine, the AK is anybody's."""
    by = policy(TPM_NAMED, roots=[fake_tpm.ROOT_DIGEST])
    assert codes(TPM_NAMED, TPM_NAMED.answer(), by=by)[0] == "tpm_ak_not_bound"


def test_roots_and_measurements_of_tpms_are_accepted_in_pairs() -> None:
    """Two entries, two TPMs: the key of the one does not vouch for the code of the other."""
    second = replace(TPM_CERTIFIED, security=TPM_NAMED.security)
    other = {"pcrs": CERTIFIED.pcrs | LOADER}
    by = policy(TPM_NAMED)
    named = policy(second, **{"registers.pcr4": [LOADER[4].hex()]})
    by = replace(by, requirements=by.requirements + named.requirements)
    assert codes(TPM_NAMED, TPM_NAMED.answer(), by=by) == []
    assert codes(second, second.answer(**other), by=by) == []
    assert len(codes(second, second.answer(), by=by)) == 1
    assert len(codes(TPM_NAMED, TPM_NAMED.answer(**other), by=by)) == 1


def test_a_software_tpm_passes_only_because_its_key_is_named_and_says_what_it_is() -> None:
    """Recognised, and labelled in the claims; unnamed it is refused as software as well."""
    software = {"firmware": fake_tpm.SWTPM_FIRMWARE}
    attested = verify(TPM_NAMED, TPM_NAMED.answer(**software))
    assert dict(attested.claims.details)["tpm.kind"] == "software"
    by = policy(TPM_NAMED, roots=["ab" * 32])
    assert "tpm_software_not_named" in codes(TPM_NAMED, TPM_NAMED.answer(**software), by=by)


MISSING: list[tuple[Platform, str]] = [
    (SGX, "collateral_missing"),
    (TDX4, "collateral_missing"),
    (TDX5, "collateral_missing"),
    (SNP, "snp_leaf_missing"),
    (SNP_LENT, "snp_leaf_missing"),
    (AZURE_SNP, "chain_incomplete"),
    (AZURE_TDX, "collateral_missing"),
]


@pytest.mark.parametrize(("platform", "code"), MISSING, ids=[repr(p) for p, _ in MISSING])
def test_without_its_endorsements_evidence_is_refused(platform: Platform, code: str) -> None:
    """Nothing vouches for the key that signed; no claims are shown."""
    verdict = refusal(platform, platform.answer(), endorsements=())
    assert verdict.code == code
    assert verdict.claims is None


def test_without_its_certificates_a_certified_tpm_is_refused() -> None:
    """They stand in the document itself, or among the endorsements."""
    bare = TPM_CERTIFIED.answer(members={"certificates": []})
    stapled = (("ca", fake_tpm.CA_DER), ("root", fake_tpm.ROOT_DER))
    assert codes(TPM_CERTIFIED, bare, endorsements=stapled) == []
    assert codes(TPM_CERTIFIED, bare)[0] == "tpm_certificate_refused"


@pytest.mark.parametrize("platform", [SGX, TDX5, SNP, AZURE_SNP, AZURE_TDX, NITRO], ids=repr)
def test_endorsements_of_another_kind_are_refused(platform: Platform) -> None:
    """What was stapled and cannot be read for this format is no silence; nor does another platform's stand in."""
    for stapled in ((("x", b"no such document"),), SNP.answer().endorsements, SGX.answer().endorsements):
        if stapled == platform.answer().endorsements or (platform == AZURE_SNP and stapled[0][0] == "leaf"):
            continue
        assert codes(platform, platform.answer(), endorsements=stapled), stapled[0][0]


LATER: list[tuple[Platform, timedelta, str]] = [
    (SGX, timedelta(days=28), "collateral_expired"),
    (TDX4, timedelta(days=28), "collateral_expired"),
    (TDX5, timedelta(days=28), "collateral_expired"),
    (AZURE_TDX, timedelta(days=28), "collateral_expired"),
    (SGX, timedelta(days=2001), "pck_chain_expired"),
    (SGX, timedelta(days=-2), "collateral_from_future"),
    (TDX5, timedelta(days=-500), "pck_chain_from_future"),
    (SNP, timedelta(days=2000), "chain_not_valid_now"),
    (SNP_LENT, timedelta(days=2000), "chain_not_valid_now"),
    (SNP, timedelta(days=-1000), "chain_not_valid_now"),
    (AZURE_SNP, timedelta(days=2000), "chain_not_valid_now"),
    (TPM_CERTIFIED, timedelta(days=3651), "tpm_certificate_refused"),
    (TPM_NAMED, timedelta(days=3651), "tpm_certificate_refused"),
    (NITRO, timedelta(hours=3, seconds=1), "nitro_certificate_expired"),
    (NITRO, timedelta(minutes=-6), "nitro_certificate_expired"),
]


@pytest.mark.parametrize(
    ("platform", "later", "code"), LATER, ids=[f"{p}{d.total_seconds():+.0f}s" for p, d, _ in LATER]
)
def test_endorsements_count_at_the_time_that_was_passed_in(
    platform: Platform, later: timedelta, code: str
) -> None:
    """Collateral or certificates that are over, or that begin only later, by the verifier's one clock."""
    lasting = replace(platform.server, not_after=int(NOW.timestamp()) + LONG)
    by = replace(policy(platform), expires=NOW + timedelta(seconds=LONG))
    evidence = platform.carry(platform.answered(keyset_bytes=lasting.keyset_bytes))
    assert codes(platform, evidence, server=lasting, by=by) == []
    assert codes(platform, evidence, server=lasting, by=by, now=NOW + later)[0] == code


def test_an_old_nitro_document_is_stale() -> None:
    """Its leaf is still valid; the policy's age is over. It cannot answer our nonce, but a clock may be wrong."""
    by = policy(NITRO, max_evidence_age_s=60)
    assert codes(NITRO, NITRO.answer(), by=by, now=NOW + timedelta(seconds=59)) == []
    assert codes(NITRO, NITRO.answer(), by=by, now=NOW + timedelta(seconds=61)) == ["evidence_stale"]


REVOKED: dict[str, tuple[Platform, dict[str, Any], str]] = {
    "sgx leaf": (SGX, {"by": {"revoked": ("pck",)}}, "certificate_revoked"),
    "tdx authority": (TDX5, {"by": {"revoked": ("ca",)}}, "certificate_revoked"),
    "sgx signer of the collateral": (SGX, {"by": {"revoked": ("signing",)}}, "certificate_revoked"),
    "azure tdx leaf": (AZURE_TDX, {"td": fake_azure.TDX.td.but(revoked=("pck",))}, "certificate_revoked"),
}


@pytest.mark.parametrize("name", REVOKED)
def test_what_is_revoked_vouches_for_nothing(name: str) -> None:
    """By a list among the endorsements."""
    platform, changes, code = REVOKED[name]
    verdict = refusal(platform, platform.answer(**changes))
    assert verdict.code == code
    assert verdict.claims is None


# Evidence of one format under the name of another, and damage


def everything() -> Any:
    """A policy that accepts every machine of this world: what is refused then is refused by the evidence."""
    by = policy(TPM_NAMED)
    requirements = tuple(r for p in PLATFORMS for r in policy(p).requirements)
    security = replace(
        by.security, sealing=("measurement", "signer", "operator"), host_excluded=(False, True)
    )
    return replace(by, requirements=requirements, security=security)


@every
def test_evidence_does_not_pass_under_the_name_of_another_format(platform: Platform) -> None:
    """The name comes from the peer, beside the evidence: with every format accepted, none takes another's evidence."""
    by = everything()
    assert codes(platform, platform.answer(), by=by) == []
    for other in PLATFORMS:
        if other.format == platform.format:
            continue
        genuine = platform.answer()
        renamed = Evidence(other.format, genuine.data, genuine.endorsements)
        for stapled in (genuine.endorsements, other.answer().endorsements, ()):
            verdict = refusal(other, renamed, by=by, server=platform.server, endorsements=stapled)
            assert verdict.claims is None
            assert verdict.code in {
                "quote_malformed", "quote_wrong_tee", "snp_length", "evidence_malformed",
            }  # fmt: skip
    simulated = Evidence("sim", platform.answer().data, ())
    assert refusal(platform, simulated, by=by).code == "simulation_refused"
    unknown = Evidence("ra-tls", platform.answer().data, ())
    assert refusal(platform, unknown, by=by).code == "evidence_format_unsupported"


@pytest.mark.parametrize("platform", [SGX, SNP, TDX4, NITRO], ids=repr)
def test_simulated_evidence_under_the_name_of_hardware_is_refused(platform: Platform) -> None:
    """Well signed by its operator, and worth nothing here."""
    simulated = Server(name=platform.name, security=platform.security).evidence
    verdict = refusal(platform, Evidence(platform.format, simulated.data, ()), by=everything())
    assert verdict.claims is None and not verdict.simulated


@every
def test_damaged_evidence_is_refused(platform: Platform) -> None:
    """Some bits flipped here and there, and some bytes cut off."""
    genuine = platform.answer()
    size = len(genuine.data)
    for at in (0, 3, size // 5, size // 2, 4 * size // 5):
        damaged = genuine.data[:at] + bytes([genuine.data[at] ^ 4]) + genuine.data[at + 1 :]
        assert codes(platform, replace(genuine, data=damaged)), at
    for end in (0, 1, size // 2, size - 1):
        assert refusal(platform, replace(genuine, data=genuine.data[:end])).claims is None


FORGED: dict[str, tuple[Platform, Evidence, str]] = {
    "sgx signed by another key": (
        SGX, SGX.answer(by={"replaced": {"signature": bytes(64)}}), "evidence_signature_invalid",
    ),
    "sgx by any enclave of the machine": (
        SGX, SGX.answer(by={"qe": {"mr_signer": digest("any")}}), "qe_identity_mismatch",
    ),
    "tdx signed by another key": (
        TDX5, TDX5.answer(by={"replaced": {"signature": b"\1" * 64}}), "evidence_signature_invalid",
    ),
    "tdx with a service TD": (TDX5, TDX5.answer(mr_service_td=b"\1" * 48), "tdx_service_td"),
    "tdx whose host injects exceptions": (TDX4, TDX4.answer(td_attributes=bytes(8)), "tdx_sept_ve_enabled"),
    "tdx that migrates": (
        TDX4, TDX4.answer(td_attributes=bytes.fromhex("0000003000000000")), "tdx_attributes_refused",
    ),
    "snp changed after it was signed": (SNP, SNP.answer(after={0x90: b"\xff"}), "evidence_signature_invalid"),
    "snp asked for by the host": (SNP, SNP.answer(fields={0x30: b"\xff" * 4}), "snp_not_from_guest"),
    "snp of another chip": (SNP, SNP.answer(fields={0x1A0: b"\xff"}), "snp_chip_mismatch"),
    "snp of an older TCB than certified": (SNP, SNP.answer(fields={0x180: b"\2"}), "snp_tcb_mismatch"),
    "snp whose chip key is masked": (SNP, SNP.answer(fields={0x48: b"\2"}), "snp_chip_key_masked"),
    "tpm signed by another key": (
        TPM_NAMED,
        TPM_NAMED.answer(members={"signature": fake_tpm.signature(fake_tpm.ec_key("x"), NAMED.attest)}),
        "evidence_signature_invalid",
    ),
    "tpm whose key signs anything": (
        TPM_CERTIFIED,
        TPM_CERTIFIED.answer(public={"attributes": fake_tpm.ATTRIBUTES & ~(1 << 16)}),
        "tpm_ak_attributes",
    ),
    "tpm that certified and did not quote": (TPM_NAMED, TPM_NAMED.answer(type=0x8017), "tpm_not_a_quote"),
    "tpm whose log is of another start": (
        TPM_NAMED,
        TPM_NAMED.answer(members={"event_log": fake_tpm.event_log([*fake_tpm.BOOT, (4, 4, b"bootkit")])}),
        "event_log_mismatch",
    ),
    "azure made by the guest": (AZURE_SNP, AZURE_SNP.answer(snp=Machine(fields={0x30: b"\2"})), "azure_vmpl"),
    "azure with another report's runtime data": (
        AZURE_SNP, AZURE_SNP.answer(report_data=digest("other") + bytes(32)), "azure_runtime_data_mismatch",
    ),
    "azure with a second half of the report data": (
        AZURE_SNP,
        AZURE_SNP.answer(report_data=fake_azure.CLOUD.hardware_data[:32] + b"\1" * 32),
        "azure_runtime_data_mismatch",
    ),
    "azure quoted by another TPM": (
        AZURE_TDX, AZURE_TDX.answer(vtpm={"label": "mallory"}), "evidence_signature_invalid",
    ),
    "azure with the TD report of another": (
        AZURE_TDX, AZURE_TDX.answer(td_report_data=bytes(64)), "azure_td_report_mismatch",
    ),
    "nitro signed by the instance": (
        NITRO,
        Evidence("nitro", fake_aws.envelope(fake_aws.cbor2.dumps(fake_aws.members(user_data=NITRO.answered())),
                                            signer=fake_aws.key("instance")), ()),
        "evidence_signature_invalid",
    ),
    "nitro with something stapled": (
        NITRO, replace(NITRO.answer(), endorsements=(("crl", b"x"),)), "evidence_malformed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_a_platform_did_not_say_is_refused(name: str) -> None:
    """Everything else is genuine, the answer to the nonce included: the format's own check comes first."""
    platform, evidence, code = FORGED[name]
    assert codes(platform, evidence)[0] == code
