"""The body of an upload with a part in front of its model: ranges, or a calibration set (`reduction.Part`).

    body = part, model          Content-Digest, and the caller's token with it, are of the whole

Rules
  - How long the part is, and its digest, stand in the head; its length is bounded before a byte of it is taken.
  - The part is in memory, once, and never on the disk. `erase` overwrites it, whatever became of the upload. What
    lay in buffers of the connection before is no longer ours, as with any request.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable

from strongroom.errors import Conflict, InvalidRequest, LimitExceeded
from strongroom.reduction import MAX_RANGES, RANGES, Part
from strongroom.sealed import overwrite


class Arriving:
    """One body as it arrives. `model` is driven by the event loop; everything else is for one thread at a time."""

    def __init__(self, part: Part | None, *, most: int) -> None:
        """`most`: bytes of a part.

        Raises:
            LimitExceeded: a longer one is announced (code `calibration_too_large`).
        """
        if part is not None and part.kind == RANGES:
            most = min(most, MAX_RANGES)
        if part is not None and part.size > most:
            raise LimitExceeded(
                f"{part.kind}: {part.size} bytes are announced, at most {most} are taken",
                code="calibration_too_large",
            )
        self._part = part
        self._whole = hashlib.sha256()
        self._begun = False
        self.data = bytearray()
        """The part, once the first byte of the model is there."""

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return self._part.size if self._part is not None else 0

    async def model(self, body: AsyncIterator[bytes], take: Callable[[int], None]) -> AsyncIterator[bytes]:
        """The body behind the part, as it arrives. `take` is told of the part's bytes before they are kept."""
        async for chunk in body:
            count = min(self.size - len(self.data), len(chunk))
            if count:
                take(count)
                self.data += chunk[:count]
            if count < len(chunk):
                yield chunk[count:] if count else chunk

    def saw(self, piece: bytes | bytearray) -> None:
        """Counts a piece of the model to the digest of the whole."""
        if self._part is not None:
            if self.data and not self._begun:
                self._whole.update(self.data)
                self._begun = True
            self._whole.update(piece)

    def check(self, *, said: str | None, model: str) -> None:
        """Returns if what arrived is what the caller said: `said` is the SHA-256 (hex) in the head, of the whole;
        `model` that of the model as it arrived.

        Raises:
            Conflict: it is not (code `upload_digest_mismatch`). InvalidRequest: the part did not come whole (code
                `body_empty`).
        """
        if len(self.data) != self.size:
            raise InvalidRequest("expected a model behind the part in front of it", code="body_empty")
        got = model if self._part is None else self._whole.hexdigest()
        if said is not None and not hmac.compare_digest(got, said):
            raise Conflict(f"expected a body with SHA-256 {said}, got {got}", code="upload_digest_mismatch")
        if self._part is not None:
            digest = hashlib.sha256(self.data).hexdigest()
            if not hmac.compare_digest(digest, self._part.sha256):
                raise Conflict(
                    f"{self._part.kind}: expected SHA-256 {self._part.sha256}, got {digest}",
                    code="upload_digest_mismatch",
                )

    def erase(self) -> None:
        """Overwrites the part."""
        overwrite(self.data)
