"""Fresh evidence per second from a TEE that makes few quotes: `python bench/evidence_batch.py`.

A server in a process of its own, over TLS on loopback, whose attester makes 25 quotes a second and one at a time, as
hardware does. Clients keep a connection each and ask again with a fresh nonce as soon as they are answered. *Every*
answer of the measured time is verified by `strongroom.attest.verify`, for its own nonce and its own connection, after
the clock has stopped: on two cores, verification in between would measure the client.

Prints a table and one line of JSON; exit code 1 where an answer did not verify or too few came (`--at-least`).

The slow attester is put together here (`Throttled`, `_serve`): a server has no setting for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.attest import verify
from strongroom.attest.batch import Inclusion
from strongroom.attest.evidence import Evidence, Leaf, parse_answer
from strongroom.attest.policy import Policy, parse_policy, policy_for_measurement
from strongroom.attester import SimulatedAttester, root_digest
from strongroom.errors import Error

MEASUREMENT = "be" * 32
WARM_UP_S = 2.0


# The server


class Throttled:
    """The simulated TEE as slow as hardware: each quote takes `1 / quotes_per_s` seconds. 0: as fast as it is."""

    def __init__(self, inner: SimulatedAttester, *, quotes_per_s: float) -> None:
        self._inner = inner
        self._pause = 1 / quotes_per_s if quotes_per_s else 0.0
        self.format, self.measurement = inner.format, inner.measurement

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """Evidence of the simulated TEE, later."""
        if self._pause:
            time.sleep(self._pause)
        return self._inner.evidence(report_data, now=now)

    def sealing_root(self) -> Any:
        """The simulated TEE's."""
        return self._inner.sealing_root()


def _serve(quotes_per_s: float, batch: int) -> None:
    """The child: the server's own parts, put together as `strongroom.server` does, but for the attester. Says a line
    of JSON once it listens, and ends with its standard input.
    """
    from strongroom import server
    from strongroom.anchor import UNANCHORED
    from strongroom.attesters import Machine, no_activation
    from strongroom.boot import security_configuration
    from strongroom.config import Config, Limits
    from strongroom.engine import Engine, InProcess
    from strongroom.epochs import Epochs, Origin
    from strongroom.errors import InvalidRequest
    from strongroom.listener import EdgeServer
    from strongroom.models import admit
    from strongroom.platforms import PLATFORMS
    from strongroom.rest import Rest
    from strongroom.store import Store

    limits = Limits(
        connections=4096, evidence_per_minute=1_000_000, evidence_batch=batch, evidence_waiting=4096
    )
    settings = Config(platform="simulated", bind="127.0.0.1:0", limits=limits)
    root_key = Ed25519PrivateKey.generate()
    inner = SimulatedAttester(root_key, MEASUREMENT)
    attester: Any = Throttled(inner, quotes_per_s=quotes_per_s)
    security = security_configuration(settings)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(
            Path(folder) / "store",
            root=inner.sealing_root(),
            security_digest=security.digest(),
            anchor=UNANCHORED,
            now=lambda: int(time.time()),
        )
        origin = Origin(
            attester=attester,
            roots=(root_digest(root_key),),
            security=security,
            store_id=store.store_id,
            hosts=("127.0.0.1",),
            lifetime_s=settings.epoch_s,
        )
        epochs = Epochs(origin, now=lambda: datetime.now(UTC))
        here = Machine(
            platform=PLATFORMS["simulated"],
            attester=attester,
            roots=origin.roots,
            says=(),
            anchor=UNANCHORED,
            activate=no_activation,
            close=lambda: None,
            confirm=lambda: None,
        )

        def prepare(*_: object, **__: object) -> NoReturn:
            raise InvalidRequest("this server answers with evidence; it takes no models")

        service = server._service(
            settings, store, here, (), admit=admit, prepare=prepare, host=InProcess(Engine())
        )
        rest = Rest(
            service,
            wire=server._wire_limits(settings),
            epoch_of=lambda scope: server._epoch_of(scope, epochs),
            current_epoch=lambda: epochs.current,
        )
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        edge = server._edge_limits(settings)
        listening = EdgeServer(rest, sock=sock, context=epochs.context, limits=edge, shutdown_s=1)
        policy = policy_for_measurement(MEASUREMENT, root=origin.roots[0], now=datetime.now(UTC))
        print(json.dumps({"port": sock.getsockname()[1], "policy": policy}), flush=True)

        async def run() -> None:
            serving = asyncio.ensure_future(listening.serve())
            await asyncio.to_thread(sys.stdin.read)
            listening.should_exit = True
            await serving

        before = time.process_time()
        asyncio.run(run())
        print(time.process_time() - before, flush=True)
        service.close()
        store.close()


# The clients


@dataclass(slots=True)
class Answered:
    """One answer as it arrived."""

    nonce: bytes
    body: bytes
    asked_at: float
    seconds: float
    leaf: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row."""

    quotes_per_s: float
    batch: int
    connections: int
    seconds: float
    answers: int
    answers_per_s: float
    p50_ms: float
    p99_ms: float
    quotes: int
    batch_median: float
    batch_max: int
    verified: int
    refused: dict[str, int] = field(default_factory=dict)
    verify_ms: float
    server_cpu_ms: float
    """Processor time of the server for one answer, handshakes included: it depends least on what else runs."""


async def _connect(port: int, line: asyncio.Semaphore) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # evidence says who it is, not a name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    async with line:  # handshakes under way are bounded on the other side
        return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def _client(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: list[float], found: list[Answered]
) -> None:
    leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    head = b"GET /v1/evidence?nonce=%s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n\r\n"
    while (start := time.perf_counter()) < until[0]:
        nonce = os.urandom(32)
        writer.write(head % nonce.hex().encode())
        fields = await reader.readuntil(b"\r\n\r\n")
        status, _, rest = fields.partition(b"\r\n")
        length = next(line for line in rest.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.split(b":")[1]))
        if b" 200 " not in status:
            raise SystemExit(f"the server answered {status!r}: {body!r}")
        found.append(Answered(nonce, body, start, time.perf_counter() - start, leaf))
    writer.close()
    with contextlib.suppress(OSError):  # the other side may be gone first
        await writer.wait_closed()


async def _clients(port: int, connections: int, seconds: float) -> tuple[list[Answered], int]:
    """The answers of the measured time, and the number of all."""
    found: list[Answered] = []
    until = [float("inf")]
    line = asyncio.Semaphore(8)
    opened = await asyncio.gather(*(_connect(port, line) for _ in range(connections)))
    tasks = [asyncio.ensure_future(_client(*one, until, found)) for one in opened]
    await asyncio.sleep(WARM_UP_S)
    start = time.perf_counter()
    until[0] = start + seconds
    await asyncio.gather(*tasks)
    ends = start + seconds
    return [one for one in found if start <= one.asked_at + one.seconds <= ends], len(found)


def _verify(answers: list[Answered], policy: Policy) -> tuple[dict[str, int], float]:
    """Codes of refusals with their number, and milliseconds for one verification."""
    refused: dict[str, int] = {}
    start = time.perf_counter()
    for one in answers:
        try:
            read = parse_answer(one.body)
            verify(
                read.evidence,
                policy,
                nonce=one.nonce,
                keyset_bytes=read.keyset,
                inclusion=read.inclusion,
                channel=Leaf(one.leaf),
                endorsements=read.evidence.endorsements,
                now=datetime.now(UTC),
            )
        except Error as error:
            refused[error.code] = refused.get(error.code, 0) + 1
    return refused, (time.perf_counter() - start) / max(1, len(answers)) * 1000


def _run(*, quotes_per_s: float, batch: int, connections: int, seconds: float) -> Result:
    words = [sys.executable, __file__, "--serve", str(quotes_per_s), "--batch", str(batch)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        answers, total = asyncio.run(_clients(ready["port"], connections, seconds))
        child.stdin.close()  # the server ends
        server_s = float(child.stdout.read())
    refused, verify_ms = _verify(answers, parse_policy(ready["policy"]))
    times = sorted(one.seconds * 1000 for one in answers)
    read = [parse_answer(one.body) for one in answers]
    sizes = {
        one.evidence.data: one.inclusion.size if isinstance(one.inclusion, Inclusion) else 1 for one in read
    }
    return Result(
        quotes_per_s=quotes_per_s,
        batch=batch,
        connections=connections,
        seconds=seconds,
        answers=len(answers),
        answers_per_s=round(len(answers) / seconds, 1),
        p50_ms=round(statistics.median(times), 2),
        p99_ms=round(times[int(len(times) * 0.99)], 2),
        quotes=len(sizes),
        batch_median=statistics.median(sizes.values()),
        batch_max=max(sizes.values()),
        verified=len(answers) - sum(refused.values()),
        refused=refused,
        verify_ms=round(verify_ms, 3),
        server_cpu_ms=round(server_s / total * 1000, 3),
    )


def _table(results: list[Result]) -> str:
    lines = [
        "| quotes/s of the TEE | nonces per quote at most | connections | answers/s | p50 ms | p99 ms | quotes made "
        "| batch, median | batch, largest | verified | server's CPU ms each |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in results:
        rate = f"{one.quotes_per_s:g}" if one.quotes_per_s else "as simulated"
        lines.append(
            f"| {rate} | {one.batch} | {one.connections} | {one.answers_per_s:.0f} | {one.p50_ms} | {one.p99_ms} "
            f"| {one.quotes} | {one.batch_median:g} | {one.batch_max} | {one.verified} of {one.answers} "
            f"| {one.server_cpu_ms} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs the scenarios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quotes", type=float, default=25, help="quotes a second of the slow TEE")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--at-least", type=float, default=1000, help="answers a second, with batches")
    parser.add_argument("--batch", type=int, default=1024, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        _serve(options.serve, options.batch)
        return 0
    scenarios = (
        {"quotes_per_s": options.quotes, "batch": options.batch, "connections": options.connections},
        {"quotes_per_s": options.quotes, "batch": 1, "connections": options.connections},
        {"quotes_per_s": 0, "batch": options.batch, "connections": 1},
        {"quotes_per_s": 0, "batch": options.batch, "connections": options.connections},
    )
    results = [_run(**one, seconds=options.seconds) for one in scenarios]
    print(_table(results))
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    rows = [asdict(one) for one in results]
    print(json.dumps({"bench": "evidence_batch", "machine": machine, "results": rows}))
    complete = all(not one.refused and one.answers for one in results)
    return 0 if complete and results[0].answers_per_s >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
