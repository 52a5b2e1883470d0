"""The first code of a server's process: hardens it, measures it, and lets only measured code in.

Order (docs/spec/sealed.md and docs/spec/channel.md rely on it): import hook (the launcher's bootstrap) -> no
core dumps and not dumpable -> settings -> measurement -> the hook admits what was measured and nothing else ->
the zygote (`zygote`), which gets ready while this process goes on.
Only then does `server` import what it needs and any secret come to exist.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from strongroom import config, groups, planned, platforms
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.config import Config
from strongroom.errors import Error, Failure, Refused, Unavailable, Unusable
from strongroom.groups import Group
from strongroom.importing import MeasuredImports
from strongroom.launch import NO_BYTE_CODE, child_environment, dependency_folders
from strongroom.measure import Measurement
from strongroom.planned import preload_digests as preload_digests
from strongroom.planned import security_configuration as security_configuration
from strongroom.zygote import Launch, Nursery

DESCRIPTORS: Final = 65_536
"""As the units in `deploy` have it."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What is known before the server is composed."""

    settings: Config
    security: SecurityConfiguration
    measurement: Measurement
    preload: tuple[tuple[str, str], ...]
    """(name, hex SHA-256) of each preloaded model, as measured: the bytes that are served must be these."""
    paths: tuple[str, ...]
    """The folders of the dependencies, for processes that this one starts."""
    room: Path
    """The folder with this process's empty folders; removed at the end."""
    nursery: Nursery
    """Executed and not yet ready: what strangers' models come near to holds nothing of what follows."""
    group: Group | str
    """The control group of what strangers' models come near to, or why there is none."""
    launched: str = ""
    """What the launcher found in the TPM's PCR before it extended it (hex); "" on other platforms."""
    errand: Mapping[str, str] = field(default_factory=dict)
    """What the operator asks for besides serving: see `moving`. It decides nothing that is attested."""


def prepare(room: Mapping[str, Any], imports: MeasuredImports) -> Boot:
    """Everything that happens before the server's own imports. `room` is the launcher's message.

    `imports`: the hook, which found all that was imported so far.

    Raises:
        InvalidConfig, Failure: the settings cannot be used, or the code cannot be measured.
    """
    harden()
    raise_descriptors()
    folders = [str(folder) for folder in room["paths"]]
    path = Path(room["config"]) if room["config"] is not None else None
    settings = config.load(path, variables=config.environment(), base=Path(room["base"]))
    settings = replace(settings, platform=platforms.resolve(settings.platform))
    preload, security = preload_digests(settings), security_configuration(settings)
    measurement = planned.measurement_with(settings, security=security, preload=preload, folders=folders)
    imports.admit(dict(measurement.files))
    confined = settings.security.isolation != "in_process"
    group = _group(settings) if confined else "no models run in processes of their own"
    launch = Launch(
        paths=folders,
        environment=child_environment(settings.platform),
        folder=Path(room["room"]) / "cwd",
        measured=dict(measurement.files),
        flags=("-I", "-S", "-B", "-X", NO_BYTE_CODE, "-X", "utf8"),
        workers=confined,
        group=None if isinstance(group, str) else group,
    )
    return Boot(
        settings=settings,
        security=security,
        measurement=measurement,
        preload=preload,
        paths=tuple(folders),
        room=Path(room["room"]),
        nursery=Nursery(launch),
        group=group,
        launched=str(room["launched"]),
        errand={str(name): str(value) for name, value in room["errand"].items()},
    )


def _group(settings: Config) -> Group | str:
    """The control group, before the zygote is executed and anything else is in the server's."""
    workers = settings.workers
    return groups.make(memory_bytes=workers.group_bytes, processes=workers.processes + groups.OTHERS)


def report(error: Error) -> int:
    """Says on stderr why the server does not start; returns the exit code of the error's family."""
    sys.stderr.write(f"strongroom: cannot start: {error.message} [{error.code}]\n")
    if isinstance(error, Refused):
        return 10
    if isinstance(error, Unavailable):
        return 30
    return 20 if isinstance(error, Unusable) else 1


def harden() -> None:
    """No core dumps, not dumpable (nor readable by debuggers of the same user), no new privileges.

    The last two are Linux's; on macOS only core dumps are off. A library OS that has no prctl (ENOSYS) has no other
    processes that could look in either: the TEE around it is what keeps them out.

    Raises:
        Failure: the system does not let us (code `start_refused`).
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)):
            if libc.prctl(option, value, 0, 0, 0) != 0 and ctypes.get_errno() != errno.ENOSYS:
                raise Failure(f"prctl: error {ctypes.get_errno()}", code="start_refused")


def raise_descriptors() -> None:
    """As many descriptors as the system lets this process have, up to `DESCRIPTORS`: shells and container engines start
    programs with 1024, and two runs of models in stages, each with up to 512 files open, would leave none to
    connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # a library OS: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def planned_measurement(settings: Config) -> Measurement:
    """The measurement that a server started from here with these settings will have; starts nothing.

    Raises:
        InvalidConfig: a preloaded model cannot be read (code `preload_unreadable`).
        Failure: a dependency is missing, or a file cannot be measured.
    """
    folders = dependency_folders(settings.platform)
    return planned.measurement(settings, preload=preload_digests(settings), folders=folders)
