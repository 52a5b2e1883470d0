"""A server with test vendors' roots and an emulated TEE's paths, in a process of its own:

    patched.py serve WORLD --config FILE
    patched.py reseal WORLD --from URL --files DIR --token FILE --config FILE

WORLD is a JSON file: {"format": ..., "roots": [...], "paths": {...}}. There is no setting for any of it, and must be
none: these processes differ from real ones by the lines that are put into them here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from strongroom import config, launch, platforms

BEFORE = "from strongroom import errors, boot\n"
AFTER = "from strongroom import server\n"


def serve(world: dict[str, object], arguments: list[str]) -> None:
    """`strongroom serve` with the launcher's own bootstrap, and two lines in it."""
    path = Path(arguments[arguments.index("--config") + 1])
    words = dict(zip(arguments[::2], arguments[1::2], strict=True))
    errand = {name[2:]: value for name, value in words.items() if name != "--config"}
    where = {name: Path(path) for name, path in world["paths"].items()}  # type: ignore[attr-defined]
    platforms.PATHS = platforms.Paths(**where)  # type: ignore[misc]
    prepared = launch.command(path, variables=config.environment(), base=Path.cwd(), errand=errand)
    words = list(prepared.arguments)
    at = words.index("-c") + 1
    code = words[at]
    assert code.count(BEFORE) == code.count(AFTER) == 1
    named = f"{{name: Path(path) for name, path in {world['paths']!r}.items()}}"
    paths = f"from strongroom import platforms\nplatforms.PATHS = platforms.Paths(**{named})\n"
    pin = f"verifiers.PINS[{world['format']!r}] = tuple({world['roots']!r})\n"
    pins = "from strongroom.attest import verifiers\n" + pin
    words[at] = code.replace(BEFORE, paths + BEFORE).replace(AFTER, pins + AFTER)
    os.chdir(prepared.folder)
    os.execve(words[0], words, dict(prepared.environment))


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[2]).read_text())
    assert sys.argv[1] in ("serve", "reseal")
    serve(read, sys.argv[3:])
