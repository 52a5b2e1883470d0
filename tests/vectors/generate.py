"""Writes the conformance vectors: every `case.json` and every file that one names (tests/vectors/README.md).

    python tests/vectors/generate.py           writes them (`make vectors`)
    python tests/vectors/generate.py --check   says what differs, and ends with 1 if anything does

The same bytes come out on every machine: all keys are derived, all signatures deterministic, and no clock is looked at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parent / name) for name in (".", "..", "../attest"))

import cases_azure
import cases_connection
import cases_dcap
import cases_nitro
import cases_policy
import cases_ratls
import cases_sim
import cases_snp
import cases_tpm
from vector_model import ANY, Vector

from strongroom.attest.batch import Inclusion, Single

HERE = Path(__file__).resolve().parent
MODULES = (
    cases_dcap,
    cases_snp,
    cases_azure,
    cases_tpm,
    cases_nitro,
    cases_ratls,
    cases_sim,
    cases_policy,
    cases_connection,
)
FOLDERS = ("sgx", "tdx", "snp", "azure", "tpm", "nitro", "ra-tls", "sim", "policy", "connection")
"""What is written here. Whatever else lies beside is somebody else's."""
EXIT = {"accepted": 0, "refused": 10, "unusable": 20}
PROFILES = (ANY, "production")


def vectors() -> tuple[Vector, ...]:
    """Every vector of every folder."""
    return tuple(v for module in MODULES for v in module.cases())


def files(every: Iterable[Vector]) -> dict[str, bytes]:
    """Path, relative to this folder -> content. What two vectors of a folder have in common lies in its `shared`."""
    every = tuple(every)
    users: dict[tuple[str, bytes], int] = {}
    for vector in every:
        for digest in {hashlib.sha256(data).digest() for _, data in _parts(vector)}:
            users[vector.folder, digest] = users.get((vector.folder, digest), 0) + 1
    placed: dict[tuple[str, bytes], str] = {}
    written: dict[str, bytes] = {}
    ids: list[str] = []
    for vector in every:
        assert vector.id not in ids and vector.folder in FOLDERS, vector.id
        ids.append(vector.id)
        names: dict[str, str] = {}
        for name, data in _parts(vector):
            digest = hashlib.sha256(data).digest()
            shared = users[vector.folder, digest] > 1
            key = (vector.folder, digest)
            if shared and key not in placed:
                placed[key] = f"{vector.name}.{name}"
            path = f"{vector.folder}/shared/{placed[key]}" if shared else f"{vector.id}/{name}"
            assert written.setdefault(path, data) == data, path
            names[name] = f"../shared/{placed[key]}" if shared else name
        written[f"{vector.id}/case.json"] = _json(case(vector, names))
    counts = {verdict: sum(v.verdict == verdict for v in every) for verdict in EXIT}
    listed = json.dumps({"version": 1, "counts": counts, "vectors": ids}, indent=0)
    written["index.json"] = f"{listed}\n".encode()
    return written


def _parts(vector: Vector) -> list[tuple[str, bytes]]:
    """The files of a vector, by the names that they have in its own folder."""
    minted = vector.minted
    parts = [(minted.file, minted.data), *minted.endorsements, *_anchors(vector)]
    if vector.policy not in PROFILES:
        parts.append(("policy.toml", vector.policy.encode()))
    if vector.channel is not None:
        parts += [("keyset.json", vector.channel.keyset), ("channel-leaf.der", vector.channel.leaf)]
    assert len({name for name, _ in parts}) == len(parts), vector.id
    return parts


def _anchors(vector: Vector) -> list[tuple[str, bytes]]:
    """Those of the vendor's certificates that the vector's roots name."""
    named = {digest for digests in vector.minted.roots.values() for digest in digests}
    return [(name, der) for name, der in vector.minted.anchors if hashlib.sha256(der).hexdigest() in named]


def case(vector: Vector, names: dict[str, str]) -> dict[str, Any]:
    """The members of a `case.json`; `names` says where each file lies."""
    minted = vector.minted
    profile = vector.policy in PROFILES
    made: dict[str, Any] = {
        "id": vector.id,
        "title": vector.title,
        "spec": vector.spec,
        "grade": vector.grade,
        "refs": list(vector.refs),
        "twin": vector.twin or None,
        "kind": "connection" if vector.channel else "appraisal",
        "format": minted.format,
        "at": vector.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "policy": {"profile": vector.policy} if profile else {"file": names["policy.toml"]},
        "roots": {name: list(digests) for name, digests in minted.roots.items()},
        "anchors": [names[name] for name, _ in _anchors(vector)],
        "asked": {vector.asked[0]: vector.asked[1].hex()} if vector.asked else None,
        "evidence": names[minted.file],
        "endorsements": [names[name] for name, _ in minted.endorsements],
    }
    if vector.channel is not None:
        made["channel"] = {
            "nonce": vector.channel.nonce.hex(),
            "keyset": names["keyset.json"],
            "leaf": names["channel-leaf.der"],
            "batch": _batch(vector.channel.inclusion),
        }
    made["expected"] = {
        "verdict": vector.verdict,
        "exit": EXIT[vector.verdict],
        "code": vector.code or None,
        "failed_checks": list(vector.failed),
        "tcb_status": vector.tcb_status or None,
        "claims": dict(vector.claims),
    }
    return made


def _batch(inclusion: Inclusion | Single) -> dict[str, Any] | None:
    """The inclusion proof as answers have it (docs/spec/evidence.md §2.5); null where the evidence answers alone."""
    if isinstance(inclusion, Single):
        return None
    return {"index": inclusion.index, "size": inclusion.size, "path": [one.hex() for one in inclusion.path]}


def _json(value: dict[str, Any]) -> bytes:
    """One member a line: hundreds of files stay small, and differences can be read."""
    lines = [f"{json.dumps(name)}: {json.dumps(item, ensure_ascii=False)}" for name, item in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def present() -> dict[str, bytes]:
    """What lies in this folder now, of the kind that `files` writes."""
    found = [p for folder in FOLDERS for p in sorted((HERE / folder).rglob("*")) if p.is_file()]
    found += [p for p in [HERE / "index.json"] if p.is_file()]
    return {p.relative_to(HERE).as_posix(): p.read_bytes() for p in found}


def differences() -> list[str]:
    """Paths that are missing, too many, or of other content than what is made now."""
    made, there = files(vectors()), present()
    return sorted(p for p in made.keys() | there.keys() if made.get(p) != there.get(p))


def main(words: list[str]) -> int:
    """Writes or checks."""
    if words == ["--check"]:
        found = differences()
        print("\n".join(found) or "every vector is as it is made")
        return 1 if found else 0
    made = files(vectors())
    for folder in FOLDERS:
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for name, data in made.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    print(
        f"{len(made)} files, {sum(map(len, made.values()))} bytes, {json.loads(made['index.json'])['counts']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
