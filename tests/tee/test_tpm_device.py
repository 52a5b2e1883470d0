"""`tee.tpm_device` and `tee.tpm` against a live software TPM; and what of them is arithmetic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import software_tpm
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from store_worker import open_store, upload

from strongroom.attest.evidence import Claims
from strongroom.attest.tpm import (
    EK_ENDORSEMENT,
    activation_challenge,
    examine_activated,
    examine_tpm,
    with_endorsement,
)
from strongroom.attest.tpm_activation import make_credential, verify_activation
from strongroom.attest.tpm_quote import qualifying_data
from strongroom.attest.tpm_wire import parse_public
from strongroom.errors import Failure, InvalidConfig, InvalidRequest, SealRefused
from strongroom.tee import tpm_device
from strongroom.tee.tpm import CAP, Plan, TpmAttester, code_event, measure_into
from strongroom.tee.tpm_device import Device, SealedBlob, extended

live = pytest.mark.skipif(bool(software_tpm.missing()), reason=software_tpm.missing() or "there is one")
CODE, OTHER = "ab" * 32, "cd" * 32
DATA = bytes(range(64))
PCRS = (0, 2, 4, 7)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[software_tpm.SoftwareTpm]:
    """One TPM for this file; each test resets it."""
    with software_tpm.software_tpm(tmp_path_factory.mktemp("tpm")) as made:
        yield made


@pytest.fixture
def device(machine: software_tpm.SoftwareTpm) -> Iterator[Device]:
    """The TPM behind a reset."""
    machine.reset()
    yield Device(machine.tcti)  # the next reset ends whatever is loaded


def plan(folder: Path, device: Device, *, code: str = CODE, measured: str = CODE, **changed: Any) -> Plan:
    """A launcher that told the TPM of `measured`, and a server that is `code`."""
    launched = measure_into(device, 13, measured)
    made = Plan(
        pcrs=PCRS,
        code_pcr=13,
        nv_index=0x01805354,
        root_file=folder / "tpm-root.json",
        measurement=code,
        launched=launched,
        store_exists=False,
    )
    return replace(made, **changed)


def reset(machine: software_tpm.SoftwareTpm, device: Device) -> Device:
    """The machine is switched off and on."""
    machine.reset()
    return Device(machine.tcti)


# Arithmetic


def test_the_structures_are_those_of_the_tcg() -> None:
    """Selections, attributes and sizes as Part 2 and the EK Credential Profile have them."""
    assert tpm_device.selection((0, 13)).hex() == "00000001000b03012000"
    assert len(tpm_device.EK_TEMPLATE) == 314 and tpm_device.EK_TEMPLATE[:8].hex() == "0001000b000300b2"
    assert len(tpm_device.policy_digest({13: bytes(32)})) == 32
    assert tpm_device.policy_digest({13: bytes(32)}) != tpm_device.policy_digest({12: bytes(32)})
    key = parse_public(tpm_device.AK_TEMPLATE[:-36] + _point())
    assert key.scheme == "ECDSA" and key.attributes == 0x00050472


def _point() -> bytes:
    numbers = ec.derive_private_key(5, ec.SECP256R1()).public_key().public_numbers()
    return b"".join(b"\x00\x20" + n.to_bytes(32) for n in (numbers.x, numbers.y))


def test_code_and_cap_are_events_of_their_own() -> None:
    """Nobody's measurement extends as the cap does."""
    assert code_event(CODE) != code_event(OTHER)
    assert len({code_event(CODE), bytes.fromhex(CODE), CAP}) == 3


@pytest.mark.parametrize("data", [b"", b"\x30\x82", b"\x30\x82\x00\xff", b"\x31\x82\x00\x00"])
def test_what_is_no_certificate_is_none(data: bytes) -> None:
    """An index with something else in it, or cut short."""
    assert tpm_device._der(data) == b""


def test_a_certificate_loses_its_padding() -> None:
    """Some makers fill the index."""
    assert tpm_device._der(b"\x30\x82\x00\x02ab" + b"\xff" * 9) == b"\x30\x82\x00\x02ab"


def test_without_the_library_the_platform_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(InvalidConfig, match="tpm extra") as caught:
        tpm_device.load_library()
    assert caught.value.code == "tpm_library_missing"


# Live


@live
@pytest.mark.slow
def test_a_quote_verifies_for_whom_names_the_key(device: Device, tmp_path: Path) -> None:
    """Our own verifier: PCRs, qualifying data and key; the code's PCR holds code and cap."""
    attester = TpmAttester(device, plan(tmp_path, device))
    evidence = attester.evidence(DATA, now=datetime.now(UTC))
    found = examine_tpm(evidence.data, endorsements=(), roots=(attester.ak,), now=datetime.now(UTC))
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert found.claims.report_data == qualifying_data(DATA)
    assert (found.claims.measurement, found.claims.root) == (attester.measurement, attester.ak)
    assert found.claims.host_excluded is False
    assert found.claims.fact("tpm.hierarchy") == "endorsement"
    assert found.claims.fact("pcr13") == extended(extended(bytes(32), code_event(CODE)), CAP).hex()
    unnamed = examine_tpm(evidence.data, endorsements=(), roots=(), now=datetime.now(UTC))
    assert not isinstance(unnamed.claims, Claims)


@live
@pytest.mark.slow
def test_the_root_survives_a_reset_and_nothing_else(
    machine: software_tpm.SoftwareTpm, device: Device, tmp_path: Path
) -> None:
    """The same code after a reset gets the same root. Not: a second start, other code, another firmware, code that the
    TPM was not told of, another TPM.
    """
    first = TpmAttester(device, plan(tmp_path, device)).sealing_root()
    with pytest.raises(SealRefused) as caught:  # the PCR is capped, whoever starts
        TpmAttester(device, plan(tmp_path, device))
    assert caught.value.code == "tpm_unseal_refused"
    device = reset(machine, device)
    assert TpmAttester(device, plan(tmp_path, device)).sealing_root().secret == first.secret
    device = reset(machine, device)
    with pytest.raises(SealRefused) as caught:
        TpmAttester(device, plan(tmp_path, device, code=OTHER, measured=OTHER))
    assert caught.value.code == "tpm_unseal_refused"
    device = reset(machine, device)
    with pytest.raises(SealRefused) as caught:
        TpmAttester(device, plan(tmp_path, device, measured=OTHER))
    assert caught.value.code == "tpm_launch_unmeasured"
    device = reset(machine, device)
    device.extend(4, hashlib.sha256(b"another boot loader").digest())
    with pytest.raises(SealRefused) as caught:
        TpmAttester(device, plan(tmp_path, device))
    assert caught.value.code == "tpm_unseal_refused"
    device = reset(machine, device)
    assert TpmAttester(device, plan(tmp_path, device)).sealing_root().secret == first.secret


@live
@pytest.mark.slow
def test_whoever_comes_after_the_server_unseals_nothing(device: Device, tmp_path: Path) -> None:
    """The blob lies on the disk and the TPM is at hand: the cap is what refuses."""
    attester = TpmAttester(device, plan(tmp_path, device))
    document = json.loads((tmp_path / "tpm-root.json").read_text())
    blob = SealedBlob(b64decode(document["public"]), b64decode(document["private"]))
    with pytest.raises(SealRefused) as caught:
        device.unseal(blob, (*PCRS, 13))
    assert caught.value.code == "tpm_unseal_refused"
    with pytest.raises(SealRefused):  # and a policy of its own choice opens nothing either
        device.unseal(blob, (0,))
    assert attester.sealing_root().secret.hex() not in (tmp_path / "tpm-root.json").read_text()


@live
@pytest.mark.slow
def test_a_start_that_fails_caps_as_well(device: Device, tmp_path: Path) -> None:
    """Otherwise the next process could go on where it failed."""
    made = plan(tmp_path, device, store_exists=True)
    with pytest.raises(InvalidConfig) as caught:
        TpmAttester(device, made)
    assert caught.value.code == "root_key_missing"
    assert device.read_pcrs((13,))[13] == extended(extended(bytes(32), code_event(CODE)), CAP)


@live
@pytest.mark.slow
@pytest.mark.parametrize("launched", ["", "00" * 31])
def test_a_process_that_no_launcher_started_does_not_spend_the_start(
    launched: str, device: Device, tmp_path: Path
) -> None:
    """`strongroom check` before the server: refused, and the register is as it was."""
    made = plan(tmp_path, device)
    before = device.read_pcrs((13,))
    with pytest.raises(SealRefused) as caught:
        TpmAttester(device, replace(made, launched=launched))
    assert caught.value.code == "tpm_launch_unmeasured"
    assert device.read_pcrs((13,)) == before
    TpmAttester(device, made)


@live
@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: {**d, "private": d["private"][:-8] + "AAAAAAA="},
        lambda d: {**d, "public": "AAAA"},
        lambda d: {**d, "pcrs": [13]},
        lambda d: {**d, "version": 2},
    ],
    ids=["private", "public", "pcrs", "version"],
)
def test_an_altered_sealed_root_is_refused(
    spoil: Any, machine: software_tpm.SoftwareTpm, device: Device, tmp_path: Path
) -> None:
    """Whatever the host wrote into the file."""
    TpmAttester(device, plan(tmp_path, device))
    path = tmp_path / "tpm-root.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    device = reset(machine, device)
    with pytest.raises(SealRefused) as caught:
        TpmAttester(device, plan(tmp_path, device))
    assert caught.value.code == "tpm_blob_foreign"
    device.close()


@live
@pytest.mark.slow
def test_evidence_ends_where_somebody_extends_a_register(device: Device, tmp_path: Path) -> None:
    """The quote would still verify, and say something else than the server is."""
    attester = TpmAttester(device, plan(tmp_path, device))
    device.extend(13, hashlib.sha256(b"somebody").digest())
    with pytest.raises(Failure) as caught:
        attester.evidence(DATA, now=datetime.now(UTC))
    assert caught.value.code == "attester_malformed"


@live
@pytest.mark.slow
def test_credential_activation_ties_the_key_to_the_endorsement_certificate(
    machine: software_tpm.SoftwareTpm, device: Device, tmp_path: Path
) -> None:
    """The client's half against the TPM's: the secret comes back, and the evidence is then bound as activated. A
    credential for another key, or an altered one, gives nothing.
    """
    attester = TpmAttester(device, plan(tmp_path, device))
    evidence = attester.evidence(DATA, now=datetime.now(UTC))
    ((name, certificate),) = evidence.endorsements
    assert name == EK_ENDORSEMENT
    data = with_endorsement(evidence.data, ek_certificate=certificate)
    pool = tuple((p.name, p.read_bytes()) for p in (machine.root, machine.issuer))
    der = x509.load_pem_x509_certificate(machine.root.read_bytes())
    roots = (hashlib.sha256(der.public_bytes(Encoding.DER)).hexdigest(),)
    challenge = activation_challenge(
        data,
        endorsements=pool,
        roots=roots,
        now=datetime.now(UTC),
        secret=os.urandom(32),
        entropy=os.urandom(64),
    )
    answer = attester.activate(challenge.credential, challenge.encrypted_secret)
    activated = verify_activation(answer, challenge=challenge)
    found = examine_activated(
        data, endorsements=pool, roots=roots, now=datetime.now(UTC), activated=(activated,)
    )
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert found.claims.fact("tpm.ak_bound_by") == "activated"
    without = examine_activated(data, endorsements=pool, roots=roots, now=datetime.now(UTC), activated=())
    assert not isinstance(without.claims, Claims)
    for credential, secret in (
        (challenge.credential[:-1] + b"\x00", challenge.encrypted_secret),
        (challenge.credential, challenge.encrypted_secret[:-1] + b"\x00"),
        (b"", b""),
        (b"\xff" * 80, b"\x00"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            attester.activate(credential, secret)
        assert caught.value.code == "tpm_activation_refused"
    other = make_credential(
        x509.load_der_x509_certificate(device.ek_certificate()).public_key(),  # type: ignore[arg-type]
        ak_name=b"\x00\x0b" + bytes(32),
        secret=bytes(32),
        entropy=os.urandom(64),
    )
    with pytest.raises(InvalidRequest):
        attester.activate(*other)


# The anchor in NV memory


@live
@pytest.mark.slow
def test_the_tpm_keeps_an_older_store_out(
    machine: software_tpm.SoftwareTpm, device: Device, tmp_path: Path
) -> None:
    """Over a reset; and an index that the host made anew is not taken for ours."""
    anchor = TpmAttester(device, plan(tmp_path, device)).anchor()
    folder = tmp_path / "store"
    with open_store(folder, anchor) as store:
        upload(store, "a", b"a")
    kept = shutil.copytree(folder, tmp_path / "kept")
    with open_store(folder, anchor) as store:
        store.delete("a", None)
    newest = folder.rename(tmp_path / "newest")
    kept.rename(folder)
    device = reset(machine, device)
    anchor = TpmAttester(device, plan(tmp_path, device, store_exists=True)).anchor()
    with pytest.raises(SealRefused) as caught:
        open_store(folder, anchor)
    assert caught.value.code == "store_rolled_back"
    folder.rename(tmp_path / "older")
    newest.rename(folder)
    with open_store(folder, anchor) as store:
        assert store.models() == ()
    device.define_nv(0x01805354, secret=b"the host's own", size=64)
    device.write_nv(0x01805354, bytes(64), secret=b"the host's own")
    with pytest.raises(SealRefused) as caught:
        open_store(folder, anchor)
    assert caught.value.code == "tpm_nv_foreign"
    device.close()


@live
@pytest.mark.slow
def test_kills_lose_nothing_acknowledged_with_the_anchor_in_a_tpm(tmp_path: Path) -> None:
    """kill -9 at random moments of a process that uploads and deletes: between NV memory and file, too."""
    words = [sys.executable, Path(__file__).with_name("tpm_kills.py"), tmp_path, "20261128", "25"]
    run = subprocess.run(words, capture_output=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr.decode()
    seen = json.loads(run.stdout)
    print(seen)
    assert seen["uploads"] > 10
    assert seen["in_flight_absent"] + seen["in_flight_present"] > 5
