"""The sealed state record: everything a store knows, in one authenticated file (`docs/spec/sealed.md` §5).

Rules
  - The record is the only truth: a data file that it does not name does not exist, one that it names must
    be there.
  - Records are values. Each change makes a new one with the next epoch and the digest of the file it
    replaces, and is sealed under an epoch key that never sealed anything else (§5.4).
  - A model's facts and its wrapped key belong together: `Entry.facts` is the associated data of the wrapped
    key, so a key moved to another model, version or owner does not open (§5.3).
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from strongroom.errors import Failure, LimitExceeded, SealRefused, Unusable
from strongroom.models.info import FORMATS, ModelInfo
from strongroom.prepared import Form
from strongroom.sealed import (
    CHUNK_SIZE,
    HEADER_BYTES,
    MAX_CHUNK_SIZE,
    WRAPPED_BYTES,
    Random,
    Sealer,
    chunk_count,
    open_sealed,
    parse_container_header,
    sealed_size,
    unwrap_key,
    wrap_key,
)

MAGIC: Final = b"STRGSTAT"
VERSION: Final = 1
MAX_HEADER_BYTES: Final = 4096
"""Bytes of the cleartext header: four short members have about 250."""
MAX_RECORD_BYTES: Final = 64 << 20
"""Bytes of the record, which every change rewrites: room for some 50,000 ordinary models."""
OWNER_RECORD_BYTES: Final = MAX_RECORD_BYTES // 16
"""Bytes of the record that one owner's names and versions take at most, tombstones included: 20 KB for each of
the 200 versions that a server grants by default."""
MAX_STATE_BYTES: Final = MAX_RECORD_BYTES + (64 << 10)
"""Bytes of the state file: nothing larger is read."""
ACCESS: Final = ("private", "public")
TAKEN: Final = "taken"
GIVEN: Final = "given"
ENDS: Final = (TAKEN, GIVEN)
"""The ends of a hand-over at which a store can be."""
NO_PREDECESSOR: Final = "0" * 64

_START: Final = struct.Struct(">8sII")
_LENGTH: Final = struct.Struct(">Q")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){1,64}")


@dataclass(frozen=True, slots=True)
class StateHeader:
    """What a state file says in the clear, so that a stranger is told why it will not open (§5.2).

    None of it is believed before the record has opened: all of it is bound to the key that opens the record.
    """

    store_id: str
    sealing_class: str
    sealed_for: str
    security: str
    """Lower-case hex SHA-256 of the security configuration."""

    def encode(self) -> bytes:
        """The JSON object, in this member order and without spaces."""
        members = (
            ("sealed_for", self.sealed_for),
            ("sealing_class", self.sealing_class),
            ("security", self.security),
            ("store_id", self.store_id),
        )
        return _json(dict(members))


@dataclass(frozen=True, slots=True)
class StateFile:
    """A state file taken apart, with nothing checked but its form."""

    header: StateHeader
    prefix: bytes
    """Everything before the wrapped epoch key: the key's associated data."""
    length: int
    wrapped_key: bytes
    container: memoryview


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One stored, immutable version of a model. Names and numbers only: the bytes come from `Store.read`."""

    name: str
    version: int
    owner: str
    """A principal's id, or "" where the upload was anonymous."""
    access: str
    format: str
    sha256: str
    """Of the bytes as uploaded, lower-case hex."""
    canonical_sha256: str
    """Of the form that the engine runs, lower-case hex."""
    size: int
    """Bytes as uploaded."""
    created: int
    """Unix seconds, by the server's clock."""
    info: ModelInfo


@dataclass(frozen=True, slots=True)
class Entry:
    """A model version with what is needed to open its file."""

    model: ModelVersion
    file: str
    """Name of the data file: 32 random hex digits, no hint at the model."""
    file_id: bytes
    length: int
    """Bytes of plaintext in it: the form that the engine runs, so not `model.size`."""
    chunk_size: int
    chunks: int
    wrapped_key: bytes
    form: Form | None = None
    """What the engine made of it, sealed in files of its own under keys of its own (§5.6)."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all its data files."""
        return (self.file, *(stage.file for stage in (self.form.stages if self.form else ())))

    def facts(self) -> bytes:
        """Everything about the model and its file but the wrapped key: that key's associated data (§5.3)."""
        model = self.model
        return b"strongroom sealed v1 model\n" + _json(
            {"name": model.name, "owner": model.owner, **_facts(self)}
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A model name with its versions, oldest first. Without versions it is a tombstone (§5.3).

    The owner and the next number outlive the versions: a name cannot be taken over after a deletion, and a
    version number never means two different models.
    """

    name: str
    owner: str
    next_version: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Handing:
    """The store is at one end of a hand-over (docs/spec/reseal.md §6), and nothing in it may change: `taken`, this copy
    came from another server, which has not yet let go of it; `given`, this copy was let go of.
    """

    end: str
    transfer: str
    """Names the hand-over, 32 hex digits."""
    key: bytes
    """By which the two ends prove to one another that they were in it, 32 bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """The whole state at one epoch. `previous` is the SHA-256 of the state file that this one replaced."""

    epoch: int
    previous: str
    names: tuple[Name, ...]
    handing: Handing | None = None

    def with_entry(self, entry: Entry, *, previous: str) -> Record:
        """The next record, with a new version; the caller has checked the owner and the version number."""
        model = entry.model
        old = next((name for name in self.names if name.name == model.name), None)
        if old is None:
            names = (*self.names, Name(model.name, model.owner, model.version + 1, (entry,)))
        else:
            new = replace(old, next_version=model.version + 1, entries=(*old.entries, entry))
            names = tuple(new if name is old else name for name in self.names)
        return Record(epoch=self.epoch + 1, previous=previous, names=names)

    def with_form(self, entry: Entry, form: Form | None, *, previous: str) -> Record:
        """The next record, in which a version has this form, or none."""
        changed = replace(entry, form=form)
        names = tuple(
            replace(n, entries=tuple(changed if e is entry else e for e in n.entries)) for n in self.names
        )
        return replace(self, epoch=self.epoch + 1, previous=previous, names=names)

    def without_forms(self) -> Record:
        """The same record, no version of which has a form: for another server, which makes its own."""
        names = tuple(replace(n, entries=tuple(replace(e, form=None) for e in n.entries)) for n in self.names)
        return replace(self, names=names)

    def with_handing(self, handing: Handing | None, *, previous: str) -> Record:
        """The next record, at this end of a hand-over, or at none any more."""
        return replace(self, epoch=self.epoch + 1, previous=previous, handing=handing)

    def without(self, name: str, versions: frozenset[int], *, previous: str) -> Record:
        """The next record, without these versions of a name: their wrapped keys are gone, the name stays."""
        names = tuple(
            replace(n, entries=tuple(e for e in n.entries if e.model.version not in versions))
            if n.name == name
            else n
            for n in self.names
        )
        return Record(epoch=self.epoch + 1, previous=previous, names=names)


def encode_record(record: Record) -> bytes:
    """The record as JSON bytes, always the same for the same record.

    Raises:
        LimitExceeded: larger than a record may be (code `store_record_full`).
    """
    data = _json(
        {
            "epoch": record.epoch,
            "previous": record.previous,
            "handing": _handing_json(record.handing),
            "names": [_name_json(n) for n in record.names],
        }
    )
    if len(data) > MAX_RECORD_BYTES:
        message = f"the store's record would have {len(data)} bytes, at most {MAX_RECORD_BYTES} are kept"
        raise LimitExceeded(message, code="store_record_full")
    return data


def check_share(record: Record, *, owner: str) -> None:
    """Returns if the owner's names, versions and tombstones leave the others room (§5.3).

    Raises:
        LimitExceeded: they take more than `OWNER_RECORD_BYTES` (code `owner_record_full`).
    """
    size = sum(len(_json(_name_json(name))) for name in record.names if name.owner == owner)
    if size > OWNER_RECORD_BYTES:
        raise LimitExceeded(
            f"the owner's models would take {size} bytes of the store's record, at most {OWNER_RECORD_BYTES}",
            code="owner_record_full",
        )


def parse_record(data: bytes | bytearray) -> Record:
    """Reads what `encode_record` wrote, and nothing else: the result encodes to the very same bytes.

    Raises:
        SealRefused: any other bytes (code `store_record_malformed`).
    """
    try:
        value = json.loads(bytes(data))
        record = _record(value)
        if encode_record(record) != data:
            _malformed("not the canonical form")
    except (ValueError, RecursionError, Unusable) as exc:
        # ValueError covers JSON and UTF-8; Unusable is what the model metadata's own parser raises.
        raise SealRefused(
            "the store's record is not of this release's form", code="store_record_malformed"
        ) from exc
    return record


def verify_entry(entry: Entry) -> None:
    """Returns only for an entry that will be read again as it is: a record with any other would open no more.

    Raises:
        Failure: the entry, or the metadata in it, is not of the form that its own parser takes.
    """
    value = json.loads(_json(_entry_json(entry)))
    try:
        same = _entry(value, name=entry.model.name, owner=entry.model.owner) == entry
    except (SealRefused, Unusable) as exc:
        raise Failure("a model version is not of the form that can be stored") from exc
    if not same:
        raise Failure("a model version would be read as something else than what was stored")


def seal_state(record: Record, *, header: StateHeader, state_key: bytes, random: Random) -> bytes:
    """The state file's bytes: the record under a fresh epoch key, that key under the state key (§5.4)."""
    body = encode_record(record)
    sealer = Sealer.new(chunk_size=CHUNK_SIZE, random=random)
    public = header.encode()
    prefix = _START.pack(MAGIC, VERSION, len(public)) + public + _LENGTH.pack(len(body))
    wrapped = wrap_key(state_key, sealer.data_key, associated=prefix, random=random)
    return b"".join((prefix, wrapped, sealer.header, *sealer.update(body), sealer.finish()))


def parse_state_file(data: bytes) -> StateFile:
    """Takes a state file apart (§5.1). Nothing in the result is authentic yet.

    Raises:
        SealRefused: not of the form of a state file (code `store_malformed`).
    """
    if len(data) < _START.size:
        _malformed_file(f"it has only {len(data)} bytes")
    magic, version, header_bytes = _START.unpack_from(data)
    if magic != MAGIC:
        _malformed_file("it does not begin with the magic bytes")
    if version != VERSION:
        _malformed_file(f"version {VERSION} expected, got {version}")
    key_at = _START.size + header_bytes + _LENGTH.size
    container_at = key_at + WRAPPED_BYTES
    if header_bytes > MAX_HEADER_BYTES or len(data) < container_at + HEADER_BYTES:
        _malformed_file("its header does not fit in it")
    header = _header(data[_START.size : key_at - _LENGTH.size])
    (length,) = _LENGTH.unpack_from(data, key_at - _LENGTH.size)
    container = memoryview(data)[container_at:]
    # Before `open_state` allocates a buffer: a length that the file cannot hold is a lie.
    if not 0 < length <= MAX_RECORD_BYTES or sealed_size(length, chunk_size=CHUNK_SIZE) != len(container):
        _malformed_file("its length is not that of the record it claims to hold")
    return StateFile(
        header=header,
        prefix=data[:key_at],
        length=length,
        wrapped_key=data[key_at:container_at],
        container=container,
    )


def check_header(header: StateHeader, *, sealing_class: str, sealed_for: str, security: str) -> None:
    """Tells a stranger why the store will not open (§5.5). What passes is authenticated later, with the
    record.

    Raises:
        SealRefused: `store_other_class`, `store_other_configuration` or `store_other_measurement`.
    """
    if header.sealing_class != sealing_class:
        message = (
            f"the store is sealed by a root of class {header.sealing_class!a}, this one is {sealing_class!a}"
        )
        raise SealRefused(message, code="store_other_class")
    # Before the measurement, which covers the configuration too: the narrower reason says more.
    if header.security != security:
        message = f"the store is sealed for security configuration {header.security}, this one is {security}"
        raise SealRefused(message, code="store_other_configuration")
    if header.sealed_for != sealed_for:
        message = f"the store is sealed for {header.sealed_for}, this server is {sealed_for}"
        raise SealRefused(message, code="store_other_measurement")


def open_state(file: StateFile, *, state_key: bytes) -> Record:
    """Opens the record and with it authenticates the header (§5.5).

    Raises:
        SealRefused: `store_other_root` (sealed under another platform root), `store_tampered` (altered) or
            `store_record_malformed`.
    """
    container = file.container

    def read(offset: int, buffer: memoryview) -> int:
        piece = container[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    try:
        epoch_key = unwrap_key(state_key, file.wrapped_key, associated=file.prefix)
    except SealRefused as exc:
        if exc.code == "seal_commitment":
            message = "the store was sealed under another root key, or the start of its file was altered"
            raise SealRefused(message, code="store_other_root") from exc
        raise SealRefused("the store's header or key was altered", code="store_tampered") from exc
    try:
        body = open_sealed(
            read,
            data_key=epoch_key,
            file_id=parse_container_header(bytes(container[:HEADER_BYTES])).file_id,
            chunk_size=CHUNK_SIZE,
            length=file.length,
            file_size=len(container),
        )
    except SealRefused as exc:
        raise SealRefused("the store's record was altered", code="store_tampered") from exc
    return parse_record(body)


# JSON forms. Members are written in one fixed order and without spaces, so that equal values have equal
# bytes; `ensure_ascii` keeps even lone surrogates (legal in JSON strings, so possible in feature names)
# intact.


def _json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, ValueError):
        # From None: the foreign message quotes the value.
        raise Failure("model metadata holds a value that JSON cannot carry") from None


def _facts(entry: Entry) -> dict[str, Any]:
    model = entry.model
    return {
        "version": model.version,
        "access": model.access,
        "format": model.format,
        "sha256": model.sha256,
        "canonical_sha256": model.canonical_sha256,
        "size": model.size,
        "created": model.created,
        "file": entry.file,
        "file_id": entry.file_id.hex(),
        "length": entry.length,
        "chunk_size": entry.chunk_size,
        "chunks": entry.chunks,
        "info": model.info.to_json(),
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    # Without a form an entry is written as it was before there were forms: older records open, and stay as they are.
    form = {} if entry.form is None else {"form": entry.form.to_json()}
    return {**_facts(entry), "wrapped_key": entry.wrapped_key.hex(), **form}


def _name_json(name: Name) -> dict[str, Any]:
    entries = [_entry_json(entry) for entry in name.entries]
    return {"name": name.name, "owner": name.owner, "next_version": name.next_version, "versions": entries}


def _handing_json(handing: Handing | None) -> dict[str, str] | None:
    if handing is None:
        return None
    return {"end": handing.end, "transfer": handing.transfer, "key": handing.key.hex()}


def _header(data: bytes) -> StateHeader:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise SealRefused("the store's header is not JSON", code="store_malformed") from exc
    if not isinstance(value, dict) or not all(isinstance(member, str) for member in value.values()):
        _malformed_file("its header is not an object of strings")
    if set(value) != {"sealed_for", "sealing_class", "security", "store_id"}:
        _malformed_file("its header has other members than expected")
    header = StateHeader(**value)
    forms = ((_HEX32, header.store_id), (_HEX64, header.security), (_HEX, header.sealed_for))
    if not all(form.fullmatch(text) for form, text in forms) or header.encode() != data:
        _malformed_file("its header is not of the canonical form")
    return header


def _record(value: object) -> Record:
    members = _members(value, "epoch", "previous", "handing", "names")
    names = tuple(_name(entry) for entry in _list(members["names"]))
    entries = [entry for name in names for entry in name.entries]
    if len({name.name for name in names}) != len(names):
        _malformed("a name stands twice")
    files = [file for entry in entries for file in entry.files]
    ids = [e.file_id for e in entries] + [s.file_id for e in entries if e.form for s in e.form.stages]
    if len(set(files)) != len(files) or len(set(ids)) != len(ids):
        _malformed("two versions share a file")
    return Record(
        epoch=_number(members["epoch"], 1),
        previous=_text(members["previous"], _HEX64),
        names=names,
        handing=None if members["handing"] is None else _handing(members["handing"]),
    )


def _handing(value: object) -> Handing:
    members = _members(value, "end", "transfer", "key")
    if members["end"] not in ENDS:
        _malformed("an unknown end of a hand-over")
    return Handing(
        end=members["end"],
        transfer=_text(members["transfer"], _HEX32),
        key=bytes.fromhex(_text(members["key"], _HEX64)),
    )


def _name(value: object) -> Name:
    members = _members(value, "name", "owner", "next_version", "versions")
    name, owner = members["name"], members["owner"]
    if not isinstance(name, str) or not isinstance(owner, str):
        _malformed("a name or owner is not a string")
    entries = tuple(_entry(entry, name=name, owner=owner) for entry in _list(members["versions"]))
    numbers = [entry.model.version for entry in entries]
    next_version = _number(members["next_version"], 2)
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= next_version):
        _malformed("version numbers do not rise below the next one")
    return Name(name=name, owner=owner, next_version=next_version, entries=entries)


def _entry(value: object, *, name: str, owner: str) -> Entry:
    form = ("form",) if isinstance(value, dict) and "form" in value else ()
    members = _members(
        value, "version", "access", "format", "sha256", "canonical_sha256", "size", "created", "file",
        "file_id", "length", "chunk_size", "chunks", "info", "wrapped_key", *form,
    )  # fmt: skip
    if members["access"] not in ACCESS or members["format"] not in FORMATS:
        _malformed("access or format is none of the known ones")
    length = _number(members["length"], 1)
    chunk_size = _number(members["chunk_size"], 1)
    if chunk_size > MAX_CHUNK_SIZE or members["chunks"] != chunk_count(length, chunk_size=chunk_size):
        _malformed("the number of chunks is not that of the length")
    wrapped = _text(members["wrapped_key"], re.compile(rf"[0-9a-f]{{{2 * WRAPPED_BYTES}}}"))
    model = ModelVersion(
        name=name,
        version=_number(members["version"], 1),
        owner=owner,
        access=members["access"],
        format=members["format"],
        sha256=_text(members["sha256"], _HEX64),
        canonical_sha256=_text(members["canonical_sha256"], _HEX64),
        size=_number(members["size"], 1),
        created=_number(members["created"], 0),
        info=ModelInfo.from_json(members["info"]),
    )
    if model.info.format != model.format:
        _malformed("the metadata is of another format than the model")
    return Entry(
        model=model,
        file=_text(members["file"], _HEX32),
        file_id=bytes.fromhex(_text(members["file_id"], _HEX64)),
        length=length,
        chunk_size=chunk_size,
        chunks=_number(members["chunks"], 1),
        wrapped_key=bytes.fromhex(wrapped),
        form=Form.from_json(members["form"]) if form else None,
    )


def _members(value: object, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        _malformed("an object has other members than expected")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        _malformed("a list is missing")
    return value


def _number(value: object, least: int) -> int:
    # bool is an int to isinstance, hence type().
    if type(value) is not int or not least <= value < 1 << 63:
        _malformed("a number is out of range")
    return value


def _text(value: object, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        _malformed("a string is not of its form")
    return value


def _malformed(reason: str) -> NoReturn:
    raise SealRefused(f"the store's record: {reason}", code="store_record_malformed")


def _malformed_file(reason: str) -> NoReturn:
    raise SealRefused(f"this is not a state file of this release: {reason}", code="store_malformed")
