"""The client: `connect` to a server, attest it, and only then send it models or data.

    import strongroom

    with strongroom.connect("https://host:8443", policy="policy.toml") as client:
        model = client.model("tumour")
        scores = model.predict(rows)

`Client` blocks, `AsyncClient` has the same methods for asyncio. Neither contains a step of the protocol: each
call is one generator of `methods`, which both drive (`flow`). `docs/client.md` is the guide.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from strongroom import methods, tokens
from strongroom.attest.bundle import Bundle
from strongroom.attest.evidence import Attested, Verdict
from strongroom.attest.gather import Fetcher
from strongroom.calls import ModelMetadata, Progress
from strongroom.errors import InvalidRequest
from strongroom.flow import Clock, Flow, Outcome, Session, drive_to_end
from strongroom.handles import AsyncModel as AsyncModel
from strongroom.handles import Demand, ModelBase
from strongroom.handles import Model as Model
from strongroom.reduction import FP32, Options
from strongroom.sources import (
    CalibrationSource,
    EndorsementSource,
    KeySource,
    ModelSource,
    PolicySource,
    RangesSource,
    load_endorsements,
    load_key,
    prepare_reduction,
    prepare_upload,
    read_policy,
)
from strongroom.transport import Transport, parse_origin

# numpy and asyncio take longer to import than a server to verify: each comes with its first use.

_T = TypeVar("_T")

DEFAULT_TIMEOUT_S: Final = 60.0
"""Seconds without a byte in either direction after which a request is given up."""
PATIENCE_S: Final = 15.0
"""Seconds for which a server that was verified before may be gone: a restart takes a few."""
SYSTEM_CLOCK: Final = Clock(now=lambda: datetime.now(UTC), monotonic=time.monotonic)


# --- clients ------------------------------------------------------------------------------------------------


class _ClientBase:
    """What both clients share: their settings and what they verified."""

    def __init__(
        self,
        url: str,
        *,
        policy: PolicySource,
        key: KeySource | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        endorsements: Sequence[EndorsementSource] = (),
        fetcher: Fetcher | None = None,
        clock: Clock = SYSTEM_CLOCK,
        random: Callable[[int], bytes] = secrets.token_bytes,
        patience: float = PATIENCE_S,
    ) -> None:
        self._origin = parse_origin(url)
        self._timeout, self._fetcher = timeout, fetcher
        accepted, text = read_policy(policy)
        self._session = Session(
            policy=accepted,
            policy_text=text,
            origin=self._origin.url,
            key=load_key(key),
            clock=clock,
            random=random,
            patience_s=patience,
            endorsements=load_endorsements(endorsements),
            fetches=fetcher is not None,
        )
        self._start()

    def _start(self) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The server's address, as given."""
        return self._origin.url

    @property
    def attestation(self) -> Verdict:
        """The verdict of the latest verification that passed, with every check that was made.

        Raises:
            InvalidRequest: nothing was verified yet (code `not_attested`).
        """
        return self._attested.verdict

    @property
    def certificate(self) -> str:
        """The certificate (PEM) of the connection on which the latest verification passed, for tools that can
        only be told to trust one. It ends with the server's key epoch, and with every restart.

        Raises:
            InvalidRequest: nothing was verified yet (code `not_attested`).
        """
        leaf = self._session.leaf
        if leaf is None:
            raise _nothing_verified()
        return ssl.DER_cert_to_PEM_cert(leaf)

    @property
    def bundle(self) -> Bundle:
        """What the latest verification that passed rested on, for `encode_bundle`: it can be verified again,
        offline, years later. What a refused one rested on is in the `AttestationRefused` (`.bundle`).

        Raises:
            InvalidRequest: nothing was verified yet (code `not_attested`).
        """
        bundle = self._session.bundle
        if bundle is None:
            raise _nothing_verified()
        return bundle

    @property
    def store_id(self) -> str:
        """Which store the server uses (32 hex characters): two accepted servers need not hold the same
        models.
        """
        return self._attested.keyset.store_id

    @property
    def principal(self) -> str | None:
        """Who this client is to the server: hex SHA-256 of its public key; None without a key."""
        key = self._session.key
        return None if key is None else tokens.principal_id(key.public_key())

    @property
    def _attested(self) -> Attested:
        attested = self._session.attested
        if attested is None:
            raise _nothing_verified()
        return attested

    def __repr__(self) -> str:
        attested = self._session.attested
        state = "not attested" if attested is None else attested.verdict.label or "attested"
        return f"<{type(self).__name__} {self.url} {state}>"


class Client(_ClientBase):
    """A blocking client of one server address, for use from several threads. Made by `connect`, which attests
    at once.

    `key`: who is asking (needed to upload); `timeout`: seconds without a byte after which a request is given
    up; `endorsements`: vendors' documents (paths, or bytes) beside those that the server staples; `fetcher`: where to
    get what is still missing (`strongroom.endorsements`). Without one nothing is fetched.
    Everything raises `AttestationRefused` where the server that is there now is not one that the policy
    accepts, and `Unavailable` where there is none; both before anything of the request was sent.
    """

    def _start(self) -> None:
        self._transport = Transport(self._origin, timeout_s=self._timeout, fetcher=self._fetcher)

    def attest(self) -> Verdict:
        """Verifies the server anew, on a new connection, with a new nonce.

        Raises:
            AttestationRefused: it is not one that the policy accepts; carries the verdict.
            Unavailable: no server there.
        """
        return self._drive(methods.attest_again(self._session))

    def upload_model(
        self,
        model: ModelSource,
        *,
        name: str,
        access: str = "private",
        format: str | None = None,
        progress: Progress | None = None,
        precision: str | Options = FP32,
        calibration: CalibrationSource | None = None,
        ranges: RangesSource | None = None,
        partition: str | int = "auto",
        batching: bool = False,
    ) -> Model:
        """Uploads a model: a path, bytes, or a file opened in binary mode. A name that exists gets a new
        version.

        `access`: "private" (only this key runs it) or "public". `format`: detected from the bytes where it is
        None. `progress(done, total)`: bytes sent. The server's digest of what arrived is compared with ours.

        `precision`: "fp32" leaves the model as it is; "int8" and "fp16" have the server make what `strongroom quantize`
        makes of the same file, options and examples, byte for byte (docs/precision.md). With "int8", `calibration` (a
        `.npz`, or arrays by input name) or `ranges` (what `quantize --ranges-out` wrote) make it static; the set is not
        kept. `reduction.Options` in the place of the word say more: nodes to exclude, and the like.

        `partition`: "auto" has a model that is larger than the server's memory for models run in stages, a number has
        it run in so many, "off" never (docs/partitioning.md); results are the same bytes.

        `batching`: small requests of one caller may share a run, for a model whose rows are independent of one another
        (docs/performance.md).

        Raises:
            AdmissionRefused: the server will not run this model, or nothing can be made of it (`precision_...`).
            InvalidRequest: a precision that is not made (code `precision_unsupported`), options or examples that do
                not go with the model.
            AccessRefused: no key, or the name belongs to another.
            Unavailable: the answer was lost or is not taken; the model may have been stored (see `models`).
        """
        less = prepare_reduction(precision, calibration=calibration, ranges=ranges)
        upload = prepare_upload(model)
        flow = methods.upload_flow(
            self._session,
            upload,
            name=name,
            access=access,
            format=format,
            progress=progress,
            less=less,
            batching=batching,
            partition=str(partition),
        )
        return Model(self, self._drive(flow))

    def models(self) -> tuple[ModelMetadata, ...]:
        """Every model version that this caller may see, in short: `feature_names` and `notes` may be empty."""
        return self._drive(methods.models_flow(self._session))

    def model(
        self, name: str, version: str | int | None = None, *, expect_digest: str | None = None
    ) -> Model:
        """The latest version of a model, or an exact one; `expect_digest`: hex SHA-256 of the bytes it was
        uploaded as.

        The result is tied to the version and digest found now; call again to get a newer version.

        Raises:
            NotFound: no such model, or not for this caller.
            Conflict: another digest (code `model_digest_mismatch`).
        """
        return Model(
            self, self._drive(methods.model_flow(self._session, name, _version(version), expect_digest))
        )

    def run_model(
        self,
        model: str | Model,
        inputs: Any,
        outputs: str | Sequence[str] | None = None,
        *,
        precision: Demand = None,
    ) -> Any:
        """`model(...).run(...)` in one call; `model` is a `Model`, `"name"` or `"name/versions/N"`."""
        target = model.metadata if isinstance(model, Model) else model
        return self._drive(methods.infer_flow(self._session, target, inputs, outputs, None, precision))

    def delete_model(self, model: str | Model, version: str | int | None = None) -> tuple[str, ...]:
        """Deletes one version, or all of a name's; the ids that are gone. The host may keep copies of sealed
        files.
        """
        return self._drive(methods.delete_flow(self._session, _id_of(model), _version(version)))

    def load_model(self, model: str | Model, version: str | int | None = None) -> ModelMetadata:
        """Loads a model into memory ahead of its first use."""
        return self._drive(methods.lifecycle_flow(self._session, _id_of(model), _version(version), "load"))

    def unload_model(self, model: str | Model, version: str | int | None = None) -> ModelMetadata:
        """Evicts a model from memory; it stays in the store."""
        return self._drive(methods.lifecycle_flow(self._session, _id_of(model), _version(version), "unload"))

    def close(self) -> None:
        """Closes every connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, flow: Flow[_T]) -> _T:
        try:
            return drive_to_end(flow, self._transport.perform)
        finally:
            self._transport.discard(self._session.closable())


class AsyncClient(_ClientBase):
    """The same methods for asyncio, each awaited. Made by `aconnect`; to be used within one event loop."""

    def _start(self) -> None:
        from strongroom.transport_async import AsyncTransport

        self._transport = AsyncTransport(self._origin, timeout_s=self._timeout, fetcher=self._fetcher)

    async def attest(self) -> Verdict:
        """As `Client.attest`."""
        return await self._drive(methods.attest_again(self._session))

    async def upload_model(
        self,
        model: ModelSource,
        *,
        name: str,
        access: str = "private",
        format: str | None = None,
        progress: Progress | None = None,
        precision: str | Options = FP32,
        calibration: CalibrationSource | None = None,
        ranges: RangesSource | None = None,
        partition: str | int = "auto",
        batching: bool = False,
    ) -> AsyncModel:
        """As `Client.upload_model`; files are read in a thread."""
        import asyncio

        less = await asyncio.to_thread(prepare_reduction, precision, calibration=calibration, ranges=ranges)
        upload = await asyncio.to_thread(prepare_upload, model)
        flow = methods.upload_flow(
            self._session,
            upload,
            name=name,
            access=access,
            format=format,
            progress=progress,
            less=less,
            batching=batching,
            partition=str(partition),
        )
        return AsyncModel(self, await self._drive(flow))

    async def models(self) -> tuple[ModelMetadata, ...]:
        """As `Client.models`."""
        return await self._drive(methods.models_flow(self._session))

    async def model(
        self, name: str, version: str | int | None = None, *, expect_digest: str | None = None
    ) -> AsyncModel:
        """As `Client.model`."""
        flow = methods.model_flow(self._session, name, _version(version), expect_digest)
        return AsyncModel(self, await self._drive(flow))

    async def run_model(
        self,
        model: str | AsyncModel,
        inputs: Any,
        outputs: str | Sequence[str] | None = None,
        *,
        precision: Demand = None,
    ) -> Any:
        """As `Client.run_model`."""
        target = model.metadata if isinstance(model, AsyncModel) else model
        return await self._drive(methods.infer_flow(self._session, target, inputs, outputs, None, precision))

    async def delete_model(
        self, model: str | AsyncModel, version: str | int | None = None
    ) -> tuple[str, ...]:
        """As `Client.delete_model`."""
        return await self._drive(methods.delete_flow(self._session, _id_of(model), _version(version)))

    async def load_model(self, model: str | AsyncModel, version: str | int | None = None) -> ModelMetadata:
        """As `Client.load_model`."""
        return await self._drive(
            methods.lifecycle_flow(self._session, _id_of(model), _version(version), "load")
        )

    async def unload_model(self, model: str | AsyncModel, version: str | int | None = None) -> ModelMetadata:
        """As `Client.unload_model`."""
        return await self._drive(
            methods.lifecycle_flow(self._session, _id_of(model), _version(version), "unload")
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _drive(self, flow: Flow[_T]) -> _T:
        try:
            command = next(flow)
            while True:
                try:
                    result = await self._transport.perform(command)
                except Outcome as outcome:
                    command = flow.throw(outcome)
                else:
                    command = flow.send(result)
        except StopIteration as stop:
            value: _T = stop.value
            return value
        finally:
            flow.close()
            await self._transport.discard(self._session.closable())


def _nothing_verified() -> InvalidRequest:
    return InvalidRequest("nothing was verified yet: connect or call attest() first", code="not_attested")


def _id_of(model: str | ModelBase) -> str:
    return model.id if isinstance(model, ModelBase) else model


def _version(version: str | int | None) -> str | None:
    return None if version is None else str(version)


# --- connecting ---------------------------------------------------------------------------------------------


def connect(
    url: str,
    *,
    policy: PolicySource,
    key: KeySource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    endorsements: Sequence[EndorsementSource] = (),
    fetcher: Fetcher | None = None,
) -> Client:
    """Connects to `https://host[:port]` and attests the server: when this returns, the policy accepted it.

    `policy`: the path of a policy file, a `Policy`, or "production". `key`: the path of a key that
    `strongroom keygen` wrote, its PEM, or the key itself; None to verify, list public models and run them.
    `endorsements`, `fetcher`: as `Client` has them; nothing is fetched without a fetcher.

    Raises:
        AttestationRefused: the server is not one that the policy accepts; `.verdict` has every check. Nothing
        but the question for evidence was sent.
        Unavailable: no server there (code `server_unreachable`); no endorsements to be had now
        (`endorsements_unavailable`).
        InvalidPolicy: the policy cannot be applied.
    """
    client = Client(url, policy=policy, key=key, timeout=timeout, endorsements=endorsements, fetcher=fetcher)
    try:
        client.attest()
    except BaseException:
        client.close()
        raise
    return client


class Connecting:
    """What `aconnect` returns: `client = await aconnect(...)` or `async with aconnect(...) as client:`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncClient:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def _open(self) -> AsyncClient:
        try:
            await self._client.attest()
        except BaseException:
            await self._client.close()
            raise
        return self._client


def aconnect(
    url: str,
    *,
    policy: PolicySource,
    key: KeySource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    endorsements: Sequence[EndorsementSource] = (),
    fetcher: Fetcher | None = None,
) -> Connecting:
    """`connect` for asyncio; to be awaited, or entered with `async with`."""
    return Connecting(
        AsyncClient(url, policy=policy, key=key, timeout=timeout, endorsements=endorsements, fetcher=fetcher)
    )
