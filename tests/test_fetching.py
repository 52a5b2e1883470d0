"""End to end: servers whose evidence has nothing stapled are verified by clients that may fetch, and by no others."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))

import fake_server
from fake_amd import MEASUREMENT, Machine, intermediate_der, root_der, roots
from fake_intel import NOW, SGX, TDX4, TDX5, Intel
from fake_server import FakeServer
from fake_services import NOT_FOUND, Service, amd_answers, drip, intel_answers, ok, serve
from fake_x509 import pem

import strongroom
from strongroom.attest import verifiers
from strongroom.attest.dcap import examine_sgx, examine_tdx
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.policy import policy_for
from strongroom.attest.snp import examine_snp
from strongroom.cli import main
from strongroom.client import AsyncClient, Client
from strongroom.endorsements import Cache, HttpFetcher, Offline
from strongroom.errors import AttestationRefused, InvalidRequest, MalformedInput, Unavailable
from strongroom.flow import Clock

SECURITY = replace(fake_server.SECURITY, sealing="measurement", host_excluded=True)
CLOCK = Clock(now=lambda: NOW, monotonic=time.monotonic)
MACHINE = Machine()
LEAF, CHAIN = MACHINE.leaf_der, pem(intermediate_der("Milan", "VCEK")) + pem(root_der("Milan"))
CLEAN = {name: None for name in os.environ if name.startswith("STRONGROOM_")}


@pytest.fixture(autouse=True)
def _fake_vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake vendors' roots stand for the vendors'."""
    monkeypatch.setitem(verifiers.PINS, "snp", roots())
    monkeypatch.setitem(verifiers.PINS, "sgx", SGX.roots)
    monkeypatch.setitem(verifiers.PINS, "tdx", SGX.roots)


class SnpServer(FakeServer):
    """Gives SNP evidence; `stapled` is all that comes with it."""

    stapled: tuple[tuple[str, bytes], ...] = ()
    machine = MACHINE
    evidence_format = "snp"

    def evidence(self, data: bytes) -> Evidence:
        """A report with this report data."""
        report = self.machine.but(fields={0x50: data}).report
        return Evidence("snp", report, self.stapled)


class IntelServer(FakeServer):
    """Gives quotes with nothing stapled but `stapled`."""

    vendor = SGX
    stapled: tuple[tuple[str, bytes], ...] = ()

    @property
    def evidence_format(self) -> str:
        """SGX or TDX."""
        return self.vendor.format

    def evidence(self, data: bytes) -> Evidence:
        """A quote with this report data."""
        return Evidence(self.vendor.format, self.vendor.but(body={"report_data": data}).quote, self.stapled)


def snp_policy(machine: Machine = MACHINE) -> str:
    """A policy that accepts the machine."""
    found = examine_snp(machine.report, endorsements=machine.endorsements, roots=roots(), now=NOW)
    assert isinstance(found.claims, Claims)
    return policy_for(found.claims, security=SECURITY, now=NOW)


def intel_policy(vendor: Intel = SGX) -> str:
    """A policy that accepts the enclave or TD."""
    examine = examine_tdx if vendor.tdx else examine_sgx
    found = examine(vendor.quote, endorsements=vendor.endorsements, roots=vendor.roots, now=NOW)
    assert isinstance(found.claims, Claims)
    return policy_for(found.claims, security=SECURITY, now=NOW)


@pytest.fixture
def server() -> Iterator[SnpServer]:
    """With nothing stapled."""
    with SnpServer(security=SECURITY) as running:
        yield running


@pytest.fixture
def kds() -> Iterator[Service]:
    """AMD's service."""
    with serve(amd_answers(MACHINE)) as running:
        yield running


def client(server: FakeServer, *, policy: str | None = None, **options: Any) -> Client:
    """A client at the fixed time."""
    parsed = strongroom.parse_policy(policy or snp_policy())
    return Client(server.url, policy=parsed, clock=CLOCK, timeout=20, **options)


def asking(service: Service, **options: Any) -> HttpFetcher:
    """A fetcher for this service."""
    return HttpFetcher(pccs=service.url, kds=service.url, **options)


def refusal(one: Client) -> AttestationRefused:
    """How verification ends."""
    with one, pytest.raises(AttestationRefused) as caught:
        one.attest()
    return caught.value


# --- clients ------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_by_default(server: SnpServer, kds: Service) -> None:
    """The refusal is the verifier's."""
    assert refusal(client(server)).code == "snp_leaf_missing"
    assert kds.targets == []


def test_a_server_with_nothing_stapled_is_verified_by_fetching(server: SnpServer, kds: Service) -> None:
    """Blocking: three questions to AMD; then a request goes on the verified connection."""
    with client(server, fetcher=asking(kds)) as one:
        verdict = one.attest()
        assert verdict.passed and one.models() == ()
    assert len(kds.targets) == 3
    assert dict(verdict.claims.details)["revocation"] == "checked"  # type: ignore[union-attr]
    assert server.paths() == ["/v1/evidence", "/v1/models"]


def test_the_same_for_asyncio(server: SnpServer, kds: Service) -> None:
    """In a thread: the loop goes on meanwhile."""

    async def verify() -> tuple[bool, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        policy = strongroom.parse_policy(snp_policy())
        async with AsyncClient(server.url, policy=policy, clock=CLOCK, fetcher=asking(kds)) as one:
            verdict = await one.attest()
        ticking.cancel()
        return verdict.passed, ticks

    passed, ticks = asyncio.run(verify())
    assert passed and ticks > 3


@pytest.mark.parametrize("vendor", [SGX, TDX4, TDX5], ids=["sgx", "tdx4", "tdx5"])
def test_enclaves_and_trust_domains_are_verified_by_fetching(vendor: Intel) -> None:
    """Four questions to a PCCS."""
    by = intel_policy(vendor)
    with IntelServer(security=SECURITY) as server, serve(intel_answers(vendor)) as pccs:
        server.vendor = vendor
        assert refusal(client(server, policy=by)).code == "collateral_missing"
        with client(server, policy=by, fetcher=asking(pccs)) as one:
            assert one.attest().passed
        assert len(pccs.targets) == 4


def test_older_collateral_that_is_still_valid_is_refused_by_the_policy() -> None:
    """A source chooses among documents of now; a policy names the lowest evaluation."""
    older = SGX.but(tcb_info={"tcbEvaluationDataNumber": 15}, qe_identity={"tcbEvaluationDataNumber": 15})
    with IntelServer(security=SECURITY) as server, serve(intel_answers(older)) as pccs:
        refused = refusal(client(server, policy=intel_policy(), fetcher=asking(pccs)))
        assert refused.verdict is not None
        assert [check.code for check in refused.verdict.failures] == ["evaluation_too_old"]


def test_release_manifests_and_event_logs_are_no_reason_not_to_fetch(server: SnpServer, kds: Service) -> None:
    """They are others' documents: the policy's, and those of what booted."""
    manifest = b'{"payloadType":"application/vnd.strongroom.release+json"}'
    server.stapled = (("manifest", manifest),)
    with client(server, fetcher=asking(kds), endorsements=[manifest]) as one:
        assert one.attest().passed


def test_what_is_stapled_or_given_is_not_asked_for(server: SnpServer, kds: Service, tmp_path: Path) -> None:
    """Documents of the caller's are added to the server's, as bytes or files, and what fits another format is left."""
    server.stapled = (("leaf", LEAF),)
    (tmp_path / "chain.pem").write_bytes(CHAIN)
    with client(server, endorsements=[tmp_path / "chain.pem", SGX.bundle]) as one:
        assert one.attest().passed
    assert kds.targets == []
    with client(server, endorsements=[CHAIN], fetcher=asking(kds)) as one:
        assert one.attest().passed
    assert kds.targets == ["/vcek/v1/Milan/crl"]


def test_endorsements_that_are_none_are_refused_at_once(server: SnpServer, tmp_path: Path) -> None:
    """Before anything is contacted: they are the caller's."""
    (tmp_path / "garbage").write_bytes(b"garbage")
    with pytest.raises(MalformedInput):
        client(server, endorsements=[tmp_path / "garbage"])
    for wrong in ([tmp_path / "none"], str(tmp_path / "garbage"), b"bytes"):
        with pytest.raises(InvalidRequest) as caught:
            client(server, endorsements=wrong)
        assert caught.value.code == "input_unreadable"
    assert server.requests == []


def test_a_cache_serves_the_next_client_offline(server: SnpServer, kds: Service, tmp_path: Path) -> None:
    """One that was filled; another that is empty refuses, and says so in the check."""
    with client(server, fetcher=Cache(tmp_path / "full", asking(kds))) as one:
        one.attest()
    with client(server, fetcher=Cache(tmp_path / "full", Offline())) as one:
        assert one.attest().passed
    refused = refusal(client(server, fetcher=Cache(tmp_path / "empty", Offline())))
    assert refused.code == "snp_leaf_missing" and "fetch_offline" in refused.message
    assert refused.verdict is not None
    assert "offline" in refused.verdict.failures[0].got
    assert len(kds.targets) == 3


def test_a_poisoned_cache_costs_one_question(server: SnpServer, kds: Service, tmp_path: Path) -> None:
    """It is seen through before the verifier has to."""
    fetcher = Cache(tmp_path, asking(kds))
    with client(server, fetcher=fetcher) as one:
        one.attest()
    (path,) = tmp_path.glob("vcek-milan-*")
    path.write_bytes(Machine(leaf={"corrupt": True}).leaf_der)
    with client(server, fetcher=fetcher) as one:
        assert one.attest().passed
    assert len(kds.targets) == 4
    path.write_bytes(Machine(leaf={"corrupt": True}).leaf_der)
    assert refusal(client(server, fetcher=Cache(tmp_path, Offline()))).code == "snp_leaf_missing"


HOSTILE: dict[str, tuple[Any, str, str]] = {
    "not found": (NOT_FOUND, "snp_leaf_missing", "fetch_status"),
    "garbage": (ok(b"garbage"), "snp_leaf_missing", "fetch_malformed"),
    "huge": (ok(b"x" * 2_000_000), "snp_leaf_missing", "fetch_too_large"),
    "redirect": (ok(b"", {"Location": "https://x/"}, status="302 Y"), "snp_leaf_missing", "fetch_redirect"),
    "bomb": (ok(b"x", {"Content-Encoding": "gzip"}), "snp_leaf_missing", "fetch_encoded"),
    "another chip": (ok(Machine(product="Genoa").leaf_der), "snp_leaf_missing", "fetch_mismatch"),
    "forged": (ok(Machine(leaf={"corrupt": True}).leaf_der), "chain_signature_invalid", ""),
    "expired": (ok(Machine(leaf={"not_after": NOW.replace(year=2025)}).leaf_der), "chain_not_valid_now", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_source_gains_a_refusal(server: SnpServer, name: str) -> None:
    """With the verifier's code, and the reason of the fetch where there is one; the server got one question."""
    answer, code, why = HOSTILE[name]
    with serve(amd_answers(MACHINE), SPL=answer) as service:
        refused = refusal(client(server, fetcher=asking(service)))
    assert refused.code == code and why in refused.message
    assert server.paths() == ["/v1/evidence"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (ok(b"", {"Retry-After": "60"}, status="429 Slow"), "fetch_busy"),
        (ok(b"", status="500 Oops"), "fetch_busy"),
        (b"", "fetch_unreachable"),
        ("drip", "fetch_late"),
    ],
    ids=["busy", "broken", "ends", "drips"],
)
def test_a_silent_source_is_no_refusal(server: SnpServer, answer: Any, why: str) -> None:
    """`endorsements_unavailable`: try again later. The chain comes, the certificate does not."""

    def answering(target: str) -> Any:
        if "SPL" not in target:
            return ok(*amd_answers(MACHINE)[target])
        return (
            drip(b"HTTP/1.1 200 X\r\n", b"A: b\r\n", pause_s=0.05, times=200) if answer == "drip" else answer
        )

    with Service(answering) as service, client(server, fetcher=asking(service, timeout_s=1)) as one:
        with pytest.raises(Unavailable) as caught:
            one.attest()
        assert caught.value.code == "endorsements_unavailable" and why in caught.value.message
        assert "VCEK of a Milan chip" in caught.value.message


def test_a_silent_source_is_not_asked_again_and_again(server: SnpServer) -> None:
    """A client that waits for its server to start again does not for a vendor's service."""
    answers, silent = amd_answers(MACHINE), [False]

    def answering(target: str) -> bytes:
        return b"" if silent[0] else ok(*answers[target])

    with Service(answering) as service, client(server, fetcher=asking(service), patience=20) as one:
        one.attest()
        silent[0] = True
        server.rotate()
        server.drop_connections()
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            one.models()
        assert caught.value.code == "endorsements_unavailable"
        assert time.monotonic() - began < 5


def test_evidence_that_is_refused_anyway_is_refused_for_its_own_reason(server: SnpServer) -> None:
    """Whatever a source says: wrong code, with a source that has everything; no questions for a format that the policy
    does not name, nor for evidence that cannot be read.
    """
    with serve(amd_answers(MACHINE)) as kds:
        other = snp_policy().replace(MEASUREMENT.hex(), "00" * 48)
        assert refusal(client(server, policy=other, fetcher=asking(kds))).code == "measurement_not_accepted"
        asked = len(kds.targets)
        assert asked == 3
        refused = refusal(client(server, policy=intel_policy(), fetcher=asking(kds)))
        assert refused.code == "evidence_format_not_accepted"
        server.machine = MACHINE.but(version=9)
        assert refusal(client(server, fetcher=asking(kds))).code == "snp_version"
        assert len(kds.targets) == asked


def test_a_lent_key_cannot_be_fetched_and_the_refusal_says_so(kds: Service) -> None:
    """AMD gives it to the cloud; nobody is asked."""
    with SnpServer(security=SECURITY) as server:
        server.machine = lent = Machine(kind="VLEK")
        refused = refusal(client(server, policy=snp_policy(lent), fetcher=asking(kds)))
        assert refused.code == "snp_leaf_missing" and "AMD gives to the cloud" in refused.message
        assert kds.targets == []
        server.stapled = (("leaf", lent.leaf_der),)
        with client(server, policy=snp_policy(lent), fetcher=asking(kds)) as one:
            assert one.attest().passed
        assert kds.targets == ["/vlek/v1/Milan/cert_chain", "/vlek/v1/Milan/crl"]


def test_without_a_list_a_server_is_verified_and_the_verdict_says_so(server: SnpServer) -> None:
    """A source that withholds it gains what there is without fetching."""
    with serve(amd_answers(MACHINE), crl=NOT_FOUND) as kds, client(server, fetcher=asking(kds)) as one:
        verdict = one.attest()
    assert dict(verdict.claims.details)["revocation"] == "not checked"  # type: ignore[union-attr]


# --- the command line ---------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    """The command, in this process."""
    return CliRunner(env=CLEAN).invoke(main, [str(word) for word in words])


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy file that accepts the machine, for a while from now on."""
    found = examine_snp(MACHINE.report, endorsements=MACHINE.endorsements, roots=roots(), now=NOW)
    assert isinstance(found.claims, Claims)
    path = tmp_path / "policy.toml"
    path.write_text(policy_for(found.claims, security=SECURITY, now=datetime.now(UTC)))
    return path


def test_verify_with_fetching(server: SnpServer, kds: Service, policy: Path, tmp_path: Path) -> None:
    """`--fetch` with a cache; then `--offline`; without either the refusal."""
    where = ("verify", server.url, "--policy", policy)
    assert run(*where).exit_code == 10
    done = run(*where, "--fetch", "--kds", kds.url, "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert run(*where, "--offline", "--cache", tmp_path / "cache").exit_code == 0
    assert len(kds.targets) == 3
    empty = run(*where, "--offline", "--cache", tmp_path / "empty", "--json")
    document = json.loads(empty.stdout)
    assert (empty.exit_code, document["code"]) == (10, "snp_leaf_missing")
    assert any("offline" in check["got"] for check in document["checks"] if not check["passed"])


def test_verify_with_files(server: SnpServer, policy: Path, tmp_path: Path) -> None:
    """What the server does not staple may lie in files."""
    (tmp_path / "leaf.der").write_bytes(LEAF)
    (tmp_path / "chain.pem").write_bytes(CHAIN)
    files = ("--endorsements", tmp_path / "leaf.der", "--endorsements", tmp_path / "chain.pem")
    assert run("verify", server.url, "--policy", policy, *files).exit_code == 0
    (tmp_path / "leaf.der").write_bytes(b"garbage")
    assert run("verify", server.url, "--policy", policy, *files).exit_code == 20


def test_verify_where_nobody_answers(server: SnpServer, policy: Path) -> None:
    """Exit code 30, and who it was."""
    where = ("verify", server.url, "--policy", policy, "--fetch", "--kds", "http://127.0.0.1:1")
    done = run(*where)
    assert done.exit_code == 30
    assert "[endorsements_unavailable]" in done.stderr and "127.0.0.1:1" in done.stderr
    assert json.loads(run(*where, "--json").stdout)["error"]["code"] == "endorsements_unavailable"


def test_other_commands_fetch_as_well(server: SnpServer, kds: Service, policy: Path) -> None:
    """Else a server could be verified and not be used."""
    words = ("models", "--url", server.url, "--policy", policy)
    assert run(*words).exit_code == 10
    assert run(*words, "--fetch", "--kds", kds.url).exit_code == 0


def test_appraise_with_fetching(kds: Service, tmp_path: Path) -> None:
    """Recorded evidence without its certificates, of AMD and of Intel; exit codes as those of `verify`."""
    (tmp_path / "report").write_bytes(MACHINE.report)
    by = ("--policy", "UNSAFE_ANY_MEASUREMENT", "--at", "2026-11-23T12:00:00Z", "--json")
    words = ("appraise", tmp_path / "report", "--format", "snp", *by)
    assert json.loads(run(*words).stdout)["code"] == "snp_leaf_missing"
    assert run(*words, "--fetch", "--kds", kds.url).exit_code == 0
    done = run(*words, "--fetch", "--kds", "http://127.0.0.1:1")
    assert done.exit_code == 30 and "endorsements_unavailable" in done.output
    with serve(amd_answers(MACHINE), SPL=NOT_FOUND) as service:
        done = run(*words, "--fetch", "--kds", service.url)
        assert done.exit_code == 10 and "fetch_status" in done.stdout
    (tmp_path / "quote").write_bytes(SGX.quote)
    words = ("appraise", tmp_path / "quote", "--format", "sgx", *by)
    with serve(intel_answers(SGX)) as pccs:
        assert run(*words, "--fetch", "--pccs", f"{pccs.url}/sgx/certification/v4/").exit_code == 0
        other = Intel(fmspc=bytes(6)).bundle
        (tmp_path / "other.json").write_bytes(other)
        assert run(*words, "--endorsements", tmp_path / "other.json").exit_code == 10
        done = run(*words, "--endorsements", tmp_path / "other.json", "--fetch", "--pccs", pccs.url)
        assert done.exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--offline"],
        ["--cache", "c"],
        ["--pccs", "https://x"],
        ["--kds", "https://x"],
        ["--fetch", "--offline", "--cache", "c"],
        ["--offline", "--cache", "c", "--kds", "https://x"],
        ["--fetch", "--pccs", "http://example.org"],
        ["--fetch", "--kds", "nonsense"],
        ["--fetch", "--cache", "file"],
        ["--endorsements", "none"],
    ],
    ids=range(10),
)
def test_options_that_would_do_nothing_are_refused(
    words: list[str], server: SnpServer, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives them expects something; the same for both commands, before anything is contacted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").write_bytes(MACHINE.report)
    (tmp_path / "file").write_text("")
    assert run("verify", server.url, "--policy", policy, *words).exit_code == 20
    assert run("appraise", "report", "--format", "snp", "--policy", policy, *words).exit_code == 20
    assert server.requests == []
