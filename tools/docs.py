"""Writes the generated documents: docs/errors.md, docs/configuration.md's table, docs/policy-entries.md, the help
texts of docs/cli.md, docs/demo.txt and docs/demo.svg.

`tests/test_docs.py` compares what lies in the repository with what this makes; `make docs` writes it.
"""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from strongroom.attest.entries import ENTRIES, Group
from strongroom.attest.requirements import NEEDED
from strongroom.cli import main as main_command
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


ENTRY_NAMES = {
    "sim": "`[[sim]]`: the simulated TEE",
    "sgx": "`[[sgx]]`: Intel SGX",
    "tdx": "`[[tdx]]`: Intel TDX",
    "snp": "`[[snp]]`: AMD SEV-SNP",
    "tpm": "`[[tpm]]`: TPM 2.0",
    "nitro": "`[[nitro]]`: AWS Nitro Enclaves",
    "azure-snp": '`[[azure]]` with `tee = "snp"`: Azure confidential machines on SEV-SNP',
    "azure-tdx": '`[[azure]]` with `tee = "tdx"`: Azure confidential machines on TDX',
}
TYPES = {"string": "string", "strings": "array of strings", "integer": "integer", "integers": "array of integers",
         "time": "time with offset", "table": "table"}  # fmt: skip


def entries_page() -> str:
    """docs/policy-entries.md: every member of every entry."""
    lines = [
        "# Policy entries: the reference",
        "",
        "What an entry of each format can say; [policy.md](policy.md) explains policies. Members that are not required",
        "add a requirement where they stand; one that is left out is a requirement that is not there. Members in one",
        "row go together, all or none, except `registers` and `events`.",
    ]
    for name, title in ENTRY_NAMES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| members | type | required | meaning |",
            "| --- | --- | --- | --- |",
        ]
        needed = NEEDED[name.partition("-")[0]]
        for group in ENTRIES[name]:
            names = ", ".join(f"`{m.name}`" for m in group.members)
            types = ", ".join(dict.fromkeys(TYPES[m.type] for m in group.members))
            means = "; ".join(m.means for m in group.members)
            lines.append(f"| {names} | {types} | {_required(group, needed)} | {means} |")
    return "\n".join(lines) + "\n"


def _required(group: Group, needed: tuple[tuple[str, ...], ...]) -> str:
    if group.required:
        return "yes"
    words = {
        "measurements": "policy.measurement",
        "registers": "policy.register.",
        "release_keys": "policy.release",
    }
    check_id = words.get(group.members[0].name, "")
    for choice in needed:
        if any(
            c == check_id or (check_id.endswith(".") and c.startswith(check_id)) for c in choice if check_id
        ):
            others = [n for n, c in words.items() if any(x.startswith(c) for x in choice) and c != check_id]
            return f"this or {' or '.join(f'`{n}`' for n in others)}"
    return "no"


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


def help_blocks() -> str:
    """The second half of docs/cli.md: each `--help` text word for word."""
    blocks = []
    for path, command in _commands(main_command):
        settings = {**main_command.context_settings, "terminal_width": 90}
        name = " ".join(("strongroom", *path))
        blocks.append(
            f"## {name}\n\n```\n{command.get_help(click.Context(command, info_name=name, **settings))}\n```\n"
        )
    return "\n".join(blocks)


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
    (DOCS / "policy-entries.md").write_text(entries_page())
    page = DOCS / "cli.md"
    page.write_text(page.read_text().partition("\n## strongroom\n")[0] + "\n" + help_blocks())
    page = DOCS / "configuration.md"
    page.write_text(page.read_text().partition("## Top level")[0] + reference())
    if "--no-demo" not in sys.argv:
        transcript = record_demo()
        (DOCS / "demo.txt").write_text(transcript)
        (DOCS / "demo.svg").write_text(demo_svg(transcript))
    return 0


if __name__ == "__main__":
    sys.exit(main())
