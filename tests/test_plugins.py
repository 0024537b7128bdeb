"""Plugins: modules of the user's own, found or refused in one sentence."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.plugins import import_plugins
from mfrec.solvers.registry import SOLVERS


class WritePlugin(Protocol):
    """Writes a module of this name and source into the working directory."""

    def __call__(self, name: str, source: str = "") -> Path: ...


@pytest.fixture
def write_plugin(tmp_path, monkeypatch) -> WritePlugin:
    """The working directory is a new folder, which is not on the path; modules and path are restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, source: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return path

    return write


def test_a_module_in_the_working_directory_is_imported_once(write_plugin):
    write_plugin("mfrec_test_counter.py", "imports = []\nimports.append(1)")
    import_plugins(["mfrec_test_counter", "mfrec_test_counter"])
    import_plugins(("mfrec_test_counter",))
    assert sys.modules["mfrec_test_counter"].imports == [1]


def test_a_module_inside_a_package_is_imported_by_its_dotted_name(write_plugin):
    write_plugin("mfrec_test_package/__init__.py")
    write_plugin("mfrec_test_package/losses.py", "ready = True")
    import_plugins(["mfrec_test_package.losses"])
    assert sys.modules["mfrec_test_package.losses"].ready


def test_installed_modules_come_before_those_in_the_working_directory(write_plugin):
    write_plugin("colorsys.py", "raise RuntimeError('shadowed')")
    sys.modules.pop("colorsys", None)
    import_plugins(["colorsys"])


def test_without_plugins_the_path_stays_as_it_is(write_plugin):
    before = list(sys.path)
    import_plugins([])
    assert sys.path == before


@pytest.mark.parametrize("name", ["mfrec_test_missing", "mfrec_test_missing.solvers", "mfrec_test_module.solvers"])
def test_a_missing_module_is_refused_by_name_with_what_to_do(write_plugin, name):
    write_plugin("mfrec_test_module.py")
    message = f"plugin '{name}' cannot be found; install it, or run in the folder that contains it"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        import_plugins([name])
    message = f"runs/a was trained with plugin '{name}', which cannot be found; install it"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        import_plugins([name], "runs/a was trained with")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import mfrec_test_missing.part",
            "plugin 'mfrec_test_failing' needs the module 'mfrec_test_missing'; install it",
        ),
        ("1 / 0", "plugin 'mfrec_test_failing' fails when imported: ZeroDivisionError: division by zero"),
        ("def", "plugin 'mfrec_test_failing' fails when imported: SyntaxError: invalid syntax"),
        (
            "from mfrec.solvers.base import Unknown",
            "plugin 'mfrec_test_failing' fails when imported: ImportError: cannot",
        ),
        (
            "raise ModuleNotFoundError('gone')",
            "plugin 'mfrec_test_failing' fails when imported: ModuleNotFoundError: gone",
        ),
    ],
)
def test_a_module_that_fails_when_imported_is_refused_with_its_error(write_plugin, source, message):
    write_plugin("mfrec_test_failing.py", source)
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as error:
        import_plugins(["mfrec_test_failing"])
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("name", ["", ".relative", "a..b", "mfrec_test_module.py"])
def test_a_name_that_no_module_can_have_is_refused(write_plugin, name):
    write_plugin("mfrec_test_module.py")
    with pytest.raises(InputError, match=f"plugin '{re.escape(name)}' "):
        import_plugins([name])


@patch.dict(SOLVERS)
def test_a_plugin_adds_a_solver_that_trains(write_plugin):
    source = """
from dataclasses import dataclass
from mfrec.options import Options, Positive
from mfrec.solvers.base import SOLVERS, Solver, SolverSpec

@dataclass(frozen=True)
class ConstantOptions(Options):
    '''Options of constant.'''

    value: Positive = 2.0
    '''All factors.'''

class Constant(Solver):
    def epoch(self):
        for parameter in self.model.parameters():
            parameter.data.fill_(self.options.value)
        return {}

SOLVERS["constant"] = SolverSpec("All factors alike.", ConstantOptions, Constant, frozenset())
"""
    write_plugin("mfrec_test_solver.py", source)
    import_plugins(["mfrec_test_solver"])
    ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([5.0]))
    model = MatrixFactorization.from_ratings(ratings, 3, biases=False, offset="none")
    solver = SOLVERS["constant"](model, ratings, Objective(), value=3.0)
    assert solver.epoch() == {}
    assert solver.inference().mean_model().predict_observed(ratings).tolist() == [27.0]
    with pytest.raises(InputError, match=r"value must be positive and finite \(got 0\)"):
        SOLVERS["constant"](model, ratings, Objective(), value=0.0)
