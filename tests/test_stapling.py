"""`stapling`: what an operator lays beside the evidence goes out with it, is renewed in place, and decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from serving import serving

import strongroom
from strongroom.attest.batch import Single
from strongroom.attest.evidence import MAX_EVIDENCE, EvidenceAnswer, encode_answer, parse_answer
from strongroom.attest.releases import ReferenceValue, Release, sign_release
from strongroom.attester import SimulatedAttester
from strongroom.client import SYSTEM_CLOCK
from strongroom.errors import AttestationRefused, InvalidConfig
from strongroom.stapling import MAX_STAPLED, StapledAttester

KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
NOW = SYSTEM_CLOCK.now().replace(microsecond=0)


def stapled(*paths: Path) -> StapledAttester:
    """A simulated attester with files beside it."""
    return StapledAttester(SimulatedAttester(KEY, "5a" * 32), paths)


def documents(attester: StapledAttester) -> list[bytes]:
    """What goes out."""
    evidence = attester.evidence(bytes(63) + b"x", now=NOW)
    answer = parse_answer(encode_answer(EvidenceAnswer(evidence=evidence, keyset=b"{}", inclusion=Single())))
    return [data for _, data in answer.evidence.endorsements]


def test_files_go_out_and_are_renewed_in_place(tmp_path: Path) -> None:
    """Read again for every answer; what cannot be read now goes out as it last was."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"first")
    other.write_bytes(b"second")
    attester = stapled(one, other)
    assert documents(attester) == [b"first", b"second"]
    one.write_bytes(b"renewed")
    assert documents(attester) == [b"renewed", b"second"]
    for spoil in (
        other.unlink,
        lambda: other.write_bytes(b""),
        lambda: other.write_bytes(bytes(MAX_EVIDENCE + 1)),
    ):
        spoil()
        assert documents(attester) == [b"renewed", b"second"]
    assert (attester.format, attester.measurement) == ("sim", "5a" * 32)
    assert documents(stapled()) == []


def test_files_that_cannot_go_out_stop_the_start(tmp_path: Path) -> None:
    """Missing, empty, too long, together too long, too many."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    large.write_bytes(bytes(MAX_EVIDENCE))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "longer").write_bytes(bytes(MAX_EVIDENCE + 1))
    wrong = [
        (tmp_path / "missing",),
        (tmp_path,),
        (tmp_path / "empty",),
        (tmp_path / "longer",),
        (large,) * (MAX_STAPLED // MAX_EVIDENCE) + (small,),
        (small,) * 9,
    ]
    for paths in wrong:
        with pytest.raises(InvalidConfig) as caught:
            stapled(*paths)
        assert caught.value.code == "endorsements_unusable"
    assert len(documents(stapled(*(small,) * 8))) == 8


@pytest.mark.slow
def test_a_client_that_pins_the_auditor_accepts_a_released_server(tmp_path: Path) -> None:
    """The manifest is signed after the server's measurement is known, laid beside it, and renewed while it runs."""
    manifest, policy = tmp_path / "release.json", tmp_path / "policy.toml"
    release = Release(
        product="acme/strongroom",
        version="1",
        security_version=1,
        issued=NOW - timedelta(hours=1),
        expires=NOW + timedelta(days=1),
        values=(ReferenceValue("sim", "00" * 32, ()),),
    )
    manifest.write_bytes(sign_release(release, (KEY,)))
    with serving(tmp_path / "server", settings=f"endorsements = [{json.dumps(str(manifest))}]") as server:
        text = server.write_policy(policy).read_text()
        named = f'release_keys = ["{KEY.public_key().public_bytes_raw().hex()}"]'
        lines = [line for line in text.splitlines() if not line.startswith("measurements")]
        at = next(i for i, line in enumerate(lines) if line.startswith("root"))
        lines[at:at] = [named, 'release_product = "acme/strongroom"', "min_release_svn = 1"]
        policy.write_text("\n".join(lines))

        def code() -> str:
            try:
                strongroom.connect(server.url, policy=str(policy)).close()
            except AttestationRefused as refusal:
                return refusal.code
            return ""

        assert code() == "release_not_accepted"
        released = replace(release, values=(ReferenceValue("sim", server.measurement, ()),))
        manifest.write_bytes(sign_release(released, (KEY,)))
        assert code() == ""
        manifest.write_bytes(sign_release(replace(released, security_version=0), (KEY,)))
        assert code() == "release_not_accepted"


@pytest.mark.slow
def test_a_server_does_not_start_beside_what_no_client_would_accept(tmp_path: Path) -> None:
    """It verifies its own evidence with what it staples."""
    stray = tmp_path / "stray"
    stray.write_bytes(b"neither a bundle nor a certificate nor a manifest")
    with (
        pytest.raises(RuntimeError, match="start_refused"),
        serving(tmp_path / "server", settings=f"endorsements = [{json.dumps(str(stray))}]"),
    ):
        pass
