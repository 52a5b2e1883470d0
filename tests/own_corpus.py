"""Every hostile file that a bare clone can make, each wrong in one respect and with the code that refuses it.

ONNX by `models/hostile.py` with an innocent twin for each, XGBoost's documents by `models/test_xgboost.py`, as JSON and
as UBJSON. `python tests/own_corpus.py DIR` writes them all with a `manifest.json`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path += [str(Path(__file__).parent / "models"), str(Path(__file__).parent)]
import hostile
import samples
import test_xgboost


class File(NamedTuple):
    """A model file; `code`: what refuses it, "" where it is innocent."""

    what: str
    format: str
    data: bytes
    code: str


def files() -> Iterator[File]:
    """All of them; innocent ones that are the same once."""
    seen: set[bytes] = set()
    for what, vector in hostile.VECTORS.items():
        yield File(what, "onnx", hostile.encoded(vector.bad()), vector.code)
        good = hostile.encoded(vector.good())
        if good not in seen:
            seen.add(good)
            yield File(f"{what}: innocent", "onnx", good, "")
    for what, (document, code) in {**test_xgboost.REFUSED, **test_xgboost.MALFORMED}.items():
        if not isinstance(document, dict) or not document:
            continue  # `formats` sees no model in it
        yield File(f"{what}, JSON", "xgboost-json", samples.as_json(document), code)
        with contextlib.suppress(UnicodeEncodeError):  # half a character, which UBJSON cannot say
            yield File(f"{what}, UBJSON", "xgboost-ubj", samples.as_ubj(document), code)


def write(folder: Path) -> None:
    """Writes the files, with what is expected of each."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = []
    for number, file in enumerate(files()):
        name = f"{number:03}.{file.format.rpartition('-')[2]}"
        (folder / name).write_bytes(file.data)
        listing.append({"file": name, "what": file.what, "format": file.format, "code": file.code})
    (folder / "manifest.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
