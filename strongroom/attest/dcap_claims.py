"""What an SGX or TDX quote claims, in the words that every format shares (docs/spec/dcap.md §8).

Only `dcap.py` calls this, and only with a quote whose whole chain verified.
"""

from __future__ import annotations

from strongroom.attest.collateral import Collateral
from strongroom.attest.dcap_trust import Lists, Platform
from strongroom.attest.evidence import Claims
from strongroom.attest.pck import crl_number
from strongroom.attest.quote import SEPT_VE_DISABLE, EnclaveReport, Quote, TdReport
from strongroom.attest.tcb import Evaluation


def claims_of(
    quote: Quote,
    platform: Platform,
    collateral: Collateral,
    lists: Lists,
    evaluation: Evaluation,
    *,
    events: tuple[tuple[str, str, str], ...],
) -> Claims:
    """Returns the claims of a quote that verified (docs/spec/dcap.md §8); `events` of a log that gives its RTMRs."""
    body = quote.body
    return Claims(
        format=quote.tee,
        simulated=False,
        host_excluded=not body.debug,
        measurement=(body.mr_enclave if isinstance(body, EnclaveReport) else body.mr_td).hex(),
        signer=body.mr_signer.hex() if isinstance(body, EnclaveReport) else "",
        product=body.isv_prod_id if isinstance(body, EnclaveReport) else 0,
        svn=body.isv_svn if isinstance(body, EnclaveReport) else 0,
        debug=body.debug,
        tcb_status=evaluation.status,
        advisories=evaluation.advisories,
        report_data=body.report_data,
        root=platform.root,
        issued_at=None,
        details=(
            *(_enclave_details(body) if isinstance(body, EnclaveReport) else _td_details(body)),
            *_platform_details(quote, platform, collateral, lists, evaluation),
        ),
        events=events,
    )


def _enclave_details(body: EnclaveReport) -> tuple[tuple[str, str], ...]:
    flags = int.from_bytes(body.attributes[:8], "little")
    return (
        ("attributes", body.attributes[:8].hex()),
        ("xfrm", body.attributes[8:].hex()),
        ("misc_select", body.misc_select.hex()),
        ("provision_key", "true" if flags & 0x10 else "false"),
        ("cpu_svn", body.cpu_svn.hex()),
        ("config_id", body.config_id.hex()),
        ("config_svn", str(body.config_svn)),
        ("isv_ext_prod_id", body.isv_ext_prod_id.hex()),
        ("isv_family_id", body.isv_family_id.hex()),
    )


def _td_details(body: TdReport) -> tuple[tuple[str, str], ...]:
    found = [
        *((f"rtmr{i}", rtmr.hex()) for i, rtmr in enumerate(body.rtmrs)),
        ("mr_config_id", body.mr_config_id.hex()),
        ("mr_owner", body.mr_owner.hex()),
        ("mr_owner_config", body.mr_owner_config.hex()),
        ("td_attributes", body.td_attributes.hex()),
        ("sept_ve_disable", "true" if SEPT_VE_DISABLE in body.attribute_bits else "false"),
        ("xfam", body.xfam.hex()),
        ("mr_seam", body.mr_seam.hex()),
        ("mr_signer_seam", body.mr_signer_seam.hex()),
        ("seam_attributes", body.seam_attributes.hex()),
        ("tee_tcb_svn", body.tee_tcb_svn.hex()),
    ]
    if body.tee_tcb_svn2 is not None and body.mr_service_td is not None:
        found += [("tee_tcb_svn2", body.tee_tcb_svn2.hex()), ("mr_service_td", body.mr_service_td.hex())]
    return tuple(found)


def _platform_details(
    quote: Quote, platform: Platform, collateral: Collateral, lists: Lists, evaluation: Evaluation
) -> tuple[tuple[str, str], ...]:
    facts, info, identity = platform.facts, collateral.tcb_info, collateral.qe_identity
    found = [
        ("fmspc", facts.fmspc.hex()),
        ("ppid", facts.ppid.hex()),
        ("pce_id", facts.pce_id.hex()),
        ("pce_svn", str(facts.pce_svn)),
        ("pck_cpu_svn", facts.cpu_svn.hex()),
        ("pck_components", bytes(facts.components).hex()),
        ("pck_authority", platform.authority),
        ("sgx_type", str(facts.sgx_type)),
        *facts.configuration,
        ("qe_svn", str(quote.qe_report.isv_svn)),
        ("qe_mr_enclave", quote.qe_report.mr_enclave.hex()),
        ("platform_status", evaluation.platform_status),
        ("qe_status", evaluation.qe_status),
        ("tdx_module_status", evaluation.module_status),
        ("current_status", evaluation.current_status),
        ("tcb_date", evaluation.date.date().isoformat() if evaluation.date else ""),
        ("eval_data_number", str(min(info.evaluation, identity.evaluation))),
        ("collateral_issued", min(info.issued, identity.issued).isoformat()),
        ("collateral_expires", lists.until.isoformat()),
        ("pck_crl_number", crl_number(lists.pck)),
        ("root_crl_number", crl_number(lists.root)),
        ("platform_instance_id", facts.platform_instance_id.hex()),
        ("quote_version", str(quote.version)),
    ]
    return tuple((name, value) for name, value in found if value)
