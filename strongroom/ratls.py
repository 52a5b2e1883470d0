"""Both ends of the TLS channel: the server's identity and contexts, and the client's gate
(docs/spec/channel.md).

Rules
  - Trust comes from the pin of a key that evidence was verified for, never from a certificate authority, a
    host name or a validity date: the host controls names and clocks.
  - The gate decides inside the handshake of *this very* connection, before one byte of the application
    leaves.
  - Both ends name the server's key with one function, `spki_of`; two would differ one day.
  - A private key is made in memory and handed to OpenSSL through memory: no path on a disk ever holds it.
  - `ssl.create_default_context` is not used anywhere: it honours SSLKEYLOGFILE, by which the host would name
    a file that receives the session secrets.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom.attest.cbor import ARRAY, TAG, encode_bytes, encode_head
from strongroom.attest.certificate import load_x509
from strongroom.attest.evidence import Evidence, Leaf
from strongroom.attest.ratls_forms import (
    EVIDENCE_TAG,
    SHA256_ID,
    certificate_claims,
    certificate_report_data,
    parse_key_hash,
    parse_tagged_evidence,
)
from strongroom.errors import Failure, InvalidConfig, MalformedInput, Refused

MAX_PINS: Final = 8
"""Verified leaves that a pool holds at once (§3.7); the oldest makes room for a ninth."""
BACKDATE_S: Final = 3600
"""Seconds by which a certificate begins before it is made, for tools whose clocks lag; our client ignores
dates.
"""
MAX_CERTIFICATE: Final = 96 * 1024
"""Bytes of a server's certificate: clients over OpenSSL end the handshake where the certificate message passes 100 KiB.
"""
DICE_EVIDENCE: Final = x509.ObjectIdentifier("2.23.133.5.4.9")
"""TCG DICE conceptual message wrapper / tagged evidence (§2.4)."""

_P256_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""How the DER SPKI of every P-256 key in uncompressed form begins; 64 bytes of point follow."""
_LABEL = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\.?", re.ASCII)


# --- the one name of a server's key -------------------------------------------------------------------------


def spki_of(der: bytes) -> bytes:
    """Returns the DER SubjectPublicKeyInfo of the certificate `der`: what keyset, pin and evidence bind to
    (§3.5).

    Raises:
        MalformedInput: `leaf_malformed`, or `leaf_unsupported` where the key is not P-256 in its one
        spelling.
    """
    spki = Leaf(der).spki()
    if len(spki) != len(_P256_SPKI) + 64 or not spki.startswith(_P256_SPKI):
        raise MalformedInput("leaf: expected an ECDSA P-256 key, got another kind", code="leaf_unsupported")
    return spki


def spki_sha256(der: bytes) -> str:
    """Returns the hex SHA-256 of `spki_of(der)`: the form in which keys are pinned.

    Raises:
        MalformedInput: see `spki_of`.
    """
    return hashlib.sha256(spki_of(der)).hexdigest()


# --- the client's side --------------------------------------------------------------------------------------


class LeafUnknown(Refused, ssl.SSLError):
    """The handshake was refused before any application data: this is not a connection that was verified.

    An `ssl.SSLError`, so that every HTTP client closes the socket and wraps it as a failure to connect.
    `code` says why; `spki_sha256` (hex) names the key that was presented, None where it could not be read.
    """

    code = "leaf_unknown"

    def __init__(self, message: str, *, code: str, spki_sha256: str | None = None) -> None:
        super().__init__(message, code=code)
        self.spki_sha256 = spki_sha256
        self.library = "STRONGROOM"
        self.reason = code.upper()  # some clients read these two of any SSLError

    def __str__(self) -> str:
        return self.message


class Gate:
    """Decides inside each handshake whether this client talks to that key at all (§3). Thread-safe.

    | state    | a leaf passes if                                        | left by                     |
    |----------|---------------------------------------------------------|-----------------------------|
    | learning | none came before, or it is the very one that came first | `pin`; never entered again  |
    | pinned   | its SPKI is among the pins                              | –                           |

    In both states: TLS 1.3, and a full handshake (a resumed one shows the certificate of another connection).
    A gate begins by learning, with the one connection on which evidence is asked for; what passes then is
    *unverified*, so nothing but that request may be sent before `pin`. `Gate.pinned` makes one that never
    learns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._learning = True
        self._leaf: bytes | None = None
        self._pins: dict[str, None] = {}  # a dict because it keeps order: the oldest pin makes room

    @classmethod
    def pinned(cls, *spki_sha256: str) -> Gate:
        """Returns a gate with these pins (perhaps none: it then refuses everything) that never learns."""
        gate = cls()
        gate._learning = False
        for pin in spki_sha256:
            gate.pin(pin)
        return gate

    @property
    def learning(self) -> bool:
        """Whether nothing was ever pinned."""
        return self._learning

    @property
    def leaf(self) -> bytes | None:
        """The certificate (DER) of the connection that was learnt from; None before it."""
        return self._leaf

    @property
    def pins(self) -> tuple[str, ...]:
        """The pinned keys, hex SHA-256 of their SPKI, oldest first."""
        with self._lock:
            return tuple(self._pins)

    def pin(self, spki_sha256: str) -> None:
        """Lets the key with this SPKI hash (64 hex characters) pass from now on, and ends learning.

        Only what `attest.verify` returned for a `Leaf` may be pinned.
        """
        if re.fullmatch(r"[0-9a-f]{64}", spki_sha256, re.ASCII) is None:
            raise ValueError("a pin is the lower-case hex SHA-256 of an SPKI")
        with self._lock:
            self._learning = False
            self._pins.pop(spki_sha256, None)
            self._pins[spki_sha256] = None
            while len(self._pins) > MAX_PINS:
                del self._pins[next(iter(self._pins))]

    def unpin(self, spki_sha256: str) -> None:
        """Stops new connections to the key, for example because its verdict expired. Learning does not begin
        again.
        """
        with self._lock:
            self._pins.pop(spki_sha256, None)

    def check(self, *, version: str | None, reused: bool, der: bytes | None) -> None:
        """Returns if a connection of this TLS `version` that presented the certificate `der` may carry data.

        1. TLS 1.3 (§3.1): below it, tickets and renegotiation weaken what the handshake proves.
        2. Not resumed: a resumed session presents no certificate, and the library shows the old one.
        3. A leaf was presented, and its key is P-256.
        4. The table of the class.

        Raises:
            LeafUnknown: `tls_version`, `tls_session_reused`, `leaf_missing`, `leaf_malformed`,
            `leaf_unsupported` or
                `leaf_unknown`.
        """
        if version != "TLSv1.3":
            raise LeafUnknown(f"expected TLSv1.3, got {version}", code="tls_version")
        if reused:
            raise LeafUnknown("expected a full handshake, got a resumed session", code="tls_session_reused")
        if not der:
            raise LeafUnknown("expected a certificate, got none", code="leaf_missing")
        try:
            presented = spki_sha256(der)
        except MalformedInput as exc:
            raise LeafUnknown(exc.message, code=exc.code) from exc
        with self._lock:
            if self._learning:
                if self._leaf is None:
                    self._leaf = der
                known = hmac.compare_digest(self._leaf, der)
            else:
                known = presented in self._pins
        if not known:
            raise LeafUnknown(
                f"the server's key {presented} is not one that was verified; nothing was sent",
                code="leaf_unknown",
                spki_sha256=presented,
            )

    def client_context(self) -> ssl.SSLContext:
        """Returns a context for any client of the standard library's TLS, every connection of which passes
        this gate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # see Rules: names and authorities are the host's to arrange
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.sslsocket_class, context.sslobject_class = _gated_classes(self)
        return context


def _gated_classes(gate: Gate) -> tuple[type[ssl.SSLSocket], type[ssl.SSLObject]]:
    """The connection classes (blocking, and over memory buffers as asyncio uses it) that ask `gate`.

    Writing checks too: OpenSSL shakes hands by itself when it is written to first, which would go around the
    gate.
    """

    def ask(connection: ssl.SSLSocket | ssl.SSLObject) -> None:
        gate.check(
            version=connection.version(),
            reused=bool(connection.session_reused),
            der=connection.getpeercert(binary_form=True),
        )

    def refuse_unchecked(checked: bool) -> None:
        if not checked:
            raise LeafUnknown("the handshake was not checked yet", code="leaf_unchecked")

    class GatedSocket(ssl.SSLSocket):
        _checked = False

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            ask(self)
            self._checked = True

        def send(self, data: Any, flags: int = 0) -> int:
            refuse_unchecked(self._checked)
            return super().send(data, flags)

        def write(self, data: Any) -> int:
            refuse_unchecked(self._checked)
            return super().write(data)

    class GatedObject(ssl.SSLObject):
        _checked = False

        def do_handshake(self) -> None:
            super().do_handshake()
            ask(self)
            self._checked = True

        def write(self, data: Any) -> int:
            refuse_unchecked(self._checked)
            return super().write(data)

    return GatedSocket, GatedObject


# --- the server's side --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The TLS key of one epoch, its self-signed certificate (DER), its SPKI (DER), and the boot-time evidence
    in it.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate_der: bytes
    spki: bytes
    evidence: Evidence


def new_server_identity(
    *,
    hosts: tuple[str, ...],
    evidence_format: str,
    evidence: Callable[[bytes], Evidence],
    now: datetime,
    lifetime_s: int,
) -> ServerIdentity:
    """Makes a new P-256 key and its certificate, with evidence for exactly that key in it (§1.1, §2.4).

    `hosts`: DNS names and IP addresses for the SAN, which only tools that attest nothing look at. `evidence`:
    called with 64 bytes of report data, makes evidence of the format `evidence_format`. `now` is aware; the
    certificate ends `lifetime_s` seconds after it.

    Raises:
        InvalidConfig: no host, or one that is neither a DNS name nor an IP address.
        Failure: the evidence is of another format, or too large for a certificate.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    boot = evidence(certificate_report_data(evidence_format, spki=spki))
    if boot.format != evidence_format:  # its report data would be those of another form
        raise Failure(f"boot-time evidence: expected format {evidence_format}, got {boot.format}")
    dice = x509.UnrecognizedExtension(DICE_EVIDENCE, encode_boot_evidence(boot, spki=spki))
    der = _self_signed(key, hosts=hosts, now=now, lifetime_s=lifetime_s, extensions=(dice,))
    if len(der) > MAX_CERTIFICATE:  # better no server than one that nobody can connect to
        raise Failure(
            f"boot-time evidence of {len(boot.data)} bytes: a certificate of {len(der)} bytes, and at most "
            f"{MAX_CERTIFICATE} reach a client"
        )
    return ServerIdentity(key=key, certificate_der=der, spki=spki, evidence=boot)


def plain_server_context(*, hosts: tuple[str, ...], now: datetime, lifetime_s: int) -> ssl.SSLContext:
    """Returns the TLS context of a server that attests nothing, with a key and a self-signed certificate of its own
    that say nothing either: who talks to it has to know it by something else (docs/spec/key-release.md §5).

    Raises:
        InvalidConfig: no host, or one that is neither a DNS name nor an IP address.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    der = _self_signed(key, hosts=hosts, now=now, lifetime_s=lifetime_s, extensions=())
    return _keyed_context(key, der)


def _self_signed(
    key: ec.EllipticCurvePrivateKey,
    *,
    hosts: tuple[str, ...],
    now: datetime,
    lifetime_s: int,
    extensions: tuple[x509.ExtensionType, ...],
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "strongroom")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + timedelta(seconds=lifetime_s))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(hosts)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension in extensions:  # not critical: tools that do not know them must still connect
        certificate = certificate.add_extension(extension, critical=False)
    return certificate.sign(key, SHA256()).public_bytes(Encoding.DER)


def _general_names(hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if _DNS_NAME.fullmatch(host) is None:
                raise InvalidConfig(f"host {host!r}: expected a DNS name or an IP address") from None
            names.append(x509.DNSName(host))
    if not names:
        raise InvalidConfig("hosts: expected at least one DNS name or IP address")
    return names


def server_context(identity: ServerIdentity) -> ssl.SSLContext:
    """Returns the TLS context of one epoch: TLS 1.3 only, no tickets (so nothing to resume), key from memory
    (§1).
    """
    return _keyed_context(identity.key, identity.certificate_der)


def _keyed_context(key: ec.EllipticCurvePrivateKey, certificate_der: bytes) -> ssl.SSLContext:
    context = _bare_server_context()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = ssl.DER_cert_to_PEM_cert(certificate_der).encode("ascii")
    with _in_memory(certificate, pem) as (certificate_path, key_path):
        context.load_cert_chain(certificate_path, key_path)
    return context


def _bare_server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


@contextlib.contextmanager
def _in_memory(*contents: bytes) -> Iterator[tuple[str, ...]]:
    """Paths under which OpenSSL can read each of `contents` once, none of which is on a disk.

    A memfd where there is one, else pipes (a library OS may lack memfd_create, macOS does). While they are
    open, a process of the same user can read them through /proc, so they are closed at once.
    """
    with contextlib.ExitStack() as stack:
        try:
            paths = tuple(_memfd(content, stack) for content in contents)
        except (AttributeError, OSError):  # no such function, or no such system call
            paths = tuple(_pipe(content, stack) for content in contents)
        yield paths


def _fd_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}" if Path("/proc/self/fd").is_dir() else f"/dev/fd/{fd}"


def _memfd(content: bytes, stack: contextlib.ExitStack) -> str:
    fd = os.memfd_create("strongroom")
    stack.callback(os.close, fd)
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(content)
    return _fd_path(fd)


def _pipe(content: bytes, stack: contextlib.ExitStack) -> str:
    reading, writing = os.pipe()

    def write() -> None:
        # A thread, since a certificate with evidence in it can be larger than a pipe holds. The reader may
        # have gone.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write, daemon=True)
    stack.callback(thread.join)
    stack.callback(os.close, reading)  # runs first: it ends a writer that nobody listens to
    thread.start()
    return _fd_path(reading)


class EpochListener:
    """The context to listen with: each new connection is handed to the context of the epoch that is current
    (§1.3).

    A connection keeps that context for its whole life, and `ssl_object.context` says which it is, so evidence
    for an old connection is made with the old epoch's keyset. There is no moment in between: the key that
    signs the handshake comes from the very object that names the epoch, and the listening context has no key
    of its own.
    """

    def __init__(self, current: ssl.SSLContext) -> None:
        self._current = current
        self.context: Final = _bare_server_context()
        # OpenSSL calls it for every handshake, also for clients that name no server (an IP address, for
        # example).
        self.context.sni_callback = self._choose

    @property
    def current(self) -> ssl.SSLContext:
        """The context that new connections get."""
        return self._current

    def swap(self, context: ssl.SSLContext) -> None:
        """Makes `context` the current epoch's; connections that exist go on with theirs."""
        self._current = context

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current


# --- the attestation extension ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BootEvidence:
    """Evidence out of a certificate, unverified and without a nonce: it proves nothing about now (§2.4)."""

    data: bytes
    claims: tuple[tuple[str, bytes], ...]


def encode_boot_evidence(evidence: Evidence, *, spki: bytes) -> bytes:
    """Returns the extension's value: CBOR tag 60000 of `[evidence, claims]`, the claims a CBOR map in a byte
    string (`ratls_forms.certificate_claims`).
    """
    inner = encode_bytes(evidence.data) + encode_bytes(certificate_claims(evidence.format, spki=spki))
    return encode_head(TAG, EVIDENCE_TAG) + encode_head(ARRAY, 2) + inner


def parse_boot_evidence(der: bytes) -> BootEvidence:
    """Returns the evidence in the certificate `der`, whose `pubkey-hash` is that of the certificate's own
    key.

    Raises:
        MalformedInput: `leaf_malformed`, `ratls_extension` or `ratls_key_mismatch`.
    """
    extensions = load_x509(der, what="leaf", code="leaf_malformed").extensions
    try:
        value = extensions.get_extension_for_oid(DICE_EVIDENCE).value.public_bytes()
    except x509.ExtensionNotFound as exc:
        raise MalformedInput("leaf: no attestation extension", code="ratls_extension") from exc
    found = parse_extension(value)
    algorithm, digest = parse_key_hash(dict(found.claims)["pubkey-hash"])
    if algorithm != SHA256_ID:
        raise MalformedInput("leaf: pubkey-hash: expected a SHA-256", code="ratls_extension")
    if not hmac.compare_digest(digest, hashlib.sha256(Leaf(der).spki()).digest()):
        raise MalformedInput("leaf: the attestation extension names another key", code="ratls_key_mismatch")
    return found


def parse_extension(value: bytes) -> BootEvidence:
    """Returns what the extension's value says; see `encode_boot_evidence`. Unknown claims are kept.

    Raises:
        MalformedInput: `ratls_extension`.
    """
    found = parse_tagged_evidence(value)
    return BootEvidence(data=found.evidence, claims=found.claims)
