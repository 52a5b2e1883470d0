"""The client's exchanges, as generators that do no input or output: attest a server, call it, follow it
through restarts.

`client` drives each generator twice, once with blocking and once with awaiting calls: the generator yields a
command (`Open`, `Send`, `Sleep`), the driver carries it out and sends its result back in, or throws an
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
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom import attest, calls, tokens
from strongroom.attest.evidence import Attested, Check, Leaf, Verdict, parse_answer
from strongroom.attest.keyset import keyset_digest, parse_keyset
from strongroom.attest.policy import Policy, named_policy, parse_policy, policy_for
from strongroom.calls import Answer, Request
from strongroom.errors import AttestationRefused, Refused, Unavailable, Unusable
from strongroom.ratls import Gate

MAX_ENDPOINTS: Final = 8
"""Verified servers kept at one time (docs/spec/channel.md): a balancer's backends, not a crowd."""
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
_NONCE = re.compile(r"[A-Za-z0-9._~+/=-]{1,512}")
_NONCE_CODES: Final = frozenset({"auth_nonce_stale", "auth_nonce_required"})


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


Command: TypeAlias = Open | Send | Sleep
_T = TypeVar("_T")
Flow: TypeAlias = Generator[Command, Any, _T]


class Outcome(Exception):
    """How a `Send` ended without an answer that may be used. Callers see `strongroom.errors` only."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class NotSent(Outcome):
    """No byte of the request left: no connection, or its handshake was refused by either side."""


class Unanswered(Outcome):
    """The connection ended, or time did, before the whole answer was there; the server may have acted."""


class Unacceptable(Outcome):
    """An answer came that this client does not take: redirect, content coding, framing, size."""


# --- the client's memory ------------------------------------------------------------------------------------


class Session:
    """What one client knows: its policy and key, and the endpoints that it verified. Safe to share between
    threads.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        key: Ed25519PrivateKey | None,
        clock: Clock,
        random: Callable[[int], bytes],
        patience_s: float,
    ) -> None:
        self.policy: Final = policy
        self.key: Final = key
        self.clock: Final = clock
        self.random: Final = random
        self.patience_s: Final = patience_s
        """Seconds for which a server that was there before may be gone."""
        self._lock = threading.Lock()
        self._endpoints: list[Endpoint] = []  # most recently used first
        self._retired: list[Endpoint] = []
        self.attested: Attested | None = None
        """The latest verification that succeeded."""
        self.leaf: bytes | None = None
        """The certificate (DER) of the connection on which it did."""

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

    def admit(self, endpoint: Endpoint, attested: Attested, *, verified_at: float, now: datetime) -> None:
        """Takes in an endpoint that was just verified, leased to the caller."""
        with self._lock:
            lifetime = attested.expires_in_s
            endpoint.attested = self.attested = attested
            self.leaf = endpoint.gate.leaf
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
        evidence was sent. Unavailable: no server, or none that answers.
    """
    endpoint: Endpoint = yield Open()
    try:
        # 1, 2. One connection: TLS 1.3, its leaf is kept by the gate; fresh nonce; bounded, framed answer.
        nonce = session.random(32)
        started, now = session.clock.monotonic(), session.clock.now()
        answer = yield from _ask_for_evidence(endpoint, nonce)
        # 3 - 6. Signature chain, report data, this connection's key, policy: all in the one pure function.
        attested = _verify(session.policy, endpoint, answer, nonce=nonce, now=session.clock.now())
        # 7. Pin: from here on this endpoint's connections end at this key or not at all.
        endpoint.gate.pin(attested.spki_sha256)
    except BaseException:
        session.retire(endpoint)
        raise
    session.admit(endpoint, attested, verified_at=started, now=now)
    session.note_nonce(endpoint, answer)
    return endpoint


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


def _verify(policy: Policy, endpoint: Endpoint, answer: Answer, *, nonce: bytes, now: datetime) -> Attested:
    """Steps 3 to 6, over what this connection showed and answered."""
    leaf = endpoint.gate.leaf
    if leaf is None:  # no connection was made through the gate: its hook did not run, so nothing is known
        raise refusal("leaf_missing", title="leaf of this connection", expected="a certificate", got="none")
    try:
        received = parse_answer(answer.body)
        return attest.verify(
            received.evidence,
            policy,
            nonce=nonce,
            keyset_bytes=received.keyset,
            channel=Leaf(der=leaf),
            endorsements=received.evidence.endorsements,
            now=now,
        )
    except Unusable as exc:
        # Bytes of a stranger that cannot be read are a refusal of the stranger, not a fault of the caller's.
        expected = "well-formed evidence"
        raise refusal(exc.code, title="evidence can be read", expected=expected, got=exc.message) from exc


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
    now = clock.now()
    try:
        # A policy that names no code: it refuses, and the refusal carries the claims if their signature
        # verified.
        _verify(named_policy("production"), endpoint, answer, nonce=nonce, now=now)
        raise AssertionError("a policy without an entry accepted a server")
    except AttestationRefused as refused:
        claims = refused.verdict.claims if refused.verdict is not None else None
        if claims is None:
            raise
    security = parse_keyset(parse_answer(answer.body).keyset).security
    text = policy_for(claims, security=security, now=now)
    return text, _verify(parse_policy(text), endpoint, answer, nonce=nonce, now=now)


def _attest_patiently(session: Session) -> Flow[Endpoint]:
    """`attest_flow`; one that was verified before may be gone for `patience_s` seconds, as in a restart."""
    patient = session.attested is not None
    until, pause = session.clock.monotonic() + session.patience_s, 0.1
    while True:
        try:
            return (yield from attest_flow(session))
        except Unavailable:
            if not patient or session.clock.monotonic() + pause > until:
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
    "Clock", "Command", "Endpoint", "Flow", "NotSent", "Open", "Outcome", "Send", "Session", "Sleep",
    "Unacceptable", "Unanswered", "ask_for_evidence", "attest_flow", "call_flow", "drive_to_end", "unsafe_first_look",
    "verify_answer",
]  # fmt: skip
