"""One version of one model, to be run: what the clients hand out (`client`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from strongroom import methods
from strongroom.calls import ModelMetadata, Progress

if TYPE_CHECKING:  # numpy takes longer to import than a server to verify
    import numpy.typing as npt

    from strongroom.client import AsyncClient, Client
    from strongroom.inference import Array

Demand: TypeAlias = str | Sequence[str] | None
"""Precisions of which an answer is taken, out of `reduction.WORDS`; None: those of the policy."""


class ModelBase:
    """One version of one model on the server, tied to its bytes: results come from exactly these or not at
    all.
    """

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata

    @property
    def metadata(self) -> ModelMetadata:
        """What the server says about this version: inputs, outputs, digests, owner."""
        return self._metadata

    @property
    def id(self) -> str:
        """`name/versions/N`."""
        return self._metadata.id

    def __repr__(self) -> str:
        label = " SIMULATED" if self._metadata.simulated else ""
        return f"<{type(self).__name__} {self.id} sha256={self._metadata.sha256[:16]}{label}>"


class Model(ModelBase):
    """One version of one model; see `Client.model`."""

    def __init__(self, client: Client, metadata: ModelMetadata) -> None:
        super().__init__(metadata)
        self._client = client

    @overload
    def run(
        self, inputs: object, outputs: str, *, progress: Progress | None = None, precision: Demand = None
    ) -> Array: ...
    @overload
    def run(
        self,
        inputs: object,
        outputs: list[str] | tuple[str, ...],
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> dict[str, Array]: ...
    @overload
    def run(
        self,
        inputs: dict[str, Any],
        outputs: None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> dict[str, Array]: ...
    @overload
    def run(
        self,
        inputs: npt.ArrayLike,
        outputs: None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> Array: ...
    def run(
        self,
        inputs: object,
        outputs: str | Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> Any:
        """Runs the model. An array in gives the primary output, a dict of arrays gives a dict of all outputs.

        `outputs`: the name of one output (gives its array) or a list of names (gives a dict). Values are
        brought to the model's datatypes: floats by rounding, whole numbers only from such that fit.
        `progress(done, total)`: bytes of the result. `precision`: the only one, or ones, that an answer is taken of,
        out of `reduction.WORDS`; None: those that the policy accepts.

        Raises:
            InvalidRequest: inputs or outputs that are not the model's.
            Conflict: the model behind the name is another now (code `model_digest_mismatch`), or of another precision
                than is accepted (code `precision_refused`); then nothing of the inputs was sent.
        """
        return self._client._drive(
            methods.infer_flow(self._client._session, self._metadata, inputs, outputs, progress, precision)
        )

    def predict(self, X: npt.ArrayLike, *, precision: Demand = None) -> Array:
        """Rows x columns in, the primary output for each row out, as scikit-learn has it. `precision` as in `run`."""
        result: Array = self._client._drive(
            methods.infer_flow(
                self._client._session,
                self._metadata,
                methods.table(X),
                self._metadata.primary_output,
                None,
                precision,
            )
        )
        return result


class AsyncModel(ModelBase):
    """One version of one model; see `AsyncClient.model`."""

    def __init__(self, client: AsyncClient, metadata: ModelMetadata) -> None:
        super().__init__(metadata)
        self._client = client

    @overload
    async def run(
        self, inputs: object, outputs: str, *, progress: Progress | None = None, precision: Demand = None
    ) -> Array: ...
    @overload
    async def run(
        self,
        inputs: object,
        outputs: list[str] | tuple[str, ...],
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> dict[str, Array]: ...
    @overload
    async def run(
        self,
        inputs: dict[str, Any],
        outputs: None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> dict[str, Array]: ...
    @overload
    async def run(
        self,
        inputs: npt.ArrayLike,
        outputs: None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> Array: ...
    async def run(
        self,
        inputs: object,
        outputs: str | Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        precision: Demand = None,
    ) -> Any:
        """As `Model.run`."""
        return await self._client._drive(
            methods.infer_flow(self._client._session, self._metadata, inputs, outputs, progress, precision)
        )

    async def predict(self, X: npt.ArrayLike, *, precision: Demand = None) -> Array:
        """As `Model.predict`."""
        result: Array = await self._client._drive(
            methods.infer_flow(
                self._client._session,
                self._metadata,
                methods.table(X),
                self._metadata.primary_output,
                None,
                precision,
            )
        )
        return result
