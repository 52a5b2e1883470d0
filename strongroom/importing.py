"""Only measured files become code: the first import hook of a server's process.

Without it, whatever lies in a folder of the path under a name that some package tries to import ("use uvloop
if it is there") would run inside the server and be in no measurement.

Rules
  - The hook is there before anything but the standard library and this file was imported. Looking afterwards
    would be too late: code that has run can have hidden itself, and many packages try names that are there on
    other platforms only (`msvcrt`, `org`).
  - A module of the standard library comes from the interpreter's own folders, anything else from the folders
    of the dependencies or from inside its package; never the other way round.
  - Until the measurement is made, only what is needed to make it may be imported (`FIRST`); it is looked at
    once the measurement is there.
  - From then on a module is loaded only from a file that was measured. A name that leads anywhere else does
    not exist, as if it were not installed.
  - The bytes that are compiled are the bytes that were measured: many modules are imported at their first
    use, when whoever may write to the disk has had hours. A changed file is an ImportError. Byte code beside
    or instead of a source file is never looked for.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from strongroom.errors import Failure

FIRST: Final = frozenset({"strongroom", "cryptography", "rfc8785", "_cffi_backend"})
"""What measuring needs besides the standard library."""


class MeasuredImports(MetaPathFinder):
    """Finds modules for everybody; what it does not find is not found."""

    def __init__(self, *, standard: Sequence[str], dependencies: Sequence[str], package: Path) -> None:
        """`standard`: the interpreter's own path; `package`: the folder of `strongroom` itself."""
        self._standard = list(standard)
        self._dependencies = list(dependencies)
        self._bases = [Path(folder) for folder in (*dependencies, str(package.parent))]
        self._own_folders = [Path(folder) for folder in standard]
        self._measured: Mapping[str, str] | None = None
        self._seen: dict[str, str] = {}  # file -> digest of the bytes that were loaded before the measurement

    def install(self) -> None:
        """Becomes the only finder of files; built-in and frozen modules keep theirs."""
        own = [finder for finder in sys.meta_path if finder is not PathFinder]
        sys.meta_path[:] = [*own, self]

    def admit(self, files: Mapping[str, str]) -> None:
        """From now on these files may be loaded, and these bytes of them: path (relative to the folders of the
        path, with slashes) -> SHA-256 (hex).

        Raises:
            Failure: a module that is already loaded came neither from one of them nor from the interpreter, or
                its file was changed since (code `start_refused`).
        """
        self._measured = files
        for name, module in list(sys.modules.items()):
            if not self._may_stay(name, module):
                raise Failure(f"{name} was loaded from a file that is not measured", code="start_refused")
        for origin, digest in self._seen.items():
            if self._measured_digest(origin) != digest:
                raise Failure(f"{Path(origin).name} was changed before it was measured", code="start_refused")

    find_distributions = staticmethod(PathFinder.find_distributions)
    """Metadata of installed packages (`importlib.metadata`) is looked up as ever: it is not code."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's specification, or None: then it does not exist."""
        top = fullname.partition(".")[0]
        if _is_standard(top):
            return PathFinder.find_spec(fullname, self._standard if path is None else path, target)
        if self._measured is None and top not in FIRST:
            return None
        spec = PathFinder.find_spec(fullname, self._dependencies if path is None else path, target)
        if spec is None or (self._measured is not None and not self._is_measured(spec)):
            return None
        return self._tied(spec)

    def _tied(self, spec: ModuleSpec) -> ModuleSpec:
        """The specification of a module that is loaded from the measured bytes or not at all."""
        if spec.origin is None:
            return spec
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _TiedSource(spec.name, spec.origin, self._see)
        else:  # read by others, who want a path: looked at just before
            with Path(spec.origin).open("rb") as file:
                self._see(spec.origin, hashlib.file_digest(file, "sha256").hexdigest())
        return spec

    def _see(self, origin: str, digest: str) -> None:
        if self._measured is None:
            self._seen[origin] = digest
        elif self._measured_digest(origin) != digest:
            raise ImportError("the module's file is no longer the one that was measured", path=origin)

    def _may_stay(self, name: str, module: ModuleType) -> bool:
        """Whether a loaded module is the interpreter's own or came from a measured file."""
        spec = getattr(module, "__spec__", None)
        origin = spec.origin if spec is not None else None
        # A module that took another's place in `sys.modules` may have a file and no specification.
        origin = origin or getattr(module, "__file__", None)
        if origin is None:  # no file: a namespace, or made in memory by a module that has one
            return True
        if origin in ("built-in", "frozen") or self._measured_digest(origin) is not None:
            return True
        return _is_standard(name.partition(".")[0]) and self._is_interpreters(Path(origin))

    def _is_interpreters(self, file: Path) -> bool:
        """In the interpreter's own folders and not in the dependencies', whichever lies inside the other."""

        def depth(folders: list[Path]) -> int:
            return max((len(folder.parts) for folder in folders if file.is_relative_to(folder)), default=0)

        return depth(self._own_folders) > depth(self._bases)

    def _is_measured(self, spec: ModuleSpec) -> bool:
        if spec.origin is None:
            return spec.loader is None or spec.submodule_search_locations is not None  # a folder has no code
        return self._measured_digest(spec.origin) is not None

    def _measured_digest(self, origin: str) -> str | None:
        for base in self._bases:
            try:
                name = Path(origin).relative_to(base).as_posix()
            except ValueError:
                continue
            return (self._measured or {}).get(name)
        return None


class _TiedSource(SourceFileLoader):
    """Compiles the very bytes that `see` was told the digest of; byte code is neither read nor written."""

    def __init__(self, fullname: str, path: str, see: Callable[[str, str], None]) -> None:
        super().__init__(fullname, path)
        self._see = see

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, or ImportError where its file was changed."""
        data = self.get_data(self.path)
        self._see(self.path, hashlib.sha256(data).hexdigest())
        code: CodeType = self.source_to_code(data, self.path)
        return code


def _is_standard(top: str) -> bool:
    # `sysconfig` keeps its data in a module named after the platform, which that list leaves out.
    return top in sys.stdlib_module_names or top.startswith("_sysconfigdata_")
