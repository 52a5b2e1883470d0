"""The channel with real sockets: who is not who was verified gets no byte, and no key touches a disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import httpx
import pytest
from conftest import SHARED
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import ratls
from strongroom.attest.evidence import Evidence, boot_report_data
from strongroom.errors import CODES, Error, Failure, InvalidConfig, MalformedInput
from strongroom.ratls import Gate, LeafUnknown

NOW = datetime.now(UTC)


def identity(*hosts: str) -> ratls.ServerIdentity:
    return ratls.new_server_identity(
        hosts=hosts or ("localhost", "127.0.0.1"),
        evidence_format="sim",
        evidence=lambda data: Evidence("sim", b"evidence:" + data, ()),
        now=NOW,
        lifetime_s=3600,
    )


GENUINE = identity()
ATTACKER = identity()
PIN = ratls.spki_sha256(GENUINE.certificate_der)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A TLS server that counts: connections, handshakes that its side completed, and application bytes."""

    def __init__(self, *contexts: ssl.SSLContext) -> None:
        self.contexts = contexts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}/"
        self.connections = 0
        self.bytes_by_context = dict.fromkeys(contexts, 0)
        self.ended: list[str] = []
        self.sessions: list[ssl.SSLSession] = []
        self.threads = [threading.Thread(target=self._accept)]

    @property
    def application_bytes(self) -> int:
        return sum(self.bytes_by_context.values())

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                tcp, _ = self.listener.accept()
                context = self.contexts[self.connections % len(self.contexts)]
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(tcp, context))
                self.threads.append(thread)
                thread.start()

    def _serve(self, tcp: socket.socket, context: ssl.SSLContext) -> None:
        tcp.settimeout(10)
        try:
            with context.wrap_socket(tcp, server_side=True) as tls:
                while data := tls.recv(65536):
                    self.bytes_by_context[context] += len(data)
                    tls.sendall(ANSWER)
            self.ended.append("closed")
        except OSError as exc:
            tcp.close()
            self.ended.append(str(getattr(exc, "reason", type(exc).__name__)))

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(15)


@contextmanager
def peer(*contexts: ssl.SSLContext) -> Iterator[Peer]:
    here = Peer(*contexts)
    here.threads[0].start()
    try:
        yield here
    finally:
        here.close()


def old_context(who: ratls.ServerIdentity, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    """A server as libraries make them: any version, tickets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = who.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with ratls._in_memory(ssl.DER_cert_to_PEM_cert(who.certificate_der).encode(), pem) as paths:
        context.load_cert_chain(*paths)
    for name, value in versions.items():
        setattr(context, name, value)
    return context


def get_sync(context: ssl.SSLContext, url: str) -> str:
    with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
        return client.post(url, content=b"secret model").text


def get_async(context: ssl.SSLContext, url: str) -> str:
    async def run() -> str:
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=10) as client:
            return (await client.post(url, content=b"secret model")).text

    return asyncio.run(run())


def get_plain(context: ssl.SSLContext, url: str) -> str:
    port = int(url.split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), 10) as tcp, context.wrap_socket(tcp) as tls:
        tls.sendall(b"secret model")
        return tls.recv(4096).decode().rpartition("\n")[2]


CLIENTS: dict[str, Callable[[ssl.SSLContext, str], str]] = {
    "httpx": get_sync,
    "httpx async": get_async,
    "ssl socket": get_plain,
}
everywhere = pytest.mark.parametrize("get", CLIENTS.values(), ids=CLIENTS)


def refusal(get: Callable[[ssl.SSLContext, str], str], context: ssl.SSLContext, url: str) -> LeafUnknown:
    """Our refusal, out of whatever the client wrapped it in."""
    with pytest.raises((httpx.ConnectError, LeafUnknown)) as caught:
        get(context, url)
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, LeafUnknown):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None
    return cause


# --- the gate -----------------------------------------------------------------------------------------------


@everywhere
def test_a_verified_server_is_talked_to(get: Callable[[ssl.SSLContext, str], str]) -> None:
    """With its pin, and while learning."""
    with peer(ratls.server_context(GENUINE)) as server:
        assert get(Gate.pinned(PIN).client_context(), server.url) == "ok"
        gate = Gate()
        assert gate.learning and gate.leaf is None
        assert get(gate.client_context(), server.url) == "ok"
        assert gate.learning and gate.leaf == GENUINE.certificate_der


@everywhere
def test_a_man_in_the_middle_gets_no_application_byte(get: Callable[[ssl.SSLContext, str], str]) -> None:
    """Another certificate: refused inside the handshake, counted at the attacker's own TLS server."""
    with peer(old_context(ATTACKER)) as attacker:
        refused = refusal(get, Gate.pinned(PIN).client_context(), attacker.url)
        assert refused.code == "leaf_unknown"
        assert refused.spki_sha256 == ratls.spki_sha256(ATTACKER.certificate_der)
    assert attacker.connections == 1 and attacker.application_bytes == 0


@everywhere
def test_a_copy_of_the_certificate_without_its_key_is_of_no_use(
    get: Callable[[ssl.SSLContext, str], str],
) -> None:
    """Same names and dates, another key: what is pinned is the key."""
    with peer(ratls.server_context(identity())) as attacker:
        assert refusal(get, Gate.pinned(PIN).client_context(), attacker.url).code == "leaf_unknown"
    assert attacker.application_bytes == 0


@everywhere
def test_a_learning_gate_learns_one_leaf(get: Callable[[ssl.SSLContext, str], str]) -> None:
    """The second server is refused although nothing is pinned yet."""
    gate = Gate()
    with peer(ratls.server_context(GENUINE)) as server, peer(ratls.server_context(ATTACKER)) as other:
        get(gate.client_context(), server.url)
        assert refusal(get, gate.client_context(), other.url).code == "leaf_unknown"
        assert gate.leaf == GENUINE.certificate_der
    assert other.application_bytes == 0


@everywhere
def test_a_second_connection_that_lands_on_another_server_is_refused(
    get: Callable[[ssl.SSLContext, str], str],
) -> None:
    """A balancer in front of two servers, one of them verified: the other one gets nothing, in any order."""
    first, second = ratls.server_context(GENUINE), ratls.server_context(ATTACKER)
    context = Gate.pinned(PIN).client_context()
    with peer(first, second) as balancer:
        assert get(context, balancer.url) == "ok"
        assert refusal(get, context, balancer.url).code == "leaf_unknown"
        assert get(context, balancer.url) == "ok"
    assert balancer.bytes_by_context[second] == 0 < balancer.bytes_by_context[first]


@everywhere
def test_a_server_of_tls_1_2_is_refused(get: Callable[[ssl.SSLContext, str], str]) -> None:
    """The context offers nothing else than 1.3, so the handshake itself fails."""
    old = old_context(GENUINE, maximum_version=ssl.TLSVersion.TLSv1_2)
    with peer(old) as server, pytest.raises((httpx.ConnectError, ssl.SSLError)):
        get(Gate.pinned(PIN).client_context(), server.url)
    assert server.application_bytes == 0


def test_the_gate_itself_refuses_tls_1_2() -> None:
    """Also where somebody loosened the context."""
    gate = Gate.pinned(PIN)
    context = gate.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with peer(old_context(GENUINE, maximum_version=ssl.TLSVersion.TLSv1_2)) as server:
        assert refusal(get_plain, context, server.url).code == "tls_version"
    assert server.application_bytes == 0


def test_a_resumed_session_is_refused() -> None:
    """Resumption shows no certificate: the library would go on reporting the old one."""
    context = Gate.pinned(PIN).client_context()
    with peer(old_context(GENUINE)) as server:  # with tickets, which our own servers never issue
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, 10) as tcp, context.wrap_socket(tcp) as tls:
            tls.sendall(b"hello")
            tls.recv(4096)
            session = tls.session
        assert session is not None and session.has_ticket
        before = server.application_bytes
        with socket.create_connection(address, 10) as tcp, pytest.raises(LeafUnknown) as caught:
            context.wrap_socket(tcp, session=session)
    assert caught.value.code == "tls_session_reused"
    assert server.application_bytes == before


def test_writing_around_the_handshake_is_refused() -> None:
    """OpenSSL shakes hands by itself when written to; the gate would not have been asked."""
    context = Gate.pinned(PIN).client_context()
    with peer(ratls.server_context(ATTACKER)) as attacker:
        address = ("127.0.0.1", attacker.port)
        with (
            socket.create_connection(address, 10) as tcp,
            context.wrap_socket(tcp, do_handshake_on_connect=False) as tls,
        ):
            for write in (tls.send, tls.sendall, tls.write):
                with pytest.raises(LeafUnknown) as caught:
                    write(b"secret")
                assert caught.value.code == "leaf_unchecked"
        tls_object = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
        with pytest.raises(LeafUnknown):
            tls_object.write(b"secret")
    assert attacker.application_bytes == 0


def leaf_with(key: Any, *, algorithm: Any) -> bytes:
    """A self-signed certificate of any kind of key."""
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


CHECKS: dict[str, tuple[dict[str, Any], str]] = {
    "TLS 1.2": ({"version": "TLSv1.2"}, "tls_version"),
    "no TLS version": ({"version": None}, "tls_version"),
    "resumed": ({"reused": True}, "tls_session_reused"),
    "no certificate": ({"der": None}, "leaf_missing"),
    "empty certificate": ({"der": b""}, "leaf_missing"),
    "no DER": ({"der": b"0\x82"}, "leaf_malformed"),
    "byte behind": ({"der": GENUINE.certificate_der + b"\0"}, "leaf_malformed"),
    "RSA": (
        {"der": leaf_with(rsa.generate_private_key(65537, 2048), algorithm=SHA256())},
        "leaf_unsupported",
    ),
    "P-384": (
        {"der": leaf_with(ec.generate_private_key(ec.SECP384R1()), algorithm=SHA256())},
        "leaf_unsupported",
    ),
    "Ed25519": ({"der": leaf_with(ed25519.Ed25519PrivateKey.generate(), algorithm=None)}, "leaf_unsupported"),
    "another key": ({"der": ATTACKER.certificate_der}, "leaf_unknown"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_of_the_gate(name: str) -> None:
    """One fault each; the same call without the fault passes."""
    fault, code = CHECKS[name]
    right: dict[str, Any] = {"version": "TLSv1.3", "reused": False, "der": GENUINE.certificate_der}
    gate = Gate.pinned(PIN)
    gate.check(**right)
    with pytest.raises(LeafUnknown) as caught:
        gate.check(**{**right, **fault})
    assert caught.value.code == code and code in CODES
    assert isinstance(caught.value, ssl.SSLError) and isinstance(caught.value, Error)
    assert str(caught.value) == caught.value.message


def test_pins_are_a_bounded_set() -> None:
    """Eight; the oldest makes room, one that is pinned again is young again."""
    pins = [f"{n:064x}" for n in range(8)]
    gate = Gate.pinned(*pins)
    gate.pin(pins[0])
    gate.pin("f" * 64)
    assert gate.pins == (*pins[2:], pins[0], "f" * 64) and len(gate.pins) == ratls.MAX_PINS


def test_learning_ends_for_good() -> None:
    """Whoever takes the last pin away closes the gate; it does not begin to believe strangers again."""
    gate = Gate()
    gate.pin(PIN)
    gate.unpin(PIN)
    assert not gate.learning and gate.pins == ()
    with pytest.raises(LeafUnknown):
        gate.check(version="TLSv1.3", reused=False, der=GENUINE.certificate_der)
    with pytest.raises(LeafUnknown):
        Gate.pinned().check(version="TLSv1.3", reused=False, der=GENUINE.certificate_der)


@pytest.mark.parametrize("pin", ["", "a", "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_a_pin_is_a_digest(pin: str) -> None:
    """An empty or shortened pin would match nothing, or too much somewhere else."""
    with pytest.raises(ValueError, match="hex"):
        Gate().pin(pin)


def test_one_first_leaf_also_under_threads() -> None:
    """Of many connections at once, the leaves of one server pass and those of the others do not."""
    gate = Gate()
    leaves = [identity().certificate_der for _ in range(4)]
    passed: list[bytes] = []
    start = threading.Barrier(16)

    def ask(der: bytes) -> None:
        start.wait()
        with suppress(LeafUnknown):
            gate.check(version="TLSv1.3", reused=False, der=der)
            passed.append(der)

    threads = [threading.Thread(target=ask, args=(leaves[n % 4],)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(passed) == {gate.leaf} and len(passed) == 4


# --- the server's context -----------------------------------------------------------------------------------


def trusting_client(**changes: Any) -> ssl.SSLContext:
    """A client that takes anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def test_a_client_of_tls_1_2_is_refused() -> None:
    """By the listening context and by that of the epoch."""
    context = ratls.server_context(GENUINE)
    for listening in (context, ratls.EpochListener(context).context):
        with peer(listening) as server, pytest.raises(ssl.SSLError):
            get_plain(trusting_client(maximum_version=ssl.TLSVersion.TLSv1_2), server.url)
        assert server.application_bytes == 0


def test_no_session_can_be_resumed_here() -> None:
    """No tickets are issued, on either context, so there is nothing to offer."""
    for listening in (
        ratls.server_context(GENUINE),
        ratls.EpochListener(ratls.server_context(GENUINE)).context,
    ):
        context = trusting_client()
        with (
            peer(listening) as server,
            socket.create_connection(("127.0.0.1", server.port), 10) as tcp,
            context.wrap_socket(tcp) as tls,
        ):
            tls.sendall(b"hello")
            tls.recv(4096)
            assert tls.version() == "TLSv1.3"
            assert tls.session is None or not tls.session.has_ticket


@pytest.mark.slow
def test_sslkeylogfile_is_ignored_by_both_ends(tmp_path: Path) -> None:
    """The host may set it for the server, anybody for the client: neither writes session secrets anywhere."""
    log = tmp_path / "keys.log"
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import ssl, test_ratls as t\n"
        "with t.peer(t.ratls.EpochListener(t.ratls.server_context(t.GENUINE)).context) as server:\n"
        "    print(t.get_sync(t.Gate.pinned(t.PIN).client_context(), server.url))\n"
        "    print(t.get_async(t.Gate.pinned(t.PIN).client_context(), server.url))\n"
        "    print(ssl.create_default_context().keylog_filename)"
    )
    here = Path(__file__).resolve()
    run = subprocess.run(
        [sys.executable, "-c", script, str(here.parent), str(here.parents[1])],
        env={**os.environ, "SSLKEYLOGFILE": str(log)},
        capture_output=True,
        text=True,
        check=True,
    )
    # The last line shows that the variable was there to be honoured: the function that we do not use did.
    assert run.stdout.split() == ["ok", "ok", str(log)]
    assert not log.exists() or not [line for line in log.read_text().splitlines() if not line.startswith("#")]


def descriptors_open() -> int:
    """How many descriptors this process has; 0 where that cannot be seen."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "pipes"])
def test_the_key_is_never_on_a_disk(memfd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that Python opens, and every path that OpenSSL is given: none on a disk, none left open."""
    if memfd and not hasattr(os, "memfd_create"):
        pytest.skip("not exercised here: this system has no memfd_create")
    if not memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened: list[str] = []
    loaded: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    genuine = ssl.SSLContext.load_cert_chain

    def load_cert_chain(context: ssl.SSLContext, certfile: str, keyfile: str) -> None:
        loaded.extend([certfile, keyfile])
        genuine(context, certfile, keyfile)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    sys.addaudithook(watch)  # cannot be removed: it is switched off below
    before = descriptors_open()
    try:
        context = ratls.server_context(GENUINE)
    finally:
        watching = False
    assert all(path.startswith(("/proc/self/fd/", "/dev/fd/")) for path in loaded) and len(loaded) == 2
    assert opened == [] and list(tmp_path.iterdir()) == []
    assert descriptors_open() == before
    monkeypatch.undo()
    with peer(context) as server:
        assert get_plain(Gate.pinned(PIN).client_context(), server.url) == "ok"


def test_the_key_file_lives_in_memory() -> None:
    """What OpenSSL reads is an anonymous memory file; afterwards it is gone."""
    if not hasattr(os, "memfd_create"):
        pytest.skip("not exercised here: this system has no memfd_create")
    with ratls._in_memory(b"one", b"two") as paths:
        for path, content in zip(paths, (b"one", b"two"), strict=True):
            assert str(Path(path).readlink()).startswith("/memfd:") and Path(path).read_bytes() == content
    assert not any(Path(path).exists() and Path(path).read_bytes() == b"two" for path in paths)


def test_pipes_take_more_than_they_hold_and_do_not_wait_for_ever() -> None:
    """A certificate with large evidence goes through; a reader that gives up leaves no thread behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "memfd_create", raising=False)
        with ratls._in_memory(b"x" * 300_000) as (path,):
            assert len(Path(path).read_bytes()) == 300_000
        threads = threading.active_count()
        with ratls._in_memory(b"x" * 300_000):
            pass
        assert threading.active_count() == threads


def test_a_library_os_without_memfd_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function exists and the system call does not."""

    def missing(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", missing, raising=False)
    with peer(ratls.server_context(GENUINE)) as server:
        assert get_plain(Gate.pinned(PIN).client_context(), server.url) == "ok"


def test_the_key_does_not_show() -> None:
    """Neither in the identity's text nor as an attribute of the context."""
    assert "PrivateKey" not in repr(GENUINE) and "key=" not in repr(GENUINE)


# --- epochs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "localhost", "127.0.0.1", "unknown.example"])
def test_every_connection_knows_its_epoch(name: str | None) -> None:
    """Also without SNI, which clients do not send for an address; a swap changes only later connections."""
    new = identity()
    epochs = ratls.EpochListener(ratls.server_context(GENUINE))
    first = epochs.current
    seen: list[ssl.SSLContext] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            seen.append(writer.get_extra_info("ssl_object").context)
            writer.write(b"x")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=epochs.context)
        port = server.sockets[0].getsockname()[1]

        async def connect(who: ratls.ServerIdentity) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            context = Gate.pinned(ratls.spki_sha256(who.certificate_der)).client_context()
            return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")

        async def ask(link: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
            link[1].write(b"?")
            await link[0].readexactly(1)

        old_link = await connect(GENUINE)
        await ask(old_link)
        epochs.swap(ratls.server_context(new))
        new_link = await connect(new)
        await ask(new_link)
        await ask(old_link)
        for _, writer in (old_link, new_link):
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    asyncio.run(run())
    assert seen == [first, epochs.current, first] and first is not epochs.current


def test_a_swap_during_handshakes_never_mixes_epochs() -> None:
    """Many connections while epochs change: the key shown is always that of the context named."""
    identities = [identity() for _ in range(3)]
    contexts = [ratls.server_context(who) for who in identities]
    key_of = {
        context: ratls.spki_sha256(who.certificate_der)
        for context, who in zip(contexts, identities, strict=True)
    }
    epochs = ratls.EpochListener(contexts[0])
    named: list[str] = []
    shown: list[str] = []

    async def run() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(key_of[writer.get_extra_info("ssl_object").context].encode())
            writer.close()

        async def connect() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting_client())
            der = writer.get_extra_info("ssl_object").getpeercert(True)
            named.append((await reader.read()).decode())
            shown.append(ratls.spki_sha256(der))
            writer.close()

        async def rotate() -> None:
            for turn in range(60):
                epochs.swap(contexts[turn % 3])
                await asyncio.sleep(0)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=epochs.context)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(rotate(), *(connect() for _ in range(30)))
        server.close()
        await server.wait_closed()

    asyncio.run(run())
    assert named == shown and len(named) == 30


# --- the certificate ----------------------------------------------------------------------------------------


def test_the_certificate_is_what_the_specification_says() -> None:
    """P-256, SAN, serverAuth, and non-critical boot-time evidence for exactly this key."""
    asked: list[bytes] = []

    def evidence(data: bytes) -> Evidence:
        asked.append(data)
        return Evidence("sim", b"E" * 100, ())

    made = ratls.new_server_identity(
        hosts=("example.org", "10.0.0.1", "::1"),
        evidence_format="sim",
        evidence=evidence,
        now=NOW,
        lifetime_s=7200,
    )
    certificate = x509.load_der_x509_certificate(made.certificate_der)
    assert asked == [boot_report_data(spki=made.spki)]
    assert made.spki == ratls.spki_of(made.certificate_der)
    assert made.evidence.data == b"E" * 100
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    dice = certificate.extensions.get_extension_for_oid(ratls.DICE_EVIDENCE)
    assert not dice.critical
    tag = cbor2.loads(dice.value.public_bytes())
    assert tag.tag == 60000 and tag.value[0] == b"E" * 100
    said = cbor2.loads(tag.value[1])
    assert cbor2.loads(said["pubkey-hash"]) == [1, hashlib.sha256(made.spki).digest()]
    assert said["format"] == b"sim"
    assert certificate.not_valid_after_utc - NOW < timedelta(hours=2)
    found = ratls.parse_boot_evidence(made.certificate_der)
    assert found.data == b"E" * 100 and dict(found.claims)["format"] == b"sim"


def test_evidence_that_fits_into_no_handshake_is_a_fault_at_start() -> None:
    """OpenSSL's clients end the handshake above 100 KiB: a server that nobody could connect to does not start."""

    def identity(size: int) -> ratls.ServerIdentity:
        return ratls.new_server_identity(
            hosts=("127.0.0.1", "localhost"),
            evidence_format="sim",
            evidence=lambda _: Evidence("sim", bytes(size), ()),
            now=datetime.now(UTC),
            lifetime_s=3600,
        )

    with pytest.raises(Failure):
        identity(ratls.MAX_CERTIFICATE)
    large = identity(ratls.MAX_CERTIFICATE - 600)
    assert 95 * 1024 < len(large.certificate_der) <= ratls.MAX_CERTIFICATE
    with peer(ratls.server_context(large)) as server:
        gate = Gate.pinned(ratls.spki_sha256(large.certificate_der))
        assert get_sync(gate.client_context(), server.url) == "ok"


def test_a_tool_that_attests_nothing_can_still_connect(tmp_path: Path) -> None:
    """The certificate as only anchor, with host name or address and strict checks, as curl --cacert does."""
    anchor = ssl.DER_cert_to_PEM_cert(GENUINE.certificate_der)
    context = ssl.create_default_context(cadata=anchor)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with peer(ratls.server_context(GENUINE)) as server:
        assert get_sync(context, server.url) == "ok"
        assert get_sync(context, server.url.replace("127.0.0.1", "localhost")) == "ok"


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("",),
        ("a b",),
        ("*.example.org",),
        ("exämple.org",),
        ("-a",),
        ("a/b",),
        ("a" * 60 + "_b",),
        ("a..b",),
    ],
)
def test_hosts_that_are_none_are_refused(hosts: tuple[str, ...]) -> None:
    """The configuration is at fault."""
    with pytest.raises(InvalidConfig):
        ratls.new_server_identity(
            hosts=hosts,
            evidence_format="sim",
            evidence=lambda data: Evidence("sim", data, ()),
            now=NOW,
            lifetime_s=60,
        )


def certificate_with(value: bytes | None, *, key: Any = None) -> bytes:
    """A certificate with this attestation extension, or without."""
    key = key or GENUINE.key
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    if value is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(ratls.DICE_EVIDENCE, value), critical=False
        )
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


HASH = cbor2.dumps([1, hashlib.sha256(GENUINE.spki).digest()])
SAID = {"pubkey-hash": HASH}


def extension(
    said: Any = SAID, *, tag: int = 60000, data: object = b"E", more: tuple[object, ...] = ()
) -> bytes:
    inner = said if isinstance(said, bytes) else cbor2.dumps(said)
    return cbor2.dumps(cbor2.CBORTag(tag, [data, inner, *more]))


EXTENSIONS: dict[str, tuple[bytes | None, str]] = {
    "none": (None, "ratls_extension"),
    "empty": (b"", "ratls_extension"),
    "another tag": (extension(tag=60001), "ratls_extension"),
    "no tag": (extension()[3:], "ratls_extension"),
    "three parts": (extension(more=(b"",)), "ratls_extension"),
    "evidence as text": (extension(data="E"), "ratls_extension"),
    "bytes behind": (extension() + b"\0", "ratls_extension"),
    "cut": (extension()[:-1], "ratls_extension"),
    "claims not a map": (extension(cbor2.dumps([])), "ratls_extension"),
    "claims with bytes behind": (extension(cbor2.dumps(SAID) + b"\0"), "ratls_extension"),
    "no pubkey-hash": (extension({"format": b"sim"}), "ratls_extension"),
    "pubkey-hash twice": (
        extension(b"\xa2" + cbor2.dumps(SAID)[1:] + cbor2.dumps(SAID)[1:]),
        "ratls_extension",
    ),
    "pubkey-hash as number": (extension({"pubkey-hash": 1}), "ratls_extension"),
    "a billion claims": (extension(b"\xba\x3b\x9a\xca\x00"), "ratls_extension"),
    "indefinite length": (b"\xd9\xea\x60\x9f\x41E\x41E\xff", "ratls_extension"),
    "SHA-384": (extension({"pubkey-hash": cbor2.dumps([7, b"h" * 48])}), "ratls_extension"),
    "hash with bytes behind": (extension({"pubkey-hash": HASH + b"\0"}), "ratls_extension"),
    "hash of another key": (
        extension({"pubkey-hash": cbor2.dumps([1, hashlib.sha256(ATTACKER.spki).digest()])}),
        "ratls_key_mismatch",
    ),
    "short hash": (extension({"pubkey-hash": cbor2.dumps([1, b""])}), "ratls_key_mismatch"),
}


def test_the_plain_extension_is_read() -> None:
    """The one that the refused ones differ from."""
    assert ratls.parse_boot_evidence(certificate_with(extension())).data == b"E"


@pytest.mark.parametrize("name", EXTENSIONS)
def test_each_malformed_extension_is_refused(name: str) -> None:
    """One fault each."""
    value, code = EXTENSIONS[name]
    with pytest.raises(MalformedInput) as caught:
        ratls.parse_boot_evidence(certificate_with(value))
    assert caught.value.code == code and code in CODES


def test_an_extension_moved_into_another_certificate_is_refused() -> None:
    """Evidence for one key does not speak for another."""
    with pytest.raises(MalformedInput) as caught:
        ratls.parse_boot_evidence(certificate_with(extension(), key=ATTACKER.key))
    assert caught.value.code == "ratls_key_mismatch"


def test_a_foreign_certificate_with_unknown_claims_is_read() -> None:
    """A recorded RA-TLS certificate of another project: tag, claims and key hash are understood alike."""
    path = SHARED / "evidence" / "ra-tls" / "rats-tls-extra-claims" / "certificate.der"
    if not path.exists():
        pytest.skip("not exercised here: recorded RA-TLS certificates are not beside this checkout")
    found = ratls.parse_boot_evidence(path.read_bytes())
    assert len(found.data) == 4734 and {"key_0", "key_1"} < dict(found.claims).keys()


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_extension_is_read_or_refused(value: bytes) -> None:
    """A value or `strongroom.errors.Error`, nothing else."""
    with suppress(Error):
        ratls.parse_extension(value)
    with suppress(Error):
        ratls.parse_extension(extension(value))


@given(st.integers(0, len(GENUINE.certificate_der) - 1), st.binary(max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_certificate_is_read_or_refused(at: int, other: bytes) -> None:
    """With a few bytes exchanged it is a key or our error; the gate lets none through but its own."""
    der = GENUINE.certificate_der[:at] + other + GENUINE.certificate_der[at + len(other) + 1 :]
    with suppress(Error):
        assert len(ratls.spki_of(der)) == 91
    with suppress(Error):
        ratls.parse_boot_evidence(der)
    with suppress(LeafUnknown):
        Gate.pinned(PIN).check(version="TLSv1.3", reused=False, der=der)
        assert ratls.spki_of(der) == GENUINE.spki


def test_the_client_side_does_not_need_the_server_extra() -> None:
    """Importing it loads neither cbor2 nor uvicorn."""
    script = (
        "import sys, strongroom.ratls; print([m for m in ('cbor2', 'uvicorn', 'jwt') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_key_names_agree() -> None:
    """The one name of a key: DER SPKI, in the certificate as in the key itself."""
    der = GENUINE.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert ratls.spki_of(GENUINE.certificate_der) == der
    assert ratls.spki_sha256(GENUINE.certificate_der) == hashlib.sha256(der).hexdigest()


def test_the_specification_names_codes_and_tests_that_exist() -> None:
    """Every code in docs/spec/channel.md is one of ours, and every attack's test is there."""
    repository = Path(__file__).resolve().parents[1]
    text = (repository / "docs" / "spec" / "channel.md").read_text(encoding="utf-8")
    codes = re.findall(r"`((?:auth|http|tls|leaf|ratls|answer|key|evidence|report_data)_[a-z_0-9]+)`", text)
    assert len(set(codes)) > 50 and set(codes) <= CODES.keys() | {"keyset_digest"}
    tests = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", text)
    assert len(tests) > 20
    for path, name in tests:
        assert f"def {name}(" in (repository / path).read_text(encoding="utf-8"), (path, name)
