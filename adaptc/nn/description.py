"""The JSON of an adapter folder as checked data: whatever a file says is of the right type before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptc.errors import LoadError

FORMAT = 1
LARGEST = 2**31  # entries of a tensor that is drawn again


@dataclass(frozen=True)
class AdapterEntry:
    """A method by name and module, and its hyper-parameters."""

    method: str
    module: str
    hyper: Mapping[str, Any]


@dataclass(frozen=True)
class LayerEntry:
    """A layer's sizes, active adapters in order, the hash of each adapter's equation, and its dropout."""

    n: int
    k: int
    bias: bool
    active: tuple[str, ...]
    equations: Mapping[str, str]
    dropout: Mapping[str, float]


@dataclass(frozen=True)
class Description:
    """Everything in the JSON. shared: adapter -> key -> size of the whole leaf. equations: hash -> text form."""

    adapters: Mapping[str, AdapterEntry]
    layers: Mapping[str, LayerEntry]
    shared: Mapping[str, Mapping[str, tuple[int, ...]]]
    equations: Mapping[str, Any]


def parse(raw: Any) -> Description:
    """Check a decoded JSON document. Raises LoadError naming the entry that is wrong."""
    top = _typed(raw, dict, "the description")
    if _entry(top, "format", int, "the description") != FORMAT:
        raise LoadError(f"the file has format {top['format']!r}, this release reads {FORMAT}")
    adapters = {n: _adapter(n, a) for n, a in _entry(top, "adapters", dict, "the description").items()}
    layers = {n: _layer(n, e, adapters) for n, e in _entry(top, "layers", dict, "the description").items()}
    if not layers:
        raise LoadError("the description names no layer")
    shared = {
        name: {key: _size(size, f"shared {name}.{key}") for key, size in _typed(sizes, dict, f"shared {name}").items()}
        for name, sizes in _entry(top, "shared", dict, "the description").items()
    }
    return Description(adapters, layers, shared, _entry(top, "equations", dict, "the description"))


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (
        kind is int and isinstance(value, bool) and what != "'format' of the description"
    ):
        raise LoadError(f"{what} must be a {kind.__name__}, got {value!r:.80}")
    return value


def _entry(holder: Mapping[str, Any], key: str, kind: type, what: str) -> Any:
    if key not in holder:
        raise LoadError(f"{what} has no '{key}'")
    return _typed(holder[key], kind, f"'{key}' of {what}")


def _adapter(name: str, raw: Any) -> AdapterEntry:
    what = f"adapter '{name}'"
    if not name.isidentifier():
        raise LoadError(f"{what} is no name for an adapter")
    entry = _typed(raw, dict, what)
    method, module = _entry(entry, "method", str, what), _entry(entry, "module", str, what)
    return AdapterEntry(method, module, _entry(entry, "hyper", dict, what))


def _layer(name: str, raw: Any, adapters: Mapping[str, AdapterEntry]) -> LayerEntry:
    what = f"layer '{name}'"
    entry = _typed(raw, dict, what)
    n, k = _entry(entry, "n", int, what), _entry(entry, "k", int, what)
    active = _entry(entry, "active", list, what)
    equations = _entry(entry, "equations", dict, what)
    for adapter, digest in equations.items():
        if adapter not in adapters:
            raise LoadError(f"{what} uses the adapter '{adapter}', which is not described")
        _typed(digest, str, f"the equation of '{adapter}' in {what}")
    unknown = [a for a in active if a not in equations]
    if unknown or len(set(active)) != len(active):
        raise LoadError(f"the active adapters of {what} are {active}, it has {list(equations)}")
    dropout = _typed(entry.get("dropout", {}), dict, f"'dropout' of {what}")
    for adapter, p in dropout.items():
        if adapter not in equations or isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p < 1:
            raise LoadError(f"the dropout of '{adapter}' in {what} is {p!r}: a number at least 0 and below 1")
    return LayerEntry(n, k, _entry(entry, "bias", bool, what), tuple(active), equations, dropout)


def _size(raw: Any, what: str) -> tuple[int, ...]:
    size = tuple(_typed(d, int, f"a size of {what}") for d in _typed(raw, list, what))
    total = 1
    for d in size:
        total *= d
    if any(d < 0 for d in size) or total > LARGEST:
        raise LoadError(f"{what} has the size {size}")
    return size
