"""The platform `tpm`: a measured start, a sealing root that only it gets, and an anchor in NV memory
(docs/spec/tpm.md §9).

    launcher:  PCR <- code event (the measurement)                     before the server's interpreter runs
    server:    unseals the root, which is sealed to that value of the PCR (and of the PCRs of the start)
               PCR <- cap event                                        at once: nothing later unseals
               quotes the value behind it

Rules
  - The PCR is one of 8 to 15: they begin with the machine's reset and cannot be set back by software.
  - The server measures itself again and compares with what the launcher extended. That shows a mistake, not an
    attack: whoever could replace the launcher could replace the server. What makes the value mean something is what
    was measured before it: firmware, boot loader, kernel, the image with the launcher. The same PCRs are quoted and
    sealed to.
  - One start per reset of the machine: a second one finds the PCR capped, and gets no root.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from strongroom import disk, keys
from strongroom.anchor import Digests
from strongroom.attest.evidence import Evidence
from strongroom.attest.strict import JSON, Members, canonical, parse_object
from strongroom.attest.tpm import EK_ENDORSEMENT, from_recorded
from strongroom.attest.tpm_quote import pcr_measurement, qualifying_data
from strongroom.errors import Failure, InvalidConfig, MalformedInput, SealRefused
from strongroom.tee import check_report_data
from strongroom.tee.files import malformed
from strongroom.tee.tpm_device import BANK, Device, SealedBlob, extended

CAP: Final = hashlib.sha256(b"strongroom tpm cap v1").digest()
"""The event behind which nothing unseals any more."""
NV_SIZE: Final = 64
"""Bytes of the NV index: two digests."""
SECRET_SIZE: Final = 32
_LABEL: Final = b"strongroom tpm code v1\x00"
_MAX_FILE: Final = 16 * 1024


def code_event(measurement: str) -> bytes:
    """The digest by which the launcher extends the PCR for code of this measurement (hex)."""
    return hashlib.sha256(_LABEL + bytes.fromhex(measurement)).digest()


def reference_value(measurement: str) -> str:
    """What the code's PCR holds (hex) while a server of this measurement runs, on a machine where nothing else extends
    it: what a policy pins.
    """
    return extended(extended(bytes(32), code_event(measurement)), CAP).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a server on a TPM was told. `pcrs`: those of the start; `code_pcr`: ours; `root_file`: where the sealed
    root lies; `nv_index`: where the anchor is; `launched`: the value of `code_pcr` (hex) before the launcher's event.
    """

    pcrs: tuple[int, ...]
    code_pcr: int
    nv_index: int
    root_file: Path
    measurement: str
    launched: str
    store_exists: bool

    @property
    def quoted(self) -> tuple[int, ...]:
        """The PCRs that are quoted and sealed to, ascending."""
        return tuple(sorted({*self.pcrs, self.code_pcr}))


class TpmAttester:
    """The machine that was started with this code, as its TPM saw it. Thread-safe."""

    format = "tpm"

    def __init__(self, device: Device, plan: Plan) -> None:
        """Gets the root, and caps the PCR whether it did or not (but for a process that no launcher started).

        Raises:
            SealRefused: something else was measured at this start (codes `tpm_launch_unmeasured`,
                `tpm_unseal_refused`, `tpm_blob_foreign`), or the NV index is not ours (`tpm_nv_foreign`).
            InvalidConfig: there is a store, but not its sealed root (code `root_key_missing`).
            Failure: the TPM fails (code `tpm_failed`).
        """
        self._device, self._plan = device, plan
        # Before anything is asked of the TPM: `strongroom check` must not spend the one start that there is.
        before = _digest(plan.launched)
        try:
            self._root = self._open(before)
        finally:
            device.extend(plan.code_pcr, CAP)
        self._values = device.read_pcrs(plan.quoted)
        self.measurement = pcr_measurement(BANK, self._values)
        self.ak = hashlib.sha256(device.ak_public).hexdigest()
        self._ek_certificate = device.ek_certificate()

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """A quote with the digest of `report_data`. It states no time, so `now` is not in it.

        Raises:
            MalformedInput: report data of another size. Unavailable: the registers keep changing.
            Failure: they are no longer what they were at the start (`attester_malformed`), or the TPM fails.
        """
        check_report_data(report_data)
        quote = self._device.quote(self._plan.quoted, qualifying_data(report_data))
        if quote.values != self._values:
            raise malformed(
                "TPM quote", "somebody extended a PCR since the start; the machine must be started anew"
            )
        files = {
            "attest.bin": quote.attest,
            "signature.bin": quote.signature,
            "ak_public.bin": self._device.ak_public,
            "quote.json": json.dumps({"pcrs": {str(i): v.hex() for i, v in quote.values.items()}}).encode(),
        }
        endorsement = ((EK_ENDORSEMENT, self._ek_certificate),) if self._ek_certificate else ()
        return Evidence(format=self.format, data=from_recorded(files), endorsements=endorsement)

    def sealing_root(self) -> keys.SealingRoot:
        """The root that the TPM gave to what was measured."""
        return self._root

    def anchor(self) -> NvAnchor:
        """The anchor of the store in this TPM."""
        return NvAnchor(self._device, self._plan.nv_index, secret=_nv_secret(self._root))

    def activate(self, credential: bytes, encrypted_secret: bytes) -> bytes:
        """See `Device.activate`."""
        return self._device.activate(credential, encrypted_secret)

    def _open(self, before: bytes) -> keys.SealingRoot:
        plan, values = self._plan, self._device.read_pcrs(self._plan.quoted)
        expected = extended(before, code_event(plan.measurement))
        if not hmac.compare_digest(values[plan.code_pcr], expected):
            raise SealRefused(
                f"PCR {plan.code_pcr} is not what the launcher leaves behind for this code",
                code="tpm_launch_unmeasured",
            )
        blob = read_root(plan.root_file, pcrs=plan.quoted)
        if blob is not None:
            return _root(self._device.unseal(blob, plan.quoted), plan)
        if plan.store_exists:
            raise InvalidConfig(
                f"there is a store, but its sealed root {plan.root_file} is missing: put it back, or move the store "
                "away",
                code="root_key_missing",
            )
        return self._make(values)

    def _make(self, values: dict[int, bytes]) -> keys.SealingRoot:
        """A fresh root, sealed to these values; its NV index before its file, so that no file stands without one."""
        plan, device = self._plan, self._device
        # Out of both: neither a bad TPM nor a bad kernel alone makes it guessable.
        secret = hashlib.sha256(device.random(SECRET_SIZE) + os.urandom(SECRET_SIZE)).digest()
        root = _root(secret, plan)
        device.define_nv(plan.nv_index, secret=_nv_secret(root), size=NV_SIZE)
        device.write_nv(plan.nv_index, bytes(NV_SIZE), secret=_nv_secret(root))
        _write(plan.root_file, device.seal(secret, values), pcrs=plan.quoted)
        return root


class NvAnchor(Digests):
    """Two digests in an NV index that only this store's root can read or write."""

    def __init__(self, device: Device, index: int, *, secret: bytes) -> None:
        self._device, self._index, self._secret = device, index, secret

    def load(self) -> tuple[str, str]:
        """From the TPM."""
        data = self._device.read_nv(self._index, secret=self._secret, size=NV_SIZE)
        return data[:32].hex(), data[32:].hex()

    def save(self, current: str, following: str) -> None:
        """Into the TPM."""
        self._device.write_nv(
            self._index, bytes.fromhex(current) + bytes.fromhex(following), secret=self._secret
        )


def _root(secret: bytes, plan: Plan) -> keys.SealingRoot:
    return keys.platform_root("tpm", secret, sealing_class="measurement", sealed_for=plan.measurement)


def _nv_secret(root: keys.SealingRoot) -> bytes:
    return root.derive(label="strongroom tpm v1 nv index", context=())


def _digest(text: str) -> bytes:
    if len(text) != 64:
        raise SealRefused(
            "on a TPM the store opens for a server's measured start alone, and this process was not started by the "
            "launcher",
            code="tpm_launch_unmeasured",
        )
    return bytes.fromhex(text)


def read_root(path: Path, *, pcrs: tuple[int, ...]) -> SealedBlob | None:
    """The sealed root in a file, None where there is none.

    Raises:
        SealRefused: it is not of its form, or sealed to other PCRs (code `tpm_blob_foreign`).
    """
    with disk.faults("read the sealed root"):
        data = disk.read_small(path, limit=_MAX_FILE)
    if data is None:
        return None
    what, code = "sealed root", "tpm_blob_foreign"
    try:
        top = parse_object(data, limit=_MAX_FILE, what=what, code=code)
        read = Members(top, ("pcrs", "private", "public", "version"), what=what, code=code)
        read.integer("version", 1, 1)
        sealed_to = tuple(read.array("pcrs", 24))
        blob = SealedBlob(public=read.base64("public", 4096), private=read.base64("private", 4096))
    except MalformedInput as exc:
        raise SealRefused(exc.message, code=code) from exc
    if sealed_to != pcrs:
        raise SealRefused(f"{what}: sealed to PCRs {sealed_to}, the settings say {pcrs}", code=code)
    return blob


def _write(path: Path, blob: SealedBlob, *, pcrs: tuple[int, ...]) -> None:
    document = {
        "version": 1,
        "pcrs": list(pcrs),
        "public": base64.b64encode(blob.public).decode("ascii"),
        "private": base64.b64encode(blob.private).decode("ascii"),
    }
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")
    with disk.faults("write the sealed root"):
        fd = disk.create(temporary)
        try:
            disk.write(fd, canonical(cast(JSON, document)))
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.replace(temporary, path)
        disk.sync_folder(path.parent)


def measure_into(device: Device, pcr: int, measurement: str) -> str:
    """The launcher's part: extends the PCR by the code's event; returns the value before (hex).

    Raises:
        Failure: the TPM fails, or does not hold what it was told (code `tpm_failed`).
    """
    before = device.read_pcrs((pcr,))[pcr]
    device.extend(pcr, code_event(measurement))
    if device.read_pcrs((pcr,))[pcr] != extended(before, code_event(measurement)):
        raise Failure(f"the TPM's PCR {pcr} does not hold what it was extended by", code="tpm_failed")
    return before.hex()
