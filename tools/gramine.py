"""Makes what an SGX enclave of Gramine's runs from: a folder with every file and nothing else, and its manifest.

    make gramine                      # build/gramine, checked; signed where Gramine and a key are
    .venv/bin/python tools/gramine.py [--out FOLDER] [--values FILE] [--config FILE] [--key FILE] [--files-only]

1. The folder gets the interpreter, the standard library without what a server never imports, the files that the
   server's own measurement lists, and the shared libraries that these need (those of Gramine's own C library left out).
2. The manifest lists each with its SHA-256; paths are relative and sorted, so the same files give the same bytes.
3. `gramine_rules` checks the result as it is written; what breaks a rule is printed and nothing is signed.
4. With `gramine-sgx-sign` and `--key`, Gramine adds its runtime's files and signs: MRENCLAVE is what that prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gramine_rules

from strongroom import config, launch, planned
from strongroom.measure import SECURITY_VERSION
from strongroom.platforms import SIMULATED, TPM

ROOT: Final = Path(__file__).resolve().parents[1]
DEPLOY: Final = ROOT / "deploy" / "gramine"
UNUSED: Final = frozenset({
    "__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "sqlite3", "test", "tests", "tkinter", "turtle.py", "turtledemo", "venv",
})  # fmt: skip
"""Of the standard library: what no server imports."""
UNUSED_NATIVE: Final = re.compile(
    r"_(?:test|ctypes_test|tkinter|xxtestfuzz|xxsubinterp|sqlite3|dbm|gdbm|curses)|xxlimited|readline|nis\.|ossaudio"
)
GRAMINES: Final = re.compile(
    r"(?:ld-linux-x86-64|libanl|libc|libdl|libm|libmvec|libpthread|libresolv|librt|libutil|libnss_\w+|libthread_db)\.so\.\d+"
)
"""Libraries of Gramine's runtime: the host's own would not run in there."""


def assemble(out: Path, *, config_path: Path) -> None:
    """Fills the new folder `out` with what the enclave runs. `config_path`: the settings inside."""
    settings = config.load(config_path, variables={}, base=Path("/"))
    if (
        settings.platform != TPM
    ):  # the files are the same on every other, and `auto` would look for a TEE here
        settings = replace(settings, platform=SIMULATED)
    folders = launch.dependency_folders(settings.platform)
    measured = planned.measurement(settings, preload=(), folders=folders)
    for name in ("python/bin", "lib", "config", "state", "endorsements"):
        (out / name).mkdir(parents=True)
    _copy(Path(sys.executable).resolve(), out / "python" / "bin" / interpreter())
    _copy_library(Path(sysconfig.get_paths()["stdlib"]), out / "python" / "lib" / f"python{_short()}")
    bases = [*map(Path, folders), planned.PACKAGE.parent]
    for name, _ in measured.files:
        base = next(base for base in bases if (base / name).is_file())
        own = name.startswith("strongroom/") and base == planned.PACKAGE.parent
        _copy(base / name, out / ("code" if own else "site") / name)
    for info in {name.split("/")[0] for name, _ in measured.files if ".dist-info/" in name}:
        # Not measured, but read: it says which folders are a distribution's.
        base = next(base for base in bases if (base / info).is_dir())
        _copy(base / info / "RECORD", out / "site" / info / "RECORD")
    _copy(DEPLOY / "start.py", out / "start.py")
    _copy(config_path, out / "config" / "strongroom.toml")
    for library in _libraries(out):
        _copy(library, out / "lib" / library.name)


def _short() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def interpreter() -> str:
    """The interpreter's name in the enclave."""
    return f"python{_short()}"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if source.stat().st_mode & 0o100:
        target.chmod(0o755)


def _copy_library(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if UNUSED.isdisjoint(parts) and not parts[0].startswith("config-") and path.is_file():
            if parts[0] == "lib-dynload" and UNUSED_NATIVE.match(parts[-1]):
                continue
            if path.suffix in (".py", ".so") or parts[0] == "lib-dynload":
                _copy(path, target.joinpath(*parts))


def _libraries(out: Path) -> list[Path]:
    """What the dynamic linker would load for every binary in `out`, but what lies in there or is Gramine's."""
    binaries = [path for path in sorted(out.rglob("*")) if path.is_file() and _is_binary(path)]
    # As in the enclave, wheels find their own libraries beside them ($ORIGIN), so this asks about the copies.
    said = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    found: dict[str, Path] = {}
    for name, path in re.findall(r"^\s*(\S+) => (/\S+) \(0x", said, re.MULTILINE):
        if not GRAMINES.fullmatch(name) and not Path(path).resolve().is_relative_to(out.resolve()):
            found[name] = Path(path)
    missing = set(re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE))
    if missing:
        raise SystemExit(f"libraries that are not installed here: {', '.join(sorted(missing))}")
    return [found[name] for name in sorted(found)]


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def render(out: Path, *, values: Mapping[str, Any]) -> str:
    """The manifest for the folder `out`, whose files it lists with their digests."""
    template = (DEPLOY / "strongroom.manifest.template").read_text(encoding="utf-8")
    models = sorted(
        path.relative_to(out).as_posix() for path in (out / "models").rglob("*") if path.is_file()
    )
    given = {
        **{name: _plain(value) for name, value in values.items()},
        "python": interpreter(),
        "isvsvn": str(SECURITY_VERSION),
        "trusted_files": "".join(f"    {_entry(name, digest)},\n" for name, digest in digests(out)),
        # A file mount is hashed once, at the start; in a folder that is searched it would be at each search.
        "model_mounts": "".join(f'    {{ path = "/{name}", uri = "file:{name}" }},\n' for name in models),
    }
    names = set(re.findall(r"\{\{ (\w+) \}\}", template))
    if names != set(given):
        raise SystemExit(f"values: expected {', '.join(sorted(names))}, got {', '.join(sorted(given))}")
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: given[found[1]], template)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(name: str, digest: str) -> str:
    return f'{{ uri = {json.dumps(f"file:{name}")}, sha256 = "{digest}" }}'


def digests(out: Path) -> list[tuple[str, str]]:
    """(path, SHA-256 hex) of every file that is trusted, sorted: all but the manifest and what the host writes."""
    return [(name, hashlib.sha256((out / name).read_bytes()).hexdigest()) for name in sorted(_names(out))]


def _names(out: Path) -> Iterable[str]:
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(("state/", "endorsements/", "strongroom.manifest")):
            yield name


def sign(out: Path, *, key: Path) -> None:
    """Lets Gramine add its runtime to the list and sign; prints what it says, MRENCLAVE at the end."""
    manifest, full = "strongroom.manifest", "strongroom.manifest.sgx"
    subprocess.run(["gramine-sgx-sign", "--manifest", manifest, "--output", full, "--key", str(key.resolve()),
                    "--date", "0000-00-00"], cwd=out, check=True)  # fmt: skip


def main() -> int:
    """`make gramine`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gramine")
    parser.add_argument("--values", type=Path, default=DEPLOY / "values.toml")
    parser.add_argument("--config", type=Path, default=DEPLOY / "strongroom.toml")
    parser.add_argument("--key", type=Path, help="RSA-3072 key with exponent 3 (gramine-sgx-gen-private-key)")
    parser.add_argument(
        "--files-only", action="store_true", help="the folder alone, for another kind of image"
    )
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    os.umask(0o022)
    assemble(options.out, config_path=options.config)
    if options.files_only:
        return 0
    text = render(options.out, values=tomllib.loads(options.values.read_text()))
    (options.out / "strongroom.manifest").write_text(text)
    broken = gramine_rules.check(text, folder=options.out)
    for line in broken:
        print(line)
    if broken:
        return 1
    count = text.count("sha256 = ")
    print(f"{options.out}/strongroom.manifest: {count} trusted files, {len(gramine_rules.RULES)} rules kept")
    print(f"sha256 {hashlib.sha256(text.encode()).hexdigest()}")
    if shutil.which("gramine-sgx-sign") is None:
        print("not signed: Gramine is not installed here (https://gramine.readthedocs.io)")
    elif options.key is None:
        print("not signed: no --key")
    else:
        sign(options.out, key=options.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
