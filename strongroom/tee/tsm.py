"""Confidential virtual machines on Linux: reports through configfs-tsm (Intel TDX, AMD SEV-SNP).

    mkdir NAME; write inblob (64 bytes); read outblob, auxblob; compare generation; rmdir NAME

The kernel (documented in Documentation/ABI/testing/configfs-tsm-report, 6.7 and later):

  - commits inblob at its close and tells nobody whether that went well: a wrong size shows as EINVAL when
    outblob is read;
  - counts `generation` up with every committed write, by whomever: a report belongs to our question only if the
    count is ours;
  - answers EBUSY or ETIMEDOUT while the quoting service is busy or slow, ENXIO at the mkdir where nobody provides
    reports;
  - removes an entry by `rmdir` alone: its files cannot be unlinked.

Rules
  - Every question has an entry of its own, which is removed whatever happens.
  - What comes back is looked at: it carries what was asked for, or it is not passed on.
"""

from __future__ import annotations

import errno
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from strongroom import keys
from strongroom.attest.evidence import REPORT_DATA_SIZE, Evidence
from strongroom.attest.quote import TdReport, parse_quote
from strongroom.attest.snp_report import Report as SnpReport
from strongroom.attest.snp_report import parse_report
from strongroom.errors import Failure, InvalidConfig, MalformedInput
from strongroom.platforms import PROVIDERS
from strongroom.tee import check_report_data
from strongroom.tee.files import TRANSIENT, malformed, read_value, unavailable, write_value

MAX_BLOB: Final = 32 * 1024
"""Bytes of a report or certificate table: the kernel's own limit."""
MAX_TEXT: Final = 64
ATTEMPTS: Final = 7
"""How often a question is asked before the caller is told to come back: 3 seconds of waiting in all."""
FIRST_PAUSE_S: Final = 0.05
_WRAP: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Report:
    """What the kernel answered: the report or quote, and the certificates that came with it (perhaps none)."""

    data: bytes
    certificates: bytes


class ReportInterface:
    """The folder in which reports are asked for. Thread-safe: every question has an entry of its own."""

    def __init__(self, folder: Path, *, provider: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """`provider`: as the kernel calls it ("tdx_guest", "sev_guest")."""
        self._folder, self._provider, self._sleep = folder, provider, sleep

    def ask(self, report_data: bytes) -> Report:
        """A report that was made for these 64 bytes, and for nobody else's.

        Raises:
            InvalidConfig: nobody provides reports here, or somebody else does (code `platform_not_found`).
            Unavailable: the platform did not answer in time (code `attester_unavailable`).
            Failure: the interface does not keep to its documents (code `attester_malformed`).
        """
        last: OSError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                report = self._ask_once(report_data)
            except OSError as exc:
                if exc.errno not in TRANSIENT:
                    raise unavailable(self._provider, exc) from exc
                last = exc
                continue
            if report is not None:
                return report
        raise unavailable(self._provider, last or OSError(errno.EBUSY, "others write to our entry"))

    def level(self) -> int:
        """The lowest privilege level (VMPL) that this guest may ask for; 0 where the kernel does not say."""
        try:
            entry = self._open()
        except OSError as exc:
            raise unavailable(self._provider, exc) from exc
        try:
            text = read_value(entry / "privlevel_floor", limit=MAX_TEXT)
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise unavailable(self._provider, exc) from exc
        finally:
            self._remove(entry)
        return _number(text, "privlevel_floor")

    def _open(self) -> Path:
        entry = self._folder / f"strongroom-{secrets.token_hex(8)}"
        try:
            entry.mkdir()
        except OSError as exc:
            if exc.errno in TRANSIENT:
                raise
            symbol = errno.errorcode.get(exc.errno or 0, "an unknown fault")
            raise InvalidConfig(
                f"platform: no entry can be made in {self._folder} ({symbol})", code="platform_not_found"
            ) from exc
        return entry

    @staticmethod
    def _remove(entry: Path) -> None:
        try:
            entry.rmdir()
        except OSError as exc:
            raise malformed("configfs-tsm", "an entry cannot be removed") from exc

    def _ask_once(self, report_data: bytes) -> Report | None:
        """One question; None where somebody else wrote to the entry in between."""
        entry = self._open()
        try:
            provider = read_value(entry / "provider", limit=MAX_TEXT).strip().decode("ascii", "replace")
            if provider != self._provider:
                raise InvalidConfig(
                    f"platform: reports here come from {provider!r}, expected {self._provider!r}",
                    code="platform_not_found",
                )
            before = _number(read_value(entry / "generation", limit=MAX_TEXT), "generation")
            write_value(entry / "inblob", report_data)
            data = read_value(entry / "outblob", limit=MAX_BLOB)
            try:
                certificates = read_value(entry / "auxblob", limit=MAX_BLOB)
            except FileNotFoundError:  # TDX has none
                certificates = b""
            after = _number(read_value(entry / "generation", limit=MAX_TEXT), "generation")
        finally:
            self._remove(entry)
        return Report(data, certificates) if after == (before + 1) % _WRAP else None


def _number(text: bytes, name: str) -> int:
    if not text.strip().isdigit():
        raise malformed(name, "expected a number")
    return int(text)


class TdxAttester:
    """The trust domain that this process runs in. `rtmr3` (hex): as its first quote shows it."""

    format = "tdx"

    def __init__(self, reports: ReportInterface, *, operator_key: keys.SealingRoot | None) -> None:
        """`operator_key`: the sealing root, which TDX itself does not give; None where a broker will.

        Raises:
            InvalidConfig, Unavailable, Failure: as `ReportInterface.ask`.
        """
        self._reports, self._root = reports, operator_key
        body = self._quote(bytes(REPORT_DATA_SIZE))[1]
        self.measurement, self.rtmr3 = body.mr_td.hex(), body.rtmrs[3].hex()

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """A quote that carries `report_data`. It states no time, so `now` is not in it.

        Raises:
            MalformedInput: report data of another size. Unavailable, Failure: as `ReportInterface.ask`.
        """
        check_report_data(report_data)
        return Evidence(format=self.format, data=self._quote(report_data)[0], endorsements=())

    def sealing_root(self) -> keys.SealingRoot:
        """The operator's.

        Raises:
            Failure: there is none, and none was released yet (code `sealing_root_unavailable`).
        """
        if self._root is None:
            raise Failure("no sealing key was released yet", code="sealing_root_unavailable")
        return self._root

    def _quote(self, report_data: bytes) -> tuple[bytes, TdReport]:
        report = self._reports.ask(report_data)
        try:
            body = parse_quote(report.data).body
        except MalformedInput as exc:
            raise malformed("TD quote", exc.message) from exc
        if not isinstance(body, TdReport) or not hmac.compare_digest(body.report_data, report_data):
            raise malformed("TD quote", "it is no TD's, or carries other report data than was asked for")
        return report.data, body


class SnpAttester:
    """The SEV-SNP guest that this process runs in. `host_data` (hex): what the host gave at its launch."""

    format = "snp"

    def __init__(self, reports: ReportInterface, *, derive: Callable[[int], bytes]) -> None:
        """`derive`: the guest's key for a privilege level, as `sev_guest.derive_key` gets it.

        Raises:
            InvalidConfig, Unavailable, Failure: as `ReportInterface.ask`.
        """
        self._reports, self._derive = reports, derive
        report = self._report(bytes(REPORT_DATA_SIZE))[1]
        self.measurement, self.host_data = report.measurement.hex(), report.host_data.hex()

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """A report that carries `report_data`, with the certificates that the host gave. It states no time.

        Raises:
            MalformedInput: report data of another size. Unavailable, Failure: as `ReportInterface.ask`.
        """
        check_report_data(report_data)
        report, body = self._report(report_data)
        if body.measurement.hex() != self.measurement:
            raise malformed("SNP report", "its measurement is no longer the first one's")
        certificates = (("certificates.bin", report.certificates),) if any(report.certificates) else ()
        return Evidence(format=self.format, data=report.data, endorsements=certificates)

    def sealing_root(self) -> keys.SealingRoot:
        """The root that a guest of this measurement and policy gets from this processor.

        Raises:
            Failure: the processor gives no key (code `sealing_root_unavailable`).
        """
        key = self._derive(self._reports.level())
        return keys.platform_root("snp", key, sealing_class="measurement", sealed_for=self.measurement)

    def _report(self, report_data: bytes) -> tuple[Report, SnpReport]:
        answer = self._reports.ask(report_data)
        try:
            report = parse_report(answer.data)
        except MalformedInput as exc:
            raise malformed("SNP report", exc.message) from exc
        if not hmac.compare_digest(report.report_data, report_data):
            raise malformed("SNP report", "it carries other report data than was asked for")
        return answer, report


def report_interface(folder: Path, *, platform: str) -> ReportInterface:
    """The interface in `folder` for the platform ("tdx", "snp")."""
    provider = next((name for name, known in PROVIDERS.items() if known == platform), None)
    if provider is None:
        raise Failure("configfs-tsm knows no such platform")
    return ReportInterface(folder, provider=provider)
