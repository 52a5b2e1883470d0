"""The certificate that our own server makes, of every format that it may run on, read by our own examiner of
certificates and by an independent reader.
"""

from __future__ import annotations

import dataclasses
import hashlib

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from platforms import (
    AZURE_SNP,
    NITRO,
    PLATFORMS,
    SGX,
    SNP,
    TDX4,
    TDX5,
    TPM_CERTIFIED,
    TPM_NAMED,
    Platform,
    codes,
    policy,
)
from worlds import NOW, p256, spki

from strongroom import ratls
from strongroom.attest import verifiers
from strongroom.attest.appraise import Asked, Nonce, NoReportData, ReportData, appraise
from strongroom.attest.evidence import NOT_MADE, Absent, Claims, Evidence, Examination, boot_report_data
from strongroom.attest.ratls_evidence import examine_certificate, examine_ratls
from strongroom.attest.ratls_forms import (
    INTEROPERABLE_FORMATS,
    certificate_claims,
    certificate_report_data,
)
from strongroom.attest.verifiers import VERIFIERS, carried, examiner
from strongroom.errors import Failure

every = pytest.mark.parametrize("platform", PLATFORMS, ids=repr)
SPKI = spki(p256("some key"))


def identity(platform: Platform, **changes: object) -> ratls.ServerIdentity:
    """The identity of a server on this platform, whose attester is the fake's."""

    def evidence(data: bytes) -> Evidence:
        made = carried(platform.format, data)
        return platform.carry(made, **({"nonce": None} if platform is NITRO else {}), **changes)

    return ratls.new_server_identity(
        hosts=("localhost",), evidence_format=platform.format, evidence=evidence, now=NOW, lifetime_s=3600
    )


def whole(platform: Platform, der: bytes, endorsements: tuple[tuple[str, bytes], ...]) -> Examination:
    """What is found about the certificate and the evidence in it, with the platform's roots."""
    return examine_ratls(
        der,
        endorsements=endorsements,
        roots={platform.format: platform.roots},
        now=NOW,
        examiners={name: examiner(name) for name in VERIFIERS},
    )


def failures(found: Examination) -> list[str]:
    """Codes of the failed checks that were made."""
    return [c.code for c in found.checks if not c.passed and not c.got.startswith(NOT_MADE)]


@every
def test_our_servers_certificate_passes_with_the_evidence_in_it(platform: Platform) -> None:
    """Key hash, binding, and the evidence by the examiner of its format, with the endorsements beside it."""
    made = identity(platform)
    found = whole(platform, made.certificate_der, made.evidence.endorsements)
    assert [c for c in found.checks if not c.passed] == []
    assert isinstance(found.claims, Claims)
    assert found.claims.format == platform.format
    ids = {c.id for c in found.checks}
    assert {"certificate.key_hash", "certificate.binding", "evidence.binding"} <= ids


@every
def test_it_has_the_interoperable_form_where_there_is_one(platform: Platform) -> None:
    """SGX and TDX: the CCC's, so its other verifiers read it too. For the other formats nobody describes a form: ours
    names the format beside the key's hash.
    """
    made = identity(platform)
    (one,) = examine_certificate(made.certificate_der, now=NOW).found
    expected = "interoperable" if platform.format in INTEROPERABLE_FORMATS else "strongroom"
    assert (one.source, one.format) == (expected, platform.format)
    assert (platform in (SGX, TDX4, TDX5)) == (expected == "interoperable")


@pytest.mark.parametrize("platform", [SGX, TDX4, TDX5], ids=repr)
def test_another_reader_of_the_interoperable_form_is_satisfied(platform: Platform) -> None:
    """The CCC's rule spelled out with another CBOR library: tag, claims, hash of the key, report data over the claims;
    an extension that is not critical and whose length has two bytes, as Gramine's reader wants it.
    """
    made = identity(platform)
    certificate = x509.load_der_x509_certificate(made.certificate_der)
    extension = certificate.extensions.get_extension_for_oid(ratls.DICE_EVIDENCE)
    assert not extension.critical
    value = extension.value.public_bytes()
    assert 128 <= len(value) <= 8192
    assert value == cbor2.dumps(cbor2.loads(value)), "definite lengths in their shortest form"
    tagged = cbor2.loads(value)
    quote, claims = tagged.value
    assert tagged.tag == 60000
    assert cbor2.loads(claims).keys() == {"pubkey-hash"}
    assert cbor2.loads(cbor2.loads(claims)["pubkey-hash"]) == [1, hashlib.sha256(made.spki).digest()]
    offset = {"sgx": 48 + 320, "tdx-4": 48 + 520, "tdx-5": 54 + 520}[platform.name]
    assert quote[offset : offset + 64] == hashlib.sha256(claims).digest() + bytes(32)


@every
def test_the_certificates_evidence_answers_no_nonce(platform: Platform) -> None:
    """Whatever its form, it is told apart from an answer, and refused."""
    data = carried(
        platform.format, certificate_report_data(platform.format, spki=platform.server.leaf.spki())
    )
    assert codes(platform, platform.carry(data)) == ["report_data_other_label"]


@every
def test_evidence_for_another_key_is_refused(platform: Platform) -> None:
    """CVE-2026-33697's class: the extension of one server's certificate in another's."""
    made = identity(platform)
    source = x509.load_der_x509_certificate(made.certificate_der)
    moved = source.extensions.get_extension_for_oid(ratls.DICE_EVIDENCE)
    key = p256("mallory")
    builder = x509.CertificateBuilder(
        source.subject, source.subject, key.public_key(), 1, NOW, source.not_valid_after_utc
    )
    der = builder.add_extension(moved.value, critical=False).sign(key, source.signature_hash_algorithm)
    found = whole(platform, der.public_bytes(Encoding.DER), made.evidence.endorsements)
    assert failures(found)[0] == "ratls_key_mismatch"


@every
def test_own_claims_beside_somebodys_evidence_are_refused(platform: Platform) -> None:
    """The attacker's key hash beside evidence that was made for the genuine key."""
    genuine = identity(platform)
    forged = ratls.new_server_identity(
        hosts=("localhost",),
        evidence_format=platform.format,
        evidence=lambda _: genuine.evidence,
        now=NOW,
        lifetime_s=3600,
    )
    found = whole(platform, forged.certificate_der, genuine.evidence.endorsements)
    assert failures(found) == ["ratls_binding", "ratls_binding"]


@pytest.mark.parametrize("platform", [SNP, TPM_NAMED, AZURE_SNP, NITRO, SGX], ids=repr)
def test_evidence_of_another_format_than_named_is_refused(platform: Platform) -> None:
    """By the server that would make it, which knows no report data for it, and by whoever reads it."""
    other = SNP if platform is not SNP else NITRO
    with pytest.raises(Failure):
        ratls.new_server_identity(
            hosts=("localhost",),
            evidence_format=platform.format,
            evidence=lambda data: other.carry(carried(other.format, data)),
            now=NOW,
            lifetime_s=3600,
        )
    genuine = identity(platform)
    lying = dataclasses.replace(genuine.evidence, format="tpm" if platform.format != "tpm" else "snp")
    forged = ratls.new_server_identity(
        hosts=("localhost",), evidence_format=lying.format, evidence=lambda _: lying, now=NOW, lifetime_s=3600
    )
    found = whole(platform, forged.certificate_der, genuine.evidence.endorsements)
    assert isinstance(found.claims, Absent)
    assert failures(found)[0] in {"evidence_malformed", "snp_length"}


@pytest.mark.parametrize("platform", [SNP, TPM_CERTIFIED, NITRO, SGX], ids=repr)
def test_evidence_that_does_not_verify_gives_no_claims(platform: Platform) -> None:
    """A well-bound certificate around evidence under roots that nobody accepts."""
    made = identity(platform)
    stranger = dataclasses.replace(platform, roots=("ab" * 32,))
    found = whole(stranger, made.certificate_der, made.evidence.endorsements)
    assert isinstance(found.claims, Absent)
    assert "root_not_accepted" in failures(found)


def test_claims_are_written_as_another_library_writes_them() -> None:
    """Byte for byte, in the order of the specification (docs/spec/channel.md §2.4)."""
    key_hash = cbor2.dumps([1, hashlib.sha256(SPKI).digest()])
    for name in ("sgx", "tdx"):
        assert certificate_claims(name, spki=SPKI) == cbor2.dumps({"pubkey-hash": key_hash})
    for name in ("sim", "snp", "tpm", "azure", "nitro"):
        expected = cbor2.dumps({"pubkey-hash": key_hash, "format": name.encode()})
        assert certificate_claims(name, spki=SPKI) == expected
    evidence = Evidence("snp", bytes(1184), ())
    tagged = cbor2.CBORTag(60000, [evidence.data, certificate_claims("snp", spki=SPKI)])
    assert ratls.encode_boot_evidence(evidence, spki=SPKI) == cbor2.dumps(tagged)


def test_report_data_of_certificates() -> None:
    """Two forms; in both, another key is other report data."""
    assert certificate_report_data("snp", spki=SPKI) == boot_report_data(spki=SPKI)
    made = certificate_report_data("tdx", spki=SPKI)
    assert made == certificate_report_data("sgx", spki=SPKI)
    assert made == hashlib.sha256(certificate_claims("sgx", spki=SPKI)).digest() + bytes(32)
    assert made != certificate_report_data("sgx", spki=spki(p256("another key")))


# `appraise` of recorded certificates: what can be asked of them


@every
def test_a_recorded_certificate_is_appraised(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the policy for the platform. Its report data can be asked for; a nonce cannot, not even where a claim of that
    name would be covered by the quote: nobody asked this server for it.
    """
    if platform.pinned:
        monkeypatch.setitem(verifiers.PINS, platform.format, platform.roots)
    made = identity(platform)
    right = certificate_report_data(platform.format, spki=made.spki)

    def refusals(what: Asked) -> list[str]:
        found = appraise(
            Evidence("ra-tls", made.certificate_der, ()),
            policy(platform),
            report_data=what,
            endorsements=made.evidence.endorsements,
            now=NOW,
        )
        return [c.code for c in found.checks if not c.passed]

    assert refusals(NoReportData("a recording")) == []
    assert refusals(ReportData(right)) == []
    for other in (bytes(64), right[:32], b"", certificate_report_data(platform.format, spki=SPKI)):
        assert refusals(ReportData(other)) == ["report_data_mismatch"]
    expected = "nitro_nonce_mismatch" if platform is NITRO else "report_data_mismatch"
    assert refusals(Nonce(bytes(32))) == [expected]
