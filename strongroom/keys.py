"""The sealing root of the TEE and every key below it (`docs/spec/sealed.md` §4).

Rules
  - A root is bound to what it seals for: other code, or the same code under another security configuration,
    derives other keys, so a host cannot flip a setting and read the store with the same machine.
  - Every derivation names a label and length-prefixed facts: no two different lists give the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.errors import Failure
from strongroom.sealed import KEY_BYTES

SEALING_CLASSES: Final = ("measurement", "signer", "operator", "simulated")
"""What a root is bound to: exactly this code, its signer, a key the operator holds, or nothing real."""
TRANSFER: Final = "transfer"
"""The class of a root that two parties agreed on for one state file in transit (docs/spec/reseal.md §5)."""
STORE_ID_BYTES: Final = 16

_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){1,64}")


@dataclass(frozen=True, slots=True, eq=False)
class SealingRoot:
    """The secret that the platform gives to this very code, and what it is given for.

    `sealed_for` (lower-case hex) is public: the measurement for the classes `measurement` and `simulated`,
    the signer or the operator's key id otherwise. A store shows it, so that a stranger is told why it will
    not open.
    """

    sealing_class: str
    sealed_for: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.sealing_class not in (*SEALING_CLASSES, TRANSFER):
            raise Failure(f"sealing class one of {', '.join(SEALING_CLASSES)} expected")
        if not _HEX.fullmatch(self.sealed_for) or len(self.secret) != KEY_BYTES:
            raise Failure("a sealing root is sealed for a lower-case hex value and has a 32-byte secret")

    def derive(self, *, label: str, context: tuple[bytes, ...]) -> bytes:
        """A 32-byte key for one purpose: HKDF over the list [label, sealing class, *context] (§4.2)."""
        info = length_prefixed((label.encode(), self.sealing_class.encode(), *context))
        return _hkdf(self.secret, info)


def simulated_root(root_key: Ed25519PrivateKey, *, measurement: str) -> SealingRoot:
    """The root of the simulated TEE: derived per measurement, as MRENCLAVE sealing is (§4.1).

    It protects nothing from whoever holds `root_key`; what it shows is that other code cannot open the store.
    """
    info = length_prefixed((b"strongroom sealed v1 simulated root", measurement.encode()))
    secret = _hkdf(root_key.private_bytes_raw(), info)
    return SealingRoot(sealing_class="simulated", sealed_for=measurement, secret=secret)


def platform_root(kind: str, key: bytes, *, sealing_class: str, sealed_for: str) -> SealingRoot:
    """The root out of a key that the platform `kind` gave to this code (§4.1). `key` itself seals nothing: whoever
    else uses it for something else, a library OS for its files say, learns nothing of ours.
    """
    label = f"strongroom sealed v1 {kind} root".encode()
    secret = _hkdf(key, length_prefixed((label, sealing_class.encode(), sealed_for.encode())))
    return SealingRoot(sealing_class=sealing_class, sealed_for=sealed_for, secret=secret)


def operator_root(key: bytes) -> SealingRoot:
    """The root out of a key that the operator keeps (§4.1): it protects nothing from whoever reads that key.
    `sealed_for` names the key: a digest of something that is derived from it.
    """
    name = hashlib.sha256(_hkdf(key, length_prefixed((b"strongroom sealed v1 operator key name",))))
    return platform_root("operator", key, sealing_class="operator", sealed_for=name.hexdigest())


@dataclass(frozen=True, slots=True, eq=False)
class StoreKeys:
    """The keys of one store under one security configuration (§4.2). `store_key` opens this store and no other, not
    even of the same root.
    """

    store_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.store_key) != KEY_BYTES:
            raise Failure("a store's key has 32 bytes")

    @classmethod
    def from_root(cls, root: SealingRoot, *, security_digest: bytes, store_id: bytes) -> StoreKeys:
        """Derives the store's key; `security_digest` is the SHA-256 of the security configuration.

        Raises:
            Failure: a digest or store id of the wrong size: a fault of the caller.
        """
        if len(security_digest) != 32 or len(store_id) != STORE_ID_BYTES:
            raise Failure("a security digest has 32 bytes and a store id 16")
        context = (security_digest, store_id)
        return cls(root.derive(label="strongroom sealed v1 store", context=context))

    @property
    def state_key(self) -> bytes:
        """The key that wraps the epoch key of each state file."""
        return _hkdf(self.store_key, length_prefixed((b"strongroom sealed v1 state",)))

    def owner_key(self, owner: str) -> bytes:
        """The key that wraps the data keys of this owner's models; `owner` is a principal's id, "" without
        one."""
        return _hkdf(self.store_key, length_prefixed((b"strongroom sealed v1 owner", owner.encode())))


def length_prefixed(parts: tuple[bytes, ...]) -> bytes:
    """Joins parts, each behind its length in 4 bytes, so that no two lists give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def derive_from(secret: bytes, info: bytes) -> bytes:
    """A 32-byte key: HKDF-SHA-256 without salt. `info` is a `length_prefixed` list that begins with a label."""
    return _hkdf(secret, info)


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
