"""Fetches the public samples of genuine evidence that tests/vectors/genuine/sources.json names, and appraises them.

    python tools/evidence.py [--into DIR] [--from DIR] [--base URL]

With `--from DIR` (or STRONGROOM_EVIDENCE=DIR) an existing copy is used and nothing is fetched. No file is used, and
none is kept, whose SHA-256 is not the one written down. Exit code 0 where every sample that is there gave its outcome
and nothing that is public is missing, else 1.
"""

import argparse
import base64
import hashlib
import itertools
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "vectors" / "genuine" / "sources.json"
INTO = ROOT / ".evidence"
BASE = "https://raw.githubusercontent.com"
MAX_FETCH = 1 << 20
"""Bytes of one file; the largest sample, an event log, has 256 KiB."""
TIMEOUT_S = 30.0
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----\r?\n([A-Za-z0-9+/=\r\n]+?)\r?\n-----END \1-----")
_HEX = re.compile(rb"(?<![0-9a-fA-F])308[12][0-9a-fA-F]{100,}")
_DER = re.compile(rb"(?=\x30(?:\x82(..)|\x81(.)))", re.DOTALL)
_RESPONSE = re.compile(rb'\{"(?:tcbInfo|enclaveIdentity)":.*?"signature":"[0-9a-f]{128}"\}', re.DOTALL)


class Missing(Exception):
    """A sample cannot be had; the text says why, in one line."""


def sha256(data: bytes) -> str:
    """Lower-case hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Samples:
    """The samples in one folder: what is there, fetched into it where `base` says from where."""

    folder: Path
    base: str
    """Where public files are; "" where nothing is to be fetched."""
    sources: dict[str, Any] = field(default_factory=lambda: dict(json.loads(SOURCES.read_text())))
    _fetched: dict[str, bytes | Missing] = field(default_factory=dict)

    def require(self, name: str) -> None:
        """Makes sure that the sample `name` is in the folder.

        Raises:
            Missing: it is not there and cannot be fetched, or is another file.
        """
        entry, path = self.sources["files"][name], self.folder / name
        there = path.read_bytes() if path.is_file() else None
        if there is not None and sha256(there) == entry["sha256"]:
            return
        if not self.base:
            raise Missing(f"{name}: {'not there' if there is None else 'another file: its SHA-256 differs'}")
        data = self._make(name, entry)
        if sha256(data) != entry["sha256"]:
            raise Missing(f"{name}: what was fetched has another SHA-256")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(data)
        part.replace(path)

    def public(self, name: str) -> bool:
        """Whether a public source of it is known."""
        return "from" in self.sources["files"][name]

    def _make(self, name: str, entry: dict[str, Any]) -> bytes:
        """The sample, made from what is public."""
        if "from" not in entry:
            raise Missing(f"{name}: {entry.get('own') or entry['transform']}")
        if "elements" in entry:
            return self._compose(name, entry)
        return transform(self._fetch(entry["from"]), entry["transform"], name)

    def _compose(self, name: str, entry: dict[str, Any]) -> bytes:
        """A DCAP bundle, from elements found in its sources by their SHA-256."""
        found: dict[str, str] = {}
        reasons = []
        for source in entry["from"]:
            try:
                found |= {sha256(e.encode()): e for e in elements(self._fetch(source))}
            except Missing as exc:
                reasons.append(str(exc))
        lacking = [member for member, digest in entry["elements"].items() if digest not in found]
        if lacking:
            raise Missing("; ".join([f"{name}: no source has {', '.join(lacking)}", *reasons]))
        return json.dumps({m: found[digest] for m, digest in entry["elements"].items()}, indent=1).encode()

    def _fetch(self, source: str) -> bytes:
        """A file at the commit that its repository is pinned to; each once."""
        if source not in self._fetched:
            try:
                self._fetched[source] = self._get(source)
            except Missing as exc:
                self._fetched[source] = exc
        got = self._fetched[source]
        if isinstance(got, Missing):
            raise got
        return got

    def _get(self, source: str) -> bytes:
        repository, _, path = source.partition(":")
        commit = self.sources["repositories"][repository]["commit"]
        url = f"{self.base.rstrip('/')}/{repository}/{commit}/{urllib.parse.quote(path)}"
        if not url.startswith(("https://", "http://127.0.0.1:")):
            raise Missing(f"{source}: only https is fetched")
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                data: bytes = answer.read(MAX_FETCH + 1)
        except urllib.error.HTTPError as exc:
            exc.close()
            raise Missing(f"{source}: status {exc.code}") from None
        except (OSError, ValueError) as exc:
            raise Missing(f"{source}: not reached ({type(exc).__name__})") from None
        if len(data) > MAX_FETCH:
            raise Missing(f"{source}: more than {MAX_FETCH} bytes")
        return data


def transform(data: bytes, steps: Any, name: str) -> bytes:
    """What was cut out of `data`, step by step (README.md beside the sources).

    Raises:
        Missing: a step does not fit, or how it was cut out is not known.
    """
    if isinstance(steps, str):
        raise Missing(f"{name}: {steps}")
    for step in steps:
        match step:
            case "unhex":
                try:
                    data = bytes.fromhex(data.decode("ascii").strip().removeprefix("0x"))
                except ValueError as exc:
                    raise Missing(f"{name}: its source is not hex") from exc
            case "pem":
                block = next((b for kind, b in pem_blocks(data) if kind == "CERTIFICATE"), None)
                if block is None:
                    raise Missing(f"{name}: its source has no PEM certificate")
                data = der(block)
            case ["slice", int(start), int(end)]:
                data = data[start:end]
            case ["from", str(head), int(size)]:
                at = data.find(bytes.fromhex(head))
                if at < 0:
                    raise Missing(f"{name}: its source does not hold {head}")
                data = data[at : at + size]
            case _:
                raise Missing(f"{name}: unknown transform {step}")
    return data


def pem_blocks(data: bytes) -> Iterator[tuple[str, str]]:
    """Label and text of each PEM block."""
    for found in _PEM.finditer(data):
        yield found[1].decode(), found[2].decode().replace("\r", "")


def der(text: str) -> bytes:
    """The bytes of a PEM block's text."""
    return base64.b64decode("".join(text.split()))


def elements(data: bytes) -> Iterator[str]:
    """Everything in a file that may be a member of a DCAP bundle; the SHA-256 says later what is one.

    Members of JSON documents, the signed text of Intel's answers and its signature, pairs of certificates in PEM (also
    percent-encoded, as in Intel's headers), revocation lists in DER, PEM or hex.
    """
    texts = [data]
    if b"-----BEGIN%20" in data:
        texts.append(urllib.parse.unquote_to_bytes(data))
    for text in texts:
        blocks = list(pem_blocks(text))
        chain = [f"-----BEGIN {k}-----\n{b}\n-----END {k}-----\n" for k, b in blocks if k == "CERTIFICATE"]
        yield from (one + two for one, two in itertools.pairwise(chain))
        yield from (der(b).hex() for kind, b in blocks if kind == "X509 CRL")
    yield from (found[0].decode().lower() for found in _HEX.finditer(data))
    for found in _DER.finditer(data):
        head, size = (4, found[1]) if found[1] else (3, found[2])
        yield data[found.start() : found.start() + head + int.from_bytes(size)].hex()
    for document in [data, *(found[0] for found in _RESPONSE.finditer(data))]:
        try:
            members = json.loads(document)
        except (ValueError, RecursionError):
            continue
        for value in members.values() if isinstance(members, dict) else ():
            yield value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    expected: str
    got: str
    verdict: str
    """ok, DIFFERENT, MISSING (though it is public) or not run."""


def needed(case: dict[str, Any], files: dict[str, Any]) -> list[str]:
    """The samples of a case; evidence may be a folder of them."""
    evidence = [n for n in files if n == case["evidence"] or n.startswith(f"{case['evidence']}/")]
    return [*evidence, *case["endorsements"]]


def run_case(case: dict[str, Any], samples: Samples, appraise: Callable[[list[str]], Any]) -> Result:
    """One appraisal, compared with its outcome."""
    expected = f"{case['exit']} {case['code'] or case['tcb_status'] or 'accepted'}"
    names = needed(case, samples.sources["files"])
    for name in names:
        try:
            samples.require(name)
        except Missing as exc:
            lost = samples.public(name) or (samples.folder / name).exists()
            return Result(case["name"], expected, str(exc), "MISSING" if lost else "not run")
    words = [str(samples.folder / case["evidence"]), "--format", case["format"], "--at", case["at"], "--json"]
    words += [
        word for name in case["endorsements"] for word in ("--endorsements", str(samples.folder / name))
    ]
    done = appraise([*words, "--policy", "UNSAFE_ANY_MEASUREMENT"])
    return compare(case, expected, done.exit_code, done.stdout)


def compare(case: dict[str, Any], expected: str, exit_code: int, output: str) -> Result:
    """What the command did against what it must do: exit code, the failure that must be there, status, measurement."""
    try:
        document = json.loads(output)
        codes = [c["code"] for c in document["checks"] if not c["passed"]]
        claims = document["claims"] or {}
    except (ValueError, KeyError, TypeError):
        return Result(case["name"], expected, f"{exit_code} no verdict", "DIFFERENT")
    said = claims.get("tcb_status")
    fine = exit_code == case["exit"] and (case["code"] in codes if case["code"] else not codes)
    fine = (
        fine
        and case["tcb_status"] in (None, said)
        and case["measurement"] in (None, claims.get("measurement"))
    )
    got = (
        case["code"]
        if case["code"] in codes
        else codes[0]
        if codes
        else said
        if case["tcb_status"]
        else "accepted"
    )
    return Result(case["name"], expected, f"{exit_code} {got}", "ok" if fine else "DIFFERENT")


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=INTO, help="folder for what is fetched (.evidence)")
    parser.add_argument("--from", dest="copy", type=Path, default=os.environ.get("STRONGROOM_EVIDENCE"),
                        help="an existing copy; nothing is fetched (STRONGROOM_EVIDENCE)")  # fmt: skip
    parser.add_argument("--base", default=BASE, help=f"where the public files are ({BASE})")
    options = parser.parse_args()
    copy = options.copy or None
    samples = Samples(Path(copy) if copy else options.into, "" if copy else options.base)

    from click.testing import CliRunner

    from strongroom.cli import main as command

    runner = CliRunner(env={"STRONGROOM_POLICY": None})
    results = [
        run_case(case, samples, lambda words: runner.invoke(command, ["appraise", *words]))
        for case in samples.sources["cases"]
    ]
    width = max(len(r.name) for r in results)
    for r in results:
        print(f"{r.verdict:<10} {r.name:<{width}}  expected {r.expected}; got {r.got}")
    counts = {
        word: sum(r.verdict == word for r in results) for word in ("ok", "DIFFERENT", "MISSING", "not run")
    }
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 0 if counts["ok"] and not counts["DIFFERENT"] and not counts["MISSING"] else 1


if __name__ == "__main__":
    sys.exit(main())
