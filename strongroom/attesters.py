"""Which attester a server with these settings has: from the platform's name to the object that speaks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, cast

from strongroom import platforms
from strongroom.anchor import UNANCHORED, Anchor, SimulatedAnchor
from strongroom.attest.verifiers import PINS
from strongroom.attester import (
    Attester,
    SimulatedAttester,
    load_operator_key,
    load_or_create_root,
    root_digest,
)
from strongroom.config import Config
from strongroom.errors import InvalidConfig, NotFound, Refused
from strongroom.keys import SealingRoot
from strongroom.stapling import StapledAttester
from strongroom.tee import rtmr
from strongroom.tee.nitro import NitroAttester
from strongroom.tee.sev_guest import derive_key
from strongroom.tee.sgx import SgxAttester
from strongroom.tee.tpm import Plan, TpmAttester
from strongroom.tee.tpm_device import Device
from strongroom.tee.tsm import SnpAttester, TdxAttester, report_interface

_ROOT: Final = "simulated root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The platform that this server runs on, ready for use. `roots`: what its own evidence leads to, one of them.
    `says`: what an operator has to be told of it, as (what, value). `anchor`: what keeps an older store out.
    `activate`: credential activation, which only a TPM has. `close`: gives the platform back. `confirm`: returns if the
    hardware shows the launch that the settings demand; a server calls it before it makes anything, `strongroom check`,
    which attests nothing, does not. Refused otherwise (codes `rtmr3_mismatch`, `host_data_mismatch`).
    """

    platform: platforms.Platform
    attester: Attester
    roots: tuple[str, ...]
    says: tuple[tuple[str, str], ...]
    anchor: Anchor
    activate: Callable[[bytes, bytes], bytes]
    close: Callable[[], None]
    confirm: Callable[[], None]

    @property
    def simulated(self) -> bool:
        """Whether it protects nothing."""
        return self.platform.format == "sim"


def no_activation(_credential: bytes, _encrypted_secret: bytes) -> bytes:
    """What platforms that are no TPM answer.

    Raises:
        NotFound: always (code `activation_unsupported`).
    """
    raise NotFound("this server's platform is no TPM", code="activation_unsupported")


def _nothing() -> None:
    """Most platforms are not opened, so there is nothing to give back; nor is a launch demanded of them."""


def machine(settings: Config, *, measurement: str, store_exists: bool, launched: str) -> Machine:
    """Opens the platform that the settings name. `measurement`: this code's own, as it measured itself. `launched`:
    what the launcher found in the TPM; "" on other platforms.

    Raises:
        InvalidConfig: it is not here, or a file that it needs cannot be used.
        Unavailable, Failure: it is here and does not work (codes `attester_...`).
    """
    name = platforms.resolve(settings.platform)
    platform = platforms.PLATFORMS[name]
    if name == platforms.SIMULATED:
        made = _simulated(settings, platform, measurement=measurement, store_exists=store_exists)
    elif name == platforms.TPM:
        made = _tpm(settings, platform, measurement=measurement, store_exists=store_exists, launched=launched)
    else:
        attester, confirm = _hardware(settings, name, measurement=measurement)
        made = Machine(
            platform=platform,
            attester=attester,
            roots=PINS[platform.format],
            says=(("rollback of the store", "not noticed: this platform has no counter"),),
            anchor=UNANCHORED,
            activate=no_activation,
            close=_nothing,
            confirm=confirm,
        )
    if not settings.endorsements:
        return made
    return replace(made, attester=StapledAttester(made.attester, tuple(map(Path, settings.endorsements))))


def _simulated(
    settings: Config, platform: platforms.Platform, *, measurement: str, store_exists: bool
) -> Machine:
    """The simulated TEE. Its root key is not made anew beside a store: it would lie where the backup belongs."""
    path = settings.root_key_path
    if not path.exists() and store_exists:
        message = (
            f"the store in {settings.state_dir} was sealed under the simulated root key {path}, which is missing: "
            "put it back, or move the store away"
        )
        raise InvalidConfig(message, code="root_key_missing")
    key = load_or_create_root(path)
    root = root_digest(key)
    return Machine(
        platform=platform,
        attester=SimulatedAttester(key, measurement),
        roots=(root,),
        says=((_ROOT, root),),
        anchor=SimulatedAnchor(settings.anchor_path),
        activate=no_activation,
        close=_nothing,
        confirm=_nothing,
    )


def _tpm(
    settings: Config, platform: platforms.Platform, *, measurement: str, store_exists: bool, launched: str
) -> Machine:
    plan = Plan(
        pcrs=settings.tpm.pcrs,
        code_pcr=settings.tpm.code_pcr,
        nv_index=settings.tpm.nv_index,
        root_file=settings.tpm_root_path,
        measurement=measurement,
        launched=launched,
        store_exists=store_exists,
    )
    device = Device(settings.tpm.tcti)
    try:
        attester = TpmAttester(device, plan)
    except BaseException:
        device.close()
        raise
    return Machine(
        platform=platform,
        attester=attester,
        roots=(attester.ak,),
        says=(("attestation key", attester.ak),),
        anchor=attester.anchor(),
        activate=attester.activate,
        close=device.close,
        confirm=_nothing,  # the TPM gave its root to nothing else
    )


def _hardware(settings: Config, name: str, *, measurement: str) -> tuple[Attester, Callable[[], None]]:
    """The attester, and the check of its launch."""
    paths = platforms.PATHS
    if name == platforms.SGX:
        seal_to = cast(Literal["measurement", "signer"], settings.sgx.seal_to)
        return SgxAttester(paths.attestation, seal_to=seal_to), _nothing
    if name == platforms.NITRO:
        return NitroAttester(paths.nsm, operator_key=_operator_key(settings, name)), _nothing
    reports = report_interface(paths.reports, platform=name)
    if name == platforms.TDX:
        td = TdxAttester(reports, operator_key=_operator_key(settings, name))
        return td, partial(
            rtmr.check_launched, td.rtmr3, measurement
        ) if settings.tdx.extend_rtmr3 else _nothing
    guest = SnpAttester(reports, derive=partial(_derive, paths))
    demanded = settings.snp.host_data == "measurement"
    return guest, partial(_check_host_data, guest.host_data, measurement) if demanded else _nothing


def _check_host_data(shown: str, measurement: str) -> None:
    if shown != measurement:
        raise Refused(
            f"HOST_DATA is {shown}, expected this code's measurement {measurement}: the host launched this guest for "
            "other code or configuration",
            code="host_data_mismatch",
        )


def _operator_key(settings: Config, name: str) -> SealingRoot | None:
    """The key in the operator's file; None where a broker keeps it (`key_seeker`)."""
    if settings.key_release.url:
        return None
    return load_operator_key(settings.operator_key_path(name))


def _derive(paths: platforms.Paths, level: int) -> bytes:
    return derive_key(paths.sev_guest, level=level)
