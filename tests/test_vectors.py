"""The published conformance vectors (tests/vectors/README.md): each gives exactly its outcome, by the library and by
the command, and every check that exists refuses one of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

sys.path.extend(str(Path(__file__).resolve().parent / name) for name in ("vectors", ".", "attest"))

import generate
from vector_harness import Case, Outcome, case_ids, load, run, trusting

from strongroom.attest import azure, dcap, nitro, ratls_evidence, sim, snp, tpm, x509
from strongroom.attest.collateral import STATUSES
from strongroom.attest.entries import ENTRIES
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.policy import parse_policy
from strongroom.attest.releases import is_manifest
from strongroom.attest.requirements import Rule
from strongroom.attest.verifiers import PINS, is_collateral
from strongroom.cli import main
from strongroom.cli_appraise import FORMATS
from strongroom.errors import CODES, MalformedInput

pytestmark = pytest.mark.slow  # 1106 vectors, each through the library and many through the command

HERE = Path(__file__).resolve().parent
VECTORS = HERE / "vectors"
IDS = case_ids()
CASES = {case_id: load(case_id) for case_id in IDS}
PRESENT = functools.cache(generate.present)
APPRAISALS = [i for i in IDS if CASES[i]["kind"] == "appraisal" and CASES[i]["format"] in FORMATS]


@functools.cache
def outcome_of(case_id: str) -> Outcome:
    """What this verifier makes of a vector; each runs once for all tests."""
    return run(CASES[case_id])


def schema(name: str) -> Any:
    """A validator of the published schema."""
    document = json.loads((VECTORS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


CASE, VERDICT = schema("case"), schema("verdict")
SHAPES: set[tuple[str, str | None]] = set()
"""Format and code of printed verdicts that were found to be of their schema."""


@pytest.mark.parametrize("case_id", IDS)
def test_the_vector_gives_exactly_its_outcome(case_id: str) -> None:
    """Verdict, code, every check that was made and failed (no other, none missing), and the claims that it states."""
    expected, found = CASES[case_id].expected, outcome_of(case_id)
    got = {"verdict": found.verdict, "code": found.code, "failed_checks": list(found.failed)}
    assert got == {name: expected[name] for name in got}
    claims = (found.document or {}).get("claims") or {}
    assert claims.get("tcb_status") == expected["tcb_status"]
    wanted = dict(expected["claims"])
    details = wanted.pop("details", {})
    assert {name: claims[name] for name in wanted} == wanted
    assert {name: claims["details"][name] for name in details} == details
    # What could not be made is no excuse: something else failed, or nothing could be compared at all.
    assert found.failed or found.verdict != "refused" or found.code in {"report_data_mismatch"}


def test_every_case_is_of_its_schema() -> None:
    """Each `case.json`; it names the folder that it lies in, roots that are its certificates', and codes that exist."""
    for case_id, case in CASES.items():
        CASE.validate(dict(case.members))
        assert case["id"] == case_id
        assert case.expected["code"] is None or case.expected["code"] in CODES, case_id
        assert (HERE.parent / case["spec"].partition(" ")[0]).is_file(), case_id
        named = [digest for digests in case["roots"].values() for digest in digests]
        assert all(hashlib.sha256(case.read(name)).hexdigest() in named for name in case["anchors"]), case_id


def test_every_refusal_has_a_genuine_twin() -> None:
    """Of the same folder, and accepted: what is refused is refused for what is wrong in it."""
    for case_id, case in CASES.items():
        if twin := case["twin"]:
            assert twin.partition("/")[0] == case_id.partition("/")[0]
            assert outcome_of(twin).verdict == "accepted", case_id


def command_takes(case: Case) -> bool:
    """Whether the command takes the vector's files and words as they are. Those that a person hands in it refuses as
    unusable, before anything is verified, where the library records a check: files that are neither bundles,
    certificates nor lists; an empty value asked for; a nonce where the format has no place for one.
    """
    asked = case["asked"] or {}
    if "" in asked.values() or ("nonce" in asked and case["format"] not in ("nitro", "tpm", "azure")):
        return False
    return all(_is_document(case.read(name)) for name in case["endorsements"])


def _is_document(data: bytes) -> bool:
    try:
        return (
            is_collateral(data)
            or is_manifest(data)
            or is_event_log(data)
            or not x509.sort_documents((("", data),)).others
        )
    except MalformedInput:
        return False


@pytest.mark.parametrize("folder", generate.FOLDERS)
def test_the_command_agrees(folder: str) -> None:
    """`strongroom appraise`: the exit code, and the document that it prints, which is of its schema."""
    mine = [i for i in APPRAISALS if i.startswith(f"{folder}/")]
    for case_id in mine:
        case, found = CASES[case_id], outcome_of(case_id)
        done = appraise(case)
        printed = json.loads(done.stdout)
        assert difference(case, found, done.exit_code, printed) == "", case_id
        if (shape := (case["format"], found.code)) not in SHAPES:  # one of each kind: it takes its time
            VERDICT.validate(printed)
            SHAPES.add(shape)
    assert mine or folder in ("sim", "connection")


def appraise(case: Case) -> Result:
    """The command, in this process, under the vector's roots."""
    stated, evidence = case["policy"], case.folder / case["evidence"]
    words = ["appraise", str(evidence), "--format", case["format"], "--at", case["at"], "--json"]
    words += ["--policy", str(case.folder / stated["file"]) if "file" in stated else stated["profile"]]
    for name in case["endorsements"]:
        words += ["--endorsements", str(case.folder / name)]
    for name, value in (case["asked"] or {}).items():
        words += [f"--{name.replace('_', '-')}", value]
    with trusting(case["roots"]):
        return CliRunner().invoke(main, words)


def difference(case: Case, found: Outcome, exit_code: int, printed: dict[str, Any]) -> str:
    """In what the command differs from what is expected and was found, "" if in nothing."""
    expected = case.expected["exit"] if command_takes(case) else 20
    if exit_code != expected:
        return f"exit code {exit_code}, not {expected}"
    if not command_takes(case):
        return ""
    if found.document is None:
        return "" if printed["error"]["code"] == found.code else "another code"
    # What nobody asked to be checked is said in the command's own words.
    return "" if printed == found.document | {"not_checked": printed["not_checked"]} else "another document"


def test_no_vector_is_accepted_without_its_roots() -> None:
    """With the vendors' own pins, and for TPMs with none: the test roots are nobody's but this test's."""
    for case_id, case in CASES.items():
        if case.expected["verdict"] == "accepted" and case["roots"]:
            found = run(case, roots={})
            assert (found.verdict, found.code) == ("refused", "root_not_accepted"), case_id
    pinned = {"sgx": dcap.PINNED_ROOTS, "snp": snp.PINNED_ROOTS, "nitro": nitro.PINNED_ROOTS}
    assert {name: PINS[name] for name in pinned} == pinned and "tpm" not in PINS


# --- what the vectors cover ---

NO_VECTOR = {
    "dcap.second": "fails beside other checks only: the two evaluations agree on everything that a vendor could sign",
    "security.admission": "has one known value, which every policy accepts",
    "security.logging": "has one known value, which every policy accepts",
}
"""Checks that no vector is refused by, and why."""


def known_checks() -> set[str]:
    """The ids of every check that an examiner, a policy's rule or the verification itself can record."""
    tables = (dcap._CHECKS, azure._TABLE, tpm._TABLE, nitro._CHECKS, ratls_evidence._CHECKS, sim._CHECKS)
    found = {i for table in tables for i in table}
    found |= {i for i in snp._CHECKS if i != "snp.chain"} | {f"snp.chain.{i}" for i in x509._CHECKS}
    found |= {rule.ID for rule in Rule.__subclasses__() if hasattr(rule, "ID")}
    source = (HERE.parent / "strongroom" / "attest" / "__init__.py").read_text(encoding="utf-8")
    found |= set(re.findall(r'"((?:evidence|policy|keyset|channel)\.[a-z_]+)"', source))
    for case_id in IDS:
        found |= {c["id"] for c in (outcome_of(case_id).document or {}).get("checks", ())}
    return {i.removesuffix(".2") for i in found}


def test_every_check_refuses_a_vector() -> None:
    """One vector for each check at least, wrong in that respect; those without are named above, with the reason."""
    first = {CASES[i].expected["failed_checks"][0] for i in IDS if CASES[i].expected["failed_checks"]}
    missing = known_checks() - {i.removesuffix(".2") for i in first}
    # A check that never fails first fails beside another: of Nitro's, the TPM's and certificates' ties.
    beside = {c for i in IDS for c in CASES[i].expected["failed_checks"]}
    assert missing - beside == NO_VECTOR.keys() - {"dcap.second"}
    assert "dcap.second" in missing and len(known_checks()) > 100


def test_every_member_of_every_entry_is_met_and_missed() -> None:
    """Each member that an entry of a format can have stands in an accepted vector's policy; each check that those
    policies make refuses a vector, of those that formats share one.
    """
    stated: dict[str, set[str]] = {name: set() for name in ENTRIES}
    made = set[str]()
    for case_id in IDS:
        case = CASES[case_id]
        if case.expected["verdict"] == "accepted" and "file" in case["policy"]:
            text = case.read(case["policy"]["file"]).decode()
            for name, entries in tomllib.loads(text).items():
                for entry in entries if isinstance(entries, list) else ():
                    stated[f"{name}-{entry['tee']}" if name == "azure" else name] |= entry.keys()
            made |= {i for requirement in parse_policy(text).requirements for i in requirement.ids()}
    unsafe = {"unsafe_accept_debug", "unsafe_accept_migration"}
    for name, groups in ENTRIES.items():
        # Releases, an end and a look at revocation lists are the same rules in every format that has them.
        shared = {"release_keys", "release_product", "min_release_svn", "expires", "revocation"}
        members = {m.name for group in groups for m in group.members}
        assert members - stated[name] <= shared, name
        assert stated[name] <= members | unsafe, name
    assert unsafe | shared <= set().union(*stated.values())
    refused = {c for i in IDS for c in CASES[i].expected["failed_checks"]}
    assert made <= refused


def test_every_code_of_the_formats_refuses_a_vector() -> None:
    """Of the codes in the examiners' tables, and those of times, collateral and lists beside them."""
    tables = (
        dcap._CHECKS,
        azure._TABLE,
        tpm._TABLE,
        nitro._CHECKS,
        ratls_evidence._CHECKS,
        sim._CHECKS,
        x509._CHECKS,
    )
    codes = {code for table in tables for _, _, code in table.values()} | {
        c for _, _, c in snp._CHECKS.values() if c
    }
    codes |= {
        "pck_chain_from_future",
        "collateral_malformed",
        "collateral_from_future",
        "event_log_malformed",
    }
    codes |= {
        c
        for c in CODES
        if c.startswith(("revocation_list_not", "revocation_list_sig", "revocation_list_uns"))
    }
    documents = [outcome_of(i).document for i in IDS]
    seen = {
        c["code"]
        for d in documents
        if d
        for c in d["checks"]
        if not c["got"].startswith("could not be checked")
    }
    assert codes - seen == {"dcap_disagreement"}


@pytest.mark.parametrize("folder", ["sgx", "tdx"])
def test_every_status_of_intels_is_there(folder: str) -> None:
    """Whatever Intel can say of a platform, and what evaluation makes of it."""
    statuses = {CASES[i].expected["tcb_status"] for i in IDS if i.startswith(f"{folder}/")} - {None}
    relaunch = {"TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"} if folder == "tdx" else set()
    assert statuses == {*STATUSES, "NotSupported"} | relaunch


@pytest.mark.parametrize(
    "reference",
    [
        "CVE-2026-22696", "CVE-2026-33697", "GHSA-4px3-wj2x-xx47", "GHSA-4r6g-mp48-j2rw", "GHSA-j7r9-wq7m-6hcp",
        "CVE-2022-21449", "CVE-2006-4339", "CVE-2020-0601", "CVE-2026-21218", "CVE-2024-56161", "CVE-2024-21944",
    ],
)  # fmt: skip
def test_what_went_wrong_elsewhere_is_refused_by_number(reference: str) -> None:
    """Past holes of verifiers, and of what they verify."""
    assert any(outcome_of(i).verdict == "refused" for i in IDS if reference in CASES[i]["refs"])


def test_there_are_enough_and_most_are_refusals() -> None:
    """At least 200, at least six of ten refused; and small enough to be copied."""
    refused = [i for i in IDS if CASES[i].expected["verdict"] != "accepted"]
    assert len(IDS) >= 200
    assert len(refused) >= 0.6 * len(IDS)
    assert sum(map(len, PRESENT().values())) <= 4_000_000
    assert {i.partition("/")[0] for i in IDS} == set(generate.FOLDERS)


def test_every_file_belongs_to_a_vector() -> None:
    """Nothing lies there that no vector names."""
    named = {VECTORS / "index.json"}
    for case_id in IDS:
        case = CASES[case_id]
        files = [case["evidence"], *case["endorsements"], *case["anchors"]]
        files += [case["policy"]["file"]] if "file" in case["policy"] else []
        files += (
            [case["channel"][name] for name in ("keyset", "leaf")] if case["kind"] == "connection" else []
        )
        named |= {(case.folder / name).resolve() for name in (*files, "case.json")}
    assert {VECTORS / name for name in PRESENT()} == named


@pytest.mark.slow
def test_the_vectors_are_what_is_made_now() -> None:
    """Regenerated, byte for byte: nothing in them is random, and nobody edited one by hand."""
    assert generate.differences() == []
