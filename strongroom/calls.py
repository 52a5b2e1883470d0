"""Requests and answers of the HTTP interface as the client sees them: built, bounded and read here, sent
elsewhere.

Rules
  - An answer is a status, headers and a body that arrived whole: `flow` and `transport` see to framing and
    size.
  - A server's problem document becomes the same error class that the server raised; its text is shortened and
    stripped of control characters before a person sees it.
  - Tensors travel as `.npy` (one) or `.npz` (several); as Open Inference Protocol JSON where strings are
    among them.

Pure: nothing here opens a socket, a file or a clock.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote

from strongroom.errors import (
    CODES,
    AccessRefused,
    AdmissionRefused,
    Conflict,
    Error,
    Failure,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    SealRefused,
    Unavailable,
)
from strongroom.reduction import WORDS, pinned

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while a body travels."""

MAX_JSON_ANSWER: Final = 4 << 20
"""Bytes of a JSON answer about models: thousands of models' metadata fit, a flood does not."""
MAX_PAGES: Final = 256
"""Pages of one list of models, some 2 MiB each: a server's whole record of models has 64 MiB."""
MAX_DETAIL: Final = 500
"""Characters of a server's explanation that are shown."""
CHUNK: Final = 1 << 18
"""Bytes of a body handed to the connection at a time: small enough for a smooth progress bar."""
Data: TypeAlias = bytes | bytearray | memoryview
"""Bytes, wherever they are."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
"""As servers have it; 200 characters is what the longest-named server takes, 128 the usual one."""
_MODEL_ID = re.compile(r"(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]{1,9}))?")
_CODE = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: its length in bytes, a way to its SHA-256, and one to read it from the start, as
    often as needed.
    """

    length: int
    digest: Callable[[], bytes]
    """Computed when it is asked for: a request for inference names no digest of its body, and hashing an image
    takes as long as the rest of the client does.
    """
    chunks: Callable[[], Iterator[Data]]
    in_memory: bool = False
    """Whether `chunks` comes from memory, so that reading it waits for nothing."""

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the whole, 32 bytes."""
        return self.digest()

    @classmethod
    def of(cls, *parts: Data) -> Body:
        """A body that is already in memory, of these parts one after the other; none is copied."""
        views = tuple(memoryview(part).cast("B") for part in parts)

        def chunks() -> Iterator[Data]:
            for view in views:
                for start in range(0, len(view), CHUNK):
                    yield view[start : start + CHUNK]

        known: list[
            bytes
        ] = []  # most bodies are small, and nobody asks: `cache` would take longer than the rest

        def digest() -> bytes:
            if not known:
                running = hashlib.sha256()
                for view in views:
                    running.update(view)
                known.append(running.digest())
            return known[0]

        return cls(length=sum(map(len, views)), digest=digest, chunks=chunks, in_memory=True)

    def behind(self, part: bytes) -> Body:
        """This body with `part` in front of it."""

        def chunks() -> Iterator[Data]:
            yield from Body.of(part).chunks()
            yield from self.chunks()

        def digest() -> bytes:
            running = hashlib.sha256()
            for chunk in chunks():
                running.update(chunk)
            return running.digest()

        return Body(
            length=len(part) + self.length, digest=cache(digest), chunks=chunks, in_memory=self.in_memory
        )


PREPARATION_S: Final = 600.0
"""Seconds for an upload of which something is made: twice what a server's settings give each step."""
EMPTY: Final = Body.of(b"")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, not yet bound to a server."""

    method: str
    path: str
    """Absolute path, already quoted."""
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: Body = EMPTY
    changes: bool = False
    """Changes the server's state: its token is bound to method, path and body."""
    idempotent: bool = True
    """May be sent again after bytes of it were sent and no answer came."""
    max_answer: int = MAX_JSON_ANSWER
    sized: bool = False
    """The answer must carry a Content-Length; chunked framing is not enough."""
    least_s: float = 0.0
    """Seconds without a byte that are waited for in any case: there are answers that take long to make."""
    deadline_s: float | None = None
    """Seconds from the first byte to the last of the whole exchange; None: only inactivity is timed."""
    sent: Progress | None = None
    received: Progress | None = None


def patience(request: Request, timeout_s: float) -> float:
    """Seconds without a byte after which a request is given up, where usually it is `timeout_s`."""
    return max(timeout_s, request.least_s)


def target(request: Request) -> str:
    """The request target as it is sent: path and query."""
    return f"{request.path}?{request.query}" if request.query else request.path


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response: header names in lower case, body as it travelled (no content coding is ever
    accepted).
    """

    status: int
    headers: Mapping[str, str]
    data: Data
    """The body in the buffer that it came into."""

    @property
    def body(self) -> bytes:
        """The body as bytes that stay as they are: a copy where they are not that already."""
        return self.data if isinstance(self.data, bytes) else bytes(self.data)


class Outcome(Exception):
    """How a request ended without an answer that may be used. Callers see `strongroom.errors` only."""

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


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a model: name, Open Inference Protocol datatype, shape with -1 for any size.

    `shape` is None where the model does not even state the number of dimensions.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the server says about one version of one model."""

    name: str
    version: str
    format: str
    sha256: str
    """SHA-256 (hex) of the bytes that were uploaded, computed by the server."""
    canonical_sha256: str
    """SHA-256 (hex) of what the engine runs: the same for ONNX, the converted form for XGBoost."""
    size: int
    """Bytes as uploaded."""
    owner: str
    access: str
    created: int
    """Unix seconds by the server's clock."""
    loaded: bool
    erasure: str
    """What deleting promises: the host may have kept copies of the sealed file."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    primary_output: str
    feature_names: tuple[str, ...]
    notes: Mapping[str, Any] = field(hash=False)
    precision: str
    """`fp32`; `int8` or `fp16` where the server made that of it; `as-uploaded` where it arrived with less than 32 bits;
    `unknown` of what an earlier release took in.
    """
    reduced: Mapping[str, Any] = field(hash=False)
    """What computes with less than 32 bits (`narrow`), and how it was made, if here (`made`); empty in lists."""
    engine: str
    """What runs it, `onnxruntime/VERSION`."""
    threads: int
    """Threads of a run."""
    stages: int
    """In which it runs, one after the other (docs/partitioning.md); 1: as a whole."""
    cpu: str
    """Level of the server's processor, such as `x86-64-v3`. The same canonical bytes, threads, level and versions of
    the engine (in the admission report) give the same bits again.
    """
    simulated: bool

    @property
    def digest(self) -> str:
        """What `expect_digest` compares with, and calls are tied to: `sha256`, but of a model that the server made
        less precision of `canonical_sha256`, for the same upload has other answers in another precision.
        """
        return pinned(sha256=self.sha256, canonical_sha256=self.canonical_sha256, precision=self.precision)

    @property
    def id(self) -> str:
        """Names this version for ever: `name/versions/N`."""
        return f"{self.name}/versions/{self.version}"

    def __getitem__(self, member: str) -> Any:
        """A member by its name, as in the JSON form: `metadata["sha256"]`."""
        return self.to_json()[member]

    def to_json(self) -> dict[str, Any]:
        """The members as JSON values."""

        def tensors(specs: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
            return [
                {"name": s.name, "datatype": s.datatype, "shape": None if s.shape is None else list(s.shape)}
                for s in specs
            ]

        return {
            "id": self.id, "name": self.name, "version": self.version, "format": self.format,
            "sha256": self.sha256, "canonical_sha256": self.canonical_sha256, "size": self.size,
            "owner": self.owner, "access": self.access, "created": self.created, "loaded": self.loaded,
            "erasure": self.erasure, "inputs": tensors(self.inputs), "outputs": tensors(self.outputs),
            "primary_output": self.primary_output, "feature_names": list(self.feature_names),
            "notes": dict(self.notes), "precision": {"name": self.precision, **self.reduced}, "engine": self.engine,
            "threads": self.threads, "stages": self.stages, "cpu": self.cpu, "simulated": self.simulated,
        }  # fmt: skip


# --- requests -----------------------------------------------------------------------------------------------


def model_path(name: str, *, version: str | None) -> str:
    """`/{name}` or `/{name}/versions/{version}`, quoted.

    Raises:
        InvalidRequest: a name or version that cannot stand in a path (codes `model_name_invalid`,
        `model_version_invalid`).
    """
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise InvalidRequest(
            "a model name is 1 to 200 of the characters A-Z a-z 0-9 . _ - and not only dots",
            code="model_name_invalid",
        )
    if version is None:
        return f"/{quote(name)}"
    if not version.isascii() or not version.isdigit() or len(version) > 9:
        raise InvalidRequest("a model version is a whole number", code="model_version_invalid")
    return f"/{quote(name)}/versions/{version}"


def split_model_id(model_id: str) -> tuple[str, str | None]:
    """`"name"` -> (name, None), `"name/versions/2"` -> (name, "2").

    Raises:
        InvalidRequest: neither of the two (code `model_name_invalid`).
    """
    match = _MODEL_ID.fullmatch(model_id)
    if match is None:
        raise InvalidRequest("a model id is NAME or NAME/versions/N", code="model_name_invalid")
    return match["name"], match["version"]


def upload_request(
    body: Body,
    *,
    name: str,
    format: str,
    access: str,
    progress: Progress | None,
    more: tuple[tuple[str, str], ...] = (),
) -> Request:
    """`PUT /v1/models/{name}` (Content-Digest as in RFC 9530); never repeated once a byte of it was sent.

    `more`: fields that say what is to be made of the model.

    Raises:
        InvalidRequest: bad name, or `access` neither "private" nor "public" (code `access_invalid`).
    """
    if access not in {"private", "public"}:
        raise InvalidRequest('access is "private" or "public"', code="access_invalid")
    return Request(
        method="PUT",
        path="/v1/models" + model_path(name, version=None),
        headers=(
            ("Content-Type", "application/octet-stream"),
            ("Content-Digest", f"sha-256=:{base64.b64encode(body.sha256).decode()}:"),
            ("Strongroom-Format", format),
            ("Strongroom-Access", access),
            *more,
        ),
        body=body,
        changes=True,
        idempotent=False,
        sent=progress,
        least_s=PREPARATION_S if more else 0.0,
    )


def delete_request(name: str, *, version: str | None) -> Request:
    """`DELETE`; not repeated after it was sent: in between, another version may have been uploaded."""
    path = "/v1/models" + model_path(name, version=version)
    return Request(method="DELETE", path=path, changes=True, idempotent=False)


def lifecycle_request(name: str, *, version: str | None, action: str) -> Request:
    """`POST .../load` or `.../unload`: repeating either changes nothing."""
    path = "/v1/models" + model_path(name, version=version) + "/" + action
    return Request(method="POST", path=path, changes=True)


def metadata_request(name: str, *, version: str | None) -> Request:
    """`GET /v1/models/{name}[/versions/{v}]`."""
    return Request(method="GET", path="/v1/models" + model_path(name, version=version))


def models_request(*, after: str) -> Request:
    """`GET /v1/models`: the page behind the model with the id `after`, the first one where that is ""."""
    query = f"after={quote(after, safe='')}" if after else ""
    return Request(method="GET", path="/v1/models", query=query)


PING: Final = Request(method="GET", path="/v2/health/live", max_answer=1 << 16)
"""Asked for its nonce header alone."""


# --- answers ------------------------------------------------------------------------------------------------

_BY_STATUS: Final[Mapping[int, type[Error]]] = {
    401: AccessRefused,
    403: AccessRefused,
    404: NotFound,
    409: Conflict,
    413: LimitExceeded,
    422: AdmissionRefused,
    431: LimitExceeded,
    507: LimitExceeded,
}


def printable(text: object, *, limit: int = MAX_DETAIL) -> str:
    """A server's words, shortened and without characters that steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:limit])


def problem_code(answer: Answer) -> str | None:
    """The stable code of a problem document, or None."""
    try:
        code = json.loads(answer.body)["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def error_of(answer: Answer) -> Error:
    """The error that a non-2xx answer stands for; a code this version does not know becomes its family's."""
    code = problem_code(answer)
    try:
        detail = printable(json.loads(answer.body)["detail"])
    except (ValueError, TypeError, KeyError, RecursionError):
        detail = f"the server answered {answer.status} without an explanation"
    known = code if code in CODES else None
    if code and not known:
        detail = f"{detail} (server's code: {code})"
    if answer.status in {429, 503}:
        return Unavailable(detail, code=known, retry_after_s=retry_after(answer))
    if known and known.startswith("seal_"):
        # Not the caller's doing, so the server says 500; and yet a refusal: a sealed file was altered.
        return SealRefused(detail, code=known)
    kind = _BY_STATUS.get(answer.status) or (InvalidRequest if answer.status < 500 else Failure)
    return kind(detail, code=known)


def retry_after(answer: Answer) -> int:
    """Whole seconds of the Retry-After header, 1 where it is missing or a date."""
    value = answer.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 1


def malformed(what: str) -> Failure:
    """The error for an answer that is not what the interface says."""
    return Failure(f"the server's answer is not {what}", code="answer_malformed")


def json_object(answer: Answer) -> dict[str, Any]:
    """The body of a JSON answer.

    Raises:
        Failure: not a JSON object (code `answer_malformed`).
    """
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError) as exc:
        raise malformed("JSON") from exc
    if not isinstance(value, dict):
        raise malformed("a JSON object")
    return value


def read_metadata(value: object) -> ModelMetadata:
    """One model's JSON form -> ModelMetadata.

    Raises:
        Failure: a member is missing or of another type (code `answer_malformed`).
    """
    if not isinstance(value, dict):
        raise malformed("a model's metadata")
    texts = {k: value.get(k) for k in _TEXT_MEMBERS}
    flags_and_numbers = [
        ("size", int),
        ("created", int),
        ("loaded", bool),
        ("threads", int),
        ("simulated", bool),
        ("stages", int),
        ("notes", dict),
    ]
    if any(not isinstance(t, str) for t in texts.values()) or any(
        type(value.get(k)) is not kind for k, kind in flags_and_numbers
    ):
        raise malformed("a model's metadata: a member is missing or of another type")
    precision = value.get("precision")
    if not isinstance(precision, dict) or precision.get("name") not in WORDS:
        raise malformed("a model's metadata: precision")
    names = value.get("feature_names")
    if not isinstance(names, list) or any(not isinstance(n, str) for n in names):
        raise malformed("a model's metadata: feature_names")
    return ModelMetadata(
        **cast("dict[str, str]", texts),
        size=value["size"],
        created=value["created"],
        loaded=value["loaded"],
        threads=value["threads"],
        stages=value["stages"],
        simulated=value["simulated"],
        notes=value["notes"],
        precision=precision["name"],
        reduced={name: held for name, held in precision.items() if name != "name"},
        feature_names=tuple(names),
        inputs=_tensors(value.get("inputs")),
        outputs=_tensors(value.get("outputs")),
    )


def read_models(answer: Answer) -> tuple[tuple[ModelMetadata, ...], str]:
    """`{"models": [...], "next": ID}` -> metadata of each, and behind which id the next page begins ("": none).

    Raises:
        Failure: code `answer_malformed`.
    """
    document = json_object(answer)
    models, after = document.get("models"), document.get("next", "")
    if not isinstance(models, list) or not isinstance(after, str):
        raise malformed("a list of models")
    return tuple(read_metadata(model) for model in models), after


def read_deleted(answer: Answer) -> tuple[str, ...]:
    """`{"deleted": [{"name", "version"}], ...}` -> the ids `name/versions/N` that are gone.

    Raises:
        Failure: code `answer_malformed`.
    """
    deleted = json_object(answer).get("deleted")
    if not isinstance(deleted, list):
        raise malformed("a list of what was deleted")
    ids = []
    for entry in deleted:
        name, version = (entry.get("name"), entry.get("version")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(version, str):
            raise malformed("a list of what was deleted")
        ids.append(f"{name}/versions/{version}")
    return tuple(ids)


_TEXT_MEMBERS: Final = (
    "name", "version", "format", "sha256", "canonical_sha256", "owner", "access", "erasure", "primary_output",
    "cpu", "engine",
)  # fmt: skip


def _tensors(value: object) -> tuple[TensorInfo, ...]:
    if not isinstance(value, list):
        raise malformed("a model's metadata: tensors")
    specs = []
    for entry in value:
        if not isinstance(entry, dict):
            raise malformed("a model's metadata: tensors")
        name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
        if not isinstance(name, str) or not isinstance(datatype, str):
            raise malformed("a model's metadata: tensors")
        if shape is not None and (not isinstance(shape, list) or any(type(d) is not int for d in shape)):
            raise malformed("a model's metadata: shape")
        specs.append(TensorInfo(name, datatype, None if shape is None else tuple(shape)))
    return tuple(specs)
