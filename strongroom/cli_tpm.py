"""`strongroom tpm`: enrol the TPM of a server."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from strongroom.calls import printable
from strongroom.errors import InvalidRequest
from strongroom.terminal import show_json


@click.group()
def tpm() -> None:
    """Servers on a TPM 2.0: tie their key to a TPM once, then verify them by it."""


@tpm.command()
@click.argument("url", envvar="STRONGROOM_URL")
@click.option(
    "--root", "roots", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE",
    help="Root certificate (PEM or DER) of a TPM maker that you accept; may be repeated.",
)  # fmt: skip
@click.option(
    "--chain", "chain", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="Certificates between root and TPM, where the server does not have them; may be repeated.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File to write.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, metavar="SECONDS",
    help="Give up after this long without a byte.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def enrol(
    url: str, roots: tuple[Path, ...], chain: tuple[Path, ...], out: Path, timeout: float, as_json: bool
) -> None:
    """Check that a server's attestation key lives in a TPM that you accept, and write a policy that names it.

    The TPM's endorsement certificate has to lead to one of the roots, and the TPM has to open a credential that only
    it can open, with that key in it. The policy accepts this key and what it showed: the PCRs of this start. Compare
    the measurement with one from a source that you trust.
    """
    from cryptography.hazmat.primitives.hashes import SHA256

    from strongroom.attest.tpm_chain import load_certificates
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.enrol import enrol_flow
    from strongroom.flow import drive_to_end
    from strongroom.transport import Transport, parse_origin

    documents = {path: _read(path) for path in (*roots, *chain)}
    accepted = []
    for path in roots:
        found = load_certificates((documents[path],))
        if not found:
            raise InvalidRequest(f"{path}: no certificate that can be read", code="usage_invalid")
        accepted += [certificate.fingerprint(SHA256()).hex() for certificate in found]
    transport = Transport(parse_origin(url), timeout_s=timeout)
    try:
        flow = enrol_flow(
            SYSTEM_CLOCK,
            secrets.token_bytes,
            roots=tuple(accepted),
            certificates=tuple((path.name, data) for path, data in documents.items()),
        )
        enrolled = drive_to_end(flow, transport.perform)
    finally:
        transport.close()
    try:
        with out.open("x", encoding="utf-8") as sink:
            sink.write(enrolled.policy)
    except FileExistsError as exc:
        raise InvalidRequest(f"{out} exists already and is left as it is", code="output_unwritable") from exc
    except OSError as exc:
        raise InvalidRequest(f"{out} cannot be written", code="output_unwritable") from exc
    claims = enrolled.attested.claims
    facts = {
        "key": enrolled.ak,
        "endorsement": enrolled.ek,
        "root": enrolled.root,
        "measurement": claims.measurement,
        "tpm": claims.fact("tpm.kind") or "",
    }
    if as_json:
        show_json({"file": str(out), **facts})
        return
    click.echo(f"wrote {out}")
    for name, value in facts.items():
        click.echo(f"  {name:<13}{printable(value)}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read", code="usage_invalid") from exc
