"""The names that models may have."""

from __future__ import annotations

import re
from typing import Final

from strongroom.errors import InvalidRequest

_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


def check_name(name: str, *, length: int) -> None:
    """Returns if `name` can name a model.

    Raises:
        InvalidRequest: other characters than letters, digits, `.`, `_`, `-`, nothing but dots, or more than
            `length` characters (code `model_name_invalid`).
    """
    if len(name) > length or _NAME.fullmatch(name) is None or not name.strip("."):
        raise InvalidRequest(
            f"a model's name has 1 to {length} letters, digits, '.', '_' or '-'", code="model_name_invalid"
        )
