"""`attest.releases`: a manifest counts under a named key, in its time, as a whole; and nothing else does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from policies import entry, production
from test_facts import claims
from worlds import MEASUREMENT, NOW, OTHER_MEASUREMENT, Server, ed25519, policy, verify

from strongroom import attest
from strongroom.attest.batch import Single
from strongroom.attest.evidence import Claims
from strongroom.attest.policy import Policy, parse_policy, render_policy
from strongroom.attest.releases import (
    PAYLOAD_TYPE,
    ReferenceValue,
    Release,
    Released,
    is_manifest,
    sign_release,
    verify_release,
)
from strongroom.attest.requirements import Given, Requirement
from strongroom.errors import CODES, AttestationRefused, Error, InvalidPolicy, MalformedInput

KEY = ed25519("auditor")
NAME = KEY.public_key().public_bytes_raw().hex()
VALUE = ReferenceValue("sim", MEASUREMENT, ())
RELEASE = Release(
    product="acme/strongroom",
    version="1.4.0",
    security_version=3,
    issued=NOW - timedelta(days=1),
    expires=NOW + timedelta(days=30),
    values=(VALUE,),
)
MANIFEST = sign_release(RELEASE, (KEY,))


def code_of(call: Callable[[], object]) -> str:
    """The code with which the call is refused."""
    with pytest.raises(Error) as caught:
        call()
    assert caught.value.code in CODES
    return caught.value.code


def verified(data: bytes) -> Release:
    """By the auditor's key, now."""
    return verify_release(data, keys=(NAME,), now=NOW)


def altered(**changed: Any) -> bytes:
    """The envelope with members replaced; the payload's signature made anew where the payload is."""
    top = json.loads(MANIFEST)
    if "payload" in changed:
        payload = json.dumps(changed.pop("payload")).encode()
        kind = PAYLOAD_TYPE.encode()
        signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
        top["payload"] = base64.b64encode(payload).decode()
        top["signatures"] = [{"keyid": "", "sig": base64.b64encode(KEY.sign(signed)).decode()}]
    return json.dumps(top | changed).encode()


def payload(**changed: Any) -> dict[str, Any]:
    """The payload with members replaced; None leaves one out."""
    document = json.loads(RELEASE.payload()) | changed
    return {k: v for k, v in document.items() if v is not None}


def test_a_manifest_that_a_named_key_signed_is_read() -> None:
    """The very release, also beside signatures of others, and among several named keys."""
    assert verified(MANIFEST) == RELEASE
    both = sign_release(RELEASE, (ed25519("stranger"), KEY))
    assert verify_release(both, keys=("00" * 32, NAME), now=NOW) == RELEASE
    assert is_manifest(MANIFEST)
    assert not is_manifest(b'{"tcb_info": 1}')
    assert verified(altered(payload=payload())) == RELEASE


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "release_malformed"),
        (b"[]", "release_malformed"),
        (MANIFEST[:-1], "release_malformed"),
        (altered(extra=1), "release_malformed"),
        (altered(payloadType="application/vnd.in-toto+json"), "release_malformed"),
        (altered(signatures=[]), "release_not_signed"),
        (altered(signatures=[{"keyid": NAME, "sig": base64.b64encode(bytes(64)).decode()}]), "release_not_signed"),
        (altered(signatures=[{"keyid": NAME, "sig": ""}]), "release_not_signed"),
        (altered(signatures=[{"sig": ""}]), "release_malformed"),
        (altered(signatures=[{"keyid": NAME, "sig": "!"}]), "release_malformed"),
        (altered(signatures=[{"keyid": "", "sig": ""}] * 17), "release_malformed"),
        (sign_release(RELEASE, (ed25519("stranger"),)), "release_not_signed"),
        (MANIFEST.replace(b'"payload":"', b'"payload":"\\u0041'), "release_malformed"),
        (sign_release(replace(RELEASE, expires=NOW), (KEY,)), "release_expired"),
        (
            sign_release(replace(RELEASE, issued=NOW + timedelta(seconds=301)), (KEY,)),
            "release_from_future",
        ),
        *(
            (altered(payload=document), "release_malformed")
            for document in (
                payload(type="strongroom release v2"),
                payload(type=None),
                payload(expires=None),
                payload(extra=1),
                payload(product="A"),
                payload(product=""),
                payload(version=""),
                payload(security_version=65536),
                payload(security_version=True),
                payload(security_version=-1),
                payload(issued="2026-11-22"),
                payload(issued="2026-02-30T00:00:00Z"),
                payload(expires="2026-11-22T12:00:00Z"),
                payload(reference_values=[]),
                payload(reference_values=[{"format": "sim", "measurement": MEASUREMENT}]),
                payload(reference_values=[{"format": "sev", "measurement": MEASUREMENT, "registers": {}}]),
                payload(reference_values=[{"format": "sim", "measurement": "00", "registers": {}}]),
                payload(reference_values=[{"format": "sim", "measurement": MEASUREMENT, "registers": {"x": ""}}]),
                payload(reference_values=[{"format": "sim", "measurement": MEASUREMENT, "registers": []}]),
                payload(reference_values=[{"format": "tdx", "measurement": "00" * 48, "registers": {}}]),
            )
        ),
    ],
)  # fmt: skip
def test_other_manifests_are_refused(data: bytes, code: str) -> None:
    """Out of form, unsigned, by a stranger, too old, too new; a payload signed by the right key must be strict too."""
    assert code_of(lambda: verified(data)) == code


def test_every_byte_of_the_payload_is_signed() -> None:
    """Any other byte of what the base64 holds is another payload."""
    top = json.loads(MANIFEST)
    body = base64.b64decode(top["payload"])
    for at in range(len(body)):
        other = bytearray(body)
        other[at] ^= 1
        data = json.dumps(top | {"payload": base64.b64encode(bytes(other)).decode()}).encode()
        assert code_of(lambda data=data: verified(data)) == "release_not_signed"  # type: ignore[misc]


def test_arguments_that_are_no_release_or_no_time() -> None:
    """Nobody signs by accident what nobody could read."""
    assert code_of(lambda: sign_release(RELEASE, ())) == "release_malformed"
    assert code_of(lambda: sign_release(RELEASE, (KEY,) * 17)) == "release_malformed"
    assert code_of(lambda: replace(RELEASE, expires=RELEASE.issued)) == "release_malformed"
    assert code_of(lambda: replace(RELEASE, values=(VALUE,) * 257)) == "release_malformed"
    registers = (("rtmr1", "00" * 48), ("rtmr0", "00" * 48))
    assert code_of(lambda: ReferenceValue("sgx", MEASUREMENT, registers)) == "release_malformed"
    with pytest.raises(TypeError, match="aware"):
        verify_release(MANIFEST, keys=(NAME,), now=NOW.replace(tzinfo=None))
    assert code_of(lambda: verify_release(MANIFEST, keys=(), now=NOW)) == "release_not_signed"
    assert code_of(lambda: verify_release(MANIFEST, keys=("ff" * 32,), now=NOW)) == "release_not_signed"


# In a policy

BY_RELEASE = f"""kind = "UNSAFE_SIMULATION"
expires = 2027-01-01T00:00:00Z
[[sim]]
root = "{policy().roots("sim")[0]}"
release_keys = ["{NAME}"]
release_product = "acme/strongroom"
min_release_svn = 3
min_svn = 1
max_evidence_age_s = 300
[security]
sealing = ["simulated"]
host_excluded = [false]
isolation = ["in_process"]
sandbox = []
admission = ["structural"]
anonymous_upload = [false]
verify_on_load = ["tags"]
logging = ["no_content"]
"""


def connect(server: Server, *manifests: bytes, by: str = BY_RELEASE) -> list[str]:
    """Codes of the failed checks of a connection to the server, which staples the manifests."""
    try:
        attest.verify(
            server.evidence,
            parse_policy(by),
            nonce=server.nonce,
            keyset_bytes=server.keyset_bytes,
            inclusion=Single(),
            channel=server.leaf,
            endorsements=tuple((f"release-{i}", data) for i, data in enumerate(manifests)),
            now=NOW,
        )
    except AttestationRefused as refusal:
        assert refusal.verdict is not None
        return [c.code for c in refusal.verdict.failures]
    return []


def test_a_connection_rests_on_a_release() -> None:
    """The server staples a manifest of its build; others beside it do no harm."""
    assert connect(Server(), MANIFEST) == []
    stranger = sign_release(RELEASE, (ed25519("stranger"),))
    assert connect(Server(), b"{" + PAYLOAD_TYPE.encode(), stranger, MANIFEST) == []
    verify(Server())  # by measurement, as ever


def test_code_of_no_release_is_refused() -> None:
    """No manifest, another build, a stranger's, another product's, an older release's, an expired one."""
    refused = ["release_not_accepted"]
    assert connect(Server()) == refused
    assert connect(Server(measurement=OTHER_MEASUREMENT), MANIFEST) == refused
    assert connect(Server(), sign_release(RELEASE, (ed25519("stranger"),))) == refused
    assert connect(Server(), sign_release(replace(RELEASE, product="acme/other"), (KEY,))) == refused
    assert connect(Server(), sign_release(replace(RELEASE, security_version=2), (KEY,))) == refused
    assert connect(Server(), sign_release(replace(RELEASE, expires=NOW), (KEY,))) == refused
    assert connect(Server(), MANIFEST, by=BY_RELEASE.replace("min_svn = 1", "min_svn = 2")) == ["svn_too_low"]
    both = BY_RELEASE.replace("release_keys", f'measurements = ["{OTHER_MEASUREMENT}"]\nrelease_keys', 1)
    assert connect(Server(), MANIFEST, by=both) == ["measurement_not_accepted"]


def tdx(shown: Claims, *values: ReferenceValue) -> list[str]:
    """Codes of the failed checks of a TDX policy by release."""
    text = entry("tdx", "\n".join(
        [f'release_keys = ["{NAME}"]', 'release_product = "acme/strongroom"', "min_release_svn = 3",
         'tcb_statuses = ["UpToDate"]', "accepted_advisories = []", "min_evaluation = 17", ""]
    ))  # fmt: skip
    given = Given(now=NOW, manifests=(sign_release(replace(RELEASE, values=values), (KEY,)),))
    by = parse_policy(production(text))
    assert parse_policy(render_policy(by, heading="x")) == by
    return [c.code for c in by.appraise_claims(shown, given=given) if not c.passed]


def test_a_tds_release_names_all_its_registers_and_one_value_must_match_whole() -> None:
    """Halves of two builds do not add up; MRTD alone is no release."""
    shown = claims("tdx")
    registers = tuple((f"rtmr{i}", shown.fact(f"rtmr{i}") or "") for i in range(4))
    build = ReferenceValue("tdx", shown.measurement, registers)
    assert tdx(shown, build) == []
    assert tdx(claims("tdx", rtmr2="ee" * 48), build) == ["release_not_accepted"]
    other = ReferenceValue("tdx", shown.measurement, (*registers[:2], ("rtmr2", "ee" * 48), registers[3]))
    assert tdx(claims("tdx", rtmr2="ee" * 48), build, other) == []
    assert tdx(claims("tdx", rtmr2="ee" * 48, rtmr1="dd" * 48), build, other) == ["release_not_accepted"]
    assert tdx(shown, replace(build, format="snp", registers=())) == ["release_not_accepted"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (f'["{NAME}"]', "[]", "policy_accepts_nothing"),
        (f'["{NAME}"]', '["zz"]', "policy_invalid"),
        (f'["{NAME}"]', f'["{NAME}", "{NAME}"]', "policy_invalid"),
        ('"acme/strongroom"', '"ACME"', "policy_invalid"),
        ("min_release_svn = 3", "min_release_svn = 65536", "policy_invalid"),
        ("min_release_svn = 3", "", "policy_missing_member"),
        ('release_product = "acme/strongroom"', "", "policy_missing_member"),
        (f'release_keys = ["{NAME}"]', "", "policy_missing_member"),
    ],
)
def test_files_that_name_releases_out_of_form_are_refused(old: str, new: str, code: str) -> None:
    """The three members go together."""
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(BY_RELEASE.replace(old, new))
    assert caught.value.code == code


def test_the_rule_warns_of_who_holds_the_key() -> None:
    """And of releases of any age."""
    rule = Released((NAME,), "p", 0)
    assert "chooses the code" in " ".join(rule.weaknesses())
    assert "every release" in " ".join(rule.weaknesses())
    assert isinstance(parse_policy(BY_RELEASE), Policy)
    assert (
        "policy.release"
        in Requirement("nitro", (*parse_policy(production(entry("nitro"))).requirements[0].rules, rule)).ids()
    )


def test_a_manifest_is_malformed_in_one_way_only() -> None:
    """What no manifest is: our own error, whatever the bytes."""
    for at in range(0, len(MANIFEST), 7):
        for data in (MANIFEST[:at], MANIFEST[:at] + b"\xff" + MANIFEST[at + 1 :]):
            with pytest.raises((MalformedInput, AttestationRefused)):
                verified(data)
