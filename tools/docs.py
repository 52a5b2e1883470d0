"""Writes the generated documents: docs/errors.md, docs/configuration.md's table, docs/demo.txt and docs/demo.svg.

`tests/test_docs.py` compares what lies in the repository with what this makes; `make docs` writes it.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from strongroom.config import reference
from strongroom.errors import CODES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def errors_page() -> str:
    """docs/errors.md: every code with its line."""
    tree = sys.modules["strongroom.errors"].__doc__ or ""
    block = "\n".join(line for line in tree.splitlines() if line.startswith("    "))
    lines = [
        "# Errors",
        "",
        "Every error carries a stable `code`. Families answer *whose fault*:",
        "",
        f"```\n{block}\n```",
        "",
        "Over HTTP a code stands in `application/problem+json` ([http.md](http.md)); the command line has exit codes:",
        "0 ok, 10 refused, 20 unusable input, 30 server unreachable or unavailable, 1 our fault.",
        "",
        "| code | meaning |",
        "| --- | --- |",
    ]
    return "\n".join([*lines, *(f"| `{code}` | {text} |" for code, text in CODES.items())]) + "\n"


def record_demo() -> str:
    """Runs the demo and returns what it prints, with its colours as ANSI codes."""
    words = [sys.executable, "-m", "strongroom.cli", "demo", "--color"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    if done.returncode:
        raise SystemExit(
            f"the demo failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return "$ make demo\n" + done.stdout


def plain(transcript: str) -> str:
    """A transcript without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", transcript)


def normalised(transcript: str) -> str:
    """A transcript without what differs from run to run: colours, ports, digests, figures."""
    text = re.sub(r"\b[0-9a-f]{8,}\b(\.\.\.)?", "<hex>", plain(transcript))
    return re.sub(r"[0-9][0-9.,:e+-]*", "<n>", text)


def demo_svg(transcript: str) -> str:
    """The transcript as a picture of a terminal; the same text gives the same bytes."""
    console = Console(
        record=True, width=118, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.from_ansi(transcript.rstrip("\n")))
    svg = console.export_svg(title="make demo", unique_id="strongroom-demo")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no fonts fetched from elsewhere


def main() -> int:
    """Writes every generated document."""
    (DOCS / "errors.md").write_text(errors_page())
    page = DOCS / "configuration.md"
    page.write_text(page.read_text().partition("## Top level")[0] + reference())
    if "--no-demo" not in sys.argv:
        transcript = record_demo()
        (DOCS / "demo.txt").write_text(transcript)
        (DOCS / "demo.svg").write_text(demo_svg(transcript))
    return 0


if __name__ == "__main__":
    sys.exit(main())
