"""The whole server as a process of its own, over TLS: start, restart, refusals at the door, load, and hygiene."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import venv
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from plane import ALICE, content_digest, linear_onnx
from serving import Serving, clean_environment, serving, snapshot, start

from strongroom import boot, config, models, server
from strongroom.attest.evidence import parse_answer
from strongroom.attest.keyset import keyset_digest
from strongroom.errors import InvalidConfig, SealRefused
from strongroom.models.info import STANDARD_LIMITS
from strongroom.tokens import Action, issue_token

pytestmark = pytest.mark.slow

ROW = np.arange(4, dtype=np.float32)


def tls() -> ssl.SSLContext:
    """A client context that checks nothing: these tests are about the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Caller:
    """A caller over HTTP that makes its own tokens; no retries, no patience."""

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        kept = httpx.Limits(keepalive_expiry=120)
        self.http = httpx.Client(base_url=url, verify=tls(), trust_env=False, timeout=timeout, limits=kept)
        weakref.finalize(self, self.http.close)
        answer = parse_answer(self.http.get("/v1/evidence", params={"nonce": "ab" * 32}).content)
        self.digest = keyset_digest(answer.keyset)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: Any = ALICE,
        changes: bool = False,
        **headers: str,
    ) -> httpx.Response:
        """One request, with a token of `key`."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            nonce = self.http.get("/v2/health/live").headers["strongroom-nonce"]
            action = Action(method, path, hashlib.sha256(body).hexdigest()) if changes else None
            token = issue_token(
                key, keyset_digest=self.digest, nonce=nonce, now=int(time.time()), action=action
            )
            fields["Authorization"] = f"Bearer {token}"
        return self.http.request(method, path, content=body, headers=fields)

    def put(self, name: str, data: bytes, *, access: str = "private", key: Any = ALICE) -> httpx.Response:
        """Uploads an ONNX model."""
        fields = {
            "Content_Digest": content_digest(data),
            "Strongroom_Format": "onnx",
            "Strongroom_Access": access,
        }
        return self.request("PUT", f"/v1/models/{name}", data, key=key, changes=True, **fields)

    def run(self, name: str, *, key: Any = ALICE, row: Any = ROW) -> httpx.Response:
        """Runs a model on one row, in JSON."""
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": np.asarray(row).tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        return self.request("POST", f"/v2/models/{name}/infer", body, key=key)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for the tests that leave it as it was: anonymous uploads, small limits."""
    settings = """
    [security]
    anonymous_upload = true
    [limits]
    model_bytes = 2_000_000
    request_bytes = 100_000
    concurrent_requests = 4
    concurrent_uploads = 1
    evidence_per_minute = 100_000
    body_idle_s = 2
    header_deadline_s = 2
    """
    with serving(tmp_path_factory.mktemp("shared"), settings=settings) as running:
        yield running


@pytest.fixture
def caller(shared: Serving) -> Caller:
    """Somebody who talks to the shared server."""
    return Caller(shared.url)


# Start and end


def planned(running: Serving, code: Path) -> str:
    """The measurement that somebody else computes from the same code and configuration, without the server."""
    program = (
        "import sys; from pathlib import Path; from strongroom import config, models, server\n"
        "print(server.planned_measurement(config.load_config(Path(sys.argv[1]))).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(running.config_path)],
        cwd=code,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_what_was_acknowledged_runs_after_a_restart(tmp_path: Path) -> None:
    """Upload, run, stop, start, run: with the same measurement and the same root."""
    code = snapshot(tmp_path / "code")
    with serving(tmp_path, cwd=code) as running:
        caller = Caller(running.url)
        assert caller.put("m", linear_onnx()).status_code == 201
        assert caller.run("m").json()["outputs"][0]["data"] == (2 * ROW).tolist()
        assert running.stop() == 0
        assert "SIMULATED" in running.output()
    with serving(tmp_path, cwd=code) as again:
        assert (again.measurement, again.root_sha256) == (running.measurement, running.root_sha256)
        assert Caller(again.url).run("m").json()["outputs"][0]["data"] == (2 * ROW).tolist()


def test_the_measurement_is_the_one_computed_offline(tmp_path: Path) -> None:
    """Also with another path, port and limits, which decide nothing; other code has another one."""
    code = snapshot(tmp_path / "code")
    with serving(tmp_path / "server", settings="[limits]\nmodels = 7", cwd=code) as running:
        assert planned(running, code) == running.measurement
        elsewhere = snapshot(tmp_path / "elsewhere")
        for file in (elsewhere / "strongroom").rglob("*.py"):
            file.write_bytes((code / file.relative_to(elsewhere)).read_bytes())
        assert planned(running, elsewhere) == running.measurement
        with (elsewhere / "strongroom" / "service.py").open("a") as file:
            file.write("# and a copy for the operator\n")
        assert planned(running, elsewhere) != running.measurement


def test_the_store_of_a_stopped_server_can_be_checked(tmp_path: Path) -> None:
    """`check_store` opens it with the same code and configuration, and finds a flipped bit."""
    variables = {"STRONGROOM_STATE_DIR": "state", "STRONGROOM_PLATFORM": "simulated"}
    settings = config.load(None, variables=variables, base=tmp_path)
    with pytest.raises(InvalidConfig):
        server.check_store(settings)
    _made(settings.root_key_path)
    here = server._machine(settings, server.planned_measurement(settings).digest, launched="")
    with server._open_store(settings, here, boot.security_configuration(settings)) as store:
        admitted = models.admit(linear_onnx(), format="onnx", limits=STANDARD_LIMITS)
        with store.begin(name="m", owner="", access="public", format="onnx", max_bytes=1 << 20) as upload:
            upload.write(linear_onnx())
            upload.seal()
            upload.commit(info=admitted.info, canonical_sha256=admitted.canonical_sha256)
    assert all(result.passed for result in server.check_store(settings))
    (file,) = (tmp_path / "state" / "store" / "data").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert [result.passed for result in server.check_store(settings)].count(False) == 1


def test_a_root_key_is_not_made_anew_beside_a_store(tmp_path: Path) -> None:
    """A lost key is said to be lost, and no other lies where the backup belongs."""
    variables = {"STRONGROOM_STATE_DIR": "state", "STRONGROOM_PLATFORM": "simulated"}
    settings = config.load(None, variables=variables, base=tmp_path)
    _made(settings.root_key_path)
    here = server._machine(settings, "ab" * 32, launched="")
    server._open_store(settings, here, boot.security_configuration(settings)).close()
    settings.root_key_path.unlink()
    for action in (
        lambda: server._machine(settings, "ab" * 32, launched=""),
        lambda: server.check_store(settings),
    ):
        with pytest.raises(InvalidConfig) as caught:
            action()
        assert caught.value.code == "root_key_missing"
    assert not settings.root_key_path.exists()


def test_a_preloaded_file_changed_after_the_measurement_is_refused(tmp_path: Path) -> None:
    """The host swaps the file between measuring and admitting: the server does not start with it."""
    file = tmp_path / "m.onnx"
    file.write_bytes(linear_onnx())
    settings = config.load(None, variables={}, base=tmp_path)
    entry = config.Preload(name="m", path=str(file))
    measured = hashlib.sha256(linear_onnx()).hexdigest()
    assert server.preload(entry, settings, measured=measured, admit=models.admit).model.sha256 == measured
    file.write_bytes(linear_onnx(factor=9))
    with pytest.raises(SealRefused) as caught:
        server.preload(entry, settings, measured=measured, admit=models.admit)
    assert caught.value.code == "preload_changed"


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def test_the_client_library_attests_uploads_and_runs(tmp_path: Path) -> None:
    """The SDK accepts this server with a policy that names it."""
    import strongroom
    from strongroom.tokens import new_key_pem

    (tmp_path / "key.pem").write_bytes(new_key_pem())
    (tmp_path / "m.onnx").write_bytes(linear_onnx())
    with serving(tmp_path / "server") as running:
        policy = running.write_policy(tmp_path / "policy.toml")
        with strongroom.connect(running.url, policy=policy, key=tmp_path / "key.pem") as client:
            client.upload_model(tmp_path / "m.onnx", name="m")
            assert client.model("m").predict(ROW.reshape(1, 4)).tolist() == [(2 * ROW).tolist()]


def test_another_configuration_cannot_open_the_store(tmp_path: Path) -> None:
    """A host that flips an attested setting has another measurement and gets a refusal, exit code 10."""
    with serving(tmp_path) as running:
        assert Caller(running.url).put("m", linear_onnx()).status_code == 201
    with pytest.raises(RuntimeError, match=r"ended with 10(?s:.*)store_other_"):
        start(tmp_path, settings="[security]\nanonymous_upload = true")


def test_a_second_server_on_the_same_store_does_not_start(tmp_path: Path) -> None:
    """The first goes on; the folders of the second are not left behind."""
    with serving(tmp_path) as running:
        with pytest.raises(RuntimeError, match="store_locked"):
            start(tmp_path)
        assert Caller(running.url).http.get("/health").status_code == 200
        assert len(list(running.state_dir.glob("run-*"))) == 1
    assert list(running.state_dir.glob("run-*")) == []


def test_requests_under_way_are_finished_at_the_end(tmp_path: Path) -> None:
    """SIGTERM in the middle of an upload: it is completed and acknowledged, then the server ends with 0."""
    data = linear_onnx(note="x" * 3_000_000)
    with serving(tmp_path) as running:
        caller = Caller(running.url)
        started = threading.Event()

        def body() -> Iterator[bytes]:
            yield data[:1_500_000]
            started.set()
            time.sleep(0.5)
            yield data[1_500_000:]

        def stop() -> None:
            started.wait(30)
            running.process.send_signal(signal.SIGTERM)

        threading.Thread(target=stop).start()
        nonce = caller.http.get("/health").headers["strongroom-nonce"]
        action = Action("PUT", "/v1/models/m", hashlib.sha256(data).hexdigest())
        token = issue_token(
            ALICE, keyset_digest=caller.digest, nonce=nonce, now=int(time.time()), action=action
        )
        fields = {
            "Authorization": f"Bearer {token}",
            "Content-Digest": content_digest(data),
            "Strongroom-Format": "onnx",
        }
        assert caller.http.put("/v1/models/m", content=body(), headers=fields).status_code == 201
        assert running.process.wait(60) == 0


def test_preloaded_models_are_measured_and_public(tmp_path: Path) -> None:
    """From the configuration; another file is another measurement; a changed one is not served."""
    model = tmp_path / "shipped.onnx"
    model.write_bytes(linear_onnx())
    settings = f'[[preload]]\nname = "shipped"\npath = "{model}"\n'
    code = snapshot(tmp_path / "code")
    with serving(tmp_path / "server", settings=settings, cwd=code) as running:
        caller = Caller(running.url)
        model.write_bytes(linear_onnx(factor=9))
        response = caller.run("shipped", key=None)
        assert (response.status_code, response.json()["code"]) == (500, "preload_changed")
        model.write_bytes(linear_onnx())
        assert caller.run("shipped", key=None).json()["outputs"][0]["data"] == (2 * ROW).tolist()
        assert caller.put("shipped", linear_onnx()).json()["code"] == "model_reserved"
        assert planned(running, code) == running.measurement
        model.write_bytes(linear_onnx(factor=9))
        assert planned(running, code) != running.measurement
    model.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="format_unknown"):
        start(tmp_path / "other", settings=settings)


def test_keys_change_before_their_end_and_old_connections_drain(tmp_path: Path) -> None:
    """New connections get the new key; an old one is answered, with its own keyset, and then closed."""
    with serving(tmp_path, settings="epoch_s = 10") as running:
        caller = Caller(running.url)
        assert caller.put("m", linear_onnx()).status_code == 201
        deadline = time.monotonic() + 40
        while (new := Caller(running.url)).digest == caller.digest and time.monotonic() < deadline:
            time.sleep(0.5)
        assert new.digest != caller.digest
        old = caller.http.get("/v1/evidence", params={"nonce": "cd" * 32})
        assert old.headers["connection"] == "close"
        assert keyset_digest(parse_answer(old.content).keyset) == caller.digest
        assert new.run("m").status_code == 200


# Refusals at the door


@contextlib.contextmanager
def raw(running: Serving) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to write bytes on."""
    plain = socket.create_connection((running.host, running.port), timeout=30)
    with tls().wrap_socket(plain, server_hostname="localhost") as connection:
        yield connection


def read_all(connection: ssl.SSLSocket) -> bytes:
    """Everything until the server ends the connection."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def test_a_chunked_body_larger_than_the_limit_is_refused_as_it_arrives(shared: Serving) -> None:
    """No Content-Length to believe: the bytes are counted, and the connection ends."""
    with raw(shared) as connection:
        connection.sendall(b"POST /model/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        data = linear_onnx(note="x" * 3_000_000)
        with contextlib.suppress(OSError):
            for at in range(0, len(data), 50_000):
                piece = data[at : at + 50_000]
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        answer = read_all(connection)
    assert b"413" in answer.split(b"\r\n")[0]
    assert b'"body_too_large"' in answer and b"connection: close" in answer.lower()


def test_a_declared_length_is_not_believed(shared: Serving, caller: Caller) -> None:
    """A huge one is not what is counted; a short one ends the body there; more bytes are no second request."""
    with raw(shared) as connection:
        body = b'{"features": [1]}'
        head = b"POST /model/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        connection.sendall(head + body)
        connection.settimeout(15)
        assert b"408" in read_all(connection).split(b"\r\n")[0]
    with raw(shared) as connection:
        smuggled = b"DELETE /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"POST /model/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
        connection.sendall(head + b"{1234" + smuggled)
        connection.settimeout(15)
        assert read_all(connection).count(b"HTTP/1.1 ") == 1


def test_nobody_is_told_to_continue_before_being_let_in(shared: Serving) -> None:
    """Expect: 100-continue is answered 401 without a key that is needed, and 100 where the body is wanted."""
    head = b"PUT /v1/models/n HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n"
    refused = head + b"Strongroom-Format: onnx\r\nStrongroom-Access: private\r\n"
    digest = content_digest(b"x").encode()
    with raw(shared) as connection:
        connection.sendall(refused + b"Content-Digest: " + digest + b"\r\n\r\n")
        answer = read_all(connection)
        assert b"anonymous_private" in answer and b"100 Continue" not in answer
    with raw(shared) as connection:
        data = linear_onnx()
        connection.sendall(
            b"POST /model/upload?name=continued HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(data)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(data)
        assert b"HTTP/1.1 201" in read_all(connection)


def test_slow_clients_do_not_hold_places(shared: Serving, caller: Caller) -> None:
    """Clients that send half a head or half a body are cut off; others are served meanwhile."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(raw(shared)) for _ in range(8)]
        for number, connection in enumerate(slow):
            head = b"POST /model/predict HTTP/1.1\r\nHost: x\r\n"
            connection.sendall(head if number % 2 else head + b"Content-Length: 100\r\n\r\n{")
        began = time.monotonic()
        assert caller.http.get("/health").status_code == 200
        for connection in slow:
            connection.settimeout(20)
            assert b"408" in read_all(connection).split(b"\r\n")[0]
        assert time.monotonic() - began < 20


def test_errors_show_nothing_of_the_inside(shared: Serving, caller: Caller) -> None:
    """Whatever is asked wrongly: no traceback, no path, no foreign exception's text."""
    for method, path, body in (
        ("POST", "/model/predict", b'{"features": ["secret"]}'),
        ("POST", "/model/upload", b"\x80\x04secret"),
        ("POST", "/model/upload", b"\x08\x08" + b"secret" * 50),
        ("POST", "/model/upload", b'{"learner": "secret"}'),
        ("GET", "/v1/evidence?nonce=secret", b""),
        ("GET", "/v1/models/%00", b""),
        ("GET", "/" + "a" * 900, b""),
    ):
        response = caller.http.request(method, path, content=body)
        assert 400 <= response.status_code < 500
        assert response.headers["content-type"] == "application/problem+json"
        for word in ("secret", "Traceback", "site-packages", ".py", "0x"):
            assert word not in response.text, (path, response.text)


# Load


def test_overload_is_refused_at_once_and_health_stays_green(shared: Serving, caller: Caller) -> None:
    """More requests than places: some are served, the others told when to come back; health and evidence answer."""
    assert caller.put("busy", linear_onnx(), access="public").status_code in (201, 409)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW.tolist()}]})

    async def crowd() -> tuple[list[httpx.Response], list[httpx.Response]]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=shared.url, verify=tls(), limits=limits, timeout=60) as client:

            async def slow() -> Any:
                yield body[:20].encode()
                await asyncio.sleep(1)
                yield body[20:].encode()

            async def later(path: str) -> httpx.Response:
                await asyncio.sleep(0.5)
                return await client.get(path)

            busy = [client.post("/v2/models/busy/infer", content=slow()) for _ in range(20)]
            calm = [
                later(path) for path in ("/health", "/v2/health/ready", "/v1/evidence?nonce=" + "ab" * 32)
            ]
            answers = await asyncio.gather(*busy, *calm)
            return list(answers[:20]), list(answers[20:])

    busy, calm = asyncio.run(crowd())
    statuses = [response.status_code for response in busy]
    assert statuses.count(200) == 4 and set(statuses) == {200, 503}
    for response in busy:
        if response.status_code == 503:
            assert response.json()["code"] == "overloaded" and int(response.headers["retry-after"]) >= 1
    assert [response.status_code for response in calm] == [200, 200, 200]
    assert caller.run("busy", key=None).status_code == 200


# Hygiene (what is written and whom it calls: test_trace.py)


def test_the_process_is_hardened(shared: Serving) -> None:
    """No core dumps, no new privileges, an empty folder, an allow-listed environment, no byte code written."""
    if sys.platform != "linux":
        pytest.skip("not exercised here: /proc is Linux's")
    proc = Path(f"/proc/{shared.pid}")
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    limits = (proc / "limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    folder = (proc / "cwd").readlink()
    assert list(folder.iterdir()) == []
    assert folder.parent.parent == shared.state_dir
    environment = (proc / "environ").read_bytes().split(b"\0")
    names = {entry.split(b"=")[0].decode() for entry in environment if entry}
    fixed = {
        "OPENSSL_CONF", "ORT_DISABLE_TELEMETRY", "MALLOC_PERTURB_", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "TSS2_LOG", "HOME", "MALLOC_MMAP_THRESHOLD_",
    }  # fmt: skip
    assert fixed <= names <= fixed | {"LANG", "LC_ALL"}
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in shared.state_dir.iterdir()} == {
        "store",
        "sim-root.pem",
        "sim-anchor.json",
        folder.parent.name,
    }


def test_what_the_host_plants_in_the_environment_has_no_effect(tmp_path: Path) -> None:
    """PYTHONPATH, sitecustomize, OPENSSL_CONF, SSLKEYLOGFILE, TMPDIR: nothing of it reaches the server."""
    planted, marker = tmp_path / "planted", tmp_path / "marker"
    planted.mkdir()
    evil = f"import sys\nif sys.flags.isolated: open({str(marker)!r}, 'a').write(__name__)\n"
    for name in ("sitecustomize", "usercustomize", "uvloop", "brotli"):
        (planted / f"{name}.py").write_text(evil)
    (planted / "openssl.cnf").write_text("not a configuration at all\n")
    environment = {
        "PYTHONPATH": str(planted),
        "OPENSSL_CONF": str(planted / "openssl.cnf"),
        "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
        "TMPDIR": str(planted),
    }
    # The launcher itself is an ordinary interpreter, and may stumble over the planted file: the server must not.
    with serving(tmp_path / "server", environment=environment) as running:
        caller = Caller(running.url)
        assert caller.put("m", linear_onnx()).status_code == 201
        assert caller.run("m").status_code == 200
    assert not marker.exists()
    assert not (tmp_path / "keys.log").exists()
    assert {path.name for path in planted.iterdir()} - {"__pycache__"} == {
        "sitecustomize.py", "usercustomize.py", "uvloop.py", "brotli.py", "openssl.cnf",
    }  # fmt: skip


PROVIDER = """
openssl_conf = all
[all]
providers = these
[these]
evil = evil_section
default = default_section
[default_section]
activate = 1
[evil_section]
module = {module}
activate = 1
"""


def test_a_provider_named_by_openssl_conf_is_not_loaded(tmp_path: Path) -> None:
    """OPENSSL_CONF runs a foreign library inside an ordinary isolated interpreter, and not inside the server."""
    found = sorted(Path("/usr/lib").glob("**/ossl-modules/legacy.so"))
    if not found or sys.platform != "linux":
        pytest.skip("not exercised here: no loadable OpenSSL provider to plant")
    module, conf = tmp_path / "evil.so", tmp_path / "openssl.cnf"
    module.write_bytes(found[0].read_bytes())
    conf.write_text(PROVIDER.format(module=module))
    program = "import ssl; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); print(open('/proc/self/maps').read())"
    environment = clean_environment({"OPENSSL_CONF": str(conf)})
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert str(module) in done.stdout  # the trap works
    with serving(tmp_path / "server", environment={"OPENSSL_CONF": str(conf)}) as running:
        assert Caller(running.url).put("m", linear_onnx()).status_code == 201
        assert str(module) not in Path(f"/proc/{running.pid}/maps").read_text()


@pytest.fixture(scope="module")
def own_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that sees this one's packages and a copy of ours, for planting things in."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    snapshot(site)
    theirs = Path(np.__file__).parents[1]
    (site / "packages.pth").write_text(f"{theirs}\n")
    return folder


def test_planted_pth_and_byte_code_have_no_effect(own_venv: Path, tmp_path: Path) -> None:
    """Also in a plain installation: `.pth` code and a doctored `.pyc` run in an ordinary interpreter only."""
    import importlib.util

    marker = tmp_path / "marker"
    (site,) = own_venv.glob("lib/python*/site-packages")
    line = f"import sys; sys.flags.isolated and open({str(marker)!r}, 'a').write('pth')\n"
    (site / "evil.pth").write_text(line)
    source = site / "strongroom" / "traffic.py"
    cached = Path(importlib.util.cache_from_source(str(source)))
    cached.parent.mkdir(exist_ok=True)
    program = tmp_path / "evil.py"
    program.write_text(f"{source.read_text()}\nopen({str(marker)!r}, 'a').write('pyc')\n")
    import py_compile

    py_compile.compile(
        str(program), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    python = own_venv / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", "import strongroom.traffic"], cwd=tmp_path, env=clean_environment(), timeout=60
    )
    assert done.returncode == 0 and marker.read_text() == "pyc"  # the trap works
    marker.unlink()
    command = (str(python), "-m", "strongroom.launch")
    with serving(tmp_path / "server", command=command, cwd=tmp_path) as running:
        assert Caller(running.url).http.get("/health").status_code == 200
    assert not marker.exists()


def test_an_unmeasured_optional_package_is_not_imported(own_venv: Path, tmp_path: Path) -> None:
    """A module that some dependency would import if it were there, planted among the packages: it is not there."""
    marker = tmp_path / "marker"
    (site,) = own_venv.glob("lib/python*/site-packages")
    for name in ("uvloop", "bcrypt", "brotlicffi", "zstandard", "socksio", "rich", "h2", "colorama"):
        (site / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    command = (str(own_venv / "bin" / "python"), "-m", "strongroom.launch")
    with serving(tmp_path / "server", command=command, cwd=tmp_path) as running:
        caller = Caller(running.url)
        assert caller.put("m", linear_onnx()).status_code == 201
    assert not marker.exists()


# Killed


def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """`kill -9` at random moments of uploads and deletions: what was acknowledged is there and runs, or is gone.

    A server takes seconds to start, so eight kills here (STRONGROOM_KILLS=20: more); test_store_kill.py does 220.
    """
    import random

    rng = random.Random(20261123)
    alive: dict[str, float] = {}
    gone: set[str] = set()
    unsure: dict[str, float] = {}
    serial = 0
    code = snapshot(tmp_path / "code")
    kills = int(os.environ.get("STRONGROOM_KILLS", "8"))
    settings = '[security]\nisolation = "in_process"'  # it is about the store, and starts sooner
    for _ in range(kills):
        running = start(tmp_path, settings=settings, cwd=code)
        caller = Caller(running.url)
        listed = {model["name"] for model in caller.request("GET", "/v1/models").json()["models"]}
        assert set(alive) <= listed <= set(alive) | set(unsure)
        assert not gone & listed
        for name, factor in [*alive.items(), *((n, f) for n, f in unsure.items() if n in listed)]:
            assert caller.run(name).json()["outputs"][0]["data"] == (factor * ROW).tolist(), name
            alive[name] = factor
        unsure = {}
        killer = threading.Timer(rng.uniform(0.0, 0.4), running.kill)
        killer.start()
        with contextlib.suppress(httpx.HTTPError):
            while True:
                serial += 1
                name, factor = f"m{serial}", float(serial)
                if len(alive) > 6 or (alive and rng.random() < 0.3):
                    victim = rng.choice(sorted(alive))
                    unsure = {victim: alive.pop(victim)}
                    assert caller.request("DELETE", f"/v1/models/{victim}", changes=True).status_code == 200
                    gone.add(victim)
                    unsure = {}
                unsure = {name: factor}
                data = linear_onnx(factor=factor, note="x" * rng.randrange(0, 3_000_000))
                assert caller.put(name, data).status_code == 201
                alive[name] = factor
                unsure = {}
        killer.join()
        assert running.process.returncode == -signal.SIGKILL
    assert serial > kills
    with serving(tmp_path, settings=settings, cwd=code) as running:
        results = Caller(running.url).request("GET", "/v1/models").json()["models"]
        assert {model["name"] for model in results} >= set(alive)
        files = list((running.state_dir / "store" / "data").iterdir())
        assert len(files) == len(results)
        assert len(list(running.state_dir.glob("run-*"))) == 1
