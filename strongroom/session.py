"""What one client remembers: its policy and key, and the servers that it verified, with their nonces and lifetimes.

Everything here is data under one lock; `flow` decides what is done with it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.attest.bundle import Bundle
from strongroom.attest.evidence import Attested
from strongroom.attest.policy import Policy
from strongroom.calls import Answer
from strongroom.ratls import Gate

MAX_ENDPOINTS: Final = 8
"""Verified servers kept at one time (docs/spec/channel.md): a balancer's backends, not a crowd."""
_NONCE = re.compile(r"[A-Za-z0-9._~+/=-]{1,512}")


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks of this machine, passed in so that tests can move them."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server and the connections to it; `link` is the driver's own object. Changed under the session's
    lock alone.
    """

    gate: Gate
    link: Any
    attested: Attested | None = None
    until: tuple[float, datetime] | None = None
    nonce: str | None = None
    nonce_at: float = 0.0
    token: tuple[str, str, float] | None = None
    """A reading token: (token, the nonce in it, when it was made)."""
    leases: int = 0
    retired: bool = False


class Session:
    """What one client knows: its policy and key, and the endpoints that it verified. Safe to share between
    threads.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        policy_text: str,
        origin: str,
        key: Ed25519PrivateKey | None,
        clock: Clock,
        random: Callable[[int], bytes],
        patience_s: float,
        endorsements: tuple[tuple[str, bytes], ...] = (),
        fetches: bool = False,
    ) -> None:
        self.policy: Final = policy
        self.policy_text: Final = policy_text
        self.origin: Final = origin
        """Where the server is said to be: a word for bundles, nothing more."""
        self.key: Final = key
        self.clock: Final = clock
        self.random: Final = random
        self.patience_s: Final = patience_s
        """Seconds for which a server that was there before may be gone."""
        self.endorsements: Final = endorsements
        """What the caller has beside what servers staple, for evidence of any format."""
        self.fetches: Final = fetches
        """Whether the driver has a source for what is missing."""
        self._lock = threading.Lock()
        self._endpoints: list[Endpoint] = []  # most recently used first
        self._retired: list[Endpoint] = []
        self.attested: Attested | None = None
        """The latest verification that succeeded."""
        self.leaf: bytes | None = None
        """The certificate (DER) of the connection on which it did."""
        self.bundle: Bundle | None = None
        """What it rested on."""

    def lease(self) -> Endpoint | None:
        """A verified endpoint to send to, idle ones first, or None; those whose verdict ended are let go."""
        with self._lock:
            for endpoint in [e for e in self._endpoints if self._ended(e)]:
                self._retire(endpoint)
            if not self._endpoints:
                return None
            chosen = min(self._endpoints, key=lambda e: e.leases)  # `min` keeps the order of equals
            self._endpoints.remove(chosen)
            self._endpoints.insert(0, chosen)
            chosen.leases += 1
            return chosen

    def admit(
        self, endpoint: Endpoint, attested: Attested, bundle: Bundle, *, verified_at: float, now: datetime
    ) -> None:
        """Takes in an endpoint that was just verified, leased to the caller."""
        with self._lock:
            lifetime = attested.expires_in_s
            endpoint.attested = self.attested = attested
            self.leaf, self.bundle = endpoint.gate.leaf, bundle
            # Counted from before the question was asked: the answer cannot be older than that.
            endpoint.until = (verified_at + lifetime, now + timedelta(seconds=lifetime))
            endpoint.leases = 1
            self._endpoints.insert(0, endpoint)
            while len(self._endpoints) > MAX_ENDPOINTS:
                self._retire(self._endpoints[-1])

    def release(self, endpoint: Endpoint) -> None:
        """Ends a lease."""
        with self._lock:
            endpoint.leases -= 1

    def forget(self, endpoint: Endpoint) -> None:
        """Lets an endpoint go unless others are using it right now: then its connections evidently live."""
        with self._lock:
            if endpoint.leases <= 1:
                self._retire(endpoint)

    def retire(self, endpoint: Endpoint) -> None:
        """Lets an endpoint go; it is closed once nobody uses it."""
        with self._lock:
            self._retire(endpoint)

    def closable(self) -> list[Endpoint]:
        """Endpoints that were let go and that nobody uses any more, each handed out once."""
        with self._lock:
            ready = [e for e in self._retired if e.leases <= 0]
            self._retired = [e for e in self._retired if e.leases > 0]
            return ready

    def ended(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's verdict has run out."""
        with self._lock:
            return self._ended(endpoint)

    def note_nonce(self, endpoint: Endpoint, answer: Answer) -> None:
        """Keeps the nonce for tokens that every answer of a verified server carries."""
        nonce = answer.headers.get("strongroom-nonce", "")
        if _NONCE.fullmatch(nonce):
            with self._lock:
                endpoint.nonce, endpoint.nonce_at = nonce, self.clock.monotonic()

    def _ended(self, endpoint: Endpoint) -> bool:
        monotonic, wall = endpoint.until or (0.0, self.clock.now())
        return self.clock.monotonic() >= monotonic or self.clock.now() >= wall

    def _retire(self, endpoint: Endpoint) -> None:
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
        if not endpoint.retired:
            endpoint.retired = True
            self._retired.append(endpoint)
