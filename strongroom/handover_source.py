"""The end of a hand-over that gives: what a running server does when its operator has another take its store over.

Rules
  - The order of checks is written here, in `take`. Nothing is given on the operator's word: the token only keeps
    strangers from stopping changes. What decides is the policy, whose digest is in this server's own evidence.
  - From the moment of giving nothing changes for `HOLD_S`, or until the receiver has all of it; then never again. A
    restart ends the hold, and with it the transfer: whoever took the store and did not say so holds a copy that will
    not be let change.
  - One receiver at a time: a later one takes the place of an earlier one that has not said it has all.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import attest
from strongroom.attest.appraisal import Policy
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, Stated, Statement
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.strict import canonical
from strongroom.errors import AccessRefused, AttestationRefused, Conflict, MalformedInput
from strongroom.handover import (
    CHALLENGE_BYTES,
    MAX_DONE,
    MAX_TAKE,
    Request,
    Transfer,
    agree,
    encode_challenge,
    parse_done,
    parse_request,
    parse_take,
    proof_of,
    seal_transfer,
    verify_proof,
)
from strongroom.keys import StoreKeys
from strongroom.sealed import Random
from strongroom.state import GIVEN, TAKEN, Handing, Record
from strongroom.store import Store
from strongroom.traffic import Arrival, Lane

CHALLENGE_S: Final = 120
"""Seconds for which a challenge can be answered: evidence takes some of them."""
HOLD_S: Final = 900
"""Seconds in which the receiver has to read and check every file; then changes go on here, and its copy is void."""
_CODE: Final = "handover_malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a server hands over, and by what. `policy`: who may receive, `policy_bytes`: its file, whose digest is in
    `security`, this server's own configuration.
    `security_version`: of this server's code. `operator`: the token by which the operator is told from strangers.
    """

    store: Store
    policy: Policy
    policy_bytes: bytes
    security: SecurityConfiguration
    security_version: int
    operator: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    random: Random


def inherited(policy: Policy, security: SecurityConfiguration) -> Policy:
    """The policy, which also accepts this hand-over policy, this recovery key and this key of a broker's at the other
    end: who has them can give the store to nobody that this server could not (docs/spec/reseal.md §2.3).
    """
    accepted = policy.security
    handover = tuple(dict.fromkeys((*accepted.handover, security.handover)))
    recovery = tuple(dict.fromkeys((*accepted.recovery, security.recovery)))
    key_release = tuple(dict.fromkeys((*accepted.key_release, security.key_release)))
    named = replace(accepted, handover=handover, recovery=recovery, key_release=key_release)
    return replace(policy, security=named)


class HandoverSource:
    """The giving end of one server. Belongs to one event loop; the work is done in a thread of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._policy = inherited(source.policy, source.security)
        self._challenge: tuple[bytes, float] | None = None
        self._transfer: Transfer | None = None
        self._lane = Lane("handover", workers=1, waiting=4, code="store_moving")

    def close(self) -> None:
        """Ends the thread, after the work that is under way."""
        self._lane.close()

    async def challenge(self, operator: str | None) -> bytes:
        """The encoded answer with a fresh challenge, which takes the place of the last, and with this server's policy,
        by which the receiver judges from where else the store can have come.

        Raises:
            AccessRefused: not the operator's token (code `handover_operator_refused`).
        """
        self._check_operator(operator)
        challenge = self._source.random(CHALLENGE_BYTES)
        self._challenge = (challenge, self._source.monotonic() + CHALLENGE_S)
        return encode_challenge(challenge, self._source.policy_bytes)

    async def take(self, operator: str | None, body: AsyncIterator[bytes], *, keyset: bytes) -> bytes:
        """The store for the receiver that asks: this end's key (32 bytes), then the sealed state file. `keyset`: the
        digest of the keyset of the connection that this came on.

        1. the operator's token
        2. the request's form
        3. a challenge of ours that was not answered before, in time; it is used up by this
        4. the statement answers it, and was made for this very server, as its maker verified it
        5. the receiver's code has no known hole that ours has not
        6. evidence signs the statement in answer to the challenge, and code, platform and configuration pass the policy
        7. nothing changes from here on; the record is sealed for the key in the statement

        Raises:
            AccessRefused: `handover_operator_refused`, `handover_challenge_unknown`, `handover_other_source`,
                `handover_receiver_older` or `handover_receiver_refused`.
            MalformedInput: code `handover_malformed`, or of the evidence answer.
            Unavailable: `store_moving`, `store_moved`. Failure: a fault of the disk before.
        """
        self._check_operator(operator)
        data = await self._collect(body, MAX_TAKE)
        return await self._lane.run(self._give, data, keyset)

    async def done(self, operator: str | None, body: AsyncIterator[bytes]) -> bytes:
        """Lets go of the store: the receiver has all of it, on its disk. The encoded answer with this end's proof.

        Raises:
            AccessRefused: `handover_operator_refused`, `handover_proof_refused`.
            Conflict: no such hand-over is under way, or it took too long (code `handover_unknown`).
            MalformedInput: code `handover_malformed`. Unavailable, Failure: as `Store.let_go`.
        """
        self._check_operator(operator)
        return await self._lane.run(self._let_go, await self._collect(body, MAX_DONE))

    def _check_operator(self, operator: str | None) -> None:
        """Step 1."""
        if not hmac.compare_digest((operator or "").encode(), self._source.operator.encode()):
            raise AccessRefused(
                "expected the operator's token of this server's state folder",
                code="handover_operator_refused",
            )

    async def _collect(self, body: AsyncIterator[bytes], limit: int) -> bytes:
        arrival, chunks = Arrival(limit=limit, rate=0, clock=self._source.monotonic), []
        async for chunk in body:
            arrival.take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def _give(self, data: bytes, keyset: bytes) -> bytes:
        source = self._source
        # 2. form
        statement, answer = parse_take(data)
        request = parse_request(statement)
        # 3. challenge
        challenge, self._challenge = self._challenge, None
        if challenge is None or source.monotonic() >= challenge[1]:
            raise AccessRefused("no challenge is open here: ask for one", code="handover_challenge_unknown")
        # 4. statement
        self._check_statement(request, challenge[0], keyset)
        # 5. security version
        if request.security_version < source.security_version:
            raise AccessRefused(
                f"the receiver's code has security version {request.security_version}, expected at least "
                f"{source.security_version}, that of this server's",
                code="handover_receiver_older",
            )
        # 6. evidence
        stated = self._verify(answer, statement, challenge[0])
        # 7. give
        private = X25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        transfer = agree(private, request.key, statement=statement, keyset=stated.keyset_bytes, key=public)
        until = source.monotonic() + HOLD_S

        def seal(record: Record, keys: StoreKeys, digest: str) -> bytes:
            return seal_transfer(
                record,
                keys,
                digest=digest,
                transfer=transfer,
                store_id=bytes.fromhex(source.store.store_id),
                security_digest=stated.keyset.security.digest(),
                random=source.random,
            )

        sealed = source.store.hand_over(seal, held=lambda: source.monotonic() < until)
        self._transfer = transfer
        return public + sealed

    def _check_statement(self, request: Request, challenge: bytes, keyset: bytes) -> None:
        """Step 4."""
        if not hmac.compare_digest(request.challenge, challenge):
            raise AccessRefused(
                "the statement answers another challenge than the last", code="handover_challenge_unknown"
            )
        if not hmac.compare_digest(request.source, keyset):
            raise AccessRefused(
                f"the statement was made for a server with keyset {request.source.hex()}, this one has {keyset.hex()}",
                code="handover_other_source",
            )

    def _verify(self, answer: EvidenceAnswer, statement: bytes, challenge: bytes) -> Stated:
        """Step 6."""
        if not isinstance(answer.inclusion, Single):
            raise MalformedInput("hand-over: evidence of a batch states nothing", code=_CODE)
        try:
            return attest.verify(
                answer.evidence,
                self._policy,
                nonce=challenge,
                keyset_bytes=answer.keyset,
                inclusion=answer.inclusion,
                channel=Statement(statement),
                endorsements=answer.evidence.endorsements,
                now=self._source.now(),
            )
        except AttestationRefused as exc:
            raise AccessRefused(
                f"the receiver does not pass this server's hand-over policy: {exc.message} ({exc.code})",
                code="handover_receiver_refused",
            ) from exc

    def _let_go(self, data: bytes) -> bytes:
        name, proof = parse_done(data)
        taken = self._known(name)
        verify_proof(proof, handing=taken)
        given = replace(taken, end=GIVEN)
        self._source.store.let_go(given)
        return canonical({"proof": proof_of(given).hex()})

    def _known(self, name: str) -> Handing:
        """The hand-over of this name, seen from its other end: the one under way, or the one that was done."""
        if self._transfer is not None and self._transfer.id == name:
            return self._transfer.handing(TAKEN)
        handing = self._source.store.handing
        if handing is not None and handing.end == GIVEN and handing.transfer == name:
            return replace(handing, end=TAKEN)
        raise Conflict("no such hand-over is under way here", code="handover_unknown")
