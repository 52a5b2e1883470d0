"""The documents are true: generated pages match, links lead somewhere, README examples run, seeds name what exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY

from strongroom import errors

DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])


def _docs_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tool", REPOSITORY / "tools" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_error_reference_lists_every_code() -> None:
    """docs/errors.md is what `make docs` makes of errors.CODES."""
    assert (DOCS / "errors.md").read_text() == _docs_tool().errors_page()


def test_the_reference_of_policy_entries_lists_every_member() -> None:
    """docs/policy-entries.md is what `make docs` makes of entries.ENTRIES."""
    assert (DOCS / "policy-entries.md").read_text() == _docs_tool().entries_page()


def test_every_error_code_used_in_the_package_is_declared() -> None:
    """Every literal `code=` in the package is in CODES, and every code in CODES is used somewhere."""
    text = "\n".join(
        p.read_text()
        for p in sorted((REPOSITORY / "strongroom").rglob("*.py"))
        if p.name not in ("errors.py", "codes.py", "tree_codes.py")
    )
    tree = (REPOSITORY / "strongroom" / "errors.py").read_text()
    used = set(re.findall(r'code="([a-z0-9_]+)"', text))
    assert not used - set(errors.CODES), used - set(errors.CODES)
    templates = [
        re.sub(r"\\{.*?\\}", "[a-z_]+", re.escape(t)) for t in re.findall(r'f"(\w+_\{\w+\}_\w+)"', text)
    ]
    made = {c for c in errors.CODES if any(re.fullmatch(t, c) for t in templates)}
    unused = {c for c in errors.CODES if f'"{c}"' not in text and f'code = "{c}"' not in tree} - made
    assert not unused, unused


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of every page names a file of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_names_a_registry_or_a_machine() -> None:
    """The project speaks of the project alone."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if (REPOSITORY / name).suffix in {
            ".md",
            ".py",
            ".toml",
            ".in",
            ".lock",
            ".yaml",
            "",
        } and name != "tests/test_docs.py":
            path = REPOSITORY / name
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            assert not re.search(
                r"--(extra-)?index-url|(?<![\w.~-])/(work|farm)/|files\.pythonhosted", text
            ), name


def _seed_rows() -> list[tuple[str, str, str]]:
    text = (DOCS / "seeds.md").read_text()
    return re.findall(r"^\| ([BCP]\d+) \| [^|]+ \| ([^|]+) \|([^|]*)\|$", text, re.MULTILINE)


def test_every_claim_of_the_seeds_has_a_row() -> None:
    """B1 to B12, C1 to C10 and P1 to P18, each once."""
    expected = (
        [f"B{i}" for i in range(1, 13)] + [f"C{i}" for i in range(1, 11)] + [f"P{i}" for i in range(1, 19)]
    )
    assert [row[0] for row in _seed_rows()] == expected


@pytest.mark.parametrize(
    ("claim", "state", "shown"), _seed_rows(), ids=lambda v: v if re.fullmatch(r"[BCP]\d+", v) else ""
)
def test_a_done_claim_names_a_command_and_a_test_that_exist(claim: str, state: str, shown: str) -> None:
    """A row is done, with a `strongroom` command and a test; or it waits, and says for what."""
    from strongroom.cli import main

    if "done" not in state:
        assert "waits:" in state, claim
        return
    command = re.search(r"`strongroom ([\w-]+)`", shown)
    test = re.search(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown)
    assert command and test, claim
    assert command[1] in main.commands, claim
    path = REPOSITORY / test[1]
    assert path.is_file(), claim
    assert f"def {test[2] or 'test_'}" in path.read_text(), claim


def test_readme_names_every_platform_once_and_claims_no_hardware_live() -> None:
    """A platform is marked verified only if its format has a verifier; what ran is the simulated TEE and a software
    TPM, and emulated is what `platforms` can ask."""
    from strongroom.attest import VERIFIERS
    from strongroom.platforms import PLATFORMS

    table = (REPOSITORY / "README.md").read_text().split("| platform |")[1].split("\n\n")[0]
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:6]]
        for cells in (line.split("|") for line in table.splitlines()[2:])
    }
    formats = {
        "Intel SGX (Gramine)": "sgx",
        "Intel TDX": "tdx",
        "AMD SEV-SNP": "snp",
        "Azure confidential VM (SNP or TDX, vTPM)": "azure",
        "TPM 2.0": "tpm",
        "AWS Nitro": "nitro",
    }
    for platform, (genuine, emulated, live, never) in rows.items():
        if platform == "simulated TEE":
            assert live and not never
        else:
            assert (not live or "software" in live) and never, platform
            assert not emulated or formats[platform] in PLATFORMS, platform
            assert bool(genuine) == (formats.get(platform) in VERIFIERS), platform


@pytest.mark.slow
def test_readme_examples_run(tmp_path: Path) -> None:
    """The console lines of the README run in order against a live server, and its Python block after them."""
    from serving import serving

    readme = (REPOSITORY / "README.md").read_text()
    console = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)[0]
    python = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *words]
        return subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120
        )

    with serving(tmp_path / "server") as server:
        for line in console.strip().splitlines():
            words = line.removeprefix("$ strongroom ").replace("https://127.0.0.1:8443", server.url).split()
            done = run(["-m", "strongroom.cli", *words])
            assert done.returncode == 0, (line, done.stdout, done.stderr)
        script = python.replace("https://127.0.0.1:8443", server.url)
        done = run(["-c", script])
        assert done.returncode == 0, done.stderr
        assert "SIMULATED" in done.stdout


def test_no_file_holds_two_halves_of_a_merge() -> None:
    """Conflict markers of git are in no text of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=REPOSITORY, check=False)
    if listed.returncode:
        pytest.skip("not exercised here: not a clone")
    marks = tuple(mark * 7 + b" " for mark in (b"<", b">"))
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = REPOSITORY / name
        if path.suffix in (".md", ".py", ".toml", ".in", ".lock", "") and path.is_file():
            data = b"\n" + path.read_bytes()
            assert not any(b"\n" + mark in data for mark in marks), name
