"""A broker releases a key to the code that its owner's policy accepts, and the server takes it from no other broker."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from handovers import NEW, OLD, SECURITY, Clock, Party, Tap, policy_text

from strongroom import key_release, key_seeker, planned
from strongroom.attest.evidence import report_data
from strongroom.attest.keyset import parse_keyset
from strongroom.attest.policy import lint, named_policy, parse_policy
from strongroom.calls import Answer
from strongroom.config import Config, KeyRelease, Security
from strongroom.errors import Error, InvalidConfig, SealRefused, Unavailable
from strongroom.flow import Endpoint, NotSent, Open, Send
from strongroom.handover import encode_take, parse_request, parse_take
from strongroom.handover_source import inherited
from strongroom.key_broker import CHALLENGE_S, Challenges, Kept, KeyBroker
from strongroom.key_broker_server import BrokerApp, load_broker_config, load_kept
from strongroom.key_release import Given, KeyRequest, parse_given, parse_key_request
from strongroom.key_seeker import Seeker, seek
from strongroom.keys import operator_root
from strongroom.problems import status_of

SIGNING = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
PUBLIC = SIGNING.public_key().public_bytes_raw()
KEYS = {"a": bytes([0xA1]) * 32, "b": bytes([0xB2]) * 32}


def accepting(*measurements: str) -> str:
    """A policy for simulated servers with this code, whose key a broker keeps."""
    return policy_text(*measurements).replace('sealing = ["simulated"]', 'sealing = ["operator"]')


def server(
    folder: Path, measurement: str = OLD, *, key_release: str = f"{PUBLIC.hex()}/a", **more: Any
) -> Party:
    """A server whose configuration names a broker's key."""
    party = Party(folder, measurement, **more)
    party.security = replace(SECURITY, sealing="operator", key_release=key_release)
    return party


class World:
    """A broker, and a wire to it that a test can listen to and alter."""

    def __init__(self, policy: str = accepting(OLD), *, signing_key: Ed25519PrivateKey = SIGNING) -> None:
        self.clock = Clock()
        kept = {name: Kept(key=key, policy=parse_policy(policy)) for name, key in KEYS.items()}
        self.broker = KeyBroker(
            kept,
            signing_key=signing_key,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
            random=os.urandom,
        )
        self.tap: Tap = lambda _what, data: data
        self.kept: dict[str, bytes] = {}

    def perform(self, command: Any) -> Any:
        """In the place of `Transport.perform`."""
        if isinstance(command, Open):
            return Endpoint(gate=SimpleNamespace(), link=None)  # type: ignore[arg-type]
        assert isinstance(command, Send)
        what = command.request.path.rpartition("/")[2]
        body = self.tap(what, b"".join(command.request.body.chunks()))
        try:
            status, data = 200, self.answer(what, body)
        except Error as error:
            status, data = (
                status_of(error),
                json.dumps({"detail": error.message, "code": error.code}).encode(),
            )
        self.kept[what] = body
        return Answer(status=status, headers={}, data=self.tap(f"{what} answer", data))

    def answer(self, what: str, body: bytes) -> bytes:
        return self.broker.challenge() if what == "challenge" else self.broker.release(body)

    def ask(self, party: Party) -> Any:
        """What this server gets, for the key in its configuration."""
        return seek(
            Seeker(
                key_release=party.security.key_release,
                attester=party.attester,
                keyset=party.keyset("0" * 32),
                transport=self,  # type: ignore[arg-type]
                now=self.clock.now,
            )
        )


def code_of(action: Callable[[], object]) -> str:
    """The code with which it fails."""
    with pytest.raises(Error) as caught:
        action()
    return caught.value.code


def test_a_server_that_passes_gets_its_key(tmp_path: Path) -> None:
    """The root is that of the owner's key, each time the same, for each name another; the key itself does not pass the
    wire in any of the encodings that are used there."""
    world = World()
    passed: list[bytes] = []
    world.tap = lambda _what, data: (passed.append(data), data)[1]
    for name, key in KEYS.items():
        root, wanted = world.ask(server(tmp_path, key_release=f"{PUBLIC.hex()}/{name}")), operator_root(key)
        assert (root.secret, root.sealing_class, root.sealed_for) == (
            wanted.secret,
            "operator",
            wanted.sealed_for,
        )
        seen = b"".join(passed)
        assert not any(form in seen for form in (key, key.hex().encode(), base64.b64encode(key)[:40]))
    assert world.ask(server(tmp_path)).secret == operator_root(KEYS["a"]).secret


# Who gets nothing


def test_servers_that_the_policy_does_not_accept(tmp_path: Path) -> None:
    """Other code, another root of trust, a weaker configuration."""
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    weak = server(tmp_path)
    weak.security = replace(weak.security, anonymous_upload=True)
    for party in (server(tmp_path, NEW), server(tmp_path, root_key=stranger), weak):
        assert code_of(lambda party=party: World().ask(party)) == "key_release_refused"  # type: ignore[misc]


def test_the_log_says_which_code_was_given_and_refused_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Name, format, measurement, and why not; no key."""
    world = World()
    with caplog.at_level(logging.INFO, "strongroom.keybroker"):
        world.ask(server(tmp_path))
        code_of(lambda: world.ask(server(tmp_path, NEW)))
    assert [record.getMessage() for record in caplog.records] == [
        f"released a to sim code {OLD}",
        f"refused a to sim code {NEW}: measurement_not_accepted",
    ]


def test_a_configuration_that_names_another_broker_or_key(tmp_path: Path) -> None:
    """Its clients would read that its key came from somewhere else; whatever the policy says of brokers."""
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for named in ("none", f"{other}/a", f"{PUBLIC.hex()}/b"):
        world = World(
            accepting(OLD).replace('key_release = ["none"]', f'key_release = ["none", "{other}/a"]')
        )
        lying = server(tmp_path)
        lying.security = replace(lying.security, key_release=named)
        keyset, asked = lying.keyset("0" * 32), server(tmp_path)
        asked.keyset = lambda _id, keyset=keyset: keyset  # type: ignore[method-assign, misc]
        with pytest.raises(Error, match="security_key_release_refused") as caught:
            world.ask(asked)
        assert caught.value.code == "key_release_refused"


def test_a_key_of_another_name(tmp_path: Path) -> None:
    """There is none, and the name in a statement is under the evidence."""
    assert (
        code_of(lambda: World().ask(server(tmp_path, key_release=f"{PUBLIC.hex()}/c")))
        == "key_release_key_unknown"
    )
    world = World()
    world.tap = swapped(name="b")
    assert code_of(lambda: world.ask(server(tmp_path))) == "key_release_refused"


def swapped(**change: Any) -> Tap:
    """Puts another statement into the request, with the evidence as it is."""

    def tap(what: str, data: bytes) -> bytes:
        if what != "release":
            return data
        statement, _ = parse_take(data)
        answer = base64.b64decode(json.loads(data)["answer"])
        return encode_take(replace(parse_key_request(statement), **change).encode(), answer)

    return tap


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"key": X25519PrivateKey.generate().public_key().public_bytes_raw()}, "key_release_refused"),
        ({"challenge": bytes(32)}, "key_release_challenge_unknown"),
        ({"broker": bytes(32)}, "key_release_other_broker"),
    ],
    ids=["key", "challenge", "broker"],
)
def test_a_statement_that_the_evidence_did_not_sign(
    tmp_path: Path, change: dict[str, bytes], code: str
) -> None:
    """Above all another key to encrypt to."""
    world = World()
    world.tap = swapped(**change)
    assert code_of(lambda: world.ask(server(tmp_path))) == code


def test_evidence_for_another_challenge(tmp_path: Path) -> None:
    """Fresh evidence alone counts: a genuine challenge, but not the one that the evidence answers."""
    world = World()
    fresh = key_release.parse_challenge(world.broker.challenge())
    world.tap = swapped(challenge=fresh)
    with pytest.raises(Error, match="report_data") as caught:
        world.ask(server(tmp_path))
    assert caught.value.code == "key_release_refused"


def test_evidence_of_another_purpose_states_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer that any client gets to a nonce of its choice is no statement."""
    monkeypatch.setattr(
        key_seeker,
        "statement_report_data",
        lambda *, nonce, keyset_bytes, statement: report_data(nonce=nonce, keyset_bytes=keyset_bytes),
    )
    with pytest.raises(Error, match="report_data_mismatch"):
        World().ask(server(tmp_path))


def test_a_statement_of_a_hand_over_is_none(tmp_path: Path) -> None:
    """Nor the reverse: each says what it is for."""
    world = World()
    world.ask(server(tmp_path))
    statement, _ = parse_take(world.kept["release"])
    assert code_of(lambda: parse_request(statement)) == "handover_malformed"
    other = statement.replace(b"key release", b"handover")
    assert code_of(lambda: parse_key_request(other)) == "key_release_malformed"


def test_a_replayed_request_is_refused(tmp_path: Path) -> None:
    """Although its answer would open in the server that made it, and nowhere else."""
    world = World()
    world.ask(server(tmp_path))
    assert code_of(lambda: world.broker.release(world.kept["release"])) == "key_release_challenge_unknown"
    assert code_of(lambda: World().broker.release(world.kept["release"])) == "key_release_challenge_unknown"


def test_challenges_end_and_are_this_brokers() -> None:
    """In time, unaltered, once; a refused request uses up nothing, and what is too old is forgotten."""
    clock = Clock()
    book = Challenges(monotonic=clock.monotonic, random=os.urandom)
    one, two = book.issue(), book.issue()
    assert one != two
    book.check(one)
    book.spend(one)
    for action in (lambda: book.check(one), lambda: book.spend(one)):
        assert code_of(action) == "key_release_challenge_unknown"
    book.check(two)
    for at in range(32):
        bad = two[:at] + bytes([two[at] ^ 1]) + two[at + 1 :]
        assert code_of(lambda bad=bad: book.check(bad)) == "key_release_challenge_unknown"  # type: ignore[misc]
    clock.seconds += CHALLENGE_S + 1
    assert code_of(lambda: book.check(two)) == "key_release_challenge_unknown"
    book.spend(book.issue())
    assert len(book._spent) == 1


def test_an_expired_policy_releases_nothing(tmp_path: Path) -> None:
    """The owner's policy ends by itself."""
    ended = re.sub(r"expires = .*", "expires = 2026-01-01T00:00:00Z", accepting(OLD))
    with pytest.raises(Error, match="policy_expired") as caught:
        World(ended).ask(server(tmp_path))
    assert caught.value.code == "key_release_refused"


# What the server takes


def test_a_broker_with_another_key_is_not_believed(tmp_path: Path) -> None:
    """A host with a broker of its own, that answers everything, gives a server no key that the host knows."""
    world = World(signing_key=Ed25519PrivateKey.generate())
    # It passes over what an honest broker would refuse.
    world.broker._public = PUBLIC
    with pytest.raises(SealRefused) as caught:
        world.ask(server(tmp_path))
    assert caught.value.code == "key_release_tampered"


@pytest.mark.parametrize("member", ["key", "sealed", "signature"])
def test_an_altered_answer_is_refused(tmp_path: Path, member: str) -> None:
    """Every byte of it is under the signature."""
    world = World()

    def tap(what: str, data: bytes) -> bytes:
        if what != "release answer":
            return data
        given = parse_given(data)
        value = getattr(given, member)
        return replace(given, **{member: value[:-1] + bytes([value[-1] ^ 1])}).encode()

    world.tap = tap
    assert code_of(lambda: world.ask(server(tmp_path))) == "key_release_tampered"


def test_an_answer_to_another_request_is_refused(tmp_path: Path) -> None:
    """The broker's own, recorded: it was sealed for another key, and signed with another request."""
    world, recorded = World(), {}

    def record(what: str, data: bytes) -> bytes:
        recorded.setdefault(what, data)
        return recorded[what] if what == "release answer" else data

    world.tap = record
    world.ask(server(tmp_path))
    assert code_of(lambda: world.ask(server(tmp_path))) == "key_release_tampered"


def test_a_signed_answer_that_was_sealed_for_another_is_refused() -> None:
    """The agreement has to be with this server's key, whoever signed."""
    private, body = X25519PrivateKey.generate(), b"the request"
    other = KeyRequest(bytes(32), PUBLIC, "a", X25519PrivateKey.generate().public_key().public_bytes_raw())
    given = key_release.give(KEYS["a"], request=other, body=body, signing_key=SIGNING, random=os.urandom)
    with pytest.raises(SealRefused) as caught:
        key_release.take(given, private=private, body=body, broker=PUBLIC)
    assert caught.value.code == "key_release_tampered"


def test_a_key_that_cannot_be_agreed_with_is_refused() -> None:
    """Zero: the agreement would be known to everybody."""
    zero = KeyRequest(bytes(32), PUBLIC, "a", bytes(32))
    give = lambda: key_release.give(KEYS["a"], request=zero, body=b"", signing_key=SIGNING, random=os.urandom)  # noqa: E731
    assert code_of(give) == "key_release_malformed"


def test_no_broker(tmp_path: Path) -> None:
    """The message says so; the exit code of its family is 30."""

    class Dead:
        def perform(self, command: Any) -> Any:
            if isinstance(command, Open):
                return Endpoint(gate=SimpleNamespace(), link=None)  # type: ignore[arg-type]
            raise NotSent("server_unreachable", "the server cannot be reached")

    party = server(tmp_path)
    with pytest.raises(Unavailable, match="key broker") as caught:
        seek(
            Seeker(
                key_release=party.security.key_release, attester=party.attester, keyset=b"", now=Clock().now,
                transport=Dead(),  # type: ignore[arg-type]
            )
        )  # fmt: skip
    assert caught.value.code == "server_unreachable"


GIVEN = Given(key=bytes(32), sealed=bytes(112), signature=bytes(64)).encode()
REQUEST = KeyRequest(challenge=bytes(32), broker=PUBLIC, name="a", key=bytes(32)).encode()


@pytest.mark.parametrize(
    "action",
    [
        *(
            lambda d=d: parse_given(d)
            for d in (b"", b"{}", GIVEN[:-2], GIVEN + b" " * 1024, GIVEN.replace(b"sealed", b"x"))
        ),
        *(
            lambda d=d: parse_key_request(d)
            for d in (
                b"", REQUEST + b" ", REQUEST.replace(b'"a"', b'"A"'), REQUEST.replace(b'"a"', b'"../a"'),
                REQUEST.replace(b"v1", b"v2"), REQUEST.replace(b'"name":"a",', b""),
            )
        ),
        *(lambda d=d: key_release.parse_challenge(d) for d in (b"{}", b'{"challenge":"00"}')),
    ],
)  # fmt: skip
def test_messages_out_of_form_are_refused(action: Callable[[], object]) -> None:
    """With the one code of this protocol."""
    assert code_of(action) == "key_release_malformed"


# Settings


def configured(platform: str = "simulated", **given: str) -> Config:
    """Settings with a broker."""
    usual = {"url": "https://127.0.0.1:1", "broker_key": PUBLIC.hex(), "name": "a"}
    return Config(
        platform=platform,
        security=Security(isolation="in_process"),
        key_release=KeyRelease(**{**usual, **given}),
    )


def test_the_broker_and_the_name_are_attested_and_the_address_is_not() -> None:
    """They are in the configuration, whose digest seals the store."""
    bare = planned.security_configuration(replace(configured(), key_release=KeyRelease()))
    one = planned.security_configuration(configured())
    assert (bare.sealing, bare.key_release, one.sealing) == ("simulated", "none", "operator")
    assert one.key_release == f"{PUBLIC.hex()}/a" and b"key_release" not in bare.encode()
    assert planned.security_configuration(configured(url="https://elsewhere")) == one
    others = (configured(name="b"), configured(broker_key="00" * 32))
    assert (
        len({one.digest(), bare.digest(), *(planned.security_configuration(c).digest() for c in others)}) == 4
    )
    assert planned.security_configuration(configured("tdx")).key_release == one.key_release


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"url": ""}, "key_release_unusable"),
        ({"broker_key": ""}, "key_release_unusable"),
        ({"broker_key": PUBLIC.hex().upper()}, "key_release_unusable"),
        ({"name": ""}, "key_release_unusable"),
        ({"name": "A/b"}, "key_release_unusable"),
        ({"platform": "snp"}, "key_release_unsupported"),
        ({"platform": "sgx"}, "key_release_unsupported"),
        ({"platform": "tpm"}, "key_release_unsupported"),
    ],
)
def test_settings_that_name_no_broker_are_refused(given: dict[str, str], code: str) -> None:
    """Half a broker is none, and platforms with a key of their own take none."""
    assert code_of(lambda: planned.security_configuration(configured(**given))) == code


# The broker's configuration


def written(
    folder: Path, policy: str | None = None, *, more: str = "simulated = true\n", mode: int = 0o600
) -> Path:
    """A broker's files; returns its configuration."""
    (folder / "a.toml").write_text(accepting(OLD) if policy is None else policy)
    (folder / "a.key").write_text(KEYS["a"].hex() + "\n")
    (folder / "a.key").chmod(mode)
    path = folder / "broker.toml"
    path.write_text(
        f'bind = "127.0.0.1:0"\nsigning_key = "broker.pem"\n{more}[keys.a]\nkey = "a.key"\npolicy = "a.toml"\n'
    )
    return path


def test_a_broker_reads_its_keys_and_policies(tmp_path: Path) -> None:
    """Paths are relative to the configuration."""
    config = load_broker_config(written(tmp_path))
    assert config.signing_key == tmp_path / "broker.pem"
    kept = load_kept(config)
    assert kept["a"].key == KEYS["a"] and KEYS["a"].hex() not in repr(kept)


@pytest.mark.parametrize(
    ("policy", "more", "code"),
    [
        ("", "simulated = true\n", "key_broker_unusable"),
        ("not a policy", "simulated = true\n", "key_broker_unusable"),
        ('kind = "UNSAFE_ANY_MEASUREMENT"\n', "simulated = true\n", "key_broker_unusable"),
        (None, "", "key_broker_unusable"),
        ("production", "simulated = true\n", "key_broker_unusable"),
        ("production", "", "key_broker_unusable"),
        ("development", "", "key_broker_unusable"),
        ("UNSAFE_SIMULATION", "simulated = true\n", "key_broker_unusable"),
    ],
    ids=["empty", "no-toml", "any", "simulated", "hardware", "no-code", "development", "simulated-no-code"],
)
def test_policies_that_a_broker_does_not_start_with(
    tmp_path: Path, policy: str | None, more: str, code: str
) -> None:
    """Empty, unsafe, of the other kind, or without code."""
    from strongroom.attest.policy import NAMED_POLICIES

    path = written(tmp_path, NAMED_POLICIES.get(policy, policy) if policy else policy, more=more)
    assert code_of(lambda: load_kept(load_broker_config(path))) == code


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Mode 0600, and 64 hex digits that are not all zero."""
    path = written(tmp_path, mode=0o640)
    assert code_of(lambda: load_kept(load_broker_config(path))) == "operator_key_unusable"
    (tmp_path / "a.key").chmod(0o600)
    (tmp_path / "a.key").write_text("0" * 64)
    assert code_of(lambda: load_kept(load_broker_config(path))) == "operator_key_unusable"


@pytest.mark.parametrize(
    "text",
    [
        "", "bind = 1", 'bind = "h:1"\nsigning_key = "s"\n[keys]', 'bind = "h:1"\nsigning_key = "s"\nx = 1\n[keys.a]',
        'bind = "h:1"\nsigning_key = "s"\n[keys.A]\nkey = "k"\npolicy = "p"', "[",
        'bind = "h:1"\nsigning_key = "s"\nsimulated = 1\n[keys.a]\nkey = "k"\npolicy = "p"',
        'bind = "h:1"\nsigning_key = "s"\n[keys.a]\nkey = "k"', 'bind = "h:1"\nsigning_key = "s"\n[keys]\na = "k"',
    ],
    ids=range(9),
)  # fmt: skip
def test_configurations_that_a_broker_does_not_start_with(tmp_path: Path, text: str) -> None:
    """What is unknown, missing or of another type."""
    path = tmp_path / "broker.toml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load_broker_config(path)
    assert caught.value.code == "key_broker_unusable"
    assert code_of(lambda: load_broker_config(tmp_path / "none")) == "key_broker_unusable"


def test_the_broker_answers_its_two_paths_alone() -> None:
    """Another path or method is not found, too long a body is refused, and a fault of ours has our words only."""
    world = World()
    app = BrokerApp(world.broker)

    def ask(path: str, body: bytes = b"", method: str = "POST") -> tuple[int, dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"",
                      "server": ("h", 1), "scheme": "https", "root_path": ""}  # fmt: skip
        asyncio.run(app(scope, receive, send))
        return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))

    assert ask("/v1/key-release/challenge")[0] == 200
    assert ask("/v1/key-release/challenge", method="GET")[0] == ask("/v1/evidence")[0] == 404
    status, answer = ask("/v1/key-release/release", b"{}")
    assert (status, answer["code"]) == (400, "handover_malformed")
    assert ask("/v1/key-release/release", bytes((2 << 20) + 1))[1]["code"] == "body_too_large"
    world.broker.release = lambda _body: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert ask("/v1/key-release/release", b"secret") == (500, {
        "type": "about:blank", "title": "Internal Server Error", "status": 500, "detail": "a fault of the broker",
        "code": "internal_error",
    })  # fmt: skip
    app.close()


def test_the_field_stands_in_a_keyset_only_where_it_says_something(tmp_path: Path) -> None:
    """So keysets of servers without a broker are what they were; `none` in so many words is another spelling."""
    party = server(tmp_path)
    data = party.keyset("0" * 32)
    assert parse_keyset(data).security == party.security
    named = f'"key_release":"{party.security.key_release}"'.encode()
    assert named in data
    for value, code in (
        ("none", "keyset_not_canonical"),
        ("", "keyset_malformed"),
        (PUBLIC.hex(), "keyset_malformed"),
        (PUBLIC.hex() + "/", "keyset_malformed"),
        (PUBLIC.hex() + "/A", "keyset_malformed"),
    ):
        bad = data.replace(named, f'"key_release":"{value}"'.encode())
        assert code_of(lambda bad=bad: parse_keyset(bad)) == code  # type: ignore[misc]
    party.security = replace(party.security, key_release="none")
    assert b"key_release" not in party.keyset("0" * 32)


def test_a_hand_over_goes_to_servers_of_the_same_broker(tmp_path: Path) -> None:
    """Who keeps the receiver's key kept the giver's: the policy need not name it. Another broker's it has to."""
    one, policy = server(tmp_path), parse_policy(accepting(OLD))
    assert inherited(policy, one.security).security.key_release == ("none", one.security.key_release)
    assert inherited(policy, SECURITY).security.key_release == ("none",)


def test_policies_name_brokers() -> None:
    """None, unless the file names one; each of the wrong form is refused."""
    assert named_policy("production").security.key_release == ("none",)
    for bad in ('[""]', "[]", f'["{PUBLIC.hex()}"]', f'["{PUBLIC.hex()}/A"]', '"none"'):
        text = accepting(OLD).replace('key_release = ["none"]', f"key_release = {bad}")
        assert code_of(lambda text=text: parse_policy(text)).startswith("policy_")  # type: ignore[misc]
    named = parse_policy(
        accepting(OLD).replace('key_release = ["none"]', f'key_release = ["{PUBLIC.hex()}/a"]')
    )
    said = [
        (f.level, f.text) for f in lint(named, now=datetime.now(UTC)) if f.member == "security.key_release"
    ]
    assert [level for level, _ in said] == ["info", "warning"] and "whoever runs the broker" in said[1][1]
