"""The kernels of `csrc/` on torch tensors: CPU, float32 and bfloat16, sums in float32.

Nothing here is required: without the extension `available()` is false, and the caller takes torch. Results are the
same bits for every number of threads, and nothing is written but the result.
"""

from __future__ import annotations

import functools
import warnings
from math import prod
from typing import Any

import torch  # before the extension, so that one OpenMP runtime is loaded
from torch import Tensor

from adaptc.codegen.strided import Strided
from adaptc.errors import ShapeError
from adaptc.ir.dims import show

try:
    from adaptc import _native
except ImportError as error:
    _reason = f"{error}; it is compiled when adaptc is installed and needs a C++17 compiler"
else:
    _reason = ""

CODES = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes that the kernels read and write; those of `products` complex64 too, which is 2."""

BEST = -1
SERIAL = 1 << 15  # below this many multiplications, or draws, a second thread costs more than it saves

_told = False


def available() -> bool:
    """Whether the kernels were compiled."""
    return not _reason


def missing_reason() -> str:
    """Why they are missing; empty if they are there."""
    return _reason


def ready() -> bool:
    """`available()` for a program that could use the kernels: the first time they are missing, it warns."""
    global _told
    if _reason and not _told:
        _told = True
        warnings.warn(
            f"adaptc: native kernels are missing ({_reason}); torch is used instead", RuntimeWarning, stacklevel=2
        )
    return not _reason


def pays(p: int, q: int, dtype: torch.dtype) -> bool:
    """Whether the products with (p, q) blocks beat torch's: all three of a layer, measured by `bench.native`.

    Blocks that fill no vector and are not among the small ones, or that are large, stay with torch. It holds for R in
    x's dtype: with bfloat16 x, blocks above 16 in float32 are slower than rounding them first.
    """
    if _reason or dtype not in CODES:
        return False
    best = _native.levels()[BEST]
    if p == q and p in (2, 4, 8):
        return True
    whole = best.startswith("avx512") or p % 8 == q % 8 == 0  # the others are slow at parts of vectors
    return best != "plain" and whole and min(p, q) >= 12 and max(p, q) <= 128


@functools.cache
def _library() -> Any:
    return _native.Library(Tensor, torch.nn.Parameter)


def looks() -> bool:
    """Whether calls can be made from C++: torch must show its tensors (2.11 and later do)."""
    return available() and bool(_library().ready())


def steps(strided: Strided, level: int = BEST) -> Any:
    """The compiled steps as a function (*arguments, *results) -> whether it could read them all."""

    def lower(rows: int) -> tuple[Any, ...]:
        return tuple(strided.at(rows))

    return _native.Steps(_library(), lower, strided.dtype == "float64", level)


def together(strided: Strided, level: int = BEST) -> Any:
    """The compiled steps as a function of the arguments that gives the results; none of them has tokens."""
    call, dtype = steps(strided, level), getattr(torch, strided.dtype)
    shapes = strided.at(0).shapes[len(strided.arguments) :]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        made = tuple(torch.empty(shape, dtype=dtype) for shape in shapes)
        return made if call(*tensors, *made) else straight(call, len(made), *tensors, *made)

    return run


def repeat(x: Tensor, sources: list[tuple[dict[str, Any], str]], target: Any, least: int, most: int) -> Any | None:
    """A function of x that calls target(x, *tensors) as long as x and the tensors are of the same kind as now, and
    gives None otherwise. sources: where each tensor is read. least, most: entries of x."""
    made = _native.Repeat(_library(), x, sources, target, least, most)
    return made if made.usable() else None


def straight(steps: Any, results: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Results of compiled steps for tensors that are not row-major. Raises ShapeError where a size is another."""
    ready = [plain(t).contiguous() for t in tensors]
    if not steps(*ready):
        shapes = ", ".join(f"{show(tuple(t.shape))} {t.dtype} {t.device}" for t in tensors[: len(tensors) - results])
        raise ShapeError(f"the tensors of the layer do not fit the program that was made for it: they are {shapes}")
    return tuple(ready[len(ready) - results :])


def plain(t: Tensor) -> Tensor:
    """The same values as a torch.Tensor and nothing more."""
    return t.detach().as_subclass(Tensor)


def blocks_apply(x: Tensor, R: Tensor, transposed: bool = False, level: int = BEST) -> Tensor:
    """out[m, g, q] = sum_p x[m, g, p] R[g, p, q], or R[g, q, p] if transposed, in x's dtype."""
    m, g, p = x.shape
    q = R.shape[1] if transposed else R.shape[2]
    x, R = _rows(x), R.contiguous()
    out = x.new_empty((m, g, q))
    _native.blocks_apply(
        x.data_ptr(),
        R.data_ptr(),
        out.data_ptr(),
        m,
        g,
        p,
        q,
        x.stride(0),
        CODES[x.dtype],
        CODES[R.dtype],
        transposed,
        threads_for(m * g * p * q),
        level,
    )
    return out


def blocks_gradient(x: Tensor, gy: Tensor, dtype: torch.dtype, level: int = BEST) -> Tensor:
    """out[g, p, q] = sum_m x[m, g, p] gy[m, g, q], summed in float32 and rounded once."""
    m, g, p = x.shape
    q = gy.shape[2]
    x, gy = _rows(x), _rows(gy)
    out = x.new_empty((g, p, q), dtype=torch.float32)
    _native.blocks_gradient(
        x.data_ptr(),
        gy.data_ptr(),
        out.data_ptr(),
        m,
        g,
        p,
        q,
        x.stride(0),
        gy.stride(0),
        CODES[x.dtype],
        threads_for(m * g * p * q),
        level,
    )
    return out if dtype == torch.float32 else out.to(dtype)


def samples(a: Tensor, b: Tensor, rows: Tensor, cols: Tensor) -> bool:
    """Whether `sampled` can take these."""
    return (
        available()
        and a.dtype == b.dtype
        and a.dtype in CODES
        and all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in (a, b))
        and all(t.device.type == "cpu" for t in (a, b, rows, cols))
        and not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())
    )


def sampled(a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, level: int = BEST) -> Tensor:
    """out[t] = sum_m a[m, rows[t]] b[m, cols[t]], in float32. Raises IndexError for a place outside."""
    rows, cols = rows.contiguous(), cols.contiguous()
    _check_places(rows, a.shape[1])
    _check_places(cols, b.shape[1])
    a, b = (t if t.stride(1) == 1 else t.contiguous() for t in (a, b))
    out = torch.empty(rows.numel(), dtype=torch.float32)
    _native.sampled(
        a.data_ptr(),
        b.data_ptr(),
        rows.data_ptr(),
        cols.data_ptr(),
        out.data_ptr(),
        rows.numel(),
        a.shape[0],
        a.shape[1],
        b.shape[1],
        a.stride(0),
        b.stride(0),
        CODES[a.dtype],
        threads_for(rows.numel() * a.shape[0]),
        level,
    )
    return out


def scattered(x: Tensor, cols: Tensor, c: Tensor, rows: Tensor, n: int, level: int = BEST) -> Tensor:
    """out (m, n) with out[:, rows[t]] += c[t] x[:, cols[t]] for all t in turn, summed in float32, in x's dtype. c is
    float32. Raises IndexError for a place outside."""
    rows, cols, c = rows.contiguous(), cols.contiguous(), c.contiguous()
    _check_places(rows, n)
    _check_places(cols, x.shape[1])
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty((x.shape[0], n))
    _native.scatter(
        x.data_ptr(),
        c.data_ptr(),
        rows.data_ptr(),
        cols.data_ptr(),
        out.data_ptr(),
        rows.numel(),
        x.shape[0],
        x.shape[1],
        n,
        x.stride(0),
        CODES[x.dtype],
        threads_for(x.shape[0] * (rows.numel() + n)),
        level,
    )
    return out


def _check_places(at: Tensor, count: int) -> None:
    if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < count:
        raise IndexError(f"a place outside of {count} rows")


def uniform(seed: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, level: int = BEST) -> Tensor:
    """`random.uniform` on the CPU, the same bits."""
    return _draw(seed, stream, -1, shape, dtype, level)


def bernoulli(
    seed: Tensor, stream: int, p: float, shape: tuple[int, ...], dtype: torch.dtype, level: int = BEST
) -> Tensor:
    """`random.bernoulli` on the CPU, the same bits."""
    return _draw(seed, stream, round(p * 2**24), shape, dtype, level)


def _draw(seed: Tensor, stream: int, threshold: int, shape: tuple[int, ...], dtype: Any, level: int) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    m, k = shape[0], prod(shape[1:])
    _native.draw(
        seed.data_ptr(),
        stream & 0xFFFFFFFF,
        threshold,
        out.data_ptr(),
        m,
        k,
        CODES[dtype],
        threads_for(m * k),
        level,
    )
    return out


def _rows(x: Tensor) -> Tensor:
    """x with each row contiguous, whatever lies between the rows."""
    _, g, p = x.shape
    _, group, unit = x.stride()
    straight = (unit == 1 or p == 1) and (group == p or g == 1)
    return x if straight else x.contiguous()


def threads_for(operations: int) -> int:
    """How many threads share that many multiplications."""
    return 1 if operations < SERIAL else torch.get_num_threads()
