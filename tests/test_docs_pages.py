"""The README and the pages of docs/ are correct: code runs, commands parse, links and the tree exist."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from process_examples import run_program

from mfrec.cli.arguments import VERBS, parse
from mfrec.data.readers import READERS
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import LOGGERS
from mfrec.experiments.run import Run
from mfrec.experiments.study import Study
from mfrec.model.losses import LOSSES
from mfrec.posteriors.registry import POSTERIORS
from mfrec.solvers.registry import SOLVERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
TABLES = (SOLVERS, LOSSES, METRICS, LOGGERS, READERS, POSTERIORS)
# The pages' programs that are not part of the package, and their options that are shown.
PROGRAMS = {"pip", "pytest", "tensorboard", "jupyter", "source", ".ci/run"}
# Flags of those programs.
FOREIGN_FLAGS = {"--logdir", "--inplace", "--help"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    content: str

    @property
    def file(self) -> str | None:
        """The file that a block is, by its first line: "# my_module.py"."""
        match = re.match(r"# (\w+\.py)\n", self.content)
        return match[1] if match else None


BLOCKS = [
    Block(page, language, content)
    for page, text in TEXTS.items()
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]


def commands(page: str) -> Iterator[str]:
    """The command lines of a page: those after a prompt, and those in inline code that begin with a program."""
    for block in BLOCKS:
        if block.page == page and block.language == "console":
            for line in re.sub(r"\\\n\s*", " ", block.content).splitlines():
                if line.startswith("$ "):
                    yield from line[2:].split(" && ")
    prose = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        words = " ".join(code.split())
        if re.match(r"(mfrec|python) \S", words):
            yield words


def mfrec_arguments(command: str) -> list[str] | None:
    """The arguments of an mfrec command; None for another program."""
    words = [word for word in shlex.split(command) if word != "…"]
    if words[0] == "mfrec":
        return words[1:]
    if words[0] in ("python", "torchrun") and "train.py" in words:
        return ["train", *words[words.index("train.py") + 1 :]]
    return None


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty working folder with the files that the pages name; tables and modules are restored afterwards."""
    tables, modules = [dict(table) for table in TABLES], set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_ratings(tmp_path)
    for block in BLOCKS:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.content, encoding="utf-8")
    yield tmp_path
    for table, rows in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(rows)
    for name in set(sys.modules) - modules:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def write_ratings(folder: Path) -> None:
    """`ratings.csv` of 40 users and 30 books, a split of it, and the same as JSON lines."""
    names = ["ann", "bob", "cem", *(f"user {n}" for n in range(37))]
    books = ["Emma", "Dracula", "Ulysses", *(f"Book {n}" for n in range(27))]
    rows = [
        f"{user},{book},{1 + (3 * u + 5 * b + u * b // 7) % 5}"
        for u, user in enumerate(names)
        for b, book in enumerate(books)
        if (u * 7 + b * 11) % 3 and (user, book) != ("ann", "Dracula")
    ]
    for name, part in (("ratings", rows), ("train", rows[::2]), ("valid", rows[1::4]), ("test", rows[3::4])):
        (folder / f"{name}.csv").write_text("\n".join(["user,item,rating", *part]) + "\n", encoding="utf-8")
    books_as_json = [dict(zip(("user", "item", "rating"), row.split(","), strict=True)) for row in rows]
    lines = [json.dumps(row | {"rating": float(row["rating"])}) for row in books_as_json]
    (folder / "books.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "pairs.csv").write_text("user,item\nann,Emma\n", encoding="utf-8")


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, folder, capsys):
    namespace = {"__name__": "page"}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            if block.file is not None:
                importlib.import_module(block.file.removesuffix(".py"))
            else:
                exec(compile(block.content, page, "exec"), namespace)


@pytest.mark.parametrize("page", TEXTS)
def test_the_commands_of_a_page_parse(page, folder):
    for command in commands(page):
        arguments = mfrec_arguments(command)
        if arguments is None:
            program = shlex.split(command)
            assert program[0] in {*PROGRAMS, "python"}, command
            if program[0] == "python" and program[1].endswith(".py"):
                check_program(program[1:])
            continue
        if len(arguments) == 1:  # mentioned by its name
            assert arguments[0] in {*VERBS, "--help"}, command
            continue
        prepare(arguments)
        assert usage_error(arguments) == "", command


def usage_error(arguments: list[str]) -> str:
    """What the parser prints on an error of usage; "" for a command line that it accepts."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parse(arguments)
    except SystemExit as stop:
        return errors.getvalue() if stop.code else ""
    except InputError as error:
        return str(error)
    return ""


def prepare(arguments: list[str]) -> None:
    """Create what the parser reads: the file of --config, and the run or the study of --resume."""
    for option, value in itertools.pairwise(arguments):
        path = Path(value)
        config = ExperimentConfig.create("sgd", run_dir=str(path.parent), name=path.name)
        if option == "--config":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        elif option == "--resume" and arguments[0] == "tune":
            Study.create(config, (), 20)
        elif option == "--resume":
            path.mkdir(parents=True, exist_ok=True)
            Run(path).write_config(config)


def check_program(words: list[str]) -> None:
    """Check that a program of the repository exists and has the options shown: the parameters of its `main`."""
    path = ROOT / words[0]
    assert path.exists(), words[0]
    parameters = {
        f"--{argument.arg.replace('_', '-')}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "main"
        for argument in [*node.args.args, *node.args.kwonlyargs]
    }
    assert {word for word in words if word.startswith("--")} <= parameters, words


@pytest.fixture(scope="module")
def all_flags() -> set[str]:
    """The flags in the help of every verb and solver."""
    pages = [[verb] for verb in VERBS] + [["train", name] for name in SOLVERS]
    pages += [["cv", "sgd"], ["tune", "sgd"]]
    flags = set(FOREIGN_FLAGS)
    for arguments in pages:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            parse([*arguments, "--help"])
        flags |= set(re.findall(r"--[a-z][a-z-]+", output.getvalue()))
    return flags


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_the_flags_that_a_page_mentions_exist(page, all_flags):
    prose = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    spans = [code for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose) if not code.startswith("python ")]
    shown = {flag for code in spans for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)}
    assert shown <= all_flags


def test_the_check_of_commands_refuses_an_option_of_another_verb(folder):
    assert usage_error(["train", "als", "--relaxation", "0.5"]) == ""
    assert "--relaxation" in usage_error(["train", "gd", "--relaxation", "0.5"])
    assert "--rank" in usage_error(["evaluate", "runs/x", "--rank", "3"])


EXTENSIONS = [block for block in BLOCKS if block.page == "docs/extending.md" and block.language == "console"]


@pytest.mark.parametrize("block", EXTENSIONS, ids=lambda block: block.content.split("--plugin ")[-1].split()[0])
def test_the_extensions_run_as_shown(block: Block, folder: Path, forkserver: Any) -> None:
    for line in block.content.splitlines():
        arguments = mfrec_arguments(line.removeprefix("$ ")) or []
        if "tune" in arguments:
            pytest.importorskip("optuna")
        process = forkserver.Process(target=run_program, args=(folder, arguments, folder / "output"))
        process.start()
        process.join()
        assert process.exitcode == 0, (folder / "output").read_text(encoding="utf-8")
    assert (folder / "runs").is_dir()


@pytest.mark.parametrize("page", TEXTS)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(target)
    assert not broken


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_page_of_docs_is_linked_from_the_readme():
    pages = {page for page in TEXTS if page.startswith("docs/")} | {"CONTRIBUTING.md", "CHANGELOG.md"}
    assert {page for page in pages if f"({page})" not in TEXTS["README.md"]} == set()


@pytest.mark.parametrize("page", TEXTS)
def test_the_names_that_a_page_mentions_exist(page):
    for name in re.findall(r"(?<!`)`(mfrec(?:\.\w+)+)(?:\([^`]*\))?`(?!`)", TEXTS[page]):
        assert page == "CHANGELOG.md" or pkgutil.resolve_name(name) is not None


def test_the_tree_of_the_architecture_page_is_the_tree():
    tree = next(block.content for block in BLOCKS if block.page == "docs/architecture.md" and "mfrec/" in block.content)
    folders: list[str] = []
    named = set()
    for line in tree.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        assert entry is not None
        depth = len(entry[1]) // 2
        folders = folders[:depth]
        if entry[2].endswith("/"):
            folders.append(entry[2])
        if entry[2].endswith(".py"):
            named.add("".join(folders) + entry[2])
        else:
            assert (ROOT / "".join(folders[:depth]) / entry[2]).exists(), line
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mfrec").rglob("*.py") if p.name != "__init__.py"}
    modules = {name for name in modules if "ml_latest_small" not in name}
    assert {name for name in named if name.startswith("mfrec/")} - {"mfrec/__init__.py"} == modules


def test_the_page_of_options_is_what_its_program_writes():
    spec = importlib.util.spec_from_file_location("make_options", ROOT / "docs" / "make_options.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert TEXTS["docs/options.md"] == program.page(), "run: python docs/make_options.py"


def test_the_page_of_options_has_every_option_and_solver():
    page = TEXTS["docs/options.md"]
    for name in ("sgd", "gd", "optim", "quasi-newton", "als", "vb", "gibbs"):
        assert f"## Solver `{name}`" in page
        for option in ExperimentConfig.create(name).flat():
            assert f"| `{option}` |" in page, option
