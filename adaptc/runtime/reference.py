"""The oracle: an equation by its dense definitions, in plain torch operations that autograd can follow.

Operators are evaluated by their own `definition`, which does not use the IR; nothing here is planned or expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from adaptc.codegen.scalar import torch_text
from adaptc.codegen.source import Tabulated
from adaptc.errors import InternalError
from adaptc.ir.dims import TOKENS, Dim, Shape
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.matrix import Factor
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import At, Constant, Draw, Leaf, Map, Put, Reduce, Take, TopK, Transform
from adaptc.runtime.random import bernoulli, uniform
from adaptc.runtime.tables import entries, tabulate
from adaptc.runtime.transforms import walsh_hadamard


class Evaluator:
    """Values of expressions over given leaves. dtype: what constants and transforms are computed in."""

    def __init__(self, leaves: Mapping[Any, Tensor], dtype: torch.dtype, rows: int = 0) -> None:
        self.values: dict[Expr, Any] = dict(leaves)
        self.dtype, self.rows = dtype, rows
        self.factors: dict[tuple[str, Expr], dict[str, Tensor]] = {}
        self.device = next(iter(leaves.values())).device if leaves else torch.device("cpu")

    def __call__(self, root: Expr) -> Tensor:
        for e in postorder(root):
            if e not in self.values:
                self.values[e] = self.compute(e)
        value: Tensor = self.values[root]
        return value

    def compute(self, e: Expr) -> Any:
        """One node from its operands."""
        if isinstance(e, AbstractOperator) and not e.defines():
            return self(e.as_matrix())
        if isinstance(e, AbstractOperator):
            return e.definition(torch, *(self._field(f) for f in e.fields)).to(self._dtype_of(e))
        rule = RULES.get(type(e).__name__)
        if rule is None:
            raise InternalError(f"the reference cannot evaluate {type(e).__name__}")
        return rule(self, e)

    def _field(self, field: Any) -> Any:
        if isinstance(field, Expr):
            return self.values[field]
        if isinstance(field, tuple):
            return tuple(self._field(f) for f in field)
        return self.number(field) if isinstance(field, sympy.Expr) else field

    def _dtype_of(self, e: Expr) -> torch.dtype:
        return self.dtype if e.kind == "real" else torch.promote_types(self.dtype, torch.complex64)

    def number(self, d: Dim) -> int:
        """A size."""
        return d if isinstance(d, int) else int(d.xreplace({TOKENS: self.rows}))

    def shape(self, dims: Shape) -> tuple[int, ...]:
        """Sizes."""
        return tuple(self.number(d) for d in dims)

    def index(self, index: Any, run: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Index tensors over `run`, one per axis."""
        found = []
        for entry in index:
            if isinstance(entry, At):
                view = [1] * len(run)
                view[entry.axis] = -1
                found.append(self.values[entry.table].long().reshape(view).expand(run))
            else:
                value = entry.xreplace({TOKENS: sympy.Integer(self.rows)})
                found.append(torch.from_numpy(entries(value, run).astype("int64")).to(self.device))
        return tuple(found)


def _constant(ev: Evaluator, e: Constant) -> Tensor:
    return tabulate(Tabulated(e.value, ev.shape(e.dims), str(ev.dtype).removeprefix("torch.")), ev.device)


def _leaf(ev: Evaluator, e: Leaf) -> Tensor:
    raise InternalError(f"no value for the leaf '{e.name}'")


def _contract(ev: Evaluator, e: Any) -> Tensor:
    operands = [ev.values[op] for op in e.operands]
    if any(t.is_complex() for t in operands):
        operands = [t.to(torch.promote_types(t.dtype, torch.complex64)) for t in operands]
    return torch.einsum(e.spec, *operands)


def _map(ev: Evaluator, e: Map) -> Tensor:
    names = tuple(f"v{j}" for j in range(len(e.args)))
    values = {name: ev.values[t] for name, t in zip(names, e.args, strict=True)}
    dtype = "int64" if e.kind == "integer" else str(ev.dtype).removeprefix("torch.")
    result: Tensor = eval(torch_text(e.fn, names, dtype, True), {"torch": torch}, values)  # our own text
    return result


def _reduce(ev: Evaluator, e: Reduce) -> Tensor:
    x = ev.values[e.x]
    return x.sum(e.axes) if e.op == "sum" else torch.amax(x, e.axes)


def _broadcast(ev: Evaluator, e: Any) -> Tensor:
    view = [ev.number(d) if j in e.axes else 1 for j, d in enumerate(e.size)]
    out: Tensor = ev.values[e.x].reshape(view).expand(ev.shape(e.size))
    return out


def _take(ev: Evaluator, e: Take) -> Tensor:
    out: Tensor = ev.values[e.x][ev.index(e.index, ev.shape(e.size))]
    return out


def _put(ev: Evaluator, e: Put) -> Tensor:
    x = ev.values[e.x]
    return x.new_zeros(ev.shape(e.size)).index_put(ev.index(e.index, tuple(x.shape)), x, accumulate=True)


def _transform(ev: Evaluator, e: Transform) -> Tensor:
    calls: dict[str, Callable[..., Tensor]] = {
        "fft": torch.fft.fft,
        "ifft": torch.fft.ifft,
        "hadamard": walsh_hadamard,
    }
    return calls[e.name](ev.values[e.x], dim=e.axis)


def _matmul(ev: Evaluator, e: Any) -> Tensor:
    A, B = ev.values[e.A], ev.values[e.B]
    kind = torch.promote_types(A.dtype, B.dtype)
    return A.to(kind) @ B.to(kind)


def _add(ev: Evaluator, e: Any) -> Tensor:
    total = ev.values[e.terms[0]]
    for t in e.terms[1:]:
        total = total + ev.values[t]
    return total


def _solve(ev: Evaluator, e: Any) -> Tensor:
    A, B = ev.values[e.A], ev.values[e.B]
    kind = torch.promote_types(A.dtype, B.dtype)
    return torch.linalg.solve(A.to(kind), B.to(kind))


def _factor(ev: Evaluator, e: Factor) -> Tensor:
    kind, _, part = e.name.partition(".")
    if (kind, e.A) not in ev.factors:  # a matrix is factored once
        ev.factors[kind, e.A] = _factors(kind, ev.values[e.A])
    return ev.factors[kind, e.A][part][tuple(slice(s) for s in ev.shape(e.size))].contiguous()


def _factors(kind: str, M: Tensor) -> dict[str, Tensor]:
    if kind == "svd":
        U, S, Vt = torch.linalg.svd(M, full_matrices=False)
        top = U.abs().argmax(0)
        sign = torch.sign(U[top, torch.arange(U.shape[1], device=U.device)])
        return {"U": U * sign, "S": S, "Vt": sign[:, None] * Vt}
    if kind == "qr":
        return dict(zip("QR", torch.linalg.qr(M), strict=True))
    if kind == "lu":
        return dict(zip("PLU", torch.linalg.lu(M), strict=True))
    return {"": torch.nonzero(M).T if kind == "nonzero" else torch.linalg.pinv(M)}


def _draw(ev: Evaluator, e: Draw) -> Tensor:
    seed, shape = ev.values[e.seed], ev.shape(e.size)
    if e.drop is None:
        return uniform(seed, e.stream, shape, ev.dtype)
    return bernoulli(seed, e.stream, e.drop, shape, ev.dtype)


def _largest(ev: Evaluator, e: TopK) -> Tensor:
    x = ev.values[e.x].detach()
    flat, axis = (x.reshape(-1), 0) if e.axis is None else (x, e.axis)
    return torch.zeros_like(flat).scatter(axis, flat.topk(e.count, axis).indices, 1.0).reshape(x.shape)


RULES: dict[str, Callable[[Evaluator, Any], Any]] = {
    "Leaf": _leaf,
    "Constant": _constant,
    "Table": lambda ev, e: torch.tensor(e.values, dtype=torch.int64, device=ev.device),
    "Contract": _contract,
    "Add": _add,
    "Scale": lambda ev, e: float(e.factor) * ev.values[e.x],
    "Map": _map,
    "Reduce": _reduce,
    "Broadcast": _broadcast,
    "Reshape": lambda ev, e: ev.values[e.x].reshape(ev.shape(e.size)),
    "Take": _take,
    "Put": _put,
    "Transform": _transform,
    "Solve": _solve,
    "Cholesky": lambda ev, e: torch.linalg.cholesky(ev.values[e.A]),
    "Detach": lambda ev, e: ev.values[e.x].detach(),
    "Draw": _draw,
    "TopK": _largest,
    "Noise": lambda ev, e: torch.zeros(ev.shape(e.size), dtype=ev.dtype, device=ev.device),
    "Dropout": lambda ev, e: ev.values[e.A],
    "MatMul": _matmul,
    "Transpose": lambda ev, e: ev.values[e.A].mT,
    "Initial": lambda ev, e: ev.values[e.A],
    "Factor": _factor,
}
"""One rule per node. `Initial` is only met while the leaves have their initial values."""
