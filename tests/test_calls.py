"""Requests and answers as the client sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import calls
from strongroom.calls import Answer
from strongroom.errors import Failure, InvalidRequest, Unavailable
from strongroom.service import check_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import targets_client


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", "..", ".", "....", "a~b", "ä", "a" * 201, "a%2fb", "a?b", "a\n"]
)
def test_names_that_cannot_stand_in_a_path(name: str) -> None:
    """Refused here, so that no server has to interpret them."""
    with pytest.raises(InvalidRequest) as refusal:
        calls.model_path(name, version=None)
    assert refusal.value.code == "model_name_invalid"


@pytest.mark.parametrize("name", ["a", "a" * 128, "a" * 200, "A.b_c-9", "..a", "-"])
def test_names_are_those_that_servers_take(name: str) -> None:
    """The client refuses nothing that a server may be configured to take, and takes nothing that none does."""
    assert calls.model_path(name, version=None) == f"/{name}"
    check_name(name, length=200)
    for refused in ("a~b", "....", "a" * 201):
        with pytest.raises(InvalidRequest):
            check_name(refused, length=200)


@pytest.mark.parametrize("version", ["", "-1", "1.0", "x", "²", "1" * 10])
def test_versions_that_are_none(version: str) -> None:
    """A whole number, in plain digits."""
    with pytest.raises(InvalidRequest) as refusal:
        calls.model_path("m", version=version)
    assert refusal.value.code == "model_version_invalid"


def test_model_ids() -> None:
    """A name, or a name and a version."""
    assert calls.split_model_id("m") == ("m", None)
    assert calls.split_model_id("m/versions/12") == ("m", "12")
    for wrong in ("", "m/", "m/versions/", "m/versions/x", "m/1", "/m", "m/versions/1/infer"):
        with pytest.raises(InvalidRequest):
            calls.split_model_id(wrong)


def test_metadata_goes_there_and_back() -> None:
    """Every member that the server states is in the client's form."""
    info = metadata("m", b"x")
    read = calls.read_metadata(info)
    assert read.id == "m/versions/1"
    assert {k: v for k, v in read.to_json().items() if k != "id"} == info


@pytest.mark.parametrize("member", sorted(metadata("m", b"x")))
@pytest.mark.parametrize("value", [None, 1.5, {"a": 1}, [1]])
def test_metadata_with_a_wrong_member(member: str, value: Any) -> None:
    """Each member is required and typed; what is wrong is a fault of the server."""
    info = metadata("m", b"x")
    if member == "notes" and value == {"a": 1}:
        value = [1]  # notes are any object
    info[member] = value
    with pytest.raises(Failure) as refusal:
        calls.read_metadata(info)
    assert refusal.value.code == "answer_malformed"


def test_retry_after() -> None:
    """Seconds, bounded; anything else is one second."""
    for text, seconds in [("7", 7), ("", 1), ("Wed, 21 Oct", 1), ("999999", 1), ("-3", 1), ("²", 1)]:
        assert calls.retry_after(Answer(503, {"retry-after": text}, b"")) == seconds
    error = calls.error_of(Answer(429, {"retry-after": "7"}, b""))
    assert isinstance(error, Unavailable) and error.retry_after_s == 7


def test_an_error_without_a_problem_document() -> None:
    """Still an error, with the family's code."""
    for body in (b"", b"<html>", b"[]", b'{"code": 1}', b'{"detail": "d", "code": "UPPER"}', b"[" * 100000):
        assert calls.error_of(Answer(404, {}, body)).code == "not_found"


def test_a_long_explanation_is_cut_and_cleaned() -> None:
    """A server's words cannot fill or steer a terminal."""
    body = json.dumps({"detail": "\x1b]0;title\x07" + "x" * 10_000, "code": "not_found"}).encode()
    message = calls.error_of(Answer(404, {}, body)).message
    assert len(message) <= calls.MAX_DETAIL and message.isprintable()


@pytest.mark.parametrize("target", ["fuzz_client_answers", "fuzz_client_inputs", "fuzz_client_urls"])
@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=400))
def test_fuzz(target: str, data: bytes) -> None:
    """A value or one of our errors, nothing else."""
    getattr(targets_client, target)(data)


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(metadata("m", b""))), inner)
        ),
        max_leaves=12,
    )
)
def test_fuzz_metadata(value: Any) -> None:
    """A value or one of our errors, also for JSON that is nearly right."""
    targets_client.fuzz_client_answers(json.dumps(value).encode())
    targets_client.fuzz_client_answers(
        json.dumps({"models": [{**metadata("m", b""), "inputs": value}]}).encode()
    )
