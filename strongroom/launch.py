"""Replaces this process by a clean interpreter that runs the server.

An ordinary `python` runs code that nobody measured: `sitecustomize`, `.pth` files, planted `.pyc` files,
whatever `PYTHONPATH` or the current folder holds; and OpenSSL loads whatever module `OPENSSL_CONF` names,
also under `python -I`. So the server runs after an exec as

    python -I -S -B -X pycache_prefix=/dev/null/none

  - `-I -S`: no PYTHON* variables, no current folder, no user site, no `site` module, hence no `.pth` files;
  - `-B`, `pycache_prefix`: byte code is neither written nor found, every module is compiled from its source. Below
    a device no file can be. An empty folder of ours would do on a machine of ours; but the state folder is the
    host's under SGX, which could put byte code of the standard library there while the server starts;
  - with the variables of `FIXED`, `SERVER`, `KEPT` and `STRONGROOM_*`, and no others;
  - with an import hook that is there before anything is on the path but the standard library (`importing`);
  - with the standard library and the dependencies' own folders on the path. The folder around the package (a
    clone, for an editable install) is never on it: the package is loaded by its own path;
  - in an empty folder, so that no relative path can resolve to anything.

A TEE's manifest does the same with its own words; this is the form for a plain machine. The process id stays.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from strongroom import config
from strongroom.errors import Error, Failure, InvalidConfig, Refused, Unavailable
from strongroom.platforms import SGX, TDX, TPM, resolve

FIXED: Final[Mapping[str, str]] = {
    "OPENSSL_CONF": "/dev/null",  # else it may name a provider: foreign code in this very process
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's wheels send telemetry unless this stands before the import
    "MALLOC_PERTURB_": "165",  # glibc overwrites freed memory: less of an input outlives its use
    "MALLOC_ARENA_MAX": "2",  # else every thread keeps freed memory of its own
    "OMP_NUM_THREADS": "1",  # results are bit-equal only at one thread
    "OPENBLAS_NUM_THREADS": "1",  # numpy multiplies no matrices here; processes that fork may start no thread
    # Python asks for the home folder, and the name service, which may ask the network, where this is missing.
    "HOME": "/nonexistent",
    "TSS2_LOG": "all+NONE",  # libtss prints to stderr otherwise; read when it is loaded
}
CHILD: Final[Mapping[str, str]] = FIXED
"""What processes that the server executes have in their environment."""
SERVER: Final[Mapping[str, str]] = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)}
"""What the server has besides: a model that passed through it goes back to the system, and is not kept for the next
one. Processes that run models keep theirs: the next run needs it."""
KEPT: Final = ("LANG", "LC_ALL")
"""What else is passed on, besides `STRONGROOM_*`. TMPDIR is not: nothing is written to a temporary folder."""

_IN_ENCLAVE: Final = ("LD_LIBRARY_PATH",)
"""Passed on as well on SGX. There it is the manifest's, which is measured, and without it no library is found; on a
machine of the host's it would be a way to plant one."""

NO_BYTE_CODE: Final = f"pycache_prefix={os.devnull}/none"
"""Option of the interpreter: where it looks for byte code no file can exist."""
_EXITS: Final[tuple[tuple[type[Error], int], ...]] = ((Failure, 1), (Refused, 10), (Unavailable, 30))
"""Family -> exit code, as `boot.report` has it; the others are 20."""
ROOM: Final = "run-"
"""Prefix of the folder in the state folder that holds this process's empty working folder."""

_DEPENDENCIES: Final = (
    "click",
    "cryptography",
    "httptools",
    "httpx",
    "jwt",
    "numpy",
    "onnx",
    "onnxruntime",
    "rfc8785",
)
"""Top-level modules whose folders go on the path; their own dependencies lie beside them."""

# The import hook comes first, while only the standard library can be found: see `importing`.
_BOOTSTRAP: Final = """\
import importlib.util, json, sys
from pathlib import Path
room, standard = json.loads(sys.argv[1]), list(sys.path)
found = importlib.util.spec_from_file_location(
    "strongroom", room["package"] + "/__init__.py", submodule_search_locations=[room["package"]]
)
sys.modules["strongroom"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["strongroom"])
from strongroom.importing import MeasuredImports
imports = MeasuredImports(standard=standard, dependencies=room["paths"], package=Path(room["package"]))
imports.install()
sys.path += room["paths"]
from strongroom import errors, boot
try:
    ready = boot.prepare(room, imports)
except errors.Error as error:
    sys.exit(boot.report(error))
from strongroom import server
sys.exit(server.main(ready))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is executed: program and arguments, the whole environment, the current folder."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path


def command(
    config_path: Path | None,
    *,
    variables: Mapping[str, str],
    base: Path,
    errand: Mapping[str, str] = MappingProxyType({}),
) -> Command:
    """Prepares the clean interpreter; makes the state folder and the empty one in it. `errand`: what the server is
    asked for besides serving (`moving`).

    On the platform `tpm` this extends the PCR of the code: from here on the machine is the server's until its reset. In
    a trust domain it extends RTMR3, where the settings say so.

    Raises:
        InvalidConfig: the settings cannot be used, or the state folder cannot be made, or there is no TPM or RTMR3.
        Refused, Unavailable: RTMR3 holds something else, or cannot be extended now: see `tee.rtmr.measure_into`.
        Failure: a dependency of the server is not installed (code `start_refused`), or the TPM fails.
    """
    settings = config.load(config_path, variables=variables, base=base)
    room = _make_room(settings.state_path)
    folders = dependency_folders(settings.platform)
    message = {
        "config": None if config_path is None else str(config_path.resolve()),
        "base": str(base),
        "room": str(room),
        "package": str(Path(__file__).resolve().parent),
        "paths": folders,
        "launched": _measured_start(settings, folders),
        "errand": dict(errand),
    }
    environment = {
        **{k: v for k, v in variables.items() if _passed_on(k, settings.platform)},
        **FIXED,
        **SERVER,
    }
    flags = ("-I", "-S", "-B", "-X", NO_BYTE_CODE, "-X", "utf8")
    return Command(
        arguments=(sys.executable, *flags, "-c", _BOOTSTRAP, json.dumps(message)),
        environment=environment,
        folder=room / "cwd",
    )


def serve(
    config_path: str | Path | None = None, *, errand: Mapping[str, str] = MappingProxyType({})
) -> NoReturn:
    """Runs the server in place of this process, with the settings of `config_path` (none: defaults). `errand`: as
    `command`.

    Raises:
        InvalidConfig, Failure: as `command`.
    """
    prepared = command(
        None if config_path is None else Path(config_path),
        variables=config.environment(),
        base=Path.cwd(),
        errand=errand,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(prepared.folder)
    os.execve(prepared.arguments[0], list(prepared.arguments), dict(prepared.environment))  # noqa: S606


def _passed_on(name: str, platform: str) -> bool:
    return name in KEPT or name.startswith(config.PREFIX) or (platform == SGX and name in _IN_ENCLAVE)


def child_environment(platform: str) -> dict[str, str]:
    """The whole environment of processes that a server on `platform` executes."""
    kept = config.environment() if platform == SGX else {}
    return {**{name: kept[name] for name in _IN_ENCLAVE if name in kept}, **CHILD}


def _make_room(state: Path) -> Path:
    """A folder of this process's own with an empty one in it; the server removes it when it ends."""
    room = state / (ROOM + secrets.token_hex(8))
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        room.mkdir(mode=0o700)
        (room / "cwd").mkdir(mode=0o500)
    except OSError as exc:
        raise InvalidConfig(f"state_dir: {state} cannot be used", code="config_unreadable") from exc
    return room


def _measured_start(settings: config.Config, folders: list[str]) -> str:
    """Tells the hardware which code is about to run, where that is the launcher's; returns what the TPM's PCR held
    before (hex), "" on other platforms.
    """
    extends_rtmr3 = settings.tdx.extend_rtmr3 and resolve(settings.platform) == TDX
    if settings.platform != TPM and not extends_rtmr3:
        return ""
    from strongroom import planned, platforms

    preload = planned.preload_digests(settings)
    measured = planned.measurement(settings, preload=preload, folders=folders)
    if extends_rtmr3:
        from strongroom.tee import rtmr

        rtmr.measure_into(platforms.PATHS.td_registers, measured.digest)
        return ""
    from strongroom.tee.tpm import measure_into
    from strongroom.tee.tpm_device import Device

    os.environ["TSS2_LOG"] = FIXED["TSS2_LOG"]
    device = Device(settings.tpm.tcti)
    try:
        return measure_into(device, settings.tpm.code_pcr, measured.digest)
    finally:
        device.close()


def dependency_folders(platform: str) -> list[str]:
    """The folders that hold the dependencies, in the order of this interpreter's own path.

    Raises:
        Failure: a dependency is not installed (code `start_refused`).
    """
    found = set()
    for name in (*_DEPENDENCIES, *(("tpm2_pytss",) if platform == TPM else ())):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise Failure(
                f"{name} is not installed: install strongroom with its extras (server; tpm for a TPM)",
                code="start_refused",
            )
        origin = Path(spec.origin).resolve()
        found.add(str(origin.parents[1] if spec.submodule_search_locations else origin.parent))
    return sorted(found, key=lambda folder: (sys.path.index(folder) if folder in sys.path else 0, folder))


def main(arguments: list[str]) -> int:
    """`python -m strongroom.launch [--config FILE]`."""
    if arguments and (len(arguments) != 2 or arguments[0] != "--config"):
        sys.stderr.write("usage: python -m strongroom.launch [--config FILE]\n")
        return 20
    try:
        serve(arguments[1] if arguments else None)
    except Error as error:
        sys.stderr.write(f"strongroom: {error.message} [{error.code}]\n")
        return next((code for family, code in _EXITS if isinstance(error, family)), 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
