"""A result as text for a terminal: one table per metric, the paper's figures beside ours where it has some."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom_bench import paper
from strongroom_bench.results import Result, Row

TITLES = {
    "warm": "Warm latency, one request (the paper's Tables 2 and 3)",
    "cold": "Cold start: the model from the store to the first result (the paper's Table 4)",
    "throughput": "Requests per second",
    "attest": "What a client waits for before its first byte",
    "footprint": "What must be trusted, in bytes (the paper's Figure 1)",
    "overload": "Overload",
    "memory": "Resident memory of our server",
    "partition": "A model in stages, against the whole",
    "precision": "Latency and accuracy against precision",
}


def seconds(value: float | None) -> str:
    """A time with three figures and a unit."""
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}" if value / scale < 1000 else f"{value / scale:.0f} {unit}"
    raise AssertionError


def amount(value: float, unit: str) -> str:
    """A value in its unit."""
    if unit == "s":
        return seconds(value)
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}/s" if unit == "1/s" else f"{value:.3g}"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns in line; the first to the left, the rest to the right."""
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head))]

    def one(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([one(head), one(["-" * w for w in widths]), *map(one, lines)])


def render(result: Result) -> str:
    """The whole result."""
    parts = [TITLES[result.command], ""]
    if result.command in ("warm", "cold"):
        parts += [_latencies(result), "", *_means(result), *_paper(result)]
    elif result.command in ("throughput", "overload"):
        parts += [_rates(result)]
    elif result.command == "precision":
        parts += [_precisions(result)]
    elif result.command == "footprint":
        parts += [_sizes(result)]
    else:
        parts += [_plain(result)]
    return "\n".join([*parts, "", *_foot(result)])


def _mark(row: Row) -> str:
    return "!" if row.summary.noisy and len(row.values) > 1 else ""


def _ratio(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return "-"
    return f"{row.ratio.value:.3f} [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"


def _latencies(result: Result) -> str:
    names = [c["name"] for c in result.contenders]
    others = [name for name in names if name != result.baseline]
    head = [
        "model",
        "MB",
        result.baseline,
        *(w for name in others for w in (name, "ratio [95 %]")),
        "ours adds",
    ]
    lines = []
    for subject in result.subjects():
        rows = {name: result.find(subject, name, "latency") for name in names}
        size = next((r.detail.get("bytes", 0) for r in rows.values() if r is not None), 0)
        cells = [subject, f"{size / 1e6:.1f}", _time(rows[result.baseline])]
        for name in others:
            cells += [_time(rows[name]), _ratio(rows[name])]
        lines.append([*cells, _added(rows[result.baseline], rows.get("strongroom"))])
    return grid(head, lines)


def _time(row: Row | None) -> str:
    return "-" if row is None else seconds(row.summary.median) + _mark(row)


def _added(base: Row | None, ours: Row | None) -> str:
    """What our path adds to the baseline, as a time."""
    if base is None or ours is None:
        return "-"
    added = ours.summary.median - base.summary.median
    return seconds(added) if added > 0 else f"-{seconds(-added)}"


def _means(result: Result) -> list[str]:
    lines = []
    for name, mean in result.geomeans().items():
        lines.append(
            f"geometric mean, {name} / {result.baseline}: {mean['ratio']:.3f} over {mean['subjects']} models"
        )
    return lines


def _paper(result: Result) -> list[str]:
    known = paper.published(result.command)
    shown = [subject for subject in result.subjects() if subject in known]
    if not shown:
        return []
    lines = []
    for subject in shown:
        one, ours = known[subject], result.find(subject, "strongroom", "latency")
        overhead = "-" if one.overhead is None else f"{one.overhead:.2f}"
        mine = "-" if ours is None or ours.ratio is None else f"{ours.ratio.value:.2f}"
        lines.append([subject, seconds(one.native), seconds(one.tee), overhead, mine])
    head = ["the paper, on its machines", "native", "in SGX", "SGX / native", "here: ours / bare"]
    text = "The paper's overhead: SGX over the same software without. Ours: everything around the engine."
    return ["", grid(head, lines), text, paper.UNKNOWN]


def _rates(result: Result) -> str:
    lines = []
    for row in result.rows:
        ratio = "1" if row.contender == result.baseline else _inverse(row)
        detail = row.detail
        health = seconds(detail.get("health_p50_s")) if detail.get("health_p50_s") else "no answer"
        lines.append([
            row.subject, row.metric, str(row.connections), row.contender,
            amount(row.summary.median, row.unit) + _mark(row), ratio,
            seconds(detail.get("p50_s")), seconds(detail.get("p99_s")),
            f"{detail.get('refused', 0) * 100:.1f} %", f"{detail.get('lost', 0) * 100:.1f} %", health,
        ])  # fmt: skip
    head = ["model", "phase", "conn.", "contender", "answers", f"{result.baseline} is", "p50", "p99", "refused", "lost",
            "health"]  # fmt: skip
    return grid(head, lines)


def _inverse(row: Row) -> str:
    return "-" if row.ratio is None else f"x {1 / row.ratio.value:.2f}"


def _sizes(result: Result) -> str:
    lines = []
    for row in result.rows:
        installed = row.detail.get("installed")
        before = "" if installed is None else amount(float(installed), "bytes")
        about = row.detail.get("for", "") or ("with the interpreter" if row.detail.get("interpreter") else "")
        lines.append([row.subject, amount(row.values[0], "bytes"), before, about])
    published = [
        [f"the paper: {name}", f"{low} MB" if high is None else f"{low}-{high} MB", "", "image"]
        for name, (low, high) in paper.SIZES_MB.items()
    ]
    return grid(["component", "pruned", "installed", ""], [*lines, *published])


def _precisions(result: Result) -> str:
    lines, said = [], []
    for subject in result.subjects():
        rows = [row for row in result.rows if row.subject == subject and row.metric == "latency"]
        base = next((row for row in rows if row.contender == result.baseline), rows[0])
        for row in rows:
            if row.contender.startswith("strongroom"):
                continue
            there = "strongroom" if row is base else f"strongroom-{row.contender}"
            detail, through = row.detail, result.find(subject, there, "latency")
            busy = result.find(subject, row.contender, "processor")
            right = detail["right"]
            lines.append([
                subject if row is base else "", row.contender, amount(detail["bytes"], "bytes"), _time(row),
                _faster(row), _faster(busy), "-" if through is None else _time(through), _faster(through),
                f"{detail['cosine']:.5f}", f"{detail['cosine_least']:.5f}", "-" if right is None else f"{right:.3f}",
            ])  # fmt: skip
        about = f"  {subject}: {base.detail['title']}; {base.detail['examples']} examples: {base.detail['source']}"
        said.append(about + (f"; right: {base.detail['right_is']}" if base.detail["right_is"] else ""))
    head = ["network", "precision", "file", "engine", "faster [95 %]", "on a core",
            "our server", "faster [95 %]", "cosine", "worst",
            "right"]  # fmt: skip
    note = (
        f"faster: than {result.baseline} in bare onnxruntime on one thread, by the clock, and by processor time (on a "
        "core); cosine: to its answers, mean and worst"
    )
    return "\n".join([grid(head, lines), note, *said])


def _faster(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return "-"
    return f"{1 / row.ratio.value:.2f} [{1 / row.ratio.high:.2f}, {1 / row.ratio.low:.2f}]"


def _plain(result: Result) -> str:
    lines = [
        [r.subject, r.metric, r.contender, amount(r.summary.median, r.unit) + _mark(r), amount(r.summary.least, r.unit),
         _ratio(r)]
        for r in result.rows
    ]  # fmt: skip
    return grid(["what", "metric", "contender", "median", "least", "ratio [95 %]"], lines)


def _foot(result: Result) -> list[str]:
    machine, settings = result.machine, result.settings
    lines = [f"  {c['name']}: {c['version']}; {_facts(c['facts'])}" for c in result.contenders]
    for one in result.absent:
        where = f" on {one['subject']}" if one["subject"] else ""
        lines.append(f"  {one['contender']} is missing{where}: {one['reason']}")
    lines.append(
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; load "
        f"{machine['load']}; {settings.get('rounds')} rounds after {settings.get('warmups')} that do not count; cores "
        f"{settings.get('cores')}"
    )
    lines.append(
        "! = interquartile range above a tenth of the median: the machine was busy, the ratio says more"
    )
    if result.trial:
        lines.append("A TRIAL: fewer rounds than the method asks for (20).")
    return [*lines, *result.notes]


def _facts(facts: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value not in ({}, "", None))
