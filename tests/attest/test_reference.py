"""`attest.reference`: what evidence of a release will state, out of what its build made."""

from __future__ import annotations

import fake_artefacts as fake
import fake_tpm
import pytest

from strongroom.attest.eventlog import parse_event_log, replay_rtmrs
from strongroom.attest.firmware import mrtd
from strongroom.attest.policy import parse_policy, render_entry
from strongroom.attest.reference import (
    Reference,
    nitro_reference,
    sgx_reference,
    sim_reference,
    snp_reference,
    tdx_reference,
    tpm_reference,
)
from strongroom.attest.releases import ReferenceValue
from strongroom.attest.tpm_quote import pcr_measurement
from strongroom.errors import InvalidPolicy, MalformedInput

CCEL = fake_tpm.event_log(
    [(1, 4, b"firmware"), (2, 13, b"kernel"), (3, 13, b"command line")], banks=(fake_tpm.SHA384,), first=1
)
CODE = "c0" * 32


def test_an_enclave_is_its_mrenclave() -> None:
    """What a policy may pin besides stands in the facts."""
    found = sgx_reference(fake.sigstruct())
    assert found.value == ReferenceValue("sgx", fake.MRENCLAVE.hex(), ())
    assert (found.svn, dict(found.facts)["isv_prod_id"], found.notes) == (3, "7", ())
    assert sgx_reference(fake.sigstruct(attributes=b"\x06" + bytes(7))).notes


def test_a_td_is_its_firmware_and_a_start_that_was_logged() -> None:
    """Without the log there is no value, for MRTD alone is firmware."""
    found = tdx_reference(fake.firmware(), CCEL, order="page", launched="")
    registers = {f"rtmr{i}": v.hex() for i, v in enumerate(replay_rtmrs(parse_event_log(CCEL)))}
    assert found.value is not None
    assert found.value.measurement == mrtd(fake.firmware(), order="page").hex()
    assert dict(found.value.registers) == registers
    without = tdx_reference(fake.firmware(), None, order="page", launched="")
    assert without.value is None and without.notes
    with pytest.raises(MalformedInput):
        tdx_reference(fake.firmware(), fake_tpm.event_log(fake_tpm.BOOT), order="page", launched="")


def test_the_launchers_register_is_not_in_that_log() -> None:
    """With `tdx.extend_rtmr3` RTMR3 is the code's, and a log that extends it as well gives a value that none has."""
    held = "ab" * 48
    found = tdx_reference(fake.firmware(), CCEL, order="page", launched=held)
    assert found.value is not None and dict(found.value.registers)["rtmr3"] == held
    assert dict(tdx_reference(fake.firmware(), None, order="page", launched=held).facts)["rtmr3"] == held
    log = fake_tpm.event_log([(4, 13, b"an application")], banks=(fake_tpm.SHA384,), first=1)
    assert tdx_reference(fake.firmware(), log, order="page", launched="").value is not None
    with pytest.raises(MalformedInput, match="extends RTMR3"):
        tdx_reference(fake.firmware(), log, order="page", launched=held)


def test_a_guest_without_a_kernel_in_its_digest_is_noted() -> None:
    """The firmware alone starts whatever the host gives it."""
    assert not snp_reference("ab" * 48, with_kernel=True, host_data="").notes
    assert "firmware alone" in snp_reference("ab" * 48, with_kernel=False, host_data="").notes[0]


def test_an_enclave_image_is_its_pcrs() -> None:
    """PCR0 is the measurement, the others are registers."""
    found = nitro_reference(fake.eif_json(PCR8="AB" * 48)).value
    assert found is not None and found.measurement == fake.PCR0.hex()
    assert found.registers == (("pcr1", fake.PCR1.hex()), ("pcr2", fake.PCR2.hex()), ("pcr8", "ab" * 48))


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"[]",
        b"{}",
        b'{"Measurements": []}',
        fake.eif_json(HashAlgorithm="Sha256 { ... }"),
        fake.eif_json(HashAlgorithm=None),
        fake.eif_json(PCR0=None),
        fake.eif_json(PCR1=None),
        fake.eif_json(PCR2=None),
        fake.eif_json(PCR0="00" * 48),
        fake.eif_json(PCR0="ab" * 47),
        fake.eif_json(PCR0="zz" * 48),
        fake.eif_json(PCR0="0x" + "ab" * 47),
        fake.eif_json(PCR2=7),
        fake.eif_json(PCR8=""),
        fake.eif_json() + b"x",
    ],
)
def test_descriptions_out_of_form_are_refused(description: bytes) -> None:
    """Also debug mode's zeros."""
    with pytest.raises(MalformedInput) as caught:
        nitro_reference(description)
    assert caught.value.code == "artefact_malformed"


def test_a_machine_is_its_start_and_the_codes_register() -> None:
    """The measurement is that of the quote; PCRs that nothing extends are zero."""
    found = tpm_reference(
        fake_tpm.event_log(fake_tpm.BOOT), pcrs=(0, 2, 4, 7), code_pcr=13, code_value=CODE
    ).value
    held = {i: v for i, v in fake_tpm.extended(fake_tpm.BOOT).items() if i in (0, 2, 4, 7)} | {
        13: bytes.fromhex(CODE)
    }
    assert found is not None
    assert dict(found.registers) == {f"pcr{i}": v.hex() for i, v in held.items()}
    assert found.measurement == pcr_measurement(0x000B, held)
    without = tpm_reference(None, pcrs=(0,), code_pcr=13, code_value=CODE)
    assert without.value is None and without.notes and without.facts == (("pcr13", CODE),)


@pytest.mark.parametrize(
    "log",
    [b"", fake_tpm.event_log([(13, 13, b"somebody")]), fake_tpm.event_log((), banks=(fake_tpm.SHA384,))],
)
def test_a_log_that_says_something_else_is_refused(log: bytes) -> None:
    """Also one in which somebody extends the code's register."""
    with pytest.raises(MalformedInput) as caught:
        tpm_reference(log, pcrs=(0,), code_pcr=13, code_value=CODE)
    assert caught.value.code == "event_log_malformed"


POLICY = """\
kind = "{kind}"
expires = 2027-01-01T00:00:00Z
[security]
sealing = ["{sealing}"]
host_excluded = [{excluded}]
isolation = ["in_process"]
sandbox = []
admission = ["strict"]
anonymous_upload = [false]
verify_on_load = ["tags"]
logging = ["no_content"]
"""
MILAN = "min_tcb.Milan = { bl = 3, tee = 0, snp = 8, ucode = 115 }"
FILLED = {
    "sim": {"root": f'"{"ab" * 32}"'},
    "sgx": {"min_evaluation": "18"},
    "tdx": {"min_evaluation": "18"},
    "snp": {
        "vmpls": "[0]",
        "signing_keys": '["VCEK"]',
        "csp_ids": "[]",
        "min_tcb": MILAN.partition(" = ")[2],
    },
    "nitro": {},
    "tpm": {"roots": f'["{"ab" * 32}"]'},
}
"""Format -> what the entry leaves to its reader."""
REFERENCES: dict[str, Reference] = {
    "sim": sim_reference("ab" * 32, svn=1),
    "sgx": sgx_reference(fake.sigstruct()),
    "tdx": tdx_reference(fake.firmware(), CCEL, order="page", launched=""),
    "snp": snp_reference("ab" * 48, with_kernel=True, host_data=""),
    "nitro": nitro_reference(fake.eif_json()),
    "tpm": tpm_reference(fake_tpm.event_log(fake_tpm.BOOT), pcrs=(0, 4, 7), code_pcr=13, code_value=CODE),
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_an_entry_parses_once_its_reader_has_said_the_rest(name: str) -> None:
    """And not before: what a release cannot know is missing, not weak."""
    reference = REFERENCES[name]
    assert reference.value is not None
    entry = render_entry(reference.value, svn=reference.svn)
    kind = {"sim": "UNSAFE_SIMULATION", "tpm": "development"}.get(name, "production")
    head = POLICY.format(
        kind=kind,
        sealing={"sim": "simulated", "nitro": "operator", "tdx": "operator"}.get(name, "measurement"),
        excluded=str(kind == "production").lower(),
    )
    if kind == "development":
        entry += "unsafe_accept_debug = false\n"
    if FILLED[name]:
        with pytest.raises(InvalidPolicy) as caught:
            parse_policy(head + entry)
        assert caught.value.code == "policy_missing_member"
    for member, value in FILLED[name].items():
        before = f"# {member} = ...  # yours to say: without it this file does not parse"
        assert entry.count(before) == 1
        dotted = f"{member}.Milan = {value}" if member == "min_tcb" else f"{member} = {value}"
        entry = entry.replace(before, dotted)
    policy = parse_policy(head + entry)
    stated = policy.requirements[0].rules
    shown = " ".join(str(rule.members()) for rule in stated)
    if name == "tpm":
        assert CODE in shown
    else:
        assert reference.value.measurement in shown
    assert all(held in shown for _, held in reference.value.registers)
