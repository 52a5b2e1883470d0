"""`strongroom keybroker`: the owner's end of key release."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def keybroker() -> None:
    """Keep the sealing keys of servers whose platform has none, and release them to attested code."""


@keybroker.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The broker's configuration file (TOML): bind, signing_key, and a table keys.NAME for each key.",
)  # fmt: skip
def serve(config_path: Path) -> int:
    """Start the broker (needs the `server` extra), on a machine of the key owner's own.

    It releases each key to servers that pass the policy beside it, and to nobody else. It prints its public key, which
    servers name in `key_release.broker_key`; the signing key is made if it is missing. Keys lie on this machine in the
    clear, so it must not be the servers' machine. Policies are read at start: after a change, start it again.
    """
    from strongroom.key_broker_server import serve as run

    return run(config_path)
