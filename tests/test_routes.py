"""Routes: one handler for a path at most, by its segments; nothing in a query is passed over."""

from __future__ import annotations

from typing import Any

import pytest

from strongroom.errors import InvalidRequest, NotFound
from strongroom.routes import Request, Response, Route, Router


async def _handler(request: Request) -> Response:
    return Response(b"", 200, {}, "text/plain")


ROUTER = Router(
    [
        Route("/health", GET=_handler),
        Route("/v1/models", "after", GET=_handler),
        Route("/v1/models/{name}", GET=_handler, PUT=_handler),
        Route("/v1/models/{name}/versions/{version}", GET=_handler),
        Route("/v1/models/{name}/load", POST=_handler),
    ]
)


def _scope(query: bytes = b"", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"headers": list(headers), "query_string": query}


@pytest.mark.parametrize(
    ("path", "template", "names"),
    [
        ("/health", "/health", {}),
        ("/v1/models", "/v1/models", {}),
        ("/v1/models/load", "/v1/models/{name}", {"name": "load"}),
        ("/v1/models/*", "/v1/models/{name}", {"name": "*"}),
        ("/v1/models/a/load", "/v1/models/{name}/load", {"name": "a"}),
        ("/v1/models/a/versions/7", "/v1/models/{name}/versions/{version}", {"name": "a", "version": "7"}),
    ],
)
def test_a_path_leads_to_its_route(path: str, template: str, names: dict[str, str]) -> None:
    """And says what stands for its names."""
    route, found = ROUTER.find(path)
    assert route.path == template and found == names


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "health", "/health/", "//health", "/healthy", "/v1", "/v1/models/", "/v1/models//load",
        "/v1/models/a/versions", "/v1/models/a/versions/", "/v1/models/a/b", "/v1/models/a/load/x", "x/health",
    ],
)  # fmt: skip
def test_every_other_path_is_none(path: str) -> None:
    """No redirects, no empty segments, nothing behind the end."""
    with pytest.raises(NotFound):
        ROUTER.find(path)


def test_head_is_get_and_other_methods_are_missing() -> None:
    """`allow` names what there is."""
    route, _ = ROUTER.find("/v1/models/a")
    assert route.handler("HEAD") is route.handler("GET") is _handler
    assert route.handler("POST") is None and route.allow == "GET, HEAD, PUT"
    load, _ = ROUTER.find("/v1/models/a/load")
    assert load.handler("HEAD") is None and load.allow == "POST"


@pytest.mark.parametrize("query", [b"after=x&name=y", b"name", b"After=x", b"=", b"a%66ter=x&%61="])
def test_a_parameter_that_the_path_does_not_know_is_refused(query: bytes) -> None:
    """Also one without a value, and one without a name."""
    route, _ = ROUTER.find("/v1/models")
    with pytest.raises(InvalidRequest) as caught:
        route.check_query(Request(_scope(query), lambda: None))  # type: ignore[arg-type, return-value]
    assert caught.value.code == "parameter_invalid"


def test_a_request_reads_its_query_and_headers() -> None:
    """All values of a parameter; of a field that stands twice, the first."""
    scope = _scope(b"after=x%20y&after=", (b"a", b"1"), (b"a", b"2"), (b"b", b"\xe9"))
    request = Request(scope, lambda: None)  # type: ignore[arg-type, return-value]
    ROUTER.find("/v1/models")[0].check_query(request)
    assert request.values("after") == ["x y", ""] and request.values("name") == []
    assert request.headers == {"a": "1", "b": "é"}


def test_two_routes_for_one_path_are_a_mistake() -> None:
    """A name beside a word would make it matter which comes first."""
    with pytest.raises(AssertionError):
        Router([Route("/v1/{name}", GET=_handler), Route("/v1/models", GET=_handler)])
