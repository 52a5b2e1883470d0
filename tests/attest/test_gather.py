"""Completing evidence: what is asked for in which order, what is done with what comes, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_amd import Machine, intermediate_der, root_der, roots
from fake_intel import NOW, SGX, Intel
from fake_x509 import ec_key, pem, revocation_list, rsa_key

from strongroom.attest.evidence import Verdict, check
from strongroom.attest.gather import (
    MAX_ROUNDS,
    Document,
    Failure,
    Fetch,
    Fetched,
    Gathered,
    gather,
    with_reason,
)
from strongroom.attest.needs import DcapCollateral, Need, SnpChain, SnpRevocationList, Vcek
from strongroom.errors import Unavailable

MACHINE = Machine()
LEAF = MACHINE.leaf_der  # kept: signatures are not the same twice
CHAIN = pem(intermediate_der("Milan", "VCEK")) + pem(root_der("Milan"))
LIST = revocation_list("ARK-Milan", rsa_key("ark"))
Source = Callable[[Fetch], Fetched]


def drive(machine: Machine, source: Source, *given: bytes) -> tuple[Gathered, list[Fetch]]:
    """The outcome for a report, and what was asked for."""
    endorsements = tuple((f"given{i}", g) for i, g in enumerate(given))
    flow = gather("snp", machine.report, endorsements=endorsements, roots=roots(), now=lambda: NOW)
    asked: list[Fetch] = []
    try:
        request = next(flow)
        while True:
            asked.append(request)
            request = flow.send(source(request))
    except StopIteration as stop:
        return stop.value, asked


HONEST: dict[type, bytes] = {Vcek: LEAF, SnpChain: CHAIN, SnpRevocationList: LIST}
"""The genuine documents by kind of need."""


def source(
    documents: dict[type, bytes], *, cached: dict[type, bytes] | None = None, code: str = "fetch_status"
) -> Source:
    """A source with a cache in front; what neither has fails."""

    def fetch(request: Fetch) -> Fetched:
        found, failed = [], []
        for need in request.needs:
            kept = {} if request.fresh else cached or {}
            if (data := kept.get(type(need), documents.get(type(need)))) is not None:
                found.append(Document(need, data, cached=type(need) in kept))
            else:
                failed.append(Failure(need, code, "the service says no"))
        return Fetched(tuple(found), tuple(failed))

    return fetch


def kinds(fetch: Fetch) -> list[type[Need]]:
    """Which kinds of documents were asked for."""
    return [type(need) for need in fetch.needs]


def test_what_is_at_hand_asks_nothing() -> None:
    """The endorsements come back as they were."""
    found, asked = drive(MACHINE, source({}), LEAF, CHAIN, LIST)
    assert asked == [] and len(found.endorsements) == 3


def test_everything_is_asked_for_at_once() -> None:
    """And put behind what was at hand."""
    found, asked = drive(MACHINE, source(HONEST))
    assert [kinds(a) for a in asked] == [[Vcek, SnpChain, SnpRevocationList]]
    assert {data for _, data in found.endorsements} == {LEAF, CHAIN, LIST}
    assert found.failures == () and not any(a.fresh for a in asked)


def test_a_report_that_names_no_product_takes_two_questions() -> None:
    """The certificate says which chain."""
    machine = Machine(version=2)
    found, asked = drive(machine, source(HONEST))
    assert [kinds(a) for a in asked] == [[Vcek], [SnpChain, SnpRevocationList]]
    assert len(found.endorsements) == 3


def test_what_failed_is_not_asked_for_again() -> None:
    """A failure ends the matter."""
    found, asked = drive(MACHINE, source({Vcek: LEAF}))
    assert len(asked) == 1
    assert [type(f.need) for f in found.failures] == [SnpChain, SnpRevocationList]
    assert len(found.endorsements) == 1


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Vcek, Machine(leaf={"corrupt": True}).leaf_der),
        (Vcek, Machine(key=ec_key("another chip")).leaf_der),
        (SnpChain, pem(intermediate_der("Milan", "VCEK"))),
        (SnpChain, pem(intermediate_der("Genoa", "VCEK")) + pem(root_der("Genoa"))),
        (SnpRevocationList, revocation_list("ARK-Milan", rsa_key("mallory"))),
    ],
    ids=range(5),
)
def test_what_a_cache_has_wrong_is_asked_for_at_its_source(kind: type[Need], wrong: bytes) -> None:
    """Once, and the wrong one is dropped: it would be refused with the evidence."""
    found, asked = drive(MACHINE, source(HONEST, cached={kind: wrong}))
    assert [(a.fresh, kinds(a)) for a in asked[1:]] == [(True, [kind])]
    given = {data for _, data in found.endorsements}
    assert wrong not in given and HONEST[kind] in given


def test_a_wrong_document_from_its_source_is_left_to_the_verifier() -> None:
    """It says what is wrong with it."""
    forged = Machine(leaf={"corrupt": True}).leaf_der
    found, asked = drive(MACHINE, source(HONEST | {Vcek: forged}))
    assert len(asked) == 1 and forged in {data for _, data in found.endorsements}


def test_a_wrong_document_in_a_cache_whose_source_is_silent_is_dropped() -> None:
    """And the failure is told."""
    forged = Machine(leaf={"corrupt": True}).leaf_der
    documents = {SnpChain: CHAIN, SnpRevocationList: LIST}
    found, _ = drive(MACHINE, source(documents, cached={Vcek: forged}, code="fetch_late"))
    assert forged not in {data for _, data in found.endorsements}
    assert [(type(f.need), f.code) for f in found.failures] == [(Vcek, "fetch_late")]


def test_a_source_that_never_ends_is_left() -> None:
    """Answers that come to nothing, or that say they are out of a cache for ever, end with the rounds."""
    _, asked = drive(MACHINE, lambda request: Fetched((), ()))
    assert len(asked) == MAX_ROUNDS
    forged = Machine(leaf={"corrupt": True}).leaf_der

    def stubborn(request: Fetch) -> Fetched:
        data = {Vcek: forged, SnpChain: CHAIN, SnpRevocationList: LIST}
        return Fetched(tuple(Document(n, data[type(n)], cached=True) for n in request.needs), ())

    _, asked = drive(MACHINE, stubborn)
    assert len(asked) == MAX_ROUNDS


def test_documents_that_nobody_asked_for_are_left_out() -> None:
    """A source gives what was asked, or nothing."""
    other = DcapCollateral("sgx", bytes(6), "platform")

    def generous(request: Fetch) -> Fetched:
        genuine = source(HONEST)(request)
        extra = (Document(other, SGX.bundle, cached=False),)
        return Fetched(genuine.documents + extra, (Failure(other, "fetch_late", ""),))

    found, _ = drive(MACHINE, generous)
    assert len(found.endorsements) == 3 and found.failures == ()


def test_collateral_that_ran_out_is_renewed() -> None:
    """The newer bundle beside the old one, whichever counts for more is the verifier's matter."""
    old = Intel(tcb_info={"nextUpdate": "2026-11-23T11:00:00Z"})
    flow = gather("sgx", SGX.quote, endorsements=(("old", old.bundle),), roots=SGX.roots, now=lambda: NOW)
    request = next(flow)
    with pytest.raises(StopIteration) as stop:
        flow.send(Fetched((Document(request.needs[0], SGX.bundle, cached=False),), ()))
    assert [d for _, d in stop.value.value.endorsements] == [old.bundle, SGX.bundle]


# --- what a failure says ------------------------------------------------------------------------------------

NEED = DcapCollateral("sgx", bytes(6), "platform")
OPTIONAL = SnpRevocationList("Milan", "VCEK")


def failed(*codes: str, need: Need = NEED, unobtainable: tuple[str, ...] = ()) -> Gathered:
    """Endorsements with these failures."""
    return Gathered((), tuple(Failure(need, c, f"why {c}") for c in codes), unobtainable)


@pytest.mark.parametrize(
    "code", ["collateral_missing", "collateral_expired", "snp_leaf_missing", "chain_incomplete"]
)
def test_silence_of_a_service_is_no_refusal(code: str) -> None:
    """Not now: the evidence may be fine. Silence, slowness, and business alike."""
    for failures in (["fetch_unreachable"], ["fetch_late"], ["fetch_busy"], ["fetch_busy", "fetch_late"]):
        with pytest.raises(Unavailable) as caught:
            failed(*failures).shortfall(code)
        assert caught.value.code == "endorsements_unavailable"
        assert all(f"why {one}" in caught.value.message and one in caught.value.message for one in failures)


@pytest.mark.parametrize(
    "code",
    [
        "fetch_status",
        "fetch_redirect",
        "fetch_encoded",
        "fetch_too_large",
        "fetch_malformed",
        "fetch_mismatch",
        "fetch_offline",
    ],
)
def test_an_answer_that_is_none_adds_its_reason(code: str) -> None:
    """The refusal stays the verifier's."""
    text = failed(code).shortfall("collateral_missing")
    assert text == f"fetching: DCAP collateral for sgx 000000000000 (platform): why {code} ({code})"
    mixed = failed("fetch_late", code).shortfall("collateral_missing")
    assert f"why {code}" in mixed and "why fetch_late" in mixed


def test_a_refusal_for_another_reason_is_left_alone() -> None:
    """Whatever failed: a wrong measurement stays one, and nothing says "later"."""
    for code in (
        "measurement_not_accepted",
        "evidence_signature_invalid",
        "collateral_signature_invalid",
        None,
    ):
        assert failed("fetch_late").shortfall(code) == ""


def test_a_list_that_is_not_to_be_had_is_no_shortfall() -> None:
    """The verifier does without; the verdict says that revocation was not checked."""
    assert failed("fetch_late", need=OPTIONAL).shortfall("snp_leaf_missing") == ""


def test_what_nobody_has_is_said_and_never_later() -> None:
    """A VLEK will not be there in a minute either."""
    assert failed(unobtainable=("nobody has it",)).shortfall("snp_leaf_missing") == "fetching: nobody has it"
    both = failed("fetch_late", unobtainable=("nobody has it",))
    assert "nobody has it" in both.shortfall("snp_leaf_missing")
    assert Gathered(()).shortfall("snp_leaf_missing") == ""


def test_the_reason_stands_in_the_check_that_failed() -> None:
    """Nothing else of a verdict changes."""
    good = check("a", "A", True, expected="x", got="x", code="x")
    bad, worse = (
        check(i, "B", False, expected="x", got="none", code="collateral_missing") for i in ("b", "c")
    )
    verdict = Verdict(False, "sgx", False, (good, bad, worse), "collateral_missing", None, None, "none")
    told = with_reason(verdict, "fetching: no")
    assert [c.got for c in told.checks] == ["x", "none; fetching: no", "none"]
    assert (told.code, told.passed, len(told.failures)) == (verdict.code, False, 2)
