"""The server's settings: one TOML file, then environment variables `STRONGROOM_*` over it.

Rules
  - This is the only module that reads the process environment.
  - A setting exists in exactly one place: its dataclass field (here, in `limit_settings` or in
    `platform_settings`), which carries its default, unit, range and meaning. `SETTINGS` is made from the
    fields, docs/configuration.md from `SETTINGS`; a test compares.
  - Unknown names are refused, in the file and in the environment: a misspelt limit would otherwise be no
    limit. Only the variables that Kubernetes plants for a service called "strongroom" are passed over.
  - The host writes this file. What it may change unnoticed is its own business (ports, limits); what decides
    confidentiality (`[security]`, the digests of `[[preload]]`) is attested and part of the measurement.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from strongroom.errors import InvalidConfig
from strongroom.limit_settings import Limits as Limits
from strongroom.platform_settings import KeyRelease as KeyRelease
from strongroom.platform_settings import Nitro as Nitro
from strongroom.platform_settings import Sgx as Sgx
from strongroom.platform_settings import Simulated as Simulated
from strongroom.platform_settings import Snp as Snp
from strongroom.platform_settings import Tdx as Tdx
from strongroom.platform_settings import Tpm as Tpm
from strongroom.platform_settings import setting as _setting
from strongroom.worker_settings import WorkerSettings as WorkerSettings

PREFIX: Final = "STRONGROOM_"
_CLIENT: Final = frozenset({"STRONGROOM_URL", "STRONGROOM_POLICY", "STRONGROOM_KEY"})
"""What the command's client side takes from the environment; a shell that exported them can start a server too."""
_KUBERNETES: Final = re.compile(r"STRONGROOM_(SERVICE_.*|PORT|PORT_\d+_.*)")
_MAX_FILE: Final = 1 << 20  # bytes of a configuration file; ours are a few hundred


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """`[security]`: attested. Clients see these in the keyset, and their policies can rule on them."""

    isolation: str = _setting(
        "owner",
        "What shares a process when models run: `owner`, one data owner's requests to one model (callers without a "
        "key: one request); `request`, nothing; `model`, all requests to one model; `in_process`, everything, for "
        "systems that cannot confine processes (a library OS, macOS), and with `strict` admission only.",
        choices=("owner", "request", "model", "in_process"),
    )
    sandbox: tuple[str, ...] = _setting(
        ("closed_descriptors", "no_new_privileges", "not_dumpable", "rlimits", "seccomp"),
        "Layers that must take hold in every process that runs a model, or the server does not start; it promises "
        "these and uses all that there are (docs/sandbox.md). The default ones are the fewest that it takes.",
        unit="list",
    )
    anonymous_upload: bool = _setting(
        False, "Whether models are taken from callers without a key; such models are public."
    )
    admission: str = _setting(
        "strict",
        "What is asked of an uploaded model (docs/spec/admission.md): `strict`, a bound for its memory, work and "
        "loops; `permissive` also takes models without one, which only limits at run time then stop.",
        choices=("strict", "permissive"),
    )
    verify_on_load: str = _setting(
        "tags",
        "What the store checks when it reads a model: the authentication tags of every chunk, or also the "
        "SHA-256 of the whole. The engine gets what was admitted only with its digest; a prepared form, whose tags are "
        "bound to that digest, is used with `tags` alone.",
        choices=("tags", "sha256"),
    )
    handover_policy: str = _setting(
        "",
        "Policy file by which this server gives its store to a newer one, and takes it over from an older one "
        "(docs/spec/reseal.md). Its digest is attested. Empty: no hand-over, ever.",
        unit="path",
    )
    recovery_recipient: str = _setting(
        "",
        "Public key, age1..., whose holder can open this server's store on the day the machine dies "
        "(docs/spec/recovery.md). Attested. Empty: nobody can.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preload:
    """`[[preload]]`: a model shipped with the server, admitted at start; its digest is measured."""

    name: str = _setting("", "Name under which it is served; nobody can upload under it.")
    path: str = _setting("", "The model file.", unit="path")
    access: str = _setting(
        "public",
        "Who may run it. A preloaded model has no owner, so nobody could run it were it private.",
        choices=("public",),
    )
    format: str = _setting(
        "",
        "Its format. Empty: found out from its bytes.",
        choices=("", "onnx", "xgboost-json", "xgboost-ubj"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a server is told. `load` makes one; paths in it are absolute."""

    platform: str = _setting(
        "auto",
        "The TEE this server runs in. `auto` finds SGX (Gramine), TDX, SEV-SNP or Nitro, or refuses to start: "
        "the simulated TEE, which protects nothing from the host, has to be asked for, and so has a TPM, which hides "
        "no memory.",
        choices=("auto", "sgx", "tdx", "snp", "nitro", "tpm", "simulated"),
    )
    bind: str = _setting(
        "127.0.0.1:8443", "Address and port to listen on; port 0 takes a free one.", unit="host:port"
    )
    state_dir: str = _setting(
        "strongroom-state", "Folder of the sealed store; made if it is missing.", unit="path"
    )
    hosts: tuple[str, ...] = _setting(
        ("localhost", "127.0.0.1", "::1"),
        "Names and addresses in the TLS certificate, besides that of `bind`.",
        unit="list",
    )
    epoch_s: int = _setting(
        43_200,
        "Life of one set of keys (TLS and receipt key); the next is made before its end.",
        unit="seconds",
        low=10,
        high=7 * 86_400,
    )
    endorsements: tuple[str, ...] = _setting(
        (),
        "Files that go out with every evidence answer: DCAP bundles, certificates, release manifests. They are "
        "signed by others and decide nothing; read again for every answer, so that they can be renewed in place.",
        unit="paths",
    )
    shutdown_s: int = _setting(
        30, "Time for requests under way to end after SIGTERM or SIGINT.", unit="seconds", low=0, high=3600
    )
    limits: Limits = field(default_factory=Limits)
    simulated: Simulated = field(default_factory=Simulated)
    sgx: Sgx = field(default_factory=Sgx)
    tdx: Tdx = field(default_factory=Tdx)
    snp: Snp = field(default_factory=Snp)
    nitro: Nitro = field(default_factory=Nitro)
    tpm: Tpm = field(default_factory=Tpm)
    key_release: KeyRelease = field(default_factory=KeyRelease)
    security: Security = field(default_factory=Security)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    preload: tuple[Preload, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `bind`."""
        return parse_bind(self.bind)

    @property
    def state_path(self) -> Path:
        """The state folder."""
        return Path(self.state_dir)

    @property
    def root_key_path(self) -> Path:
        """The simulated TEE's root key."""
        return Path(self.simulated.root_key) if self.simulated.root_key else self.state_path / "sim-root.pem"

    @property
    def tpm_root_path(self) -> Path:
        """The sealed root of a server on a TPM."""
        return self.state_path / "tpm-root.json"

    @property
    def anchor_path(self) -> Path:
        """The simulated TEE's anchor."""
        return self.state_path / "sim-anchor.json"

    def operator_key_path(self, platform: str) -> Path:
        """The operator's sealing key, where the platform ("tdx", "nitro") gives none."""
        named = (self.nitro if platform == "nitro" else self.tdx).operator_key
        return Path(named) if named else self.state_path / "operator-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the reference."""

    section: str  # "" for the top level, "limits", ..., "preload"
    name: str
    default: Any
    unit: str
    low: int | None
    high: int | None
    choices: tuple[str, ...]
    text: str

    @property
    def key(self) -> str:
        """How messages name it: `bind`, `limits.model_bytes`."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it; empty for members of `[[preload]]`, which have none."""
        return "" if self.section == "preload" else PREFIX + self.key.replace(".", "_").upper()


_SECTIONS: Final[dict[str, type]] = {
    "": Config,
    "limits": Limits,
    "simulated": Simulated,
    "sgx": Sgx,
    "tdx": Tdx,
    "snp": Snp,
    "nitro": Nitro,
    "tpm": Tpm,
    "key_release": KeyRelease,
    "security": Security,
    "workers": WorkerSettings,
    "preload": Preload,
}


def _settings() -> tuple[Setting, ...]:
    rows = []
    for section, kind in _SECTIONS.items():
        entry: Field[Any]
        for entry in fields(kind):
            if "text" in entry.metadata:
                rows.append(
                    Setting(section=section, name=entry.name, default=entry.default, **entry.metadata)
                )
    return tuple(rows)


SETTINGS: Final[tuple[Setting, ...]] = _settings()
"""Every setting there is, in the order of the reference."""


def environment() -> dict[str, str]:
    """A copy of this process's environment: what `load` and the launcher look at."""
    return dict(os.environ)


def load_config(path: Path | None) -> Config:
    """Reads the configuration as a server started here and now would: see `load`.

    Raises:
        InvalidConfig: see `load`.
    """
    return load(path, variables=environment(), base=Path.cwd())


def load(path: Path | None, *, variables: Mapping[str, str], base: Path) -> Config:
    """Reads the configuration file, if one is named, and lays the `STRONGROOM_*` of `variables` over it.

    Relative paths in the file are relative to the file, those in variables and defaults to `base`.

    Raises:
        InvalidConfig: codes `config_unreadable`, `config_malformed`, `config_unknown_setting`,
            `config_wrong_type`, `config_out_of_range`, `config_preload`.
    """
    document = {} if path is None else _read(path)
    folder = base if path is None else path.resolve().parent
    for name in document.keys() - {entry.name for entry in fields(Config)}:
        raise InvalidConfig(f"unknown setting {name!r}", code="config_unknown_setting")
    chosen: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for section in (name for name in _SECTIONS if name != "preload"):
        table = (
            {k: v for k, v in document.items() if k not in _SECTIONS}
            if not section
            else document.get(section, {})
        )
        chosen[section] = _table(section, table, folder)
    for setting, text in _from_environment(variables):
        chosen[setting.section][setting.name] = _check(setting, _parse(setting, text), base)
    for setting in SETTINGS:  # a default path is relative to `base` too
        if setting.unit == "path" and setting.default and setting.section != "preload":
            chosen[setting.section].setdefault(setting.name, str(base / setting.default))
    config = Config(
        **chosen[""],
        limits=Limits(**chosen["limits"]),
        simulated=Simulated(**chosen["simulated"]),
        sgx=Sgx(**chosen["sgx"]),
        tdx=Tdx(**chosen["tdx"]),
        snp=Snp(**chosen["snp"]),
        nitro=Nitro(**chosen["nitro"]),
        tpm=Tpm(**chosen["tpm"]),
        key_release=KeyRelease(**chosen["key_release"]),
        security=Security(**chosen["security"]),
        workers=WorkerSettings(**chosen["workers"]),
        preload=_preload(document.get("preload", []), folder),
    )
    parse_bind(config.bind)
    return config


def parse_bind(text: str) -> tuple[str, int]:
    """Splits `host:port`; an IPv6 host stands in brackets.

    Raises:
        InvalidConfig: anything else (code `config_out_of_range`).
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise InvalidConfig(
            f"bind: expected HOST:PORT or [IPv6]:PORT, got {text!r}", code="config_out_of_range"
        )
    return match[1] or match[2], int(match[3])


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as exc:
        raise InvalidConfig(f"{path}: cannot be read", code="config_unreadable") from exc
    if len(data) > _MAX_FILE:
        raise InvalidConfig(f"{path}: longer than {_MAX_FILE} bytes", code="config_unreadable")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        where = (
            str(exc).rpartition("(")[2].rstrip(")")
            if isinstance(exc, tomllib.TOMLDecodeError)
            else "not UTF-8 text"
        )
        raise InvalidConfig(f"{path}: not valid TOML ({where})", code="config_malformed") from exc


def _table(section: str, table: object, folder: Path) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InvalidConfig(f"{section}: expected a table", code="config_wrong_type")
    known = {setting.name: setting for setting in SETTINGS if setting.section == section}
    for name in table.keys() - known.keys():
        shown = f"{section}.{name}" if section else name
        raise InvalidConfig(f"unknown setting {shown!r}", code="config_unknown_setting")
    return {name: _check(known[name], value, folder) for name, value in table.items()}


def _preload(entries: object, folder: Path) -> tuple[Preload, ...]:
    if not isinstance(entries, list):
        raise InvalidConfig("preload: expected [[preload]] tables", code="config_wrong_type")
    models = tuple(Preload(**_table("preload", entry, folder)) for entry in entries)
    for model in models:
        if (
            not model.path
            or re.fullmatch(r"[A-Za-z0-9._-]+", model.name) is None
            or not model.name.strip(".")
        ):
            raise InvalidConfig(
                "preload: each needs a path, and a name of letters, digits, '.', '_' and '-'",
                code="config_preload",
            )
    if len({model.name for model in models}) != len(models):
        raise InvalidConfig("preload: two models have the same name", code="config_preload")
    return models


def _from_environment(variables: Mapping[str, str]) -> list[tuple[Setting, str]]:
    known = {setting.variable: setting for setting in SETTINGS if setting.variable}
    found = []
    for name, text in variables.items():
        if name in known:
            found.append((known[name], text))
        elif name.startswith(PREFIX) and name not in _CLIENT and not _KUBERNETES.fullmatch(name):
            raise InvalidConfig(f"unknown environment variable {name}", code="config_unknown_setting")
    return found


def _parse(setting: Setting, text: str) -> object:
    """The value of an environment variable, in the type of the setting's default."""
    if isinstance(setting.default, bool):
        if text not in ("true", "false"):
            raise InvalidConfig(f"{setting.variable}: expected true or false", code="config_wrong_type")
        return text == "true"
    if isinstance(setting.default, int):
        if re.fullmatch(r"\d{1,18}", text) is None:
            raise InvalidConfig(f"{setting.variable}: expected a whole number", code="config_wrong_type")
        return int(text)
    if isinstance(setting.default, tuple):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not _of_numbers(setting):
            return parts
        if not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
            raise InvalidConfig(f"{setting.variable}: expected whole numbers", code="config_wrong_type")
        return [int(part) for part in parts]
    return text


def _check(setting: Setting, value: object, folder: Path) -> Any:
    """The value in its final form, or a refusal that says what was expected."""
    if isinstance(setting.default, tuple) and _of_numbers(setting):
        if not isinstance(value, list) or not all(type(part) is int for part in value):
            raise InvalidConfig(f"{setting.key}: expected a list of whole numbers", code="config_wrong_type")
        low, high = setting.low or 0, setting.high or 0
        if len(set(value)) != len(value) or not all(low <= part <= high for part in value):
            raise InvalidConfig(
                f"{setting.key}: expected numbers from {low} to {high}, each once", code="config_out_of_range"
            )
        return tuple(sorted(value))
    if isinstance(setting.default, tuple):
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise InvalidConfig(f"{setting.key}: expected a list of strings", code="config_wrong_type")
        if setting.unit == "paths":
            if any("\0" in part or not part for part in value):
                raise InvalidConfig(f"{setting.key}: not a path", code="config_out_of_range")
            return tuple(str(folder / part) for part in value)
        return tuple(value)
    if type(value) is not type(setting.default):  # bool is an int to isinstance
        raise InvalidConfig(
            f"{setting.key}: expected {_KINDS[type(setting.default)]}", code="config_wrong_type"
        )
    if setting.choices and value not in setting.choices:
        wanted = ", ".join(repr(choice) for choice in setting.choices)
        raise InvalidConfig(f"{setting.key}: expected {wanted}, got {value!r}", code="config_out_of_range")
    if isinstance(value, int) and not isinstance(value, bool):
        low, high = setting.low or 0, setting.high if setting.high is not None else 1 << 62
        if not low <= value <= high:
            raise InvalidConfig(
                f"{setting.key}: expected {low} to {high}, got {value}", code="config_out_of_range"
            )
    if setting.unit == "path" and value:
        if "\0" in str(value):
            raise InvalidConfig(f"{setting.key}: not a path", code="config_out_of_range")
        return str(folder / str(value))
    return value


def _of_numbers(setting: Setting) -> bool:
    """Whether a list is one of numbers, not of strings."""
    return bool(setting.default) and isinstance(setting.default[0], int)


_KINDS: Final[dict[type, str]] = {str: "a string", int: "a whole number", bool: "true or false"}


def reference() -> str:
    """The tables of docs/configuration.md, in Markdown."""
    titles = {"": "Top level", "preload": "`[[preload]]`, any number"}
    parts = []
    for section, kind in _SECTIONS.items():
        parts.append(f"## {titles.get(section, f'`[{section}]`')}\n")
        if section:
            text = (kind.__doc__ or "").split(":", 1)[1].strip()
            parts.append(text[:1].upper() + text[1:] + "\n")
        parts.append("| setting | default | unit | range | variable | meaning |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        for setting in SETTINGS:
            if setting.section == section:
                parts.append(_row(setting))
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"


def _row(setting: Setting) -> str:
    default = setting.default
    if isinstance(default, bool):
        shown = str(default).lower()
    elif isinstance(default, tuple):
        shown = json.dumps(list(default))
    else:
        shown = str(default) if isinstance(default, int) else f'"{default}"'
    if setting.choices:
        allowed = ", ".join(f'`"{choice}"`' for choice in setting.choices)
    else:
        allowed = f"{setting.low} to {setting.high}" if setting.high is not None else ""
    variable = f"`{setting.variable}`" if setting.variable else ""
    return f"| `{setting.name}` | `{shown}` | {setting.unit} | {allowed} | {variable} | {setting.text} |"
