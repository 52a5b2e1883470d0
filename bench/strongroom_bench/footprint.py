"""`bench footprint`: what must be trusted, in bytes (the paper's Figure 1).

Rules
  - Sizes are of files as installed, listed by each distribution's `RECORD`; byte code is left out, because servers
    write none.
  - *Pruned* is what a TEE's image contains besides interpreter and C library: without what `PRUNED` names, each with
    its reason. `write_tree` makes such a folder; a test runs a server from it.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

from strongroom_bench.peer import environment_folder, peer
from strongroom_bench.results import Result, Row

PRUNED: Final = (
    (r"(^|/)tests?/", "tests"),
    (r"(^|/)conftest\.py$", "tests"),
    (r"(^|/)include/|\.(h|hpp|hh|c|cc|cpp|pxd|pyx|proto|a|lib|cmake|pc)$", "headers and sources"),
    (r"\.pyi$", "types for checkers"),
    (r"^onnx/backend/test/", "tests"),
    (r"^onnx/reference/", "reference implementation of the operators"),
    (r"^onnx/bin/|^onnx/tools/", "tools"),
    (r"^onnxruntime/(transformers|quantization|tools|datasets)/", "conversion tools and sample models"),
    (
        r"^onnxruntime/capi/libonnxruntime\.",
        "the engine a second time, for C programs: the Python module has its own",
    ),
    (r"^numpy/_core/_(simd|\w+_tests)\.", "tests"),
    (r"^numpy/(f2py|_pyinstaller|distutils|doc)/", "tools"),
    (r"\.dist-info/sboms/", "bills of materials"),
    (r"^\.\./", "programs and manual pages outside the package folder"),
)
"""(pattern on the path in RECORD, why a server does not need it)."""
_PRUNED = tuple((re.compile(pattern), reason) for pattern, reason in PRUNED)
PURPOSES: Final = {
    "strongroom": "this server",
    "onnxruntime": "runs models",
    "numpy": "tensors; onnxruntime's arrays",
    "onnx": "parses models for admission, writes the form of XGBoost models that runs",
    "cryptography": "AEAD, HKDF, signatures, certificates",
    "dcap-qvl": "second opinion on SGX and TDX quotes",
    "protobuf": "onnx's file format",
    "ml-dtypes": "onnx's small float types",
    "httptools": "parses HTTP",
    "httpx": "fetches endorsements",
    "httpcore": "of httpx",
    "h11": "of httpx's transport",
    "anyio": "of httpx",
    "certifi": "of httpx",
    "idna": "of httpx",
    "click": "the command",
    "pyjwt": "tokens",
    "rfc8785": "canonical JSON that is hashed",
    "flatbuffers": "of onnxruntime",
    "packaging": "of onnxruntime",
    "cffi": "of cryptography",
    "pycparser": "of cffi",
    "typing-extensions": "of onnx",
}
"""What each distribution in the server is for."""
TORCH: Final = {
    "version": "2.15.0",
    "bytes": 3_000_151_922,
    "note": "30 distributions, CUDA's among them; 539 MB are torch itself; as the package index stated in 11/2026",
}
"""PyTorch as `pip install torch` takes it on Linux: for comparison only, never installed here."""
_NOT_MINIMAL = re.compile(
    r"test|idlelib|tkinter|turtledemo|ensurepip|lib2to3|site-packages|dist-packages|config-.*|__pycache__"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Bytes of one distribution, as installed and without what is pruned."""

    name: str
    version: str
    installed: int
    pruned: int
    files: int


def closure(names: Iterable[str], path: list[str] | None = None) -> dict[str, Distribution]:
    """The named distributions and what they require, by normalised name; extras are left out."""
    known = {_key(d.metadata["Name"]): d for d in distributions(path=path or sys.path)}
    found: dict[str, Distribution] = {}
    waiting = [_key(name) for name in names]
    while waiting:
        key = waiting.pop()
        if key in found or key not in known:
            continue
        found[key] = known[key]
        for line in known[key].requires or ():
            name, _, marker = line.partition(";")
            if "extra" not in marker:
                waiting.append(_key(re.split(r"[^A-Za-z0-9._-]", name.strip())[0]))
    return found


def server_names() -> tuple[str, ...]:
    """What `strongroom[server]` requires, as the installed distribution states it."""
    lines = next(d for d in distributions(name="strongroom")).requires or []
    return tuple(
        re.split(r"[^A-Za-z0-9._-]", line)[0]
        for line in lines
        if "extra" not in line or 'extra == "server"' in line
    )


def why_pruned(path: str) -> str:
    """Why a server does not need a file of a distribution, by its path in RECORD; "" where it does."""
    return next((reason for pattern, reason in _PRUNED if pattern.search(path)), "")


def _files(distribution: Distribution) -> Iterator[tuple[str, Path, int]]:
    base = Path(str(distribution.locate_file("")))
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        name, _digest, size = row
        place = base / name
        if "__pycache__" not in name:
            yield name, place, int(size) if size else place.stat().st_size


def component(name: str, distribution: Distribution) -> Component:
    """The sizes of one distribution."""
    files = list(_files(distribution))
    kept = [size for path, _place, size in files if not why_pruned(path)]
    installed = sum(size for _path, _place, size in files)
    return Component(
        name=name, version=distribution.version, installed=installed, pruned=sum(kept), files=len(kept)
    )


def own_package() -> Component:
    """This server's own package, which lies in a checkout where it is installed for development."""
    import strongroom

    folder = Path(strongroom.__file__).parent
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return Component(
        name="strongroom", version=strongroom.__version__, installed=sum(sizes), pruned=sum(sizes), files=len(sizes)
    )  # fmt: skip


def server() -> list[Component]:
    """Every component of the server's environment, the largest first."""
    found = [component(name, d) for name, d in closure(server_names()).items() if name != "strongroom"]
    return sorted([own_package(), *found], key=lambda c: -c.pruned)


def write_tree(folder: Path) -> int:
    """Writes the pruned environment into an empty folder; its bytes."""
    import strongroom

    total = 0
    for name, distribution in closure(server_names()).items():
        if name == "strongroom":
            continue
        for path, place, size in _files(distribution):
            if not why_pruned(path):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, target)
                total += size
    package = Path(strongroom.__file__).parent
    shutil.copytree(package, folder / "strongroom", ignore=shutil.ignore_patterns("__pycache__"))
    return total + own_package().installed


def interpreter() -> int:
    """Bytes of a minimal Python: program, shared library, standard library without tests and tools."""
    root = Path(sysconfig.get_path("stdlib"))
    tops = [path for path in root.iterdir() if not _NOT_MINIMAL.fullmatch(path.name)]
    files = [inner for top in tops for inner in (top.rglob("*") if top.is_dir() else (top,))]
    total = sum(p.stat().st_size for p in files if p.is_file() and "__pycache__" not in p.parts)
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("LDLIBRARY"))
    more = {Path(sys.executable).resolve(), library.resolve()}
    return total + sum(p.stat().st_size for p in more if p.is_file() and p.suffix != ".a")


def environment_bytes(python: Path) -> int:
    """Bytes of every distribution of another environment but pip and setuptools."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = [d for d in distributions(path=[place]) if _key(d.metadata["Name"]) not in {"pip", "setuptools"}]
    return sum(size for d in found for path, _place, size in _files(d) if not path.startswith("../"))


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- the result ---------------------------------------------------------------------------------------------


def measure(result: Result, *, against: Iterable[str], cache: Path) -> None:
    """Adds the rows: `component` of our server, then whole environments (`environment`), interpreter included."""
    python, parts = interpreter(), server()
    by_name = {part.name: part for part in parts}
    for part in parts:
        detail = {"installed": part.installed, "files": part.files, "for": PURPOSES.get(part.name, "")}
        _row(result, f"{part.name} {part.version}", "component", part.pruned, detail)
    numpy, engine = by_name["numpy"].pruned, sum(
        c.installed for c in (component(n, d) for n, d in closure(["onnxruntime"]).items())
    )  # fmt: skip
    whole = sum(part.pruned for part in parts)
    _row(result, "our server's environment, pruned", "environment", whole, {"interpreter": False})
    _row(
        result, "our server's environment, as installed", "environment", sum(p.installed for p in parts),
        {"interpreter": False},
    )  # fmt: skip
    for name, size in (
        ("minimal Python", python), ("with NumPy", python + numpy), ("with ONNX Runtime", python + engine),
        ("with our whole server, pruned", python + whole),
    ):  # fmt: skip
        _row(result, name, "environment", size, {"interpreter": True})
    for name in against:
        chosen = peer(name)
        folder = environment_folder(chosen, cache=cache)
        if not (folder / "complete").exists():
            result.miss(name, "", "its environment was not made yet: name it in another command first")
            continue
        size = python + environment_bytes(folder / "bin" / "python")
        _row(result, f"with {chosen.title}", "environment", size, {"interpreter": True})
    result.notes.append(
        f"PyTorch {TORCH['version']} for Linux: wheels of {float(str(TORCH['bytes'])) / 1e6:.0f} MB to download "
        f"({TORCH['note']}); not installed here."
    )  # fmt: skip


def _row(result: Result, subject: str, metric: str, size: int, detail: dict[str, Any]) -> None:
    result.rows.append(
        Row(subject=subject, contender="strongroom", metric=metric, unit="bytes", values=(float(size),), detail=detail)
    )  # fmt: skip
