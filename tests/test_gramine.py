"""The manifest of the enclave: one render whoever makes it, and a vector for every rule, wrong in that respect only.

Gramine itself does not run here: what it would refuse beyond these rules is not known from this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import library_os
import numpy as np
import pytest
from conftest import REPOSITORY
from plane import linear_onnx
from serving import clean_environment, policy_text, root_digest

sys.path.insert(0, str(REPOSITORY / "tools"))

import gramine
import gramine_rules

import strongroom
from strongroom import config, launch, planned
from strongroom.tokens import new_key_pem

DEPLOY = REPOSITORY / "deploy" / "gramine"
VALUES = tomllib.loads((DEPLOY / "values.toml").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of the form that `assemble` makes."""
    out = tmp_path / "bundle"
    names = (
        f"python/bin/{gramine.interpreter()}",
        f"python/lib/{gramine.interpreter()}/os.py",
        "lib/libz.so.1",
        "site/good/__init__.py",
        "code/strongroom/launch.py",
        "models/iris.json",
        "start.py",
    )
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    for name in ("config", "state", "endorsements"):
        (out / name).mkdir()
    shutil.copyfile(DEPLOY / "strongroom.toml", out / "config" / "strongroom.toml")
    return out


def rendered(folder: Path) -> str:
    """The manifest, with the values of the repository."""
    return gramine.render(folder, values=VALUES)


def broken(text: str, folder: Path | None) -> set[int]:
    """The numbers of the rules that are broken."""
    return {int(line.split()[1]) for line in gramine_rules.check(text, folder=folder)}


def test_what_is_rendered_keeps_every_rule(folder: Path) -> None:
    """With the folder and without; with EDMM and without."""
    text = rendered(folder)
    assert gramine_rules.check(text, folder=folder) == [] == gramine_rules.check(text, folder=None)
    with_edmm = gramine.render(folder, values={**VALUES, "edmm": True})
    assert "edmm_enable = true" in with_edmm and gramine_rules.check(with_edmm, folder=folder) == []


def test_two_renders_have_one_digest(folder: Path, tmp_path: Path) -> None:
    """Times, order on disk and the place of the folder do not matter; a byte of a file does."""
    text = rendered(folder)
    other = tmp_path / "elsewhere"
    for name in sorted((path.relative_to(folder) for path in folder.rglob("*")), reverse=True):
        if (folder / name).is_dir():
            (other / name).mkdir(parents=True, exist_ok=True)
        else:
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes((folder / name).read_bytes())
            os.utime(other / name, (1, 1))
    (other / "state" / "left-behind").write_text("the host's")
    assert hashlib.sha256(rendered(other).encode()).digest() == hashlib.sha256(text.encode()).digest()
    (other / "start.py").write_text("another")
    assert rendered(other) != text


def test_values_that_the_template_does_not_know_are_refused(folder: Path) -> None:
    """And so is one that is missing: nothing is left open, nothing ignored."""
    for values in ({**VALUES, "more": 1}, {k: v for k, v in VALUES.items() if k != "edmm"}):
        with pytest.raises(SystemExit, match="values: expected"):
            gramine.render(folder, values=values)


def swap(old: str, new: str) -> Callable[[str], str]:
    """A change of the text that must find what it changes."""

    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


def one_less(text: str) -> str:
    """Without the first trusted file."""
    lines = text.splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if 'uri = "file:site/' in line)
    return "".join(lines[:place] + lines[place + 1 :])


def backwards(text: str) -> str:
    """Two trusted files in the wrong order."""
    lines = text.splitlines(keepends=True)
    places = [n for n, line in enumerate(lines) if "sha256" in line][:2]
    lines[places[0]], lines[places[1]] = lines[places[1]], lines[places[0]]
    return "".join(lines)


def without_a_digest(text: str) -> str:
    """One file that Gramine would hash when it signs: nobody would see what."""
    lines = text.splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if "file:site" in line and "sha256" in line)
    lines[place] = '    "file:site/good/__init__.py",\n'
    return "".join(lines)


def with_file(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    """A change of the folder before it is rendered."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def setting(old: str, new: str) -> Callable[[Path], None]:
    """A change of the server's settings before they are rendered."""

    def change(folder: Path) -> None:
        path = folder / "config" / "strongroom.toml"
        assert old in path.read_text(), old
        path.write_text(path.read_text().replace(old, new, 1))

    return change


TEXTS: list[tuple[int, str, Callable[[str], str]]] = [
    (1, "an unknown setting", swap("[sgx]\n", "[sgx]\nthread_num = 4\n")),
    (1, "subprocesses disallowed: models could not be examined",
     swap("[sys]\n",
          "[sys]\ndisallow_subprocesses = true\n")),
    (1, "names from the host's files",
     swap("[sys]\n",
          "[sys]\nenable_extra_runtime_domain_names_conf = true\n")),
    (1, "device calls", swap("[sys]\n", "[sys]\nallowed_ioctls = []\n")),
    (1, "statistics, which open the enclave's counters", swap("[sgx]\n", "[sgx]\nenable_stats = true\n")),
    (1, "a log file of the host's", swap("[loader]\n", '[loader]\nlog_file = "log"\n')),
    (1, "an environment from a file", swap("[loader]\n", '[loader]\nenv_src_file = "file:env"\n')),
    (3, "a debug enclave", swap("debug = false", "debug = true")),
    (3, "zero is not false", swap("debug = false", "debug = 0")),
    (4, "no attestation", swap('"dcap"', '"none"')),
    (4, "EPID", swap('"dcap"', '"epid"')),
    (5, "unlisted files are let through", swap('"strict"', '"allow_all_but_log"')),
    (6, "another library OS", swap("/libsysdb.so", "/libother.so")),
    (7, "a variable of the host's", swap('LANG = "C.UTF-8"', "LANG = { passthrough = true }")),
    (7, "a preloaded library", swap("[loader.env]\n", '[loader.env]\nLD_PRELOAD = "/lib/x.so"\n')),
    (7, "PYTHONPATH", swap("[loader.env]\n", '[loader.env]\nPYTHONPATH = "/state"\n')),
    (8, "telemetry", swap('ORT_DISABLE_TELEMETRY = "1"\n', "")),
    (8, "telemetry, by another word", swap('ORT_DISABLE_TELEMETRY = "1"', 'ORT_DISABLE_TELEMETRY = "0"')),
    (9, "OpenSSL's own settings", swap('OPENSSL_CONF = "/dev/null"\n', "")),
    (10, "libraries from where the host writes", swap('"/lib:/usr/lib:', '"/state:/lib:/usr/lib:')),
    (11, "the user's site", swap('"-I", "-S"', '"-S"')),
    (11, "byte code from a folder of the host's",
     swap("pycache_prefix=/dev/null/none",
          "pycache_prefix=/state")),
    (11, "another program", swap('"/start.py"]', '"/state/start.py"]')),
    (12, "a log of all calls", swap('log_level = "error"', 'log_level = "trace"')),
    (13, "no power of two", swap('enclave_size = "4G"', 'enclave_size = "3G"')),
    (13, "too small", swap('enclave_size = "4G"', 'enclave_size = "256M"')),
    (13, "a number", swap('enclave_size = "4G"', "enclave_size = 4294967296")),
    (14, "four threads, Gramine's default", swap("max_threads = 32", "max_threads = 4")),
    (15, "stacks of 256 KiB", swap('stack.size = "8M"', 'stack.size = "256K"')),
    (16, "EDMM and preheating",
     swap("edmm_enable = false\npreheat_enclave = false",
          "edmm_enable = true\npreheat_enclave = true")),
    (17, "SIGTERM is ignored", swap("enable_sigterm_injection = true\n", "")),
    (18, "the host's folder as the root", swap('root = { type = "tmpfs" }\n', "")),
    (19, "an encrypted mount", swap('uri = "file:state" }', 'uri = "file:state", type = "encrypted" }')),
    (19, "a mount of everything",
     swap('{ path = "/start.py"',
          '{ path = "/usr", uri = "file:/usr" },\n    { path = "/start.py"')),
    (19, "code from another folder",
     swap('{ path = "/code", uri = "file:code" }',
          '{ path = "/code", uri = "file:state" }')),
    (19, "a mount twice",
     swap('    { path = "/site", uri',
          '    { path = "/site", uri = "file:site" },\n    { path = "/site", uri')),
    (19, "no state", swap('    { path = "/state", uri = "file:state" },\n', "")),
    (20, "code that the host may write", swap('["file:state/",', '["file:code/", "file:state/",')),
    (20, "settings that the host may write", swap('"file:endorsements/"]', '"file:config/"]')),
    (29, "a security version that is not the measurement's", swap("isvsvn = 1", "isvsvn = 7")),
]  # fmt: skip
FOLDERS: list[tuple[int, str, Callable[[Path], None]]] = [
    (23, "a file beside the folders", with_file("notes.txt")),
    (24, "the host's C library", with_file("lib/libc.so.6")),
    (25, "byte code with a time", with_file("site/good/a.pyc", b"\xa7\r\r\n\x00\x00\x00\x00")),
    (
        25,
        "byte code with a hash that is looked at",
        with_file("site/good/a.pyc", b"\xa7\r\r\n\x03\x00\x00\x00"),
    ),
    (26, "a model beside the code", with_file("code/strongroom/model.onnx")),
    (27, "the standard library's tests", with_file("python/lib/python3.11/test/x.py")),
    (30, "simulation", setting('platform = "sgx"', 'platform = "simulated"')),
    (30, "processes that would be enclaves", setting('"in_process"', '"owner"')),
    (
        30,
        "models without bounds in one process",
        setting('"in_process"', '"in_process"\nadmission = "permissive"'),
    ),
    (30, "a name to bind to", setting("0.0.0.0:8443", "localhost:8443")),
    (30, "state elsewhere", setting('"/state"', '"/tmp"')),
    (30, "an unknown setting", setting('"/state"', '"/state"\nisolated = true')),
    (30, "endorsements from anywhere", setting('"/state"', '"/state"\nendorsements = ["/etc/passwd"]')),
]


@pytest.mark.parametrize(("rule", "what", "change"), TEXTS, ids=[f"{n}: {what}" for n, what, _ in TEXTS])
def test_a_manifest_that_is_wrong_in_one_respect(
    folder: Path, rule: int, what: str, change: Callable[[str], str]
) -> None:
    """That rule refuses it, and no other."""
    assert broken(change(rendered(folder)), folder) == {rule}


@pytest.mark.parametrize(("rule", "what", "change"), FOLDERS, ids=[f"{n}: {what}" for n, what, _ in FOLDERS])
def test_a_folder_that_is_wrong_in_one_respect(
    folder: Path, rule: int, what: str, change: Callable[[Path], None]
) -> None:
    """Rendered as it is; that rule refuses it, and no other."""
    change(folder)
    assert broken(rendered(folder), folder) == {rule}


def test_wrong_lists(folder: Path) -> None:
    """Lists that are broken in ways that cannot be told apart from the folder: each names its rule."""
    text = rendered(folder)
    insecure = swap("[loader]\n", "[loader]\ninsecure__use_host_env = true\n")(text)
    assert broken(insecure, folder) == {1, 2}  # unknown as well
    assert broken(without_a_digest(text), folder) == {21, 28}  # a file without a digest is in no list
    absolute = swap('"file:start.py", sha256', '"file:/start.py", sha256')(text)
    assert broken(absolute, None) >= {21}
    assert broken(backwards(text), folder) == {22}
    assert broken(one_less(text), folder) == {28}
    unmounted = swap('    { path = "/models/iris.json", uri = "file:models/iris.json" },\n', "")(text)
    assert broken(unmounted, folder) == {26}
    (folder / "start.py").write_text("changed after it was rendered")
    assert broken(text, folder) == {28}
    assert gramine_rules.check("= 1", folder=None)[0].startswith("rule 0")


def test_every_rule_has_a_vector() -> None:
    """A rule that nothing breaks is a sentence."""
    vectors = {number for number, *_ in (*TEXTS, *FOLDERS)} | {2, 21, 22, 28}
    assert vectors == {rule.number for rule in gramine_rules.RULES}


def test_byte_code_of_the_unchecked_kind_is_taken(folder: Path) -> None:
    """The only kind that Python reads there; we ship none."""
    with_file("site/good/a.pyc", b"\xa7\r\r\n\x01\x00\x00\x00")(folder)
    assert broken(rendered(folder), folder) == set()


# The real folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the enclave runs, made from this machine."""
    out = tmp_path_factory.mktemp("gramine") / "bundle"
    gramine.assemble(out, config_path=DEPLOY / "strongroom.toml")
    return out


@pytest.mark.slow
def test_the_real_folder_keeps_every_rule_and_has_the_planned_measurement(bundle: Path) -> None:
    """Trusted are the files that the server measures, and what it says of itself in there is what is planned here."""
    assert gramine_rules.check(rendered(bundle), folder=bundle) == []
    settings = config.load(DEPLOY / "strongroom.toml", variables={}, base=Path("/"))
    here = planned.measurement(settings, preload=(), folders=launch.dependency_folders("sgx"))
    look = (
        "import sys; sys.path += sys.argv[1:3]\n"
        "from pathlib import Path; from strongroom import config, planned\n"
        "settings = config.load(Path(sys.argv[3]), variables={}, base=Path('/'))\n"
        "print(planned.measurement(settings, preload=(), folders=[sys.argv[1]]).digest)"
    )
    program = bundle / "python" / "bin" / gramine.interpreter()
    words = [
        program,
        "-I",
        "-S",
        "-B",
        "-c",
        look,
        bundle / "site",
        bundle / "code",
        bundle / "config/strongroom.toml",
    ]
    environment = {"LD_LIBRARY_PATH": str(bundle / "lib")}
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    assert said.strip() == here.digest


ENTER = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import library_os
root, interpreter = sys.argv[2:4]
library_os.unshare()
for name in ("python", "site", "code", "lib:usr/lib"):
    source, _, target = name.partition(":")
    library_os.bind(f"{sys.argv[4]}/{source}", f"{root}/{target or source}")
for name in ("proc", "dev/null", "dev/urandom", "dev/random"):
    library_os.bind(f"/{name}", f"{root}/{name}")
os.chroot(root)
os.chdir("/")
library_os.refuse_calls(ancillary=False)
words = [interpreter, "-I", "-S", "-B", "-X", "utf8", "-X", "pycache_prefix=/dev/null/none", "/start.py"]
os.execve(interpreter, words, {"LANG": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1", "OPENSSL_CONF": "/dev/null"})
"""


@pytest.fixture
def enclosed(bundle: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """URL and root folder of a server that sees the trusted files and nothing else, with the calls that Gramine has."""
    root = tmp_path / "root"
    for name in ("python", "site", "code", "usr/lib", "proc", "dev", "state", "config", "lib", "lib64"):
        (root / name).mkdir(parents=True)
    for name in ("null", "urandom", "random"):
        (root / "dev" / name).touch()
    # In the enclave these are Gramine's.
    for library in ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"):
        shutil.copyfile(f"/lib/x86_64-linux-gnu/{library}", root / "lib" / library)
    shutil.copyfile("/lib64/ld-linux-x86-64.so.2", root / "lib64" / "ld-linux-x86-64.so.2")
    (root / "lib64" / "ld-linux-x86-64.so.2").chmod(0o755)
    shutil.copyfile(DEPLOY / "start.py", root / "start.py")
    text = (DEPLOY / "strongroom.toml").read_text()
    text = text.replace('"sgx"', '"simulated"').replace("0.0.0.0:8443", "127.0.0.1:0")
    (root / "config" / "strongroom.toml").write_text(text)
    log = tmp_path / "log"
    words = [sys.executable, "-c", ENTER, str(REPOSITORY / "tests"), str(root),
             f"/python/bin/{gramine.interpreter()}", str(bundle)]  # fmt: skip
    with log.open("wb") as sink:
        server = subprocess.Popen(words, stdout=sink, stderr=sink, env=clean_environment())
    try:
        yield wait_for(server, log), root
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()


def wait_for(server: subprocess.Popen[bytes], log: Path) -> str:
    """The URL, once it serves."""
    import time

    for _ in range(900):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("strongroom: serving on "):
                return line.split()[3]
        assert server.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))


@pytest.mark.slow
@pytest.mark.skipif(
    bool(library_os.missing()) or os.geteuid() != 0 or not Path("/lib/x86_64-linux-gnu/libc.so.6").exists(),
    reason="a root folder of its own takes root, Linux on x86-64 and Debian's places of libraries",
)
def test_the_files_of_the_enclave_are_all_it_takes(enclosed: tuple[str, Path], tmp_path: Path) -> None:
    """A server starts from the folder alone, takes a model and runs it: the list is complete. Not in SGX, not in
    Gramine: in a root folder of its own, simulated.
    """
    url, root = enclosed
    text = (tmp_path / "log").read_text()
    measurement = next(line.split()[-1] for line in text.splitlines() if " measurement " in line)
    policy, key = tmp_path / "policy.toml", tmp_path / "owner.pem"
    policy.write_text(policy_text(measurement=measurement, root=root_digest(root / "state" / "sim-root.pem")))
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    with strongroom.connect(url, policy=str(policy), key=str(key)) as client:
        model = client.upload_model(linear_onnx(factor=3.0), name="m")
        assert np.array_equal(model.predict(np.ones((2, 4), np.float32)), np.full((2, 4), 3.0, np.float32))
