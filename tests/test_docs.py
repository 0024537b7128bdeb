"""The documentation tells the truth: every public name has a docstring, errors are named, and examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import pydoc
import re
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest

import mfrec
from mfrec.errors import InputError

MODULES = ["mfrec", *sorted(found.name for found in pkgutil.walk_packages(mfrec.__path__, "mfrec."))]
# What `Solver` documents for all solvers, torch for all modules and autograd functions.
ELSEWHERE = {"epoch", "state_dict", "load_state_dict", "posterior", "forward", "backward", "extra_repr"}
WITH_EXAMPLES = {
    "mfrec.evaluation.baselines": ["baselines"],
    "mfrec.data.loading": ["load"],
    "mfrec.data.dataset": ["Dataset.from_frame"],
    "mfrec.data.new_rows": ["new_users"],
    "mfrec.data.synthetic": ["synthetic"],
    "mfrec.estimator": ["Recommender"],
    "mfrec.experiments.training": ["make_solver"],
    "mfrec.model.features": ["column_features", "implicit_features"],
    "mfrec.inference.fold_in": ["fold_in_user"],
    "mfrec.evaluation.metrics": ["rmse", "mae"],
    "mfrec.model.factorization": ["MatrixFactorization.from_ratings", "centring_offset"],
    "mfrec.model.objective": ["Objective", "squared_error"],
    "mfrec.evaluation.ranking": ["evaluate_ranking"],
    "mfrec.data.ratings": ["Ratings", "Ratings.split"],
    "mfrec.solvers.base": ["Solver"],
    "mfrec.solvers.descent": ["GradientDescent"],
    "mfrec.sparse": ["matmul", "sampled_dot"],
    "mfrec.inference.top_k": ["similar", "top_n"],
}

Definition = ast.FunctionDef | ast.ClassDef


class Documented(NamedTuple):
    """A public definition of a module: its name within it, and its docstring, "" where there is none."""

    name: str
    node: ast.Module | Definition
    docstring: str


def source(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def definitions(node: ast.Module | Definition, within: str = "") -> Iterator[Documented]:
    """All public classes and functions, and the public methods of public classes.

    Told from the source, since decorators such as `torch.no_grad()` hide from inspect and doctest where a function is
    from.
    """
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield Documented(within + child.name, child, ast.get_docstring(child) or "")
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, f"{within}{child.name}.")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    tree = source(module)
    bare = [
        name
        for name, _, docstring in definitions(tree)
        if not docstring and not ("." in name and name.rpartition(".")[2] in ELSEWHERE)
    ]
    assert ast.get_docstring(tree)
    assert not bare


def raises_input_error(function: ast.FunctionDef, module: ModuleType) -> bool:
    """Whether a `raise` of the function's own body, not of functions within it, raises an InputError."""
    nodes = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            raised = vars(module).get(node.exc.func.id)
            if inspect.isclass(raised) and issubclass(raised, InputError):
                return True
            if inspect.isfunction(raised) and raised.__annotations__.get("return") == "InputError":
                return True
        nodes.extend(ast.iter_child_nodes(node))
    return False


def raising(module: str) -> Iterator[Documented]:
    """The public functions that raise InputErrors themselves, with the docstrings that have to say so."""
    imported = importlib.import_module(module)
    for name, node, docstring in definitions(source(module)):
        # What a constructor raises stands with the class.
        own = [node] if isinstance(node, ast.FunctionDef) else [n for n in node.body if isinstance(n, ast.FunctionDef)]
        own = [n for n in own if n is node or n.name in ("__init__", "__post_init__")]
        if any(raises_input_error(function, imported) for function in own):
            yield Documented(name, node, docstring)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("mfrec.cli")])
def test_a_function_that_raises_an_input_error_says_so(module):
    assert [name for name, _, docstring in raising(module) if "InputError" not in docstring] == []


def test_the_search_for_errors_finds_those_of_constructors_tables_and_factories():
    found = {
        name
        for module in ("mfrec.data.ratings", "mfrec.model.objective", "mfrec.model.features")
        for name, *_ in raising(module)
    }
    assert {"Ratings", "Ratings.from_dense", "Objective", "implicit_features", "column_features"} <= found
    assert "Features" not in found


def examples(module: str) -> Iterator[doctest.DocTest]:
    tree, known = source(module), vars(importlib.import_module(module))
    whole = Documented(module, tree, ast.get_docstring(tree) or "")
    for name, node, docstring in [whole, *definitions(tree)]:
        test = doctest.DocTestParser().get_doctest(docstring, dict(known), name, module, getattr(node, "lineno", 0))
        if test.examples:
            yield test


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_docstring_print_what_it_shows(module):
    runner, said = doctest.DocTestRunner(), []
    for test in examples(module):
        runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_ways_in_have_examples(module):
    assert set(WITH_EXAMPLES[module]) <= {test.name for test in examples(module)}


def test_examples_show_no_digits_that_another_platform_rounds_otherwise():
    shown = [(test.name, example.want) for module in MODULES for test in examples(module) for example in test.examples]
    assert [name for name, want in shown if re.search(r"\.\d{5}", want)] == []


@pytest.mark.parametrize("module", MODULES)
def test_pydoc_shows_every_public_name(module):
    page = pydoc.plain(pydoc.render_doc(importlib.import_module(module)))
    names = [name for name, *_ in definitions(source(module))]
    assert page.strip()
    assert [name for name in names if not re.search(rf"\b{name.rpartition('.')[2]}\b", page)] == []
