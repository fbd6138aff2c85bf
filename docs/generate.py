"""Write what the registries say: docs/reference.md with its pictures, docs/methods.md, the names in README.md.

python docs/generate.py            writes the files
python docs/generate.py --check    writes nothing; exits 1 and names the files that are stale
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy
from picture import caption, instance, svg

import adaptc as ac
from adaptc.cli.main import _row, markdown_table
from adaptc.initial import NAMED as INITIALISERS
from adaptc.ir import functions
from adaptc.ir.build import count
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Primitive
from adaptc.ir.rules import Rule
from adaptc.method import Method, symbolic
from adaptc.methods import catalogue

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
NOTE = "<!-- Written by `python docs/generate.py`: change the docstrings that it reads, not this file. -->"
WIDTH = 108

# ---------------------------------------------------------------------------- text


def prose(text: str) -> str:
    """A docstring as Markdown: what Markdown would read as markup is escaped, but not inside backticks."""
    parts = text.split("`")
    for j in range(0, len(parts), 2):
        plain = re.sub(r"(?<! )\*|\*(?! )|\\|<(?=[A-Za-z/!])", r"\\\g<0>", parts[j])
        plain = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", plain)
        parts[j] = plain.replace("](", "]\\(")
    return "`".join(parts)


def cell(text: str) -> str:
    """Text for a table's cell."""
    return text.replace("|", "\\|")


def documented(thing: Any) -> str:
    """A docstring as paragraphs; `Shapes:`, `apply:`, `Raises:` and `Source:` start lines of their own."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    blocks = []
    for block in doc.split("\n\n"):
        text = " ".join(block.split())
        blocks.append(re.sub(r"(?<=\.) (?=(Shapes|apply|Raises|Source)\b[^.:]*:)", "\n\n", text))
    return "\n\n".join(wrapped(prose(b)) for block in blocks for b in block.split("\n\n"))


def wrapped(text: str) -> str:
    """A paragraph in lines."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def first(doc: str | None) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(head + [f"| {' | '.join(map(cell, row))} |" for row in rows])


def signature(name: str, function: Callable[..., Any]) -> str:
    """`ac.name(arguments)` without annotations."""
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    text = str(inspect.Signature([p for p in parameters if p.name not in ("self", "cls")]))
    return f"ac.{name}{text}"


# ---------------------------------------------------------------------------- the reference


def operators() -> dict[str, type[AbstractOperator]]:
    """The operators of this package by name; a new file in ir/operators is found by itself."""
    known = AbstractOperator.registry.items()
    return {n: cls for n, cls in sorted(known) if cls.__module__.startswith("adaptc.ir.operators.")}


def of_operator(name: str, cls: type[AbstractOperator]) -> str:
    """One operator: how it is written, what it is, what it looks like."""
    own = "of" in vars(cls)
    call = signature(name, cls.of) if own else f"ac.{name}({', '.join(cls._fields)})"
    drawn = f"![{name}](pictures/{name}.svg)\n\nDrawn: {caption(instance(cls))}."
    return f"### {name}\n\n`{call}`\n\n{documented(cls)}\n\n{drawn}"


def of_function(name: str) -> tuple[str, ...]:
    """One elementwise function: what it is and its derivative."""
    value = functions.ELEMENTWISE[name]
    arguments = sorted(map(str, value.free_symbols))
    slopes = [str(sympy.simplify(sympy.diff(value, a))) for a in functions.ARGS[: len(arguments)]]
    call = "M < N" if name == "less" else f"ac.{name}({', '.join('MN'[: len(arguments)])})"
    return f"`{call}`", f"`{value}`", ", ".join(f"`{s}`" for s in slopes)


def of_public(name: str) -> str:
    """One name of `adaptc`: how it is called and what it does."""
    thing = getattr(ac, name)
    call = signature(name, thing.__init__ if inspect.isclass(thing) else thing)
    return f"### ac.{name}\n\n`{call}`\n\n{documented(thing)}"


def initialisers() -> list[tuple[str, str]]:
    """Every named initialiser and every function that makes one."""
    made = {n: getattr(ac, n) for n in ac.__all__ if getattr(ac, n).__module__ == "adaptc.initial"}
    told = {n: prose(first(f.__doc__)) for n, f in made.items()}
    rows = [(f'`"{n}"`', told.get(n) or NAMED[n]) for n in INITIALISERS]
    return rows + [(f"`{signature(n, f)}`", told[n]) for n, f in made.items()]


NAMED = {
    "zeros": "0 everywhere.",
    "ones": "1 everywhere.",
    "identity": "The identity matrix on the last two axes.",
    "orthogonal": "As `torch.nn.init.orthogonal_`.",
    "paired_kaiming": "Columns 0 and 1 equal, 2 and 3 equal, ...: reflections in them cancel. Even numbers of columns.",
}

HEAD = """# Reference

What the compiler knows, read from its registries: [operators](#operators), [elementwise
functions](#elementwise-functions), [initialisers](#initialisers), [public names](#public-names), [rewrite
rules](#rewrite-rules), [primitives](#primitives). `language.md` explains how they are used.
"""

OPERATORS = """An operator is a structured matrix. It acts on the last two axes; leading axes are batch where the shapes
say so. `apply` says how rows of tokens are multiplied without forming the matrix. In the pictures a square is an
entry that is not zero, the darker the larger its magnitude."""

ELEMENTWISE = """As SymPy expressions of `a0` (and `a1`). Gradients use the derivatives of the last column, one for each
argument."""

RULES = """A rule is applied always, or gives another form of a part, which the planner weighs against the others."""

PRIMITIVES = (
    """Every operator and function expands to these. Shapes, derivatives and costs are defined on them alone."""
)


def reference() -> str:
    """docs/reference.md."""
    helpers = [c for c in vars(functions).values() if inspect.isclass(c) and c.__module__ == functions.__name__]
    rules = [
        (r.name, f"`{r.text}`", "weighed" if r.form else "always", prose(first(r.rewrite.__doc__)))
        for r in Rule.registry.values()
    ]
    primitives = [
        (n, ", ".join(f"`{f}`" for f in c._fields), prose(first(c.__doc__)))
        for n, c in Primitive.registry.items()
        if c.__module__ == Primitive.__module__
    ]
    parts = [
        NOTE, HEAD, "## Operators", OPERATORS, *(of_operator(n, c) for n, c in operators().items()),
        "## Elementwise functions", ELEMENTWISE,
        table(("function", "value", "derivative"), [of_function(n) for n in functions.ELEMENTWISE]),
        "Their parts that SymPy does not have:",
        table(("part", "is"), [(f"`{c.__name__}(a)`", prose(first(c.__doc__))) for c in helpers]),
        "## Initialisers", table(("init", "draws"), initialisers()),
        "## Public names", *(of_public(n) for n in ac.__all__),
        "## Rewrite rules",
        RULES,
        table(("rule", "before -> after", "applied", "says"), rules),
        "## Primitives",
        PRIMITIVES,
        table(("primitive", "fields", "is"), primitives),
    ]  # fmt: skip
    return "\n\n".join(p.strip("\n") for p in parts) + "\n"


# ---------------------------------------------------------------------------- the catalogue


def parameters(method: Method) -> str:
    """How many numbers are trained, with the defaults: a formula of n and k where the equation takes symbols."""
    equation = symbolic(method())[1]
    own = sum(sympy.sympify(count(s.leaf.dims)) for s in equation.leaves if s.trainable and not s.shared)
    shared = sum(sympy.sympify(count(s.leaf.dims)) for s in equation.leaves if s.trainable and s.shared)
    text = f"`{sympy.factor(own)}`" + (f", shared `{sympy.factor(shared)}`" if shared else "")
    return text if not isinstance(equation.n, int) else f"{text} at {equation.n} x {equation.k}"


def family(name: str, methods: list[Method]) -> str:
    """One file of adaptc/methods."""
    rows = []
    for method, line in zip(methods, markdown_table([_row(m) for m in methods]).split("\n")[2:], strict=True):
        rows.append(f"{line} {parameters(method)} |")
    head = "| method | equation | source | trained |\n|---|---|---|---|"
    told = prose(first(sys.modules[f"adaptc.methods.{name}"].__doc__))
    about = [f"**{m.name}** `{m!r}`\n\n{documented(m)}" for m in methods]
    return "\n\n".join([f"## {name.replace('_', ' ').capitalize()}", told, "\n".join([head, *rows]), *about])


METHODS = """# Methods

`from adaptc.methods import lora`; each is its equation and nothing else. The column `trained` counts trained
numbers of one layer of n outputs and k inputs with the default hyper-parameters; what all layers share is
counted after `shared`. Long equations are cut in the tables, `adaptc explain METHOD` prints them whole. Below
each table stand the signatures and where the equations come from. An equation that is not read off a paper
says so.
"""


def methods() -> str:
    """docs/methods.md."""
    families: dict[str, list[Method]] = {}
    for m in catalogue().values():
        families.setdefault(m.module.rpartition(".")[2], []).append(m)
    parts = [NOTE, METHODS, *(family(name, families[name]) for name in sorted(families))]
    return "\n\n".join(p.strip("\n") for p in parts) + "\n"


def readme() -> str:
    """README.md with the number and the names of the methods between its markers."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    names = wrapped(f"{len(catalogue())} methods: {', '.join(catalogue())}.")
    return f"{before}{BEGIN}\n{names}\n{END}{after}"


# ---------------------------------------------------------------------------- files


def files() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    docs = ROOT / "docs"
    made = {docs / "reference.md": reference(), docs / "methods.md": methods(), ROOT / "README.md": readme()}
    drawn = {docs / "pictures" / f"{n}.svg": svg(instance(c), n) for n, c in operators().items()}
    return {**made, **drawn}


def stale(made: dict[Path, str]) -> list[str]:
    """Files that differ from what they should hold, and pictures of nothing."""
    found = [p for p, text in made.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    orphans = set((ROOT / "docs" / "pictures").glob("*.svg")) - set(made)
    return sorted(str(p.relative_to(ROOT)) for p in (*found, *orphans))


def main(arguments: list[str]) -> int:
    """Write, or check; the exit code."""
    made = files()
    changed = stale(made)
    for name in changed:
        done = "written" if ROOT / name in made else "removed"
        print(f"{'stale' if '--check' in arguments else done}: {name}")
    if "--check" in arguments:
        return 1 if changed else 0
    for path in (ROOT / name for name in changed):
        if path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
