"""`tee.sgx`: an enclave of Gramine's, asked through its pseudo-files."""

from __future__ import annotations

import errno
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attest"))
from emulators import MRENCLAVE, MRSIGNER, Gramine, direct
from fake_intel import SGX
from worlds import NOW

from strongroom.attest.dcap import examine_sgx
from strongroom.attest.evidence import Claims
from strongroom.errors import Error, Failure, InvalidConfig, MalformedInput, Unavailable
from strongroom.tee.sgx import SgxAttester

ROOT = Path("/dev/attestation")
DATA = bytes(range(64))


def sign(report_data: bytes) -> bytes:
    """A quote of the test vendor's."""
    return SGX.but(body={"report_data": report_data}).quote


def test_a_quote_carries_what_was_asked_for_and_verifies() -> None:
    """Our own verifier, under the root of the test vendor, finds enclave and report data."""
    with direct(Gramine(sign), ROOT):
        attester = SgxAttester(ROOT, seal_to="measurement")
        evidence = attester.evidence(DATA, now=NOW)
    found = examine_sgx(evidence.data, endorsements=SGX.endorsements, roots=SGX.roots, now=NOW)
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert found.claims.report_data == DATA
    assert (found.claims.measurement, found.claims.signer) == (attester.measurement, attester.signer)
    assert (attester.measurement, attester.signer) == (MRENCLAVE.hex(), MRSIGNER.hex())


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_size_is_not_asked_for(size: int) -> None:
    """Gramine would pad or cut it silently."""
    with direct(Gramine(sign), ROOT), pytest.raises(MalformedInput):
        SgxAttester(ROOT, seal_to="measurement").evidence(bytes(size), now=NOW)


def test_the_sealing_classes_have_keys_of_their_own() -> None:
    """MRENCLAVE's and MRSIGNER's key give two roots, each for its own digest; neither is the raw key."""
    emulator = Gramine(sign)
    with direct(emulator, ROOT):
        exact = SgxAttester(ROOT, seal_to="measurement").sealing_root()
        signer = SgxAttester(ROOT, seal_to="signer").sealing_root()
    assert (exact.sealing_class, exact.sealed_for) == ("measurement", MRENCLAVE.hex())
    assert (signer.sealing_class, signer.sealed_for) == ("signer", MRSIGNER.hex())
    assert exact.secret != signer.secret
    assert not {exact.secret[:16], signer.secret[:16]} & set(emulator.keys.values())


@pytest.mark.parametrize("kind", [b"none", b"epid", b"", b"dcap\n"])
def test_what_is_no_enclave_with_dcap_is_refused(kind: bytes) -> None:
    """`gramine-direct` has a folder too: only the type tells."""
    with direct(Gramine(sign, kind=kind), ROOT), pytest.raises(InvalidConfig) as caught:
        SgxAttester(ROOT, seal_to="measurement")
    assert caught.value.code == "platform_not_found"


def test_a_quoting_service_that_fails_is_unavailable() -> None:
    """Gramine says EACCES at the open; the next question may be answered."""
    emulator = Gramine(sign)
    with direct(emulator, ROOT):
        attester = SgxAttester(ROOT, seal_to="measurement")
        emulator.fail("quote", errno.EACCES)
        with pytest.raises(Unavailable) as caught:
            attester.evidence(DATA, now=NOW)
        assert caught.value.code == "attester_unavailable"
        assert attester.evidence(DATA, now=NOW).data


@pytest.mark.parametrize(
    "made",
    [
        lambda data: b"",
        lambda data: b"no quote",
        lambda data: sign(bytes(64)),
        lambda data: SGX.but(body={"report_data": data, "mr_enclave": bytes(32)}).quote,
    ],
    ids=["empty", "garbage", "other report data", "another enclave"],
)
def test_a_quote_that_is_not_the_answer_is_not_passed_on(made: object) -> None:
    """Whatever the host's quoting service returns is looked at first."""
    with direct(Gramine(made), ROOT):  # type: ignore[arg-type]
        attester = SgxAttester(ROOT, seal_to="measurement")
        with pytest.raises(Failure) as caught:
            attester.evidence(DATA, now=NOW)
    assert caught.value.code == "attester_malformed"


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(15)], ids=["unset", "zeros", "short"])
def test_a_key_that_is_not_there_seals_nothing(key: bytes) -> None:
    """Gramine shows an empty file where a key is unset."""
    emulator = Gramine(sign)
    emulator.keys["_sgx_mrenclave"] = key
    with direct(emulator, ROOT), pytest.raises(Error) as caught:
        SgxAttester(ROOT, seal_to="measurement").sealing_root()
    assert caught.value.code == "sealing_root_unavailable"


def test_threads_do_not_swap_answers() -> None:
    """The files are the process's: eight threads ask at once, and each gets its own."""
    with direct(Gramine(sign), ROOT):
        attester = SgxAttester(ROOT, seal_to="measurement")
        wrong: list[int] = []

        def ask(number: int) -> None:
            data = bytes([number]) * 64
            quote = attester.evidence(data, now=datetime.now(UTC)).data
            if quote[48 + 320 : 48 + 384] != data:
                wrong.append(number)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
