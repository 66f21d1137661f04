"""Arrows, sizes and habits of zoestim/, read off its source: whoever breaks one is named."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "zoestim"

# Which parts of zoestim/ a part may import, itself apart. Nobody imports zoestim/__init__.py.
ALLOWED: dict[str, set[str]] = {
    "backends": set(),
    "gradients": set(),
    "sparsity": set(),
    "models": set(),
    "datasets": set(),
    "propagation": set(),
    "certification": {"backends"},
    "solvers": set(),
    "rollouts": {"evaluation", "gradients", "training"},
    "evaluation": {"backends", "gradients", "propagation"},
    "training": {
        "_modules",
        "_nested",
        "_persistence",
        "backends",
        "evaluation",
        "gradients",
        "sparsity",
    },
    "_modules": {"evaluation", "models"},
    "_prefixed": {"_modules"},
    "_parameters": {"_prefixed", "evaluation", "gradients", "sparsity"},
    "_nested": set(),
    "_persistence": {"_nested", "gradients", "models", "sparsity"},
    "_asked": {"evaluation"},
    "_estimate": {"_asked", "backends", "evaluation", "gradients"},
    "_balance": set(),
    "_noise": set(),
    "_smoothing": {"_asked", "_balance", "_noise", "evaluation", "gradients"},
    "_explain": {"evaluation", "propagation"},
    "_figure": set(),
    "_display": {"_figure", "certification"},
    "_fitted_runs": set(),
    "_training_display": {"_figure", "_fitted_runs"},
    "_layer_ratios_display": {"_figure", "_fitted_runs"},
    "_gradient_error_display": {"_asked", "_estimate", "_figure", "evaluation", "gradients"},
    "_rollouts": {"solvers"},
    "_rollout_fields": set(),
    "_rollout_panels": {"_figure"},
    "_rollout_animation": {"_figure", "_rollout_panels"},
    "_rollout_display": {"_rollout_animation", "_rollout_fields", "_rollout_panels", "_rollouts"},
    "_error_curve_display": {"_figure", "_rollout_panels", "_rollouts"},
    "defense": {"backends", "evaluation", "gradients", "models", "training"},
    "_certified": {"certification", "evaluation", "training"},
    "_finetuning": {"_base", "evaluation", "rollouts", "training"},
    "_loop_parameters": {"_parameters", "_prefixed", "evaluation", "gradients"},
    "_loop_data": {"evaluation", "rollouts", "solvers"},
    "_loop_score": {"_loop_data", "evaluation", "rollouts", "solvers"},
    "_loop_gradient": {"evaluation", "gradients", "rollouts"},
    "_loop_fit": {
        "_finetuning",
        "_loop_data",
        "_loop_gradient",
        "_loop_score",
        "_loop_parameters",
        "_modules",
        "evaluation",
        "models",
        "rollouts",
        "solvers",
        "training",
    },
    "_solver_in_the_loop": {
        "_loop_data",
        "_loop_fit",
        "_loop_parameters",
        "_loop_score",
        "evaluation",
        "rollouts",
        "solvers",
    },
    "_defense_parameters": {"_parameters", "defense", "evaluation", "gradients"},
    "_defense_fit": {"_defense_parameters", "_finetuning", "defense", "evaluation", "training"},
    "_denoiser_defense": {
        "_certified",
        "_defense_fit",
        "_defense_parameters",
        "defense",
        "evaluation",
    },
    "_base": {"_modules", "_parameters", "_persistence", "evaluation", "training"},
    "_classifier": {"_base", "_parameters", "evaluation", "gradients"},
    "_regressor": {"_base", "evaluation"},
    "_load": {"_classifier", "backends", "_persistence", "_regressor", "evaluation", "training"},
}
OPTIONAL = (
    "matplotlib",
    "joblib",
    "PIL",
    "torch.distributed",
    "rich",
    "pandas",
    "ray",
    "distributed",
    "phi",
    "pde",
)
SEEDING = {
    f"{generator}.{name}"
    for generator in ("torch", "torch.random", "torch.cuda", "np.random", "numpy.random", "random")
    for name in ("manual_seed", "manual_seed_all", "seed")
}
NAMELESS = {"utils", "misc", "helpers", "common"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def dotted(file: Path) -> str:
    """Return the name under which a file of the package is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(file): file for file in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("module", FILES)


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def imported(node: ast.AST) -> Iterator[str]:
    """Give what is imported at or below the node, as `package.module.name`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def targets(module: str) -> set[str]:
    """Return the modules of zoestim that a module imports."""
    found = set()
    for name in imported(parse(module)):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


def part(module: str) -> str:
    """Return the first level below zoestim that the module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


# --- Arrows between parts and files


@each_module
def test_arrows_are_in_the_table(module: str):
    if module == "zoestim":
        return
    assert part(module) in ALLOWED, f"{FILES[module]}: add {part(module)!r} to ALLOWED"
    wrong = {part(target) for target in targets(module)} - {part(module)} - ALLOWED[part(module)]
    assert not wrong, f"{FILES[module]} must not import {sorted(wrong)}"


def test_no_import_cycle():
    assert find_cycle({module: targets(module) for module in FILES}) == []


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes that are left once all without an arrow are removed, again and again."""
    left = dict(graph)
    while leaves := [node for node, after in left.items() if not after & left.keys()]:
        for leaf in leaves:
            del left[leaf]
    return sorted(left)


def test_find_cycle_sees_one():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert find_cycle(graph) == ["a", "b", "c"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# --- Habits of a file: each check gives its offences


def relative_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: relative import"


def imports_in_functions(tree: ast.Module) -> Iterator[str]:
    for function in of_type(tree, Function):
        for name in imported(function):
            if not any(f"{name}.".startswith(f"{package}.") for package in OPTIONAL):
                yield f"{function.name} imports {name}"


def asserts_and_globals(tree: ast.Module) -> Iterator[str]:
    for node in of_type(tree, ast.Assert | ast.Global):
        yield f"line {node.lineno}: {type(node).__name__.lower()}"


def global_seeding(tree: ast.Module) -> Iterator[str]:
    for node in of_type(tree, ast.Call):
        if ast.unparse(node.func) in SEEDING:
            yield f"line {node.lineno}: {ast.unparse(node.func)}"


def long_functions(tree: ast.Module) -> Iterator[str]:
    for function in of_type(tree, Function):
        if stores_parameters(function):  # scikit-learn wants them one by one, however many
            continue
        if (length := lines(function) - docstring_lines(function)) > 60:
            yield f"{function.name} has {length} lines, at most 60 are allowed"


def stores_parameters(function: Function) -> bool:
    """Return whether a function is an estimator's __init__: its body branches nowhere."""
    return function.name == "__init__" and all(
        isinstance(statement, ast.Assign | ast.Expr) for statement in function.body
    )


def large_classes(tree: ast.Module) -> Iterator[str]:
    for each in of_type(tree, ast.ClassDef):
        if (methods := sum(isinstance(node, Function) for node in each.body)) > 12:
            yield f"{each.name} has {methods} methods, at most 12 are allowed"


def missing_docstring(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module has no docstring"


def of_type(tree: ast.AST, kind: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def lines(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def docstring_lines(node: Documented) -> int:
    return lines(node.body[0]) if ast.get_docstring(node) is not None else 0


OFFENDERS: dict[Callable[[ast.Module], Iterator[str]], str] = {
    relative_imports: "from . import x",
    imports_in_functions: "def f():\n    from torch import nn",
    asserts_and_globals: "def f():\n    assert True",
    global_seeding: "torch.manual_seed(0)",
    long_functions: "def f():\n    '''A docstring.\n    '''" + "\n    pass" * 60,
    large_classes: "class A:" + "\n    def f(self): pass" * 13,
    missing_docstring: "x = 1",
}
each_check = pytest.mark.parametrize("check", OFFENDERS, ids=lambda check: check.__name__)


@each_check
@each_module
def test_file_passes(check: Callable[[ast.Module], Iterator[str]], module: str):
    assert list(check(parse(module))) == [], FILES[module]


@each_check
def test_check_sees_an_offender(check: Callable[[ast.Module], Iterator[str]]):
    assert len(list(check(ast.parse(OFFENDERS[check])))) == 1


def test_optional_packages_may_be_imported_in_functions():
    source = "def f():\n    import torch.distributed as dist\n    from matplotlib import pyplot"
    assert list(imports_in_functions(ast.parse(source))) == []


@each_module
def test_file_has_at_most_400_lines_and_a_name(module: str):
    file = FILES[module]
    assert len(file.read_text().splitlines()) <= 400, file
    assert file.stem.strip("_") not in NAMELESS, f"{file}: name it after its idea"


# --- The package as a whole


@pytest.mark.parametrize("constant", [5e-3, 192])
def test_paper_constant_is_written_at_most_once(constant: float):
    places = [
        f"{module}, line {node.lineno}"
        for module in FILES
        for node in of_type(parse(module), ast.Constant)
        if type(node.value) is type(constant) and node.value == constant
    ]
    assert len(places) <= 1, places


def public_names() -> list[str]:
    """Return zoestim.__all__ without dunders and submodules."""
    for node in of_type(parse("zoestim"), ast.Assign):
        if ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            return [n for n in names if not n.startswith("__") and f"zoestim.{n}" not in FILES]
    return []


def definition(name: str, module: str) -> Documented:
    """Return where the name is defined, through the re-exports."""
    for node in parse(module).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return definition(alias.name, node.module)
    raise LookupError(f"{FILES[module]} neither defines nor imports {name}")


@pytest.mark.parametrize("name", public_names())
def test_public_name_shows_examples(name: str):
    docstring = ast.get_docstring(definition(name, "zoestim")) or ""
    assert re.search(r"^Examples\n-{8}$", docstring, flags=re.MULTILINE), name
    assert ">>> " in docstring, name


# --- What readers copy

PRIVATE = re.compile(
    r"""(?: from | import ) \s+ zoestim [\w.]* \. _ (?!_)       # from zoestim.gradients._types
    | from \s+ zoestim [\w.]* \s+ import \s+
      (?: \( [^)]* | [^\n(]* ) \b _ (?!_)                       # from zoestim import (a, _b)""",
    flags=re.VERBOSE,
)
READ = sorted(
    file
    for pattern in (
        "README.md",
        "docs/**/*.md",
        "docs/**/*.rst",
        "docs/**/*.py",
        "examples/**/*.py",
    )
    for file in ROOT.glob(pattern)
)


@pytest.mark.parametrize("file", READ, ids=lambda file: str(file.relative_to(ROOT)))
def test_documents_and_examples_import_nothing_private(file: Path):
    assert PRIVATE.findall(file.read_text()) == [], file


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("from zoestim.gradients._types import Queries", True),
        ("import zoestim._base", True),
        ("from zoestim import (\n    a,\n    _b,\n)", True),
        ("from zoestim import ZOClassifier, _base", True),
        ("from zoestim import __version__, estimate_gradient", False),
        ("from zoestim.datasets import load_cifar10\nx = _y", False),
        ("from zoestim import (\n    ZOClassifier,\n)\n_x = 1", False),
    ],
)
def test_private_imports_are_seen(source: str, private: bool):
    assert bool(PRIVATE.search(source)) == private
