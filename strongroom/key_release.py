"""The messages and keys of a key release: how the broker of a key's owner gives it to a server that passes the owner's
policy (`docs/spec/key-release.md`).

Rules
  - The server's statement names the broker's challenge and signing key, the key that is asked for, and a fresh key of
    the server's own; its evidence signs the statement (`attest.evidence.Statement`). What is sealed for that fresh key
    opens in the very code that was verified, and nowhere on the way.
  - The broker signs its answer together with the whole request. A host can so keep a server from its key, but not give
    it one that the host knows.
  - TLS is trusted by neither side: it only hides which key is asked for.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom.attest.strict import Members, canonical, parse_object
from strongroom.errors import MalformedInput, SealRefused
from strongroom.handover import CHALLENGE_BYTES, KEY_BYTES, MAX_STATEMENT, agreed_keys
from strongroom.keys import length_prefixed
from strongroom.sealed import WRAPPED_BYTES, Random, unwrap_key, wrap_key

PURPOSE: Final = "strongroom key release v1"
NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
"""The form of a key's name."""
SIGNATURE_BYTES: Final = 64
MAX_GIVEN: Final = 1024
"""Bytes of the broker's answers; the longest has some 400."""
_CODE: Final = "key_release_malformed"


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a server states (§3.2). `challenge`: the broker's, 32 bytes. `broker`: the public key (Ed25519, 32 bytes) of
    the broker that it is meant for. `name`: the key that is asked for. `key`: the server's X25519 public key, 32
    bytes, made for this.
    """

    challenge: bytes
    broker: bytes
    name: str
    key: bytes

    def encode(self) -> bytes:
        """The statement: RFC 8785 bytes."""
        return canonical(
            {
                "purpose": PURPOSE,
                "challenge": self.challenge.hex(),
                "broker": self.broker.hex(),
                "name": self.name,
                "key": self.key.hex(),
            }
        )


def parse_key_request(data: bytes) -> KeyRequest:
    """Returns what a statement says (§3.2). Nothing in it is verified.

    Raises:
        MalformedInput: code `key_release_malformed`.
    """
    what = "key release: statement"
    top = parse_object(data, limit=MAX_STATEMENT, what=what, code=_CODE)
    read = Members(top, ("purpose", "challenge", "broker", "name", "key"), what=what, code=_CODE)
    read.text("purpose", PURPOSE)
    request = KeyRequest(
        challenge=bytes.fromhex(read.hexadecimal("challenge", CHALLENGE_BYTES)),
        broker=bytes.fromhex(read.hexadecimal("broker", 32)),
        name=read.text("name", NAME),
        key=bytes.fromhex(read.hexadecimal("key", KEY_BYTES)),
    )
    if request.encode() != data:
        read.refuse("not in RFC 8785 form")
    return request


@dataclass(frozen=True, slots=True)
class Given:
    """The broker's answer (§4). `key`: its X25519 public key, made for this. `sealed`: the released key, wrapped.
    `signature`: Ed25519, over both and the whole request.
    """

    key: bytes
    sealed: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The answer's bytes."""
        return canonical(
            {"key": self.key.hex(), "sealed": _base64(self.sealed), "signature": _base64(self.signature)}
        )


def parse_given(data: bytes) -> Given:
    """Returns what a broker answered. Nothing in it is verified.

    Raises:
        MalformedInput: code `key_release_malformed`.
    """
    what = "key release: answer"
    top = parse_object(data, limit=MAX_GIVEN, what=what, code=_CODE)
    read = Members(top, ("key", "sealed", "signature"), what=what, code=_CODE)
    return Given(
        key=bytes.fromhex(read.hexadecimal("key", KEY_BYTES)),
        sealed=read.base64("sealed", WRAPPED_BYTES),
        signature=read.base64("signature", SIGNATURE_BYTES),
    )


def encode_challenge(challenge: bytes) -> bytes:
    """The answer to the question for a challenge."""
    return canonical({"challenge": challenge.hex()})


def parse_challenge(data: bytes) -> bytes:
    """Returns the challenge (32 bytes) in a broker's answer.

    Raises:
        MalformedInput: code `key_release_malformed`.
    """
    what = "key release: challenge"
    top = parse_object(data, limit=MAX_GIVEN, what=what, code=_CODE)
    read = Members(top, ("challenge",), what=what, code=_CODE)
    return bytes.fromhex(read.hexadecimal("challenge", CHALLENGE_BYTES))


def give(
    released: bytes, *, request: KeyRequest, body: bytes, signing_key: Ed25519PrivateKey, random: Random
) -> Given:
    """Seals the key `released` (32 bytes) for the one who made the request, and signs that (§4). `body`: the whole
    request as it came.

    Raises:
        MalformedInput: the request's key is none that can be agreed with (code `key_release_malformed`).
    """
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    wrapping = _wrapping_key(private, request.key, body=body, key=public)
    sealed = wrap_key(wrapping, released, associated=_facts(body, public), random=random)
    return Given(key=public, sealed=sealed, signature=signing_key.sign(_signed(body, public, sealed)))


def take(given: Given, *, private: X25519PrivateKey, body: bytes, broker: bytes) -> bytes:
    """Returns the key (32 bytes) that the broker with this public key (Ed25519, 32 bytes) sealed for `private` in
    answer to the request `body`.

    1. the broker's signature, over this very request
    2. the agreed key opens what came

    Raises:
        SealRefused: it did not (code `key_release_tampered`).
        MalformedInput: the broker's key is none that can be agreed with (code `key_release_malformed`).
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(broker)
        key.verify(given.signature, _signed(body, given.key, given.sealed))
    except (InvalidSignature, ValueError) as exc:
        raise SealRefused(
            f"the answer is not signed, for this request, by the broker with the key {broker.hex()}",
            code="key_release_tampered",
        ) from exc
    wrapping = _wrapping_key(private, given.key, body=body, key=given.key)
    try:
        return unwrap_key(wrapping, given.sealed, associated=_facts(body, given.key))
    except SealRefused as exc:
        message = f"what the broker sealed does not open here ({exc.code})"
        raise SealRefused(message, code="key_release_tampered") from exc


def _wrapping_key(private: X25519PrivateKey, peer: bytes, *, body: bytes, key: bytes) -> bytes:
    try:
        return agreed_keys(private, peer, labels=(f"{PURPOSE} key",), facts=_listed(body, key))[0]
    except MalformedInput as exc:
        raise MalformedInput("key release: not an X25519 key that can be agreed with", code=_CODE) from exc


def _listed(body: bytes, key: bytes) -> tuple[bytes, ...]:
    return hashlib.sha256(body).digest(), key


def _facts(body: bytes, key: bytes) -> bytes:
    return length_prefixed((f"{PURPOSE} facts".encode(), *_listed(body, key)))


def _signed(body: bytes, key: bytes, sealed: bytes) -> bytes:
    return length_prefixed((f"{PURPOSE} answer".encode(), *_listed(body, key), sealed))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
