"""What the planner knows of a device: rates, as shipped or as measured. Predictions only rank plans; they promise no
time.

A measured description (`adaptc tune --calibrate`) is used only where it is asked for. It is not taken up by itself
because plans must be the same on every machine and on every day: a plan decides the order in which floating-point
numbers are added and which tensors are kept, so a result could not be reproduced, nor a saved run compared with
another, if either depended on how busy a machine was when it was measured.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import PlanError

BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
}
PRODUCT_DTYPES = ("float32", "bfloat16", "float16", "float64")
KINDS = ("cpu", "cuda")
NARROW = 32  # columns of a result up to which the generated code turns a matrix product round
FORMAT = "adaptc calibration 1"
LARGEST = 1 << 20  # bytes of a calibration file

Table = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Device:
    """The rates of a device.

    flops: operations per second of products, where no dtype is known. bandwidth: bytes per second, read and written.
    overhead: seconds per operation, whatever its size. kind: what torch calls it, "cpu" or "cuda".
    gemm: operations per second of large matrix products, by dtype; `flops` for any other.
    skinny: (extent, factor): a product whose smallest extent is `extent` runs at `factor` times `gemm`, 0 < factor
    <= 1, extents ascending; between two of them the factor is a power of the extent.
    columns: how many times longer a product takes whose result has few columns and more rows, and whose left operand
    lies transposed in memory, when it is computed as written.
    elementwise: operations per second outside products, as `ir.cost` counts them; 0: as `flops`.
    """

    name: str
    flops: float
    bandwidth: float
    overhead: float
    kind: str = "cpu"
    gemm: tuple[tuple[str, float], ...] = ()
    skinny: Table = ()
    columns: float = 1.0
    elementwise: float = 0.0

    def seconds(self, flops: float, moved: float, others: float = 0.0) -> float:
        """Seconds of a step of which only `flops` operations in products, `others` and `moved` bytes are known.

        It takes the longer of its arithmetic and its traffic, plus a constant.
        """
        work = flops / self.flops + others / (self.elementwise or self.flops)
        return max(work, moved / self.bandwidth) + self.overhead

    def product(self, m: int, n: int, k: int, dtype: str = "float32", *, batch: int = 1, turned: bool = True) -> float:
        """Seconds of `batch` matrix products (m, k) @ (k, n) -> (m, n) of one dtype, in one call.

        turned: a result of at most NARROW columns and more rows is computed as its transpose, as the generated code
        does with matrix products, or the left operand lies in memory row by row; without either such a product is
        `columns` times slower. Richer than `seconds`, which
        prices every product alike; the two agree on large products of the dtype that `flops` stands for.
        """
        if not m * n * k * batch:
            return self.overhead
        work = 2 * m * n * k * batch / (self.rate(dtype) * self.factor(min(m, n, k)))
        if not turned and n <= NARROW < m:
            work *= self.columns
        moved = BYTES[dtype] * (m * k + k * n + m * n) * batch
        return max(work, moved / self.bandwidth) + self.overhead

    def elementwise_pass(self, operations: float, moved: float) -> float:
        """Seconds of one step that is no product: `operations` as `ir.cost` counts them, `moved` in bytes."""
        return max(operations / (self.elementwise or self.flops), moved / self.bandwidth) + self.overhead

    def rate(self, dtype: str) -> float:
        """Operations per second of large matrix products of a dtype."""
        return dict(self.gemm).get(dtype, self.flops)

    def factor(self, extent: int) -> float:
        """What part of that rate a product reaches whose smallest extent is `extent`, in (0, 1]."""
        before: tuple[int, float] | None = None
        for size, factor in self.skinny:
            if extent <= size:
                if before is None or extent == size:
                    return factor
                low, least = before
                return least * (factor / least) ** (math.log(extent / low) / math.log(size / low))
            before = size, factor
        return 1.0


DEVICES = {
    d.name: d
    for d in (
        Device(
            "cpu", flops=1.0e11, bandwidth=2.0e10, overhead=5e-6, columns=2.0, elementwise=1.3e10,
            gemm=(("float32", 1.0e11), ("bfloat16", 2.0e11), ("float16", 1.0e11), ("float64", 5.0e10)),
            skinny=((1, 0.05), (8, 0.3), (32, 0.6), (128, 1.0)),
        ),
        Device(
            "cpu-few", flops=1.0e10, bandwidth=4.0e10, overhead=5e-8, elementwise=1.0e10, gemm=(("float32", 1.0e10),),
        ),
        Device(
            "h200", flops=6.0e14, bandwidth=3.5e12, overhead=5e-6, kind="cuda", elementwise=2.0e13,
            gemm=(("float32", 4.0e13), ("bfloat16", 6.0e14), ("float16", 6.0e14), ("float64", 5.0e13)),
            skinny=((1, 0.01), (16, 0.1), (64, 0.4), (256, 1.0)),
        ),
        Device(
            "a100", flops=2.2e14, bandwidth=1.4e12, overhead=5e-6, kind="cuda", elementwise=1.0e13,
            gemm=(("float32", 1.5e13), ("bfloat16", 2.2e14), ("float16", 2.2e14), ("float64", 1.5e13)),
            skinny=((1, 0.01), (16, 0.1), (64, 0.4), (256, 1.0)),
        ),
    )
}  # fmt: skip
"""Orders of magnitude from data sheets; `flops` is of bfloat16 products on the GPUs. `cpu` is one core; `cpu-few` the
same on a few tokens, with all operations in one call and all tensors in its cache."""


def device(name: str) -> Device:
    """The device of that name, or of a calibration file: PATH.json is the CPU in it, PATH.json#cuda the GPU.

    A file is read once per process. Raises PlanError naming the devices known, or the file and what to do.
    """
    if name in DEVICES:
        return DEVICES[name]
    path, _, kind = name.rpartition("#")
    if kind not in KINDS:
        path, kind = name, KINDS[0]
    if not path.endswith(".json"):
        raise PlanError(f"unknown device '{name}': one of {', '.join(DEVICES)}, or a calibration file (.json)")
    return _measured(path, kind)


AGAIN = "measure with `adaptc tune --calibrate`, or leave the calibration out"


class _Wrong(Exception):
    """What is wrong with a calibration file."""


@functools.lru_cache(maxsize=64)
def _measured(path: str, kind: str) -> Device:
    try:
        return _device(_document(Path(path)), kind, f"{path}#{kind}")
    except _Wrong as wrong:
        raise PlanError(f"cannot use the calibration file {path}: {wrong}; {AGAIN}") from wrong


def _document(path: Path) -> Any:
    """The JSON of a file; nothing in it is run."""
    try:
        if path.stat().st_size > LARGEST:
            raise _Wrong(f"it is larger than {LARGEST} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _Wrong("there is no such file") from error
    except OSError as error:
        raise _Wrong(str(error.strerror or error)) from error
    except (ValueError, RecursionError) as error:
        raise _Wrong("it is damaged, or no JSON") from error


def _device(document: Any, kind: str, name: str) -> Device:
    """The description of a kind of device in the document that `adaptc.tune` writes."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _Wrong(f"it does not say '{FORMAT}'")
    known = document.get("devices")
    if not isinstance(known, dict) or not isinstance(known.get(kind), dict):
        raise _Wrong(f"it describes no device '{kind}'")
    found: dict[str, Any] = known[kind]
    gemm = found.get("gemm")
    if not isinstance(gemm, dict) or not set(gemm) <= set(PRODUCT_DTYPES):
        raise _Wrong(f"'gemm' is no table of {', '.join(PRODUCT_DTYPES)}")
    return Device(
        name,
        flops=_positive(found, "flops"),
        bandwidth=_positive(found, "bandwidth"),
        overhead=_positive(found, "overhead"),
        kind=kind,
        gemm=tuple((dtype, _positive(gemm, dtype)) for dtype in gemm),
        skinny=_table(found.get("skinny")),
        columns=_positive(found, "columns"),
        elementwise=_positive(found, "elementwise"),
    )


def _positive(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise _Wrong(f"'{name}' is no positive number")
    return float(value)


def _table(rows: Any) -> Table:
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        raise _Wrong("'skinny' is no list of pairs")
    table = tuple((extent, _positive({"skinny": factor}, "skinny")) for extent, factor in rows)
    extents = [e for e, _ in table]
    if not all(type(e) is int and e > 0 for e in extents) or extents != sorted(set(extents)):
        raise _Wrong("the extents of 'skinny' do not ascend")
    if any(f > 1 for _, f in table):
        raise _Wrong("a factor of 'skinny' is above 1")
    return table
