"""The attester: evidence about the TEE that this code runs in, and the sealing root that the TEE gives it.

What every kind of TEE gives (`Attester`), the simulated TEE, and what operators add in files. The hardware is in
`tee`.

The simulated TEE's root is an Ed25519 key in a file of the operator's; evidence is signed with it, and the sealing
root is derived from it for the very measurement, as a CPU derives
an MRENCLAVE key: other code gets another root and cannot open the store. None of it protects anything from
whoever can read that file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from strongroom import keys
from strongroom.attest import sim
from strongroom.attest.evidence import Evidence
from strongroom.errors import InvalidConfig
from strongroom.measure import SECURITY_VERSION

MAX_ROOT_FILE = 4096
"""Bytes of a root key's file; one takes 119."""
_ENDORSEMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


class Attester(Protocol):
    """What a TEE gives the code inside: evidence of the format `format`, and a sealing root for `measurement`
    (hex).
    """

    @property
    def format(self) -> str:
        """The evidence format."""

    @property
    def measurement(self) -> str:
        """The measurement of the code that runs here, as its evidence will state it."""

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """Evidence that carries `report_data` (64 bytes, from `attest.evidence`; never chosen by a
        caller). `nonce`: what it answers, the client's nonce or a batch's root, for formats with a place of its own
        for it (`nitro`); b"" where it answers none. The others have it in the report data alone.
        """

    def sealing_root(self) -> keys.SealingRoot:
        """The root that every sealing key is derived from."""


@dataclass(frozen=True, slots=True)
class ReleasedAttester:
    """An attester of a platform without a sealing key, with the root that a broker released to it."""

    attester: Attester
    root: keys.SealingRoot

    @property
    def format(self) -> str:
        """The evidence format."""
        return self.attester.format

    @property
    def measurement(self) -> str:
        """The measurement of the code that runs here."""
        return self.attester.measurement

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """The attester's evidence."""
        return self.attester.evidence(report_data, now=now, nonce=nonce)

    def sealing_root(self) -> keys.SealingRoot:
        """The one that was released."""
        return self.root


@dataclass(frozen=True, slots=True)
class SimulatedAttester:
    """The simulated TEE. SIMULATED: it protects nothing from whoever holds `root_key`."""

    root_key: Ed25519PrivateKey = field(repr=False)
    measurement: str

    @property
    def format(self) -> str:
        """ "sim"."""
        return sim.FORMAT

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """Simulated evidence that carries `report_data` (64 bytes), made at `now`.

        Raises:
            MalformedInput: code `evidence_malformed`, an argument out of form.
        """
        data = sim.issue(
            root_key=self.root_key,
            measurement=self.measurement,
            svn=SECURITY_VERSION,
            report_data=report_data,
            now=now,
        )
        return Evidence(format=sim.FORMAT, data=data, endorsements=())

    def sealing_root(self) -> keys.SealingRoot:
        """The sealing root of this measurement under this root key."""
        return keys.simulated_root(self.root_key, measurement=self.measurement)


def load_operator_key(path: Path) -> keys.SealingRoot:
    """Returns the sealing root of the operator's key in the file `path`.

    Raises:
        InvalidConfig: as `read_operator_key`.
    """
    return keys.operator_root(read_operator_key(path))


def read_operator_key(path: Path) -> bytes:
    """Returns the key (32 bytes) in the file `path`: 64 hex digits, mode 0600.

    Raises:
        InvalidConfig: no such key, or others can read it (code `operator_key_unusable`).
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(MAX_ROOT_FILE)
    except OSError as exc:
        raise InvalidConfig(
            f"operator key {path.name}: cannot be read", code="operator_key_unusable"
        ) from exc
    if mode & 0o077:
        message = f"operator key {path.name}: mode {mode:04o} lets others at the key; expected 0600"
        raise InvalidConfig(message, code="operator_key_unusable")
    if re.fullmatch(rb"[0-9a-f]{64}\n?", text) is None or not int(text, 16):
        raise InvalidConfig(
            f"operator key {path.name}: expected 64 lower-case hex digits (openssl rand -hex 32)",
            code="operator_key_unusable",
        )
    return bytes.fromhex(text.decode("ascii"))


def root_digest(root_key: Ed25519PrivateKey) -> str:
    """Returns the name of a simulation root in policies: the SHA-256 (hex) of its public key's DER SPKI."""
    return sim.root_digest(root_key.public_key())


def load_or_create_root(path: Path) -> Ed25519PrivateKey:
    """Returns the simulation root key in the PEM file `path`, made there first (mode 0600) if it does not
    exist.

    Two processes that start at once get the same key: the file appears whole or not at all.

    Raises:
        InvalidConfig: code `root_key_unusable`: not an Ed25519 key, readable by others, or not to be read or
        made.
    """
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as exc:
        raise _unusable(path, "cannot be read or made") from exc


def _create(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces: whoever came first made the key.
        with contextlib.suppress(FileExistsError):
            _link(temporary, path, pem)
    finally:
        temporary.unlink()


def _link(temporary: Path, path: Path, pem: bytes) -> None:
    """Gives the file its name. A library OS has no links: there it is made in its place, and a second process that
    reads it half is refused, for then it is no key.
    """
    try:
        os.link(temporary, path)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())


def _load(path: Path) -> Ed25519PrivateKey:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise _unusable(path, f"mode {mode:04o} lets others at the key; expected 0600")
        data = file.read(MAX_ROOT_FILE + 1)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _unusable(path, "not a PEM private key without a passphrase") from None  # it may quote the key
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, "not an Ed25519 key")
    return key


def _unusable(path: Path, why: str) -> InvalidConfig:
    return InvalidConfig(f"simulated root key {path.name}: {why}", code="root_key_unusable")
