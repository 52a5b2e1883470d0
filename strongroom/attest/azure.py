"""Azure confidential machines: a hardware report for the paravisor, whose runtime data names the vTPM's attestation
key, whose quote speaks for the guest; format `azure` (docs/spec/azure.md).

Rules of this file:

1. Each link is checked from the hardware on: report, then runtime data, then key, then quote. What a link did not
   authenticate is not looked at further.
2. The hardware's measurement is the paravisor's (Microsoft's code), the PCRs are the guest's. The one without the
   other says nothing, so the measurement here is made of both.
3. The guest cannot make reports at VMPL 0. One of another level may be the guest's own, about any key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn, cast

from cryptography.hazmat.primitives.asymmetric import rsa

from strongroom.attest import dcap, snp
from strongroom.attest.evidence import MAX_EVIDENCE, Absent, Claims, Examination
from strongroom.attest.facts import AZURE_SETTINGS
from strongroom.attest.quote import TdReport
from strongroom.attest.quote import parse_quote as parse_td_quote
from strongroom.attest.strict import JSON, Members, canonical, parse_object
from strongroom.attest.tpm_quote import (
    QUOTE_CHECKS,
    Checks,
    Quote,
    Table,
    check_log,
    check_quote,
    parse_quote,
    pcr_measurement,
    quote_details,
    wrap_rsassa,
)
from strongroom.attest.x509 import pem_blocks
from strongroom.errors import MalformedInput

FORMAT = "azure"
PINNED_ROOTS: tuple[str, ...] = snp.PINNED_ROOTS + dcap.PINNED_ROOTS
"""Microsoft signs nothing here: the roots are those of the processors."""
MEASUREMENT_LABEL = b"strongroom azure measurement v1"
MAX_REPORT = 8192
"""Bytes of the paravisor's report; the NV index that holds it has 2600."""
MAX_KEYS = 8
"""Keys in the runtime data; there are two."""

_HARDWARE_SIZE, _HEADER_SIZE, _REQUEST_SIZE = 1184, 32, 20
_SNP, _TDX = 2, 4
_SHA256 = 1
_VMPL_AT = 0x30
_TD_REPORT_SIZE, _TD_REPORT_DATA_AT = 1024, 128
_AK = "HCLAkPub"
_AK_HASH = 0x000B
_MEMBERS = (
    "attest",
    "certificates",
    "event_log",
    "hcl_report",
    "pcrs",
    "signature",
    "td_quote",
    "version",
)

_TABLE: Table = {
    "evidence.form": (
        "The evidence is well-formed",
        "an azure document in its one spelling",
        "evidence_malformed",
    ),
    "azure.hardware": (
        "The hardware report inside verified",
        "claims of an SEV-SNP report or a TDX quote under an accepted root",
        "azure_hardware_refused",
    ),
    "azure.vmpl": ("The hardware report was made by the paravisor", "VMPL 0", "azure_vmpl"),
    "azure.td_report": (
        "The TD quote is for the TD report inside",
        "the report data of the TD report",
        "azure_td_report_mismatch",
    ),
    "azure.runtime_data": (
        "The runtime data are those that the hardware reports",
        "SHA-256 of the runtime data, then 32 zero bytes",
        "azure_runtime_data_mismatch",
    ),
    "azure.ak": (
        "The runtime data name the vTPM's attestation key",
        f"one RSA signing key {_AK}, 2048 bits or more",
        "azure_runtime_data_malformed",
    ),
    **QUOTE_CHECKS,
    "tpm.event_log": ("The event log, replayed, gives the signed registers", "", "event_log_mismatch"),
}


@dataclass(frozen=True, slots=True)
class HclReport:
    """The paravisor's report: `tee` is "snp" or "tdx", `hardware` the bytes of its report (SNP: 1184; TDX: a TD
    report of 1024), `runtime` the runtime data. Nothing is verified.
    """

    tee: str
    hardware: bytes
    runtime: bytes


def parse_hcl(data: bytes) -> HclReport:
    """Returns the paravisor's report that `data` is, as it lies in the vTPM's NV index 0x01400001, with its padding
    (docs/spec/azure.md §2.2).

    Raises:
        MalformedInput: code `azure_hcl_malformed`.
    """
    begin = _HEADER_SIZE + _HARDWARE_SIZE
    if not begin + _REQUEST_SIZE <= len(data) <= MAX_REPORT:
        _refuse_hcl(f"{len(data)} bytes; expected {begin + _REQUEST_SIZE} to {MAX_REPORT}")
    numbers = [int.from_bytes(data[i : i + 4], "little") for i in range(4, 20, 4)]
    version, size, request, status = numbers
    if data[:4] != b"HCLA" or version not in (1, 2) or (request, status) != (2, 0) or any(data[20:32]):
        _refuse_hcl("not a header HCLA of version 1 or 2 with an attestation report")
    stated, request_version, kind, digest, length = (
        int.from_bytes(data[begin + i : begin + i + 4], "little") for i in range(0, _REQUEST_SIZE, 4)
    )
    if request_version != 1 or kind not in (_SNP, _TDX) or digest != _SHA256:
        _refuse_hcl(f"version {request_version}, report type {kind}, hash {digest}; expected 1, 2 or 4, 1")
    end = begin + _REQUEST_SIZE + length
    if stated != _REQUEST_SIZE + length or size != begin + stated or end > len(data):
        _refuse_hcl("lengths that contradict each other")
    if any(data[end:]):
        _refuse_hcl("something stands in the padding")
    hardware = data[_HEADER_SIZE:begin]
    if kind == _TDX:
        if any(hardware[_TD_REPORT_SIZE:]):
            _refuse_hcl("something stands behind the TD report")
        hardware = hardware[:_TD_REPORT_SIZE]
    return HclReport("snp" if kind == _SNP else "tdx", hardware, data[begin + _REQUEST_SIZE : end])


def _refuse_hcl(why: str) -> NoReturn:
    raise MalformedInput(f"HCL report: {why}", code="azure_hcl_malformed")


@dataclass(frozen=True, slots=True)
class _Document:
    hcl: HclReport
    quote: Quote
    td_quote: bytes
    certificates: tuple[bytes, ...]
    event_log: bytes

    @property
    def absent(self) -> set[str]:
        """Checks that are not this document's."""
        other = {"azure.td_report" if self.hcl.tee == "snp" else "azure.vmpl"}
        return other | (set() if self.event_log else {"tpm.event_log"})


def parse_azure(data: bytes) -> _Document:
    """Returns the document of docs/spec/azure.md §2.1 that `data` is. Nothing in it is verified.

    Raises:
        MalformedInput: `evidence_malformed`, `azure_hcl_malformed`, or a code of `tpm_wire`.
    """
    what, code = "Azure evidence", "evidence_malformed"
    top = parse_object(data, limit=MAX_EVIDENCE, what=what, code=code)
    read = Members(top, _MEMBERS, what=what, code=code)
    read.integer("version", 1, 1)
    certificates = []
    for item in read.array("certificates", 8):
        certificates.append(Members({"c": item}, ("c",), what=what, code=code).base64("c", 8192))
    document = _Document(
        hcl=parse_hcl(read.base64("hcl_report", MAX_REPORT)),
        quote=parse_quote(read),
        td_quote=read.base64("td_quote", 65536),
        certificates=tuple(certificates),
        event_log=read.base64("event_log", MAX_EVIDENCE),
    )
    if bool(document.td_quote) != (document.hcl.tee == "tdx"):
        read.refuse("td_quote: there with a TD report, and only then")
    if canonical(cast(JSON, top)) != data:
        read.refuse("not in RFC 8785 form")
    return document


def examine_azure(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines the evidence of an Azure confidential machine (docs/spec/azure.md §3).

    `roots`: those of SEV-SNP and TDX; empty accepts nothing. `endorsements`: what `snp.examine_snp` and
    `dcap.examine_tdx` take.

    1. form: the strict document of §2.1, its structures included
    2. hardware: every check of `snp.examine_snp`, or of `dcap.examine_tdx_below_paravisor`; then that they gave
       claims; then VMPL 0 (SNP), or that the quote is for the TD report inside (TDX)
    3. runtime data: the hardware's report data is its SHA-256, and zeros
    4. AK: the runtime data name one
    5. quote: signature, selection, PCR digest (`tpm_quote.check_quote` numbers them)
    6. event log, where there is one: replayed, it gives the quoted PCRs

    Claims come back only where 3 to 5 passed and, of 2, the last two; a check of the hardware's own that leaves it
    its claims (debug mode) leaves them here. Checks after a failure that left nothing to check have failed as well.
    """
    # 1. form
    try:
        document = parse_azure(data)
    except MalformedInput as exc:
        checks = Checks(_TABLE)
        checks.record("evidence.form", False, exc.message, code=exc.code)
        return _absent(checks, "the evidence is malformed")
    checks = Checks({k: v for k, v in _TABLE.items() if k not in document.absent})
    checks.record("evidence.form", True, f"{len(data)} bytes")
    # 2. hardware
    hardware = _check_hardware(checks, document, endorsements, roots=roots, now=now)
    if hardware is None:
        return _absent(checks, "the hardware report did not verify")
    # 3. runtime data
    runtime = document.hcl.runtime
    expected = hashlib.sha256(runtime).digest() + bytes(32)
    same = hmac.compare_digest(hardware.report_data, expected)
    checks.record("azure.runtime_data", same, expected.hex(), expected=hardware.report_data.hex())
    if not same:
        return _absent(checks, "nothing authenticates the runtime data")
    # 4. AK
    try:
        key, facts = _parse_runtime(runtime)
    except MalformedInput as exc:
        checks.record("azure.ak", False, exc.message)
        return _absent(checks, "the runtime data name no attestation key")
    checks.record("azure.ak", True, f"RSA, {key.key_size} bits")
    # 5. quote
    sound = check_quote(checks, document.quote, key=key, scheme_hash=_AK_HASH) and checks.made[-1].passed
    # 6. event log
    events = check_log(checks, document.quote, document.event_log)
    # A quote behind a report that the paravisor did not make is nobody's.
    if not sound or not all(c.passed for c in checks.made if c.id in ("azure.vmpl", "azure.td_report")):
        return Examination(checks=tuple(checks.made), claims=Absent(FORMAT, "the quote did not verify"))
    return Examination(
        checks=tuple(checks.made), claims=replace(_claims(document, hardware, facts), events=events)
    )


def _absent(checks: Checks, why: str) -> Examination:
    checks.rest_impossible(why)
    return Examination(checks=tuple(checks.made), claims=Absent(FORMAT, why))


def _check_hardware(
    checks: Checks,
    document: _Document,
    endorsements: tuple[tuple[str, bytes], ...],
    *,
    roots: tuple[str, ...],
    now: datetime,
) -> Claims | None:
    """Step 2; the hardware's claims, or None."""
    hcl = document.hcl
    stapled = tuple((f"certificate-{i}", c) for i, c in enumerate(document.certificates)) + endorsements
    if hcl.tee == "snp":
        found = snp.examine_snp(hcl.hardware, endorsements=stapled, roots=roots, now=now)
    else:
        examine = dcap.examine_tdx_below_paravisor
        found = examine(document.td_quote, endorsements=stapled, roots=roots, now=now)
    checks.made += found.checks
    claims = found.claims
    if isinstance(claims, Absent):
        checks.record("azure.hardware", False, claims.why)
        return None
    checks.record("azure.hardware", True, f"{hcl.tee}, root {claims.root}")
    if hcl.tee == "snp":
        vmpl = int.from_bytes(hcl.hardware[_VMPL_AT : _VMPL_AT + 4], "little")
        checks.record("azure.vmpl", vmpl == 0, f"VMPL {vmpl}")
    else:
        inside = hcl.hardware[_TD_REPORT_DATA_AT : _TD_REPORT_DATA_AT + 64]
        same = hmac.compare_digest(inside, claims.report_data)
        checks.record("azure.td_report", same, claims.report_data.hex(), expected=inside.hex())
    return claims


def _parse_runtime(data: bytes) -> tuple[rsa.RSAPublicKey, tuple[tuple[str, str], ...]]:
    """Returns the AK that the runtime data name, and what else they say. Their members are Microsoft's and may grow;
    nobody but the hardware's report vouches for them.
    """
    what, code = "runtime data", "azure_runtime_data_malformed"
    top = parse_object(data, limit=MAX_REPORT, what=what, code=code)
    keys = top.get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise MalformedInput(f"{what}: keys: expected an array of at most {MAX_KEYS}", code=code)
    named = [k for k in keys if isinstance(k, dict) and k.get("kid") == _AK]
    if len(named) != 1:
        raise MalformedInput(f"{what}: {len(named)} keys named {_AK}; expected one", code=code)
    read = Members(named[0], ("kid", "key_ops", "kty", "e", "n"), what=f"{what}: {_AK}", code=code)
    if read.array("key_ops", 1) != ("sign",):
        read.refuse("key_ops: expected sign alone")
    read.text("kty", "RSA")
    read.text("e", "AQAB")
    text = read.text("n", r"[A-Za-z0-9_-]{342,684}")
    try:
        modulus = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        key = rsa.RSAPublicNumbers(65537, int.from_bytes(modulus)).public_key()
    except (binascii.Error, ValueError):
        read.refuse("n: not the base64url of an RSA modulus")
    if base64.urlsafe_b64encode(modulus).rstrip(b"=").decode() != text or key.key_size < 2048:
        read.refuse("n: not the canonical base64url of a modulus of 2048 bits or more")
    return key, _runtime_details(top)


def _runtime_details(top: dict[str, object]) -> tuple[tuple[str, str], ...]:
    details = []
    user_data, settings = top.get("user-data"), top.get("vm-configuration")
    if isinstance(user_data, str) and re.fullmatch(r"([0-9A-Fa-f]{2}){0,64}", user_data, re.ASCII):
        details.append(("azure.user_data", user_data.lower()))
    if isinstance(settings, dict):
        for member, name in AZURE_SETTINGS.items():
            if isinstance(settings.get(member), bool):
                details.append((f"azure.{name}", str(settings[member]).lower()))
        vm = settings.get("vmUniqueId")
        if isinstance(vm, str) and re.fullmatch(r"[0-9A-Fa-f-]{1,64}", vm, re.ASCII):
            details.append(("azure.vm_id", vm.lower()))
    return tuple(details)


def azure_measurement(launch: str, pcrs: str) -> str:
    """Returns the measurement (hex) of a machine: of the paravisor's launch measurement (hex) and the PCRs'
    measurement (hex) together (docs/spec/azure.md §4.1).
    """
    text = MEASUREMENT_LABEL + b"\x00" + f"{launch} {pcrs}".encode("ascii")
    return hashlib.sha256(text).hexdigest()


def _claims(document: _Document, hardware: Claims, facts: tuple[tuple[str, str], ...]) -> Claims:
    """The hardware's claims, with the guest's measurement and answer in the place of the paravisor's."""
    quote = document.quote
    pcrs = pcr_measurement(quote.bank, quote.values())
    launch = hardware.measurement
    if document.hcl.tee == "tdx":  # what a TD measured after its launch stands in its RTMRs
        body = parse_td_quote(document.td_quote).body
        launch += "".join(r.hex() for r in body.rtmrs) if isinstance(body, TdReport) else ""
    return replace(
        hardware,
        format=FORMAT,
        measurement=azure_measurement(launch, pcrs),
        # The paravisor's signer and version say nothing about the guest.
        signer="",
        product=0,
        svn=0,
        report_data=quote.attest.qualifying,
        issued_at=None,
        details=(
            ("azure.tee", document.hcl.tee),
            ("azure.launch_measurement", launch),
            ("azure.pcr_measurement", pcrs),
            *facts,
            *hardware.details,
            *quote_details(quote),
        ),
    )


def from_recorded(files: Mapping[str, bytes]) -> bytes:
    """Returns the document of docs/spec/azure.md §2.1 for a recorded folder, file name -> bytes: the one file
    `evidence*.json` in any of the three forms of §2.3.

    Raises:
        MalformedInput: code `evidence_malformed`; `certificate_malformed` for PEM that is none.
    """
    names = [n for n in files if re.fullmatch(r"evidence[a-z0-9-]*\.json", n)]
    if len(names) != 1:
        _refuse_recorded(f"{len(names)} files evidence*.json; expected one")
    top = parse_object(
        files[names[0]], limit=1 << 20, what="recorded Azure evidence", code="evidence_malformed"
    )
    quote = top.get("tpm_quote", top.get("quote"))
    if not isinstance(quote, dict) or not isinstance(quote.get("pcrs"), list):
        _refuse_recorded("no quote")
    vcek = top.get("vcek")
    certificates: list[bytes] = []
    if isinstance(vcek, str):
        pem = [block for _, block in pem_blocks(vcek.encode("utf-8", "replace"))]
        certificates = pem or [_recorded_bytes(vcek, url=True)]
    return canonical(
        {
            "attest": _b64(_recorded_bytes(quote.get("message"))),
            "certificates": [_b64(c) for c in certificates],
            "event_log": "",
            "hcl_report": _b64(_recorded_bytes(top.get("hcl_report", top.get("report")), url=True)),
            "pcrs": [_recorded_bytes(v).hex() for v in quote["pcrs"]],
            "signature": _b64(wrap_rsassa(_recorded_bytes(quote.get("signature")))),
            "td_quote": _b64(_recorded_bytes(top.get("td_quote", ""), url=True)),
            "version": 1,
        }
    )


def _recorded_bytes(value: object, *, url: bool = False) -> bytes:  # noqa: RET503 - `_refuse_recorded` raises
    """Bytes as recordings hold them: an array of integers, hex, or (`url`) base64url with or without padding."""
    try:
        if isinstance(value, list) and all(type(v) is int for v in value):
            return bytes(value)
        if isinstance(value, str):
            padded = value.replace("+", "-").replace("/", "_") + "=" * (-len(value) % 4)
            return base64.urlsafe_b64decode(padded) if url else bytes.fromhex(value)
    except (ValueError, binascii.Error):
        _refuse_recorded("a value that is neither numbers, hex nor base64url")
    _refuse_recorded("a value that is neither an array of numbers nor a string")


def _refuse_recorded(why: str) -> NoReturn:
    raise MalformedInput(f"recorded Azure evidence: {why}", code="evidence_malformed")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
