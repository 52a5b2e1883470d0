"""Recovery of a store whose machine is gone, by the holder of a key that its configuration names
(`docs/spec/recovery.md`).

Rules
  - Only the key of this one store is wrapped, never the platform's root: that opens stores of other configurations too,
    also of those that named nobody.
  - The secret key is never on a server. Its holder opens the lost store elsewhere, verifies the new server as every
    client does, and gives it the record on that connection.
  - The new server takes a store from the holder of the very key that its own attested configuration names, and only
    into a store that never held a model.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import age, disk
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.strict import canonical
from strongroom.bringing import bring_files
from strongroom.errors import AccessRefused, MalformedInput
from strongroom.handover import Transfer, open_transfer, seal_transfer
from strongroom.keys import TRANSFER, SealingRoot, StoreKeys
from strongroom.sealed import KEY_BYTES, Random
from strongroom.state import MAX_STATE_BYTES, NO_PREDECESSOR, Record, open_state, parse_state_file
from strongroom.store import Store
from strongroom.traffic import Arrival, Lane

FILE: Final = "recovery.age"
"""The file with the wrapped key, beside the state file."""
CHALLENGE_S: Final = 600
"""Seconds for which a challenge can be answered: it may be carried to where the key is."""
_START: Final = struct.Struct(">32s16s32s")
"""Before the state file: the challenge, and name and secret of the transfer."""
_ENDS: Final = struct.Struct(">Q")
MAX_RESTORE: Final = _START.size + MAX_STATE_BYTES
"""Bytes of a restored store's record on its way."""


def write_wrapped(store: Store, folder: Path, *, recipient: str, random: Random) -> None:
    """Wraps the store's key to the recipient, in the store's folder, over what lies there: the host may have
    changed it.

    Raises:
        Unavailable, Failure: a fault of the disk.
    """
    data = age.encrypt(store.key, recipient, random=random)
    temporary = folder / f"state.{os.urandom(16).hex()}.tmp"
    with disk.faults("write the wrapped key"):
        fd = disk.create(temporary)
        try:
            disk.write(fd, data)
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.replace(temporary, folder / FILE)
        disk.sync_folder(folder)


@dataclass(frozen=True, slots=True)
class Lost:
    """A lost store, opened by the holder of its recovery key: its keys, its record, and the SHA-256 (hex) of its state
    file.
    """

    keys: StoreKeys
    record: Record
    digest: str
    store_id: str


def open_lost(state: bytes, wrapped: bytes, identity: X25519PrivateKey) -> Lost:
    """Opens the record of a store with its recovery key. `state` and `wrapped` are the files `state` and
    `recovery.age` of its folder.

    That the two belong together authenticates; that a server of yours wrote them does not, for anybody can wrap a key
    to a public one: take them from where you know that they lay.

    Raises:
        MalformedInput, AccessRefused: `wrapped` is not for this key (codes `recovery_...`).
        SealRefused: the state file is not of the store whose key was wrapped (codes `store_...`).
    """
    key = age.decrypt(wrapped, identity)
    if len(key) != KEY_BYTES:
        raise MalformedInput("recovery: the file holds no store's key", code="recovery_file_malformed")
    keys, file = StoreKeys(key), parse_state_file(state)
    record = open_state(file, state_key=keys.state_key)
    return Lost(keys=keys, record=record, digest=NO_PREDECESSOR, store_id=file.header.store_id)


def encode_restore(
    lost: Lost, *, challenge: bytes, store_id: bytes, security_digest: bytes, random: Random
) -> bytes:
    """The body of `POST /v1/recovery/restore`, for the connection to the server that was verified: the lost record
    sealed for this server's store and configuration, with what opens it.
    """
    transfer = _transfer(random(16), random(KEY_BYTES))
    sealed = seal_transfer(
        lost.record,
        lost.keys,
        digest=lost.digest,
        transfer=transfer,
        store_id=store_id,
        security_digest=security_digest,
        random=random,
    )
    return _START.pack(challenge, bytes.fromhex(transfer.id), transfer.root.secret) + sealed


def _transfer(name: bytes, secret: bytes) -> Transfer:
    root = SealingRoot(sealing_class=TRANSFER, sealed_for=name.hex(), secret=secret)
    return Transfer(id=name.hex(), root=root, proof_key=secret)


class Recovery:
    """The restoring end of one server. Belongs to one event loop; the work is done in a thread of its own.

    `recipient` is the key that the configuration names, `files` the folder where the operator puts the lost store's
    data files, `security` this server's configuration.
    """

    def __init__(
        self,
        store: Store,
        *,
        recipient: str,
        files: Path,
        security: SecurityConfiguration,
        monotonic: Callable[[], float],
        random: Random,
    ) -> None:
        self._store, self._recipient, self._files = store, recipient, files
        self._security, self._monotonic, self._random = security, monotonic, random
        self._secret = random(32)
        self._lane = Lane("recovery", workers=1, waiting=2, code="store_moving")

    def close(self) -> None:
        """Ends the thread, after the work that is under way."""
        self._lane.close()

    async def challenge(self) -> bytes:
        """An age file that only the holder of the key can open, with the challenge in it: when it ends, and our MAC of
        that. So nothing is remembered, and nobody who asks again and again spoils it for others.
        """
        ends = _ENDS.pack(int(self._monotonic()) + CHALLENGE_S)
        return age.encrypt(ends + self._mac(ends), self._recipient, random=self._random)

    async def restore(self, body: AsyncIterator[bytes]) -> bytes:
        """Fills this server's store with the one that came; the encoded answer says with how many versions.

        1. the challenge, opened, and in time: whoever sends this holds the key
        2. the store that is here never held a model
        3. what came opens, for this store and this configuration
        4. every file is there, read and checked

        Raises:
            AccessRefused: 1 (code `recovery_proof_refused`). Conflict: 2 (code `recovery_store_in_use`).
            SealRefused: 3 (code `handover_tampered`), 4 (codes `seal_...`).
            AdmissionRefused: 4, a model that would not be admitted here (code `brought_model_refused`).
            MalformedInput: no such body (code `recovery_file_malformed`). LimitExceeded: it is too large.
        """
        arrival, chunks, size = Arrival(limit=MAX_RESTORE, rate=1024, clock=self._monotonic), [], 0
        async for chunk in body:
            arrival.take(len(chunk))
            chunks.append(chunk)
            if size < KEY_BYTES <= (size := size + len(chunk)):
                self._check(b"".join(chunks)[:KEY_BYTES])  # before 64 MiB of a stranger's are held
        return await self._lane.run(self._restore, b"".join(chunks))

    def _check(self, shown: bytes) -> None:
        """Step 1."""
        ends = shown[: _ENDS.size]
        ours = hmac.compare_digest(shown[_ENDS.size :], self._mac(ends))
        if not ours or self._monotonic() >= _ENDS.unpack(ends)[0]:
            raise AccessRefused("not a challenge that is open here", code="recovery_proof_refused")

    def _mac(self, ends: bytes) -> bytes:
        return hmac.digest(self._secret, ends, "sha256")[: KEY_BYTES - _ENDS.size]

    def _restore(self, data: bytes) -> bytes:
        if len(data) <= _START.size:
            raise MalformedInput(
                "recovery: a challenge and a record expected", code="recovery_file_malformed"
            )
        # 1
        challenge, name, secret = _START.unpack_from(data)
        self._check(challenge)

        # 3, 4
        def bring(keys: StoreKeys, folder: Path) -> Record:
            record = open_transfer(
                data[_START.size :],
                transfer=_transfer(name, secret),
                store_id=bytes.fromhex(self._store.store_id),
                security_digest=self._security.digest(),
                target=keys,
                random=self._random,
            )
            bring_files(record, files=self._files, folder=folder, keys=keys, security=self._security)
            return record

        # 2 is the store's own
        return canonical({"versions": self._store.restore(bring)})


__all__ = ["FILE", "Lost", "Recovery", "encode_restore", "open_lost", "write_wrapped"]
