"""Intel SGX, through the pseudo-files of Gramine (`/dev/attestation`).

    attestation_type   "dcap": there is SGX, and a quoting service behind it
    my_target_info     512 bytes, of this enclave
    target_info        512 bytes, whom a local report is for
    user_report_data   64 bytes that a report or quote carries; saved at the close, padded and cut silently
    report             432 bytes, a local report: MRENCLAVE at 64, MRSIGNER at 128
    quote              made at the open; EACCES where that fails
    keys/_sgx_...      16 bytes, the enclave's sealing keys

Rules
  - These files are the whole process's: one lock is held from the write to the read, so that no two questions
    can swap their answers.
  - What comes back is looked at: it carries what was asked for and speaks of this enclave, or it is not passed
    on.
"""

from __future__ import annotations

import hmac
import threading
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from strongroom import keys
from strongroom.attest.evidence import REPORT_DATA_SIZE, Evidence
from strongroom.attest.quote import EnclaveReport, parse_quote
from strongroom.errors import Failure, InvalidConfig, MalformedInput
from strongroom.tee import check_report_data
from strongroom.tee.files import malformed, read_value, unavailable, write_value

MAX_QUOTE: Final = 8192
"""Bytes of a quote: Gramine's own limit."""
REPORT_SIZE, TARGET_INFO_SIZE, KEY_SIZE = 432, 512, 16
_KEY_FILES: Final = {"measurement": "_sgx_mrenclave", "signer": "_sgx_mrsigner"}


class SgxAttester:
    """The enclave that this process runs in. Thread-safe."""

    format = "sgx"

    def __init__(self, folder: Path, *, seal_to: Literal["measurement", "signer"]) -> None:
        """`folder`: where Gramine shows its files; `seal_to`: which of the two sealing keys is used.

        Raises:
            InvalidConfig: this is no enclave with DCAP (code `platform_not_found`).
            Unavailable, Failure: the files are there and do not work (codes `attester_...`).
        """
        self._folder = folder
        self._seal_to = seal_to
        self._lock = threading.Lock()
        try:
            kind = read_value(folder / "attestation_type", limit=64)
        except OSError as exc:
            raise _absent(folder, "is no Gramine enclave's") from exc
        if kind != b"dcap":
            raise _absent(folder, f'says attestation type {kind.decode("ascii", "replace")!r}, not "dcap"')
        self.measurement, self.signer = self._identity()

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """A quote that carries `report_data`. It states no time, so `now` is not in it.

        Raises:
            Unavailable: the quoting service does not answer (code `attester_unavailable`).
            Failure: what came is no such quote (code `attester_malformed`).
        """
        check_report_data(report_data)
        with self._lock:
            try:
                self._ask(report_data)
                quote = read_value(self._folder / "quote", limit=MAX_QUOTE)
            except OSError as exc:
                raise unavailable("SGX quote", exc) from exc
        try:
            body = parse_quote(quote).body
        except MalformedInput as exc:
            raise malformed("SGX quote", exc.message) from exc
        if not isinstance(body, EnclaveReport) or body.mr_enclave.hex() != self.measurement:
            raise malformed("SGX quote", "of something else than this enclave")
        if not hmac.compare_digest(body.report_data, report_data):
            raise malformed("SGX quote", "it carries other report data than was asked for")
        return Evidence(format=self.format, data=quote, endorsements=())

    def sealing_root(self) -> keys.SealingRoot:
        """The root that this enclave, or every enclave of its signer, gets from this processor.

        Raises:
            Failure: there is no such key here (code `sealing_root_unavailable`).
        """
        name = _KEY_FILES[self._seal_to]
        try:
            key = read_value(self._folder / "keys" / name, limit=KEY_SIZE)
        except OSError as exc:
            raise Failure(f"SGX: the key {name} cannot be read", code="sealing_root_unavailable") from exc
        if len(key) != KEY_SIZE or not any(key):
            raise Failure(f"SGX: the key {name} is not there", code="sealing_root_unavailable")
        sealed_for = self.measurement if self._seal_to == "measurement" else self.signer
        return keys.platform_root("sgx", key, sealing_class=self._seal_to, sealed_for=sealed_for)

    def _ask(self, report_data: bytes) -> None:
        """Puts the report data where the next report and quote take it from; the caller holds the lock."""
        path = self._folder / "user_report_data"
        write_value(path, report_data)
        if read_value(path, limit=REPORT_DATA_SIZE) != report_data:
            raise malformed("user_report_data", "it does not hold what was written")

    def _identity(self) -> tuple[str, str]:
        """MRENCLAVE and MRSIGNER (hex), as the processor itself states them in a report for this very enclave."""
        with self._lock:
            try:
                target = read_value(self._folder / "my_target_info", limit=TARGET_INFO_SIZE)
                write_value(self._folder / "target_info", target)
                self._ask(bytes(REPORT_DATA_SIZE))
                report = read_value(self._folder / "report", limit=REPORT_SIZE)
            except OSError as exc:
                raise unavailable("SGX report", exc) from exc
        if len(target) != TARGET_INFO_SIZE or len(report) != REPORT_SIZE:
            raise malformed("SGX report", f"{len(report)} bytes, expected {REPORT_SIZE}")
        if report[64:96] != target[:32]:
            raise malformed("SGX report", "its MRENCLAVE is not that of my_target_info")
        return report[64:96].hex(), report[128:160].hex()


def _absent(folder: Path, why: str) -> InvalidConfig:
    return InvalidConfig(f"platform sgx: {folder} {why}", code="platform_not_found")
