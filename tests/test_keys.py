"""The sealing root and the keys below it: every fact changes every key, and nothing prints a secret."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.errors import Failure
from strongroom.keys import SealingRoot, StoreKeys, length_prefixed, simulated_root

ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MEASUREMENT = "ab" * 32
SECURITY = b"s" * 32
STORE_ID = b"i" * 16
OWNER = "0f" * 32


def keys(
    *, seed: int = 0, measurement: str = MEASUREMENT, security: bytes = SECURITY, store_id: bytes = STORE_ID
) -> StoreKeys:
    """The keys of a store, with one fact changed at a time."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(seed, seed + 32)))
    root = simulated_root(key, measurement=measurement)
    return StoreKeys.from_root(root, security_digest=security, store_id=store_id)


def _hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block and no salt, by hand."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")


def _list(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_the_keys_are_what_the_specification_says() -> None:
    """docs/spec/sealed.md §4.1 and §4.2, written out a second time with HMAC alone."""
    root = _hkdf(bytes(range(32)), _list(b"strongroom sealed v1 simulated root", MEASUREMENT.encode()))
    facts = (b"simulated", SECURITY, STORE_ID)
    store = _hkdf(root, _list(b"strongroom sealed v1 store", *facts))
    assert keys().store_key == store
    assert keys().state_key == _hkdf(store, _list(b"strongroom sealed v1 state"))
    assert keys().owner_key(OWNER) == _hkdf(store, _list(b"strongroom sealed v1 owner", OWNER.encode()))


def test_the_same_facts_give_the_same_keys() -> None:
    """A server that starts again can open what it sealed."""
    assert keys().state_key == keys().state_key
    assert keys().owner_key(OWNER) == keys().owner_key(OWNER)


def test_every_fact_changes_every_key() -> None:
    """Another root key, measurement, security configuration or store: no key is shared."""
    variants = [
        keys(),
        keys(seed=1),
        keys(measurement="ac" * 32),
        keys(security=b"t" * 32),
        keys(store_id=b"j" * 16),
    ]
    derived = [
        k
        for v in variants
        for k in (v.state_key, v.owner_key(OWNER), v.owner_key(""), v.owner_key("0e" * 32))
    ]
    assert len(set(derived)) == len(derived) == 20


def test_the_sealing_class_is_in_every_key() -> None:
    """A root of another class with the very same secret derives other keys: classes cannot be swapped."""
    secret = bytes(32)
    derived = {
        SealingRoot(sealing_class=name, sealed_for=MEASUREMENT, secret=secret).derive(label="x", context=())
        for name in ("measurement", "signer", "operator", "simulated")
    }
    assert len(derived) == 4


def test_lists_cannot_be_confused() -> None:
    """Lengths stand before the parts: moving a byte from one part to the next gives another list."""
    lists = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), ()]
    assert len({length_prefixed(parts) for parts in lists}) == len(lists)


@pytest.mark.parametrize(
    ("sealing_class", "sealed_for", "secret"),
    [
        ("hardware", MEASUREMENT, bytes(32)),
        ("", MEASUREMENT, bytes(32)),
        ("simulated", "", bytes(32)),
        ("simulated", "AB" * 32, bytes(32)),
        ("simulated", "abc", bytes(32)),
        ("simulated", MEASUREMENT + "\n", bytes(32)),
        ("simulated", MEASUREMENT, bytes(31)),
    ],
)
def test_a_root_of_the_wrong_form_is_our_fault(sealing_class: str, sealed_for: str, secret: bytes) -> None:
    """An unknown class, a measurement that is no lower-case hex, a short secret: Failure."""
    with pytest.raises(Failure):
        SealingRoot(sealing_class=sealing_class, sealed_for=sealed_for, secret=secret)


def test_digests_and_ids_of_the_wrong_length_are_our_fault() -> None:
    """A truncated digest would silently be another configuration."""
    for security, store_id in ((SECURITY[:31], STORE_ID), (SECURITY, STORE_ID[:15]), (b"", STORE_ID)):
        with pytest.raises(Failure):
            keys(security=security, store_id=store_id)


def test_no_secret_is_printed() -> None:
    """repr, which ends up in tracebacks, shows neither root nor key."""
    root = SealingRoot(sealing_class="simulated", sealed_for=MEASUREMENT, secret=b"S" * 32)
    derived = StoreKeys.from_root(root, security_digest=SECURITY, store_id=STORE_ID)
    for text in (repr(root), repr(derived), str(derived)):
        assert "SSSS" not in text
        assert repr(derived.state_key) not in text
        assert "secret" not in text and "state_key" not in text
