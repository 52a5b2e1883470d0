"""Format -> who examines evidence of it, under which roots, and what it carries for an answer to a nonce.

Rules of this file:

1. `VERIFIERS` and `PINS` are literals: no import can add a format or a root.
2. A vendor's root is pinned by its format's module. Where there is no vendor (`sim`, `tpm`) the policy names roots, and
   without a policy's word there are none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from strongroom.attest import azure, dcap, nitro, snp
from strongroom.attest.appraisal import Policy
from strongroom.attest.azure import examine_azure
from strongroom.attest.dcap import examine_sgx, examine_tdx
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.evidence import REPORT_DATA_SIZE, Examination
from strongroom.attest.nitro import examine_nitro
from strongroom.attest.releases import is_manifest
from strongroom.attest.sim import examine_sim
from strongroom.attest.snp import examine_snp
from strongroom.attest.tpm import examine_tpm
from strongroom.attest.tpm_quote import QUALIFYING_SIZE, qualifying_data
from strongroom.errors import MalformedInput

VERIFIERS: dict[str, Callable[..., Examination]] = {
    "sim": examine_sim,
    "sgx": examine_sgx,
    "tdx": examine_tdx,
    "snp": examine_snp,
    "tpm": examine_tpm,
    "nitro": examine_nitro,
    "azure": examine_azure,
}
"""Format -> the function that examines evidence of it. A literal: no import can add one."""
PINS: dict[str, tuple[str, ...]] = {
    "sgx": dcap.PINNED_ROOTS,
    "tdx": dcap.PINNED_ROOTS,
    "snp": snp.PINNED_ROOTS,
    "nitro": nitro.PINNED_ROOTS,
    "azure": azure.PINNED_ROOTS,
}
"""Format -> fingerprints of its vendor's roots."""
QUALIFIED = ("tpm", "azure")
"""Formats that carry a digest of report data in a TPM's quote, not report data itself."""
_BUNDLED, _CERTIFIED = ("sgx", "tdx"), ("snp", "tpm")


def accepted_roots(evidence_format: str, policy: Policy | None) -> tuple[str, ...]:
    """Fingerprints of the roots for `evidence_format`: the vendor's pins, else those that `policy` names."""
    if evidence_format in PINS:
        return PINS[evidence_format]
    return policy.roots(evidence_format) if policy else ()


def carried(evidence_format: str, report_data: bytes) -> bytes:
    """What evidence of the format carries where it answers with `report_data`: in a TPM's quote a SHA-256, in
    every other format the report data itself.
    """
    return qualifying_data(report_data) if evidence_format in QUALIFIED else report_data


def carried_size(evidence_format: str) -> int:
    """Bytes of it."""
    return QUALIFYING_SIZE if evidence_format in QUALIFIED else REPORT_DATA_SIZE


def is_collateral(data: bytes) -> bool:
    """Whether `data` looks like a DCAP bundle: by content, whatever its name. Decides only who reads it."""
    try:
        return data.lstrip()[:1] == b"{" and "tcb_info" in json.loads(data)
    except (ValueError, RecursionError):
        return False


def split_manifests(
    endorsements: tuple[tuple[str, bytes], ...],
) -> tuple[tuple[bytes, ...], tuple[tuple[str, bytes], ...]]:
    """Sorts release manifests, which a policy may ask for, out of what goes to a format's verifier."""
    return (
        tuple(data for _, data in endorsements if is_manifest(data)),
        tuple(e for e in endorsements if not is_manifest(e[1])),
    )


def endorsements_for(
    evidence_format: str, data: bytes, endorsements: tuple[tuple[str, bytes], ...]
) -> tuple[tuple[str, bytes], ...]:
    """Those of `endorsements` that `data`, evidence of the format, has use for, of what a person collected."""
    below_paravisor = evidence_format == "azure"
    if below_paravisor:
        try:
            evidence_format = azure.parse_azure(data).hcl.tee
        except MalformedInput:
            return ()  # its verifier refuses it with the reason
    if (
        evidence_format == "tdx" and not below_paravisor
    ):  # whose RTMRs are the paravisor's: the log is the vTPM's
        return tuple(e for e in endorsements if is_collateral(e[1]) or is_event_log(e[1]))
    if evidence_format in _BUNDLED:
        return tuple(e for e in endorsements if is_collateral(e[1]))
    if evidence_format in _CERTIFIED:
        return tuple(e for e in endorsements if not (is_collateral(e[1]) or is_event_log(e[1])))
    return ()


def examiner(evidence_format: str) -> Callable[..., Examination]:
    """The verifier of the format, fed with those endorsements that it has use for."""

    def examine(
        data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
    ) -> Examination:
        fitting = endorsements_for(evidence_format, data, endorsements)
        return VERIFIERS[evidence_format](data, endorsements=fitting, roots=roots, now=now)

    return examine
