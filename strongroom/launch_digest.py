"""The launch digest of an SEV-SNP guest (AMD's SNP firmware ABI, 56860, 8.17), with the library sev-snp-measure.

Not written here: what a VMM puts into a processor's first state (VMSA) differs between VMMs and their versions, and
that library follows them. It is no dependency of servers or clients, but of whoever computes reference values (extra
`measure`, docs/adr/0003-dependencies.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strongroom.attest.firmware import SEV_METADATA, guided_entries
from strongroom.errors import InvalidRequest, MalformedInput

VMMS: Final = ("qemu", "ec2", "gce")
MAX_VCPUS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a guest is started. `vcpu_type`: as QEMU names it (EPYC-Milan); `guest_features`: SEV_FEATURES of the VMSA,
    1 for SNP alone; `cmdline`: the kernel's, without the zero at its end.
    """

    firmware: Path
    kernel: Path | None
    initrd: Path | None
    cmdline: str
    vcpus: int
    vcpu_type: str
    vmm: str
    guest_features: int


def vcpu_types() -> tuple[str, ...]:
    """The processors that are known.

    Raises:
        InvalidRequest: the library is not installed (code `extra_missing`).
    """
    _require()
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    return tuple(CPU_SIGS)


def launch_digest(launch: Launch) -> str:
    """Returns the launch digest (96 hex digits) of a guest that is started so.

    Raises:
        InvalidRequest: the library is not installed (code `extra_missing`), or a file cannot be read
            (`input_unreadable`).
        MalformedInput: the firmware cannot start such a guest (code `artefact_malformed`).
    """
    _require()
    from sevsnpmeasure.guest import snp_calc_launch_digest
    from sevsnpmeasure.vcpu_types import CPU_SIGS
    from sevsnpmeasure.vmm_types import VMMType

    if launch.vcpu_type not in CPU_SIGS or launch.vmm not in VMMS or not 1 <= launch.vcpus <= MAX_VCPUS:
        raise MalformedInput(
            f"launch: expected a known processor and VMM, and 1 to {MAX_VCPUS} of them",
            code="artefact_malformed",
        )
    for path in filter(None, (launch.firmware, launch.kernel, launch.initrd)):
        _check_readable(path)
    if SEV_METADATA not in guided_entries(launch.firmware.read_bytes()):
        raise MalformedInput(
            "firmware: it has no SEV metadata: SEV-SNP cannot start it", code="artefact_malformed"
        )
    try:
        digest = snp_calc_launch_digest(
            launch.vcpus,
            CPU_SIGS[launch.vcpu_type],
            str(launch.firmware),
            str(launch.kernel or ""),
            str(launch.initrd or ""),
            launch.cmdline,
            launch.guest_features,
            "",
            vmm_type={"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}[launch.vmm],
        )
    except OSError as exc:
        raise InvalidRequest("a file of the guest cannot be read", code="input_unreadable") from exc
    except (RuntimeError, ValueError, AssertionError, KeyError, AttributeError):
        why = "or has no place for a kernel's digests" if launch.kernel else "or has metadata of another form"
        raise MalformedInput(
            f"firmware: sev-snp-measure cannot read it, {why}", code="artefact_malformed"
        ) from None
    if len(digest) != hashlib.sha384().digest_size:
        raise MalformedInput("launch: no digest of 48 bytes came out", code="artefact_malformed")
    return bytes(digest).hex()


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read", code="input_unreadable") from exc


def _require() -> None:
    try:
        import sevsnpmeasure  # noqa: F401
    except ImportError as exc:
        raise InvalidRequest(
            "sev-snp-measure is not installed: pip install 'strongroom[measure]'", code="extra_missing"
        ) from exc
