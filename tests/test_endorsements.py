"""Fetching over HTTP and the cache on disk: what is asked, and that a hostile source or cache can only deny."""

from __future__ import annotations

import gzip
import json
import os
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))

from fake_amd import Machine, intermediate_der, root_der, roots
from fake_intel import NOW, SGX, TDX4, TDX5, Intel
from fake_services import NOT_FOUND, Service, amd_answers, drip, intel_answers, ok, serve, vcek_target
from fake_x509 import pem, revocation_list, rsa_key

from strongroom import endorsements
from strongroom.attest.dcap import examine_sgx, examine_tdx
from strongroom.attest.evidence import Claims
from strongroom.attest.gather import Fetch, Fetched
from strongroom.attest.needs import DcapCollateral, Need, SnpChain, SnpRevocationList, Vcek
from strongroom.attest.snp import examine_snp
from strongroom.endorsements import Cache, HttpFetcher, Offline, complete, parse_base
from strongroom.errors import InvalidRequest

PLATFORM = DcapCollateral("sgx", SGX.fmspc, "platform")
TCB_INFO, IDENTITY, PCK_LIST, ROOT_LIST = "sgxcertificationvtcb", "qeidentity", "pckcrl", "rootcacrl"
LEAF = Machine().leaf_der
CHAIN = pem(intermediate_der("Milan", "VCEK")) + pem(root_der("Milan"))
LIST = revocation_list("ARK-Milan", rsa_key("ark"))
CHIP = Vcek(("Milan",), Machine().hardware_id, (("bl", 3), ("tee", 0), ("snp", 8), ("ucode", 115)))
MILAN_CHAIN, MILAN_LIST = SnpChain("Milan", "VCEK"), SnpRevocationList("Milan", "VCEK")
REPORT = Machine().report


def request(*needs: Need, fresh: bool = False) -> Fetch:
    """A command."""
    return Fetch(needs, NOW, fresh)


def fetcher(pccs: Service | None = None, kds: Service | None = None, **options: Any) -> HttpFetcher:
    """One that asks these services, and nobody where there is none."""
    nobody = "http://127.0.0.1:1"
    return HttpFetcher(pccs=pccs.url if pccs else nobody, kds=kds.url if kds else nobody, **options)


def failure(found: Fetched) -> tuple[str, str]:
    """Code and words of the one failure."""
    assert not found.documents
    (one,) = found.failures
    return one.code, one.why


@pytest.fixture
def pccs() -> Iterator[Service]:
    """A cache of Intel's."""
    with serve(intel_answers(SGX) | intel_answers(TDX4)) as running:
        yield running


@pytest.fixture
def kds() -> Iterator[Service]:
    """AMD's service."""
    with serve(amd_answers(Machine())) as running:
        yield running


# --- honest services ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", [SGX, TDX4, TDX5], ids=["sgx", "tdx4", "tdx5"])
def test_a_quote_with_nothing_stapled_verifies_with_what_is_fetched(vendor: Intel, pccs: Service) -> None:
    """Four questions; then the verifier has all it needs."""
    found = complete(
        fetcher(pccs), vendor.format, vendor.quote, endorsements=(), roots=vendor.roots, now=lambda: NOW
    )
    examine = examine_tdx if vendor.tdx else examine_sgx
    examined = examine(vendor.quote, endorsements=found.endorsements, roots=vendor.roots, now=NOW)
    assert all(c.passed for c in examined.checks) and isinstance(examined.claims, Claims)
    assert len(pccs.targets) == 4 and found.failures == ()


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [2, 3, 5])
def test_a_report_with_nothing_stapled_verifies_with_what_is_fetched(product: str, version: int) -> None:
    """One of version 2 does not say its product: the service knows the chip under one of the names."""
    machine = Machine(product=product, version=version)
    if version == 2 and product == "Turin":
        return  # there are none
    answers = amd_answers(machine)
    with serve(answers) as kds:
        found = complete(
            fetcher(kds=kds), "snp", machine.report, endorsements=(), roots=roots(), now=lambda: NOW
        )
        examined = examine_snp(machine.report, endorsements=found.endorsements, roots=roots(), now=NOW)
        asked = list(kds.targets)
    # The report was signed anew for each call of `machine.report`, with the same key.
    assert all(c.passed for c in examined.checks), [c.code for c in examined.checks if not c.passed]
    assert isinstance(examined.claims, Claims)
    assert dict(examined.claims.details)["revocation"] == "checked"
    assert len(asked) == (4 if version == 2 and product == "Genoa" else 3)


def test_nothing_but_the_question_is_sent(kds: Service) -> None:
    """No cookies, no offer of a coding, no referer, no credentials; a plain user agent."""
    fetcher(kds=kds).fetch(request(CHIP, MILAN_CHAIN))
    for head in kds.heads:
        names = {line.split(":")[0].lower() for line in head.split("\r\n")[1:] if line}
        assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}
        assert "identity" in head and head.startswith("GET /")


def test_the_environment_takes_no_part(kds: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies, a netrc file and a key log are not looked at."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / ".netrc").write_text("default login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    asking = fetcher(kds=kds)
    assert len(asking.fetch(request(CHIP)).documents) == 1
    assert "authorization" not in kds.heads[0].lower()
    endorsements.public_authorities.cache_clear()
    assert endorsements.public_authorities().keylog_filename is None


def test_intels_own_service_has_the_roots_list_on_another_host() -> None:
    """A PCCS has it beside the others; a path in front of the API and the API's own path are taken."""
    question = endorsements.Question(endorsements.ROOT_LIST, "/sgx/certification/v4/rootcacrl", 1)
    assert HttpFetcher()._url(question) == "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    for base in ("https://host:8081", "https://host:8081/", "https://host:8081/sgx/certification/v4/"):
        assert HttpFetcher(pccs=base)._url(question) == "https://host:8081/sgx/certification/v4/rootcacrl"
    assert HttpFetcher(pccs="https://h/a/b")._url(question) == "https://h/a/b/sgx/certification/v4/rootcacrl"


@pytest.mark.parametrize(
    "url",
    [
        "", "host", "host:8081", "ftp://host", "http://host", "http://10.0.0.1", "http://localhost.evil.example",
        "https://", "https://user@host", "https://host?x", "https://host/#x", "https://host/a b", "https://host:0",
        "https://host:99999", "https://host/../x", "https://host/%2e%2e", "https://ho st", "file:///etc/passwd",
        "http://[::2]", "https://host\n.evil.example", "https://[::1",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    """Https, or http to this machine; nothing that hides where it leads."""
    with pytest.raises(InvalidRequest) as caught:
        HttpFetcher(pccs=url)
    assert caught.value.code == "url_invalid"
    with pytest.raises(InvalidRequest):
        HttpFetcher(kds=url)


def test_addresses_that_are_some() -> None:
    """A slash at the end is nothing."""
    for url in (
        "https://host",
        "https://host:8081",
        "https://host/pccs",
        "http://localhost:1",
        "http://127.0.0.1:8",
    ):
        assert parse_base(url) == parse_base(url + "/") == url
    assert parse_base("http://[::1]:8081/sgx/certification/v4/") == "http://[::1]:8081"


def test_several_threads_share_one(kds: Service) -> None:
    """Nothing is kept between fetches."""
    asking, found = fetcher(kds=kds), []
    threads = [
        threading.Thread(target=lambda: found.append(asking.fetch(request(CHIP, MILAN_CHAIN))))
        for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [len(f.documents) for f in found] == [2] * 8


# --- hostile and broken services ----------------------------------------------------------------------------


BOMB = gzip.compress(bytes(1 << 24))
WRONG: dict[str, tuple[bytes, str]] = {
    "not found": (NOT_FOUND, "fetch_status"),
    "forbidden": (ok(b"", status="403 No"), "fetch_status"),
    "created": (ok(b"{}", status="201 Created"), "fetch_status"),
    "no content": (b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n", "fetch_status"),
    "server error": (ok(b"", status="500 Oops"), "fetch_busy"),
    "redirect": (ok(b"", {"Location": "http://169.254.169.254/"}, status="302 Found"), "fetch_redirect"),
    "moved": (ok(b"", {"Location": "/elsewhere"}, status="308 Moved"), "fetch_redirect"),
    "gzip bomb": (ok(BOMB, {"Content-Encoding": "gzip"}), "fetch_encoded"),
    "brotli": (ok(b"x", {"Content-Encoding": "br"}), "fetch_encoded"),
    "huge": (ok(b"x" * (1 << 20)), "fetch_too_large"),
    "huge in pieces": (
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 9,
        "fetch_too_large",
    ),
    "huge without an end": (b"HTTP/1.1 200 X\r\n\r\n" + b"x" * (1 << 20), "fetch_too_large"),
    "says that it is huge": (b"HTTP/1.1 200 X\r\nContent-Length: 999999999\r\n\r\n", "fetch_too_large"),
    "garbage": (ok(b"\x00garbage\xff"), "fetch_malformed"),
    "a page": (ok(b"<html>captive portal</html>"), "fetch_malformed"),
    "empty": (ok(b""), "fetch_malformed"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9\r\n", "fetch_unreachable"),
    "nothing": (b"", "fetch_unreachable"),
    "truncated": (b"HTTP/1.1 200 X\r\nContent-Length: 90\r\n\r\nx", "fetch_unreachable"),
    "two lengths": (
        b"HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "fetch_unreachable",
    ),
    "endless head": (b"HTTP/1.1 200 X\r\n" + b"X: y\r\n" * 40_000, "fetch_unreachable"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_none_fails_with_its_code(name: str) -> None:
    """The words name the service and nothing that it said; nothing is followed."""
    answer, code = WRONG[name]
    with Service(lambda _: answer) as service:
        for need in (PLATFORM, CHIP, MILAN_CHAIN, MILAN_LIST):
            got, why = failure(fetcher(service, service).fetch(request(need)))
            expected = code
            if need == MILAN_CHAIN and code == "fetch_malformed":
                expected = "fetch_mismatch"  # a text without certificates
            assert got == expected, (need, why)
            assert "169.254" not in why and "captive" not in why and "Oops" not in why
        assert all(target.startswith(("/vcek/", "/sgx/")) for target in service.targets)


def test_one_bad_answer_of_four_makes_no_bundle(pccs: Service) -> None:
    """Wherever it is."""
    for part in (TCB_INFO, IDENTITY, PCK_LIST, ROOT_LIST):
        with serve(intel_answers(SGX), **{part: NOT_FOUND}) as service:
            assert failure(fetcher(service).fetch(request(PLATFORM)))[0] == "fetch_status"


def test_a_header_without_its_chain(pccs: Service) -> None:
    """The answer is none."""
    for part, body in (
        (TCB_INFO, f'{{"tcbInfo":{SGX.members["tcb_info"]},"signature":"{"00" * 64}"}}'.encode()),
        (IDENTITY, f'{{"enclaveIdentity":{SGX.members["qe_identity"]},"signature":"{"00" * 64}"}}'.encode()),
        (PCK_LIST, SGX.crl("ca")),
    ):
        with serve(intel_answers(SGX), **{part: ok(body)}) as service:
            code, why = failure(fetcher(service).fetch(request(PLATFORM)))
            assert code == "fetch_malformed" and "issuer-chain" in why


def test_documents_of_another_platform_or_chip() -> None:
    """Genuine, and for somebody else."""
    other = intel_answers(Intel(fmspc=bytes(6)))
    mixed = dict(zip(intel_answers(SGX), other.values(), strict=True))
    with serve(mixed) as service:
        code, why = failure(fetcher(service).fetch(request(PLATFORM)))
        assert code == "fetch_mismatch" and "another platform" in why
    another = Machine(leaf_extensions={"1.3.6.1.4.1.3704.1.4": bytes(64)}).leaf_der
    with serve({vcek_target(Machine()): (another, {})}) as service:
        code, why = failure(fetcher(kds=service).fetch(request(CHIP)))
        assert code == "fetch_mismatch" and "another chip" in why


def test_nobody_there() -> None:
    """Refused connections, and a name that does not exist."""
    assert failure(fetcher().fetch(request(PLATFORM)))[0] == "fetch_unreachable"
    nowhere = HttpFetcher(kds="https://strongroom.invalid", timeout_s=5)
    code, why = failure(nowhere.fetch(request(CHIP)))
    assert code == "fetch_unreachable" and "strongroom.invalid" in why


def test_one_need_failing_does_not_fail_the_others(kds: Service) -> None:
    """Each has its own outcome."""
    found = fetcher(kds=kds).fetch(request(PLATFORM, CHIP, MILAN_CHAIN))
    assert [f.need for f in found.failures] == [PLATFORM]
    assert [d.need for d in found.documents] == [CHIP, MILAN_CHAIN] and not any(
        d.cached for d in found.documents
    )


@pytest.mark.parametrize("where", ["head", "body", "silence", "informational"])
def test_an_endless_drip_is_cut_off(where: str) -> None:
    """Each read stays within its time-out; all together must not last longer than they may."""
    head = b"HTTP/1.1 200 X\r\nContent-Length: 5000\r\n"

    def answer(_: str) -> Iterator[bytes]:
        match where:
            case "head":
                return drip(head, b"X-A: b\r\n", pause_s=0.05, times=400)
            case "body":
                return drip(head + b"\r\n", b"x", pause_s=0.05, times=400)
            case "informational":
                return drip(b"", b"HTTP/1.1 102 X\r\n\r\n", pause_s=0.05, times=400)
            case _:
                return drip(b"", b"", pause_s=0.05, times=400)

    with Service(answer) as service:
        began = time.monotonic()
        code, why = failure(fetcher(kds=service, timeout_s=0.5).fetch(request(CHIP)))
        assert code == "fetch_late" and "0.5 s" in why
        assert time.monotonic() - began < 5


def test_the_time_is_for_all_needs_together() -> None:
    """What could not be asked any more is late as well."""
    with Service(lambda _: drip(b"", b"", pause_s=0.05, times=400)) as service:
        found = fetcher(service, service, timeout_s=0.3).fetch(
            request(CHIP, MILAN_CHAIN, MILAN_LIST, PLATFORM)
        )
        assert [f.code for f in found.failures] == ["fetch_late"] * 4
        assert len(service.targets) == 1


def test_a_handshake_that_drips_is_cut_off() -> None:
    """TLS that never ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def silent() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.recv(1)

        threading.Thread(target=silent, daemon=True).start()
        asking = HttpFetcher(kds=f"https://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.4)
        began = time.monotonic()
        assert failure(asking.fetch(request(CHIP)))[0] in ("fetch_late", "fetch_unreachable")
        assert time.monotonic() - began < 20


def test_a_certificate_of_nobody() -> None:
    """Https means what it says, though what comes is signed anyway: who is asked learns what is asked."""
    from strongroom import ratls

    identity = ratls.new_server_identity(
        hosts=("127.0.0.1",),
        evidence_format="sim",
        evidence=lambda data: endorsements_evidence(),
        now=NOW,
        lifetime_s=3600,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = ratls.server_context(identity)

        def shake_hands() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).recv(10)
            except (OSError, ssl.SSLError):
                connection.close()

        threading.Thread(target=shake_hands, daemon=True).start()
        asking = HttpFetcher(kds=f"https://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5)
        code, why = failure(asking.fetch(request(CHIP)))
    assert code == "fetch_unreachable" and "no public authority" in why


def endorsements_evidence() -> Any:
    """Some evidence for a certificate that no test looks into."""
    from strongroom.attest.evidence import Evidence

    return Evidence("sim", b"{}", ())


# --- services that are busy ---------------------------------------------------------------------------------


class Clockwork:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Waits."""
        self.slept.append(seconds)
        self.now += seconds


def busy(times: int, answer: bytes, headers: dict[str, str], status: str = "429 Slow down") -> Service:
    """A service that is busy at first."""
    left = [times]

    def answering(_: str) -> bytes:
        left[0] -= 1
        return ok(b"", headers, status=status) if left[0] >= 0 else answer

    return Service(answering)


@pytest.mark.parametrize("status", ["429 Slow down", "503 Busy"])
@pytest.mark.parametrize(
    ("headers", "slept"),
    [
        ({"Retry-After": "10"}, [10.0]),
        ({"Retry-After": "0"}, [0.0]),
        ({}, [1.0]),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, [1.0]),
        ({"Retry-After": "-5"}, [1.0]),
        ({"Retry-After": "١٠"}, [1.0]),
    ],
    ids=["10", "0", "none", "date", "negative", "other digits"],
)
def test_a_busy_service_is_asked_again_when_it_says(
    status: str, headers: dict[str, str], slept: list[float]
) -> None:
    """AMD allows one question for a chip in ten seconds."""
    clock = Clockwork()
    latin = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    with busy(1, ok(LEAF), latin, status) as service:
        asking = fetcher(kds=service, monotonic=clock.monotonic, sleep=clock.sleep)
        assert [d.data for d in asking.fetch(request(CHIP)).documents] == [LEAF]
    assert clock.slept == slept


def test_a_service_that_stays_busy_is_left_after_three_tries() -> None:
    """With pauses that grow."""
    clock = Clockwork()
    with busy(9, b"", {}) as service:
        asking = fetcher(kds=service, monotonic=clock.monotonic, sleep=clock.sleep)
        code, why = failure(asking.fetch(request(CHIP)))
        assert code == "fetch_busy" and "busy" in why
        assert len(service.targets) == 3 and clock.slept == [1.0, 2.0]


def test_a_pause_that_is_longer_than_the_time_is_not_waited_for() -> None:
    """A hostile source keeps nobody waiting."""
    clock = Clockwork()
    with busy(9, b"", {"Retry-After": "999999"}) as service:
        asking = fetcher(kds=service, monotonic=clock.monotonic, sleep=clock.sleep)
        code, why = failure(asking.fetch(request(CHIP)))
        assert code == "fetch_busy" and "999999 s" in why
        assert len(service.targets) == 1 and clock.slept == []


def test_a_chip_is_looked_for_under_two_names_only_where_the_first_is_unknown() -> None:
    """A busy service is not asked about the other product as well."""
    both = replace(CHIP, products=("Milan", "Genoa"))
    clock = Clockwork()
    with busy(9, b"", {"Retry-After": "99"}) as service:
        asking = fetcher(kds=service, monotonic=clock.monotonic, sleep=clock.sleep)
        assert failure(asking.fetch(request(both)))[0] == "fetch_busy"
        assert len(service.targets) == 1
    with Service(lambda _: NOT_FOUND) as service:
        assert failure(fetcher(kds=service).fetch(request(both)))[0] == "fetch_status"
        assert [t.split("/")[3] for t in service.targets] == ["Milan", "Genoa"]


# --- what is forged or old is for the verifier --------------------------------------------------------------


def codes_of_quote(vendor: Intel, service: Service, given: tuple[tuple[str, bytes], ...] = ()) -> list[str]:
    """Codes of the failed checks of SGX's quote, with what `service` gives."""
    found = complete(fetcher(service), "sgx", SGX.quote, endorsements=given, roots=SGX.roots, now=lambda: NOW)
    examined = examine_sgx(SGX.quote, endorsements=found.endorsements, roots=SGX.roots, now=NOW)
    return [c.code for c in examined.checks if not c.passed]


@pytest.mark.parametrize(
    ("vendor", "code"),
    [
        (SGX.but(signers={"tcb_info": "pck"}), "collateral_signature_invalid"),
        (SGX.but(signers={"root_crl": "ca"}), "collateral_signature_invalid"),
        (Intel(name="mallory"), "collateral_signature_invalid"),
        (SGX.but(tcb_info={"nextUpdate": "2026-11-22T00:00:00Z"}), "collateral_expired"),
        (SGX.but(tcb_info={"issueDate": "2026-11-24T00:00:00Z"}), "collateral_from_future"),
        (SGX.but(revoked=("pck",)), "certificate_revoked"),
        (SGX.but(qe_identity={"mrsigner": "00" * 32}), "qe_identity_mismatch"),
    ],
    ids=range(7),
)
def test_forged_old_and_revoking_collateral_is_refused_by_the_verifier(vendor: Intel, code: str) -> None:
    """With its own codes; a source that forges gains a refusal."""
    with serve(intel_answers(vendor)) as service:
        assert codes_of_quote(vendor, service)[0] == code


def test_older_collateral_that_is_still_valid_says_so_in_the_claims() -> None:
    """It is Intel's word of now, for another evaluation: only a policy that names the lowest number can refuse it.
    Where newer collateral is at hand, though it ran out, the older one does not replace it.
    """
    older = SGX.but(tcb_info={"tcbEvaluationDataNumber": 15}, qe_identity={"tcbEvaluationDataNumber": 15})
    with serve(intel_answers(older)) as service:
        found = complete(
            fetcher(service), "sgx", SGX.quote, endorsements=(), roots=SGX.roots, now=lambda: NOW
        )
        claims = examine_sgx(SGX.quote, endorsements=found.endorsements, roots=SGX.roots, now=NOW).claims
        assert isinstance(claims, Claims) and dict(claims.details)["eval_data_number"] == "15"
        ended = SGX.but(tcb_info={"nextUpdate": "2026-11-23T11:00:00Z"})
        assert codes_of_quote(SGX, service, (("newer", ended.bundle),))[0] == "collateral_expired"


VCEK_AT, CHAIN_AT, LIST_AT = vcek_target(Machine()), "/vcek/v1/Milan/cert_chain", "/vcek/v1/Milan/crl"
MALLORY = rsa_key("mallory")
FORGED = {
    "corrupt": (VCEK_AT, Machine(leaf={"corrupt": True}).leaf_der, "chain_signature_invalid"),
    "mallory's": (VCEK_AT, Machine(leaf={"signer": MALLORY}).leaf_der, "chain_signature_invalid"),
    "old": (VCEK_AT, Machine(leaf={"not_after": NOW - timedelta(days=1)}).leaf_der, "chain_not_valid_now"),
    "issuer": (
        CHAIN_AT,
        pem(Machine(issuer={"corrupt": True}).issuer_der) + pem(root_der("Milan")),
        "chain_signature_invalid",
    ),
    "root": (
        CHAIN_AT,
        pem(intermediate_der("Milan", "VCEK"))
        + pem(Machine(ark={"key": MALLORY, "signer": MALLORY}).root_der),
        "chain_signature_invalid",
    ),
    "list": (LIST_AT, revocation_list("ARK-Milan", MALLORY), "revocation_list_signature_invalid"),
    "revoked": (
        LIST_AT,
        revocation_list("ARK-Milan", rsa_key("ark"), [0x10001]),
        "chain_certificate_revoked",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_certificates_and_lists_are_refused_by_the_verifier(name: str) -> None:
    """With its own codes."""
    target, body, code = FORGED[name]
    with serve(amd_answers(Machine()) | {target: (body, {})}) as service:
        found = complete(fetcher(kds=service), "snp", REPORT, endorsements=(), roots=roots(), now=lambda: NOW)
        examined = examine_snp(REPORT, endorsements=found.endorsements, roots=roots(), now=NOW)
        assert code in [c.code for c in examined.checks if not c.passed]


def test_without_a_list_the_verdict_says_that_revocation_was_not_checked() -> None:
    """A source that withholds it gains what it would have without fetching."""
    with serve(amd_answers(Machine()), crl=NOT_FOUND) as service:
        found = complete(fetcher(kds=service), "snp", REPORT, endorsements=(), roots=roots(), now=lambda: NOW)
        claims = examine_snp(REPORT, endorsements=found.endorsements, roots=roots(), now=NOW).claims
        assert isinstance(claims, Claims) and dict(claims.details)["revocation"] == "not checked"
        assert [type(f.need) for f in found.failures] == [SnpRevocationList]


# --- the cache ----------------------------------------------------------------------------------------------

EVERYTHING = (PLATFORM, CHIP, MILAN_CHAIN, MILAN_LIST)


@pytest.fixture
def filled(tmp_path: Path, pccs: Service, kds: Service) -> Path:
    """A cache with one document of each kind."""
    found = Cache(tmp_path / "cache", fetcher(pccs, kds)).fetch(request(*EVERYTHING))
    assert len(found.documents) == 4 and not any(d.cached for d in found.documents)
    return tmp_path / "cache"


def test_what_was_fetched_is_kept(filled: Path) -> None:
    """Offline it is there, the same bytes; files are whole, and for nobody else to read."""
    found = Cache(filled, Offline()).fetch(request(*EVERYTHING))
    assert found.failures == () and all(d.cached for d in found.documents)
    assert {d.need for d in found.documents} == set(EVERYTHING)
    assert json.loads(found.documents[0].data) == SGX.members
    assert sorted(p.name for p in filled.iterdir()) == sorted(need.key for need in EVERYTHING)
    assert {stat.S_IMODE(p.stat().st_mode) for p in filled.iterdir()} == {0o600}
    assert stat.S_IMODE(filled.stat().st_mode) == 0o700


def test_offline_without_a_cache_has_nothing() -> None:
    """And says so."""
    found = Offline().fetch(request(*EVERYTHING))
    assert {f.code for f in found.failures} == {"fetch_offline"} and not found.documents


@pytest.mark.parametrize(("days", "kept"), [(0, 4), (26, 4), (27, 3), (365 * 3, 3), (365 * 6, 2)], ids=str)
def test_how_long_documents_are_used(filled: Path, days: int, kept: int) -> None:
    """Collateral and lists until they state the next one, certificates for ever."""
    later = Fetch(EVERYTHING, NOW + timedelta(days=days), False)
    found = Cache(filled, Offline()).fetch(later)
    assert len(found.documents) == kept
    assert {f.code for f in found.failures} <= {"fetch_offline"}


def test_fresh_documents_come_from_the_source(filled: Path, kds: Service) -> None:
    """And take the place of those that are there."""
    asked = len(kds.targets)
    found = Cache(filled, fetcher(kds=kds)).fetch(request(CHIP, fresh=True))
    assert [d.cached for d in found.documents] == [False] and len(kds.targets) == asked + 1
    assert failure(Cache(filled, Offline()).fetch(request(CHIP, fresh=True)))[0] == "fetch_offline"


def test_only_what_is_missing_is_asked_for(filled: Path, kds: Service) -> None:
    """One file less, one question."""
    (filled / MILAN_CHAIN.key).unlink()
    asked = len(kds.targets)
    found = Cache(filled, fetcher(kds=kds)).fetch(request(*EVERYTHING))
    assert len(found.documents) == 4 and kds.targets[asked:] == ["/vcek/v1/Milan/cert_chain"]


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(4000)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "huge": lambda path: path.write_bytes(b"{" + b" " * (1 << 20)),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to(path.with_suffix(".x"))),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("need", EVERYTHING, ids=lambda n: type(n).__name__)
def test_a_damaged_entry_is_fetched_again(
    filled: Path, pccs: Service, kds: Service, need: Need, damage: str
) -> None:
    """Whatever became of the file, without waiting for it; offline it is not there."""
    DAMAGE[damage](filled / need.key)
    assert failure(Cache(filled, Offline()).fetch(request(need)))[0] == "fetch_offline"
    found = Cache(filled, fetcher(pccs, kds)).fetch(request(need))
    assert [d.cached for d in found.documents] == [False]
    if damage != "unreadable":  # a folder in the file's place stays there, and costs a question each time
        assert len(Cache(filled, Offline()).fetch(request(need)).documents) == 1


def test_entries_of_others_are_not_taken(filled: Path) -> None:
    """Genuine documents under another's name."""
    (filled / CHIP.key).write_bytes(Machine(product="Turin").leaf_der)
    (filled / PLATFORM.key).write_bytes(TDX4.bundle)
    (filled / MILAN_CHAIN.key).write_bytes(pem(intermediate_der("Milan", "VLEK")) + pem(root_der("Milan")))
    found = Cache(filled, Offline()).fetch(request(PLATFORM, CHIP, MILAN_CHAIN))
    assert len(found.failures) == 3


@pytest.mark.parametrize(
    ("need", "forged"),
    [
        (PLATFORM, SGX.but(signers={"tcb_info": "pck"}).bundle),
        (PLATFORM, SGX.but(tcb_info={"tcbEvaluationDataNumber": 65535}, signers={"tcb_info": "pck"}).bundle),
        (PLATFORM, Intel(name="mallory").bundle),
    ],
    ids=range(3),
)
def test_a_poisoned_bundle_is_fetched_again(filled: Path, pccs: Service, need: Need, forged: bytes) -> None:
    """Well-formed, for the platform, and signed by somebody else: the verifier never sees it; offline it refuses."""
    (filled / need.key).write_bytes(forged)
    asked = len(pccs.targets)

    def codes(source: Any) -> list[str]:
        found = complete(
            Cache(filled, source), "sgx", SGX.quote, endorsements=(), roots=SGX.roots, now=lambda: NOW
        )
        examined = examine_sgx(SGX.quote, endorsements=found.endorsements, roots=SGX.roots, now=NOW)
        return [c.code for c in examined.checks if not c.passed]

    assert codes(Offline())[0] == "collateral_missing"
    assert codes(fetcher(pccs)) == [] and len(pccs.targets) == asked + 4
    assert codes(Offline()) == []


@pytest.mark.parametrize(
    ("need", "forged"),
    [
        (CHIP, Machine(leaf={"corrupt": True}).leaf_der),
        (CHIP, Machine(leaf={"signer": rsa_key("mallory")}).leaf_der),
        (CHIP, Machine(leaf={"not_after": NOW - timedelta(days=1)}).leaf_der),
        (
            MILAN_CHAIN,
            pem(Machine(issuer={"key": rsa_key("mallory"), "signer": rsa_key("mallory")}).issuer_der)
            + pem(Machine(ark={"key": rsa_key("mallory"), "signer": rsa_key("mallory")}).root_der),
        ),
        (MILAN_LIST, revocation_list("ARK-Milan", rsa_key("mallory"), [0x10001])),
    ],
    ids=["corrupt", "mallory's", "old", "chain", "list"],
)
def test_poisoned_certificates_and_lists_are_fetched_again(
    filled: Path, kds: Service, need: Need, forged: bytes
) -> None:
    """The same for AMD's."""
    (filled / need.key).write_bytes(forged)

    def failing(source: Any) -> list[str]:
        found = complete(
            Cache(filled, source), "snp", REPORT, endorsements=(), roots=roots(), now=lambda: NOW
        )
        examined = examine_snp(REPORT, endorsements=found.endorsements, roots=roots(), now=NOW)
        return [c.code for c in examined.checks if not c.passed]

    without = failing(Offline())
    assert (without == []) == (need == MILAN_LIST)  # a verdict does without a list
    assert failing(fetcher(kds=kds)) == []
    assert failing(Offline()) == []


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    """Said at once, not at the first fetch."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest) as caught:
        Cache(tmp_path / "file", Offline())
    assert caught.value.code == "cache_unusable"


def test_a_directory_that_cannot_be_written_costs_a_question_each_time(
    tmp_path: Path, kds: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk denies nothing, and leaves nothing half written."""
    cache = Cache(tmp_path, fetcher(kds=kds))

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("strongroom.endorsements.os.replace", full)
    for _ in range(2):
        assert len(cache.fetch(request(CHIP)).documents) == 1
    assert list(tmp_path.iterdir()) == [] and len(kds.targets) == 2


def test_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the caller's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Cache("~/a/b", Offline())
    assert (tmp_path / "a" / "b").is_dir()
