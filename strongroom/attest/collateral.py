"""DCAP collateral: Intel's signed word on platforms and quoting enclaves, as a bundle (docs/spec/dcap.md §4).

A bundle is one JSON object with the nine documents that judge a quote. Parsing only: nothing here is verified. Rules:

1. The bundle is ours to define: exactly its members. The documents inside are Intel's: members that this version does
   not know are left alone, those that it uses are read strictly.
2. A document is verified as the bytes that were signed, and read from the same bytes.
3. Of several bundles the one with the highest evaluation number counts, then the newest: whoever hands them in must not
   choose the kindest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

from strongroom.attest.pck import parse_pem_chain
from strongroom.attest.quote import SGX, TDX
from strongroom.attest.strict import Members, parse_object
from strongroom.errors import MalformedInput

MAX_BUNDLE = 512 * 1024
"""Bytes of a bundle; genuine ones have about 20,000."""
MAX_DOCUMENT = 128 * 1024
"""Bytes of one document inside; TCB infos have about 5,000, revocation lists up to 50,000."""
MAX_LEVELS = 256
"""Levels of a TCB info, of a module or of an enclave; genuine ones have up to 20."""
MAX_ADVISORIES = 128
MAX_MODULES = 64
REMEMBERED = 16
"""Bundles that were read and are kept: the function is pure, so this changes time only."""
COMPONENTS = 16
"""SVNs of a TCB, for SGX and for TDX."""

STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
"""What Intel says of a platform's level. "TDRelaunchAdvised" is never written there; evaluation yields it."""
PART_STATUSES = ("UpToDate", "OutOfDate", "Revoked")
"""What Intel says of the level of a TDX module or a quoting enclave."""

_WHAT, _CODE = "collateral", "collateral_malformed"
_NAMES = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_ADVISORY = r"[A-Z]{2,16}(-[A-Z0-9]{1,16}){1,4}"


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the SGX or TDX TCB: it holds where every SVN of the platform is at least these. `tdx` is empty in
    the TCB info of SGX.
    """

    sgx: tuple[int, ...]
    tdx: tuple[int, ...]
    pce_svn: int
    date: datetime
    status: str
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EnclaveLevel:
    """A level of a quoting enclave or of a TDX module: it holds where the ISVSVN is at least this."""

    isv_svn: int
    date: datetime
    status: str
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """Who signs the TDX module of major version `major` (0: the unversioned entry), and its levels."""

    major: int
    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[EnclaveLevel, ...]


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """What Intel says about one kind of platform (`fmspc`) and one TEE."""

    tee: str
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation: int
    modules: tuple[ModuleIdentity, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """What Intel says about its quoting enclave for one TEE."""

    tee: str
    issued: datetime
    next_update: datetime
    evaluation: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[EnclaveLevel, ...]


@dataclass(frozen=True, slots=True)
class Collateral:
    """A bundle as it was read. `text` is the bundle itself; chains are DER, leaf first; `tcb_info_bytes` and
    `qe_identity_bytes` are what `tcb_info_signature` and `qe_identity_signature` (raw r and s) cover.
    """

    text: str
    pck_crl_issuer_chain: tuple[bytes, ...]
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: tuple[bytes, ...]
    tcb_info_bytes: bytes
    tcb_info_signature: bytes
    tcb_info: TcbInfo
    qe_identity_issuer_chain: tuple[bytes, ...]
    qe_identity_bytes: bytes
    qe_identity_signature: bytes
    qe_identity: QeIdentity


def select_collateral(endorsements: tuple[tuple[str, bytes], ...], *, tee: str, fmspc: bytes) -> Collateral:
    """Returns the bundle for `tee` and `fmspc` among `endorsements`, sorted out by content, whatever their names; of
    several the one with the highest evaluation number, then the newest.

    Raises:
        MalformedInput: code `collateral_malformed`, a document is no bundle; `collateral_missing`, none is for this
            platform (with the platforms that they are for).
    """
    bundles = [_remembered(data) for _, data in endorsements]
    fitting = [b for b in bundles if (b.tcb_info.tee, b.tcb_info.fmspc) == (tee, fmspc)]
    if not fitting:
        others = sorted({f"{b.tcb_info.tee} {b.tcb_info.fmspc.hex()}" for b in bundles})
        raise MalformedInput(
            f"{_WHAT}: none for {tee} {fmspc.hex()} among {', '.join(others) if others else 'no bundles'}",
            code="collateral_missing",
        )
    return max(fitting, key=lambda b: (b.tcb_info.evaluation, b.tcb_info.issued))


@lru_cache(maxsize=REMEMBERED)
def _remembered(data: bytes) -> Collateral:
    """`parse_collateral`, remembered: a bundle serves every quote of its platforms for weeks."""
    return parse_collateral(data)


def parse_collateral(data: bytes) -> Collateral:
    """Returns the bundle that `data` is (docs/spec/dcap.md §4.1). Nothing in it is verified.

    Raises:
        MalformedInput: code `collateral_malformed`.
    """
    read = Members(
        parse_object(data, limit=MAX_BUNDLE, what=_WHAT, code=_CODE), _NAMES, what=_WHAT, code=_CODE
    )
    tcb_info = _document(read, "tcb_info")
    qe_identity = _document(read, "qe_identity")
    return Collateral(
        text=data.decode("utf-8"),
        pck_crl_issuer_chain=_chain(read, "pck_crl_issuer_chain"),
        root_ca_crl=_hex(read, "root_ca_crl"),
        pck_crl=_hex(read, "pck_crl"),
        tcb_info_issuer_chain=_chain(read, "tcb_info_issuer_chain"),
        tcb_info_bytes=tcb_info,
        tcb_info_signature=bytes.fromhex(read.hexadecimal("tcb_info_signature", 64)),
        tcb_info=parse_tcb_info(tcb_info),
        qe_identity_issuer_chain=_chain(read, "qe_identity_issuer_chain"),
        qe_identity_bytes=qe_identity,
        qe_identity_signature=bytes.fromhex(read.hexadecimal("qe_identity_signature", 64)),
        qe_identity=parse_qe_identity(qe_identity),
    )


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"{_WHAT}: {why}", code=_CODE)


def _hex(read: Members, name: str) -> bytes:
    text = read.text(name, f"[0-9a-f]{{2,{2 * MAX_DOCUMENT}}}")
    if len(text) % 2:
        _refuse(f"{name}: expected two hex digits for each byte")
    return bytes.fromhex(text)


def _document(read: Members, name: str) -> bytes:
    text = read.text(name, r"(?s)\{.*\}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        _refuse(f"{name}: not text")


def _chain(read: Members, name: str) -> tuple[bytes, ...]:
    text = read.text(name, r"[A-Za-z0-9+/=\n -]{1,16384}").encode("ascii")
    try:
        return parse_pem_chain(text, nul=False)
    except MalformedInput:
        _refuse(f"{name}: expected PEM certificates in their one spelling")


class _Document:
    """The members that are used of one object in a document of Intel's; others are left alone."""

    __slots__ = ("read", "value")

    def __init__(self, value: object, names: tuple[str, ...], what: str) -> None:
        if not isinstance(value, dict):
            _refuse(f"{what}: expected a JSON object")
        used = {name: value[name] for name in names if name in value}
        self.value = value
        self.read = Members(used, names, what=f"{_WHAT}: {what}", code=_CODE)

    def upper_hex(self, name: str, size: int) -> bytes:
        """The bytes whose hex, of either case, stands there."""
        return bytes.fromhex(self.read.text(name, f"[0-9A-Fa-f]{{{2 * size}}}"))

    def time(self, name: str) -> datetime:
        """The time that stands there, in UTC."""
        text = self.read.text(name, _TIME)
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            _refuse(f"{name}: not a time")

    def advisories(self) -> tuple[str, ...]:
        """The advisories of a level; none where the member is not there."""
        found = self.value.get("advisoryIDs", [])
        if not isinstance(found, list) or len(found) > MAX_ADVISORIES:
            _refuse(f"advisoryIDs: expected an array of at most {MAX_ADVISORIES} elements")
        for advisory in found:
            if not isinstance(advisory, str) or re.fullmatch(_ADVISORY, advisory, re.ASCII) is None:
                _refuse(f"advisoryIDs: expected strings of the form {_ADVISORY}")
        return tuple(found)

    def status(self, accepted: tuple[str, ...]) -> str:
        """The status of a level, one of `accepted`."""
        return self.read.text("tcbStatus", "|".join(accepted))


def parse_tcb_info(data: bytes) -> TcbInfo:
    """Returns the TCB info, version 3, that the JSON `data` is (docs/spec/dcap.md §4.2).

    Raises:
        MalformedInput: code `collateral_malformed`.
    """
    top = parse_object(data, limit=MAX_DOCUMENT, what=f"{_WHAT}: tcb_info", code=_CODE)
    tee = {"SGX": SGX, "TDX": TDX}.get(str(top.get("id")))
    if tee is None:
        _refuse("tcb_info: id: expected SGX or TDX")
    names = (
        "version",
        "issueDate",
        "nextUpdate",
        "fmspc",
        "pceId",
        "tcbType",
        "tcbEvaluationDataNumber",
        "tcbLevels",
    )
    document = _Document(top, (*names, "tdxModule") if tee == TDX else names, "tcb_info")
    read = document.read
    read.integer("version", 3, 3)
    read.integer("tcbType", 0, 0)
    return TcbInfo(
        tee=tee,
        issued=document.time("issueDate"),
        next_update=document.time("nextUpdate"),
        fmspc=document.upper_hex("fmspc", 6),
        pce_id=document.upper_hex("pceId", 2),
        evaluation=read.integer("tcbEvaluationDataNumber", 0, 65535),
        modules=_modules(document) if tee == TDX else (),
        levels=tuple(_level(item, tee) for item in read.array("tcbLevels", MAX_LEVELS)),
    )


def _level(item: object, tee: str) -> Level:
    document = _Document(item, ("tcb", "tcbDate", "tcbStatus"), "level")
    names = ("sgxtcbcomponents", "pcesvn")
    tcb = _Document(document.read.object("tcb"), (*names, "tdxtcbcomponents") if tee == TDX else names, "tcb")
    return Level(
        sgx=_components(tcb, "sgxtcbcomponents"),
        tdx=_components(tcb, "tdxtcbcomponents") if tee == TDX else (),
        pce_svn=tcb.read.integer("pcesvn", 0, 65535),
        date=document.time("tcbDate"),
        status=document.status(STATUSES),
        advisories=document.advisories(),
    )


def _components(tcb: _Document, name: str) -> tuple[int, ...]:
    items = tcb.read.array(name, COMPONENTS)
    if len(items) != COMPONENTS:
        _refuse(f"{name}: expected {COMPONENTS} components, got {len(items)}")
    svns = tuple(item.get("svn") if isinstance(item, dict) else None for item in items)
    if any(type(svn) is not int or not 0 <= svn <= 255 for svn in svns):
        _refuse(f"{name}: expected components with an svn within 0..255")
    return tuple(int(svn) for svn in svns if svn is not None)


def _enclave_levels(document: _Document) -> tuple[EnclaveLevel, ...]:
    levels = []
    for item in document.read.array("tcbLevels", MAX_LEVELS):
        level = _Document(item, ("tcb", "tcbDate", "tcbStatus"), "level")
        tcb = _Document(level.read.object("tcb"), ("isvsvn",), "tcb")
        levels.append(
            EnclaveLevel(
                isv_svn=tcb.read.integer("isvsvn", 0, 65535),
                date=level.time("tcbDate"),
                status=level.status(PART_STATUSES),
                advisories=level.advisories(),
            )
        )
    return tuple(levels)


def _modules(top: _Document) -> tuple[ModuleIdentity, ...]:
    """The unversioned module (major version 0), and the identities by major version, none twice."""
    names = ("mrsigner", "attributes", "attributesMask")
    found = [_module(_Document(top.read.object("tdxModule"), names, "tdxModule"), 0, ())]
    items = top.value.get("tdxModuleIdentities", [])
    if not isinstance(items, list) or len(items) > MAX_MODULES:
        _refuse(f"tdxModuleIdentities: expected an array of at most {MAX_MODULES} elements")
    for item in items:
        document = _Document(item, ("id", *names, "tcbLevels"), "tdxModuleIdentities")
        major = int(document.read.text("id", "TDX_[0-9A-Fa-f]{2}")[4:], 16)
        if any(module.major == major for module in found):
            _refuse("tdxModuleIdentities: a module is there twice")
        found.append(_module(document, major, _enclave_levels(document)))
    return tuple(found)


def _module(document: _Document, major: int, levels: tuple[EnclaveLevel, ...]) -> ModuleIdentity:
    return ModuleIdentity(
        major=major,
        mr_signer=document.upper_hex("mrsigner", 48),
        attributes=document.upper_hex("attributes", 8),
        attributes_mask=document.upper_hex("attributesMask", 8),
        levels=levels,
    )


def parse_qe_identity(data: bytes) -> QeIdentity:
    """Returns the identity, version 2, of the quoting enclave that the JSON `data` is (docs/spec/dcap.md §4.3).

    Raises:
        MalformedInput: code `collateral_malformed`.
    """
    names = (
        "id",
        "version",
        "issueDate",
        "nextUpdate",
        "tcbEvaluationDataNumber",
        "miscselect",
        "miscselectMask",
        "attributes",
        "attributesMask",
        "mrsigner",
        "isvprodid",
        "tcbLevels",
    )
    top = parse_object(data, limit=MAX_DOCUMENT, what=f"{_WHAT}: qe_identity", code=_CODE)
    document = _Document(top, names, "qe_identity")
    read = document.read
    read.integer("version", 2, 2)
    return QeIdentity(
        tee={"QE": SGX, "TD_QE": TDX}[read.text("id", "QE|TD_QE")],
        issued=document.time("issueDate"),
        next_update=document.time("nextUpdate"),
        evaluation=read.integer("tcbEvaluationDataNumber", 0, 65535),
        misc_select=document.upper_hex("miscselect", 4),
        misc_select_mask=document.upper_hex("miscselectMask", 4),
        attributes=document.upper_hex("attributes", 16),
        attributes_mask=document.upper_hex("attributesMask", 16),
        mr_signer=document.upper_hex("mrsigner", 32),
        isv_prod_id=read.integer("isvprodid", 0, 65535),
        levels=_enclave_levels(document),
    )
