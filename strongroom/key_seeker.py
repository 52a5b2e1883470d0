"""The server's end of a key release: what a server on a platform without a sealing key does before it opens its store
(`docs/spec/key-release.md`).

    the broker's challenge -> our statement, signed by our evidence -> the key, sealed for us and signed by the broker

Rules
  - Nothing that is sent is a secret, and what comes back is believed for the broker's signature alone, whose key is in
    this server's attested configuration. The connection is trusted for nothing.
  - One exchange, at start; a broker that does not answer keeps the server from starting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import calls
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, encode_answer, statement_report_data
from strongroom.attester import Attester
from strongroom.calls import Body
from strongroom.errors import Unavailable
from strongroom.flow import Endpoint, Open, Outcome, Send
from strongroom.handover import encode_take
from strongroom.key_release import MAX_GIVEN, KeyRequest, parse_challenge, parse_given, take
from strongroom.keys import SealingRoot, operator_root
from strongroom.transport import Transport

MAX_PROBLEM: Final = 64 * 1024
"""Bytes of an answer that are read: a refusal says why, in some hundred."""
_DEADLINE_S: Final = 60.0
"""Seconds for one exchange with the broker, which verifies one piece of evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeker:
    """Who asks, and whom. `key_release`: the broker's public key and the name of the key there, as the attested
    configuration has them. `keyset`: a keyset of this server's with that configuration.
    """

    key_release: str
    attester: Attester
    keyset: bytes
    transport: Transport
    now: Callable[[], datetime]


def seek(seeker: Seeker) -> SealingRoot:
    """Asks the broker for this server's key; returns the sealing root that it makes.

    Raises:
        Unavailable: no broker answers.
        AccessRefused: it does not release the key to this server, with its own code.
        NotFound: it keeps no such key (code `key_release_key_unknown`).
        SealRefused: what came is not of the broker in the configuration, or not for us (code `key_release_tampered`).
        MalformedInput: it is no such answer (code `key_release_malformed`).
    """
    public, _, name = seeker.key_release.partition("/")
    broker = bytes.fromhex(public)
    endpoint: Endpoint = seeker.transport.perform(Open())
    challenge = parse_challenge(_ask(seeker, endpoint, "challenge", b""))
    private = X25519PrivateKey.generate()
    key = private.public_key().public_bytes_raw()
    statement = KeyRequest(challenge=challenge, broker=broker, name=name, key=key).encode()
    data = statement_report_data(nonce=challenge, keyset_bytes=seeker.keyset, statement=statement)
    evidence = seeker.attester.evidence(data, now=seeker.now(), nonce=challenge)
    answer = encode_answer(EvidenceAnswer(evidence=evidence, keyset=seeker.keyset, inclusion=Single()))
    body = encode_take(statement, answer)
    given = parse_given(_ask(seeker, endpoint, "release", body))
    return operator_root(take(given, private=private, body=body, broker=broker))


def _ask(seeker: Seeker, endpoint: Endpoint, what: str, body: bytes) -> bytes:
    request = calls.Request(
        method="POST",
        path=f"/v1/key-release/{what}",
        headers=(("Content-Type", "application/json"),),
        body=Body.of(body),
        idempotent=False,
        max_answer=MAX_PROBLEM,
        sized=True,
        deadline_s=_DEADLINE_S,
    )
    try:
        answer: calls.Answer = seeker.transport.perform(Send(endpoint, request))
    except Outcome as exc:
        raise Unavailable(f"the key broker: {exc.text}", code=exc.code) from exc
    if answer.status != 200:
        raise calls.error_of(answer)
    return answer.body[: MAX_GIVEN + 1]
