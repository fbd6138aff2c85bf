"""Imports go one way, and what must not be imported is not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors", "env", "console"},
    {"ir"},
    {"initial", "equation", "method", "language"},
    {"plan"},
    {"codegen"},
    {"runtime"},
    {"nn"},
    {"interop", "tune", "explain", "emit"},
    {"case", "laws", "verify"},
    {"timing"},
    {"cli", "__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
PURE = {"ir", "language", "equation", "method", "initial", "errors", "plan", "codegen"}
PACKAGE = ROOT / "adaptc"
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "ir").rglob("*.py")})  # ir is a link, which rglob may not follow
SOURCES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def part(module):
    """`adaptc.plan.search` -> `plan`."""
    return module.split(".")[1] if "." in module else ""


def imports(path):
    """Every module that a file imports, at the top or not, with `from a import b` as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {m for m in found if m != "adaptc" and not (m.startswith("adaptc.") and part(m) not in PARTS)}


PARTS = {part(module) for module in SOURCES} - {""}


def test_every_part_of_the_package_has_a_layer():
    assert len(SOURCES) > 50
    assert PARTS - {"methods"} <= RANK.keys(), "give the new part a layer, here and in CONTRIBUTING.md"


@pytest.mark.parametrize("module", [m for m in SOURCES if part(m) not in ("", "methods")])
def test_imports_go_one_way(module):
    own = RANK[part(module)]
    for other in imports(SOURCES[module]):
        if other.startswith("adaptc.") and part(other) != "methods":
            assert RANK[part(other)] <= own, f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in SOURCES if part(m) == "methods" and m.count(".") == 2])
def test_methods_import_the_language_and_the_standard_library_alone(module):
    statements = [
        n for n in ast.walk(ast.parse(SOURCES[module].read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    names = {ast.unparse(n) for n in statements}
    assert "import adaptc as ac" in names
    assert all(n.split()[1].split(".")[0] in sys.stdlib_module_names for n in names - {"import adaptc as ac"})


@pytest.mark.parametrize("module", SOURCES)
def test_the_compiler_is_free_of_frameworks(module):
    roots = {name.split(".")[0] for name in imports(SOURCES[module])}
    if part(module) in PURE:
        assert not roots & {"torch", "triton", "numpy", "safetensors", "scipy"}
    assert "ir" not in roots, "a second copy of adaptc.ir"
    assert not roots & {"peft", "transformers", "matplotlib"} or part(module) == "interop"


def reads_environment(path):
    """Does a file touch os.environ or os.getenv?"""
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else None
        taken = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) and node.module == "os" else []
        if name in ("environ", "getenv", "putenv", "environb") or {"environ", "getenv"} & set(taken):
            return True
    return False


def test_one_file_reads_the_environment():
    assert [m for m, path in SOURCES.items() if reads_environment(path)] == ["adaptc.env"]


def test_import_adaptc_brings_in_no_other_library():
    heavy = ["peft", "transformers", "matplotlib", "hypothesis", "pytest", "scipy", "triton", "adaptc.cli"]
    script = f"import sys, adaptc; print(sorted(set({heavy}) & set(sys.modules)))"
    lean = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=lean)
    assert done.stdout.strip() == "[]"
