"""The evaluation of a platform's TCB: which of the vendor's levels it reaches, and what becomes of several words
(docs/spec/dcap.md §6).

Pure functions of documents that were verified. A level is looked for from the top; the first that holds counts. "Holds"
means *every* SVN: comparing the arrays as numbers or texts accepts platforms that are behind in a later component.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strongroom.attest.collateral import EnclaveLevel, Level, ModuleIdentity, QeIdentity, TcbInfo
from strongroom.attest.pck import PckFacts
from strongroom.attest.quote import EnclaveReport, TdReport

NOT_LISTED = "NotSupported"
"""Stands for a platform, module or quoting enclave that is below every listed level; no policy can accept it."""
REVOKED = "Revoked"
_FIRST_MODULE_FREE = 2
"""Where a TDX module states its major version, the first two TDX SVNs are the module's and are judged by its own
levels.
"""
_CURRENT_ENOUGH = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
)
_CONFIGURATION = ("ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out: the status of all together, and of the parts ("" where there is no such part; `current` is the
    status with TEE_TCB_SVN2). `date` is the oldest date of the levels reached, None where one was not.
    """

    status: str
    platform_status: str
    module_status: str
    qe_status: str
    current_status: str
    advisories: tuple[str, ...]
    date: datetime | None


def differs_from_identity(report: EnclaveReport, identity: QeIdentity) -> str:
    """Returns in what the enclave that made `report` is not the one of `identity`, "" if it is (§5.2).

    The identity's word is compared under its masks; MRENCLAVE is not named, for Intel publishes signers.
    """
    if report.mr_signer != identity.mr_signer:
        return f"MRSIGNER {report.mr_signer.hex()}"
    if report.isv_prod_id != identity.isv_prod_id:
        return f"ISVPRODID {report.isv_prod_id}"
    # Written as a big-endian number in the identity, stored little endian in the report.
    misc = bytes(reversed(report.misc_select))
    if not _equal_under(identity.misc_select_mask, misc, identity.misc_select):
        return f"MISCSELECT {misc.hex()}"
    if not _equal_under(identity.attributes_mask, report.attributes, identity.attributes):
        return f"ATTRIBUTES {report.attributes.hex()}"
    return ""


def _equal_under(mask: bytes, got: bytes, wanted: bytes) -> bool:
    return all(g & m == w & m for m, g, w in zip(mask, got, wanted, strict=True))


def find_module(info: TcbInfo, report: TdReport) -> ModuleIdentity | None:
    """Returns the identity of the TDX module of the major version that `report` states, None if there is none."""
    return _module_of(info, report.tee_tcb_svn)


def differs_from_module(report: TdReport, module: ModuleIdentity) -> str:
    """Returns in what the TDX module is not the one of `module`, "" if it is (§5.3)."""
    if report.mr_signer_seam != module.mr_signer:
        return f"MRSIGNERSEAM {report.mr_signer_seam.hex()}"
    outside = any(g & ~m & 0xFF for g, m in zip(report.seam_attributes, module.attributes_mask, strict=True))
    if outside or not _equal_under(module.attributes_mask, report.seam_attributes, module.attributes):
        return f"SEAMATTRIBUTES {report.seam_attributes.hex()}"
    return ""


def evaluate(
    info: TcbInfo, identity: QeIdentity, pck: PckFacts, *, qe_svn: int, report: TdReport | None
) -> Evaluation:
    """Returns the TCB status of a platform with the certified SVNs of `pck`, whose quoting enclave has ISVSVN
    `qe_svn`; for TDX with its TD report, None for SGX (§6).

    1. the platform's level, from the SGX SVNs, the PCE's SVN and (TDX) TEE_TCB_SVN
    2. (TDX) the level of the module
    3. the level of the quoting enclave
    4. what they come to together
    5. (TD report 1.5) the same with TEE_TCB_SVN2, the TCB that runs now: where that is current and the one of the
       launch is not, a relaunch is advised
    """
    qe = _enclave_level(identity.levels, qe_svn)
    if report is None:
        return _together(_platform_level(info, pck, None), None, qe, with_module=False)
    launch = _evaluate_td(info, pck, qe, report.tee_tcb_svn)
    if report.tee_tcb_svn2 is None:
        return launch
    return _relaunch(launch, _evaluate_td(info, pck, qe, report.tee_tcb_svn2))


def _evaluate_td(info: TcbInfo, pck: PckFacts, qe: EnclaveLevel | None, svns: bytes) -> Evaluation:
    module = _module_of(info, svns)
    level = _enclave_level(module.levels, svns[0]) if module else None
    return _together(_platform_level(info, pck, svns), level, qe, with_module=svns[1] > 0)


def _module_of(info: TcbInfo, svns: bytes) -> ModuleIdentity | None:
    return next((m for m in info.modules if m.major == svns[1]), None)


def _platform_level(info: TcbInfo, pck: PckFacts, tdx: bytes | None) -> Level | None:
    for level in info.levels:
        # all, never a comparison of the sequences: that stops at the first difference
        if pck.pce_svn < level.pce_svn or any(g < w for g, w in zip(pck.components, level.sgx, strict=True)):
            continue
        if tdx is not None:
            first = _FIRST_MODULE_FREE if tdx[1] > 0 else 0
            if any(g < w for g, w in zip(tdx[first:], level.tdx[first:], strict=True)):
                continue
        return level
    return None


def _enclave_level(levels: tuple[EnclaveLevel, ...], svn: int) -> EnclaveLevel | None:
    return next((level for level in levels if svn >= level.isv_svn), None)


def _together(
    platform: Level | None, module: EnclaveLevel | None, qe: EnclaveLevel | None, *, with_module: bool
) -> Evaluation:
    """The platform's status, made worse by an outdated or revoked module or quoting enclave, never better."""
    parts: list[Level | EnclaveLevel | None] = [platform, module, qe] if with_module else [platform, qe]
    found = [part for part in parts if part is not None]
    statuses = [part.status for part in found]
    if len(found) < len(parts):
        status = NOT_LISTED
    elif REVOKED in statuses:
        status = REVOKED
    else:
        status = _worse(statuses[0]) if "OutOfDate" in statuses[1:] else statuses[0]
    return Evaluation(
        status=status,
        platform_status=platform.status if platform else NOT_LISTED,
        module_status=(module.status if module else NOT_LISTED) if with_module else "",
        qe_status=qe.status if qe else NOT_LISTED,
        current_status="",
        advisories=tuple(sorted({a for part in found for a in part.advisories})),
        date=min(part.date for part in found) if len(found) == len(parts) else None,
    )


def _worse(status: str) -> str:
    """What a platform's status becomes where a part of it is out of date."""
    return "OutOfDateConfigurationNeeded" if status in _CONFIGURATION else "OutOfDate"


def _relaunch(launch: Evaluation, current: Evaluation) -> Evaluation:
    """The launch's evaluation, changed where the TCB that runs now is current and the one of the launch was not.

    A TCB that runs now and is not listed or revoked counts as the result, for it is what protects the TD.
    """
    advisories = tuple(sorted({*launch.advisories, *current.advisories}))
    status = launch.status
    if current.status in (NOT_LISTED, REVOKED) and launch.status != NOT_LISTED:
        status = current.status
    elif launch.status in ("OutOfDate", "OutOfDateConfigurationNeeded") and current.status in _CURRENT_ENOUGH:
        configuration = launch.status in _CONFIGURATION or current.status in _CONFIGURATION
        status = "TDRelaunchAdvisedConfigurationNeeded" if configuration else "TDRelaunchAdvised"
    return Evaluation(
        status=status,
        platform_status=launch.platform_status,
        module_status=launch.module_status,
        qe_status=launch.qe_status,
        current_status=current.status,
        advisories=advisories,
        date=launch.date,
    )
