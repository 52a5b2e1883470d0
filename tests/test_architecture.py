"""The house holds itself up: imports follow the table in docs/architecture.md, and a few words stay in their rooms."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "strongroom"
TABLE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
MAX_LINES = 600


def _rows() -> dict[str, tuple[int, str]]:
    rows = re.findall(r"^\| (\d) \| `([\w.]+)` \| [^|]+ \| ([^|]+) \|", TABLE, re.MULTILINE)
    assert len({name for _, name, _ in rows}) == len(rows), "a module has two rows"
    return {name: (int(tier), allowed.strip()) for tier, name, allowed in rows}


ROWS = _rows()


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and name != "compat":  # the root and compat/__init__ hold no code of their own
            found[name] = path
    return found


MODULES = _modules()


@functools.cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of the file. Nobody changes one."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Strongroom modules that `path` imports at run time, anywhere in the file, `TYPE_CHECKING` blocks left out."""
    typing_only = {
        id(inner)
        for node in _nodes(path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in _nodes(path):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{a.name}" if f"{module}.{a.name}".removeprefix("strongroom.") in MODULES else module
                      for a in node.names}  # fmt: skip
    return frozenset(n.removeprefix("strongroom.") for n in names if n.startswith("strongroom."))


def _allowed(name: str, target: str) -> bool:
    _tier, words = ROWS[name]
    for word in (w.strip() for w in words.split(",")):
        if word == target or (word.endswith(".*") and (target + ".").startswith(word[:-1])):
            return True
        if match := re.fullmatch(r"tiers (\d)–(\d)", word):
            low, high = map(int, match.groups())
            if low <= ROWS[target][0] <= high:
                return True
    return False


def test_every_module_is_in_the_table_and_every_row_is_a_module() -> None:
    """The table and the package name the same modules."""
    assert set(MODULES) == set(ROWS)


def test_imports_follow_the_table() -> None:
    """No import that its row does not allow, and none to a higher tier."""
    wrong = []
    for name, path in MODULES.items():
        for target in _imports(path):
            if target == name or target not in ROWS:
                continue
            if not _allowed(name, target) or ROWS[target][0] > ROWS[name][0]:
                wrong.append(f"{name} imports {target}")
    assert not wrong, wrong


def test_there_is_no_cycle() -> None:
    """The import graph is acyclic."""
    graph = {name: _imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_only_config_reads_the_environment() -> None:
    """Settings come from one place; `launch` and `engine` only write what must stand before an import or exec."""
    readers = {n for n, p in MODULES.items() if re.search(r"os\.environ\.get|os\.environ\[[^]]+\](?!\s*=)|getenv",
                                                           p.read_text(encoding="utf-8"))}  # fmt: skip
    assert readers <= {"config"}, readers


def test_the_pure_tiers_do_no_input_or_output() -> None:
    """Tiers 0 and 1 touch no socket, file or clock: bytes and one time come in as arguments."""
    banned_modules = {
        "socket",
        "httpx",
        "ssl",
        "time",
        "subprocess",
        "asyncio",
        "tempfile",
        "pathlib",
    }
    banned_calls = {"open", "datetime.now", "datetime.utcnow", "os.urandom", "time.time"}
    wrong = []
    for name, path in MODULES.items():
        if ROWS[name][0] > 1:
            continue
        for node in _nodes(path):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = (
                    [a.name.split(".")[0] for a in node.names]
                    if isinstance(node, ast.Import)
                    else [str(node.module).split(".")[0]]
                )
                wrong += [f"{name}: import {r}" for r in roots if r in banned_modules]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in banned_calls:
                wrong.append(f"{name}: {ast.unparse(node.func)}()")
    assert not wrong, wrong


def test_nothing_deserialises_code() -> None:
    """No module imports pickle, marshal or shelve, or calls eval or exec: a model is data, never code."""
    wrong = []
    for name, path in MODULES.items():
        for node in _nodes(path):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                wrong += [
                    f"{name}: {r}"
                    for r in roots
                    if r in {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
                ]
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"eval", "exec", "compile"}
            ):
                wrong.append(f"{name}: {node.func.id}()")
    assert not wrong, wrong


def test_modules_stay_small() -> None:
    """No module passes 600 lines; the median stays near 150 to 250."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {n: count for n, count in lengths.items() if count > MAX_LINES}


def test_onnxruntime_is_imported_in_one_place() -> None:
    """`engine` alone imports onnxruntime."""
    importers = {
        n
        for n, p in MODULES.items()
        if re.search(r"^\s*(import|from) onnxruntime", p.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers == {"engine"}


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    """In every file of the repository that imports it outside tests, which have theirs off in conftest.py: by a line
    of the module itself, which no path goes round. The wheels send it by default.
    """
    seen, wrong = set(), []
    for folder in ("strongroom", "bench", "fuzz", "tools", "examples", "deploy"):
        for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            imported = re.search(r"^\s*(import|from) onnxruntime\b", text, re.MULTILINE)
            off = re.search(r'^os\.environ\["ORT_DISABLE_TELEMETRY"\] = "1"(  #|$)', text, re.MULTILINE)
            if imported:
                seen.add(path.name)
                if off is None or off.start() > imported.start():
                    wrong.append(str(path.relative_to(PACKAGE.parent)))
    assert "engine.py" in seen, "the search found nothing"
    assert not wrong, wrong


def test_the_types_of_every_tool_are_read() -> None:
    """mypy is told of each by name; a new one is not forgotten."""
    named = set(tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["mypy"]["modules"])
    assert named == {path.stem for path in (PACKAGE.parent / "tools").glob("*.py")}
