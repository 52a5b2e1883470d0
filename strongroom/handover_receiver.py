"""The end of a hand-over that takes: what a new server does before it serves, where its operator has it take over the
store of one that still runs (`docs/spec/reseal.md` §3 to §6).

    verify the source -> its challenge -> our statement, signed by our evidence -> its record, sealed for us
    -> every file here, read and checked -> our own record on our own disk -> "we have all of it" -> it lets go -> serve

Rules
  - The source is verified by this server's own hand-over policy, which is part of its measured configuration: whatever
    else a host may offer as a source, this store does not begin from it.
  - The connection is made before there is a store, and nothing is sent but the question for evidence before the
    source is verified.
  - The source's own policy counts as well: genuine code takes a store from whomever its policy accepts, so behind a
    source with a wider one may stand a store that a host has made.
  - What was taken does not change before the source has let go of it. That is the one step that decides which of the
    two copies lives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import calls
from strongroom.anchor import Anchor
from strongroom.attest.appraisal import Policy
from strongroom.attest.batch import Single
from strongroom.attest.evidence import (
    Attested,
    EvidenceAnswer,
    encode_answer,
    parse_answer,
    statement_report_data,
)
from strongroom.attest.gather import Gathered
from strongroom.attest.keyset import NONE, SecurityConfiguration, parse_keyset
from strongroom.attester import Attester
from strongroom.bringing import bring_files
from strongroom.calls import Body
from strongroom.errors import (
    Conflict,
    InvalidConfig,
    MalformedInput,
    Unavailable,
)
from strongroom.flow import Endpoint, Flow, Open, Outcome, Send, ask_for_evidence, drive_to_end, verify_answer
from strongroom.handover import (
    KEY_BYTES,
    Request,
    Transfer,
    agree,
    encode_done,
    encode_take,
    open_transfer,
    parse_challenge,
    parse_member,
    verify_proof,
)
from strongroom.handover_origin import check_origin
from strongroom.handover_source import inherited
from strongroom.keys import StoreKeys
from strongroom.sealed import Random
from strongroom.state import GIVEN, MAX_STATE_BYTES, TAKEN, Handing, Record
from strongroom.store import Store
from strongroom.transport import Transport

log = logging.getLogger("strongroom.handover")

OPERATOR: Final = "Strongroom-Operator"
"""The header with the operator's token."""
_DEADLINE_S: Final = 600.0
"""Seconds for one exchange with the source: it may have to wrap the keys of thousands of models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Who takes over, and from where. `store_path`: the folder of the new store. `files`: the `data` folder of the
    source's store, or a copy. `operator`: the token of the source's operator. `policy`: this server's hand-over policy.
    `keyset_of`: makes a keyset of this server's for a store id (hex).
    """

    store_path: Path
    files: Path
    operator: str
    policy: Policy
    security: SecurityConfiguration
    security_version: int
    attester: Attester
    anchor: Anchor
    keyset_of: Callable[[str], bytes]
    transport: Transport
    now: Callable[[], datetime]
    random: Random


@dataclass(frozen=True, slots=True)
class _Met:
    """The source, verified on the one connection that is used from there on."""

    endpoint: Endpoint
    attested: Attested


def take_over(receiver: Receiver) -> str:
    """Takes the source's store over, or ends an interrupted take-over; returns its store id (hex). When this returns,
    the store lies on the disk, changes, and the source's does not any more.

    Raises:
        AttestationRefused: the source does not pass the policy; nothing was sent to it. Or it may have its store from
            where ours could not be from (code `handover_source_refused`); it was asked for a challenge alone.
        AccessRefused: it does not give its store to us, with its own code.
        Conflict: there is a store already (code `handover_store_exists`).
        SealRefused: what came is not what was handed over (`handover_tampered`), or a file is not (`seal_...`).
        AdmissionRefused: a model in it would not be admitted here (code `brought_model_refused`).
        Unavailable: no source there. `store_moving`: all is here, but the source did not say that it let go of it:
            this server can serve, and changes nothing until this is repeated.
    """
    pending = _pending(receiver)
    met = drive_to_end(_meet(receiver), receiver.transport.perform)
    if pending is not None and met.attested.keyset.store_id == pending[0]:
        try:
            return _finish(receiver, met, *pending)
        except Conflict as exc:
            if exc.code != "handover_unknown":
                raise
            log.info("the source no longer knows the interrupted hand-over; it begins anew")
    store_id, handing = _take(receiver, met)
    return _finish(receiver, met, store_id, handing)


def _pending(receiver: Receiver) -> tuple[str, Handing] | None:
    """Store id and hand-over of a store that was taken and not let go of; None where there is no store at all.

    Raises:
        Conflict: the store that is here is in use (code `handover_store_exists`).
    """
    if not (receiver.store_path / "state").exists():
        return None
    with _open(receiver) as store:
        if store.handing is None or store.handing.end != TAKEN:
            raise Conflict(
                "there is a store already, and no hand-over of it is open", code="handover_store_exists"
            )
        return store.store_id, store.handing


def _open(receiver: Receiver) -> Store:
    return Store.open(
        receiver.store_path,
        root=receiver.attester.sealing_root(),
        security_digest=receiver.security.digest(),
        now=lambda: int(receiver.now().timestamp()),
        anchor=receiver.anchor,
    )


def _meet(receiver: Receiver) -> Flow[_Met]:
    """Steps 1 to 6 of docs/spec/channel.md, by our hand-over policy."""
    endpoint: Endpoint = yield Open()
    nonce = receiver.random(32)
    answer = yield from ask_for_evidence(endpoint, nonce)
    received = parse_answer(answer.body)
    # Whoever holds a recovery key can have filled that store, and so can whoever keeps its key as a broker: each is
    # ours, one that our policy names, or none. What the source's hand-over policy says is looked at next
    # (`check_origin`): its digest alone says nothing.
    shown = parse_keyset(received.keyset).security
    policy = inherited(receiver.policy, receiver.security)
    policy = inherited(policy, replace(shown, recovery=NONE, key_release=NONE))
    gathered = Gathered(received.evidence.endorsements)
    attested = verify_answer(policy, endpoint, received, gathered=gathered, nonce=nonce, now=receiver.now())
    endpoint.gate.pin(attested.spki_sha256)
    return _Met(endpoint, attested)


def _take(receiver: Receiver, met: _Met) -> tuple[str, Handing]:
    """Asks for the store, and puts it on our disk."""
    store_id = met.attested.keyset.store_id
    keyset = receiver.keyset_of(store_id)
    challenge, theirs = parse_challenge(_ask(receiver, met, "challenge", b""))
    check_origin(
        theirs,
        digest=met.attested.keyset.security.handover,
        ours=inherited(receiver.policy, receiver.security),
        own=receiver.security.handover,
    )
    private = X25519PrivateKey.generate()
    statement = Request(
        challenge=challenge,
        source=met.attested.keyset_digest,
        key=private.public_key().public_bytes_raw(),
        security_version=receiver.security_version,
    ).encode()
    data = statement_report_data(nonce=challenge, keyset_bytes=keyset, statement=statement)
    evidence = receiver.attester.evidence(data, now=receiver.now(), nonce=challenge)  # Nitro signs it, too
    answer = encode_answer(EvidenceAnswer(evidence=evidence, keyset=keyset, inclusion=Single()))
    given = _ask(receiver, met, "take", encode_take(statement, answer))
    key, sealed = given[:KEY_BYTES], given[KEY_BYTES:]
    if not sealed:
        raise MalformedInput("hand-over: a key and a state file expected", code="handover_malformed")
    transfer = agree(private, key, statement=statement, keyset=keyset, key=key)
    with Store.receive(
        receiver.store_path,
        root=receiver.attester.sealing_root(),
        security_digest=receiver.security.digest(),
        store_id=bytes.fromhex(store_id),
        now=lambda: int(receiver.now().timestamp()),
        anchor=receiver.anchor,
        bring=lambda keys, folder: _bring(receiver, transfer, sealed, store_id, keys, folder),
    ) as store:
        log.info("taken over: %d model versions; waiting for the source to let go", len(store.models()))
    return store_id, transfer.handing(TAKEN)


def _bring(
    receiver: Receiver, transfer: Transfer, sealed: bytes, store_id: str, keys: StoreKeys, folder: Path
) -> Record:
    """Opens the record that came, and puts every file that it names into our folder, read and checked."""
    record = open_transfer(
        sealed,
        transfer=transfer,
        store_id=bytes.fromhex(store_id),
        security_digest=receiver.security.digest(),
        target=keys,
        random=receiver.random,
    )
    bring_files(record, files=receiver.files, folder=folder, keys=keys, security=receiver.security)
    return record


def _finish(receiver: Receiver, met: _Met, store_id: str, handing: Handing) -> str:
    """Tells the source, and lets our store change once it has answered."""
    try:
        proof = parse_member(_ask(receiver, met, "done", encode_done(handing)), "proof")
    except Unavailable as exc:
        if exc.code == "store_moved":
            raise
        raise Unavailable(
            "all of the store is here, but the source did not say that it let go of it; repeat this",
            code="store_moving",
        ) from exc
    verify_proof(proof, handing=replace(handing, end=GIVEN))
    with _open(receiver) as store:
        store.settle()
    log.info("the source has let go; this store changes from now on")
    return store_id


def _ask(receiver: Receiver, met: _Met, what: str, body: bytes) -> bytes:
    """One question of a hand-over, on the connection that was verified."""
    request = calls.Request(
        method="POST",
        path=f"/v1/handover/{what}",
        headers=((OPERATOR, receiver.operator), ("Content-Type", "application/json")),
        body=Body.of(body),
        idempotent=False,
        max_answer=MAX_STATE_BYTES + KEY_BYTES,
        sized=True,
        deadline_s=_DEADLINE_S,
    )
    try:
        answer: calls.Answer = receiver.transport.perform(Send(met.endpoint, request))
    except Outcome as exc:
        raise Unavailable(f"the source: {exc.text}", code=exc.code) from exc
    if answer.status != 200:
        raise calls.error_of(answer)
    return answer.body


def read_token(path: Path) -> str:
    """The operator's token in a file.

    Raises:
        InvalidConfig: it cannot be read (code `handover_token_unreadable`).
    """
    try:
        with path.open("r", encoding="ascii") as file:
            return file.read(1024).strip()
    except (OSError, ValueError) as exc:
        raise InvalidConfig(
            f"{path}: no operator's token can be read there", code="handover_token_unreadable"
        ) from exc
