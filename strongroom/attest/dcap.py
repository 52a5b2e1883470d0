"""The formats `sgx` and `tdx`: Intel's quotes with their collateral (docs/spec/dcap.md).

Rules of this file:

1. Two evaluations, written by different people, see every quote: the one of this package, check by check, and that of
   the library `dcap-qvl`. Where they differ, neither is believed (`dcap_disagreement`).
2. The library is called only with bytes whose signatures verified here: a stranger's bytes do not reach it. What it
   says in its errors is compared with known sentences and not passed on.
3. A TCB status is a claim, not a pass: "OutOfDate" is authentic here, and the policy's to refuse.
4. Claims are shown only where the whole chain holds, from the root through the quoting enclave's identity: a report by
   any other enclave of the same machine looks just the same (CVE-2026-22696).
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from functools import lru_cache
from typing import Any

from strongroom.attest.collateral import REMEMBERED, Collateral, select_collateral
from strongroom.attest.dcap_claims import claims_of
from strongroom.attest.dcap_trust import Lists, Platform, read_chain, verify_collateral
from strongroom.attest.eventlog import SHA384, check_event_log, is_event_log, logged_events
from strongroom.attest.evidence import (
    Absent,
    Check,
    Claims,
    Examination,
    check,
    check_impossible,
    one_of,
)
from strongroom.attest.pck import is_revoked, key_of, parse_point, signed_by, validity
from strongroom.attest.quote import SEPT_VE_DISABLE, SGX, TDX, EnclaveReport, Quote, TdReport, parse_quote
from strongroom.attest.tcb import (
    NOT_LISTED,
    REVOKED,
    Evaluation,
    differs_from_identity,
    differs_from_module,
    evaluate,
    find_module,
)
from strongroom.errors import MalformedInput

PINNED_ROOTS: tuple[str, ...] = ("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",)
"""SHA-256 of the DER of the certificate "Intel SGX Root CA", valid from 2018 to 2049: the root of SGX and of TDX."""

_HARMLESS_ATTRIBUTES = frozenset({27, 28, 30, 31, 63})
"""Bits of TDATTRIBUTES that a TD may have: LASS, SEPT_VE_DISABLE, PKS, KL, PERFMON. Those of debugging have a check of
their own; migration (29), profiling and what is reserved are refused.
"""

# The checks in their order: id -> title, what is expected, the code of a refusal. TDX makes all of them.
_CHECKS = {
    "quote.form": (
        "The quote is well-formed",
        "an SGX quote of version 3 or a TDX quote of version 4 or 5",
        "quote_malformed",
    ),
    "quote.tee": ("The quote is of the kind that the format names", "", "quote_wrong_tee"),
    "pck.chain": (
        "The quote carries the chain of a platform's certificate",
        "a PCK certificate, its authority and a root, each signed by the next",
        "pck_chain_invalid",
    ),
    "pck.root": ("The root is one that the policy names", "", "root_not_accepted"),
    "pck.time": ("The certificates are valid now", "", "pck_chain_expired"),
    "qe.signature": (
        "The quoting enclave's report is signed by the platform's certified key",
        "a valid ECDSA P-256 signature",
        "qe_report_signature_invalid",
    ),
    "qe.key": (
        "The quoting enclave vouches for the key of the quote",
        "its hash in the report data of the quoting enclave",
        "attestation_key_unbound",
    ),
    "quote.signature": (
        "The quote is signed by that key",
        "a valid ECDSA P-256 signature",
        "evidence_signature_invalid",
    ),
    "collateral.form": ("Collateral for this platform is there", "one DCAP bundle", "collateral_missing"),
    "collateral.signature": (
        "The collateral is signed under the same root",
        "valid signatures on TCB info, identity and both revocation lists",
        "collateral_signature_invalid",
    ),
    "collateral.time": ("The collateral is valid now", "", "collateral_expired"),
    "pck.revocation": ("No certificate is revoked", "none on its list", "certificate_revoked"),
    "qe.identity": (
        "The quote was made by Intel's quoting enclave",
        "the enclave of the signed identity",
        "qe_identity_mismatch",
    ),
    "tcb.platform": ("The TCB info is for this kind of platform", "", "tcb_info_other_platform"),
    "tdx.module": (
        "The TDX module is one of Intel's",
        "signer and attributes of a signed identity",
        "tdx_module_mismatch",
    ),
    "tcb.level": ("The platform reaches a level that Intel lists", "a listed level", "tcb_level_unknown"),
    "tcb.revoked": ("That level is not revoked", "any status but Revoked", "tcb_revoked"),
    "tee.debug": ("The TEE is not in debug mode", "no debug attribute", "quote_debug"),
    "tdx.attributes": (
        "The trust domain has no attribute that weakens it",
        "neither migration nor profiling nor reserved bits",
        "tdx_attributes_refused",
    ),
    "tdx.sept_ve": (
        "The host cannot inject exceptions into the trust domain",
        "SEPT_VE_DISABLE set",
        "tdx_sept_ve_enabled",
    ),
    "tdx.service_td": ("No service trust domain is bound", "MRSERVICETD all zero", "tdx_service_td"),
    "tdx.event_log": (
        "The event log, replayed, gives the signed registers",
        "the signed values of all RTMRs",
        "event_log_mismatch",
    ),
    "quote.trailing": ("Nothing but zeros follows the quote", "no byte but zeros", "quote_trailing"),
    "dcap.second": (
        "A second evaluation comes to the same result",
        "the same status by dcap-qvl, and no other advisories",
        "dcap_disagreement",
    ),
}
_TDX_ONLY = ("tdx.module", "tdx.attributes", "tdx.sept_ve", "tdx.service_td", "tdx.event_log")

# What dcap-qvl 0.7 says, as it begins or contains it -> our code for the same.
_SENTENCES = (
    ("Debug mode is enabled", "quote_debug"),
    ("SEPT_VE_DISABLE is not enabled", "tdx_sept_ve_enabled"),
    ("Invalid MR service TD", "tdx_service_td"),
    ("TD migration is enabled", "tdx_attributes_refused"),
    ("TD profiling is enabled", "tdx_attributes_refused"),
    ("SERVTD_EXT is enabled", "tdx_attributes_refused"),
    ("Reserved bits in TD attributes are set", "tdx_attributes_refused"),
    ("TCB status is invalid: Revoked", "tcb_revoked"),
    ("No matching TCB level found", "tcb_level_unknown"),
    ("minimum required", "tcb_level_unknown"),
    ("No TDX module identity", "tdx_module_mismatch"),
    ("TDX module", "tdx_module_mismatch"),
    ("QE report validation failed", "qe_identity_mismatch"),
    ("QE ISVPRODID mismatch", "qe_identity_mismatch"),
    ("QE MRSIGNER mismatch", "qe_identity_mismatch"),
    ("QE MISCSELECT mismatch", "qe_identity_mismatch"),
    ("QE ATTRIBUTES mismatch", "qe_identity_mismatch"),
    ("Fmspc mismatch", "tcb_info_other_platform"),
    ("CertRevoked", "certificate_revoked"),
    ("is in the future", "collateral_from_future"),
    ("CrlExpired", "collateral_expired"),
    ("expired", "collateral_expired"),
)


def examine_sgx(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines an SGX quote (version 3) with the DCAP bundle among `endorsements`; `roots` are SHA-256 (hex) of root
    certificates' DER. The checks are those of `examine_tdx` without the ones of `tdx`.
    """
    return _examine(data, tee=SGX, endorsements=endorsements, roots=roots, now=now, paravisor=False)


def examine_tdx(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines a TDX quote (version 4 or 5) with the DCAP bundle among `endorsements`; `roots` are SHA-256 (hex) of
    root certificates' DER (docs/spec/dcap.md §7 has the checks by number).

    1. the quote: form, kind, PCK chain, root, time, the quoting enclave's signature, its word for the key, signature
    2. the collateral: form, signatures under the same root, time, revocation
    3. the quoting enclave's identity, the kind of platform, the TDX module
    4. the TCB: a listed level, not a revoked one; what level it is, is a claim
    5. the TD: no debugging, no weakening attributes, SEPT_VE_DISABLE, no service TD; where an event log (CCEL) is
       among the endorsements, replayed, it gives RTMR0 to RTMR3; nothing behind the quote
    6. dcap-qvl comes to the same result

    Claims come back only where 1 to 3 passed, except that collateral past its time is no reason to hide them.
    """
    return _examine(data, tee=TDX, endorsements=endorsements, roots=roots, now=now, paravisor=False)


def examine_tdx_below_paravisor(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines the TDX quote of a paravisor, as Azure's: as `examine_tdx`, without the check `tdx.sept_ve`.

    A paravisor takes the host's exceptions before the guest could, so its TD may leave SEPT_VE_DISABLE clear. dcap-qvl
    refuses such quotes whatever else holds; where that is its only objection, the evaluation of this package stands
    alone, and the check `dcap.second` says so. The measurements are the paravisor's, not the guest's: only for callers
    that go on to the vTPM behind it.
    """
    return _examine(data, tee=TDX, endorsements=endorsements, roots=roots, now=now, paravisor=True)


class _Record:
    """The checks of one examination, in the order of `_CHECKS`."""

    def __init__(self, tee: str, *, paravisor: bool, logged: bool) -> None:
        self.tee = tee
        left_out = set(() if tee == TDX else _TDX_ONLY)
        left_out |= ({"tdx.sept_ve"} if paravisor else set()) | (set() if logged else {"tdx.event_log"})
        self._ids = tuple(i for i in _CHECKS if i not in left_out)
        self._made: dict[str, Check] = {}

    def has(self, check_id: str) -> bool:
        """Whether this examination makes the check."""
        return check_id in self._ids

    def add(self, check_id: str, passed: bool, got: str, *, expected: str = "", code: str = "") -> bool:
        """Records the check and returns whether it passed."""
        title, usual, own = _CHECKS[check_id]
        self._made[check_id] = check(
            check_id, title, passed, expected=expected or usual, got=got, code=code or own
        )
        return passed

    def keep(self, made: Check) -> None:
        """Records a check that was made elsewhere."""
        self._made[made.id] = made

    def impossible(self, check_id: str, why: str) -> None:
        """Records a check that could not be made, which has failed."""
        title, expected, code = _CHECKS[check_id]
        self._made[check_id] = check_impossible(check_id, title, expected=expected or "–", why=why, code=code)

    def failed(self, *check_ids: str) -> bool:
        """Whether one of the checks has failed."""
        return any(i in self._made and not self._made[i].passed for i in check_ids)

    def result(self, claims: Claims | Absent) -> Examination:
        """The examination; what was not made by now could not be made."""
        why = claims.why if isinstance(claims, Absent) else "an earlier check failed"
        for check_id in self._ids:
            if check_id not in self._made:
                self.impossible(check_id, why)
        return Examination(checks=tuple(self._made[i] for i in self._ids), claims=claims)

    def stop(self, why: str) -> Examination:
        """The examination that ends here, without claims."""
        return self.result(Absent(self.tee, why))


def _examine(
    data: bytes,
    *,
    tee: str,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: datetime,
    paravisor: bool,
) -> Examination:
    logs = tuple(data for _, data in endorsements if is_event_log(data)) if tee == TDX else ()
    endorsements = tuple(e for e in endorsements if e[1] not in logs)
    record = _Record(tee, paravisor=paravisor, logged=bool(logs))
    # 1. the quote
    try:
        quote = parse_quote(data)
    except MalformedInput as exc:
        record.add("quote.form", False, exc.message)
        return record.stop("the quote is malformed")
    record.add("quote.form", True, f"{quote.tee} quote, version {quote.version}, {len(data)} bytes")
    if not record.add("quote.tee", quote.tee == tee, quote.tee, expected=tee):
        return record.stop("the quote is of another kind of TEE")
    platform = _check_platform(record, quote, roots=roots, now=now)
    if platform is None or not _check_signatures(record, quote, platform):
        return record.stop("the quote's signatures did not verify to an accepted root")
    # 2. the collateral
    found = _check_collateral(record, endorsements, platform, tee=tee, now=now)
    if found is None:
        return record.stop("no authentic collateral judges the quote")
    collateral, lists = found
    # 3. who made the quote
    if not _check_identity(record, quote, platform, collateral):
        return record.stop("the quote was not made by an enclave that Intel vouches for")
    # 4. the TCB
    td = quote.body if isinstance(quote.body, TdReport) else None
    evaluation = evaluate(
        collateral.tcb_info,
        collateral.qe_identity,
        platform.facts,
        qe_svn=quote.qe_report.isv_svn,
        report=td,
    )
    record.add("tcb.level", evaluation.status != NOT_LISTED, _statuses(evaluation))
    record.add("tcb.revoked", evaluation.status != REVOKED, evaluation.status)
    # 5. the TEE itself
    _check_attributes(record, quote)
    events = _check_log(record, td, logs) if td else ()
    # 6. a second evaluation
    if record.failed("collateral.time"):
        record.impossible("dcap.second", "the collateral is not valid now")
    else:
        body_and_signature = data[: len(data) - len(quote.trailing)]
        _check_second(
            record, body_and_signature, collateral, platform, evaluation, now=now, paravisor=paravisor
        )
    return record.result(claims_of(quote, platform, collateral, lists, evaluation, events=events))


def _check_log(record: _Record, td: TdReport, logs: tuple[bytes, ...]) -> tuple[tuple[str, str, str], ...]:
    """Check 5's log, where one is shown; its events, where it gives the signed registers."""
    if not logs:
        return ()
    if len(logs) > 1:
        record.add("tdx.event_log", False, f"{len(logs)} event logs; expected one")
        return ()
    made = check_event_log(
        logs[0], check_id="tdx.event_log", registers=dict(enumerate(td.rtmrs)), algorithm=SHA384, rtmrs=True
    )
    record.keep(made)
    return logged_events(logs[0], algorithm=SHA384, rtmrs=True) if made.passed else ()


def _check_platform(
    record: _Record, quote: Quote, *, roots: tuple[str, ...], now: datetime
) -> Platform | None:
    """Checks 1.3 to 1.5: the PCK chain, its root, and whether it is valid now."""
    try:
        platform = read_chain(quote.pck_chain)
    except MalformedInput as exc:
        record.add("pck.chain", False, exc.message)
        return None
    record.add("pck.chain", True, f"{platform.authority} authority, FMSPC {platform.facts.fmspc.hex()}")
    # an empty list accepts nothing
    if not record.add("pck.root", platform.root in roots, platform.root, expected=one_of(roots)):
        return None
    codes = ("pck_chain_from_future", "pck_chain_expired")
    if not _check_time(record, "pck.time", *validity(platform.chain), now, codes=codes):
        return None
    return platform


def _check_time(
    record: _Record,
    check_id: str,
    since: datetime,
    until: datetime,
    now: datetime,
    *,
    codes: tuple[str, str],
) -> bool:
    """Whether `now` lies within the time; the end itself is past it."""
    early = now < since
    return record.add(
        check_id,
        since <= now < until,
        now.isoformat(timespec="seconds"),
        expected=f"from {since.isoformat()}, before {until.isoformat()}",
        code=codes[0] if early else codes[1],
    )


def _check_signatures(record: _Record, quote: Quote, platform: Platform) -> bool:
    """Checks 1.6 to 1.8: PCK key -> quoting enclave's report -> attestation key -> quote."""
    key = key_of(platform.chain[0])
    genuine = signed_by(key, quote.qe_report_signature, quote.qe_report.raw)
    record.add(
        "qe.signature", genuine, "a valid signature" if genuine else "a signature that does not verify"
    )
    digest = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
    vouched = hmac.compare_digest(digest, quote.qe_report.report_data)
    got = quote.qe_report.report_data.hex()
    record.add("qe.key", vouched, got, expected=digest.hex())
    try:
        signed = signed_by(parse_point(quote.attestation_key), quote.signature, quote.signed)
        got = "a valid signature" if signed else "a signature that does not verify"
    except MalformedInput as exc:
        signed, got = False, exc.message
    record.add("quote.signature", signed, got)
    return genuine and vouched and signed


def _check_collateral(
    record: _Record,
    endorsements: tuple[tuple[str, bytes], ...],
    platform: Platform,
    *,
    tee: str,
    now: datetime,
) -> tuple[Collateral, Lists] | None:
    """Checks 2.1 to 2.4; None where nothing authentic is left to judge by, or a certificate is revoked."""
    try:
        collateral = select_collateral(endorsements, tee=tee, fmspc=platform.facts.fmspc)
    except MalformedInput as exc:
        record.add("collateral.form", False, exc.message, code=exc.code)
        return None
    evaluation = min(collateral.tcb_info.evaluation, collateral.qe_identity.evaluation)
    record.add("collateral.form", True, f"a bundle of evaluation {evaluation}")
    try:
        lists = verify_collateral(collateral, *platform.ders[1:])
    except MalformedInput as exc:
        record.add("collateral.signature", False, exc.message, code=exc.code)
        return None
    record.add("collateral.signature", True, "valid signatures")
    codes = ("collateral_from_future", "collateral_expired")
    _check_time(record, "collateral.time", lists.since, lists.until, now, codes=codes)
    leaf, authority, root = platform.chain
    revoked = [leaf] if is_revoked(lists.pck, leaf) else []
    revoked += [c for c in (authority, root, *lists.signers) if is_revoked(lists.root, c)]
    got = "; ".join(f"serial number {c.serial_number:x} is revoked" for c in revoked)
    if not record.add("pck.revocation", not revoked, got or "none"):
        return None
    return collateral, lists


def _check_identity(record: _Record, quote: Quote, platform: Platform, collateral: Collateral) -> bool:
    """Checks 3: quoting enclave (CVE-2026-22696), kind of platform, TDX module."""
    identity, info = collateral.qe_identity, collateral.tcb_info
    other_tee = f"an identity for {identity.tee}" if identity.tee != quote.tee else ""
    differs = other_tee or differs_from_identity(quote.qe_report, identity)
    record.add("qe.identity", not differs, differs or "that enclave")
    wanted = f"{quote.tee}, FMSPC {platform.facts.fmspc.hex()}, PCE {platform.facts.pce_id.hex()}"
    got = f"{info.tee}, FMSPC {info.fmspc.hex()}, PCE {info.pce_id.hex()}"
    record.add("tcb.platform", got == wanted, got, expected=wanted)
    if isinstance(quote.body, TdReport):
        module = find_module(info, quote.body)
        version = f"no identity for major version {quote.body.tee_tcb_svn[1]}"
        differs = differs_from_module(quote.body, module) if module else version
        record.add("tdx.module", not differs, differs or "that module")
    return not record.failed("qe.identity", "tcb.platform", "tdx.module")


def _statuses(evaluation: Evaluation) -> str:
    parts = [f"platform {evaluation.platform_status}", f"quoting enclave {evaluation.qe_status}"]
    if evaluation.module_status:
        parts.append(f"TDX module {evaluation.module_status}")
    if evaluation.current_status:
        parts.append(f"running now {evaluation.current_status}")
    return f"{evaluation.status} ({', '.join(parts)})"


def _check_attributes(record: _Record, quote: Quote) -> None:
    """Checks 5: what the TEE itself says that it is."""
    body = quote.body
    flags = body.attributes[:8] if isinstance(body, EnclaveReport) else body.td_attributes
    record.add("tee.debug", not body.debug, f"attributes {flags.hex()}")
    if isinstance(body, TdReport):
        tud = frozenset(range(8))
        unwanted = sorted(body.attribute_bits - _HARMLESS_ATTRIBUTES - tud)
        got = f"bits {', '.join(map(str, unwanted))}" if unwanted else "none of them"
        record.add("tdx.attributes", not unwanted, got)
        if record.has("tdx.sept_ve"):
            disabled = SEPT_VE_DISABLE in body.attribute_bits
            record.add("tdx.sept_ve", disabled, "set" if disabled else "clear")
        bound = body.mr_service_td is not None and any(body.mr_service_td)
        got = body.mr_service_td.hex() if bound and body.mr_service_td else "all zero"
        record.add("tdx.service_td", not bound, got)
    got = f"{len(quote.trailing)} bytes"
    record.add(
        "quote.trailing", not any(quote.trailing), f"{got}, not all zero" if any(quote.trailing) else got
    )


def _check_second(
    record: _Record,
    data: bytes,
    collateral: Collateral,
    platform: Platform,
    evaluation: Evaluation,
    *,
    now: datetime,
    paravisor: bool,
) -> None:
    """Check 6: dcap-qvl, over the same bytes, root and time. Its words stay here: codes come out."""
    try:
        import dcap_qvl
    except ImportError:
        record.add("dcap.second", False, "dcap-qvl is not installed", code="dcap_unavailable")
        return
    try:
        bundle = _read_for_second(collateral.text)
        found = dcap_qvl.verify_with_root_ca(data, bundle, platform.ders[-1], int(now.timestamp()))
        status, advisories = str(found.status), tuple(str(a) for a in found.advisory_ids)
    except (ValueError, OverflowError) as exc:
        code = next((c for words, c in _SENTENCES if words in str(exc)), "dcap_refused")
        if paravisor and code == "tdx_sept_ve_enabled":
            got = "dcap-qvl judges no quote with SEPT_VE_DISABLE clear; it had no other objection"
            record.add("dcap.second", True, got)
            return
        record.add("dcap.second", False, f"dcap-qvl refused the quote: {code}", code=code)
        return
    # Ours are those of the launch and of what runs now; the library's are of one of them.
    agreed = status == evaluation.status and set(advisories) <= set(evaluation.advisories)
    record.add(
        "dcap.second",
        agreed,
        f"{status} with {len(advisories)} advisories",
        expected=f"{evaluation.status}, advisories among {one_of(evaluation.advisories or ('none',))}",
    )


@lru_cache(maxsize=REMEMBERED)
def _read_for_second(text: str) -> Any:
    """The bundle as dcap-qvl reads it, remembered as `dcap_trust` remembers ours: it verifies nothing, cannot be
    changed, and the library is given it with every quote.
    """
    import dcap_qvl

    return dcap_qvl.QuoteCollateralV3.from_json(text)
