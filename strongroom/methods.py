"""What each method of the clients does, as one generator that both of them drive (`flow`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strongroom import calls, formats, matching, reduction_fields
from strongroom.attest.evidence import Attested, Verdict
from strongroom.calls import Answer, ModelMetadata, Progress, Request
from strongroom.errors import Conflict, InvalidRequest
from strongroom.flow import Flow, Session, attest_flow, call_flow
from strongroom.reduction import WORDS, check_accepted
from strongroom.sources import Less, Upload


def _expect(session: Session, request: Request) -> Flow[Answer]:
    answer = yield from call_flow(session, request)
    if not 200 <= answer.status < 300:
        raise calls.error_of(answer)
    return answer


def upload_flow(
    session: Session,
    upload: Upload,
    *,
    name: str,
    access: str,
    format: str | None,
    progress: Progress | None,
    less: Less | None = None,
    partition: str = "auto",
    batching: bool = False,
) -> Flow[ModelMetadata]:
    """Sends a prepared model; its metadata, once the server's digests of it, and of what was sent to make less
    precision of it, are ours.
    """
    detected = formats.detect(upload.head)
    fields = () if less is None else reduction_fields.fields_of(less.reduction)
    request = calls.upload_request(
        upload.body if less is None else upload.body.behind(less.part),
        name=name,
        format=format or detected,
        access=access,
        progress=progress,
        more=(
            *fields,
            *((("Strongroom-Batching", "on"),) if batching else ()),
            *((("Strongroom-Partition", partition),) if partition != "auto" else ()),
        ),
    )
    answer = yield from _expect(session, request)
    metadata = calls.read_metadata(calls.json_object(answer))
    matching.check_received(metadata, sent=upload.body.sha256.hex())
    if less is not None:
        matching.check_made(metadata, asked=less.reduction)
    return metadata


def models_flow(session: Session) -> Flow[tuple[ModelMetadata, ...]]:
    """Every model version that the caller may see, page by page."""
    found: tuple[ModelMetadata, ...] = ()
    after = ""
    for _ in range(calls.MAX_PAGES):
        try:
            answer = yield from _expect(session, calls.models_request(after=after))
        except InvalidRequest as exc:
            if not after or exc.code != "parameter_invalid":
                raise
            found, after = (), ""  # the model that the page begins behind was deleted: anew
            continue
        page, after = calls.read_models(answer)
        found += page
        if not after:
            return found
    raise calls.malformed("a list of models that ends")


def model_flow(
    session: Session, model_id: str, version: str | None, expect_digest: str | None
) -> Flow[ModelMetadata]:
    """The metadata of the latest version, or of an exact one."""
    name, named = calls.split_model_id(model_id)
    answer = yield from _expect(session, calls.metadata_request(name, version=version or named))
    metadata = calls.read_metadata(calls.json_object(answer))
    matching.check_digest(metadata, expected=expect_digest)
    return metadata


def infer_flow(
    session: Session,
    model: str | ModelMetadata,
    inputs: object,
    outputs: str | Sequence[str] | None,
    progress: Progress | None,
    precision: str | Sequence[str] | None = None,
) -> Flow[Any]:
    """Runs a model on arrays: its metadata first, where only its name is known. `precision`: what the caller takes an
    answer of; what the policy takes counts as well, and both before anything of the inputs is sent.
    """
    from strongroom import inference  # and numpy: who only verifies a server or uploads a model needs neither

    accepted = accepted_precisions(session, precision)
    metadata = (
        model if isinstance(model, ModelMetadata) else (yield from model_flow(session, model, None, None))
    )
    check_accepted(metadata.precision, accepted, model=metadata.id)
    wanted = inference.wanted_outputs(metadata, dict_in=isinstance(inputs, Mapping), outputs=outputs)
    arrays = inference.fit_inputs(metadata, inputs)
    request = inference.infer_request(metadata, arrays, wanted=wanted, received=progress, accepted=accepted)
    answer = yield from _expect(session, request)
    return inference.read_result(answer, metadata=metadata, wanted=wanted)


def accepted_precisions(session: Session, demanded: str | Sequence[str] | None) -> tuple[str, ...]:
    """The precisions that both the caller and the policy take; () where neither leaves one out.

    Raises:
        InvalidRequest: no such precision (code `precision_options`).
        Conflict: they have none in common (code `precision_refused`).
    """
    policy = session.policy.precision
    if demanded is None:
        return () if set(policy) == set(WORDS) else policy
    asked = (demanded,) if isinstance(demanded, str) else tuple(demanded)
    reduction_fields.check_words(asked)
    both = tuple(word for word in asked if word in policy)
    if not both:
        raise Conflict(
            f"precision {', '.join(asked)} is demanded, the policy accepts {', '.join(policy)}",
            code="precision_refused",
        )
    return both


def delete_flow(session: Session, model_id: str, version: str | None) -> Flow[tuple[str, ...]]:
    """Deletes a version, or all of a name's; the ids that are gone."""
    name, named = calls.split_model_id(model_id)
    answer = yield from _expect(session, calls.delete_request(name, version=version or named))
    return calls.read_deleted(answer)


def lifecycle_flow(session: Session, model_id: str, version: str | None, action: str) -> Flow[ModelMetadata]:
    """Loads or unloads a model."""
    name, named = calls.split_model_id(model_id)
    answer = yield from _expect(
        session, calls.lifecycle_request(name, version=version or named, action=action)
    )
    return calls.read_metadata(calls.json_object(answer))


def attest_again(session: Session) -> Flow[Verdict]:
    """Verifies the server anew; the verdict."""
    endpoint = yield from attest_flow(session)
    session.release(endpoint)
    attested: Attested | None = endpoint.attested
    if attested is None:  # pragma: no cover - attest_flow returns verified endpoints only
        raise AssertionError("an endpoint without a verification")
    return attested.verdict


def table(X: object) -> object:
    """What `predict` takes: rows and columns, as scikit-learn has it."""
    ndim = getattr(X, "ndim", None)
    if ndim is None and isinstance(X, list | tuple):
        ndim = 2 if X and all(isinstance(row, list | tuple) for row in X) else 1
    if ndim != 2:
        raise InvalidRequest(
            f"predict takes a table: rows x columns, got {ndim} dimension(s)", code="input_not_2d"
        )
    return X
