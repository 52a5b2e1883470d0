"""A fake maker of TPMs: keys, certificates under a root of its own, quotes, event logs, and the TPM's half of
credential activation.

Everything a genuine TPM would be is the default; a test names the one thing that it wants wrong.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import fake_keys
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from strongroom.attest.strict import canonical

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
SHA1, SHA256, SHA384, SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
NAMES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
HASHES: dict[int, type[Any]] = {SHA256: hashes.SHA256, SHA384: hashes.SHA384, SHA512: hashes.SHA512}
RSA, ECC, NULL, RSASSA, RSAPSS, ECDSA, AES = 0x0001, 0x0023, 0x0010, 0x0014, 0x0016, 0x0018, 0x0006
ATTRIBUTES = 0x00050072
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""
FIRMWARE = 0x0007005500118000
"""As a maker of chips numbers them."""
SWTPM_FIRMWARE = 0x2019102300163636
QUALIFYING = hashlib.sha256(b"the qualifying data").digest()
EK_USE, AK_USE = "2.23.133.8.1", "2.23.133.8.3"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The RSA key that goes by `name`."""
    return fake_keys.rsa_key(name, bits)


def ec_key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """The ECC key that goes by `name`."""
    return fake_keys.ec_key(name, curve or ec.SECP256R1())


def key(kind: str, name: str) -> PrivateKey:
    """The key `name` of the kind "rsa2048", "rsa3072", "p256" or "p384"."""
    if kind.startswith("rsa"):
        return rsa_key(name, int(kind[3:]))
    return ec_key(name, {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind])


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


# certificates


def name(common_name: str) -> x509.Name:
    """A name of one part; none for an empty one, as endorsement certificates have."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate that has yet to be signed."""

    subject: str
    issuer: str
    key: PrivateKey
    signer: PrivateKey
    ca: bool | None = True
    path_length: int | None = None
    uses: tuple[str, ...] = ()
    key_usage: str = "keyCertSign"
    model: tuple[str, str, str] | None = None
    begin: datetime = NOW - timedelta(days=365)
    end: datetime = NOW + timedelta(days=3650)
    extra: tuple[tuple[str, bool], ...] = ()
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)

    def der(self) -> bytes:
        """The certificate, signed."""
        builder = x509.CertificateBuilder(
            name(self.issuer), name(self.subject), self.key.public_key(), 7, self.begin, self.end
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, self.path_length), critical=True)
        if self.key_usage:
            bits = ("digitalSignature", "keyEncipherment", "keyCertSign")
            sign, encipher, certify = (bit == self.key_usage for bit in bits)
            builder = builder.add_extension(
                x509.KeyUsage(sign, False, encipher, False, False, certify, False, False, False),
                critical=True,
            )
        if self.uses:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ObjectIdentifier(u) for u in self.uses]), critical=False
            )
        if self.model:
            directory = x509.Name(
                [
                    x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{i + 1}"), value)
                    for i, value in enumerate(self.model)
                ]
            )
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DirectoryName(directory)]), critical=True
            )
        for oid, critical in self.extra:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier(oid), b"\x05\x00"), critical=critical
            )
        deterministic = True if isinstance(self.signer, ec.EllipticCurvePrivateKey) else None
        signed = builder.sign(self.signer, self.hash, ecdsa_deterministic=deterministic)
        return signed.public_bytes(Encoding.DER)


ROOT = Certificate(subject="Maker Root", issuer="Maker Root", key=ec_key("root"), signer=ec_key("root"))
CA = Certificate(
    subject="Maker CA", issuer="Maker Root", key=ec_key("ca"), signer=ec_key("root"), path_length=0
)
CHIP = ("id:49465800", "SLB9670", "id:00070055")
SWTPM = ("id:00001014", "swtpm", "id:20191023")


def leaf(key_: PrivateKey, use: str, **changes: Any) -> Certificate:
    """An endorsement (or attestation) key's certificate."""
    made = Certificate(
        subject="",
        issuer="Maker CA",
        key=key_,
        signer=ec_key("ca"),
        ca=False,
        uses=(use,),
        key_usage="keyEncipherment" if use == EK_USE else "digitalSignature",
        model=CHIP if use == EK_USE else None,
    )
    return replace(made, **changes)


def digest(der: bytes) -> str:
    """How `roots` name a certificate or public area."""
    return hashlib.sha256(der).hexdigest()


ROOT_DER, CA_DER = ROOT.der(), CA.der()
ROOT_DIGEST = digest(ROOT_DER)


# structures


def public_area(
    key_: PrivateKey,
    *,
    attributes: int = ATTRIBUTES,
    name_hash: int = SHA256,
    scheme: int | None = None,
    scheme_hash: int = SHA256,
    symmetric: int = NULL,
    kind: int | None = None,
    bits: int | None = None,
    curve: int | None = None,
    exponent: int = 0,
) -> bytes:
    """A TPMT_PUBLIC."""
    is_rsa = isinstance(key_, rsa.RSAPrivateKey)
    out = struct.pack(">HHI", kind or (RSA if is_rsa else ECC), name_hash, attributes) + sized(b"")
    out += struct.pack(">H", symmetric) + (struct.pack(">HH", 128, 0x0043) if symmetric != NULL else b"")
    scheme = (RSASSA if is_rsa else ECDSA) if scheme is None else scheme
    out += struct.pack(">H", scheme) + (struct.pack(">H", scheme_hash) if scheme != NULL else b"")
    if isinstance(key_, rsa.RSAPrivateKey):
        modulus = key_.public_key().public_numbers().n.to_bytes(key_.key_size // 8)
        return out + struct.pack(">HI", bits or key_.key_size, exponent) + sized(modulus)
    numbers, size = key_.public_key().public_numbers(), (key_.key_size + 7) // 8
    found = curve if curve is not None else {256: 3, 384: 4}.get(key_.key_size, 5)
    return (
        out
        + struct.pack(">HH", found, NULL)
        + sized(numbers.x.to_bytes(size))
        + sized(numbers.y.to_bytes(size))
    )


def signature(key_: PrivateKey, message: bytes, *, scheme: int | None = None, hash_: int = SHA256) -> bytes:
    """A TPMT_SIGNATURE; `scheme` and `hash_` as they are stated."""
    algorithm = HASHES.get(hash_, hashes.SHA256)()
    if isinstance(key_, rsa.RSAPrivateKey):
        made = key_.sign(message, padding.PKCS1v15(), algorithm)
        return struct.pack(">HH", scheme or RSASSA, hash_) + sized(made)
    r, s = decode_dss_signature(key_.sign(message, ec.ECDSA(algorithm, deterministic_signing=True)))
    size = (key_.key_size + 7) // 8
    return struct.pack(">HH", scheme or ECDSA, hash_) + sized(r.to_bytes(size)) + sized(s.to_bytes(size))


def selection(bank: int, pcrs: Iterable[int], size: int = 3) -> bytes:
    """A TPMS_PCR_SELECTION."""
    bits = sum(1 << i for i in pcrs)
    return struct.pack(">HB", bank, size) + bits.to_bytes(max(size, 3), "little")[:size]


# event logs


def event_log(
    events: Iterable[tuple[int, int, bytes]], *, banks: tuple[int, ...] = (SHA256,), first: int = 0
) -> bytes:
    """A TCG2 log of (register, type, data) whose digests are those of the data."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    for bank in banks:
        spec += struct.pack("<HH", bank, hashlib.new(NAMES[bank]).digest_size)
    spec += b"\0"
    out = struct.pack("<II", first, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for index, kind, data in events:
        out += struct.pack("<III", index, kind, len(banks))
        for bank in banks:
            out += struct.pack("<H", bank) + hashlib.new(NAMES[bank], data).digest()
        out += struct.pack("<I", len(data)) + data
    return out


BOOT = (
    (0, 0x00000008, b"firmware 1.2"),
    (4, 0x80000003, b"boot loader"),
    (7, 0x80000001, b"SecureBoot=1"),
    (7, 0x00000004, b"\0\0\0\0"),
)
"""A short start of a machine."""


def extended(events: Iterable[tuple[int, int, bytes]], *, bank: int = SHA256) -> dict[int, bytes]:
    """PCR 0 to 7 and 14 after `events`, computed here and not by the code under test."""
    new, size = NAMES[bank], hashlib.new(NAMES[bank]).digest_size
    values = {i: bytes(size) for i in (*range(8), 14)}
    for index, kind, data in events:
        if kind != 3:
            values[index] = hashlib.new(new, values[index] + hashlib.new(new, data).digest()).digest()
    return values


# the TPM


@dataclass(frozen=True, kw_only=True)
class Tpm:
    """A TPM with an attestation key and an endorsement key. `forge` replaces what a test wants wrong."""

    label: str = "tpm"
    ak_kind: str = "p256"
    ek_kind: str = "p256"
    firmware: int = FIRMWARE
    qualifying: bytes = QUALIFYING
    bank: int = SHA256
    sign_hash: int = SHA256
    magic: int = 0xFF544347
    type: int = 0x8018
    selections: tuple[bytes, ...] | None = None
    pcrs: dict[int, bytes] = field(default_factory=lambda: extended(BOOT))
    public: dict[str, Any] = field(default_factory=dict)
    ek: dict[str, Any] = field(default_factory=dict)
    ak: dict[str, Any] | None = None
    members: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Tpm:
        """The same TPM with these fields changed."""
        return replace(self, **changes)

    @property
    def ak_key(self) -> PrivateKey:
        """Its attestation key."""
        return key(self.ak_kind, f"{self.label} ak")

    @property
    def ek_key(self) -> PrivateKey:
        """Its endorsement key."""
        return key(self.ek_kind, f"{self.label} ek")

    @property
    def ak_public(self) -> bytes:
        """The AK's public area."""
        return public_area(self.ak_key, **{"scheme_hash": self.sign_hash} | self.public)

    @property
    def ak_digest(self) -> str:
        """How `roots` name its AK."""
        return digest(self.ak_public)

    @property
    def ak_name(self) -> bytes:
        """The AK's Name."""
        name_hash = self.public.get("name_hash", SHA256)
        return struct.pack(">H", name_hash) + hashlib.new(NAMES[name_hash], self.ak_public).digest()

    @property
    def attest(self) -> bytes:
        """A TPMS_ATTEST. The AK is a primary key of the owner hierarchy."""
        signer = b"\x00\x0b" + hashlib.sha256(struct.pack(">I", 0x40000001) + self.ak_name).digest()
        chosen = self.selections if self.selections is not None else (selection(self.bank, self.pcrs),)
        values = b"".join(self.pcrs[i] for i in sorted(self.pcrs))
        out = struct.pack(">IH", self.magic, self.type) + sized(signer) + sized(self.qualifying)
        out += struct.pack(">QIIB", 123456, 3, 1, 1) + struct.pack(">Q", self.firmware)
        out += struct.pack(">I", len(chosen)) + b"".join(chosen)
        return out + sized(hashlib.new(NAMES[self.sign_hash], values).digest())

    @property
    def document(self) -> bytes:
        """Its evidence (docs/spec/tpm.md §2.1)."""
        made = {
            "version": 1,
            "attest": self.attest,
            "signature": signature(self.ak_key, self.attest, hash_=self.sign_hash),
            "ak_public": self.ak_public,
            "ak_certificate": leaf(self.ak_key, AK_USE, **self.ak).der() if self.ak is not None else b"",
            "ek_certificate": leaf(self.ek_key, EK_USE, **self.ek).der(),
            "certificates": [CA_DER, ROOT_DER],
            "pcrs": [self.pcrs[i].hex() for i in sorted(self.pcrs)],
            "event_log": b"",
        } | self.members
        return document(made)

    def activate(self, credential: bytes, encrypted: bytes, *, ak_name: bytes | None = None) -> bytes:
        """TPM2_ActivateCredential: the secret, for the AK of `ak_name` (its own).

        Raises:
            ValueError: the credential is not for these keys.
        """
        ek, mine = self.ek_key, ak_name or self.ak_name
        big = self.ek_kind in ("rsa3072", "p384")
        new, aes_bits = ("sha384", 256) if big else ("sha256", 128)
        size = hashlib.new(new).digest_size
        blob = unsized(encrypted)
        if isinstance(ek, rsa.RSAPrivateKey):
            algorithm = HASHES[SHA384 if big else SHA256]()
            oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0")
            seed = ek.decrypt(blob, oaep)
        else:
            seed = self._ecdh_seed(ek, blob, new, size)
        inner = unsized(credential)
        length = struct.unpack(">H", inner[:2])[0]
        integrity, identity = inner[2 : 2 + length], inner[2 + length :]
        hmac_key = _kdf(new, seed, b"INTEGRITY\0", size * 8)
        if not hmac.compare_digest(hmac.new(hmac_key, identity + mine, new).digest(), integrity):
            raise ValueError("TPM_RC_INTEGRITY")
        aes = _kdf(new, seed, b"STORAGE\0" + mine, aes_bits)
        return unsized(Cipher(algorithms.AES(aes), CFB(bytes(16))).decryptor().update(identity))

    @staticmethod
    def _ecdh_seed(ek: ec.EllipticCurvePrivateKey, blob: bytes, new: str, size: int) -> bytes:
        width = ek.key_size // 8
        x, y = blob[2 : 2 + width], blob[4 + width :]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ek.curve).public_key()
        shared = ek.exchange(ec.ECDH(), point)
        own = ek.public_key().public_numbers().x.to_bytes(width)
        text = struct.pack(">I", 1) + shared + b"IDENTITY\0" + x + own
        return hashlib.new(new, text).digest()[:size]


def _kdf(new: str, seed: bytes, text: bytes, bits: int) -> bytes:
    made = hmac.new(seed, struct.pack(">I", 1) + text + struct.pack(">I", bits), new).digest()
    return made[: bits // 8]


def unsized(data: bytes) -> bytes:
    """The content of a TPM2B that is all of `data`."""
    if struct.unpack(">H", data[:2])[0] != len(data) - 2:
        raise ValueError("TPM_RC_SIZE")
    return data[2:]


def document(members: dict[str, Any]) -> bytes:
    """The JSON of `members`: bytes become base64."""
    encode = lambda v: base64.b64encode(v).decode() if isinstance(v, bytes) else v  # noqa: E731
    return canonical(
        {k: [encode(i) for i in v] if isinstance(v, list) else encode(v) for k, v in members.items()}
    )
