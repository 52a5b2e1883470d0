"""Callers' tokens: one vector per check, each wrong in that respect only; nonces and replays; keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import tokens
from strongroom.errors import CODES, AccessRefused, Error, MalformedInput, Unavailable
from strongroom.tokens import Action, NonceBook, check_token, issue_token

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"o" * 32)
DIGEST = hashlib.sha256(b"keyset").digest()
NOW = 1_800_000_000
PUT = Action(method="PUT", path="/v1/models/iris", sha256=hashlib.sha256(b"model").hexdigest())


class Clock:
    """A monotonic clock that a test turns."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


def book(clock: Callable[[], float] | None = None, *, seed: bytes = b"s", capacity: int = 100) -> NonceBook:
    return NonceBook(clock=clock or Clock(), random=lambda n: (seed * n)[:n], capacity=capacity)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


HEADER: dict[str, Any] = {
    "alg": "EdDSA",
    "typ": "strongroom+jwt",
    "jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(raw(KEY))},
}


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a genuine token for `PUT`, with changes; None removes."""
    genuine = {
        "aud": f"strongroom:{DIGEST.hex()}",
        "nonce": book().issue(),
        "iat": NOW,
        "exp": NOW + 120,
        "jti": b64(b"j" * 16),
        "act": {"method": PUT.method, "path": PUT.path, "sha256": PUT.sha256},
    }
    return {name: value for name, value in {**genuine, **changes}.items() if value is not None}


def signed(header: object, payload: object, *, key: ed25519.Ed25519PrivateKey = KEY) -> str:
    """A token of exactly these parts (bytes stand for themselves), signed."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signing_input = ".".join(map(b64, parts))
    return f"{signing_input}.{b64(key.sign(signing_input.encode()))}"


def check(
    token: str, *, action: Action | None = PUT, nonces: NonceBook | None = None, now: int = NOW
) -> tokens.Principal:
    return check_token(token, keyset_digest=DIGEST, nonces=nonces or book(), now=now, action=action)


# --- accepted -----------------------------------------------------------------------------------------------


def test_an_issued_token_names_its_principal() -> None:
    """The principal is the hash of the key's DER SPKI, whoever computes it."""
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    token = issue_token(KEY, keyset_digest=DIGEST, nonce=book().issue(), now=NOW, action=PUT)
    assert check(token).id == hashlib.sha256(spki).hexdigest() == tokens.principal_id(KEY.public_key())


def test_a_token_is_what_the_specification_says() -> None:
    """Built by hand from the specification, it is accepted; the issued one has the same parts."""
    assert check(signed(HEADER, claims())).id == tokens.principal_id(KEY.public_key())
    token = issue_token(
        KEY, keyset_digest=DIGEST, nonce=book().issue(), now=NOW, action=PUT, random=lambda n: b"j" * n
    )
    header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    assert header == HEADER and payload == claims()


def test_a_reading_token_may_be_used_again() -> None:
    """Until it expires: inference does not need a round trip for each call."""
    nonces = book()
    token = issue_token(KEY, keyset_digest=DIGEST, nonce=nonces.issue(), now=NOW, action=None)
    for now in (NOW, NOW + 60, NOW + 179):
        check(token, action=None, nonces=nonces, now=now)


def test_the_longest_genuine_token_fits() -> None:
    """A target as long as the edge takes."""
    action = Action(method="DELETE", path="/" + "a" * (tokens.MAX_TARGET - 1), sha256="0" * 64)
    token = issue_token(KEY, keyset_digest=DIGEST, nonce=book().issue(), now=NOW, action=action)
    assert len(token) <= tokens.MAX_TOKEN
    check(token, action=action)


# --- refused ------------------------------------------------------------------------------------------------


def jwk(**changes: Any) -> dict[str, Any]:
    return {**HEADER, "jwk": {**HEADER["jwk"], **changes}}


def act(**changes: Any) -> dict[str, Any]:
    return claims(act={"method": PUT.method, "path": PUT.path, "sha256": PUT.sha256, **changes})


def hs256_with_the_public_key() -> str:
    """The classic: a symmetric MAC whose key is the public key."""
    signing_input = (
        f"{b64(json.dumps({**HEADER, 'alg': 'HS256'}).encode())}.{b64(json.dumps(claims()).encode())}"
    )
    mac = hmac.digest(raw(KEY), signing_input.encode(), "sha256")
    return f"{signing_input}.{b64(mac + mac)}"  # as long as a signature, or its length would refuse it


def flipped(token: str) -> str:
    """The token with one bit of its signature changed."""
    head, _, signature = token.rpartition(".")
    data = bytearray(base64.urlsafe_b64decode(signature + "=="))
    data[5] ^= 1
    return f"{head}.{b64(bytes(data))}"


def respelled(token: str) -> str:
    """The same signature: only bits that base64 does not use differ."""
    return token[:-1] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[token[-1]]


def duplicate(member: str, value: str) -> bytes:
    """The claims with a second, contradicting member in front."""
    return f'{{"{member}": {value}, '.encode() + json.dumps(claims()).encode()[1:]


STALE = "auth_nonce_stale"
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", "auth_malformed"),
    "two parts": (lambda: ".".join(signed(HEADER, claims()).split(".")[:2]), "auth_malformed"),
    "four parts": (lambda: signed(HEADER, claims()) + ".e30", "auth_malformed"),
    "without signature": (lambda: signed(HEADER, claims()).rpartition(".")[0] + ".", "auth_malformed"),
    "padded": (lambda: signed(HEADER, claims()) + "==", "auth_malformed"),
    "line end behind": (lambda: signed(HEADER, claims()) + "\n", "auth_malformed"),
    "characters that decoders skip": (lambda: signed(HEADER, claims()).replace(".", ".!"), "auth_malformed"),
    "two spellings of one signature": (lambda: respelled(signed(HEADER, claims())), "auth_malformed"),
    "too long": (lambda: signed(HEADER, claims(jti="j" * 2000)), "auth_too_long"),
    "header not JSON": (lambda: signed(b"{", claims()), "auth_malformed"),
    "header an array": (lambda: signed([], claims()), "auth_malformed"),
    "header nested deeply": (lambda: signed(b"[" * 900, claims()), "auth_malformed"),
    "header with two algs": (
        lambda: signed(b'{"alg": "none", ' + json.dumps(HEADER).encode()[1:], claims()),
        "auth_malformed",
    ),
    "alg none": (lambda: signed({**HEADER, "alg": "none"}, claims()), "auth_algorithm"),
    "alg None": (lambda: signed({**HEADER, "alg": None}, claims()), "auth_algorithm"),
    "alg HS256 with the public key": (hs256_with_the_public_key, "auth_algorithm"),
    "alg ES256": (lambda: signed({**HEADER, "alg": "ES256"}, claims()), "auth_algorithm"),
    "alg in lower case": (lambda: signed({**HEADER, "alg": "eddsa"}, claims()), "auth_algorithm"),
    "alg Ed25519": (lambda: signed({**HEADER, "alg": "Ed25519"}, claims()), "auth_algorithm"),
    "typ of any JWT": (lambda: signed({**HEADER, "typ": "JWT"}, claims()), "auth_type"),
    "no typ": (lambda: signed({k: v for k, v in HEADER.items() if k != "typ"}, claims()), "auth_type"),
    "kid": (lambda: signed({**HEADER, "kid": "1"}, claims()), "auth_malformed"),
    "jku": (lambda: signed({**HEADER, "jku": "https://evil/keys"}, claims()), "auth_malformed"),
    "crit and b64": (lambda: signed({**HEADER, "b64": False, "crit": ["b64"]}, claims()), "auth_malformed"),
    "no jwk": (lambda: signed({"alg": "EdDSA", "typ": tokens.TYPE}, claims()), "auth_malformed"),
    "jwk a string": (lambda: signed({**HEADER, "jwk": b64(raw(KEY))}, claims()), "auth_key"),
    "jwk of another curve": (lambda: signed(jwk(crv="X25519"), claims()), "auth_key"),
    "jwk of another type": (lambda: signed(jwk(kty="EC"), claims()), "auth_key"),
    "jwk with a private part": (lambda: signed(jwk(d="x" * 43), claims()), "auth_key"),
    "jwk too short": (lambda: signed(jwk(x=b64(raw(KEY)[:31])), claims()), "auth_key"),
    "jwk not canonical": (lambda: signed(jwk(x=b64(raw(KEY))[:-1] + "9"), claims()), "auth_malformed"),
    "jwk of somebody else": (lambda: signed(jwk(x=b64(raw(OTHER_KEY))), claims()), "auth_signature"),
    "signed by somebody else": (lambda: signed(HEADER, claims(), key=OTHER_KEY), "auth_signature"),
    "signature with one bit changed": (lambda: flipped(signed(HEADER, claims())), "auth_signature"),
    "claims of another token": (
        lambda: ".".join(
            [*signed(HEADER, claims()).split(".")[:1], *signed(HEADER, claims(iat=NOW - 1)).split(".")[1:2],
             signed(HEADER, claims()).split(".")[2]]
        ),
        "auth_signature",
    ),
    "claims not JSON": (lambda: signed(HEADER, b"{]"), "auth_malformed"),
    "claims not UTF-8": (lambda: signed(HEADER, b'{"\xff": 1}'), "auth_malformed"),
    "claims with two expiries": (lambda: signed(HEADER, duplicate("exp", "9999999999")), "auth_malformed"),
    "claims with a float": (lambda: signed(HEADER, claims(iat=float(NOW))), "auth_malformed"),
    "claims with NaN": (lambda: signed(HEADER, claims(exp=float("nan"))), "auth_malformed"),
    "claims with a huge integer": (lambda: signed(HEADER, claims(exp=10**30)), "auth_malformed"),
    "unknown claim": (lambda: signed(HEADER, claims(sub="root")), "auth_claims"),
    "no aud": (lambda: signed(HEADER, claims(aud=None)), "auth_claims"),
    "no iat": (lambda: signed(HEADER, claims(iat=None)), "auth_claims"),
    "no exp": (lambda: signed(HEADER, claims(exp=None)), "auth_claims"),
    "no jti": (lambda: signed(HEADER, claims(jti=None)), "auth_claims"),
    "aud a list": (lambda: signed(HEADER, claims(aud=[f"strongroom:{DIGEST.hex()}"])), "auth_claims"),
    "exp a boolean": (lambda: signed(HEADER, claims(iat=True)), "auth_claims"),
    "exp a string": (lambda: signed(HEADER, claims(exp=str(NOW))), "auth_claims"),
    "short jti": (lambda: signed(HEADER, claims(jti="j")), "auth_claims"),
    "act with another member": (lambda: signed(HEADER, act(host="a")), "auth_claims"),
    "act a string": (lambda: signed(HEADER, claims(act="PUT")), "auth_claims"),
    "digest in upper case": (lambda: signed(HEADER, act(sha256=PUT.sha256.upper())), "auth_claims"),
    "relayed from another genuine server": (
        lambda: signed(HEADER, claims(aud=f"strongroom:{hashlib.sha256(b'other').hexdigest()}")),
        "auth_wrong_server",
    ),
    "for another kind of server": (lambda: signed(HEADER, claims(aud=DIGEST.hex())), "auth_wrong_server"),
    "lives for an hour": (lambda: signed(HEADER, claims(exp=NOW + 3600)), "auth_lifetime"),
    "ends before it begins": (lambda: signed(HEADER, claims(exp=NOW)), "auth_lifetime"),
    "from the future": (lambda: signed(HEADER, claims(iat=NOW + 61, exp=NOW + 121)), "auth_future"),
    "expired": (lambda: signed(HEADER, claims(iat=NOW - 180, exp=NOW - 60)), "auth_expired"),
    "no nonce": (lambda: signed(HEADER, claims(nonce=None)), "auth_nonce_required"),
    "empty nonce": (lambda: signed(HEADER, claims(nonce="")), "auth_nonce_required"),
    "other process's nonce": (lambda: signed(HEADER, claims(nonce=book(seed=b"t").issue())), STALE),
    "nonce that is none": (lambda: signed(HEADER, claims(nonce="x")), "auth_nonce_stale"),
    "nonce a number": (lambda: signed(HEADER, claims(nonce=1)), "auth_claims"),
    "reading token for a changing call": (lambda: signed(HEADER, claims(act=None)), "auth_action_required"),
    "another method": (lambda: signed(HEADER, act(method="DELETE")), "auth_action_mismatch"),
    "another path": (lambda: signed(HEADER, act(path="/v1/models/iris2")), "auth_action_mismatch"),
    "another query": (lambda: signed(HEADER, act(path=PUT.path + "?x=1")), "auth_action_mismatch"),
    "another body": (lambda: signed(HEADER, act(sha256="0" * 64)), "auth_body_mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_has_its_refusal(name: str) -> None:
    """Each vector is a genuine token with one fault."""
    make, code = REFUSED[name]
    with pytest.raises(AccessRefused) as caught:
        check(make())
    assert caught.value.code == code and code in CODES
    assert NOW not in caught.value.args and "iris" not in str(caught.value)


def test_a_changing_token_for_reading_is_refused() -> None:
    """It was made for one call."""
    with pytest.raises(AccessRefused) as caught:
        check(signed(HEADER, claims()), action=None)
    assert caught.value.code == "auth_action_mismatch"


def test_a_changing_token_works_once() -> None:
    """Replayed, it is refused, also with another spelling of the same claims."""
    nonces = book()
    check(signed(HEADER, claims()), nonces=nonces)
    for replay in (signed(HEADER, claims()), signed(HEADER, dict(reversed(claims().items())))):
        with pytest.raises(AccessRefused) as caught:
            check(replay, nonces=nonces)
        assert caught.value.code == "auth_replayed"


def test_two_principals_do_not_get_in_each_others_way() -> None:
    """The same `jti` of another key is another call."""
    nonces = book()
    check(signed(HEADER, claims()), nonces=nonces)
    check(signed(jwk(x=b64(raw(OTHER_KEY))), claims(), key=OTHER_KEY), nonces=nonces)


def test_a_refused_token_is_not_used_up() -> None:
    """A wrong call does not spend the right one."""
    nonces = book()
    with pytest.raises(AccessRefused):
        check_token(
            signed(HEADER, claims()),
            keyset_digest=DIGEST,
            nonces=nonces,
            now=NOW,
            action=Action(method="DELETE", path=PUT.path, sha256=PUT.sha256),
        )
    check(signed(HEADER, claims()), nonces=nonces)


# --- nonces -------------------------------------------------------------------------------------------------


def test_a_nonce_is_taken_for_five_minutes() -> None:
    """At least 300 s after its issue, at most 360 s; never before it was issued."""
    clock = Clock()
    nonces = book(clock)
    nonce = nonces.issue()
    for later in (0, 60, 299, 300):
        clock.now = 10_000.0 + later
        nonces.check(nonce)
    for other in (10_361.0, 20_000.0, 9_899.0):
        clock.now = other
        with pytest.raises(AccessRefused) as caught:
            nonces.check(nonce)
        assert caught.value.code == "auth_nonce_stale"


def test_nonces_cannot_be_made_outside() -> None:
    """The bucket is authenticated: moving it, or any bit, is refused."""
    nonces = book()
    data = base64.urlsafe_b64decode(nonces.issue())
    for at in range(len(data) * 8):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(AccessRefused):
            nonces.check(b64(bytes(changed)))


def test_nonces_change_with_time_and_process() -> None:
    """One per minute and book."""
    clock = Clock()
    nonces = book(clock)
    first = nonces.issue()
    assert first == nonces.issue() != book(clock, seed=b"t").issue()
    clock.now += 60
    assert nonces.issue() != first


def test_the_memory_of_calls_is_bounded_and_fails_closed() -> None:
    """At capacity changing calls are refused; nothing is forgotten while it could still be replayed."""
    clock = Clock()
    nonces = book(clock, capacity=3)
    for name in "abc":
        nonces.consume(name)
    with pytest.raises(Unavailable) as caught:
        nonces.consume("d")
    assert caught.value.code == "auth_busy"
    clock.now += 300
    with pytest.raises(AccessRefused):
        nonces.consume("a")
    clock.now += 120  # by now every nonce that a replay could carry is stale
    nonces.consume("a")


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_new_key_is_loaded() -> None:
    """The content of a key file."""
    pem = tokens.new_key_pem()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert isinstance(tokens.load_key(pem), ed25519.Ed25519PrivateKey)


def pem_of(key: Any, encryption: Any = NoEncryption()) -> bytes:  # noqa: B008 - immutable
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return data


@pytest.mark.parametrize(
    ("pem", "code"),
    [
        (b"", "key_malformed"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key_malformed"),
        (pem_of(KEY, BestAvailableEncryption(b"x")), "key_encrypted"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "key_not_ed25519"),
        (pem_of(rsa.generate_private_key(65537, 2048)), "key_not_ed25519"),
        (KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "key_malformed"),
    ],
    ids=["empty", "garbage", "encrypted", "P-256", "RSA", "public"],
)
def test_other_keys_are_refused(pem: bytes, code: str) -> None:
    """Each with its own code, and without quoting the file."""
    with pytest.raises(MalformedInput) as caught:
        tokens.load_key(pem)
    assert caught.value.code == code and "AAAA" not in str(caught.value)


# --- anything -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.one_of(st.text(max_size=300), st.binary(max_size=200).map(lambda data: signed(HEADER, data))))
@settings(max_examples=200, deadline=None)
def test_any_token_is_a_principal_or_our_refusal(token: str) -> None:
    """A value or `strongroom.errors.Error`, nothing else."""
    try:
        check(token, action=None)
    except Error as error:
        assert error.code in CODES


def test_the_library_would_not_choose_the_algorithm() -> None:
    """Even without our own check of the header, only EdDSA is decoded."""
    with pytest.raises(jwt.InvalidTokenError):
        jwt.PyJWS(algorithms=["EdDSA"]).decode(
            hs256_with_the_public_key(), KEY.public_key(), algorithms=["EdDSA"]
        )


def test_a_token_that_was_seen_before_is_judged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the signature is not checked twice: time, server, nonce and call are looked at whenever it is shown."""
    checked = []
    verify = tokens._verify_signature
    monkeypatch.setattr(tokens, "_verify_signature", lambda *a, **k: checked.append(1) or verify(*a, **k))
    tokens._signed.cache_clear()
    clock = Clock()
    nonces = book(clock)
    token = issue_token(KEY, keyset_digest=DIGEST, nonce=nonces.issue(), now=NOW, action=None)
    for later in (0, 60, 100):
        accepted = check_token(token, keyset_digest=DIGEST, nonces=nonces, now=NOW + later, action=None)
        assert accepted.id == tokens.principal_id(KEY.public_key())
    assert len(checked) == 1
    elsewhere = hashlib.sha256(b"another keyset").digest()
    for code, digest, now, action in (
        ("auth_wrong_server", elsewhere, NOW, None),
        ("auth_expired", DIGEST, NOW + 3600, None),
        ("auth_action_required", DIGEST, NOW, PUT),
    ):
        with pytest.raises(AccessRefused) as refused:
            check_token(token, keyset_digest=digest, nonces=nonces, now=now, action=action)
        assert refused.value.code == code
    clock.now += 3600
    with pytest.raises(AccessRefused) as refused:
        check_token(token, keyset_digest=DIGEST, nonces=nonces, now=NOW, action=None)
    assert refused.value.code == "auth_nonce_stale"
    head, payload, signature = token.split(".")
    forged = f"{head}.{payload}.{'A' * len(signature)}"
    for _ in range(2):
        with pytest.raises(AccessRefused):
            check_token(forged, keyset_digest=DIGEST, nonces=nonces, now=NOW, action=None)
    assert len(checked) == 3  # what is refused is not remembered
