"""`enrol`: the client's exchange of credential activation, against a fake TPM behind a fake server."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))
import fake_tpm
from fake_tpm import CA, NOW, ROOT_DER, ROOT_DIGEST, Tpm

from strongroom.attest.batch import Single
from strongroom.attest.evidence import Evidence, EvidenceAnswer, encode_answer, report_data
from strongroom.attest.keyset import BINDING, ROLES, Key, Keyset, SecurityConfiguration, encode_keyset
from strongroom.attest.policy import parse_policy
from strongroom.attest.tpm import EK_ENDORSEMENT
from strongroom.attest.tpm_quote import qualifying_data
from strongroom.calls import Answer
from strongroom.enrol import Enrolled, enrol_flow
from strongroom.errors import AttestationRefused, Error, Unavailable
from strongroom.flow import Clock, Endpoint, NotSent, Open, Send, Unanswered, drive_to_end
from strongroom.ratls import Gate, new_server_identity

IDENTITY = new_server_identity(
    hosts=("localhost",),
    evidence_format="sim",
    evidence=lambda data: Evidence("sim", b"x", ()),
    now=NOW,
    lifetime_s=3600,
)
SECURITY = SecurityConfiguration(
    sealing="measurement",
    host_excluded=False,
    isolation="in_process",
    sandbox=(),
    admission="structural",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)
RECEIPT = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
KEYSET = encode_keyset(
    Keyset(
        keys=(
            Key("tls", ROLES["tls"], IDENTITY.spki),
            Key(
                "receipt",
                ROLES["receipt"],
                RECEIPT.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            ),
        ),
        not_after=int(NOW.timestamp()) + 3600,
        store_id="0" * 32,
        binding=BINDING,
        security=SECURITY,
    )
)
CLOCK = Clock(now=lambda: NOW, monotonic=lambda: 0.0)


@dataclass
class Server:
    """A server on a TPM; each field is one thing that it may do otherwise."""

    tpm: Tpm = field(default_factory=Tpm)
    format: str = "tpm"
    certificate: bytes | None = None
    nonce: bytes | None = None
    keyset: bytes = KEYSET
    leaf: bytes = IDENTITY.certificate_der
    secret: Callable[[Tpm, bytes, bytes], bytes] = lambda tpm, c, s: tpm.activate(c, s)
    answer: Callable[[bytes], Answer] | None = None
    asked: list[str] = field(default_factory=list)

    def perform(self, command: Any) -> Any:
        """Carries out the client's commands."""
        if isinstance(command, Open):
            gate = Gate()
            gate.check(version="TLSv1.3", reused=False, der=self.leaf)
            return Endpoint(gate=gate, link=None)
        assert isinstance(command, Send)
        self.asked.append(f"{command.request.method} {command.request.path}")
        if command.request.path == "/v1/evidence":
            return self._evidence(bytes.fromhex(command.request.query.removeprefix("nonce=")))
        body = json.loads(b"".join(command.request.body.chunks()))
        secret = self.secret(
            self.tpm, *(base64.b64decode(body[n]) for n in ("credential", "encrypted_secret"))
        )
        if self.answer is not None:
            return self.answer(secret)
        return Answer(200, {}, json.dumps({"secret": base64.b64encode(secret).decode()}).encode())

    def _evidence(self, nonce: bytes) -> Answer:
        data = report_data(nonce=self.nonce or nonce, keyset_bytes=self.keyset)
        tpm = self.tpm.but(qualifying=qualifying_data(data))
        members = json.loads(tpm.document)
        certificate = (
            base64.b64decode(members["ek_certificate"]) if self.certificate is None else self.certificate
        )
        document = fake_tpm.document({**members, "ek_certificate": ""})
        stapled = ((EK_ENDORSEMENT, certificate),) if certificate else ()
        evidence = Evidence(self.format, document, stapled)
        return Answer(200, {}, encode_answer(EvidenceAnswer(evidence, self.keyset, Single())))


def enrol(server: Server, *, roots: tuple[str, ...] = (ROOT_DIGEST,)) -> Enrolled:
    """The whole exchange."""
    count = iter(range(100))
    random = lambda size: hashlib.shake_256(bytes([next(count)])).digest(size)  # noqa: E731
    certificates = (("root", ROOT_DER), ("ca", CA.der()))
    return drive_to_end(enrol_flow(CLOCK, random, roots=roots, certificates=certificates), server.perform)


def refused(server: Server, **more: Any) -> str:
    """The code of the refusal."""
    with pytest.raises(Error) as caught:
        enrol(server, **more)
    assert isinstance(caught.value, AttestationRefused), caught.value
    return caught.value.code


def test_an_enrolled_key_is_what_the_policy_names() -> None:
    """The policy accepts this key and no root; one question and one credential were sent, nothing else."""
    server = Server()
    enrolled = enrol(server)
    assert enrolled.ak == server.tpm.ak_digest and enrolled.root == ROOT_DIGEST
    assert parse_policy(enrolled.policy).roots("tpm") == (server.tpm.ak_digest,)
    assert enrolled.attested.claims.fact("tpm.ak_bound_by") == "named"
    assert server.asked == ["GET /v1/evidence", "POST /v1/tpm/activate"]


@pytest.mark.parametrize(
    "secret",
    [
        lambda tpm, c, s: b"",
        lambda tpm, c, s: bytes(32),
        lambda tpm, c, s: tpm.activate(c, s)[:31],
        lambda tpm, c, s: tpm.activate(c, s) + b"\x00",
    ],
    ids=["none", "another", "short", "long"],
)
def test_a_server_that_does_not_know_the_secret_is_refused(secret: Any) -> None:
    """A certificate is public: whoever shows it has to open the credential."""
    assert refused(Server(secret=secret)) == "tpm_activation_failed"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"secret": 1}', b'{"secret": "?"}', b'{"other": ""}']
)
def test_an_answer_that_holds_no_secret_is_refused(body: bytes) -> None:
    """Whatever a stranger answers."""
    assert refused(Server(answer=lambda _: Answer(200, {}, body))) == "tpm_activation_failed"


def test_a_certificate_under_another_root_is_refused_before_anything_is_asked() -> None:
    """No credential is made for a TPM that nobody accepts."""
    server = Server()
    assert refused(server, roots=("00" * 32,)) == "root_not_accepted"
    assert server.asked == ["GET /v1/evidence"]


@pytest.mark.parametrize("certificate", [b"", b"no certificate", ROOT_DER])
def test_without_an_endorsement_certificate_there_is_nothing_to_tie(certificate: bytes) -> None:
    """None, none that can be read, or a CA's."""
    assert refused(Server(certificate=certificate)) in ("evidence_malformed", "tpm_certificate_refused")


def test_another_format_is_refused() -> None:
    """Hardware TEEs are not enrolled."""
    assert refused(Server(format="snp")) == "evidence_format_not_accepted"


@pytest.mark.parametrize(
    ("server", "code"),
    [
        (Server(nonce=bytes(32)), "report_data_mismatch"),
        (
            Server(
                leaf=new_server_identity(
                    hosts=("localhost",),
                    evidence_format="sim",
                    evidence=lambda d: Evidence("sim", b"x", ()),
                    now=NOW,
                    lifetime_s=60,
                ).certificate_der
            ),
            "channel_key_mismatch",
        ),
        (Server(keyset=KEYSET[:-1]), "keyset_malformed"),
    ],
    ids=["old evidence", "relayed evidence", "no keyset"],
)
def test_an_enrolled_key_still_has_to_speak_for_this_connection(server: Server, code: str) -> None:
    """The policy that was just written is applied to the very evidence."""
    assert refused(server) == code


@pytest.mark.parametrize("outcome", [NotSent("leaf_unknown", "x"), Unanswered("answer_late", "x")])
def test_a_connection_that_ends_is_unavailable(outcome: Exception) -> None:
    """Nothing was learnt about the TPM."""
    server = Server()

    def lost(_tpm: Tpm, _credential: bytes, _secret: bytes) -> bytes:
        raise outcome

    server.secret = lost
    with pytest.raises(Unavailable):
        enrol(server)


def test_a_servers_own_refusal_is_passed_on() -> None:
    """Its problem document says why."""
    problem = {
        "type": "about:blank",
        "title": "x",
        "status": 400,
        "detail": "no",
        "code": "tpm_activation_refused",
    }
    server = Server(
        answer=lambda _: Answer(
            400, {"content-type": "application/problem+json"}, json.dumps(problem).encode()
        )
    )
    with pytest.raises(Error) as caught:
        enrol(server)
    assert caught.value.code == "tpm_activation_refused"
