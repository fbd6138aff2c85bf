"""Generated kernels: every method of the catalogue and random equations run in Triton's interpreter, forward and
backward. What a kernel does not write is NaN. `test_aot.py` compiles them."""

import dataclasses

import interpreter
import pytest
import torch
from fuzzing import BOUND, CONDITION, Case, far
from strategies import bias_form, output_form, weight_form

from adaptc.case import Case as LayerCase
from adaptc.errors import UnsupportedError
from adaptc.laws import LAWS
from adaptc.methods import catalogue
from adaptc.plan.search import plan
from adaptc.runtime import generated, program
from adaptc.runtime.planning import task_of
from adaptc.verify import accepted

ROWS = 5
LEFT = {"fourierft": {"Transform", "Map", "Contract", "Take", "Put"}}
"""What is left to torch: complex numbers, around the vendor's transforms."""


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Every step that can be is a generated kernel, and memory that nobody wrote holds NaN."""
    interpreter.install()
    program.build.cache_clear()
    monkeypatch.setattr(program, "generates", lambda device: generated.ALL)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    program.build.cache_clear()


def test_memory_is_filled():
    assert torch.empty(3).isnan().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of entries that are not stored
@pytest.mark.parametrize("name", catalogue())
def test_kernels_of_the_catalogue_agree_with_the_dense_definition(name):
    adapter = catalogue()[name]()
    n, k = sorted(accepted(adapter), key=lambda size: size[0] * size[1])[-2]
    for law in ("forward", "gradients", "precision"):
        LAWS[law](LayerCase(adapter, n, k, ROWS))


def sources(adapter, n, k, dtype=torch.float32):
    """The generated sources of a training step."""
    case = LayerCase(adapter, n, k, ROWS)
    layer, x = case.make(dtype), case.x(dtype=dtype)
    stack, tensors = layer.stack(True), case.tensors(layer, x)
    wants = tuple(a.role in ("token", "param") for a in stack.arguments)
    dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in (x, *tensors))
    found = program.assemble(plan(task_of(stack, wants, "h200")), stack, dtypes, generated=generated.ALL)
    return [s for s in (found.forward_source, found.backward_source) if s is not None]


@pytest.mark.parametrize("name", catalogue())
def test_what_is_left_to_torch(name):
    adapter = catalogue()[name]()
    made = sources(adapter, *accepted(adapter)[-1])
    left = {line.partition(":")[0] for s in made for line in s.left}
    assert left == LEFT.get(name, set()), [line for s in made for line in s.left]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", [weight_form, bias_form, output_form], ids=lambda m: m.name)
@pytest.mark.parametrize("start", [0, 4])
def test_random_equations_agree_with_the_dense_definition(form, start):
    good = 0
    for seed in range(start, start + 4):
        case = Case(form, seed)
        expected = case.reference()
        if far(case.reference(torch.float32), expected) > CONDITION:
            continue
        good += 1
        chosen = plan(task_of(case.stack, case.wants, "h200"))
        made = program.assemble(chosen, case.stack, case.dtypes, generated=generated.ALL)
        assert far(case.results(lambda a, p=made: p.call(*a)), expected) < BOUND, str(case)
        assert made.forward_source.kernels
    assert good >= 3


def test_strictly_nothing_is_left_to_torch(monkeypatch):
    from adaptc.env import options

    strict = dataclasses.replace(options(), strict=True)
    monkeypatch.setattr(program, "options", lambda: strict)
    assert sources(catalogue()["lora"](), 32, 48)
    with pytest.raises(UnsupportedError, match="fft"):
        sources(catalogue()["fourierft"](), 32, 48)


def test_a_wrong_kernel_is_found(monkeypatch):
    from adaptc.codegen import tiled

    right = tiled.render
    monkeypatch.setattr(tiled, "render", lambda *a: right(*a).replace("tl.dot(", "1.01 * tl.dot("))
    adapter = catalogue()["lora"]()
    with pytest.raises(Exception, match="forward"):
        LAWS["forward"](LayerCase(adapter, 32, 48, ROWS))
