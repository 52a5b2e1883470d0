"""The one result format: what commands write satisfies the published schema, is read back, merged and shown."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import strongroom_bench
from click.testing import CliRunner
from strongroom_bench import paper, report
from strongroom_bench.merge import merge
from strongroom_bench.results import Result, read, write
from strongroom_bench.tables import grid, render, seconds

from strongroom.cli import main

SCHEMA = json.loads((Path(strongroom_bench.__file__).parent / "result.schema.json").read_text())
MACHINE = {
    "processor": "Test CPU", "cores": 2, "memory_mb": 1000, "system": "Linux 6", "architecture": "x86_64",
    "python": "3.11.7", "openssl": "OpenSSL 3", "load": 0.1,
}  # fmt: skip
ROUNDS = 20


def result(command: str = "warm", *, scale: float = 1.0, platform: str = "sim (simulated)") -> Result:
    """A recorded result of its own: two models of which the paper knows one, our server at 1.1 and Flask at 1.4 times
    bare.
    """
    return copy.deepcopy(_recorded(command, scale, platform))


@functools.cache
def _recorded(command: str, scale: float, platform: str) -> Result:
    made = Result(
        command=command,
        baseline="bare",
        started="2026-11-29T00:00:00+00:00",
        machine=dict(MACHINE),
        versions={"numpy": "2.4.6"},
        settings={
            "rounds": ROUNDS,
            "warmups": 5,
            "cores": {"server": 1, "client": 0},
            "threads": 1,
            "batch": 1,
        },
        contenders=[
            {"name": "bare", "title": "bare onnxruntime", "version": "onnxruntime 1", "facts": {}},
            {
                "name": "strongroom",
                "title": "Strongroom",
                "version": "0.1.0",
                "facts": {"platform": platform},
            },
            {"name": "flask", "title": "Flask", "version": "3", "facts": {}},
        ],
    )
    for subject, base in (("resnet50", 0.05), ("mlp", 0.0001)):
        series = [base * (1 + n / 1000) for n in range(ROUNDS)]
        values = {
            "bare": series,
            "strongroom": [scale * 1.1 * v for v in series],
            "flask": [1.4 * v for v in series],
        }
        details = {name: {"bytes": 102_000_000} for name in values}
        made.add(subject, "latency", "s", values, details=details)
    made.miss("triton", "", "cannot be installed here: no such wheel")
    return made


def test_a_result_satisfies_the_schema_and_is_read_back_whole(tmp_path: Path) -> None:
    """Also the other way about: what was read and written again is the same document."""
    document = result().to_json()
    jsonschema.validate(document, SCHEMA)
    path = write(result(), tmp_path)
    assert read(path).to_json() == document == json.loads(path.read_text())


def test_the_headline_is_the_geometric_mean_of_our_ratios() -> None:
    """At the top level, over every model, to the baseline of the same run."""
    document = result().to_json()
    assert document["geomean_ratio"] == pytest.approx(1.1)
    assert document["geomeans"]["flask"] == {"ratio": pytest.approx(1.4), "subjects": 2}
    alone = result()
    alone.rows = [row for row in alone.rows if row.contender != "strongroom"]
    assert alone.to_json()["geomean_ratio"] is None


def test_a_small_model_does_not_blur_the_headline() -> None:
    """Where networks of the paper's range are there only they count; what a small one pays is shown as a time."""
    mixed = result()
    for row in mixed.rows:
        row.detail["group"] = "paper" if row.subject == "resnet50" else "tabular"
    mixed.add("iris", "latency", "s", {"bare": [1e-5] * 20, "strongroom": [1e-3] * 20})
    assert mixed.to_json()["geomeans"]["strongroom"] == {"ratio": pytest.approx(1.1), "subjects": 1}
    assert "990 µs" in next(line for line in render(mixed).splitlines() if line.startswith("iris"))


def _without(member: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(member)


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        target: Any = document
        *parents, last = path.split("/")
        for part in parents:
            target = target[int(part) if part.isdigit() else part]
        target[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without("rows"), _without("geomean_ratio"), _without("trial"), _set("format", "strongroom-bench/2"),
        _set("command", "hot"), _set("rows/0/values", []), _set("rows/0/values/3", 0), _set("rows/0/unit", "ms"),
        _set("rows/0/summary/noisy", "no"), _set("rows/1/ratio", {"value": 1.0}), _set("rows/0/more", 1),
        _set("absent/0/reason", ""), _set("more", 1),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_no_result(change: Callable[[dict[str, Any]], None]) -> None:
    """One fault each."""
    document = copy.deepcopy(result().to_json())
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        _without("rows"), _without("machine"), _set("format", "strongroom-bench/2"), _set("command", "hot"),
        _set("rows/0/values", []), _set("rows/0/values/3", -1.0), _set("rows/0/values/3", "fast"), _set("rows", 7),
        _set("rows/1/ratio", {"value": 1.0}),
    ],
)  # fmt: skip
def test_what_is_no_result_is_not_read(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    """With the file's name, and without its content."""
    document = copy.deepcopy(result().to_json())
    change(document)
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(document))
    with pytest.raises(click.ClickException, match=r"warm\.json"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"7", b"\xff"])
def test_other_files_are_not_results(content: bytes, tmp_path: Path) -> None:
    """Nor is one that is not there."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for name in (path, tmp_path / "none.json"):
        with pytest.raises(click.ClickException):
            read(name)


def test_merge_prints_native_tee_and_overhead_beside_the_papers(tmp_path: Path) -> None:
    """Two recorded results through the command; the paper's values where it has some, and nothing invented."""
    native, tee = write(result(), tmp_path / "a"), write(result(scale=1.3, platform="snp"), tmp_path / "b")
    done = CliRunner().invoke(main, ["bench", "--merge", str(native), str(tee)])
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    assert lines["resnet50"][1:] == ["55.5", "ms", "72.2", "ms", "1.30", "283", "ms", "-", "-"]
    assert lines["mlp"][-3:] == ["-", "-", "-"]
    assert "geometric mean of the overheads: 1.300 over 2 models" in done.output
    assert paper.UNKNOWN in done.output and "SIMULATED" not in done.output
    cold = merge(result("cold"), result("cold", scale=2.0))
    assert "25.37" not in cold and "8.14 s" in cold and "SIMULATED" in cold


def test_merge_wants_two_results_of_one_kind() -> None:
    """Warm against cold, other commands, and results without a model in common are refused."""
    other = result()
    other.rows = [row for row in other.rows if row.contender == "bare"]
    for pair in ((result(), result("cold")), (result("attest"), result("attest")), (result(), other)):
        with pytest.raises(click.ClickException):
            merge(*pair)


def test_the_papers_overheads_are_those_of_its_figures() -> None:
    """SqueezeNet 1.17, EfficientNetV2-L 1.97 in memory and 28.1 from disk, ResNet-50 25.4 from disk."""
    assert paper.MEMORY["squeezenet"].overhead == pytest.approx(1.171, abs=0.001)
    assert paper.MEMORY["efficientnet_v2_l"].overhead == pytest.approx(1.970, abs=0.001)
    assert paper.MEMORY["resnet50"].overhead is None
    assert paper.DISK["resnet50"].overhead == pytest.approx(25.36, abs=0.01)
    assert paper.DISK["efficientnet_v2_l"].overhead == pytest.approx(28.08, abs=0.01)


def test_a_table_names_everything_and_says_what_is_missing() -> None:
    """Ratios with intervals, the paper's figures, versions, machine, flags and absences."""
    text = render(result())
    for shown in (
        "1.100 [1.10, 1.10]",
        "SGX / native",
        "Test CPU",
        "onnxruntime 1",
        "triton is missing: cannot be",
    ):
        assert shown in text
    noisy = result()
    noisy.trial = True
    noisy.add("noisy", "latency", "s", {"bare": [1.0, 2.0, 3.0]})
    assert "2 s!" in render(noisy) and "A TRIAL" in render(noisy)


def test_times_have_three_figures_and_columns_are_straight() -> None:
    """Seconds, milliseconds and microseconds; a grid's lines are equally long but for trailing space."""
    assert [seconds(v) for v in (1.5, 0.0123456, 0.000012, None)] == ["1.5 s", "12.3 ms", "12 µs", "-"]
    lines = grid(["a", "b"], [["long name", "1"], ["x", "22"]]).splitlines()
    assert lines == ["a           b", "---------  --", "long name   1", "x          22"]


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib it has the tables, and says so; names from results are escaped."""

    def missing(_width: float, _height: float) -> Any:
        raise ModuleNotFoundError("matplotlib", name="matplotlib")

    monkeypatch.setattr(report, "_figure", missing)
    hostile = result()
    hostile.notes.append("<script>alert(1)</script>")
    text = report.write_report(tmp_path, [hostile]).read_text()
    assert "matplotlib is not installed" in text and "1.100 [1.10, 1.10]" in text
    assert "<script>" not in text and "http" not in text.replace("http://www.w3.org", "")
    with pytest.raises(click.ClickException, match="no results"):
        report.write_report(tmp_path, [])


def test_charts_are_drawn(tmp_path: Path) -> None:
    """Of every command: SVG without scripts, with contenders, versions and machine in the caption."""
    pytest.importorskip("matplotlib", reason="the extra `bench` draws charts; `make bench-quick` installs it")
    for command in ("warm", "throughput", "footprint", "attest"):
        one = result(command)
        if command == "footprint":
            one.rows = []
            for metric in ("component", "environment"):
                one.add("numpy", metric, "bytes", {"strongroom": [5e7]})
        text = report.page([one])
        assert "<svg" in text and "<script" not in text and "Test CPU" in text and "bare onnxruntime" in text


def test_bench_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error with a code, exit 20; other failures of imports are not dressed up as that."""
    import sys

    monkeypatch.setitem(sys.modules, "strongroom_bench.commands", None)
    done = CliRunner().invoke(main, ["bench", "warm", "--json"])
    assert done.exit_code == 20 and "bench_not_installed" in done.output


@pytest.mark.parametrize(
    "words",
    [
        ["hot"], ["warm", "--against", "nobody"], ["warm", "--rounds", "1"], ["throughput", "--connections", "0"],
        ["throughput", "--connections", "many"], ["--merge", "one.json"], ["all"], ["report", "nowhere"],
        ["warm", "--target", "https://127.0.0.1:1", "--models", ""],
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(words: list[str], tmp_path: Path) -> None:
    """Exit code 20, and nothing was started."""
    done = CliRunner().invoke(main, ["bench", *words])
    assert done.exit_code == 20, done.output
