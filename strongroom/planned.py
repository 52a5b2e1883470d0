"""What a server with these settings will be: its attested configuration and its measurement, before it runs.

The launcher, the server itself and whoever writes a policy ask the same functions.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from strongroom import age, platforms
from strongroom.attest.keyset import KEY_RELEASE, NONE, SecurityConfiguration
from strongroom.config import Config
from strongroom.errors import InvalidConfig, MalformedInput
from strongroom.measure import Measurement, measure_at
from strongroom.sandbox import LAYERS

FEWEST: Final = ("closed_descriptors", "no_new_privileges", "not_dumpable", "rlimits", "seccomp")
"""Layers without which no stranger's model runs in a process of its own."""
MAX_HANDOVER_POLICY: Final = 64 * 1024
"""Bytes of a hand-over policy: what `attest.policy` reads."""
BROKERED: Final = (platforms.TDX, platforms.NITRO, platforms.SIMULATED)
"""Platforms that have no sealing key of their own (or only pretend to), so that a broker may keep one."""
PACKAGE: Final = Path(__file__).resolve().parent


def security_configuration(settings: Config) -> SecurityConfiguration:
    """The attested configuration that a server with these settings runs with.

    Raises:
        InvalidConfig: `platform = "auto"`, and there is no TEE (code `platform_not_found`); models cannot be
            isolated there as the settings say (code `isolation_unsupported`); the hand-over policy cannot be read
            (`handover_policy_unusable`); no such recovery key (`recovery_recipient_unusable`); no such broker
            (`key_release_unusable`, `key_release_unsupported`).
    """
    name = platforms.resolve(settings.platform)
    platform = platforms.PLATFORMS[name]
    key_release = _key_release(settings, name)
    sealing = settings.sgx.seal_to if name == "sgx" else platform.sealing
    return SecurityConfiguration(
        sealing=sealing if key_release == NONE else "operator",
        host_excluded=platform.host_excluded,
        isolation=settings.security.isolation,
        sandbox=_layers(settings, name),
        admission=settings.security.admission,
        anonymous_upload=settings.security.anonymous_upload,
        verify_on_load=settings.security.verify_on_load,
        logging="no_content",
        handover=_handover(settings),
        recovery=_recovery(settings.security.recovery_recipient),
        key_release=key_release,
    )


def _layers(settings: Config, platform: str) -> tuple[str, ...]:
    """The layers that the configuration promises: those that the settings demand, wherever they hold or not. The
    server looks before it serves (`server`), and promises nothing that it has only by chance.
    """
    security = settings.security
    if security.isolation == "in_process":
        if security.admission != "strict":
            raise InvalidConfig(
                'security.isolation = "in_process" needs security.admission = "strict": nothing else stands '
                "between the models of different owners then",
                code="isolation_unsupported",
            )
        return ()
    if platform == "sgx":
        raise InvalidConfig(
            "security.isolation: in an enclave every process would be another enclave, without a sandbox; set "
            'security.isolation = "in_process"',
            code="isolation_unsupported",
        )
    wanted = set(security.sandbox)
    if unknown := wanted - set(LAYERS):
        raise InvalidConfig(
            f"security.sandbox: expected layers out of {', '.join(LAYERS)}, got {', '.join(sorted(unknown))}",
            code="config_out_of_range",
        )
    if missing := set(FEWEST) - wanted:
        raise InvalidConfig(
            f"security.sandbox: without {', '.join(sorted(missing))} models cannot be confined; with "
            'security.isolation = "in_process" they are not',
            code="isolation_unsupported",
        )
    return tuple(sorted(wanted))


def read_handover_policy(path: Path) -> bytes:
    """The bytes of the hand-over policy.

    Raises:
        InvalidConfig: they cannot be read (code `handover_policy_unusable`).
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_HANDOVER_POLICY + 1)
    except OSError as exc:
        message = f"security.handover_policy: {path.name} cannot be read"
        raise InvalidConfig(message, code="handover_policy_unusable") from exc
    if len(data) > MAX_HANDOVER_POLICY:
        message = f"security.handover_policy: {path.name} has more than {MAX_HANDOVER_POLICY} bytes"
        raise InvalidConfig(message, code="handover_policy_unusable")
    return data


def _handover(settings: Config) -> str:
    path = settings.security.handover_policy
    return hashlib.sha256(read_handover_policy(Path(path))).hexdigest() if path else NONE


def _recovery(recipient: str) -> str:
    if not recipient:
        return NONE
    try:
        age.parse_recipient(recipient)
    except MalformedInput as exc:
        message = f"security.recovery_recipient: {exc.message}"
        raise InvalidConfig(message, code="recovery_recipient_unusable") from exc
    return recipient


def _key_release(settings: Config, platform: str) -> str:
    """Which broker's key the store is sealed under. Its address is not in it: that decides nothing."""
    chosen = settings.key_release
    given = (chosen.url, chosen.broker_key, chosen.name)
    if not any(given):
        return NONE
    if platform not in BROKERED:
        raise InvalidConfig(
            f"key_release: the platform {platform} gives a sealing key of its own; expected one of "
            f"{', '.join(BROKERED)}",
            code="key_release_unsupported",
        )
    value = f"{chosen.broker_key}/{chosen.name}"
    if not chosen.url or re.fullmatch(KEY_RELEASE, value, re.ASCII) is None:
        raise InvalidConfig(
            "key_release: expected url, broker_key (64 lower-case hex digits) and name ([a-z0-9._-], at most 64 "
            "characters, a letter or digit first)",
            code="key_release_unusable",
        )
    return value


def measurement(settings: Config, *, preload: tuple[tuple[str, str], ...], folders: list[str]) -> Measurement:
    """As `measurement_with`, with the security configuration that these settings give now.

    Raises:
        InvalidConfig: as `security_configuration`. Failure: as `measurement_with`.
    """
    security = security_configuration(settings)
    return measurement_with(settings, security=security, preload=preload, folders=folders)


def measurement_with(
    settings: Config,
    *,
    security: SecurityConfiguration,
    preload: tuple[tuple[str, str], ...],
    folders: list[str],
) -> Measurement:
    """The measurement of this package with these settings; `security` is what `security_configuration` made of them,
    `preload` as `preload_digests` has it, `folders`: where the dependencies lie.

    Raises:
        Failure: a dependency is missing, or a file cannot be measured.
    """
    platform = platforms.PLATFORMS[platforms.resolve(settings.platform)]
    return measure_at(
        PACKAGE,
        search_path=folders,
        security=security,
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
