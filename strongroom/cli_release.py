"""`strongroom release`: sign reference values, so that policies can name you instead of each build; look at them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.calls import printable
from strongroom.errors import InvalidRequest, MalformedInput
from strongroom.terminal import EXIT_OK, show_json

if TYPE_CHECKING:
    from strongroom.attest.releases import ReferenceValue, Release

MAX_FILE: Final = 1 << 20
_REGISTERS: Final = {"tdx": ("rtmr0", "rtmr1", "rtmr2", "rtmr3")}


@click.group()
def release() -> None:
    """Sign release manifests: reference values that policies accept because of who vouches for them."""


@release.command()
@click.option("--key", "keys", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Ed25519 key of who vouches (strongroom keygen); may be repeated.")  # fmt: skip
@click.option("--product", required=True, metavar="NAME", help="What is released, such as acme/strongroom.")
@click.option("--version", required=True, metavar="VERSION", help="Its version, for people.")
@click.option("--svn", required=True, type=int, help="Its security version: higher where holes were closed.")
@click.option("--days", required=True, type=click.IntRange(1, 730), help="Days for which it is vouched for.")
@click.option("--value", "values", multiple=True, metavar="FORMAT:HEX",
              help="A build: evidence format and measurement, such as sgx:5a5a...; may be repeated.")  # fmt: skip
@click.option("--claims", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="A build as `verify --json` or `appraise --json` printed it; may be repeated.")  # fmt: skip
@click.option("--measured", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Builds as `measure --json` printed them; may be repeated.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="File to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def sign(
    keys: tuple[Path, ...], product: str, version: str, svn: int, days: int, values: tuple[str, ...],
    claims: tuple[Path, ...], measured: tuple[Path, ...], out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Sign a manifest: these builds are this release of this product.

    You vouch for what you sign: compute the measurements from sources that you have read. Policies name the public
    key that is printed, in `release_keys`. A manifest travels with a server's evidence or by any other way.
    """
    from strongroom.attest.releases import Release, sign_release
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.sources import load_key

    if not values and not claims and not measured:
        raise click.UsageError("name at least one build: --value, --claims or --measured")
    builds = (
        *map(_value, values),
        *map(_from_claims, claims),
        *(v for m in measured for v in _from_measured(m)),
    )
    now = SYSTEM_CLOCK.now().replace(microsecond=0)
    made = Release(
        product=product,
        version=version,
        security_version=svn,
        issued=now,
        expires=now + timedelta(days=days),
        values=builds,
    )
    loaded = tuple(key for path in keys if (key := load_key(path)) is not None)
    data = sign_release(made, loaded)
    try:
        with out.open("xb") as sink:
            sink.write(data)
    except FileExistsError as exc:
        raise InvalidRequest(f"{out} exists already and is left as it is", code="output_unwritable") from exc
    except OSError as exc:
        raise InvalidRequest(f"{out} cannot be written", code="output_unwritable") from exc
    names = [key.public_key().public_bytes_raw().hex() for key in loaded]
    if as_json:
        show_json({"file": str(out), "release_keys": names, **_facts(made)})
        return
    click.echo(f"wrote {out}")
    for name in names:
        click.echo(f"release key {name}")


@release.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--release-key", "keys", multiple=True, required=True, metavar="HEX",
              help="Ed25519 public key that must have signed it; may be repeated.")  # fmt: skip
@click.option("--at", metavar="RFC3339", help="The moment to verify at; else now.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def show(ctx: click.Context, file: Path, keys: tuple[str, ...], at: str | None, as_json: bool) -> None:
    """Verify a manifest and print what it says.

    Exit code 0 where one of the keys signed it and it has not expired, 10 where not, 20 where it cannot be used.
    """
    from strongroom.attest.releases import verify_release
    from strongroom.cli_appraise import moment
    from strongroom.client import SYSTEM_CLOCK

    try:
        for key in keys:
            if len(bytes.fromhex(key)) != 32:
                raise ValueError
    except ValueError:
        raise click.UsageError("--release-key: expected 64 hex digits") from None
    now = moment(at) if at is not None else SYSTEM_CLOCK.now()
    found = verify_release(_read(file), keys=tuple(k.lower() for k in keys), now=now)
    facts = _facts(found)
    if as_json:
        show_json(facts)
    else:
        for name, value in facts.items():
            if name != "reference_values":
                click.echo(f"{name:<18}{printable(str(value))}")
        for one in found.values:
            click.echo(f"{one.format:<18}{one.measurement}")
            for register, value in one.registers:
                click.echo(f"  {register:<16}{value}")
    ctx.exit(EXIT_OK)


def _facts(release: Release) -> dict[str, Any]:
    return dict(json.loads(release.payload()))


def _value(text: str) -> ReferenceValue:
    from strongroom.attest.releases import ReferenceValue

    name, colon, measurement = text.partition(":")
    if not colon:
        raise click.UsageError("--value: expected FORMAT:HEX")
    return ReferenceValue(name, measurement.lower(), ())


def _from_claims(path: Path) -> ReferenceValue:
    """The build in a verdict's JSON; a verdict that was not accepted says nothing."""
    from strongroom.attest.releases import ReferenceValue

    try:
        document = json.loads(_read(path))
        verdict = document.get("verdict", document)
        passed, claims = verdict["passed"], verdict["claims"]
        name, measurement, details = claims["format"], claims["measurement"], claims["details"]
        registers = tuple((n, details[n]) for n in _REGISTERS.get(name, ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MalformedInput(
            f"{path}: not what `--json` prints of a verdict", code="release_malformed"
        ) from None
    if passed is not True:
        raise InvalidRequest(f"{path}: that evidence was refused", code="release_malformed")
    texts = (name, measurement, *(value for _, value in registers))
    if not all(isinstance(text, str) for text in texts):
        raise MalformedInput(f"{path}: not what `--json` prints of a verdict", code="release_malformed")
    return ReferenceValue(name, measurement, registers)


def _from_measured(path: Path) -> tuple[ReferenceValue, ...]:
    """The builds in what `strongroom measure --json` prints, at least one."""
    from strongroom.attest.releases import ReferenceValue

    try:
        listed = json.loads(_read(path))["reference_values"]
        found = tuple(
            ReferenceValue(one["format"], one["measurement"], tuple(sorted(one["registers"].items())))
            for one in listed
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MalformedInput(f"{path}: not what `measure --json` prints", code="release_malformed") from None
    if not found:
        raise InvalidRequest(f"{path}: no build is complete in it", code="reference_incomplete")
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read", code="input_unreadable") from exc
    if len(data) > MAX_FILE:
        raise InvalidRequest(f"{path}: more than {MAX_FILE} bytes", code="input_unreadable")
    return data
