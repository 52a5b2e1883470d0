"""`attest.eventlog`: logs of measured boot, read, bounded and replayed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import fake_tpm as fake
import pytest
from conftest import SHARED

from strongroom.attest.eventlog import (
    MAX_EVENTS,
    MAX_LOG,
    check_event_log,
    parse_event_log,
    replay,
    replay_rtmrs,
)
from strongroom.errors import MalformedInput

LOG = fake.event_log(fake.BOOT)
SAMPLE = SHARED / "evidence" / "tdx" / "v4-gcp-cos-with-event-log"


def test_a_log_is_read_and_replayed() -> None:
    """Events by register, type and data; replayed, the PCRs that the machine would have."""
    log = parse_event_log(LOG)
    assert [(e.index, e.type, e.data) for e in log.events] == list(fake.BOOT)
    assert [e.name for e in log.events][:2] == ["EV_S_CRTM_VERSION", "EV_EFI_BOOT_SERVICES_APPLICATION"]
    expected = fake.extended(fake.BOOT)
    assert replay(log, algorithm=fake.SHA256) == {i: expected[i] for i in (0, 4, 7)}


def test_every_bank_of_a_log_is_replayed_for_itself() -> None:
    """SHA-1 may be there, and is stepped over."""
    log = parse_event_log(fake.event_log(fake.BOOT, banks=(fake.SHA1, fake.SHA256, fake.SHA384, fake.SHA512)))
    for bank in (fake.SHA256, fake.SHA384, fake.SHA512):
        assert replay(log, algorithm=bank)[7] == fake.extended(fake.BOOT, bank=bank)[7]
    with pytest.raises(MalformedInput):
        replay(log, algorithm=fake.SHA1)


def test_a_digest_speaks_for_its_data_only_where_it_is_theirs() -> None:
    """A register does not vouch for words beside a digest."""
    event = parse_event_log(LOG).events[0]
    assert event.covers_data(fake.SHA256)
    lying = LOG.replace(b"firmware 1.2", b"firmware 9.9")
    assert not parse_event_log(lying).events[0].covers_data(fake.SHA256)
    assert replay(parse_event_log(lying), algorithm=fake.SHA256) == replay(
        parse_event_log(LOG), algorithm=fake.SHA256
    )


def test_events_of_no_action_extend_nothing() -> None:
    """Only the startup locality counts, and only in front of PCR 0's first event."""
    startup = (0, 3, b"StartupLocality\0\x03")
    log = parse_event_log(fake.event_log([startup, (1, 3, b"words"), (0xFFFFFFFF, 3, b"words"), *fake.BOOT]))
    first = hashlib.sha256(bytes(31) + b"\x03" + hashlib.sha256(b"firmware 1.2").digest()).digest()
    assert replay(log, algorithm=fake.SHA256)[0] == first
    late = parse_event_log(fake.event_log([*fake.BOOT, startup, (0, 4, b"x")]))
    plain = parse_event_log(fake.event_log([*fake.BOOT, (0, 4, b"x")]))
    assert replay(late, algorithm=fake.SHA256) == replay(plain, algorithm=fake.SHA256)


def test_dynamic_pcrs_begin_as_ones() -> None:
    """PCR 17 to 22."""
    log = parse_event_log(fake.event_log([(17, 4, b"x"), (23, 4, b"x")]))
    values = replay(log, algorithm=fake.SHA256)
    assert values[17] == hashlib.sha256(b"\xff" * 32 + hashlib.sha256(b"x").digest()).digest()
    assert values[23] == hashlib.sha256(bytes(32) + hashlib.sha256(b"x").digest()).digest()


def test_a_ccel_is_replayed_to_rtmrs() -> None:
    """CC register 1 is RTMR0; untouched ones are zero."""
    data = fake.event_log([(1, 4, b"a"), (3, 4, b"b")], banks=(fake.SHA384,), first=1)
    found = replay_rtmrs(parse_event_log(data))
    assert found[0] == hashlib.sha384(bytes(48) + hashlib.sha384(b"a").digest()).digest()
    assert found[2] == hashlib.sha384(bytes(48) + hashlib.sha384(b"b").digest()).digest()
    assert found[1] == found[3] == bytes(48)


@pytest.mark.parametrize("index", [0, 5, 23])
def test_a_ccel_with_another_register_is_refused(index: int) -> None:
    """Register 0 is MRTD, which no event extends; above 4 there is none."""
    log = parse_event_log(fake.event_log([(index, 4, b"a")], banks=(fake.SHA384,)))
    with pytest.raises(MalformedInput) as caught:
        replay_rtmrs(log)
    assert caught.value.code == "event_log_malformed"


@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
@pytest.mark.parametrize("size", [0, 1, 4, 11, 12, 13, 1000])
def test_padding_of_one_kind_ends_a_log(fill: bytes, size: int) -> None:
    """Firmware hands the whole area over."""
    assert parse_event_log(LOG + fill * size) == parse_event_log(LOG)


def spec(*, body: bytes | None = None, index: int = 0, kind: int = 3, digest: bytes = bytes(20)) -> bytes:
    """A header with something wrong."""
    inner = LOG[32 : 32 + struct.unpack("<I", LOG[28:32])[0]] if body is None else body
    return struct.pack("<II", index, kind) + digest + struct.pack("<I", len(inner)) + inner


def algorithms(*pairs: tuple[int, int], count: int | None = None) -> bytes:
    """The header's content with these algorithms."""
    out = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(pairs) if count is None else count)
    return out + b"".join(struct.pack("<HH", *p) for p in pairs) + b"\0"


def event(*, index: int = 0, digests: tuple[tuple[int, bytes], ...] = ((fake.SHA256, bytes(32)),)) -> bytes:
    """One event behind a genuine header."""
    out = struct.pack("<III", index, 4, len(digests))
    return out + b"".join(struct.pack("<H", a) + d for a, d in digests) + struct.pack("<I", 1) + b"x"


WRONG = {
    "empty": b"",
    "no header": LOG[32 + struct.unpack("<I", LOG[28:32])[0] :],
    "header of another type": spec(kind=4),
    "header with a digest": spec(digest=b"\1" + bytes(19)),
    "header of register 24": spec(index=24),
    "header of the old kind": spec(body=b"Spec ID Event02\0" + bytes(20)),
    "header too short": spec(body=b"Spec ID"),
    "no algorithm": spec(body=algorithms()),
    "nine algorithms": spec(body=algorithms((fake.SHA256, 32), count=9)),
    "four thousand million algorithms": spec(body=algorithms((fake.SHA256, 32), count=0xFFFFFFFF)),
    "an algorithm twice": spec(body=algorithms((fake.SHA256, 32), (fake.SHA256, 32))),
    "an unknown algorithm": spec(body=algorithms((0x0012, 32))),
    "another size of digest": spec(body=algorithms((fake.SHA256, 20))),
    "something behind the header's content": spec(body=algorithms((fake.SHA256, 32)) + b"\0"),
    "an event of register 24": spec() + event(index=24),
    "an event of no register that acts": spec() + event(index=0xFFFFFFFF),
    "an event without digests": spec() + event(digests=()),
    "an event with two digests": spec() + event(digests=((fake.SHA256, bytes(32)), (fake.SHA384, bytes(48)))),
    "a digest that the header does not name": spec() + event(digests=((fake.SHA384, bytes(48)),)),
    "one digest twice": spec(body=algorithms((fake.SHA256, 32), (fake.SHA384, 48)))
    + event(digests=((fake.SHA256, bytes(32)), (fake.SHA256, bytes(32)))),
    "an event cut": LOG[:-1],
    "a length beyond the end": LOG[:-8] + b"\xff\xff\xff\x7f" + LOG[-4:],
    "something behind the padding": LOG + bytes(100) + b"\1",
    "padding of two kinds": LOG + bytes(20) + b"\xff" * 20,
    "too many events": spec() + event() * (MAX_EVENTS + 1),
    "too long": LOG + bytes(MAX_LOG),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_log_out_of_form_is_refused(wrong: str) -> None:
    """One fault each."""
    with pytest.raises(MalformedInput) as caught:
        parse_event_log(WRONG[wrong])
    assert caught.value.code == "event_log_malformed"


def test_no_prefix_that_cuts_an_event_is_a_log() -> None:
    """A truncation is refused, or ends between two events and gives fewer of them."""
    whole = parse_event_log(LOG).events
    for size in range(len(LOG)):
        try:
            found = parse_event_log(LOG[:size]).events
        except MalformedInput:
            continue
        assert found == whole[: len(found)] and len(found) < len(whole)


def checked(data: bytes, **changes: Any) -> tuple[bool, str]:
    """Whether the log gives `registers`, and the code."""
    registers = {i: v for i, v in fake.extended(fake.BOOT).items() if i in (0, 4, 7)}
    options: dict[str, Any] = {"registers": registers, "algorithm": fake.SHA256, "rtmrs": False}
    made = check_event_log(data, check_id="log", **options | changes)
    return made.passed, made.code


def test_the_check_compares_every_register_that_the_log_extends() -> None:
    """Others may have been extended by software that keeps no log here."""
    registers = fake.extended(fake.BOOT)
    assert checked(LOG) == (True, "")
    assert checked(LOG, registers=registers | {10: b"\1" * 32}) == (True, "")
    for index in (0, 4, 7):
        other = registers | {index: bytes(32)}
        assert checked(LOG, registers=other) == (False, "event_log_mismatch")
        missing = {i: v for i, v in registers.items() if i != index}
        assert checked(LOG, registers=missing) == (False, "event_log_mismatch")
    assert checked(LOG, registers={}) == (False, "event_log_mismatch")
    assert checked(fake.event_log([]))[0] is False
    assert checked(b"") == (False, "event_log_malformed")
    assert checked(LOG, rtmrs=True) == (False, "event_log_malformed")


def quoted_rtmrs() -> dict[int, bytes]:
    """The RTMRs of the recorded quote."""
    quote = (SAMPLE / "quote.bin").read_bytes()
    return {i: quote[48 + 328 + 48 * i : 48 + 376 + 48 * i] for i in range(4)}


def test_the_recorded_ccel_gives_the_quoted_rtmrs() -> None:
    """43 events of a machine at Google; flip any digest and it does not."""
    if not Path(SAMPLE).is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    data = (SAMPLE / "ccel_data.bin").read_bytes()
    expected = json.loads((SAMPLE / "expect.json").read_text())["expect"]["ccel_replay"]
    log = parse_event_log(data)
    assert expected == f"RTMR0..3 all match ({len(log.events)} events)"
    options: dict[str, Any] = {"registers": quoted_rtmrs(), "algorithm": fake.SHA384, "rtmrs": True}
    assert checked(data, **options) == (True, "")
    for n, e in enumerate(log.events):
        at = data.index(e.digest(fake.SHA384))
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert checked(flipped, **options) == (False, "event_log_mismatch"), n
    end = len(data.rstrip(b"\xff"))
    for size in range(0, end, 101):
        assert checked(data[:size], **options)[0] is False


# What becomes of a log: events among the claims, once it gives the signed registers

CCEL_EVENTS = [(1, 4, b"firmware"), (2, 13, b"kernel"), (2, 13, b"initrd"), (3, 13, b"command line")]


def _ccel(*events: tuple[int, int, bytes]) -> bytes:
    return fake.event_log(list(events), banks=(fake.SHA384,), first=1)


def _td(log: bytes) -> Any:
    """A TD whose RTMRs are those of the log."""
    from fake_intel import Intel

    values = replay_rtmrs(parse_event_log(log))
    return Intel(version=4).but(body={f"rtmr{i}": value for i, value in enumerate(values)})


def _examined(vendor: Any, *logs: bytes) -> Any:
    from fake_intel import NOW

    from strongroom.attest.dcap import examine_tdx

    stapled = (("collateral", vendor.bundle), *((f"ccel-{i}", log) for i, log in enumerate(logs)))
    return examine_tdx(vendor.quote, endorsements=stapled, roots=vendor.roots, now=NOW)


def test_a_tds_log_becomes_events_once_it_gives_the_signed_registers() -> None:
    """Register by register, digests as they were extended; without a log there are none, and no check."""
    log = _ccel(*CCEL_EVENTS)
    found = _examined(_td(log), log + bytes(100))
    assert all(c.passed for c in found.checks), [c for c in found.checks if not c.passed]
    digest = hashlib.sha384(b"kernel").hexdigest()
    assert found.claims.events[0][0] == "rtmr0"
    assert found.claims.events[1] == ("rtmr1", digest, "EV_IPL")
    assert [c.id for c in found.checks if "log" in c.id] == ["tdx.event_log"]
    silent = _examined(_td(log))
    assert silent.claims.events == ()
    assert not [c.id for c in silent.checks if "log" in c.id]


@pytest.mark.parametrize(
    "logs",
    [
        (_ccel(*CCEL_EVENTS[:-1]),),
        (_ccel(*CCEL_EVENTS, (4, 13, b"more")),),
        (_ccel(*CCEL_EVENTS[1:], CCEL_EVENTS[0], (1, 4, b"again")),),
        (_ccel(*CCEL_EVENTS)[:-1],),
        (_ccel((0, 4, b"x"), *CCEL_EVENTS),),
        (_ccel(*CCEL_EVENTS), _ccel(*CCEL_EVENTS, (4, 13, b"more"))),
        (_ccel(*CCEL_EVENTS), _ccel(*CCEL_EVENTS)),
    ],
    ids=range(7),
)
def test_a_log_that_does_not_give_them_refuses_and_says_nothing(logs: tuple[bytes, ...]) -> None:
    """An event less or more, out of order, cut off, of another register, or two logs: no events, a failed check."""
    found = _examined(_td(_ccel(*CCEL_EVENTS)), *logs)
    assert [c.id for c in found.checks if not c.passed] == ["tdx.event_log"]
    assert found.claims.events == ()


def test_a_genuine_td_is_accepted_by_its_events() -> None:
    """Google's TD: a policy takes RTMR0 and RTMR3 by value, RTMR1 and RTMR2 by the events of its log."""
    if not SAMPLE.is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    from datetime import datetime

    from policies import entry, production
    from recorded import EVIDENCE

    from strongroom.attest.appraise import NoReportData, appraise
    from strongroom.attest.evidence import Evidence, Verdict
    from strongroom.attest.policy import parse_policy

    expect = json.loads((SAMPLE / "expect.json").read_text())
    bundle = next(iter(expect["expect"]["dcap_qvl_0.7.0"]))
    at = datetime.fromisoformat(expect["expect"]["dcap_qvl_0.7.0"][bundle]["as_of"])
    stapled = (
        ("bundle", (EVIDENCE / "dcap-collateral" / f"{bundle}.json").read_bytes()),
        ("ccel", (SAMPLE / "ccel_data.bin").read_bytes()),
    )
    quote = (SAMPLE / "quote.bin").read_bytes()

    def judged(text: str, endorsements: tuple[tuple[str, bytes], ...] = stapled) -> Verdict:
        return appraise(
            Evidence("tdx", quote, ()), parse_policy(text), report_data=NoReportData("recorded"),
            endorsements=endorsements, now=at,
        )  # fmt: skip

    from strongroom.attest.appraise import AnyMeasurement

    shown = appraise(
        Evidence("tdx", quote, ()),
        AnyMeasurement(),
        report_data=NoReportData("recorded"),
        endorsements=stapled,
        now=at,
    ).claims
    assert shown is not None
    assert len(shown.events) > 10
    lines = [f'measurements = ["{shown.measurement}"]', f'tcb_statuses = ["{shown.tcb_status}"]']
    lines += [f"accepted_advisories = {json.dumps(shown.advisories)}", "min_evaluation = 1"]
    lines += [f'registers.rtmr{i} = ["{shown.fact(f"rtmr{i}")}"]' for i in (0, 3)]
    digests = {r: list(dict.fromkeys(d for n, d, _ in shown.events if n == r)) for r in ("rtmr1", "rtmr2")}
    lines += [
        f"events.{r} = {{ require = {json.dumps(d[:1])}, allow = {json.dumps(d[1:])} }}"
        for r, d in digests.items()
    ]
    text = production(entry("tdx", "\n".join(lines) + "\n"))
    assert judged(text).passed, [c for c in judged(text).checks if not c.passed]
    assert judged(text, stapled[:1]).code == "event_not_accepted"
    fewer = text.replace(json.dumps(digests["rtmr2"][1:]), json.dumps(digests["rtmr2"][2:]))
    assert judged(fewer).code == "event_not_accepted"
