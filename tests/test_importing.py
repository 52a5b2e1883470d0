"""Only measured files become code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from strongroom import importing

PROGRAM = """
import sys
sys.path[:0] = {root!r}
standard = [p for p in sys.path if p != {root!r}[0]]
from strongroom.importing import MeasuredImports
from pathlib import Path
hook = MeasuredImports(standard=standard, dependencies={dependencies!r}, package=Path({root!r}[0]) / "strongroom")
hook.install()
import hashlib
def measured(*names):
    files = [(n, Path(f) / n) for n in names for f in (*{dependencies!r}, {root!r}[0])]
    return {{n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in files if f.is_file()}}
{body}
"""


def run(tmp_path: Path, body: str) -> str:
    """Runs `body` in an interpreter of its own with the hook installed; returns what it prints."""
    dependencies = tmp_path / "site"
    dependencies.mkdir(exist_ok=True)
    root = [str(Path(importing.__file__).resolve().parents[1])]
    program = PROGRAM.format(root=root, dependencies=[str(dependencies)], body=body)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program], capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of dependencies: a measured package, a planted module beside it and one inside it."""
    site = tmp_path / "site"
    (site / "good").mkdir(parents=True)
    (site / "good" / "__init__.py").write_text("value = 1\n")
    (site / "good" / "part.py").write_text("value = 2\n")
    (site / "good" / "planted.py").write_text("print('EVIL')\n")
    (site / "uvloop.py").write_text("print('EVIL')\n")
    (site / "space" / "inner").mkdir(parents=True)
    (site / "space" / "inner" / "__init__.py").write_text("value = 3\n")
    (site / "json").mkdir()
    (site / "json" / "__init__.py").write_text("print('EVIL')\n")
    return site


OWN = ["strongroom/__init__.py", "strongroom/codes.py", "strongroom/errors.py", "strongroom/importing.py",
       "strongroom/tree_codes.py"]  # fmt: skip
MEASURED = f"hook.admit(measured(*{[*OWN, 'good/__init__.py', 'good/part.py', 'space/inner/__init__.py']!r}))"


def test_measured_modules_are_found(tmp_path: Path, site: Path) -> None:
    """Packages, their parts, and packages within a namespace."""
    body = f"{MEASURED}\nimport good.part, space.inner\nprint(good.value, good.part.value, space.inner.value)"
    assert run(tmp_path, body) == "1 2 3\n"


def test_what_was_not_measured_does_not_exist(tmp_path: Path, site: Path) -> None:
    """A planted optional dependency, and a planted part of a measured package: as if not installed."""
    body = f"""
{MEASURED}
for name in ("uvloop", "good.planted"):
    try:
        __import__(name)
        print("imported", name)
    except ModuleNotFoundError:
        print("absent", name)
"""
    assert run(tmp_path, body) == "absent uvloop\nabsent good.planted\n"


def test_nothing_is_imported_before_the_measurement(tmp_path: Path, site: Path) -> None:
    """Until it is known what was measured, only what measuring needs may be imported."""
    body = "try:\n    import good\nexcept ModuleNotFoundError:\n    print('not yet')\n"
    assert run(tmp_path, body) == "not yet\n"


def test_the_standard_library_comes_from_the_interpreter(tmp_path: Path, site: Path) -> None:
    """A package of the same name among the dependencies is never taken for it."""
    body = f"{MEASURED}\nimport sys\nsys.modules.pop('json', None)\nimport json\nprint(json.loads('1'))"
    assert run(tmp_path, body) == "1\n"


def test_the_interpreters_own_configuration_is_found(tmp_path: Path) -> None:
    """`sysconfig` reads a module of the standard library that no list of its modules names."""
    body = "import sysconfig\nprint(sysconfig.get_config_var('VERSION') is not None)"
    assert run(tmp_path, body) == "True\n"


def test_a_module_that_was_loaded_before_must_have_been_measured(tmp_path: Path) -> None:
    """What measuring itself imported is looked at once the measurement is there."""
    package = Path(importing.__file__).resolve().parent
    files = [f"strongroom/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")]
    body = f"hook.admit(measured(*{files!r}))\nprint('whole')"
    assert run(tmp_path, body) == "whole\n"
    body = f"hook.admit(measured(*{[name for name in files if 'importing' not in name]!r}))"
    assert "Failure: strongroom.importing was loaded from a file that is not measured" in run(tmp_path, body)


@pytest.mark.parametrize(
    "hidden", ["", "good.__spec__ = None", "sys.modules['json'] = sys.modules.pop('good')"]
)
def test_every_loaded_module_is_looked_at(tmp_path: Path, site: Path, hidden: str) -> None:
    """Not only what measuring needs: whatever came in before, under whatever name, without a specification too."""
    body = f"""
sys.meta_path[:] = [f for f in sys.meta_path if f is not hook]
sys.path.append({str(site)!r})
from importlib.machinery import PathFinder
sys.meta_path.append(PathFinder)
import good
{hidden}
hook.admit(measured(*{OWN!r}))
"""
    assert "was loaded from a file that is not measured" in run(tmp_path, body)


@pytest.mark.parametrize("package", ["app/strongroom", "strongroom"])
def test_the_interpreters_folders_do_not_vouch_for_dependencies_in_them(tmp_path: Path, package: str) -> None:
    """Without a virtual environment `site-packages` lies in the standard library's folder; and the package
    may lie in a folder that holds the whole interpreter.
    """
    standard, site = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    hook = importing.MeasuredImports(
        standard=[str(standard)], dependencies=[str(site)], package=tmp_path / package
    )

    def may_stay(name: str, file: Path) -> bool:
        module = ModuleType(name)
        module.__file__ = str(file)
        return hook._may_stay(name, module)

    assert may_stay("json", standard / "json" / "__init__.py")
    assert not may_stay("json", site / "json" / "__init__.py")
    assert not may_stay("good", standard / "good.py")


def test_byte_code_without_source_does_not_exist_unless_measured(tmp_path: Path, site: Path) -> None:
    """A `.pyc` in place of a source file is a file like any other: unmeasured, it is not loaded."""
    import py_compile

    source = tmp_path / "sourceless.py"
    source.write_text("print('EVIL')\n")
    py_compile.compile(str(source), cfile=str(site / "good" / "sourceless.pyc"))
    body = f"{MEASURED}\ntry:\n    import good.sourceless\nexcept ModuleNotFoundError:\n    print('absent')\n"
    assert run(tmp_path, body) == "absent\n"


@pytest.mark.parametrize("suffix", ["py", "pyc"])
def test_a_file_that_was_changed_after_it_was_measured_is_not_loaded(
    tmp_path: Path, site: Path, suffix: str
) -> None:
    """Modules are imported when they are first needed, perhaps hours after the measurement."""
    if suffix == "pyc":
        (site / "good" / "part.py").rename(site / "good" / "part.pyc")
    body = f"""
hook.admit(measured(*{[*OWN, "good/__init__.py", f"good/part.{suffix}"]!r}))
Path({str(site / "good" / f"part.{suffix}")!r}).write_text("print('EVIL')")
try:
    import good.part
except ImportError as error:
    print(error)
"""
    assert run(tmp_path, body) == "the module's file is no longer the one that was measured\n"


def test_byte_code_in_the_cache_is_not_looked_at(tmp_path: Path, site: Path) -> None:
    """One that is never compared with its source would run in place of it."""
    import py_compile

    source = tmp_path / "other.py"
    source.write_text("print('EVIL')\n")
    cached = site / "good" / "__pycache__" / f"part.{sys.implementation.cache_tag}.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), cfile=str(cached), invalidation_mode=mode)
    assert run(tmp_path, f"{MEASURED}\nimport good.part\nprint(good.part.value)") == "2\n"


def test_a_file_that_was_changed_back_before_it_was_measured_is_noticed(tmp_path: Path, site: Path) -> None:
    """What measuring itself imports is measured after it was loaded: these must be the same bytes."""
    file = site / "rfc8785.py"
    file.write_text("print('loaded')\n")
    again = f"hook.admit(measured(*{[*OWN, 'rfc8785.py']!r}))\nprint('whole')"
    assert run(tmp_path, f"import rfc8785\n{again}") == "loaded\nwhole\n"
    body = f"import rfc8785\nPath({str(file)!r}).write_text('value = 1')\n{again}"
    assert "Failure: rfc8785.py was changed before it was measured" in run(tmp_path, body)
