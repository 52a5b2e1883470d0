"""Requests, answers and routes: the little of a web framework that the HTTP interface needs, on ASGI.

Rules
  - A path leads to one handler at most, by its segments, as they read once percent escapes are undone.
  - Nothing in a query is passed over: a parameter that a path does not know is refused.
  - Of what an answer is made is sent as it is: bytes are not copied here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from strongroom.errors import InvalidRequest, NotFound

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
Fields: TypeAlias = list[tuple[bytes, bytes]]

_ANY: Final = "*"
_LEAF: Final = ""


class Request:
    """One request. `headers`: by lower-case name, the first of several. `path_params`: what stands for the template's
    names. `facts`: what follows from the head alone and was found out already; the edge keeps it for as long as the
    same head comes again.
    """

    __slots__ = ("facts", "headers", "path_params", "query", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, path_params: dict[str, str] | None = None) -> None:
        self.scope = scope
        self.receive = receive
        self.path_params = path_params or {}
        self.facts: dict[str, Any] = scope.get("strongroom.facts", {})
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])
        }
        query = scope["query_string"]
        self.query: list[tuple[str, str]] = (
            parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else []
        )

    def again(self, scope: Scope, receive: Receive) -> Request:
        """The next request with the same head."""
        one = Request.__new__(Request)
        one.scope, one.receive = scope, receive
        one.headers, one.query, one.path_params, one.facts = (
            self.headers, self.query, self.path_params, self.facts,
        )  # fmt: skip
        return one

    def values(self, name: str) -> list[str]:
        """All values of a query parameter."""
        return [value for key, value in self.query if key == name]


class Response:
    """One answer: `body` has one kind of bytes or another, and must not change any more."""

    __slots__ = ("body", "fields", "status")

    def __init__(
        self, body: bytes | bytearray | memoryview, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        self.body = body
        self.status = status
        self.fields: Fields = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode("latin-1")),
        ]
        for name, value in headers.items():
            self.fields.append((name.lower().encode("latin-1"), value.encode("latin-1")))

    @classmethod
    def of_fields(cls, body: bytes | bytearray | memoryview, fields: Fields) -> Response:
        """An answer 200 with these fields, behind its length."""
        one = cls.__new__(cls)
        one.body, one.status = body, 200
        one.fields = [(b"content-length", b"%d" % len(body)), *fields]
        return one

    async def send_to(self, send: Send, common: Fields) -> None:
        """Sends it, with `common` behind its own fields."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.fields + common})
        await send({"type": "http.response.body", "body": self.body})


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Route:
    """One path with the parameters that its query may have, and its methods. `{name}` in it stands for one segment."""

    def __init__(self, path: str, *parameters: str, **handlers: Handler) -> None:
        self.path = path
        self.methods = handlers
        self.parameters = frozenset(parameters)
        self.allow = ", ".join(sorted({*handlers, *(("HEAD",) if "GET" in handlers else ())}))
        self._names = [
            (place, part[1:-1]) for place, part in enumerate(path.split("/")) if part.startswith("{")
        ]

    def handler(self, method: str) -> Handler | None:
        """Who answers `method`; None: nobody. HEAD is GET without the body, which the edge leaves out."""
        return self.methods.get("GET" if method == "HEAD" else method)

    def check_query(self, request: Request) -> None:
        """Returns if the path knows every parameter: who writes `?name=` on one without it means something.

        Raises:
            InvalidRequest: it does not (code `parameter_invalid`).
        """
        if any(name not in self.parameters for name, _ in request.query):
            known = ", ".join(sorted(self.parameters)) or "none"
            raise InvalidRequest(f"query parameters expected here: {known}", code="parameter_invalid")

    def segments(self) -> list[str]:
        """The template's segments, `*` where any will do."""
        return [_ANY if part.startswith("{") else part for part in self.path.split("/")[1:]]

    def named(self, parts: list[str]) -> dict[str, str]:
        """What stands for the template's names in a path's parts."""
        return {name: parts[place] for place, name in self._names}


class Router:
    """The routes of an application."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = tuple(routes)
        self._tree: dict[str, Any] = {}
        for route in routes:
            node = self._tree
            for part in route.segments():
                if node.keys() - {_LEAF} and (part == _ANY) != (_ANY in node):
                    raise AssertionError(f"two routes for one path: {route.path}")
                node = node.setdefault(part, {})
            node[_LEAF] = route

    def find(self, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a path (percent escapes undone), and what stands for its names.

        Raises:
            NotFound: there is none.
        """
        parts = path.split("/")
        node = self._tree
        for part in parts[1:]:
            if not part:
                raise NotFound("no such path")
            found = node.get(part) or node.get(_ANY)
            if found is None:
                raise NotFound("no such path")
            node = found
        route = node.get(_LEAF)
        if route is None or parts[0]:
            raise NotFound("no such path")
        return route, route.named(parts)
