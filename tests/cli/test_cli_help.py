"""Help and errors of usage: complete, in groups, at once, and with the nearest name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_checks import BOX, SMALL, assert_refused, assert_usage_error, in_a_process
from conftest import Cli

from mfrec.cli.arguments import EXPERIMENT_VERBS, VERBS
from mfrec.cli.first_stage import solver_and_options
from mfrec.solvers.registry import SOLVERS

COMMANDS = [
    *((verb, solver) for verb in EXPERIMENT_VERBS for solver in SOLVERS),
    *((verb,) for verb in VERBS if verb not in EXPERIMENT_VERBS),
]
HEAVY = ("torch", "pandas", "scipy", "matplotlib", "numpy", "optuna", "tensorboard")
GROUPS = ("options", "solver options", "data options", "model options", "objective options", "training options")
GROUPS += ("output options",)


def boxes_of(cli: Cli, monkeypatch: pytest.MonkeyPatch, *command: str) -> dict[str, dict[str, str]]:
    """The help of each option of a command by its longest flag, in the boxes of the help by their titles."""
    monkeypatch.setenv("COLUMNS", "100")
    output = cli(*command, "--help")
    assert (output.status, output.err) == (0, "")
    boxes: dict[str, dict[str, str]] = {}
    for line in output.out.splitlines():
        if title := re.match(r"╭─ ([\w ]+) ─", line):
            box, flag = boxes.setdefault(title[1], {}), ""
        elif boxes:
            text = BOX.sub("", line).strip()
            if re.match("--?[a-z]", text):
                flags, _, help_text = text.partition("  ")
                flag = max(re.findall(r"--?[a-z][\w-]*", flags), key=len).replace("--no-", "--")
                box[flag] = help_text.strip()
            elif flag:
                box[flag] += f" {text}"
    return boxes


def options_of(cli: Cli, monkeypatch: pytest.MonkeyPatch, *command: str) -> dict[str, str]:
    """The help of each option of a command by its longest flag."""
    boxes = boxes_of(cli, monkeypatch, *command)
    return {flag: " ".join(text.split()) for box in boxes.values() for flag, text in box.items()}


LIGHT: list[tuple[list[str], int]] = [
    (["--help"], 0),
    ([], 0),
    *(([*command, "--help"], 0) for command in COMMANDS if command[0] != "cv"),
    *(([verb, "--help"], 0) for verb in EXPERIMENT_VERBS),
    (["trian"], 2),
    (["train", "sdg"], 2),
    (["train", "sgd", "--rnak", "3"], 2),
    (["train", "--rank", "many"], 2),
    (["train", "--rank", "0"], 2),
    (["train", "vb", "--l2", "3"], 2),
    (["train", "--config", "nowhere.json"], 2),
    (["recommend"], 2),
    (["recommend", "run", "-n", "0"], 2),
    (["evaluate", "run", "--threshold", "3"], 2),
    (["tune", "als", "--trials", "0"], 2),
    (["cv", "als", "--folds", "1"], 2),
    (["solvers"], 0),
]


def imports_of(commands: list[list[str]], packages: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """The status of each command line, and those of the packages that are imported after it, in one new process.

    Modules stay imported: an import by one command line shows in its row and in all that follow.
    """
    code = (
        "import contextlib, io, json, sys\n"
        "from mfrec.__main__ import main\n"
        "commands, packages = json.loads(sys.argv[1])\n"
        "for arguments in commands:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        try:\n            status = main(arguments)\n"
        "        except SystemExit as stop:\n            status = stop.code\n"
        "    print(json.dumps([status or 0, [name for name in packages if name in sys.modules]]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps([commands, packages])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(status, names) for status, names in map(json.loads, done.stdout.splitlines())]


@pytest.fixture(scope="module")
def light() -> dict[str, tuple[int, list[str]]]:
    """The status and the heavy imports of each command line of `LIGHT`."""
    commands = [arguments for arguments, _ in LIGHT]
    return dict(zip(map(" ".join, commands), imports_of(commands, HEAVY), strict=True))


@pytest.mark.parametrize(
    ("arguments", "status"), LIGHT, ids=lambda value: " ".join(value) if isinstance(value, list) else str(value)
)
def test_help_and_errors_of_usage_import_nothing_heavy(
    arguments: list[str], status: int, light: dict[str, tuple[int, list[str]]]
) -> None:
    assert light[" ".join(arguments)] == (status, [])


@pytest.fixture(scope="module")
def unneeded(
    trained_run: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, list[str]]]:
    """The status of some verbs, and the libraries that they need not import but do."""
    runs = tmp_path_factory.mktemp("runs")
    commands: dict[str, list[object]] = {
        "runs": [trained_run],
        "evaluate": [trained_run],
        "recommend": [trained_run, "--user", 1],
        "train": ["als", "--data", tiny, *SMALL, "--run-dir", runs],
    }
    packages = (
        "scipy.sparse",
        "scipy.optimize",
        "scipy.stats",
        "matplotlib",
        "tensorboard",
        "optuna",
        "pooch",
        "sklearn",
    )
    imports = imports_of([[verb, *map(str, arguments)] for verb, arguments in commands.items()], packages)
    return dict(zip(commands, imports, strict=True))


@pytest.mark.parametrize("verb", ["runs", "evaluate", "recommend", "train"])
def test_a_verb_imports_only_the_libraries_that_it_needs(verb: str, unneeded: dict[str, tuple[int, list[str]]]) -> None:
    assert unneeded[verb] == (0, [])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(command: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(cli, monkeypatch, *command)
    assert {"--help", "--json"} <= set(options)
    for option, text in options.items():
        described = re.sub(r"\((default|required|repeatable).*", "", text).strip()
        assert len(described) > 3, f"{option}: {text!r}"
        assert len(text) < 200, f"{option}: {text!r}"


@pytest.mark.parametrize("verb", EXPERIMENT_VERBS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_options_of_an_experiment_are_grouped(
    verb: str, solver: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = boxes_of(cli, monkeypatch, verb, solver)
    assert tuple(boxes) == GROUPS
    expected = {
        "data": "--data",
        "model": "--rank",
        "objective": "--loss",
        "training": "--epochs",
        "output": "--run-dir",
    }
    for group, flag in expected.items():
        assert flag in boxes[f"{group} options"]
    assert set(boxes["solver options"]) == {f"--{name.replace('_', '-')}" for name in vars(SOLVERS[solver].options())}
    assert max(len(box) for box in boxes.values()) <= 13


def test_verbs_that_train_differ_in_the_options_that_make_sense_for_them(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, cv, tune = (set(options_of(cli, monkeypatch, verb, "als")) for verb in EXPERIMENT_VERBS)
    assert train - cv == {"--resume", "--test-fraction", "--test-data", "--valid-data"}
    assert cv - train == {"--folds"}
    assert train - tune == {"--refit"}
    assert tune - train == {"--trials", "--timeout"}


def test_the_options_of_a_solver_appear_under_it_alone(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        solver: set(options_of(cli, monkeypatch, "train", solver)) for solver in ("sgd", "block-sgd", "gd", "optim")
    }
    common = set.intersection(*options.values())
    assert {"--lr", "--rank", "--data", "--resume", "--json"} <= common
    assert options["gd"] == common
    assert options["optim"] - common == {"--optimizer"}
    assert options["sgd"] - common == {"--step", "--lr-epochs"}
    assert options["block-sgd"] - common == {"--step", "--momentum", "--blocks", "--lr-decay"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_help_of_a_solver_shows_its_defaults_and_hides_what_it_learns(
    solver: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SOLVERS[solver]
    options = options_of(cli, monkeypatch, "train", solver)
    for name, value in spec.defaults.items():
        if name not in spec.learns:
            assert f"(default: {value})" in options[f"--{name.replace('_', '-')}"]
    assert not {f"--{name.replace('_', '-')}" for name in spec.learns} & set(options)


@pytest.mark.parametrize("verb", EXPERIMENT_VERBS)
def test_the_help_of_a_verb_that_trains_lists_every_solver_with_its_summary(
    verb: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    output = cli(verb, "--help")
    assert output.status == 0
    for solver, spec in SOLVERS.items():
        assert re.search(rf"• {solver} +{re.escape(spec.summary)}", output.out)
    assert "(default: sgd)" in output.out


def test_the_help_of_mfrec_lists_every_command_with_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    output = cli("--help")
    assert output.status == 0
    for verb in VERBS:
        assert re.search(rf"• {verb} +[A-Z].*\. *│$", output.out, re.MULTILINE), verb
    assert cli() == output


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_terminal(columns: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    boxes = [line for line in cli("train", "sgd", "--help").out.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert len(boxes) > 40
    assert max(map(len, boxes)) <= columns


def test_the_defaults_in_the_help_are_those_of_a_config_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"solver": "als", "model": {"rank": 23}}')
    assert "(default: als)" in cli("train", "--config", config, "--help").out
    options = options_of(cli, monkeypatch, "train", "als", "--config", str(config))
    assert "(default: 23)" in options["--rank"]
    assert "--relaxation" in options


@pytest.mark.parametrize("verb", EXPERIMENT_VERBS)
@pytest.mark.parametrize("solver", [name for name, spec in SOLVERS.items() if spec.learns])
def test_an_option_that_the_solver_learns_is_refused(verb: str, solver: str, cli: Cli) -> None:
    for name in SOLVERS[solver].learns:
        flag = f"--{name.replace('_', '-')}"
        for option in ((flag, "0.0"), (f"{flag}=0.0",)):
            refused = cli(verb, solver, *option)
            assert refused == (2, "", f"mfrec: {flag} cannot be set for {solver}, which learns it; leave it out\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trian", ["command 'trian'", "did you mean 'train'?"]),
        ("frobnicate", ["command 'frobnicate'", "choose from train, cv"]),
        ("train sdg", ["solver 'sdg'", "did you mean 'sgd'?"]),
        ("cv alss", ["solver 'alss'", "did you mean 'als'?"]),
        ("tune sdg", ["solver 'sdg'", "did you mean 'sgd'?"]),
        ("train sgd --data ml-latest-smal", ["ml-latest-smal", "did you mean 'ml-latest-small'"]),
        ("data ml-10k", ["ml-10k", "did you mean 'ml-100k'"]),
        ("train sgd --split randm", ["split", "randm", "did you mean 'random'"]),
        ("train optim --optimizer rmsprp", ["optimizer", "rmsprp", "did you mean 'rmsprop'"]),
        ("train gd --loss log-cosch", ["loss", "log-cosch", "did you mean 'log-cosh'"]),
        ("train --monitor rsme", ["monitor", "rsme", "did you mean 'rmse'"]),
        ("train --loggers tensorbord", ["logger", "tensorbord", "did you mean 'tensorboard'"]),
    ],
)
def test_a_typo_in_a_name_gets_the_nearest_name(
    arguments: str, words: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*arguments.split()), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train sgd --rnak 3", ["--rnak", "Perhaps you meant: --rank INT", "in mfrec train sgd --help"]),
        ("train --rnak 3", ["--rnak", "Perhaps you meant: --rank INT", "in mfrec train sgd --help"]),
        ("train block-sgd --momentun 0.5", ["--momentun", "--momentum FLOAT"]),
        ("train sgd --step implict", ["--step", "implict", "proximal"]),
        ("train gd --l2-scaling rows", ["--l2-scaling", "rows", "row"]),
        ("cv als --rnk 3", ["--rnk", "--rank INT", "in mfrec cv als --help"]),
        ("train sgd --optimizer adam", ["--optimizer"]),
        ("train sgd more", ["more"]),
        ("train sgd --rank many", ["--rank", "many"]),
        ("train sgd --rank", ["--rank"]),
        ("train sgd --seed x", ["--seed", "x"]),
        ("train sgd --device tpu", ["--device", "tpu", "cpu"]),
        ("train sgd --duplicates never", ["--duplicates", "never", "last"]),
        ("train sgd --config", ["--config"]),
        ("train sgd --plugin", ["--plugin"]),
        ("cv als --folds", ["--folds"]),
        ("tune als --trials", ["--trials"]),
        ("tune als --trials three", ["--trials", "three"]),
        ("recommend run --usr 5", ["--usr"]),
        ("evaluate", ["RUN"]),
        ("data", ["NAME_OR_PATH"]),
        ("predict run", ["PAIRS"]),
    ],
)
def test_an_error_of_usage_names_the_option_and_the_choices(
    arguments: str, words: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    output = cli(*arguments.split())
    assert_usage_error(output, *words)
    assert output.err.count("\n") < 20
    assert list(tmp_path.iterdir()) == []


def test_help_and_errors_are_readable_in_ascii(cli: Cli) -> None:
    output = cli("train", "gd", "--help", encoding="ascii")
    assert (output.status, output.err) == (0, "")
    assert "--lr" in output.out
    assert cli("train", "sgd", "--rnak", 3, encoding="ascii").status == 2
    assert_refused(cli("train", "sdg", encoding="ascii"), "'sdg'")


def test_an_error_of_usage_is_named_on_a_terminal_without_boxes() -> None:
    output = in_a_process("--init", "Uniform", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (output.status, output.out) == (2, "")
    assert "Uniform" in output.err
    assert "Traceback" not in output.err


def test_an_input_error_in_a_process_is_status_2_and_one_line(tmp_path: Path) -> None:
    output = in_a_process("sgd", "--rank", 0, "--run-dir", tmp_path)
    assert_refused(output, "--rank must be at least 1 (got 0)")


@pytest.mark.parametrize(
    ("arguments", "solver", "options"),
    [
        ("", None, ""),
        ("als", "als", ""),
        ("als --rank 8", "als", "--rank 8"),
        ("--rank 8 als", None, "--rank 8 als"),
        ("--plugin my_module mine --rank 8", "mine", "--plugin my_module --rank 8"),
        ("--plugin=als als", "als", "--plugin=als"),
        ("--plugin als als --json", "als", "--plugin als --json"),
        ("--config c.json --plugin a --plugin b mine", "mine", "--config c.json --plugin a --plugin b"),
        ("--plugin a --rank 8 mine", None, "--plugin a --rank 8 mine"),
        ("--help als", None, "--help als"),
        ("--resume runs/a --epochs 9", None, "--resume runs/a --epochs 9"),
    ],
)
def test_a_solver_comes_first_or_after_the_options_that_decide_which_solvers_there_are(
    arguments: str, solver: str | None, options: str
) -> None:
    assert solver_and_options(arguments.split()) == (solver, options.split())


def test_the_default_solver_need_not_be_named(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    place = ("--data", tiny, *SMALL, "--run-dir", tmp_path, "--json")
    unnamed, named = (cli("train", *solver, *place) for solver in ((), ("sgd",)))
    assert '"solver": "sgd"' in unnamed.out
    assert [line for line in unnamed.out.splitlines() if "run" not in line and "seconds" not in line] == [
        line for line in named.out.splitlines() if "run" not in line and "seconds" not in line
    ]
