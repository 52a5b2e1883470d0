"""`strongroom demo`: the main job on real input, narrated, with every refusal actually happening.

It plays all parties on one machine: an operator who starts a server in the simulated TEE, a model owner who
uploads two real models, a data owner who runs them on real data, and attackers who are refused. Everything is
made in one temporary folder and removed at the end. Needs the `server` extra; xgboost, scikit-learn and magika
where they are installed (`make demo` installs them), else the model under `examples/`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

import strongroom
from strongroom import errors

PACKAGE = Path(__file__).resolve().parent
READY = "strongroom: serving on "


def say(text: str = "") -> None:
    """One line of narration; digests are cut to their first digits."""
    click.echo(re.sub(r"[0-9a-f]{13,}", lambda match: match[0][:12] + "...", text))


def head(number: int, text: str) -> None:
    """Starts a step."""
    click.echo()
    click.secho(f"{number}. {text}", bold=True)


def fact(name: str, value: object) -> None:
    """One real value."""
    click.echo(f"   {name:<22} {value}")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens."""

    url: str

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(config: Path, *, code: Path = PACKAGE.parent) -> Iterator[Server]:
    """Starts `strongroom serve` from the package that lies in `code`; yields once it serves, and ends it afterwards.

    Raises:
        Failure: the server ended before it was ready (code `demo_server_ended`); its last line is in the message.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "strongroom.launch", "--config", str(config)],
        cwd=code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with process:
        try:
            yield Server(_ready_url(process))
        finally:
            process.terminate()


def _ready_url(process: subprocess.Popen[str]) -> str:
    last = ""
    for line in process.stdout or ():
        last = line.strip() or last
        if line.startswith(READY):
            return line.removeprefix(READY).split()[0]
    raise errors.Failure(f"the server ended before it was ready: {last}", code="demo_server_ended")


def refused(attempt: Callable[[], object]) -> None:
    """Runs what must be refused and shows the refusal; anything else ends the demo as a failure.

    Raises:
        Failure: nothing refused it (code `demo_not_refused`).
    """
    try:
        attempt()
    except errors.Refused as refusal:
        click.secho(f"   REFUSED  {refusal.code}", fg="green", bold=True)
        say(f"   {refusal.message}")
        return
    raise errors.Failure("this should have been refused, and was not", code="demo_not_refused")


def show_checks(verdict: Any) -> None:
    """One line per check of a verdict."""
    for check in verdict.checks:
        word = click.style("PASS", fg="green") if check.passed else click.style("FAIL", fg="red")
        say(f"   {word}  {check.id:<28} {check.got}")


# -- the two models and their data


@dataclass
class Job:
    """A model to upload, an input to run and how to print what comes out."""

    name: str
    model: Path
    what: str
    inputs: np.ndarray[Any, Any]
    show: Callable[[np.ndarray[Any, Any]], None]
    repeat: np.ndarray[Any, Any] | None = None


def magika_features(data: bytes) -> np.ndarray[Any, Any]:
    """Magika's input for one file, int32 [2048]: first and last 1024 bytes, outer white space off, padded with 256."""
    begin, end = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    row = np.full(2048, 256, np.int32)
    row[: len(begin)] = np.frombuffer(begin, np.uint8)
    row[2048 - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def file_type_job() -> Job | None:
    """Magika, Google's trained file-type network (3 MB ONNX, shipped in its wheel), on files of this repository."""
    found = importlib.util.find_spec("magika")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "models" / "standard_v3_3"
    labels = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    names = [
        PACKAGE.parent / n for n in ("README.md", "Makefile", "pyproject.toml", "examples/iris_model.json")
    ]
    files = [f for f in (PACKAGE / "service.py", *names) if f.is_file()]
    rows = np.stack([magika_features(f.read_bytes()) for f in files])

    def show(scores: np.ndarray[Any, Any]) -> None:
        for file, row in zip(files, scores, strict=True):
            fact(file.name, f"{labels[int(row.argmax())]:<10} {row.max():.3f}")

    what = "a trained network that tells what kind of file a file is (ONNX)"
    return Job("file-type", folder / "model.onnx", what, rows, show)


def tumour_job(folder: Path) -> Job | None:
    """An XGBoost classifier trained here and now on scikit-learn's breast-cancer data (569 patients)."""
    if importlib.util.find_spec("xgboost") is None or importlib.util.find_spec("sklearn") is None:
        return None
    import xgboost
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    data, target = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(data, target, test_size=114, random_state=7)
    options = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1, "nthread": 1, "seed": 7}
    booster = xgboost.train(options, xgboost.DMatrix(x_train, y_train), 30)
    path = folder / "tumour.json"
    booster.save_model(path)
    expected = booster.predict(xgboost.DMatrix(x_test))

    def show(scores: np.ndarray[Any, Any]) -> None:
        verdicts = ["benign" if s > 0.5 else "malignant" for s in scores[:3]]
        fact(
            "first three patients",
            ", ".join(f"{v} ({s:.3f})" for v, s in zip(verdicts, scores, strict=False)),
        )
        right = int(((scores > 0.5) == (y_test == 1)).sum())
        fact("right on", f"{right} of {len(y_test)} patients the model never saw")
        fact("against xgboost itself", f"largest difference {np.abs(scores - expected).max():.1e}")

    return Job(
        "tumour", path, "tumours, trained a moment ago with xgboost (JSON)", x_test.astype(np.float32), show
    )


def iris_job() -> Job:
    """The trained iris model that lies in the repository: the fallback where nothing else is installed."""
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 4.5, 1.5], [6.3, 3.3, 6.0, 2.5]], np.float32)

    def show(scores: np.ndarray[Any, Any]) -> None:
        for row, score in zip(rows, scores, strict=True):
            fact(str(row.tolist()), ["setosa", "versicolor", "virginica"][int(np.argmax(score))])

    return Job("iris", PACKAGE.parent / "examples" / "iris_model.json", "irises (XGBoost JSON)", rows, show)


# -- the attackers


@contextmanager
def interceptor(port: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """A man in the middle: its own certificate towards the client, the real server behind it.

    Yields its URL and a function that tells how many application bytes it got besides questions for evidence.
    """
    from strongroom import ratls
    from strongroom.attest.evidence import Evidence

    identity = ratls.new_server_identity(
        hosts=("127.0.0.1",),
        evidence_format="sim",
        evidence=lambda _data: Evidence("sim", b"{}", ()),
        now=datetime.now(UTC),
        lifetime_s=3600,
    )
    context = ratls.server_context(identity)
    listener = socket.create_server(("127.0.0.1", 0))
    leaked = [0]

    def relay(client: ssl.SSLSocket) -> None:
        upstream_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        upstream_context.check_hostname, upstream_context.verify_mode = False, ssl.CERT_NONE
        with (
            client,
            socket.create_connection(("127.0.0.1", port)) as raw,
            upstream_context.wrap_socket(raw) as real,
        ):
            request = client.recv(65536)
            if not request.startswith(b"GET /v1/evidence"):
                leaked[0] += len(request)
            real.sendall(request)
            real.settimeout(2)
            try:
                while chunk := real.recv(65536):
                    client.sendall(chunk)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                raw, _address = listener.accept()
            except OSError:
                return
            try:
                relay(context.wrap_socket(raw, server_side=True))
            except OSError:
                raw.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", lambda: leaked[0]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def altered_copy(folder: Path) -> Path:
    """A copy of this package in which one line of the data plane was changed: what a dishonest operator would run."""
    copy = folder / "altered"
    shutil.copytree(PACKAGE, copy / "strongroom", ignore=shutil.ignore_patterns("__pycache__"))
    victim = copy / "strongroom" / "service.py"
    victim.write_text(victim.read_text() + "\n# ... and a copy of every input for the operator\n")
    return copy


def flip_one_bit(state: Path) -> list[tuple[Path, int]]:
    """Flips the lowest bit of the middle byte of the two largest sealed files: a model, and what was prepared of it.
    One of them alone would do no harm: the other is loaded.
    """
    files = sorted((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flipped = []
    for sealed in files[-2:]:
        data = bytearray(sealed.read_bytes())
        at = len(data) // 2
        data[at] ^= 1
        sealed.write_bytes(data)
        flipped.append((sealed, at))
    return flipped


# -- the story


def write_config(folder: Path, name: str, *, state: Path) -> Path:
    """A minimal configuration file: the simulated TEE on a random free port."""
    config = folder / name
    config.write_text(
        f'platform = "simulated"\nbind = "127.0.0.1:0"\nstate_dir = "{state}"\n\n'
        f'[simulated]\nroot_key = "{folder / "sim-root.pem"}"\n'
    )
    return config


def run() -> None:
    """Runs the whole demonstration; raises where a step does not do what it says.

    Raises:
        Failure: a refusal did not happen, or a server did not start.
    """
    with tempfile.TemporaryDirectory(prefix="strongroom-demo-") as name:
        _story(Path(name))


def _story(folder: Path) -> None:
    say("Strongroom: confidential inference, with every party on this one machine.")
    say(
        "The TEE here is SIMULATED: it protects nothing from this machine's operator, and says so where it counts."
    )
    config = write_config(folder, "strongroom.toml", state=folder / "state")

    with serving(config) as server:
        head(1, "The operator starts a server")
        fact("listening on", server.url)
        policy = _appraise(folder, config, server)
        results, key = _upload_and_run(folder, server, policy)
    with serving(config) as server:
        _run_again(server, policy, key, results)
        _refuse_others(server, policy)
    _refuse_altered_code(folder, config, policy)
    _refuse_tampered_model(folder, config, policy, key, results[0][0])
    _farewell()


def _appraise(folder: Path, config: Path, server: Server) -> Path:
    from strongroom import config as settings
    from strongroom.attester import load_or_create_root, root_digest
    from strongroom.boot import planned_measurement

    head(2, "The data owner works out which code it will accept, and appraises the server's evidence")
    measurement = planned_measurement(settings.load(config, variables={}, base=folder))
    root = root_digest(load_or_create_root(folder / "sim-root.pem"))
    fact("measured offline", f"{measurement.digest}")
    fact("simulated root", root)
    policy = folder / "policy.toml"
    words = ["policy", "init", measurement.digest, "--root", root, "--out", str(policy)]
    subprocess.run([sys.executable, "-m", "strongroom.cli", *words], check=True, stdout=subprocess.DEVNULL)
    with strongroom.connect(server.url, policy=policy) as client:
        verdict = client.attestation
        show_checks(verdict)
        say(f"   verdict: accepted, {verdict.label}. Only now may anything leave the client.")
    return policy


Results = list[tuple[Job, np.ndarray[Any, Any]]]


def _upload_and_run(folder: Path, server: Server, policy: Path) -> tuple[Results, Path]:
    from strongroom.tokens import new_key_pem

    head(3, "The model owner uploads two models; they lie sealed on the operator's disk")
    key = folder / "owner.pem"
    key.write_bytes(new_key_pem())
    jobs = [file_type_job() or iris_job(), tumour_job(folder) or iris_job()]
    results: Results = []
    with strongroom.connect(server.url, policy=policy, key=key) as client:
        for job in jobs:
            model = client.upload_model(job.model, name=job.name, access="public")
            size, digest = job.model.stat().st_size, model.metadata["sha256"]
            fact(job.name, f"{job.what}, {size:,} bytes, SHA-256 {digest[:12]}...")
    head(4, "A data owner, who has no key, runs them on real data")
    with strongroom.connect(server.url, policy=policy) as client:
        for job in jobs:
            say(f"   {job.name}:")
            answer = np.asarray(client.model(job.name).run(job.inputs))
            job.show(answer)
            results.append((job, answer))
    return results, key


def _run_again(server: Server, policy: Path, key: Path, results: Results) -> None:
    head(5, "The server restarts: new keys, same code, so the sealed store opens again")
    fact("listening on", server.url)
    with strongroom.connect(server.url, policy=policy, key=key) as client:
        for job, before in results:
            after = np.asarray(client.model(job.name).run(job.inputs))
            if before.tobytes() != after.tobytes():
                raise errors.Failure("the restarted server answers differently", code="demo_answer_changed")
            fact(job.name, "the same answer, bit for bit")


def _refuse_others(server: Server, policy: Path) -> None:
    head(6, "Refusals, each actually happening")
    say("   a) A man in the middle with its own certificate, relaying the real server's evidence:")
    with interceptor(server.port) as (url, leaked):
        refused(lambda: strongroom.connect(url, policy=policy))
        fact("bytes it got", f"{leaked()} (besides the question for evidence)")
    say("   b) A production policy, shown simulated evidence:")
    refused(lambda: strongroom.connect(server.url, policy="production"))


def _refuse_altered_code(folder: Path, config: Path, policy: Path) -> None:
    say("   c) A server whose code was changed by one line:")
    code = altered_copy(folder)
    with serving(write_config(folder, "altered.toml", state=folder / "state-altered"), code=code) as other:
        refused(lambda: strongroom.connect(other.url, policy=policy))
    say("      The same code, pointed at the sealed store, cannot open it:")
    try:
        with serving(config, code=code):
            pass
    except errors.Failure as ended:
        say(f"   {ended.message.split(': ', 1)[1]}")
    else:
        raise errors.Failure("altered code opened the store", code="demo_not_refused")


def _refuse_tampered_model(folder: Path, config: Path, policy: Path, key: Path, job: Job) -> None:
    say("   d) One bit of a sealed model, and of its prepared form, flipped on the operator's disk:")
    for sealed, at in flip_one_bit(folder / "state"):
        fact("flipped", f"bit 0 of byte {at:,} of {sealed.name[:24]}")
    with serving(config) as server, strongroom.connect(server.url, policy=policy, key=key) as client:
        refused(lambda: client.model(job.name).run(job.inputs))


def _farewell() -> None:
    say()
    click.secho("Go on alone:", bold=True)
    say("   . .venv/bin/activate")
    say("   export STRONGROOM_PLATFORM=simulated   # no TEE here: protects nothing from the host")
    say("   strongroom serve                  # in one terminal; settings: docs/configuration.md")
    say("   strongroom policy init https://127.0.0.1:8443 --out policy.toml")
    say("   strongroom verify https://127.0.0.1:8443 --policy policy.toml")
    say("   strongroom keygen owner.pem")
    say("   export STRONGROOM_URL=https://127.0.0.1:8443")
    say("   export STRONGROOM_POLICY=policy.toml STRONGROOM_KEY=owner.pem")
    say("   strongroom upload examples/iris_model.json --name iris")
    say("   strongroom run iris examples/iris_rows.csv")
