"""What uploads may take: how often, how fast, how many at once, how many bytes of an owner and of the disk.

Rules
  - Everything is checked before the first byte of a body is taken, again while it arrives (what others store or
    send meanwhile counts), and once more at the commit.
  - Bytes of uploads under way count as stored ones do: ten uploads at once cannot each fill the last gap.
  - Bytes of a model are those that were uploaded and, once it has one, those of its prepared form. A form is made
    whatever the quota says, and then counts: the next upload is refused, never the model that it belongs to.
  - A rate is a principal's and its address's: keys cost nothing, so a rate of keys alone would be none.
  - A rate of bytes is overdrawn by the upload that reaches it, however large that is, and then paid back: a
    limit on what arrived, where a limit on what is declared would refuse a model larger than a minute's share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from strongroom.errors import LimitExceeded
from strongroom.store import ModelVersion
from strongroom.traffic import Rate, Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaLimits:
    """Units and meanings are those of the settings of the same names."""

    models: int
    models_per_owner: int
    store_bytes: int
    owner_bytes: int
    concurrent_uploads: int
    concurrent_uploads_per_caller: int
    uploads_per_minute: int
    upload_bytes_per_minute: int
    one_owner: bool
    """Whether all models have to be one owner's (those of callers without a key count as one, the operator's preloaded
    ones are beside): where one process runs them all, a model that takes it over has every other one."""


class Quotas:
    """The quotas of one server. `stored` gives every model version in the store, `forms`
    bytes of prepared forms by owner. Belongs to one event loop."""

    def __init__(
        self,
        limits: QuotaLimits,
        *,
        stored: Callable[[], tuple[ModelVersion, ...]],
        forms: Callable[[], Mapping[str, int]],
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._stored, self._forms = stored, forms
        self._slots = Slots(
            total=limits.concurrent_uploads,
            per_caller=limits.concurrent_uploads_per_caller,
            code="uploads_busy",
        )
        self._uploads = Rate(per_minute=limits.uploads_per_minute, clock=clock, code="upload_rate")
        self._bytes = Rate(per_minute=limits.upload_bytes_per_minute, clock=clock, code="upload_rate")
        self._arriving: dict[str, int] = {}

    @contextlib.contextmanager
    def upload(self, *, caller: str, keys: tuple[str, ...], owner: str) -> Iterator[Callable[[int], None]]:
        """One upload's place; gives a function that counts its bytes as they arrive, until the block ends.

        `caller` is whose places it takes, `keys` are those whose rates it counts against (a principal's id, an
        address), `owner` is whose the model will be.

        Raises:
            Unavailable: too many uploads, or bytes of uploads, in a minute (code `upload_rate`), too many at
                once (`uploads_busy`), or of this caller (`caller_too_busy`).
            LimitExceeded: here, and from the function: `owner_quota`, `owner_bytes_quota`, `store_quota`, `one_owner`.
        """
        with self._slots.hold(caller):
            self.check(owner, more=0)
            for key in keys:
                self._bytes.check(key)
            for key in keys:
                self._uploads.take(key)
            mine = 0

            def take(count: int) -> None:
                nonlocal mine
                mine += count
                self._arriving[owner] = self._arriving.get(owner, 0) + count
                for key in keys:
                    self._bytes.spend(key, count)
                self.check(owner, more=0)

            try:
                yield take
            finally:
                if mine:
                    self._arriving[owner] -= mine
                    if not self._arriving[owner]:
                        del self._arriving[owner]

    def check(self, owner: str, *, more: int) -> None:
        """Returns where one version more, of `more` bytes besides those that arrive, is within the quotas.

        Raises:
            LimitExceeded: `owner_quota`, `owner_bytes_quota`, `store_quota`, `one_owner`.
        """
        stored, forms, limits = self._stored(), self._forms(), self._limits
        if limits.one_owner and any(model.owner != owner for model in stored):
            raise LimitExceeded(
                "all models run in one process here, and it has another owner's", code="one_owner"
            )
        mine = [model.size for model in stored if model.owner == owner]
        if len(mine) >= limits.models_per_owner:
            raise LimitExceeded(
                f"at most {limits.models_per_owner} model versions of one owner", code="owner_quota"
            )
        if len(stored) >= limits.models:
            raise LimitExceeded(f"at most {limits.models} model versions", code="store_quota")
        if sum(mine) + forms.get(owner, 0) + self._arriving.get(owner, 0) + more > limits.owner_bytes:
            raise LimitExceeded(
                f"at most {limits.owner_bytes} bytes of models of one owner", code="owner_bytes_quota"
            )
        kept = sum(model.size for model in stored) + sum(forms.values())
        if kept + sum(self._arriving.values()) + more > limits.store_bytes:
            raise LimitExceeded(f"at most {limits.store_bytes} bytes of models", code="store_quota")
