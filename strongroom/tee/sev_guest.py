"""The key that an AMD processor derives for a guest: `SNP_GET_DERIVED_KEY` of `/dev/sev-guest`.

configfs-tsm has no word for keys, so this one call goes to the device (Linux, include/uapi/linux/sev-guest.h). It
answers ENOTTY once the guest's message key was wiped, EIO with the firmware's word in `exitinfo2`, and ETIMEDOUT or
EAGAIN where the host slows requests down: only those are asked again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from strongroom.errors import Failure
from strongroom.tee.files import TRANSIENT

GET_DERIVED_KEY: Final = 0xC0205301
"""_IOWR('S', 1, struct snp_guest_request_ioctl), 32 bytes."""
KEY_SIZE: Final = 32
_REQUEST: Final = struct.Struct("<IIQIIQ")
"""root_key_select, reserved, guest_field_select, vmpl, guest_svn, tcb_version."""
_RESPONSE_SIZE: Final = 64
_IOCTL: Final = struct.Struct("<B7xQQQ")
"""msg_version, address of the request, address of the response, exitinfo2 (firmware and host errors)."""
ATTEMPTS: Final = 4
"""How often the key is asked for before it is given up."""
FIRST_PAUSE_S: Final = 0.05
_VCEK: Final = 0
FIELDS: Final = 0b1111
"""What is mixed into the key: guest policy, image id, family id, measurement. The guest's SVN and the TCB version are
not: a store would close at every update of the firmware."""


def derive_key(device: Path, *, level: int, sleep: Callable[[float], None] = time.sleep) -> bytes:
    """The 32-byte key of this guest at the privilege level (VMPL) `level`: the same for the same guest policy,
    ids and measurement on the same processor, and another for any other.

    Raises:
        Failure: the device or the processor gives none (code `sealing_root_unavailable`).
    """
    request = ctypes.create_string_buffer(_REQUEST.pack(_VCEK, 0, FIELDS, level, 0, 0), _REQUEST.size)
    response = ctypes.create_string_buffer(_RESPONSE_SIZE)
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise _unavailable(f"{device} cannot be opened", exc) from exc
    try:
        for attempt in range(1, ATTEMPTS + 1):
            argument = bytearray(_IOCTL.pack(1, ctypes.addressof(request), ctypes.addressof(response), 0))
            try:
                fcntl.ioctl(descriptor, GET_DERIVED_KEY, argument, True)
                break
            except OSError as exc:
                if attempt == ATTEMPTS or exc.errno not in TRANSIENT:
                    firmware = _IOCTL.unpack(argument)[3]
                    raise _unavailable(f"{device}: firmware and host say {firmware:#x}", exc) from exc
            sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
    finally:
        os.close(descriptor)
    answer = response.raw
    ctypes.memset(response, 0, _RESPONSE_SIZE)
    status, key = int.from_bytes(answer[:4], "little"), answer[32 : 32 + KEY_SIZE]
    if status or not any(key):
        raise Failure(
            f"SNP key: the firmware answers with status {status:#x}", code="sealing_root_unavailable"
        )
    return key


def _unavailable(what: str, error: OSError) -> Failure:
    symbol = errno.errorcode.get(error.errno or 0, "an unknown fault")
    return Failure(f"SNP key: {what} ({symbol})", code="sealing_root_unavailable")
