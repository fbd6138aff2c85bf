"""Generated kernel or torch? Both are priced for every part; what was not measured must be a tenth cheaper by the model
to be chosen over the steps that torch is known to do well. A long product is the vendor's with a kernel after it, or
goes into that kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptc.codegen.fuse import Fusion, Part, is_dot, is_number, is_view
from adaptc.codegen.lower import SHORT, sum_of
from adaptc.codegen.types import Types
from adaptc.ir.cost import cost, entries
from adaptc.ir.dims import Dim
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Broadcast, Map, Scale
from adaptc.plan.device import BYTES, Device
from adaptc.plan.plan import reach

GAIN = 0.9  # times the predicted time of torch's steps: what a kernel that was never measured may take
GENERATED = 0.8  # of the rate of a vendor's product
PARTS = 16  # of a sum over tokens, as predicted

Size = Callable[[Dim], int]


@dataclass(frozen=True)
class Candidate:
    """One part and what it is predicted to take: as a generated kernel, and as steps of torch."""

    part: Part
    kernel: float
    torch: float

    @property
    def generated(self) -> bool:
        """Is it the kernel that is chosen?"""
        return self.kernel <= GAIN * self.torch


@dataclass(frozen=True)
class Fused:
    """A long product and what is done to it; predicted seconds in one kernel, and as the vendor's and another."""

    product: Expr
    part: Part
    together: float
    apart: float


@dataclass(frozen=True)
class Prices:
    """Predicted seconds on a device. size: numbers for sizes."""

    device: Device
    size: Size
    types: Types

    def candidate(self, part: Part) -> Candidate:
        """Both ways to compute a part."""
        inside = [e for e in reach([part.root], part.inputs) if e not in part.inputs]
        return Candidate(part, self.kernel(part, inside), sum(map(self.torch, inside)))

    def moved(self, nodes: Sequence[Expr]) -> float:
        """Bytes of tensors."""
        return sum(BYTES[self.types[e]] * entries(e.dims, self.size) for e in nodes if not is_number(e))

    def kernel(self, part: Part, inside: Sequence[Expr]) -> float:
        """Everything is read and written once; a sum in parts writes and reads them between two kernels."""
        moved = self.moved([*part.inputs, part.root])
        calls = 1
        if part.split is not None:
            moved += 2 * PARTS * 4 * entries(part.split.dims, self.size)
            calls = 2
        work = sum(map(self.work, inside))
        return max(work, moved / self.device.bandwidth) + calls * self.device.overhead

    def work(self, e: Expr) -> float:
        """Seconds of the arithmetic of a node in a kernel."""
        c = cost(e, self.size)
        s = sum_of(e)
        rest = (c.flops - c.gemm) / (self.device.elementwise or self.device.flops)
        if s is None or not is_dot(e):
            return rest + c.gemm / (self.device.elementwise or self.device.flops)
        return rest + c.gemm / (GENERATED * self.rate(e))

    def rate(self, e: Expr) -> float:
        """Operations per second of a product."""
        dtypes = {self.types[e], *(self.types[op] for op in e.children)}
        short = sorted(dtypes & set(SHORT))
        return self.device.rate(short[0] if short else "float32")

    def torch(self, e: Expr) -> float:
        """Seconds of a node as torch's own calls."""
        if is_view(e) or is_number(e) or isinstance(e, (Broadcast, Scale)):
            return 0.0
        c = cost(e, self.size)
        calls = max(1, int(e.fn.count_ops())) if isinstance(e, Map) else 1
        traffic = calls * self.moved([e, *e.children]) / self.device.bandwidth
        work = c.gemm / self.rate(e) + (c.flops - c.gemm) / (self.device.elementwise or self.device.flops)
        return max(work, traffic) + calls * self.device.overhead

    def best(self, part: Part) -> float:
        """Seconds of a part, the way that is chosen."""
        candidate = self.candidate(part)
        return candidate.kernel if candidate.generated else candidate.torch

    def fused(self, fusion: Fusion) -> list[Fused]:
        """For each of the vendor's products that one part alone reads: both in one kernel, or apart."""
        found = []
        for e in fusion.products():
            readers = [part for part in fusion.parts.values() if e in part.inputs]
            if len(readers) != 1 or fusion.uses[e] != 1:
                continue
            other = Fusion(fusion.results, fusion.there, fusion.types, fusion.inside | {e})
            part = other.parts.get(readers[0].root)
            if part is not None and part.path and e in part.path:
                apart = self.torch(e) + self.best(readers[0])
                found.append(Fused(e, part, self.candidate(part).kernel, apart))
        return found

    def choose(self, fusion: Fusion) -> Fusion:
        """The same program with the products inside of kernels for which that is predicted to pay."""
        inside = {f.product for f in self.fused(fusion) if f.together <= GAIN * f.apart}
        if not inside:
            return fusion
        return Fusion(fusion.results, fusion.there, fusion.types, fusion.inside | inside)
