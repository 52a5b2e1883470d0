"""tests/vectors/genuine/sources.json: complete, well-formed, and in agreement with the samples where they are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import recorded
from recorded import EVERY, EVIDENCE, SOURCES

from strongroom.cli_appraise import FORMATS
from strongroom.codes import CODES

FILES: dict[str, dict[str, Any]] = SOURCES["files"]
needs_recorded = pytest.mark.skipif(not EVIDENCE.is_dir(), reason=recorded.ABSENT)
REFUSALS = {
    "Verification failed: Debug mode is enabled": "quote_debug",
    "Verification failed: Invalid MR service TD": "tdx_service_td",
    "Verification failed: No matching TCB level found": "tcb_level_unknown",
}
"""What dcap-qvl said of a recorded quote, and what we say."""


def _expectations() -> dict[str, dict[str, Any]]:
    return {
        path.parent.relative_to(EVIDENCE).as_posix(): json.loads(path.read_text())
        for path in sorted(EVIDENCE.glob("*/*/expect.json"))
    }


# --- the file alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_sample_says_where_it_came_from(name: str) -> None:
    """Repository, commit, path and licence; or that it is our own, or that it is not known, and why."""
    entry = FILES[name]
    assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) and 0 < entry["size"] < 1 << 20
    sources = entry.get("from", [])
    for source in [sources] if isinstance(sources, str) else sources:
        repository, _, path = source.partition(":")
        said = SOURCES["repositories"][repository]
        assert said["url"] == f"https://github.com/{repository}"
        assert re.fullmatch(r"[0-9a-f]{40}", said["commit"]) and said["licence"]
        assert path and not path.startswith("/") and ".." not in path
    match entry:
        case {"elements": members}:
            assert len(members) == 9 and all(re.fullmatch(r"[0-9a-f]{64}", h) for h in members.values())
        case {"own": text}:
            assert "CC0" in text and not sources
        case {"transform": str(text)}:
            assert text.startswith("unknown: ") and not sources
        case {"transform": steps}:
            assert isinstance(steps, list) and sources


def test_every_repository_is_used() -> None:
    """None is listed that nothing came from."""
    used = {s.partition(":")[0] for e in FILES.values() for s in _list(e.get("from", []))}
    assert used == set(SOURCES["repositories"])


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_every_case_can_be_called() -> None:
    """Formats, codes, times and samples exist; names are unique; a refusal has a code and an acceptance none."""
    names = [case["name"] for case in SOURCES["cases"]]
    assert len(set(names)) == len(names) >= 40
    for case in SOURCES["cases"]:
        assert case["format"] in FORMATS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", case["at"])
        assert (case["exit"], case["code"] is None) in {(0, True), (10, False)}
        assert case["code"] is None or case["code"] in CODES
        assert all(name in FILES for name in case["endorsements"])
        assert any(n == case["evidence"] or n.startswith(f"{case['evidence']}/") for n in FILES)


def test_every_sample_is_used_or_says_why_not() -> None:
    """By a case, or named under `not_appraised`, or of no known origin."""
    used = [prefix for case in SOURCES["cases"] for prefix in (case["evidence"], *case["endorsements"])]
    for name, entry in FILES.items():
        named = any(name == u or name.startswith(f"{u}/") for u in [*used, *SOURCES["not_appraised"]])
        assert named or str(entry.get("transform")).startswith("unknown: "), name


def test_every_format_is_there_with_acceptances_and_refusals() -> None:
    """A table of acceptances alone would prove little."""
    assert {case.format for case in EVERY} == set(FORMATS)
    assert sum(bool(case.code) for case in EVERY) >= 15 and sum(not case.code for case in EVERY) >= 20


# --- against the samples ------------------------------------------------------------------------------------


@needs_recorded
@pytest.mark.parametrize("name", FILES)
def test_the_samples_are_the_files_that_were_written_down(name: str) -> None:
    """Size and SHA-256."""
    path = EVIDENCE / name
    if not path.is_file():
        pytest.skip("not exercised here: this sample is not among the recorded evidence")
    data = path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (FILES[name]["size"], FILES[name]["sha256"])


@needs_recorded
def test_the_list_is_complete() -> None:
    """Every file that a recording names is in the list, with its SHA-256; and no sample that none names."""
    expectations = _expectations()
    if not expectations:
        pytest.skip("not exercised here: the recorded evidence has no expectations beside it")
    named = {
        f"{n}/{file}": digest for n, said in expectations.items() for file, digest in said["files"].items()
    }
    bundles = {p.relative_to(EVIDENCE).as_posix() for p in (EVIDENCE / "dcap-collateral").glob("*.json")}
    assert set(FILES) == set(named) | bundles
    assert {name: FILES[name]["sha256"] for name in named} == named


@needs_recorded
def test_sources_are_the_recorded_ones() -> None:
    """Every source that a recording names is one of the sample's, with repository, commit, path and licence."""
    for sample, said in _expectations().items():
        ours = {s for n, e in FILES.items() if n.startswith(f"{sample}/") for s in _list(e.get("from", []))}
        for source in said["sources"]:
            repository = source["repo"].removeprefix("https://github.com/")
            entry = SOURCES["repositories"][repository]
            assert (source["commit"], source["licence"]) == (entry["commit"], entry["licence"])
            assert f"{repository}:{source['path']}" in ours, sample


def _cases_of(sample: str) -> list[dict[str, Any]]:
    of = (sample, f"{sample}/")
    return [c for c in SOURCES["cases"] if c["evidence"] == of[0] or c["evidence"].startswith(of[1])]


@needs_recorded
def test_outcomes_of_quotes_are_the_recorded_ones() -> None:
    """For each quote with each of its bundles: time, status or reason, measurement."""
    for sample, said in _expectations().items():
        expect, cases = said["expect"], _cases_of(sample)
        if not sample.startswith(("sgx/", "tdx/")):
            continue
        if "bundle_used" in expect:
            assert [(c["code"], c["at"]) for c in cases] == [("pck_chain_invalid", said["as_of"])]
            assert cases[0]["endorsements"] == [f"dcap-collateral/{expect['bundle_used']}.json"]
            continue
        wanted = {
            f"dcap-collateral/{bundle}.json": (
                result["as_of"], result.get("status"), REFUSALS[result["error"]] if "error" in result else None,
                expect["measurement"],
            )
            for bundle, result in expect["dcap_qvl_0.7.0"].items()
        }  # fmt: skip
        ours = {c["endorsements"][0]: (c["at"], c["tcb_status"], c["code"], c["measurement"]) for c in cases}
        assert ours == wanted, sample


@needs_recorded
def test_outcomes_of_the_others_are_the_recorded_ones() -> None:
    """Accepted where the recording says valid; refused for debug mode, a forged certificate or signature, or an unnamed
    root where it says so.
    """
    for sample, said in _expectations().items():
        expect, cases = said["expect"], _cases_of(sample)
        if sample.startswith(("sgx/", "tdx/", "nvidia-gpu/", "snp/roots-")):
            continue
        assert cases, sample
        if sample.startswith(("snp/", "nitro/")):
            for case in cases:
                forged = any("neg_" in name for name in case["endorsements"])
                code = "chain_signature_invalid" if forged else "debug_platform" if expect["debug"] else None
                measured = None if forged else expect.get("measurement") or expect["pcr0"]
                assert (case["code"], case["measurement"], case["at"]) == (code, measured, said["as_of"])
        elif sample.startswith("azure/"):
            late = [c for c in cases if c["code"] is None]
            assert len(late) == 1 and "valid:" in expect["outcome"]
            early = [c for c in cases if c["code"]]
            assert [c["code"] for c in early] == (["collateral_from_future"] if "bundle" in expect else [])
            assert said["as_of"] == (early or late)[0]["at"]
        elif sample.startswith("ra-tls/"):
            code = "ratls_signature_invalid" if "INVALID" in expect["outcome"] else "quote_debug"
            assert [(c["code"], c["at"]) for c in cases] == [(code, said["as_of"])]
        else:
            assert [c["code"] for c in cases] == ["root_not_accepted"], sample


def test_the_readme_beside_it_explains_every_transform() -> None:
    """Each word that is used."""
    text = (Path(recorded.REPOSITORY) / "tests" / "vectors" / "genuine" / "README.md").read_text()
    steps = [s for e in FILES.values() if isinstance(e.get("transform"), list) for s in e["transform"]]
    for word in {s if isinstance(s, str) else s[0] for s in steps} | {"elements", "own", "unknown"}:
        assert f"`{word}`" in text, word
