"""Calls on few tokens: strided steps against einsum, and the repeated call against all that can change between two."""

import copy
import gc
import weakref
from collections import OrderedDict

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import adaptc as ac
from adaptc import _native
from adaptc.case import through
from adaptc.codegen.loops import OPS
from adaptc.codegen.scalar import torch_text
from adaptc.codegen.strided import NotStrided, Strided
from adaptc.ir import build
from adaptc.ir.dims import TOKENS
from adaptc.ir.functions import ELEMENTWISE
from adaptc.ir.prims import INDEX, Add, Broadcast, Constant, Contract, Leaf, Map, Put, Reduce, Reshape, Scale, Take
from adaptc.methods import dora, hra, lora, vera
from adaptc.nn.linear import AdaptedLinear
from adaptc.runtime import native
from adaptc.runtime.planning import PRODUCTS, few_rows

every_level = pytest.mark.parametrize("level", range(len(_native.levels())), ids=_native.levels())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def empty_is_nan():
    """torch fills what it allocates with NaN, so that a step that leaves an element out is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(results, values, level=-1, rows=3):
    """The results of a strided program, in the values' dtype."""
    dtype = next(iter(values.values())).dtype
    values = {Leaf("x", (TOKENS, 1), "token"): torch.zeros(rows, 1, dtype=dtype), **values}
    strided = Strided(tuple(values), tuple(results), str(dtype).removeprefix("torch."))
    shapes = strided.at(rows).shapes[len(values) :]
    made = [torch.empty(shape, dtype=dtype) for shape in shapes]
    assert native.steps(strided, level)(*values.values(), *made)
    return made


def assert_as_exact(ours, formula, *operands):
    """At most twice the error of plain torch in the same dtype, and the rounding of the terms."""
    exact = torch.einsum(formula, *(t.double() for t in operands))
    size = torch.einsum(formula, *(t.double().abs() for t in operands))
    theirs = torch.einsum(formula, *operands)
    bound = 2 * (theirs - exact).norm() + 2 * torch.finfo(ours.dtype).eps * size.norm()
    assert (ours - exact).norm() <= bound, (formula, [t.shape for t in operands])  # false for NaN


@st.composite
def products(draw):
    """An einsum of two with random sizes: some indices in both, some summed, any order of axes."""
    letters = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True))
    sizes = {c: draw(st.sampled_from([0, 1, 2, 3, 7, 8, 17, 33])) for c in letters}
    first = draw(st.permutations([c for c in letters if draw(st.booleans())]))
    second = draw(st.permutations([c for c in letters if c not in first or draw(st.booleans())]))
    kept = [c for c in letters if c not in first or c not in second or draw(st.booleans())]
    return "".join(first), "".join(second), "".join(draw(st.permutations(kept))), sizes


@every_level
@every_dtype
@given(products())
def test_a_product_is_einsum(level, dtype, drawn):
    first, second, out, sizes = drawn
    a, b = (torch.randn([sizes[c] for c in letters], dtype=dtype) for letters in (first, second))
    A, B = build.leaf("A", *a.shape), build.leaf("B", *b.shape)
    spec = f"{first},{second}->{out}"
    [found] = run([Contract(spec, (A, B))], {A: a, B: b}, level)
    assert_as_exact(found, spec, a, b)
    [twice] = run([Add((Scale(-2.0, Contract(spec, (A, B))), Contract(spec, (A, B))))], {A: a, B: b}, level)
    torch.testing.assert_close(twice, -found)


@every_level
def test_every_kind_of_step(level):
    A, v = build.leaf("A", 5, 6), build.leaf("v", 6)
    a, w = torch.randn(5, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    i, j = INDEX[:2]
    transposed = Contract("ab->ba", (A,))
    wanted = {
        Add((A, Broadcast(v, (5, 6), (1,)))): a + w,
        transposed: a.T,
        Reshape(transposed, (3, 10)): a.T.reshape(3, 10),
        Reduce("sum", A, (0,)): a.sum(0),
        Reduce("sum", A, (0, 1)): a.sum(),
        Take(A, (2 * i + 1, 5 - j), (2, 3)): a[1::2].flip(1)[:, :3],
        Take(A, (i, i), (5,)): a.diagonal(),
        Put(v, (sympy.Integer(2), i), (4, 6)): torch.stack([0 * w, 0 * w, w, 0 * w]),
        Put(v, (i, i), (6, 6)): w.diag(),
        Put(v, (sympy.Integer(1),), (3,)): torch.stack([0 * w[0], w.sum(), 0 * w[0]]),
        Put(A, (i + j,), (10,)): torch.stack([a.flip(0).diagonal(d - 4).sum() for d in range(10)]),
        Add((Put(v, (i, i), (6, 6)), Constant(sympy.Rational(1, 2), (6, 6)))): w.diag() + 0.5,
        Scale(3.0, Scale(2.0, Broadcast(v, (2, 6), (1,)))): 6 * w.expand(2, 6),
        A: a,
    }
    found = run(list(wanted), {A: a, v: w}, level)
    for e, got, want in zip(wanted, found, wanted.values(), strict=True):
        torch.testing.assert_close(got, want, msg=str(e))


def slopes():
    """The elementwise functions of the language, and their derivatives by each argument."""
    for name, fn in ELEMENTWISE.items():
        yield name, fn
        for symbol in sorted(fn.free_symbols, key=str):
            yield f"{name} by {symbol}", sympy.diff(fn, symbol)


@every_level
@every_dtype
@pytest.mark.parametrize(("name", "fn"), list(slopes()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_elementwise_function_and_its_derivative(level, dtype, name, fn):
    values = [
        torch.linspace(-3, 3, 35, dtype=dtype).reshape(5, 7),
        torch.linspace(2, -2, 35, dtype=dtype).reshape(5, 7),
    ]
    values[0][2, 3] = values[1][1, 1] = 0.0
    if name.startswith(("log", "sqrt")):
        values = [v.abs() + 0.1 for v in values]
    A, B, c = build.leaf("A", 5, 7), build.leaf("B", 5, 7), build.leaf("c")
    turned = Contract("ab->ba", (A,))
    made = {A: values[0], B: values[1], c: torch.tensor(0.75, dtype=dtype)}
    for args, tensors in (
        ((A, B), values),
        ((turned, Contract("ab->ba", (B,))), [v.T for v in values]),
        ((Scale(-2.0, A), c) if not name.startswith(("log", "sqrt")) else (Scale(2.0, A), c), None),
    ):
        if tensors is None:
            tensors = [values[0] * args[0].factor, made[c]]
        e = build.apply(fn, *args)
        exact, theirs = (
            eval(torch_text(fn, ("p", "q"), kind), {"torch": torch}, dict(zip("pq", some, strict=True)))
            for kind, some in (("float64", [t.double() for t in tensors]), (str(dtype)[6:], tensors))
        )
        [found] = run([e], made, level)
        exact, theirs = (torch.as_tensor(t, dtype=torch.float64).expand(found.shape) for t in (exact, theirs))
        eps = torch.finfo(dtype).eps
        assert ((found - exact).abs() <= 2 * (theirs - exact).abs() + 4 * eps * exact.abs().clamp(min=1)).all()


@every_level
@every_dtype
def test_the_greatest_entry_and_what_is_no_number(level, dtype):
    a = torch.randn(4, 3, 5, dtype=dtype)
    a[2, 1, 1] = float("nan")
    A = build.leaf("A", 4, 3, 5)
    axes = [(0,), (1,), (2,), (0, 2), (0, 1, 2)]
    for found, some in zip(run([Reduce("max", A, s) for s in axes], {A: a}, level), axes, strict=True):
        torch.testing.assert_close(found, torch.amax(a, some), equal_nan=True, rtol=0, atol=0)
    b = torch.randn(4, 3, 5, dtype=dtype)
    b[0, 0, 0] = float("nan")
    B = build.leaf("B", 4, 3, 5)
    [found] = run([build.apply(ELEMENTWISE["maximum"], A, B)], {A: a, B: b}, level)
    torch.testing.assert_close(found, torch.maximum(a, b), equal_nan=True, rtol=0, atol=0)


def test_elementwise_functions_are_few_steps_too():
    layer = layer_of(dora(r=2))
    step(layer, torch.randn(2, 8))
    assert is_few(layer) == [True]


def test_what_is_no_strided_product_is_refused():
    A, i = build.leaf("A", 4, 4), INDEX[0]
    for e in (
        Take(A, (sympy.Mod(3 * i, 4), i), (4,)),
        Constant(i, (4,)),
        Map(sympy.re(sympy.Symbol("a0")), (A,)),
    ):
        with pytest.raises(NotStrided):
            Strided((A,), (e,), "float32").at(1)


def test_a_program_never_reaches_outside_of_its_buffers():
    for step in (
        ((1, 0), (0, 0), (2, 0), 0, 1.0, False, False, [(5, 1, 1, 0)]),
        ((1, 0), (0, 1), (2, 0), 0, 1.0, False, False, [(4, 1, 1, 0)]),
        ((1, 0), (0, 0), (2, 0), 0, 1.0, False, False, [(4, 1, -1, 0)]),
        ((1, 0), (0, 0), (3, 0), 0, 1.0, False, False, [(4, 1, 1, 0)]),
        ((1, 0), (0, 0), (2, 0), 0, 1.0, False, False, [(0, 1, 1, 0)]),
        ((1, 0), (0, 0), (2, 0), 0, 1.0, False, False, []),
        ((1, 0), (0, 0), (2, 0), 0, 1.0, False, False, [(1, 1, 1, 0)] * 13),
        ((1, 0), (0, 0), (2, 0), -1, 1.0, False, False, [(4, 1, 1, 0)]),
        ((1, 0), (0, 0), (2, 0), len(OPS), 1.0, False, False, [(4, 1, 1, 0)]),
    ):
        steps = _native.Steps(native._library(), lambda rows, s=step: ([s], [4, 4, 1], [[4], [4]]), False, -1)
        with pytest.raises(ValueError, match="buffer|loop|operation"):
            steps(torch.zeros(4), torch.zeros(4))


# ------------------------------------------------------------------------------------------------ whole calls


def layer_of(adapter=None, n=12, k=8, dtype=torch.float32, **named):
    base = nn.Linear(k, n, dtype=dtype, **named).requires_grad_(False)
    layer = AdaptedLinear(base, adapter or lora(r=3))
    with torch.no_grad():
        for p in layer.adapters.parameters():
            p.normal_()
    return layer


def step(layer, x, gy=None):
    """y and the gradients of x and of all that is trained."""
    x = x.detach().requires_grad_()
    y = layer(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [y, *torch.autograd.grad(y, wanted, torch.ones_like(y) if gy is None else gy)]


def assert_same_both_ways(layer, x, gy=None):
    """As with many tokens."""
    few = step(layer, x, gy)
    with through("many"):
        for got, want in zip(few, step(layer, x, gy), strict=True):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want)


def is_few(layer):
    return [bool(p.forward_source.strided) for p, _ in layer._programs.values()]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (5, 8), (0, 8), (2, 3, 8), (1, 1, 1, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_tokens_take_one_native_call_and_agree(shape, bias):
    layer = layer_of(bias=bias)
    for _ in range(3):
        assert_same_both_ways(layer, torch.randn(shape))
    assert is_few(layer) == [True, False]


def test_the_number_of_tokens_decides():
    layer, rows = layer_of(n=64, k=64, dtype=torch.float64), few_rows(64, 64)
    assert rows == PRODUCTS // 4096
    for m, few in ((1, True), (rows, True), (rows + 1, False)):
        layer.active = layer.active
        assert_same_both_ways(layer, torch.randn(m, 64, dtype=torch.float64))
        assert is_few(layer) == [few, False]
    assert few_rows(1 << 12, 1 << 12) == 0


def test_other_dtypes_and_other_steps_go_on_as_before():
    for layer, dtype in ((layer_of(dtype=torch.bfloat16), torch.bfloat16), (layer_of(hra(r=2)), torch.float32)):
        step(layer, torch.randn(2, 8, dtype=dtype))
        assert is_few(layer) == [False]


def test_strides_of_every_tensor():
    layer, x, gy = layer_of(), torch.randn(8, 4).T, torch.randn(12, 4).T
    assert_same_both_ways(layer, x, gy)
    assert_same_both_ways(layer, x, torch.ones(()).expand(4, 12))
    A = layer.leaves()["A"]
    A.data = A.data.T.contiguous().T
    assert not A.is_contiguous()
    assert_same_both_ways(layer, x, gy)
    assert_same_both_ways(layer, torch.randn(4, 16)[:, ::2])


def test_y_may_be_written_to_and_gradients_are_plain():
    layer, x = layer_of(), torch.randn(2, 8, requires_grad=True)
    y = layer(x)
    y.add_(1.0)
    y.sum().backward()
    assert all(type(p.grad) is torch.Tensor for p in (x, *layer.adapters.parameters()))


def test_a_second_derivative_raises():
    layer, x = layer_of(), torch.randn(2, 8, requires_grad=True)
    [g] = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(ac.errors.UnsupportedError, match="twice"):
        g.sum().backward()


# ------------------------------------------------------------------------------------------------ the repeated call


def warmed(**named):
    """A layer whose next call of this kind is a repeated one."""
    layer, x = layer_of(**named), torch.randn(2, named.get("k", 8))
    step(layer, x)
    assert len(layer._again) == 1
    return layer, x


def change_dtype(layer):
    return layer.double()


def replace_parameter(layer):
    layer.adapters["default"]._parameters["A"] = nn.Parameter(torch.randn(3, 8))


def set_data(layer):
    layer.leaves()["A"].data = torch.randn(3, 8)


def write(layer):
    with torch.no_grad():
        layer.leaves()["B"].normal_()


def train_the_base(layer):
    layer.weight.requires_grad_()
    layer.bias.requires_grad_()


def freeze_a_leaf(layer):
    layer.leaves()["A"].requires_grad_(False)


def take_the_bias_off(layer):
    layer._parameters["bias"] = None


def add_an_adapter(layer):
    layer.add("second", copy.deepcopy(layer.adapters["default"]))


CHANGES = (change_dtype, replace_parameter, set_data, write, train_the_base, freeze_a_leaf, take_the_bias_off,
           add_an_adapter)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_changes_between_calls_is_seen(change):
    layer, x = warmed()
    change(layer)
    assert_same_both_ways(layer, x.to(layer.weight.dtype))
    step(layer, x.to(layer.weight.dtype))
    W = layer.adapted_weight()
    expected = F.linear(x.to(W.dtype), W, None if layer.bias is None else layer.bias.to(W.dtype))
    torch.testing.assert_close(layer(x.to(layer.weight.dtype)), expected.to(layer.weight.dtype))


def test_calls_of_another_kind_are_seen():
    layer, x = warmed()
    with torch.no_grad():
        assert not layer(x).requires_grad
    assert layer(x).requires_grad
    y = layer.eval()(x)
    assert torch.equal(layer.train()(x), y)
    with pytest.raises(ac.errors.ShapeError, match="rows of 9"):
        layer(torch.randn(2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with ac.disabled(layer):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], y)
    torch.testing.assert_close(torch.func.grad(lambda v: layer(v).sum())(x), step(layer, x)[1])
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        assert layer(fake.from_tensor(x)).shape == (2, 12)


def test_merged_weights_are_used():
    layer, x = warmed()
    y = layer(x)
    layer.merge()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer.unmerge()
    assert torch.equal(layer(x), y)


def test_hooks_still_run():
    layer, x = warmed()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer(x)
    assert seen == ["before", "after"]


def test_a_parameter_of_another_type_is_left_to_torch():
    class Odd(torch.Tensor):
        pass

    layer, x = warmed()
    layer.adapters["default"]._parameters["A"] = torch.randn(3, 8).as_subclass(Odd)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).as_subclass(torch.Tensor), x @ layer.adapted_weight().T + layer.bias)


def test_functional_call_and_copies():
    layer, x = warmed()
    values = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    expected = copy.deepcopy(layer)
    expected.load_state_dict(OrderedDict(layer.state_dict(), **values))
    torch.testing.assert_close(torch.func.functional_call(layer, values, (x,)), expected(x))
    assert_same_both_ways(expected, x)


def test_shared_leaves_are_read_by_every_layer():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 12))
    ac.inject(model, vera(r=4), "all-linear")
    for layer in model:
        for _ in range(2):
            assert_same_both_ways(layer, torch.randn(2, 8))


def test_a_layer_can_be_collected():
    layer, x = warmed()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
