"""Native kernels against float64, on every instruction set of this machine; their random numbers against torch's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from adaptc.runtime import native, random
from adaptc.runtime.sampled import sampled

if not native.available():  # never skipped: a build that fails must not pass for a test that passes
    raise RuntimeError(f"{native.missing_reason()}; here: python setup.py build_ext --inplace")

from adaptc import _native

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16)
SIZES = [(5, 3, b, b) for b in range(1, 66)] + [
    *((m, g, b, b) for m in (1, 4, 51, 131) for g in (1, 5, 17) for b in (2, 4, 8, 16, 20)),
    *((3, 2, p, q) for p, q in ((1, 7), (7, 1), (4, 8), (8, 4), (16, 33), (33, 16), (64, 24), (2, 65))),
    *((97, 1, p, q) for p, q in ((129, 31), (31, 129), (257, 16), (200, 100))),
]

every_level = pytest.mark.parametrize("level", range(len(_native.levels())), ids=_native.levels())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def empty_is_nan():
    """torch fills what it allocates with NaN, so that a kernel that leaves an element out is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """set(n), undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_as_exact(ours, formula, *operands):
    """At most twice the error of plain torch in the same dtype, and the rounding of the terms."""
    exact = torch.einsum(formula, *(t.to(torch.promote_types(t.dtype, torch.float64)) for t in operands))
    size = torch.einsum(formula, *(t.abs().double() for t in operands))
    theirs = torch.einsum(formula, *(t.to(ours.dtype) for t in operands))
    bound = 2 * (theirs - exact).norm() + 2 * torch.finfo(ours.dtype).eps * size.norm()
    assert (ours - exact).norm() <= bound, [t.shape for t in operands]  # false for NaN


@every_level
@every_dtype
@pytest.mark.parametrize("blocks", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_apply(level, dtype, blocks, transposed):
    for m, g, p, q in SIZES:
        x, R = torch.randn(m, g, p).to(dtype), torch.randn(g, *((q, p) if transposed else (p, q))).to(blocks)
        y = native.blocks_apply(x, R, transposed, level)
        assert y.shape == (m, g, q)
        assert y.dtype == dtype
        assert_as_exact(y, "mgi,gji->mgj" if transposed else "mgi,gij->mgj", x, R)


@every_level
@every_dtype
def test_blocks_gradient(level, dtype):
    for m, g, p, q in SIZES:
        x, gy = torch.randn(m, g, p).to(dtype), torch.randn(m, g, q).to(dtype)
        for out in DTYPES:
            found = native.blocks_gradient(x, gy, out, level)
            assert found.dtype == out
            assert_as_exact(found, "mgi,mgj->gij", x, gy)


@every_level
@every_dtype
@pytest.mark.parametrize("m", [0, 1, 7, 64, 129, 300])
def test_sampled(level, dtype, m):
    a, b = torch.randn(13, m).to(dtype), torch.randn(9, m).to(dtype)
    for places in (0, 1, 40):
        rows, cols = torch.randint(13, (places,)), torch.randint(9, (places,))
        found = native.sampled(a.T, rows, b.T, cols, level)
        assert found.shape == (places,)
        assert_as_exact(found, "tm,tm->t", a[rows], b[cols])
    with pytest.raises(IndexError, match="13 rows"):
        native.sampled(a.T, torch.tensor([13]), b.T, torch.tensor([0]), level)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_sampled_products_of_any_strides(dtype):
    x, gy = torch.randn(2, 33, 9).to(dtype)[:, ::2].reshape(-1, 9), torch.randn(7, 34).to(dtype).T
    rows, cols = torch.randint(7, (50,)), torch.randint(9, (50,))
    wide = torch.promote_types(dtype, torch.float32)
    found = sampled(gy, rows, x, cols, wide)
    assert found.dtype == wide
    assert_as_exact(found, "mt,mt->t", gy[:, rows], x[:, cols])


@every_level
@every_dtype
@pytest.mark.parametrize("b", [4, 5, 16])
def test_operands_may_have_any_strides(level, dtype, b):
    dense = torch.randn(6, 3, b).to(dtype)
    wide, apart = torch.randn(6, 4, b).to(dtype), torch.randn(6, 3, 2 * b).to(dtype)
    same_row, step = torch.randn(1, 3, b).to(dtype).expand(6, 3, b), torch.randn(12, 3, b).to(dtype)[::2]
    R = torch.randn(b, 3, b).to(dtype).transpose(0, 1)
    for x in (wide[:, :3], wide[:, 1:], apart[:, :, ::2], apart[:, :, :b], dense.flip(0).transpose(0, 1).mT.mT):
        x = x if x.shape[0] == 6 else x.transpose(0, 1)
        assert torch.equal(native.blocks_apply(x, R, False, level), native.blocks_apply(x.clone(), R, False, level))
    for x in (same_row, step, wide[:, :3]):
        assert_as_exact(native.blocks_apply(x, R, False, level), "mgi,gij->mgj", x, R)
        assert_as_exact(native.blocks_gradient(x, dense, torch.float32, level), "mgi,mgj->gij", x, dense)
        assert_as_exact(native.blocks_gradient(dense, x, torch.float32, level), "mgi,mgj->gij", dense, x)


@every_dtype
@pytest.mark.parametrize("b", [3, 4, 16])
def test_no_tokens(dtype, b):
    x, R = torch.empty(0, 2, b, dtype=dtype), torch.randn(2, b, b)
    assert native.blocks_apply(x, R).shape == (0, 2, b)
    assert torch.equal(native.blocks_gradient(x, x, dtype), torch.zeros(2, b, b, dtype=dtype))
    assert native.uniform(torch.tensor(1), 0, (0, 3), dtype).shape == (0, 3)
    assert native.bernoulli(torch.tensor(1), 0, 0.5, (3, 0), dtype).shape == (3, 0)


@every_level
@every_dtype
@pytest.mark.parametrize("b", [4, 7, 16, 64])
def test_bits_do_not_depend_on_threads_or_on_the_other_tokens(level, dtype, b, threads):
    x, gy, R = torch.randn(211, 13, b).to(dtype), torch.randn(211, 13, b).to(dtype), torch.randn(13, b, b).to(dtype)
    found = []
    for n in (1, 2, 5):
        threads(n)
        y, g = native.blocks_apply(x, R, True, level), native.blocks_gradient(x, gy, torch.float32, level)
        found.append((y, g, native.uniform(torch.tensor(3), 1, (211, 300), dtype, level)))
    for other in found[1:]:
        assert all(torch.equal(a, c) for a, c in zip(found[0], other, strict=True))
    alone = torch.cat([native.blocks_apply(x[t : t + 1], R, True, level) for t in (0, 46, 210)])
    assert torch.equal(alone, found[0][0][[0, 46, 210]])


@every_level
@every_dtype
@pytest.mark.parametrize("b", [4, 5, 16, 33])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_reaches_its_own_block_and_no_other(level, dtype, b, bad):
    x, R = torch.randn(9, 7, b).to(dtype), torch.randn(7, b, b).to(dtype)
    x[3, 2, b - 1] = bad
    expected = torch.ones(9, 7, b, dtype=torch.bool)
    expected[3, 2] = False
    assert torch.equal(native.blocks_apply(x, R, False, level).isfinite(), expected)
    finite = native.blocks_gradient(x, torch.ones_like(x), torch.float32, level).isfinite()
    assert finite.sum() == finite.numel() - b
    assert not finite[2, b - 1].any()


@every_level
def test_bfloat16_is_rounded_to_nearest_even(level):
    values = torch.cat([torch.arange(1 << 16), torch.randint(1 << 32, (1 << 14,)), torch.tensor([0x7F800001])])
    x = torch.where(values < 1 << 16, (values << 16) | 0x8000, values).to(torch.int32).view(torch.float32)
    x = x[(x.abs() >= torch.finfo(torch.float32).tiny) | (x == 0) | x.isnan()]  # some machines flush what is smaller
    for p in (2, 4, 17):
        for some in x.split(1 << 12):
            one, R = torch.zeros(1, some.numel(), p, dtype=torch.bfloat16), some.new_zeros(some.numel(), p, p)
            one[:, :, 0], R[:, 0, 0] = 1.0, some
            y = native.blocks_apply(one, R, False, level)[0, :, 0]
            assert torch.equal(y.nan_to_num(nan=7.0), some.bfloat16().nan_to_num(nan=7.0))
            assert torch.equal(y.isnan(), some.isnan())


@every_level
@every_dtype
@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 1), (1, 19), (13, 5, 3), (31, 64), (2, 3, 4, 5), (300, 129)])
def test_random_numbers_are_those_of_torch(level, dtype, shape):
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF):
        s = torch.tensor(seed)
        for stream in (0, 1, 2**32 - 1):
            ours = native.uniform(s, stream, shape, dtype, level)
            assert torch.equal(ours, random.uniform(s, stream, shape, dtype))
            for p in (0.0, 0.1, 0.5, 1.0):
                ours = native.bernoulli(s, stream, p, shape, dtype, level)
                assert torch.equal(ours, random.bernoulli(s, stream, p, shape, dtype))


def test_random_numbers_are_the_specified_ones():
    def mix(x):
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0x735A2D97 % 2**32
        return x ^ x >> 15

    seed, stream = 0xFEDCBA9876543210, 77
    found = random.uniform(torch.tensor(seed - 2**64), stream, (5, 6), torch.float64)
    for i in range(5):
        row = mix((mix((mix(i ^ seed % 2**32) + (seed >> 32)) % 2**32) + stream) % 2**32)
        for j in range(6):
            assert found[i, j] == (mix(row ^ mix(j + 0x9E3779B9)) >> 8) / 2**24


def test_random_numbers_look_random():
    first = native.uniform(torch.tensor(5), 0, (1000, 1000), torch.float32).double()
    assert (first.mean() - 0.5).abs() < 5 * (1 / 12) ** 0.5 / 1000
    assert (first.var() - 1 / 12).abs() < 5 * (1 / 180) ** 0.5 / 1000
    assert first.min() >= 0
    assert first.max() < 1
    counts = torch.histc(first, 256, 0.0, 1.0)
    assert ((counts - 1e6 / 256) ** 2 / (1e6 / 256)).sum() < 255 + 5 * (2 * 255) ** 0.5
    others = [
        native.uniform(torch.tensor(s), n, (1000, 1000), torch.float32) for s, n in ((6, 0), (5, 1), (5 << 32, 0))
    ]
    for other in (*others, first.roll(1, 0), first.roll(1, 1), first.T):
        assert torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1].abs() < 5e-3
    for p in (0.05, 0.5, 0.9):
        kept = native.bernoulli(torch.tensor(5), 3, p, (1000, 1000), torch.float32).double().mean()
        assert (kept - (1 - p)).abs() < 5 * (p * (1 - p)) ** 0.5 / 1000


def test_the_reference_traces_with_symbolic_sizes():
    def draw(x, seed):
        return random.uniform(seed, 4, x.shape, x.dtype), random.bernoulli(seed, 4, 0.3, x.shape, x.dtype)

    traced = make_fx(draw, tracing_mode="symbolic")(torch.ones(4, 3, 2), torch.tensor(1))
    x, seed = torch.ones(7, 5, 6), torch.tensor(2**40 + 9)
    assert all(torch.equal(a, c) for a, c in zip(traced(x, seed), draw(x, seed), strict=True))


def test_missing_kernels_are_told_once(monkeypatch):
    monkeypatch.setattr(native, "_reason", "no compiler")
    with pytest.warns(RuntimeWarning, match=r"native kernels are missing \(no compiler\)"):
        assert not native.ready()
    assert not native.ready()  # a second warning would be an error here
    assert not native.pays(16, 16, torch.float32)


def test_adaptc_imports_without_the_extension():
    script = (
        "import sys; sys.modules['adaptc._native'] = None\n"
        "from adaptc.runtime import native; assert not native.available(); print(native.missing_reason())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "adaptc._native" in done.stdout
    assert not done.stderr


def test_an_install_without_a_compiler_goes_on_and_says_so(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    broken = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=broken)
    assert done.returncode == 0, done.stderr
    assert "native kernels are NOT built" in done.stdout + done.stderr
    assert not [*tmp_path.rglob("_native*.so")]
