"""Docstrings are complete and correct: public names have one, errors and names in it exist, and examples run."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import pydoc
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

import mfrec
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.config import ExperimentConfig
from mfrec.solvers.registry import SOLVERS

MODULES = [
    "mfrec",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(mfrec.__path__, "mfrec.")
        if "ml_latest_small" not in module.name
    ),
]
# Documented by torch, for all modules and autograd functions.
TORCH_METHODS = {"forward", "backward", "extra_repr"}
WITH_EXAMPLES = {
    "mfrec.data.dataset": ["Dataset.from_frame"],
    "mfrec.data.loading": ["load_dataset"],
    "mfrec.data.ratings": ["Ratings", "Ratings.split"],
    "mfrec.errors": ["OptionError", "unknown"],
    "mfrec.estimator": ["Recommender"],
    "mfrec.evaluation.baselines": ["baselines"],
    "mfrec.evaluation.metrics": ["rmse", "mae"],
    "mfrec.evaluation.probabilities": ["report_of_levels"],
    "mfrec.evaluation.ranking": ["evaluate_ranking"],
    "mfrec.experiments.config": ["ExperimentConfig"],
    "mfrec.inference.top_k": ["similar", "top_k"],
    "mfrec.model.factorization": ["MatrixFactorization.from_ratings"],
    "mfrec.model.losses": ["squared_error"],
    "mfrec.model.objective": ["Objective"],
    "mfrec.model.offsets": ["centring_offset"],
    "mfrec.options": ["Range", "options_from"],
    "mfrec.solvers.base": ["Solver"],
    "mfrec.sparse": ["sddmm", "spmm"],
}

Function = ast.FunctionDef
Definition = ast.FunctionDef | ast.ClassDef


class Documented(NamedTuple):
    """A definition of a module: its name in the module, its enclosing definitions, and its docstring or ""."""

    name: str
    node: ast.Module | Definition
    docstring: str
    enclosing: tuple[Definition, ...] = ()


@cache
def source(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8"))


def definitions(
    node: ast.Module | Definition, prefix: str = "", enclosing: tuple[Definition, ...] = (), *, private: bool = False
) -> Iterator[Documented]:
    """The public classes and functions, and the public methods of public classes; the private ones too if asked.

    They come from the source, because decorators such as `torch.no_grad` hide from inspect where a function is defined.
    """
    for child in node.body:
        if isinstance(child, Definition) and (private or not child.name.startswith("_")):
            yield Documented(prefix + child.name, child, ast.get_docstring(child) or "", enclosing)
            if isinstance(child, ast.ClassDef) or private:
                yield from definitions(child, f"{prefix}{child.name}.", (*enclosing, child), private=private)


def attribute(module: str, name: str) -> Any:
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    tree = source(module)
    bare = [
        name
        for name, _, docstring, enclosing in definitions(tree)
        # A method may inherit its docstring.
        if not docstring
        and not (enclosing and (inspect.getdoc(attribute(module, name)) or name.split(".")[-1] in TORCH_METHODS))
    ]
    assert ast.get_docstring(tree)
    assert not bare


def raises_input_error(function: Function, module: ModuleType) -> bool:
    """Whether the function itself, not one defined in it, raises an InputError or one that a factory returns."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, Function | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            raised = vars(module).get(node.exc.func.id)
            if inspect.isclass(raised) and issubclass(raised, InputError):
                return True
            if inspect.isfunction(raised) and raised.__annotations__.get("return") in ("InputError", "OptionError"):
                return True
        nodes.extend(ast.iter_child_nodes(node))
    return False


def raising(module: str) -> Iterator[Documented]:
    """The public functions that raise InputErrors themselves, with the docstrings that have to say so."""
    imported = importlib.import_module(module)
    for documented in definitions(source(module)):
        node = documented.node
        # A class documents its constructor's errors.
        functions = [node] if isinstance(node, Function) else [n for n in node.body if isinstance(n, Function)]
        constructors = [n for n in functions if n is node or n.name in ("__init__", "__post_init__")]
        if any(raises_input_error(function, imported) for function in constructors):
            yield documented


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("mfrec.cli")])
def test_a_function_that_raises_an_input_error_says_so(module):
    silent = [
        documented.name
        for documented in raising(module)
        if not re.search(r"\b(Input|Option)Error\b", documented.docstring)
        and not re.search(r"\b(Input|Option)Error\b", inspect.getdoc(attribute(module, documented.name)) or "")
    ]
    assert silent == []


def test_the_search_for_errors_finds_those_of_constructors_and_factories():
    names = {
        documented.name
        for module in ("mfrec.data.ratings", "mfrec.model.objective", "mfrec.options", "mfrec.experiments.config")
        for documented in raising(module)
    }
    assert {
        "Ratings",
        "Ratings.from_dense",
        "Objective",
        "check_range",
        "options_from",
        "ExperimentConfig.updated",
    } <= names
    assert "Options" not in names


NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(?:\([^`]*\))?`(?!`)")


def class_attributes(node: ast.ClassDef) -> set[str]:
    """The fields, methods and attributes that a class defines."""
    names = {child.name for child in node.body if isinstance(child, Definition)}
    names |= {
        t.id for child in node.body if isinstance(child, ast.AnnAssign) and isinstance(t := child.target, ast.Name)
    }
    stores = (
        child for child in ast.walk(node) if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
    )
    return names | {store.attr for store in stores}


@cache
def code_names(module: str) -> set[str]:
    """Every identifier in the code of a module: what it defines, takes, passes and uses."""
    names = set(vars(importlib.import_module(module)))
    for node in ast.walk(source(module)):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(name := getattr(node, field, None), str):
                names.add(name)
    return names


@cache
def package_names() -> dict[str, set[str]]:
    """The classes, functions and modules of the package, with the attributes of those that have some."""
    names: dict[str, set[str]] = {}
    for module in MODULES:
        *_, last = module.split(".")
        names.setdefault(last, set()).update(vars(importlib.import_module(module)))
        for node in ast.walk(source(module)):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, set()).update(class_attributes(node))
            elif isinstance(node, Function):
                names.setdefault(node.name, set())
        for name in vars(importlib.import_module(module)):
            names.setdefault(name, set())
    return names


@cache
def instance_attributes() -> set[str]:
    """The attributes that an instance of a class of the package, or of torch, may have."""
    return set().union(*package_names().values(), dir(torch.nn.Module), dir(torch.Tensor))


@cache
def words() -> set[str]:
    """The names of options, solvers, metrics, files, and of parameters of any function."""
    options = {name for solver in SOLVERS for name in ExperimentConfig.create(solver).flat()}
    strings = {
        node.value
        for module in MODULES
        for node in ast.walk(source(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+\.\w+", node.value)
    }
    files = {f"{module.rpartition('.')[2]}.py" for module in MODULES}
    parameters = {node.arg for module in MODULES for node in ast.walk(source(module)) if isinstance(node, ast.arg)}
    return options | set(SOLVERS) | set(METRICS) | strings | files | parameters


def exists(name: str, module: str) -> bool:
    """Whether a name in backticks means something to a reader of the module."""
    first, *attributes = name.split(".")
    if name in words():
        return True
    value = vars(importlib.import_module(module)).get(first, getattr(builtins, first, None))
    if value is None and (spec := importlib.util.find_spec(first)) and spec.origin:  # a folder of tests has none
        value = importlib.import_module(first)
    if value is not None and attributes:
        return follows(value, attributes) or attributes[0] in package_names().get(first, set())
    if first not in code_names(module) and first not in package_names() and value is None:
        return False
    # An instance of some class, such as a parameter.
    return not attributes or attributes[0] in package_names().get(first, set()) | instance_attributes()


def follows(value: Any, attributes: list[str]) -> bool:
    for name in attributes:
        if isinstance(value, ModuleType) and not hasattr(value, name):
            try:
                value = importlib.import_module(f"{value.__name__}.{name}")
            except ImportError:
                return False
        elif hasattr(value, name):
            value = getattr(value, name)
        else:
            return name in getattr(value, "__annotations__", {})
    return True


@pytest.mark.parametrize("module", MODULES)
def test_the_names_in_docstrings_exist(module):
    tree = source(module)
    whole = Documented(module, tree, ast.get_docstring(tree) or "")
    missing = {
        f"{documented.name}: `{name}`"
        for documented in [whole, *definitions(tree, private=True)]
        for name in NAME.findall(documented.docstring)
        if not exists(name, module)
    }
    assert not missing


def test_the_check_of_names_finds_those_that_do_not_exist():
    names = ["Range", "Range.problem", "mfrec.options.Range", "dataclasses.replace", "config.json", "rank", "value"]
    names += ["ExperimentConfig.create", "torch.optim", "model.augmented_factors", "users.tolist"]
    assert [name for name in names if not exists(name, "mfrec.options")] == []
    wrong = [
        "Rangee",
        "Range.issue",
        "mfrec.option",
        "dataclasses.replaced",
        "ExperimentConfig.make",
        "ranks",
        "x.json",
    ]
    assert [name for name in wrong if exists(name, "mfrec.options")] == []


def examples(module: str) -> Iterator[doctest.DocTest]:
    tree, namespace = source(module), vars(importlib.import_module(module))
    whole = Documented(module, tree, ast.get_docstring(tree) or "")
    for name, node, docstring, _ in [whole, *definitions(tree)]:
        test = doctest.DocTestParser().get_doctest(docstring, dict(namespace), name, module, getattr(node, "lineno", 0))
        if test.examples:
            yield test


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_docstring_print_what_it_shows(module):
    runner, output = doctest.DocTestRunner(), []
    for test in examples(module):
        runner.run(test, out=output.append)
    assert not runner.summarize(verbose=False).failed, "".join(output)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_functions_that_people_use_have_examples(module):
    assert set(WITH_EXAMPLES[module]) <= {test.name for test in examples(module)}


def test_examples_show_no_digits_that_another_platform_rounds_otherwise():
    shown = [(test.name, example.want) for module in MODULES for test in examples(module) for example in test.examples]
    assert [name for name, want in shown if re.search(r"\.\d{5}", want)] == []


@pytest.mark.parametrize("module", MODULES)
def test_pydoc_shows_every_public_name(module):
    page = pydoc.plain(pydoc.render_doc(importlib.import_module(module)))
    names = [documented.name for documented in definitions(source(module))]
    assert page.strip()
    assert [name for name in names if not re.search(rf"\b{name.rpartition('.')[2]}\b", page)] == []
