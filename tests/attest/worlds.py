"""A small world with fixed keys and one fixed time: genuine servers, their roots and policies, and what an
attacker can make of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from strongroom import attest
from strongroom.attest import sim
from strongroom.attest.batch import Single
from strongroom.attest.evidence import Attested, Evidence, Leaf, report_data
from strongroom.attest.keyset import Key, Keyset, SecurityConfiguration, encode_keyset
from strongroom.attest.policy import Policy, parse_policy, policy_for_measurement

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NONCE = hashlib.sha256(b"the client's nonce").digest()
MEASUREMENT = hashlib.sha256(b"the code").hexdigest()
OTHER_MEASUREMENT = hashlib.sha256(b"other code").hexdigest()
SECURITY = SecurityConfiguration(
    sealing="simulated",
    host_excluded=False,
    isolation="in_process",
    sandbox=("no_dumps", "no_new_privileges"),
    admission="structural",
    anonymous_upload=False,
    verify_on_load="tags",
    logging="no_content",
)


def ed25519(name: str) -> Ed25519PrivateKey:
    """The Ed25519 key that goes by `name` in this world."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def p256(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that goes by `name`."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()) >> 1, ec.SECP256R1())


def spki(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def leaf(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> Leaf:
    """A self-signed certificate of `key`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "strongroom")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    if isinstance(key, Ed25519PrivateKey):
        return Leaf(der=builder.sign(key, None).public_bytes(Encoding.DER))
    return Leaf(der=builder.sign(key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER))


@dataclass(frozen=True, kw_only=True)
class Server:
    """A simulated server by the name of its keys. `forge` replaces what a test wants wrong, and nothing
    else.
    """

    name: str = "server"
    root: str = "root"
    measurement: str = MEASUREMENT
    svn: int = 1
    security: SecurityConfiguration = SECURITY
    not_after: int = int(NOW.timestamp()) + 12 * 3600
    issued_at: datetime = NOW
    nonce: bytes = NONCE
    replaced: dict[str, bytes] = field(default_factory=dict)

    def forge(self, **replaced: bytes) -> Server:
        """The same server with `keyset` or `report_data` bytes replaced in what it shows."""
        return replace(self, replaced=self.replaced | replaced)

    @property
    def keyset(self) -> Keyset:
        """Its keyset."""
        return Keyset(
            keys=(
                Key("tls", "ECDSA-P256", spki(p256(f"{self.name} tls"))),
                Key("receipt", "Ed25519", spki(ed25519(f"{self.name} receipt"))),
            ),
            not_after=self.not_after,
            store_id=hashlib.md5(self.name.encode(), usedforsecurity=False).hexdigest(),
            binding="spki",
            security=self.security,
        )

    @property
    def keyset_bytes(self) -> bytes:
        """Its keyset's bytes."""
        return self.replaced.get("keyset", encode_keyset(self.keyset))

    @property
    def leaf(self) -> Leaf:
        """The certificate that it shows."""
        return leaf(p256(f"{self.name} tls"))

    @property
    def evidence(self) -> Evidence:
        """Its answer to the nonce."""
        data = report_data(nonce=self.nonce, keyset_bytes=self.keyset_bytes)
        issued = sim.issue(
            root_key=ed25519(self.root),
            measurement=self.measurement,
            svn=self.svn,
            report_data=self.replaced.get("report_data", data),
            now=self.issued_at,
        )
        return Evidence("sim", issued, ())


def policy(*, root: str = "root", measurement: str = MEASUREMENT) -> Policy:
    """The policy that accepts the genuine server."""
    digest = sim.root_digest(ed25519(root).public_key())
    return parse_policy(policy_for_measurement(measurement, root=digest, now=NOW))


def verify(server: Server, *, by: Policy | None = None, channel: Leaf | None = None) -> Attested:
    """What a client does that asked with `NONCE` on a connection whose certificate is `channel` (the server's
    own).
    """
    evidence = server.evidence
    return attest.verify(
        evidence,
        by or policy(),
        nonce=NONCE,
        keyset_bytes=server.keyset_bytes,
        inclusion=Single(),
        channel=channel or server.leaf,
        endorsements=evidence.endorsements,
        now=NOW,
    )
