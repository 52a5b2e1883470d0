"""Which TEE this machine is, and what follows from that for the attested configuration.

Rules
  - `auto` finds a TEE or refuses. It never falls back to simulation: a server that was meant for hardware and
    does not find it must not serve.
  - `auto` finds only what keeps the host out of the memory. A TPM does not, so it has to be asked for by name.
  - What the configuration says of the platform (`sealing`, `host_excluded`) is looked up here and set nowhere
    else.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strongroom.errors import InvalidConfig

AUTO: Final = "auto"
SIMULATED: Final = "simulated"
TPM: Final = "tpm"
NITRO: Final = "nitro"
SGX: Final = "sgx"
TDX: Final = "tdx"
SNP: Final = "snp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a platform is. `sealing`: what its sealing root is bound to, unless a setting chooses another class.
    `host_excluded`: whether its evidence shows that the host cannot read the memory. `requirements`: distributions
    that only servers on it need.
    """

    title: str
    format: str
    sealing: str
    host_excluded: bool
    requirements: tuple[str, ...] = ()


PLATFORMS: Final[Mapping[str, Platform]] = {
    SGX: Platform(title="Intel SGX under Gramine", format="sgx", sealing="measurement", host_excluded=True),
    TDX: Platform(title="Intel TDX", format="tdx", sealing="operator", host_excluded=True),
    SNP: Platform(title="AMD SEV-SNP", format="snp", sealing="measurement", host_excluded=True),
    NITRO: Platform(title="AWS Nitro Enclaves", format="nitro", sealing="operator", host_excluded=True),
    TPM: Platform(
        title="TPM 2.0: measures the start, hides no memory from the host",
        format="tpm",
        sealing="measurement",
        host_excluded=False,
        requirements=("tpm2-pytss",),
    ),
    SIMULATED: Platform(
        title="SIMULATED TEE: protects nothing from the host",
        format="sim",
        sealing=SIMULATED,
        host_excluded=False,
    ),
}
"""Name, as settings have it -> what it is. TDX and Nitro have no key for sealing, so the operator brings one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the kernel, or Gramine, shows a TEE to the code inside. Others are for tests only."""

    attestation: Path = Path("/dev/attestation")
    reports: Path = Path("/sys/kernel/config/tsm/report")
    sev_guest: Path = Path("/dev/sev-guest")
    nsm: Path = Path("/dev/nsm")
    td_registers: Path = Path("/sys/devices/virtual/misc/tdx_guest/measurements")


PATHS: Final = Paths()

PROVIDERS: Final[Mapping[str, str]] = {"tdx_guest": TDX, "sev_guest": SNP}
"""What configfs-tsm calls the provider of reports -> the platform."""


def resolve(name: str, *, paths: Paths | None = None) -> str:
    """Returns the platform that the setting `name` means here: itself, or what `auto` finds.

    Raises:
        InvalidConfig: `auto` finds none (code `platform_not_found`).
    """
    if name != AUTO:
        return name
    where = paths or PATHS
    found = _sgx(where.attestation) or _confidential_vm(where.reports) or _nitro(where.nsm)
    if found is None:
        raise InvalidConfig(
            "platform: no TEE was found here (no Gramine with DCAP, no provider of configfs-tsm reports, no "
            f'/dev/nsm); to try without one, which protects nothing from the host, set platform = "{SIMULATED}"',
            code="platform_not_found",
        )
    return found


def _sgx(folder: Path) -> str | None:
    """Gramine shows `keys/` also without SGX: only the type tells."""
    try:
        return SGX if (folder / "attestation_type").read_bytes() == b"dcap" else None
    except OSError:
        return None


def _nitro(device: Path) -> str | None:
    """Only inside an enclave is there such a device; the instance that started it has another."""
    return NITRO if device.exists() else None


def _confidential_vm(reports: Path) -> str | None:
    entry = reports / f"strongroom-{secrets.token_hex(8)}"
    try:
        entry.mkdir()
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise InvalidConfig(
                f"platform: {reports} is there, but this user may make no entry in it",
                code="platform_not_found",
            ) from exc
        return None  # no configfs-tsm, or (ENXIO) nobody who provides reports
    try:
        provider = (entry / "provider").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        with contextlib.suppress(OSError):
            entry.rmdir()
    return PROVIDERS.get(provider)
