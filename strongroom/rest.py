"""The HTTP front end: routes, headers and bodies on one side, `service` on the other. It decides nothing.

Rules
  - Every response has a Content-Length: one that was cut short must never pass as complete. The HTTP edge
    adds `Connection: close` where a request was answered before all of it had arrived.
  - Nothing of a body is read, and no `100 Continue` sent, before the service asks for it: by then the caller
    is known and may do what it asks.
  - A connection of an earlier key epoch ends with its next response, so that it drains by itself.
  - Every response carries `Strongroom-Nonce`, the nonce for the caller's next token, and says SIMULATED
    where the TEE is.
  - There are no redirects, no cookies, and no content codings in either direction.
  - Whoever hangs up while a run of theirs waits leaves the line; one under way ends where the runner can end it.

Routes (docs/http.md): the native ones under `/v1`, the Open Inference Protocol under `/v2`, and the four
plain ones of ConfidentialML.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

from strongroom import __version__, bodies
from strongroom.asked import Asked, served
from strongroom.asked import read as read_asked
from strongroom.attest.evidence import parse_nonce
from strongroom.bodies import JSON
from strongroom.errors import Error, Failure, InvalidRequest, MalformedInput, NotFound, Unavailable
from strongroom.exchange import Exchange
from strongroom.handover_source import HandoverSource
from strongroom.names import check_name
from strongroom.oip import WireLimits
from strongroom.partition import AUTO, read_partition
from strongroom.problems import problem, status_of
from strongroom.recovery import Recovery
from strongroom.reduction_fields import ACCEPT, read_accepted, read_fields
from strongroom.routes import Receive, Request, Response, Route, Router, Scope, Send
from strongroom.service import DEFAULT_SEED_NAME, ERASURE, Call, Epoch, Service, View

log = logging.getLogger("strongroom.rest")

_T = TypeVar("_T")
BYTES: Final = "application/octet-stream"

PAUSE_S: Final = 0.25
"""Seconds until somebody is told to come back later. Who does so at once, on many connections, would keep the server
busy with refusals, and those whom it has let in waiting."""
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_BEARER: Final = re.compile(r"Bearer +([!-~]+)", re.IGNORECASE)


class BodyLost(Exception):
    """The connection ended before the body did, or before the answer was there: there is nobody to answer."""


class Rest:
    """The application. `epoch_of` finds the key epoch of the connection that a request came on."""

    def __init__(
        self,
        service: Service,
        *,
        wire: WireLimits,
        epoch_of: Callable[[Scope], Epoch],
        current_epoch: Callable[[], Epoch],
        handover: HandoverSource | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        self._service = service
        self._handover = handover
        self._recovery = recovery
        self._wire = wire
        self._epoch_of = epoch_of
        self._current_epoch = current_epoch
        model, version = "/v1/models/{name}", "/versions/{version}"
        routes = [
            Route("/health", GET=self._health),
            Route("/model/upload", "name", POST=self._upload_seed),
            Route("/model/predict", "name", POST=self._predict),
            Route("/attestation/report", GET=self._report),
            Route("/v1/evidence", "nonce", GET=self._evidence),
            Route("/v1/tpm/activate", POST=self._activate),
            Route("/v1/handover/challenge", POST=self._handover_challenge),
            Route("/v1/handover/take", POST=self._handover_take),
            Route("/v1/handover/done", POST=self._handover_done),
            Route("/v1/recovery/challenge", POST=self._recovery_challenge),
            Route("/v1/recovery/restore", POST=self._recovery_restore),
            Route("/v1/models", "after", GET=self._models),
            Route(model, GET=self._model, PUT=self._upload, DELETE=self._delete),
            Route("/v2", GET=self._server),
            Route("/v2/health/live", GET=self._live),
            Route("/v2/health/ready", GET=self._ready),
        ]
        routes += [Route(model + version, GET=self._model, DELETE=self._delete)]
        for place in ("", version):
            routes += [
                Route(model + place + "/admission", GET=self._admission),
                Route(model + place + "/load", POST=self._load),
                Route(model + place + "/unload", POST=self._unload),
                Route("/v2/models/{name}" + place, GET=self._metadata),
                Route("/v2/models/{name}" + place + "/ready", GET=self._model_ready),
                Route("/v2/models/{name}" + place + "/infer", "output", POST=self._infer),
            ]
        self._router = Router(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one response, whatever happens inside."""
        if scope["type"] != "http":
            raise AssertionError(f"not an HTTP request: {scope['type']}")
        try:
            response = await self._answer(scope, receive)
        except BodyLost:
            return
        except Error as error:
            if status_of(error) == 500:
                _log_fault(error)
            if isinstance(error, Unavailable):
                await _hold_back()
            response = problem(error)
        except Exception as fault:  # noqa: BLE001 - the caller gets our words only, the log no words at all
            _log_fault(fault)
            response = problem(Failure("a fault of this server"))
        exchange = scope.get("strongroom.exchange")
        if isinstance(exchange, Exchange):
            await exchange.answer(response.status, response.fields + self._common(scope), response.body)
        else:
            await response.send_to(send, self._common(scope))

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if (known := scope.get("strongroom.facts", {}).get("handler")) is not None:
            handler, former = known
            response: Response = await handler(former.again(scope, receive))
            return response
        route, names = self._router.find(scope["path"])
        handler = route.handler(scope["method"])
        if handler is None:
            error = InvalidRequest(f"expected one of {route.allow}", code="method_not_allowed")
            return problem(error, headers=(("Allow", route.allow),))
        request = Request(scope, receive, names)
        route.check_query(request)
        request.facts["handler"] = (handler, request.again({}, _nothing))
        return await handler(request)

    def _common(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        fields = [
            (b"strongroom-nonce", self._service.nonces.issue().encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self._service.simulated:
            fields.append((b"strongroom-evidence", b"SIMULATED"))
        if self._epoch_of(scope) is not self._current_epoch():
            fields.append((b"connection", b"close"))
        return fields

    def _call(self, request: Request) -> Call:
        scope = request.scope
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        return Call(
            method=scope["method"],
            target=target.decode("ascii", "replace"),
            token=_token(request),
            address=scope["client"][0] if scope.get("client") else "",
            epoch=self._epoch_of(scope),
        )

    def _address(self, request: Request) -> tuple[str, int | None]:
        """Name and version of the model that the path names."""
        name = request.path_params["name"]
        check_name(name, length=self._service.limits.name_length)
        version = request.path_params.get("version")
        if version is None:
            return name, None
        if _VERSION.fullmatch(version) is None:
            raise InvalidRequest(
                "a model's version is a number from 1 to 999999999", code="model_version_invalid"
            )
        return name, int(version)

    # The plain endpoints

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok", "simulated": self._service.simulated})

    async def _upload_seed(self, request: Request) -> Response:
        name = _parameter(request, "name", default=DEFAULT_SEED_NAME)
        if read_fields(request.headers) is not None:
            raise InvalidRequest(
                "less precision is made by PUT /v1/models/{name}, not here", code="precision_options"
            )
        view = await self._service.upload_seed(
            self._call(request),
            name=name,
            sha256=_content_digest(request, required=False),
            body=_body(request),
        )
        return _json({"model_id": view.model.name, "status": "uploaded", **self._document(view)}, status=201)

    async def _predict(self, request: Request) -> Response:
        name = _parameter(request, "name", default="") or None
        if name is not None:
            check_name(name, length=self._service.limits.name_length)
        accepted = read_accepted(request.headers.get(ACCEPT))
        model, data = await _while_connected(
            request,
            self._service.predict(
                self._call(request),
                name=name,
                body=_Whole(request),
                parse=lambda data: bodies.parse_question(data, limits=self._wire),
                precision=accepted,
            ),
        )
        return Response(data, 200, served(model, self._service.stages_of(model)), JSON)

    async def _report(self, request: Request) -> Response:
        evidence = self._epoch_of(request.scope).boot_evidence
        return _json(bodies.evidence_json(evidence, simulated=self._service.simulated))

    # Attestation and management

    async def _evidence(self, request: Request) -> Response:
        nonce = parse_nonce(_parameter(request, "nonce", default=""))
        return Response(await self._service.evidence(self._call(request), nonce=nonce), 200, {}, JSON)

    async def _activate(self, request: Request) -> Response:
        secret = await self._service.activate(
            self._call(request), body=_body(request), parse=bodies.parse_credential
        )
        return _json({"secret": base64.b64encode(secret).decode("ascii")})

    # Hand-over and recovery of the whole store (docs/spec/reseal.md, docs/spec/recovery.md)

    async def _handover_challenge(self, request: Request) -> Response:
        data = await self._source().challenge(_operator(request))
        return Response(data, 200, {}, JSON)

    async def _handover_take(self, request: Request) -> Response:
        keyset = self._epoch_of(request.scope).keyset_digest
        data = await self._source().take(_operator(request), _body(request), keyset=keyset)
        return Response(data, 200, {}, BYTES)

    async def _handover_done(self, request: Request) -> Response:
        return Response(await self._source().done(_operator(request), _body(request)), 200, {}, JSON)

    def _source(self) -> HandoverSource:
        if self._handover is None:
            raise NotFound("this server has no hand-over policy", code="handover_unsupported")
        return self._handover

    async def _recovery_challenge(self, request: Request) -> Response:
        return Response(await self._restoring().challenge(), 200, {}, BYTES)

    async def _recovery_restore(self, request: Request) -> Response:
        return Response(await self._restoring().restore(_body(request)), 200, {}, JSON)

    def _restoring(self) -> Recovery:
        if self._recovery is None:
            raise NotFound("this server's configuration names no recovery key", code="recovery_unsupported")
        return self._recovery

    async def _models(self, request: Request) -> Response:
        after = _parameter(request, "after", default="")
        data = await self._service.models(
            self._call(request),
            encode=lambda views: bodies.model_list(views, after=after, simulated=self._service.simulated),
        )
        return Response(data, 200, {}, JSON)

    async def _model(self, request: Request) -> Response:
        name, version = self._address(request)
        return _json(
            self._document(await self._service.model(self._call(request), name=name, version=version))
        )

    async def _upload(self, request: Request) -> Response:
        name, _ = self._address(request)
        if (declared := request.headers.get("strongroom-format")) is None:
            raise InvalidRequest("state the model's format in Strongroom-Format", code="format_required")
        reduction, batching = read_fields(request.headers), _batching(request)

        work = self._service.upload(
            self._call(request),
            name=name,
            access=request.headers.get("strongroom-access", "private"),
            format=declared,
            sha256=_content_digest(request, required=True),
            body=_body(request),
            reduction=reduction,
            batching=batching,
            partition=read_partition(request.headers.get("strongroom-partition", AUTO)),
        )
        # Making less precision takes minutes, which nobody is to spend for a caller who has gone.
        view = await (work if reduction is None else _while_connected(request, work))
        return _json(self._document(view), status=201)

    async def _delete(self, request: Request) -> Response:
        name, version = self._address(request)
        gone = await self._service.delete(self._call(request), name=name, version=version)
        deleted = [{"name": model.name, "version": str(model.version)} for model in gone]
        return _json({"deleted": deleted, "erasure": ERASURE})

    async def _admission(self, request: Request) -> Response:
        name, version = self._address(request)
        data = await self._service.admission(self._call(request), name=name, version=version)
        return Response(data, 200, {}, JSON)

    async def _load(self, request: Request) -> Response:
        name, version = self._address(request)
        return _json(
            self._document(await self._service.load(self._call(request), name=name, version=version))
        )

    async def _unload(self, request: Request) -> Response:
        name, version = self._address(request)
        return _json(
            self._document(await self._service.unload(self._call(request), name=name, version=version))
        )

    def _document(self, view: View) -> dict[str, Any]:
        return bodies.model_json(view, simulated=self._service.simulated)

    # Open Inference Protocol

    async def _server(self, request: Request) -> Response:
        return _json({"name": "strongroom", "version": __version__, "extensions": []})

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _json({"ready": True})

    async def _metadata(self, request: Request) -> Response:
        name, version = self._address(request)
        call = self._call(request)
        view = await self._service.model(call, name=name, version=version)
        versions = await self._service.versions(call, name=name)
        return _json(bodies.protocol_metadata(view, versions=versions))

    async def _model_ready(self, request: Request) -> Response:
        name, version = self._address(request)
        view = await self._service.model(self._call(request), name=name, version=version)
        # Models are loaded on demand, so whatever may be run is ready.
        return _json({"name": view.model.name, "ready": True})

    async def _infer(self, request: Request) -> Response:
        asked: Asked | None = request.facts.get("asked")
        if asked is None:
            name, version = self._address(request)
            asked = request.facts["asked"] = read_asked(
                request,
                self._call(request),
                name=name,
                version=version,
                wire=self._wire,
                simulated=self._service.simulated,
            )
        model, data = await _while_connected(
            request,
            self._service.infer(
                asked.call,
                name=asked.name,
                version=asked.version,
                expect_sha256=asked.expected,
                body=_Whole(request),
                decode=asked.decode,
                encode=asked.encode,
                precision=asked.accepted,
            ),
        )
        return asked.response(data, model, self._service.stages_of(model))


async def _nothing() -> dict[str, Any]:
    """Of a request that is only remembered for its head."""
    raise AssertionError("it has no body")


async def _hold_back() -> None:
    await asyncio.sleep(PAUSE_S)


def _log_fault(fault: Exception) -> None:
    """Where and of which type, never what it says: its text may quote a model or an input."""
    place = fault.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
    code = fault.code if isinstance(fault, Error) else "internal_error"
    log.error("%s: %s at %s", code, type(fault).__name__, where)


def _json(document: dict[str, Any], *, status: int = 200) -> Response:
    return Response(bodies.dump(document), status, {}, JSON)


def _check_coding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("send the body without a content coding", code="media_type_unsupported")


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. The first `receive` is what sends 100 Continue."""
    _check_coding(request)
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise BodyLost
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            yield chunk


class _Whole:
    """The body in one piece, without a copy where the edge has it like that."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def whole(self, count: Callable[[int], None]) -> bytes | bytearray:
        """See `dealings.Whole`."""
        _check_coding(self._request)
        exchange: Exchange | None = self._request.scope.get("strongroom.exchange")
        if exchange is None:
            data = bytearray()
            async for chunk in _body(self._request):
                count(len(chunk))
                data += chunk
            return data
        found = await exchange.whole(count)
        if found is None:
            raise BodyLost
        return found


async def _while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` comes to; cancels it where the caller hangs up.

    Raises:
        BodyLost: the caller hung up. Whatever `work` raises.
    """
    exchange: Exchange | None = request.scope.get("strongroom.exchange")
    task = asyncio.current_task()
    if exchange is None or task is None:  # on another server than our own nobody says so
        return await work
    exchange.when_gone(task.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if not exchange.disconnected:
            raise
        task.uncancel()
        raise BodyLost from None
    finally:
        exchange.when_gone(None)


def _token(request: Request) -> str | None:
    value = request.headers.get("authorization")
    if value is None:
        return None
    match = _BEARER.fullmatch(value)
    if match is None:
        # Not taken for "no key": the caller meant to be somebody.
        raise InvalidRequest("Authorization: expected Bearer and a token", code="parameter_invalid")
    return match[1]


def _operator(request: Request) -> str | None:
    """The token of the server's operator."""
    value: str | None = request.headers.get("strongroom-operator")
    return value


def _parameters(request: Request, name: str) -> list[str]:
    """All values of a query parameter."""
    return request.values(name)


def _parameter(request: Request, name: str, *, default: str) -> str:
    values = _parameters(request, name)
    if len(values) > 1:
        raise InvalidRequest(f"expected the query parameter {name} once", code="parameter_invalid")
    return values[0] if values else default


def _batching(request: Request) -> bool:
    word = request.headers.get("strongroom-batching", "off")
    if word not in ("on", "off"):
        raise InvalidRequest('Strongroom-Batching: expected "on" or "off"', code="batching_invalid")
    return word == "on"


def _content_digest(request: Request, *, required: bool) -> str | None:
    """The hex SHA-256 of `Content-Digest: sha-256=:<base64>:` (RFC 9530 §2); other algorithms are ignored."""
    value = request.headers.get("content-digest")
    if value is None:
        if required:
            raise InvalidRequest("state the SHA-256 of the body in Content-Digest", code="digest_required")
        return None
    found = [match for part in value.split(",") if (match := _DIGEST.fullmatch(part.strip()))]
    try:
        (match,) = found
        return base64.b64decode(match[1], validate=True).hex()
    except (ValueError, binascii.Error):
        raise MalformedInput(
            "Content-Digest: expected one sha-256=:<base64>:", code="digest_malformed"
        ) from None
