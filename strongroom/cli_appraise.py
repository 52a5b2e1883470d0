"""`strongroom appraise`: recorded evidence of anybody's software, or a bundle, by a policy; nothing is contacted."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.calls import printable
from strongroom.cli_endorsements import endorsement_options, fetcher_of
from strongroom.errors import InvalidRequest, MalformedInput
from strongroom.terminal import EXIT_OK, EXIT_REFUSED, show_json, show_verdict

if TYPE_CHECKING:
    from strongroom.attest.appraise import Asked
    from strongroom.attest.bundle import Bundle
    from strongroom.attest.evidence import Claims, Evidence, Verdict
    from strongroom.attest.gather import Gathered
    from strongroom.endorsements import Fetcher

FORMATS: Final = ("sgx", "tdx", "snp", "azure", "nitro", "tpm", "ra-tls")
_RECORDED: Final = ("azure", "tpm")
MAX_FILE: Final = 1 << 20
MAX_FILES: Final = 64
_EVERYWHERE: Final = (
    "That it was made lately, and for you: only a nonce or report data that you chose yourself shows that.",
    "That the code named by the measurement is good: somebody has to have read it, and built it to the same digest.",
    "That this code still runs as it was measured: what is measured is a start.",
    "That a machine's owner with tools cannot open its chips: TEEs withstand software, not every laboratory.",
    "That the vendor did not sign wrongly, and that its keys were never stolen.",
)
_COLLATERAL: Final = (
    "That secrets outlast a later vulnerability: the TCB status is the vendor's word of one day.",
    "That this was its last word: collateral is valid for weeks, and an older one may be kinder to the same machine.",
)
NOT_PROVEN: Final = {
    "sgx": (
        *_COLLATERAL,
        "That what the enclave is told is true: files, time and network reach it through the host.",
    ),
    "tdx": (
        *_COLLATERAL,
        "That the kernel and the disk are what you expect: MRTD is the firmware alone. Look at RTMR0 to RTMR3 and an "
        "event log.",
    ),
    "snp": (
        "That the measurement covers more than the first memory: a kernel or disk loaded later need not be in it.",
        "That nothing in the guest stands above this code: where VMPL is not 0, whatever runs at 0 reads it all.",
        "That the firmware is recent, and that the host cannot go back to an older one: AMD states no status. A policy "
        "has to name the least TCB, and look at the committed one.",
        "That an issuer's certificate was not revoked, unless a revocation list was among the endorsements; AMD can "
        "revoke no single chip.",
        "Which machine it was, where a VLEK signed: that key is a cloud's.",
    ),
    "azure": (
        "That the paravisor is good: it is Microsoft's code inside the boundary, can read the guest, and is its TPM.",
        "That the guest is what you expect beyond the PCRs that were looked at: the hardware measured the paravisor.",
        "That the firmware is recent where the hardware is AMD's, or that Intel's status was its last word.",
        "That no certificate was revoked, unless lists were among the endorsements.",
    ),
    "nitro": (
        "That AWS cannot read the enclave: AWS is machine, vendor and root in one. Excluded is the parent instance.",
        "That no certificate was revoked (no list is looked at), nor that firmware is recent (a document names none).",
        "Whose enclave it is: PCR3 (role) and PCR4 (instance) count only where somebody looks at them.",
    ),
    "tpm": (
        "That the host cannot read the memory: a TPM says how a machine started and hides nothing.",
        "That the TPM is hardware: a root that you named yourself may be that of a software TPM.",
        "That the PCRs are the whole truth: each stage measures the next, and one that lies measures what it likes.",
        "That no certificate of the TPM was revoked: most makers publish no lists.",
    ),
    "ra-tls": (
        "That any server holds the certificate's key now: only a TLS handshake with it shows that.",
        "That the key is still in the TEE alone: taken out once, it counts until the certificate ends.",
    ),
}

NOT_PROVEN_SIMULATED: Final = ("Anything: simulated evidence protects nothing from the server's operator.",)
NOT_PROVEN_BUNDLE: Final = (
    "That this server is, or ever was, at any address: the bundle has a certificate, not a connection.",
    "When it was: time, nonce, origin and policy are the word of whoever made the bundle.",
    "That what was done in that session was done there: a bundle holds no request and no answer to one.",
)


@click.command()
@click.argument("evidence", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="What the evidence is; not with a bundle."
)  # fmt: skip
@click.option(
    "--policy", "policy_path", envvar="STRONGROOM_POLICY", metavar="FILE|PROFILE", show_envvar=True,
    help="Policy file, production or UNSAFE_ANY_MEASUREMENT; else a bundle's own.",
)  # fmt: skip
@endorsement_options
@click.option("--nonce", metavar="HEX", help="Nonce that the evidence must carry: nitro, tpm, azure.")
@click.option("--report-data", "data", metavar="HEX", help="Report data that it must carry, whole.")
@click.option("--at", metavar="RFC3339", help="The moment to verify at; else now, or a bundle's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--explain", is_flag=True, help="Say in plain words what passing does not prove.")
@click.pass_context
def appraise(
    ctx: click.Context, /, evidence: Path, format_: str | None, policy_path: str | None,
    endorsed: tuple[Path, ...], nonce: str | None, data: str | None, at: str | None, as_json: bool,
    explain: bool, **fetching: Any,
) -> None:  # fmt: skip
    """Appraise recorded evidence of anybody's software: every claim, every check, the verdict.

    EVIDENCE is a quote, report, document or certificate as it was recorded; for tpm a folder, for azure a JSON file
    or its folder; or a bundle that `strongroom verify --save` wrote, which verifies by its own policy at its own
    time unless others are given. Nothing is contacted without --fetch. Exit code 0 where the policy accepts it, 10
    where not, 20 where a file or an argument cannot be used, 30 where endorsements are missing that nobody gives now.
    """
    fetcher = fetcher_of(**fetching)
    if (bundle := _read_bundle(evidence)) is not None:
        if format_ or endorsed or nonce or data or fetcher is not None:
            raise click.UsageError(
                "a bundle has its own format, endorsements and nonce: only --policy and --at go with it"
            )
        verdict, facts = _appraise_bundle(bundle, policy_path, at)
        unproven = (*NOT_PROVEN_BUNDLE, *NOT_PROVEN.get(verdict.format, NOT_PROVEN_SIMULATED), *_EVERYWHERE)
    else:
        if format_ is None:
            raise click.UsageError(f"--format: which of {', '.join(FORMATS)}; only a bundle says so itself")
        if policy_path is None:
            raise click.UsageError("--policy: a policy file or a profile; only a bundle has its own")
        asked, facts = _asked(nonce, data, format_), {}
        verdict = _appraise_files(evidence, format_, policy_path, endorsed, asked, at, fetcher)
        carried = verdict.claims.format if verdict.claims is not None else format_
        inner = NOT_PROVEN.get(carried, ()) if carried != format_ else ()  # in a certificate: another one
        unproven = (*NOT_PROVEN[format_], *inner, *_EVERYWHERE)
    if as_json:
        document = verdict.to_json() | ({"bundle": facts} if facts else {})
        show_json({**document, "does_not_prove": list(unproven)} if explain else document)
    else:
        _show_facts(facts)
        if verdict.claims is not None:
            _show_claims(verdict.claims)
        show_verdict(verdict)
        if explain:
            click.echo("What passing does not prove:")
            click.echo("\n".join(f"  - {text}" for text in unproven))
    ctx.exit(EXIT_OK if verdict.passed else EXIT_REFUSED)


def _appraise_files(
    evidence: Path, format_: str, policy_path: str, endorsed: tuple[Path, ...], asked: Asked, at: str | None,
    fetcher: Fetcher | None,
) -> Verdict:  # fmt: skip
    from strongroom.attest.appraise import appraise as appraise_evidence
    from strongroom.attest.evidence import Evidence
    from strongroom.attest.gather import with_reason
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.sources import load_appraisal_policy, load_endorsements

    read = Evidence(format_, _read_evidence(evidence, format_), ())
    by = load_appraisal_policy(policy_path)
    now = moment(at) if at is not None else SYSTEM_CLOCK.now()
    gathered = _gather(read, load_endorsements(endorsed), fetcher, now)
    verdict = appraise_evidence(read, by, report_data=asked, endorsements=gathered.endorsements, now=now)
    reason = gathered.shortfall(verdict.code)
    return with_reason(verdict, reason) if reason else verdict


def _gather(
    evidence: Evidence, given: tuple[tuple[str, bytes], ...], fetcher: Fetcher | None, now: datetime
) -> Gathered:
    """The endorsements in the files that the evidence has use for, and what was missing beside them."""
    from strongroom.attest.gather import Gathered, fitting
    from strongroom.attest.verifiers import PINS
    from strongroom.endorsements import complete

    if fetcher is None:
        return Gathered(given)
    kept = given if evidence.format == "ra-tls" else fitting(evidence.format, evidence.data, given)
    roots = tuple(root for pins in PINS.values() for root in pins)
    return complete(fetcher, evidence.format, evidence.data, endorsements=kept, roots=roots, now=lambda: now)


def _appraise_bundle(
    bundle: Bundle, policy_path: str | None, at: str | None
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict, and what a person should know of bundle, policy and time beside it."""
    from strongroom.attest.replay import Bundled, appraise_bundle
    from strongroom.sources import load_policy

    policy = load_policy(policy_path) if policy_path is not None else Bundled()
    now = moment(at) if at is not None else Bundled()
    verdict = appraise_bundle(bundle, policy=policy, now=now)
    own = bundle.verified_at.isoformat()
    facts = {
        "origin": bundle.origin,
        "software": bundle.software,
        "verified_at": own,
        "verified_again_at": own if isinstance(now, Bundled) else now.isoformat(),
        "policy": "the bundle's own" if policy_path is None else policy_path,
        "policy_in_bundle_sha256": hashlib.sha256(bundle.policy.encode()).hexdigest(),
        "nonce": bundle.nonce.hex(),
        "leaf_sha256": hashlib.sha256(bundle.leaf).hexdigest(),
        "endorsements": [name for name, _ in bundle.endorsements],
    }
    return verdict, facts


def _show_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        click.echo(f"      {name:<30} {printable(shown, limit=1000)}")


def _show_claims(claims: Claims) -> None:
    facts = claims.to_json()
    details = facts.pop("details")
    facts["events"] = f"{len(facts['events'])} (see --json)" if facts["events"] else "no event log"
    _show_facts(facts)
    _show_facts(details)


def _read(path: Path, *, limit: int = MAX_FILE) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read", code="input_unreadable") from exc
    if len(data) > limit:
        raise InvalidRequest(f"{path}: more than {limit} bytes", code="input_unreadable")
    return data


def _read_bundle(path: Path) -> Bundle | None:
    """The bundle in the file; None where it is something else."""
    from strongroom.attest.bundle import MAX_BUNDLE, is_bundle, parse_bundle

    if not path.is_file():
        return None
    data = _read(path, limit=MAX_BUNDLE)
    return parse_bundle(data) if is_bundle(data) else None


def _read_folder(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        return {path.name: _read(path)}
    names = sorted(p for p in path.iterdir() if p.is_file())
    if len(names) > MAX_FILES:
        raise InvalidRequest(f"{path}: more than {MAX_FILES} files", code="input_unreadable")
    return {p.name: _read(p) for p in names}


def _read_evidence(path: Path, format_: str) -> bytes:
    """The evidence's bytes; those of a recorded folder or file as the format's document."""
    if format_ not in _RECORDED:
        data = _read(path)
        return _from_pem(data, path) if format_ == "ra-tls" else data
    from strongroom.attest import azure, tpm

    files = _read_folder(path)
    own = b'{"attest":' if format_ == "azure" else b'{"ak_certificate":'
    if len(files) == 1 and (data := next(iter(files.values()))).startswith(own):
        return data  # the format's own document already
    return tpm.from_recorded(files) if format_ == "tpm" else azure.from_recorded(files)


def _from_pem(data: bytes, path: Path) -> bytes:
    """The DER of a certificate that may be in PEM; exactly one."""
    if data.startswith(b"\x30") or b"-----BEGIN " not in data:
        return data  # DER, which may carry PEM inside
    from strongroom.attest.x509 import pem_blocks

    blocks = [block for label, block in pem_blocks(data) if label == "CERTIFICATE"]
    if len(blocks) != 1:
        raise MalformedInput(f"{path}: {len(blocks)} certificates; expected one", code="leaf_malformed")
    return blocks[0]


def _hex(text: str, what: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if not found:
        raise click.UsageError(f"{what}: expected hex digits")
    return found


def _asked(nonce: str | None, data: str | None, format_: str) -> Asked:
    from strongroom.attest.appraise import Nonce, NoReportData, ReportData

    if nonce is not None and data is not None:
        raise click.UsageError("--nonce and --report-data exclude each other")
    if nonce is not None:
        if format_ not in ("nitro", "tpm", "azure"):
            raise click.UsageError(f"{format_} has no place for a nonce; use --report-data")
        return Nonce(_hex(nonce, "--nonce"))
    if data is not None:
        return ReportData(_hex(data, "--report-data"))
    return NoReportData("neither --nonce nor --report-data was given")


def moment(text: str) -> datetime:
    """The moment that an option names; with its offset."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise click.UsageError("--at: expected a moment such as 2026-07-01T00:00:00Z, with its offset")
    return found
