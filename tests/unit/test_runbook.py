"""The runbook against the code: what it quotes is said, what it has run runs, its links lead somewhere."""

import ast
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hssl_dist
from hssl_dist import cli
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from tests.readme_code import blocks, run_python
from tests.tiny_pretraining import GROUPS, write_store

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
HOLE = "\0"
LEAST_LETTERS = 12
"""Of a quotation without a hole: fewer might stand anywhere."""


def templates(source: str) -> Iterator[str]:
    """Every text of a module but its docstrings; what is filled in is a hole."""
    tree = ast.parse(source)
    said_of_it = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
            yield re.sub(f"{HOLE}+", HOLE, "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said_of_it:
            yield node.value


def quoted(line: str) -> list[str]:
    """The pieces of a quotation between the words that it leaves out, with holes for what differs."""
    pieces = (re.sub(r"(<[^<>]+>)+", HOLE, piece.strip()) for piece in line.split("..."))
    return [piece for piece in pieces if piece]


SAID = [
    template
    for path in sorted(Path(hssl_dist.__file__).parent.rglob("*.py"))
    for template in templates(path.read_text())
]
LINES = [line for block in blocks(RUNBOOK, "text") for line in block.splitlines()]
COMMANDS = [line for block in blocks(RUNBOOK, "bash") for line in block.splitlines()]


def is_said(piece: str) -> bool:
    return any(piece in template for template in SAID)


@pytest.mark.parametrize("line", LINES)
def test_a_quoted_message_is_one_of_the_codes(line: str) -> None:
    pieces = quoted(line)
    for piece in pieces:
        assert is_said(piece), piece
    letters = sum(map(str.isalpha, "".join(pieces)))
    assert letters >= (LEAST_LETTERS if HOLE not in "".join(pieces) else LEAST_LETTERS // 2)


def test_a_message_that_was_changed_would_be_noticed() -> None:
    [piece] = quoted("no Ray cluster answers at <address> (<why>); start one")
    assert is_said(piece)
    assert not is_said(piece.replace("answers", "replies"))
    assert not is_said(piece.replace(f" ({HOLE})", ""))
    assert not is_said("Whom the ranks wait for, from what each says of itself.")  # a docstring


def test_the_statuses_are_the_command_lines() -> None:
    table = dict(re.findall(r"^\| (\d) \| (\w+)", RUNBOOK.read_text(), flags=re.MULTILINE))
    assert {status: int(number) for number, status in table.items() if number in "01"} == {
        status: number for status, number in cli.EXIT_STATUS.items() if number < 2
    }
    assert table[str(cli.USAGE_STATUS)] == "bad"
    assert table[str(cli.EXIT_STATUS["interrupted"])] == "asked"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_a_verb_and_flags_that_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, verb, *words = shlex.split(command)
    assert name == "hssl"
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    known = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= known


def python_of(what: str) -> str:
    [code] = [block for block in blocks(RUNBOOK, "python") if what in block]
    return code.replace("NAME", "run")


def test_its_code_says_which_checkpoints_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(str(tmp_path / "hssl/runs/run/checkpoints"))
    for step in (1, 2):
        store.save(Checkpoint(step, {"w": torch.ones(2)}, {}, {}))
    weights = tmp_path / "hssl/runs/run/checkpoints/step-00000002/model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    run_python(python_of("CheckpointStore"), tmp_path)
    whole, damaged = capsys.readouterr().out.splitlines()
    assert whole == "1 whole"
    assert damaged.startswith("2 ")
    assert damaged.endswith(
        "has other bytes than were saved (SHA-256 differs); "
        "remove hssl/runs/run/checkpoints/step-00000002 to resume from an older checkpoint"
    )


def test_its_code_reads_a_whole_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(str(tmp_path / "hssl/store"), cases=1)
    run_python(python_of("verify"), tmp_path)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(GROUPS)


def test_its_code_copies_a_database(tmp_path: Path) -> None:
    (tmp_path / "hssl").mkdir()
    with sqlite3.connect(tmp_path / "hssl/mlflow.db") as database:
        database.execute("create table runs (id)")
        database.execute("insert into runs values (7)")
    database.close()
    for connection in run_python(python_of("sqlite3"), tmp_path).values():
        if isinstance(connection, sqlite3.Connection):
            connection.close()
    copy = sqlite3.connect(tmp_path / "mlflow-backup.db")
    assert copy.execute("select id from runs").fetchall() == [(7,)]
    copy.close()


def anchors(path: Path) -> set[str]:
    """What a heading is linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = sorted(
    {
        (path.name, link)
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text())
        if path == RUNBOOK or "runbook.md" in link
    }
)


@pytest.mark.parametrize(("name", "link"), LINKS)
def test_links_from_it_and_to_it_lead_somewhere(name: str, link: str) -> None:
    page = next(path for path in (ROOT / name, ROOT / "docs" / name) if path.is_file())
    target, _, anchor = link.partition("#")
    path = page.parent / target if target else page
    assert path.is_file()
    if anchor:
        assert anchor in anchors(path)
