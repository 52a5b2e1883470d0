"""Batches: one piece of evidence for many nonces, through a Merkle tree (docs/spec/evidence.md §2.5).

Rules of this file:

1. The tree is that of RFC 6962 section 2.1, for any number of leaves. Leaves and nodes are hashed under different
   prefixes, so that nobody can show a node as a leaf, or the reverse.
2. A proof has exactly as many hashes as the way from its leaf to the root has in a tree of its size; one too many
   or too few is refused before anything is hashed.
3. A batch has at least two nonces. One alone is asked and answered in the plain form (§2.2), so a question has one
   form, and every answer says which it is: `Single` or `Inclusion`, never nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from strongroom.errors import MalformedInput

MAX_DEPTH = 20
"""Hashes in a proof at most: a million nonces in one tree, which no server can collect while one quote is made."""
MAX_BATCH = 1 << MAX_DEPTH
"""Nonces in a tree at most."""
HASH_SIZE = 32
"""Bytes of a leaf, a node and the root: SHA-256."""

_LABEL = b"strongroom evidence batch v1"
_LEAF, _NODE = b"\x00", b"\x01"
_NONCE_SIZE = 32


@dataclass(frozen=True, slots=True)
class Single:
    """The evidence answers one nonce, which its report data holds itself (§2.2)."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Proof that a leaf is in a tree: its place from 0 on, the number of leaves, and the hashes beside the way to the
    root, from the leaf up. As it arrived: nothing in it is verified, not even that the three go together.
    """

    index: int
    size: int
    path: tuple[bytes, ...]


def leaf_hash(*, nonce: bytes, keyset_bytes: bytes) -> bytes:
    """Returns the leaf of `nonce` (32 bytes), asked for this keyset: SHA-256(0x00 || nonce || SHA-256(keyset)).

    Raises:
        MalformedInput: code `nonce_malformed`, a nonce of another size.
    """
    if len(nonce) != _NONCE_SIZE:
        raise MalformedInput(f"nonce: expected {_NONCE_SIZE} bytes, got {len(nonce)}", code="nonce_malformed")
    return hashlib.sha256(_LEAF + nonce + hashlib.sha256(keyset_bytes).digest()).digest()


def batch_report_data(*, root: bytes) -> bytes:
    """Returns the 64 bytes that evidence must carry to answer every nonce in the tree with this root (32 bytes).

    Raises:
        MalformedInput: code `inclusion_malformed`, a root of another size.
    """
    if len(root) != HASH_SIZE:
        raise _malformed(f"a root of {len(root)} bytes, expected {HASH_SIZE}")
    return hashlib.sha512(_LABEL + b"\x00" + root).digest()


class Tree:
    """The tree over some leaves, in their order. `root`: 32 bytes."""

    __slots__ = ("_levels", "root")

    def __init__(self, leaves: tuple[bytes, ...]) -> None:
        """`leaves`: what `leaf_hash` returned, 2 to 2**20 of them.

        Raises:
            MalformedInput: code `inclusion_malformed`, fewer or more.
        """
        if not 2 <= len(leaves) <= MAX_BATCH:
            raise _malformed(f"a batch of {len(leaves)} nonces, expected 2 to {MAX_BATCH}")
        level, levels = leaves, [leaves]
        while len(level) > 1:
            # Neighbours become one; the odd one at the end goes up as it is. RFC 6962 writes the same tree with a
            # split at the largest power of two.
            above = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
            level = (*above, *level[len(above) * 2 :])
            levels.append(level)
        self._levels = tuple(levels)
        self.root = level[0]

    def inclusion(self, index: int) -> Inclusion:
        """The proof of the leaf at `index`, from 0 on.

        Raises:
            MalformedInput: code `inclusion_malformed`, no such leaf.
        """
        size = len(self._levels[0])
        if not 0 <= index < size:
            raise _malformed(f"leaf {index} of {size}")
        path, at = [], index
        for level in self._levels[:-1]:
            if at ^ 1 < len(level):
                path.append(level[at ^ 1])
            at >>= 1
        return Inclusion(index=index, size=size, path=tuple(path))


def check_inclusion(inclusion: Inclusion) -> None:
    """Returns if the proof is one: size, place and number of hashes go together. Whose, `root_of` tells.

    Raises:
        MalformedInput: code `inclusion_malformed`.
    """
    index, size, path = inclusion.index, inclusion.size, inclusion.path
    if not 2 <= size <= MAX_BATCH:
        raise _malformed(f"a batch of {size} nonces, expected 2 to {MAX_BATCH}")
    if not 0 <= index < size:
        raise _malformed(f"place {index} in a batch of {size}, expected 0 to {size - 1}")
    expected = len(_sides(index, size))
    if len(path) != expected:
        raise _malformed(f"{len(path)} hashes for place {index} of {size}, expected {expected}")
    if any(len(one) != HASH_SIZE for one in path):
        raise _malformed(f"a hash of another size than {HASH_SIZE} bytes")


def root_of(inclusion: Inclusion, *, nonce: bytes, keyset_bytes: bytes) -> bytes:
    """Returns the root (32 bytes) of the one tree that has `nonce` (32 bytes), asked for this keyset, where the proof
    says (RFC 9162 section 2.1.3.2). The proof holds if the evidence carries this root, and only then.

    Raises:
        MalformedInput: codes `inclusion_malformed` and `nonce_malformed`.
    """
    check_inclusion(inclusion)
    root = leaf_hash(nonce=nonce, keyset_bytes=keyset_bytes)
    for is_right, beside in zip(_sides(inclusion.index, inclusion.size), inclusion.path, strict=True):
        root = _node(beside, root) if is_right else _node(root, beside)
    return root


def _sides(index: int, size: int) -> list[bool]:
    """For each hash of the proof, from the leaf up: whether the way to the root is the right one of the two."""
    sides, last = [], size - 1
    while last:
        if index & 1:
            sides.append(True)
        elif index < last:
            sides.append(False)
        # An odd one at the end has nothing beside it on this level, and no hash in the proof.
        index, last = index >> 1, last >> 1
    return sides


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _malformed(why: str) -> MalformedInput:
    return MalformedInput(f"inclusion proof: {why}", code="inclusion_malformed")
