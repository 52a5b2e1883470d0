"""TPM 2.0 evidence: a quote of PCRs by an attestation key (AK), format `tpm` (docs/spec/tpm.md).

A TPM says what was measured while the machine started. It does not keep the host out of the machine's memory, so
its claims never say `host_excluded`; and a software TPM says whatever its owner likes.

Rules of this file:

1. A quote counts only if its AK is tied to something that the caller accepts: the AK is named itself, or its
   certificate leads to an accepted root, or this very client activated a credential with its endorsement key. An
   endorsement certificate beside a quote ties nothing: it is public, and any key can be put next to it.
2. `roots` are SHA-256 digests (hex) of root certificates, or of AKs' public areas. The two cannot be confused: a
   certificate begins with 0x30, a public area with 0x00.
3. Software is recognised where it says so, and refused unless its root or AK is named. It need not say so: what
   decides is whose roots are accepted.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ObjectIdentifier

from strongroom.attest.evidence import MAX_EVIDENCE, Absent, Claims, Examination, one_of
from strongroom.attest.strict import JSON, Members, canonical, parse_object
from strongroom.attest.tpm_activation import Activated, Challenge, make_credential
from strongroom.attest.tpm_chain import AK_USE, EK_USE, Chain, load_certificates, verify_chain
from strongroom.attest.tpm_quote import (
    QUOTE_CHECKS,
    Checks,
    Quote,
    Table,
    check_log,
    check_quote,
    empty_document,
    parse_quote,
    pcr_measurement,
    quote_details,
    software_firmware,
)
from strongroom.attest.tpm_wire import ATTRIBUTES, Public, parse_public
from strongroom.errors import AttestationRefused, MalformedInput

FORMAT = "tpm"
PINNED_ROOTS: tuple[str, ...] = ()
"""No vendor's root is accepted unasked: dozens of makers have dozens each, and the machine's owner knows its own."""

MAX_CERTIFICATE = 8192
"""Bytes of one certificate; endorsement certificates take 1 to 2 KiB."""
_MEMBERS = tuple(empty_document())
_REQUIRED = ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "sign")
_FORBIDDEN = ("decrypt", "encryptedDuplication", "x509sign")
_SOFTWARE_MAKERS = {
    "id:00001014": "IBM's code (swtpm)",
    "id:4D534654": "Microsoft (virtual)",
    "id:474F4F47": "Google (virtual)",
    "id:564D5700": "VMware (virtual)",
    "id:564D5720": "VMware (virtual)",
    "id:414D5A4E": "Amazon (virtual)",
}
"""TPM manufacturers (TCG vendor registry) whose TPMs are programs."""
_HIERARCHIES = {0x40000001: "owner", 0x4000000B: "endorsement", 0x4000000C: "platform"}

_TABLE: Table = {
    "evidence.form": (
        "The evidence is well-formed",
        "a tpm document in its one spelling",
        "evidence_malformed",
    ),
    "tpm.ak_attributes": (
        "The attestation key was made in the TPM, cannot leave it, and signs only what the TPM itself made",
        f"{', '.join(_REQUIRED)}; none of {', '.join(_FORBIDDEN)}",
        "tpm_ak_attributes",
    ),
    **QUOTE_CHECKS,
    "tpm.event_log": ("The event log, replayed, gives the signed registers", "", "event_log_mismatch"),
    "tpm.ek_certificate": (
        "The endorsement certificate leads to an accepted root",
        "a valid path to an accepted root",
        "tpm_certificate_refused",
    ),
    "tpm.ak_certificate": (
        "The attestation key's certificate is for this key and leads to an accepted root",
        "a valid path to an accepted root",
        "tpm_certificate_refused",
    ),
    "evidence.root": ("A root or key is one that the policy names", "", "root_not_accepted"),
    "tpm.software": (
        "The TPM is not known to be software, or the policy names its root or key itself",
        "no software TPM",
        "tpm_software_not_named",
    ),
    "tpm.ak_binding": (
        "The attestation key is tied to an accepted root, certificate or name",
        "an AK that is named, or certified, or whose credential this client activated",
        "tpm_ak_not_bound",
    ),
}
_OPTIONAL = ("tpm.event_log", "tpm.ek_certificate", "tpm.ak_certificate")


@dataclass(frozen=True, slots=True)
class _Document:
    quote: Quote
    public: Public | None
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    ak: str
    ak_certificate: bytes
    ek_certificate: bytes
    certificates: tuple[bytes, ...]
    event_log: bytes

    @property
    def absent(self) -> tuple[str, ...]:
        """Checks about members that this document does not have."""
        there = (self.event_log, self.ek_certificate, self.ak_certificate)
        return tuple(c for c, data in zip(_OPTIONAL, there, strict=True) if not data)


def parse_tpm(data: bytes) -> _Document:
    """Returns the document of docs/spec/tpm.md §2.1 that `data` is. Nothing in it is verified.

    Raises:
        MalformedInput: `evidence_malformed`, or a code of `tpm_wire`.
    """
    what, code = "TPM evidence", "evidence_malformed"
    top = parse_object(data, limit=MAX_EVIDENCE, what=what, code=code)
    read = Members(top, _MEMBERS, what=what, code=code)
    read.integer("version", 1, 1)
    certificates = []
    for item in read.array("certificates", 8):
        certificates.append(Members({"c": item}, ("c",), what=what, code=code).base64("c", MAX_CERTIFICATE))
    public_bytes = read.base64("ak_public", 4096)
    public = None if public_bytes.startswith(b"\x30") else parse_public(public_bytes)
    document = _Document(
        quote=parse_quote(read),
        public=public,
        key=public.key if public else _bare_key(read, public_bytes),
        ak=hashlib.sha256(public_bytes).hexdigest(),
        ak_certificate=read.base64("ak_certificate", MAX_CERTIFICATE),
        ek_certificate=read.base64("ek_certificate", MAX_CERTIFICATE),
        certificates=tuple(certificates),
        event_log=read.base64("event_log", MAX_EVIDENCE),
    )
    if canonical(cast(JSON, top)) != data:
        read.refuse("not in RFC 8785 form")
    return document


def _bare_key(read: Members, spki: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """A DER SubjectPublicKeyInfo: some recordings keep no more of an AK. Its attributes are unknown."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        read.refuse("ak_public: neither a TPMT_PUBLIC nor a DER public key")
    if isinstance(key, rsa.RSAPublicKey):
        known = key.key_size >= 2048
    elif isinstance(key, ec.EllipticCurvePublicKey):
        known = key.curve.name in ("secp256r1", "secp384r1")
    else:
        read.refuse("ak_public: neither an RSA nor an ECC key")
    if not known or _spki(key) != spki:
        read.refuse("ak_public: not the canonical DER of an RSA key of 2048 bits or a key on P-256 or P-384")
    return key


def examine_tpm(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines TPM evidence with which no credential was activated (docs/spec/tpm.md §3 to §6).

    `roots`: hex SHA-256 of root certificates (DER), or of public areas of AKs; empty accepts nothing.
    `endorsements`: certificates of makers, in DER or PEM; what is none is left alone.

    1. form: the strict document of §2.1, its structures included; with the codes of `tpm_wire`
    2. AK: its attributes and scheme (§3.1)
    3. quote: signature, selection, PCR digest (`tpm_quote.check_quote` numbers them)
    4. event log, where there is one: replayed, it gives the quoted PCRs (§6.4)
    5. certificates, where there are any: each leads to an accepted root (`tpm_chain.verify_chain` numbers that); an
       endorsement certificate of another root is not used where the AK is tied without it
    6. root: a certificate's root, or the AK itself, is in `roots`
    7. software: not recognised, or its root or AK is named
    8. binding: the AK is named, or certified, or activated (never here: see `examine_activated`)

    Claims come back only where 1 to 3 and 8 passed. Checks after a failure that left nothing to check have
    failed as well.
    """
    return examine_activated(data, endorsements=endorsements, roots=roots, now=now, activated=())


def examine_activated(
    data: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: datetime,
    activated: tuple[Activated, ...],
) -> Examination:
    """Examines as `examine_tpm` does, for a caller that has activated credentials: an AK is bound as well where
    `activated` ties it to the endorsement certificate shown, and that leads to an accepted root.
    """
    checks = Checks(_TABLE)
    # 1. form
    try:
        document = parse_tpm(data)
    except MalformedInput as exc:
        checks.record("evidence.form", False, exc.message, code=exc.code)
        why = "the evidence is malformed"
        checks.rest_impossible(why)
        return Examination(checks=tuple(checks.made), claims=Absent(FORMAT, why))
    checks = Checks({k: v for k, v in _TABLE.items() if k not in document.absent})
    checks.record("evidence.form", True, f"{len(data)} bytes")
    # 2. AK
    sound = _check_attributes(checks, document.public)
    # 3. quote
    scheme_hash = document.public.scheme_hash if document.public else document.quote.signature.hash
    sound &= check_quote(checks, document.quote, key=document.key, scheme_hash=scheme_hash)
    sound &= checks.made[-1].passed
    # 4. event log
    events = check_log(checks, document.quote, document.event_log)
    # 5. certificates
    pool = load_certificates([*document.certificates, *(d for _, d in endorsements)])
    named = document.ak if document.ak in roots else ""
    chain = partial(verify_chain, certificates=pool, roots=roots, now=now)
    ek, ak = _check_chains(checks, document, chain, named=bool(named))
    # 6. root
    anchors = [a for a in (named, ak.root if ak else "", ek.root if ek else "") if a]
    got = ", ".join(anchors) or f"no certificate that leads to one, and the AK {document.ak}"
    checks.record("evidence.root", bool(anchors), got, expected=one_of(roots))
    # 7. software
    signs = _software_signs(document, ek)
    asked_for = any(anchor not in PINNED_ROOTS for anchor in anchors)
    checks.record("tpm.software", not signs or asked_for, ", ".join(signs) or "nothing says so")
    # 8. binding
    root, how = _binding(document.ak, named, ak, ek, activated)
    checks.record("tpm.ak_binding", bool(root), how)
    if not sound or not root:
        why = "the quote did not verify" if not sound else "the attestation key is tied to nothing accepted"
        return Examination(checks=tuple(checks.made), claims=Absent(FORMAT, why))
    return Examination(
        checks=tuple(checks.made),
        claims=replace(_claims(document, ek, root=root, bound_by=how, signs=signs), events=events),
    )


def _check_attributes(checks: Checks, public: Public | None) -> bool:
    if public is None:
        return checks.record("tpm.ak_attributes", False, "unknown: a bare public key, which states none")
    return checks.record("tpm.ak_attributes", *_attributes(public))


def _attributes(public: Public) -> tuple[bool, str]:
    """Whether the AK's attributes are those of §3.1, and which it has."""
    there = [name for name, bit in ATTRIBUTES.items() if public.attributes & bit]
    reserved = public.attributes & ~sum(ATTRIBUTES.values())
    fits = set(_REQUIRED) <= set(there) and not set(_FORBIDDEN) & set(there) and not reserved
    return fits, ", ".join(there) + (f", reserved bits {reserved:#x}" if reserved else "")


def _check_chains(
    checks: Checks, document: _Document, chain: Callable[..., Chain], *, named: bool
) -> tuple[Chain | None, Chain | None]:
    """Step 5: the chains of the endorsement and the attestation certificate, None where there is none or it failed.

    Where the AK is tied without it, an endorsement certificate under a root that nobody names is not used at all: a
    policy that names the AK need not name its maker as well, whose other keys it would then accept too.
    """
    ek, ek_fault = _find_chain(document.ek_certificate, chain, use=EK_USE, key=None)
    ak, ak_fault = _find_chain(document.ak_certificate, chain, use=AK_USE, key=document.key)
    unused = ek_fault is not None and ek_fault.code == "root_not_accepted" and (named or ak is not None)
    if document.ek_certificate and not unused:
        _record_chain(checks, "tpm.ek_certificate", ek, ek_fault)
    if document.ak_certificate:
        _record_chain(checks, "tpm.ak_certificate", ak, ak_fault)
    return ek, ak


def _find_chain(
    leaf: bytes,
    chain: Callable[..., Chain],
    *,
    use: ObjectIdentifier,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None,
) -> tuple[Chain | None, AttestationRefused | None]:
    """The chain of one certificate, or why there is none; with `key`, it must be this very key's."""
    if not leaf:
        return None, None
    try:
        found = chain(leaf, use=use)
    except AttestationRefused as exc:
        return None, exc
    if key is not None and _spki(found.key) != _spki(key):
        return None, AttestationRefused("the certificate of another key", code="tpm_certificate_refused")
    return found, None


def _record_chain(
    checks: Checks, check_id: str, found: Chain | None, fault: AttestationRefused | None
) -> None:
    if fault is not None:
        checks.record(check_id, False, fault.message, code=fault.code)
    elif found is not None:
        checks.record(check_id, True, f"root {found.root}")


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _software_signs(document: _Document, ek: Chain | None) -> list[str]:
    """What says that this TPM is a program (docs/spec/tpm.md §5.3)."""
    signs = []
    if software_firmware(document.quote.attest.firmware):
        signs.append(f"firmware version {document.quote.attest.firmware:016x} of the reference code")
    model = dict(ek.model) if ek else {}
    if maker := _SOFTWARE_MAKERS.get(model.get("manufacturer", "").upper().replace("ID:", "id:")):
        signs.append(f"made by {maker}")
    if ek and re.search(r"swtpm|simulator|\bvtpm\b", f"{model.get('model', '')} {ek.issuer}", re.IGNORECASE):
        signs.append("the endorsement certificate calls it one")
    return signs


def _binding(
    ak: str, named: str, ak_chain: Chain | None, ek_chain: Chain | None, activated: tuple[Activated, ...]
) -> tuple[str, str]:
    """The accepted anchor that the AK is tied to ("" for none), and how. The anchor is the one that the tie leads
    to, not any other that happens to be shown: a policy may ask for different code under different roots.
    """
    if named:
        return named, "named"
    if ak_chain:
        return ak_chain.root, "certified"
    if ek_chain and any(a.ak == ak and a.ek == ek_chain.leaf for a in activated):
        return ek_chain.root, "activated"
    return "", "an endorsement certificate that nothing ties to this AK" if ek_chain else "nothing"


def _claims(document: _Document, ek: Chain | None, *, root: str, bound_by: str, signs: list[str]) -> Claims:
    quote = document.quote
    details = [
        ("protects", "nothing from the host's own software: a TPM measures a start, it hides no memory"),
        ("tpm.kind", "software" if signs else "not recognised as software"),
        ("tpm.ak", document.ak),
        ("tpm.ak_bound_by", bound_by),
        ("tpm.hierarchy", _hierarchy(document)),
    ]
    if ek:
        details.append(("tpm.ek_certificate", ek.leaf))
        details += [(f"tpm.ek_{name}", value) for name, value in ek.model]
    return Claims(
        format=FORMAT,
        simulated=False,
        host_excluded=False,
        measurement=pcr_measurement(quote.bank, quote.values()),
        signer="",
        product=0,
        svn=0,
        debug=False,
        tcb_status="NotReported",
        advisories=(),
        report_data=quote.attest.qualifying,
        root=root,
        issued_at=None,
        details=(*details, *quote_details(quote)),
    )


def _hierarchy(document: _Document) -> str:
    """The hierarchy that the AK is a primary key of, as the signed qualified name shows, or "not primary"."""
    name = document.public.name if document.public else b""
    if name[:2] == b"\x00\x0b":
        for handle, title in _HIERARCHIES.items():
            if document.quote.attest.signer == name[:2] + hashlib.sha256(handle.to_bytes(4) + name).digest():
                return title
    return "not primary"


def activation_challenge(
    data: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: datetime,
    secret: bytes,
    entropy: bytes,
) -> Challenge:
    """Returns the challenge that ties the AK of the evidence `data` to its endorsement certificate, which must
    lead to one of `roots` (docs/spec/tpm.md §7). `secret`: 32, `entropy`: 64 fresh random bytes, never used before.

    Raises:
        AttestationRefused: the certificate's code; `tpm_ak_attributes`: whoever enrols a key that the TPM lets sign
        anything has enrolled its owner's word. MalformedInput: the evidence's; `evidence_malformed` where it has no
        endorsement certificate or only a bare AK; `tpm_key_unsupported`.
    """
    document = parse_tpm(data)
    if document.public is None or not document.ek_certificate:
        raise MalformedInput(
            "TPM evidence: activation needs the AK's public area and an endorsement certificate",
            code="evidence_malformed",
        )
    fits, attributes = _attributes(document.public)
    if not fits:
        raise AttestationRefused(
            f"attestation key: expected {_TABLE['tpm.ak_attributes'][1]}; got {attributes}",
            code="tpm_ak_attributes",
        )
    pool = load_certificates([*document.certificates, *(d for _, d in endorsements)])
    ek = verify_chain(document.ek_certificate, use=EK_USE, certificates=pool, roots=roots, now=now)
    if not isinstance(ek.key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise MalformedInput("endorsement key: neither RSA nor ECC", code="tpm_key_unsupported")
    credential, encrypted = make_credential(
        ek.key, ak_name=document.public.name, secret=secret, entropy=entropy
    )
    return Challenge(document.ak, ek.leaf, credential, encrypted, secret)


EK_ENDORSEMENT = "tpm-ek.der"
"""Name of the stapled endorsement certificate. It is no member of a running server's evidence: there it would have to
lead to an accepted root each time (§5.1), although the AK that was enrolled is named itself.
"""


def with_endorsement(data: bytes, *, ek_certificate: bytes) -> bytes:
    """Returns the evidence `data` with the endorsement certificate in its place: what activation is about. Members
    beside the quote are not signed, so the quote is the same.

    Raises:
        MalformedInput: code `evidence_malformed`, or a code of `tpm_wire`.
    """
    parse_tpm(data)
    top = parse_object(data, limit=MAX_EVIDENCE, what="TPM evidence", code="evidence_malformed")
    return canonical(cast(JSON, {**top, "ek_certificate": _b64(ek_certificate)}))


def from_recorded(files: Mapping[str, bytes]) -> bytes:
    """Returns the document of docs/spec/tpm.md §2.1 for a recorded folder, file name -> bytes (§2.3): either
    `attest.bin`, `signature.bin`, `ak_public.bin`, `quote.json` with the PCRs, and perhaps `ek_cert.der`,
    `ak_cert.der`, `event_log.bin` and certificates in PEM; or one `tpm_evidence.json`.

    Raises:
        MalformedInput: code `evidence_malformed`.
    """
    made = empty_document()
    if "tpm_evidence.json" in files:
        top = _recorded_json(files["tpm_evidence.json"])
        inner = Members(
            top, ("ak_public", "tpm_quote"), what="recorded TPM evidence", code="evidence_malformed"
        )
        read = Members(
            inner.object("tpm_quote"), ("message", "pcrs", "signature"), what="recorded TPM evidence",
            code="evidence_malformed",
        )  # fmt: skip
        made |= {
            "ak_public": _b64(inner.base64("ak_public", 4096)),
            "attest": _b64(read.base64("message", 4096)),
        }
        made |= {
            "signature": _b64(read.base64("signature", 4096)),
            "pcrs": list(map(str, read.array("pcrs", 24))),
        }
        return canonical(made)
    if missing := sorted({"attest.bin", "signature.bin", "ak_public.bin", "quote.json"} - files.keys()):
        raise MalformedInput(
            f"recorded TPM evidence: missing: {', '.join(missing)}", code="evidence_malformed"
        )
    pcrs = _recorded_json(files["quote.json"]).get("pcrs")
    if not isinstance(pcrs, dict) or not all(re.fullmatch(r"[0-9]{1,2}", k, re.ASCII) for k in pcrs):
        raise MalformedInput("recorded TPM evidence: quote.json: no pcrs", code="evidence_malformed")
    made["pcrs"] = [str(pcrs[k]) for k in sorted(pcrs, key=int)]
    for member, name in (
        ("attest", "attest.bin"),
        ("signature", "signature.bin"),
        ("ak_public", "ak_public.bin"),
        ("ek_certificate", "ek_cert.der"),
        ("ak_certificate", "ak_cert.der"),
        ("event_log", "event_log.bin"),
    ):
        made[member] = _b64(files.get(name, b""))
    pems = [data for name, data in sorted(files.items()) if name.endswith(".pem")]
    made["certificates"] = [_b64(c.public_bytes(Encoding.DER)) for c in load_certificates(pems)]
    return canonical(made)


def _recorded_json(data: bytes) -> dict[str, object]:
    return parse_object(data, limit=MAX_EVIDENCE, what="recorded TPM evidence", code="evidence_malformed")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
