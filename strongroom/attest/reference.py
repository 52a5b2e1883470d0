"""Reference values of one release on one platform, out of what its build made (docs/spec/reference-values.md).

Pure: bytes of artefacts go in. Each function says what evidence of the release will state, as a release manifest and a
policy have it, and what about it a person should know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from strongroom.attest.eventlog import SHA256, parse_event_log, replay, replay_rtmrs
from strongroom.attest.firmware import Order, mrtd
from strongroom.attest.nitro import PCR_SIZE
from strongroom.attest.releases import ReferenceValue
from strongroom.attest.sigstruct import SigStruct, parse_sigstruct
from strongroom.attest.strict import parse_object
from strongroom.attest.tpm_quote import pcr_measurement
from strongroom.errors import MalformedInput

MAX_DESCRIPTION: Final = 64 * 1024
"""Bytes of what `nitro-cli build-enclave` prints; it has about 700."""
_CODE: Final = "artefact_malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What evidence of a release will state. `value`: None where something is missing that `notes` name. `svn`: the
    security version in the evidence. `facts`: what else the artefact says, as (name, text).
    """

    value: ReferenceValue | None
    svn: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def sim_reference(measurement: str, *, svn: int) -> Reference:
    """Of the simulated TEE: this code's own digest (hex)."""
    return Reference(value=ReferenceValue("sim", measurement, ()), svn=svn)


def sgx_reference(sigstruct: bytes) -> Reference:
    """Of an enclave, out of its signed SIGSTRUCT.

    Raises:
        MalformedInput: code `artefact_malformed`.
    """
    found = parse_sigstruct(sigstruct)
    notes = ("the enclave may be started in debug mode, which policies refuse",) if found.debug else ()
    value = ReferenceValue("sgx", found.mr_enclave.hex(), ())
    return Reference(value=value, svn=found.isv_svn, facts=_enclave_facts(found), notes=notes)


def _enclave_facts(found: SigStruct) -> tuple[tuple[str, str], ...]:
    return (
        ("mr_signer", found.mr_signer.hex()),
        ("isv_prod_id", str(found.isv_prod_id)),
        ("isv_svn", str(found.isv_svn)),
        ("attributes", f"{found.attributes.hex()}/{found.attributes_mask.hex()}"),
        ("xfrm", f"{found.xfrm.hex()}/{found.xfrm_mask.hex()}"),
        ("misc_select", f"{found.misc_select.hex()}/{found.misc_mask.hex()}"),
        ("isv_family_id", found.isv_family_id.hex()),
        ("isv_ext_prod_id", found.isv_ext_prod_id.hex()),
        ("debug", str(found.debug).lower()),
        ("signed", found.made.isoformat()),
    )


def tdx_reference(firmware: bytes, event_log: bytes | None, *, order: Order, launched: str) -> Reference:
    """Of a TD: MRTD computed from the firmware, RTMRs replayed from the event log (CCEL) of a start that somebody
    examined. Without a log there is no value: MRTD alone names no more than firmware. `launched`: what the launcher
    leaves in RTMR3 (hex), which no such log has; "" where it leaves that register alone.

    Raises:
        MalformedInput: codes `artefact_malformed`, `event_log_malformed`.
    """
    measurement = mrtd(firmware, order=order).hex()
    facts = (("mr_td", measurement), *((("rtmr3", launched),) if launched else ()))
    if event_log is None:
        missing = "no event log: RTMR0 to RTMR3 are missing, without which a TD's value names firmware alone"
        return Reference(value=None, facts=facts, notes=(missing,))
    logged = [value.hex() for value in replay_rtmrs(parse_event_log(event_log))]
    if launched:
        if int(logged[3], 16):
            message = "event log: it extends RTMR3, which is the code's alone with tdx.extend_rtmr3"
            raise MalformedInput(message, code="event_log_malformed")
        logged[3] = launched
    registers = tuple((f"rtmr{i}", value) for i, value in enumerate(logged))
    note = "RTMRs are those of the start that was logged: examine that log, event by event"
    return Reference(value=ReferenceValue("tdx", measurement, registers), facts=facts, notes=(note,))


def snp_reference(digest: str, *, with_kernel: bool, host_data: str) -> Reference:
    """Of an SEV-SNP guest with this launch digest (hex). `host_data`: what the server demands HOST_DATA to be (hex);
    "" where it takes any.
    """
    note = "no kernel: the digest covers the firmware alone, which starts whatever the host gives it"
    facts = (("host_data", host_data),) if host_data else ()
    return Reference(
        value=ReferenceValue("snp", digest, ()), facts=facts, notes=() if with_kernel else (note,)
    )


def nitro_reference(description: bytes) -> Reference:
    """Of an enclave's image, out of the JSON that `nitro-cli build-enclave` prints.

    Raises:
        MalformedInput: code `artefact_malformed`.
    """
    top = parse_object(description, limit=MAX_DESCRIPTION, what="enclave image", code=_CODE)
    found: Any = top.get("Measurements")
    if not isinstance(found, dict) or not str(found.get("HashAlgorithm", "")).startswith("Sha384"):
        _refuse('expected "Measurements" with SHA-384, as nitro-cli build-enclave prints it')
    pcrs = {name: found[key] for name in ("pcr0", "pcr1", "pcr2", "pcr8") if (key := name.upper()) in found}
    for name, value in pcrs.items():
        if not isinstance(value, str) or len(value) != 2 * PCR_SIZE or not _is_hex(value):
            _refuse(f"{name}: expected {PCR_SIZE} bytes in hex")
    if not {"pcr0", "pcr1", "pcr2"} <= set(pcrs) or not int(pcrs["pcr0"], 16):
        _refuse("expected PCR0, PCR1 and PCR2, and not those of debug mode")
    measurement = pcrs.pop("pcr0").lower()
    registers = tuple(sorted((name, value.lower()) for name, value in pcrs.items()))
    return Reference(value=ReferenceValue("nitro", measurement, registers))


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


def tpm_reference(
    event_log: bytes | None, *, pcrs: tuple[int, ...], code_pcr: int, code_value: str
) -> Reference:
    """Of a machine whose code register will hold `code_value` (hex): the others of `pcrs` replayed from the event log
    of a start that somebody examined (SHA-256; one that the log does not extend is zero).

    Raises:
        MalformedInput: code `event_log_malformed`.
    """
    if event_log is None:
        missing = f"no event log: PCRs {', '.join(map(str, pcrs))} of the start are missing"
        return Reference(value=None, facts=((f"pcr{code_pcr}", code_value),), notes=(missing,))
    logged = replay(parse_event_log(event_log), algorithm=SHA256)
    values: Mapping[int, bytes] = {i: logged.get(i, bytes(32)) for i in pcrs}
    if code_pcr in logged:
        raise MalformedInput(
            f"event log: it extends PCR {code_pcr}, which is the code's alone", code="event_log_malformed"
        )
    held = {**values, code_pcr: bytes.fromhex(code_value)}
    registers = tuple(sorted((f"pcr{i}", value.hex()) for i, value in held.items()))
    note = "PCRs of the start are those of the machine that wrote the log: examine it, event by event"
    value = ReferenceValue("tpm", pcr_measurement(SHA256, held), registers)
    return Reference(value=value, notes=(note,))


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"enclave image: {why}", code=_CODE)
