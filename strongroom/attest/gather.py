"""Completing evidence: a generator that asks for what is missing until nothing is, or nothing more can be had
(docs/endorsements.md §3). Whoever drives it does the fetching; nothing here touches a network or a disk.

Rules of this file:

1. Everything that comes back is signed, and the verifier reads it as if the server had stapled it. So whoever answers
   can deny, and nothing else.
2. What came out of a cache and does not fit is asked for once more at its source, and then dropped.
3. A fetch that failed never changes a verdict: it adds a reason to a check that failed anyway, or says "not now" where
   nothing but a service's silence stood in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from strongroom.attest.evidence import Verdict
from strongroom.attest.needs import Missing, Need, missing
from strongroom.attest.verifiers import endorsements_for, split_manifests
from strongroom.errors import Unavailable

MAX_ROUNDS: Final = 5
"""Questions for one piece of evidence: a certificate (which names the product), its chain, and each once more where
what a cache had of it was wrong.
"""
TRANSIENT: Final = frozenset({"fetch_unreachable", "fetch_late", "fetch_busy"})
"""Codes of failures that may be over in a minute."""
LACKING: Final = frozenset(
    {"collateral_missing", "collateral_expired", "snp_leaf_missing", "chain_incomplete"}
)
"""Codes of refusals by verifiers for want of a document."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """The command: get these, for use at `now`. `fresh`: from their source; what a cache has of them did not fit."""

    needs: tuple[Need, ...]
    now: datetime
    fresh: bool


@dataclass(frozen=True, slots=True)
class Document:
    """What answers a need, unverified: bytes in a form that verifiers read. `cached`: out of a cache."""

    need: Need
    data: bytes
    cached: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no document for a need: a stable code (`fetch_…`), and words that name the source."""

    need: Need
    code: str
    why: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a `Fetch`: for each need a document or a failure."""

    documents: tuple[Document, ...]
    failures: tuple[Failure, ...]


class Fetcher(Protocol):
    """Where endorsements come from."""

    def fetch(self, request: Fetch) -> Fetched:
        """Returns a document or a failure for each need of `request`. Blocks for a bounded time, raises nothing that
        a source could cause, and may be called from several threads.
        """


class Offline:
    """Fetches nothing: behind a `Cache`, what it holds is all there is."""

    def fetch(self, request: Fetch) -> Fetched:
        """Fails for every need with `fetch_offline`."""
        why = "not in the cache, or out of date there, and offline"
        return Fetched((), tuple(Failure(need, "fetch_offline", why) for need in request.needs))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Endorsements for one piece of evidence: those at hand and those that were fetched. `failures`: of what could
    not be; `unobtainable`: why nobody can be asked for the rest.
    """

    endorsements: tuple[tuple[str, bytes], ...]
    failures: tuple[Failure, ...] = ()
    unobtainable: tuple[str, ...] = ()

    def shortfall(self, code: str | None) -> str:
        """Returns what to add to a refusal with `code`: why the document that it lacks could not be had; "" where
        it lacks none, or nothing was tried.

        Raises:
            Unavailable: code `endorsements_unavailable`, it lacks one, and every failure was of a kind that may be
                over in a minute.
        """
        if code not in LACKING:
            return ""
        required = [f for f in self.failures if f.need.required]
        told = "; ".join([f"{f.need.label}: {f.why}" for f in required] + list(self.unobtainable))
        if required and not self.unobtainable and all(f.code in TRANSIENT for f in required):
            raise Unavailable(
                f"the evidence cannot be verified now: {told} ({', '.join(dict.fromkeys(f.code for f in required))})",
                code="endorsements_unavailable",
                retry_after_s=10,  # AMD answers one question for a chip's certificate in ten seconds
            )
        codes = ", ".join(dict.fromkeys(f.code for f in required))
        return f"fetching: {told}" + (f" ({codes})" if codes else "") if told else ""


def gather(
    evidence_format: str,
    data: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: Callable[[], datetime],
) -> Generator[Fetch, Fetched, Gathered]:
    """Yields commands until `missing` finds nothing that could be asked for, and returns what there is then."""
    found: dict[Need, Document] = {}
    failed: dict[Need, Failure] = {}
    lacking = Missing()
    for _ in range(MAX_ROUNDS):
        at_hand = endorsements + _named(found)
        lacking = missing(evidence_format, data, endorsements=at_hand, roots=roots, now=now())
        stale = tuple(n for n in lacking.needs if n in found and found[n].cached)
        new = tuple(n for n in lacking.needs if n not in found and n not in failed)
        if not stale and not new:
            break
        answer = yield Fetch(needs=stale or new, now=now(), fresh=bool(stale))
        for need in stale:
            del found[need]
        asked = stale or new
        found |= {d.need: d for d in answer.documents if d.need in asked}
        failed |= {f.need: f for f in answer.failures if f.need in asked and f.need not in found}
    return Gathered(endorsements + _named(found), tuple(failed.values()), lacking.unobtainable)


def fitting(
    evidence_format: str, data: bytes, collected: tuple[tuple[str, bytes], ...]
) -> tuple[tuple[str, bytes], ...]:
    """Returns those of `collected`, a caller's documents for evidence of any format, that `data` has use for, and the
    release manifests among them, which are the policy's.
    """
    manifests, others = split_manifests(collected)
    kept = tuple((f"manifest-{i}", manifest) for i, manifest in enumerate(manifests))
    return endorsements_for(evidence_format, data, others) + kept


def _named(found: dict[Need, Document]) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"fetched-{need.key}", document.data) for need, document in found.items())


def with_reason(verdict: Verdict, reason: str) -> Verdict:
    """Returns `verdict` with `reason` in what the first failed check got."""
    first = verdict.failures[0]
    told = replace(first, got=f"{first.got}; {reason}")
    return replace(verdict, checks=tuple(told if c is first else c for c in verdict.checks))


__all__ = [
    "LACKING",
    "Offline",
    "TRANSIENT",
    "Document",
    "Failure",
    "Fetch",
    "Fetched",
    "Fetcher",
    "Gathered",
    "fitting",
    "gather",
    "with_reason",
]
