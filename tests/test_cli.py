"""The command line: what it prints, its exit codes, and that its documentation is what it says."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import REPOSITORY
from fake_server import MEASUREMENT, ROOT, FakeServer, policy_text, stored

from strongroom import terminal
from strongroom.attest import sim
from strongroom.cli import main
from strongroom.errors import Conflict, Error, Failure, NotFound, Unavailable, walk

ONNX = b"\x08\x08\x12\x04test:\x00" * 40
DOCUMENT = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
CLEAN = {name: None for name in os.environ if name.startswith("STRONGROOM_")}


def strongroom(*words: object, **environment: str) -> Result:
    """Runs the command in this process."""
    return CliRunner(env={**CLEAN, **environment}).invoke(main, [str(word) for word in words])


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """An honest server with one model."""
    with FakeServer(models={"m": stored("m")}) as running:
        yield running


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy file that accepts it."""
    path = tmp_path / "policy.toml"
    path.write_text(policy_text())
    return path


@pytest.fixture
def environment(server: FakeServer, policy: Path, tmp_path: Path) -> dict[str, str]:
    """Server, policy and key through the environment."""
    assert strongroom("keygen", tmp_path / "key.pem").exit_code == 0
    return {
        "STRONGROOM_URL": server.url,
        "STRONGROOM_POLICY": str(policy),
        "STRONGROOM_KEY": str(tmp_path / "key.pem"),
    }


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_prints_one_line_per_check(server: FakeServer, policy: Path) -> None:
    """PASS, id, title, what was expected, what came; then the verdict, and SIMULATED; exit code 0."""
    result = strongroom("verify", server.url, "--policy", policy)
    assert result.exit_code == 0
    *checks, verdict, simulated = result.stdout.splitlines()
    assert len(checks) > 10
    for line in checks:
        assert re.match(r"PASS  [a-z_.]+ +\S.*: expected .+; got .+", line), line
    assert verdict == f"ACCEPTED: {len(checks)} checks passed"
    assert simulated.startswith("SIMULATED")
    assert server.paths() == ["/v1/evidence"]


def test_verify_a_wrong_server(server: FakeServer, tmp_path: Path) -> None:
    """FAIL where it fails, the other checks still shown, exit code 10."""
    other = tmp_path / "other.toml"
    other.write_text(policy_text(measurement="cd" * 32))
    result = strongroom("verify", server.url, "--policy", other)
    assert result.exit_code == 10
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "cd" * 32 in failed[0] and MEASUREMENT in failed[0]
    assert "REFUSED: 1 of" in result.stdout and "SIMULATED" in result.stdout


def test_verify_as_json(server: FakeServer, policy: Path) -> None:
    """The whole verdict, passed or not."""
    verdict = json.loads(strongroom("verify", server.url, "--policy", policy, "--json").stdout)
    assert verdict["passed"] and verdict["label"] == "SIMULATED" and verdict["checks"]
    refused = strongroom("verify", server.url, "--policy", "production", "--json")
    assert refused.exit_code == 10
    assert json.loads(refused.stdout)["code"] == "simulation_refused"


def test_verify_writes_the_certificate_of_an_accepted_server(
    server: FakeServer, policy: Path, tmp_path: Path
) -> None:
    """The leaf of the very connection, for everybody to read, over an old one; nothing where it is refused."""
    path = tmp_path / "server.pem"
    pem = ssl.DER_cert_to_PEM_cert(server.identity.certificate_der)
    refused = strongroom("verify", server.url, "--policy", "production", "--certificate", path)
    assert refused.exit_code == 10 and not path.exists()
    path.write_text("old")
    path.chmod(0o600)
    result = strongroom("verify", server.url, "--policy", policy, "--certificate", path)
    assert result.exit_code == 0, result.output
    assert path.read_text() == pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    trusting = ssl.create_default_context(cafile=str(path))
    trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT  # newer Pythons' default, and nobody else's
    with (
        socket.create_connection(("127.0.0.1", server.port)) as raw,
        trusting.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        assert ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"") == pem
    nowhere = strongroom("verify", server.url, "--policy", policy, "--certificate", tmp_path / "absent" / "c")
    assert nowhere.exit_code == 20 and "[output_unwritable]" in nowhere.stderr


def test_verify_saves_what_it_rests_on(server: FakeServer, policy: Path, tmp_path: Path) -> None:
    """`appraise` says the same of the file, without server, format or policy; with the server gone."""
    path = tmp_path / "bundle.zip"
    result = strongroom("verify", server.url, "--policy", policy, "--save", path)
    assert result.exit_code == 0 and f"wrote {path}" in result.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    server.close()
    again = strongroom("appraise", path)
    assert again.exit_code == 0
    for text in (
        server.url,
        "the bundle's own",
        "NOT CHECKED  the nonce",
        "ACCEPTED: 32 checks",
        "SIMULATED",
    ):
        assert text in again.stdout, text
    document = json.loads(strongroom("appraise", path, "--json", "--explain").stdout)
    assert document["passed"] and document["bundle"]["origin"] == server.url
    assert document["bundle"]["verified_at"] == document["bundle"]["verified_again_at"]
    assert len(document["not_checked"]) == 5 and any(
        "simulated" in text for text in document["does_not_prove"]
    )


def test_verify_saves_what_it_refused(server: FakeServer, policy: Path, tmp_path: Path) -> None:
    """Exit code 10 all the same; the file is refused again, and accepted by a policy that accepts it."""
    path = tmp_path / "bundle.zip"
    result = strongroom("verify", server.url, "--policy", "production", "--save", path)
    assert result.exit_code == 10 and f"wrote {path}" in result.stderr
    refused = strongroom("appraise", path, "--json")
    assert refused.exit_code == 10
    assert (
        json.loads(refused.stdout)["code"]
        == json.loads(strongroom("verify", server.url, "--policy", "production", "--json").stdout)["code"]
    )
    accepted = strongroom("appraise", path, "--policy", policy, "--json")
    assert accepted.exit_code == 0
    assert json.loads(accepted.stdout)["bundle"]["policy"] == str(policy)
    assert strongroom("appraise", path, STRONGROOM_POLICY=str(policy)).exit_code == 0


def test_verify_overwrites_nothing(server: FakeServer, policy: Path, tmp_path: Path) -> None:
    """A file, a link to nowhere, a folder: left as they are, and no server is asked. Nothing half-written stays."""
    path = tmp_path / "bundle.zip"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link", tmp_path):
        result = strongroom("verify", server.url, "--policy", policy, "--save", taken)
        assert result.exit_code == 20 and "exists already" in result.stderr
    assert path.read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert server.paths() == []
    nowhere = strongroom("verify", server.url, "--policy", policy, "--save", tmp_path / "absent" / "b.zip")
    assert nowhere.exit_code == 20 and "[output_unwritable]" in nowhere.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"bundle.zip", "link", "policy.toml"}


def test_a_save_that_fails_leaves_nothing(
    server: FakeServer, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk; a file system without hard links, which is written all the same; a file that appears in between."""
    path = tmp_path / "bundle.zip"

    def fails(_path: Path, _other: object) -> int:
        raise OSError(28, "no")

    for method in ("chmod", "hardlink_to"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, fails)
            result = strongroom("verify", server.url, "--policy", policy, "--save", path)
        if method == "chmod":
            assert result.exit_code == 20 and "[output_unwritable]" in result.stderr
            assert {p.name for p in tmp_path.iterdir()} == {"policy.toml"}
    assert result.exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"policy.toml", "bundle.zip"}
    assert strongroom("appraise", path).exit_code == 0
    path.unlink()

    def meanwhile(_fake: FakeServer, _got: Any, _connection: Any) -> bool:
        path.write_text("somebody else's")
        return False

    server.script = meanwhile
    result = strongroom("verify", server.url, "--policy", policy, "--save", path)
    assert result.exit_code == 20 and "exists already" in result.stderr
    assert path.read_text() == "somebody else's"


def test_nothing_is_saved_where_no_evidence_came(server: FakeServer, policy: Path, tmp_path: Path) -> None:
    """A redirect is refused; a server that is not there is no verdict at all."""

    def script(_fake: FakeServer, _got: Any, connection: Any) -> bool:
        connection.sendall(b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
        return True

    server.script = script
    path = tmp_path / "bundle.zip"
    result = strongroom("verify", server.url, "--policy", policy, "--save", path)
    assert result.exit_code == 10 and "was not written: no evidence came" in result.stderr
    assert strongroom("verify", "https://127.0.0.1:1", "--policy", policy, "--save", path).exit_code == 30
    assert not path.exists()


def test_verify_somebody_in_the_middle(server: FakeServer, policy: Path) -> None:
    """Also where there is no evidence at all, a check says what was wrong."""

    def script(_fake: FakeServer, _got: Any, connection: Any) -> bool:
        connection.sendall(b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
        return True

    server.script = script
    result = strongroom("verify", server.url, "--policy", policy)
    assert result.exit_code == 10
    assert result.stdout.startswith("FAIL  channel.answer_redirect")


def test_what_a_stranger_says_cannot_steer_the_terminal(server: FakeServer, policy: Path) -> None:
    """Escape sequences in the evidence are not printed."""

    def script(_fake: FakeServer, _got: Any, connection: Any) -> bool:
        body = b'{"endorsements":[],"evidence":"","format":"\\u001b[2J","keyset":""}'
        connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return True

    server.script = script
    result = strongroom("verify", server.url, "--policy", policy)
    assert result.exit_code == 10
    assert "\x1b[2J" not in result.stdout + result.stderr


# --- exit codes ---------------------------------------------------------------------------------------------


def test_every_error_class_has_its_exit_code() -> None:
    """Families: refused 10, unusable 20, unavailable 30, our fault 1."""
    expected = {"Refused": 10, "Unusable": 20, "Unavailable": 30}
    for kind in (k for k in walk(Error) if k.__module__ == "strongroom.errors"):
        names = [base.__name__ for base in kind.__mro__]
        code = next((expected[n] for n in names if n in expected), 1)
        assert terminal.exit_code(kind("text")) == code, kind


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["verify", "https://127.0.0.1:1", "--policy", "{policy}"], 30),
        (["verify", "http://127.0.0.1:1", "--policy", "{policy}"], 20),
        (["verify", "https://127.0.0.1:1", "--policy", "absent.toml"], 20),
        (["verify", "https://127.0.0.1:1"], 20),
        (["verify", "nourl", "--policy", "{policy}"], 20),
        (["verify", "127.0.0.1:1", "--policy", "{policy}"], 20),
        (["verify", "--no-such-option"], 20),
        (["no-such-command"], 20),
        (["models", "--url", "{url}", "--policy", "production"], 10),
        (["models", "--url", "{url}", "--policy", "{policy}", "--key", "absent.pem"], 20),
        (["run", "absent", "x.npy", "--url", "{url}", "--policy", "{policy}"], 20),
        (["load", "m", "--url", "{url}", "--policy", "{policy}"], 10),
        (["--help"], 0),
        (["--version"], 0),
    ],
)
def test_exit_codes(words: list[str], code: int, server: FakeServer, policy: Path) -> None:
    """0 ok, 10 refused, 20 unusable input, 30 unreachable; never a traceback."""
    result = strongroom(*(word.format(policy=policy, url=server.url) for word in words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert code == 0 or result.stderr.strip()


def test_a_bug_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is not one of our errors: it shows where, and says so. Our own faults show no traceback."""
    import strongroom.tokens as module

    monkeypatch.setattr(module, "new_key_pem", lambda: 1 / 0)
    result = strongroom("keygen", tmp_path / "k")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr and "this is a bug" in result.stderr

    def fault() -> bytes:
        raise Failure("broken")

    monkeypatch.setattr(module, "new_key_pem", fault)
    result = strongroom("keygen", tmp_path / "k")
    assert result.exit_code == 1 and "Traceback" not in result.stderr


def test_errors_as_json(tmp_path: Path, policy: Path) -> None:
    """With --json an error is a document too, on standard output."""
    result = strongroom("models", "--url", "https://127.0.0.1:1", "--policy", policy, "--json")
    assert result.exit_code == 30
    assert json.loads(result.stdout)["error"]["code"] == "server_unreachable"
    refused = strongroom("keygen", "--json", tmp_path)
    assert refused.exit_code == 20
    assert json.loads(refused.stdout)["error"]["code"] == "key_exists"


@pytest.mark.parametrize(
    "words", [["verify", "--json"], ["models", "--json", "--wrong"], ["--json"], ["policy", "init", "--json"]]
)
def test_usage_errors_as_json(words: list[str]) -> None:
    """Also a command line that is wrong is a document where one was asked for."""
    result = strongroom(*words)
    assert result.exit_code == 20
    assert json.loads(result.stdout)["error"]["code"] == "usage_invalid"
    assert result.stderr == ""


def test_files_that_do_not_exist(server: FakeServer, environment: dict[str, str]) -> None:
    """Are said not to exist: the policy, the key, the model, the inputs."""
    for words in (
        ["verify", server.url, "--policy", "absent.toml"],
        ["models", "--key", "absent.pem"],
        ["upload", "absent.onnx"],
        ["run", "m", "absent.csv"],
    ):
        result = strongroom(*words, **environment)
        assert result.exit_code == 20 and "does not exist" in result.stderr, result.output


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As shells expect of Ctrl-C."""
    import strongroom.tokens as module

    def interrupt() -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "new_key_pem", interrupt)
    assert strongroom("keygen", tmp_path / "k").exit_code == 130


# --- models -------------------------------------------------------------------------------------------------


def test_the_main_job(environment: dict[str, str], tmp_path: Path, server: FakeServer) -> None:
    """Upload, list, load, run, unload, delete; each result says SIMULATED."""
    model, rows = tmp_path / "my-model.onnx", tmp_path / "rows.csv"
    model.write_bytes(ONNX)
    rows.write_text("1,2\n3,4\n")
    uploaded = strongroom("upload", model, "--access", "public", **environment)
    assert uploaded.exit_code == 0, uploaded.output
    assert uploaded.stdout.startswith("my-model/versions/1  onnx")
    assert "SIMULATED" in uploaded.stderr
    listed = strongroom("models", **environment)
    assert "my-model" in listed.stdout and "SHA-256" in listed.stdout and "SIMULATED" in listed.stderr
    assert strongroom("load", "my-model", **environment).stdout == "my-model/versions/1 loaded\n"
    ran = strongroom("run", "my-model", rows, **environment)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.split() == ["[[2.", "4.]", "[6.", "8.]]"]
    assert "SIMULATED" in ran.stderr
    assert strongroom("unload", "my-model", **environment).exit_code == 0
    gone = strongroom("delete", "my-model", "--version", 1, **environment)
    assert gone.stdout == "deleted my-model/versions/1\n"
    assert "SIMULATED" in gone.stderr
    assert server.models["my-model"] == []


def test_the_main_job_as_json(environment: dict[str, str], tmp_path: Path) -> None:
    """Every command that prints data prints one JSON document."""
    model, rows = tmp_path / "model.onnx", tmp_path / "rows.npy"
    model.write_bytes(ONNX)
    np.save(rows, np.float32([[1.0, 2.0]]))

    def document(*words: object) -> Any:
        result = strongroom(*words, "--json", **environment)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    uploaded = document("upload", model, "--name", "up", "--format", "onnx")
    assert uploaded["id"] == "up/versions/1" and uploaded["simulated"]
    assert [m["name"] for m in document("models")["models"]] == ["m", "up"]
    assert document("load", "up")["loaded"] is True
    result = document("run", "up", rows, "--output", "y", "--output", "z")
    assert [o["data"] for o in result["outputs"]] == [[2.0, 4.0], [-1.0, -2.0]]
    assert result["simulated"] is True and result["sha256"] == uploaded["sha256"]
    assert document("run", "up", rows, "--out", tmp_path / "r.npz", "--output", "y")["file"].endswith("r.npz")
    assert document("unload", "up")["loaded"] is False
    assert document("delete", "up")["deleted"] == ["up/versions/1"]


def test_run_writes_files(environment: dict[str, str], tmp_path: Path) -> None:
    """--out by its ending; the result is then not printed."""
    rows = tmp_path / "rows.json"
    rows.write_text("[[1, 2]]")
    for name in ("r.npy", "r.csv", "r.json", "r.npz"):
        result = strongroom("run", "m", rows, "--out", tmp_path / name, **environment)
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
    assert np.load(tmp_path / "r.npy").tolist() == [[2.0, 4.0]]


def test_run_with_a_digest(environment: dict[str, str], tmp_path: Path) -> None:
    """Another model behind the name: refused before the input leaves."""
    rows = tmp_path / "rows.csv"
    rows.write_text("1,2\n")
    result = strongroom("run", "m", rows, "--digest", "0" * 64, **environment)
    assert result.exit_code == 10
    assert "refused: " in result.stderr and "[model_digest_mismatch]" in result.stderr


@pytest.mark.parametrize("code", ["name_taken", "format_mismatch", "model_digest_mismatch"])
def test_conflicts_that_are_refusals_have_the_exit_code_of_refusals(code: str) -> None:
    """Somebody else's name, another format or other bytes: a check did not pass."""
    assert terminal.exit_code(Conflict("x", code=code)) == 10
    assert terminal.exit_code(Conflict("x")) == 20


def test_run_shows_what_is_no_number(environment: dict[str, str], tmp_path: Path) -> None:
    """NaN and the infinities, as bare literals in JSON, as the protocol's responses have them."""
    rows = tmp_path / "rows.npy"
    np.save(rows, np.float32([[np.nan, np.inf], [-np.inf, 1.0]]))
    result = strongroom("run", "m", rows, "--json", **environment)
    assert result.exit_code == 0, result.output
    assert re.search(r"NaN,\s+Infinity,\s+-Infinity,\s+2.0", result.stdout)
    assert np.isnan(json.loads(result.stdout)["outputs"][0]["data"][0])
    assert strongroom("run", "m", rows, **environment).stdout.split() == [
        "[[",
        "nan",
        "inf]",
        "[-inf",
        "2.]]",
    ]


def test_run_prints_the_whole_result(environment: dict[str, str], tmp_path: Path) -> None:
    """Every row, every digit, strings as strings, and no name that steers the terminal."""
    rows = tmp_path / "rows.npy"
    np.save(rows, np.float32(np.arange(4000).reshape(2000, 2)))
    result = strongroom("run", "m", rows, **environment)
    assert len(result.stdout.splitlines()) == 2000 and "..." not in result.stdout
    np.save(rows, np.float32([[0.1, -1]]))
    words = strongroom("run", "m", rows, "--output", "words", "--output", "y", **environment)
    assert "words =\n[['plus' 'minus']]\n" in words.stdout and "b'" not in words.stdout


def test_run_gives_the_outputs_that_a_request_names(environment: dict[str, str], tmp_path: Path) -> None:
    """An Open Inference Protocol request with outputs; --output comes before them."""
    rows = tmp_path / "rows.json"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    rows.write_text(json.dumps({"inputs": [tensor], "outputs": [{"name": "z"}]}))
    shown = json.loads(strongroom("run", "m", rows, "--json", **environment).stdout)
    assert [output["name"] for output in shown["outputs"]] == ["z"]
    shown = json.loads(strongroom("run", "m", rows, "--output", "y", "--json", **environment).stdout)
    assert [output["name"] for output in shown["outputs"]] == ["y"]


@pytest.mark.parametrize(
    ("out", "more"), [("o.txt", []), ("absent/o.npy", []), ("o.npy", ["--output", "y", "--output", "z"])]
)
def test_a_result_that_cannot_be_written_is_not_asked_for(
    environment: dict[str, str], server: FakeServer, tmp_path: Path, out: str, more: list[str]
) -> None:
    """The ending and the folder are looked at before the model runs."""
    rows = tmp_path / "rows.json"
    rows.write_text("[[1, 2]]")
    result = strongroom("run", "m", rows, "--out", tmp_path / out, *more, **environment)
    assert result.exit_code == 20 and "[output_unwritable]" in result.stderr
    assert not any(path.endswith("/infer") for path in server.paths())


def test_errors_after_simulated_evidence_say_so(environment: dict[str, str], policy: Path) -> None:
    """What a verified server refuses rests on its evidence; what fails before it does not."""
    text = strongroom("load", "absent", **environment)
    assert text.exit_code == 20 and "SIMULATED" in text.stderr
    document = json.loads(strongroom("load", "absent", "--json", **environment).stdout)
    assert document["error"]["code"] == "not_found" and document["simulated"] is True
    refused = strongroom("models", "--policy", "production", "--json", **environment)
    assert json.loads(refused.stdout)["simulated"] is True
    nobody = strongroom("models", "--url", "https://127.0.0.1:1", "--policy", policy, "--json")
    assert "simulated" not in json.loads(nobody.stdout)
    assert "SIMULATED" not in strongroom("load", "a/b/c", "--policy", policy).stderr


def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar on standard error where that is a terminal; nothing into files and pipes."""
    with terminal.progress("label", quiet=False) as bar:
        assert bar is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress("label", quiet=True) as bar:
        assert bar is None
    with terminal.progress("label", quiet=False) as bar:
        assert bar is not None
        bar(5, 10)
        bar(10, 10)


# --- the operator's side ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["measure"], ["check"], ["measure", "--json"], ["check", "--json"]])
def test_the_operators_commands_say_simulated(words: list[str], tmp_path: Path) -> None:
    """Also where they fail: whatever they say is about a simulated TEE."""
    result = strongroom(
        *words, STRONGROOM_STATE_DIR=str(tmp_path / "absent"), STRONGROOM_PLATFORM="simulated"
    )
    if "--json" in words:
        assert json.loads(result.stdout)["simulated"] is True
    else:
        assert "SIMULATED" in result.stderr
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_measure_names_the_root_where_there_is_one(tmp_path: Path) -> None:
    """Beside the measurement, for `policy init`; standard output stays the measurement alone."""
    from strongroom.attester import load_or_create_root, root_digest
    from strongroom.config import load_config

    (tmp_path / "strongroom.toml").write_text(f'platform = "simulated"\nstate_dir = "{tmp_path}"\n')
    config = ("--config", tmp_path / "strongroom.toml")
    assert "root" not in strongroom("measure", *config).stderr
    assert json.loads(strongroom("measure", *config, "--json").stdout)["root"] is None
    path = load_config(tmp_path / "strongroom.toml").root_key_path
    root = root_digest(load_or_create_root(path))
    shown = strongroom("measure", *config)
    assert re.fullmatch(r"[0-9a-f]{64}\n", shown.stdout)
    assert f"simulated root {root}\n" in shown.stderr
    assert json.loads(strongroom("measure", *config, "--json").stdout)["root"] == root
    path.write_text("no key")
    broken = strongroom("measure", *config)
    assert broken.exit_code == 0 and "cannot be used" in broken.stderr


def test_as_a_module() -> None:
    """`python -m strongroom` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("strongroom, version")


# --- keys and policies --------------------------------------------------------------------------------------


def test_keygen(tmp_path: Path) -> None:
    """A key that only its owner may read, never over an existing one."""
    path = tmp_path / "key.pem"
    result = strongroom("keygen", path)
    assert re.fullmatch(r"principal [0-9a-f]{64}\n", result.stdout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    again = strongroom("keygen", path)
    assert again.exit_code == 20 and "key_exists" in again.stderr
    assert path.read_bytes() == before
    assert strongroom("keygen", tmp_path / "absent" / "key.pem").exit_code == 20
    assert json.loads(strongroom("keygen", tmp_path / "other.pem", "--json").stdout)["principal"]


def test_policy_init_from_a_server(server: FakeServer, tmp_path: Path) -> None:
    """Asks for evidence and nothing else, says loudly what trust on first use is, and writes a policy."""
    path = tmp_path / "policy.toml"
    result = strongroom("policy", "init", server.url, "--out", path)
    assert result.exit_code == 0, result.output
    assert "TRUST ON FIRST USE" in result.stderr and "SIMULATED" in result.stderr
    assert MEASUREMENT in result.stdout
    assert server.paths() == ["/v1/evidence"]
    assert strongroom("verify", server.url, "--policy", path).exit_code == 0
    text = path.read_text()
    again = strongroom("policy", "init", server.url, "--out", path)
    assert again.exit_code == 20 and path.read_text() == text


def test_policy_init_from_a_measurement(server: FakeServer, tmp_path: Path) -> None:
    """Contacts nobody; needs the root that may sign it."""
    path = tmp_path / "policy.toml"
    root = sim.root_digest(ROOT.public_key())
    result = strongroom("policy", "init", MEASUREMENT, "--root", root, "--out", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trust"] == "a measurement"
    assert server.requests == []
    assert strongroom("verify", server.url, "--policy", path).exit_code == 0
    assert strongroom("policy", "init", MEASUREMENT, "--out", tmp_path / "b").exit_code == 20
    assert strongroom("policy", "init", server.url, "--root", root, "--out", tmp_path / "c").exit_code == 20
    assert strongroom("policy", "init", MEASUREMENT, "--root", "zz", "--out", tmp_path / "d").exit_code == 20


@pytest.mark.parametrize("words", ["zzz", "ab" * 31, "AB" * 33, "localhost", ""])
def test_policy_init_from_what_is_neither(words: str, tmp_path: Path) -> None:
    """No address and no 64 hex digits: said so, and nothing is contacted."""
    path = tmp_path / "policy.toml"
    for more in ([], ["--root", "ab" * 32]):
        result = strongroom("policy", "init", words, *more, "--out", path)
        assert result.exit_code == 20
        assert "64 hex digits" in result.stderr and "[usage_invalid]" in result.stderr
    assert not path.exists()


def test_policy_init_from_a_measurement_in_capitals(server: FakeServer, tmp_path: Path) -> None:
    """Is the same measurement; and what rests on simulation is not called True."""
    path = tmp_path / "policy.toml"
    root = sim.root_digest(ROOT.public_key()).upper()
    result = strongroom("policy", "init", MEASUREMENT.upper(), "--root", root, "--out", path)
    assert result.exit_code == 0, result.output
    assert strongroom("verify", server.url, "--policy", path).exit_code == 0
    assert re.search(r"^  simulated +SIMULATED$", result.stdout, re.MULTILINE) and "True" not in result.stdout


def test_policy_init_from_nobody(tmp_path: Path) -> None:
    """No server, no file."""
    path = tmp_path / "policy.toml"
    assert strongroom("policy", "init", "https://127.0.0.1:1", "--out", path).exit_code == 30
    assert not path.exists()


def test_policy_lint(policy: Path, tmp_path: Path) -> None:
    """Each member in words; a policy that cannot be applied is unusable input."""
    result = strongroom("policy", "lint", policy)
    assert result.exit_code == 0, result.output
    assert "SIMULATED" in result.stdout and "danger" in result.stdout
    findings = json.loads(strongroom("policy", "lint", "--json", STRONGROOM_POLICY=str(policy)).stdout)
    assert {"level", "member", "text"} == findings["findings"][0].keys()
    (tmp_path / "empty.toml").write_text("")
    assert strongroom("policy", "lint", tmp_path / "empty.toml").exit_code == 20


def test_policy_show(tmp_path: Path) -> None:
    """A profile is printed as a file that parses; other names are unusable, the one for `appraise` too."""
    for name in ("production", "development", "UNSAFE_SIMULATION"):
        shown = strongroom("policy", "show", name)
        assert shown.exit_code == 0
        file = tmp_path / f"{name}.toml"
        file.write_text(shown.stdout)
        assert f"{name}:" in strongroom("policy", "lint", file).stdout
    for name in ("UNSAFE_ANY_MEASUREMENT", "strict", ""):
        assert strongroom("policy", "show", name).exit_code == 20


# --- documentation ------------------------------------------------------------------------------------------


def _commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(("strongroom", *path)), group
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield " ".join(("strongroom", *path, name)), command


COMMANDS = dict(_commands(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_docs_show_the_help_of_every_command(name: str) -> None:
    """docs/cli.md has each `--help` text word for word."""
    settings = {**main.context_settings, "terminal_width": 90}
    context = click.Context(COMMANDS[name], info_name=name, **settings)
    text = COMMANDS[name].get_help(context)
    assert f"## {name}\n\n```\n{text}\n```\n" in DOCUMENT


def test_docs_show_no_other_command() -> None:
    """Nothing that was removed."""
    assert re.findall(r"^## (strongroom.*)$", DOCUMENT, re.MULTILINE) == list(COMMANDS)


def test_docs_name_every_exit_code() -> None:
    """The table of exit codes is the one in `terminal`."""
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)}
    assert codes == {value for name, value in vars(terminal).items() if name.startswith("EXIT_")}


def test_commands_stay_light() -> None:
    """`--help` loads neither the server nor numpy, cryptography or httpx."""
    code = (
        "import sys; from click.testing import CliRunner; from strongroom.cli import main;"
        "CliRunner().invoke(main, ['verify', '--help']);"
        "heavy = {'onnxruntime', 'onnx', 'starlette', 'uvicorn', 'numpy', 'httpx', 'cryptography'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the real thing -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_against_a_real_server(tmp_path: Path) -> None:
    """measure, policy init, verify, keygen, upload, run, check: the quickstart's commands, as processes."""
    from serving import serving

    def run(*words: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "strongroom", *map(str, words)],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")},
        )  # fmt: skip
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout

    with serving(tmp_path / "server") as server:
        assert run("measure", "--config", server.config_path).strip() == server.measurement
        measured = json.loads(run("measure", "--config", server.config_path, "--json"))
        assert (measured["measurement"], measured["simulated"]) == (server.measurement, True)
        assert measured["root"] == server.root_sha256
        run("policy", "init", server.measurement, "--root", server.root_sha256, "--out", "policy.toml")
        run("verify", server.url, "--policy", "policy.toml")
        (tmp_path / "wrong.toml").write_text(policy_text())
        assert "FAIL" in run("verify", server.url, "--policy", "wrong.toml", code=10)
        run("verify", server.url, "--policy", "policy.toml", "--save", "kept.zip")
        run("verify", server.url, "--policy", "production", code=10)
        run("keygen", "key.pem")
        to = ("--url", server.url, "--policy", "policy.toml", "--key", "key.pem")
        run("upload", REPOSITORY / "examples" / "iris_model.json", "--name", "iris", *to)
        shown = json.loads(run("run", "iris", REPOSITORY / "examples" / "iris_rows.csv", "--json", *to))
        assert shown["outputs"][0]["shape"] == [3, 3]
        assert server.stop() == 0
        assert "0 failed" in run("check", "--config", server.config_path)
        checked = json.loads(run("check", "--config", server.config_path, "--json"))
        assert checked["passed"] and checked["simulated"]
        run("verify", server.url, "--policy", "policy.toml", code=30)
        assert "ACCEPTED" in run("appraise", "kept.zip", "--policy", "policy.toml")


def test_errors_of_the_server_reach_the_person() -> None:
    """Class and code survive the way over HTTP and through the command."""
    assert terminal.exit_code(NotFound("x")) == 20
    assert terminal.exit_code(Unavailable("x")) == 30
