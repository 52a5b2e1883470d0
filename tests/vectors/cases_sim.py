"""Vectors of the simulated TEE's format, `sim` (docs/spec/evidence.md §5)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tee import NOW, Minted, Server, sim, worlds
from vector_model import STRICT, Book, Vector, policy
from worlds import MEASUREMENT, ed25519, p256, spki

from strongroom.attest.sim import root_digest
from strongroom.attest.strict import canonical

# fmt: off

ROOT = root_digest(ed25519("root").public_key())
POLICY = policy(("sim", {"root": ROOT, "measurements": [MEASUREMENT], "min_svn": 1}), kind="UNSAFE_SIMULATION")
DATA = Server().evidence.data


def changed(**members: Any) -> Minted:
    """Genuine evidence, a member of whose body was replaced after signing."""
    value = json.loads(DATA)
    value["body"] |= members
    return sim(canonical(value))


def signed(signature: bytes) -> Minted:
    """Genuine evidence with another signature."""
    return sim(canonical(json.loads(DATA) | {"signature": base64.b64encode(signature).decode()}))


def relabelled(label: str) -> Minted:
    """Evidence that states another label, signed as it then stands."""
    body = json.loads(DATA)["body"] | {"label": label}
    message = b"strongroom simulated evidence v1\0" + canonical(body)
    signature = base64.b64encode(ed25519("root").sign(message)).decode()
    return sim(canonical({"body": body, "signature": signature}))


def cases() -> Iterator[Vector]:
    """Accepted, then refused in the order of the checks."""
    book = Book("sim", document="docs/spec/evidence.md")
    fine = {"policy": POLICY, "tcb_status": "NotReported"}
    asked = ("report_data", bytes.fromhex(json.loads(DATA)["body"]["report_data"]))
    book.section(1, to=9, **fine)
    book.accept("genuine", "Simulated evidence, under the root that the policy names.", sim(), spec="§5.4")
    book.accept("report-data", "The report data is what was asked for.", sim(), spec="§2.2", asked=asked)
    early = sim(server=Server(issued_at=NOW + timedelta(seconds=300)))
    book.accept("clock-behind", "The server's clock is five minutes ahead.", early, spec="§5.3")
    book.section(11, to=39, twin="genuine", policy=POLICY, spec="§5.1", grade=STRICT)

    def form(name: str, title: str, minted: Minted, **more: Any) -> None:
        book.refuse(name, title, minted, "evidence.form", "evidence_malformed", **more)

    form("empty", "There are no bytes.", sim(b""), grade="must")
    form("not-canonical", "A space follows the document.", sim(DATA + b" "))
    form("member-twice", "The SVN is there twice.", sim(DATA.replace(b'"svn":1', b'"svn":1,"svn":2')), grade="must")
    form("float", "The SVN is a float.", sim(DATA.replace(b'"svn":1', b'"svn":1.0')))
    form("member-unknown", "The body has an unknown member.", changed(debug=False))
    form("measurement-in-capitals", "The measurement is in capitals.", changed(measurement=MEASUREMENT.upper()))
    form("root-of-p256", "The root's key is on P-256.", changed(root=base64.b64encode(spki(p256("x"))).decode()))
    form("signature-long", "The signature has 65 bytes.", signed(bytes(65)))
    book.section(41, to=69, twin="genuine", policy=POLICY)
    signature = ("evidence.signature", "evidence_signature_invalid")
    for name, title, minted in (
        ("signature-of-zeros", "The signature is 64 zeros.", signed(bytes(64))),
        ("measurement-changed", "The measurement was changed after signing.", changed(measurement="00" * 32)),
        ("report-data-changed", "The report data was changed after signing.", changed(report_data="00" * 64)),
        ("root-replaced", "The root was replaced after signing.",
         changed(root=base64.b64encode(spki(ed25519("mallory"))).decode())),
    ):
        book.refuse(name, title, minted, *signature, spec="§5.2")
    book.section(71, to=99, twin="genuine", **fine)
    book.refuse("another-label", "The evidence was made for another purpose, by the same root.",
                relabelled("strongroom simulated evidence v2"), "evidence.label", "evidence_wrong_label", spec="§5.2")
    mallory = sim(server=Server(root="mallory"))
    book.refuse("another-root", "Another root signed.", mallory, "evidence.root", "root_not_accepted",
                also=("policy.root",), spec="§5.3")
    late = sim(server=Server(issued_at=NOW + timedelta(seconds=301)))
    book.refuse("from-the-future", "The evidence is from more than five minutes ahead.", late, "evidence.time",
                "evidence_from_future", also=("policy.age",), spec="§5.3")
    stale = sim(server=Server(issued_at=NOW - timedelta(seconds=301)))
    book.refuse("stale", "The evidence is older than the policy allows.", stale, "policy.age", "evidence_stale",
                spec="§4")
    book.refuse("measurement-not-named", "The code is not one that the policy names.",
                sim(server=Server(measurement=worlds.OTHER_MEASUREMENT)), "policy.measurement",
                "measurement_not_accepted", spec="§4")
    book.refuse("svn-too-low", "The code's security version is below the minimum.", sim(server=Server(svn=0)),
                "policy.svn", "svn_too_low", spec="§4")
    mismatch = ("evidence.report_data", "report_data_mismatch")
    book.refuse("report-data-of-another", "Other report data was asked for.", sim(), *mismatch,
                asked=("report_data", bytes(64)), spec="§2.2")
    boot = sim(server=Server().forge(report_data=bytes(64)))
    book.refuse("report-data-of-zeros", "The evidence carries zeros, and an answer was asked for.", boot, *mismatch,
                asked=asked, spec="§2.2")
    yield from book.done()
