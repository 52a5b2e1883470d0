"""`report.html`: the results of one folder as tables and charts (SVG, drawn by matplotlib), in one file.

The page loads nothing from anywhere; without matplotlib it has the tables only. Every chart names what was compared,
with versions, processor, threads and rounds; below stand the tables, and what was missing.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click import ClickException

from strongroom_bench import paper
from strongroom_bench.results import Result, Row
from strongroom_bench.tables import TITLES, render

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
pre { background: #f5f5f2; padding: 1rem; overflow-x: auto; font-size: 12.5px }
figure { margin: 1.5rem 0 } figcaption { color: #555; font-size: 13px } svg { max-width: 100%; height: auto }
"""
COLOURS = (
    "#1b5e8c",
    "#b5651d",
    "#4c7f3a",
    "#8c3b6e",
    "#6b6b6b",
    "#c2a100",
    "#3aa0a0",
    "#a03a3a",
    "#5b4ea0",
    "#222222",
)


def write_report(folder: Path, results: Sequence[Result]) -> Path:
    """Writes `report.html`; its path.

    Raises:
        ClickException: no results.
    """
    if not results:
        raise ClickException(f"{folder} has no results")
    path = folder / "report.html"
    path.write_text(page(results), encoding="utf-8")
    return path


def page(results: Sequence[Result]) -> str:
    """The whole document."""
    parts = []
    for result in results:
        parts.append(f"<h2>{html.escape(TITLES[result.command])}</h2>")
        try:
            drawn = charts(result)
        except ModuleNotFoundError:
            drawn = []
            parts.append(
                "<p>Without charts: matplotlib is not installed (pip install 'strongroom[bench]').</p>"
            )
        for caption, svg in drawn:
            about = f"{caption}. {_about(result)}"
            parts.append(f"<figure>{svg}<figcaption>{html.escape(about)}</figcaption></figure>")
        parts.append(f"<pre>{html.escape(render(result))}</pre>")
    body = "\n".join(parts)
    title = "Strongroom: what confidentiality costs"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _about(result: Result) -> str:
    machine, settings = result.machine, result.settings
    what = "; ".join(f"{c['title']} ({c['version']})" for c in result.contenders)
    trial = " A trial: too few rounds." if result.trial else ""
    return (
        f"{what}. {machine['processor']}, {machine['cores']} cores, load {machine['load']}; one thread per engine; "
        f"{settings.get('rounds')} rounds after {settings.get('warmups')}; {result.started}.{trial}"
    )


# --- charts -------------------------------------------------------------------------------------------------


def charts(result: Result) -> list[tuple[str, str]]:
    """(caption, SVG) of each chart of a result.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    return _CHARTS[result.command](result)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "strongroom", "font.size": 9, "svg.fonttype": "none"})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    return text[text.index("<svg") :]


def _bars(
    result: Result, rows: Callable[[str, str], Row | None], names: Sequence[str], value: Callable[[Row], float],
    error: Callable[[Row], tuple[float, float]] | None, label: str, *, log: bool = False, line: float | None = None,
) -> str:  # fmt: skip
    """Horizontal bars: a group per subject, a bar per contender."""
    subjects = result.subjects()
    figure, axes = _figure(9, 1.2 + 0.2 * len(subjects) * (len(names) + 1))
    thick = 0.8 / max(len(names), 1)
    for at, name in enumerate(names):
        found = [(i, row) for i, s in enumerate(subjects) if (row := rows(s, name)) is not None]
        places = [i + (at - (len(names) - 1) / 2) * thick for i, _ in found]
        widths = [value(row) for _, row in found]
        errors = None
        if error is not None:
            ends = [error(row) for _, row in found]
            errors = [[w - low for w, (low, _) in zip(widths, ends, strict=True)],
                      [high - w for w, (_, high) in zip(widths, ends, strict=True)]]  # fmt: skip
        axes.barh(places, widths, thick * 0.9, xerr=errors, label=name, color=COLOURS[at % len(COLOURS)],
                  error_kw={"elinewidth": 0.8})  # fmt: skip
    axes.set_yticks(range(len(subjects)), subjects)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if log:
        axes.set_xscale("log")
    if line is not None:
        axes.axvline(line, color="black", linewidth=0.8)
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _latency_charts(result: Result) -> list[tuple[str, str]]:
    names = [c["name"] for c in result.contenders]
    others = [name for name in names if name != result.baseline]

    def find(subject: str, name: str) -> Row | None:
        return result.find(subject, name, "latency")

    def ratio(row: Row) -> float:
        return row.ratio.value if row.ratio else 1.0

    def ends(row: Row) -> tuple[float, float]:
        return (row.ratio.low, row.ratio.high) if row.ratio else (1.0, 1.0)

    label = f"median / median of {result.baseline} (line: 1), 95 % interval"
    drawn = [(f"How many times as long as {result.baseline}", _bars(result, find, others, ratio, ends, label,
                                                                  log=True, line=1.0))]  # fmt: skip
    interval = _bars(
        result, find, names, lambda r: r.summary.median, lambda r: (r.summary.low, r.summary.high),
        "seconds, median with its 95 % interval", log=True,
    )  # fmt: skip
    drawn.append(("Seconds for one request", interval))
    if published := _paper_chart(result):
        drawn.append(published)
    return drawn


def _paper_chart(result: Result) -> tuple[str, str] | None:
    known = {
        s: p for s, p in paper.published(result.command).items() if s in result.subjects() and p.overhead
    }
    if not known:
        return None
    figure, axes = _figure(9, 1.2 + 0.5 * len(known))
    subjects = list(known)
    theirs = [known[s].overhead or 0.0 for s in subjects]
    ours = []
    for subject in subjects:
        row = result.find(subject, "strongroom", "latency")
        ours.append(row.ratio.value if row is not None and row.ratio is not None else 0.0)
    axes.barh(
        [i - 0.2 for i in range(len(subjects))],
        theirs,
        0.36,
        label="the paper: SGX / native",
        color="#888888",
    )
    axes.barh(
        [i + 0.2 for i in range(len(subjects))],
        ours,
        0.36,
        label="here: ours / bare engine",
        color=COLOURS[0],
    )
    axes.set_yticks(range(len(subjects)), subjects)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return "The paper's overhead of SGX on its machines, and ours of everything around the engine here", _svg(
        figure
    )


def _rate_charts(result: Result) -> list[tuple[str, str]]:
    drawn = []
    for subject in result.subjects():
        figure, axes = _figure(8, 3.6)
        for at, name in enumerate(c["name"] for c in result.contenders):
            rows = [r for r in result.rows if r.subject == subject and r.contender == name]
            if not rows:
                continue
            places = range(len(rows))
            low = [r.summary.median - r.summary.low for r in rows]
            high = [r.summary.high - r.summary.median for r in rows]
            values = [r.summary.median for r in rows]
            axes.errorbar(places, values, yerr=[low, high], label=name, marker="o", markersize=4,
                          color=COLOURS[at % len(COLOURS)])  # fmt: skip
            axes.set_xticks(places, [f"{r.metric}\n{r.connections}" for r in rows])
        axes.set_ylabel("answers per second")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.append((f"{subject}: answers per second, by number of connections", _svg(figure)))
    return drawn


def _size_charts(result: Result) -> list[tuple[str, str]]:
    rows = [r for r in result.rows if r.metric == "environment"]
    bars = [(r.subject, r.values[0] / 1e6, COLOURS[0]) for r in rows]
    bars += [
        (f"the paper: {name}", float(high or low), "#888888") for name, (low, high) in paper.SIZES_MB.items()
    ]
    figure, axes = _figure(9, 1 + 0.3 * len(bars))
    axes.barh(range(len(bars)), [size for _, size, _ in bars], color=[colour for _, _, colour in bars])
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("MB (the paper's: upper end of its ranges, of whole images)")
    axes.spines[["top", "right"]].set_visible(False)
    parts = [r for r in result.rows if r.metric == "component"]
    pie, sectors = _figure(9, 1 + 0.25 * len(parts))
    sectors.barh(range(len(parts)), [r.values[0] / 1e6 for r in parts], color=COLOURS[0])
    sectors.set_yticks(range(len(parts)), [r.subject for r in parts])
    sectors.invert_yaxis()
    sectors.set_xlabel("MB, pruned")
    sectors.spines[["top", "right"]].set_visible(False)
    return [("What must be trusted", _svg(figure)), ("Our server's environment by component", _svg(pie))]


def _precision_charts(result: Result) -> list[tuple[str, str]]:
    """Latency in the engine and through the server, error, and right answers, each by precision."""
    names = [c["name"] for c in result.contenders]
    engines = [name for name in names if not name.startswith("strongroom")]

    def find(subject: str, name: str) -> Row | None:
        return result.find(subject, name, "latency")

    def judged(subject: str, name: str) -> Row | None:
        row = find(subject, name)
        return None if row is None or row.detail["right"] is None else row

    def ratio(row: Row) -> float:
        return row.ratio.value if row.ratio else 1.0

    def ends(row: Row) -> tuple[float, float]:
        return (row.ratio.low, row.ratio.high) if row.ratio else (1.0, 1.0)

    label = f"median / median of {result.baseline} in bare onnxruntime (line: 1), 95 % interval"
    reduced = [name for name in engines if name != result.baseline]
    error = _bars(result, find, reduced, _error, None, "1 - cosine to the answers of fp32, mean over examples",
                  log=True)  # fmt: skip
    right = _bars(
        result, judged, engines, lambda row: float(row.detail["right"]), None, "share of right answers"
    )
    return [
        ("Latency by precision, in the engine and through our server", _bars(result, find, names, ratio, ends, label,
                                                                           line=1.0)),
        ("Latency against accuracy: each mark is a network in one precision", _trade(result, engines)),
        ("Error by precision", error),
        ("Right answers by precision, where there are any", right),
    ]  # fmt: skip


def _error(row: Row) -> float:
    return float(max(1 - row.detail["cosine"], 1e-9))  # the axis is logarithmic


def _trade(result: Result, names: Sequence[str]) -> str:
    figure, axes = _figure(8, 4.5)
    for at, name in enumerate(names):
        rows = [row for row in result.rows if row.contender == name and row.metric == "processor"]
        if not rows or name == result.baseline:
            continue
        places = [row.ratio.value if row.ratio else 1.0 for row in rows]
        errors = list(map(_error, rows))
        axes.scatter(places, errors, label=name, color=COLOURS[at % len(COLOURS)])
        for row, x, y in zip(rows, places, errors, strict=True):
            axes.annotate(row.subject, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel(f"processor time / that of {result.baseline} in bare onnxruntime: to the left is faster")
    axes.set_ylabel("1 - cosine to the answers of fp32")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _plain_charts(result: Result) -> list[tuple[str, str]]:
    figure, axes = _figure(8, 1.2 + 0.3 * len(result.rows))
    unit = "MB" if result.command == "memory" else "ms"
    scale = 1e-6 if unit == "MB" else 1e3
    values = [r.summary.median * scale for r in result.rows]
    axes.barh(range(len(values)), values, color=COLOURS[0])
    axes.set_yticks(range(len(values)), [f"{r.subject}, {r.metric} ({r.contender})" for r in result.rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    return [(TITLES[result.command], _svg(figure))]


def _partition_charts(result: Result) -> list[tuple[str, str]]:
    """Latency and memory against the budget, what a batch saves; bars of whatever has no budget."""
    found: dict[str, list[Row]] = {}
    others = []
    for row in result.rows:
        if "budget" in row.detail:
            found.setdefault(row.detail["model"], []).append(row)
        else:
            others.append(row)
    charts = []
    for model, rows in found.items():
        warm = [row for row in rows if row.metric == "warm"]
        charts.append(
            (f"{model}: latency of one row against the budget", _against_budget(warm, 1.0, "seconds"))
        )
        peak = [row for row in rows if row.metric == "peak"]
        label = "MB, all processes of the server (Pss)"
        charts.append((f"{model}: memory at its peak against the budget", _against_budget(peak, 1e-6, label)))
        if len({row.metric for row in rows if _rows_of(row)}) > 1:
            charts.append((f"{model}: what a batch saves", _batch_curve(rows)))
    return charts + _partition_bars(others)


def _against_budget(rows: Sequence[Row], scale: float, label: str) -> str:
    figure, axes = _figure(8, 3.8)
    for at, name in enumerate(dict.fromkeys(row.contender for row in rows)):
        mine = sorted((r for r in rows if r.contender == name), key=lambda row: int(row.detail["budget"]))
        values = [row.summary for row in mine]
        axes.errorbar(
            [row.detail["budget"] / 1e6 for row in mine],
            [one.median * scale for one in values],
            yerr=[
                [(one.median - one.low) * scale for one in values],
                [(one.high - one.median) * scale for one in values],
            ],
            label=name, marker="o", markersize=4, color=COLOURS[at % len(COLOURS)],
        )  # fmt: skip
    axes.set_xlabel("budget of the model in stages, MB")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _rows_of(row: Row) -> int:
    """Rows of the requests that it is about; 0: it is about something else."""
    return (
        1 if row.metric == "warm" else int(row.metric.removeprefix("batch ")) if "batch" in row.metric else 0
    )


def _batch_curve(rows: Sequence[Row]) -> str:
    figure, axes = _figure(8, 3.8)
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=_rows_of):
        if count := _rows_of(row):
            name = f"{row.contender}, {row.detail['word']}"
            lines.setdefault(name, []).append((count, row.summary.median / count))
    for at, (name, points) in enumerate(lines.items()):
        axes.plot(
            [count for count, _ in points], [value for _, value in points], label=name, marker="o", markersize=4,
            color=COLOURS[at % len(COLOURS)], linestyle="--" if name.startswith("whole") else "-",
        )  # fmt: skip
    axes.set_xlabel("rows of a request")
    axes.set_ylabel("seconds for each row")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _partition_bars(found: Sequence[Row]) -> list[tuple[str, str]]:
    """Times and bytes do not go on one axis."""
    charts = []
    for unit, title in (("s", TITLES["partition"]), ("bytes", "Resident memory of our server")):
        rows = [row for row in found if row.unit == unit]
        if not rows:
            continue
        figure, axes = _figure(8, 1.2 + 0.3 * len(rows))
        axes.barh(
            range(len(rows)),
            [r.summary.median * (1e3 if unit == "s" else 1e-6) for r in rows],
            color=COLOURS[0],
        )
        axes.set_yticks(range(len(rows)), [f"{r.subject}, {r.metric} ({r.contender})" for r in rows])
        axes.invert_yaxis()
        axes.set_xlabel("ms" if unit == "s" else "MB")
        axes.spines[["top", "right"]].set_visible(False)
        charts.append((title, _svg(figure)))
    return charts


_CHARTS: dict[str, Callable[[Result], list[tuple[str, str]]]] = {
    "warm": _latency_charts,
    "cold": _latency_charts,
    "throughput": _rate_charts,
    "overload": _rate_charts,
    "footprint": _size_charts,
    "attest": _plain_charts,
    "memory": _plain_charts,
    "partition": _partition_charts,
    "precision": _precision_charts,
}
