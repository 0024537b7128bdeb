"""The README tells the truth: its code runs, its tree is the tree, and its commands parse."""

import re
from pathlib import Path

import pytest

from mfrec import cli
from mfrec.cli.options import knobs
from mfrec.model.objective import LOSSES
from mfrec.solvers.base import SOLVERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_its_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = dict(SOLVERS), dict(LOSSES)
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        for table, rows in zip((SOLVERS, LOSSES), known, strict=True):
            table.clear()
            table.update(rows)


def test_its_tree_names_every_module_and_no_other():
    tree = next(text for _, text in BLOCKS if text.startswith("train.py"))
    folders, named = [], set()
    for line in tree.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        depth = len(entry.group(1)) // 2
        folders = folders[:depth]
        if entry.group(2).endswith("/"):
            folders.append(entry.group(2))
        else:
            named.add("".join(folders) + entry.group(2))
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mfrec").rglob("*.py") if p.stem != "__init__"}
    assert named == {name for name in modules if not name.startswith("mfrec/data/")} | {"train.py"}


def test_its_first_lines_are_the_two_commands():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ")][:2]
    assert commands == ["pip install -e . && python train.py", 'pip install -e ".[test]" && pytest']


def test_its_flags_exist():
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    flags = {f"--{f.replace('_', '-')}" for kind in cli.VERBS.values() for f in kind.__dataclass_fields__}
    flags |= {f"--{knob.name.replace('_', '-')}" for name in SOLVERS for knob in knobs(name)}
    flags |= {flag.replace("--", "--no-") for flag in flags}
    # Of other programs, and of `mfrec cv` and `mfrec tune`, whose options are mostly those of training.
    others = {"--help", "--logdir", "--inplace", "--seeds", "--tables", "--shared", "--device", "--full"}
    others |= {"--folds", "--trials", "--timeout"}
    assert shown <= flags | others
