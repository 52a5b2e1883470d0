"""`strongroom appraise`: exit codes over all recorded evidence, what it prints, and input that cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))

import recorded
from bundles import bundle
from fake_services import NOT_FOUND, Service, bundle_answers, ok
from recorded import CASES, EVIDENCE, Case

from strongroom.attest.bundle import encode_bundle
from strongroom.cli import main
from strongroom.cli_appraise import FORMATS, NOT_PROVEN, NOT_PROVEN_BUNDLE, NOT_PROVEN_SIMULATED

needs_recorded = pytest.mark.skipif(not EVIDENCE.is_dir(), reason=recorded.ABSENT)


def run(*words: str, policy: str = "UNSAFE_ANY_MEASUREMENT") -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, ["appraise", *words, "--policy", policy])


@needs_recorded
@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_exit_codes_over_all_recorded_evidence(case: Case) -> None:
    """0 where every check passes, 10 where one fails."""
    done = run(*case.arguments(), "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == (10 if case.code else 0), document["code"]
    assert document["passed"] == (not case.code)
    if case.code:
        assert case.code in {c["code"] for c in document["checks"]}


def _services(case: Case) -> Service:
    """Services that have the recorded endorsements of `case`, where the vendors have them."""
    certificates = [p for p in case.endorsements if p.suffix in (".der", ".pem")]
    answers: dict[str, tuple[bytes, dict[str, str]]] = {}
    for path in case.endorsements:
        if path.suffix == ".json":
            answers |= bundle_answers(json.loads(path.read_bytes()), *path.name.split("-")[:3])

    def answer(target: str) -> bytes:
        wanted = ".der" if "SPL" in target else ".pem" if target.endswith("cert_chain") else ""
        found = [p.read_bytes() for p in certificates if p.suffix == wanted]
        return ok(found[0]) if found else ok(*answers[target]) if target in answers else NOT_FOUND

    return Service(answer)


@needs_recorded
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.format in ("sgx", "tdx", "snp", "azure") and c.endorsements and not c.code],
    ids=lambda c: c.name,
)
def test_genuine_evidence_passes_with_endorsements_that_are_fetched(case: Case) -> None:
    """All of it, under the vendors' own roots; but for a VLEK, which has to be given."""
    words = [str(case.path), "--format", case.format, "--at", case.at, "--json"]
    if "vlek" in case.name:
        words += ["--endorsements", str(case.endorsements[0])]
    assert run(*words).exit_code == 10
    with _services(case) as service:
        done = run(*words, "--fetch", "--pccs", service.url, "--kds", service.url)
    assert done.exit_code == 0, json.loads(done.stdout)["code"]


@needs_recorded
def test_every_claim_every_check_and_what_is_not_proven_is_printed() -> None:
    """For a person: one line each."""
    case = next(c for c in CASES if c.format == "snp" and not c.code)
    done = run(*case.arguments(), "--explain")
    assert done.exit_code == 0
    for text in ("measurement", "chip_id", "PASS  snp.signature", "NOT CHECKED  freshness", "ACCEPTED"):
        assert text in done.output, text
    assert "NOT CHECKED  revocation" in done.output
    assert all(text in done.output for text in NOT_PROVEN["snp"])


@needs_recorded
def test_a_certificate_proves_no_more_than_the_evidence_in_it() -> None:
    """What the format inside does not prove is said as well."""
    case = next(c for c in CASES if c.format == "ra-tls" and not c.code)
    document = json.loads(run(*case.arguments(), "--explain", "--json").stdout)
    inner = document["claims"]["format"]
    assert inner == "nitro"
    assert {*NOT_PROVEN["ra-tls"], *NOT_PROVEN[inner]} < set(document["does_not_prove"])


@needs_recorded
@pytest.mark.parametrize("case", [c for c in CASES if not c.code][:6], ids=lambda c: c.name)
def test_production_refuses_all_of_it(case: Case) -> None:
    """It names no code."""
    assert run(*case.arguments(), policy="production").exit_code == 10


@needs_recorded
def test_a_software_tpm_is_accepted_where_its_root_and_key_are_named(tmp_path: Path) -> None:
    """And its nonce is compared; production's host exclusion is no matter of claims."""
    folder = EVIDENCE / "tpm" / "swtpm-recorded-ecc"
    quote = json.loads((folder / "quote.json").read_text())
    where = ["--format", "tpm", "--at", "2026-11-22T02:50:29Z"]
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509 import load_pem_x509_certificate

    root = load_pem_x509_certificate((folder / "root.pem").read_bytes()).fingerprint(SHA256()).hex()
    file = tmp_path / "policy.toml"

    def write(measurement: str) -> None:
        file.write_text(
            f"""kind = "development"
expires = 2027-01-01T00:00:00Z
[[tpm]]
roots = ["{root}", "{quote["ak_name"][4:]}"]
measurements = ["{measurement}"]
unsafe_accept_debug = false
[security]
sealing = ["operator"]
host_excluded = [false]
isolation = ["in_process"]
sandbox = []
admission = ["structural"]
anonymous_upload = [false]
verify_on_load = ["tags"]
logging = ["no_content"]
"""
        )

    write("00" * 32)
    refused = run(str(folder), *where, "--json", policy=str(file))
    document = json.loads(refused.stdout)
    assert (refused.exit_code, document["code"]) == (10, "measurement_not_accepted")
    write(document["claims"]["measurement"])
    assert run(str(folder), *where, "--nonce", quote["nonce"], policy=str(file)).exit_code == 0
    assert run(str(folder), *where, "--nonce", "00" * 32, policy=str(file)).exit_code == 10


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "sgx", "--nonce", "00"],
        ["--format", "tpm", "--nonce", "00", "--report-data", "00"],
        ["--format", "tpm", "--nonce", "xy"],
        ["--format", "tpm", "--nonce", ""],
        ["--format", "sgx", "--at", "yesterday"],
        ["--format", "sgx", "--at", "2026-07-01T00:00:00"],
        ["--format", "sim"],
        [],
        ["--format", "tpm"],
        ["--format", "azure"],
        ["--format", "sgx", "--endorsements", "missing"],
        ["--format", "sgx", "--endorsements", "garbage"],
    ],
    ids=range(12),
)
def test_arguments_and_files_that_cannot_be_used(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 20, never a trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evidence").write_bytes(b"\x03\x00")
    (tmp_path / "garbage").write_bytes(b"garbage")
    assert run("evidence", *words).exit_code == 20


def _bundle(tmp_path: Path, **changed: object) -> Path:
    path = tmp_path / "bundle.zip"
    path.write_bytes(encode_bundle(bundle(**changed)))
    return path


def test_a_bundle_needs_neither_format_nor_policy(tmp_path: Path) -> None:
    """What it is shows its beginning, not its name. Its own time, unless another is given."""
    path = _bundle(tmp_path).rename(tmp_path / "anything")
    invoke = CliRunner(env={"STRONGROOM_POLICY": None}).invoke
    done = invoke(main, ["appraise", str(path), "--explain"])
    assert done.exit_code == 0, done.output
    for text in ("SIMULATED", "NOT CHECKED  the time: 2026-11-23T12:00:00+00:00", "strongroom/0.1.0",
                 "the bundle's own", *NOT_PROVEN_BUNDLE, *NOT_PROVEN_SIMULATED):  # fmt: skip
        assert text in done.output, text
    late = invoke(main, ["appraise", str(path), "--at", "2027-11-23T12:00:00Z", "--json"])
    document = json.loads(late.stdout)
    assert late.exit_code == 10
    assert {"keyset_expired", "policy_expired"} <= {c["code"] for c in document["checks"]}
    assert document["bundle"]["verified_again_at"] == "2027-11-23T12:00:00+00:00"
    assert invoke(main, ["appraise", str(path), "--policy", "production"]).exit_code == 10


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "sgx"],
        ["--nonce", "00"],
        ["--report-data", "00"],
        ["--endorsements", "bundle.zip"],
        ["--at", "yesterday"],
        ["--policy", "UNSAFE_ANY_MEASUREMENT"],
        ["--policy", "absent"],
    ],
    ids=range(7),
)
def test_what_does_not_go_with_a_bundle(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 20: it has its own; and any measurement is no policy for a server."""
    monkeypatch.chdir(tmp_path)
    path = _bundle(tmp_path)
    done = CliRunner(env={"STRONGROOM_POLICY": None}).invoke(main, ["appraise", str(path), *words])
    assert done.exit_code == 20, done.output


def test_damaged_bundles_and_bundles_without_a_policy_cannot_be_used(tmp_path: Path) -> None:
    """Exit code 20, with the code of what is wrong."""
    whole = encode_bundle(bundle())
    path = tmp_path / "b.zip"
    for data, code in (
        (whole[:-1], "bundle_malformed"),
        (whole + b"x", "bundle_malformed"),
        (whole[:4], "bundle_malformed"),
        (encode_bundle(bundle(policy="")), "policy_empty"),
        (whole + bytes(8 << 20), "input_unreadable"),
    ):
        path.write_bytes(data)
        done = CliRunner(env={"STRONGROOM_POLICY": None}).invoke(main, ["appraise", str(path), "--json"])
        assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (20, code)


def test_what_is_no_bundle_needs_both(tmp_path: Path) -> None:
    """And the message says which is missing."""
    path = tmp_path / "quote.bin"
    path.write_bytes(b"\x03\x00")
    invoke = CliRunner(env={"STRONGROOM_POLICY": None}).invoke
    done = invoke(main, ["appraise", str(path), "--policy", "production"])
    assert done.exit_code == 20 and "--format" in done.output
    done = invoke(main, ["appraise", str(path), "--format", "sgx"])
    assert done.exit_code == 20 and "--policy" in done.output


def test_a_missing_file_and_a_missing_policy(tmp_path: Path) -> None:
    """Unusable, both."""
    assert run(str(tmp_path / "none"), "--format", "sgx").exit_code == 20
    (tmp_path / "evidence").write_bytes(b"\x03\x00")
    assert run(str(tmp_path / "evidence"), "--format", "sgx", policy=str(tmp_path / "p")).exit_code == 20


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"tpm", "azure"}))
def test_garbage_is_refused_with_a_verdict(name: str, tmp_path: Path) -> None:
    """Every format's verifier says what is wrong; nothing passes by being short."""
    (tmp_path / "evidence").write_bytes(b"\x03\x00")
    done = run(str(tmp_path / "evidence"), "--format", name, "--json")
    assert done.exit_code == 10
    assert json.loads(done.stdout)["claims"] is None


def test_every_format_says_what_it_does_not_prove() -> None:
    """`--explain` has something to say for each."""
    assert set(NOT_PROVEN) == set(FORMATS)


def test_no_server_is_verified_by_any_measurement() -> None:
    """The name is refused before anything is contacted."""
    done = CliRunner().invoke(
        main, ["verify", "https://127.0.0.1:1", "--policy", "UNSAFE_ANY_MEASUREMENT", "--json"]
    )
    assert done.exit_code == 20
    assert json.loads(done.stdout)["error"]["code"] == "policy_appraise_only"
