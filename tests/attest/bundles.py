"""Bundles of the small world: what one genuine verification rested on, and ZIP files that somebody else wrote."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from typing import Any

from worlds import MEASUREMENT, NONCE, NOW, Server, ed25519

from strongroom.attest import sim
from strongroom.attest.batch import Single
from strongroom.attest.bundle import Bundle, encode_bundle
from strongroom.attest.evidence import EvidenceAnswer, encode_answer
from strongroom.attest.policy import policy_for_measurement

SERVER = Server()
POLICY = policy_for_measurement(MEASUREMENT, root=sim.root_digest(ed25519("root").public_key()), now=NOW)


@functools.cache
def leaf_of(name: str) -> bytes:
    """The certificate of the server of that name; each making would give another signature."""
    return Server(name=name).leaf.der


def bundle(server: Server = SERVER, **changed: Any) -> Bundle:
    """What a client that asked with `NONCE` at `NOW` keeps of `server`."""
    evidence = server.evidence
    genuine = Bundle(
        answer=encode_answer(EvidenceAnswer(evidence, server.keyset_bytes, Single())),
        endorsements=evidence.endorsements,
        nonce=NONCE,
        leaf=leaf_of(server.name),
        policy=POLICY,
        verified_at=NOW,
        origin="https://host.example:8443",
        software="strongroom/0.1.0",
    )
    return replace(genuine, **changed)


USED = bundle(endorsements=(("collateral.json", b"{}"), ("crl", b"")))
"""One with documents beside the answer."""


def entries(data: bytes) -> dict[str, bytes]:
    """What Python's own reader finds in a ZIP file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP file as Python writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return out.getvalue()


def reseal(data: bytes, *, manifest: dict[str, Any] | None = None, **changed: bytes) -> dict[str, bytes]:
    """The entries of a bundle with some replaced (`answer_json=...`), and a manifest that agrees with them."""
    members = entries(data)
    for name, content in changed.items():
        stem, _, ending = name.rpartition("_")
        members[f"{stem.replace('_', '-')}.{ending}" if ending in ("json", "der", "toml") else name] = content
    said = json.loads(members["manifest.json"])
    said["members"] = {n: hashlib.sha256(c).hexdigest() for n, c in members.items() if n != "manifest.json"}
    said |= manifest or {}
    members["manifest.json"] = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
    return members


GENUINE = encode_bundle(bundle())
