"""Well-formedness between stages: what every later pass may rely on."""

from __future__ import annotations

from collections.abc import Sequence

from adaptc.errors import InternalError
from adaptc.ir.dims import same_shape, show
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Contract, Leaf, Primitive


def check(roots: Sequence[Expr], primitive: bool = False) -> None:
    """Raise InternalError unless shapes and kinds are what the fields say, leaves are distinct, and, where asked,
    everything is primitive and every product has at most two operands."""
    leaves: dict[str, Leaf] = {}
    for e in postorder(*roots):
        dims, kind = e.infer()
        if not same_shape(dims, e.dims) or kind != e.kind:
            raise InternalError(f"{e!r} says {show(e.dims)} {e.kind}, its fields say {show(dims)} {kind}")
        if isinstance(e, Leaf) and leaves.setdefault(e.name, e) is not e:
            raise InternalError(f"two leaves are named '{e.name}': {leaves[e.name]!r} and {e!r}")
        if primitive:
            _check_primitive(e)


def _check_primitive(e: Expr) -> None:
    if not isinstance(e, Primitive):
        raise InternalError(f"{type(e).__name__} is left after expansion")
    if isinstance(e, Contract) and len(e.operands) > 2:
        raise InternalError(f"a product of {len(e.operands)} is left after ordering: {e.spec}")
