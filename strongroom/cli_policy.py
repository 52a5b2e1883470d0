"""`strongroom policy`: write a policy from what a server shows or from a measurement, and explain one."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import click

from strongroom.calls import printable
from strongroom.errors import InvalidRequest
from strongroom.terminal import note_simulated, show_json

_MEASUREMENT = re.compile(r"[0-9A-Fa-f]{64}")
_NO_ADDRESS = re.compile(r"[^.:/]*")
"""Neither a dot nor a colon nor a slash: no server's address, so a measurement was meant."""
FIRST_USE = """\
TRUST ON FIRST USE: whoever answered at this address, now or in between, is what this file accepts. Compare
the measurement with one that you computed yourself (strongroom measure) or got from somebody you trust."""
_COLOURS = {"warning": "yellow", "danger": "red"}


@click.group()
def policy() -> None:
    """Write and explain policies: which servers you accept."""


@policy.command()
@click.argument("target", metavar="URL|MEASUREMENT")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File to write.")
@click.option("--root", metavar="HEX", help="With a MEASUREMENT: SHA-256 of the simulated root's public key.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, metavar="SECONDS",
    help="Give up after this long without a byte.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def init(target: str, out: Path, root: str | None, timeout: float, as_json: bool) -> None:
    """Write a policy with comments, for a server or for a measurement.

    With a URL: trust on first use. Asks the server for evidence, checks everything but whether you want this
    code, and writes down what it showed. Nothing else is sent. Compare the measurement with one from a source
    that you trust, such as `strongroom measure` in your own clone.

    With a measurement (64 hex digits): nothing is contacted; --root says which simulated root may sign it.
    """
    if _NO_ADDRESS.fullmatch(target):
        text, facts = _from_measurement(target, root)
    elif root is not None:
        raise click.UsageError("--root goes with a measurement, not with a URL")
    else:
        text, facts = _from_server(target, timeout)
    try:
        with out.open("x", encoding="utf-8") as sink:
            sink.write(text)
    except FileExistsError as exc:
        raise InvalidRequest(f"{out} exists already and is left as it is", code="output_unwritable") from exc
    except OSError as exc:
        raise InvalidRequest(f"{out} cannot be written", code="output_unwritable") from exc
    if as_json:
        show_json({"file": str(out), **facts})
        return
    click.echo(f"wrote {out}")
    for name, value in facts.items():
        shown = {True: "SIMULATED", False: "no"}[value] if isinstance(value, bool) else value
        click.echo(f"  {name:<13}{shown}")
    if facts["trust"] == "first use":
        click.secho(FIRST_USE, fg="yellow", err=True)
    note_simulated(bool(facts["simulated"]))


def _from_server(url: str, timeout: float) -> tuple[str, dict[str, Any]]:
    """The policy text for what answers at `url`, and facts about it."""
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.flow import drive_to_end, unsafe_first_look
    from strongroom.transport import Transport, parse_origin

    transport = Transport(parse_origin(url), timeout_s=timeout)
    try:
        text, attested = drive_to_end(unsafe_first_look(SYSTEM_CLOCK, secrets.token_bytes), transport.perform)
    finally:
        transport.close()
    claims = attested.claims
    facts = {
        "trust": "first use",
        "format": claims.format,
        "measurement": claims.measurement,
        "root": claims.root,
        "simulated": claims.simulated,
    }
    return text, facts


def _from_measurement(measurement: str, root: str | None) -> tuple[str, dict[str, Any]]:
    from strongroom.attest.policy import policy_for_measurement
    from strongroom.client import SYSTEM_CLOCK

    if not _MEASUREMENT.fullmatch(measurement):
        raise InvalidRequest(
            "expected the server's URL (https://host:port) or a measurement of 64 hex digits",
            code="usage_invalid",
        )
    measurement = measurement.lower()
    if root is None:
        raise click.UsageError("a measurement needs --root: the SHA-256 of the root key that may sign it")
    text = policy_for_measurement(measurement, root=root.lower(), now=SYSTEM_CLOCK.now())
    facts = {
        "trust": "a measurement",
        "format": "sim",
        "measurement": measurement,
        "root": root.lower(),
        "simulated": True,
    }
    return text, facts


@policy.command()
@click.argument("name", metavar="PROFILE")
def show(name: str) -> None:
    """Print a profile (production, development, UNSAFE_SIMULATION), to copy and add entries to."""
    from strongroom.attest.policy import NAMED_POLICIES, named_policy

    named_policy(name)
    click.echo(NAMED_POLICIES[name], nl=False)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path), envvar="STRONGROOM_POLICY")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def lint(file: Path, as_json: bool) -> None:
    """Explain a policy: what it accepts, in words, and what in it should worry you."""
    from strongroom.attest.lint import lint as lint_policy
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.sources import load_policy

    findings = lint_policy(load_policy(str(file)), now=SYSTEM_CLOCK.now())
    if as_json:
        listed = [{"level": f.level, "member": f.member, "text": f.text} for f in findings]
        show_json({"file": str(file), "findings": listed})
    else:
        for finding in findings:
            words = printable(f"{finding.member}: {finding.text}", limit=500)
            click.secho(f"{finding.level:<9}{words}", fg=_COLOURS.get(finding.level))
