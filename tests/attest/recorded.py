"""The genuine evidence of tests/vectors/genuine/sources.json, as calls of `strongroom appraise` with their outcomes.

The samples themselves are not in the repository: they lie beside some checkouts, or where STRONGROOM_EVIDENCE says, or
where `make evidence` fetched them to.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import REPOSITORY, SHARED

SOURCES: dict[str, Any] = json.loads(
    (REPOSITORY / "tests" / "vectors" / "genuine" / "sources.json").read_text(encoding="utf-8")
)
ABSENT = "not exercised here: recorded evidence is not beside this checkout"


def _folder() -> Path:
    asked = os.environ.get("STRONGROOM_EVIDENCE")
    places = [Path(asked)] if asked else [SHARED / "evidence", REPOSITORY / ".evidence"]
    return next((place for place in places if place.is_dir()), places[0])


EVIDENCE = _folder()


@dataclass(frozen=True)
class Case:
    """One appraisal by UNSAFE_ANY_MEASUREMENT. `code`: of a failure that must be there, "" where all must pass;
    `status`, `measurement`: what the claims must say, "" where that is not written down.
    """

    name: str
    format: str
    path: Path
    endorsements: tuple[Path, ...]
    at: str
    code: str
    status: str = ""
    measurement: str = ""

    def arguments(self) -> list[str]:
        """For the command line."""
        stapled = [word for path in self.endorsements for word in ("--endorsements", str(path))]
        return [str(self.path), "--format", self.format, "--at", self.at, *stapled]

    @property
    def present(self) -> bool:
        """Whether its samples are there."""
        return all(path.exists() for path in (self.path, *self.endorsements))


def _case(said: dict[str, Any]) -> Case:
    assert said["exit"] == (10 if said["code"] else 0), said["name"]
    return Case(
        name=said["name"],
        format=said["format"],
        path=EVIDENCE / said["evidence"],
        endorsements=tuple(EVIDENCE / name for name in said["endorsements"]),
        at=said["at"],
        code=said["code"] or "",
        status=said["tcb_status"] or "",
        measurement=said["measurement"] or "",
    )


EVERY = [_case(said) for said in SOURCES["cases"]]
CASES = [case for case in EVERY if case.present or not EVIDENCE.is_dir()]
"""Those that can run; all of them, to be skipped by name, where there is no recorded evidence at all."""
