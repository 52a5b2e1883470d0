"""The clean interpreter: what is executed, with which environment, in which folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "tee"))
from emulators import Registers

from strongroom import launch, platforms
from strongroom.errors import Error, Failure, InvalidConfig, Refused, Unavailable
from strongroom.measure import Measurement
from strongroom.tee import rtmr

HOST = {
    "PATH": "/usr/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TMPDIR": "/tmp/planted",
    "PYTHONPATH": "/planted",
    "PYTHONSTARTUP": "/planted.py",
    "LD_PRELOAD": "/planted.so",
    "LD_LIBRARY_PATH": "/planted",
    "OPENSSL_CONF": "/planted.cnf",
    "OPENSSL_MODULES": "/planted",
    "SSLKEYLOGFILE": "/planted.log",
    "SSL_CERT_FILE": "/planted.pem",
    "HTTPS_PROXY": "http://planted",
    "ORT_DISABLE_TELEMETRY": "0",
    "MALLOC_PERTURB_": "0",
    "STRONGROOM_BIND": "127.0.0.1:0",
}


def command(tmp_path: Path, **more: str) -> launch.Command:
    """The command for the host's environment above."""
    state = str(tmp_path / "state")
    return launch.command(None, variables={**HOST, "STRONGROOM_STATE_DIR": state, **more}, base=tmp_path)


def test_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    """Fixed values, two kept ones and STRONGROOM_*: nothing else of the host's reaches the server."""
    environment = command(tmp_path).environment
    assert environment == {
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "OPENSSL_CONF": "/dev/null",
        "ORT_DISABLE_TELEMETRY": "1",
        "MALLOC_PERTURB_": "165",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": "4194304",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": "/nonexistent",
        "TSS2_LOG": "all+NONE",
        "STRONGROOM_BIND": "127.0.0.1:0",
        "STRONGROOM_STATE_DIR": str(tmp_path / "state"),
    }


def test_libraries_are_looked_for_where_the_manifest_says_in_an_enclave_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gramine's loader finds none without; there the variable is measured, elsewhere it is the host's."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    monkeypatch.setenv("LD_PRELOAD", "/planted.so")
    assert command(tmp_path, STRONGROOM_PLATFORM="sgx").environment["LD_LIBRARY_PATH"] == "/planted"
    assert launch.child_environment("sgx") == {**launch.CHILD, "LD_LIBRARY_PATH": "/lib"}
    for platform in ("tdx", "snp", "simulated", "auto"):
        assert "LD_LIBRARY_PATH" not in command(tmp_path, STRONGROOM_PLATFORM=platform).environment
        assert launch.child_environment(platform) == launch.CHILD
    assert "LD_PRELOAD" not in command(tmp_path, STRONGROOM_PLATFORM="sgx").environment


def test_the_launcher_extends_rtmr3_where_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the measurement that the server will have, in a trust domain alone; no register, no start."""
    registers, folder = Registers(), tmp_path / "measurements"
    monkeypatch.setattr(platforms, "PATHS", platforms.Paths(td_registers=folder))
    monkeypatch.setattr("strongroom.planned.measurement", lambda *_, **__: Measurement({}, "0a" * 32, ()))
    demanded = {"STRONGROOM_TDX_EXTEND_RTMR3": "true"}
    with pytest.raises(InvalidConfig) as caught:
        command(tmp_path, STRONGROOM_PLATFORM="tdx", **demanded)
    assert caught.value.code == "rtmr3_unavailable"
    command(tmp_path, STRONGROOM_PLATFORM="snp", **demanded)
    command(tmp_path, STRONGROOM_PLATFORM="tdx")
    monkeypatch.setattr("strongroom.tee.rtmr.read_value", lambda path, limit: registers.read(path.name))
    monkeypatch.setattr(
        "strongroom.tee.rtmr.write_value", lambda path, data: registers.write(path.name, data)
    )
    message = json.loads(command(tmp_path, STRONGROOM_PLATFORM="tdx", **demanded).arguments[-1])
    assert registers.rtmr3.hex() == rtmr.reference_value("0a" * 32) and message["launched"] == ""
    monkeypatch.setattr("strongroom.planned.measurement", lambda *_, **__: Measurement({}, "0b" * 32, ()))
    with pytest.raises(Refused):
        command(tmp_path, STRONGROOM_PLATFORM="tdx", **demanded)


def test_the_interpreter_is_isolated_and_finds_no_byte_code(tmp_path: Path) -> None:
    """-I -S -B, and a place for byte code where nobody can put any: not the state folder, which is the host's."""
    prepared = command(tmp_path)
    assert prepared.arguments[0] == sys.executable
    assert prepared.arguments[1:4] == ("-I", "-S", "-B")
    prefix = Path(prepared.arguments[5].removeprefix("pycache_prefix="))
    with pytest.raises(NotADirectoryError):
        (prefix / "usr").mkdir(parents=True)
    look = f"import importlib.util as u; print(u.cache_from_source({json.__file__!r}))"
    words = [*prepared.arguments[:-3], "-c", look]
    found = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
    assert found.is_relative_to(prefix) and not (tmp_path / "state").joinpath("pycache").exists()


def test_the_folder_is_empty_private_and_new(tmp_path: Path) -> None:
    """Relative paths lead nowhere, and nobody else can put something there."""
    first, second = command(tmp_path), command(tmp_path)
    assert first.folder != second.folder
    assert list(first.folder.iterdir()) == []
    assert first.folder.stat().st_mode & 0o777 == 0o500
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_the_path_holds_the_dependencies_and_not_the_clone(tmp_path: Path) -> None:
    """The folder around the package is not searched; the package is loaded by its own path."""
    message = json.loads(command(tmp_path).arguments[-1])
    root = Path(launch.__file__).resolve().parents[1]
    assert message["package"] == str(root / "strongroom")
    assert str(root) not in message["paths"]
    assert all(Path(folder).is_absolute() for folder in message["paths"])
    assert message["base"] == str(tmp_path) and message["config"] is None


@pytest.mark.slow
def test_nothing_planted_runs_before_the_import_hook(tmp_path: Path) -> None:
    """Names that packages try on other platforms: what lies there under them is never run, not even once."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("nt", "_winapi", "msvcrt", "org", "cffi", "typing_extensions"):
        (site / f"{name}.py").write_text("import sys\nsys.stderr.write('EVIL')\nraise ModuleNotFoundError\n")
    prepared = command(tmp_path)
    message = json.loads(prepared.arguments[-1])
    message["paths"].append(str(site))
    message["config"] = str(tmp_path / "absent.toml")  # ends the start once everything was imported for it
    done = subprocess.run(
        [*prepared.arguments[:-1], json.dumps(message)],
        env=dict(prepared.environment),
        cwd=prepared.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "EVIL" in done.stderr) == (20, False)
    assert "config_unreadable" in done.stderr


def test_settings_are_refused_before_anything_is_executed(tmp_path: Path) -> None:
    """A wrong setting, or a state folder that cannot be made."""
    with pytest.raises(InvalidConfig):
        command(tmp_path, STRONGROOM_LIMITS_MODELS="0")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig) as caught:
        command(tmp_path, STRONGROOM_STATE_DIR=str(tmp_path / "file" / "state"))
    assert caught.value.code == "config_unreadable"


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed without the server extra: a sentence, not a traceback out of a half-started server."""
    monkeypatch.setattr(launch, "_DEPENDENCIES", ("no_such_package_at_all",))
    with pytest.raises(Failure) as caught:
        launch.dependency_folders("simulated")
    assert caught.value.code == "start_refused"


def test_the_command_line_takes_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is a usage error, exit code 20; so is a configuration that cannot be read."""
    assert launch.main(["--port", "1"]) == 20
    assert launch.main(["--config", "/nonexistent/strongroom.toml"]) == 20
    assert "config_unreadable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "code"), [(Failure, 1), (Refused, 10), (InvalidConfig, 20), (Unavailable, 30)]
)
def test_exit_codes_are_those_of_the_families(
    family: type[Error], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager starts again what was busy (30), and not what was refused or misconfigured."""

    def fail(_config: object) -> None:
        raise family("not here")

    monkeypatch.setattr(launch, "serve", fail)
    assert launch.main([]) == code
