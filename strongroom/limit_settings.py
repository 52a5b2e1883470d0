"""The settings of `[limits]`: how much a server takes. `config` reads them; the host may change them."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.platform_settings import setting as _setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`[limits]`: how much this server takes. Each is enforced on what arrives, never on what is declared."""

    model_bytes: int = _setting(1 << 30, "Largest model upload.", unit="bytes", low=1, high=2 << 30)
    request_bytes: int = _setting(
        64 << 20, "Largest body of an inference request.", unit="bytes", low=1, high=2 << 30
    )
    response_bytes: int = _setting(
        64 << 20, "Largest body of an inference response.", unit="bytes", low=1, high=2 << 30
    )
    body_bytes_in_flight: int = _setting(
        512 << 20,
        "Bodies of inference requests held in memory at one time, all requests together; above it: 503. One caller "
        "may have half of it, and above that is answered 429.",
        unit="bytes",
        low=1,
        high=1 << 40,
    )
    admission_s: int = _setting(
        60,
        "Time for examining one model, in a process of its own; then it is refused.",
        unit="seconds",
        low=1,
        high=3600,
    )
    admission_bytes: int = _setting(
        1 << 30,
        "Memory of the process that examines a model, besides a multiple of the model.",
        unit="bytes",
        low=64 << 20,
        high=1 << 40,
    )
    preparation_s: int = _setting(
        300,
        "Time for making a model's precision, once for measuring and once for rewriting, in processes of their own; "
        "then the upload is refused. Their memory is `admission_bytes` and a multiple of what they work on.",
        unit="seconds",
        low=1,
        high=3600,
    )
    calibration_bytes: int = _setting(
        256 << 20,
        "Ranges or a calibration set that come with an upload; they count among `body_bytes_in_flight`.",
        unit="bytes",
        low=1,
        high=1 << 30,
    )
    tensors: int = _setting(64, "Tensors in one request.", unit="tensors", low=1, high=10_000)
    tensor_bytes: int = _setting(
        64 << 20, "One tensor of a request, unpacked.", unit="bytes", low=1, high=2 << 30
    )
    tensors_bytes: int = _setting(
        128 << 20, "All tensors of a request together, unpacked.", unit="bytes", low=1, high=4 << 30
    )
    elements: int = _setting(
        16 << 20, "Elements of all tensors of a request together.", unit="elements", low=1, high=2 << 30
    )
    name_length: int = _setting(
        128,
        "Length of a model's name. The least is that of the name that `/model/upload` gives.",
        unit="characters",
        low=15,  # len("iris-classifier"): `service.DEFAULT_SEED_NAME`
        high=200,
    )
    tensor_name_length: int = _setting(
        512, "Length of a tensor's name.", unit="characters", low=1, high=65_536
    )
    run_bytes: int = _setting(
        4 << 30,
        "Memory of one run: a model is admitted for requests that keep no more alive at one time "
        "(`strongroom size` says what that takes). For models that are uploaded from now on.",
        unit="bytes",
        low=1 << 20,
        high=1 << 40,
    )
    models: int = _setting(
        1000, "Model versions in the store, of all owners together.", unit="versions", low=1, high=100_000
    )
    models_per_owner: int = _setting(
        200,
        "Model versions of one owner (anonymous uploads count as one).",
        unit="versions",
        low=1,
        high=100_000,
    )
    store_bytes: int = _setting(
        64 << 30,
        "Models in the store together, as uploaded, those that arrive among them.",
        unit="bytes",
        low=1,
        high=1 << 50,
    )
    owner_bytes: int = _setting(
        16 << 30,
        "The same for one owner (anonymous uploads count as one).",
        unit="bytes",
        low=1,
        high=1 << 50,
    )
    disk_free_bytes: int = _setting(
        256 << 20,
        "Room that uploads leave on the disk of the store, so that deleting, which writes a new record, stays "
        "possible; above it: 507. 0: not looked at.",
        unit="bytes",
        low=0,
        high=1 << 50,
    )
    loaded_bytes: int = _setting(
        4 << 30,
        "Estimated memory of loaded models; the least recently used are unloaded to stay below it.",
        unit="bytes",
        low=1,
        high=1 << 50,
    )
    partition_bytes: int = _setting(
        256 << 20,
        "Memory of one model in stages: those under way, and those that stay; five of the largest where single "
        "stages are too large for it (docs/partitioning.md).",
        unit="bytes",
        low=1,
        high=1 << 50,
    )
    connections: int = _setting(512, "Open connections.", unit="connections", low=1, high=100_000)
    concurrent_requests: int = _setting(
        64,
        "Requests being worked on, or waiting for a thread; the next is answered 503. Health and evidence are not "
        "counted.",
        unit="requests",
        low=1,
        high=10_000,
    )
    concurrent_requests_per_caller: int = _setting(
        32,
        "The same for one caller (a principal, or an address that shows no key); the next is answered 429.",
        unit="requests",
        low=1,
        high=10_000,
    )
    concurrent_runs: int = _setting(
        2, "Model runs at one time, each on one thread; further ones wait.", unit="threads", low=1, high=1024
    )
    batch_rows: int = _setting(
        64,
        "Rows of requests that share a run, for models that were uploaded with batching. 1: none do.",
        unit="rows",
        low=1,
        high=65_536,
    )
    batch_delay_ms: int = _setting(
        10,
        "Longest wait of a request for company, while its caller's run before it is under way; where nothing runs, "
        "none waits.",
        unit="milliseconds",
        low=0,
        high=10_000,
    )
    waiting_runs_per_caller: int = _setting(
        32,
        "Model runs of one caller that wait for a thread; the next is answered 429. Callers, and the models they "
        "run, take turns.",
        unit="runs",
        low=1,
        high=10_000,
    )
    queue_s: int = _setting(
        30,
        "Longest wait of a request for a thread; then it is answered 503.",
        unit="seconds",
        low=1,
        high=3600,
    )
    concurrent_uploads: int = _setting(
        4,
        "Uploads at one time, one of which is being examined, and at most half of which ask for less precision; the "
        "next is answered 503.",
        unit="uploads",
        low=1,
        high=1024,
    )
    concurrent_uploads_per_caller: int = _setting(
        2, "The same for one caller; the next is answered 429.", unit="uploads", low=1, high=1024
    )
    uploads_per_minute: int = _setting(
        240,
        "Uploads of one principal, and of one address, in a minute; above it: 429. Clients behind one balancer "
        "share an address.",
        unit="uploads",
        low=1,
        high=1_000_000,
    )
    upload_bytes_per_minute: int = _setting(
        4 << 30,
        "The same in bytes, as they arrive. The upload that reaches it goes on; the next is answered 429 until the "
        "minutes that it took have passed.",
        unit="bytes",
        low=1,
        high=1 << 50,
    )
    evidence_per_minute: int = _setting(
        120,
        "Evidence requests of one address in a minute; above it: 429. Clients behind one balancer share it.",
        unit="requests",
        low=1,
        high=1_000_000,
    )
    evidence_waiting: int = _setting(
        512,
        "Evidence requests waiting while a quote is being made; the next is answered 503.",
        unit="requests",
        low=1,
        high=10_000,
    )
    evidence_batch: int = _setting(
        1024,
        "Evidence requests that one quote answers at most, through a Merkle tree. 1: each has a quote of its own.",
        unit="requests",
        low=1,
        high=10_000,  # no more than can wait; the tree could hold `attest.batch.MAX_BATCH`
    )
    header_bytes: int = _setting(
        16 << 10, "Request line and headers of one request.", unit="bytes", low=1024, high=1 << 20
    )
    header_deadline_s: int = _setting(
        10, "Time for a request's headers to arrive, from its first byte.", unit="seconds", low=1, high=600
    )
    body_idle_s: int = _setting(20, "Longest pause within a request's body.", unit="seconds", low=1, high=600)
    body_rate: int = _setting(
        8192,
        "Slowest average arrival of a body after its first 10 seconds; below it: 408.",
        unit="bytes/second",
        low=0,
        high=1 << 30,
    )
    send_idle_s: int = _setting(
        30, "Longest time in which a client takes nothing of its response.", unit="seconds", low=1, high=600
    )
    keep_alive_s: int = _setting(
        60, "Time an idle connection is kept open between requests.", unit="seconds", low=1, high=3600
    )
