"""tools/evidence.py: what it fetches, what it refuses to use, and what its table says; against a local server."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "attest"))

import recorded
from fake_intel import Intel


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_tool", REPOSITORY / "tools" / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence_tool"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


tool = _tool()
COMMIT = "c" * 40


class Web:
    """A server with files by path; a number stands for a status without a body."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | int] = {}
        self.asked: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urllib.parse.unquote(self.path)
                web.asked.append(path)
                got = web.files.get(path, 404)
                self.send_response(got if isinstance(got, int) else 200)
                body = b"" if isinstance(got, int) else got
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web() -> Iterator[Web]:
    """An empty server."""
    one = Web()
    yield one
    one.server.shutdown()
    one.server.server_close()


def entry(data: bytes, transform: Any = (), **more: Any) -> dict[str, Any]:
    """What sources.json says of a sample that is `data`."""
    steps = list(transform) if isinstance(transform, tuple) else transform
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "transform": steps} | more


def samples(tmp_path: Path, files: dict[str, Any], *, base: str, cases: tuple[Any, ...] = ()) -> Any:
    """The samples of such a file, in a folder of the test."""
    sources = {"repositories": {"o/r": {"commit": COMMIT}}, "files": files, "cases": list(cases)}
    return tool.Samples(tmp_path / "into", base, sources)


CERTIFICATE = b"\x30\x03\x02\x01\x07"
PEM = b"text\n-----BEGIN CERTIFICATE-----\r\nMAMC\r\nAQc=\r\n-----END CERTIFICATE-----\nmore"


@pytest.mark.parametrize(
    ("source", "steps", "data"),
    [
        (b"\x00\x01raw", (), b"\x00\x01raw"),
        (b"0x00ff7a\n", ("unhex",), b"\x00\xffz"),
        (PEM, ("pem",), CERTIFICATE),
        (b"0123456789", (["slice", 2, 5],), b"234"),
        (b"xxabcdefg", (["from", b"ab".hex(), 4],), b"abcd"),
        (b"san: 7a7b7c.", (["from", b"7a".hex(), 6], "unhex"), b"z{|"),
    ],
    ids=["raw", "unhex", "pem", "slice", "from", "from unhex"],
)
def test_samples_are_made_of_their_sources(
    web: Web, tmp_path: Path, source: bytes, steps: tuple[Any, ...], data: bytes
) -> None:
    """Each transform; the file is there afterwards, and is not fetched again."""
    web.files[f"/o/r/{COMMIT}/a dir/x"] = source
    named = {"s/x.bin": entry(data, steps, **{"from": "o/r:a dir/x"})}
    for _ in range(2):
        samples(tmp_path, named, base=web.base).require("s/x.bin")
    assert (tmp_path / "into" / "s" / "x.bin").read_bytes() == data
    assert web.asked == [f"/o/r/{COMMIT}/a dir/x"]
    assert [p.name for p in (tmp_path / "into" / "s").iterdir()] == ["x.bin"]


@pytest.mark.parametrize(
    ("source", "steps", "why"),
    [
        (b"other", (), "another SHA-256"),
        (404, (), "status 404"),
        (500, (), "status 500"),
        (bytes(tool.MAX_FETCH + 1), (), "more than"),
        (b"xyz", ("unhex",), "not hex"),
        (b"xyz", ("pem",), "no PEM certificate"),
        (b"xyz", (["from", "00", 1],), "does not hold"),
        (b"xyz", ("rot13",), "unknown transform"),
        (b"xyz", "unknown: nobody said", "nobody said"),
        (b"", (), "another SHA-256"),
    ],
    ids=range(10),
)
def test_what_is_not_the_sample_is_not_kept(
    web: Web, tmp_path: Path, source: bytes | int, steps: Any, why: str
) -> None:
    """Wrong hash, status, size or form: nothing lies in the folder, and the reason is said."""
    web.files[f"/o/r/{COMMIT}/x"] = source
    one = samples(tmp_path, {"x": entry(b"the sample", steps, **{"from": "o/r:x"})}, base=web.base)
    with pytest.raises(tool.Missing, match=why):
        one.require("x")
    assert not (tmp_path / "into").exists()


def test_a_file_that_is_another_is_replaced_where_it_may_be_fetched_and_named_where_not(
    web: Web, tmp_path: Path
) -> None:
    """`--from` changes nothing in somebody's folder."""
    web.files[f"/o/r/{COMMIT}/x"] = b"the sample"
    named = {"x": entry(b"the sample", **{"from": "o/r:x"}), "y": entry(b"y", own="ours")}
    path = tmp_path / "into" / "x"
    path.parent.mkdir()
    path.write_bytes(b"altered")
    with pytest.raises(tool.Missing, match="another file"):
        samples(tmp_path, named, base="").require("x")
    assert path.read_bytes() == b"altered" and web.asked == []
    samples(tmp_path, named, base=web.base).require("x")
    assert path.read_bytes() == b"the sample"
    with pytest.raises(tool.Missing, match="not there"):
        samples(tmp_path, named, base="").require("y")
    with pytest.raises(tool.Missing, match="ours"):
        samples(tmp_path, named, base=web.base).require("y")


@pytest.mark.parametrize("base", ["file:///etc", "http://host.example", "ftp://127.0.0.1:1"])
def test_only_https_is_fetched(tmp_path: Path, base: str) -> None:
    """And this machine's own server."""
    one = samples(tmp_path, {"x": entry(b"", **{"from": "o/r:x"})}, base=base)
    with pytest.raises(tool.Missing, match="only https"):
        one.require("x")


def test_a_server_that_is_not_there_is_said_once_for_each_source(tmp_path: Path) -> None:
    """Not tried again for the next sample of the same source."""
    named = {n: entry(b"x", **{"from": "o/r:x"}) for n in ("a", "b")}
    one = samples(tmp_path, named, base="http://127.0.0.1:1")
    for name in named:
        with pytest.raises(tool.Missing, match="not reached"):
            one.require(name)
    assert len(one._fetched) == 1


# --- bundles ------------------------------------------------------------------------------------------------

VENDOR = Intel()
BUNDLE: dict[str, str] = json.loads(VENDOR.bundle)


def _response(member: str, of: dict[str, str] = BUNDLE) -> bytes:
    """What Intel's service answers: the document as it is signed, and the signature."""
    name = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}[member]
    return f'{{"{name}":{of[member]},"signature":"{of[f"{member}_signature"]}"}}'.encode()


def _pem_crl(text: str) -> bytes:
    body = base64.b64encode(bytes.fromhex(text)).decode()
    return f"-----BEGIN X509 CRL-----\n{textwrap.fill(body, 64)}\n-----END X509 CRL-----\n".encode()


def test_bundles_are_composed_of_elements_by_their_digests(web: Web, tmp_path: Path) -> None:
    """From answers, revocation lists in DER and PEM, a blob with everything in it, percent-encoded headers, JSON."""
    compact = {
        m: json.dumps(json.loads(BUNDLE[m]), separators=(",", ":")) for m in ("tcb_info", "qe_identity")
    }
    bundle = BUNDLE | compact
    whole = json.dumps(bundle, indent=1).encode()
    members = {m: hashlib.sha256(v.encode()).hexdigest() for m, v in bundle.items()}
    assert len(members) == 9
    chains = "\n".join(v for m, v in bundle.items() if m.endswith("issuer_chain"))
    blob = b"\1\0\0\0" + b"\0".join(
        [_response("tcb_info", bundle), chains.encode(), _response("qe_identity", bundle)]
    )
    ways: dict[str, dict[str, bytes]] = {
        "one document": {"a": json.dumps(bundle).encode()},
        "answers, lists and headers": {
            "tcb": _response("tcb_info", bundle),
            "qe": json.dumps(json.loads(_response("qe_identity", bundle)), indent=2).encode(),
            "pck.der": bytes.fromhex(bundle["pck_crl"]),
            "root.pem": _pem_crl(bundle["root_ca_crl"]),
            "code.go": f'var x = "{urllib.parse.quote(chains, safe="")}"'.encode(),
        },
        "a blob": {
            "x.bin": blob + bundle["pck_crl"].upper().encode() + b"\0" + bytes.fromhex(bundle["root_ca_crl"])
        },
    }
    for way, sources in ways.items():
        web.files = {f"/o/r/{COMMIT}/{name}": data for name, data in sources.items()}
        said = entry(whole, elements=members, **{"from": [f"o/r:{name}" for name in sources]})
        one = samples(tmp_path / way, {"b.json": said}, base=web.base)
        one.require("b.json")
        assert (one.folder / "b.json").read_bytes() == whole, way
    web.files.clear()
    lacking = samples(tmp_path / "none", {"b.json": said}, base=web.base)
    with pytest.raises(tool.Missing, match=r"no source has pck_crl_issuer_chain.*status 404"):
        lacking.require("b.json")
    web.files = {f"/o/r/{COMMIT}/x.bin": json.dumps(bundle | {"pck_crl": "00"}).encode()}
    lacking = samples(tmp_path / "none", {"b.json": said}, base=web.base)
    with pytest.raises(tool.Missing, match=r"no source has pck_crl$"):
        lacking.require("b.json")


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b"{", b"\x30\x82", b"\x30\x82\xff\xff", b"[" * 100_000, b"3082" * 50]
)
def test_files_that_hold_nothing_give_no_elements_or_harmless_ones(data: bytes) -> None:
    """Whatever is found is used only where its SHA-256 was written down."""
    assert all(isinstance(e, str) for e in tool.elements(data))


# --- the table ----------------------------------------------------------------------------------------------

CASE = {
    "name": "one", "format": "nitro", "evidence": "s", "endorsements": ["e"], "at": "2026-01-01T00:00:00Z",
    "exit": 0, "code": None, "tcb_status": "UpToDate", "measurement": "ab",
}  # fmt: skip


def _said(exit_code: int, codes: tuple[str, ...] = (), **claims: Any) -> Any:
    checks = [{"passed": True, "code": None}, *({"passed": False, "code": c} for c in codes)]
    return SimpleNamespace(
        exit_code=exit_code, stdout=json.dumps({"checks": checks, "claims": claims or None})
    )


GOOD = {"tcb_status": "UpToDate", "measurement": "ab"}
REFUSED = CASE | {"exit": 10, "code": "quote_debug", "tcb_status": None, "measurement": None}


@pytest.mark.parametrize(
    ("case", "done", "verdict"),
    [
        (CASE, _said(0, **GOOD), "ok"),
        (CASE, _said(10, ("quote_debug",), **GOOD), "DIFFERENT"),
        (CASE, _said(10, (), **GOOD), "DIFFERENT"),
        (CASE, _said(0, ("quote_debug",), **GOOD), "DIFFERENT"),
        (CASE, _said(0, **GOOD | {"tcb_status": "OutOfDate"}), "DIFFERENT"),
        (CASE, _said(0, **GOOD | {"measurement": "cd"}), "DIFFERENT"),
        (CASE, _said(0), "DIFFERENT"),
        (REFUSED, _said(10, ("x", "quote_debug")), "ok"),
        (REFUSED, _said(10, ("x",)), "DIFFERENT"),
        (REFUSED, _said(0), "DIFFERENT"),
        (REFUSED, _said(20, ("quote_debug",)), "DIFFERENT"),
        (REFUSED, SimpleNamespace(exit_code=20, stdout='{"error": {}}'), "DIFFERENT"),
        (REFUSED, SimpleNamespace(exit_code=1, stdout="Traceback"), "DIFFERENT"),
    ],
    ids=range(13),
)
def test_every_difference_is_a_difference(tmp_path: Path, case: Any, done: Any, verdict: str) -> None:
    """Exit code, the failure that must be there, status, measurement."""
    named = {"s/a": entry(b"a"), "e": entry(b"e"), "stranger": entry(b"?")}
    one = samples(tmp_path, named, base="", cases=(case,))
    (one.folder / "s").mkdir(parents=True)
    for name, data in (("s/a", b"a"), ("e", b"e")):
        (one.folder / name).write_bytes(data)
    words: list[str] = []

    def appraise(given: list[str]) -> Any:
        words.extend(given)
        return done

    assert tool.run_case(case, one, appraise).verdict == verdict
    assert words[:3] == [str(one.folder / "s"), "--format", "nitro"]
    assert words[-2:] == ["--policy", "UNSAFE_ANY_MEASUREMENT"] and str(one.folder / "e") in words


def test_a_case_without_its_samples_is_not_run(tmp_path: Path, web: Web) -> None:
    """What is public and cannot be had counts against the run; what was never published does not."""
    never = lambda words: pytest.fail("appraised without its samples")  # noqa: E731
    for said, verdict in (({"from": "o/r:a"}, "MISSING"), ({"own": "ours"}, "not run")):
        one = samples(tmp_path, {"s/a": entry(b"a", **said), "e": entry(b"e")}, base=web.base)
        assert tool.run_case(CASE, one, never).verdict == verdict
    (one.folder / "s").mkdir(parents=True)
    (one.folder / "s" / "a").write_bytes(b"altered")
    assert tool.run_case(CASE, one, never).verdict == "MISSING"


# --- the whole ----------------------------------------------------------------------------------------------


def _public() -> dict[str, bytes]:
    """Public files that give the recorded samples: every transform undone, elements spread over their sources."""
    files: dict[str, bytes] = {}
    for name, said in recorded.SOURCES["files"].items():
        if "elements" in said or "from" not in said:
            continue
        data = (recorded.EVIDENCE / name).read_bytes()
        for step in reversed(said["transform"]):
            match step:
                case "unhex":
                    data = data.hex().encode()
                case "pem":
                    body = textwrap.fill(base64.b64encode(data).decode(), 64)
                    data = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n".encode()
                case ["slice", start, _]:
                    data = bytes(start) + data
                case ["from", *_]:
                    data = b"around " + data + b" it"
        files.setdefault(said["from"], data)  # a source of two samples is the larger one, which comes first
    for name, said in recorded.SOURCES["files"].items():
        if "elements" not in said:
            continue
        bundle: dict[str, str] = json.loads((recorded.EVIDENCE / name).read_bytes())
        for source in said["from"]:
            path, held = source.partition(":")[2], files.get(source, b"")
            if path.endswith(("collateral.json", ".go")):
                text = "".join(v for m, v in bundle.items() if m.endswith("chain"))
                held += urllib.parse.quote(text, safe="").encode()
            if path.endswith((".der", "pckcrl", "collateral.json", ".bin")):
                held += b"".join(bytes.fromhex(bundle[m]) for m in ("pck_crl", "root_ca_crl"))
            if not path.endswith((".der", "pckcrl", ".go")):
                held += _response("tcb_info", bundle) + b"\n" + _response("qe_identity", bundle)
            files[source] = held
    commits = {name: said["commit"] for name, said in recorded.SOURCES["repositories"].items()}
    return {
        f"/{s.partition(':')[0]}/{commits[s.partition(':')[0]]}/{s.partition(':')[2]}": d
        for s, d in files.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not recorded.EVIDENCE.is_dir(), reason=recorded.ABSENT)
def test_every_public_sample_is_fetched_and_gives_its_outcome(web: Web, tmp_path: Path) -> None:
    """The command itself: from nothing, then from what it fetched, then with one file altered and one gone."""
    web.files = dict(_public())
    into = tmp_path / "into"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, str(REPOSITORY / "tools" / "evidence.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    total = len(recorded.EVERY)
    code, table = run("--base", web.base, "--into", str(into))
    own = sum("own" in e for e in recorded.SOURCES["files"].values()) and 1
    assert table.splitlines()[-1] == f"{total - own} ok, 0 DIFFERENT, 0 MISSING, {own} not run"
    assert code == 0
    web.files.clear()
    asked = len(web.asked)
    assert run("--base", web.base, "--into", str(into))[0] == 0
    assert len(web.asked) == asked
    (into / "nitro" / "prod-2025" / "doc.cose").write_bytes(b"altered")
    (into / "nitro" / "debug-2025" / "doc.cose").unlink()
    code, table = run("--from", str(into))
    assert code == 1 and f"{total - own - 2} ok, 0 DIFFERENT, 2 MISSING" in table
    assert (into / "nitro" / "prod-2025" / "doc.cose").read_bytes() == b"altered"
    assert run("--from", str(tmp_path / "nowhere"))[0] == 1
