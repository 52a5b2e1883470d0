"""The `strongroom` command: one function per sub-command, over the public API.

Exit codes: 0 ok, 10 refused by policy or admission, 20 unusable input, 30 server unreachable, 1 a bug, 130
interrupted. Errors too say SIMULATED where a server was verified by simulated evidence. Imports are inside the
functions: `strongroom --help` and the client's commands load nothing of the server.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strongroom.calls import printable
from strongroom.cli_admit import admit
from strongroom.cli_appraise import appraise
from strongroom.cli_bench import bench
from strongroom.cli_doctor import doctor
from strongroom.cli_endorsements import endorsement_options, fetcher_of
from strongroom.cli_keybroker import keybroker
from strongroom.cli_measure import measure
from strongroom.cli_moving import recover, recovery_key, reseal
from strongroom.cli_policy import policy
from strongroom.cli_quantize import chosen, precision_options, quantize
from strongroom.cli_release import release
from strongroom.cli_size import size_command
from strongroom.cli_tpm import tpm
from strongroom.errors import AttestationRefused, Error, InvalidRequest
from strongroom.reduction import FP32
from strongroom.terminal import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    Noted,
    exit_code,
    mark_simulated,
    note_simulated,
    progress,
    show_error,
    show_json,
    show_models,
    show_verdict,
)

if TYPE_CHECKING:
    from strongroom.attest.bundle import Bundle
    from strongroom.client import Client

_F = TypeVar("_F", bound=Callable[..., Any])


class _Commands(click.Group):
    """The command line's edge: whatever happens becomes one of the exit codes."""

    def main(  # the signature of click's own, whose place it takes
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; in standalone mode it ends the process with the exit code."""
        given = list(sys.argv[1:] if args is None else args)
        noted = Noted()
        options = {"complete_var": complete_var, "windows_expand_args": windows_expand_args, **extra}
        run_command = partial(super().main, given, "strongroom", standalone_mode=False, obj=noted, **options)
        if not standalone_mode:
            return run_command()
        sys.exit(_exit_code_of(run_command, as_json="--json" in given, noted=noted))


def _exit_code_of(run_command: Callable[[], Any], *, as_json: bool, noted: Noted) -> int:
    try:
        result = run_command()
        return result if isinstance(result, int) else EXIT_OK
    except click.ClickException as exc:
        if as_json:
            usage = InvalidRequest(exc.format_message(), code="usage_invalid")
            show_error(usage, as_json=True, simulated=False)
        else:
            exc.show()
        return EXIT_UNUSABLE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Error as error:
        show_error(error, as_json=as_json, simulated=noted.simulated)
        if exit_code(error) == EXIT_BUG:
            click.echo("this is a fault of the software: please report it", err=True)
        return exit_code(error)
    except Exception:  # noqa: BLE001 - whatever it is, it is a bug and must leave as one
        traceback.print_exc()
        click.echo("this is a bug: please report it with the lines above", err=True)
        return EXIT_BUG


@click.group(
    cls=_Commands,
    name="strongroom",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="strongroom", prog_name="strongroom")
def main() -> None:
    """Confidential machine-learning inference: attest the server first, then send it your model or data.

    Exit codes: 0 ok; 10 refused by policy or admission; 20 unusable input; 30 server unreachable; 1 a bug.
    """


main.add_command(policy)
main.add_command(appraise)
main.add_command(release)
main.add_command(tpm)
main.add_command(admit)
main.add_command(reseal)
main.add_command(recover)
main.add_command(recovery_key)
main.add_command(keybroker)
main.add_command(measure)
main.add_command(doctor)
main.add_command(size_command)
main.add_command(bench)
main.add_command(quantize)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, metavar="SECONDS",
    help="Give up after this long without a byte.",
)  # fmt: skip
_policy_option = click.option(
    "--policy", "policy_path", envvar="STRONGROOM_POLICY", required=True, metavar="FILE", show_envvar=True,
    help="Policy file, or the name of a built-in policy (production).",
)  # fmt: skip
_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="The server's configuration file (docs/configuration.md).",
)  # fmt: skip
_version_option = click.option("--version", "version", metavar="N", help="An exact version; else the latest.")


def _to_server(command: _F) -> _F:
    """The options of every command that talks to a server."""
    url = click.option(
        "--url", envvar="STRONGROOM_URL", required=True, metavar="URL", show_envvar=True,
        help="The server, https://host:port.",
    )  # fmt: skip
    key = click.option(
        "--key", "key_path", envvar="STRONGROOM_KEY", metavar="FILE", show_envvar=True,
        help="Your key, as `strongroom keygen` wrote it.",
    )  # fmt: skip
    for option in (_json_option, _timeout_option, endorsement_options, key, _policy_option, url):
        command = option(command)
    return command


def _connect(
    url: str, policy_path: str, key_path: str | None, timeout: float, endorsed: tuple[Path, ...],
    **fetching: Any,
) -> Client:  # fmt: skip
    from strongroom.client import connect

    client = connect(
        url, policy=policy_path, key=key_path, timeout=timeout, endorsements=endorsed,
        fetcher=fetcher_of(**fetching),
    )  # fmt: skip
    if client.attestation.simulated:
        mark_simulated()
    return client


# --- trust --------------------------------------------------------------------------------------------------


@main.command()
@click.argument("url", envvar="STRONGROOM_URL")
@_policy_option
@click.option(
    "--certificate", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the certificate of the verified connection there (PEM), if the server is accepted.",
)  # fmt: skip
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE",
    help="Write what this rests on there, accepted or refused, for `strongroom appraise`; a new file.",
)  # fmt: skip
@endorsement_options
@_timeout_option
@_json_option
@click.pass_context
def verify(
    ctx: click.Context, /, url: str, policy_path: str, certificate: Path | None, save: Path | None,
    endorsed: tuple[Path, ...], timeout: float, as_json: bool, **fetching: Any,
) -> None:  # fmt: skip
    """Verify a server: one line per check with what was expected and what came.

    Sends it nothing but the question for evidence. Exit code 0 where the policy accepts the server, 10 where
    not, 30 where it is not there, or where endorsements are missing that nobody gives now.
    """
    from strongroom.client import Client

    if save is not None and (save.exists() or save.is_symlink()):
        raise _exists(save)
    pem = ""
    bundle: Bundle | None
    fetcher = fetcher_of(**fetching)
    with Client(url, policy=policy_path, timeout=timeout, endorsements=endorsed, fetcher=fetcher) as client:
        try:
            verdict = client.attest()
            pem, bundle = client.certificate, client.bundle
        except AttestationRefused as refusal:
            if refusal.verdict is None:
                raise
            verdict, bundle = refusal.verdict, refusal.bundle
    if verdict.simulated:
        mark_simulated()
    if certificate is not None and verdict.passed:
        _write_public(certificate, pem)
    if save is not None:
        _save(save, bundle)
    if as_json:
        show_json(verdict.to_json())
    else:
        show_verdict(verdict)
    ctx.exit(EXIT_OK if verdict.passed else EXIT_REFUSED)


def _write_public(path: Path, text: str) -> None:
    """Writes a file that everybody may read, over one that is there."""
    try:
        path.write_text(text, encoding="ascii")
        path.chmod(0o644)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be written", code="output_unwritable") from exc


def _exists(path: Path) -> InvalidRequest:
    return InvalidRequest(f"{path} exists already and is left as it is", code="output_unwritable")


def _save(path: Path, bundle: Bundle | None) -> None:
    """Writes a bundle that everybody may read: as a whole or not at all, and over no file."""
    import os
    import tempfile

    from strongroom.attest.bundle import encode_bundle

    if bundle is None:
        click.echo(f"{path} was not written: no evidence came", err=True)
        return
    data = encode_bundle(bundle)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as sink:
                sink.write(data)
            part.chmod(0o644)
            try:
                path.hardlink_to(part)  # takes the name with the whole content, or not where it is taken
            except FileExistsError:
                raise
            except OSError:  # a file system without links: the name is taken first, by an empty file
                path.open("xb").close()
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError as exc:
        raise _exists(path) from exc
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be written", code="output_unwritable") from exc
    click.echo(f"wrote {path}", err=True)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def keygen(file: Path, as_json: bool) -> None:
    """Make a key: who you are to servers. Keep FILE; models belong to it.

    Writes an Ed25519 private key (PKCS#8 PEM) that only you may read, and prints the principal's id.
    """
    import os

    from strongroom.tokens import load_key, new_key_pem, principal_id

    pem = new_key_pem()
    try:
        # O_EXCL: an existing key is never overwritten, for its models would be lost with it.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise InvalidRequest(f"{file} exists already and is left as it is", code="key_exists") from exc
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be written", code="output_unwritable") from exc
    with os.fdopen(descriptor, "wb") as sink:
        sink.write(pem)
    principal = principal_id(load_key(pem).public_key())
    if as_json:
        show_json({"file": str(file), "principal": principal})
    else:
        click.echo(f"principal {principal}")


# --- models -------------------------------------------------------------------------------------------------


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the model; else the file's without its ending.")
@click.option(
    "--access", type=click.Choice(["private", "public"]), default="private", show_default=True,
    help="Who may run it: only you, or everybody.",
)  # fmt: skip
@click.option(
    "--format", "format_", type=click.Choice(["onnx", "xgboost-json", "xgboost-ubj"]),
    help="Its format; else found out from its bytes.",
)  # fmt: skip
@click.option(
    "--partition", default="auto", show_default=True, metavar="auto|off|N",
    help="Run it in stages where it is larger than the server's memory for models, never, or in N of them.",
)  # fmt: skip
@click.option(
    "--batching", is_flag=True,
    help="Small requests of one caller may share a run; for models whose rows do not depend on one another.",
)  # fmt: skip
@precision_options
@_to_server
def upload(
    file: Path, name: str | None, access: str, format_: str | None, batching: bool, partition: str, as_json: bool,
    precision: str, calibrate: Path | None, ranges: Path | None, method: str,
    exclude: tuple[str, ...], per_tensor: bool,
    **server: Any,
) -> None:  # fmt: skip
    """Upload a model, sealed, to a server that the policy accepts. Needs a key.

    With --precision the server makes what `strongroom quantize` makes of the same file and options: look at that first.
    """
    asked = chosen(precision, method=method, exclude=exclude, per_tensor=per_tensor)
    with _connect(**server) as client, progress(f"uploading {file.name}", quiet=as_json) as bar:
        model = client.upload_model(
            file, name=name or file.stem, access=access, format=format_, progress=bar, precision=asked,
            calibration=calibrate, ranges=ranges, batching=batching, partition=partition,
        )  # fmt: skip
    metadata = model.metadata
    if as_json:
        show_json(metadata.to_json())
    else:
        click.echo(f"{metadata.id}  {metadata.format}, {metadata.size} bytes, sha256 {metadata.sha256}")
        if metadata.precision != FP32:
            click.echo(f"  {metadata.precision}, runs as sha256 {metadata.canonical_sha256}")
        if metadata.stages > 1:
            click.echo(f"  partitioned: runs in {metadata.stages} stages")
        note_simulated(metadata.simulated)


@main.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@_version_option
@click.option("--digest", metavar="HEX", help="SHA-256 that the model must have been uploaded with.")
@click.option(
    "--precision", "precisions", multiple=True, metavar="WORD",
    help="Take an answer of such a model alone: fp32, int8, fp16, as-uploaded; may be repeated.",
)  # fmt: skip
@click.option(
    "--output", "outputs", multiple=True, metavar="NAME", help="An output to fetch; may be repeated."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the result to a .npy, .npz, .csv or .json file.",
)  # fmt: skip
@_to_server
def run(
    name: str, file: Path, version: str | None, digest: str | None, precisions: tuple[str, ...],
    outputs: tuple[str, ...], out: Path | None, as_json: bool, **server: Any,
) -> None:  # fmt: skip
    """Run the model NAME on the inputs in FILE: .npy, .npz, .csv or .json.

    Without --output an array gives the model's primary output, several named arrays give all outputs.
    """
    import json

    from strongroom import inference, tabular

    if out is not None:
        tabular.check_output(out, arrays=1)
    with _connect(**server) as client:
        model = client.model(name, version, expect_digest=digest)
        metadata = model.metadata
        inputs = tabular.read_inputs(file, metadata=metadata)
        asked = list(outputs or inputs.outputs) or None
        named = isinstance(inputs.value, dict)
        wanted = inference.wanted_outputs(metadata, dict_in=named, outputs=asked)
        if out is not None:
            tabular.check_output(out, arrays=len(wanted.names))
        with progress("receiving the result", quiet=as_json) as bar:
            result = model.run(inputs.value, asked, progress=bar, precision=precisions or None)
    arrays = result if isinstance(result, dict) else {metadata.primary_output: result}
    if out is not None:
        tabular.write_result(out, arrays, metadata=metadata)
    if as_json:
        document = (
            json.loads(tabular.as_response(arrays, metadata=metadata)) if out is None else {"file": str(out)}
        )
        show_json({
            **document, "sha256": metadata.sha256, "precision": metadata.precision, "engine": metadata.engine,
            "simulated": metadata.simulated,
        })  # fmt: skip
        return
    if out is None:
        for output, array in arrays.items():
            text = tabular.as_text(array)
            click.echo(f"{printable(output)} =\n{text}" if len(arrays) > 1 else text)
    else:
        click.echo(f"wrote {out}", err=True)
    note_simulated(metadata.simulated)


@main.command()
@_to_server
def models(as_json: bool, **server: Any) -> None:
    """List the models that you may see."""
    with _connect(**server) as client:
        found, simulated = client.models(), client.attestation.simulated
    if as_json:
        show_json({"models": [metadata.to_json() for metadata in found], "simulated": simulated})
    else:
        show_models(found)
        note_simulated(simulated)


@main.command()
@click.argument("name")
@click.option("--version", "version", metavar="N", help="An exact version; else every version.")
@_to_server
def delete(name: str, version: str | None, as_json: bool, **server: Any) -> None:
    """Delete a model, or one version of it. The host may have kept copies of the sealed files."""
    with _connect(**server) as client:
        gone, simulated = client.delete_model(name, version), client.attestation.simulated
    if as_json:
        show_json({"deleted": list(gone), "simulated": simulated})
    else:
        click.echo("\n".join(f"deleted {model_id}" for model_id in gone))
        note_simulated(simulated)


@main.command()
@click.argument("name")
@_version_option
@_to_server
def load(name: str, version: str | None, as_json: bool, **server: Any) -> None:
    """Load a model into the server's memory ahead of its first use."""
    with _connect(**server) as client:
        metadata = client.load_model(name, version)
    if as_json:
        show_json(metadata.to_json())
    else:
        click.echo(f"{metadata.id} loaded")
        note_simulated(metadata.simulated)


@main.command()
@click.argument("name")
@_version_option
@_to_server
def unload(name: str, version: str | None, as_json: bool, **server: Any) -> None:
    """Evict a model from the server's memory; it stays in the sealed store."""
    with _connect(**server) as client:
        metadata = client.unload_model(name, version)
    if as_json:
        show_json(metadata.to_json())
    else:
        click.echo(f"{metadata.id} unloaded")
        note_simulated(metadata.simulated)


# --- the operator's side ------------------------------------------------------------------------------------


@main.command()
@click.option("--color", is_flag=True, help="Colours even where the output is no terminal.")
@click.pass_context
def demo(ctx: click.Context, color: bool) -> None:
    """Show the main job with real models, on this machine, with every refusal actually happening."""
    from strongroom.demo import run as run_demo

    if color:
        ctx.color = True
    run_demo()


@main.command()
@_config_option
def serve(config_path: Path | None) -> None:
    """Start the server (needs the `server` extra)."""
    from strongroom.launch import serve as launch

    launch(config_path)


@main.command()
@_config_option
@click.option(
    "--start", is_flag=True,
    help="As a measured start of the server, which then ends: on a TPM the one of this boot.",
)  # fmt: skip
@_json_option
@click.pass_context
def check(ctx: click.Context, config_path: Path | None, start: bool, as_json: bool) -> None:
    """Open the store of a stopped server and check every file in it, its tags and its SHA-256.

    A TPM gives the keys to a measured start alone: there, without --start, only the form of the files is looked at, and
    the check does not pass.
    """
    from strongroom.config import load_config
    from strongroom.platforms import SIMULATED, resolve
    from strongroom.terminal import show_checks

    if start:
        from strongroom.launch import serve as launch

        launch(config_path, errand={"check": "json" if as_json else "text"})
    from strongroom.server import check_store

    settings = load_config(config_path)
    simulated = resolve(settings.platform) == SIMULATED
    if simulated:
        mark_simulated()
    ctx.exit(show_checks(check_store(settings), as_json=as_json, simulated=simulated))


if __name__ == "__main__":
    main()
