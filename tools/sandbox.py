"""Writes the table of docs/sandbox.md: every attack of tests/sandbox_attacks.py under each layer alone.

Needs root and every layer, as the machine has where the document was written; `tests/test_sandbox.py` compares the
document with the machine that it runs on, as far as that offers the layers.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "sandbox.md"
BEGIN, END = "<!-- attacks -->\n", "<!-- end of attacks -->\n"
THROUGH, ABSENT = "–", "n/a"
SHORT = {"closed_descriptors": "closed descriptors", "no_new_privileges": "no new privileges"}


def measure() -> dict[str, Any]:
    """What the attacks came to on this machine."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "sandbox_attacks.py"], stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def table(measured: dict[str, Any], groups: dict[str, str]) -> str:
    """The table in Markdown."""
    columns = list(next(iter(measured["attacks"].values())))
    lines = [
        "| attack | " + " | ".join(SHORT.get(c, c.replace("_", " ")) for c in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    group = ""
    for name, row in measured["attacks"].items():
        if groups[name] != group:
            group = groups[name]
            lines.append(f"| **{group}** |" + " |" * len(columns))
        lines.append(f"| {name} | " + " | ".join(_cell(row, column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, str], column: str) -> str:
    said = row[column]
    if said == "succeeds":
        return THROUGH
    # What fails already where nothing is locked is not there (or, for a stack, ends by itself).
    return ABSENT if said == row["none"] and not said.startswith("SIG") else said


def rows(text: str) -> dict[str, dict[str, str]]:
    """The table of the document: attack -> column as the measurement names it -> cell."""
    lines = [line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines() if line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    long = {short: name for name, short in SHORT.items()}
    columns = [
        long.get(c, c) if c.startswith("all") else long.get(c, c.replace(" ", "_")) for c in cells[0][1:]
    ]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in cells[2:] if "**" not in row[0]}


def main() -> None:
    """Measures, and writes the table."""
    sys.path.insert(0, str(ROOT / "tests"))
    import sandbox_attacks

    measured = measure()
    if not measured["root"] or set(measured["held"]) != set(sandbox_attacks.sandbox.LAYERS):
        sys.exit(f"not written: root and all layers are needed, here hold {', '.join(measured['held'])}")
    text = DOCUMENT.read_text(encoding="utf-8")
    made = BEGIN + "\n" + table(measured, sandbox_attacks.GROUPS) + "\n" + END
    DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
