"""`surroundings`: documents by their age, services by their answers, the clock; seconds at most, nobody by default."""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))
from fake_amd import Machine
from fake_intel import NOW, SGX, TDX4
from fake_services import amd_answers, intel_answers, serve
from fake_x509 import pem

from strongroom import endorsements, surroundings
from strongroom.attest.gather import Failure, Fetch, Fetched
from strongroom.attest.needs import DcapCollateral
from strongroom.attest.releases import PAYLOAD_TYPE
from strongroom.cli import main
from strongroom.doctor import Finding
from strongroom.endorsements import HttpFetcher
from strongroom.surroundings import EXAMPLE, bundle_need, documents, services, synchronisation

YEARS = timedelta(days=4000)
NEED = DcapCollateral("sgx", SGX.fmspc, "platform")


def written(folder: Path, **files: bytes) -> tuple[Path, ...]:
    """Files in the folder."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in files)


def states(findings: tuple[Finding, ...]) -> dict[str, str]:
    """Name -> state."""
    return {finding.name: finding.state for finding in findings}


def test_documents_are_named_by_content_and_dated(tmp_path: Path) -> None:
    """A bundle, certificates, a manifest; and each once it is over."""
    manifest = b'{"payloadType":"' + PAYLOAD_TYPE.encode() + b'"}'
    paths = written(tmp_path, bundle=SGX.bundle, chain=pem(Machine().leaf_der), release=manifest)
    found = documents(paths, now=NOW)
    assert set(states(found).values()) == {"there"}
    assert SGX.fmspc.hex() in found[0].detail and "days ago" in found[0].detail
    assert "1 certificates" in found[1].detail and "manifest" in found[2].detail
    late = documents(paths, now=NOW + YEARS)
    assert [f.state for f in late] == ["limited", "limited", "there"]
    assert "over" in late[0].detail and "endorsements.md" in late[0].how


def test_documents_that_end_soon_are_worth_a_word(tmp_path: Path) -> None:
    """A week before."""
    (path,) = written(tmp_path, bundle=SGX.bundle)
    (now,) = documents((path,), now=NOW)
    end = datetime.strptime(now.detail.rpartition(" ")[2], "%Y-%m-%d").replace(tzinfo=UTC)
    (soon,) = documents((path,), now=end - timedelta(days=2))
    assert (now.how, soon.state) == ("", "there") and soon.how


@pytest.mark.parametrize("data", [b"", b"words", b'{"tcb_info": 1}', b"\x30\x82", b"x" * (600 * 1024)])
def test_documents_that_are_none(data: bytes, tmp_path: Path) -> None:
    """They are limited, with a reason; one that is not there is missing."""
    (path,) = written(tmp_path, some=data)
    assert states(documents((path,), now=NOW)) == {"document some": "limited"}
    assert states(documents((tmp_path / "absent",), now=NOW)) == {"document absent": "missing"}
    assert bundle_need((path, tmp_path / "absent")) is None


def test_services_that_answer(tmp_path: Path) -> None:
    """Each is there, with the age of what it has, and this clock fits."""
    with serve(intel_answers(SGX)) as pccs, serve(amd_answers(Machine(product="Genoa"))) as kds:
        fetcher = HttpFetcher(pccs=pccs.url, kds=kds.url, timeout_s=10)
        found = services(fetcher, need=NEED, now=NOW, wait_s=15)
        assert states(found) == {"PCS": "there", "KDS": "there", "clock and PCS": "there"}
        assert "evaluation" in found[0].detail
        wrong = states(services(fetcher, need=NEED, now=NOW - YEARS, wait_s=15))
        assert wrong["clock and PCS"] == "limited"
        later = states(services(fetcher, need=NEED, now=NOW + YEARS, wait_s=15))
        assert later == {"PCS": "limited", "KDS": "limited", "clock and PCS": "limited"}


def test_services_that_do_not(tmp_path: Path) -> None:
    """An empty service, and none at all: a plain answer, and what to do without a network."""
    with serve({}) as empty:
        fetcher = HttpFetcher(pccs=empty.url, kds=empty.url, timeout_s=5)
        found = services(fetcher, need=NEED, now=NOW, wait_s=10)
    assert states(found) == {"PCS": "missing", "KDS": "missing", "clock and PCS": "missing"}
    assert "fetch_status" in found[0].detail and "without a network" in found[0].how


class Hanging:
    """A fetcher that hangs until it is let go, as resolvers do; for `kds` alone it answers at once."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def fetch(self, request: Fetch) -> Fetched:
        if isinstance(request.needs[0], DcapCollateral):
            self.go.wait(30)
        return Fetched((), tuple(Failure(need, "fetch_status", "status 404") for need in request.needs))


def test_a_service_that_hangs_is_left_behind() -> None:
    """The others' answers are shown; a late one changes nothing."""
    fetcher = Hanging()
    began = time.monotonic()
    found = services(fetcher, need=EXAMPLE, now=NOW, wait_s=0.2)
    assert time.monotonic() - began < 20
    fetcher.go.set()
    assert "no answer in time" in found[0].detail and "404" in found[1].detail


def test_the_question_is_about_nobody_unless_a_bundle_names_a_kind(tmp_path: Path) -> None:
    """The example's FMSPC, or that of the first bundle."""
    (path,) = written(tmp_path, bundle=TDX4.bundle)
    need = bundle_need((tmp_path / "absent", path))
    assert need is not None and (need.tee, need.fmspc) == ("tdx", TDX4.fmspc)
    assert EXAMPLE.fmspc not in (SGX.fmspc, TDX4.fmspc)


@pytest.mark.parametrize(("kept", "expected"), [(True, "there"), (False, "limited"), (None, "missing")])
def test_a_clock_that_nobody_keeps_is_limited(kept: bool | None, expected: str) -> None:
    """And one of which nothing is known, missing."""
    assert synchronisation(lambda: kept).state == expected


def test_the_kernel_is_asked_and_not_changed() -> None:
    """Whatever it says here, it says something or nothing."""
    assert surroundings.kernel_synchronised() in (True, False, None)


class Nobody:
    """Stands for the network: whoever asks fails the test."""

    def __init__(self, **_options: Any) -> None:
        raise AssertionError("nobody may be asked")


def test_the_command_asks_nobody_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And refuses options that would do nothing."""
    monkeypatch.setattr(endorsements, "HttpFetcher", Nobody)
    (bundle,) = written(tmp_path, bundle=SGX.bundle)
    config = tmp_path / "strongroom.toml"
    config.write_text('platform = "simulated"\nendorsements = ["bundle"]\n')
    words = ["doctor", "--config", str(config), "--endorsements", str(bundle), "--json"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0
    named = [f["name"] for f in json.loads(done.stdout)["findings"]]
    assert named.count("document bundle") == 2 and "PCS" not in named and "clock sync" in named
    assert CliRunner().invoke(main, ["doctor", "--pccs", "https://pccs.example.org"]).exit_code == 20


def test_the_command_asks_when_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache in the house, about the kind of platform that the operator's bundle names."""
    monkeypatch.setattr(surroundings, "WAIT_S", 15.0)
    (bundle,) = written(tmp_path, bundle=SGX.bundle)
    with serve(intel_answers(SGX)) as pccs, serve(amd_answers(Machine(product="Genoa"))) as kds:
        words = [
            "doctor",
            "--network",
            "--pccs",
            pccs.url,
            "--kds",
            kds.url,
            "--endorsements",
            str(bundle),
            "--json",
        ]
        done = CliRunner().invoke(main, words, catch_exceptions=False)
    found = {f["name"]: f["state"] for f in json.loads(done.stdout)["findings"]}
    assert {"PCS", "KDS", "clock and PCS"} <= set(found) and "missing" not in (found["PCS"], found["KDS"])
