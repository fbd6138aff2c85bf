"""Expressions from SymPy and back, and what SymPy typesets."""

import pytest
import sympy
import torch
from sympy import HadamardProduct, Identity, KroneckerProduct, MatrixSymbol, OneMatrix, ZeroMatrix, symbols

import adaptc as ac
from adaptc.errors import AdaptcError, EquationError, LeafError, ShapeError
from adaptc.ir.dims import as_dim
from adaptc.ir.prims import Leaf
from adaptc.ir.sympy_bridge import to_sympy
from adaptc.methods import catalogue, hra, lora
from adaptc.runtime.reference import Evaluator

SHAPES = {"W": (4, 6), "V": (4, 6), "B": (4, 2), "A": (2, 6), "S": (4, 4), "T": (4, 4), "P": (2, 3), "Q": (2, 2)}
COLUMNS = {"d": 4, "e": 6}
LEAVES = {n: Leaf(n, tuple(map(as_dim, s)), "param") for n, s in SHAPES.items()}
LEAVES |= {n: Leaf(n, (as_dim(s),), "param") for n, s in COLUMNS.items()}
M = {n: MatrixSymbol(n, *s) for n, s in SHAPES.items()} | {n: MatrixSymbol(n, s, 1) for n, s in COLUMNS.items()}
W, V, B, A, S, T, P, Q, d, e = (M[n] for n in (*SHAPES, *COLUMNS))
VALUES = {n: torch.randn(s, generator=torch.Generator().manual_seed(7), dtype=torch.float64) for n, s in SHAPES.items()}
VALUES |= {n: torch.linspace(1, 2, s, dtype=torch.float64) for n, s in COLUMNS.items()}
VALUES["S"] = VALUES["S"] + 4 * torch.eye(4)
VALUES["T"] = VALUES["T"] - 5 * torch.eye(4)
v = VALUES

CASES = {
    "symbol": (W, v["W"]),
    "sum": (W + V, v["W"] + v["V"]),
    "difference": (W - V - 2 * B * A, v["W"] - v["V"] - 2 * v["B"] @ v["A"]),
    "product": (B * A, v["B"] @ v["A"]),
    "factor": (sympy.Rational(3, 7) * W, 3 / 7 * v["W"]),
    "root": (sympy.sqrt(2) * W / sympy.pi, 2**0.5 * v["W"] / torch.pi),
    "float": (0.125 * W, 0.125 * v["W"]),
    "negative": (-W, -v["W"]),
    "three": (S * T * W, v["S"] @ v["T"] @ v["W"]),
    "transpose": (W.T * S, v["W"].T @ v["S"]),
    "transpose of a product": ((B * A).T, (v["B"] @ v["A"]).T),
    "inverse": (S.I * W, torch.linalg.solve(v["S"], v["W"])),
    "power": (S**3 * W, v["S"] @ v["S"] @ v["S"] @ v["W"]),
    "negative power": (S**-2 * W, torch.linalg.solve(v["S"], torch.linalg.solve(v["S"], v["W"]))),
    "hadamard": (HadamardProduct(W, V), v["W"] * v["V"]),
    "hadamard of three": (HadamardProduct(W, V, B * A), v["W"] * v["V"] * (v["B"] @ v["A"])),
    "kronecker": (KroneckerProduct(Q, P), torch.kron(v["Q"], v["P"])),
    "kronecker of three": (KroneckerProduct(Q, P, Q), torch.kron(v["Q"], torch.kron(v["P"], v["Q"]))),
    "identity": ((Identity(4) + S) * W, (torch.eye(4).double() + v["S"]) @ v["W"]),
    "zeros": (W + ZeroMatrix(4, 6), v["W"]),
    "ones": (W + OneMatrix(4, 6), v["W"] + 1),
    "diagonal": (sympy.DiagMatrix(d) * W, v["d"][:, None] * v["W"]),
    "two diagonals": (sympy.DiagMatrix(d) * W * sympy.DiagMatrix(e), v["d"][:, None] * v["W"] * v["e"]),
    "identity alone": (Identity(4), torch.eye(4).double()),
    "nested": (S * (W + 2 * B * A) - T.I * HadamardProduct(W, V), None),
}
CASES["nested"] = (
    CASES["nested"][0],
    v["S"] @ (v["W"] + 2 * v["B"] @ v["A"]) - torch.linalg.solve(v["T"], v["W"] * v["V"]),
)
cases = pytest.mark.parametrize(("expr", "want"), CASES.values(), ids=CASES)


def value(expr):
    """An expression of the language in float64."""
    return Evaluator({LEAVES[n]: t for n, t in VALUES.items()}, torch.float64)(expr)


@cases
def test_the_value_is_that_of_the_matrix_expression(expr, want):
    found = ac.from_sympy(expr, LEAVES)
    assert tuple(found.dims) == tuple(want.shape)
    assert torch.allclose(value(found), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("expr", "want"), [pytest.param(*c, id=n) for n, c in CASES.items()])
def test_there_and_back(expr, want):
    once = ac.from_sympy(expr, LEAVES)
    again = ac.from_sympy(to_sympy(once), LEAVES)
    assert torch.allclose(value(again), want, rtol=1e-11, atol=1e-12)


@cases
def test_it_is_typeset(expr, want):
    text = sympy.latex(to_sympy(ac.from_sympy(expr, LEAVES)))
    assert all(s.name in text for s in expr.atoms(MatrixSymbol))


def test_an_adapter_written_in_sympy():
    @ac.adapter
    def from_paper(W, *, r=2, alpha=4.0):
        n, k = W.shape
        leaves = {"W": W, "A": ac.param("A", (r, k), "ones"), "B": ac.param("B", (n, r), "zeros")}
        matrices = {name: MatrixSymbol(name, *leaf.shape) for name, leaf in leaves.items()}
        return ac.from_sympy(matrices["W"] + alpha / r * matrices["B"] * matrices["A"], leaves)

    layer = ac.AdaptedLinear(torch.nn.Linear(6, 4).double(), from_paper(r=2))
    with torch.no_grad():
        layer.leaves()["B"].normal_()
    leaves = layer.leaves()
    want = layer.weight + 2 * leaves["B"] @ leaves["A"]
    assert torch.allclose(layer.adapted_weight(), want, rtol=1e-12)
    layer(torch.randn(3, 6).double()).sum().backward()
    assert leaves["A"].grad is not None


@pytest.mark.parametrize("name", ["lora", "hra", "dora", "lokr", "loha", "ia3"])
def test_catalogue_methods_to_sympy(name):
    adapter = catalogue()[name]()
    expr = adapter.to_sympy()
    assert expr.shape == adapter.trace(*expr.shape).weight.dims or all(isinstance(s, sympy.Expr) for s in expr.shape)
    assert "W" in sympy.latex(expr)


def test_lora_there_and_back_with_symbolic_sizes():
    expr = lora(r=2, alpha=6.0).to_sympy()
    found = {s.name: s for s in expr.atoms(MatrixSymbol)}
    assert set(found) == {"W", "A", "B"}
    n, k = found["W"].shape
    assert found["A"].shape == (2, k)
    assert found["B"].shape == (n, 2)
    assert sympy.simplify(expr - (found["W"] + 3 * found["B"] * found["A"])) == ZeroMatrix(n, k)
    numbers = expr.subs({n: 4, k: 6}).doit()
    assert torch.allclose(value(ac.from_sympy(numbers, LEAVES)), v["W"] + 3 * v["B"] @ v["A"])


def test_reports_give_both_forms():
    report = ac.explain(lora(r=2), 8, 8, 4)
    assert {s.name for s in report.to_sympy().atoms(MatrixSymbol)} == {"W", "A", "B"}
    assert report.latex() == sympy.latex(report.to_sympy()) or "B A" in report.latex()
    assert "householder" in sympy.latex(hra().to_sympy())


# --------------------------------------------------------------------------- what has no form


c = symbols("c")
ERRORS = {
    "no leaf": (MatrixSymbol("Z", 4, 6) + W, LeafError, "'Z'.*W"),
    "free factor": (c * W, EquationError, "factor c"),
    "determinant": (sympy.Determinant(S), EquationError, "Determinant"),
    "trace": (sympy.Trace(S) * W, AdaptcError, "Trace"),
    "scalar": (sympy.Integer(3), EquationError, "Integer|Three"),
    "explicit": (sympy.Matrix([[1, 2], [3, 4]]), EquationError, "MutableDenseMatrix"),
    "function": (W.applyfunc(sympy.sin), EquationError, "ElementwiseApplyFunction"),
    "block": (sympy.BlockMatrix([[W, V]]), EquationError, "BlockMatrix"),
    "slice": (W[:2, :], EquationError, "MatrixSlice"),
    "symbolic power": (S ** symbols("j", integer=True), AdaptcError, "j"),
    "half power": (S ** sympy.Rational(1, 2), AdaptcError, "1/2"),
    "text": ("W + V", EquationError, "str"),
    "none": (None, EquationError, "NoneType"),
}


@pytest.mark.parametrize(
    ("expr", "error", "text"),
    [pytest.param(*case, id=n) for n, case in ERRORS.items()],
)
def test_what_has_no_form_says_so(expr, error, text):
    with pytest.raises(error, match=text):
        ac.from_sympy(expr, LEAVES)


def test_leaves_of_other_sizes_than_the_symbols():
    with pytest.raises(ShapeError, match=r"\(4, 6\).*\(6, 4\)|\(6, 4\).*\(4, 6\)"):
        ac.from_sympy(MatrixSymbol("W", 4, 6) + MatrixSymbol("V", 4, 6), {**LEAVES, "V": LEAVES["V"].T})


@pytest.mark.parametrize("symbol", [MatrixSymbol("W", 5, 6), MatrixSymbol("d", 5, 1), MatrixSymbol("d", 4, 2)])
def test_a_symbol_of_another_size_than_its_leaf(symbol):
    with pytest.raises(ShapeError, match=f"'{symbol.name}'"):
        ac.from_sympy(symbol, LEAVES)


def test_the_power_zero_is_the_identity():
    found = ac.from_sympy(sympy.MatPow(S, 0, evaluate=False), LEAVES)
    assert torch.equal(value(found), torch.eye(4).double())
