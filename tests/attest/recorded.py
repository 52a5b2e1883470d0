"""The recorded evidence beside some checkouts, as calls of `strongroom appraise` with the outcome of each.

What a sample must give is read from its `expect.json`; only which chain goes with which sample is said here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import SHARED

EVIDENCE = SHARED / "evidence"
ABSENT = "not exercised here: recorded evidence is not beside this checkout"


@dataclass(frozen=True)
class Case:
    """One appraisal by UNSAFE_ANY_MEASUREMENT. `code`: of a failure that must be there, "" where all must pass."""

    name: str
    format: str
    path: Path
    endorsements: tuple[Path, ...]
    at: str
    code: str
    status: str = ""

    def arguments(self) -> list[str]:
        """For the command line."""
        stapled = [word for path in self.endorsements for word in ("--endorsements", str(path))]
        return [str(self.path), "--format", self.format, "--at", self.at, *stapled]


def _expect(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "expect.json").read_text()))


_ERRORS = {
    "Verification failed: Debug mode is enabled": "quote_debug",
    "Verification failed: Invalid MR service TD": "tdx_service_td",
    "Verification failed: No matching TCB level found": "tcb_level_unknown",
}


def _bundle(name: str) -> Path:
    return EVIDENCE / "dcap-collateral" / f"{name}.json"


def _quotes() -> list[Case]:
    cases = []
    for folder in sorted([*EVIDENCE.glob("sgx/*"), *EVIDENCE.glob("tdx/*")]):
        said = _expect(folder)
        expect, tee, quote = said["expect"], folder.parent.name, folder / "quote.bin"
        if "bundle_used" in expect:
            stapled = (_bundle(expect["bundle_used"]),)
            cases.append(Case(folder.name, tee, quote, stapled, said["as_of"], "pck_chain_invalid"))
        for bundle, result in expect.get("dcap_qvl_0.7.0", {}).items():
            code = _ERRORS[result["error"]] if "error" in result else ""
            status = result.get("status", "")
            name = f"{folder.name}-{bundle}"
            cases.append(Case(name, tee, quote, (_bundle(bundle),), result["as_of"], code, status))
    return cases


def _reports() -> list[Case]:
    cases = []
    for folder in sorted(EVIDENCE.glob("snp/*-v*")):
        said, family = _expect(folder), folder.name.partition("-")[0]
        chain = EVIDENCE / "snp" / f"roots-{family}" / f"{family}_ask_ark_asvk.pem"
        report, code = folder / "report.bin", "debug_platform" if said["expect"]["debug"] else ""
        cases.append(
            Case(folder.name, "snp", report, (folder / "leaf.der", chain), said["as_of"], code, "NotReported")
        )
        for forged in sorted(folder.glob("neg_*.der")):
            stapled = (forged, chain)
            cases.append(Case(forged.name, "snp", report, stapled, said["as_of"], "chain_signature_invalid"))
    return cases


def _machines() -> list[Case]:
    cases = []
    for folder in sorted(EVIDENCE.glob("azure/*")):
        said, path = _expect(folder), next(folder.glob("evidence*.json"))
        if "bundle" in said["expect"]:
            stapled = (_bundle(said["expect"]["bundle"]),)
            early, later = said["as_of"], "2025-10-31T14:17:11Z"
            cases.append(
                Case(f"{folder.name}-early", "azure", path, stapled, early, "collateral_from_future")
            )
            cases.append(Case(folder.name, "azure", path, stapled, later, "", "OutOfDate"))
            continue
        family = "genoa" if "genoa" in folder.name else "milan"
        chain = EVIDENCE / "snp" / f"roots-{family}" / f"{family}_ask_ark_asvk.pem"
        cases.append(Case(folder.name, "azure", path, (chain,), said["as_of"], ""))
    return cases


def _documents() -> list[Case]:
    cases = []
    for folder in sorted(EVIDENCE.glob("nitro/*")):
        said = _expect(folder)
        code = "debug_platform" if said["expect"]["debug"] else ""
        cases.append(Case(folder.name, "nitro", folder / "doc.cose", (), said["as_of"], code))
        if (folder / "certificate.der").is_file():
            certificate = folder / "certificate.der"
            cases.append(Case(f"{folder.name}-certificate", "ra-tls", certificate, (), said["as_of"], code))
    return cases


def _certificates() -> list[Case]:
    bundle = (_bundle("sgx-00606A000000-platform-20250815-eval17"),)
    codes = {"openenclave-legacy-rsa": "ratls_signature_invalid"}
    return [
        Case(folder.name, "ra-tls", folder / "certificate.der", bundle, _expect(folder)["as_of"],
             codes.get(folder.name, "quote_debug"))
        for folder in sorted(EVIDENCE.glob("ra-tls/*"))
    ]  # fmt: skip


def _tpms() -> list[Case]:
    """Software TPMs: no root is named for them here, so nothing about them is accepted."""
    now = "2026-11-22T02:50:29Z"
    return [
        Case(folder.name, "tpm", folder, (), now, "root_not_accepted")
        for folder in sorted(EVIDENCE.glob("tpm/*"))
    ]


CASES = [*_quotes(), *_reports(), *_machines(), *_documents(), *_certificates(), *_tpms()]
