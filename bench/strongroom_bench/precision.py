"""`bench precision`: latency and accuracy against precision, on trained networks with real inputs (`examples`).

Each precision takes part twice: as the file that `strongroom quantize` wrote, in bare onnxruntime on one thread, and as
what our server made of the upload in its confined processes, run through our client. Both have to be the same bytes.
The baseline of all ratios is bare onnxruntime on the file as it is.

Rules
  - Answers are those of our server, each asked for with the precision that it has to be in.
  - All that are timed take turns, round by round (`schedule`). Engines are timed by the clock and by processor time,
    which says more on a machine that others use.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

import strongroom
from strongroom_bench import codec
from strongroom_bench.contender import Engine, Unable
from strongroom_bench.examples import Array, Examples, Missing
from strongroom_bench.latency import Say
from strongroom_bench.machine import Cores
from strongroom_bench.ours import OURS, Ours
from strongroom_bench.results import Result
from strongroom_bench.schedule import Measure, Plan, take_turns

BASELINE: Final = "fp32"
PROCESSOR: Final = "processor"
"""The metric of seconds on a core."""
Make = Callable[[Path], Examples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One precision. `name`: in results; `word`: what the server calls it."""

    name: str
    word: str
    calibrated: bool = False


FORMS: Final = (
    Form(name=BASELINE, word="fp32"),
    Form(name="fp16", word="fp16"),
    Form(name="int8", word="int8"),
    Form(name="int8-static", word="int8", calibrated=True),
)


def served(form: Form) -> str:
    """The name in results of a precision in our server."""
    return OURS if form.name == BASELINE else f"{OURS}-{form.name}"


def compare(
    result: Result, networks: Sequence[tuple[str, Make]], ours: Ours, plan: Plan, *, cores: Cores, models: Path,
    say: Say = lambda _line: None,
) -> None:  # fmt: skip
    """Adds rows for every network, precision and place. `models`: where networks that are made are kept."""
    for number, (name, make) in enumerate(networks, 1):
        try:
            examples = make(models)
        except Missing as reason:
            result.miss("all", name, str(reason))
            continue
        say(f"{name} ({examples.workload.size / 1e6:.1f} MB), {number} of {len(networks)}")
        with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as folder:
            trial = _Trial(result, name, examples, ours, cores, Path(folder), say)
            try:
                trial.prepare()
                trial.measure(plan)
            finally:
                trial.close()
    _contenders(result, ours)


class _Trial:
    """One network in all its precisions."""

    def __init__(
        self, result: Result, name: str, examples: Examples, ours: Ours, cores: Cores, folder: Path, say: Say
    ) -> None:
        self._result, self._name, self._examples, self._ours = result, name, examples, ours
        self._cores, self._folder, self._say = cores, folder, say
        self._engines: list[Engine] = []
        self._models: list[strongroom.Model] = []
        self._measures: dict[str, Measure] = {}
        self._busy: dict[str, list[float]] = {}
        self._details: dict[str, dict[str, Any]] = {}
        self._reference: list[dict[str, Array]] = []

    def prepare(self) -> None:
        """Makes every precision in both places. What cannot be made is noted as absent, with the reason."""
        (self._folder / "calibration.npz").write_bytes(codec.npz(self._examples.calibration))
        for form in FORMS:
            try:
                path, digest = self._made(form)
                model = self._uploaded(form)
                if digest not in (None, model.metadata.canonical_sha256):
                    raise Unable("the server made other bytes than `strongroom quantize`")
                self._join(form, path, model)
            except Unable as reason:
                for who in (form.name, served(form)):
                    self._result.miss(who, self._name, str(reason))
                if form.name == BASELINE:
                    return  # there is nothing to compare with

    def _made(self, form: Form) -> tuple[Path, str | None]:
        """The file that `strongroom quantize` writes, and its digest; for fp32 the file as it is."""
        if form.name == BASELINE:
            return self._examples.workload.path, None
        out = self._folder / f"{form.name}.onnx"
        words = [str(self._examples.workload.path), "--precision", form.word, "--out", str(out), "--json"]
        if form.calibrated:
            words += ["--calibrate", str(self._folder / "calibration.npz")]
        command = [sys.executable, "-m", "strongroom", "quantize", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unable(f"strongroom quantize: {_refusal(done.stdout, done.stderr)}")
        return out, str(json.loads(done.stdout)["sha256"])

    def _uploaded(self, form: Form) -> strongroom.Model:
        more: dict[str, Any] = {} if form.name == BASELINE else {"precision": form.word}
        if form.calibrated:
            more["calibration"] = self._examples.calibration
        started = perf_counter()
        try:
            model = self._ours.client.upload_model(
                self._examples.workload.path, name=f"{self._name}-{form.name}", access="private", **more
            )
        except strongroom.Error as error:
            raise Unable(f"the upload: {error.message} [{error.code}]") from error
        self._models.append(model)
        self._say(f"  {form.name}: uploaded and made in {perf_counter() - started:.1f} s")
        return model

    def _join(self, form: Form, path: Path, model: strongroom.Model) -> None:
        engine = Engine(form.name, f"onnxruntime, {form.name}", cores=self._cores, engine="onnxruntime")
        self._engines.append(engine)
        workload = replace(self._examples.workload, path=path, engine_path=path)
        engine.load(workload)
        answers = [self._answer(model, form, request) for request in self._examples.judging]
        self._reference = self._reference or answers
        stated = {"bytes": path.stat().st_size, "sha256": model.metadata.canonical_sha256, "form": form.name}
        detail = stated | self._judged(answers) | {"engine_version": engine.version}
        self._measures |= {form.name: self._engine_once(engine), served(form): self._once(model, form)}
        self._details |= dict.fromkeys((form.name, served(form)), detail)

    def _answer(self, model: strongroom.Model, form: Form, request: Mapping[str, Array]) -> dict[str, Array]:
        try:
            found = model.run(dict(request), precision=form.word)
        except strongroom.Error as error:
            raise Unable(f"a request: {error.message} [{error.code}]") from error
        return dict(found)

    def _once(self, model: strongroom.Model, form: Form) -> Measure:
        def once() -> float:
            started = perf_counter()
            self._answer(model, form, self._examples.workload.inputs)
            return perf_counter() - started

        return once

    def _engine_once(self, engine: Engine) -> Measure:
        def once() -> float:
            clock, busy = engine.once_both()
            self._busy.setdefault(engine.name, []).append(max(busy, 1e-9))
            return clock

        return once

    def _judged(self, answers: Sequence[dict[str, Array]]) -> dict[str, Any]:
        examples, reference = self._examples, self._reference
        pairs = [
            (examples.view(request, a), examples.view(request, b))
            for request, a, b in zip(examples.judging, reference, answers, strict=True)
        ]
        cosines = [cosine(a, b) for a, b in pairs]
        return {
            "title": examples.workload.title,
            "examples": len(answers),
            "source": examples.source,
            "cosine": float(np.mean(cosines)),
            "cosine_least": float(np.min(cosines)),
            "right": None if examples.right is None else examples.right(answers, reference),
            "right_is": examples.said,
        }

    def measure(self, plan: Plan) -> None:
        """Times all of them, in turns."""
        if BASELINE not in self._measures:
            return
        values = take_turns(self._measures, plan)
        self._result.add(self._name, "latency", "s", values, details=self._details)
        busy = {name: seconds[-plan.rounds :] for name, seconds in self._busy.items()}
        self._result.add(self._name, PROCESSOR, "s", busy, details=self._details)

    def close(self) -> None:
        """Ends engines, deletes models."""
        for engine in self._engines:
            engine.close()
        for model in self._models:
            self._ours.client.delete_model(model)


def _refusal(out: str, err: str) -> str:
    """What a command that was asked for JSON says where it refuses."""
    try:
        said = json.loads(out)["error"]
        return f"{said['message']} [{said['code']}]"
    except (ValueError, KeyError, TypeError):
        return (err.strip().splitlines() or ["ended without a word"])[-1]


def cosine(one: Array, other: Array) -> float:
    """Of the angle between two answers; 0 where they have different shapes, or one has no length."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return 0.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _contenders(result: Result, ours: Ours) -> None:
    """Who took part: every precision twice."""
    version = next((row.detail["engine_version"] for row in result.rows), "")
    there = {row.contender for row in result.rows}
    for form in FORMS:
        if form.name in there:
            about = {"title": f"onnxruntime, {form.name}", "version": version, "facts": {"threads": 1}}
            result.contenders.append({"name": form.name, **about})
    for form in FORMS:
        if served(form) in there:
            about = {"title": f"Strongroom, {form.name}", "version": ours.version, "facts": ours.facts}
            result.contenders.append({"name": served(form), **about})
