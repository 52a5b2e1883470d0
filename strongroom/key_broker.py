"""The broker's end of a key release: what the machine of a key's owner does when a server asks for its key
(`docs/spec/key-release.md`).

Rules
  - The order of checks is written here, in `release`. Nothing is released on anybody's word or secret: what decides is
    the policy beside the key.
  - A server gets a key only for a configuration that names this broker and this very key: what its clients read in its
    keyset is where its key came from.
  - Challenges cost no memory before they are answered by a server that passes, so strangers cannot use them up.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom import attest
from strongroom.attest.appraisal import Policy
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, Stated, Statement
from strongroom.errors import AccessRefused, AttestationRefused, MalformedInput, NotFound
from strongroom.handover import parse_take
from strongroom.key_release import KeyRequest, encode_challenge, give, parse_key_request
from strongroom.sealed import Random

log = logging.getLogger("strongroom.keybroker")

CHALLENGE_S: Final = 120
"""Seconds for which a challenge can be answered: evidence takes some of them."""
_MILLISECONDS: Final = 8
"""Bytes of a challenge that say when it was given; 8 random ones follow, and 16 of the HMAC over both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One key (32 bytes), and the policy by which it is released."""

    key: bytes = field(repr=False)
    policy: Policy


class Challenges:
    """Challenges, good for `CHALLENGE_S` and for one release. Thread-safe.

    They are stateless: a time and random bytes under an HMAC with a key of this process's. Only those that were
    answered are remembered, until they are too old anyhow.
    """

    def __init__(self, *, monotonic: Callable[[], float], random: Random) -> None:
        self._monotonic, self._random = monotonic, random
        self._key = random(32)
        self._lock = threading.Lock()
        self._spent: dict[bytes, float] = {}

    def issue(self) -> bytes:
        """A fresh challenge, 32 bytes."""
        given = int(self._monotonic() * 1000).to_bytes(_MILLISECONDS, "big") + self._random(8)
        return given + self._mac(given)

    def check(self, challenge: bytes) -> None:
        """Returns if it was given here, in time, and was not answered.

        Raises:
            AccessRefused: code `key_release_challenge_unknown`.
        """
        given, mac = challenge[:16], challenge[16:]
        if not hmac.compare_digest(mac, self._mac(given)):
            _refuse_challenge("the broker did not give this challenge, or was started since")
        if self._age(given) > CHALLENGE_S:
            _refuse_challenge(f"the challenge is older than {CHALLENGE_S} s")
        with self._lock:
            if challenge in self._spent:
                _refuse_challenge("the challenge was answered before")

    def spend(self, challenge: bytes) -> None:
        """Uses it up.

        Raises:
            AccessRefused: it was already (code `key_release_challenge_unknown`).
        """
        now = self._monotonic()
        with self._lock:
            self._spent = {one: at for one, at in self._spent.items() if now - at <= CHALLENGE_S}
            if challenge in self._spent:
                _refuse_challenge("the challenge was answered before")
            self._spent[challenge] = now

    def _age(self, given: bytes) -> float:
        return self._monotonic() - int.from_bytes(given[:_MILLISECONDS], "big") / 1000

    def _mac(self, given: bytes) -> bytes:
        return hmac.digest(self._key, given, "sha256")[:16]


def _refuse_challenge(why: str) -> None:
    raise AccessRefused(why, code="key_release_challenge_unknown")


class KeyBroker:
    """Keeps keys, and releases each to servers that pass its policy."""

    def __init__(
        self,
        kept: Mapping[str, Kept],
        *,
        signing_key: Ed25519PrivateKey,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random: Random,
    ) -> None:
        """`kept`: name -> key and policy. `signing_key`: what servers know this broker by."""
        self._kept, self._signing_key = dict(kept), signing_key
        self._now, self._random = now, random
        self._public = signing_key.public_key().public_bytes_raw()
        self._challenges = Challenges(monotonic=monotonic, random=random)

    def challenge(self) -> bytes:
        """The encoded answer with a fresh challenge."""
        return encode_challenge(self._challenges.issue())

    def release(self, body: bytes) -> bytes:
        """The encoded answer to a request: the key that it asks for, sealed for the server that made it.

        1. the request's form
        2. a challenge of this broker's, in time, that was not answered
        3. the statement was made for this broker
        4. a key of this name
        5. evidence signs the statement in answer to the challenge; code, platform and configuration pass the policy
           of the key, and the configuration names this broker and this key
        6. the challenge is used up; the key is sealed for the key in the statement, and that is signed

        Raises:
            MalformedInput: codes `key_release_malformed`, `handover_malformed`, or of the evidence answer.
            AccessRefused: `key_release_challenge_unknown`, `key_release_other_broker`, `key_release_refused`.
            NotFound: code `key_release_key_unknown`.
        """
        # 1. form
        statement, answer = parse_take(body)
        request = parse_key_request(statement)
        # 2. challenge
        self._challenges.check(request.challenge)
        # 3. broker
        if not hmac.compare_digest(request.broker, self._public):
            raise AccessRefused(
                f"the statement was made for the broker {request.broker.hex()}, this one is {self._public.hex()}",
                code="key_release_other_broker",
            )
        # 4. key
        kept = self._kept.get(request.name)
        if kept is None:
            raise NotFound("the broker keeps no key of this name", code="key_release_key_unknown")
        # 5. evidence
        stated = self._verify(answer, statement, request, kept.policy)
        # 6. give
        self._challenges.spend(request.challenge)
        given = give(kept.key, request=request, body=body, signing_key=self._signing_key, random=self._random)
        log.info("released %s to %s code %s", request.name, stated.claims.format, stated.claims.measurement)
        return given.encode()

    def _verify(
        self, answer: EvidenceAnswer, statement: bytes, request: KeyRequest, policy: Policy
    ) -> Stated:
        """Step 5. Whatever the policy says of brokers, only this one and this key count."""
        if not isinstance(answer.inclusion, Single):
            raise MalformedInput(
                "key release: evidence of a batch states nothing", code="key_release_malformed"
            )
        own = (f"{self._public.hex()}/{request.name}",)
        try:
            return attest.verify(
                answer.evidence,
                replace(policy, security=replace(policy.security, key_release=own)),
                nonce=request.challenge,
                keyset_bytes=answer.keyset,
                inclusion=answer.inclusion,
                channel=Statement(statement),
                endorsements=answer.evidence.endorsements,
                now=self._now(),
            )
        except AttestationRefused as exc:
            claims = exc.verdict.claims if exc.verdict is not None else None
            shown = (
                claims.measurement if claims is not None else "not shown"
            )  # unsigned claims are a stranger's words
            log.warning("refused %s to %s code %s: %s", request.name, answer.evidence.format, shown, exc.code)
            raise AccessRefused(
                f"the server does not pass the policy of this key: {exc.message} ({exc.code})",
                code="key_release_refused",
            ) from exc
