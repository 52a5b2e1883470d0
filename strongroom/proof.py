"""Steps 4 and 5 of an upload (`service`), in a thread: what arrived is what was said, and is proven.

    write ..., seal -> digests -> admit -> [less precision, which is admitted too] -> what runs is in the file

After it the file of the upload holds what the engine runs, and nothing of the set that came with the model is left.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from strongroom.admission import Admit
from strongroom.errors import Failure
from strongroom.kernel import trim_heap
from strongroom.models.info import AdmissionLimits, ModelInfo
from strongroom.parts import Arriving
from strongroom.preparation import Prepare, Waiting
from strongroom.reduction import Reduction
from strongroom.upload import Upload


def write(upload: Upload, arriving: Arriving, piece: bytes | bytearray) -> None:
    """A piece of a model, counted and sealed.

    Raises:
        As `Upload.write`.
    """
    arriving.saw(piece)
    upload.write(piece)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """Proves uploads with what examines models, and what makes less precision of them."""

    admit: Admit
    prepare: Prepare

    def __call__(
        self,
        upload: Upload,
        arriving: Arriving,
        *,
        format: str,
        said: str | None,
        reduction: Reduction | None,
        limits: AdmissionLimits,
        waiting: Waiting,
    ) -> tuple[ModelInfo, str]:
        """The model's facts and the digest (hex) of what runs. `said`: SHA-256 (hex) of the body in the caller's words.

        Raises:
            Conflict, InvalidRequest: as `Arriving.check`. Whatever `admit` and `prepare` raise.
        """
        try:
            sealed = upload.seal()
            arriving.check(said=said, model=sealed.sha256)
            return self._proven(upload, sealed.sha256, arriving, format, reduction, limits, waiting)
        finally:
            trim_heap()  # a model was here, in the clear and whole

    def _proven(
        self,
        upload: Upload,
        sha256: str,
        arriving: Arriving,
        format: str,
        reduction: Reduction | None,
        limits: AdmissionLimits,
        waiting: Waiting,
    ) -> tuple[ModelInfo, str]:
        admitted = self.admit(upload.read_back(), format=format, limits=limits)
        if not hmac.compare_digest(admitted.sha256, sha256):
            raise Failure("another model was examined than was uploaded")
        if reduction is not None:
            made = self.prepare(admitted, asked=reduction, part=arriving.data, limits=limits, waiting=waiting)
            upload.rewrite(made.onnx)
            return made.info, made.canonical_sha256
        if admitted.canonical_sha256 != sha256:
            upload.rewrite(admitted.onnx)
        return admitted.info, admitted.canonical_sha256
