"""AWS Nitro Enclaves, through the Nitro Secure Module (`/dev/nsm`).

    ioctl(NSM_IOCTL_RAW, {request, response})       two addresses with their lengths, CBOR in both places

    {"Attestation": {"user_data", "nonce", "public_key"}}  ->  {"Attestation": {"document"}}, or {"Error": name}

The interface is that of Linux (include/uapi/linux/nsm.h, 6.8 and later; AWS's own module before), the messages are
those of aws-nitro-enclaves-nsm-api. The raw call needs CAP_SYS_ADMIN.

Rules
  - What comes back is looked at: it carries what was asked for and speaks of this enclave, or it is not passed
    on. The reader is the verifiers' (`attest.nitro`).
  - The length that the driver gives back is believed only up to the buffer's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hmac
import os
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from strongroom import keys
from strongroom.attest.cbor import MAP, TEXT, Reader, encode_bytes, encode_head
from strongroom.attest.evidence import REPORT_DATA_SIZE, Evidence
from strongroom.attest.nitro import MAX_DOCUMENT, NitroDocument, parse_document
from strongroom.errors import Failure, InvalidConfig, MalformedInput, Unavailable
from strongroom.tee import check_report_data
from strongroom.tee.files import TRANSIENT, malformed, unavailable

NSM_IOCTL_RAW: Final = 0xC0200A00
"""_IOWR(0x0A, 0, struct nsm_raw), 32 bytes."""
MAX_REQUEST, MAX_RESPONSE = 0x1000, 0x3000
"""Bytes: the driver's own limits."""
ATTEMPTS: Final = 4
"""How often a question is asked before the caller is told to come back."""
FIRST_PAUSE_S: Final = 0.05
_RAW: Final = struct.Struct("=QQQQ")
"""Address and length of the request, address and length of the response; the driver sets the last."""
_WHAT: Final = "nsm"
_NULL: Final = b"\xf6"
_ERRORS: Final = frozenset({
    "InvalidArgument", "InvalidIndex", "InvalidResponse", "ReadOnlyIndex", "InvalidOperation", "BufferTooSmall",
    "InputTooLarge", "InternalError",
})  # fmt: skip
"""What the module can answer instead. Only of the last is it said that it may pass."""


class NitroAttester:
    """The enclave that this process runs in. Thread-safe: the driver answers one question at a time."""

    format = "nitro"

    def __init__(
        self,
        device: Path,
        *,
        operator_key: keys.SealingRoot | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`operator_key`: the sealing root, which an enclave has none of; None where a broker will give it.

        Raises:
            InvalidConfig: this is no enclave, or this user may not ask (code `platform_not_found`).
            Unavailable, Failure: the module is there and does not work (codes `attester_...`).
        """
        self._device, self._root, self._sleep = device, operator_key, sleep
        self.measurement = _pcr0(self._document(bytes(REPORT_DATA_SIZE), nonce=b"")[1])

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """A document with `report_data` as its user data, and with `nonce` where there is one. Its time is the
        hypervisor's, so `now` is not in it.

        Raises:
            MalformedInput: report data of another size.
            Unavailable: the module does not answer (code `attester_unavailable`).
            Failure: what came is no such document (code `attester_malformed`).
        """
        check_report_data(report_data)
        data, document = self._document(report_data, nonce=nonce)
        if _pcr0(document) != self.measurement:
            raise malformed("Nitro document", "its PCR0 is no longer the first one's")
        return Evidence(format=self.format, data=data, endorsements=())

    def sealing_root(self) -> keys.SealingRoot:
        """The operator's.

        Raises:
            Failure: there is none, and none was released yet (code `sealing_root_unavailable`).
        """
        if self._root is None:
            raise Failure("no sealing key was released yet", code="sealing_root_unavailable")
        return self._root

    def _document(self, report_data: bytes, *, nonce: bytes) -> tuple[bytes, NitroDocument]:
        data = _read_answer(self._ask(attestation_request(user_data=report_data, nonce=nonce)))
        try:
            document = parse_document(data)
        except MalformedInput as exc:
            raise malformed("Nitro document", exc.message) from exc
        if not hmac.compare_digest(document.user_data or b"", report_data):
            raise malformed("Nitro document", "it carries other user data than was asked for")
        if not hmac.compare_digest(document.nonce or b"", nonce):
            raise malformed("Nitro document", "it carries another nonce than was asked for")
        return data, document

    def _ask(self, request: bytes) -> bytes:
        last: OSError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                return raw_call(self._device, request)
            except OSError as exc:
                if exc.errno not in TRANSIENT:
                    raise _refusal(self._device, exc) from exc
                last = exc
        raise unavailable("Nitro Secure Module", last or OSError(errno.ETIMEDOUT, _WHAT))


def attestation_request(*, user_data: bytes, nonce: bytes) -> bytes:
    """The question for a document, in CBOR; an empty nonce is null, and so is the public key, which is not used."""
    members = (("user_data", user_data), ("nonce", nonce), ("public_key", b""))
    inner = encode_head(MAP, len(members)) + b"".join(
        _text(name) + (encode_bytes(value) if value else _NULL) for name, value in members
    )
    return encode_head(MAP, 1) + _text("Attestation") + inner


def raw_call(device: Path, request: bytes) -> bytes:
    """One question to the module, and its answer.

    Raises:
        OSError: the system's. Failure: the driver says that it wrote more than there was room for, or nothing (code
            `attester_malformed`).
    """
    asked = ctypes.create_string_buffer(request, len(request))
    answer = ctypes.create_string_buffer(MAX_RESPONSE)
    argument = bytearray(
        _RAW.pack(ctypes.addressof(asked), len(request), ctypes.addressof(answer), MAX_RESPONSE)
    )
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, NSM_IOCTL_RAW, argument, True)
    finally:
        os.close(descriptor)
    size = _RAW.unpack(argument)[3]
    if not 0 < size <= MAX_RESPONSE:
        raise malformed(_WHAT, f"an answer of {size} bytes, expected 1 to {MAX_RESPONSE}")
    return answer.raw[:size]


def _read_answer(answer: bytes) -> bytes:
    """The document in an answer, or the module's error as ours."""
    read = Reader(answer, limit=MAX_RESPONSE, what=_WHAT, code="evidence_malformed")
    kind, document, error = "", b"", ""
    try:
        for kind in read.keys(lambda: read.text(32), limit=1, may_be_open=True):
            if kind == "Attestation":
                for name in read.keys(lambda: read.text(32), limit=1, may_be_open=True):
                    document = read.byte_string(MAX_DOCUMENT) if name == "document" else b""
            elif kind == "Error":
                error = read.text(64)
        read.end()
    except MalformedInput as exc:
        raise malformed(_WHAT, exc.message) from exc
    if error == "InternalError":
        raise Unavailable(
            "Nitro Secure Module: it answers InternalError", code="attester_unavailable", retry_after_s=5
        )
    if error:
        raise malformed(_WHAT, f"it answers {error if error in _ERRORS else 'an unknown error'}")
    if kind != "Attestation" or not document:
        raise malformed(_WHAT, "an answer without a document")
    return document


def _refusal(device: Path, error: OSError) -> InvalidConfig | Unavailable:
    symbol = errno.errorcode.get(error.errno or 0, "an unknown fault")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTTY):
        return InvalidConfig(
            f"platform nitro: {device} is no enclave's ({symbol})", code="platform_not_found"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InvalidConfig(
            f"platform nitro: this user may not ask {device} ({symbol}); it takes CAP_SYS_ADMIN",
            code="platform_not_found",
        )
    return unavailable("Nitro Secure Module", error)


def _text(text: str) -> bytes:
    return encode_head(TEXT, len(text)) + text.encode("ascii")


def _pcr0(document: NitroDocument) -> str:
    return dict(document.pcrs)[0].hex()
