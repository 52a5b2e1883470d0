"""Who is asking: short-lived tokens signed by a caller's own Ed25519 key (docs/spec/channel.md part 5).

Rules
  - A principal *is* a key: its id is the SHA-256 of the key's DER SPKI. There is no registration, no password
    and no issuer, so the host has nothing to hand out and nobody to impersonate.
  - A token names the keyset digest that the client itself verified. Another server, however genuine, cannot
    relay it.
  - A token carries a nonce that this server issued on its monotonic clock, because the host may set wall
    clocks.
  - A token for a changing call names method, target and body digest, and works once.
  - The header is read strictly *before* any library sees the token: the algorithm is ours, never the token's
    choice.

Pure apart from `NonceBook`, which holds a key and a bounded set; time and randomness are handed in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from strongroom.errors import AccessRefused, MalformedInput, Unavailable

TYPE = "strongroom+jwt"
"""The token's `typ` (§5.2): a JWT made for another purpose is not a token here."""
LIFETIME_S = 120
"""Seconds from `iat` to `exp`; long enough for a slow round trip, short enough to be worthless in a stolen
log.
"""
CLOCK_SKEW_S = 60
"""Seconds by which the clocks of client and server may differ."""
MAX_TOKEN = 2048
"""Bytes of a token: the largest genuine one (1 KiB target) stays below."""
MAX_TARGET = 1024
"""Characters of the request target inside a token."""
NONCE_BUCKET_S = 60
"""Seconds for which the server issues the same nonce."""
NONCE_BUCKETS = 5
"""A nonce is taken while its bucket is at most this many buckets old: for at least 5 minutes."""
REMEMBERED_CALLS = 1 << 18
"""Changing calls remembered at once, about 25 MB; beyond it they are refused, never forgotten early."""
REMEMBERED_TOKENS = 1024
"""Tokens of which the signature is not checked again; 2 MB at most."""

_NONCE_LABEL = b"strongroom nonce v1\x00"
_PART = r"[A-Za-z0-9_-]+"
_TOKEN = re.compile(rf"({_PART})\.({_PART})\.([A-Za-z0-9_-]{{86}})", re.ASCII)
_KEY_X = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_JTI = re.compile(r"[A-Za-z0-9_-]{22}", re.ASCII)
_NONCE = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CLAIMS = frozenset({"aud", "nonce", "iat", "exp", "jti"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who proved possession of a key; `id` is the hex SHA-256 of the key's DER SPKI."""

    id: str


@dataclass(frozen=True, slots=True)
class Action:
    """One changing call: HTTP `method`, request `path` (the target as sent, with any query), hex `sha256` of
    the body.
    """

    method: str
    path: str
    sha256: str


def principal_id(public_key: Ed25519PublicKey) -> str:
    """Returns the principal's id: hex SHA-256 of the DER SPKI (§5.1)."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def new_key_pem() -> bytes:
    """Returns a new principal's key as unencrypted PKCS#8 PEM: the content of a key file."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes) -> Ed25519PrivateKey:
    """Returns the key in a key file's content.

    Raises:
        MalformedInput: `key_malformed`, `key_encrypted` or `key_not_ed25519`.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as exc:
        raise MalformedInput(
            "key: expected an unencrypted key, got an encrypted one", code="key_encrypted"
        ) from exc
    except (ValueError, UnsupportedAlgorithm):
        # `from None`: what a parser says about a private key's bytes may quote them.
        raise MalformedInput("key: expected PKCS#8 PEM", code="key_malformed") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise MalformedInput("key: expected an Ed25519 key, got another kind", code="key_not_ed25519")
    return key


@lru_cache(maxsize=16)
def audience(keyset_digest: bytes) -> str:
    """Returns the `aud` of tokens for the server with this keyset digest (32 bytes)."""
    return f"strongroom:{keyset_digest.hex()}"


def issue_token(
    key: Ed25519PrivateKey,
    *,
    keyset_digest: bytes,
    nonce: str,
    now: int,
    action: Action | None,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> str:
    """Returns a token of `key` for the server whose `keyset_digest` (32 bytes) the caller verified (§5.2).

    `now`: the client's clock, Unix seconds. `action`: the changing call that it is for; None makes a token
    for reading and inference, which may be used again until it expires.
    """
    import jwt  # here and not above: 0.1 s that only callers with a key need to spend

    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    header: dict[str, Any] = {"typ": TYPE, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": _b64url(public)}}
    claims: dict[str, Any] = {
        "aud": audience(keyset_digest),
        "nonce": nonce,
        "iat": now,
        "exp": now + LIFETIME_S,
        "jti": _b64url(random(16)),
    }
    if action is not None:
        claims["act"] = {"method": action.method, "path": action.path, "sha256": action.sha256}
    payload = json.dumps(claims, separators=(",", ":"), sort_keys=True).encode("ascii")
    return jwt.PyJWS(algorithms=["EdDSA"]).encode(payload, key, algorithm="EdDSA", headers=header)


def check_token(
    token: str, *, keyset_digest: bytes, nonces: NonceBook, now: int, action: Action | None
) -> Principal:
    """Returns the principal who signed `token` for this server and this call (§5.3).

    The steps, in this order, each with its own code:

    1. length, alphabet and three parts;
    2. header: exactly `alg`, `typ`, `jwk`, and in them only the values of §5.2;
    3. the signature, by the key in the header, EdDSA only;
    4. claims: exactly those of §5.2, each of its type and size;
    5. `aud` names this server's keyset;
    6. `iat` and `exp` against `now` (Unix seconds), lifetime at most `LIFETIME_S`;
    7. the nonce is this server's and fresh;
    8. `act` is this very `action`, and absent where nothing changes;
    9. for a changing call, the token was not used before.

    `keyset_digest` is that of the *connection's* epoch, which is the one that this client verified.

    Raises:
        AccessRefused: `auth_*`, one code for each way to fail.
        Unavailable: `auth_busy`.
    """
    principal, claims = _signed(token)
    if not hmac.compare_digest(claims.aud, audience(keyset_digest)):
        _refuse("token: made for another server's keyset", "auth_wrong_server")
    _check_times(claims, now=now)
    nonces.check(claims.nonce)
    _check_action(claims.act, action)
    if action is not None:
        nonces.consume(f"{principal.id}.{claims.jti}")
    return principal


class NonceBook:
    """The server's nonces, and the changing calls that were already made with them (§5.4). Thread-safe.

    Nonces are stateless: an HMAC over the current `NONCE_BUCKET_S` bucket of the monotonic `clock` (seconds),
    with a key that lives as long as the book. A token can be replayed only while its nonce is taken, so that
    is how long its `jti` is remembered.
    """

    def __init__(
        self, *, clock: Callable[[], float], random: Callable[[int], bytes], capacity: int = REMEMBERED_CALLS
    ) -> None:
        self._clock = clock
        self._key = random(32)
        self._capacity = capacity
        self._lock = threading.Lock()
        self._used: dict[int, set[bytes]] = {}
        self._last = (-1, b"", "")  # the bucket that was issued for last, its nonce, and that as text

    def issue(self) -> str:
        """Returns the current nonce, for the `Strongroom-Nonce` field: 32 base64url characters."""
        bucket = self._bucket()
        if self._last[0] != bucket:
            nonce = self._nonce(bucket)
            self._last = (bucket, nonce, _b64url(nonce))
        return self._last[2]

    def check(self, nonce: str) -> None:
        """Returns if `nonce` is one that this book issued and is fresh.

        Raises:
            AccessRefused: `auth_nonce_required` or `auth_nonce_stale`.
        """
        if not nonce:
            _refuse("token: no server nonce", "auth_nonce_required")
        data = _nonce_bytes(nonce) if _NONCE.fullmatch(nonce) else b""
        bucket = int.from_bytes(data[:8], "big")
        # The MAC first: only what this book issued is worth an opinion about its age.
        if (
            not hmac.compare_digest(data, self._nonce(bucket))
            or not 0 <= self._bucket() - bucket <= NONCE_BUCKETS
        ):
            _refuse("token: the server nonce is stale or from another server", "auth_nonce_stale")

    def consume(self, jti: str) -> None:
        """Remembers `jti` as used.

        Raises:
            AccessRefused: `auth_replayed`, it was used before.
            Unavailable: `auth_busy`; nothing is forgotten before its time to make room.
        """
        mark = hashlib.sha256(jti.encode()).digest()[:16]
        with self._lock:
            bucket = self._bucket()
            for old in [b for b in self._used if bucket - b > NONCE_BUCKETS]:
                del self._used[old]
            if any(mark in marks for marks in self._used.values()):
                _refuse("token: already used for a changing call", "auth_replayed")
            if sum(map(len, self._used.values())) >= self._capacity:
                raise Unavailable(
                    f"more than {self._capacity} changing calls within {NONCE_BUCKETS} minutes",
                    code="auth_busy",
                    retry_after_s=NONCE_BUCKET_S,
                )
            self._used.setdefault(bucket, set()).add(mark)

    def _bucket(self) -> int:
        return int(self._clock() // NONCE_BUCKET_S)

    def _nonce(self, bucket: int) -> bytes:
        last, nonce, _ = self._last
        if bucket == last:
            return nonce
        head = bucket.to_bytes(8, "big")
        return head + hmac.digest(self._key, _NONCE_LABEL + head, "sha256")[:16]


@lru_cache(maxsize=REMEMBERED_TOKENS)
def _nonce_bytes(nonce: str) -> bytes:
    """The bytes of a nonce. That is a fact about its text; whether it is anybody's, its MAC says each time."""
    return _unb64url(nonce)


@dataclass(frozen=True, slots=True)
class _Claims:
    aud: str
    nonce: str
    iat: int
    exp: int
    jti: str
    act: Action | None


def _refuse(message: str, code: str) -> NoReturn:
    raise AccessRefused(message, code=code)


@lru_cache(maxsize=REMEMBERED_TOKENS)
def _signed(token: str) -> tuple[Principal, _Claims]:
    """Steps 1 to 4: who signed which claims. That is a fact about these bytes, whenever and for whatever they are
    shown, so it is remembered: a client shows the token of its reading calls many times. Refusals are not remembered.
    """
    header_bytes, payload = _split(token)
    public = _parse_header(header_bytes)
    claims = _parse_claims(_verify_signature(token, payload, public=public))
    return Principal(id=principal_id(public)), claims


def _split(token: str) -> tuple[bytes, bytes]:
    """Step 1. A regular expression and not a base64 decoder, because decoders skip what they do not know."""
    if len(token) > MAX_TOKEN:
        _refuse(f"token: expected at most {MAX_TOKEN} characters, got {len(token)}", "auth_too_long")
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        _refuse("token: expected three base64url parts, the last of 86 characters", "auth_malformed")
    _unb64url(parts[3])  # its spelling, too, is to be the only one
    return _unb64url(parts[1]), _unb64url(parts[2])


def _parse_header(data: bytes) -> Ed25519PublicKey:
    """Step 2: the public key in a header that is exactly `{alg, typ, jwk}`."""
    header = _parse_json(data)
    if header.get("alg") != "EdDSA":
        _refuse("token: expected alg EdDSA", "auth_algorithm")
    if header.get("typ") != TYPE:
        _refuse(f"token: expected typ {TYPE}", "auth_type")
    jwk = header.get("jwk")
    if header.keys() != {"alg", "typ", "jwk"}:
        # `crit`, `b64`, `kid`, `jku`, `x5c`, `zip`: each of them is a way to mean something else than was
        # checked.
        _refuse("token: expected exactly the header members alg, typ and jwk", "auth_malformed")
    if not isinstance(jwk, dict) or jwk.keys() != {"kty", "crv", "x"}:
        _refuse("token: expected a jwk of exactly kty, crv and x", "auth_key")
    x = jwk["x"]
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or not isinstance(x, str) or not _KEY_X.fullmatch(x):
        _refuse("token: expected an Ed25519 public key", "auth_key")
    try:
        return Ed25519PublicKey.from_public_bytes(_unb64url(x))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise AccessRefused("token: expected an Ed25519 public key", code="auth_key") from exc


def _verify_signature(token: str, payload: bytes, *, public: Ed25519PublicKey) -> bytes:
    """Step 3: the payload, once its signature is known to be `public`'s."""
    import jwt  # see `issue_token`

    try:
        verified = jwt.PyJWS(algorithms=["EdDSA"]).decode(token, public, algorithms=["EdDSA"])
    except jwt.InvalidTokenError:
        raise AccessRefused("token: not signed by the key it carries", code="auth_signature") from None
    if verified != payload:  # two readers of the same token must have read the same bytes
        _refuse("token: not signed by the key it carries", "auth_signature")
    return payload


def _parse_claims(payload: bytes) -> _Claims:
    """Step 4."""
    claims = _parse_json(payload)
    if "nonce" not in claims:
        _refuse("token: no server nonce", "auth_nonce_required")
    if claims.keys() - {"act"} != _CLAIMS:
        _refuse(f"token: expected exactly the claims {', '.join(sorted(_CLAIMS))} and act", "auth_claims")
    aud, nonce, iat, exp, jti = (claims[name] for name in ("aud", "nonce", "iat", "exp", "jti"))
    if not (isinstance(aud, str) and aud.isascii() and isinstance(nonce, str) and nonce.isascii()):
        _refuse("token: expected aud and nonce to be plain strings", "auth_claims")
    if type(iat) is not int or type(exp) is not int:  # `type`, because True is an int
        _refuse("token: expected iat and exp to be integers", "auth_claims")
    if not isinstance(jti, str) or not _JTI.fullmatch(jti):
        _refuse("token: expected a jti of 22 base64url characters", "auth_claims")
    return _Claims(aud=aud, nonce=nonce, iat=iat, exp=exp, jti=jti, act=_parse_action(claims))


def _parse_action(claims: dict[str, Any]) -> Action | None:
    if "act" not in claims:
        return None
    act = claims["act"]
    if not isinstance(act, dict) or act.keys() != {"method", "path", "sha256"}:
        _refuse("token: expected act to be exactly method, path and sha256", "auth_claims")
    method, path, sha256 = act["method"], act["path"], act["sha256"]
    if not all(isinstance(value, str) and value.isascii() for value in (method, path, sha256)):
        _refuse("token: expected act to hold plain strings", "auth_claims")
    if len(method) > 16 or len(path) > MAX_TARGET or not _SHA256.fullmatch(sha256):
        _refuse("token: expected act to hold a method, a target and a lower-case hex SHA-256", "auth_claims")
    return Action(method=method, path=path, sha256=sha256)


def _check_times(claims: _Claims, *, now: int) -> None:
    """Step 6. A backstop: freshness rests on the nonce, since the host may set the clock that gives `now`."""
    if not 0 < claims.exp - claims.iat <= LIFETIME_S:
        _refuse(f"token: expected a lifetime of 1 to {LIFETIME_S} s", "auth_lifetime")
    if claims.iat > now + CLOCK_SKEW_S:
        _refuse(
            f"token: issued more than {CLOCK_SKEW_S} s in the future of this server's clock", "auth_future"
        )
    if now >= claims.exp + CLOCK_SKEW_S:
        _refuse("token: expired", "auth_expired")


def _check_action(claimed: Action | None, action: Action | None) -> None:
    """Step 8."""
    if action is None:
        if claimed is not None:
            _refuse("token: made for a changing call, used for another", "auth_action_mismatch")
        return
    if claimed is None:
        _refuse("token: a changing call needs a token made for it", "auth_action_required")
    if claimed.method != action.method or claimed.path != action.path:
        _refuse("token: made for another method or path", "auth_action_mismatch")
    if not hmac.compare_digest(claimed.sha256.encode(), action.sha256.encode()):
        _refuse("token: made for another body", "auth_body_mismatch")


def _parse_json(data: bytes) -> dict[str, Any]:
    """The object in `data`; no duplicate members, no floats, no NaN, integers below 2^53 only."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # the last would win here, and perhaps the first elsewhere
            raise ValueError("duplicate member")
        return found

    def integer(digits: str) -> int:
        if len(digits) > 16 or abs(value := int(digits)) >= 1 << 53:
            raise ValueError("integer too large")
        return value

    def no_float(_: str) -> NoReturn:
        raise ValueError("not an integer")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=members,
            parse_int=integer,
            parse_float=no_float,
            parse_constant=no_float,
        )
    except (ValueError, RecursionError):
        raise AccessRefused("token: expected strict JSON", code="auth_malformed") from None
    if not isinstance(value, dict):
        _refuse("token: expected a JSON object", "auth_malformed")
    return value


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unb64url(text: str) -> bytes:
    """The bytes of unpadded base64url; only the one canonical spelling of them."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise AccessRefused("token: expected base64url", code="auth_malformed") from None
    if _b64url(data) != text:
        _refuse("token: expected the canonical base64url of its bytes", "auth_malformed")
    return data
