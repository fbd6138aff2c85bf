"""Tensors from outside: arguments of the forward, or given around it, with gradients to them."""

import pytest
import torch
from methods_small import K, N, close, move
from torch import nn
from torch.nn import functional as F

import adaptc as ac
from adaptc.errors import DtypeError, EquationError, LeafError, MergeError, ShapeError
from adaptc.methods import lora

M = 6


@ac.adapter
def kind(W, bias, x, *, classes=5):
    """W = U diag(s * gate(class)) V^T, learned; the class of every token is given."""
    U0, S0, V0 = ac.svd(W, min(W.shape))
    U, s, V = (ac.param(i, M.shape, M) for i, M in zip("UsV", (U0, S0, V0), strict=True))
    gate = ac.param("gate", (classes, *S0.shape), "ones")
    g = ac.take(gate, ac.given("class", (x.shape[0],), dtype="int64"), axis=0)
    return ac.linear(x @ V.T @ ac.diag(s) * g, U, bias)


@ac.adapter
def mtl_lora(x, y, *, tasks=4, heads=3, r=2, alpha=16.0, tau=0.5):
    """One square matrix and one mixture of the heads per task."""
    (m, k), n = x.shape, y.shape[1]
    t = ac.given("task", (m,), dtype="int64")
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (heads, n, r), "zeros")
    L = ac.param("L", (tasks, r, r), "identity")
    g = ac.softmax(ac.param("w", (tasks, heads), "zeros") / tau, axis=1)
    h, L, g = x @ A.T, ac.take(L, t, axis=0), ac.take(g, t, axis=0)
    return y + (alpha / r) * ac.einsum("mr,msr,mj,jns->mn", h, L, g, B)


@ac.adapter
def flora(W, bias, x, *, examples=4, r=1):
    """Every example its own pair: y_i = ((B_i A_i) * W) x_i + bias."""
    (m, k), n = x.shape, W.shape[0]
    i = ac.given("example", (m,), dtype="int64")
    A = ac.take(ac.param("A", (examples, r, k), 1 / r), i, axis=0)
    B = ac.take(ac.param("B", (examples, r, n), 1.0), i, axis=0)
    return ac.einsum("mrk,mk,nk,mrn->mn", A, x, W, B) + ac.tile(ac.reshape(bias, (1, n)), (m, n))


@ac.adapter
def pat(W, *, r=3, alpha=3.0):
    """temp and bias follow a schedule: the training loop gives them."""
    n, A = W.shape[0], ac.param("A", (r, W.shape[0]), "kaiming_uniform")
    B, v = ac.param("B", (n, r), "zeros"), ac.param("v", (n,), "ones")
    t = ac.param("t", (n,), "zeros", shared="t")
    m = ac.sigmoid(ac.given("temp", (), default=1.0) * t) + ac.given("bias", (), default=0.5)
    return ac.diag(v * m) @ (W + (alpha / r) * (B @ A @ W))


@ac.adapter
def routing(x, y, *, r=3, alpha=6.0, tokens=5):
    """y + s B (h h_v^T h_v), h_v = A v of the given other modality."""
    (_, k), n = x.shape, y.shape[1]
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    hv = ac.given("v", (tokens, k)) @ A.T
    return y + (alpha / r) * (x @ A.T @ hv.T @ hv @ B.T)


@ac.adapter
def feature(x, y, *, width=3):
    """A real row per token, and a scalar with a default."""
    f, s = ac.given("feature", (x.shape[0], width)), ac.given("s", (), default=2.0)
    return y + s * (f @ ac.param("B", (width, y.shape[1]), "zeros"))


def plain(name, x, W, b, v, g):
    """The equations above in torch."""
    y = F.linear(x, W, b)
    match name:
        case "kind":
            return ((x @ v["V"].T) * v["s"] * v["gate"][g["class"]]) @ v["U"].T + b
        case "mtl_lora":
            gates = torch.softmax(v["w"] / 0.5, 1)[g["task"]]
            h = torch.einsum("mr,msr->ms", x @ v["A"].T, v["L"][g["task"]])
            return y + 8 * sum(gates[:, j, None] * (h @ v["B"][j].T) for j in range(3))
        case "flora":
            pairs = zip(v["A"][g["example"]], v["B"][g["example"]], x, strict=True)
            return torch.stack([((B.T @ A) * W) @ row for A, B, row in pairs]) + b
        case "pat":
            gate = v["v"] * (torch.sigmoid(g.get("temp", 1.0) * v["t"]) + g.get("bias", 0.5))
            return F.linear(x, gate[:, None] * (W + v["B"] @ v["A"] @ W), b)
        case "routing":
            hv = g["v"] @ v["A"].T
            return y + 2 * x @ v["A"].T @ hv.T @ hv @ v["B"].T
        case "feature":
            return y + g.get("s", 2.0) * g["feature"] @ v["B"]


METHODS = {a.name: a() for a in (kind, mtl_lora, flora, pat, routing, feature)}
GIVEN = {
    "kind": {"class": torch.tensor([0, 4, 4, 1, 2, 0])},
    "mtl_lora": {"task": torch.tensor([3, 0, 0, 1, 2, 3])},
    "flora": {"example": torch.tensor([1, 1, 0, 3, 2, 2])},
    "pat": {"temp": torch.tensor(1.7).double(), "bias": torch.tensor(0.3).double()},
    "routing": {"v": torch.linspace(-1, 1, 5 * K).double().reshape(5, K)},
    "feature": {"feature": torch.linspace(-2, 1, 3 * M).double().reshape(M, 3), "s": torch.tensor(0.7).double()},
}
INDEXED = ("kind", "mtl_lora", "flora")
each = list(METHODS)
every = pytest.mark.parametrize("name", each)


def layer_of(adapter):
    """A trained adapter on a frozen base."""
    layer = ac.AdaptedLinear(nn.Linear(K, N, dtype=torch.float64).requires_grad_(False), adapter)
    move(layer)
    return layer


def tokens(*lead):
    """x that wants a gradient."""
    return torch.randn(*(lead or (M,)), K, dtype=torch.float64).requires_grad_()


@every
def test_output_and_gradients_are_those_of_plain_torch(name):
    layer, x = layer_of(METHODS[name]), tokens()
    given = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in GIVEN[name].items()}
    got, want = layer(x, **given), plain(name, x, layer.weight, layer.bias, layer.leaves(), given)
    close(got, want)
    wanted = [x, *layer.leaves().values(), *(t for t in given.values() if t.requires_grad)]
    gy = torch.randn(M, N, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(got, wanted, gy), torch.autograd.grad(want, wanted, gy), strict=True):
        close(a, b, terms=10.0)
    assert wanted[-1].requires_grad


@every
def test_around_a_call_is_the_same_as_in_it(name):
    model, x = nn.Sequential(layer_of(METHODS[name])), tokens()
    with ac.giving(model, **GIVEN[name]) as same:
        assert same is model
        assert torch.equal(model(x), model[0](x, **GIVEN[name]))


@pytest.mark.parametrize("name", [*each[:3], "feature"])
@pytest.mark.parametrize("lead", [(3, 2), (3, 1, 2)], ids=str)
def test_a_row_an_example_is_repeated_over_its_tokens(name, lead):
    layer, x = layer_of(METHODS[name]), tokens(*lead)
    (key, t), *rest = GIVEN[name].items()
    examples = t[:3].clone().requires_grad_(t.is_floating_point())
    rows = x.reshape(M, K)
    want = layer(rows, **{key: examples.repeat_interleave(2, 0)}, **dict(rest))
    got = layer(x, **{key: examples}, **dict(rest))
    close(got.reshape(M, N), want)
    each = examples.reshape(3, *([1] * (len(lead) - 1)), *t.shape[1:]).expand(*lead, *t.shape[1:])
    assert torch.equal(layer(x, **{key: each}, **dict(rest)), got), "or one row a token, in x's shape"
    if examples.requires_grad:
        (a,), (b,) = (torch.autograd.grad(y.square().sum(), [examples]) for y in (got, want))
        close(a, b)


def test_what_is_given_nearer_holds_and_what_was_comes_back():
    model, x = nn.Sequential(layer_of(pat())), tokens()
    layer, v = model[0], model[0].leaves()

    def at(**g):
        return plain("pat", x, layer.weight, layer.bias, v, g)

    with ac.giving(model, temp=3.0, bias=1.0):
        close(model(x), at(temp=3.0, bias=1.0))
        with ac.giving(model, temp=-1.0):
            close(model(x), at(temp=-1.0, bias=1.0))
            close(layer(x, bias=0.0), at(temp=-1.0, bias=0.0))
        with pytest.raises(ShapeError), ac.giving(model, temp=torch.zeros(3)):
            model(x)
        close(model(x), at(temp=3.0, bias=1.0))
    close(model(x), at())


def test_two_adapters_share_a_name():
    model, x, task = nn.Sequential(nn.Linear(K, N).double(), nn.Linear(N, K).double()), tokens(), GIVEN["mtl_lora"]
    for name in ("a", "b"):
        ac.inject(model, mtl_lora(), "all-linear", name=name)
    move(model)
    h = x
    for layer in model:
        y = F.linear(h, layer.weight, layer.bias)
        for name in ("a", "b"):
            v = layer.leaves(name)
            y = y + plain("mtl_lora", h, layer.weight, layer.bias, v, task) - F.linear(h, layer.weight, layer.bias)
        h = y
    with ac.giving(model, **task):
        close(model(x), h)


def test_one_name_of_two_shapes_names_both_places():
    model = ac.inject(nn.Sequential(nn.Linear(K, N)), routing(tokens=5), ["0"])
    with pytest.raises(EquationError, match=r"'v'.*test_given.py:\d+.*rename one \[.*test_given.py:\d+\]"):
        ac.inject(model, routing(tokens=4), ["0"], name="other")
    assert model[0].active == ("default",)


def line_of(method, text):
    """Where the method's source has this text."""
    with open(__file__) as file:
        lines = file.read().splitlines()
    start = int(method.where.rpartition(":")[2]) - 1
    return next(i + 1 for i in range(start, len(lines)) if text in lines[i])


def test_what_is_missing_is_named_with_the_line_and_what_to_call():
    layer = layer_of(mtl_lora())
    with pytest.raises(LeafError) as caught:
        layer(tokens())
    message = str(caught.value)
    for text in ("'task'", "layer(x, task=...)", "ac.giving(model, task=...)"):
        assert text in message
    assert message.endswith(f"[{__file__}:{line_of(mtl_lora, 'ac.given')}]")


@pytest.mark.parametrize("adapter", [mtl_lora(), lora(r=2)], ids=lambda a: a.name)
def test_a_name_that_no_equation_asks_for(adapter):
    model = nn.Sequential(layer_of(adapter))
    with pytest.raises(LeafError, match="asks for 'tsak'"):
        model[0](tokens(), tsak=torch.zeros(M, dtype=torch.int64))
    with pytest.raises(LeafError, match="asks for 'tsak'"), ac.giving(model, tsak=torch.zeros(M)):
        pass


WRONG = [
    ("mtl_lora", {"task": torch.zeros(M)}, DtypeError, "'task' holds whole numbers, got torch.float32"),
    ("mtl_lora", {"task": torch.zeros(M + 1).long()}, ShapeError, r"'task' is \(7,\).*\(6,\)"),
    ("mtl_lora", {"task": torch.zeros(3).long()}, ShapeError, r"'task' is \(3,\)"),
    ("feature", {"feature": torch.zeros(M, 4)}, ShapeError, r"'feature' is \(6, 4\).*\(6, 3\)"),
    ("routing", {"v": torch.zeros(5)}, ShapeError, r"'v' is \(5,\).*\(5, 16\)"),
    ("pat", {"temp": torch.zeros(1)}, ShapeError, r"'temp' is \(1,\).*\(\)"),
]


@pytest.mark.parametrize(("name", "given", "error", "text"), WRONG)
def test_a_wrong_shape_or_dtype(name, given, error, text):
    with pytest.raises(error, match=text):
        layer_of(METHODS[name])(tokens(), **given)


def test_numbers_lists_and_other_dtypes_are_taken():
    layer, x = layer_of(mtl_lora()), tokens()
    want = layer(x, **GIVEN["mtl_lora"])
    for task in (GIVEN["mtl_lora"]["task"].tolist(), GIVEN["mtl_lora"]["task"].to(torch.uint8)):
        assert torch.equal(layer(x, task=task), want)
    layer = layer_of(pat())
    close(layer(x, temp=2), layer(x, temp=torch.tensor(2.0)))


def test_a_merge_needs_a_value_that_does_not_change():
    layer = layer_of(pat())
    with torch.no_grad():
        layer.leaves()["t"].normal_()
    want = plain("pat", torch.eye(K).double(), layer.weight, torch.zeros(N).double(), layer.leaves(), {}).T
    close(layer.adapted_weight(), want)
    close(layer.delta_weight(), want - layer.weight)


def test_a_merge_is_refused_without_a_default():
    @ac.adapter
    def scaled(W):
        return ac.given("size", ()) * (W + ac.param("D", W.shape, "zeros"))

    layer = ac.AdaptedLinear(nn.Linear(K, N), scaled())
    for call in (layer.merge, layer.adapted_weight, layer.delta_weight):
        with pytest.raises(MergeError, match="'size'"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_dtype_than_x(dtype):
    layer = ac.AdaptedLinear(nn.Linear(K, N, dtype=dtype).requires_grad_(False), routing())
    move(layer)
    x, v = torch.randn(M, K, dtype=dtype), GIVEN["routing"]["v"].float().requires_grad_()
    y = layer(x, v=v)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert v.grad.dtype == torch.float32
    assert v.grad.norm() > 0


@pytest.mark.parametrize("name", [each[1], "routing", "feature", "pat"])
def test_compiled_in_eval(name):
    layer = layer_of(METHODS[name]).eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for m in (M, 1):
        x, given = tokens(m), {n: t[:m] if n in ("task", "feature") else t for n, t in GIVEN[name].items()}
        close(compiled(x, **given), layer(x, **given))


def test_vmap_and_export():
    layer, v = layer_of(routing()).eval(), torch.randn(3, 5, K, dtype=torch.float64)
    x = torch.randn(3, 4, K, dtype=torch.float64)
    each = torch.func.vmap(lambda x, v: layer(x, v=v))(x, v)
    for i in range(3):
        close(each[i], layer(x[i], v=v[i]))
    program = torch.export.export(layer, (x[0],), {"v": v[0]}).module()
    close(program(x[1], v=v[1]), layer(x[1], v=v[1]))


def test_no_tokens_and_one_token():
    layer, f = layer_of(feature()), torch.randn(2, 3, dtype=torch.float64)
    assert layer(tokens(0), feature=f[:0]).shape == (0, N)
    assert layer(tokens(2, 0), feature=f).shape == (2, 0, N)
    x = tokens(1)
    close(layer(x[0], feature=f[0]), layer(x, feature=f[:1])[0])
