"""The keyset: the keys of a running server and the configuration that decides what it does with data.

The keyset travels as bytes. Evidence signs the digest of exactly these bytes (`evidence.report_data`), so a
client hashes what it received *before* it parses, and parses strictly (docs/spec/evidence.md section 3):
whatever two readers could read differently is refused. The security configuration is in it itself, not as a
digest, so that a policy can rule on each of its fields.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from strongroom.attest.strict import JSON, MAX_INTEGER, Members, canonical, parse_object
from strongroom.errors import MalformedInput

MAX_KEYSET = 64 * 1024
"""Bytes of a keyset that are read (docs/spec/evidence.md §3.1); one is about 700."""
MAX_SPKI = 1024
"""Bytes of one DER SubjectPublicKeyInfo; P-256 takes 91, Ed25519 44."""
REMEMBERED = 8
"""Keysets that were read and are kept: the function is pure, so this changes time only."""
MAX_SANDBOX_LAYERS = 16
"""Names of sandbox layers in one configuration."""
VERSION = 1

SEALING = ("measurement", "signer", "operator", "simulated")
"""What the sealing root is bound to: this very code; any code of its signer; an operator's file; the
simulated TEE.
"""
ISOLATION = ("in_process", "model", "owner", "request")
"""What shares one process: everything; one model; the models of one owner; nothing but one request."""
ADMISSION = ("structural", "permissive", "strict")
"""How far models are examined before they run (docs/spec/admission.md): their structure; that and bounds for what
has any; bounds for everything."""
VERIFY_ON_LOAD = ("tags", "sha256")
"""What is checked when a sealed model is loaded: the authentication tags, or the whole digest as well."""
LOGGING = ("no_content",)
"""What may reach a log."""
NONE = "none"
"""What `handover`, `recovery` and `key_release` say where nobody else can come to the keys of the stored models."""
HANDOVER = r"none|[0-9a-f]{64}"
"""`handover`: none, or the SHA-256 of the policy by which this server hands its store over (docs/spec/reseal.md)."""
RECOVERY = r"none|age1[02-9ac-hj-np-z]{58}"
"""`recovery`: none, or the public key whose holder can open the store (docs/spec/recovery.md)."""
KEY_RELEASE = r"none|[0-9a-f]{64}/[a-z0-9][a-z0-9._-]{0,63}"
"""`key_release`: none, or the public key (Ed25519) of the broker that keeps this store's key, and the key's name there
(docs/spec/key-release.md)."""
OPTIONAL = ("key_release",)
"""Fields that stand in the keyset only where they are not `none`: so keysets without them stay what they were, and a
reader that does not know the field refuses those with it (docs/spec/evidence.md §3.3)."""

ROLES: dict[str, str] = {"tls": "ECDSA-P256", "receipt": "Ed25519"}
"""Role -> the one algorithm of its key in this version."""
BINDING = "spki"
"""How evidence and connection are tied. Stated, so that a later, stronger binding cannot be dropped
silently.
"""


def _require(condition: bool, why: str, *, code: str = "keyset_malformed") -> None:
    if not condition:
        raise MalformedInput(f"keyset: {why}", code=code)


@dataclass(frozen=True, slots=True)
class Key:
    """One public key of the server: what it is for, its algorithm, its DER SubjectPublicKeyInfo.

    Raises:
        MalformedInput: unknown role, the role's algorithm is another, or `spki` is no canonical key of it.
    """

    role: str
    algorithm: str
    spki: bytes

    def __post_init__(self) -> None:
        _require(self.role in ROLES, f"key role: expected one of {', '.join(ROLES)}")
        _require(
            self.algorithm == ROLES[self.role], f"key {self.role}: expected algorithm {ROLES[self.role]}"
        )
        try:
            key = load_der_public_key(self.spki)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise MalformedInput(
                f"keyset: key {self.role}: not a DER public key", code="keyset_malformed"
            ) from exc
        if self.algorithm == "Ed25519":
            fits = isinstance(key, Ed25519PublicKey)
        else:
            fits = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        _require(fits, f"key {self.role}: the key is not {self.algorithm}")
        # One key, one spelling: comparisons of SPKI bytes elsewhere rely on it.
        same = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == self.spki
        _require(same, f"key {self.role}: not the canonical DER of its key")


@dataclass(frozen=True, slots=True)
class SecurityConfiguration:
    """The settings that decide confidentiality, as the server runs with them (docs/spec/evidence.md §3.3).

    `sandbox` names the layers that took hold, sorted. `handover`, `recovery` and `key_release` name who else can come
    to the keys of the stored models. Every sealing key depends on `digest()`: a server with another configuration
    cannot open the store.

    Raises:
        MalformedInput: a value that this version does not know.
    """

    sealing: str
    host_excluded: bool
    isolation: str
    sandbox: tuple[str, ...]
    admission: str
    anonymous_upload: bool
    verify_on_load: str
    logging: str
    handover: str = NONE
    recovery: str = NONE
    key_release: str = NONE

    def __post_init__(self) -> None:
        for name, form in FORMS.items():
            _require(
                re.fullmatch(form, getattr(self, name), re.ASCII) is not None,
                f"security.{name}: expected {form}",
            )
        for name, known in VALUES.items():
            value = getattr(self, name)
            _require(
                value in known and type(value) is type(known[0]), f"security.{name}: expected one of {known}"
            )
        _require(
            len(self.sandbox) <= MAX_SANDBOX_LAYERS, f"security.sandbox: at most {MAX_SANDBOX_LAYERS} layers"
        )
        _require(
            self.sandbox == tuple(sorted(set(self.sandbox))), "security.sandbox: sorted, each layer once"
        )
        for layer in self.sandbox:
            _require(
                re.fullmatch(LAYER, layer, re.ASCII) is not None,
                f"security.sandbox: layers look like {LAYER}",
            )

    def to_json(self) -> dict[str, JSON]:
        """The members of the configuration as they stand in the keyset."""
        always: dict[str, JSON] = {
            "sealing": self.sealing,
            "host_excluded": self.host_excluded,
            "isolation": self.isolation,
            "sandbox": list(self.sandbox),
            "admission": self.admission,
            "anonymous_upload": self.anonymous_upload,
            "verify_on_load": self.verify_on_load,
            "logging": self.logging,
            "handover": self.handover,
            "recovery": self.recovery,
        }
        named = {name: getattr(self, name) for name in OPTIONAL}
        return always | {name: value for name, value in named.items() if value != NONE}

    def encode(self) -> bytes:
        """The RFC 8785 bytes of the configuration."""
        return canonical(self.to_json())

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


LAYER = r"[a-z][a-z0-9_]{0,31}"
"""The form of a sandbox layer's name."""

VALUES: dict[str, tuple[str | bool, ...]] = {
    "sealing": SEALING,
    "host_excluded": (False, True),
    "isolation": ISOLATION,
    "admission": ADMISSION,
    "anonymous_upload": (False, True),
    "verify_on_load": VERIFY_ON_LOAD,
    "logging": LOGGING,
}
"""Every field of the security configuration with a few values -> the values that this version knows."""

FORMS: dict[str, str] = {"handover": HANDOVER, "recovery": RECOVERY, "key_release": KEY_RELEASE}
"""Every field that names somebody -> its form."""


@dataclass(frozen=True, slots=True)
class Keyset:
    """The keys of one epoch of a server, when the epoch ends, its store and its configuration.

    `not_after`: unix seconds. `store_id`: 32 lower-case hex characters.

    Raises:
        MalformedInput: not one key of each role, or another field out of form.
    """

    keys: tuple[Key, ...]
    not_after: int
    store_id: str
    binding: str
    security: SecurityConfiguration

    def __post_init__(self) -> None:
        _require(
            tuple(k.role for k in self.keys) == tuple(ROLES),
            f"expected one key each, in order: {', '.join(ROLES)}",
        )
        _require(
            type(self.not_after) is int and 0 < self.not_after <= MAX_INTEGER,
            "not_after: expected unix seconds",
        )
        _require(
            re.fullmatch(r"[0-9a-f]{32}", self.store_id) is not None, "store_id: expected 32 hex characters"
        )
        _require(self.binding == BINDING, f'binding: expected "{BINDING}"', code="keyset_binding_unknown")

    def key(self, role: str) -> Key:
        """The key of `role` ("tls" or "receipt")."""
        return next(k for k in self.keys if k.role == role)


def encode_keyset(keyset: Keyset) -> bytes:
    """Returns the RFC 8785 bytes of `keyset` (docs/spec/evidence.md §3.2)."""
    return canonical(
        {
            "version": VERSION,
            "keys": [
                {"role": k.role, "algorithm": k.algorithm, "spki": base64.b64encode(k.spki).decode("ascii")}
                for k in keyset.keys
            ],
            "not_after": keyset.not_after,
            "store_id": keyset.store_id,
            "binding": keyset.binding,
            "security": keyset.security.to_json(),
        }
    )


def keyset_digest(data: bytes) -> bytes:
    """SHA-256 (32 bytes) of a keyset's bytes as received; callable before anything was parsed."""
    return hashlib.sha256(data).digest()


def parse_keyset(data: bytes) -> Keyset:
    """Returns the keyset that `data` is (docs/spec/evidence.md §3). The last few are remembered: a server shows the
    same bytes to every connection of its epoch, and a value cannot change.

    Raises:
        MalformedInput: `keyset_duplicate_member`, `keyset_not_canonical`, `keyset_binding_unknown`, or
            `keyset_malformed` for every other fault of form.
    """
    return _remembered(data)


@lru_cache(maxsize=REMEMBERED)
def _remembered(data: bytes) -> Keyset:
    what, code = "keyset", "keyset_malformed"
    top = parse_object(data, limit=MAX_KEYSET, what=what, code=code, twice="keyset_duplicate_member")
    names = ("version", "keys", "not_after", "store_id", "binding", "security")
    read = Members(top, names, what=what, code=code)
    read.integer("version", VERSION, VERSION)
    keyset = Keyset(
        keys=tuple(_parse_key(item) for item in read.array("keys", len(ROLES))),
        not_after=read.integer("not_after", 1, MAX_INTEGER),
        store_id=read.hexadecimal("store_id", 16),
        binding=read.text("binding", r"[a-z]{1,16}"),
        security=parse_security(read.object("security")),
    )
    # §3.2: one keyset, one spelling. White space, escapes or another order of members would be a second one.
    _require(encode_keyset(keyset) == data, "not in RFC 8785 form", code="keyset_not_canonical")
    return keyset


def _parse_key(item: object) -> Key:
    read = Members(item, ("role", "algorithm", "spki"), what="keyset key", code="keyset_malformed")
    return Key(
        role=read.text("role", r"[a-z]{1,16}"),
        algorithm=read.text("algorithm", r"[A-Za-z0-9-]{1,32}"),
        spki=read.base64("spki", MAX_SPKI),
    )


def parse_security(item: object) -> SecurityConfiguration:
    """Returns the security configuration whose decoded JSON members `item` is.

    Raises:
        MalformedInput: an unknown or missing member, or a value that this version does not know.
    """
    there = item if isinstance(item, dict) else {}
    fields = SecurityConfiguration.__dataclass_fields__
    names = tuple(name for name in fields if name not in OPTIONAL or name in there)
    read = Members(item, names, what="keyset security", code="keyset_malformed")
    layers = read.array("sandbox", MAX_SANDBOX_LAYERS)
    if not all(isinstance(layer, str) for layer in layers):
        read.refuse("sandbox: expected strings")
    word = r"[a-z0-9_]{1,32}"
    return SecurityConfiguration(
        sealing=read.text("sealing", word),
        host_excluded=read.boolean("host_excluded"),
        isolation=read.text("isolation", word),
        sandbox=tuple(str(layer) for layer in layers),
        admission=read.text("admission", word),
        anonymous_upload=read.boolean("anonymous_upload"),
        verify_on_load=read.text("verify_on_load", word),
        logging=read.text("logging", word),
        handover=read.text("handover", HANDOVER),
        recovery=read.text("recovery", RECOVERY),
        key_release=read.text("key_release", KEY_RELEASE) if "key_release" in there else NONE,
    )
