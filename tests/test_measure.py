"""`measure`: the same code has one digest wherever it lies, and any other code has another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import strongroom
from strongroom import measure
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.strict import canonical
from strongroom.errors import Failure

REPOSITORY = Path(__file__).resolve().parents[1]
SECURITY = SecurityConfiguration(
    sealing="simulated",
    host_excluded=False,
    isolation="in_process",
    sandbox=(),
    admission="structural",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)


class Site:
    """A small folder of installed distributions, and the folder of a package, that look like real ones."""

    def __init__(self, folder: Path) -> None:
        self.site, self.package = folder / "site-packages", folder / "clone" / "strongroom"
        self.second, self.third = folder / "second", folder / "third"
        self.add(
            "alpha",
            {"alpha/__init__.py": "a = 1", "alpha/sub/deep.py": "", "alpha.libs/x.so": "elf"},
            ["beta>=1"],
        )
        self.add("Beta.Lib", {"beta.py": "b = 1", "../../../bin/beta": "script"}, [], name="beta")
        self.add("gamma", {"shared/gamma/core.py": "g = 1", "shared/gamma/__init__.py": ""}, [])
        self.add("unrelated", {"unrelated/__init__.py": ""}, [])
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        (self.package / "service.py").write_text("x = 1")

    def add(self, title: str, files: dict[str, str], requires: list[str], *, name: str = "") -> None:
        """Installs a distribution."""
        key = name or title
        info = self.site / f"{key}-1.0.dist-info"
        info.mkdir(parents=True)
        for path, text in files.items():
            (self.site / path).parent.mkdir(parents=True, exist_ok=True)
            (self.site / path).write_text(text)
        lines = [
            f"Metadata-Version: 2.1\nName: {key}\nVersion: 1.0",
            *(f"Requires-Dist: {r}" for r in requires),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "INSTALLER").write_text("pip\n")
        record = "".join(
            f"{p},sha256=AAAA,1\n" for p in (*files, f"{info.name}/METADATA", f"{info.name}/RECORD")
        )
        (info / "RECORD").write_text(record)

    def measure(
        self, *, security: SecurityConfiguration = SECURITY, preload: tuple[tuple[str, str], ...] = ()
    ) -> measure.Measurement:
        """Its measurement."""
        return measure.measure_at(
            self.package,
            search_path=("", *map(str, (self.site, self.second, self.third))),
            security=security,
            preload=preload,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose server needs alpha (which needs beta) and gamma."""
    monkeypatch.setattr(measure, "REQUIREMENTS", ("Alpha", "gamma"))
    return Site(tmp_path / "one")


def test_two_copies_at_different_paths_have_one_measurement(site: Site, tmp_path: Path) -> None:
    """Paths are no part of it."""
    other = Site(tmp_path / "another" / "place")
    assert site.measure().digest == other.measure().digest


def test_the_digest_is_that_of_the_canonical_document(site: Site) -> None:
    """SHA-256 over RFC 8785, so that anybody can compute it from the printed document."""
    found = site.measure(preload=(("m", "00" * 32),))
    assert found.digest == hashlib.sha256(canonical(found.document)).hexdigest()
    assert json.loads(json.dumps(found.document)) == found.document
    parts = {part["name"]: part for part in found.document["dependencies"]}  # type: ignore[union-attr, call-overload, index]
    assert set(parts) == {"alpha", "beta", "gamma"}
    assert found.document["package"]["version"] == strongroom.__version__  # type: ignore[call-overload, index]
    assert parts["beta"]["version"] == "1.0"  # type: ignore[call-overload, index]
    assert found.document["preload"] == [{"name": "m", "sha256": "00" * 32}]
    assert found.document["security"] == SECURITY.to_json()
    assert found.document["interpreter"]["version"] == ".".join(map(str, sys.version_info[:3]))  # type: ignore[index, call-overload]
    files = dict(found.files)
    assert files["alpha/__init__.py"] == hashlib.sha256(b"a = 1").hexdigest()
    assert files["strongroom/service.py"] == hashlib.sha256(b"x = 1").hexdigest()
    assert "beta" not in {Path(p).name for p in files}, "scripts are not measured"


CHANGES: dict[str, Callable[[Site], object]] = {
    "a byte of the package": lambda s: (s.package / "service.py").write_text("x = 2"),
    "a file planted in the package": lambda s: (s.package / "extra.py").write_text(""),
    "an extension module beside a module of the package": lambda s: (s.package / "service.so").write_text(
        "elf"
    ),
    "a file removed from the package": lambda s: (s.package / "service.py").unlink(),
    "a byte of a dependency": lambda s: (s.site / "alpha/__init__.py").write_text("a = 2"),
    "a byte of a dependency's dependency": lambda s: (s.site / "beta.py").write_text("b = 2"),
    "a byte of a library beside a package": lambda s: (s.site / "alpha.libs/x.so").write_text("flE"),
    "a file planted in a dependency, in no RECORD": lambda s: (s.site / "alpha/sub/evil.py").write_text(""),
    "a file planted in a namespace package": lambda s: (s.site / "shared/gamma/evil.py").write_text(""),
    "a file renamed": lambda s: (s.site / "alpha/sub/deep.py").rename(s.site / "alpha/sub/deeper.py"),
    "sourceless byte code outside __pycache__": lambda s: (s.site / "alpha/evil.pyc").write_bytes(b"pyc"),
    "a folder that shadows a module": lambda s: (
        (s.site / "beta").mkdir(),
        (s.site / "beta/__init__.py").write_text(""),
    ),
    "an extension that shadows a module": lambda s: (s.site / "beta.so").write_text("elf"),
    "a module that shadows a namespace": lambda s: (s.site / "shared.py").write_text(""),
    "a module of the same name in another folder of the path": lambda s: shutil.copytree(
        s.site / "alpha", s.second / "alpha"
    ),
    "metadata": lambda s: (s.site / "alpha-1.0.dist-info/entry_points.txt").write_text("[x]"),
    "a dependency left out of RECORD": lambda s: (s.site / "alpha-1.0.dist-info/RECORD").write_text(
        "alpha-1.0.dist-info/METADATA,,\n"
    ),
    "a link to another file": lambda s: (
        (s.site / "beta.py").unlink(),
        (s.site / "beta.py").symlink_to(s.site / "unrelated/__init__.py"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_code_has_another_measurement(site: Site, name: str) -> None:
    """Each change to what would run changes the digest."""
    before = site.measure().digest
    CHANGES[name](site)
    assert site.measure().digest != before


SAME: dict[str, Callable[[Site], object]] = {
    "hashes in RECORD": lambda s: (s.site / "beta-1.0.dist-info/RECORD").write_text(
        "beta.py,,\nbeta-1.0.dist-info/X,,\n"
    ),
    "who installed it": lambda s: (s.site / "alpha-1.0.dist-info/INSTALLER").write_text("uv\n"),
    "from where": lambda s: (s.site / "alpha-1.0.dist-info/direct_url.json").write_text("{}"),
    "that it was asked for": lambda s: (s.site / "alpha-1.0.dist-info/REQUESTED").write_text(""),
    "byte code that is not read": lambda s: (
        (s.site / "alpha/__pycache__").mkdir(),
        (s.site / "alpha/__pycache__/evil.pyc").write_bytes(b"x"),
    ),
    "scripts": lambda s: (s.site / "../../../bin/beta").write_text("other"),
    "another distribution": lambda s: s.add("zeta", {"zeta/__init__.py": ""}, []),
    "a .pth file, which -S does not read": lambda s: (s.site / "x.pth").write_text("import os"),
    "times and modes": lambda s: (os.utime(s.site / "beta.py", (0, 0)), (s.site / "beta.py").chmod(0o600)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_run_does_not_matter(site: Site, name: str) -> None:
    """How, when and by whom something was installed is not part of it."""
    before = site.measure().digest
    SAME[name](site)
    assert site.measure().digest == before


def test_the_configuration_and_the_preloaded_models_are_part_of_it(site: Site) -> None:
    """One setting or one model's digest makes another server; the order of models does not."""
    a, b = ("a", "00" * 32), ("b", "11" * 32)
    digests = {
        site.measure().digest,
        site.measure(security=replace(SECURITY, anonymous_upload=True)).digest,
        site.measure(preload=(a,)).digest,
        site.measure(preload=(a, b)).digest,
        site.measure(preload=(("a", "11" * 32),)).digest,
    }
    assert len(digests) == 5
    assert site.measure(preload=(b, a)).digest in digests


# Dependencies


@pytest.mark.parametrize(
    "line",
    [
        'missing; extra == "x"',
        "missing>=1 ; (sys_platform != 'win32') and extra == 'standard'",
        'missing; python_version < "3.11"',
        "missing ; python_full_version < '3.11'",
        'missing; sys_platform == "win32"',
    ],
)
def test_a_dependency_that_is_for_others_may_be_absent(site: Site, line: str) -> None:
    """Extras that nobody asked for, other platforms and older interpreters."""
    site.add("delta", {"delta.py": ""}, [line])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REQUIREMENTS", ("delta",))
        site.measure()


def test_a_dependency_for_older_interpreters_does_not_count_even_where_it_is_installed(site: Site) -> None:
    """A development tool that brings it does not change the measurement of the server."""
    site.add("delta", {"delta.py": ""}, ['unrelated; python_version < "3.11"'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REQUIREMENTS", ("delta",))
        before = site.measure().digest
        (site.site / "unrelated/__init__.py").write_text("changed")
        assert site.measure().digest == before


@pytest.mark.parametrize("line", ["missing", "missing[extra] >= 1", "=1"])
def test_a_missing_dependency_is_a_failure(site: Site, line: str) -> None:
    """What cannot be found cannot be measured; there is no measurement of the rest."""
    site.add("delta", {"delta.py": ""}, [line])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REQUIREMENTS", ("delta",))
        with pytest.raises(Failure) as caught:
            site.measure()
    assert caught.value.code == "measurement_impossible"


def test_a_distribution_without_a_list_of_its_files_is_a_failure(site: Site) -> None:
    """Else it would be loaded and not measured."""
    (site.site / "beta-1.0.dist-info/RECORD").unlink()
    with pytest.raises(Failure, match="beta has no list of its files"):
        site.measure()


UNMEASURABLE: dict[str, Callable[[Site], object]] = {
    "two folders of the path that offer the same file": lambda s: (
        shutil.copytree(s.site / "alpha", s.second / "alpha"),
        shutil.copytree(s.site / "alpha", s.third / "alpha"),
    ),
    "a link to a folder": lambda s: (s.site / "alpha/linked").symlink_to(s.site / "unrelated"),
    "a list of files that cannot be read": lambda s: (s.site / "alpha-1.0.dist-info/RECORD").write_bytes(
        b"\xff\n"
    ),
    "a list of files without end": lambda s: (s.site / "alpha-1.0.dist-info/RECORD").write_text(
        "a" * 200_000
    ),
    "a broken link": lambda s: (s.site / "alpha/broken.py").symlink_to(s.site / "nowhere"),
    "a pipe": lambda s: os.mkfifo(s.site / "alpha/pipe.py"),
    "a name that is not Unicode": lambda s: Path(
        os.fsdecode(os.fsencode(s.site / "alpha") + b"/\xff.py")
    ).touch(),
    "a file of RECORD that is not there": lambda s: (s.site / "beta.py").unlink(),
}


@pytest.mark.parametrize("name", UNMEASURABLE)
def test_what_cannot_be_measured_is_a_failure(site: Site, name: str) -> None:
    """Nothing is left out because it is awkward."""
    try:
        UNMEASURABLE[name](site)
    except OSError:
        pytest.skip("not exercised here: this file system takes Unicode names only")
    with pytest.raises(Failure) as caught:
        site.measure()
    assert caught.value.code == "measurement_impossible"


def test_the_requirements_are_those_of_the_package() -> None:
    """What is measured is what pyproject.toml names for the server."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["server"]
    assert sorted(re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in lines) == list(
        measure.REQUIREMENTS
    )  # type: ignore[index]


# The real thing


PACKAGE = REPOSITORY / "strongroom"
BOOTSTRAP = f"""
import importlib.util, sys
sys.path += PATH
found = importlib.util.spec_from_file_location(
    "strongroom", {str(PACKAGE / "__init__.py")!r}, submodule_search_locations=[{str(PACKAGE)!r}]
)
sys.modules["strongroom"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["strongroom"])
"""


def _run(code: str, *path: str) -> str:
    """Runs `code` as the launcher runs a server: no site module, no byte code, the package by its own path."""
    text = BOOTSTRAP.replace("PATH", repr(list(path))) + code
    command = [sys.executable, "-I", "-S", "-B", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SITE = next(Path(p) for p in sys.path if (Path(p) / "rfc8785").is_dir())
MEASURE = """
import json
from pathlib import Path
from strongroom.measure import measure_at
from strongroom.attest.keyset import parse_security
found = measure_at(Path({package!r}), search_path=sys.path, security=parse_security({security!r}), preload=())
print(json.dumps(found.document, sort_keys=True))
"""


@pytest.mark.slow
def test_a_clean_interpreter_and_a_copy_of_everything_give_the_same_measurement(tmp_path: Path) -> None:
    """This process, one with `-I -S`, and one over copies of package and dependencies at other paths
    agree.
    """
    clones = [tmp_path / "clone" / "strongroom", tmp_path / "other" / "clone" / "strongroom"]
    for clone in clones:
        shutil.copytree(REPOSITORY / "strongroom", clone, ignore=shutil.ignore_patterns("__pycache__"))
    here = measure.measure_at(clones[0], search_path=sys.path, security=SECURITY, preload=())
    expected = json.dumps(here.document, sort_keys=True)
    first, second = (MEASURE.format(package=str(c), security=SECURITY.to_json()) for c in clones)
    assert _run(first, str(SITE)) == expected

    copy = tmp_path / "site"
    for path, _ in here.files:
        if not path.startswith("strongroom/"):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SITE / path, copy / path)
    for info in {Path(p).parts[0] for p, _ in here.files if ".dist-info/" in p}:
        shutil.copyfile(SITE / info / "RECORD", copy / info / "RECORD")
    assert _run(second, str(copy)) == expected
