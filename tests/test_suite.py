"""The halves of the tests: nothing is left out, nothing runs twice, and the table names what there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import suite


def test_every_file_is_in_one_half() -> None:
    """Whatever the table says, and of a file that it does not name too."""
    files = suite.files_of_tests()
    assert "test_suite.py" in files and "attest/test_dcap.py" in files
    for seconds in ({}, json.loads(suite.TABLE.read_text())):
        dealt = suite.shares({name: seconds.get(name, suite.UNLISTED) for name in files})
        assert len(dealt) == suite.HALVES and all(dealt)
        assert sorted(name for names in dealt for name in names) == files


def test_the_halves_take_the_same_time() -> None:
    """The longest file does not outweigh the rest."""
    table = json.loads(suite.TABLE.read_text())
    first, second = (sum(table[name] for name in names) for names in suite.shares(table))
    assert abs(first - second) < 1


def test_the_table_names_files_that_exist() -> None:
    """`--record` writes it anew."""
    assert set(json.loads(suite.TABLE.read_text())) <= set(suite.files_of_tests())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, [[], []]),
        ({"a": 1.0}, [["a"], []]),
        ({"a": 1.0, "b": 3.0, "c": 2.0}, [["b"], ["a", "c"]]),
        ({"c": 1.0, "b": 1.0, "a": 1.0}, [["a", "c"], ["b"]]),
    ],
)
def test_the_longest_is_dealt_first(files: dict[str, float], expected: list[list[str]]) -> None:
    """Each to the half that has less so far; the same files give the same halves in any order."""
    assert suite.shares(files) == expected
    assert suite.shares(dict(reversed(files.items()))) == expected


def test_what_the_halves_say_is_added_up(tmp_path: Path) -> None:
    """Outcomes and reasons are counted, and what no machine exercises is said once; a half that died says nothing."""
    report = {"outcomes": {"passed": 3}, "reasons": {"no strace": 2}, "never": ["TEE"], "seconds": {"a": 0.5}}
    for name in ("0.json", "1.json"):
        (tmp_path / name).write_text(json.dumps(report))
    paths = [tmp_path / "0.json", tmp_path / "1.json", tmp_path / "2.json"]
    assert suite.merged(paths) == ({"passed": 6}, {"no strace": 4, "TEE": 1}, {"a": 0.5})


def test_a_failing_half_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    """By its exit code; what each said is shown, the first one's as it comes."""
    commands = [[sys.executable, "-c", f"print('{word}'); raise SystemExit({code})"] for word, code in
                (("one", 0), ("two", 1), ("three", 0))]  # fmt: skip
    assert suite.run(commands) == [0, 1, 0]
    assert capfd.readouterr().out.split() == ["one", "two", "three"]
