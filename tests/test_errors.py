"""The error tree: one root, stable codes, families that say whose fault."""

from __future__ import annotations

import pytest

from strongroom import errors


def _tree() -> list[type[errors.Error]]:
    """The classes of errors.py. One lives elsewhere: ratls.LeafUnknown, which must be an ssl.SSLError as well."""
    return [c for c in errors.walk() if c.__module__ == "strongroom.errors"]


def test_only_the_leaf_error_lives_outside_the_tree_file() -> None:
    """Loading every client module adds no error class but ratls.LeafUnknown."""
    import strongroom.attest
    import strongroom.client
    import strongroom.ratls

    assert strongroom.attest and strongroom.client
    assert set(errors.walk()) - set(_tree()) == {strongroom.ratls.LeafUnknown}


def test_every_class_has_a_declared_code_and_a_docstring() -> None:
    """Each class of the tree has its own default code, listed in CODES, and says what it means."""
    classes = _tree()
    assert len({c.code for c in classes}) == len(classes)
    for kind in classes:
        assert kind.code in errors.CODES
        assert kind.__doc__


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    """The drawing in the docstring names every class and nothing else."""
    import re

    drawn = re.findall(r"^    [│├└─ ]*([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    assert set(drawn) == {c.__name__ for c in _tree()}


def test_an_undeclared_code_cannot_be_raised() -> None:
    """A typo in a code is a fault at the call site, not a new code."""
    with pytest.raises(AssertionError):
        errors.Refused("x", code="no_such_code")


def test_a_call_site_may_be_more_precise() -> None:
    """`code=` narrows the class's default; the message stays a sentence."""
    error = errors.Unavailable("try later", code="unavailable", retry_after_s=7)
    assert (error.code, error.retry_after_s, error.message) == ("unavailable", 7, "try later")


def test_codes_are_words() -> None:
    """Codes are lower-case identifiers, and each has a line that ends with a full stop."""
    for code, text in errors.CODES.items():
        assert code.replace("_", "").isalnum() and code == code.lower(), code
        assert text.endswith("."), code
