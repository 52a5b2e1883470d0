"""`strongroom reseal`, `recover` and `recovery-key`: a store goes to another server, or comes back when its machine is
gone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from strongroom.calls import printable
from strongroom.cli_endorsements import endorsement_options, fetcher_of
from strongroom.errors import InvalidRequest
from strongroom.terminal import note_simulated, show_json

_DATA = "data"


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The new server's configuration file, with security.handover_policy and a state folder of its own.",
)  # fmt: skip
@click.option(
    "--from", "url", required=True, metavar="URL", help="The server that still runs, https://host:port."
)
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="The state folder of the server that still runs, or a copy of it.",
)  # fmt: skip
@click.option(
    "--token", type=click.Path(path_type=Path), metavar="FILE",
    help="File with its operator's token; else operator-token in its state folder.",
)  # fmt: skip
def reseal(config_path: Path, url: str, state: Path, token: Path | None) -> None:
    """Start the new server, which takes over the store of one that still runs; then it serves.

    Both servers verify one another by the hand-over policy that is part of each one's attested configuration. From the
    moment of giving the old one changes nothing any more, and goes on answering until you stop it. Files of models are
    linked or copied and not encrypted anew. If it is interrupted, run it again.
    """
    from strongroom.launch import serve as launch
    from strongroom.transport import parse_origin

    data = _data_folder(state)
    operator = token or state / "operator-token"
    if not operator.is_file():
        raise InvalidRequest(
            f"{operator}: no operator's token there; the server that still runs writes it, where it has a hand-over "
            "policy",
            code="usage_invalid",
        )
    errand = {"from": parse_origin(url).url, "files": str(data.resolve()), "token": str(operator.resolve())}
    launch(config_path, errand=errand)


@click.command()
@click.argument("url", envvar="STRONGROOM_URL")
@click.option(
    "--policy", "policy_path", envvar="STRONGROOM_POLICY", required=True, metavar="FILE", show_envvar=True,
    help="Policy file that the new server has to pass; it names your recovery key.",
)  # fmt: skip
@click.option(
    "--identity", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Your recovery key, as `strongroom recovery-key new` or age-keygen wrote it.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="A copy of the state folder of the lost server. Models are not needed here, but there (see below).",
)  # fmt: skip
@endorsement_options
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=600.0, show_default=True, metavar="SECONDS",
    help="Give up after this long without a byte.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def recover(
    url: str, policy_path: str, identity: Path, state: Path, endorsed: tuple[Path, ...], timeout: float,
    as_json: bool, **fetching: Any,
) -> None:  # fmt: skip
    """Give the store of a lost machine to a new, empty server, with the recovery key.

    Run this where the key is safe, not on the server. The key stays here; the new server has to pass your policy first.
    Before, put the lost store's folder `data` onto the new server's machine as `incoming` in its state folder.
    """
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.flow import Session, drive_to_end
    from strongroom.recovery_client import read_lost, restore_flow
    from strongroom.sources import load_endorsements, read_policy
    from strongroom.transport import Transport, parse_origin

    lost, key = read_lost(_store_folder(state), identity)
    origin, fetcher = parse_origin(url), fetcher_of(**fetching)
    accepted, text = read_policy(policy_path)
    session = Session(
        policy=accepted, policy_text=text, origin=origin.url, key=None, clock=SYSTEM_CLOCK, random=os.urandom,
        patience_s=0, endorsements=load_endorsements(endorsed), fetches=fetcher is not None,
    )  # fmt: skip
    transport = Transport(origin, timeout_s=timeout, fetcher=fetcher)
    try:
        versions = drive_to_end(restore_flow(session, lost, key, random=os.urandom), transport.perform)
    finally:
        transport.close()
    if as_json:
        show_json({"versions": versions, "store": lost.store_id, "simulated": accepted.simulated})
    else:
        click.echo(f"{versions} model versions of store {printable(lost.store_id)} are back")
        note_simulated(accepted.simulated)


@click.group("recovery-key")
def recovery_key() -> None:
    """The key with which a store can be recovered when its machine is gone."""


@recovery_key.command("new")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def new_key(file: Path, as_json: bool) -> None:
    """Make a recovery key. Keep FILE offline: whoever has it and a copy of a server's disk reads its models.

    Writes an age identity that only you may read, and prints the public key for `security.recovery_recipient`.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from strongroom.age import encode_identity, recipient_of

    identity = X25519PrivateKey.generate()
    recipient = recipient_of(identity)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise InvalidRequest(f"{file} exists already and is left as it is", code="key_exists") from exc
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be written", code="output_unwritable") from exc
    with os.fdopen(descriptor, "w", encoding="ascii") as sink:
        sink.write(f"# public key: {recipient}\n{encode_identity(identity)}\n")
    if as_json:
        show_json({"file": str(file), "recipient": recipient})
    else:
        click.echo(f"recipient {recipient}")


def _store_folder(state: Path) -> Path:
    folder = state / "store"
    if not (folder / "state").is_file():
        raise InvalidRequest(f"{state}: not a server's state folder: it has no store", code="usage_invalid")
    return folder


def _data_folder(state: Path) -> Path:
    folder = state / "store" / _DATA
    if not folder.is_dir():
        raise InvalidRequest(f"{state}: not a server's state folder: it has no store", code="usage_invalid")
    return folder
