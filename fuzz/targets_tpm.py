"""Fuzz targets of the TPM's structures, event logs, TPM evidence and Azure's evidence.

Oracle: a value or a `strongroom.errors.Error`, nothing else; an examination never raises. Where claims come out, the
quote that gave them is the genuine one: what else a document may hold (a certificate, a log) can be cut or changed, but
never what the attestation key signed.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attest"))

import fake_tpm as fake

from strongroom.attest.azure import examine_azure, parse_hcl
from strongroom.attest.azure import from_recorded as azure_from_recorded
from strongroom.attest.eventlog import check_event_log, parse_event_log
from strongroom.attest.evidence import Absent
from strongroom.attest.tpm import activation_challenge, examine_tpm, from_recorded
from strongroom.attest.tpm_chain import EK_USE, load_certificates, verify_chain
from strongroom.attest.tpm_wire import parse_attest, parse_public, parse_signature
from strongroom.errors import Error

TPM = fake.Tpm(ak={}, members={"event_log": fake.event_log(fake.BOOT)})
RSA_TPM = fake.Tpm(label="rsa", ak_kind="rsa2048")
ROOTS = (fake.ROOT_DIGEST, TPM.ak_digest, RSA_TPM.ak_digest)
RUNTIME = json.dumps({"keys": [{"kid": "HCLAkPub"}]}).encode()
HCL = (
    b"HCLA"
    + b"".join(n.to_bytes(4, "little") for n in (2, 1216 + 20 + len(RUNTIME), 2, 0))
    + bytes(12 + 1184)
    + b"".join(n.to_bytes(4, "little") for n in (20 + len(RUNTIME), 1, 2, 1, len(RUNTIME)))
    + RUNTIME
    + bytes(64)
)
AZURE = fake.document(
    {
        "attest": RSA_TPM.attest,
        "certificates": [],
        "event_log": b"",
        "hcl_report": HCL,
        "pcrs": [v.hex() for _, v in sorted(RSA_TPM.pcrs.items())],
        "signature": fake.signature(RSA_TPM.ak_key, RSA_TPM.attest),
        "td_quote": b"",
        "version": 1,
    }
)
RECORDED = json.dumps(
    {
        "ak_public": base64.b64encode(TPM.ak_public).decode(),
        "tpm_quote": {"message": base64.b64encode(TPM.attest).decode(), "pcrs": ["00" * 32], "signature": ""},
    }
).encode()
EK = fake.leaf(TPM.ek_key, fake.EK_USE).der()

SEEDS = {
    "fuzz_tpm_attest": (TPM.attest,),
    "fuzz_tpm_public": (TPM.ak_public, RSA_TPM.ak_public),
    "fuzz_tpm_signature": (fake.signature(TPM.ak_key, b"m"), fake.signature(RSA_TPM.ak_key, b"m")),
    "fuzz_tpm_evidence": (TPM.document, RSA_TPM.document),
    "fuzz_tpm_certificate": (EK,),
    "fuzz_tpm_recorded": (RECORDED, b'{"pcrs":{"0":"00"}}'),
    "fuzz_event_log": (
        fake.event_log(fake.BOOT, banks=(fake.SHA1, fake.SHA256, fake.SHA384)) + bytes(32),
        fake.event_log([(1, 4, b"a"), (4, 4, b"b")], banks=(fake.SHA384,), first=1) + b"\xff" * 32,
    ),
    "fuzz_azure_hcl": (HCL,),
    "fuzz_azure_evidence": (AZURE,),
    "fuzz_azure_recorded": (
        b'{"quote":{"pcrs":["00"],"message":[1],"signature":"00"},"report":"AA","vcek":"AA"}',
    ),
}


def fuzz_tpm_attest(data: bytes) -> None:
    """A quote, or our error."""
    try:
        found = parse_attest(data)
    except Error:
        return
    assert len(found.qualifying) <= 66


def fuzz_tpm_public(data: bytes) -> None:
    """A key of a size that is used here, or our error."""
    try:
        found = parse_public(data)
    except Error:
        return
    assert found.key.key_size in (256, 384, 2048, 3072, 4096)


def fuzz_tpm_signature(data: bytes) -> None:
    """A signature, or our error."""
    try:
        parse_signature(data)
    except Error:
        return


def fuzz_tpm_evidence(data: bytes) -> None:
    """Nothing raises, and claims are those of a genuine quote; a challenge goes to genuine certificates only."""
    found = examine_tpm(data, endorsements=(), roots=ROOTS, now=fake.NOW)
    if not isinstance(found.claims, Absent):
        assert found.claims.report_data == fake.QUALIFYING
        assert base64.b64decode(json.loads(data)["attest"]) in (TPM.attest, RSA_TPM.attest)
    try:
        activation_challenge(
            data, endorsements=(), roots=ROOTS, now=fake.NOW, secret=bytes(32), entropy=bytes(64)
        )
    except Error:
        return


def fuzz_tpm_certificate(data: bytes) -> None:
    """Only the genuine certificate leads to the root."""
    pool = load_certificates([fake.CA_DER, fake.ROOT_DER, data])
    try:
        verify_chain(data, use=EK_USE, certificates=pool, roots=ROOTS, now=fake.NOW)
    except Error:
        return
    assert data == EK


def fuzz_tpm_recorded(data: bytes) -> None:
    """A document, or our error."""
    for files in (
        {"tpm_evidence.json": data},
        {"attest.bin": b"", "signature.bin": b"", "ak_public.bin": b"", "quote.json": data},
    ):
        try:
            from_recorded(files)
        except Error:
            continue


def fuzz_event_log(data: bytes) -> None:
    """A log whose events end within it, or our error; a check either way."""
    for rtmrs in (False, True):
        made = check_event_log(data, check_id="log", registers={}, algorithm=fake.SHA256, rtmrs=rtmrs)
        assert not made.passed
    try:
        log = parse_event_log(data)
    except Error:
        return
    assert sum(len(e.data) for e in log.events) < len(data)


def fuzz_azure_hcl(data: bytes) -> None:
    """A report, or our error."""
    try:
        found = parse_hcl(data)
    except Error:
        return
    assert len(found.hardware) in (1184, 1024)


def fuzz_azure_evidence(data: bytes) -> None:
    """Nothing raises, and no claims come out: the hardware report in it is signed by nobody."""
    found = examine_azure(data, endorsements=(), roots=ROOTS, now=fake.NOW)
    assert isinstance(found.claims, Absent)


def fuzz_azure_recorded(data: bytes) -> None:
    """A document, or our error."""
    try:
        azure_from_recorded({"evidence-v1.json": data})
    except Error:
        return
