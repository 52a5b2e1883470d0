"""The one result format of every command, and reading it back (`result.schema.json` describes it; docs/benchmarks.md
explains it).

Rules
  - A row is one contender on one subject by one metric. Its values are those of the counted rounds, in their order, so
    that anybody can summarise them anew.
  - What did not take part is listed in `absent` with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from click import ClickException

from strongroom_bench.stats import Ratio, Summary, geometric_mean, ratio_of, summarise

FORMAT: Final = "strongroom-bench/1"
COMMANDS: Final = (
    "warm",
    "cold",
    "throughput",
    "attest",
    "footprint",
    "overload",
    "memory",
    "precision",
    "partition",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender on one subject. `unit`: s, 1/s or bytes; `connections`: those of the load generator."""

    subject: str
    contender: str
    metric: str
    unit: str
    values: tuple[float, ...]
    ratio: Ratio | None = None
    """To the baseline's row of the same subject, metric and connections."""
    connections: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> Summary:
        """What the values say."""
        return summarise(self.values)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "subject": self.subject, "contender": self.contender, "metric": self.metric, "unit": self.unit,
            "connections": self.connections, "summary": self.summary.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(), "values": list(self.values),
            "detail": self.detail,
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything that one run gave."""

    command: str
    baseline: str
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    contenders: list[dict[str, Any]] = field(default_factory=list)
    absent: list[dict[str, str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trial: bool = False
    """Whether fewer rounds were run than the method asks for."""

    def add(
        self, subject: str, metric: str, unit: str, values: dict[str, list[float]], *, connections: int | None = None,
        details: dict[str, dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Adds a row per contender, with its ratio to the baseline where that took part."""
        base = values.get(self.baseline)
        for contender, series in values.items():
            ratio = None if base is None or contender == self.baseline else ratio_of(series, base)
            self.rows.append(
                Row(
                    subject=subject, contender=contender, metric=metric, unit=unit, values=tuple(series), ratio=ratio,
                    connections=connections, detail=(details or {}).get(contender, {}),
                )
            )  # fmt: skip

    def miss(self, contender: str, subject: str, reason: str) -> None:
        """Notes that a contender does not take part in a subject ("" for all)."""
        self.absent.append({"contender": contender, "subject": subject, "reason": reason})

    def find(self, subject: str, contender: str, metric: str, connections: int | None = None) -> Row | None:
        """The row, if there is one."""
        wanted = (subject, contender, metric, connections)
        return next(
            (r for r in self.rows if (r.subject, r.contender, r.metric, r.connections) == wanted), None
        )

    def subjects(self) -> list[str]:
        """Every subject, in the order in which they were measured."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    def geomeans(self, metric: str = "latency") -> dict[str, dict[str, Any]]:
        """Contender -> the geometric mean of its ratios by this metric, and how many went in.

        Where networks of the paper's range were measured only they count: a ratio to five microseconds of a small tree
        model says nothing about them (what is added to it is a time, not a factor).
        """
        found: dict[str, list[float]] = {}
        rows = [row for row in self.rows if row.ratio is not None and row.metric == metric]
        paper = [row for row in rows if row.detail.get("group") == "paper"]
        for row in paper or rows:
            if row.ratio is not None:
                found.setdefault(row.contender, []).append(row.ratio.value)
        return {n: {"ratio": geometric_mean(values), "subjects": len(values)} for n, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The whole document; `geomean_ratio` is our own server's to the baseline."""
        means = self.geomeans()
        return {
            "format": FORMAT, "command": self.command, "baseline": self.baseline, "started": self.started,
            "trial": self.trial, "geomean_ratio": means.get("strongroom", {}).get("ratio"), "geomeans": means,
            "machine": self.machine, "versions": self.versions, "settings": self.settings,
            "contenders": self.contenders, "absent": self.absent, "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
        }  # fmt: skip


def write(result: Result, folder: Path) -> Path:
    """Writes `COMMAND.json` into the folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.command}.json"
    path.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Result:
    """A result that `write` or `--json` gave.

    Raises:
        ClickException: no such file, or not a result of this format.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ClickException(f"{path} cannot be read as JSON") from exc
    stated = document.get("format") if isinstance(document, dict) else None
    if stated != FORMAT:
        raise ClickException(f"{path}: expected the format {FORMAT!r}, got {stated!r}")
    try:
        return Result(
            command=_word(document["command"], COMMANDS),
            baseline=str(document["baseline"]),
            started=str(document["started"]),
            machine=dict(document["machine"]),
            versions=dict(document["versions"]),
            settings=dict(document["settings"]),
            contenders=list(document["contenders"]),
            absent=list(document["absent"]),
            rows=[_row(row) for row in document["rows"]],
            notes=[str(note) for note in document["notes"]],
            trial=bool(document["trial"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ClickException(f"{path}: not a whole result ({type(exc).__name__})") from exc


def _word(value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError("an unknown word")
    return str(value)


def _row(value: dict[str, Any]) -> Row:
    ratio = value["ratio"]
    row = Row(
        subject=str(value["subject"]),
        contender=str(value["contender"]),
        metric=str(value["metric"]),
        unit=str(value["unit"]),
        values=tuple(float(v) for v in value["values"]),
        ratio=None if ratio is None else Ratio(value=ratio["value"], low=ratio["low"], high=ratio["high"]),
        connections=value["connections"],
        detail=dict(value["detail"]),
    )
    row.summary  # noqa: B018 - refuses values that are none
    return row
