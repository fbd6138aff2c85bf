from collections.abc import Callable
from typing import Any

class Library:
    def __init__(self, tensor: type, parameter: type, /) -> None: ...
    def ready(self) -> bool: ...

class Steps:
    def __init__(
        self, library: Library, lower: Callable[[int], tuple[Any, ...]], wide: bool, level: int, /
    ) -> None: ...
    def __call__(self, *tensors: Any) -> bool: ...

class Repeat:
    def __init__(
        self,
        library: Library,
        x: Any,
        sources: list[tuple[dict[str, Any], str]],
        target: Any,
        least: int,
        most: int,
        /,
    ) -> None: ...
    def usable(self) -> bool: ...
    def __call__(self, x: Any, /) -> Any: ...

class Multiply:
    def __init__(
        self,
        loops: list[tuple[int, int, int, int]],
        outer: int,
        summed: int,
        a_type: int,
        b_type: int,
        out_type: int,
        scale: float,
        a_sign: float,
        b_sign: float,
        level: int,
        /,
    ) -> None: ...
    def __call__(self, a: int, b: int, out: int, threads: int, /) -> None: ...

def levels() -> tuple[str, ...]: ...
def blocks_apply(
    x: int,
    R: int,
    out: int,
    m: int,
    g: int,
    p: int,
    q: int,
    x_stride: int,
    data: int,
    blocks: int,
    transposed: bool,
    threads: int,
    level: int,
    /,
) -> None: ...
def blocks_gradient(
    x: int,
    gy: int,
    out: int,
    m: int,
    g: int,
    p: int,
    q: int,
    x_stride: int,
    gy_stride: int,
    data: int,
    threads: int,
    level: int,
    /,
) -> None: ...
def sampled(
    a: int,
    b: int,
    rows: int,
    cols: int,
    out: int,
    places: int,
    m: int,
    n: int,
    k: int,
    a_stride: int,
    b_stride: int,
    data: int,
    threads: int,
    level: int,
    /,
) -> None: ...
def scatter(
    x: int,
    c: int,
    rows: int,
    cols: int,
    out: int,
    places: int,
    m: int,
    k: int,
    n: int,
    x_stride: int,
    data: int,
    threads: int,
    level: int,
    /,
) -> None: ...
def copy(
    source: int, to: int, loops: tuple[tuple[int, int, int], ...], turned: bool, threads: int, level: int, /
) -> None: ...
def solve(
    A: int,
    A_stride: tuple[int, ...],
    B: int,
    B_stride: tuple[int, ...],
    out: int,
    sizes: tuple[int, int, int],
    threads: int,
    level: int,
    /,
) -> bool: ...
def draw(
    seed: int, stream: int, threshold: int, out: int, m: int, k: int, data: int, threads: int, level: int, /
) -> None: ...
