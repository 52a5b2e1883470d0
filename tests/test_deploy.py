"""What lies in deploy/ names settings that exist, and a server runs under what it asks for (enclaves: test_gramine)."""

from __future__ import annotations

import configparser
import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import confined
import numpy as np
import pytest
from conftest import REPOSITORY
from plane import linear_onnx
from serving import serving

import strongroom
from strongroom import config
from strongroom.errors import InvalidConfig
from strongroom.tokens import new_key_pem

DEPLOY = REPOSITORY / "deploy"
SETTINGS = sorted(DEPLOY.glob("*/strongroom.toml"))
TEXTS = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.is_file() and path.suffix in ("", ".md", ".conf", ".service", ".sh")
)
UNIT = DEPLOY / "systemd" / "strongroom.service"
PROFILE = DEPLOY / "container" / "seccomp.json"


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.parent.name)
def test_settings_exist(path: Path, tmp_path: Path) -> None:
    """Every name is a setting, every value in its range; one that is misspelt is refused."""
    settings = config.load(path, variables={}, base=tmp_path)
    assert settings.platform != "simulated" and settings.state_dir.startswith("/")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(path.read_text().replace("state_dir", "statedir"))
    with pytest.raises(InvalidConfig):
        config.load(wrong, variables={}, base=tmp_path)


def test_there_are_settings_for_each_way() -> None:
    """The test above looked at something."""
    assert {path.parent.name for path in SETTINGS} >= {"gramine", "container", "systemd"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_variables_and_dotted_settings_exist(path: Path) -> None:
    """Whatever a README, a unit or a Containerfile calls a setting is one."""
    text = path.read_text()
    variables = {setting.variable for setting in config.SETTINGS}
    assert set(re.findall(r"STRONGROOM_[A-Z_]+[A-Z]", text)) <= variables
    keys = {setting.key for setting in config.SETTINGS}
    sections = "|".join({key.split(".")[0] for key in keys if "." in key})
    assert set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", text)) <= keys


@pytest.mark.parametrize("folder", sorted(p for p in DEPLOY.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_every_readme_says_what_was_not_tried(folder: Path) -> None:
    """Nobody should have to find out."""
    assert re.search(r"\*\*Not tried:?", (folder / "README.md").read_text())


# systemd


def _unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_the_unit_leaves_the_servers_own_sandbox_possible() -> None:
    """Namespaces, forks and filters of its own; no capability; and the exit codes that mean it."""
    service = _unit()["Service"]
    assert set(service["RestrictNamespaces"].split()) >= {"user", "pid", "net", "ipc", "mnt"}
    assert service["CapabilityBoundingSet"] == "" and service["NoNewPrivileges"] == "yes"
    assert service["SystemCallErrorNumber"] == "EPERM"
    calls = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert {"unshare", "seccomp", "landlock_restrict_self"} <= set(calls[0].split())
    assert "PrivateDevices" not in service and service["DevicePolicy"] == "closed"
    assert service["RestartPreventExitStatus"].split() == ["10", "20"]
    assert int(service["TimeoutStopSec"]) > config.Config().shutdown_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_as_closed_as_its_readme_says() -> None:
    """systemd's own measure, of 10; a unit without hardening has 9.6."""
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    exposure = re.search(r"Overall exposure level for strongroom.service: ([0-9.]+)", said)
    assert exposure is not None and float(exposure[1]) <= 2.7


# Container


def test_the_containerfile() -> None:
    """A number for a user, nothing fetched but the base and locked wheels, and the interpreter's own flags."""
    text = (DEPLOY / "container" / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"}
    assert {word for word, _ in lines} <= known
    last = {line[0]: line[1] for line in lines}
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last["USER"])
    assert json.loads(last["ENTRYPOINT"])[1:4] == ["-I", "-S", "-B"]
    runs = " ".join(rest for word, rest in lines if word == "RUN")
    assert "--require-hashes" in runs and not re.search(r"curl|wget|https?:|apt|sudo", runs)
    place = next(n for n, (word, _) in enumerate(lines) if word == "USER")
    assert not any(word == "RUN" for word, _ in lines[place:])
    assert not re.search(r":latest\b", text)
    copied = {rest.split()[0] for word, rest in lines if word == "COPY" and not rest.startswith("--from")}
    for name in copied | {"requirements.lock", "pyproject.toml", "README.md"}:
        assert (REPOSITORY / name).exists(), name


def test_the_command_line_shuts_what_the_host_fills_and_nothing_measures() -> None:
    """SMBIOS and fw_cfg credentials, partition tables, shells and corruption: all decided under the measurement."""
    text = (DEPLOY / "cvm" / "build.sh").read_text()
    (line,) = re.findall(r'^echo (".*?") \| tr ', text, re.MULTILINE | re.DOTALL)
    words = dict(word.partition("=")[::2] for word in line.replace("\\\n", " ").replace('"', " ").split())
    shut = {
        "systemd.import_credentials": "no",
        "systemd.gpt_auto": "0",
        "systemd.swap": "0",
        "rd.shell": "0",
        "efi": "noruntime",
    }
    assert {name: words.get(name) for name in shut} == shut
    assert words["lockdown"] == "confidentiality" and words["rd.emergency"] == "poweroff"
    assert words["systemd.verity_root_options"] == "panic-on-corruption" and words["roothash"]


def test_the_profile_refuses_what_is_not_needed() -> None:
    """An allow-list: what is in no rule is EPERM, and these are in none."""
    profile = json.loads(PROFILE.read_text())
    names = [name for rule in profile["syscalls"] for name in rule["names"]]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO" and len(names) == len(set(names))
    refused = {
        "mount", "umount2", "pivot_root", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "keyctl",
        "kexec_load", "perf_event_open", "userfaultfd", "io_uring_setup", "init_module", "setns", "reboot", "add_key",
        "open_by_handle_at",
    }  # fmt: skip
    assert not refused & set(names)
    assert {"unshare", "seccomp", "landlock_restrict_self", "clone", "execve", "memfd_create"} <= set(names)


@pytest.mark.slow
@pytest.mark.skipif(bool(confined.missing()), reason=confined.missing() or "it can be done")
def test_a_server_runs_under_the_profile(tmp_path: Path) -> None:
    """Upload and run with only those calls, and (from Linux 6.3 on) without writable code; one that is refused, is."""
    wrapper = (sys.executable, confined.__file__, str(PROFILE))
    # setns of no descriptor: EBADF wherever the call is made at all.
    probe = "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.setns(-1, 0); raise SystemExit(ctypes.get_errno())"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == errno.EBADF
    assert subprocess.run([*wrapper, sys.executable, "-c", probe], check=False).returncode == errno.EPERM
    policy, key = tmp_path / "policy.toml", tmp_path / "owner.pem"
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    with (
        serving(tmp_path / "server", wrapper=wrapper) as server,
        strongroom.connect(server.url, policy=str(server.write_policy(policy)), key=str(key)) as client,
    ):
        result = client.upload_model(linear_onnx(), name="m").predict(np.ones((2, 4), np.float32))
        assert np.array_equal(result, np.full((2, 4), 2.0, np.float32))
        assert server.stop() == 0
