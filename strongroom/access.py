"""Who may do what with a model: one pure function, called before anything is decrypted (docs/spec/channel.md
part 5).

Rules
  - A name belongs to the principal that first took it. Only that one replaces, deletes, loads or unloads it.
  - `private` (the default): only the owner runs and reads it; for everybody else it does not exist.
  - `public`: everybody runs and reads it, with or without a key.
  - Uploads without a key only where the attested configuration says so, and what they upload is public.
    Nobody can be told from anybody there, so whoever may upload without a key may also replace what was
    uploaded without one.
  - Who takes a name learns whether it is taken; nothing else tells a private model from an absent one.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Final, Literal, get_args

from strongroom.errors import AccessRefused, NotFound
from strongroom.tokens import Principal

Action = Literal["run", "read", "replace", "delete", "load", "unload", "create"]
ACTIONS: Final[tuple[str, ...]] = get_args(Action)
ANONYMOUS: Final = None
"""The principal of a caller without a key."""
ANONYMOUS_OWNER: Final = ""
"""The owner of a model that was uploaded without a key."""


class _Token:
    """Shown by `check` alone to make a `Grant`."""


_TOKEN = _Token()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Proof that `check` allowed `action` to `caller` (a principal's id, "" without a key) on a model of
    `owner`.
    """

    action: str
    caller: str
    owner: str
    token: InitVar[_Token]

    def __post_init__(self, token: _Token) -> None:
        if token is not _TOKEN:
            raise TypeError("a Grant is made by strongroom.access.check only")


def not_found() -> NotFound:
    """Returns the one refusal for a model that is absent and for one that this caller may not see."""
    return NotFound("no such model, or not for this caller")


def check(
    action: Action, *, principal: Principal | None, owner: str, access: str, anonymous_upload: bool
) -> Grant:
    """Returns the grant of `action`, or raises.

    `owner`: id of the principal the name belongs to, `ANONYMOUS_OWNER` where it was taken without a key; for
    `create` the id of the caller, since the name is free. `access`: of the model, for `create` and `replace`
    as asked for; whatever is not "public" counts as private. `anonymous_upload`: the attested setting.

    Raises:
        NotFound: `not_found`; see `not_found`.
        AccessRefused: `auth_required`, `not_owner`, `name_taken` or `anonymous_private`.
    """
    caller = principal.id if principal is not None else ANONYMOUS_OWNER
    if action in ("run", "read"):
        if access != "public" and (principal is None or caller != owner):
            raise not_found()
    elif action in ("create", "replace"):
        _check_upload(caller, owner=owner, access=access, anonymous_upload=anonymous_upload)
    elif action in ("delete", "load", "unload"):
        _check_change(caller, owner=owner, access=access, anonymous_upload=anonymous_upload)
    else:
        raise AssertionError(f"unknown action {action!r}")
    return Grant(action=action, caller=caller, owner=owner, token=_TOKEN)


def _check_upload(caller: str, *, owner: str, access: str, anonymous_upload: bool) -> None:
    """May `caller` put a model under a name of `owner`? Says no more about a name than that it is taken."""
    if not caller and not anonymous_upload:
        raise AccessRefused("uploading needs a key", code="auth_required")
    if caller != owner:
        raise AccessRefused("the name belongs to another principal", code="name_taken")
    if not caller and access != "public":
        raise AccessRefused("a model uploaded without a key can only be public", code="anonymous_private")


def _check_change(caller: str, *, owner: str, access: str, anonymous_upload: bool) -> None:
    """May `caller` delete, load or unload a model of `owner`?"""
    if caller != owner:
        if access != "public":
            raise not_found()
        if not caller:
            raise AccessRefused("this needs the owner's key", code="auth_required")
        raise AccessRefused("only the owner may do this", code="not_owner")
    if not caller and not anonymous_upload:
        raise AccessRefused("this needs a key", code="auth_required")
