"""Products that are added, with an operand in common: a B + c B -> (a + c) B, one product for two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from string import ascii_letters

from adaptc.ir.build import add, contract, scale, split
from adaptc.ir.expr import Expr, postorder, rewrite_all
from adaptc.ir.prims import Add, Contract

Key = tuple[str, Expr]  # the letters, and the operand in common, which stands last


def factored(roots: Sequence[Expr]) -> list[Expr]:
    """The same values; only products of matrices that nothing else uses are joined."""
    uses = Counter(c for e in postorder(*roots) for c in e.children)
    uses.update(roots)
    alone = {e for e, count in uses.items() if count == 1}

    def change(e: Expr) -> Expr | None:
        return _joined(e, joint, alone) if isinstance(e, Add) else None

    joint = {e for e in alone if _is_product(e)}
    if not any(isinstance(e, Add) for e in uses):
        return list(roots)
    return straightened(rewrite_all(roots, change))


def straightened(roots: Sequence[Expr]) -> list[Expr]:
    """Products that only their transpose is read of are computed so."""
    uses = Counter(c for e in postorder(*roots) for c in e.children)
    uses.update(roots)
    new: dict[Expr, Expr] = {}
    for e in postorder(*roots):
        new[e] = e.rebuild(new.__getitem__)
        if isinstance(e, Contract) and len(e.operands) == 1 and uses[e.operands[0]] == 1:
            new[e] = _turned(new[e.operands[0]], e.terms[0][0], e.terms[1])
    return [new[root] for root in roots]


def _is_product(e: Expr) -> bool:
    if not isinstance(e, Contract) or len(e.operands) != 2:
        return False
    (a, b), out = e.terms
    return any(c not in out for c in a) and any(c not in b for c in a) and any(c not in a for c in b)


def _joined(e: Add, joint: set[Expr], alone: set[Expr]) -> Expr | None:
    count: Counter[Key] = Counter()
    for t in e.terms:
        count.update(key for key, _ in _ways(t, joint, alone))
    together: dict[Key, list[Expr]] = {}
    terms: list[Expr] = []
    for t in e.terms:
        ways = [(key, value) for key, value in _ways(t, joint, alone) if count[key] > 1]
        if ways:
            key, value = max(ways, key=lambda w: count[w[0]])
            together.setdefault(key, []).append(value)
        else:
            terms.append(t)
    if not together:
        return None
    for (spec, other), values in together.items():
        terms.append(_product(spec, values, other))
    return add(*terms)


def _product(spec: str, values: list[Expr], other: Expr) -> Expr:
    """(a + c) B; where every term of the sum is turned alike, the product reads the sum of what they are made of."""
    inner = [split(v)[1] for v in values]
    first = inner[0]
    if not isinstance(first, Contract) or len(first.operands) > 1:
        return contract(spec, add(*values), other)
    if any(not isinstance(v, Contract) or v.spec != first.spec or len(v.operands) > 1 for v in inner):
        return contract(spec, add(*values), other)
    (before,), after = first.terms
    letters, rest = spec.split(",")
    names = dict(zip(after, letters, strict=True))
    total = add(*(scale(split(v)[0], split(v)[1].children[0]) for v in values))
    return contract(f"{''.join(names[c] for c in before)},{rest}", total, other)


def _turned(e: Expr, letters: str, order: str, alone: bool = True) -> Expr:
    """e with its axes in another order; a product that nothing else uses is computed so."""
    if letters == order or not isinstance(e, Contract) or len(e.operands) != 2 or not alone:
        return contract(f"{letters}->{order}", e)
    inputs, out = e.terms
    names = dict(zip(letters, out, strict=True))
    return contract(f"{','.join(inputs)}->{''.join(names[c] for c in order)}", *e.operands)


def _ways(t: Expr, joint: set[Expr], alone: set[Expr]) -> list[tuple[Key, Expr]]:
    """What a term has in common with others, and what it does not: with either operand."""
    number, p = split(t)
    if not isinstance(p, Contract) or p not in joint:
        return []
    inputs, out = p.terms
    found = []
    for j in (0, 1):
        mine, other = inputs[j], inputs[1 - j]
        names = dict(zip(dict.fromkeys(out + other + mine), ascii_letters, strict=False))
        order = sorted(mine, key=lambda c: names[c])
        value = _turned(p.operands[j], mine, "".join(order), p.operands[j] in alone)
        spec = ",".join("".join(names[c] for c in letters) for letters in (order, other))
        found.append(((f"{spec}->{''.join(names[c] for c in out)}", p.operands[1 - j]), scale(number, value)))
    return found
