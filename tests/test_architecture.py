"""The house rules that a reader relies on: imports point one way, and importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfrec"
# From what everything stands on to what nothing stands on; a room imports only from rooms before it.
ORDER = [
    "errors", "sparse", "data", "model", "posteriors", "solvers", "inference", "evaluation", "experiments", "estimator", "cli",
]  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "ml_latest_small")


def room(module: str) -> str:
    return module.removeprefix("mfrec.").split(".")[0]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "mfrec" else {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {room(name) for name in names if name.startswith("mfrec.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_before_it(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    allowed = [*ORDER[: ORDER.index(own)], own]
    assert imported(path) <= set(allowed)


def test_importing_the_package_leaves_the_global_random_state_and_warnings_alone():
    code = (
        "import warnings, torch, pandas, pooch, requests, rich.progress, scipy.optimize, scipy.sparse; "
        "state, filters = torch.get_rng_state(), list(warnings.filters); "
        "import mfrec.data.ratings, mfrec.sparse, mfrec.solvers.base, mfrec.experiments.loop; "
        "assert torch.equal(state, torch.get_rng_state()) and filters == list(warnings.filters)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_seeds_torch_or_numpy():
    for path in MODULES:
        assert "torch.manual_seed(" not in path.read_text()
        assert "np.random.seed(" not in path.read_text()
