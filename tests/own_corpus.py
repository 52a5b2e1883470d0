"""Every hostile file that a bare clone can make, each with the codes of which one refuses it, and innocent twins.

    kinds     one for each kind of file that is known to harm servers (`models/kinds.py`)
    clauses   one for each clause of docs/spec/admission.md, with its innocent twin (`models/hostile.py`)
    trees     XGBoost's documents, as JSON and as UBJSON (`models/test_xgboost.py`)

`python tests/own_corpus.py DIR` writes them all with a `manifest.json`.
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
import kinds
import samples
import test_xgboost


class File(NamedTuple):
    """A model file; `codes`: one of them refuses it, none where it is to be admitted."""

    what: str
    format: str
    data: bytes
    codes: tuple[str, ...]


def of_kinds() -> Iterator[File]:
    """One for each kind; those that only certain data make harmful are admitted."""
    for what, kind in kinds.KINDS.items():
        yield File(what, kind.format, kind.make(), kind.codes)


def of_clauses() -> Iterator[File]:
    """One for each clause."""
    for what, vector in hostile.VECTORS.items():
        yield File(what, "onnx", hostile.encoded(vector.bad()), (vector.code,))


def innocent() -> Iterator[File]:
    """The twins, each once."""
    made = {hostile.encoded(vector.good()): what for what, vector in hostile.VECTORS.items()}
    for data, what in made.items():
        yield File(f"{what}: innocent", "onnx", data, ())


def of_trees() -> Iterator[File]:
    """XGBoost's documents."""
    for what, (document, code) in {**test_xgboost.REFUSED, **test_xgboost.MALFORMED}.items():
        if not isinstance(document, dict) or not document:
            continue  # `formats` sees no model in it
        yield File(f"{what}, JSON", "xgboost-json", samples.as_json(document), (code,))
        with contextlib.suppress(UnicodeEncodeError):  # half a character, which UBJSON cannot say
            yield File(f"{what}, UBJSON", "xgboost-ubj", samples.as_ubj(document), (code,))


def files() -> Iterator[File]:
    """All of them."""
    yield from of_kinds()
    yield from of_clauses()
    yield from innocent()
    yield from of_trees()


def write(folder: Path) -> None:
    """Writes the files, with what is expected of each."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = []
    for number, file in enumerate(files()):
        name = f"{number:03}.{file.format.rpartition('-')[2]}"
        (folder / name).write_bytes(file.data)
        listing.append(
            {"file": name, "what": file.what, "format": file.format, "codes": file.codes or ["admitted"]}
        )
    (folder / "manifest.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
