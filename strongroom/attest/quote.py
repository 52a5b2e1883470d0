"""SGX and TDX quotes, taken apart: every byte has a name or the quote is refused (docs/spec/dcap.md §2).

Parsing only: nothing here is verified, and a `Quote` proves nothing. Rules, each because two readers that disagree
about one quote are an attack:

1. Every length is exactly what the structure needs; no field overlaps, and none is left over inside.
2. One version, one attestation key type, one vendor, one kind of certification data; anything else is refused by
   name, never skipped.
3. Reserved fields of a report are zero.
4. What stands after the signature data is kept as `trailing`: it is signed by nobody, and only zeros are accepted
   there (`dcap.py` says so).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

from strongroom.attest.cursor import Cursor
from strongroom.errors import MalformedInput

SGX = "sgx"
TDX = "tdx"
MAX_QUOTE = 32 * 1024
"""Bytes of a quote; genuine ones have about 5,000, and some platforms fill their buffer of 8,000 with zeros."""
MAX_CHAIN = 16 * 1024
"""Bytes of the PEM chain in a quote; genuine ones have about 3,700."""
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
"""The vendor of the quoting enclave, stated in every quote header."""

SEPT_VE_DISABLE = 28
"""The bit of TDATTRIBUTES that keeps the host from injecting exceptions on memory accesses."""
SGX_BODY_SIZE = 384
TD10_BODY_SIZE = 584
TD15_BODY_SIZE = 648
QE_AUTH_SIZE = 32
"""Bytes of authentication data that Intel's quoting enclaves add to the hash of their key."""
_ECDSA_P256 = 2
_TEE_TYPES = {0x00: SGX, 0x81: TDX}
_BODY_TYPES = {2: TD10_BODY_SIZE, 3: TD15_BODY_SIZE}
"""Body types of quote version 5 that are read: TD report 1.0 and 1.5. Type 1 (SGX) and 4 (an extended TD report)
exist and are refused by name.
"""
_PCK_CHAIN_PEM = 5
_QE_REPORT_DATA = 6


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """An SGX report body, 384 bytes. `attributes` is flags (8 bytes, little endian) and XFRM (8 bytes)."""

    raw: bytes
    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @property
    def debug(self) -> bool:
        """Whether the enclave's memory can be read by the host with the debug instructions."""
        return bool(self.attributes[0] & 0x02)


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TD report body: 584 bytes (1.0), or 648 (1.5) with the last two fields, which are None in 1.0."""

    raw: bytes
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None
    mr_service_td: bytes | None

    @property
    def attribute_bits(self) -> frozenset[int]:
        """Numbers of the bits that are set in TDATTRIBUTES."""
        value = int.from_bytes(self.td_attributes, "little")
        return frozenset(bit for bit in range(64) if value >> bit & 1)

    @property
    def debug(self) -> bool:
        """Whether one of the eight bits that put a TD "under debug" is set (TUD, bits 0 to 7)."""
        return self.td_attributes[0] != 0


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as it was read. `signed` are the bytes under `signature` (raw r and s, 64 bytes) by
    `attestation_key` (raw x and y, 64 bytes); `qe_report_signature` is by the PCK certificate's key; `pck_chain` is
    the PEM text of the certificates; `trailing` is what stands behind and nobody signed.
    """

    version: int
    tee: str
    qe_svn: int
    pce_svn: int
    user_data: bytes
    body: EnclaveReport | TdReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth: bytes
    pck_chain: bytes
    trailing: bytes


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"quote: {why}", code="quote_malformed")


class _Reader(Cursor):
    """A cursor over a part of a quote."""

    __slots__ = ()

    def __init__(self, data: bytes, part: str) -> None:
        super().__init__(data, what=f"quote: {part}", code="quote_malformed", order="little", limit=MAX_QUOTE)

    def reserved(self, size: int, name: str) -> None:
        """The next `size` bytes, which are zero."""
        if any(self.take(size, name)):
            self.refuse(f"{name}: expected zeros in a reserved field")


def parse_quote(data: bytes) -> Quote:
    """Returns the quote that `data` is (docs/spec/dcap.md §2). Nothing in it is verified.

    Raises:
        MalformedInput: code `quote_malformed`.
    """
    if len(data) > MAX_QUOTE:
        _refuse(f"{len(data)} bytes, at most {MAX_QUOTE} are read")
    read = _Reader(data, "header")
    version, key_type, tee_type = struct.unpack("<HHI", read.take(8, "version, key type, TEE type"))
    tee = _TEE_TYPES.get(tee_type)
    if tee is None or (tee, version) not in ((SGX, 3), (TDX, 4), (TDX, 5)):
        _refuse(f"expected SGX version 3 or TDX version 4 or 5, got TEE type {tee_type}, version {version}")
    if key_type != _ECDSA_P256:
        _refuse(f"expected attestation key type 2 (ECDSA P-256), got {key_type}")
    qe_svn, pce_svn = read.number(2, "QE SVN"), read.number(2, "PCE SVN")
    vendor = read.take(16, "QE vendor")
    if vendor != INTEL_QE_VENDOR:
        _refuse(f"expected QE vendor {INTEL_QE_VENDOR.hex()}, got {vendor.hex()}")
    user_data = read.take(20, "user data")
    body = _parse_body(read, version)
    signed = data[: read.at]
    signature_data = read.take(read.number(4, "signature size"), "signature data")
    trailing = read.rest()
    return _parse_signature_data(
        signature_data,
        version=version,
        tee=tee,
        svns=(qe_svn, pce_svn),
        user_data=user_data,
        body=body,
        signed=signed,
        trailing=trailing,
    )


def _parse_body(read: _Reader, version: int) -> EnclaveReport | TdReport:
    """The report at the reader's place: SGX in version 3, TD 1.0 in 4, what the descriptor says in 5."""
    if version == 3:
        return parse_enclave_report(read.take(SGX_BODY_SIZE, "SGX report"))
    if version == 4:
        return parse_td_report(read.take(TD10_BODY_SIZE, "TD report"))
    body_type, size = read.number(2, "body type"), read.number(4, "body size")
    if body_type not in _BODY_TYPES:
        _refuse(f"expected body type 2 (TD report 1.0) or 3 (1.5), got {body_type}")
    if size != _BODY_TYPES[body_type]:
        _refuse(f"body type {body_type}: expected {_BODY_TYPES[body_type]} bytes, got {size}")
    return parse_td_report(read.take(size, "TD report"))


def parse_enclave_report(raw: bytes) -> EnclaveReport:
    """Returns the SGX report body that `raw` (384 bytes) is.

    Raises:
        MalformedInput: code `quote_malformed`.
    """
    if len(raw) != SGX_BODY_SIZE:
        _refuse(f"SGX report: expected {SGX_BODY_SIZE} bytes, got {len(raw)}")
    read = _Reader(raw, "SGX report")
    cpu_svn, misc_select = read.take(16, "CPUSVN"), read.take(4, "MISCSELECT")
    read.reserved(12, "reserved 1")
    isv_ext_prod_id, attributes = read.take(16, "ISVEXTPRODID"), read.take(16, "ATTRIBUTES")
    mr_enclave = read.take(32, "MRENCLAVE")
    read.reserved(32, "reserved 2")
    mr_signer = read.take(32, "MRSIGNER")
    read.reserved(32, "reserved 3")
    config_id = read.take(64, "CONFIGID")
    isv_prod_id, isv_svn = read.number(2, "ISVPRODID"), read.number(2, "ISVSVN")
    config_svn = read.number(2, "CONFIGSVN")
    read.reserved(42, "reserved 4")
    return EnclaveReport(
        raw=raw,
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=read.take(16, "ISVFAMILYID"),
        report_data=read.take(64, "report data"),
    )


def parse_td_report(raw: bytes) -> TdReport:
    """Returns the TD report body that `raw` (584 or 648 bytes) is.

    Raises:
        MalformedInput: code `quote_malformed`.
    """
    if len(raw) not in (TD10_BODY_SIZE, TD15_BODY_SIZE):
        _refuse(f"TD report: expected {TD10_BODY_SIZE} or {TD15_BODY_SIZE} bytes, got {len(raw)}")
    read = _Reader(raw, "TD report")
    later = len(raw) == TD15_BODY_SIZE
    return TdReport(
        raw=raw,
        tee_tcb_svn=read.take(16, "TEE_TCB_SVN"),
        mr_seam=read.take(48, "MRSEAM"),
        mr_signer_seam=read.take(48, "MRSIGNERSEAM"),
        seam_attributes=read.take(8, "SEAMATTRIBUTES"),
        td_attributes=read.take(8, "TDATTRIBUTES"),
        xfam=read.take(8, "XFAM"),
        mr_td=read.take(48, "MRTD"),
        mr_config_id=read.take(48, "MRCONFIGID"),
        mr_owner=read.take(48, "MROWNER"),
        mr_owner_config=read.take(48, "MROWNERCONFIG"),
        rtmrs=(
            read.take(48, "RTMR0"),
            read.take(48, "RTMR1"),
            read.take(48, "RTMR2"),
            read.take(48, "RTMR3"),
        ),
        report_data=read.take(64, "report data"),
        tee_tcb_svn2=read.take(16, "TEE_TCB_SVN2") if later else None,
        mr_service_td=read.take(48, "MRSERVICETD") if later else None,
    )


def _parse_signature_data(
    data: bytes,
    *,
    version: int,
    tee: str,
    svns: tuple[int, int],
    user_data: bytes,
    body: EnclaveReport | TdReport,
    signed: bytes,
    trailing: bytes,
) -> Quote:
    """The quote, from its signature data: in versions 4 and 5 the QE's part lies in certification data of type 6."""
    read = _Reader(data, "signature data")
    signature, key = read.take(64, "signature"), read.take(64, "attestation key")
    if version >= 4:
        _certification_data(read, _QE_REPORT_DATA, "QE report certification data")
    qe_report = parse_enclave_report(read.take(SGX_BODY_SIZE, "QE report"))
    qe_signature = read.take(64, "QE report signature")
    auth_size = read.number(2, "QE authentication data size")
    if auth_size != QE_AUTH_SIZE:
        _refuse(f"QE authentication data: expected {QE_AUTH_SIZE} bytes, got {auth_size}")
    qe_auth = read.take(auth_size, "QE authentication data")
    size = _certification_data(read, _PCK_CHAIN_PEM, "PCK certificate chain")
    if size > MAX_CHAIN:
        _refuse(f"PCK certificate chain: {size} bytes, at most {MAX_CHAIN} are read")
    return Quote(
        version=version,
        tee=tee,
        qe_svn=svns[0],
        pce_svn=svns[1],
        user_data=user_data,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth=qe_auth,
        pck_chain=read.rest(),
        trailing=trailing,
    )


def _certification_data(read: _Reader, wanted: int, name: str) -> int:
    """Reads type and size of certification data, which is of type `wanted` and fills all that is left."""
    kind, size = read.number(2, f"{name}: type"), read.number(4, f"{name}: size")
    if kind != wanted:
        _refuse(f"{name}: expected certification data type {wanted}, got {kind}")
    if size != read.left:
        _refuse(f"{name}: expected the {read.left} bytes that are left, got size {size}")
    return size
