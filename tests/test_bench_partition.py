"""`bench partition`: whole and in stages by budget, and several models that want more memory than there is, by the
kernel's figures. How fast anything is, no test says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import jsonschema
import pytest
import strongroom_bench
from click.testing import CliRunner
from serving import serving
from strongroom_bench import oversubscription, partition, report
from strongroom_bench.catalogue import BY_NAME, Workload, make
from strongroom_bench.contender import Unable
from strongroom_bench.machine import Cores
from strongroom_bench.memory import tree, tree_processor_s
from strongroom_bench.ours import Ours
from strongroom_bench.partition import STAGED, WHOLE, Budget, budget_of
from strongroom_bench.results import Result
from strongroom_bench.schedule import Plan
from strongroom_bench.session import Options, new_result
from strongroom_bench.tables import render

import strongroom
from strongroom import tokens
from strongroom.cli import main
from strongroom.feeding import FAMILY
from strongroom.models.parting import stage_limit

SCHEMA = json.loads((Path(strongroom_bench.__file__).parent / "result.schema.json").read_text())
BUDGET = Budget("24MB", 24 * 10**6)


def new() -> Result:
    """A result without rows."""
    options = Options(
        plan=Plan(rounds=2, warmups=0), against=(), isolation=(), target=None, policy=None, key=None, cache=Path(),
        limits={}, say=lambda _line: None,
    )  # fmt: skip
    return new_result("partition", WHOLE, options, Cores(None, None))


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Six matrices of 4 MB."""
    return make(BY_NAME["mlp_deep"], tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    """A server with room for two models in stages."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("not exercised here: the kernel does not say what memory processes share")
    folder = tmp_path_factory.mktemp("partition")
    loaded = oversubscription.loaded_bytes(BUDGET)
    settings = f"[limits]\nloaded_bytes = {loaded}\npartition_bytes = {BUDGET.bytes}\n"
    with serving(folder / "server", settings=settings) as running:
        policy = running.write_policy(folder / "policy.toml")
        with strongroom.connect(running.url, policy=policy, key=tokens.new_key_pem()) as client:
            yield cast(Ours, SimpleNamespace(pid=running.pid, client=client))


@pytest.mark.slow
def test_whole_and_staged_in_turns(ours: Ours, workload: Workload) -> None:
    """Every metric of both, budget and stages beside it, as the one result format has it."""
    result = new()
    partition.measure(
        result, workload, ours, BUDGET, stages=None, rounds=2, batches=(), say=lambda _line: None
    )
    jsonschema.validate(result.to_json(), SCHEMA)
    rows = {(row.metric, row.contender): row for row in result.rows}
    assert {"warm", "peak"} <= {metric for metric, _ in rows} <= {"warm", "processor", "peak"}
    staged = rows["warm", STAGED]
    if staged.detail["stages"] == 1:
        pytest.skip("not exercised here: no Landlock, so nothing is cut")
    assert (
        staged.detail["stages"] >= 6 and staged.detail["budget"] == BUDGET.bytes and staged.ratio is not None
    )
    peak = rows["peak", STAGED]
    assert peak.values[0] > rows["peak", "idle"].values[0] > 0
    assert peak.detail["largest_rss"] > 0 and peak.detail["server_rss"] > 0


@pytest.mark.slow
def test_four_times_too_many_models_keep_to_the_budget(ours: Ours, workload: Workload) -> None:
    """Eight models, room for two, two callers at once: the kernel's peak is the budget and one stage at most."""
    result = new()
    oversubscription.measure(
        result, workload, ours, BUDGET, times=4, stages=None, rounds=1, say=lambda _line: None
    )
    jsonschema.validate(result.to_json(), SCHEMA)
    peak = next(row for row in result.rows if (row.metric, row.contender) == ("peak", STAGED))
    if peak.detail["stages"] == 1:
        pytest.skip("not exercised here: no Landlock, so nothing is cut")
    answers = next(row for row in result.rows if row.metric == "request")
    assert peak.detail["models"] == 8 and len(answers.values) == 16
    assert peak.detail["beyond"] <= BUDGET.stage_bytes, peak.detail


def test_a_target_has_no_memory(workload: Workload) -> None:
    """Neither is measured of a server that was not started here."""
    far = cast(Ours, SimpleNamespace(pid=None))
    with pytest.raises(Unable, match="not of a target"):
        partition.measure(new(), workload, far, BUDGET, stages=2, rounds=2, batches=(), say=print)
    with pytest.raises(Unable, match="not of a target"):
        oversubscription.measure(new(), workload, far, BUDGET, times=2, stages=2, rounds=1, say=print)


def test_budgets(workload: Workload) -> None:
    """Bytes, or a share of twice the file; stages as the server would cut them."""
    assert budget_of("75MB", workload) == Budget("75MB", 75_000_000)
    half, all_of_it = budget_of("50%", workload), budget_of("100%", workload)
    assert 2 * half.bytes == pytest.approx(all_of_it.bytes) and all_of_it.bytes > 2 * workload.size
    for budget in (half, Budget("", 1), Budget("", 10**9)):
        assert budget.stage_bytes == stage_limit(budget.bytes)
    assert Budget("", 1).stages(workload) == 7 and Budget("", 10**9).stages(workload) == 2
    assert oversubscription.COUNTED > FAMILY


@pytest.mark.parametrize("word", ["", "75", "%", "-1MB", "1.5MB", "0MB", "0%", "1GB", "9999999MB"])
def test_what_is_no_budget(word: str, workload: Workload) -> None:
    """No number, no unit, or nothing left."""
    with pytest.raises(click.ClickException):
        budget_of(word, workload)


@pytest.mark.parametrize(
    "words", [["--budgets", "many"], ["--stages", "1"], ["--oversubscribe", "1"], ["--batches", "0"]]
)
def test_what_cannot_be_measured_is_refused(words: list[str], tmp_path: Path) -> None:
    """Exit code 20, and no server was started."""
    done = CliRunner().invoke(
        main, ["bench", "partition", "--models", "mlp_deep", "--cache", str(tmp_path), *words]
    )
    assert done.exit_code == 20, done.output


def test_the_same_answer_is_the_same_bytes() -> None:
    """Arrays alone, and by name."""
    assert oversubscription.same([1.0], [1.0]) and oversubscription.same({"a": [1]}, {"a": [1]})
    for one, other in (([1.0], [1.5]), ({"a": [1]}, {"b": [1]}), ({"a": [1]}, {"a": [2]})):
        assert not oversubscription.same(one, other)


def test_a_process_has_used_a_processor() -> None:
    """This one, and everything below it."""
    import os

    assert os.getpid() in tree(os.getpid()) and tree_processor_s(os.getpid()) > 0


def recorded() -> Result:
    """Two budgets of one model, and one oversubscription."""
    made = new()
    for word, size, slower in (("100%", 50e6, 1.1), ("30%", 15e6, 2.0)):
        about: dict[str, Any] = {"model": "net", "budget": int(size), "word": word}
        for metric, base in (("warm", 0.1), ("batch 4", 0.2)):
            values = {STAGED: [base * slower, base * slower * 1.1], WHOLE: [base, base * 1.1]}
            made.add(f"net, {word}", metric, "s", values, details={STAGED: about, WHOLE: about})
        sizes = {STAGED: [1e8 + size], WHOLE: [3e8], "idle": [1e8]}
        made.add(f"net, {word}", "peak", "bytes", sizes, details=dict.fromkeys(sizes, about))
    made.add("net, 8 models, 4 x", "peak", "bytes", {STAGED: [2e8], "allowed": [2.1e8]})
    made.add("net, 8 models, 4 x", "request", "s", {STAGED: [0.3, 0.4]})
    return made


def test_charts_against_the_budget() -> None:
    """Latency, memory and batches of each model by budget; bars of the rest; and a table of all."""
    pytest.importorskip("matplotlib", reason="the extra `bench` draws charts; `make bench-quick` installs it")
    result = recorded()
    captions = [caption for caption, _ in report.charts(result)]
    assert captions[:3] == [
        "net: latency of one row against the budget",
        "net: memory at its peak against the budget",
        "net: what a batch saves",
    ] and len(captions) == 5  # fmt: skip
    text = report.page([result])
    assert text.count("<svg") == 5 and "staged, 30%" in text and "budget of the model in stages" in text
    assert "net, 8 models, 4 x" in render(result)
