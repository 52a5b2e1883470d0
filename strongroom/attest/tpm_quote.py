"""What evidence of a TPM and of an Azure machine share: one quote by one key over one bank of PCRs
(docs/spec/tpm.md §3 and §4).

Rules of this file:

1. The signature is verified over the bytes that arrived, with the scheme and hash of the *key*; the signature's own
   must be the same.
2. The measurement names which PCRs it is made of. A PCR digest alone does not: whoever chooses the selection could
   quote resettable PCRs with the values that others should have.
3. PCR 16 and 23 can be reset by any software, so they are in no measurement.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.attest.eventlog import check_event_log, logged_events
from strongroom.attest.evidence import Check, check, check_impossible
from strongroom.attest.strict import JSON, Members
from strongroom.attest.tpm_wire import (
    HASHES,
    PCR_COUNT,
    Attest,
    Signature,
    digest_size,
    parse_attest,
    parse_signature,
)

MEASUREMENT_LABEL = b"strongroom tpm measurement v1"
RESETTABLE = (16, 23)
"""PCRs that any software can reset: "debug" and "application support"."""
QUALIFYING_SIZE = 32
"""Bytes of qualifying data: every TPM takes 32, one that knows only SHA-256 takes no 64."""
_BANKS = (0x000B, 0x000C)


def qualifying_data(report_data: bytes) -> bytes:
    """Returns the 32 bytes of qualifying data that stand for the 64 bytes of `report_data` in a quote
    (docs/spec/tpm.md §3.2).
    """
    return hashlib.sha256(report_data).digest()


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as it arrived, its signature and the PCR values shown with it, in the order of the selection.
    Nothing is verified yet.
    """

    attest_bytes: bytes
    attest: Attest
    signature: Signature
    pcrs: tuple[bytes, ...]

    @property
    def bank(self) -> int:
        """The bank's TPM_ALG_ID, 0 where not exactly one is quoted."""
        return self.attest.selections[0].hash if len(self.attest.selections) == 1 else 0

    def values(self) -> dict[int, bytes]:
        """PCR -> value, where exactly one bank is quoted and the values are as many as the selection has."""
        if not self.bank or len(self.pcrs) != len(self.attest.selections[0].pcrs):
            return {}
        return dict(zip(self.attest.selections[0].pcrs, self.pcrs, strict=True))


def parse_quote(read: Members) -> Quote:
    """Returns the quote in the members `attest`, `signature` and `pcrs` of a document (docs/spec/tpm.md §2.1).

    Raises:
        MalformedInput: `evidence_malformed`, or the codes of `tpm_wire`.
    """
    attest_bytes = read.base64("attest", 4096)
    values = []
    for value in read.array("pcrs", PCR_COUNT):
        if not isinstance(value, str) or re.fullmatch(r"([0-9a-f]{2}){20,64}", value, re.ASCII) is None:
            read.refuse("pcrs: expected digests as lower-case hex")
        values.append(bytes.fromhex(value))
    return Quote(
        attest_bytes=attest_bytes,
        attest=parse_attest(attest_bytes),
        signature=parse_signature(read.base64("signature", 4096)),
        pcrs=tuple(values),
    )


Table = dict[str, tuple[str, str, str]]
"""The checks of a format in their order: id -> title, what is expected, the code of a refusal."""


class Checks:
    """The checks of one examination: recorded in the order of `table`, and none of it left out."""

    __slots__ = ("_table", "made")

    def __init__(self, table: Table) -> None:
        self._table = table
        self.made: list[Check] = []

    def record(self, check_id: str, passed: bool, got: str, *, expected: str = "", code: str = "") -> bool:
        """Records a check that was made; `expected` and `code` where the table's are not precise enough."""
        title, usual, usual_code = self._table[check_id]
        made = check(check_id, title, passed, expected=expected or usual, got=got, code=code or usual_code)
        self.made.append(made)
        return passed

    def impossible(self, check_id: str, why: str) -> None:
        """Records, as failed, a check that could not be made."""
        title, expected, code = self._table[check_id]
        self.made.append(check_impossible(check_id, title, expected=expected or "–", why=why, code=code))

    def rest_impossible(self, why: str) -> None:
        """Records, as failed, every check of the table that is not there yet."""
        there = {c.id for c in self.made}
        for check_id in self._table:
            if check_id not in there:
                self.impossible(check_id, why)


QUOTE_CHECKS: Table = {
    "tpm.signature": (
        "The quote is signed by the attestation key",
        "a valid signature, with the key's own scheme and hash",
        "evidence_signature_invalid",
    ),
    "tpm.pcr_selection": (
        "The quote covers one bank of PCRs",
        "one bank of SHA-256 or SHA-384, with a PCR that is not resettable",
        "tpm_pcr_selection",
    ),
    "tpm.pcr_digest": (
        "The PCR values are the quoted ones",
        "values whose digest is the quoted one",
        "tpm_pcr_digest",
    ),
}


def check_quote(
    checks: Checks, quote: Quote, *, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, scheme_hash: int
) -> bool:
    """Records the checks of `QUOTE_CHECKS`; returns whether the signature is one of `key` with `scheme_hash`.

    1. signature: RSASSA with an RSA key or ECDSA with an ECC key, with the key's hash, over the bytes of the quote
    2. selection: exactly one bank, SHA-256 or SHA-384, with at least one PCR besides 16 and 23
    3. digest: the hash (the key's) of the values, in the order of the selection, is the quoted digest
    """
    # 1. signature
    signature = quote.signature
    wanted = ("RSASSA" if isinstance(key, rsa.RSAPublicKey) else "ECDSA", scheme_hash)
    if (signature.scheme, signature.hash) != wanted:
        got = f"{signature.scheme} with {HASHES[signature.hash][0]}"
        signed = checks.record("tpm.signature", False, got, code="tpm_signature_scheme")
    else:
        signed = _holds(key, signature, quote.attest_bytes)
        checks.record(
            "tpm.signature", signed, "a valid signature" if signed else "a signature of no such key"
        )
    # 2. selection
    selections = quote.attest.selections
    banks = ", ".join(
        f"{HASHES[s.hash][0] if s.hash in HASHES else hex(s.hash)}:{len(s.pcrs)} PCRs" for s in selections
    )
    fits = len(selections) == 1 and quote.bank in _BANKS and bool(set(selections[0].pcrs) - set(RESETTABLE))
    checks.record("tpm.pcr_selection", fits, banks or "no bank")
    # 3. digest
    if not fits:
        checks.impossible("tpm.pcr_digest", "no one bank of PCRs is quoted")
        return signed
    size, count = digest_size(quote.bank), len(selections[0].pcrs)
    if len(quote.pcrs) != count or any(len(value) != size for value in quote.pcrs):
        checks.record("tpm.pcr_digest", False, f"{len(quote.pcrs)} values for {count} PCRs of {size} bytes")
        return signed
    digest = hashlib.new(HASHES[scheme_hash][0], b"".join(quote.pcrs)).digest()
    equal = hmac.compare_digest(digest, quote.attest.pcr_digest)
    checks.record("tpm.pcr_digest", equal, digest.hex(), expected=quote.attest.pcr_digest.hex())
    return signed


def _holds(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, signature: Signature, message: bytes) -> bool:
    digest = HASHES[signature.hash][1]()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.first, message, padding.PKCS1v15(), digest)
        else:
            r, s = int.from_bytes(signature.first), int.from_bytes(signature.second)
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def check_log(checks: Checks, quote: Quote, event_log: bytes) -> tuple[tuple[str, str, str], ...]:
    """Records the check "tpm.event_log" where there is a log: replayed, it gives the quoted PCRs (docs/spec/tpm.md
    §6.4). Returns its events, for `Claims.events`, where it passed.
    """
    if not event_log:
        return ()
    made = check_event_log(
        event_log, check_id="tpm.event_log", registers=quote.values(), algorithm=quote.bank, rtmrs=False
    )
    checks.made.append(made)
    return logged_events(event_log, algorithm=quote.bank, rtmrs=False) if made.passed else ()


def pcr_measurement(bank: int, values: dict[int, bytes]) -> str:
    """Returns the measurement (hex) of the PCRs `values` of `bank`: 16 and 23 are left out (docs/spec/tpm.md
    §4.1).
    """
    text = b"".join(bytes([i]) + values[i] for i in sorted(values) if i not in RESETTABLE)
    return hashlib.sha256(MEASUREMENT_LABEL + b"\x00" + bank.to_bytes(2) + text).hexdigest()


def quote_details(quote: Quote) -> tuple[tuple[str, str], ...]:
    """Returns what a verified quote says, for `Claims.details` (docs/spec/tpm.md §4.2)."""
    attest = quote.attest
    pcrs = tuple((f"pcr{i}", value.hex()) for i, value in quote.values().items())
    return (
        ("tpm.bank", HASHES[quote.bank][0]),
        *pcrs,
        ("tpm.clock", str(attest.clock)),
        ("tpm.resets", str(attest.resets)),
        ("tpm.restarts", str(attest.restarts)),
        ("tpm.clock_safe", str(attest.safe).lower()),
        ("tpm.firmware", f"{attest.firmware:016x}"),
    )


def software_firmware(firmware: int) -> bool:
    """Whether `firmware` is a version of the TCG's reference code (libtpms, swtpm, the simulators, most virtual
    TPMs): its upper half is a date, as in 0x20191023.
    """
    date = f"{firmware >> 32:08x}"
    return re.fullmatch(r"20[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])", date) is not None


def wrap_rsassa(signature: bytes) -> bytes:
    """Returns the TPMT_SIGNATURE of a bare RSASSA signature with SHA-256, as some recordings hold it."""
    return b"\x00\x14\x00\x0b" + len(signature).to_bytes(2) + signature


def empty_document() -> dict[str, JSON]:
    """Returns the members of a TPM document with nothing in them; `from_recorded` fills what a recording has."""
    return {
        "ak_certificate": "",
        "ak_public": "",
        "attest": "",
        "certificates": [],
        "ek_certificate": "",
        "event_log": "",
        "pcrs": [],
        "signature": "",
        "version": 1,
    }
