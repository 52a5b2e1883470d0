"""Which attester a server with these settings has: from the platform's name to the object that speaks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, cast

from strongroom import platforms
from strongroom.attest.verifiers import PINS
from strongroom.attester import (
    Attester,
    SimulatedAttester,
    Stapling,
    load_operator_key,
    load_or_create_root,
    root_digest,
)
from strongroom.config import Config
from strongroom.errors import InvalidConfig
from strongroom.tee.sev_guest import derive_key
from strongroom.tee.sgx import SgxAttester
from strongroom.tee.tsm import SnpAttester, TdxAttester, report_interface

_ROOT: Final = "simulated root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The platform that this server runs on, ready for use. `roots`: what its own evidence leads to, one of them.
    `says`: what an operator has to be told of it, as (what, value).
    """

    platform: platforms.Platform
    attester: Attester
    roots: tuple[str, ...]
    says: tuple[tuple[str, str], ...]

    @property
    def simulated(self) -> bool:
        """Whether it protects nothing."""
        return self.platform.format == "sim"


def machine(settings: Config, *, measurement: str, store_exists: bool) -> Machine:
    """Opens the platform that the settings name. `measurement`: this code's own, as it measured itself.

    Raises:
        InvalidConfig: it is not here, or a file that it needs cannot be used.
        Unavailable, Failure: it is here and does not work (codes `attester_...`).
    """
    name = platforms.resolve(settings.platform)
    platform = platforms.PLATFORMS[name]
    if name == platforms.SIMULATED:
        made = _simulated(settings, platform, measurement=measurement, store_exists=store_exists)
    else:
        made = Machine(
            platform=platform, attester=_hardware(settings, name), roots=PINS[platform.format], says=()
        )
    if not settings.endorsements:
        return made
    attester = Stapling(made.attester, settings.endorsements_path)
    return Machine(platform=platform, attester=attester, roots=made.roots, says=made.says)


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
    )


def _hardware(settings: Config, name: str) -> Attester:
    paths = platforms.PATHS
    if name == "sgx":
        seal_to = cast(Literal["measurement", "signer"], settings.sgx.seal_to)
        return SgxAttester(paths.attestation, seal_to=seal_to)
    reports = report_interface(paths.reports, platform=name)
    if name == "tdx":
        return TdxAttester(reports, operator_key=load_operator_key(settings.operator_key_path))
    return SnpAttester(reports, derive=partial(_derive, paths))


def _derive(paths: platforms.Paths, level: int) -> bytes:
    return derive_key(paths.sev_guest, level=level)
