"""What this machine offers a server, what is missing, and how to get it: `strongroom doctor`.

Reads files and asks nobody: no network (that is `surroundings`), no TEE is asked for evidence. Only the layers of the
sandbox are tried, in a child that is thrown away. What it says is for an operator; nothing rests on it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from strongroom import groups, platforms
from strongroom.errors import Failure, InvalidConfig

CONFIGFS_TSM: Final = (6, 7)
"""The first Linux with configfs-tsm reports."""
RTMR_FILES: Final = (6, 16)
"""The first Linux with files for the measurement registers of a TD."""
BUILT: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""This version did not exist before: a clock that says so is wrong."""
THERE, MISSING, LIMITED = "there", "missing", "limited"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for: `state` is "there", "missing" or "limited" (there, and not usable as it is).
    `how`: what to do, "" where nothing is to be done.
    """

    name: str
    state: str
    detail: str
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding for `--json`."""
        return {"name": self.name, "state": self.state, "detail": self.detail, "how": self.how}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found at `at`. `platform`: what `auto` takes here, None where it finds nothing."""

    platform: str | None
    at: datetime
    findings: tuple[Finding, ...]


def examine(root: Path, *, release: str, now: datetime, have: Callable[[str], bool]) -> Report:
    """Looks around below `root` ("/"). `release`: the kernel's, as `uname -r` has it; `have`: whether a Python module
    is installed.
    """
    paths = platforms.Paths(
        attestation=root / "dev/attestation",
        reports=root / "sys/kernel/config/tsm/report",
        sev_guest=root / "dev/sev-guest",
        nsm=root / "dev/nsm",
        td_registers=root / "sys/devices/virtual/misc/tdx_guest/measurements",
    )
    try:
        found: str | None = platforms.resolve(platforms.AUTO, paths=paths)
    except InvalidConfig:
        found = None
    flags = _cpu_flags(root)
    findings = (
        _platform(found),
        _kernel(release),
        _sgx(root, flags),
        _gramine(paths),
        _configfs(root, paths, release),
        _tdx(root, flags),
        _snp(root, flags),
        _nitro(paths),
        _tpm(root),
        _library(have),
        _clock(now),
        *_layers(root),
        _user_namespaces(root),
        _cgroup(root),
        _group(root),
        _huge_pages(root),
    )
    return Report(platform=found, at=now, findings=findings)


def here() -> Report:
    """What this very machine offers."""
    from strongroom import sandbox  # here: clients import this module, on any system

    report = examine(
        Path("/"),
        release=platform.release(),
        now=datetime.now(UTC),
        have=lambda name: importlib.util.find_spec(name) is not None,
    )
    return replace(report, findings=(*report.findings, confinement(sandbox.probe, layers=sandbox.LAYERS)))


def confinement(probe: Callable[[], tuple[str, ...]], *, layers: tuple[str, ...]) -> Finding:
    """Which of the sandbox's layers take hold; `probe` and `layers` are those of `sandbox`."""
    try:
        held = probe()
    except Failure as exc:
        return Finding("sandbox", MISSING, exc.message)
    missing = ", ".join(layer for layer in layers if layer not in held)
    if not missing:
        return Finding("sandbox", THERE, ", ".join(held))
    how = "docs/sandbox.md says what each layer needs, and what is lost without it"
    return Finding("sandbox", LIMITED, f"{', '.join(held)}; missing: {missing}", how)


def _platform(found: str | None) -> Finding:
    if found is None:
        how = 'run it in a TEE, or on a TPM (platform = "tpm"), or try it with platform = "simulated"'
        return Finding("platform", MISSING, "auto finds no TEE that keeps the host out", how)
    return Finding("platform", THERE, platforms.PLATFORMS[found].title)


def _kernel(release: str) -> Finding:
    version = _version(release)
    if version is None:
        return Finding("kernel", LIMITED, f"{release}: not a version that is understood")
    if version >= CONFIGFS_TSM:
        registers = "; files for RTMRs" if version >= RTMR_FILES else "; no files for RTMRs before 6.16"
        return Finding("kernel", THERE, f"{release}{registers}")
    how = "TDX and SEV-SNP need Linux 6.7 or newer for configfs-tsm; SGX and TPMs do not"
    return Finding("kernel", LIMITED, release, how)


def _sgx(root: Path, flags: frozenset[str]) -> Finding:
    devices = [name for name in ("sgx_enclave", "sgx_provision") if (root / "dev" / name).exists()]
    if len(devices) == 2:
        return Finding("SGX", THERE, "/dev/sgx_enclave and /dev/sgx_provision: enclaves can be started here")
    if "sgx" in flags:
        return Finding(
            "SGX", LIMITED, "the processor has it, the devices are not there", "switch it on in the firmware"
        )
    return Finding("SGX", MISSING, "the processor does not show it")


def _gramine(paths: platforms.Paths) -> Finding:
    if not paths.attestation.exists():
        return Finding(
            "Gramine", MISSING, "this process runs outside Gramine", "start the server with gramine-sgx"
        )
    try:
        kind = (paths.attestation / "attestation_type").read_bytes()
    except OSError:
        return Finding("Gramine", LIMITED, "gramine-direct: no SGX", "start it with gramine-sgx")
    if kind == b"dcap":
        return Finding("Gramine", THERE, "on SGX, with DCAP")
    how = 'set sgx.remote_attestation = "dcap" in the manifest'
    return Finding("Gramine", LIMITED, f"attestation type {kind.decode('ascii', 'replace')!r}", how)


def _configfs(root: Path, paths: platforms.Paths, release: str) -> Finding:
    if paths.reports.is_dir():
        if os.access(paths.reports, os.W_OK):
            return Finding("configfs-tsm", THERE, str(paths.reports))
        return Finding(
            "configfs-tsm", LIMITED, f"{paths.reports} is not for this user", "give it at boot, or be root"
        )
    if not (root / "sys/kernel/config").is_dir() or not any((root / "sys/kernel/config").iterdir()):
        how = "mount -t configfs none /sys/kernel/config"
        return Finding("configfs-tsm", MISSING, "configfs is not mounted, or empty", how)
    older = (_version(release) or (0, 0)) < CONFIGFS_TSM
    how = "take Linux 6.7 or newer" if older else "modprobe tdx_guest or sev_guest, inside the guest"
    return Finding("configfs-tsm", MISSING, "nobody provides reports", how)


def _tdx(root: Path, flags: frozenset[str]) -> Finding:
    if "tdx_guest" in flags or (root / "dev/tdx_guest").exists():
        note = "it gives no key to seal with: [tdx] operator_key"
        return Finding("TDX guest", THERE, note)
    return Finding("TDX guest", MISSING, "this is no trust domain")


def _snp(root: Path, flags: frozenset[str]) -> Finding:
    guest = bool(flags & {"sev_snp", "sev_es"}) and (root / "dev/sev-guest").exists()
    if guest:
        return Finding("SEV-SNP guest", THERE, "/dev/sev-guest: sealing keys")
    if "sev_snp" in flags:
        return Finding(
            "SEV-SNP guest", LIMITED, "/dev/sev-guest is not there: no sealing key", "modprobe sev-guest"
        )
    return Finding("SEV-SNP guest", MISSING, "this is no SEV-SNP guest")


def _nitro(paths: platforms.Paths) -> Finding:
    if not paths.nsm.exists():
        return Finding("Nitro enclave", MISSING, "this is no AWS Nitro enclave")
    if not os.access(paths.nsm, os.R_OK | os.W_OK):
        how = "start the server as the enclave's root: asking takes CAP_SYS_ADMIN"
        return Finding("Nitro enclave", LIMITED, "/dev/nsm is not for this user", how)
    return Finding("Nitro enclave", THERE, "it gives no key to seal with: [nitro] operator_key")


def _tpm(root: Path) -> Finding:
    device, version = root / "dev/tpmrm0", root / "sys/class/tpm/tpm0/tpm_version_major"
    if not device.exists():
        return Finding(
            "TPM", MISSING, "/dev/tpmrm0 is not there", "switch it on in the firmware, or give the guest one"
        )
    major = _text(version)
    if major not in ("", "2"):
        return Finding("TPM", LIMITED, f"version {major}; 2.0 is needed")
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("TPM", LIMITED, "/dev/tpmrm0 is not for this user", "usermod -aG tss USER")
    return Finding("TPM", THERE, "2.0; it measures a start and hides no memory")


def _library(have: Callable[[str], bool]) -> Finding:
    if have("tpm2_pytss"):
        return Finding("tpm2-pytss", THERE, "servers can use a TPM")
    how = "apt install libtss2-dev libtss2-tcti-device0 pkg-config gcc, then pip install 'strongroom[server,tpm]'"
    return Finding("tpm2-pytss", MISSING, "only servers on a TPM need it", how)


def _clock(now: datetime) -> Finding:
    shown = now.isoformat(timespec="seconds")
    if now < BUILT:
        return Finding(
            "clock", LIMITED, f"{shown} is before this version was made", "set it: policies and tokens expire"
        )
    return Finding("clock", THERE, shown)


def _layers(root: Path) -> tuple[Finding, ...]:
    """What confines processes that touch strangers' models, as the kernel states it."""
    actions = _text(root / "proc/sys/kernel/seccomp/actions_avail")
    modules = _text(root / "sys/kernel/security/lsm").split(",")
    return (
        Finding(
            "seccomp", THERE if "errno" in actions.split() else MISSING, actions or "not stated by the kernel"
        ),
        Finding(
            "Landlock",
            THERE if "landlock" in modules else MISSING,
            ",".join(filter(None, modules)) or "not stated: securityfs is not mounted",
        ),
    )


def _user_namespaces(root: Path) -> Finding:
    name, kernel = "user namespaces", root / "proc/sys/kernel"
    spaces = _text(root / "proc/sys/user/max_user_namespaces")
    if not spaces.isdigit() or int(spaces) == 0:
        return Finding(name, MISSING, spaces or "not stated", "sysctl user.max_user_namespaces=10000")
    for setting, bad in (("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")):
        if _text(kernel / setting) == bad:
            how = f"sysctl kernel.{setting}={1 - int(bad)}, or start the server as root"
            return Finding(name, LIMITED, f"kernel.{setting} = {bad}: root alone may make them", how)
    return Finding(name, THERE, f"{spaces} at most")


def _cgroup(root: Path) -> Finding:
    """Whether memory and processes can be bounded from outside."""
    controllers = _text(root / "sys/fs/cgroup/cgroup.controllers").split()
    if not controllers:
        how = "systemd.unified_cgroup_hierarchy=1 on the kernel's command line; limits of the server's own hold without"
        older = (root / "sys/fs/cgroup/memory").is_dir()
        return Finding("cgroup", LIMITED if older else MISSING, "version 1" if older else "not mounted", how)
    lacking = [name for name in ("memory", "pids") if name not in controllers]
    if lacking:
        how = f"delegate them (systemd: Delegate={' '.join(lacking)})"
        return Finding("cgroup", LIMITED, f"version 2, without {' and '.join(lacking)}", how)
    return Finding("cgroup", THERE, f"version 2: {' '.join(controllers)}")


def _group(root: Path) -> Finding:
    """Whether a server that is started from here gets a control group for the processes that run models."""
    mount, own = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    found = groups.find(mount=mount, own=own)
    if isinstance(found, str):
        how = "systemd: Delegate=memory pids; limits of each process hold without"
        return Finding("control group of models", MISSING, found, how)
    return Finding(
        "control group of models", THERE, f"in {found.folder}, with {' and '.join(found.controllers)}"
    )


def _huge_pages(root: Path) -> Finding:
    """They spare a confidential machine page faults: each costs an exit, or a check in the RMP."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = match[1] if (match := re.search(r"\[(\w+)\]", text)) else ""
    reserved = re.search(r"^HugePages_Total:\s*(\d+)", _text(root / "proc/meminfo"), re.MULTILINE)
    detail = f"transparent: {chosen or 'not stated'}; reserved: {reserved[1] if reserved else 0}"
    if chosen in ("always", "madvise"):
        return Finding("huge pages", THERE, detail)
    how = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return Finding("huge pages", LIMITED if chosen else MISSING, detail, how)


def _cpu_flags(root: Path) -> frozenset[str]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _version(release: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
