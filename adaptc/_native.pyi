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
def draw(
    seed: int, stream: int, threshold: int, out: int, m: int, k: int, data: int, threads: int, level: int, /
) -> None: ...
