"""Who may do what with a model: the whole table, and what it must not tell."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from strongroom.access import ACTIONS, ANONYMOUS, ANONYMOUS_OWNER, Grant, check, not_found
from strongroom.errors import CODES, AccessRefused, Error, NotFound
from strongroom.tokens import Principal

OWNER = Principal(id="a" * 64)
OTHER = Principal(id="b" * 64)
CHANGES = ("delete", "load", "unload")

# (action, caller, owner, access, anonymous_upload) -> code, None where it is granted. The caller is "owner",
# "other" or "nobody"; the owner "owner" or "nobody".
TABLE: dict[tuple[str, str, str, str, bool], str | None] = {}
for _open in (False, True):
    for _action in ("run", "read"):
        for _caller in ("owner", "other", "nobody"):
            TABLE[_action, _caller, "owner", "public", _open] = None
            TABLE[_action, _caller, "nobody", "public", _open] = None
            TABLE[_action, _caller, "nobody", "private", _open] = "not_found"
            TABLE[_action, _caller, "owner", "private", _open] = None if _caller == "owner" else "not_found"
    for _action in CHANGES:
        for _access in ("public", "private"):
            TABLE[_action, "owner", "owner", _access, _open] = None
            for _caller in ("owner", "other"):
                TABLE[_action, _caller, "nobody", _access, _open] = (
                    "not_owner" if _access == "public" else "not_found"
                )
            TABLE[_action, "nobody", "nobody", _access, _open] = None if _open else "auth_required"
        TABLE[_action, "other", "owner", "public", _open] = "not_owner"
        TABLE[_action, "other", "owner", "private", _open] = "not_found"
        TABLE[_action, "nobody", "owner", "public", _open] = "auth_required"
        TABLE[_action, "nobody", "owner", "private", _open] = "not_found"
    for _action, _access in itertools.product(("create", "replace"), ("public", "private")):
        TABLE[_action, "owner", "owner", _access, _open] = None
        TABLE[_action, "other", "owner", _access, _open] = "name_taken"
        TABLE[_action, "owner", "nobody", _access, _open] = "name_taken"
        TABLE[_action, "other", "nobody", _access, _open] = "name_taken"
        TABLE[_action, "nobody", "owner", _access, _open] = "name_taken" if _open else "auth_required"
        TABLE[_action, "nobody", "nobody", _access, _open] = (
            "auth_required" if not _open else None if _access == "public" else "anonymous_private"
        )

CALLERS = {"owner": OWNER, "other": OTHER, "nobody": ANONYMOUS}
OWNERS = {"owner": OWNER.id, "nobody": ANONYMOUS_OWNER}


def test_the_table_is_complete() -> None:
    """Every combination has a row, and there are more refusals than grants."""
    assert set(TABLE) == set(
        itertools.product(ACTIONS, CALLERS, OWNERS, ("public", "private"), (False, True))
    )
    assert sum(code is not None for code in TABLE.values()) > sum(code is None for code in TABLE.values())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row)))
def test_each_combination(row: tuple[str, str, str, str, bool]) -> None:
    """The row's code, or a grant that says what it grants."""
    action, caller, owner, access, anonymous_upload = row
    code = TABLE[row]
    arguments = {
        "principal": CALLERS[caller],
        "owner": OWNERS[owner],
        "access": access,
        "anonymous_upload": anonymous_upload,
    }
    if code is None:
        grant = check(action, **arguments)  # type: ignore[arg-type]
        assert (grant.action, grant.owner) == (action, OWNERS[owner])
        assert grant.caller == (CALLERS[caller].id if CALLERS[caller] else "")  # type: ignore[union-attr]
    else:
        with pytest.raises(Error) as caught:
            check(action, **arguments)  # type: ignore[arg-type]
        assert caught.value.code == code and code in CODES
        assert isinstance(caught.value, NotFound if code == "not_found" else AccessRefused)


def test_a_private_model_looks_like_none() -> None:
    """Same type, code and words as for a name that nobody took."""
    with pytest.raises(NotFound) as caught:
        check("run", principal=OTHER, owner=OWNER.id, access="private", anonymous_upload=True)
    absent = not_found()
    assert (caught.value.code, caught.value.message) == (absent.code, absent.message)
    assert OWNER.id not in caught.value.message


def test_an_access_that_nobody_knows_is_private() -> None:
    """A value from a newer version, or none at all, opens nothing."""
    for access in ("", "PUBLIC", "everyone"):
        with pytest.raises(NotFound):
            check("run", principal=OTHER, owner=OWNER.id, access=access, anonymous_upload=True)


def test_a_caller_without_a_key_is_not_the_owner_of_private_anonymous_models() -> None:
    """The empty id matches the empty owner only where the model is public."""
    with pytest.raises(NotFound):
        check("run", principal=None, owner="", access="private", anonymous_upload=True)


def test_an_unknown_action_is_a_bug() -> None:
    """And grants nothing."""
    action: Any = "own"
    with pytest.raises(AssertionError):
        check(action, principal=OWNER, owner=OWNER.id, access="public", anonymous_upload=True)


def test_nobody_else_makes_grants() -> None:
    """A grant is a proof."""
    with pytest.raises(TypeError):
        Grant(action="run", caller="", owner="", token=object())  # type: ignore[arg-type]
