"""A plan's program as a straight-line Python function over torch.

Products that end in a sum go into one `addmm`; a number goes into the product it scales. Every line names the
subexpression it computes. Nothing is decided at run time but the number of tokens.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy

from adaptc.codegen.clusters import Cluster
from adaptc.codegen.gather import flat_index, prefix, slices, tiles
from adaptc.codegen.native import SOLVED, Kernels, block_step, by_memory, draws_natively
from adaptc.codegen.product import groups, spread
from adaptc.codegen.scalar import torch_text
from adaptc.codegen.source import WORD, Source, live, released
from adaptc.codegen.sums import Sums
from adaptc.codegen.tile import Tiled
from adaptc.codegen.types import Types
from adaptc.errors import UnsupportedError
from adaptc.ir.dims import TOKENS, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import (
    Broadcast,
    Cholesky,
    Constant,
    Contract,
    Draw,
    Leaf,
    Map,
    Put,
    Reduce,
    Reshape,
    Scale,
    Solve,
    Table,
    Take,
    TopK,
    Transform,
    only,
)
from adaptc.plan.plan import reach
from adaptc.plan.sampled import Columns, Sampled, Scattered

_OURS = re.compile(
    r"t\d+|kept\d+|tables|torch|rows|gy|walsh_hadamard|(half_|real_)?i?fft|uniform|bernoulli|sampled|scattered|native|native_product|native_reshape|native_solve|together|small\d+|linear|.*_(float|bfloat|complex|int)\d+"
)


def argument_names(leaves: Sequence[Leaf]) -> dict[Leaf, str]:
    """The names of leaves in generated text: their own, unless Python, this module or another leaf uses it."""
    names: dict[Leaf, str] = {}
    for leaf in leaves:
        name = leaf.name.replace(".", "_of_")
        while keyword.iskeyword(name) or _OURS.fullmatch(name) or name in names.values():
            name += "_leaf"
        names[leaf] = name
    return names


def emit(
    name: str,
    arguments: Sequence[tuple[str, Expr]],
    results: Sequence[tuple[Expr, str]],
    types: Types,
    head: str,
    kernels: Kernels | None = None,
    launches: Mapping[str, tuple[str, str]] | None = None,
) -> Source:
    """The function `name(tables, *arguments)` that returns `results`, each in its dtype. kernels: compiled ones that
    may be called. launches: the functions that start generated kernels, and what they compute, by the keys of `Tiled`
    nodes."""
    writer = _Writer({e: n for n, e in arguments}, types, [e for e, _ in results], kernels)
    writer.launches = launches or {}
    order = reach([e for e, _ in results], [e for _, e in arguments])
    for e in order:
        writer.visit(e)
    values = [writer.cast(e, dtype) for e, dtype in results]
    values = writer.apart([e for e, _ in results], values)
    body = released(live(writer.lines, values), values, writer.large())
    lines = [f"def {name}(tables, {', '.join(n for n, _ in arguments)}):", f'    """{head}"""']
    if any("rows" in WORD.findall(line.partition("  #")[0]) for line in body):
        row = next(n for n, e in arguments if e.dims and e.dims[0] == TOKENS)
        lines.append(f"    rows = {row}.shape[0]")
    body = [f"    {line}" for line in body]
    text = "\n".join([*lines, *body, f"    return {', '.join(values)}{',' if len(values) == 1 else ''}", ""])
    return Source(name, text, tuple(n for n, _ in arguments), tuple(writer.tables), together=tuple(writer.together))


class _Writer(Sums):
    """Writes one function, node by node."""

    launches: Mapping[str, tuple[str, str]]

    def visit(self, e: Expr) -> None:
        """Write the lines that compute a node."""
        if e in self.names or e in self.deferred or e in self.unmade:
            return
        if e in self.cluster_of:
            self.call(self.cluster_of[e])
            return
        if isinstance(e, Tiled):
            inputs = ", ".join(self.names[t] for t in e.inputs)
            name, note = self.launches[e.key]
            self.let(e, f"{name}({inputs})", fresh=True, note=note)
            return
        EMIT[only(type(e))](self, e)  # type: ignore[arg-type]

    def call(self, cluster: Cluster) -> None:
        """Small values, all in one call, and before it what they read."""
        if cluster.outputs[0] in self.names:
            return
        for t in reach(cluster.inputs, list(self.names)):
            self.visit(t)
        made = f"small{len(self.together)}"
        inputs = ", ".join(self.names[t] for t in cluster.inputs)
        self.lines.append(f"{made} = together[{len(self.together)}]({inputs})")
        self.together.append(cluster.strided(self.types.wide))
        for j, e in enumerate(cluster.outputs):
            self.let(e, f"{made}[{j}]", fresh=True)

    def contract(self, e: Contract) -> None:
        """A product of two, or axes in another order."""
        if len(e.operands) == 1:
            (letters,), out = e.terms
            order = ", ".join(str(letters.index(c)) for c in out)
            self.let_view(e, f"{self.names[e.operands[0]]}.permute({order})", self.names[e.operands[0]])
            return
        found = self.sparse.get(e)
        if isinstance(found, Sampled):
            a, b = map(self.columns, (found.a, found.b))
            half = [c.x.dims[1] if c.x in self.half_spectra else None for c in (found.a, found.b)]
            more = f", ({half[0]}, {half[1]})" if any(half) else ""
            self.let(e, f"sampled({a}, {b}, torch.{self.types[e]}{more})", fresh=True)
            return
        step = block_step(e, self.types, self.kernels)
        if step is not None:
            other = self.cast(step.other, self.types[step.x])
            self.let(e, step.text(self.names[step.x], other, self.types[e]), fresh=True)
            return
        spec = by_memory(e, self.types, self.kernels)
        if spec is not None:
            a, b = (self.names[t] for t in e.operands)
            self.let(e, f"native_product('{spec}', {a}, {b}, torch.{self.types[e]})", fresh=True)
            return
        g = groups(e)
        if not g.summed and (mine := self.own(e)) is not None:
            name, text = mine
            self.let_view(e, text, name)
            self.fresh.add(e)
            return
        self.let(e, self.product(e), fresh=bool(g.left or g.right or g.batch))

    def columns(self, c: Columns) -> str:
        """Text of a tensor and of the columns that are picked from it."""
        x = self.names[c.x]
        return f"{f'torch.conj({x})' if c.conjugate else x}, {self.names[c.at]}"

    def own(self, e: Contract) -> tuple[str, str] | None:
        """A tensor that was made for this elementwise product alone and is as large, and the product in its place."""
        inputs, out = e.terms
        for j in (0, 1):
            op, other = e.operands[j], e.operands[1 - j]
            if len(inputs[j]) == len(out) and op is not other and self._owned((1.0, op), self.types[e]):
                right = spread(self.cast(other, self.types[e]), inputs[1 - j], out)
                return self.names[op], f"{spread(self.names[op], inputs[j], out)}.mul_({right})"
        return None

    def scale(self, e: Scale) -> None:
        """A number times a tensor; in place on a product made for it."""
        dtype = self.types[e]
        if isinstance(e.factor, sympy.Expr):
            raise UnsupportedError(f"no code is generated for the symbolic number {e.factor}")
        if isinstance(e.x, Contract) and e.x in self.deferred:
            self.let(e, self._times(float(e.factor), e.x, dtype), fresh=True)
        elif e.x in self.fresh and self.uses[e.x] == 1 and self.types[e.x] == dtype:
            self.let_view(e, f"{self.names[e.x]}.mul_({e.factor!r})", self.names[e.x])
            self.fresh.add(e)
        else:
            self.let(e, f"{self.cast(e.x, dtype)} * {e.factor!r}", fresh=True)

    # ------------------------------------------------------------------ the other primitives

    def constant(self, e: Constant) -> None:
        """A constant tensor; over tokens only a number."""
        dtype = self.types[e]
        if all(isinstance(d, int) for d in e.dims):
            self.names[e] = self.table(e.value, e.dims, dtype)
        elif isinstance(e.value, sympy.Expr) and e.value.is_number:
            like = next(iter(self.names.values()))
            where = f"dtype=torch.{dtype}, device={like}.device"
            self.let(e, f"torch.full(({self.shape(e.dims)},), {float(e.value)!r}, {where})")
        else:
            raise UnsupportedError(f"a constant that varies with the token: {e.value}")

    def written_table(self, e: Table) -> None:
        """Whole numbers written out in the equation."""
        self.names[e] = self.table(e.values, e.dims, "int64")

    def map(self, e: Map) -> None:
        """An elementwise function in the dtype of its result."""
        dtype = self.types[e]
        if e in self.only_real:
            t = self.only_real[e]
            self.let(e, f"real_{t.name}({self.names[t.x]}, {e.dims[1]})", fresh=True)
            return
        if e.fn.has(sympy.re) or e.fn.has(sympy.conjugate) or dtype == "int64":
            names = tuple(self.names[t] for t in e.args)
        else:
            names = tuple(self.cast(t, dtype) for t in e.args)
        text = torch_text(e.fn, names, dtype)
        if text == f"torch.real({names[0]})":
            self.let_view(e, text, names[0])
        else:
            self.let(e, text)

    def reduce(self, e: Reduce) -> None:
        """A sum or maximum along axes."""
        axes = ", ".join(map(str, e.axes))
        dtype, x = self.types[e], self.names[e.x]
        if e.op == "sum":
            self.let(e, f"{x}.sum(({axes},), dtype=torch.{dtype})", fresh=True)
        else:
            self.let(e, f"torch.amax({self.cast(e.x, dtype)}, ({axes},))", fresh=True)

    def broadcast(self, e: Broadcast) -> None:
        """A view with repeated entries."""
        self.let_view(e, self.repeated(e, self.names[e.x]), self.names[e.x])

    def reshape(self, e: Reshape) -> None:
        """A view, or a copy where the strides ask for one."""
        name, shape = self.names[e.x], self.shape(e.size)
        text = (
            self.reshaped(name, shape, self.types[e]) if shape and e.x.ndim > 1 else f"{name}.reshape({shape or '()'})"
        )
        self.let_view(e, text, name)

    def take(self, e: Take) -> None:
        """Gather: a slice, or one gather over the flattened axes: on a CPU up to four times as fast as index_select."""
        x, cut = self.names[e.x], slices(e.index, e.size)
        if cut is not None:
            self.let_view(e, f"{x}{cut}", x)
            return
        again = tiles(e.index, e.x.dims, e.size)
        if again is not None:
            apart = [n for r, d in zip(again, e.x.dims, strict=True) for n in (r, d)]
            ones = [n for d in e.x.dims for n in (1, d)]
            text = f"{x}.reshape({self.shape(ones)}).expand({self.shape(apart)}).reshape({self.shape(e.size)})"
            self.let_view(e, text, x)
            return
        skip = prefix(e.index, e.x.dims, e.size)
        at = flat_index(
            e.index, e.x.dims, e.size[skip:], skip, self.names.__getitem__, self._index_table, self.dimension
        )
        lead = self.shape(e.size[:skip])
        flat = f"{x}.reshape({', '.join(filter(None, [lead, self._volume(e.x.dims[skip:])]))})"
        picked = f"gather({skip}, {at}.expand({lead}, -1))" if skip else f"index_select(0, {at})"
        self.let(e, f"{flat}.{picked}.reshape({self.shape(e.size) or '()'})", fresh=True)

    def put(self, e: Put) -> None:
        """Scatter: assignment to a slice of zeros, or one index_add over the flattened axes."""
        dtype, found = self.types[e], self.sparse.get(e)
        if isinstance(found, Scattered):
            half = found.x.x.dims[1] if found.x.x in self.half_spectra else None
            onto = next((t.name for t in self.only_real.values() if t.x is e), None)
            more = f", {half}, {onto!r}" if half or onto else ""
            c, rows, n = self.names[found.c], self.names[found.rows], self.dimension(e.size[1])
            self.let(e, f"scattered({self.columns(found.x)}, {c}, {rows}, {n}, torch.{dtype}{more})", fresh=True)
            return
        x, cut = self.names[e.x], slices(e.index, e.x.dims)
        if cut is not None:
            self.let(e, f"{x}.new_zeros(({self.shape(e.size)},))", fresh=True)
            self.lines.append(f"{self.names[e]}{cut} = {x}")
            return
        again = tiles(e.index, e.size, e.x.dims)
        if again is not None:
            apart = [n for r, d in zip(again, e.size, strict=True) for n in (r, d)]
            axes = ", ".join(str(2 * j) for j in range(len(again)))
            summed = f"{x}.reshape({self.shape(apart)}).sum(({axes},), dtype=torch.{dtype})"
            self.let(e, summed, fresh=True)
            return
        skip = prefix(e.index, e.size, e.x.dims)
        run = e.x.dims[skip:]
        at = flat_index(e.index, e.size, run, skip, self.names.__getitem__, self._index_table, self.dimension)
        lead = self.shape(e.size[:skip])
        zeros = f"{x}.new_zeros(({lead}{', ' if lead else ''}{self._volume(e.size[skip:])},))"
        count = self._volume(run) if all(isinstance(d, int) for d in run) else "-1"
        values = f"{self.cast(e.x, dtype)}.reshape({lead}{', ' if lead else ''}{count})"
        self.let(
            e,
            f"{zeros}.index_add_({skip}, {at}, {values}).reshape({self.shape(e.size) or '()'})",
            fresh=True,
        )

    def _index_table(self, value: sympy.Expr, shape: Shape) -> str:
        return self.table(value, shape, "int64")

    def _volume(self, shape: Shape) -> str:
        total = 1
        for d in shape:
            if not isinstance(d, int):
                raise UnsupportedError("cannot gather across tokens")
            total *= d
        return str(total)

    def transform(self, e: Transform) -> None:
        """A fast transform, in float32 or wider."""
        have = self.types[e.x]
        wide = have if have.startswith("complex") else self.types.wide
        if e in self.half_spectra:
            self.let(e, f"half_{e.name}({self.cast(e.x, wide)})")
            return
        call = {"fft": "fft", "ifft": "ifft", "hadamard": "walsh_hadamard"}[e.name]
        self.let(e, f"{call}({self.cast(e.x, wide)}, dim={e.axis})")

    def solve(self, e: Solve) -> None:
        """A^-1 B by LU."""
        A, B = (self.cast(t, self.types[e]) for t in (e.A, e.B))
        small = self.types[e] == "float32" and e.A.dims[-1] in range(2, SOLVED + 1)
        native = small and self.kernels is not None and self.kernels.ready()
        self.let(e, f"{'native_solve' if native else 'torch.linalg.solve'}({A}, {B})", fresh=True)

    def cholesky(self, e: Cholesky) -> None:
        """The lower factor."""
        self.let(e, f"torch.linalg.cholesky({self.cast(e.A, self.types[e])})")

    def draw(self, e: Draw) -> None:
        """Random numbers from the seed, in the dtype of their user."""
        shape = f"({self.shape(e.size)}{',' if e.size else ''})"
        p = "" if e.drop is None else f"{e.drop!r}, "
        call = "uniform" if e.drop is None else "bernoulli"
        if draws_natively(e, self.types, self.kernels):
            call = f"native.{call}"
        self.let(e, f"{call}({self.names[e.seed]}, {e.stream}, {p}{shape}, torch.{self.types[e]})", fresh=True)

    def largest(self, e: TopK) -> None:
        """Ones at the largest entries."""
        x, dtype = self.names[e.x], self.types[e]
        if e.axis is None:
            x = f"{x}.reshape(-1)"
        axis = 0 if e.axis is None else e.axis
        zeros = f"torch.zeros_like({x}, dtype=torch.{dtype})"
        text = f"{zeros}.scatter_({axis}, torch.topk({x}, {e.count}, {axis}).indices, 1.0)"
        self.let(e, f"{text}.reshape({self.shape(e.dims)})" if e.axis is None else text, fresh=True)

    def leaf(self, e: Leaf) -> None:
        """A leaf that is no argument: a missing input."""
        raise UnsupportedError(f"the program reads '{e.name}', which it is not given")


EMIT: dict[str, Callable[[_Writer, Any], None]] = {
    "Leaf": _Writer.leaf,
    "Constant": _Writer.constant,
    "Table": _Writer.written_table,
    "Contract": _Writer.contract,
    "Add": _Writer.add,
    "Scale": _Writer.scale,
    "Map": _Writer.map,
    "Reduce": _Writer.reduce,
    "Broadcast": _Writer.broadcast,
    "Reshape": _Writer.reshape,
    "Take": _Writer.take,
    "Put": _Writer.put,
    "Transform": _Writer.transform,
    "Solve": _Writer.solve,
    "Cholesky": _Writer.cholesky,
    "Draw": _Writer.draw,
    "TopK": _Writer.largest,
    "Detach": lambda writer, e: writer.alias(e, e.x),
}
"""One rule per primitive."""
