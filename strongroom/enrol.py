"""Enrolling a TPM: the round trip that ties a server's attestation key to an endorsement certificate, and the policy
that names the key from then on (docs/spec/tpm.md §7.4).

    evidence -> endorsement certificate leads to a root that you named? -> a credential that only that TPM, holding that
    key, can open -> its secret comes back -> a policy that names the key; the evidence is then verified by it

Later evidence needs no round trip: its key is listed. Everything happens on one connection, and nothing is sent but
the questions.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from strongroom import calls
from strongroom.attest.evidence import Absent, Attested, Evidence, parse_answer
from strongroom.attest.gather import Gathered
from strongroom.attest.keyset import parse_keyset
from strongroom.attest.policy import parse_policy, policy_for
from strongroom.attest.strict import canonical
from strongroom.attest.tpm import (
    EK_ENDORSEMENT,
    activation_challenge,
    examine_activated,
    with_endorsement,
)
from strongroom.attest.tpm_activation import ENTROPY_SIZE, SECRET_SIZE, Challenge, verify_activation
from strongroom.calls import Answer, Body, Request
from strongroom.errors import AttestationRefused, MalformedInput, Unavailable
from strongroom.flow import (
    Clock,
    Endpoint,
    Flow,
    NotSent,
    Open,
    Outcome,
    Send,
    ask_for_evidence,
    refusal,
    verify_answer,
)

_DEADLINE_S: Final = 30.0
"""Seconds for one activation: a real TPM takes one or two."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A policy's text that names the key, the verification by it, and what the round trip showed: the key's and the
    endorsement certificate's SHA-256 (hex), and the root that the latter leads to.
    """

    policy: str
    attested: Attested
    ak: str
    ek: str
    root: str


def enrol_flow(
    clock: Clock,
    random: Callable[[int], bytes],
    *,
    roots: tuple[str, ...],
    certificates: tuple[tuple[str, bytes], ...],
) -> Flow[Enrolled]:
    """Enrols the TPM of the server that answers. `roots`: hex SHA-256 of root certificates of TPM makers that you
    accept; `certificates`: documents with them and with those between (DER or PEM).

    Raises:
        AttestationRefused: the server shows no TPM, its certificate leads to no accepted root, its TPM does not hold
            the key, or the evidence is not for this connection. Unavailable: no server there, or not now.
    """
    endpoint: Endpoint = yield Open()
    nonce = random(32)
    answer = yield from ask_for_evidence(endpoint, nonce)
    now = clock.now()
    try:
        received = parse_answer(answer.body)
        evidence, security = received.evidence, parse_keyset(received.keyset).security
        data, pool = _with_certificate(evidence), (*evidence.endorsements, *certificates)
        challenge = activation_challenge(
            data,
            endorsements=pool,
            roots=roots,
            now=now,
            secret=random(SECRET_SIZE),
            entropy=random(ENTROPY_SIZE),
        )
    except MalformedInput as exc:
        expected = "evidence of a TPM with its endorsement certificate"
        raise refusal(exc.code, title="evidence can be used", expected=expected, got=exc.message) from exc
    secret = _secret((yield from _ask(endpoint, challenge)))
    activated = verify_activation(secret, challenge=challenge)
    found = examine_activated(data, endorsements=pool, roots=roots, now=now, activated=(activated,))
    if isinstance(found.claims, Absent):
        failed = next(c for c in found.checks if not c.passed)
        raise refusal(failed.code, title=failed.title, expected=failed.expected, got=failed.got)
    # The key is what later evidence can show; the root was for today.
    named = replace(found.claims, root=activated.ak)
    text = policy_for(named, security=security, now=now)
    gathered = Gathered(evidence.endorsements)
    attested = verify_answer(
        parse_policy(text), endpoint, received, gathered=gathered, nonce=nonce, now=clock.now()
    )
    return Enrolled(text, attested, ak=activated.ak, ek=activated.ek, root=found.claims.root)


def _with_certificate(evidence: Evidence) -> bytes:
    if evidence.format != "tpm":
        raise AttestationRefused(
            f"the server shows evidence of format {evidence.format}; a TPM is enrolled",
            code="evidence_format_not_accepted",
        )
    certificate = dict(evidence.endorsements).get(EK_ENDORSEMENT, b"")
    return with_endorsement(evidence.data, ek_certificate=certificate)


def _ask(endpoint: Endpoint, challenge: Challenge) -> Flow[Answer]:
    document = {
        "credential": base64.b64encode(challenge.credential).decode("ascii"),
        "encrypted_secret": base64.b64encode(challenge.encrypted_secret).decode("ascii"),
    }
    request = Request(
        method="POST",
        path="/v1/tpm/activate",
        headers=(("Content-Type", "application/json"),),
        body=Body.of(canonical(dict(document))),
        max_answer=4096,
        sized=True,
        deadline_s=_DEADLINE_S,
    )
    try:
        answer: Answer = yield Send(endpoint, request)
    except NotSent as exc:
        raise Unavailable(exc.text, code="server_changing") from exc
    except Outcome as exc:
        raise Unavailable(exc.text, code=exc.code) from exc
    if answer.status != 200:
        raise calls.error_of(answer)
    return answer


def _secret(answer: Answer) -> bytes:
    try:
        return base64.b64decode(json.loads(answer.body)["secret"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return b""  # `verify_activation` refuses it
