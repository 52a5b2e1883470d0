"""The client's exchanges, as generators that do no input or output: attest a server, call it, follow it
through restarts.

`client` drives each generator twice, once with blocking and once with awaiting calls: the generator yields a
command (`Open`, `Send`, `Sleep`, `Fetch`), the driver carries it out and sends its result back in, or throws an
`Outcome`.

Rules
  1. A request goes only to an *endpoint*: one server that `attest.verify` accepted, whose key is pinned in
     the gate of every connection of that endpoint. Nothing but the question for evidence is ever sent to
     anything else.
  2. The evidence is asked for on the first connection of a new endpoint, and that connection then carries
     requests.
  3. A connection that shows another key is refused inside its handshake (0 bytes of the request were sent): a
     new endpoint is attested on a connection of its own, and the request goes there, once.
  4. After bytes of a request were sent, only an idempotent one is sent again, once.
  5. A verdict ends with its lifetime on two clocks: the monotonic one, which nobody sets, and the wall clock,
     which goes on while the machine sleeps. An ended verdict is renewed before the next request.
  6. Tokens are bound to the keyset of the endpoint they are sent to.
  7. Endorsements are fetched only where the caller said so, only for evidence of a format that the policy names, and
     only those that neither server nor caller gave (docs/endorsements.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar

from strongroom import __version__, attest, calls, tokens
from strongroom.attest.bundle import Bundle
from strongroom.attest.evidence import Attested, Check, EvidenceAnswer, Leaf, Verdict, parse_answer
from strongroom.attest.gather import Fetch, Fetched, Gathered, fitting, gather, with_reason
from strongroom.attest.keyset import keyset_digest, parse_keyset
from strongroom.attest.policy import Policy, named_policy, parse_policy, policy_for
from strongroom.attest.verifiers import accepted_roots
from strongroom.calls import Answer, NotSent, Outcome, Request, Unacceptable, Unanswered
from strongroom.errors import AttestationRefused, Refused, Unavailable, Unusable
from strongroom.session import Clock, Endpoint, Session

MAX_OPENED: Final = 3
"""New endpoints attested for one request: a server that keeps changing its key is not followed for ever."""
MAX_EVIDENCE: Final = 1 << 20
"""Bytes of an evidence answer; it comes from somebody who is not verified yet."""
EVIDENCE_DEADLINE_S: Final = 10.0
EVIDENCE_TRIES: Final = 3
"""Times that evidence is asked for where the server says that it is busy."""
MAX_PAUSE_S: Final = 3.0
"""Seconds waited at most where a server says when to come again."""
TOKEN_REUSE_S: Final = 60.0
"""Seconds for which a reading token is used again; it lives for 120."""
NONCE_FRESH_S: Final = 60.0
"""An upload is not started with an older nonce: its refusal would cost the whole body."""
SMALL_BODY: Final = 1 << 16
"""Bytes of a body that may simply be sent again where the nonce was stale."""
_NONCE_CODES: Final = frozenset({"auth_nonce_stale", "auth_nonce_required"})


# --- commands and their outcomes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Make an endpoint; nothing is connected yet. Answered with an `Endpoint`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request on a connection of the endpoint. Answered with an `Answer`, whatever its status."""

    endpoint: Endpoint
    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


Command: TypeAlias = Open | Send | Sleep | Fetch
_T = TypeVar("_T")
Flow: TypeAlias = Generator[Command, Any, _T]


# --- attest -------------------------------------------------------------------------------------------------


def evidence_request(nonce: bytes) -> Request:
    """`GET /v1/evidence`, bounded in size and time."""
    return Request(
        method="GET",
        path="/v1/evidence",
        query=f"nonce={nonce.hex()}",
        max_answer=MAX_EVIDENCE,
        sized=True,
        deadline_s=EVIDENCE_DEADLINE_S,
    )


def refusal(code: str, *, title: str, expected: str, got: str) -> AttestationRefused:
    """A refusal before there was evidence to appraise; its verdict has the one check that was made."""
    check = Check(id=f"channel.{code}", title=title, passed=False, expected=expected, got=got, code=code)
    verdict = Verdict(
        passed=False,
        format="",
        simulated=False,
        checks=(check,),
        code=code,
        claims=None,
        keyset_digest=None,
        channel="no evidence was received",
    )
    return AttestationRefused(f"{title}: expected {expected}, got {got}", code=code, verdict=verdict)


def attest_flow(session: Session) -> Flow[Endpoint]:
    """Steps 1 to 7 of docs/spec/channel.md: a new endpoint, verified and pinned, leased to the caller.

    Raises:
        AttestationRefused: the server is not one that the policy accepts; nothing but the question for
        evidence was sent. Unavailable: no server, or none that answers; or `endorsements_unavailable`.
    """
    endpoint: Endpoint = yield Open()
    try:
        # 1, 2. One connection: TLS 1.3, its leaf is kept by the gate; fresh nonce; bounded, framed answer.
        nonce = session.random(32)
        started, now = session.clock.monotonic(), session.clock.now()
        answer = yield from _ask_for_evidence(endpoint, nonce)
        # 3 - 6. Signature chain, report data, this connection's key, policy: all in the one pure function.
        attested, bundle = yield from _judge(session, endpoint, answer, nonce)
        # 7. Pin: from here on this endpoint's connections end at this key or not at all.
        endpoint.gate.pin(attested.spki_sha256)
    except BaseException:
        session.retire(endpoint)
        raise
    session.admit(endpoint, attested, bundle, verified_at=started, now=now)
    session.note_nonce(endpoint, answer)
    return endpoint


def _judge(
    session: Session, endpoint: Endpoint, answer: Answer, nonce: bytes
) -> Generator[Fetch, Fetched, tuple[Attested, Bundle]]:
    """Steps 3 to 6, and what they rested on; a refusal has that too."""
    gathered, at = Gathered(()), session.clock.now()

    def rests_on() -> Bundle:
        return Bundle(
            answer=answer.body,
            endorsements=gathered.endorsements,
            nonce=nonce,
            leaf=endpoint.gate.leaf or b"",
            policy=session.policy_text,
            verified_at=at,
            origin=session.origin,
            software=f"strongroom/{__version__}",
        )

    try:
        received = _read(answer)
        gathered = yield from _endorsements(session, received)
        at = session.clock.now()
        attested = _verify(session.policy, endpoint, received, gathered=gathered, nonce=nonce, now=at)
    except AttestationRefused as refused:
        refused.bundle = rests_on()
        raise
    return attested, rests_on()


def _ask_for_evidence(endpoint: Endpoint, nonce: bytes) -> Flow[Answer]:
    for last in (False,) * (EVIDENCE_TRIES - 1) + (True,):
        try:
            answer: Answer = yield Send(endpoint, evidence_request(nonce))
        except NotSent as exc:
            if exc.code == "server_unreachable":
                raise Unavailable(exc.text, code=exc.code) from exc
            raise refusal(exc.code, title="TLS of the connection", expected="TLS 1.3", got=exc.text) from exc
        except Unanswered as exc:
            raise Unavailable(exc.text, code=exc.code) from exc
        except Unacceptable as exc:
            expected = "200 with Content-Length, no coding, no redirect"
            raise refusal(exc.code, title="answer with evidence", expected=expected, got=exc.text) from exc
        if answer.status == 200:
            return answer
        if answer.status not in {429, 503} or last:
            break
        yield Sleep(min(calls.retry_after(answer), MAX_PAUSE_S))
    if answer.status in {429, 503}:
        raise Unavailable("the server has no time to give evidence", code="evidence_busy")
    raise refusal(
        "evidence_status", title="answer with evidence", expected="status 200", got=f"{answer.status}"
    )


def _read(answer: Answer) -> EvidenceAnswer:
    try:
        return parse_answer(answer.body)
    except Unusable as exc:
        raise _unreadable(exc) from exc


def _unreadable(exc: Unusable) -> AttestationRefused:
    """Bytes of a stranger that cannot be read are a refusal of the stranger, not a fault of the caller's."""
    expected = "well-formed evidence"
    return refusal(exc.code, title="evidence can be read", expected=expected, got=exc.message)


def _endorsements(session: Session, received: EvidenceAnswer) -> Generator[Fetch, Fetched, Gathered]:
    """Rule 7: what was stapled, what the caller has for such evidence, and what was fetched."""
    evidence, policy = received.evidence, session.policy
    at_hand = evidence.endorsements + fitting(evidence.format, evidence.data, session.endorsements)
    if not session.fetches or not all(c.passed for c in policy.check_format(evidence.format)):
        return Gathered(at_hand)
    roots = accepted_roots(evidence.format, policy)
    return (
        yield from gather(
            evidence.format, evidence.data, endorsements=at_hand, roots=roots, now=session.clock.now
        )
    )


def _verify(
    policy: Policy,
    endpoint: Endpoint,
    received: EvidenceAnswer,
    *,
    gathered: Gathered,
    nonce: bytes,
    now: datetime,
) -> Attested:
    """Steps 3 to 6, over what this connection showed and answered."""
    leaf = endpoint.gate.leaf
    if leaf is None:  # no connection was made through the gate: its hook did not run, so nothing is known
        raise refusal("leaf_missing", title="leaf of this connection", expected="a certificate", got="none")
    try:
        return attest.verify(
            received.evidence,
            policy,
            nonce=nonce,
            keyset_bytes=received.keyset,
            inclusion=received.inclusion,
            channel=Leaf(der=leaf),
            endorsements=gathered.endorsements,
            now=now,
        )
    except Unusable as exc:
        raise _unreadable(exc) from exc
    except AttestationRefused as exc:
        reason = gathered.shortfall(exc.code)
        if exc.verdict is None or not reason:
            raise
        verdict = with_reason(exc.verdict, reason)
        raise AttestationRefused(f"{exc.message}; {reason}", code=exc.code, verdict=verdict) from exc


ask_for_evidence = _ask_for_evidence
verify_answer = _verify
"""For `enrol`, whose exchange goes on where `attest_flow` ends."""


def unsafe_first_look(clock: Clock, random: Callable[[int], bytes]) -> Flow[tuple[str, Attested]]:
    """Trust on first use: the text of a policy that accepts exactly what answers now, and its verification by
    it.

    Everything is checked but whether anybody wants this code: that is for the person who reads the
    measurement. Nothing but the question for evidence is sent, and the endpoint is not kept.

    Raises:
        AttestationRefused: the evidence is not genuine, not fresh, or not for this connection.
        Unavailable: no server there.
    """
    endpoint: Endpoint = yield Open()
    nonce = random(32)
    answer = yield from _ask_for_evidence(endpoint, nonce)
    received = _read(answer)
    stapled, now = Gathered(received.evidence.endorsements), clock.now()
    try:
        # A policy that names no code: it refuses, and the refusal carries the claims if their signature
        # verified.
        _verify(named_policy("production"), endpoint, received, gathered=stapled, nonce=nonce, now=now)
        raise AssertionError("a policy without an entry accepted a server")
    except AttestationRefused as refused:
        claims = refused.verdict.claims if refused.verdict is not None else None
        if claims is None:
            raise
    security = parse_keyset(received.keyset).security
    text = policy_for(claims, security=security, now=now)
    return text, _verify(parse_policy(text), endpoint, received, gathered=stapled, nonce=nonce, now=now)


def _attest_patiently(session: Session) -> Flow[Endpoint]:
    """`attest_flow`; one that was verified before may be gone for `patience_s` seconds, as in a restart."""
    patient = session.attested is not None
    until, pause = session.clock.monotonic() + session.patience_s, 0.1
    while True:
        try:
            return (yield from attest_flow(session))
        except Unavailable as exc:
            # A server that starts again is soon there; a vendor's service that is asked again at once is not.
            gone = exc.code != "endorsements_unavailable"
            if not patient or not gone or session.clock.monotonic() + pause > until:
                raise
        yield Sleep(pause)
        pause = min(2 * pause, 2.0)


# --- call ---------------------------------------------------------------------------------------------------


def call_flow(session: Session, request: Request) -> Flow[Answer]:
    """Sends `request` to a verified server, attesting one first where there is none; the answer, whatever its
    status.

    Raises:
        AttestationRefused: the server that is there now is not acceptable; the request was not sent to it.
        Refused: an answer that this client does not take, to a request that changes nothing.
        Unavailable: no server, or no answer that is taken (codes `connection_lost`, `answer_...`: the request
        may have been carried out).
    """
    repeated, new = False, False
    for opened in range(MAX_OPENED + 1):
        endpoint = None if new else session.lease()
        if endpoint is None:
            if opened == MAX_OPENED:
                break
            endpoint = yield from _attest_patiently(session)
        try:
            while True:
                try:
                    return (yield from _authorised(session, endpoint, request))
                except Unanswered as exc:
                    # Slowness is not loss: a request that ran out of time would only double the load.
                    if repeated or not request.idempotent or exc.code == "answer_late":
                        raise Unavailable(exc.text, code=exc.code) from exc
                    repeated = True
                    if session.ended(endpoint):  # while we waited: rule 5 counts for this repetition too
                        break
        except NotSent:
            # Gone, or another key: this request goes to a newly attested server or nowhere.
            session.forget(endpoint)
            new = True
        except Unacceptable as exc:
            if request.changes:  # the answer is refused, not the change: that may be done
                raise Unavailable(
                    f"the server's answer: {exc.text}; the request may have been carried out", code=exc.code
                ) from exc
            raise Refused(f"the server's answer: {exc.text}", code=exc.code) from exc
        finally:
            session.release(endpoint)
    raise Unavailable("the server changed its key again and again", code="server_changing")


def _authorised(session: Session, endpoint: Endpoint, request: Request) -> Flow[Answer]:
    """One request with its token; where the server wants a newer nonce, once more with that."""
    if session.key is None:
        return (yield from _noted(session, endpoint, request))
    age = session.clock.monotonic() - endpoint.nonce_at
    if endpoint.nonce is None or (request.body.length > SMALL_BODY and age > NONCE_FRESH_S):
        yield from _noted(session, endpoint, calls.PING)
    used = endpoint.nonce
    answer = yield from _noted(session, endpoint, _with_token(session, endpoint, request))
    stale = answer.status == 401 and calls.problem_code(answer) in _NONCE_CODES
    if (
        stale and endpoint.nonce != used
    ):  # 401 comes before anything is done: sending again is safe for every request
        answer = yield from _noted(session, endpoint, _with_token(session, endpoint, request))
    return answer


def _noted(session: Session, endpoint: Endpoint, request: Request) -> Flow[Answer]:
    answer: Answer = yield Send(endpoint, request)
    session.note_nonce(endpoint, answer)
    return answer


def _with_token(session: Session, endpoint: Endpoint, request: Request) -> Request:
    """Adds the Authorization header: bound to this endpoint's keyset, and for changes to method, path and
    body.
    """
    key, attested, nonce = session.key, endpoint.attested, endpoint.nonce
    if key is None or attested is None or nonce is None:
        return request
    moment = session.clock.monotonic()
    if not request.changes and endpoint.token is not None:
        token, of_nonce, made = endpoint.token
        if of_nonce == nonce and moment - made < TOKEN_REUSE_S:
            return _bearing(request, token)
    action = (
        tokens.Action(method=request.method, path=calls.target(request), sha256=request.body.sha256.hex())
        if request.changes
        else None
    )
    token = tokens.issue_token(
        key,
        keyset_digest=keyset_digest(attested.keyset_bytes),
        nonce=nonce,
        now=int(session.clock.now().timestamp()),
        action=action,
    )
    if action is None:
        endpoint.token = (token, nonce, moment)
    return _bearing(request, token)


def _bearing(request: Request, token: str) -> Request:
    return replace(request, headers=(*request.headers, ("Authorization", f"Bearer {token}")))


def drive_to_end(flow: Flow[_T], perform: Callable[[Command], Any]) -> _T:
    """Drives a flow with blocking calls; `perform` carries out one command."""
    try:
        command = next(flow)
        while True:
            try:
                result = perform(command)
            except Outcome as outcome:
                command = flow.throw(outcome)
            else:
                command = flow.send(result)
    except StopIteration as stop:
        value: _T = stop.value
        return value
    finally:
        flow.close()


__all__ = [
    "Clock", "Command", "Endpoint", "Fetch", "Flow", "NotSent", "Open", "Outcome", "Send", "Session", "Sleep",
    "Unacceptable", "Unanswered", "ask_for_evidence", "attest_flow", "call_flow", "drive_to_end", "unsafe_first_look",
    "verify_answer",
]  # fmt: skip
