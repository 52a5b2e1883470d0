"""What a server's settings say of hand-over, recovery and key release: its policy, the operator's token, its ends, the
errand of taking a store over before it serves, and the question for its key before that (`docs/spec/reseal.md`,
`docs/spec/recovery.md`, `docs/spec/key-release.md`).

Rules
  - The policy that counts is the one whose digest is attested: the file is read again here, and another one is refused.
  - A server on hardware never hands its store to simulation, nor takes it from there, whatever its policy says.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from strongroom import disk
from strongroom.attest.keyset import NONE, SecurityConfiguration
from strongroom.attest.policy import Policy, parse_policy
from strongroom.attester import ReleasedAttester
from strongroom.attesters import Machine
from strongroom.config import Config
from strongroom.errors import InvalidConfig, InvalidPolicy, SealRefused, Unavailable
from strongroom.handover_receiver import Receiver, read_token, take_over
from strongroom.handover_source import HandoverSource, Source
from strongroom.key_seeker import Seeker, seek
from strongroom.measure import SECURITY_VERSION
from strongroom.planned import read_handover_policy
from strongroom.recovery import Recovery, write_wrapped
from strongroom.store import Store
from strongroom.transport import Transport, parse_origin

log = logging.getLogger("strongroom.moving")

TOKEN_FILE: Final = "operator-token"  # noqa: S105 - its name
"""In the state folder: whoever can read it is the operator of this server."""
INCOMING: Final = "incoming"
"""In the state folder: where the operator puts the data files of a lost store."""
UNOPENED: Final = "0" * 32
"""The store id in the keyset that asks for a key: the store is not open yet."""
_TIMEOUT_S: Final = 120.0


def load_policy(settings: Config, *, security: SecurityConfiguration, simulated: bool) -> Policy | None:
    """The hand-over policy of a server with this attested configuration; None where it has none.

    Raises:
        SealRefused: the file is no longer the one that was measured (code `handover_policy_changed`).
        InvalidConfig: it cannot be read, is no policy, or accepts simulation on hardware (code
            `handover_policy_unusable`).
    """
    if security.handover == NONE:
        return None
    return _parsed(_measured_bytes(settings, security), simulated=simulated)


def _measured_bytes(settings: Config, security: SecurityConfiguration) -> bytes:
    data = read_handover_policy(Path(settings.security.handover_policy))
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), security.handover):
        message = f"the hand-over policy is not the measured one, with SHA-256 {security.handover}"
        raise SealRefused(message, code="handover_policy_changed")
    return data


def _parsed(data: bytes, *, simulated: bool) -> Policy:
    try:
        policy = parse_policy(data.decode("utf-8"))
    except (InvalidPolicy, UnicodeDecodeError) as exc:
        why = exc.message if isinstance(exc, InvalidPolicy) else "not UTF-8"
        raise InvalidConfig(f"security.handover_policy: {why}", code="handover_policy_unusable") from exc
    if policy.simulated != simulated:
        kind = "simulated evidence alone" if policy.simulated else "hardware alone"
        here = "SIMULATED" if simulated else "hardware"
        message = f"security.handover_policy: it accepts {kind}, and this server is {here}"
        raise InvalidConfig(message, code="handover_policy_unusable")
    return policy


def says(security: SecurityConfiguration) -> tuple[tuple[str, str], ...]:
    """Who else can come to the stored models, as (what, value), for the operator."""
    found = (
        ("hand-over policy", security.handover),
        ("recovery key", security.recovery),
        ("key broker", security.key_release),
    )
    return tuple((what, value) for what, value in found if value != NONE)


def source_of(
    settings: Config, store: Store, *, security: SecurityConfiguration, simulated: bool
) -> HandoverSource | None:
    """The giving end of this server, None without a policy. Writes the operator's token for this run.

    Raises:
        SealRefused, InvalidConfig: as `load_policy`. Unavailable, Failure: the token cannot be written.
    """
    if security.handover == NONE:
        return None
    data = _measured_bytes(settings, security)
    policy = _parsed(data, simulated=simulated)
    token = secrets.token_hex(32)
    _write_token(settings.state_path / TOKEN_FILE, token)
    return HandoverSource(
        Source(
            store=store,
            policy=policy,
            policy_bytes=data,
            security=security,
            security_version=SECURITY_VERSION,
            operator=token,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
            random=os.urandom,
        )
    )


def _write_token(path: Path, token: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    with disk.faults("write the operator's token"):
        fd = disk.create(temporary)
        try:
            disk.write(fd, token.encode("ascii") + b"\n")
        finally:
            disk.close(fd)
        disk.replace(temporary, path)


def recovery_of(
    settings: Config, store: Store, *, security: SecurityConfiguration, folder: Path
) -> Recovery | None:
    """The restoring end of this server, None where its configuration names no recovery key. Wraps the key of the store
    in `folder` to that key, anew at each start.

    Raises:
        Unavailable, Failure: a fault of the disk.
    """
    if security.recovery == NONE:
        return None
    write_wrapped(store, folder, recipient=security.recovery, random=os.urandom)
    return Recovery(
        store,
        recipient=security.recovery,
        files=settings.state_path / INCOMING,
        security=security,
        monotonic=time.monotonic,
        random=os.urandom,
    )


def with_released_key(
    settings: Config, here: Machine, *, security: SecurityConfiguration, keyset_of: Callable[[str], bytes]
) -> Machine:
    """The platform, with the sealing root that the broker in the settings releases; as it is where there is none.
    `keyset_of`: a keyset of this server's for a store id (hex).

    Raises:
        InvalidRequest: the settings name no URL of a broker (code `url_invalid`). The rest as `key_seeker.seek`.
    """
    if security.key_release == NONE:
        return here
    transport = Transport(parse_origin(settings.key_release.url), timeout_s=_TIMEOUT_S)
    try:
        root = seek(
            Seeker(
                key_release=security.key_release,
                attester=here.attester,
                keyset=keyset_of(UNOPENED),
                transport=transport,
                now=lambda: datetime.now(UTC),
            )
        )
    finally:
        transport.close()
    log.info("the broker released the key of the store")
    return replace(here, attester=ReleasedAttester(here.attester, root))


def run_errand(
    errand: Mapping[str, str],
    settings: Config,
    here: Machine,
    *,
    security: SecurityConfiguration,
    store_path: Path,
    keyset_of: Callable[[str], bytes],
) -> None:
    """Takes a store over where the operator asked for that. `errand`: `from` (URL of the source), `files` (the folder
    `data` of its store, or a copy), `token` (file with its operator's token). `keyset_of`: a keyset of this server's
    for a store id (hex).

    Raises:
        InvalidConfig: this server has no hand-over policy (code `handover_policy_unusable`), or no token can be read.
        The rest as `handover_receiver.take_over`, but that a source that falls silent at the very end is waited for by
        serving, unchanged: what was taken lies here then. A source that has not given anything yet is not.
    """
    if "from" not in errand:
        return
    policy = load_policy(settings, security=security, simulated=here.simulated)
    if policy is None:
        message = "security.handover_policy: expected one; a server without takes no store over"
        raise InvalidConfig(message, code="handover_policy_unusable")
    token = read_token(Path(errand["token"]))
    settings.state_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    transport = Transport(parse_origin(errand["from"]), timeout_s=_TIMEOUT_S)
    receiver = Receiver(
        store_path=store_path,
        files=Path(errand["files"]),
        operator=token,
        policy=policy,
        security=security,
        security_version=SECURITY_VERSION,
        attester=here.attester,
        anchor=here.anchor,
        keyset_of=keyset_of,
        transport=transport,
        now=lambda: datetime.now(UTC),
        random=os.urandom,
    )
    try:
        take_over(receiver)
    except Unavailable as exc:
        # Without a store, serving would begin an empty one, and the hand-over could not be repeated.
        if exc.code != "store_moving" or not (store_path / "state").exists():
            raise
        log.warning("%s", exc.message)
    finally:
        transport.close()
