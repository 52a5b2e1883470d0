"""`attester`: the simulated TEE, and the file of its root key."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from strongroom.attest.evidence import Claims
from strongroom.attest.sim import examine_sim
from strongroom.attester import (
    MAX_ROOT_FILE,
    Attester,
    SimulatedAttester,
    load_operator_key,
    load_or_create_root,
    root_digest,
)
from strongroom.errors import InvalidConfig, MalformedInput
from strongroom.measure import SECURITY_VERSION

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MEASUREMENT = "ab" * 32


def attester(measurement: str = MEASUREMENT) -> Attester:
    """The simulated TEE that runs the code of `measurement`."""
    return SimulatedAttester(root_key=KEY, measurement=measurement)


def test_evidence_carries_what_was_asked_for() -> None:
    """Report data, measurement, security version and time, signed by the root."""
    evidence = attester().evidence(bytes(range(64)), now=NOW)
    assert (evidence.format, evidence.endorsements) == ("sim", ())
    found = examine_sim(evidence.data, endorsements=(), roots=(root_digest(KEY),), now=NOW)
    assert all(c.passed for c in found.checks)
    assert isinstance(found.claims, Claims)
    assert found.claims.report_data == bytes(range(64))
    assert (found.claims.measurement, found.claims.svn) == (MEASUREMENT, SECURITY_VERSION)
    assert found.claims.issued_at == NOW


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_size_is_not_signed(size: int) -> None:
    """Hardware takes 64 bytes; the simulated TEE takes no other either."""
    with pytest.raises(MalformedInput):
        attester().evidence(bytes(size), now=NOW)


def test_the_sealing_root_belongs_to_root_key_and_measurement() -> None:
    """The same code gets the same keys after a restart; other code, and another root, get others."""
    root = attester().sealing_root()
    assert (root.sealing_class, root.sealed_for) == ("simulated", MEASUREMENT)

    def key(source: Attester) -> bytes:
        return source.sealing_root().derive(label="test", context=(b"store",))

    assert key(attester()) == key(attester())
    assert key(attester("cd" * 32)) != key(attester())
    other = SimulatedAttester(root_key=Ed25519PrivateKey.generate(), measurement=MEASUREMENT)
    assert key(other) != key(attester())


def test_the_root_key_is_not_printed() -> None:
    """The key does not stand in the object's text."""
    assert "root_key" not in repr(attester())


def test_the_root_digest_is_the_sha256_of_the_spki() -> None:
    """What a policy names."""
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert root_digest(KEY) == hashlib.sha256(spki).hexdigest()


# The file


def test_a_root_key_is_made_once(tmp_path: Path) -> None:
    """The first call makes the file for its owner alone; later calls read it; nothing else is left there."""
    path = tmp_path / "sim-root.pem"
    first = load_or_create_root(path)
    assert root_digest(load_or_create_root(path)) == root_digest(first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    """Sixteen threads ask at once: one key, and never half a file."""
    path, found = tmp_path / "sim-root.pem", []
    barrier = threading.Barrier(16)

    def ask() -> None:
        barrier.wait()
        found.append(root_digest(load_or_create_root(path)))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [path]


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a key",
        _pem(KEY)[:60],
        _pem(KEY, b"password"),
        _pem(ec.derive_private_key(7, ec.SECP256R1())),
        KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"#" * (MAX_ROOT_FILE + 1) + b"\n" + _pem(KEY),
    ],
    ids=range(7),
)
def test_a_file_that_is_no_root_key_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    """A wrong file is the operator's to mend; it is never overwritten."""
    path = tmp_path / "sim-root.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig) as caught:
        load_or_create_root(path)
    assert caught.value.code == "root_key_unusable"
    assert caught.value.__cause__ is None
    assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_root_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever reads it can sign any measurement and open the store."""
    path = tmp_path / "sim-root.pem"
    load_or_create_root(path)
    path.chmod(mode)
    with pytest.raises(InvalidConfig, match=f"{mode:04o}"):
        load_or_create_root(path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """No folder is made on the way."""
    with pytest.raises(InvalidConfig) as caught:
        load_or_create_root(tmp_path / "nowhere" / "sim-root.pem")
    assert caught.value.code == "root_key_unusable"


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="not exercised here: root reads every folder"
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The system's refusal becomes ours."""
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidConfig):
        load_or_create_root(tmp_path / "sim-root.pem")


# What operators add in files


def test_the_operators_key_names_itself_without_showing_itself(tmp_path: Path) -> None:
    """The same key gives the same root; `sealed_for` is a digest of something derived."""
    path = tmp_path / "operator-key"
    path.write_text("0f" * 32 + "\n")
    path.chmod(0o600)
    root = load_operator_key(path)
    assert root.sealing_class == "operator"
    assert root.secret == load_operator_key(path).secret != bytes.fromhex("0f" * 32)
    assert root.sealed_for not in (hashlib.sha256(bytes.fromhex("0f" * 32)).hexdigest(), "0f" * 32)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("0f" * 31, 0o600),
        ("0F" * 32, 0o600),
        ("0f" * 32 + "\n\n", 0o600),
        ("00" * 32, 0o600),
        ("", 0o600),
        ("0f" * 32, 0o640),
    ],
)
def test_a_file_that_is_no_operators_key_is_refused(text: str, mode: int, tmp_path: Path) -> None:
    """Too short, another spelling, zeros, readable by others."""
    path = tmp_path / "operator-key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InvalidConfig) as caught:
        load_operator_key(path)
    assert caught.value.code == "operator_key_unusable"
    with pytest.raises(InvalidConfig):
        load_operator_key(tmp_path / "absent")
