"""The architecture that a reader relies on: imports point one way, cheap imports stay cheap, importing does no work."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfrec"
# Each row imports only from itself and from the rows above it.
LAYERS = [
    ["errors"],
    ["kernels", "options", "plugins"],
    ["processes", "sparse"],
    ["draws", "sums"],
    ["data"],
    ["model"],
    ["posteriors"],
    ["solvers"],
    ["inference"],
    ["evaluation"],
    ["experiments"],
    ["estimator", "cli"],
    ["__init__", "__main__"],
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
# A program that makes the embedded data, not a module of the package.
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "ml_latest_small")


def module_name(path: Path) -> str:
    """The dotted name of a module of the package, such as "mfrec.model.ridge"."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def package_of(module: str) -> str:
    """The part of a dotted name that `LAYERS` orders, such as "model"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the dotted name of every import of the package, inside functions too.

    Imports for type checkers alone count as well: a type that a module names is something it depends on.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} must import by an absolute name"
            names = [node.module or ""]
            if node.module == "mfrec":
                names = [f"mfrec.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "mfrec")


def run(code: str) -> str:
    """What a new Python process prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def imported_by(statement: str) -> set[str]:
    """The top-level packages, and the modules of mfrec, that a statement imports in a new process."""
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    return {name for name in run(code).split() if "." not in name or name.startswith("mfrec.")}


def test_every_module_has_a_layer():
    assert {package_of(module_name(path)) for path in MODULES} == set(LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    package = package_of(module_name(path))
    allowed = {name for name, level in LEVELS.items() if level < LEVELS[package]} | {package}
    upward = [f"line {line}: {name}" for line, name in imported(path) if package_of(name) not in allowed]
    assert not upward, f"{package} may import only {sorted(allowed)}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_init_of_a_package_has_a_docstring_only(path):
    (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)


CORE = ("sparse", "data.ratings", "data.splits", "data.features", "model")


@functools.cache
def imported_by_core() -> dict[str, list[str]]:
    """The imported modules after each module of the core, in one process: an import shows in all rows that follow."""
    statements = "; ".join(f"import mfrec.{name}; print(*sorted(sys.modules))" for name in CORE)
    return dict(zip(CORE, map(str.split, run(f"import sys; {statements}").splitlines()), strict=True))


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_neither_pandas_nor_a_reader(name):
    modules = set(imported_by_core()[name])
    assert f"mfrec.{name}" in modules
    assert not modules & {"pandas", "pooch", "matplotlib", "tensorboard", "scipy", "tyro", "optuna"}
    assert not modules & {f"mfrec.data.{reader}" for reader in ("readers", "dataset", "loading", "parsing", "frames")}


def test_importing_every_module_of_model_imports_neither_pandas_nor_a_reader():
    names = [module_name(path) for path in MODULES if path.parent.name == "model" and path.name != "__init__.py"]
    modules = imported_by(f"import {', '.join(names)}")
    assert "torch" in modules
    assert not modules & {"pandas", "pooch", "matplotlib", "tensorboard", "tyro"}
    assert not modules & {"mfrec.data.readers", "mfrec.data.dataset", "mfrec.data.loading"}


@pytest.mark.parametrize(
    "statement", ["import mfrec", "import mfrec.errors, mfrec.options, mfrec.plugins", "import mfrec.solvers.registry",
                  "import mfrec.experiments.config", "import mfrec.__main__"],
)  # fmt: skip
def test_declarations_import_no_heavy_package(statement):
    assert not imported_by(statement) & {"torch", "numpy", "pandas", "scipy", "matplotlib", "tensorboard"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "sgd", "--help"], ["train", "sgd", "--rnak", "3"], ["x"]])
def test_help_and_usage_errors_import_no_heavy_package(arguments):
    code = f"""
import contextlib, io, sys
from contextlib import redirect_stderr, redirect_stdout
from mfrec.__main__ import main
with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
print(*sorted(sys.modules))
"""
    assert not set(run(code).split()) & {"torch", "numpy", "pandas", "scipy", "matplotlib", "tensorboard"}


def test_every_name_that_the_package_exports_exists():
    code = (
        "import mfrec; print(*mfrec.__all__); print(*(type(getattr(mfrec, name)).__name__ for name in mfrec.__all__))"
    )
    names, types = map(str.split, run(code).splitlines())
    assert len(types) == len(set(names)) >= 10


def test_importing_leaves_the_global_random_state_and_warnings_alone():
    names = [module_name(path) for path in MODULES if path.stem != "__main__"]
    imports = ", ".join(name for name in names if name != "mfrec.__init__")
    code = (
        "import warnings, torch, pandas, pooch, requests, rich.progress, scipy.optimize, scipy.sparse; "
        "import matplotlib.pyplot, torch.utils.tensorboard, tyro, typeguard; "
        "state, filters = torch.get_rng_state(), list(warnings.filters); "
        f"import {imports}; "
        "assert torch.equal(state, torch.get_rng_state()) and filters == list(warnings.filters)"
    )
    run(code)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_uses_the_global_random_state(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    without_state = {f"{numpy}.random.{name}" for numpy in ("np", "numpy") for name in ("default_rng", "SeedSequence")}
    with_state = ("torch.manual_seed", "torch.seed", "np.random.", "numpy.random.", "random.")
    assert not {call for call in calls - without_state if call.startswith(with_state)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_read_in_one_sitting_and_a_function_fits_a_screen(path):
    source = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    bodies = {node.name: (node.end_lineno or 0) - node.body[0].lineno + 1 for node in functions}
    docstrings = {
        node.name: (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        for node in functions
        if ast.get_docstring(node)
    }
    assert {name: lines for name, lines in bodies.items() if lines - docstrings.get(name, 0) > 60} == {}
    assert len(source.splitlines()) <= 400
