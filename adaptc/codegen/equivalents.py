"""Steps that tile programs have no loop for, as others that they have: a scatter to known places gathers, and a
Walsh-Hadamard transform is a few products with small matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import sympy

from adaptc.codegen.gather import tiles
from adaptc.ir.build import add, contract, reduce_sum, reshape, take
from adaptc.ir.dims import Dim, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import INDEX, At, Constant, Index, Put, Table, Transform

SIDE = 64  # rows of a matrix whose product is taken in place of a step of a transform
SHARED = 8  # entries that are put in one place, at most, to be gathered from there


def rewritten(results: Sequence[Expr], given: Iterable[Expr]) -> list[Expr]:
    """The same results; what is given stays as it is."""
    new: dict[Expr, Expr] = {e: e for e in given}

    def change(e: Expr) -> Expr:
        if e not in new:
            built = e.rebuild(change)
            other = None
            if isinstance(built, Put):
                other = gathered(built)
            elif isinstance(built, Transform) and built.name == "hadamard":
                other = in_factors(built)
            new[e] = built if other is None else other
        return new[e]

    return [change(e) for e in results]


def gathered(e: Put) -> Expr | None:
    """A scatter as a sum of what is gathered: of tiles, from known places, or along an index that runs by one."""
    again = tiles(e.index, e.size, e.x.dims)
    if again is not None:
        apart = [n for r, d in zip(again, e.size, strict=True) for n in (r, d)]
        return reduce_sum(reshape(e.x, tuple(apart)), tuple(range(0, len(apart), 2)))
    known = _from_known(e)
    return _along(e) if known is None else known


def _only_other(e: Put) -> tuple[int, Index] | None:
    """The one axis of the result whose index is not its own variable."""
    others = [(j, i) for j, i in enumerate(e.index) if i != INDEX[j]]
    return others[0] if len(others) == 1 else None


def _from_known(e: Put) -> Expr | None:
    """Of places that are written out, each entry's few sources."""
    found = _only_other(e)
    if found is None or e.x.ndim != e.ndim:
        return None
    axis, entry = found
    if not isinstance(entry, At) or not isinstance(entry.table, Table):
        return None
    if entry.axis != axis or not isinstance(e.size[axis], int):
        return None
    sources: list[list[int]] = [[] for _ in range(int(e.size[axis]))]
    for t, place in enumerate(entry.table.values):
        sources[place].append(t)
    most = max(map(len, sources), default=0)
    if not 0 < most <= SHARED:
        return None
    letters = "abcdefgh"[: e.ndim]
    terms = []
    for j in range(most):
        at = Table(tuple(s[j] if j < len(s) else 0 for s in sources))
        there = Constant(tuple(float(j < len(s)) for s in sources), (len(sources),))
        index: list[Index] = [*INDEX[: e.ndim]]
        index[axis] = At(at, axis)
        terms.append(contract(f"{letters},{letters[axis]}->{letters}", take(e.x, tuple(index), e.size), there))
    return add(*terms)


def _along(e: Put) -> Expr | None:
    """result[.., p(i, j), ..] += x[.., i, j, ..] where p goes up or down by one with an index that stands nowhere else
    and p is known: result[d] = the sum over the others of x at the j that leads to d."""
    others = [(j, i) for j, i in enumerate(e.index) if i != INDEX[j]]
    lead = e.ndim - 1
    if [j for j, _ in others] != [lead] or not all(isinstance(d, int) for d in (e.size[-1], *e.x.dims[lead:])):
        return None
    entry, n = others[0][1], int(e.size[-1])
    if isinstance(entry, At) or e.x.ndim <= e.ndim:
        return None
    turns = isinstance(entry, sympy.Mod)
    inner = entry.args[0] if turns else entry
    if turns and entry.args[1] != n:
        return None
    last = e.x.ndim - 1
    step = sympy.expand(inner).coeff(INDEX[last], 1)
    rest = sympy.expand(inner - step * INDEX[last])
    if step not in (1, -1) or INDEX[last] in rest.free_symbols or not rest.free_symbols <= set(INDEX[lead:last]):
        return None
    size: Shape = (*e.x.dims[:last], n)
    wanted = sympy.expand(step * (INDEX[last] - rest))  # the index of x along its last axis that leads there
    x = e.x
    if turns:
        x, at = _wider(x, last, 0, n), sympy.Mod(wanted, n)
    else:
        low, high = _range(wanted, size, lead, last)
        x, at = _wider(x, last, -low, high - low + 1), wanted - low
    turned: Expr = take(x, (*INDEX[:last], at), size)
    return reduce_sum(turned, tuple(range(lead, last)))


def _range(entry: sympy.Expr, size: Shape, first: int, last: int) -> tuple[int, int]:
    """The least and greatest value of an affine index."""
    low = high = sympy.expand(entry).subs(dict.fromkeys(INDEX, 0))
    for j in range(first, last + 1):
        step, most = sympy.expand(entry).coeff(INDEX[j], 1), int(size[j]) - 1
        low, high = low + min(0, step * most), high + max(0, step * most)
    return min(int(low), 0), int(high)


def _wider(x: Expr, axis: int, before: int, size: Dim) -> Expr:
    """x with zeros before and after along an axis."""
    if before == 0 and x.dims[axis] == size:
        return x
    index = [*INDEX[: x.ndim]]
    index[axis] = INDEX[axis] + before
    whole = max(int(size), before + int(x.dims[axis]))
    return Put(x, tuple(index), (*x.dims[:axis], whole, *x.dims[axis + 1 :]))


def in_factors(e: Transform) -> Expr | None:
    """A Walsh-Hadamard transform is the Kronecker product of small ones."""
    n = e.dims[e.axis]
    if not isinstance(n, int) or n < 2 or e.kind != "real":
        return None
    sides: list[int] = []
    while prod(sides) < n:
        sides.append(min(SIDE, n // prod(sides)))
    lead, after = e.dims[: e.axis], e.dims[e.axis + 1 :]
    x = reshape(e.x, (*lead, *sides, *after))
    letters = "abcdefghijkl"[: x.ndim]
    for j, side in enumerate(sides):
        here = letters[len(lead) + j]
        signs = tuple(float(1 - 2 * ((p & q).bit_count() & 1)) for p in range(side) for q in range(side))
        x = contract(f"{letters},z{here}->{letters.replace(here, 'z')}", x, Constant(signs, (side, side)))
    return reshape(x, e.dims)
