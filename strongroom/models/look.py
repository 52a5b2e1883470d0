"""One look at a whole model for requests up to a size: memory, operations, steps, what depends on contents.

Nodes are taken in the order of the graph, with functions in place of their calls and both branches of each If;
the body of a Loop is looked at until its carried values no longer grow (`docs/spec/admission.md` §7).

Rules
  - Declared shapes are not believed: only those of the model's inputs, which requests are held to.
  - Every number is an upper bound for all requests within the box, or infinite; infinite is `unbounded`.
  - A bound above the budget ends the look at once, so that it costs no more than what it looks for.
  - What the engine may compute while it loads is counted on its own as well: no request limits that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from strongroom.errors import AdmissionRefused, LimitExceeded
from strongroom.models import arranging, kernels, learners, operators, selecting, shapes
from strongroom.models.info import Budget
from strongroom.models.plan import Attributes, Key, Plan, Step, plain, plan_of, plan_of_function
from strongroom.models.sizes import Expr, Number, Size, Sizes, is_secret, lower, upper
from strongroom.models.tensors import MAX_RANK
from strongroom.models.values import BITS, STRING_BYTES, Op, T, Value, refuse, secret_dims, without_data

MAX_ROUNDS: Final = 40
"""Looks at the body of one Loop until its values stand; after a few, growing sizes are taken for unbounded."""
UNROLLED: Final = 32
"""Iterations up to which a growing Loop is followed one by one instead."""

MAX_DECISIONS: Final = 4
"""Ifs with results of different ranks that are followed both ways, 16 looks in all."""

CRASHERS: Final = frozenset({
    "DepthToSpace", "GatherND", "LayerNormalization", "OneHot", "RMSNormalization", "ScatterND", "Split",
})  # fmt: skip
"""Operators on whose wrong shapes the engine was seen to crash while it loads."""

_RULES: Final = {
    **{
        ("", name): rule
        for table in (shapes.RULES, arranging.RULES, selecting.RULES, kernels.RULES)
        for name, rule in table.items()
    },
    **{("ai.onnx.ml", name): rule for name, rule in learners.RULES.items()},
}


@dataclass(frozen=True, slots=True)
class Box:
    """Requests with at most these sizes where the model leaves dimensions open: by position, the last for all after."""

    sizes: tuple[int, ...]

    def limit(self, axis: int) -> int:
        """The largest size of an open dimension at this position."""
        return self.sizes[min(axis, len(self.sizes) - 1)]


@dataclass(slots=True, kw_only=True)
class Found:
    """What one look found: upper bounds, and flags of the report."""

    peak_bytes: Number = 0
    """Of values that are alive together, in the order of the graph, with what kernels need beside them."""
    resident_bytes: Number = 0
    """Of values that the engine computes while it loads and keeps."""
    operations: Number = 0
    load_operations: Number = 0
    """Those of `operations` that need no request."""
    steps: Number = 0
    """Nodes that run, iterations of loops counted."""
    flags: set[str] = field(default_factory=set)
    outputs: tuple[Value, ...] = ()


Scope = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Plans:
    """A model's graph and functions, ready to be looked at."""

    graph: Plan
    functions: Mapping[Key, Plan]

    @classmethod
    def of(cls, model: Any, lists: Mapping[str, Sequence[Any]]) -> Plans:
        """The plans of a ModelProto; `lists`: of its first node, what is not in the message."""
        functions = {(plain(f.domain), f.name, f.overload): plan_of_function(f) for f in model.functions}
        return cls(plan_of(model.graph, lists), functions)


class Look:
    """Looks at one model once."""

    def __init__(
        self,
        model: Any,
        plans: Plans,
        *,
        imports: Mapping[str, int],
        budget: Budget,
        box: Box,
        strict: bool,
        decisions: tuple[bool, ...] = (),
    ) -> None:
        """`decisions`: which branch is taken at each If whose results have different ranks (§8.4)."""
        self.found = Found()
        self._model, self._imports, self._budget, self._box = model, imports, budget, box
        self._plans = plans
        self._strict = strict
        self._sizes = Sizes()
        self._live: Number = 0
        self._times: Number = 1
        self._constant = True
        self._quiet = 0  # looks whose cost does not count
        self._looked = 0
        self._at = "input"  # the operator that is looked at
        self._symbols: dict[str, Size] = {}
        self.decisions = list(decisions)
        self._taken: dict[Size | int, bool] = {}
        self._aside = 0  # branches that are not taken

    def run(self) -> Found:
        """Looks at the whole model.

        Raises:
            AdmissionRefused: a node that cannot run, or in a strict look something without a bound.
            LimitExceeded: a bound above the budget; a smaller box may do.
        """
        graph = self._model.graph
        fixed_names = {tensor.name for tensor in graph.initializer}
        scope: Scope = {}
        for value in graph.input:
            if value.name not in fixed_names:
                scope[value.name] = self._input(value)
        for value in scope.values():
            if value.dims is not None and not any(isinstance(size, Expr) for size in value.dims):
                count = self._sizes.count(value.dims)
                self._too_much("elements of an input", count, self._budget.elements, "onnx_memory")
            self._keep(value)
        results = self._graph(self._plans.graph, [scope])
        for value, declared in zip(results, graph.output, strict=True):
            self._check_output(value, declared)
            if value.dims is not None and secret_dims(value):
                self.found.flags.add("data_dependent_output")
        self.found.flags |= self._sizes.flags
        self.found.outputs = tuple(results)
        return self.found

    # The edge

    def _input(self, value: Any) -> Value:
        tensor = value.type.tensor_type
        text = self._budget.text_bytes if tensor.elem_type == T.STRING else 0
        if not tensor.HasField("shape"):
            return Value(kind=tensor.elem_type, dims=None, text=text)
        dims = tuple(self._dimension(dim, n) for n, dim in enumerate(tensor.shape.dim))
        self._sizes.open |= {size for size in dims if isinstance(size, Expr)}
        return Value(kind=tensor.elem_type, dims=dims, text=text)

    def _dimension(self, dim: Any, axis: int) -> Size:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return int(dim.dim_value)
        limit, name = self._box.limit(axis), dim.dim_param
        if not any(letter.isalnum() for letter in name):
            return self._sizes.fresh(0, limit)
        # One name is one size; where it stands at two places, either limit holds, and so does the larger.
        known = self._symbols.get(name)
        if known is None or upper(known) < limit:
            self._symbols[name] = known = self._sizes.fresh(0, limit)
        return known

    def _check_output(self, value: Value, declared: Any) -> None:
        tensor = declared.type.tensor_type
        if declared.type.WhichOneof("value") != "tensor_type":
            return
        if tensor.elem_type not in (0, value.kind):
            refuse("an output is declared with another type than is computed", "onnx_type")
        if value.dims is None or not tensor.HasField("shape"):
            return
        said = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            for dim in tensor.shape.dim
        ]
        wrong = len(said) != len(value.dims) or any(
            number is not None and not lower(size) <= number <= upper(size)
            for number, size in zip(said, value.dims, strict=True)
        )
        if wrong:
            self.found.flags.add("declared_shape_differs")

    # Accounts

    def _bytes(self, value: Value) -> Number:
        count = math.inf if value.dims is None else self._sizes.count(value.dims)
        if not math.isfinite(count) or not math.isfinite(value.text):
            return math.inf
        if value.kind == T.STRING:
            return count * (STRING_BYTES + value.text)
        return (count * BITS.get(value.kind, 128) + 7) // 8

    def _unbounded(self, what: str) -> None:
        self.found.flags.add("unbounded")
        if self._strict:
            refuse(f"{self._at}: {what} has no bound", "onnx_unbounded")

    def _too_much(self, what: str, number: Number, limit: Number, code: str) -> None:
        if number > limit:
            raise LimitExceeded(
                f"{self._at}: {what}: up to {number:.3g}, at most {limit} are allowed", code=code
            )

    def _check_memory(self, more: Number) -> None:
        if self._quiet:
            return
        peak = self._live + more
        if not math.isfinite(peak):
            self._unbounded("memory")
            return
        self.found.peak_bytes = max(self.found.peak_bytes, peak)
        self._too_much("bytes of values at one time", peak, self._budget.peak_bytes, "onnx_memory")

    def _spend(self, operations: Number, scratch: Number) -> None:
        if self._quiet:
            return
        if math.isnan(operations) or math.isinf(operations) or math.isinf(scratch):
            self._unbounded("work")
            return
        total = operations * self._times
        self.found.operations += total
        if self._constant:
            self.found.load_operations += total
            self._too_much(
                "operations while loading",
                self.found.load_operations,
                self._budget.load_operations,
                "onnx_compute",
            )
        self._too_much("operations", self.found.operations, self._budget.operations, "onnx_compute")
        self._check_memory(scratch)

    def _check_value(self, value: Value) -> None:
        size = self._bytes(value)
        if not self._quiet and math.isfinite(size):
            self._too_much("bytes of one value", size, self._budget.value_bytes, "onnx_memory")

    def _keep(self, value: Value) -> Number:
        """Counts a value that was made; returns what freeing it gives back."""
        size = self._bytes(value)
        if self._quiet:
            return 0
        if not math.isfinite(size):
            self._unbounded("a value")
            return 0
        self._check_value(value)
        self._live += size
        self._check_memory(0)
        if value.constant:
            # What is computed while loading stays; it is freed with the session, not after its last use.
            self.found.resident_bytes += size
            return 0
        return size

    # Graphs

    def _graph(self, plan: Plan, scopes: list[Scope]) -> list[Value]:
        scopes[-1].update(plan.constants)
        return self._steps(plan, scopes, {}, self._imports)

    def _steps(
        self, plan: Plan, scopes: list[Scope], given: Attributes, imports: Mapping[str, int]
    ) -> list[Value]:
        """The nodes of a graph or function; `given`: the attributes of the call, where it is a function."""
        scope, held = scopes[-1], {}
        self._looked += len(plan.steps)
        self._too_much("nodes to look at", self._looked, self._budget.looks, "onnx_too_complex")
        for number, step in enumerate(plan.steps):
            self._at = step.operator
            values = self._step(step, scopes, given, imports)
            if not self._quiet:
                self.found.steps += self._times
                self._too_much("steps", self.found.steps, self._budget.steps, "onnx_loop")
            for name, value in zip(step.outputs, values, strict=False):
                if name:
                    scope[name] = value
                    held[name] = self._keep(value)
            for name in plan.last.get(number, ()):
                if name in held:
                    self._live -= held.pop(name)
        found = [_lookup(scopes, name) for name in plan.outputs]
        for size in held.values():  # the caller counts the results again, under its own names
            self._live -= size
        return found

    def _step(
        self, step: Step, scopes: list[Scope], given: Attributes, imports: Mapping[str, int]
    ) -> list[Value]:
        inputs = tuple(_lookup(scopes, name) if name else None for name in step.inputs)
        attributes = step.resolved(given)
        function = self._plans.functions.get((step.domain, step.operator, step.overload))
        if function is not None:
            scope = {n: value for n, value in zip(function.inputs, inputs, strict=False) if value is not None}
            return self._steps(function, [scope], {**function.defaults, **attributes}, function.imports)
        found = operators.find(step.operator, imports[step.domain], step.domain)
        if step.references:
            operators.check_attributes(found, attributes)
        kinds = operators.bind(found, [value.kind if value is not None else None for value in inputs])
        named = {name: value for name, (_, value) in attributes.items()}
        if step.operator in operators.CONTROL and not step.domain:
            return self._control(step, inputs, named, scopes)
        rule = _RULES.get((step.domain, step.operator))
        if rule is None:
            refuse(f"{step.operator}: only at the end of a model", "onnx_operator_refused")
        spent: list[tuple[Number, Number]] = []
        op = Op(
            step.operator,
            imports[step.domain],
            inputs,
            step.outputs,
            named,
            kinds,
            self._sizes,
            lambda operations, scratch: spent.append((operations, scratch)),
            step.memo if not step.references else {},
        )
        before, self._constant = self._constant, op.constant
        values = rule(op)
        for value in values:
            if value.dims is not None and len(value.dims) > MAX_RANK:
                refuse(f"{step.operator}: more than {MAX_RANK} dimensions")
            self._check_value(value)
        for operations, scratch in spent:
            self._spend(operations, scratch)
        self._constant = before
        return values

    # Control flow

    def _control(
        self, step: Step, inputs: Sequence[Value | None], attributes: Mapping[str, Any], scopes: list[Scope]
    ) -> list[Value]:
        if step.operator == "If":
            return self._if(inputs[0], attributes, scopes)
        if step.operator == "Loop":
            return self._loop(inputs, attributes["body"], scopes)
        return self._scan(inputs, attributes, scopes)

    def _if(self, condition: Value | None, attributes: Mapping[str, Any], scopes: list[Scope]) -> list[Value]:
        if condition is None:
            refuse("If: no condition", "onnx_arity")
        if not condition.public:
            self.found.flags.add("data_dependent_branch")
        data = None if condition.data is None or condition.data.size != 1 else condition.data.reshape(-1)[0]
        known = None if data is None or isinstance(data, Expr) else bool(data)
        start = (self.found.operations, self.found.load_operations, self.found.steps)
        ends, made = [], []
        for name, taken in (("then_branch", True), ("else_branch", False)):
            self.found.operations, self.found.load_operations, self.found.steps = start
            if known is (not taken):
                self._look_aside(attributes[name], scopes)
                continue
            made.append(self._graph(attributes[name], [*scopes, {}]))
            ends.append((self.found.operations, self.found.load_operations, self.found.steps))
        worst = tuple(map(max, zip(*ends, strict=True)))
        self.found.operations, self.found.load_operations, self.found.steps = worst
        if known is not None:
            return made[0]
        if len(made[0]) != len(made[1]):
            refuse("If: branches with different numbers of results", "onnx_graph")
        pairs = list(zip(*made, strict=True))
        if any(a.kind != b.kind for a, b in pairs):
            refuse("If: branches with results of different types", "onnx_type")
        if any(a.rank != b.rank for a, b in pairs) and (self._aside or len(self._taken) < MAX_DECISIONS):
            # PyTorch writes a squeeze of an open dimension so. What follows is looked at for either rank.
            self.found.flags.add("rank_depends_on_size" if condition.public else "data_dependent_rank")
            results = made[0] if self._decide(data) else made[1]
            public = condition.public
            return [Value(kind=v.kind, dims=v.dims, public=v.public and public, text=v.text) for v in results]
        return [self._joined(a, b, condition.public) for a, b in pairs]

    def _decide(self, condition: Size | None) -> bool:
        """Which way an If goes in this look: the same way for the same condition."""
        key = condition if condition is not None else len(self._taken)
        if key in self._taken or self._aside:
            return self._taken.get(key, True)
        if len(self._taken) == len(self.decisions):
            self.decisions.append(True)
        self._taken[key] = self.decisions[len(self._taken)]
        return self._taken[key]

    def _look_aside(self, graph: Plan, scopes: list[Scope]) -> None:
        """A branch that is never taken: its operators may not fit the shapes that take the other one.

        The engine reads its types and shapes nevertheless, so what it could crash on there is refused.
        """
        self._quiet, self._aside = self._quiet + 1, self._aside + 1
        try:
            self._graph(graph, [*scopes, {}])
        except AdmissionRefused as refusal:
            if refusal.code not in ("onnx_shape", "onnx_unbounded") or self._at in CRASHERS:
                raise
        finally:
            self._quiet, self._aside = self._quiet - 1, self._aside - 1

    def _joined(self, a: Value, b: Value, public: bool) -> Value:
        """One or the other."""
        if a.kind != b.kind:
            refuse("results of different types where one or the other is taken", "onnx_type")
        dims = None
        if a.dims is not None and b.dims is not None and len(a.dims) == len(b.dims):
            dims = tuple(
                x if x == y else self._sizes.fresh(min(lower(x), lower(y)), max(upper(x), upper(y)),
                                                   secret=not public or is_secret(x) or is_secret(y))
                for x, y in zip(a.dims, b.dims, strict=True)
            )  # fmt: skip
        return Value(
            kind=a.kind, dims=dims, public=public and a.public and b.public, text=max(a.text, b.text)
        )

    def _loop(self, inputs: Sequence[Value | None], body: Plan, scopes: list[Scope]) -> list[Value]:
        trips, condition, carried = inputs[0], inputs[1], [v for v in inputs[2:] if v is not None]
        if len(body.inputs) != len(carried) + 2 or len(body.outputs) < len(carried) + 1:
            refuse("Loop: the body does not take or give what is carried", "onnx_graph")
        number: Size | None = None
        if trips is not None:
            number = None if trips.data is None else trips.data.reshape(-1)[0]
            if not trips.public:
                self.found.flags.add("data_dependent_time")
        most: Number = math.inf if number is None else max(0, upper(number))
        if math.isinf(most) and condition is not None and condition.data is not None:
            most = 0 if condition.data.reshape(-1)[0] == 0 else most
        if not self._quiet:
            if math.isinf(most):
                self._unbounded("a Loop")
            else:
                self._too_much("iterations of one Loop", most, self._budget.trips, "onnx_loop")
        index = Value(kind=T.INT64, dims=(), public=True)
        going = Value(kind=T.BOOL, dims=(), public=condition is None or condition.public)

        def run(state: list[Value]) -> list[Value]:
            names = body.inputs
            return self._graph(body, [*scopes, dict(zip(names, [index, going, *state], strict=True))])

        state = self._settled(run, [_forgotten(v) for v in carried], most, skip=1)
        results = self._repeated(run, state, 1 if math.isinf(most) else most)
        ended = results[0]
        if ended.kind != T.BOOL:
            refuse("Loop: the condition is not a boolean", "onnx_type")
        early = ended.data is None or ended.data.reshape(-1)[0] != 1
        if early and not ended.public:
            self.found.flags.add("data_dependent_time")
        public = (trips is None or trips.public) and (not early or ended.public)
        rounds = number if number is not None and not early and lower(number) >= 0 else None
        if rounds is None:
            rounds = self._sizes.fresh(0, most, secret=not public)
        finals = [self._joined(a, b, public) for a, b in zip(state, results[1 : len(state) + 1], strict=True)]
        scans = [self._stacked(value, rounds, 0, public) for value in results[len(state) + 1 :]]
        return [*finals, *scans]

    def _scan(
        self, inputs: Sequence[Value | None], attributes: Mapping[str, Any], scopes: list[Scope]
    ) -> list[Value]:
        body, count = attributes["body"], attributes["num_scan_inputs"]
        values = [value for value in inputs if value is not None]
        kept = len(values) - count
        if kept < 0 or len(body.inputs) != len(values) or len(body.outputs) < kept:
            refuse("Scan: the body does not take or give what is carried", "onnx_graph")
        axes = attributes.get("scan_input_axes", (0,) * count)
        later = attributes.get("scan_output_axes", (0,) * (len(body.outputs) - kept))
        turns = (attributes.get("scan_input_directions", ()), attributes.get("scan_output_directions", ()))
        if len(axes) != count or len(later) != len(body.outputs) - kept:
            refuse("Scan: not one axis for each value", "onnx_attribute_range")
        if len(turns[0]) not in (0, count) or len(turns[1]) not in (0, len(body.outputs) - kept):
            refuse("Scan: not one direction for each value", "onnx_attribute_range")
        rounds: Size | None = None
        elements = []
        for value, axis in zip(values[kept:], axes, strict=True):
            if value.dims is None or not -len(value.dims) <= axis < len(value.dims):
                refuse("Scan: an axis that is not there")
            at = axis % len(value.dims)
            if rounds is not None and (
                upper(rounds) < lower(value.dims[at]) or upper(value.dims[at]) < lower(rounds)
            ):
                refuse("Scan: inputs of different lengths")
            rounds = value.dims[at] if rounds is None or isinstance(rounds, Expr) else rounds
            dims = (*value.dims[:at], *value.dims[at + 1 :])
            elements.append(Value(kind=value.kind, dims=dims, public=value.public, text=value.text))
        if rounds is None:
            refuse("Scan: nothing to go through", "onnx_graph")
        most = max(0, upper(rounds))
        if not self._quiet:
            if math.isinf(most):
                self._unbounded("a Scan")
                most = 1
            self._too_much("iterations of one Scan", most, self._budget.trips, "onnx_loop")

        def run(state: list[Value]) -> list[Value]:
            names = body.inputs
            return self._graph(body, [*scopes, dict(zip(names, [*state, *elements], strict=True))])

        state = self._settled(run, [_forgotten(v) for v in values[:kept]], most, skip=0)
        results = self._repeated(run, state, most)
        scans = [
            self._stacked(value, rounds, axis, not is_secret(rounds))
            for value, axis in zip(results[kept:], later, strict=True)
        ]
        return [*state, *scans]

    def _settled(self, run: Any, state: list[Value], most: Number, *, skip: int) -> list[Value]:
        """Carried values that hold for every iteration."""
        self._quiet += 1
        for number in range(MAX_ROUNDS):
            results = run(state)[skip : skip + len(state)]
            if any(a.kind != b.kind for a, b in zip(state, results, strict=True)):
                refuse("a loop's values change their type", "onnx_type")
            joined = [
                self._wider(a, b, number >= 2 and most > UNROLLED)
                for a, b in zip(state, results, strict=True)
            ]
            same = all(_alike(a, b) for a, b in zip(state, joined, strict=True))
            state = joined
            if same or number >= most:
                break
        else:
            state = [Value(kind=v.kind, dims=None) for v in state]
        self._quiet -= 1
        return state

    def _wider(self, a: Value, b: Value, widen: bool) -> Value:
        """What holds for both; where sizes keep growing and `widen`, any size."""
        if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
            return Value(kind=a.kind, dims=None, public=a.public and b.public, text=max(a.text, b.text))
        dims = []
        for x, y in zip(a.dims, b.dims, strict=True):
            if x == y or (lower(x) <= lower(y) and upper(y) <= upper(x) and isinstance(x, Expr)):
                dims.append(x)
            else:
                low, high = min(lower(x), lower(y)), max(upper(x), upper(y))
                if widen:
                    low, high = 0, high if upper(y) <= upper(x) else math.inf
                dims.append(self._sizes.fresh(low, high, secret=is_secret(x) or is_secret(y)))
        text = max(a.text, b.text)
        if widen and b.text > a.text:
            text = math.inf
        return Value(kind=a.kind, dims=tuple(dims), public=a.public and b.public, text=text)

    def _repeated(self, run: Any, state: list[Value], most: Number) -> list[Value]:
        """The body with its costs, as often as it may run."""
        before, self._times = self._times, self._times * most
        constant, self._constant = self._constant, False
        kept = sum(size for size in map(self._bytes, state) if math.isfinite(size)) if not self._quiet else 0
        self._live += kept
        results: list[Value] = run(state)
        self._live -= kept
        self._times, self._constant = before, constant
        return results

    def _stacked(self, value: Value, rounds: Size, axis: int, public: bool) -> Value:
        """The values of all iterations along a new axis; the engine holds them twice for a moment."""
        if value.dims is None:
            return Value(kind=value.kind, dims=None)
        rank = len(value.dims) + 1
        if not -rank <= axis < rank:
            refuse("Scan: an axis that is not there")
        at = axis % rank
        made = Value(
            kind=value.kind,
            dims=(*value.dims[:at], rounds, *value.dims[at:]),
            public=public and value.public,
            text=value.text,
        )
        size = self._bytes(made)
        if math.isfinite(size):
            self._spend(0, size)
        return made


def _lookup(scopes: list[Scope], name: str) -> Value:
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    return refuse("a value that is left out is used", "onnx_graph")


def _forgotten(value: Value) -> Value:
    """A value that the next iteration replaces."""
    kept = without_data(value)
    return Value(kind=kept.kind, dims=kept.dims, public=kept.public, text=kept.text)


def _alike(a: Value, b: Value) -> bool:
    return a.dims == b.dims and a.public == b.public and a.text == b.text
