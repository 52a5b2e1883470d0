"""A TPM 2.0, through tpm2-pytss (extra `tpm`): the few commands that attesting and sealing need.

Names are those of the TCG's "Trusted Platform Module Library". Structures that we choose (templates of keys, the
policy of the sealed object) are bytes written here, so that nothing depends on another library's defaults.

Rules
  - One lock: ESAPI is not thread-safe, and a TPM does one thing at a time anyway.
  - Whatever is loaded is flushed: a TPM holds three transient objects.
  - Secrets travel in sessions that are salted with the storage key and encrypt their parameters: a TPM often sits
    on a bus that others can read. (Who can answer on that bus can show another storage key: a TPM beside the
    processor is as good as the board.)
  - libtss prints to stderr unless `TSS2_LOG` says otherwise before the import: the launcher sees to that.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

from strongroom.attest.tpm_wire import ATTRIBUTES
from strongroom.errors import Failure, InvalidConfig, InvalidRequest, SealRefused, Unavailable

BANK: Final = 0x000B
"""TPM_ALG_SHA256: the bank that is quoted and sealed to."""
DIGEST_SIZE: Final = 32
MAX_READ: Final = 512
"""Bytes of NV memory read at a time; every TPM takes as many."""
EK_HANDLE: Final = 0x81010001
"""Where TPMs keep the RSA endorsement key (TCG "Provisioning Guidance")."""
EK_CERTIFICATE: Final = 0x01C00002
"""NV index of its certificate (TCG "EK Credential Profile", §2.2.1.4)."""
_RSA, _KEYED_HASH, _ECC, _NULL = 0x0001, 0x0008, 0x0023, 0x0010
_AES, _CFB, _ECDSA, _P256 = 0x0006, 0x0043, 0x0018, 0x0003
_POLICY_PCR: Final = 0x0000017F
_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(TPM_RH_ENDORSEMENT), as in the TCG's EK templates."""
_NV_ATTRIBUTES: Final = 1 << 2 | 1 << 18 | 1 << 25
"""TPMA_NV_AUTHWRITE, AUTHREAD, NO_DA: an ordinary index, written and read by whoever knows its secret."""


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def _bits(*names: str) -> int:
    return sum(ATTRIBUTES[name] for name in names)


_FIXED: Final = ("fixedTPM", "fixedParent", "sensitiveDataOrigin")
_AES_CFB: Final = struct.pack(">HHH", _AES, 128, _CFB)
AK_TEMPLATE: Final = (
    struct.pack(">HHI", _ECC, BANK, _bits(*_FIXED, "userWithAuth", "noDA", "restricted", "sign"))
    + _sized(b"")
    + struct.pack(">HHHHH", _NULL, _ECDSA, BANK, _P256, _NULL)
    + _sized(hashlib.sha256(b"strongroom attestation key v1").digest())
    + _sized(b"")
)
"""TPMT_PUBLIC of our attestation key: a primary key of the endorsement hierarchy, so the same one at every start. The
unique field makes it ours alone."""
SRK_TEMPLATE: Final = (
    struct.pack(">HHI", _ECC, BANK, _bits(*_FIXED, "userWithAuth", "noDA", "restricted", "decrypt"))
    + _sized(b"")
    + _AES_CFB
    + struct.pack(">HHH", _NULL, _P256, _NULL)
    + _sized(b"")
    + _sized(b"")
)
"""The storage key above the sealed object: a primary key of the owner hierarchy, as the TCG's guidance has it."""
EK_TEMPLATE: Final = (
    struct.pack(">HHI", _RSA, BANK, _bits(*_FIXED, "adminWithPolicy", "restricted", "decrypt"))
    + _sized(_EK_POLICY)
    + _AES_CFB
    + struct.pack(">HHI", _NULL, 2048, 0)
    + _sized(bytes(256))
)
"""Template L-1 of the EK Credential Profile, for TPMs that do not keep the key."""


def selection(pcrs: tuple[int, ...]) -> bytes:
    """TPML_PCR_SELECTION of these PCRs of the SHA-256 bank."""
    bits = sum(1 << pcr for pcr in pcrs)
    return struct.pack(">IHB", 1, BANK, 3) + bits.to_bytes(3, "little")


def extended(value: bytes, digest: bytes) -> bytes:
    """What a register with `value` holds after it was extended by `digest`."""
    return hashlib.sha256(value + digest).digest()


def policy_digest(values: Mapping[int, bytes]) -> bytes:
    """The authorisation policy (TPM2_PolicyPCR) that is met while the PCRs have these values."""
    composite = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
    text = bytes(DIGEST_SIZE) + _POLICY_PCR.to_bytes(4) + selection(tuple(sorted(values))) + composite
    return hashlib.sha256(text).digest()


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """An object that only this TPM opens, and only while its PCRs have the values of the object's policy:
    TPM2B_PUBLIC and TPM2B_PRIVATE, without their sizes.
    """

    public: bytes
    private: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """TPMS_ATTEST, TPMT_SIGNATURE, and the PCR values that were read beside it."""

    attest: bytes
    signature: bytes
    values: Mapping[int, bytes]


def load_library() -> ModuleType:
    """tpm2-pytss, or the sentence that says how to get it.

    Raises:
        InvalidConfig: it is not installed, or the TSS libraries are not (code `tpm_library_missing`).
    """
    try:
        import tpm2_pytss
    except (ImportError, OSError) as exc:
        raise InvalidConfig(
            "platform tpm: tpm2-pytss is not installed: install strongroom with its tpm extra (it needs libtss2)",
            code="tpm_library_missing",
        ) from exc
    found: ModuleType = tpm2_pytss
    return found


class Device:
    """One TPM. `tcti` as libtss has it: `device:/dev/tpmrm0`."""

    def __init__(self, tcti: str) -> None:
        """Connects, and loads storage and attestation key.

        Raises:
            InvalidConfig: the library is missing (`tpm_library_missing`), or no TPM is there (`tpm_not_found`).
            Failure: it does not do what it should (code `tpm_failed`).
        """
        self._tss: Any = load_library()
        self._lock = threading.RLock()
        try:
            self._esapi: Any = self._tss.ESAPI(tcti)
        except (self._tss.TSS2_Exception, RuntimeError, OSError) as exc:
            raise InvalidConfig(f"platform tpm: no TPM answers at {tcti}", code="tpm_not_found") from exc
        try:
            with self._talking("make its keys"):
                self._srk, _ = self._primary(SRK_TEMPLATE, self._tss.ESYS_TR.OWNER)
                self._ak, public = self._primary(AK_TEMPLATE, self._tss.ESYS_TR.ENDORSEMENT)
                self.ak_public: bytes = public
        except BaseException:
            self._esapi.close()
            raise

    def close(self) -> None:
        """Forgets the keys and disconnects."""
        with self._lock:
            for handle in (self._ak, self._srk):
                self._flush(handle)
            self._esapi.close()

    # Registers

    def read_pcrs(self, pcrs: tuple[int, ...]) -> dict[int, bytes]:
        """The values of these PCRs, SHA-256 bank; a TPM gives at most eight at a time.

        Raises:
            Failure: it has no such bank, or fails (code `tpm_failed`).
        """
        found: dict[int, bytes] = {}
        with self._talking("read its registers"):
            while left := tuple(pcr for pcr in sorted(pcrs) if pcr not in found):
                wanted, _ = self._tss.TPML_PCR_SELECTION.unmarshal(selection(left[:8]))
                _, shown, digests = self._esapi.pcr_read(wanted)
                read = _selected(shown.marshal())
                if not read or len(read) != len(digests) or set(read) - set(left):
                    raise Failure("the TPM has no SHA-256 bank of these PCRs", code="tpm_failed")
                found |= {pcr: bytes(digest) for pcr, digest in zip(read, digests, strict=True)}
        return found

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extends one PCR of the SHA-256 bank by `digest` (32 bytes); only a reset of the machine undoes that.

        Raises:
            Failure: it fails (code `tpm_failed`).
        """
        values, _ = self._tss.TPML_DIGEST_VALUES.unmarshal(struct.pack(">IH", 1, BANK) + digest)
        with self._talking("extend a register"):
            self._esapi.pcr_extend(self._tss.ESYS_TR(pcr), values)

    def quote(self, pcrs: tuple[int, ...], qualifying: bytes) -> SignedQuote:
        """A quote of these PCRs by the attestation key, with `qualifying` (32 bytes) in it.

        Raises:
            Unavailable: the registers changed each time while they were read (code `attester_unavailable`).
            Failure: it fails (code `tpm_failed`).
        """
        wanted, _ = self._tss.TPML_PCR_SELECTION.unmarshal(selection(pcrs))
        with self._lock:
            for _ in range(3):
                before = self.read_pcrs(pcrs)
                with self._talking("quote"):
                    attest, signature = self._esapi.quote(self._ak, wanted, qualifying)
                if self.read_pcrs(pcrs) == before:
                    return SignedQuote(bytes(attest), signature.marshal(), before)
        raise Unavailable(
            "the TPM's registers change while they are quoted", code="attester_unavailable", retry_after_s=5
        )

    # Sealing

    def random(self, size: int) -> bytes:
        """Random bytes of the TPM's, at most 32."""
        with self._talking("give random bytes"), self._session() as session:
            return bytes(self._esapi.get_random(size, session1=session))

    def seal(self, secret: bytes, values: Mapping[int, bytes]) -> SealedBlob:
        """Seals `secret` for whenever the PCRs have these values.

        Raises:
            Failure: it fails (code `tpm_failed`).
        """
        attributes = _bits("fixedTPM", "fixedParent", "adminWithPolicy", "noDA")
        template = struct.pack(">HHI", _KEYED_HASH, BANK, attributes) + _sized(policy_digest(values))
        template += struct.pack(">H", _NULL) + _sized(b"")
        sensitive = self._tss.TPM2B_SENSITIVE_CREATE(
            self._tss.TPMS_SENSITIVE_CREATE(data=self._tss.TPM2B_SENSITIVE_DATA(secret))
        )
        with self._talking("seal"), self._session() as session:
            private, public, *_ = self._esapi.create(
                self._srk, sensitive, self._public(template), session1=session
            )
            return SealedBlob(public=public.publicArea.marshal(), private=bytes(private))

    def unseal(self, blob: SealedBlob, pcrs: tuple[int, ...]) -> bytes:
        """The secret, if the PCRs have the values that it was sealed for.

        Raises:
            SealRefused: they have not (code `tpm_unseal_refused`), or the object is not this TPM's (code
                `tpm_blob_foreign`).
        """
        wanted, _ = self._tss.TPML_PCR_SELECTION.unmarshal(selection(pcrs))
        refused = self._tss.TSS2_Exception
        with self._lock:
            try:
                public = self._public(blob.public)
                loaded = self._esapi.load(self._srk, self._tss.TPM2B_PRIVATE(blob.private), public)
            except (refused, RuntimeError, ValueError, IndexError) as exc:
                raise SealRefused(
                    "the sealed root is not this TPM's, or was altered", code="tpm_blob_foreign"
                ) from exc
            try:
                with self._session(policy=True) as session:
                    self._esapi.policy_pcr(session, b"", wanted)
                    return bytes(self._esapi.unseal(loaded, session1=session))
            except refused as exc:
                raise SealRefused(
                    "the TPM does not give the sealing root to what was measured at this start: other code, another "
                    "configuration or firmware, or a second start without a reset of the machine",
                    code="tpm_unseal_refused",
                ) from exc
            finally:
                self._flush(loaded)

    # Credential activation, the TPM's half

    def ek_certificate(self) -> bytes:
        """The endorsement key's certificate (DER) as its maker left it in NV memory, or b"" where there is none."""
        with self._lock:
            try:
                index = self._esapi.tr_from_tpmpublic(EK_CERTIFICATE)
                size = self._esapi.nv_read_public(index)[0].nvPublic.dataSize
                data = b"".join(
                    bytes(self._esapi.nv_read(index, min(MAX_READ, size - at), at, auth_handle=index))
                    for at in range(0, size, MAX_READ)
                )
            except self._tss.TSS2_Exception:
                return b""
        return _der(data)

    def activate(self, credential: bytes, encrypted_secret: bytes) -> bytes:
        """The secret of a credential (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET) that was made for this TPM's
        endorsement key and our attestation key.

        Raises:
            InvalidRequest: it was made for others, or was altered (code `tpm_activation_refused`).
        """
        tss = self._tss
        with self._lock:
            endorsement, transient = self._endorsement_key()
            try:
                blob, _ = tss.TPM2B_ID_OBJECT.unmarshal(credential)
                secret, _ = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
                with self._session(policy=True, parameters=False) as session:
                    self._esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session)
                    return bytes(
                        self._esapi.activate_credential(
                            self._ak,
                            endorsement,
                            blob,
                            secret,
                            session1=tss.ESYS_TR.PASSWORD,
                            session2=session,
                        )
                    )
            except (tss.TSS2_Exception, RuntimeError, ValueError, IndexError) as exc:
                raise InvalidRequest(
                    "the credential is not for this TPM and its attestation key",
                    code="tpm_activation_refused",
                ) from exc
            finally:
                if transient:
                    self._flush(endorsement)

    # NV memory

    def define_nv(self, index: int, *, secret: bytes, size: int) -> None:
        """Makes the index anew, in the place of one that is there: only who knows `secret` reads or writes it.

        Raises:
            Failure: it cannot be made (code `tpm_failed`).
        """
        tss = self._tss
        public = tss.TPM2B_NV_PUBLIC(
            tss.TPMS_NV_PUBLIC(
                nvIndex=index, nameAlg=BANK, attributes=_NV_ATTRIBUTES, authPolicy=b"", dataSize=size
            )
        )
        with self._talking("define an NV index"), self._session() as session:
            try:
                old = self._esapi.tr_from_tpmpublic(index)
            except tss.TSS2_Exception:
                pass  # the usual case
            else:
                self._esapi.nv_undefine_space(old)
            made = self._esapi.nv_define_space(secret, public, session1=session)
            self._esapi.tr_close(made)

    def write_nv(self, index: int, data: bytes, *, secret: bytes) -> None:
        """Writes the whole index.

        Raises:
            SealRefused: it is not there, or not ours (code `tpm_nv_foreign`).
        """
        with self._index(index, secret) as (handle, session):
            self._esapi.nv_write(handle, data, auth_handle=handle, session1=session)

    def read_nv(self, index: int, *, secret: bytes, size: int) -> bytes:
        """Reads the whole index. The answer is authenticated with `secret`: nobody else can have made it.

        Raises:
            SealRefused: it is not there, or not ours, or was never written (code `tpm_nv_foreign`).
        """
        with self._index(index, secret) as (handle, session):
            return bytes(self._esapi.nv_read(handle, size, auth_handle=handle, session1=session))

    @contextmanager
    def _index(self, index: int, secret: bytes) -> Iterator[tuple[Any, Any]]:
        with self._lock:
            try:
                handle = self._esapi.tr_from_tpmpublic(index)
                try:
                    self._esapi.tr_set_auth(handle, secret)
                    with self._session() as session:
                        yield handle, session
                finally:
                    self._esapi.tr_close(handle)
            except self._tss.TSS2_Exception as exc:
                raise SealRefused(
                    f"NV index {index:#x} of the TPM is not there, or not the one that belongs to this store",
                    code="tpm_nv_foreign",
                ) from exc

    # Parts

    def _primary(self, template: bytes, hierarchy: Any) -> tuple[Any, bytes]:
        handle, public, *_ = self._esapi.create_primary(None, self._public(template), hierarchy)
        return handle, public.publicArea.marshal()

    def _public(self, template: bytes) -> Any:
        area, _ = self._tss.TPMT_PUBLIC.unmarshal(template)
        return self._tss.TPM2B_PUBLIC(publicArea=area)

    def _endorsement_key(self) -> tuple[Any, bool]:
        """The endorsement key, and whether it has to be flushed."""
        try:
            return self._esapi.tr_from_tpmpublic(EK_HANDLE), False
        except self._tss.TSS2_Exception:
            return self._primary(EK_TEMPLATE, self._tss.ESYS_TR.ENDORSEMENT)[0], True

    @contextmanager
    def _session(self, *, policy: bool = False, parameters: bool = True) -> Iterator[Any]:
        """A session, salted with the storage key. `parameters`: the first ones are encrypted in both directions."""
        tss = self._tss
        kind = tss.TPM2_SE.POLICY if policy else tss.TPM2_SE.HMAC
        symmetric = tss.TPMT_SYM_DEF(
            algorithm=_AES,
            keyBits=tss.TPMU_SYM_KEY_BITS(aes=128),
            mode=tss.TPMU_SYM_MODE(aes=_CFB),
        )
        session = self._esapi.start_auth_session(self._srk, tss.ESYS_TR.NONE, kind, symmetric, BANK)
        try:
            wanted = tss.TPMA_SESSION.CONTINUESESSION
            if parameters:
                wanted |= tss.TPMA_SESSION.ENCRYPT | (0 if policy else tss.TPMA_SESSION.DECRYPT)
            self._esapi.trsess_set_attributes(session, wanted)
            yield session
        finally:
            self._flush(session)

    def _flush(self, handle: Any) -> None:
        try:
            self._esapi.flush_context(handle)
        except self._tss.TSS2_Exception:
            return  # gone already: a session that failed ends by itself

    @contextmanager
    def _talking(self, doing: str) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (self._tss.TSS2_Exception, RuntimeError) as exc:
                raise Failure(f"the TPM could not {doing}", code="tpm_failed") from exc


def _selected(data: bytes) -> tuple[int, ...]:
    """The PCRs of a TPML_PCR_SELECTION of one bank."""
    if len(data) < 10 or data[:6] != struct.pack(">IH", 1, BANK):
        return ()
    bits = int.from_bytes(data[7 : 7 + data[6]], "little")
    return tuple(pcr for pcr in range(24) if bits >> pcr & 1)


def _der(data: bytes) -> bytes:
    """A certificate without the padding that some makers leave behind it."""
    if len(data) < 4 or data[:2] != b"\x30\x82":
        return b""
    size = 4 + int.from_bytes(data[2:4])
    return data[:size] if size <= len(data) else b""


__all__ = [
    "AK_TEMPLATE", "BANK", "Device", "EK_TEMPLATE", "SRK_TEMPLATE", "SealedBlob", "SignedQuote", "extended",
    "policy_digest", "selection",
]  # fmt: skip
