"""The recovery key's holder gives a lost store to a new server (`docs/spec/recovery.md` §4): the exchange, as a
generator.

    open the lost record -> verify the new server; it names our key -> open its challenge -> the record, sealed for it

Everything goes over the one connection that was verified, and to it alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import age, calls, disk
from strongroom.calls import Answer, Body, Request
from strongroom.errors import AccessRefused, InvalidRequest, Unavailable
from strongroom.flow import Endpoint, Flow, Outcome, Send, Session, attest_flow
from strongroom.recovery import FILE, Lost, encode_restore, open_lost
from strongroom.state import MAX_STATE_BYTES

_DEADLINE_S: Final = 3600.0
"""Seconds for the restoration: the server reads and checks every file in it."""


def read_lost(folder: Path, identity: Path) -> tuple[Lost, X25519PrivateKey]:
    """Opens the lost store in `folder` with the key in the file `identity`.

    Raises:
        InvalidRequest: a file cannot be read (code `usage_invalid`). MalformedInput, AccessRefused, SealRefused: as
            `recovery.open_lost`, and where the key is none (code `recovery_key_malformed`).
    """
    try:
        key = age.parse_identity(identity.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"{identity}: no recovery key can be read there", code="usage_invalid") from exc
    with disk.faults("read the lost store"):
        state = disk.read_small(folder / "state", limit=MAX_STATE_BYTES)
        wrapped = disk.read_small(folder / FILE, limit=age.MAX_FILE)
    if state is None or wrapped is None:
        raise InvalidRequest(
            f"{folder}: expected the files state and {FILE}; without a recovery key in its configuration a server "
            "writes no such file",
            code="usage_invalid",
        )
    return open_lost(state, wrapped, key), key


def restore_flow(
    session: Session, lost: Lost, identity: X25519PrivateKey, *, random: Callable[[int], bytes]
) -> Flow[int]:
    """Gives the lost store to the server that the session's policy accepts; how many model versions it has now.

    1. the server is verified; its configuration names the public half of this key
    2. it asks who we are, with a challenge for that key
    3. the record goes to it, sealed for its own store and configuration

    Raises:
        AttestationRefused: 1. AccessRefused: it names another key, or its challenge is for one (`recovery_other_key`).
        Conflict, SealRefused: what the server refuses. Unavailable: no server there, or no answer.
    """
    endpoint = yield from attest_flow(session)
    try:
        # 1
        attested = endpoint.attested
        if attested is None:  # pragma: no cover - attest_flow returns verified endpoints only
            raise AssertionError("an endpoint without a verification")
        keyset, own = attested.keyset, age.recipient_of(identity)
        if keyset.security.recovery != own:
            raise AccessRefused(
                f"the server's configuration names the recovery key {keyset.security.recovery}, yours is {own}",
                code="recovery_other_key",
            )
        # 2
        challenge = age.decrypt((yield from _ask(endpoint, "challenge", b"")).body, identity)
        # 3
        body = encode_restore(
            lost,
            challenge=challenge,
            store_id=bytes.fromhex(keyset.store_id),
            security_digest=keyset.security.digest(),
            random=random,
        )
        answer = yield from _ask(endpoint, "restore", body)
    finally:
        session.release(endpoint)
    return _versions(answer)


def _ask(endpoint: Endpoint, what: str, body: bytes) -> Flow[Answer]:
    request = Request(
        method="POST",
        path=f"/v1/recovery/{what}",
        headers=(("Content-Type", "application/octet-stream"),),
        body=Body.of(body),
        idempotent=False,
        max_answer=age.MAX_FILE,
        sized=True,
        deadline_s=_DEADLINE_S,
    )
    try:
        answer: Answer = yield Send(endpoint, request)
    except Outcome as exc:
        raise Unavailable(exc.text, code=exc.code) from exc
    if answer.status != 200:
        raise calls.error_of(answer)
    return answer


def _versions(answer: Answer) -> int:
    try:
        return int(json.loads(answer.body)["versions"])
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise calls.malformed("what a restored store says") from exc
