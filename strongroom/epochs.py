"""Key epochs: the keys of a running server, the keyset that names them, and the change to the next ones.

Rules
  - Keys are made inside the TEE, live in memory for one epoch, and are never written to a disk.
  - Before an epoch's key meets a client, the server verifies its own evidence for it, with the very function
    that clients use: a server that no client would accept does not start.
  - The next epoch's keys are made before the old ones end and swapped in for new connections; a connection
    keeps its epoch, and with it the keyset that its client verified, for its whole life.
"""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom import attest
from strongroom.attest.batch import Single
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.evidence import NONCE_SIZE, Leaf, report_data
from strongroom.attest.keyset import (
    BINDING,
    ROLES,
    Key,
    Keyset,
    SecurityConfiguration,
    encode_keyset,
    keyset_digest,
)
from strongroom.attest.nitro import FORMAT as NITRO
from strongroom.attest.policy import parse_policy
from strongroom.attest.verifiers import PINS, split_manifests
from strongroom.attester import Attester
from strongroom.errors import Error, Failure
from strongroom.ratls import EpochListener, ServerIdentity, new_server_identity, server_context
from strongroom.service import Epoch

log = logging.getLogger("strongroom.epochs")

OVERLAP_S: Final = 3600
"""Seconds before its end at which an epoch is followed by the next: clients rely on a verdict for an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What all epochs of one server have in common. `roots`: hex digests of which its evidence must name one."""

    attester: Attester
    roots: tuple[str, ...]
    security: SecurityConfiguration
    store_id: str
    hosts: tuple[str, ...]
    lifetime_s: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    epoch: Epoch
    context: ssl.SSLContext


class Epochs:
    """The current epoch, and those whose connections still live."""

    def __init__(self, origin: Origin, *, now: Callable[[], datetime]) -> None:
        """Makes the first epoch and verifies its evidence.

        Raises:
            Failure: the server's own evidence does not verify (code `start_refused`).
        """
        self._origin = origin
        self._now = now
        # Weak: an old context is alive as long as a connection holds it, and no longer.
        self._by_context: WeakKeyDictionary[ssl.SSLContext, Epoch] = WeakKeyDictionary()
        first = self._make()
        self._listener = EpochListener(first.context)
        self._adopt(first)

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context to listen with."""
        return self._listener.context

    @property
    def current(self) -> Epoch:
        """The epoch that new connections get."""
        return self._current

    def of(self, context: ssl.SSLContext) -> Epoch:
        """The epoch of a connection that was made with this context."""
        return self._by_context[context]

    def rotate(self) -> None:
        """Makes the next epoch's keys, verifies their evidence, and gives them to new connections.

        Raises:
            Failure: the evidence does not verify, or the system has no descriptor left (code
                `start_refused`); the old epoch goes on.
        """
        try:
            made = self._make()
        except OSError as exc:  # a key is handed to OpenSSL through descriptors
            raise Failure("the next epoch's keys cannot be made now", code="start_refused") from exc
        self._adopt(made)  # first: a connection of the new context may ask for its epoch at once
        self._listener.swap(made.context)

    def seconds_left(self) -> float:
        """How long until `rotate` is due, by the wall clock: 0 or less means now."""
        left = self._current.not_after - self._now().timestamp()
        return left - min(OVERLAP_S, self._origin.lifetime_s / 4)

    def _adopt(self, made: _Made) -> None:
        self._by_context[made.context] = made.epoch
        self._current = made.epoch

    def _make(self) -> _Made:
        origin, now = self._origin, self._now()
        identity = new_server_identity(
            hosts=origin.hosts,
            evidence_format=origin.attester.format,
            evidence=lambda data: origin.attester.evidence(data, now=now),
            now=now,
            lifetime_s=origin.lifetime_s,
        )
        receipt_key = Ed25519PrivateKey.generate()
        keyset = Keyset(
            keys=(
                Key("tls", ROLES["tls"], identity.spki),
                Key("receipt", ROLES["receipt"], _spki(receipt_key)),
            ),
            not_after=int(now.timestamp()) + origin.lifetime_s,
            store_id=origin.store_id,
            binding=BINDING,
            security=origin.security,
        )
        keyset_bytes = encode_keyset(keyset)
        self._verify(identity, keyset_bytes, now)
        epoch = Epoch(
            keyset_bytes=keyset_bytes,
            keyset_digest=keyset_digest(keyset_bytes),
            not_after=keyset.not_after,
            boot_evidence=identity.evidence,
            receipt_key=receipt_key,
        )
        return _Made(epoch=epoch, context=server_context(identity))

    def _verify(self, identity: ServerIdentity, keyset_bytes: bytes, now: datetime) -> None:
        """What a client does, with a policy that accepts what is shown; then: is that what was measured?"""
        origin, nonce = self._origin, secrets.token_bytes(NONCE_SIZE)
        data = report_data(nonce=nonce, keyset_bytes=keyset_bytes)
        evidence = origin.attester.evidence(data, now=now, nonce=nonce)
        if evidence.format in PINS and evidence.format != NITRO and not _vendors(evidence.endorsements):
            # Without the vendor's documents nobody can verify it, and they are with the clients (a Nitro document has
            # them inside). That the evidence carries what was asked for and speaks of this code, every attester looks
            # at itself.
            log.info("no endorsements are stapled: the server's own evidence is left to clients to verify")
            return
        try:
            draft = attest.draft_policy(evidence, keyset_bytes=keyset_bytes, roots=origin.roots, now=now)
            attested = attest.verify(
                evidence,
                parse_policy(draft),
                nonce=nonce,
                keyset_bytes=keyset_bytes,
                inclusion=Single(),
                channel=Leaf(identity.certificate_der),
                endorsements=evidence.endorsements,
                now=now,
            )
        except Error as exc:
            raise Failure(
                f"the server's own evidence does not verify: {exc.code}", code="start_refused"
            ) from exc
        shown = (attested.claims.measurement, attested.keyset.security)
        if (
            shown != (origin.attester.measurement, origin.security)
            or attested.claims.root not in origin.roots
        ):
            raise Failure(
                "the server's own evidence is about other code, another root or another configuration",
                code="start_refused",
            )


def _vendors(endorsements: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """Those that a vendor signed; a release manifest or an event log verifies no platform."""
    _, documents = split_manifests(endorsements)
    return tuple(e for e in documents if not is_event_log(e[1]))


def _spki(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
