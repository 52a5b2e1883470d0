"""The measurement: one digest over exactly the code, dependencies and configuration that decide
confidentiality.

What it covers, each by the bytes that lie there now (docs/spec/evidence.md §6):

1. every file of this package;
2. every file of each distribution that the server loads, transitively, and of whatever else could be imported
   under one of their names. `RECORD` only says which folders belong to a distribution; it is not believed
   about contents, so a file planted in one of them changes the measurement too;
3. the interpreter's version, implementation and platform, as it states them;
4. the security configuration, and the digests of the preloaded models.

What it does not cover: the interpreter's own files, the C library and the kernel. On hardware the platform's
own measurement covers those; in simulation nothing does. A module whose file is changed afterwards is not
loaded (`importing`). Byte code in `__pycache__` is left out because the server neither reads nor writes any
(`importing`, `python -B -X pycache_prefix=/dev/null/none`); `.pyc` files elsewhere would be imported and are covered.
Paths and ports are not part of it: two clones with the same locked packages on the same platform have the same
measurement.

This runs before anything else in an interpreter started with `-I -S`, so it needs nothing but the standard
library and this package's trust documents.
"""

# Paths are plain strings here: with pathlib, the 3,200 files took 1.0 s instead of 0.45 s.
# ruff: noqa: PTH110, PTH112, PTH113, PTH114, PTH118, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import csv
import hashlib
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final

from strongroom import __version__
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.strict import JSON, canonical
from strongroom.errors import Failure, MalformedInput

SECURITY_VERSION: Final = 1
"""Raised by every release that closes a hole in confidentiality; policies name a minimum (`min_svn`)."""
VERSION: Final = 1
"""Of the document's form."""
REQUIREMENTS: Final = (
    "click",
    "cryptography",
    "dcap-qvl",
    "httptools",
    "httpx",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyjwt",
    "rfc8785",
)
"""The package's own requirements with the `server` extra, as pyproject.toml has them (a test compares):
stated here because a clone need not be installed to be measured.
"""
HASHING_THREADS: Final = 4
_UNMEASURED = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
"""Files of a .dist-info folder that say how and where it was installed, not what."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured. `document`: the JSON whose RFC 8785 form has the SHA-256 `digest` (hex).

    `files`: path -> SHA-256 (hex) of every file, sorted, for whoever looks for the difference between two
    measurements.
    """

    document: dict[str, JSON]
    digest: str
    files: tuple[tuple[str, str], ...]


def measure_at(
    package: Path,
    *,
    search_path: Sequence[str],
    security: SecurityConfiguration,
    preload: tuple[tuple[str, str], ...],
    more: tuple[str, ...] = (),
) -> Measurement:
    """Returns the measurement of the package in the folder `package` with the distributions on `search_path`.

    `preload`: (name, SHA-256 hex) of each model that the server offers from the start. `more`: distributions that
    the server needs on its platform, besides `REQUIREMENTS`.

    Raises:
        Failure: code `measurement_impossible`: a dependency is missing, or a file cannot be measured.
    """
    found, roots = _installed(search_path, (*REQUIREMENTS, *more))
    modules = _modules(roots)
    roots["(unclaimed)"] = _unclaimed(_folders(search_path), modules, set().union(*roots.values()))
    with ThreadPoolExecutor(HASHING_THREADS) as pool:  # hashing lets go of the interpreter's lock
        own = _listing(pool, {(str(package.parent), str(package))})
        parts = {name: _listing(pool, paths) for name, paths in roots.items()}
    document: dict[str, JSON] = {
        "version": VERSION,
        "security_version": SECURITY_VERSION,
        "package": _summary("strongroom", __version__, own),
        "dependencies": [
            _summary(name, found[name].version if name in found else "", listing)
            for name, listing in sorted(parts.items())
            if listing or name in found
        ],
        "interpreter": {
            "implementation": sys.implementation.name,
            "version": platform.python_version(),
            "platform": sysconfig.get_platform(),
        },
        "security": security.to_json(),
        "preload": [{"name": name, "sha256": digest} for name, digest in sorted(preload)],
    }
    files = {path: digest for listing in (own, *parts.values()) for path, digest in listing.items()}
    digest = hashlib.sha256(_canonical(document)).hexdigest()
    return Measurement(document, digest, tuple(sorted(files.items())))


def _summary(name: str, version: str, listing: dict[str, str]) -> JSON:
    """One line of the document: the digest covers every path and every file's digest."""
    digest = hashlib.sha256(_canonical(listing)).hexdigest()
    return {"name": name, "version": version, "files": len(listing), "sha256": digest}


def _canonical(value: JSON) -> bytes:
    try:
        return canonical(value)
    except MalformedInput as exc:
        raise _impossible("a file's name is not Unicode") from exc


def _impossible(why: str) -> Failure:
    return Failure(f"measurement: {why}", code="measurement_impossible")


# Which distributions
# --------------------------------------------------------------------------------------------


_Roots = set[tuple[str, str]]
"""(folder on the search path, file or folder in it)."""


def _folders(search_path: Sequence[str]) -> list[str]:
    return [os.path.realpath(entry) for entry in search_path if entry and os.path.isdir(entry)]


def _installed(
    search_path: Sequence[str], requirements: tuple[str, ...]
) -> tuple[dict[str, Distribution], dict[str, _Roots]]:
    """The distributions that the server loads, and where the files of each lie, by normalised name."""
    found = _closure(requirements, _folders(search_path))
    roots = {name: _roots(distribution) for name, distribution in found.items()}
    for name, paths in roots.items():
        if not paths:
            raise _impossible(f"{name} has no list of its files; install it from a wheel")
    return found, roots


def _modules(roots: dict[str, _Roots]) -> frozenset[str]:
    """The top-level names that the distributions offer for import."""
    tops = {path[len(base) + 1 :].split(os.sep, 1)[0] for paths in roots.values() for base, path in paths}
    return frozenset(map(_module, tops)) - {""}


def _closure(names: Iterable[str], search_path: list[str]) -> dict[str, Distribution]:
    """The named distributions and what they require, by normalised name."""
    found: dict[str, Distribution] = {}
    waiting = [(name, "") for name in names]
    while waiting:
        name, marker = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        distribution = next(iter(Distribution.discover(name=name, path=search_path)), None)
        if distribution is None:
            if marker:  # required elsewhere only: another platform, another Python
                continue
            raise _impossible(f"{name} is not installed")
        found[key] = distribution
        waiting += _required(distribution.requires or ())
    return found


_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)[^;]*(?:;(.*))?", re.DOTALL)
_OLDER_PYTHON = re.compile(r"python(?:_full)?_version\s*<\s*['\"]3\.(\d+)['\"]")


def _required(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, marker) of each requirement that can hold here. Of markers only two forms are understood:
    extras, of which we ask for none, and `python_version < "3.x"` alone. Any other is taken to hold if the
    distribution is there.
    """
    for line in lines:
        if (match := _REQUIREMENT.match(line)) is None:
            raise _impossible("a distribution states a requirement that has no name")
        name, marker = match[1], (match[2] or "").strip()
        older = _OLDER_PYTHON.fullmatch(marker)
        if re.search(r"\bextra\b", marker) or (older and sys.version_info[:2] >= (3, int(older[1]))):
            continue
        yield name, marker


# Which files
# ----------------------------------------------------------------------------------------------------


def _roots(distribution: Distribution) -> _Roots:
    """Where everything lies that belongs to `distribution`; `RECORD` is asked for the top of each path
    only.
    """
    base = os.path.realpath(os.fspath(distribution.locate_file("")))  # type: ignore[call-overload]
    roots: _Roots = set()
    shared: dict[str, bool] = {}
    for line in _record(distribution):
        top, *rest = line.split("/")
        if top in ("..", "", "__pycache__"):
            continue  # scripts and manual pages: nothing that is imported
        if top not in shared:  # `google/protobuf`: other distributions have folders in the same namespace
            shared[top] = top.isidentifier() and not os.path.exists(os.path.join(base, top, "__init__.py"))
        inner = rest[:1] if shared[top] else []
        roots.add((base, os.path.join(base, top, *inner)))
    return roots


def _record(distribution: Distribution) -> Iterator[str]:
    """Every path in `RECORD`. Read here: on some versions `distribution.files` leaves out what is not there."""
    try:
        for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
            yield from row[:1]
    except (csv.Error, UnicodeDecodeError) as exc:
        raise _impossible("a RECORD cannot be read") from exc


def _unclaimed(folders: list[str], modules: frozenset[str], roots: _Roots) -> _Roots:
    """What lies on the path under a measured module's name without belonging to its distribution. A folder
    `typing_extensions` would be imported in place of the `typing_extensions.py` beside it.
    """
    claimed = {path for _, path in roots} | {os.path.dirname(path) for _, path in roots}
    return {
        (folder, os.path.join(folder, name))
        for folder in folders
        for name in os.listdir(folder)
        if _module(name) in modules and os.path.join(folder, name) not in claimed
    }


def _module(name: str) -> str:
    """The top-level module that a file or folder of this name offers for import; "" for none."""
    stem = name.split(".", 1)[0]
    importable = "." not in name or any(name.endswith(s) for s in all_suffixes())
    return stem if importable and stem.isidentifier() else ""


def _listing(pool: ThreadPoolExecutor, roots: _Roots) -> dict[str, str]:
    """Path relative to the folder on the search path, with slashes -> SHA-256 (hex) of the file's bytes."""
    found: dict[str, str] = {}
    for base, root in sorted(roots):
        for path in _walk(root):
            name = path[len(base) + 1 :].replace(os.sep, "/")
            if found.setdefault(name, path) != path:
                raise _impossible(f"{name} is there twice, in two folders of the path")
    return dict(zip(found, pool.map(_digest, found.values()), strict=True))


def _walk(root: str) -> Iterator[str]:
    """Every file at or below `root`, links to files among them. A link to a folder is refused: it may lead
    anywhere.
    """
    if os.path.isfile(root):
        yield root
        return
    if os.path.islink(root) or not os.path.isdir(root):
        raise _impossible(f"{os.path.basename(root)}: neither a file nor a folder")
    skipped = _UNMEASURED if root.endswith(".dist-info") else frozenset()
    with os.scandir(root) as found:
        entries = [e for e in found if e.name != "__pycache__" and e.name not in skipped]
    for entry in entries:
        if entry.is_file():
            yield entry.path
        else:
            yield from _walk(entry.path)


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise _impossible(f"{os.path.basename(path)}: cannot be read") from exc
