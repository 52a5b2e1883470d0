"""What a server and its clients depend on around this machine: the vendors' services, the age of their documents, the
clock. For `strongroom doctor`; nothing rests on it, and nothing here is verified.

Rules
  - Nobody is asked unless the operator says so, and then about no platform in particular: Intel about a kind that is in
    none of your documents, AMD about issuers. A bundle at hand names another kind, and then about that.
  - Whoever is asked has seconds. Threads that hang (a resolver without a network) are left behind.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from strongroom.attest.collateral import MAX_BUNDLE, Collateral, parse_collateral
from strongroom.attest.gather import Fetch, Fetched
from strongroom.attest.needs import DcapCollateral, Need, SnpChain, SnpRevocationList
from strongroom.attest.releases import is_manifest
from strongroom.attest.services import valid_until
from strongroom.attest.verifiers import is_collateral
from strongroom.attest.x509 import sort_documents
from strongroom.doctor import LIMITED, MISSING, THERE, Finding
from strongroom.endorsements import Fetcher
from strongroom.errors import MalformedInput

WAIT_S: Final = 6.0
"""Seconds for all services together; each is asked in a thread of its own."""
SOON: Final = timedelta(days=7)
"""Documents that end before that are worth a word: Intel's live 30 days."""
DRIFT: Final = timedelta(minutes=5)
"""By how much two clocks may differ; verifiers forgive as much."""
EXAMPLE: Final = DcapCollateral("sgx", bytes.fromhex("00606a000000"), "platform")
"""A kind of platform that Intel's examples name: the question says nothing about this machine."""
ISSUERS: Final[tuple[Need, ...]] = (SnpChain("Genoa", "VCEK"), SnpRevocationList("Genoa", "VCEK"))
_TIMEX_SIZE: Final = 208
_STATUS_AT: Final = 40
_UNSYNCHRONISED: Final = 0x40
_TIME_ERROR: Final = 5
_RENEW: Final = "renew it (docs/endorsements.md)"


def documents(paths: tuple[Path, ...], *, now: datetime) -> tuple[Finding, ...]:
    """What the operator's endorsement files are, and until when they are good."""
    return tuple(_document(path, now=now) for path in paths)


def bundle_need(paths: tuple[Path, ...]) -> DcapCollateral | None:
    """The kind of platform that the first DCAP bundle in the files is about; None where there is none."""
    for path in paths:
        try:
            bundle = parse_collateral(_read(path))
        except (OSError, MalformedInput):
            continue
        return DcapCollateral(bundle.tcb_info.tee, bundle.tcb_info.fmspc, EXAMPLE.authority)
    return None


def _document(path: Path, *, now: datetime) -> Finding:
    name = f"document {path.name}"
    try:
        data = _read(path)
    except OSError:
        return Finding(name, MISSING, "cannot be read", "the server does not start without it")
    if not data or len(data) > MAX_BUNDLE:
        return Finding(name, LIMITED, f"{len(data)} bytes or more; expected 1 to {MAX_BUNDLE}", _RENEW)
    if is_manifest(data):
        return Finding(name, THERE, "a release manifest; `strongroom release show` verifies it")
    try:
        if is_collateral(data):
            return _collateral(name, parse_collateral(data), now=now)
        found = sort_documents(((path.name, data),))
    except MalformedInput as exc:
        return Finding(name, LIMITED, exc.message, _RENEW)
    ends = [c.not_after for c in found.certificates] + [
        one.next_update for one in found.revocation_lists if one.next_update is not None
    ]
    if not ends:
        return Finding(name, LIMITED, "no bundle, certificate, revocation list or manifest", _RENEW)
    what = f"{len(found.certificates)} certificates, {len(found.revocation_lists)} revocation lists"
    return _until(name, what, min(ends), now=now)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE + 1)


def _collateral(name: str, bundle: Collateral, *, now: datetime) -> Finding:
    info = bundle.tcb_info
    days = (now - info.issued).days
    what = (
        f"DCAP bundle for {info.tee} {info.fmspc.hex()}, evaluation {info.evaluation}, "
        f"issued {info.issued:%Y-%m-%d} ({days} days ago)"
    )
    ends = valid_until(DcapCollateral(info.tee, info.fmspc, EXAMPLE.authority), bundle.text.encode())
    return _until(name, what, ends or info.next_update, now=now)


def _until(name: str, what: str, end: datetime, *, now: datetime) -> Finding:
    text = f"{what}, good until {end:%Y-%m-%d}"
    if end <= now:
        return Finding(name, LIMITED, f"{text}: over", _RENEW)
    return Finding(name, THERE, text, _RENEW if end - now < SOON else "")


# --- the vendors' services ----------------------------------------------------------------------------------


def services(
    fetcher: Fetcher, *, need: DcapCollateral, now: datetime, wait_s: float = WAIT_S
) -> tuple[Finding, ...]:
    """Asks Intel's service (or the PCCS) and AMD's, both at once, and looks at what they answer: there, how old, and
    whether it fits this clock. Returns after `wait_s` seconds at most.
    """
    asked: dict[str, tuple[Need, ...]] = {"PCS": (need,), "KDS": ISSUERS}
    answers: dict[str, Fetched] = {}

    def ask(name: str) -> None:
        answers[name] = fetcher.fetch(Fetch(asked[name], now, fresh=True))

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in asked]
    for thread in threads:
        thread.start()
    ends = _Deadline(wait_s)
    for thread in threads:
        thread.join(ends.left())
    found = dict(answers)  # a thread that comes later changes nothing any more
    shown = [_service(name, found.get(name), now=now) for name in asked]
    return (*shown, _against_documents(found.get("PCS"), now=now))


class _Deadline:
    def __init__(self, seconds: float) -> None:
        from time import monotonic

        self._monotonic, self._until = monotonic, monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._until - self._monotonic())


def _service(name: str, answer: Fetched | None, *, now: datetime) -> Finding:
    how = (
        "open the way to it, name a cache in your own network (--pccs, --kds), or hand documents over in files "
        "(docs/endorsements.md); without a network that is all you need"
    )
    if answer is None:
        return Finding(name, MISSING, "no answer in time", how)
    if answer.failures:
        words = "; ".join(f"{one.why} [{one.code}]" for one in answer.failures)
        return Finding(name, LIMITED if answer.documents else MISSING, words, how)
    if name == "PCS":
        bundle = parse_collateral(answer.documents[0].data)
        return _collateral(name, bundle, now=now)
    ends = [end for one in answer.documents if (end := valid_until(one.need, one.data)) is not None]
    return _until(name, "issuers of VCEKs and their revocation list", min(ends), now=now)


def _against_documents(answer: Fetched | None, *, now: datetime) -> Finding:
    """Intel writes its documents anew every day: this clock lies between their issue and their end, or is wrong."""
    name = "clock and PCS"
    if answer is None or answer.failures:
        return Finding(name, MISSING, "nothing to compare with")
    info = parse_collateral(answer.documents[0].data).tcb_info
    text = f"{now.isoformat(timespec='seconds')}; Intel says {info.issued:%Y-%m-%d} to {info.next_update:%Y-%m-%d}"
    if info.issued - DRIFT <= now < info.next_update:
        return Finding(name, THERE, text)
    return Finding(
        name, LIMITED, text, "set the clock: timedatectl set-ntp true, or chronyd; or the cache is stale"
    )


# --- the clock ----------------------------------------------------------------------------------------------


def synchronisation(asked: Callable[[], bool | None]) -> Finding:
    """Whether the kernel's clock is kept by somebody. `asked`: `kernel_synchronised`."""
    name, kept = "clock sync", asked()
    if kept is None:
        return Finding(name, MISSING, "the kernel does not say")
    if kept:
        return Finding(name, THERE, "the kernel's clock is synchronised")
    how = "timedatectl set-ntp true, or chronyd; in a guest, the host's clock device with chronyd"
    return Finding(name, LIMITED, "the kernel's clock is not synchronised", how)


def kernel_synchronised() -> bool | None:
    """What Linux says through adjtimex(2), which is asked and not changed; None where there is no such call."""
    if sys.platform != "linux":
        return None
    state = ctypes.create_string_buffer(_TIMEX_SIZE)  # modes = 0: read only
    try:
        result = ctypes.CDLL(None, use_errno=True).adjtimex(state)
    except (OSError, AttributeError):
        return None
    if result < 0:
        return None
    status = int.from_bytes(state.raw[_STATUS_AT : _STATUS_AT + 4], sys.byteorder)
    return result != _TIME_ERROR and not status & _UNSYNCHRONISED
