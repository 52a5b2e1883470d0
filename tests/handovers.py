"""Both ends of a hand-over in one process: stores on a disk, simulated TEEs, and a wire in between that a test can
listen to, alter, cut and replay.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from store_worker import CHUNK_SIZE, INFO, OWNERS

from strongroom.anchor import NOTHING, Anchor, Digests
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, encode_answer, report_data
from strongroom.attest.keyset import (
    BINDING,
    ROLES,
    Key,
    Keyset,
    SecurityConfiguration,
    encode_keyset,
    keyset_digest,
)
from strongroom.attest.policy import Policy, parse_policy, policy_for_measurement
from strongroom.attester import SimulatedAttester, root_digest
from strongroom.calls import Answer, Request
from strongroom.errors import Error
from strongroom.flow import Endpoint, Open, Send, Sleep, Unanswered
from strongroom.handover_receiver import Receiver, take_over
from strongroom.handover_source import HandoverSource, Source
from strongroom.problems import status_of
from strongroom.ratls import new_server_identity
from strongroom.store import Store

ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OLD, NEW, OTHER = "0d" * 32, "1e" * 32, "2f" * 32
"""Measurements."""
TOKEN = "ab" * 32
SECURITY = SecurityConfiguration(
    sealing="simulated",
    host_excluded=False,
    isolation="in_process",
    sandbox=(),
    admission="strict",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)


class Memory(Digests):
    """An anchor in memory, which outlives the process that a test kills."""

    def __init__(self) -> None:
        self.kept = (NOTHING, NOTHING)

    def load(self) -> tuple[str, str]:
        return self.kept

    def save(self, current: str, following: str) -> None:
        self.kept = (current, following)


def policy_text(*measurements: str, root: Ed25519PrivateKey = ROOT_KEY) -> str:
    """A hand-over policy for these measurements."""
    text = policy_for_measurement(measurements[0], root=root_digest(root), now=datetime.now(UTC))
    return text.replace(f'["{measurements[0]}"]', json.dumps(list(measurements)))


FAMILY = policy_text(OLD, NEW)
"""The policy that both servers have unless a test says otherwise."""


@dataclass
class Clock:
    """Both clocks, which a test moves."""

    seconds: float = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Party:
    """One server: its code, its policy, its folder, its anchor. `security` without the policy's digest."""

    folder: Path
    measurement: str
    policy_text: str = FAMILY
    security: SecurityConfiguration = SECURITY
    root_key: Ed25519PrivateKey = ROOT_KEY
    security_version: int = 1
    anchor: Anchor = field(default_factory=Memory)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.policy_text.encode()).hexdigest()
        self.security = replace(self.security, handover=digest)
        self.attester = SimulatedAttester(self.root_key, self.measurement)
        self.identity = new_server_identity(
            hosts=("localhost",),
            evidence_format="sim",
            evidence=lambda data: self.attester.evidence(data, now=datetime.now(UTC)),
            now=datetime.now(UTC),
            lifetime_s=3600,
        )

    @property
    def policy(self) -> Policy:
        """Its hand-over policy."""
        return parse_policy(self.policy_text)

    def keyset(self, store_id: str) -> bytes:
        """Its keyset, for a store."""
        receipt = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
        spki = receipt.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return encode_keyset(
            Keyset(
                keys=(Key("tls", ROLES["tls"], self.identity.spki), Key("receipt", ROLES["receipt"], spki)),
                not_after=2_000_000_000,
                store_id=store_id,
                binding=BINDING,
                security=self.security,
            )
        )

    def open(self) -> Store:
        """Its store."""
        return Store.open(
            self.folder / "store",
            root=self.attester.sealing_root(),
            security_digest=self.security.digest(),
            now=lambda: 1_800_000_000,
            anchor=self.anchor,
            chunk_size=CHUNK_SIZE,
        )


def content(name: str) -> bytes:
    """The bytes of a model: some chunks."""
    return hashlib.sha256(name.encode()).digest() * 100


def put(store: Store, name: str, owner: str = OWNERS[0]) -> None:
    """Uploads a model."""
    data = content(name)
    with store.begin(name=name, owner=owner, access="private", format="onnx", max_bytes=1 << 20) as upload:
        upload.write(data)
        upload.seal()
        upload.commit(info=INFO, canonical_sha256=hashlib.sha256(data).hexdigest())


def writable(store: Store) -> bool:
    """Whether the store takes changes."""
    with suppress(Error):
        store.begin(name="probe", owner="", access="public", format="onnx", max_bytes=1 << 20).abort()
        return True
    return False


def serves(store: Store, *names: str) -> bool:
    """Whether the store reads these models, as they were uploaded."""
    return all(store.read(store.get(name, None), verify="sha256") == content(name) for name in names)


Tap = Callable[[str, bytes], bytes]
"""Sees what passes, by the path's last part (and "answer" behind it), and may change it or raise."""


@dataclass
class Running:
    """A source that runs: its store is open."""

    party: Party
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = self.party.open()
        self.keyset = self.party.keyset(self.store.store_id)
        self.source = HandoverSource(
            Source(
                store=self.store,
                policy=self.party.policy,
                policy_bytes=self.party.policy_text.encode(),
                security=self.party.security,
                security_version=self.party.security_version,
                operator=TOKEN,
                now=self.clock.now,
                monotonic=self.clock.monotonic,
                random=os.urandom,
            )
        )

    def stop(self) -> None:
        """The process ends, killed or not: the disk is what it is."""
        self.source.close()
        self.store.close()

    def answer(self, request: Request, body: bytes) -> tuple[int, bytes]:
        """What it says to a request."""
        try:
            return 200, asyncio.run(self._answer(request, body))
        except Error as error:
            document = {"detail": error.message, "code": error.code}
            return status_of(error), json.dumps(document).encode()

    async def _answer(self, request: Request, body: bytes) -> bytes:
        if request.path == "/v1/evidence":
            nonce = bytes.fromhex(request.query.removeprefix("nonce="))
            data = report_data(nonce=nonce, keyset_bytes=self.keyset)
            evidence = self.party.attester.evidence(data, now=self.clock.now())
            return encode_answer(EvidenceAnswer(evidence, self.keyset, Single()))
        operator = dict(request.headers).get("Strongroom-Operator")
        what = request.path.rpartition("/")[2]
        if what == "challenge":
            return await self.source.challenge(operator)
        if what == "take":
            return await self.source.take(operator, _stream(body), keyset=keyset_digest(self.keyset))
        return await self.source.done(operator, _stream(body))


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    yield body


class Wire:
    """In the place of `Transport`. `tap` sees and may change what goes through; `tap` raising is a cut connection."""

    def __init__(self, running: Running, tap: Tap = lambda _what, data: data) -> None:
        self._running, self._tap = running, tap

    def perform(self, command: Any) -> Any:
        """Carries out a command of a flow."""
        match command:
            case Open():
                gate = SimpleNamespace(
                    leaf=self._running.party.identity.certificate_der, pin=lambda _pin: None
                )
                return Endpoint(gate=gate, link=None)  # type: ignore[arg-type]
            case Send(_, request):
                what = request.path.rpartition("/")[2]
                body = self._tap(what, b"".join(request.body.chunks()))
                status, data = self._running.answer(request, body)
                return Answer(status=status, headers={}, data=self._tap(f"{what} answer", data))
            case Sleep():
                return None
        raise AssertionError(command)


class Cut(Unanswered):
    """The connection ended."""

    def __init__(self) -> None:
        super().__init__("connection_lost", "cut")


def receive(
    new: Party, running: Running, *, tap: Tap = lambda _what, data: data, operator: str = TOKEN,
    files: Path | None = None,
) -> str:  # fmt: skip
    """The new server takes over; returns the store id."""
    return take_over(
        Receiver(
            store_path=new.folder / "store",
            files=files or running.party.folder / "store" / "data",
            operator=operator,
            policy=new.policy,
            security=new.security,
            security_version=new.security_version,
            attester=new.attester,
            anchor=new.anchor,
            keyset_of=new.keyset,
            transport=Wire(running, tap),  # type: ignore[arg-type]
            now=running.clock.now,
            random=os.urandom,
        )
    )
