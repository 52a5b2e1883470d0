"""The messages and keys of a hand-over: how a store goes from one TEE to another (`docs/spec/reseal.md`).

Rules
  - The receiver's statement names the source's challenge and keyset and the receiver's own fresh key, and its evidence
    signs the statement: what is sealed for that key goes to the very code that was verified, once, and to nobody who
    relays.
  - Nothing of the root, of the store's key or of any key above the data keys is handed over. Data keys are wrapped
    anew on both sides; the files that they open stay as they are.
  - A transfer's keys come out of one agreement between two fresh keys, and seal one state file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from strongroom.attest.evidence import MAX_ANSWER, EvidenceAnswer, parse_answer
from strongroom.attest.strict import Members, canonical, parse_object
from strongroom.errors import AccessRefused, MalformedInput, SealRefused
from strongroom.keys import TRANSFER, SealingRoot, StoreKeys, derive_from, length_prefixed
from strongroom.sealed import Random, unwrap_key, wrap_key
from strongroom.state import (
    TAKEN,
    Handing,
    Name,
    Record,
    StateHeader,
    open_state,
    parse_state_file,
    seal_state,
)

PURPOSE: Final = "strongroom handover v1"
MAX_STATEMENT: Final = 4096
"""Bytes of a statement; one has about 270."""
CHALLENGE_BYTES: Final = 32
KEY_BYTES: Final = 32
"""Bytes of an X25519 public key."""
MAX_TAKE: Final = 2 << 20
"""Bytes of a request with evidence and a statement: an evidence answer in base64."""
MAX_POLICY: Final = 64 * 1024
"""Bytes of the source's hand-over policy: what `attest.policy` reads."""
MAX_DONE: Final = 1024
"""Bytes of the other bodies; the longest has some 150."""
_CODE: Final = "handover_malformed"


@dataclass(frozen=True, slots=True)
class Request:
    """What the receiver states (§3). `challenge`: the source's, 32 bytes. `source`: SHA-256 of the keyset of the source
    that the receiver verified. `key`: the receiver's X25519 public key, 32 bytes, made for this. `security_version`:
    that of the receiver's code.
    """

    challenge: bytes
    source: bytes
    key: bytes
    security_version: int

    def encode(self) -> bytes:
        """The statement: RFC 8785 bytes."""
        return canonical(
            {
                "purpose": PURPOSE,
                "challenge": self.challenge.hex(),
                "source": self.source.hex(),
                "key": self.key.hex(),
                "security_version": self.security_version,
            }
        )


def parse_request(data: bytes) -> Request:
    """Returns what a statement says (§3). Nothing in it is verified.

    Raises:
        MalformedInput: code `handover_malformed`.
    """
    what = "hand-over statement"
    top = parse_object(data, limit=MAX_STATEMENT, what=what, code=_CODE)
    names = ("purpose", "challenge", "source", "key", "security_version")
    read = Members(top, names, what=what, code=_CODE)
    read.text("purpose", PURPOSE)
    request = Request(
        challenge=bytes.fromhex(read.hexadecimal("challenge", CHALLENGE_BYTES)),
        source=bytes.fromhex(read.hexadecimal("source", 32)),
        key=bytes.fromhex(read.hexadecimal("key", KEY_BYTES)),
        security_version=read.integer("security_version", 0, 65535),
    )
    if request.encode() != data:
        read.refuse("not in RFC 8785 form")
    return request


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """What both ends of one hand-over know, and nobody else (§4). `root` seals the one state file that travels;
    `proof_key` shows later that somebody was in it.
    """

    id: str
    """32 hex digits."""
    root: SealingRoot
    proof_key: bytes = field(repr=False)

    def keys(self, *, security_digest: bytes, store_id: bytes) -> StoreKeys:
        """The keys of the state file that travels: for the receiver's configuration and this store alone."""
        return StoreKeys.from_root(self.root, security_digest=security_digest, store_id=store_id)

    def handing(self, end: str) -> Handing:
        """What the store at this end (`state.ENDS`) keeps of it."""
        return Handing(end=end, transfer=self.id, key=self.proof_key)


def agree(private: X25519PrivateKey, peer: bytes, *, statement: bytes, keyset: bytes, key: bytes) -> Transfer:
    """Returns the transfer between two keys (§4): own `private` and the other's public key `peer` (32 bytes).

    `statement`: the receiver's, as it was sent. `keyset`: the receiver's, as it was sent. `key`: the *source's* public
    key, whichever end this is.

    Raises:
        MalformedInput: the peer's key is none that can be agreed with (code `handover_malformed`).
    """
    facts = (hashlib.sha256(statement).digest(), hashlib.sha256(keyset).digest(), key)
    named, secret, proof = agreed_keys(
        private, peer, labels=tuple(f"{PURPOSE} {label}" for label in ("id", "root", "proof")), facts=facts
    )
    name = named[:16].hex()
    root = SealingRoot(sealing_class=TRANSFER, sealed_for=name, secret=secret)
    return Transfer(id=name, root=root, proof_key=proof)


def agreed_keys(
    private: X25519PrivateKey, peer: bytes, *, labels: tuple[str, ...], facts: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """A key of 32 bytes for each label, out of the agreement with the public key `peer` (32 bytes) and the facts that
    both ends have to agree about.

    Raises:
        MalformedInput: the peer's key is none that can be agreed with (code `handover_malformed`).
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise MalformedInput("hand-over: not an X25519 key that can be agreed with", code=_CODE) from None
    return tuple(derive_from(shared, length_prefixed((label.encode(), *facts))) for label in labels)


def proof_of(handing: Handing) -> bytes:
    """By which the holder of this end shows that it has come to it (§6): 32 bytes."""
    return hmac.digest(handing.key, f"{PURPOSE} {handing.end} {handing.transfer}".encode(), "sha256")


def verify_proof(proof: bytes, *, handing: Handing) -> None:
    """Returns if `proof` is of this end of this hand-over.

    Raises:
        AccessRefused: it is not (code `handover_proof_refused`).
    """
    if not hmac.compare_digest(proof, proof_of(handing)):
        raise AccessRefused("the proof is not of this hand-over", code="handover_proof_refused")


def rewrapped(record: Record, *, source: StoreKeys, target: StoreKeys, random: Random) -> Record:
    """The record with every data key wrapped under the keys of `target` in place of those of `source`; the facts that
    each is bound to stay (§5).

    Raises:
        SealRefused: a wrapped key does not open (codes of `sealed.unwrap_key`).
    """

    def renamed(name: Name) -> Name:
        old, new = source.owner_key(name.owner), target.owner_key(name.owner)
        entries = []
        for entry in name.entries:
            facts = entry.facts()
            key = unwrap_key(old, entry.wrapped_key, associated=facts)
            entries.append(replace(entry, wrapped_key=wrap_key(new, key, associated=facts, random=random)))
        return replace(name, entries=tuple(entries))

    return replace(record, names=tuple(renamed(name) for name in record.names))


def seal_transfer(
    record: Record,
    keys: StoreKeys,
    *,
    digest: str,
    transfer: Transfer,
    store_id: bytes,
    security_digest: bytes,
    random: Random,
) -> bytes:
    """The state file that travels (§5): the next record after `record`, whose file has the SHA-256 `digest` (hex), for
    the one receiver. `keys` are those of the store; `security_digest` is the receiver's.
    """
    target = transfer.keys(security_digest=security_digest, store_id=store_id)
    following = record.with_handing(transfer.handing(TAKEN), previous=digest)
    header = _header(transfer, store_id=store_id, security_digest=security_digest)
    travelling = rewrapped(following, source=keys, target=target, random=random)
    return seal_state(travelling, header=header, state_key=target.state_key, random=random)


def open_transfer(
    data: bytes,
    *,
    transfer: Transfer,
    store_id: bytes,
    security_digest: bytes,
    target: StoreKeys,
    random: Random,
) -> Record:
    """The record in the state file that came, wrapped under the receiver's own keys `target` (§5).

    Raises:
        SealRefused: it is not the one that was sealed for this receiver in this hand-over (code `handover_tampered`).
    """
    keys = transfer.keys(security_digest=security_digest, store_id=store_id)
    try:
        file = parse_state_file(data)
        if file.header != _header(transfer, store_id=store_id, security_digest=security_digest):
            raise SealRefused("sealed for another hand-over", code="handover_tampered")
        record = open_state(file, state_key=keys.state_key)
        if record.handing != transfer.handing(TAKEN):
            raise SealRefused("the record is of another hand-over", code="handover_tampered")
        return rewrapped(record, source=keys, target=target, random=random)
    except SealRefused as exc:
        message = f"what came is not what was handed over here ({exc.code})"
        raise SealRefused(message, code="handover_tampered") from exc


def _header(transfer: Transfer, *, store_id: bytes, security_digest: bytes) -> StateHeader:
    return StateHeader(
        store_id=store_id.hex(),
        sealing_class=TRANSFER,
        sealed_for=transfer.id,
        security=security_digest.hex(),
    )


# Bodies --------------------------------------------------------------------------------------------


def encode_challenge(challenge: bytes, policy: bytes) -> bytes:
    """The answer of `POST /v1/handover/challenge`: a challenge, and the source's hand-over policy, its file."""
    return canonical({"challenge": challenge.hex(), "policy": _base64(policy)})


def parse_challenge(data: bytes) -> tuple[bytes, bytes]:
    """Returns a challenge, 32 bytes, and the bytes of a policy, of which nothing is verified.

    Raises:
        MalformedInput: code `handover_malformed`.
    """
    what = "hand-over challenge"
    top = parse_object(data, limit=2 * MAX_POLICY, what=what, code=_CODE)
    read = Members(top, ("challenge", "policy"), what=what, code=_CODE)
    return bytes.fromhex(read.hexadecimal("challenge", CHALLENGE_BYTES)), read.base64("policy", MAX_POLICY)


def encode_take(statement: bytes, answer: bytes) -> bytes:
    """The body of `POST /v1/handover/take`: a statement, and the encoded evidence answer that signs it."""
    return canonical({"statement": _base64(statement), "answer": _base64(answer)})


def parse_take(data: bytes) -> tuple[bytes, EvidenceAnswer]:
    """Returns the statement and the evidence answer in a request. Nothing in either is verified.

    Raises:
        MalformedInput: codes `handover_malformed`, `answer_malformed`.
    """
    what = "hand-over request"
    top = parse_object(data, limit=MAX_TAKE, what=what, code=_CODE)
    read = Members(top, ("statement", "answer"), what=what, code=_CODE)
    return read.base64("statement", MAX_STATEMENT), parse_answer(read.base64("answer", MAX_ANSWER))


def encode_done(handing: Handing) -> bytes:
    """The body of `POST /v1/handover/done`: which hand-over, and the receiver's proof."""
    return canonical({"transfer": handing.transfer, "proof": proof_of(handing).hex()})


def parse_done(data: bytes) -> tuple[str, bytes]:
    """Returns the name of a hand-over and a proof.

    Raises:
        MalformedInput: code `handover_malformed`.
    """
    what = "hand-over request"
    top = parse_object(data, limit=MAX_DONE, what=what, code=_CODE)
    read = Members(top, ("transfer", "proof"), what=what, code=_CODE)
    return read.hexadecimal("transfer", 16), bytes.fromhex(read.hexadecimal("proof", 32))


def parse_member(data: bytes, name: str) -> bytes:
    """Returns the 32 bytes in hex in the one member of an answer.

    Raises:
        MalformedInput: code `handover_malformed`.
    """
    what = "hand-over answer"
    top = parse_object(data, limit=MAX_DONE, what=what, code=_CODE)
    return bytes.fromhex(Members(top, (name,), what=what, code=_CODE).hexadecimal(name, 32))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
