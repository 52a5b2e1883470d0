"""The attester: evidence about the TEE that this code runs in, and the sealing root that the TEE gives it.

The simulated TEE is the only one in this version. Its root is an Ed25519 key in a file of the operator's;
evidence is signed with it, and the sealing root is derived from it for the very measurement, as a CPU derives
an MRENCLAVE key: other code gets another root and cannot open the store. None of it protects anything from
whoever can read that file.
"""

from __future__ import annotations

import contextlib
import os
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

    def evidence(self, report_data: bytes, *, now: datetime) -> Evidence:
        """Evidence that carries `report_data` (64 bytes, from `attest.evidence`; never chosen by a
        caller).
        """

    def sealing_root(self) -> keys.SealingRoot:
        """The root that every sealing key is derived from."""


@dataclass(frozen=True, slots=True)
class SimulatedAttester:
    """The simulated TEE. SIMULATED: it protects nothing from whoever holds `root_key`."""

    root_key: Ed25519PrivateKey = field(repr=False)
    measurement: str

    @property
    def format(self) -> str:
        """ "sim"."""
        return sim.FORMAT

    def evidence(self, report_data: bytes, *, now: datetime) -> Evidence:
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
            os.link(temporary, path)
    finally:
        temporary.unlink()


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
