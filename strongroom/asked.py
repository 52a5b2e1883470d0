"""What the head of a run asks for: forms of tensors, which model it must be, precision; and the fields of its answer.

Rules
  - All of it follows from the head's bytes, whatever the server's state and whoever asks: while a connection's head
    stays the same, it is found out once (`edge`).
  - It decides nothing: who may do what, and whether a token is still good, the service looks at each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from strongroom import bodies
from strongroom.bodies import JSON, NPY, NPZ
from strongroom.errors import InvalidRequest, MalformedInput
from strongroom.jobs import engine
from strongroom.oip import InferRequest, InferResponse, WireLimits
from strongroom.reduction_fields import ACCEPT, read_accepted
from strongroom.routes import Fields, Request, Response
from strongroom.service import Call
from strongroom.store import ModelVersion

DATA_DEPENDENT: Final = "data_dependent_output"
"""The flag of admission for models the shape of whose outputs depends on the content of their inputs (§8.3)."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REFUSED: Final = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*")


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """A run as its head asks for it. `form`: the answer's media type."""

    call: Call
    name: str
    version: int | None
    expected: str | None
    accepted: tuple[str, ...]
    decode: Callable[[bytes | bytearray, ModelVersion], InferRequest]
    encode: Callable[[InferResponse], bytes]
    form: str
    _served: tuple[ModelVersion, int, Fields] | None = None
    """The fields of the last answer, and what they say."""

    def response(self, data: bytes, model: ModelVersion, stages: int) -> Response:
        """The answer with `data`, which this model gave."""
        if self._served is None or self._served[0] is not model or self._served[1] != stages:
            self._served = (model, stages, Response(b"", 200, served(model, stages), self.form).fields[1:])
        return Response.of_fields(data, self._served[2])


def read(
    request: Request, call: Call, *, name: str, version: int | None, wire: WireLimits, simulated: bool
) -> Asked:
    """What a request for a run of this model says.

    Raises:
        InvalidRequest, MalformedInput: a field says what it cannot (codes `media_type_unsupported`, `not_acceptable`,
            `digest_malformed`, `precision_options`).
    """
    form = _content_form(request)
    answer = _answer_form(request, default=form)
    return Asked(
        call=call,
        name=name,
        version=version,
        expected=_expected(request),
        accepted=read_accepted(request.headers.get(ACCEPT)),
        decode=bodies.decoder(form, outputs=tuple(request.values("output")), answer=answer, limits=wire),
        encode=lambda response: bodies.encode(answer, response, simulated=simulated),
        form=answer,
    )


def served(model: ModelVersion, stages: int) -> dict[str, str]:
    """The fields of an answer that say which model gave it, and how."""
    dependent = DATA_DEPENDENT in model.info.admission.flags
    return {
        # Content of the request shows in the length of the answer.
        **({"Strongroom-Output-Shape": "data-dependent"} if dependent else {}),
        "Strongroom-Model-Name": model.name,
        "Strongroom-Model-Version": str(model.version),
        "Strongroom-Model-SHA256": model.sha256,
        "Strongroom-Precision": model.info.precision.name,
        "Strongroom-Engine": engine(),
        "Strongroom-Stages": str(stages),
    }


def _expected(request: Request) -> str | None:
    value = request.headers.get("strongroom-model-digest")
    if value is not None and _SHA256.fullmatch(value) is None:
        raise MalformedInput(
            "Strongroom-Model-Digest: expected 64 lower-case hex characters", code="digest_malformed"
        )
    return value


def _content_form(request: Request) -> str:
    """The media type of the body; none stands for JSON, as the protocol's own clients send none."""
    if "inference-header-content-length" in request.headers:
        raise InvalidRequest("binary tensors in JSON are not served", code="media_type_unsupported")
    form = _media_type(request.headers.get("content-type", JSON))
    if form not in bodies.FORMS:
        raise InvalidRequest(
            f"Content-Type: expected {', '.join(bodies.FORMS)}", code="media_type_unsupported"
        )
    return form


def _answer_form(request: Request, *, default: str) -> str:
    """The media type asked for: the first one known in Accept, whatever its weight."""
    accept = request.headers.get("accept", "*/*")
    for part in accept.split(","):
        kind, _, weight = part.partition(";")
        if _REFUSED.fullmatch(weight):
            continue
        if (form := _media_type(kind)) in bodies.FORMS:
            return form
        if form in ("*/*", "application/*"):
            return default
    raise InvalidRequest(f"Accept: expected one of {JSON}, {NPY}, {NPZ}", code="not_acceptable")


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()
