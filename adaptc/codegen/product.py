"""Products of two tensors as torch text: a matrix product where there is one, else a broadcast product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, prod

from adaptc.ir.dims import Dim
from adaptc.ir.prims import Contract

Dimension = Callable[[Dim], str]
Reshape = Callable[[str, list[str]], str]
NARROW = 32


@dataclass(frozen=True)
class Groups:
    """The indices of a product: in both and kept, summed, of the left alone, of the right alone."""

    batch: str
    summed: str
    left: str
    right: str


def groups(node: Contract) -> Groups:
    """Sort the indices of a product of two."""
    (a, b), out = node.terms
    return Groups(
        batch="".join(c for c in out if c in a and c in b),
        summed="".join(c for c in a if c in b and c not in out),
        left="".join(c for c in out if c in a and c not in b),
        right="".join(c for c in out if c in b and c not in a),
    )


def matrix_operands(node: Contract, a: str, b: str) -> tuple[str, str] | None:
    """The two arguments of torch.mm that give the product in its own axis order, or None."""
    g, ((la, lb), out) = groups(node), node.terms
    if g.batch or len(g.summed) != 1 or len(g.left) != 1 or len(g.right) != 1:
        return None
    first = a if la == g.left + g.summed else f"{a}.t()"
    second = b if lb == g.summed + g.right else f"{b}.t()"
    if out == g.left + g.right:
        return first, second
    flipped = a if la == g.summed + g.left else f"{a}.t()"
    other = b if lb == g.right + g.summed else f"{b}.t()"
    return other, flipped


def flip(name: str) -> str:
    """The transpose of a matrix or of its transpose."""
    return name.removesuffix(".t()") if name.endswith(".t()") else f"{name}.t()"


def turn(pair: tuple[str, str]) -> tuple[str, str]:
    """The operands whose product is the transpose."""
    first, second = pair
    return flip(second), flip(first)


def turned(node: Contract, back: bool = False) -> bool:
    """Is a matrix product better computed as its transpose? Few columns take two to fourteen times as long as few
    rows. back: or is its transpose better computed as it is?"""
    inputs, out = node.terms
    sizes = {c: d for t, op in zip(inputs, node.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}
    rows, columns = (d if isinstance(d, int) else inf for d in (sizes[c] for c in out))
    return rows <= NARROW and rows < columns if back else columns <= NARROW and columns < rows


def matmul(first: str, second: str, bias: str | None = None) -> str:
    """first @ second (+ a row): torch's `linear` takes the second transposed, and saves the call that would do it."""
    if second.endswith(".t()"):
        return f"linear({first}, {second.removesuffix('.t()')}{f', {bias}' if bias else ''})"
    return f"torch.addmm({bias}, {first}, {second})" if bias else f"torch.mm({first}, {second})"


def product(node: Contract, a: str, b: str, dimension: Dimension, reshape: Reshape, transposed: bool = False) -> str:
    """Text of the product of the tensors named a and b; a matrix product as its transpose, if it is to lie so.
    reshape: text of a tensor whose axes are turned, in another shape."""
    g, ((la, lb), out) = groups(node), node.terms
    pair = matrix_operands(node, a, b)
    if pair is not None:
        return f"{matmul(*turn(pair))}.t()" if transposed else matmul(*pair)
    if not g.summed:
        return f"{spread(a, la, out)} * {spread(b, lb, out)}"
    if not g.left and not g.right:
        order = g.batch + g.summed
        axes = ", ".join(str(-j - 1) for j in range(len(g.summed)))
        inner = f"({spread(a, la, order)} * {spread(b, lb, order)}).sum(({axes},))"
        return _permute(inner, g.batch, out)
    return _batched(node, g, a, b, dimension, reshape, transposed)


def _batched(
    node: Contract, g: Groups, a: str, b: str, dimension: Dimension, reshape: Reshape, transposed: bool
) -> str:
    (la, lb), out = node.terms
    sizes = {c: d for t, op in zip((la, lb), node.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}

    def count(letters: str) -> str:
        return " * ".join(dimension(sizes[c]) for c in letters) or "1"

    order = g.batch + g.left + g.right
    plain = len(g.left) == len(g.right) == 1
    if not g.batch and (transposed == (out == g.left + g.right) if plain else _flipped(g, out, sizes)):
        x = _grouped(b, lb, [g.right, g.summed], count, reshape)
        y = _grouped(a, la, [g.summed, g.left], count, reshape)
        result, order = f"torch.mm({x}, {y})", g.right + g.left
    elif not g.batch:
        x = _grouped(a, la, [g.left, g.summed], count, reshape)
        y = _grouped(b, lb, [g.summed, g.right], count, reshape)
        result = f"torch.mm({x}, {y})"
    else:
        if out[-1] in g.left:  # what goes on by one there, should here
            (a, la), (b, lb), g = (b, lb), (a, la), replace(g, left=g.right, right=g.left)
            order = g.batch + g.left + g.right
        x = _grouped(a, la, [g.batch, g.left, g.summed], count, reshape, _scattered(la, g))
        y = _grouped(b, lb, [g.batch, g.summed, g.right], count, reshape, _scattered(lb, g))
        result = f"torch.bmm({x}, {y})"
    shape = ", ".join(dimension(sizes[c]) for c in order)
    exact = len(g.left) == 1 and len(g.right) == 1 and len(g.batch) <= 1
    return _permute(result if exact else f"{result}.reshape({shape})", order, out)


def _flipped(g: Groups, out: str, sizes: Mapping[str, Dim]) -> bool:
    """Is a product over groups of indices better computed as its transpose: because the result then lies in memory as
    it is asked for, or because it has few columns?"""
    rows, columns = (prod(d if isinstance(d, int) else inf for d in (sizes[c] for c in t)) for t in (g.left, g.right))
    if min(rows, columns) <= NARROW and max(rows, columns) < inf:
        return columns < rows
    return out == g.right + g.left


def _scattered(letters: str, g: Groups) -> bool:
    """Are the entries of an item apart in memory? torch.bmm then goes through the items one by one."""
    return letters[-1] in g.batch or (not set(letters) & {*g.left, *g.right} and not letters.endswith(g.summed))


def _grouped(
    name: str, letters: str, parts: list[str], count: Callable[[str], str], reshape: Reshape, packed: bool = False
) -> str:
    *batch, rows, columns = parts
    if (
        rows and columns and not packed and letters == "".join([*batch, columns, rows])
    ):  # its transpose is there already
        swapped = _grouped(name, letters, [*batch, columns, rows], count, reshape)
        return f"{swapped}.mT"
    text = _permute(name, letters, "".join(parts))
    text = f"{text}.contiguous()" if packed else text
    if all(len(p) == 1 for p in parts):
        return text
    shape = [count(p) for p in parts]
    return f"{text}.reshape({', '.join(shape)})" if packed or text == name else reshape(text, shape)


def _permute(text: str, letters: str, order: str) -> str:
    if letters == order:
        return text
    return f"{text}.permute({', '.join(str(letters.index(c)) for c in order)})"


def spread(name: str, letters: str, out: str) -> str:
    """The tensor with axes in the order of `out` and ones where it has none."""
    inside = "".join(c for c in out if c in letters)
    text = _permute(name, letters, inside)
    padded = ", ".join(":" if c in letters else "None" for c in out)
    stripped = padded
    while stripped.startswith("None, "):
        stripped = stripped[6:]
    return text if "None" not in stripped else f"{text}[{stripped}]"
