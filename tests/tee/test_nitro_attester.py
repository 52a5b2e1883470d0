"""`tee.nitro`: documents through the Nitro Secure Module, with its errors and what it must not be believed."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import cbor2
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attest"))
import fake_aws
from emulators import Nsm, direct_device

from strongroom import keys
from strongroom.attest.evidence import Claims
from strongroom.attest.nitro import check_nonce, examine_nitro
from strongroom.errors import Failure, InvalidConfig, MalformedInput, Unavailable
from strongroom.tee.nitro import ATTEMPTS, NitroAttester, attestation_request

DATA, NONCE = bytes(range(64)), bytes(range(32, 64))
NOW = fake_aws.NOW
OPERATOR = keys.operator_root(bytes(range(32)))


def mint(user_data: bytes, nonce: bytes | None) -> bytes:
    """A document of the test hypervisor's."""
    return fake_aws.mint(user_data=user_data, nonce=nonce)


def attester(device: Path, pauses: list[float] | None = None) -> NitroAttester:
    """The attester under test; its pauses are noted, not waited for."""
    noted = [] if pauses is None else pauses
    return NitroAttester(device, operator_key=OPERATOR, sleep=noted.append)


def test_a_document_carries_data_and_nonce_and_verifies(tmp_path: Path) -> None:
    """Our own verifier, under the root of the test hypervisor; without a nonce the member is null."""
    with direct_device(Nsm(mint), tmp_path / "nsm") as device:
        one = attester(device)
        evidence = one.evidence(DATA, now=NOW, nonce=NONCE)
        without = one.evidence(DATA, now=NOW)
    found = examine_nitro(evidence.data, endorsements=(), roots=(fake_aws.ROOT,), now=NOW)
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert (found.claims.report_data, found.claims.measurement) == (DATA, one.measurement)
    assert one.measurement == fake_aws.PCR0.hex()
    assert check_nonce(found.claims, nonce=NONCE).passed
    assert evidence.endorsements == ()
    assert one.sealing_root() is OPERATOR
    bare = examine_nitro(without.data, endorsements=(), roots=(fake_aws.ROOT,), now=NOW).claims
    assert isinstance(bare, Claims) and bare.fact("nonce") is None


@pytest.mark.parametrize("open_ended", [False, True])
def test_both_spellings_of_documents_are_taken(open_ended: bool, tmp_path: Path) -> None:
    """AWS writes maps without a length since 2025."""
    made = Nsm(lambda data, nonce: fake_aws.mint(user_data=data, nonce=nonce, open_ended=open_ended))
    with direct_device(made, tmp_path / "nsm") as device:
        assert DATA in attester(device).evidence(DATA, now=NOW).data


def test_a_question_is_what_the_module_reads() -> None:
    """The independent reader finds the three members; an empty nonce is null."""
    asked = {"user_data": DATA, "nonce": NONCE, "public_key": None}
    assert cbor2.loads(attestation_request(user_data=DATA, nonce=NONCE)) == {"Attestation": asked}
    assert cbor2.loads(attestation_request(user_data=DATA, nonce=b""))["Attestation"]["nonce"] is None


def test_a_busy_module_is_asked_again_and_given_up(tmp_path: Path) -> None:
    """With growing pauses, a bounded number of times."""
    emulator, pauses = Nsm(mint), []  # type: ignore[var-annotated]
    with direct_device(emulator, tmp_path / "nsm") as device:
        one = attester(device, pauses)
        emulator.fail("ioctl", errno.EBUSY, errno.ETIMEDOUT)
        assert DATA in one.evidence(DATA, now=NOW).data
        assert pauses == [0.05, 0.1]
        emulator.fail("ioctl", *[errno.ETIMEDOUT] * ATTEMPTS)
        with pytest.raises(Unavailable, match="ETIMEDOUT") as caught:
            one.evidence(DATA, now=NOW)
    assert caught.value.code == "attester_unavailable"


@pytest.mark.parametrize("error", [errno.EFAULT, errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOMEM])
def test_other_errors_of_the_driver_are_not_asked_away(error: int, tmp_path: Path) -> None:
    """They say which."""
    emulator, pauses = Nsm(mint), []  # type: ignore[var-annotated]
    with direct_device(emulator, tmp_path / "nsm") as device:
        one = attester(device, pauses)
        emulator.fail("ioctl", error)
        with pytest.raises(Unavailable, match=errno.errorcode[error]):
            one.evidence(DATA, now=NOW)
    assert not pauses


@pytest.mark.parametrize("error", [errno.ENOTTY, errno.ENODEV, errno.ENXIO, errno.EPERM, errno.EACCES])
def test_a_device_that_is_no_module_or_not_ours_to_ask(error: int, tmp_path: Path) -> None:
    """The raw call takes CAP_SYS_ADMIN."""
    emulator = Nsm(mint)
    emulator.fail("ioctl", error)
    with direct_device(emulator, tmp_path / "nsm") as device, pytest.raises(InvalidConfig) as caught:
        attester(device)
    assert caught.value.code == "platform_not_found"
    assert ("CAP_SYS_ADMIN" in caught.value.message) == (error in (errno.EPERM, errno.EACCES))


def test_without_the_device_there_is_no_enclave(tmp_path: Path) -> None:
    """A server that was meant for an enclave does not start elsewhere."""
    with pytest.raises(InvalidConfig, match="ENOENT") as caught:
        attester(tmp_path / "absent")
    assert caught.value.code == "platform_not_found"


@pytest.mark.parametrize(
    ("answer", "family"),
    [
        ({"Error": "InternalError"}, Unavailable),
        ({"Error": "InvalidArgument"}, Failure),
        ({"Error": "InputTooLarge"}, Failure),
        ({"Error": "\x1b[31m a stranger's words"}, Failure),
        ({"Error": 7}, Failure),
        ({"GetRandom": {"random": b"x"}}, Failure),
        ({"Attestation": {}}, Failure),
        ({"Attestation": {"document": b""}}, Failure),
        ({"Attestation": {"document": b"no COSE"}}, Failure),
        ({"Attestation": b"x"}, Failure),
        ("DescribeNSM", Failure),
        ([], Failure),
    ],
)
def test_an_answer_that_is_no_document(answer: object, family: type[Exception], tmp_path: Path) -> None:
    """Errors of the module, other answers, and words that are not repeated."""
    emulator = Nsm(mint)
    with direct_device(emulator, tmp_path / "nsm") as device:
        one = attester(device)
        emulator.answer = answer
        with pytest.raises(family) as caught:
            one.evidence(DATA, now=NOW)
    assert "stranger" not in str(caught.value)
    assert isinstance(caught.value, Unavailable) or getattr(caught.value, "code", "") == "attester_malformed"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"user_data": bytes(64)}, "user data"),
        ({"user_data": None}, "user data"),
        ({"user_data": DATA[:63]}, "user data"),
        ({"nonce": bytes(32)}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": NONCE + b"\x00"}, "nonce"),
        ({"pcrs": {0: bytes(48)}}, "PCR0"),
        ({"pcrs": {1: bytes(48)}}, "pcrs"),
    ],
)
def test_a_document_that_is_not_the_answer_is_not_passed_on(
    changed: dict[str, object], why: str, tmp_path: Path
) -> None:
    """Other data, another nonce, another enclave."""
    emulator = Nsm(mint)
    with direct_device(emulator, tmp_path / "nsm") as device:
        one = attester(device)
        emulator.mint = lambda data, nonce: fake_aws.mint(**({"user_data": data, "nonce": nonce} | changed))
        with pytest.raises(Failure, match=why) as caught:
            one.evidence(DATA, now=NOW, nonce=NONCE)
    assert caught.value.code == "attester_malformed"


@pytest.mark.parametrize("size", [0, 0x3001, 1 << 63, 5])
def test_a_length_that_the_driver_makes_up(size: int, tmp_path: Path) -> None:
    """Nothing, more than there is room for, or less than it wrote."""
    emulator = Nsm(mint)
    with direct_device(emulator, tmp_path / "nsm") as device:
        one = attester(device)
        emulator.size = size
        with pytest.raises(Failure) as caught:
            one.evidence(DATA, now=NOW)
    assert caught.value.code == "attester_malformed"


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size_is_not_asked_for(size: int, tmp_path: Path) -> None:
    """The module would take it as it is."""
    with direct_device(Nsm(mint), tmp_path / "nsm") as device, pytest.raises(MalformedInput):
        attester(device).evidence(bytes(size), now=NOW)
