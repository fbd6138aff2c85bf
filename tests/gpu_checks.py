"""What only a GPU can show: generated kernels as they run there, with and without CUDA graphs, beside float64.

`make gpu-test` runs this file. Without a GPU, TRITON_INTERPRET=1 rehearses it at tiny sizes, by the same code.
"""

from __future__ import annotations

import os

import interpreter
import pytest
import torch

import adaptc as ac
from adaptc.case import gradients_of, move
from adaptc.errors import AdaptcError
from adaptc.methods import catalogue
from adaptc.runtime import generated, program
from adaptc.runtime.reference import Evaluator
from adaptc.verify import accepted

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES = ((1024, 768), (257, 131)) if GPU else ((32, 48),)
ROWS = (512, 77) if GPU else (5,)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DECODED = (1, 4, 16)
METHODS = tuple(catalogue()) if GPU else ("lora", "dora", "hra", "road", "ia3")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True, params=[generated.ALL, generated.GAIN])
def kernels(request, monkeypatch):
    """Every step that can be is a generated kernel; or those that are chosen."""
    if not GPU:
        assert os.environ.get("TRITON_INTERPRET") == "1", "no GPU: set TRITON_INTERPRET=1 to rehearse"
        interpreter.install()
    program.build.cache_clear()
    monkeypatch.setattr(program, "generates", lambda device: request.param)
    yield
    program.build.cache_clear()


def layer_of(name, n, k, dtype):
    """An adapted layer on the device, its leaves moved away from their initial values."""
    torch.manual_seed(0)
    base = torch.nn.Linear(k, n, dtype=dtype).requires_grad_(False)
    layer = ac.AdaptedLinear(base, catalogue()[name]())
    move(layer, 0)
    return layer.to(DEVICE)


def dense(layer, arguments, gy, dtype):
    """y and its gradients by the equation's dense definition in a dtype."""
    composed = layer.stack(True)
    given = [t.detach().to(dtype) if t.is_floating_point() else t for t in arguments]
    for new, old in zip(given, arguments, strict=True):
        new.requires_grad_(old.requires_grad)
    y = Evaluator(dict(zip(composed.arguments, given, strict=True)), dtype, rows=len(gy))(composed.output)
    return [y.detach(), *gradients_of(y, [t for t in given if t.requires_grad], gy.to(dtype))]


def sizes_of(name):
    """The sizes that a method takes; else the largest of those it is verified at."""
    adapter = catalogue()[name]()
    found = []
    for size in SIZES:
        try:
            adapter.trace(*size)
        except AdaptcError:
            continue
        found.append(size)
    return found or [accepted(adapter)[-1]]


def is_closed(layer):
    """Needs a call nothing but x?"""
    return not layer.stack(True).given and not layer.stack(True).seeded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_y_and_gradients(name, dtype):
    for n, k in sizes_of(name):
        layer = layer_of(name, n, k, dtype)
        if not is_closed(layer):
            continue
        for rows in ROWS:
            x = torch.randn(rows, k, device=DEVICE).to(dtype).requires_grad_()
            gy = torch.randn(rows, n, device=DEVICE).to(dtype)
            arguments = [x, *layer.tensors()]
            y = layer(x)
            found = [y.detach(), *gradients_of(y, [t for t in arguments if t.requires_grad], gy)]
            exact, plain = (dense(layer, arguments, gy, wide) for wide in (torch.float64, torch.float32))
            scale = gy.double().norm() * exact[0].norm()
            for j, (got, right, torchs) in enumerate(zip(found, exact, plain, strict=True)):
                size = torch.maximum(right.norm(), scale) if j else right.norm()
                bound = 2 * (torchs.double() - right).norm() + 2 * torch.finfo(dtype).eps * size
                assert (got.double() - right).norm() <= bound, f"{name} {n}x{k} {rows} rows: result {j}"


@pytest.mark.parametrize("rows", DECODED)
@pytest.mark.parametrize("name", METHODS)
def test_decoding(name, rows):
    n, k = sizes_of(name)[0]
    layer = layer_of(name, n, k, torch.float32).eval()
    if not is_closed(layer):
        return
    x = torch.randn(rows, k, device=DEVICE)
    with torch.no_grad():
        y = layer(x)
        again = layer(x)
    none = torch.zeros(rows, n, device=DEVICE)
    right, plain = (dense(layer, [x, *layer.tensors()], none, wide)[0] for wide in (torch.float64, torch.float32))
    bound = 2 * (plain.double() - right).norm() + 2 * torch.finfo(torch.float32).eps * right.norm()
    assert (y.double() - right).norm() <= bound
    assert torch.equal(y, again)


@pytest.mark.parametrize("name", ("lora", "dora", "hra", "oft", "vera") if GPU else ())
def test_cuda_graphs(name):
    """A training step replayed gives what it gave when it was captured, for other values too."""
    layer = layer_of(name, 1024, 768, torch.bfloat16)
    x = torch.randn(512, 768, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    gy = torch.randn(512, 1024, device=DEVICE, dtype=torch.bfloat16)
    trained = [p for p in layer.parameters() if p.requires_grad]

    def step():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *trained], gy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        trained[0].mul_(1.1)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        torch.testing.assert_close(a, b)
