"""Sizes that are not known yet, and what is known about them: sums of products of symbols, with bounds.

A size is a number where it is known. Where it depends on a request it is an `Expr`: a polynomial over symbols,
each of which lies between two bounds. Two sizes that are computed in the same way are equal, so the shape
arithmetic of exporters (Shape, Gather, Concat, Reshape) cancels out exactly.

Rules
  - `lower` and `upper` are bounds for every request that keeps within the symbols' own; infinity is allowed.
  - What cannot be written as a polynomial becomes a new symbol with bounds that hold.
  - A `secret` size depends on the content of tensors, not on their shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

Number: TypeAlias = int | float
MAX_TERMS: Final = 12
"""Terms of one polynomial; shape arithmetic has two or three. Beyond it only the bounds are kept."""
MAX_DEGREE: Final = 8
"""Factors of one term."""


class Symbol:
    """Something between `lo` and `hi`; the same object means the same number."""

    __slots__ = ("hi", "index", "lo", "secret")

    def __init__(self, index: int, lo: Number, hi: Number, secret: bool) -> None:
        self.index, self.lo, self.hi, self.secret = index, lo, hi, secret


Term: TypeAlias = tuple[Number, tuple[Symbol, ...]]


class Expr:
    """A polynomial of symbols with at least one of them in it."""

    __slots__ = ("_hash", "hi", "lo", "secret", "terms")

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms
        lo: Number = 0
        hi: Number = 0
        self.secret = False
        for factor, symbols in terms:
            low, high = factor, factor
            for symbol in symbols:
                low, high = interval_product(low, high, symbol.lo, symbol.hi)
                self.secret = self.secret or symbol.secret
            lo, hi = lo + low, hi + high
        self.lo, self.hi = lo, hi
        self._hash = hash(terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.terms == other.terms


Size: TypeAlias = int | float | Expr


def interval_product(a: Number, b: Number, c: Number, d: Number) -> tuple[Number, Number]:
    """The bounds of a product, of those of its factors; 0 times infinity is 0."""
    products = [_times(a, c), _times(a, d), _times(b, c), _times(b, d)]
    return min(products), max(products)


def _times(a: Number, b: Number) -> Number:
    return 0 if a == 0 or b == 0 else a * b


def lower(size: Size) -> Number:
    """No request makes it smaller."""
    return size.lo if isinstance(size, Expr) else size


def upper(size: Size) -> Number:
    """No request makes it larger."""
    return size.hi if isinstance(size, Expr) else size


def is_secret(size: Size) -> bool:
    """Whether it depends on the content of tensors."""
    return isinstance(size, Expr) and size.secret


def known(size: Size | None) -> Number | None:
    """The number, where it is one."""
    return None if isinstance(size, Expr) else size


def _terms(size: Size) -> tuple[Term, ...]:
    if isinstance(size, Expr):
        return size.terms
    return ((size, ()),) if size else ()


def _order(term: Term) -> tuple[int, ...]:
    return tuple(symbol.index for symbol in term[1])


class Sizes:
    """Makes symbols and computes with sizes; one of it in one look at a model."""

    def __init__(self) -> None:
        self._count = 0
        self._known: dict[tuple[object, ...], Size] = {}
        self._counts: dict[tuple[Size, ...], Number] = {}
        self.caps: dict[tuple[Size, ...], Number] = {}
        """Elements that a tensor of this shape has at most, where that is less than the product says."""
        self.open: set[Size] = set()
        """Sizes of inputs that callers choose."""
        self.flags: set[str] = set()
        """Flags of the report that rules raised (docs/spec/admission.md §8.3)."""

    def filled(self, size: Size) -> bool:
        """Whether a size is at least 1: by itself, or since requests with a 0 there are refused from now on."""
        if lower(size) >= 1:
            return True
        if size in self.open:
            self.flags.add("no_empty_inputs")
        return size in self.open

    def fresh(self, lo: Number, hi: Number, *, secret: bool = False) -> Size:
        """A size of which only bounds are known."""
        if lo == hi and math.isfinite(lo):
            return lo
        self._count += 1
        return Expr(((1, (Symbol(self._count, lo, hi, secret),)),))

    def derived(
        self, what: str, arguments: tuple[Size, ...], bounds: Callable[[], tuple[Number, Number]]
    ) -> Size:
        """The same size for the same derivation."""
        key = (what, *arguments)
        if key not in self._known:
            lo, hi = bounds()
            self._known[key] = self.fresh(lo, hi, secret=any(map(is_secret, arguments)))
        return self._known[key]

    def _made(self, terms: dict[tuple[Symbol, ...], Number], what: str, *arguments: Size) -> Size:
        kept = [(factor, symbols) for symbols, factor in terms.items() if factor]
        if not kept:
            return 0
        if len(kept) == 1 and not kept[0][1]:
            return kept[0][0]
        kept.sort(key=_order)
        expression = Expr(tuple(kept))
        if len(kept) > MAX_TERMS or any(len(symbols) > MAX_DEGREE for _, symbols in kept):
            return self.derived(what, arguments, lambda: (expression.lo, expression.hi))
        if expression.lo == -math.inf and expression.hi == math.inf and len(kept) > 1:
            return self.derived(what, arguments, lambda: (-math.inf, math.inf))
        return expression

    def within(self, size: Size, lo: Number, hi: Number) -> Size:
        """The same size, of which is known by other ways that it lies between two bounds."""
        if not isinstance(size, Expr) or (size.lo >= lo and size.hi <= hi):
            return size
        same = Expr(size.terms)
        same.lo, same.hi = max(size.lo, lo), min(size.hi, hi)
        return same

    def add(self, a: Size, b: Size) -> Size:
        """a + b."""
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return a + b
        made = self._sum(a, b)
        return self.within(made, lower(a) + lower(b), upper(a) + upper(b))

    def _sum(self, a: Size, b: Size) -> Size:
        terms: dict[tuple[Symbol, ...], Number] = {}
        for factor, symbols in (*_terms(a), *_terms(b)):
            terms[symbols] = terms.get(symbols, 0) + factor
        return self._made(terms, "add", a, b)

    def sub(self, a: Size, b: Size) -> Size:
        """a - b."""
        return self.add(a, self.mul(b, -1))

    def mul(self, a: Size, b: Size) -> Size:
        """a * b."""
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return _times(a, b)
        if a == 1:
            return b
        if b == 1:
            return a
        low, high = interval_product(lower(a), upper(a), lower(b), upper(b))
        return self.within(self._product(a, b), low, high)

    def _product(self, a: Size, b: Size) -> Size:
        terms: dict[tuple[Symbol, ...], Number] = {}
        for factor, symbols in _terms(a):
            for other, more in _terms(b):
                both = tuple(sorted((*symbols, *more), key=lambda symbol: symbol.index))
                terms[both] = terms.get(both, 0) + factor * other
        return self._made(terms, "mul", a, b)

    def product(self, sizes: Iterable[Size]) -> Size:
        """All of them multiplied."""
        known: int | float = 1
        unknown: Size = 1
        for size in sizes:
            if isinstance(size, Expr):
                unknown = self.mul(unknown, size)
            else:
                known = _times(known, size)
        return self.mul(unknown, known)

    def exact_quotient(self, a: Size, b: Size) -> Size | None:
        """a / b where that is a polynomial, else None."""
        if b == 1:
            return a
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return a // b if b and a % b == 0 else None
        divisor = _terms(b)
        if len(divisor) != 1:
            return 1 if a == b else None
        factor, symbols = divisor[0]
        terms: dict[tuple[Symbol, ...], Number] = {}
        for other, more in _terms(a):
            rest = list(more)
            for symbol in symbols:
                if symbol not in rest:
                    return None
                rest.remove(symbol)
            if other % factor:
                return None
            terms[tuple(rest)] = other // factor
        return self._made(terms, "quotient", a, b)

    def floordiv(self, a: Size, b: Size) -> Size:
        """The quotient, rounded down; at most `a` where nothing is known of a divisor that may be 0."""
        exact = self.exact_quotient(a, b)
        if exact is not None:
            return exact
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            return a // b if b else 0
        return self.derived("floordiv", (a, b), lambda: _quotient_bounds(a, b))

    def ceildiv(self, a: Size, b: int) -> Size:
        """The quotient by a known positive number, rounded up."""
        return self.floordiv(self.add(a, b - 1), b)

    def minimum(self, a: Size, b: Size) -> Size:
        """The smaller one."""
        if upper(a) <= lower(b):
            return a
        if upper(b) <= lower(a):
            return b
        return self.derived("min", _sorted(a, b), lambda: (min(lower(a), lower(b)), min(upper(a), upper(b))))

    def maximum(self, a: Size, b: Size) -> Size:
        """The larger one."""
        if upper(a) <= lower(b):
            return b
        if upper(b) <= lower(a):
            return a
        return self.derived("max", _sorted(a, b), lambda: (max(lower(a), lower(b)), max(upper(a), upper(b))))

    def either(self, a: Size, b: Size) -> Size:
        """One of the two."""
        if a == b:
            return a
        return self.derived(
            "either", _sorted(a, b), lambda: (min(lower(a), lower(b)), max(upper(a), upper(b)))
        )

    def count(self, dims: Iterable[Size]) -> Number:
        """Elements of a tensor of that shape, at most."""
        dims = tuple(dims)
        known = self._counts.get(dims)
        if known is None:
            known = self._counts[dims] = self._count_of(dims)
        return min(known, self.caps[dims]) if dims in self.caps else known

    def _count_of(self, dims: tuple[Size, ...]) -> Number:
        numbers = [size for size in dims if not isinstance(size, Expr)]
        if len(numbers) == len(dims):
            return max(0, math.prod(numbers))
        number: Number = 1
        for size in dims:
            number = _times(number, max(0, upper(size)))
        total = self.product(dims)
        return min(number, max(0, upper(total)))


def _sorted(a: Size, b: Size) -> tuple[Size, ...]:
    return tuple(sorted((a, b), key=lambda size: (hash(size), str(upper(size)))))


def _quotient_bounds(a: Size, b: Size) -> tuple[Number, Number]:
    """Integer division rounds towards zero or down, depending on who divides; both lie within."""
    low, high = lower(b), upper(b)
    ends = [lower(a), upper(a)]
    if low <= 0 <= high:  # divides by anything from 1 or -1 on; division by zero does not return
        reach = max(abs(ends[0]), abs(ends[1]))
        return (-reach if low < 0 or ends[0] < 0 else 0), reach
    quotients = [_over(x, y) for x in ends for y in (low, high)]
    return _floor(min(quotients)), _ceil_if_negative(max(quotients))


def _over(a: Number, b: Number) -> Number:
    if math.isinf(b):
        return 0 if not math.isinf(a) else a
    if math.isinf(a):
        return a if b > 0 else -a
    return a // b if isinstance(a, int) and isinstance(b, int) else a / b


def _floor(a: Number) -> Number:
    return a if math.isinf(a) else math.floor(a)


def _ceil_if_negative(a: Number) -> Number:
    return a if math.isinf(a) else (math.ceil(a) + 1 if a < 0 else math.floor(a))
