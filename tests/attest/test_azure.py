"""`attest.azure`: hardware report, runtime data, attestation key, quote; each link, and each recorded machine."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import fake_tpm as fake
import pytest
from conftest import SHARED
from fake_amd import Machine, roots
from fake_azure import CLOUD, TDX, VTPM, Cloud, jwk
from worlds import NOW

from strongroom.attest import dcap
from strongroom.attest.azure import (
    PINNED_ROOTS,
    azure_measurement,
    examine_azure,
    from_recorded,
    parse_hcl,
)
from strongroom.attest.evidence import NOT_MADE, Absent, Claims, Examination
from strongroom.attest.strict import canonical
from strongroom.attest.tpm_quote import pcr_measurement
from strongroom.errors import Error, MalformedInput

RECORDED = SHARED / "evidence"


def examine(
    cloud: Cloud | bytes, *, by: Cloud = CLOUD, accepted: tuple[str, ...] | None = None
) -> Examination:
    """What is found about the machine where its processor's root is accepted."""
    if isinstance(cloud, Cloud):
        data, by = cloud.document, cloud
    else:
        data = cloud
    return examine_azure(
        data, endorsements=by.endorsements, roots=by.roots if accepted is None else accepted, now=NOW
    )


def failures(found: Examination) -> list[tuple[str, str]]:
    """(id, code) of the checks that were made and failed."""
    return [(c.id, c.code) for c in found.checks if not c.passed and not c.got.startswith(NOT_MADE)]


def claims(found: Examination) -> Claims:
    """The claims of evidence that passed."""
    assert [(c.id, c.got) for c in found.checks if not c.passed] == []
    assert isinstance(found.claims, Claims)
    return found.claims


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_genuine_snp_machine_gives_its_claims(product: str, version: int) -> None:
    """Hardware, paravisor and guest in one: the answer is the quote's, the root the processor's."""
    cloud = CLOUD.but(snp=Machine(product=product), version=version)
    found = claims(examine(cloud))
    details = dict(found.details)
    assert (found.format, found.host_excluded, found.debug, found.simulated) == ("azure", True, False, False)
    assert found.report_data == fake.QUALIFYING
    assert found.root in roots()
    assert (found.signer, found.product, found.svn) == ("", 0, 0)
    assert details["azure.launch_measurement"] == bytes(range(48)).hex()
    assert details["pcr4"] == VTPM.pcrs[4].hex()
    assert details["azure.secure_boot"] == "true"
    assert details["azure.user_data"] == "ab" * 64
    assert details["azure.vm_id"] == "390cbcf5-6c67-4d9b-98ef-c3f1699cc8fc"
    assert details["chip_id"]


def test_a_genuine_tdx_machine_gives_its_claims() -> None:
    """SEPT_VE_DISABLE is clear on Azure, and that alone is no reason to refuse a paravisor."""
    found = claims(examine(TDX))
    assert (found.format, found.host_excluded, found.tcb_status) == ("azure", True, "UpToDate")
    assert found.report_data == fake.QUALIFYING
    assert found.root == TDX.td.root


def test_the_measurement_is_that_of_paravisor_and_guest_together() -> None:
    """docs/spec/azure.md §4.1: another paravisor, or another guest, is another measurement."""
    found = claims(examine(CLOUD))
    pcrs = pcr_measurement(fake.SHA256, dict(VTPM.pcrs))
    launch = bytes(range(48)).hex()
    text = b"strongroom azure measurement v1\x00" + f"{launch} {pcrs}".encode()
    assert found.measurement == azure_measurement(launch, pcrs) == hashlib.sha256(text).hexdigest()
    other_paravisor = CLOUD.but(snp=Machine(fields={0x90: bytes(48)}))
    other_guest = CLOUD.but(vtpm=VTPM.but(pcrs=VTPM.pcrs | {4: bytes(32)}))
    other_rtmr = TDX.but(td=TDX.td.but(body={"rtmr2": b"\1" * 48}))
    measured = {
        claims(examine(c)).measurement for c in (CLOUD, other_paravisor, other_guest, TDX, other_rtmr)
    }
    assert len(measured) == 5


def test_a_debug_guest_is_said_to_be_one() -> None:
    """The policy refuses it; the host is not excluded."""
    debug = CLOUD.but(snp=Machine(fields={0x08: struct.pack("<Q", 0x3001F | 1 << 19)}))
    found = claims(examine(debug))
    assert (found.debug, found.host_excluded) == (True, False)


def test_without_roots_nothing_is_accepted() -> None:
    """An empty list is not "any root", and the pinned ones are the processors' makers'."""
    for cloud in (CLOUD, TDX):
        found = examine(cloud, accepted=())
        assert ("azure.hardware", "azure_hardware_refused") in failures(found)
        assert "root_not_accepted" in [code for _, code in failures(found)]
        assert isinstance(found.claims, Absent)
        assert isinstance(examine(cloud, accepted=PINNED_ROOTS).claims, Absent)
    assert set(dcap.PINNED_ROOTS) < set(PINNED_ROOTS)


OTHER_TPM = VTPM.but(label="mallory")
WRONG: dict[str, tuple[Cloud, str, str]] = {
    "made at VMPL 2": (CLOUD.but(snp=Machine(fields={0x30: b"\2"})), "azure.vmpl", "azure_vmpl"),
    "made at VMPL 1": (CLOUD.but(snp=Machine(fields={0x30: b"\1"})), "azure.vmpl", "azure_vmpl"),
    "report data of other runtime data": (
        CLOUD.but(report_data=hashlib.sha256(b"other").digest() + bytes(32)),
        "azure.runtime_data",
        "azure_runtime_data_mismatch",
    ),
    "report data with more behind the digest": (
        CLOUD.but(report_data=CLOUD.hardware_data[:32] + b"\1" * 32),
        "azure.runtime_data",
        "azure_runtime_data_mismatch",
    ),
    "report data of zeros": (
        CLOUD.but(report_data=bytes(64)),
        "azure.runtime_data",
        "azure_runtime_data_mismatch",
    ),
    "runtime data changed after the report": (
        CLOUD.but(patches={1216 + 20: b" "}),
        "azure.runtime_data",
        "azure_runtime_data_mismatch",
    ),
    "TD report of another TD": (
        TDX.but(td_report_data=bytes(64)),
        "azure.td_report",
        "azure_td_report_mismatch",
    ),
    "quoted by another TPM": (CLOUD.but(vtpm=OTHER_TPM), "tpm.signature", "evidence_signature_invalid"),
    "quoted by the other key": (
        CLOUD.but(keys=(jwk(VTPM.ak_key, "HCLEkPub"), jwk(fake.rsa_key("x")))),
        "tpm.signature",
        "evidence_signature_invalid",
    ),
    "quote replaced": (
        CLOUD.but(members={"attest": VTPM.but(qualifying=b"q").attest}),
        "tpm.signature",
        "evidence_signature_invalid",
    ),
    "an ECC key's quote": (
        CLOUD.but(vtpm=VTPM.but(ak_kind="p256")),
        "tpm.signature",
        "tpm_signature_scheme",
    ),
    "quoted with SHA-384": (
        CLOUD.but(members={"signature": fake.signature(VTPM.ak_key, VTPM.attest, hash_=fake.SHA384)}),
        "tpm.signature",
        "tpm_signature_scheme",
    ),
    "a PCR's value": (
        CLOUD.but(members={"pcrs": ["00" * 32] * len(VTPM.pcrs)}),
        "tpm.pcr_digest",
        "tpm_pcr_digest",
    ),
    "no PCRs": (CLOUD.but(vtpm=VTPM.but(pcrs={})), "tpm.pcr_selection", "tpm_pcr_selection"),
    "only resettable PCRs": (
        CLOUD.but(vtpm=VTPM.but(pcrs={16: bytes(32)})),
        "tpm.pcr_selection",
        "tpm_pcr_selection",
    ),
    "log of another start": (
        CLOUD.but(members={"event_log": fake.event_log([*fake.BOOT, (4, 4, b"bootkit")])}),
        "tpm.event_log",
        "event_log_mismatch",
    ),
    "certify instead of quote": (CLOUD.but(vtpm=VTPM.but(type=0x8017)), "evidence.form", "tpm_not_a_quote"),
}
KEYS: dict[str, tuple[Any, ...]] = {
    "no key": (),
    "no attestation key": (jwk(VTPM.ak_key, "HCLEkPub"),),
    "two attestation keys": (jwk(VTPM.ak_key), jwk(fake.rsa_key("x"))),
    "a key that encrypts": (jwk(VTPM.ak_key, key_ops=["sign", "encrypt"]),),
    "a key for nothing": (jwk(VTPM.ak_key, key_ops=[]),),
    "an ECC key": (jwk(VTPM.ak_key, kty="EC"),),
    "exponent 3": (jwk(VTPM.ak_key, e="Aw"),),
    "RSA-1024": (jwk(fake.rsa_key("weak", 1024)),),
    "padded base64": (jwk(VTPM.ak_key, n=jwk(VTPM.ak_key)["n"] + "=="),),
    "base64 with other bits": (jwk(VTPM.ak_key, n="A" * 343),),
    "an unknown member": (jwk(VTPM.ak_key, x5c=[]),),
    "nine keys": (*(jwk(VTPM.ak_key, f"k{i}") for i in range(8)), jwk(VTPM.ak_key)),
    "a key no object": ("HCLAkPub",),
}
for name, keys in KEYS.items():
    WRONG[f"runtime data: {name}"] = (CLOUD.but(keys=keys), "azure.ak", "azure_runtime_data_malformed")
for name, raw in {
    "no JSON": b"HCLAkPub",
    "a member twice": b'{"keys":[],' + CLOUD.runtime_data[1:],
    "keys no array": b'{"keys":{}}',
    "a float": CLOUD.runtime_data[:-1] + b',"x":1.5}',
}.items():
    WRONG[f"runtime data: {name}"] = (CLOUD.but(raw_runtime=raw), "azure.ak", "azure_runtime_data_malformed")


@pytest.mark.parametrize("wrong", WRONG)
def test_one_thing_wrong_is_refused_by_its_own_check(wrong: str) -> None:
    """Everything else is genuine, down to the hardware's signature over the wrong thing."""
    cloud, check_id, code = WRONG[wrong]
    found = examine(cloud)
    assert failures(found) == [(check_id, code)]
    if check_id != "tpm.event_log":
        assert isinstance(found.claims, Absent)


@pytest.mark.parametrize(
    ("cloud", "code"),
    [
        (CLOUD.but(snp=Machine(after={0x2A0: b"\1\1\1"})), "evidence_signature_invalid"),
        (CLOUD.but(snp=Machine(after={0x50: bytes(32)})), "evidence_signature_invalid"),
        (CLOUD.but(members={"certificates": []}), "snp_leaf_missing"),
        (
            TDX.but(members={"td_quote": TDX.intel.forge(signature=bytes(64)).quote}),
            "evidence_signature_invalid",
        ),
        (TDX.but(td=TDX.td.but(fmspc=bytes(6), tcb_info={"fmspc": "AABBCCDDEEFF"})), ""),
    ],
    ids=["SNP signature", "SNP report", "no leaf", "TDX signature", "TDX platform"],
)
def test_hardware_that_does_not_verify_vouches_for_nothing(cloud: Cloud, code: str) -> None:
    """Its own check says why; no later link is looked at, and no claims come out."""
    found = examine(cloud)
    codes = [c for _, c in failures(found)]
    assert ("azure.hardware", "azure_hardware_refused") in failures(found)
    assert not code or code in codes
    later = [c for c in found.checks if c.id.startswith("tpm.") or c.id == "azure.ak"]
    assert later and not any(c.passed for c in later)
    assert isinstance(found.claims, Absent)


def test_the_hardwares_own_refusal_refuses_the_whole() -> None:
    """A TD in debug mode, or bound to a service TD: claims are there, and a failed check."""
    debug = TDX.but(td=TDX.td)
    body = {"report_data": debug.hardware_data, "td_attributes": b"\1" + bytes(7)}
    found = examine(debug.but(members={"td_quote": debug.td.but(body=body).quote}))
    assert any(i == "tee.debug" for i, _ in failures(found))


def test_a_genuine_quote_for_another_report_vouches_for_nothing() -> None:
    """Neither for the TD report inside nor for the runtime data."""
    found = examine(TDX.but(members={"td_quote": TDX.td.but(body={"report_data": bytes(64)}).quote}))
    assert ("azure.td_report", "azure_td_report_mismatch") in failures(found)
    assert ("azure.runtime_data", "azure_runtime_data_mismatch") in failures(found)
    assert isinstance(found.claims, Absent)


HCL = {
    "empty": b"",
    "too short": CLOUD.hcl[:1235],
    "too long": CLOUD.hcl + bytes(8192),
    "other magic": CLOUD.but(patches={0: b"HCLB"}).hcl,
    "version 0": CLOUD.but(patches={4: b"\0"}).hcl,
    "version 3": CLOUD.but(patches={4: b"\3"}).hcl,
    "other size": CLOUD.but(patches={8: b"\0\0"}).hcl,
    "a request for something else": CLOUD.but(patches={12: b"\1"}).hcl,
    "a failure": CLOUD.but(patches={16: b"\1"}).hcl,
    "reserved bytes": CLOUD.but(patches={31: b"\1"}).hcl,
    "request version 2": CLOUD.but(patches={1216 + 4: b"\2"}).hcl,
    "VBS": CLOUD.but(patches={1216 + 8: b"\1"}).hcl,
    "SHA-512": CLOUD.but(patches={1216 + 12: b"\3"}).hcl,
    "runtime data beyond the end": CLOUD.but(patches={1216 + 16: b"\xff\xff"}).hcl,
    "runtime data of another length": CLOUD.but(patches={1216: b"\0\0"}).hcl,
    "something in the padding": CLOUD.but(padding=bytes(163) + b"\1").hcl,
    "something behind the TD report": TDX.but(patches={1215: b"\1"}).hcl,
}


@pytest.mark.parametrize("wrong", HCL)
def test_a_paravisors_report_out_of_form_is_refused(wrong: str) -> None:
    """One fault each."""
    with pytest.raises(MalformedInput) as caught:
        parse_hcl(HCL[wrong])
    assert caught.value.code == "azure_hcl_malformed"
    found = examine(CLOUD.but(members={"hcl_report": HCL[wrong]}))
    assert failures(found)[0][0] == "evidence.form"
    assert isinstance(found.claims, Absent)


def reshaped(**changes: Any) -> bytes:
    """The genuine document with members replaced as they stand in JSON."""
    return canonical(json.loads(CLOUD.document) | changes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        CLOUD.document + b"\n",
        reshaped(version=2),
        reshaped(trusted=True),
        reshaped(td_quote=base64.b64encode(b"quote").decode()),
        reshaped(certificates=[""] * 9),
        reshaped(certificates="x"),
        reshaped(pcrs=[None]),
        reshaped(attest=""),
        reshaped(signature="00"),
        TDX.but(members={"td_quote": b""}).document,
    ],
    ids=range(12),
)
def test_a_malformed_document_is_refused_and_gives_no_claims(data: bytes) -> None:
    """Every other check has failed as well."""
    found = examine(data)
    assert [i for i, _ in failures(found)] == ["evidence.form"]
    assert not any(c.passed for c in found.checks)
    assert isinstance(found.claims, Absent)


def flips(data: bytes, step: int) -> list[bytes]:
    """`data` with one bit of every `step`-th byte flipped."""
    return [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(0, len(data), step)]


def assert_bytes_count(document: dict[str, Any], examine_it: Any, *, step: int) -> None:
    """Every flip in report, quote, signature and PCRs is refused; in report and quote, without claims."""
    for member in ("hcl_report", "attest", "signature", "td_quote"):
        for changed in flips(base64.b64decode(document[member]), step):
            text = base64.b64encode(changed).decode()
            found = examine_it(canonical(document | {member: text}))
            assert [c for c in found.checks if not c.passed], member
    for index, value in enumerate(document["pcrs"]):
        pcrs = [
            *document["pcrs"][:index],
            flips(bytes.fromhex(value), 40)[0].hex(),
            *document["pcrs"][index + 1 :],
        ]
        assert isinstance(examine_it(canonical(document | {"pcrs": pcrs})).claims, Absent)


@pytest.mark.slow
def test_every_byte_counts() -> None:
    """Report, quote, signature, PCRs; the padding must be zero."""
    assert_bytes_count(json.loads(CLOUD.document), examine, step=7)


# recorded evidence


def folder(name: str) -> dict[str, bytes]:
    """A folder of recorded evidence."""
    if not (RECORDED / name).is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    return {p.name: p.read_bytes() for p in Path(RECORDED / name).iterdir()}


def recorded_snp(name: str) -> tuple[bytes, tuple[tuple[str, bytes], ...], datetime, dict[str, Any]]:
    """Document, endorsements, time and expectation of a recorded SNP machine."""
    files = folder(f"azure/{name}")
    product = "genoa" if "genoa" in name else "milan"
    chain = folder(f"snp/roots-{product}")[f"{product}_ask_ark_asvk.pem"]
    expect = json.loads(files["expect.json"])
    return (
        from_recorded(files),
        (("chain", chain),),
        datetime.fromisoformat(expect["as_of"]),
        expect["expect"],
    )


@pytest.mark.parametrize("name", ["snp-vtpm-milan-v1", "snp-vtpm-genoa"])
def test_recorded_snp_machines_are_valid(name: str) -> None:
    """AK signature, PCR digest, runtime data, SNP chain and VMPL 0, under the pinned roots."""
    data, stapled, at, expect = recorded_snp(name)
    assert expect["outcome"].startswith("valid:")
    found = claims(examine_azure(data, endorsements=stapled, roots=PINNED_ROOTS, now=at))
    if name.endswith("v1"):
        assert found.report_data == b"challenge"
    else:
        assert len(found.report_data) == 48 and found.report_data.hex().startswith("0218488bae25")
    assert found.host_excluded and not found.debug
    assert len([k for k, _ in found.details if k.startswith("pcr")]) == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snp-vtpm-milan-v1", "snp-vtpm-genoa"])
def test_every_byte_of_the_recorded_snp_machines_counts(name: str) -> None:
    """A flip anywhere in report, quote, signature or PCRs is refused."""
    data, stapled, at, _ = recorded_snp(name)

    def examine_it(changed: bytes) -> Examination:
        return examine_azure(changed, endorsements=stapled, roots=PINNED_ROOTS, now=at)

    assert_bytes_count(json.loads(data), examine_it, step=13)


def test_the_recorded_tdx_machine_is_cryptographically_valid() -> None:
    """AK, PCRs, runtime data and TD quote hold; the library's one objection (SEPT_VE_DISABLE) is known. At the recorded
    time the bundle beside it had not been issued yet, and that is all that is wrong; when it is valid, nothing is, and
    the platform is out of date.
    """
    files = folder("azure/tdx-vtpm-v1")
    expect = json.loads(files["expect.json"])
    bundle = folder("dcap-collateral")[f"{expect['expect']['bundle']}.json"]
    data = from_recorded(files)

    def examine_at(moment: str) -> Examination:
        at = datetime.fromisoformat(moment)
        return examine_azure(data, endorsements=(("dcap", bundle),), roots=PINNED_ROOTS, now=at)

    early = examine_at(expect["as_of"])
    assert failures(early) == [("collateral.time", "collateral_from_future")]
    assert {c.id for c in early.checks if not c.passed} <= {"collateral.time", "dcap.second"}
    found = claims(examine_at("2025-10-31T14:17:11Z"))
    assert (found.report_data, found.tcb_status) == (b"challenge", "OutOfDate")
    assert dict(found.details)["sept_ve_disable"] == "false"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"evidence-v1.json": b"{}"},
        {"evidence-v1.json": b"[]"},
        {"evidence-a.json": b"{}", "evidence-b.json": b"{}"},
        {"evidence-v1.json": b'{"tpm_quote":{"pcrs":[1],"message":"","signature":""},"hcl_report":""}'},
        {"evidence-v1.json": b'{"quote":{"pcrs":[],"message":[256],"signature":[]},"report":[]}'},
        {"evidence-v1.json": b'{"quote":{"pcrs":[],"message":"zz","signature":[]},"report":[]}'},
    ],
    ids=range(7),
)
def test_a_folder_that_is_no_recording_is_refused(files: dict[str, bytes]) -> None:
    """Our error, nothing else."""
    with pytest.raises(Error):
        from_recorded(files)
