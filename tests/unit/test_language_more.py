"""topk, nonzero, integer leaves, penalties, given tensors, seeds and symbolic sizes: what they mean and refuse."""

import inspect

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError, DtypeError, EquationError, LeafError, ShapeError, SymbolicSizeError
from adaptc.method import symbols

N, K = 12, 8


def layer_of(adapter, n=N, k=K, seed=0):
    """An adapter on a base that is the same in every call."""
    torch.manual_seed(seed)
    return ac.AdaptedLinear(nn.Linear(k, n, dtype=torch.float64).requires_grad_(False), adapter)


def same(a, b):
    assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


def line_of(method):
    """The line marked with `# !`."""
    source, first = inspect.getsourcelines(method.function)
    return first + next(i for i, line in enumerate(source) if line.rstrip().endswith("# !"))


def refused(method, error, *texts):
    """Tracing raises with these texts; the message ends with the marked line."""
    with pytest.raises(error) as caught:
        method().trace(N, K)
    for text in texts:
        assert text in str(caught.value)
    assert str(caught.value).endswith(f"[{__file__}:{line_of(method)}]")


# --------------------------------------------------------------------------- topk and nonzero


def largest(M, j, axis=None):
    """torch's, as 0 and 1."""
    if axis is None:
        return torch.zeros(M.numel(), dtype=M.dtype).index_fill(0, M.flatten().topk(j).indices, 1.0).reshape(M.shape)
    return torch.zeros_like(M).scatter(axis, M.topk(j, axis).indices, 1.0)


@pytest.mark.parametrize(("j", "axis"), [(1, None), (17, None), (96, None), (3, 0), (12, 0), (1, 1), (5, 1), (2, -1)])
def test_topk_masks_the_largest(j, axis):
    @ac.adapter(identity=False)
    def masked(W):
        V = W + ac.param("D", W.shape, "zeros")
        return ac.topk(ac.abs(V), j, axis) * V

    layer = layer_of(masked())
    with torch.no_grad():
        layer.leaves()["D"].normal_()
    D, x = layer.leaves()["D"], torch.randn(5, K, dtype=torch.float64)
    V = layer.weight + D
    mask = largest(V.detach().abs(), j, axis)
    assert mask.sum() == (j if axis is None else j * mask.numel() // mask.shape[axis])
    same(layer.adapted_weight(), mask * V)
    (g,) = torch.autograd.grad(layer(x).sum(), [D])
    same(g, mask * x.sum(0))


@pytest.mark.parametrize(("j", "axis"), [(97, None), (-1, None), (13, 0), (9, 1), (1, 2)])
def test_topk_out_of_range(j, axis):
    @ac.adapter
    def masked(W):
        return W * ac.topk(W + ac.param("D", W.shape, "zeros"), j, axis)  # !

    refused(masked, (ShapeError, EquationError), str(j if axis != 2 else axis))


@pytest.mark.parametrize(("j", "axis"), [(9, None), (2, 0), (3, 1)])
def test_nonzero_gives_the_places_in_row_major_order(j, axis):
    @ac.adapter
    def sparse(W):
        count = j if axis is None else j * (W.shape[1 - axis])
        at = ac.nonzero(ac.topk(ac.abs(W), j, axis))
        assert at.shape == (2, count)
        held = ac.frozen("at", (2, count), at, dtype="int32")
        return W + ac.scatter(ac.param("v", (count,), "zeros"), held, W.shape)

    layer = layer_of(sparse())
    want = largest(layer.weight.abs(), j, axis).nonzero().T
    assert torch.equal(layer.leaves()["at"].long(), want)
    assert layer.leaves()["at"].dtype == torch.int32
    with torch.no_grad():
        layer.leaves()["v"].copy_(torch.arange(1.0, want.shape[1] + 1))
    delta = torch.zeros(N, K).double()
    delta[want[0], want[1]] = layer.leaves()["v"].detach()
    same(layer.delta_weight(), delta)


def test_nonzero_of_a_vector_and_of_a_stack():
    @ac.adapter
    def rows_and_blocks(W):
        rows = ac.nonzero(ac.topk(ac.norm(W, axis=1), 3))
        grid = ac.einsum("piqj->pq", ac.reshape(ac.abs(W), (3, 4, 2, 4)))
        blocks = ac.nonzero(ac.topk(grid, 2))
        v = ac.param("v", (3, W.shape[1]), "zeros")
        b = ac.param("b", (2, 4, 4), "zeros")
        return W + ac.scatter(v, rows, W.shape) + ac.blocks(ac.scatter(b, blocks, (3, 2, 4, 4)))

    layer = layer_of(rows_and_blocks())
    W, leaves = layer.weight, layer.leaves()
    with torch.no_grad():
        for name in "vb":
            leaves[name].normal_()
    delta = torch.zeros(N, K).double()
    delta[W.norm(dim=1).topk(3).indices.sort().values] += leaves["v"].detach()
    grid = W.abs().reshape(3, 4, 2, 4).sum((1, 3))
    for (p, q), block in zip(largest(grid, 2).nonzero(), leaves["b"].detach(), strict=True):
        delta[4 * p : 4 * p + 4, 4 * q : 4 * q + 4] += block
    same(layer.delta_weight(), delta)


@ac.adapter
def nonzero_of_a_mask(W):
    return W + ac.scatter(ac.param("v", (3,), "zeros"), ac.nonzero(W > 0), W.shape)  # !


@ac.adapter
def nonzero_of_a_parameter(W):
    D = ac.param("D", W.shape, "zeros")
    return W + ac.scatter(ac.param("v", (3,), "zeros"), ac.nonzero(ac.topk(D, 3)), W.shape)  # !


@pytest.mark.parametrize(
    ("method", "texts"), [(nonzero_of_a_mask, ["topk"]), (nonzero_of_a_parameter, ["'D'", "attach"])]
)
def test_nonzero_needs_a_known_number_of_places(method, texts):
    refused(method, EquationError, "nonzero", *texts)


# --------------------------------------------------------------------------- integer leaves


@ac.adapter
def curlora(W, *, c=3, alpha=1.0, seed=0):
    """Columns and rows drawn by a function, with the smaller ones more likely."""

    def pick(W, axis, generator):
        p = 1 / (W.norm(dim=axis) ** 2 / W.norm() ** 2 + 1e-3)
        return p.multinomial(c, True, generator=generator)

    cols = ac.frozen("cols", (c,), lambda W, generator: pick(W, 0, generator), seed=seed)
    rows = ac.frozen("rows", (c,), lambda W, generator: pick(W, 1, generator), seed=seed)
    M = ac.param("M", (c, c), "zeros")
    return W + alpha * (ac.take(W, cols, axis=1) @ M @ ac.take(W, rows, axis=0))


def test_whole_numbers_drawn_by_a_function(tmp_path):
    layer = layer_of(curlora(seed=5))
    leaves, W = layer.leaves(), layer.weight
    generator = torch.Generator().manual_seed(5)
    for name, axis in (("cols", 0), ("rows", 1)):
        p = 1 / (W.norm(dim=axis) ** 2 / W.norm() ** 2 + 1e-3)
        assert torch.equal(leaves[name], p.multinomial(3, True, generator=generator))
        assert leaves[name].dtype == torch.int64
    with torch.no_grad():
        leaves["M"].normal_()
    same(layer.adapted_weight(), W + W[:, leaves["cols"]] @ leaves["M"] @ W[leaves["rows"]])
    layer(torch.randn(3, K).double()).sum().backward()
    assert leaves["M"].grad.norm() > 0
    model = nn.Sequential(layer)
    ac.save(model, tmp_path)
    loaded = ac.load(nn.Sequential(ac.unload(layer_of(curlora(seed=5)))), tmp_path)
    same(loaded[0].adapted_weight(), layer.adapted_weight())
    assert layer.half().leaves()["cols"].dtype == torch.int64


@ac.adapter
def real_index(W):
    index = ac.frozen("index", (3,), ac.normal(1.0))
    return W + ac.tile(ac.take(W, index, axis=0), W.shape) * ac.param("s", (), 0.0)  # !


@ac.adapter
def trained_index(W):
    return W + ac.scatter(ac.param("v", (3,), "zeros"), [ac.param("at", (3,), 0.0)], (W.shape[0],))  # !


@ac.adapter
def trained_whole(W):
    return W * ac.param("at", (), 0.0, dtype="int64")  # !


@pytest.mark.parametrize(
    ("method", "text"), [(real_index, "'index'"), (trained_index, "vector of whole numbers"), (trained_whole, "'at'")]
)
def test_what_cannot_be_an_index(method, text):
    with pytest.raises(AdaptcError, match=rf"{text}.*test_language_more.py:\d+"):
        method().trace(N, K)


def test_a_function_that_gives_fractions_for_an_index():
    @ac.adapter
    def fractions(W):
        index = ac.frozen("index", (3,), lambda generator: torch.rand(3, generator=generator), seed=1)
        return W + ac.tile(ac.take(W, index, axis=0), W.shape) * ac.param("s", (), 0.0)

    with pytest.raises(AdaptcError, match="index.*whole numbers"):
        layer_of(fractions())


# --------------------------------------------------------------------------- penalties


@ac.adapter
def matrix_penalty(W):
    ac.penalty(ac.param("D", W.shape, "zeros"))  # !
    return W


@ac.adapter
def token_penalty(x, y):
    ac.penalty(ac.sum(x))  # !
    return y


@ac.adapter
def random_penalty(W):
    D = ac.param("D", W.shape, "zeros")
    ac.penalty(ac.sum(D * ac.given("g", W.shape)))  # !
    return W + D


@pytest.mark.parametrize(
    ("method", "error", "texts"),
    [
        (matrix_penalty, ShapeError, ["scalar", "(12, 8)", "sum or norm"]),
        (token_penalty, EquationError, ["penalty", "'x'"]),
        (random_penalty, EquationError, ["penalty", "g"]),
    ],
)
def test_what_cannot_be_a_penalty(method, error, texts):
    refused(method, error, *texts)


def test_a_parameter_of_a_penalty_alone_never_reaches_the_result():
    @ac.adapter
    def alone(W):
        ac.penalty(ac.sum(ac.param("D", W.shape, "zeros")))
        return W + ac.param("E", W.shape, "zeros")

    with pytest.raises(LeafError, match="'D' never reaches the result"):
        alone().trace(N, K)


# --------------------------------------------------------------------------- given


@ac.adapter
def given_late(W):
    return W + ac.given("g", W.shape, at="step") * ac.param("s", (), 0.0)  # !


@ac.adapter
def given_twice(W):
    g = ac.given("g", W.shape)
    return W + (g + ac.given("g", W.shape)) * ac.param("s", (), 0.0)  # !


@ac.adapter
def given_dtype(W):
    return W + ac.given("g", W.shape, dtype="int7") * ac.param("s", (), 0.0)  # !


@ac.adapter
def given_start(W):
    return W + ac.param("D", W.shape, ac.given("g", W.shape))  # !


@ac.adapter
def given_factor(W):
    U, S, Vt = ac.svd(ac.given("g", W.shape), 2)  # !
    return W + U @ ac.diag(S * ac.param("s", (2,), "zeros")) @ Vt


@ac.adapter
def given_sum(W):
    return W + ac.given("g", (W.shape[1],)) * ac.param("s", (), 0.0)  # !


@pytest.mark.parametrize(
    ("method", "error", "texts"),
    [
        (given_late, EquationError, ["'g'", '"call" or at "attach"', "'step'"]),
        (given_twice, LeafError, ["'g'", "twice", f"first at {__file__}"]),
        (given_dtype, (LeafError, DtypeError), ["'g'", "int7", "int64"]),
        (given_start, EquationError, ["'D'", "g"]),
        (given_factor, EquationError, ["svd", "g"]),
        (given_sum, ShapeError, ["(12, 8)", "(8,)", "diag or linear"]),
    ],
    ids=lambda v: v.name if hasattr(v, "name") else None,
)
def test_what_cannot_be_given(method, error, texts):
    refused(method, error, *texts)


@pytest.mark.parametrize("name", ["x", "a b", "", "1st", "class-id"])
def test_a_name_that_no_call_could_give(name):
    @ac.adapter
    def named(W):
        return W + ac.given(name, W.shape) * ac.param("s", (), 0.0)  # !

    refused(named, LeafError, f"'{name}'")


# --------------------------------------------------------------------------- seeds


@ac.adapter
def seeded(W, *, seed=3, other=4):
    """Three leaves of one seed, one of another, one without."""
    n, k = W.shape
    A = ac.frozen("A", (2, k), ac.normal(1.0), seed=seed)
    P = ac.frozen("P", (k,), ac.randperm(k), seed=seed)
    B = ac.frozen("B", (n, 2), ac.uniform(-1, 1), seed=seed, store=False)
    C = ac.frozen("C", (n, 2), ac.bernoulli(0.5), seed=other)
    return W + ac.param("s", (), 0.0) * ((B + C) @ ac.take(A, P, axis=1))


def drawn(n, k, seed, other):
    """By one generator a seed, in the order written, in float32."""
    g = torch.Generator().manual_seed(seed)
    A, P = torch.empty(2, k).normal_(generator=g), torch.randperm(k, generator=g)
    B = torch.empty(n, 2).uniform_(-1, 1, generator=g)
    return {"A": A, "P": P, "B": B, "C": torch.empty(n, 2).bernoulli_(0.5, generator=g.manual_seed(other))}


@pytest.mark.parametrize("seeds", [(3, 4), (3, 3), (0, 2**40)], ids=str)
def test_leaves_of_one_seed_draw_in_the_order_written(seeds):
    found = [layer_of(seeded(seed=seeds[0], other=seeds[1]), seed=s).leaves() for s in (0, 1)]
    want = drawn(N, K, *seeds)
    if seeds[0] == seeds[1]:
        g = torch.Generator().manual_seed(3)
        _ = torch.empty(2, K).normal_(generator=g), torch.randperm(K, generator=g), torch.rand(N, 2, generator=g)
        want["C"] = torch.empty(N, 2).bernoulli_(0.5, generator=g)
    for leaves in found:
        for name, value in want.items():
            assert torch.equal(leaves[name], value.to(leaves[name].dtype)), name


def test_each_layer_starts_anew_and_a_shared_leaf_draws_once_whole(tmp_path):
    @ac.adapter
    def both(W, *, seed=3):
        own = ac.frozen("own", (W.shape[1],), ac.normal(1.0), seed=seed)
        S = ac.frozen("S", W.shape, ac.normal(1.0), seed=seed + 1, shared="S", store=False)
        return W + ac.param("s", (), 0.0) * (S @ ac.diag(own))

    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 7)).double()
    ac.inject(model, both(), "all-linear")
    for layer in model:
        g = torch.Generator().manual_seed(3)
        assert torch.equal(layer.leaves()["own"], torch.empty(layer.in_features).normal_(generator=g).double())
        want = torch.empty(7, 7).normal_(generator=torch.Generator().manual_seed(4)).double()
        assert torch.equal(layer.leaves()["S"], want)
        assert layer.leaves()["S"] is model[0].leaves()["S"]


def test_without_a_seed_the_default_generator_draws():
    @ac.adapter
    def unseeded(W):
        return W + ac.param("s", (), 0.0) * ac.frozen("A", W.shape, ac.normal(1.0))

    first, again, other = (layer_of(unseeded(), seed=s).leaves()["A"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --------------------------------------------------------------------------- symbolic sizes


@ac.adapter
def asks_for_a_number(W, *, how="compare"):
    n, k = W.shape
    ways = {
        "compare": lambda: n < k,
        "equal": lambda: n == k,
        "even": lambda: n % 2 == 0,
        "truth": lambda: bool(n),
        "range": lambda: range(k),
        "int": lambda: int(k),
        "min": lambda: min(n, k),
        "list": lambda: [0] * n,
        "pair": lambda: ac.factor_pair(n),
    }
    ways[how]()
    return W + ac.param("D", (n, k), "zeros")


WAYS = ("compare", "equal", "even", "truth", "range", "int", "min", "list", "pair")


@pytest.mark.parametrize("how", WAYS)
def test_a_symbolic_size_refuses_to_be_a_number(how):
    adapter = asks_for_a_number(how=how)
    with pytest.raises(SymbolicSizeError, match=r"test_language_more.py:\d+"):
        adapter.trace(*symbols())
    assert "at n = 64, k = 64" in adapter.formula
    assert layer_of(adapter).leaves()["D"].shape == (N, K)


def test_arithmetic_of_symbolic_sizes():
    @ac.adapter
    def halves(W, *, b=2):
        n, k = W.shape
        R = ac.param("R", (ac.divide(k, b), b, b), "identity")
        C = ac.param("C", (n * k + 2 * n - 1,), "zeros")
        return W @ ac.block_diag(R) + C[0] * W

    equation = halves().trace(*symbols())
    n, k = symbols()
    sizes = {s.name: s.leaf.dims for s in equation.leaves}
    assert sizes["R"][0] == k / 2
    assert sizes["C"][0].equals(n * k + 2 * n - 1)
    assert halves().trace(4, 6).leaves[0].leaf.dims == (3, 2, 2)
    with pytest.raises(ShapeError, match="2 does not divide 7"):
        halves().trace(4, 7)
