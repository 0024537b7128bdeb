"""The mechanical part of the style rule (CONTRIBUTING.md): phrases and names to avoid, and the length of sentences.

    python tests/test_prose.py [FILE …]

prints the hits in these files, or in all, and exits with status 1 if there are any.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MAX_WORDS = 25

# A phrase, as a regular expression, and what to write instead.  White space is one blank when it is searched.
PHRASES = {
    r"what (?:[\w'’]+ ){0,3}(?:is|has|knows)\b(?![^.;:!]*\?)": "a noun",
    r"\bof which\b": "two sentences",
    r"\bof whom\b": "two sentences",
    r"\bas of\b": "'from' or 'since'",
    r"(?<!there )\b(?:is|are) no (?!longer\b|more than\b|less than\b|better\b|worse\b)": "'is not a' or 'there is no'",
    r"\bso many\b": "'this many' or the number",
    r"\bbeside\b": "'next to' or 'besides'",
    r"\b(?:tells?|telling|told) (?:of|apart)\b": "'describes', 'distinguishes'",
    r"\blest\b": "'so that … not'",
    r"\bfor want of\b": "'without'",
    r"\bwhatever\b": "'any' or 'every'",
    r"\bsuch as [^.;]{0,40} gives\b": "two sentences",
    r"\bat hand\b": "'available'",
    r"\b(?:rooms?|doorways?|(?:front )?doors?|houses?)\b": "no metaphors: 'package', 'module', 'command'",
    r"(?-i:\b(?:newcomers?|strangers?)\b)": "'new users', 'new items'",
    r"\bwarmth\b": "'cold start'",
    r"\bknobs?\b": "'options'",
    r"\b(?:train|training|valid|validation|test) parts?\b": "'set' or 'split'",
    r"\b(?<!standard )(?<!mean absolute )deviations?\b": "'standard deviation' or 'std'",
    r"\bone's own\b": "'your own' or 'the user's'",
}
# Names of variables that say nothing about what they hold.
NAMES = {"own", "found", "one", "told", "said", "given", "known", "taken", "other", "mine", "rest"}


class Text(NamedTuple):
    """A piece of prose: the line it begins on, and whether it is a docstring."""

    line: int
    content: str
    docstring: bool = False


class Hit(NamedTuple):
    """Something to change."""

    path: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.problem}"


def files() -> list[Path]:
    """What the rule applies to: Python, Markdown and notebooks of the repository."""
    folders = ("mfrec", "tests", "benchmarks", "docs", "notebooks", ".ci")
    paths = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    kept = (p for p in paths if p.suffix in (".py", ".md", ".ipynb") and ".ipynb_checkpoints" not in p.parts)
    return sorted(path for path in kept if path != Path(__file__))


def python_texts(source: str) -> Iterator[Text]:
    """Comments, consecutive lines joined, and strings; docstrings are marked."""
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    }
    comment: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token)
        elif token.type not in (tokenize.NL, tokenize.NEWLINE) and comment:
            yield Text(comment[0].start[0], "\n".join(t.string.lstrip("# ") for t in comment))
            comment = []
        if token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            content = re.sub(r"^[a-zA-Z]*(\"\"\"|'''|\"|')|(\"\"\"|'''|\"|')$", "", token.string)
            yield Text(token.start[0], content, token.start[0] in docstrings)


def markdown_texts(source: str) -> Iterator[Text]:
    """The text outside fenced blocks."""
    fenced = False
    lines = []
    for line in source.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        lines.append("" if fenced or line.startswith("```") else line)
    yield Text(1, "\n".join(lines))


def texts(path: Path) -> Iterator[Text]:
    """All prose of a file.  Lines of a notebook are counted within its cells."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from python_texts(source)
    elif path.suffix == ".md":
        yield from markdown_texts(source)
    else:
        for cell in json.loads(source)["cells"]:
            content = "".join(cell["source"])
            yield from python_texts(content) if cell["cell_type"] == "code" else markdown_texts(content)


def code_removed(text: str) -> str:
    """The text with `inline code` blanked out, so that the names and phrases quoted there do not count."""
    return re.sub(r"(`+)[^`]+\1", lambda code: re.sub(r"[^\n]", "_", code[0]), text)


def phrase_hits(path: Path) -> Iterator[Hit]:
    """The phrases to avoid, with what to write instead."""
    for text in texts(path):
        content = code_removed(text.content)
        words = [
            (match[0], text.line + content.count("\n", 0, match.start())) for match in re.finditer(r"\S+", content)
        ]
        flat = " ".join(word for word, _ in words)
        for phrase, instead in PHRASES.items():
            for match in re.finditer(phrase, flat, re.IGNORECASE):
                line = words[flat.count(" ", 0, match.start())][1]
                yield Hit(path, line, f"{match[0]!r}: write {instead}")


def name_hits(path: Path) -> Iterator[Hit]:
    """The variables, parameters and fields whose names say nothing."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    else:
        sources = [path.read_text(encoding="utf-8")] if path.suffix == ".py" else []
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            name = ""
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.attr
            if name.lstrip("_") in NAMES:
                yield Hit(path, node.lineno, f"variable {name!r}: name what it holds")


def sentences(docstring: str) -> Iterator[str]:
    """The sentences of a docstring, without its formulas, its examples and its lists of errors."""
    text = re.sub(r"^ *(>>>|\.\.\. ).*$", "", inspect.cleandoc(docstring), flags=re.MULTILINE)
    entry = r" *(?:[-*] |[\w, ]+: )"
    for paragraph in re.split(rf"\n\s*\n|\n(?={entry})", text):
        is_formula = paragraph.startswith("    ") and not re.match(entry, paragraph)
        if not is_formula and not re.match(r" *\w+Error: ", paragraph):
            yield from re.split(r"(?<=[.!?:;])\s+(?=\S)", " ".join(paragraph.split()))


def length_hits(path: Path) -> Iterator[Hit]:
    """The sentences of docstrings that are too long."""
    for text in texts(path):
        for sentence in sentences(code_removed(text.content)) if text.docstring else ():
            count = len(re.findall(r"[^\W\d_][\w'’-]*", sentence))
            if count > MAX_WORDS:
                yield Hit(path, text.line, f"{count} words: {sentence[:60]} …")


def hits(path: Path) -> list[Hit]:
    """Everything to change in a file."""
    return [*phrase_hits(path), *name_hits(path), *length_hits(path)]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_avoids_the_phrases_and_names_of_the_list(path):
    everything = hits(path)
    assert not everything, "\n" + "\n".join(map(str, everything))


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("The solver, of which there are seven.", True),
        ("An answer that the caller\nso many times asked for.", True),
        ("There is no solver of this name.", False),
        ("A bare row is no row.", True),
        ("Docstrings do not say `of which`.", False),
        ("The standard deviation of a prediction.", False),
        ("The deviation of a prediction.", True),
        ("What is the best solver?", False),
    ],
)
def test_the_check_catches_phrases_across_lines_and_leaves_code_alone(tmp_path, monkeypatch, text, caught):
    path = tmp_path / "page.md"
    path.write_text(text)
    assert bool([*phrase_hits(path)]) == caught


def test_the_check_reads_comments_docstrings_and_strings_but_not_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""Beside."""\nx = "lest"  # whatever\nbeside = 1\n')
    assert [hit.line for hit in phrase_hits(path)] == [1, 2, 2]


def test_the_check_finds_variables_whose_names_say_nothing(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f(own, fine):\n    found = [one for one in own]\n    return found\n")
    assert {hit.problem.split("'")[1] for hit in name_hits(path)} == {"own", "found", "one"}


if __name__ == "__main__":
    everything = [hit for path in [Path(name).resolve() for name in sys.argv[1:]] or files() for hit in hits(path)]
    print(*everything, sep="\n", end="\n" if everything else "")
    sys.exit(bool(everything))
