"""Fuzz targets of the trust documents: evidence answer, keyset, simulated evidence, verification, leaf,
policy.

Oracle: a value or a `strongroom.errors.Error`, nothing else. Where there is more to say, the target says it:
a keyset that was read encodes to the same bytes; evidence that was accepted is the genuine one; a policy that
was read is written and read back as the same; the empty or altered one never accepts more.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom import attest
from strongroom.attest import sim
from strongroom.attest.batch import Inclusion, Single, Tree, batch_report_data, leaf_hash
from strongroom.attest.bundle import Bundle, encode_bundle, parse_bundle
from strongroom.attest.evidence import (
    Absent,
    Evidence,
    EvidenceAnswer,
    Leaf,
    NoChannel,
    encode_answer,
    parse_answer,
    report_data,
)
from strongroom.attest.keyset import Key, Keyset, SecurityConfiguration, encode_keyset, parse_keyset
from strongroom.attest.policy import NAMED_POLICIES, lint, parse_policy, policy_for_measurement, render_policy
from strongroom.attest.releases import PAYLOAD_TYPE, verify_release
from strongroom.attest.replay import Bundled, appraise_bundle
from strongroom.errors import Error

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NONCE = bytes(range(32))
ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
TLS = ec.derive_private_key(12345, ec.SECP256R1())
MEASUREMENT = "ab" * 32


def _spki(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


KEYSET = encode_keyset(
    Keyset(
        keys=(Key("tls", "ECDSA-P256", _spki(TLS)), Key("receipt", "Ed25519", _spki(ROOT))),
        not_after=int(NOW.timestamp()) + 3600,
        store_id="00" * 16,
        binding="spki",
        security=SecurityConfiguration(
            sealing="simulated",
            host_excluded=False,
            isolation="in_process",
            sandbox=("no_dumps",),
            admission="structural",
            anonymous_upload=False,
            verify_on_load="tags",
            logging="no_content",
        ),
    )
)
EVIDENCE = sim.issue(
    root_key=ROOT,
    measurement=MEASUREMENT,
    svn=1,
    report_data=report_data(nonce=NONCE, keyset_bytes=KEYSET),
    now=NOW,
)
ANSWER = encode_answer(EvidenceAnswer(Evidence("sim", EVIDENCE, (("a.pem", b"x"),)), KEYSET, Single()))
TREE = Tree(tuple(leaf_hash(nonce=bytes([n]) * 32, keyset_bytes=KEYSET) for n in range(7)))
BATCHED = EvidenceAnswer(
    Evidence(
        "sim",
        sim.issue(
            root_key=ROOT,
            measurement=MEASUREMENT,
            svn=1,
            report_data=batch_report_data(root=TREE.root),
            now=NOW,
        ),
        (),
    ),
    KEYSET,
    TREE.inclusion(6),
)
BATCHED_ANSWER = encode_answer(BATCHED)
ROOT_DIGEST = sim.root_digest(ROOT.public_key())
POLICY_TEXT = policy_for_measurement(MEASUREMENT, root=ROOT_DIGEST, now=NOW)
POLICY = parse_policy(POLICY_TEXT)
HARDWARE = NAMED_POLICIES["production"] + (
    f'[[nitro]]\nmeasurements = ["{MEASUREMENT}"]\nsigners = ["{MEASUREMENT}"]\nproducts = [1]\nmin_svn = 1\n'
    'tcb_statuses = ["UpToDate"]\naccepted_advisories = ["INTEL-SA-00615"]\nmax_evidence_age_s = 60\n'
)
# A self-signed P-256 certificate: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj
# /CN=a`
CERTIFICATE = bytes.fromhex(
    "3082016d30820113a00302010202142f3f8f084b99ec0bb9aea541becec270bec004e3300a06082a8648ce3d040302300c31"
    "0a300806035504030c0161301e170d3236313132333137323432395a170d3336313132303137323432395a300c310a300806"
    "035504030c01613059301306072a8648ce3d020106082a8648ce3d030107034200041d00d964721034d6802472606b9cbade"
    "97fc565ed80d8ab9dff8553b7a24fda6c4d4ecf1640ef0d547c1575ac172e55bd6ec7a5fabea57eecb591e2bf6724934a353"
    "3051301d0603551d0e041604149aaee84624af1b309dd5a00b74d063599a812cb9301f0603551d230418301680149aaee846"
    "24af1b309dd5a00b74d063599a812cb9300f0603551d130101ff040530030101ff300a06082a8648ce3d0403020348003045"
    "0221009013963927210e24f6928a0bafd36763ee13f199181fafdd77395bc2f321c05202206814bcbcd3c10307d7763c02bd"
    "7d7b4a96a3b64b727734cbb05aece0ff799daf"
)

_NAME = x509.Name([])
LEAF = (
    x509.CertificateBuilder(_NAME, _NAME, TLS.public_key(), 1, NOW, NOW)
    .sign(TLS, SHA256())
    .public_bytes(Encoding.DER)
)
BUNDLE = encode_bundle(
    Bundle(
        answer=ANSWER,
        endorsements=(("a.pem", b"x"),),
        nonce=NONCE,
        leaf=CERTIFICATE,
        policy=POLICY_TEXT,
        verified_at=NOW,
        origin="https://host.example",
        software="strongroom/0",
    )
)

SEEDS = {
    "fuzz_bundle": (BUNDLE,),
    "fuzz_bundled_answer": (ANSWER, b"{}"),
    "fuzz_evidence_answer": (ANSWER, BATCHED_ANSWER, b"{}"),
    "fuzz_batched_answer": (BATCHED_ANSWER,),
    "fuzz_keyset": (KEYSET,),
    "fuzz_sim_evidence": (EVIDENCE,),
    "fuzz_verify_evidence": (EVIDENCE,),
    "fuzz_verify_keyset": (KEYSET,),
    "fuzz_leaf": (CERTIFICATE,),
    "fuzz_policy": (POLICY_TEXT.encode(), HARDWARE.encode()),
}


def fuzz_evidence_answer(data: bytes) -> None:
    """An answer that was read means the same after writing it."""
    try:
        answer = parse_answer(data)
    except Error:
        return
    assert parse_answer(encode_answer(answer)) == answer


def fuzz_bundle(data: bytes) -> None:
    """A bundle has one spelling: what was read encodes to the very same bytes."""
    try:
        bundle = parse_bundle(data)
    except Error:
        return
    assert encode_bundle(bundle) == data


def fuzz_bundled_answer(data: bytes) -> None:
    """Whatever answer is in a bundle: a verdict, and one that passes only for the genuine evidence and keyset."""
    bundle = replace(parse_bundle(BUNDLE), answer=data, leaf=LEAF, endorsements=())
    verdict = appraise_bundle(bundle, policy=Bundled(), now=Bundled())
    if verdict.passed:
        answer = parse_answer(data)
        assert (answer.evidence.format, answer.evidence.data, answer.keyset) == ("sim", EVIDENCE, KEYSET)


def fuzz_batched_answer(data: bytes) -> None:
    """An altered answer of a batch is accepted only where it still says the same: the same evidence and keyset, and
    the same hashes on the same sides of the way to the root.
    """
    try:
        answer = parse_answer(data)
        attest.verify(
            answer.evidence,
            POLICY,
            nonce=bytes([6]) * 32,
            keyset_bytes=answer.keyset,
            inclusion=answer.inclusion,
            channel=NoChannel("fuzzing"),
            endorsements=(),
            now=NOW,
        )
    except Error:
        return
    assert (answer.evidence.data, answer.keyset) == (BATCHED.evidence.data, BATCHED.keyset)
    assert isinstance(answer.inclusion, Inclusion)
    assert isinstance(BATCHED.inclusion, Inclusion)
    assert answer.inclusion.path == BATCHED.inclusion.path


def fuzz_keyset(data: bytes) -> None:
    """A keyset has one spelling: what was read encodes to the very same bytes."""
    try:
        keyset = parse_keyset(data)
    except Error:
        return
    assert encode_keyset(keyset) == data


def fuzz_sim_evidence(data: bytes) -> None:
    """Nothing raises, and claims come only out of the document that the root signed."""
    found = sim.examine_sim(data, endorsements=(), roots=(ROOT_DIGEST,), now=NOW)
    assert isinstance(found.claims, Absent) or data == EVIDENCE


def fuzz_verify_evidence(data: bytes) -> None:
    """Only the genuine evidence is accepted."""
    _verify(data, KEYSET)


def fuzz_verify_keyset(data: bytes) -> None:
    """Only the keyset that the evidence speaks of is accepted."""
    _verify(EVIDENCE, data)


def _verify(evidence: bytes, keyset: bytes) -> None:
    try:
        attest.verify(
            Evidence("sim", evidence, ()),
            POLICY,
            nonce=NONCE,
            keyset_bytes=keyset,
            inclusion=Single(),
            channel=NoChannel("fuzzing"),
            endorsements=(),
            now=NOW,
        )
    except Error:
        return
    assert (evidence, keyset) == (EVIDENCE, KEYSET)


def fuzz_leaf(data: bytes) -> None:
    """The key of a certificate, or our error."""
    try:
        spki = Leaf(data).spki()
    except Error:
        return
    assert len(hashlib.sha256(spki).digest()) == 32


def fuzz_release(data: bytes) -> None:
    """A manifest that verifies under the key of nobody is none; a payload that the key did sign is read or refused."""
    name = ROOT.public_key().public_bytes_raw().hex()
    try:
        verify_release(data, keys=(name,), now=NOW)
    except Error:
        pass
    else:
        raise AssertionError("a manifest that nobody signed was accepted")
    kind = PAYLOAD_TYPE.encode()
    signature = ROOT.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(data), data))
    envelope = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    try:
        release = verify_release(json.dumps(envelope).encode(), keys=(name,), now=NOW)
    except Error:
        return
    assert release.issued < release.expires


def fuzz_policy(data: bytes) -> None:
    """A policy that was read lints, and is written and read back as the same policy."""
    try:
        policy = parse_policy(data.decode("utf-8", "replace"))
    except Error:
        return
    assert lint(policy, NOW)
    assert parse_policy(render_policy(policy, heading="fuzzed")) == policy
