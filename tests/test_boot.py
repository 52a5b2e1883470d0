"""What happens before the server's own imports: configuration that is attested, preloaded digests, exit codes."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom import boot
from strongroom.config import Config, Preload, Security
from strongroom.errors import AttestationRefused, Error, Failure, InvalidConfig, SealRefused, Unavailable

SIMULATED = Config(platform="simulated")


def test_the_attested_configuration_is_that_of_the_settings() -> None:
    """What clients see in the keyset is what the server was told; simulation claims no protection from the host."""
    plain = boot.security_configuration(SIMULATED)
    assert (plain.sealing, plain.host_excluded) == ("simulated", False)
    assert (plain.anonymous_upload, plain.verify_on_load) == (False, "tags")
    changed = replace(SIMULATED, security=Security(anonymous_upload=True, verify_on_load="sha256"))
    other = boot.security_configuration(changed)
    assert (other.anonymous_upload, other.verify_on_load) == (True, "sha256")
    assert other.digest() != plain.digest()


def test_limits_and_addresses_are_not_attested() -> None:
    """They can only make a server refuse work, so two servers that differ in them are the same code."""
    other = replace(SIMULATED, bind="0.0.0.0:1", epoch_s=60, limits=replace(Config().limits, models=1))
    assert boot.security_configuration(other) == boot.security_configuration(SIMULATED)


def test_preloaded_models_are_digested(tmp_path: Path) -> None:
    """Name and SHA-256 of each file; one that cannot be read is refused."""
    file = tmp_path / "m.onnx"
    file.write_bytes(b"model")
    settings = Config(preload=(Preload(name="m", path=str(file)),))
    assert boot.preload_digests(settings) == (("m", hashlib.sha256(b"model").hexdigest()),)
    file.unlink()
    with pytest.raises(InvalidConfig) as caught:
        boot.preload_digests(settings)
    assert caught.value.code == "preload_unreadable"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidConfig("x"), 20),
        (Unavailable("x", code="store_locked"), 30),
        (SealRefused("x", code="store_other_measurement"), 10),
        (AttestationRefused("x"), 10),
        (Failure("x", code="start_refused"), 1),
    ],
)
def test_a_server_that_does_not_start_says_why(
    error: Error, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the stable code, and the exit code of the family."""
    assert boot.report(error) == expected
    assert capsys.readouterr().err == f"strongroom: cannot start: x [{error.code}]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_that_cannot_be_hardened_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure with its code, not a foreign exception."""

    class Libc:
        def prctl(self, *_arguments: int) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Libc())
    monkeypatch.setattr("os.umask", lambda _mode: 0)
    monkeypatch.setattr("resource.setrlimit", lambda _which, _limits: None)
    with pytest.raises(Failure) as caught:
        boot.harden()
    assert caught.value.code == "start_refused"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 1 << 20), (65_536, 1 << 20)),
        ((1024, 4096), (4096, 4096)),
        ((1024, -1), (65_536, -1)),
        ((100_000, 1 << 20), None),
        ((-1, -1), None),
    ],
)
def test_a_server_takes_the_descriptors_that_it_may_have(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    """Up to the number of the units, and never fewer than it has; -1 is no limit."""
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _which: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _which, limits: taken.append(limits))
    boot.raise_descriptors()
    assert taken == ([] if expected is None else [expected])


def test_a_system_that_gives_no_descriptors_starts_a_server_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library OS may not know the call."""

    def unknown(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("resource.getrlimit", lambda _which: (1024, 4096))
    monkeypatch.setattr("resource.setrlimit", unknown)
    boot.raise_descriptors()
