"""`strongroom keybroker serve`: a key broker out of its configuration file, on the key owner's own machine
(`docs/spec/key-release.md` §5).

    configuration -> signing key, keys, policies -> listen

Rules
  - This machine is trusted with the keys: they lie on its disk in the clear, mode 0600, and in its memory. It is not
    the server's machine, or nothing is gained.
  - A policy that cannot be applied, or that accepts simulation where the configuration does not say so, keeps the
    broker from starting. Files are read at start, and not again.
  - Log lines name keys, formats, measurements and codes: never a key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
import time
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.attest.policy import DEVELOPMENT, PRODUCTION, Policy, parse_policy
from strongroom.attester import load_or_create_root, read_operator_key
from strongroom.bodies import JSON
from strongroom.config import parse_bind
from strongroom.edge import EdgeLimits
from strongroom.errors import Error, Failure, InvalidConfig, InvalidPolicy, NotFound, Unavailable
from strongroom.handover import MAX_TAKE
from strongroom.key_broker import Kept, KeyBroker
from strongroom.key_release import NAME
from strongroom.listener import SignalledServer
from strongroom.planned import MAX_HANDOVER_POLICY
from strongroom.problems import problem
from strongroom.ratls import plain_server_context
from strongroom.routes import Receive, Request, Response, Scope, Send
from strongroom.traffic import Arrival, Lane

log = logging.getLogger("strongroom.keybroker")

MAX_FILE: Final = 1 << 20
"""Bytes of a configuration file; ours are a few hundred."""
SHUTDOWN_S: Final = 5
CERTIFICATE_S: Final = 10 * 365 * 86_400
"""Seconds for which the certificate says that it is good. Servers do not look at it."""
_LIMITS: Final = EdgeLimits(
    connections=64, header_bytes=8192, header_deadline_s=10, body_idle_s=10, send_idle_s=10, keep_alive_s=5
)
"""Servers ask once, at start: few connections, none of them idle. 64 bodies of 2 MiB are what strangers can hold up."""
_RATE: Final = 4096
"""Bytes a second at least, of a request that takes long."""
_CODE: Final = "key_broker_unusable"
_MEMBERS: Final = {"bind": str, "signing_key": str, "simulated": bool, "keys": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """What a broker is told; paths are absolute. `simulated`: it releases its keys to simulated servers, and to none
    on hardware. `keys`: name -> file with the key, file with its policy.
    """

    bind: str
    signing_key: Path
    simulated: bool
    keys: dict[str, tuple[Path, Path]]


def load_broker_config(path: Path) -> BrokerConfig:
    """Reads a broker's configuration file (TOML). Relative paths are relative to it.

    Raises:
        InvalidConfig: code `key_broker_unusable`, or `config_out_of_range` for `bind`.
    """
    try:
        document = tomllib.loads(_read(path, MAX_FILE))
    except (tomllib.TOMLDecodeError, RecursionError):
        raise _unusable(f"{path.name}: not valid TOML") from None  # it quotes the file
    _check_members(document, _MEMBERS, optional=("simulated",), where=path.name)
    parse_bind(document["bind"])
    folder = path.resolve().parent
    keys = {}
    for name, table in document["keys"].items():
        if re.fullmatch(NAME, name, re.ASCII) is None:
            raise _unusable(f"{path.name}: keys: expected names of the form {NAME}")
        if not isinstance(table, dict):
            raise _unusable(f"{path.name}: keys.{name}: expected a table with key and policy")
        _check_members(table, {"key": str, "policy": str}, optional=(), where=f"{path.name}: keys.{name}")
        keys[name] = (folder / table["key"], folder / table["policy"])
    if not keys:
        raise _unusable(f"{path.name}: keys: expected at least one; a broker without keys is no use")
    return BrokerConfig(
        bind=document["bind"],
        signing_key=folder / document["signing_key"],
        simulated=document.get("simulated", False),
        keys=keys,
    )


def _check_members(
    table: dict[str, Any], known: dict[str, type], *, optional: tuple[str, ...], where: str
) -> None:
    if unknown := sorted(table.keys() - known.keys()):
        raise _unusable(f"{where}: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if missing := sorted(known.keys() - table.keys() - set(optional)):
        raise _unusable(f"{where}: missing: {', '.join(missing)}")
    for name, value in table.items():
        if type(value) is not known[name]:
            raise _unusable(f"{where}: {name}: expected {known[name].__name__}, got {type(value).__name__}")


def load_kept(config: BrokerConfig) -> dict[str, Kept]:
    """The keys and policies that the configuration names.

    Raises:
        InvalidConfig: a key cannot be used (code `operator_key_unusable`), a policy cannot (`key_broker_unusable`), or
            it is for simulation where the configuration is not, or the reverse (`key_broker_unusable`).
    """
    return {
        name: Kept(key=read_operator_key(key), policy=_load_policy(policy, simulated=config.simulated))
        for name, (key, policy) in config.keys.items()
    }


def _load_policy(path: Path, *, simulated: bool) -> Policy:
    try:
        policy = parse_policy(_read(path, MAX_HANDOVER_POLICY))
    except InvalidPolicy as exc:
        raise _unusable(f"policy {path.name}: {exc.message}") from exc
    if policy.simulated != simulated:
        kind = "simulated evidence alone" if policy.simulated else "hardware alone"
        wanted = "simulated = true" if simulated else "no simulated = true"
        raise _unusable(f"policy {path.name}: it accepts {kind}, and the broker's configuration has {wanted}")
    if policy.kind == DEVELOPMENT:
        raise _unusable(
            f"policy {path.name}: kind {DEVELOPMENT} can accept debug mode; expected {PRODUCTION}"
        )
    if not policy.requirements:
        raise _unusable(f"policy {path.name}: it names no code, so it releases the key to nobody")
    return policy


def _read(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise _unusable(f"{path.name}: cannot be read as UTF-8 text") from None
    if len(data) > limit:
        raise _unusable(f"{path.name}: longer than {limit} bytes")
    return text


def _unusable(why: str) -> InvalidConfig:
    return InvalidConfig(f"key broker: {why}", code=_CODE)


class BrokerApp:
    """The broker's two paths as an ASGI application; the work is done in one thread, a request at a time."""

    def __init__(self, broker: KeyBroker) -> None:
        self._broker = broker
        self._lane = Lane("keybroker", workers=1, waiting=16, code="key_release_busy", wait_s=30)

    def close(self) -> None:
        """Ends the thread, after the work that is under way."""
        self._lane.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one response, whatever happens inside."""
        try:
            response = Response(await self._answer(Request(scope, receive)), 200, {}, JSON)
        except Error as error:
            response = problem(error)
        except Exception as fault:  # noqa: BLE001 - the caller gets our words only, the log no words at all
            log.error("internal_error: %s", type(fault).__name__)
            response = problem(Failure("a fault of the broker"))
        await response.send_to(send, [(b"cache-control", b"no-store")])

    async def _answer(self, request: Request) -> bytes:
        path: str = request.scope["path"]
        if request.scope["method"] != "POST" or path not in (
            "/v1/key-release/challenge",
            "/v1/key-release/release",
        ):
            raise NotFound("no such path")
        body = await self._collect(request)
        if path.endswith("challenge"):
            return self._broker.challenge()
        return await self._lane.run(self._broker.release, body)

    async def _collect(self, request: Request) -> bytes:
        arrival, chunks = Arrival(limit=MAX_TAKE, rate=_RATE, clock=time.monotonic), []
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Unavailable("the connection ended", code="connection_lost")
            chunk: bytes = message.get("body", b"")
            arrival.take(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


def serve(config_path: Path) -> int:
    """Runs a broker until SIGTERM or SIGINT; returns the process's exit code.

    Raises:
        InvalidConfig: as `load_broker_config` and `load_kept`; the signing key cannot be used (code
            `root_key_unusable`), or the address cannot be listened on (`bind_failed`).
    """
    from strongroom.boot import harden

    harden()
    _log_to_stderr()
    config = load_broker_config(config_path)
    kept = load_kept(config)
    signing_key = load_or_create_root(config.signing_key)
    broker = KeyBroker(
        kept,
        signing_key=signing_key,
        now=lambda: datetime.now(UTC),
        monotonic=time.monotonic,
        random=os.urandom,
    )
    asyncio.run(_listen(config, broker, signing_key))
    return 0


async def _listen(config: BrokerConfig, broker: KeyBroker, signing_key: Ed25519PrivateKey) -> None:
    host, port = parse_bind(config.bind)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=64)
    except OSError as exc:
        raise InvalidConfig(f"bind: {config.bind} cannot be listened on", code="bind_failed") from exc
    context = plain_server_context(hosts=("localhost",), now=datetime.now(UTC), lifetime_s=CERTIFICATE_S)
    app = BrokerApp(broker)
    shown = f"[{host}]" if ":" in host else host
    lines = (
        f"strongroom: broker key {signing_key.public_key().public_bytes_raw().hex()}",
        *(["strongroom: SIMULATED: keys are released to simulated servers"] if config.simulated else []),
        f"strongroom: key broker on https://{shown}:{sock.getsockname()[1]}",
    )

    def announce() -> None:
        print(*lines, sep="\n", flush=True)  # noqa: T201 - the one thing that the broker says on stdout

    server = SignalledServer(
        app, sock=sock, context=context, limits=_LIMITS, shutdown_s=SHUTDOWN_S, announce=announce
    )
    try:
        await server.serve()
    finally:
        app.close()


def _log_to_stderr() -> None:
    """Our own loggers to stderr, and nobody else's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("strongroom")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.lastResort = None
