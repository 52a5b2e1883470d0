"""Signed release manifests: reference values that somebody vouches for, so that a policy can pin the auditor and not
the hash (docs/spec/release.md).

A manifest is a DSSE envelope (github.com/secure-systems-lab/dsse, v1.0.2) around a JSON document. It comes with the
evidence or from elsewhere; where from decides nothing, for its signature is checked under a key that the policy names.

Rules of this file:

1. Nothing of a payload is read before a named key's signature over exactly its bytes verified.
2. A manifest without an end is none: old code stays signed for ever, and must not stay accepted.
3. One value must match as a whole: measurement and registers out of two values of a manifest are nobody's release.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strongroom.attest.evidence import MAX_SKEW, MAX_SVN, Claims
from strongroom.attest.requirements import (
    HARDWARE_FORMATS,
    MEASUREMENT,
    Given,
    Rule,
    Value,
    require,
    require_list,
)
from strongroom.attest.strict import JSON, Members, canonical, parse_object
from strongroom.errors import AttestationRefused, MalformedInput

PAYLOAD_TYPE = "application/vnd.strongroom.release+json"
TYPE = "strongroom release v1"
MAX_MANIFEST = 256 * 1024
"""Bytes of an envelope; a reference value takes 150 to 600."""
MAX_SIGNATURES = 16
MAX_VALUES = 256
"""Reference values of one release: a build for each platform and size of machine."""
PRODUCT = r"[a-z0-9][a-z0-9._/-]{0,127}"
"""The form of a product's name."""
_VERSION = r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}"
_REGISTER = r"rtmr[0-3]|pcr([0-9]|1[0-9]|2[0-3])"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_CODE = "release_malformed"
_NEEDS_REGISTERS = {"tdx": ("rtmr0", "rtmr1", "rtmr2", "rtmr3")}
"""Formats whose measurement alone names no more than firmware."""


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """What evidence of `format` says of this release: the measurement (hex), and (name, hex) of registers.

    Raises:
        MalformedInput: code `release_malformed`: a value out of form, or of TDX without all four RTMRs.
    """

    format: str
    measurement: str
    registers: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if self.format not in ("sim", *HARDWARE_FORMATS):
            _refuse("a reference value of an unknown evidence format")
        names = tuple(name for name, _ in self.registers)
        for text, pattern in (
            (self.measurement, MEASUREMENT),
            *((name, _REGISTER) for name in names),
            *((value, MEASUREMENT) for _, value in self.registers),
        ):
            if re.fullmatch(pattern, text, re.ASCII) is None:
                _refuse(f"a reference value of another form than {pattern}")
        if names != tuple(sorted(set(names))):
            _refuse("registers: sorted, each once")
        if missing := [n for n in _NEEDS_REGISTERS.get(self.format, ()) if n not in names]:
            _refuse(f"a {self.format} reference value without {', '.join(missing)}: it names firmware alone")

    def matches(self, claims: Claims) -> bool:
        """Whether the claims are of this release, in everything that it names."""
        return (
            claims.format == self.format
            and claims.measurement == self.measurement
            and all(claims.fact(name) == value for name, value in self.registers)
        )


@dataclass(frozen=True, slots=True)
class Release:
    """One release of `product`: its version, the security version (higher where holes were closed), when the manifest
    was issued and when it ends (aware), and its reference values.

    Raises:
        MalformedInput: code `release_malformed`.
    """

    product: str
    version: str
    security_version: int
    issued: datetime
    expires: datetime
    values: tuple[ReferenceValue, ...]

    def __post_init__(self) -> None:
        if re.fullmatch(PRODUCT, self.product, re.ASCII) is None:
            _refuse(f"product: expected a name of the form {PRODUCT}")
        if re.fullmatch(_VERSION, self.version, re.ASCII) is None:
            _refuse(f"version: expected the form {_VERSION}")
        if not 0 <= self.security_version <= MAX_SVN:
            _refuse(f"security_version: expected an integer within 0..{MAX_SVN}")
        if self.issued.tzinfo is None or self.expires.tzinfo is None or self.expires <= self.issued:
            _refuse("expires: expected a time after issued, both with their offset from UTC")
        if not 1 <= len(self.values) <= MAX_VALUES:
            _refuse(f"{len(self.values)} reference values; expected 1 to {MAX_VALUES}")

    def payload(self) -> bytes:
        """The RFC 8785 bytes that are signed."""
        return canonical(
            {
                "type": TYPE,
                "product": self.product,
                "version": self.version,
                "security_version": self.security_version,
                "issued": _spell(self.issued),
                "expires": _spell(self.expires),
                "reference_values": [
                    {"format": v.format, "measurement": v.measurement, "registers": dict(v.registers)}
                    for v in self.values
                ],
            }
        )


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"release manifest: {why}", code=_CODE)


def _spell(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_manifest(data: bytes) -> bool:
    """Whether `data` looks like a manifest: by content, whatever its name. Decides only who reads it."""
    return data.lstrip()[:1] == b"{" and len(data) <= MAX_MANIFEST and PAYLOAD_TYPE.encode() in data


def sign_release(release: Release, keys: tuple[Ed25519PrivateKey, ...]) -> bytes:
    """Returns the manifest of `release`, signed by each of `keys`.

    Raises:
        MalformedInput: code `release_malformed`: no key, or too many.
    """
    if not 1 <= len(keys) <= MAX_SIGNATURES:
        _refuse(f"{len(keys)} keys; expected 1 to {MAX_SIGNATURES}")
    payload = release.payload()
    signatures: list[JSON] = [
        {
            "keyid": key.public_key().public_bytes_raw().hex(),
            "sig": base64.b64encode(key.sign(_signed(payload))).decode("ascii"),
        }
        for key in keys
    ]
    return canonical(
        {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": PAYLOAD_TYPE,
            "signatures": signatures,
        }
    )


def _signed(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and payload with their lengths, so that neither runs into the other."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_release(data: bytes, *, keys: tuple[str, ...], now: datetime) -> Release:
    """Returns the release that the manifest `data` is about, once one of `keys` (raw Ed25519 public keys in hex) is
    found to have signed it and it is in its time (docs/spec/release.md §3).

    1. the envelope is strict JSON of the one payload type, with 1 to 16 signatures
    2. one signature over the payload's very bytes verifies under a named key; `keyid` decides nothing
    3. the payload is the strict document of §2
    4. it was issued, and has not expired, at `now`

    Raises:
        MalformedInput: code `release_malformed` (1, 3). AttestationRefused: code `release_not_signed` (2),
        `release_expired` or `release_from_future` (4). TypeError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise TypeError("now: expected an aware datetime")
    # 1. envelope
    what = "release manifest"
    top = parse_object(data, limit=MAX_MANIFEST, what=what, code=_CODE)
    read = Members(top, ("payload", "payloadType", "signatures"), what=what, code=_CODE)
    read.text("payloadType", re.escape(PAYLOAD_TYPE))
    payload = read.base64("payload", MAX_MANIFEST)
    signatures = []
    for item in read.array("signatures", MAX_SIGNATURES):
        one = Members(item, ("keyid", "sig"), what=f"{what}: signature", code=_CODE)
        one.text("keyid", r"[\x20-\x7e]{0,256}")
        signatures.append(one.base64("sig", 64))
    # 2. signature
    if not any(_holds(key, signature, payload) for key in keys for signature in signatures):
        raise AttestationRefused(
            f"{what}: none of its {len(signatures)} signatures is of one of {len(keys)} named keys",
            code="release_not_signed",
        )
    # 3. payload
    release = _parse_payload(payload)
    # 4. time
    if release.issued > now + MAX_SKEW:
        raise AttestationRefused(f"{what}: issued {_spell(release.issued)}", code="release_from_future")
    if release.expires <= now:
        raise AttestationRefused(f"{what}: expired {_spell(release.expires)}", code="release_expired")
    return release


def _holds(key: str, signature: bytes, payload: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, _signed(payload))
    except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no key
        return False
    return True


def _parse_payload(payload: bytes) -> Release:
    what = "release manifest"
    top = parse_object(payload, limit=MAX_MANIFEST, what=what, code=_CODE)
    names = ("type", "product", "version", "security_version", "issued", "expires", "reference_values")
    read = Members(top, names, what=what, code=_CODE)
    read.text("type", re.escape(TYPE))
    values = []
    for item in read.array("reference_values", MAX_VALUES):
        one = Members(item, ("format", "measurement", "registers"), what=f"{what}: value", code=_CODE)
        registers = one.object("registers")
        inner = Members(registers, tuple(registers), what=f"{what}: registers", code=_CODE)
        values.append(
            ReferenceValue(
                one.text("format", r"[a-z]{1,16}"),
                one.text("measurement", MEASUREMENT),
                tuple((name, inner.text(name, MEASUREMENT)) for name in sorted(registers)),
            )
        )
    return Release(
        product=read.text("product", PRODUCT),
        version=read.text("version", _VERSION),
        security_version=read.integer("security_version", 0, MAX_SVN),
        issued=_time(read, "issued"),
        expires=_time(read, "expires"),
        values=tuple(values),
    )


def _time(read: Members, name: str) -> datetime:
    try:
        return datetime.fromisoformat(read.text(name, _TIME))
    except ValueError:
        read.refuse(f"{name}: no such day or time")


@dataclass(frozen=True, slots=True)
class Released(Rule):
    """The code is in a manifest, signed by one of `keys` (raw Ed25519 public keys, hex), of a release of `product` with
    at least `security_version`.
    """

    ID = "policy.release"
    TITLE = "The code is of a release that a named key vouches for"
    CODE = "release_not_accepted"
    keys: tuple[str, ...]
    product: str
    security_version: int

    def __post_init__(self) -> None:
        require(bool(self.keys), "release_keys: an empty list accepts nothing", code="policy_accepts_nothing")
        require_list(self.keys, r"[0-9a-f]{64}", "release_keys")
        fits = re.fullmatch(PRODUCT, self.product, re.ASCII) is not None
        require(fits, f"release_product: expected a name of the form {PRODUCT}")
        require(
            0 <= self.security_version <= MAX_SVN,
            f"min_release_svn: expected an integer within 0..{MAX_SVN}",
        )

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (
            ("release_keys", self.keys),
            ("release_product", self.product),
            ("min_release_svn", self.security_version),
        )

    def expected(self) -> str:
        """The product and who vouches for it."""
        return f"{self.product}, security version {self.security_version} or later, signed by a named key"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """One manifest that verifies names it."""
        found = [self._judge(data, claims, given) for data in given.manifests]
        if fitting := [text for passed, text in found if passed]:
            return True, fitting[0]
        return False, "; ".join(text for _, text in found[:4]) or "no release manifest came with the evidence"

    def _judge(self, data: bytes, claims: Claims, given: Given) -> tuple[bool, str]:
        try:
            release = verify_release(data, keys=self.keys, now=given.now)
        except (AttestationRefused, MalformedInput) as exc:
            return False, f"{exc.message} [{exc.code}]"
        name = f"{release.product} {release.version}, security version {release.security_version}"
        if release.product != self.product or release.security_version < self.security_version:
            return False, name
        if not any(value.matches(claims) for value in release.values):
            return False, f"{name}, which has no build with measurement {claims.measurement}"
        return True, name

    def explain(self) -> str:
        """Who vouches."""
        return (
            f"Any build of {self.product} counts that one of {len(self.keys)} key(s) signed in a release manifest with "
            f"security version {self.security_version} or later, until the manifest expires."
        )

    def weaknesses(self) -> tuple[str, ...]:
        """Whoever holds the key chooses the code."""
        found = ["release_keys: whoever holds one of them chooses the code."]
        if self.security_version == 0:
            found.append("min_release_svn = 0 accepts every release whose manifest has not expired.")
        return tuple(found)
