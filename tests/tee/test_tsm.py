"""`tee.tsm`: TDX and SEV-SNP through configfs-tsm, with its errors and races."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attest"))
import fake_amd
from emulators import ConfigTsm, direct
from fake_intel import TDX5
from worlds import NOW

from strongroom import keys
from strongroom.attest.dcap import examine_tdx
from strongroom.attest.evidence import Claims
from strongroom.attest.snp import examine_snp
from strongroom.errors import Failure, InvalidConfig, MalformedInput, Unavailable
from strongroom.tee.tsm import ATTEMPTS, ReportInterface, SnpAttester, TdxAttester, report_interface

ROOT = Path("/sys/kernel/config/tsm/report")
DATA = bytes(range(64))
MACHINE = fake_amd.Machine()
OPERATOR = keys.operator_root(bytes(range(32)))


def td_quote(report_data: bytes) -> bytes:
    """A TD quote of the test vendor's."""
    return TDX5.but(body={"report_data": report_data}).quote


def snp_report(report_data: bytes) -> bytes:
    """A report of the test vendor's."""
    return MACHINE.but(fields={0x50: report_data}).report


def tdx() -> ConfigTsm:
    """A trust domain's kernel."""
    return ConfigTsm(td_quote, provider="tdx_guest")


def snp(certificates: bytes = b"", floor: int = 0) -> ConfigTsm:
    """An SEV-SNP guest's kernel."""
    return ConfigTsm(snp_report, provider="sev_guest", certificates=certificates, floor=floor)


def interface(provider: str, pauses: list[float] | None = None) -> ReportInterface:
    """The interface under test; its pauses are noted, not waited for."""
    noted = [] if pauses is None else pauses
    return ReportInterface(ROOT, provider=provider, sleep=noted.append)


def test_a_td_quote_carries_what_was_asked_for_and_verifies() -> None:
    """Our own verifier, under the root of the test vendor."""
    with direct(tdx(), ROOT):
        attester = TdxAttester(interface("tdx_guest"), operator_key=OPERATOR)
        evidence = attester.evidence(DATA, now=NOW)
    found = examine_tdx(evidence.data, endorsements=TDX5.endorsements, roots=TDX5.roots, now=NOW)
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert (found.claims.report_data, found.claims.measurement) == (DATA, attester.measurement)
    assert evidence.endorsements == ()
    assert attester.sealing_root() is OPERATOR


def test_an_snp_report_comes_with_the_hosts_certificates_and_verifies() -> None:
    """The certificate table is stapled as it is; the verifier finds its way in it."""
    table = fake_amd.certificate_table(
        ("VCEK", MACHINE.leaf_der), ("ASK", MACHINE.issuer_der), ("ARK", MACHINE.root_der)
    )
    with direct(snp(table), ROOT):
        attester = SnpAttester(interface("sev_guest"), derive=lambda level: bytes([level + 1]) * 32)
        evidence = attester.evidence(DATA, now=NOW)
        root = attester.sealing_root()
    found = examine_snp(evidence.data, endorsements=evidence.endorsements, roots=fake_amd.roots(), now=NOW)
    assert isinstance(found.claims, Claims), [c for c in found.checks if not c.passed]
    assert (found.claims.report_data, found.claims.measurement) == (DATA, attester.measurement)
    assert (root.sealing_class, root.sealed_for) == ("measurement", attester.measurement)


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(4096)])
def test_a_host_that_gives_no_certificates_leaves_them_to_the_client(table: bytes) -> None:
    """An empty table, or one of zeros, is not stapled."""
    with direct(snp(table), ROOT):
        attester = SnpAttester(interface("sev_guest"), derive=lambda level: bytes(32))
        assert attester.evidence(DATA, now=NOW).endorsements == ()


def test_the_key_is_asked_for_at_the_guests_own_level() -> None:
    """Some clouds run guests above VMPL 0, where a key for 0 is refused."""
    asked: list[int] = []
    with direct(snp(floor=2), ROOT):
        SnpAttester(interface("sev_guest"), derive=lambda v: asked.append(v) or b"k" * 32).sealing_root()  # type: ignore[func-returns-value]
    assert asked == [2]


@pytest.mark.parametrize("error", [errno.EBUSY, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN])
@pytest.mark.parametrize("name", ["outblob", "inblob", "mkdir", "generation"])
def test_a_busy_platform_is_asked_again(name: str, error: int) -> None:
    """With growing pauses; each question has an entry of its own, and none is left behind."""
    emulator, pauses = tdx(), []  # type: ignore[var-annotated]
    emulator.fail(name, error, error)
    with direct(emulator, ROOT):
        report = interface("tdx_guest", pauses).ask(DATA)
    assert report.data == td_quote(DATA)
    assert pauses == [0.05, 0.1]
    assert not emulator.entries


def test_a_platform_that_stays_busy_is_given_up() -> None:
    """After a bounded number of questions the caller is told to come back."""
    emulator, pauses = snp(), []  # type: ignore[var-annotated]
    emulator.fail("outblob", *[errno.EBUSY] * 100)
    with direct(emulator, ROOT), pytest.raises(Unavailable) as caught:
        interface("sev_guest", pauses).ask(DATA)
    assert caught.value.code == "attester_unavailable"
    assert len(pauses) == ATTEMPTS - 1 and sum(pauses) < 5
    assert not emulator.entries


def test_an_answer_to_somebody_elses_question_is_not_taken() -> None:
    """Another writer shows in `generation`; the question is asked again in a fresh entry."""
    emulator = snp()
    emulator.racers = 2
    with direct(emulator, ROOT):
        report = interface("sev_guest").ask(DATA)
    assert report.data[0x50:0x90] == DATA
    emulator.racers = 100
    with direct(emulator, ROOT), pytest.raises(Unavailable):
        interface("sev_guest").ask(DATA)
    assert not emulator.entries


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.EFBIG])
def test_other_errors_are_not_asked_away(error: int) -> None:
    """A short inblob (EINVAL) or broken firmware stays broken."""
    emulator, pauses = tdx(), []  # type: ignore[var-annotated]
    emulator.fail("outblob", error)
    with direct(emulator, ROOT), pytest.raises(Unavailable):
        interface("tdx_guest", pauses).ask(DATA)
    assert not pauses and not emulator.entries


def test_a_short_inblob_shows_when_the_report_is_read() -> None:
    """The kernel tells nobody at the write; the emulator does the same, and what comes out is an error."""
    emulator = tdx()
    with direct(emulator, ROOT), pytest.raises(Unavailable, match="EINVAL"):
        interface("tdx_guest").ask(bytes(32))
    assert "write inblob" in emulator.calls and not emulator.entries


@pytest.mark.parametrize(
    ("call", "error", "family"),
    [
        ("mkdir", errno.EACCES, InvalidConfig),
        ("mkdir", errno.EEXIST, InvalidConfig),
        ("mkdir", errno.ENOENT, InvalidConfig),
        ("read provider", errno.ENOENT, Unavailable),
        ("read generation", errno.EIO, Unavailable),
        ("write inblob", errno.EFBIG, Unavailable),
        ("write inblob", errno.EINVAL, Unavailable),
        ("read outblob", errno.EFBIG, Unavailable),
        ("read auxblob", errno.EIO, Unavailable),
        ("read auxblob", errno.EINVAL, Unavailable),
    ],
)
def test_each_step_can_fail_and_leaves_nothing_behind(call: str, error: int, family: type[Exception]) -> None:
    """With the error's name, at once, and the entry is removed."""
    emulator, pauses = snp(), []  # type: ignore[var-annotated]
    emulator.fail(call, error)
    with direct(emulator, ROOT), pytest.raises(family, match=errno.errorcode[error]):
        interface("sev_guest", pauses).ask(DATA)
    assert not pauses and not emulator.entries


@pytest.mark.parametrize("text", [b"", b"one\n", b"-1\n", b"\xff\n"])
def test_a_generation_that_is_no_number_is_a_fault(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the report is ours could not be told."""
    emulator = tdx()
    usual = emulator.read
    monkeypatch.setattr(emulator, "read", lambda path: text if path.endswith("generation") else usual(path))
    with direct(emulator, ROOT), pytest.raises(Failure) as caught:
        interface("tdx_guest").ask(DATA)
    assert caught.value.code == "attester_malformed" and not emulator.entries


def test_a_generation_goes_round() -> None:
    """The kernel counts in 32 bits."""
    emulator = tdx()
    mkdir = emulator.mkdir

    def late(path: str) -> None:
        mkdir(path)
        emulator.generations[path] = 0xFFFFFFFF

    emulator.mkdir = late  # type: ignore[method-assign]
    with direct(emulator, ROOT):
        assert interface("tdx_guest").ask(DATA).data == td_quote(DATA)


@pytest.mark.parametrize(("call", "error"), [("mkdir", errno.EBUSY), ("read privlevel_floor", errno.EIO)])
def test_a_level_that_the_kernel_does_not_give(call: str, error: int) -> None:
    """No key is asked for at a level that was guessed; where there is no such file, it is 0."""
    emulator = snp(floor=1)
    emulator.fail(call, error)
    with direct(emulator, ROOT), pytest.raises(Unavailable, match=errno.errorcode[error]):
        interface("sev_guest").level()
    assert not emulator.entries
    with direct(tdx(), ROOT):
        assert interface("tdx_guest").level() == 0


def test_without_a_provider_there_is_no_platform() -> None:
    """ENXIO at the mkdir."""
    with (
        direct(ConfigTsm(td_quote, provider=None), ROOT),
        pytest.raises(InvalidConfig, match="ENXIO") as caught,
    ):
        interface("tdx_guest").ask(DATA)
    assert caught.value.code == "platform_not_found"


def test_another_provider_is_another_platform() -> None:
    """A TDX server on an SNP guest does not start."""
    emulator = snp()
    with direct(emulator, ROOT), pytest.raises(InvalidConfig) as caught:
        TdxAttester(interface("tdx_guest"), operator_key=OPERATOR)
    assert caught.value.code == "platform_not_found"
    assert not emulator.entries


@pytest.mark.parametrize(
    "made", [lambda data: b"", lambda data: b"x" * 1184, lambda data: snp_report(bytes(64)), td_quote]
)
def test_a_report_that_is_not_the_answer_is_not_passed_on(made: object) -> None:
    """Empty, of another version, with other report data, of another kind."""
    emulator = snp()
    attester_data = [snp_report]
    emulator._sign = lambda data: attester_data[0](data)
    with direct(emulator, ROOT):
        attester = SnpAttester(interface("sev_guest"), derive=lambda level: bytes(32))
        attester_data[0] = made  # type: ignore[assignment]
        with pytest.raises(Failure) as caught:
            attester.evidence(DATA, now=NOW)
    assert caught.value.code == "attester_malformed"


def test_a_guest_does_not_change_its_measurement() -> None:
    """A report of another measurement is somebody else's."""
    emulator = snp()
    with direct(emulator, ROOT):
        attester = SnpAttester(interface("sev_guest"), derive=lambda level: bytes(32))
        emulator._sign = lambda data: MACHINE.but(fields={0x50: data, 0x90: bytes(48)}).report
        with pytest.raises(Failure, match="measurement"):
            attester.evidence(DATA, now=NOW)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size_is_not_asked_for(size: int) -> None:
    """Both kernels take exactly 64 bytes."""
    with direct(snp(), ROOT):
        attester = SnpAttester(interface("sev_guest"), derive=lambda level: bytes(32))
        with pytest.raises(MalformedInput):
            attester.evidence(bytes(size), now=NOW)


def test_an_entry_that_cannot_be_removed_is_a_fault() -> None:
    """It would block the module and add up."""
    emulator = snp()
    emulator.fail("rmdir", errno.EBUSY)
    with direct(emulator, ROOT), pytest.raises(Failure) as caught:
        interface("sev_guest").ask(DATA)
    assert caught.value.code == "attester_malformed"


def test_only_confidential_machines_have_this_interface() -> None:
    """A fault of the caller."""
    with pytest.raises(Failure):
        report_interface(ROOT, platform="sgx")
