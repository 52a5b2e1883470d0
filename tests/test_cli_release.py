"""`strongroom release`: an auditor signs builds, a data owner's policy accepts them by the auditor's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from strongroom.attest.releases import verify_release
from strongroom.cli import main
from strongroom.client import SYSTEM_CLOCK

MEASUREMENT = "5a" * 32


def run(*words: str) -> Result:
    """The command's result."""
    return CliRunner().invoke(main, ["release", *words], catch_exceptions=False)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """An auditor's key."""
    path = tmp_path / "auditor.pem"
    assert CliRunner().invoke(main, ["keygen", str(path)]).exit_code == 0
    return path


def signed(key: Path, out: Path, *words: str) -> Result:
    """A manifest of the builds that `words` name."""
    return run(
        "sign", "--key", str(key), "--product", "acme/strongroom", "--version", "1.4.0", "--svn", "3",
        "--days", "60", "--out", str(out), *words,
    )  # fmt: skip


def test_a_manifest_is_signed_and_shown(key: Path, tmp_path: Path) -> None:
    """What `sign` writes, `show` verifies with the printed key, and with no other."""
    out = tmp_path / "release.json"
    made = signed(key, out, "--value", f"sgx:{MEASUREMENT}", "--json")
    assert made.exit_code == 0, made.output
    name = json.loads(made.stdout)["release_keys"][0]
    release = verify_release(out.read_bytes(), keys=(name,), now=SYSTEM_CLOCK.now())
    assert release.values[0].measurement == MEASUREMENT
    shown = run("show", str(out), "--release-key", name)
    assert shown.exit_code == 0
    assert MEASUREMENT in shown.output
    assert json.loads(run("show", str(out), "--release-key", name, "--json").stdout)["security_version"] == 3
    for words, exit_code in (
        (("--release-key", "00" * 32), 10),
        (("--release-key", name, "--at", "2099-01-01T00:00:00Z"), 10),
        (("--release-key", name, "--at", "2001-01-01T00:00:00Z"), 10),
        (("--release-key", "zz"), 20),
        ((), 20),
    ):
        assert run("show", str(out), *words).exit_code == exit_code
    assert run("show", str(key), "--release-key", name).exit_code == 20
    assert run("show", str(tmp_path / "none"), "--release-key", name).exit_code == 20


def verdict(**changed: Any) -> dict[str, Any]:
    """A verdict's JSON, as far as builds go."""
    details = {f"rtmr{i}": f"{i}a" * 48 for i in range(4)}
    claims = {"format": "tdx", "measurement": "5b" * 48, "details": details} | changed
    return {"passed": True, "claims": claims}


def test_a_td_is_taken_from_its_verdict_with_all_registers(key: Path, tmp_path: Path) -> None:
    """Claims of `verify --json`; a refused verdict, or one without registers, is nobody's build."""
    file, out = tmp_path / "verdict.json", tmp_path / "release.json"
    file.write_text(json.dumps(verdict()))
    assert signed(key, out, "--claims", str(file)).exit_code == 0
    out.unlink()
    for document in (
        verdict() | {"passed": False},
        verdict() | {"claims": None},
        verdict(details={"rtmr0": "00" * 48}),
        verdict(measurement=1),
        verdict(measurement="00"),
        [],
    ):
        file.write_text(json.dumps(document))
        assert signed(key, out, "--claims", str(file)).exit_code == 20, document
        assert not out.exists()
    assert signed(key, out, "--value", f"tdx:{'5b' * 48}").exit_code == 20


def test_arguments_that_name_no_build(key: Path, tmp_path: Path) -> None:
    """And a file that is there already stays."""
    out = tmp_path / "release.json"
    assert signed(key, out).exit_code == 20
    assert signed(key, out, "--value", "sgx").exit_code == 20
    assert signed(key, out, "--value", "sgx:00").exit_code == 20
    assert signed(key, out, "--value", f"sev:{MEASUREMENT}").exit_code == 20
    assert signed(tmp_path / "none.pem", out, "--value", f"sgx:{MEASUREMENT}").exit_code == 20
    out.write_text("kept")
    assert signed(key, out, "--value", f"sgx:{MEASUREMENT}").exit_code == 20
    assert out.read_text() == "kept"
    assert signed(key, tmp_path / "no" / "folder", "--value", f"sgx:{MEASUREMENT}").exit_code == 20
