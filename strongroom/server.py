"""The composition root: from settings and measurement to a listening server, in an order that matters.

    (boot: hardened -> measured -> only measured code -> zygote executed)
    -> the sandbox measured in the zygote -> sealing root (from a broker, where the settings name one) -> store
    -> preloaded models -> keys of the first epoch -> its evidence, verified by the server itself with the function that
    clients use -> listen

Nothing secret exists before the measurement and the zygote, nothing listens before its own evidence verifies. The
serving process does not fork.

Log lines name events, codes and places in the code: never a model, an input, a caller or an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import hmac
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from strongroom import boot, heap, moving
from strongroom.admission import Admit, ChildLimits, Examiner
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attesters import Machine, machine
from strongroom.boot import Boot, planned_measurement
from strongroom.cache import SessionCache
from strongroom.checking import CheckResult, check_outside
from strongroom.config import Config, Preload
from strongroom.edge import EdgeLimits
from strongroom.engine_options import identity
from strongroom.epochs import Epochs, Origin
from strongroom.errors import Error, InvalidConfig, SealRefused
from strongroom.formats import HEAD_BYTES, detect
from strongroom.forms import Forms
from strongroom.jobs import Host
from strongroom.kernel import trim_heap
from strongroom.launch import ROOM
from strongroom.listener import SignalledServer
from strongroom.models.info import STANDARD_BUDGET, STANDARD_LIMITS, AdmissionLimits
from strongroom.names import check_name
from strongroom.oip import WireLimits
from strongroom.platforms import TPM
from strongroom.preparation import Prepare, Preparer
from strongroom.prepared import Making
from strongroom.processes import MOST_TEMPLATES, WorkerLimits
from strongroom.processor import features
from strongroom.quotas import QuotaLimits
from strongroom.rest import Rest
from strongroom.routes import Scope
from strongroom.runner import Preloaded, RunLimits, Runner
from strongroom.service import Clocks, Epoch, Service, ServiceLimits
from strongroom.store import ModelVersion, Store
from strongroom.tokens import NonceBook
from strongroom.workers import Workers
from strongroom.zygote import Nursery

__all__ = ["check_store", "main", "planned_measurement"]

log = logging.getLogger("strongroom.server")


def main(ready: Boot) -> int:
    """Runs the server until SIGTERM or SIGINT; returns the process's exit code."""
    _log_to_stderr()
    try:
        if "check" in ready.errand:
            return _check_started(ready)
        asyncio.run(_serve(ready))
    except Error as error:
        return boot.report(error)
    finally:
        shutil.rmtree(ready.room, ignore_errors=True)
    return 0


def check_store(settings: Config) -> tuple[CheckResult, ...]:
    """Opens the store of a stopped server and checks every file in it. On a TPM, which gives the root to a measured
    start alone, what shows from outside; that the rest was not looked at is one of the findings.

    Raises:
        SealRefused: the store does not open with this code and configuration.
        Unavailable: a server has it open (code `store_locked`).
        InvalidConfig: there is no store, or its root key cannot be used.
    """
    if not _store_path(settings).is_dir():
        raise InvalidConfig(f"there is no store in {settings.state_dir}", code="config_unreadable")
    security = boot.security_configuration(settings)
    if settings.platform == TPM:
        shown = check_outside(
            _store_path(settings), sealing_class=security.sealing, security=security.digest().hex()
        )
        detail = "not read: the TPM gives their keys to a measured start alone; see check --start"
        return (
            *shown,
            CheckResult(subject="models", passed=False, code="tpm_launch_unmeasured", detail=detail),
        )
    here = _machine(settings, planned_measurement(settings).digest, launched="")
    with contextlib.closing(here), _open_store(settings, _keyed(settings, here, security), security) as store:
        return store.check()


def _check_started(ready: Boot) -> int:
    """`strongroom check --start`: the same, in the place of serving; returns the process's exit code."""
    from strongroom.terminal import show_checks

    with ready.nursery:
        here = _machine(ready.settings, ready.measurement.digest, launched=ready.launched)
        here.confirm()
        keyed = _keyed(ready.settings, here, ready.security)
        with contextlib.closing(here), _open_store(ready.settings, keyed, ready.security) as store:
            results = store.check()
    return show_checks(results, as_json=ready.errand["check"] == "json", simulated=here.simulated)


async def _serve(ready: Boot) -> None:
    settings = ready.settings
    with contextlib.ExitStack() as stack:
        nursery = stack.enter_context(ready.nursery)
        _check_sandbox(ready, nursery)
        examiner = Examiner(nursery, limits=_child_limits(settings, seconds=settings.limits.admission_s))
        here = _machine(settings, ready.measurement.digest, launched=ready.launched)
        stack.callback(here.close)
        here.confirm()
        here = _keyed(settings, here, ready.security)
        moving.run_errand(
            ready.errand,
            settings,
            here,
            security=ready.security,
            store_path=_store_path(settings),
            keyset_of=_keyset_maker(settings, here, ready.security),
        )
        store = stack.enter_context(_open_store(settings, here, ready.security))
        _sweep_rooms(settings.state_path, keep=ready.room)
        measured = dict(ready.preload)
        preloaded = tuple(
            preload(entry, settings, measured=measured[entry.name], admit=examiner.admit)
            for entry in settings.preload
        )
        epochs = Epochs(_origin(settings, here, ready.security, store.store_id), now=_now)
        handover = moving.source_of(settings, store, security=ready.security, simulated=here.simulated)
        recovery = moving.recovery_of(settings, store, security=ready.security, folder=_store_path(settings))
        for end in (handover, recovery):
            if end is not None:
                stack.callback(end.close)
        models = _host_of(ready, nursery)
        preparer = Preparer(
            nursery,
            admit=examiner.admit,
            limits=_child_limits(settings, seconds=settings.limits.preparation_s),
            layers=ready.security.sandbox,
        )
        service = _service(
            settings,
            store,
            here,
            preloaded,
            admit=examiner.admit,
            prepare=preparer.prepare,
            host=models,
            forms=_forms(ready, store, nursery),
        )
        stack.callback(_close_in_time, service, settings.shutdown_s)
        rest = Rest(
            service,
            wire=_wire_limits(settings),
            epoch_of=lambda scope: _epoch_of(scope, epochs),
            current_epoch=lambda: epochs.current,
            handover=handover,
            recovery=recovery,
        )
        _settle()
        await _listen(settings, rest, epochs, lines=_lines(ready, here))


async def _listen(
    settings: Config, rest: Rest, epochs: Epochs, *, lines: Callable[[str], tuple[str, ...]]
) -> None:
    sock = _bind(settings)
    url = _url(settings, sock)
    server = _Server(
        rest,
        sock=sock,
        context=epochs.context,
        limits=_edge_limits(settings),
        shutdown_s=settings.shutdown_s,
        announce=lambda: _print(lines(url)),
    )
    rotation = asyncio.get_running_loop().create_task(_rotate(epochs))
    try:
        await server.serve()
    finally:
        rotation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rotation


class _Server(SignalledServer):
    """The listener; says when it listens, and leaves by returning."""

    async def shutdown(self) -> None:
        hanging_up = asyncio.get_running_loop().create_task(self._hang_up())
        await super().shutdown()
        hanging_up.cancel()

    async def _hang_up(self) -> None:
        """Ends connections without a request under way whose clients do not answer the TLS goodbye.

        An idle client in a pool reads nothing, so it would keep the server for the whole grace period.
        """
        while True:
            await asyncio.sleep(1)
            for connection in tuple(self.crowd.connections):
                if connection.idle():
                    connection.transport.abort()


async def _rotate(epochs: Epochs) -> None:
    """Follows each epoch by the next before it ends. Wakes often: machines sleep through long timers."""
    while True:
        await asyncio.sleep(max(0.2, min(30.0, epochs.seconds_left())))
        if epochs.seconds_left() > 0:
            continue
        try:
            await asyncio.to_thread(epochs.rotate)
            log.info("key epoch: next")
        except Exception as fault:  # noqa: BLE001 - whatever it is, the old epoch goes on and we try again
            log.error("key epoch: %s; the old one goes on", type(fault).__name__)
            await asyncio.sleep(10)


# Parts


def _keyset_maker(settings: Config, here: Machine, security: SecurityConfiguration) -> Callable[[str], bytes]:
    """Keysets for a store id that is not served yet."""
    return lambda store_id: Epochs(_origin(settings, here, security, store_id), now=_now).current.keyset_bytes


def _keyed(settings: Config, here: Machine, security: SecurityConfiguration) -> Machine:
    """The platform with its sealing root, from a broker where the settings name one."""
    keyset_of = _keyset_maker(settings, here, security)
    return moving.with_released_key(settings, here, security=security, keyset_of=keyset_of)


def _origin(settings: Config, here: Machine, security: SecurityConfiguration, store_id: str) -> Origin:
    host, _ = settings.address
    return Origin(
        attester=here.attester,
        roots=here.roots,
        security=security,
        store_id=store_id,
        hosts=tuple(dict.fromkeys((*settings.hosts, *(() if _is_wildcard(host) else (host,))))),
        lifetime_s=settings.epoch_s,
    )


def _open_store(settings: Config, here: Machine, security: SecurityConfiguration) -> Store:
    settings.state_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Store.open(
        _store_path(settings),
        root=here.attester.sealing_root(),
        security_digest=security.digest(),
        anchor=here.anchor,
        now=lambda: int(time.time()),
    )


def _machine(settings: Config, measurement: str, *, launched: str) -> Machine:
    store = _store_path(settings)
    exists = store.is_dir() and any(store.iterdir())
    return machine(settings, measurement=measurement, store_exists=exists, launched=launched)


def _store_path(settings: Config) -> Path:
    return settings.state_path / "store"


def _sweep_rooms(state: Path, *, keep: Path) -> None:
    """Removes the empty folders of servers that were killed; safe, because we hold the store's lock."""
    for folder in state.glob(ROOM + "*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def preload(entry: Preload, settings: Config, *, measured: str, admit: Admit) -> Preloaded:
    """Admits a model that is shipped with the server. `measured`: the SHA-256 (hex) in the measurement.

    Raises:
        SealRefused: the file is not the measured one, now or whenever it is read again (`preload_changed`).
        InvalidConfig: it cannot be read (code `preload_unreadable`).
        AdmissionRefused, MalformedInput, Conflict, LimitExceeded: it is not a model that is run here.
    """
    path = Path(entry.path)
    check_name(entry.name, length=settings.limits.name_length)

    def read() -> bytes:
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise InvalidConfig(f"preload: {path.name} cannot be read", code="preload_unreadable") from exc
        # The host may change the file between measuring and reading, and between any two readings.
        if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), measured):
            raise SealRefused(
                "a preloaded model's file is not the one that was measured", code="preload_changed"
            )
        return data

    data = read()
    admitted = admit(
        bytearray(data), format=entry.format or detect(data[:HEAD_BYTES]), limits=admission_limits(settings)
    )
    model = ModelVersion(
        name=entry.name,
        version=1,
        owner="",
        access=entry.access,
        format=admitted.info.format,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        size=len(data),
        created=int(time.time()),
        info=admitted.info,
    )
    return Preloaded(model=model, read=read)


def _check_sandbox(ready: Boot, nursery: Nursery) -> None:
    """What the configuration promises takes hold here, measured; before a key exists that depends on it.

    Raises:
        InvalidConfig: it does not (code `sandbox_missing`).
        Failure: the zygote does not start (code `start_refused`).
    """
    held = nursery.wait()
    if missing := set(ready.security.sandbox) - set(held):
        raise InvalidConfig(
            f"security.sandbox: {', '.join(sorted(missing))} cannot be had here (what can: "
            f"{', '.join(held) or 'nothing'}); to run models without confinement, which then rests on admission "
            'alone, set security.isolation = "in_process"',
            code="sandbox_missing",
        )


def _host_of(ready: Boot, nursery: Nursery) -> Host:
    """Where models run."""
    security, limits, workers = ready.security, ready.settings.limits, ready.settings.workers
    if security.isolation == "in_process":
        # Imported here alone: otherwise the process that holds the keys has no engine in it.
        from strongroom.engine import Engine, InProcess
        from strongroom.staged_here import Here

        heap.for_threads()
        return Here(InProcess(Engine())) if sys.platform == "linux" else InProcess(Engine())
    if isinstance(ready.group, str):
        log.info("no control group for the processes that run models: %s", ready.group)
    else:
        log.info("control group: %d MB for all processes that run models", ready.group.memory_bytes >> 20)
    return Workers(
        nursery,
        isolation=security.isolation,
        layers=security.sandbox,
        limits=WorkerLimits(
            processes=workers.processes,
            run_bytes=workers.run_bytes,
            run_longest_s=workers.run_longest_s,
            input_bytes=limits.tensors_bytes,
            response_bytes=limits.response_bytes,
            elements=limits.elements,
            idle_bytes=workers.idle_bytes,
        ),
    ).ready()


def _forms(ready: Boot, store: Store, nursery: Nursery) -> Forms:
    settings = ready.settings
    return Forms(
        store,
        nursery,
        making=Making(engine=identity(), processor=features()),
        limits=_child_limits(settings, seconds=settings.limits.preparation_s),
        layers=ready.security.sandbox,
        keep_free=settings.limits.disk_free_bytes,
        budget=settings.limits.loaded_bytes,
        room=min(settings.limits.partition_bytes, settings.limits.loaded_bytes),
    )


def _service(
    settings: Config,
    store: Store,
    here: Machine,
    preloaded: tuple[Preloaded, ...],
    *,
    admit: Admit,
    prepare: Prepare,
    host: Host,
    forms: Forms | None,
) -> Service:
    limits = settings.limits
    runner = Runner(
        store=store,
        host=host,
        admit=admit,
        forms=forms,
        cache=SessionCache(limits.loaded_bytes, most=MOST_TEMPLATES),
        preloaded=preloaded,
        verify_on_load=cast(Literal["tags", "sha256"], settings.security.verify_on_load),
        limits=RunLimits(
            concurrent_runs=limits.concurrent_runs,
            waiting=limits.concurrent_requests,
            waiting_per_caller=limits.waiting_runs_per_caller,
            queue_s=limits.queue_s,
            response_bytes=limits.response_bytes,
            wire=_wire_limits(settings),
            admission=admission_limits(settings),
            shortest_s=settings.workers.run_shortest_s,
            longest_s=settings.workers.run_longest_s,
            batch_rows=limits.batch_rows,
            batch_delay_s=limits.batch_delay_ms / 1000,
        ),
    )
    return Service(
        store=store,
        runner=runner,
        attester=here.attester,
        activate=here.activate,
        nonces=NonceBook(clock=time.monotonic, random=secrets.token_bytes),
        preloaded=tuple(entry.model for entry in preloaded),
        anonymous_upload=settings.security.anonymous_upload,
        simulated=here.simulated,
        limits=ServiceLimits(
            model_bytes=limits.model_bytes,
            calibration_bytes=limits.calibration_bytes,
            request_bytes=limits.request_bytes,
            body_bytes_in_flight=limits.body_bytes_in_flight,
            body_rate=limits.body_rate,
            name_length=limits.name_length,
            quotas=QuotaLimits(
                models=limits.models,
                models_per_owner=limits.models_per_owner,
                one_owner=settings.security.isolation == "in_process",
                store_bytes=limits.store_bytes,
                owner_bytes=limits.owner_bytes,
                concurrent_uploads=limits.concurrent_uploads,
                concurrent_uploads_per_caller=limits.concurrent_uploads_per_caller,
                uploads_per_minute=limits.uploads_per_minute,
                upload_bytes_per_minute=limits.upload_bytes_per_minute,
            ),
            disk_free_bytes=limits.disk_free_bytes,
            concurrent_requests=limits.concurrent_requests,
            concurrent_requests_per_caller=limits.concurrent_requests_per_caller,
            queue_s=limits.queue_s,
            evidence_per_minute=limits.evidence_per_minute,
            evidence_waiting=limits.evidence_waiting,
            evidence_batch=limits.evidence_batch,
            admission=admission_limits(settings),
        ),
        clocks=Clocks(now=_now, monotonic=time.monotonic),
        admit=admit,
        prepare=prepare,
    )


def admission_limits(settings: Config) -> AdmissionLimits:
    """What a server with these settings asks of a model."""
    return replace(
        STANDARD_LIMITS,
        model_bytes=settings.limits.model_bytes,
        level=settings.security.admission,
        confined=settings.security.isolation != "in_process",
        budget=replace(
            STANDARD_BUDGET,
            elements=settings.limits.elements,
            peak_bytes=settings.limits.run_bytes,
            value_bytes=min(STANDARD_BUDGET.value_bytes, settings.limits.run_bytes),
        ),
    )


def _child_limits(settings: Config, *, seconds: int) -> ChildLimits:
    return ChildLimits(wall_s=seconds, cpu_s=seconds, memory_bytes=settings.limits.admission_bytes)


def _wire_limits(settings: Config) -> WireLimits:
    limits = settings.limits
    return WireLimits(
        tensors=limits.tensors,
        tensor_bytes=limits.tensor_bytes,
        total_bytes=limits.tensors_bytes,
        elements=limits.elements,
        name_length=limits.tensor_name_length,
    )


def _edge_limits(settings: Config) -> EdgeLimits:
    limits = settings.limits
    return EdgeLimits(
        connections=limits.connections,
        header_bytes=limits.header_bytes,
        header_deadline_s=limits.header_deadline_s,
        body_idle_s=limits.body_idle_s,
        send_idle_s=limits.send_idle_s,
        keep_alive_s=limits.keep_alive_s,
    )


def _epoch_of(scope: Scope, epochs: Epochs) -> Epoch:
    return epochs.of(scope["state"]["connection"].epoch)


def _close_in_time(service: Service, seconds: int) -> None:
    """Waits for threads under way, but not for ever: a model may run longer than anybody waits.

    Ending the process then loses nothing: what was acknowledged is in the store, which survives a kill.
    """
    closing = threading.Thread(target=service.close, daemon=True)
    closing.start()
    closing.join(max(1, seconds))
    if closing.is_alive():
        log.error("work did not end within %d s; leaving it", seconds)
        os._exit(1)


def _settle() -> None:
    """What was imported and made until now stays: the collector need not look at it again, and what compiling the
    modules left behind goes back.
    """
    gc.collect()
    gc.freeze()
    trim_heap()


# Listening


def _bind(settings: Config) -> socket.socket:
    host, port = settings.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as exc:
        raise InvalidConfig(f"bind: {settings.bind} cannot be listened on", code="bind_failed") from exc


def _url(settings: Config, sock: socket.socket) -> str:
    host, _ = settings.address
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}:{sock.getsockname()[1]}"


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _lines(ready: Boot, here: Machine) -> Callable[[str], tuple[str, ...]]:
    """What is said once the server listens; scripts wait for the last line."""
    return lambda url: (
        f"strongroom: measurement {ready.measurement.digest}",
        *(f"strongroom: {what} {value}" for what, value in (*here.says, *moving.says(ready.security))),
        f"strongroom: serving on {url} ({here.platform.title})",
    )


def _print(lines: tuple[str, ...]) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201 - the one thing that the server says on stdout


def _log_to_stderr() -> None:
    """Our own loggers to stderr, and nobody else's: libraries may log what they were given."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("strongroom: %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("strongroom")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]
    root.setLevel(logging.CRITICAL + 1)
    logging.lastResort = None


def _now() -> datetime:
    return datetime.now(UTC)
