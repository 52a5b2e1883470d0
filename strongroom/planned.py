"""What a server with these settings will be: its attested configuration and its measurement, before it runs.

The launcher, the server itself and whoever writes a policy ask the same functions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from strongroom import platforms
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.config import Config
from strongroom.errors import InvalidConfig
from strongroom.measure import Measurement, measure_at

PACKAGE: Final = Path(__file__).resolve().parent


def security_configuration(settings: Config) -> SecurityConfiguration:
    """The attested configuration that a server with these settings runs with.

    Raises:
        InvalidConfig: `platform = "auto"`, and there is no TEE (code `platform_not_found`).
    """
    name = platforms.resolve(settings.platform)
    platform = platforms.PLATFORMS[name]
    return SecurityConfiguration(
        sealing=settings.sgx.seal_to if name == "sgx" else platform.sealing,
        host_excluded=platform.host_excluded,
        isolation="in_process",
        sandbox=(),
        admission=settings.security.admission,
        anonymous_upload=settings.security.anonymous_upload,
        verify_on_load=settings.security.verify_on_load,
        logging="no_content",
    )


def measurement(settings: Config, *, preload: tuple[tuple[str, str], ...], folders: list[str]) -> Measurement:
    """The measurement of this package with these settings; `preload` as `preload_digests` has it, `folders`: where
    the dependencies lie.

    Raises:
        Failure: a dependency is missing, or a file cannot be measured.
    """
    platform = platforms.PLATFORMS[platforms.resolve(settings.platform)]
    return measure_at(
        PACKAGE,
        search_path=folders,
        security=security_configuration(settings),
        preload=preload,
        more=platform.requirements,
    )


def preload_digests(settings: Config) -> tuple[tuple[str, str], ...]:
    """(name, hex SHA-256) of each preloaded model's file.

    Raises:
        InvalidConfig: one cannot be read (code `preload_unreadable`).
    """
    return tuple((model.name, _file_digest(Path(model.path))) for model in settings.preload)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InvalidConfig(f"preload: {path.name} cannot be read", code="preload_unreadable") from exc
