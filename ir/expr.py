"""Expressions: interned, frozen, shape-checked nodes. Equality is identity, so sharing costs nothing.

A node class declares its fields by annotation and says its shape and kind in `infer`; it gets interning,
a digest that is the same in every process, pickling and rebuilding from that.
"""

from __future__ import annotations

import hashlib
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self, dataclass_transform

from adaptc.ir.dims import Shape, Size

Kind = str  # "real", "complex" or "integer"

_interned: weakref.WeakValueDictionary[Any, Expr] = weakref.WeakValueDictionary()
_lock = threading.Lock()


@dataclass_transform(frozen_default=True)
class Expr:
    """A tensor-valued expression. Fields are the constructor's arguments, in order; `dims` its sizes."""

    _fields: ClassVar[tuple[str, ...]] = ()
    fields: tuple[Any, ...]
    children: tuple[Expr, ...]
    dims: Shape
    kind: Kind
    digest: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = [k for k, v in cls.__dict__.get("__annotations__", {}).items() if "ClassVar" not in str(v)]
        cls._fields = (*cls._fields, *own)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        values = _bind(cls, args, kwargs)
        key = (cls, values)
        with _lock:
            found = _interned.get(key)
        if found is not None:
            return found  # type: ignore[return-value]
        self = object.__new__(cls)
        for name, value in zip(cls._fields, values, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "fields", values)
        object.__setattr__(self, "children", tuple(_nodes(values)))
        shape, kind = self.infer()
        object.__setattr__(self, "dims", shape)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "digest", _digest(cls.__name__, values))
        with _lock:
            return _interned.setdefault(key, self)  # type: ignore[return-value]

    def infer(self) -> tuple[Shape, Kind]:
        """Shape and kind from the fields; raises ShapeError where they do not fit."""
        raise NotImplementedError(type(self).__name__)

    def rebuild(self, change: Callable[[Expr], Expr]) -> Expr:
        """The same node over changed children."""
        new = list(map(change, self.children))
        if all(map(operator.is_, new, self.children)):
            return self
        rest = iter(new)
        return type(self)(*(_replace(v, rest) for v in self.fields))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.fields

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.fields))})"

    @property
    def shape(self) -> tuple[int | Size, ...]:
        """The shape as an equation sees it: a symbolic size refuses to be compared. The compiler reads `dims`."""
        return tuple(d if isinstance(d, int) else Size(d) for d in self.dims)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.dims)

    # The sugar of the language. One import inside functions: algebra is built from nodes.
    @property
    def T(self) -> Expr:
        return _algebra().transpose(self)

    def __add__(self, other: Any) -> Expr:
        return _algebra().add(self, other)

    def __radd__(self, other: Any) -> Expr:
        return _algebra().add(other, self)

    def __sub__(self, other: Any) -> Expr:
        return _algebra().subtract(self, other)

    def __rsub__(self, other: Any) -> Expr:
        return _algebra().subtract(other, self)

    def __neg__(self) -> Expr:
        return _algebra().multiply(-1, self)

    def __mul__(self, other: Any) -> Expr:
        return _algebra().multiply(self, other)

    def __rmul__(self, other: Any) -> Expr:
        return _algebra().multiply(other, self)

    def __truediv__(self, other: Any) -> Expr:
        return _algebra().divide_by(self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return _algebra().divide_by(other, self)

    def __floordiv__(self, other: Any) -> Expr:
        return _algebra().whole_divide(self, other)

    def __mod__(self, other: Any) -> Expr:
        return _algebra().remainder(self, other)

    def __pow__(self, other: Any) -> Expr:
        return _algebra().power(self, other)

    def __matmul__(self, other: Any) -> Expr:
        return _algebra().matmul(self, other)

    def __getitem__(self, item: Any) -> Expr:
        return _algebra().index(self, item)

    def __lt__(self, other: Any) -> Expr:
        return _algebra().less(self, other)

    def __gt__(self, other: Any) -> Expr:
        return _algebra().less(other, self)

    def __bool__(self) -> bool:
        return _algebra().refuse_truth(self)


def _algebra() -> Any:
    from adaptc.ir import algebra

    return algebra


def _bind(cls: type[Expr], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    names = cls._fields
    if not kwargs and len(args) == len(names):
        return args
    given = dict(zip(names, args, strict=False)) | kwargs
    unknown = set(kwargs) - set(names)
    if len(args) > len(names) or unknown:
        raise TypeError(f"{cls.__name__} takes {', '.join(names)}; got {len(args)} values and {unknown or 'no names'}")
    missing = [n for n in names if n not in given and not hasattr(cls, n)]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    return tuple(given[n] if n in given else getattr(cls, n) for n in names)


def _nodes(values: Iterable[Any]) -> Iterator[Expr]:
    for v in values:
        if isinstance(v, Expr):
            yield v
        elif isinstance(v, tuple):
            yield from _nodes(v)


def _replace(value: Any, nodes: Iterator[Expr]) -> Any:
    """A field with the next nodes in place of its own."""
    if isinstance(value, Expr):
        return next(nodes)
    if isinstance(value, tuple):
        new = tuple(_replace(v, nodes) for v in value)
        return type(value)(*new) if hasattr(value, "_fields") else new
    return value


def _digest(name: str, values: tuple[Any, ...]) -> str:
    text = f"{name}{_stable(values)}"
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _stable(value: Any) -> str:
    if isinstance(value, Expr):
        return value.digest
    if isinstance(value, tuple):
        return f"({','.join(map(_stable, value))})"
    return str(value)


def postorder(*roots: Expr) -> list[Expr]:
    """Every node once, children before parents, in the order they are written."""
    seen: dict[Expr, None] = {}
    stack = [*reversed(roots)]
    while stack:
        node = stack[-1]
        todo = () if node in seen else [c for c in node.children if c not in seen]
        if todo:
            stack.extend(reversed(todo))
        else:
            seen[stack.pop()] = None
    return list(seen)


def rewrite(root: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild bottom-up; `change` sees each rebuilt node and may give another for it."""
    return rewrite_all([root], change)[0]


def rewrite_all(roots: Sequence[Expr], change: Callable[[Expr], Expr | None]) -> list[Expr]:
    """`rewrite` of several roots, what they share once."""
    new: dict[Expr, Expr] = {}
    for node in postorder(*roots):
        built = node.rebuild(new.__getitem__)
        after = change(built)
        new[node] = built if after is None else after
    return [new[root] for root in roots]


def substitute(root: Expr, mapping: dict[Expr, Expr]) -> Expr:
    """Replace nodes (before their children are looked at) everywhere below root."""
    new: dict[Expr, Expr] = dict(mapping)

    def go(node: Expr) -> Expr:
        if node not in new:
            new[node] = node.rebuild(go)
        return new[node]

    return go(root)
