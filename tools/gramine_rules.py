"""What a manifest of Gramine's must say before it is signed: numbered rules, each a trap that somebody fell into.

`check` reads the rendered TOML and, where the folder is given, compares every file with it. It knows nothing of how a
manifest was made: it is for manifests that were edited by hand as well. deploy/gramine/README.md says why.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from strongroom import config
from strongroom.errors import InvalidConfig
from strongroom.measure import SECURITY_VERSION
from strongroom.sizing import GRAMINE_THREADS, LEAST_ENCLAVE, OWN_THREADS

KNOWN: Final = {
    "": {"libos", "loader", "sys", "fs", "sgx"},
    "libos": {"entrypoint"},
    "loader": {"entrypoint", "argv", "log_level", "env"},
    "sys": {"enable_sigterm_injection", "stack"},
    "fs": {"root", "mounts"},
    "sgx": {
        "debug", "enclave_size", "max_threads", "edmm_enable", "preheat_enclave", "remote_attestation",
        "file_check_policy", "isvprodid", "isvsvn", "allowed_files", "trusted_files",
    },
}  # fmt: skip
ENVIRONMENT: Final = {"ORT_DISABLE_TELEMETRY": "1", "OPENSSL_CONF": "/dev/null", "LANG": "C.UTF-8"}
LIBRARY_PATH: Final = "/lib:/usr/lib:/python/lib"
FLAGS: Final = ["-I", "-S", "-B", "-X", "utf8", "-X", "pycache_prefix=/dev/null/none", "/start.py"]
ALLOWED: Final = {"file:state/": "/state", "file:endorsements/": "/endorsements"}
MOUNTS: Final = {
    "/lib": "", "/usr/lib": "lib", "/python": "python", "/site": "site", "/code": "code", "/start.py": "start.py",
    "/config": "config", "/state": "state", "/endorsements": "endorsements",
}  # fmt: skip
LEAST_STACK: Final = 2 << 20
"""Bytes; Python needs more than Gramine's 256 KiB."""
_UNCHECKED: Final = 1
"""Flags of byte code that is tied to a hash nobody looks at (PEP 552): the only kind that is not stale in there."""
_MODELS: Final = (".onnx", ".ubj", ".npz")


@dataclass(frozen=True)
class Manifest:
    """A manifest as its checks see it."""

    document: dict[str, Any]
    folder: Path | None

    def get(self, path: str) -> Any:
        """The value at a dotted path, None where there is none."""
        value: Any = self.document
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def trusted(self) -> list[tuple[str, str]]:
        """(path, digest) of each trusted file that is written as it should be."""
        return [
            (entry["uri"].removeprefix("file:"), entry["sha256"])
            for entry in self.get("sgx.trusted_files") or []
            if isinstance(entry, dict) and set(entry) == {"uri", "sha256"}
        ]

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """The mounts that are tables."""
        return [mount for mount in self.get("fs.mounts") or [] if isinstance(mount, dict)]


Found = Iterator[str]


def _keys(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}{name}"
            yield from _keys(inner, f"{path}{name}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner, path)


def _known(m: Manifest) -> Found:
    for table, names in KNOWN.items():
        value = m.get(table) if table else m.document
        for name in sorted(set(value or ()) - names):
            yield f"{table or 'the manifest'} has {name!r}, which is not known here"


def _insecure(m: Manifest) -> Found:
    for key in _keys(m.document):
        if re.search(r"(?:^|\.)(?:insecure|debug|experimental)__", key):
            yield f"{key} is there"


def _equals(path: str, expected: Any) -> Callable[[Manifest], Found]:
    def rule(m: Manifest) -> Found:
        if m.get(path) != expected or type(m.get(path)) is not type(expected):
            yield f"{path}: expected {expected!r}, got {m.get(path)!r}"

    return rule


def _environment(m: Manifest) -> Found:
    env = m.get("loader.env") or {}
    for name, value in env.items():
        if not isinstance(value, str):
            yield f"loader.env.{name}: expected a string, got {value!r}: the host must not choose"
        elif name not in {*ENVIRONMENT, "LD_LIBRARY_PATH"}:
            yield f"loader.env.{name} is not one of {', '.join([*ENVIRONMENT, 'LD_LIBRARY_PATH'])}"


def _variable(name: str, expected: str) -> Callable[[Manifest], Found]:
    def rule(m: Manifest) -> Found:
        value = (m.get("loader.env") or {}).get(name)
        if isinstance(value, dict):
            return  # rule 7
        if value != expected:
            yield f"loader.env.{name}: expected {expected!r}, got {value!r}"

    return rule


def _arguments(m: Manifest) -> Found:
    start, argv = m.get("libos.entrypoint"), m.get("loader.argv")
    if not re.fullmatch(r"/python/bin/python3\.\d+", str(start)):
        yield f"libos.entrypoint: expected /python/bin/python3.N, got {start!r}"
    if argv != [start, *FLAGS]:
        yield f"loader.argv: expected the entrypoint and {' '.join(FLAGS)}, got {argv!r}"


def _log(m: Manifest) -> Found:
    if m.get("loader.log_level") not in ("error", "none"):
        yield f"loader.log_level: expected error or none, got {m.get('loader.log_level')!r}: the others may tell"


def bytes_of(text: object) -> int:
    """Bytes of a size as manifests write it, -1 where it is none."""
    found = re.fullmatch(r"([0-9]{1,6})([KMG])", text) if isinstance(text, str) else None
    return int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2]] if found else -1


def _enclave_size(m: Manifest) -> Found:
    size = bytes_of(m.get("sgx.enclave_size"))
    if size < LEAST_ENCLAVE or size.bit_count() != 1:
        least = LEAST_ENCLAVE >> 20
        yield f"sgx.enclave_size: expected a power of two from {least}M, got {m.get('sgx.enclave_size')!r}"


def _threads(m: Manifest) -> Found:
    count, least = m.get("sgx.max_threads"), OWN_THREADS + GRAMINE_THREADS + 1
    if type(count) is not int or not least <= count <= 4096:
        yield f"sgx.max_threads: expected {least} to 4096, got {count!r}"


def _stack(m: Manifest) -> Found:
    if bytes_of(m.get("sys.stack.size")) < LEAST_STACK:
        yield f"sys.stack.size: expected 2M or more, got {m.get('sys.stack.size')!r}"


def _pages(m: Manifest) -> Found:
    edmm, preheat = m.get("sgx.edmm_enable"), m.get("sgx.preheat_enclave")
    if type(edmm) is not bool or type(preheat) is not bool or (edmm and preheat):
        yield f"sgx.edmm_enable, sgx.preheat_enclave: at most one true, got {edmm!r} and {preheat!r}"


def _root(m: Manifest) -> Found:
    if m.get("fs.root") != {"type": "tmpfs"}:
        yield f"fs.root: expected a tmpfs, got {m.get('fs.root')!r}: else it is the host's current folder"


def _mounts(m: Manifest) -> Found:
    paths = [mount.get("path") for mount in m.mounts]
    for path in sorted({str(path) for path in paths if paths.count(path) > 1}):
        yield f"fs.mounts: {path} is there twice"
    for path in sorted(set(MOUNTS) - set(map(str, paths))):
        yield f"fs.mounts: {path} is missing"
    for mount in m.mounts:
        path, uri = str(mount.get("path")), str(mount.get("uri"))
        expected = f"file:{MOUNTS[path]}" if path in MOUNTS else f"file:{path[1:]}"
        if set(mount) != {"path", "uri"}:
            yield f"fs.mounts: {path}: expected path and uri alone, got {', '.join(sorted(mount))}"
        elif path == "/lib":
            if not re.fullmatch(r"file:/[\w./+-]+/gramine/runtime/glibc", uri) or ".." in uri:
                yield f"fs.mounts: /lib: expected Gramine's runtime, got {uri}"
        elif (path not in MOUNTS and not path.startswith("/models/")) or uri != expected:
            yield f"fs.mounts: {path}: expected a known path and {expected}, got {uri}"


def _allowed(m: Manifest) -> Found:
    allowed = m.get("sgx.allowed_files")
    if allowed != list(ALLOWED):
        yield f"sgx.allowed_files: expected {', '.join(ALLOWED)} alone, got {allowed!r}"


def _entries(m: Manifest) -> Found:
    entries = m.get("sgx.trusted_files") or []
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"uri", "sha256"}:
            yield f"sgx.trusted_files: expected uri and sha256, got {entry!r}"
        elif not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
            yield f"sgx.trusted_files: {entry['uri']}: expected 64 hex digits"
        elif not _is_relative(str(entry["uri"])):
            yield f"sgx.trusted_files: {entry['uri']}: expected file: and a path in the manifest's folder"


def _is_relative(uri: str) -> bool:
    path = PurePosixPath(uri.removeprefix("file:"))
    plain = uri.startswith("file:") and not path.is_absolute() and not {"..", "."} & set(path.parts)
    return plain and f"file:{path}" == uri


def _order(m: Manifest) -> Found:
    names = [name for name, _ in m.trusted]
    if names != sorted(set(names)):
        yield "sgx.trusted_files: not sorted, each once: two renders would differ"


def _places(m: Manifest) -> Found:
    tops = {"python", "site", "code", "lib", "config", "models", "start.py"}
    for name, _ in m.trusted:
        if name.split("/")[0] not in tops:
            yield f"sgx.trusted_files: {name} lies in none of {', '.join(sorted(tops))}"
    names = {name for name, _ in m.trusted}
    needed = {
        f"{str(m.get('libos.entrypoint'))[1:]}",
        "start.py",
        "config/strongroom.toml",
        "code/strongroom/launch.py",
    }
    for name in sorted(needed - names):
        yield f"sgx.trusted_files: {name} is missing"


def _runtime(m: Manifest) -> Found:
    for name, _ in m.trusted:
        if re.fullmatch(r"lib/(?:ld-linux-x86-64|libc|libm|libpthread|libdl|librt)\.so\.\d+", name):
            yield f"sgx.trusted_files: {name} is the host's; Gramine brings its own"


def _byte_code(m: Manifest) -> Found:
    for name, _ in m.trusted:
        if not name.endswith(".pyc"):
            continue
        head = b"" if m.folder is None else (m.folder / name).read_bytes()[4:8]
        if "__pycache__" in name or head != _UNCHECKED.to_bytes(4, "little"):
            yield f"sgx.trusted_files: {name}: byte code that is not of the unchecked-hash kind is stale at every start"


def _models(m: Manifest) -> Found:
    mounted = {str(mount.get("path"))[1:] for mount in m.mounts}
    for name, _ in m.trusted:
        if name.startswith("models/") and name not in mounted:
            yield f"sgx.trusted_files: {name} has no mount of its own: it would be hashed at every look into its folder"
        if name.startswith(("python/", "code/")) and name.endswith(_MODELS):
            yield f"sgx.trusted_files: {name}: a model in a folder that is searched for modules"


def _trimmed(m: Manifest) -> Found:
    unused = {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "ensurepip",
        "site-packages",
        "dist-packages",
        "__pycache__",
    }
    for name, _ in m.trusted:
        if name.startswith("python/") and unused & set(name.split("/")):
            yield f"sgx.trusted_files: {name}: never imported by a server"


def _files(m: Manifest) -> Found:
    if m.folder is None:
        return
    there = {
        path.relative_to(m.folder).as_posix()
        for path in m.folder.rglob("*")
        if path.is_file() and not path.name.startswith("strongroom.manifest")
    }
    for name, digest in m.trusted:
        if name not in there:
            yield f"sgx.trusted_files: {name} is not there"
        elif hashlib.sha256((m.folder / name).read_bytes()).hexdigest() != digest:
            yield f"sgx.trusted_files: {name} has another SHA-256"
    kept = tuple(uri.removeprefix("file:") for uri in ALLOWED)
    for name in sorted(there - {name for name, _ in m.trusted}):
        if not name.startswith(kept):
            yield f"{name} is in the folder and in no list: the server would see a file that it cannot read"


def _settings(m: Manifest) -> Found:
    if m.folder is None:
        return
    try:
        settings = config.load(m.folder / "config" / "strongroom.toml", variables={}, base=Path("/"))
    except InvalidConfig as error:
        yield f"config/strongroom.toml: {error.message}"
        return
    if settings.platform != "sgx":
        yield f"config/strongroom.toml: platform: expected sgx, got {settings.platform}"
    if settings.security.isolation != "in_process" or settings.security.admission != "strict":
        yield "config/strongroom.toml: security: expected isolation in_process with strict admission"
    if settings.state_dir != "/state":
        yield f"config/strongroom.toml: state_dir: expected /state, got {settings.state_dir}"
    host, _ = settings.address
    try:
        ipaddress.ip_address(host)
    except ValueError:
        yield f"config/strongroom.toml: bind: expected a literal address, got {host}: names are not resolved"
    for path in (*settings.endorsements, *(model.path for model in settings.preload)):
        if not path.startswith(("/endorsements/", "/models/")):
            yield f"config/strongroom.toml: {path} is neither in /endorsements nor in /models"


@dataclass(frozen=True)
class Rule:
    """One rule: its number, what it asks for, and its check."""

    number: int
    title: str
    check: Callable[[Manifest], Found]


_CHECKS: Final[tuple[tuple[str, Callable[[Manifest], Found]], ...]] = (
    ("only settings that are known", _known),
    ("nothing insecure, experimental or for debugging", _insecure),
    ("a production enclave", _equals("sgx.debug", False)),
    ("DCAP attestation", _equals("sgx.remote_attestation", "dcap")),
    ("unlisted files are refused", _equals("sgx.file_check_policy", "strict")),
    ("Gramine's library OS", lambda m: _libos(m)),
    ("an environment of fixed strings", _environment),
    ("onnxruntime's telemetry is off before its import", _variable("ORT_DISABLE_TELEMETRY", "1")),
    ("OpenSSL loads no foreign module", _variable("OPENSSL_CONF", "/dev/null")),
    ("libraries come from Gramine and from the list", _variable("LD_LIBRARY_PATH", LIBRARY_PATH)),
    ("fixed arguments, and the interpreter's own flags", _arguments),
    ("a log that tells nothing", _log),
    ("the size of the enclave", _enclave_size),
    ("threads", _threads),
    ("stacks", _stack),
    ("EDMM or preheating, not both", _pages),
    ("SIGTERM ends the server in good order", _equals("sys.enable_sigterm_injection", True)),
    ("the root is nobody's folder", _root),
    ("mounts: known ones, not encrypted (the store seals), no shared memory", _mounts),
    ("the host may write state and endorsements, never code", _allowed),
    ("a digest for every trusted file", _entries),
    ("one order", _order),
    ("files where they belong", _places),
    ("no C library of the host's", _runtime),
    ("no stale byte code", _byte_code),
    ("models out of the way of imports", _models),
    ("nothing that is never used", _trimmed),
    ("the files are these", _files),
    ("the security version is the measurement's", _equals("sgx.isvsvn", SECURITY_VERSION)),
    ("settings that work in there", _settings),
)


def _libos(m: Manifest) -> Found:
    uri = m.get("loader.entrypoint.uri")
    if not re.fullmatch(r"file:/[\w./+-]+/gramine/libsysdb\.so", str(uri)) or ".." in str(uri):
        yield f"loader.entrypoint.uri: expected file:/.../gramine/libsysdb.so, got {uri!r}"


RULES: Final = tuple(Rule(number, title, check) for number, (title, check) in enumerate(_CHECKS, 1))


def check(text: str, *, folder: Path | None) -> list[str]:
    """Every broken rule, `rule N (title): what`; empty where all are kept. `folder`: None leaves out the files."""
    try:
        manifest = Manifest(tomllib.loads(text), folder)
    except tomllib.TOMLDecodeError as error:
        return [f"rule 0 (TOML): {error}"]
    return [f"rule {rule.number} ({rule.title}): {line}" for rule in RULES for line in rule.check(manifest)]
