"""The documents say what the code says: their tables are compared with the code's own."""

from __future__ import annotations

import ast
import enum
import inspect
from pathlib import Path

from kawarimi_wire.errors import ExitCode
from kawarimi_wire.phases import PHASES, Result

DOCUMENT = Path(__file__).parents[2] / "docs/operation.md"


def table_after(marker: str) -> list[str]:
    """Return the lines of the table that follows a marker in the document."""
    lines = iter(DOCUMENT.read_text().partition(f"<!-- {marker} -->\n")[2].splitlines())
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append(line)
    return found


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    every = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |".replace(" --- ", "---") for row in every]


def meanings(kind: type[enum.Enum]) -> dict[str, str]:
    """Return what the text below each member of an enumeration says, by the member's name."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for member, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            assert isinstance(member.targets[0], ast.Name)
            found[member.targets[0].id] = " ".join(ast.literal_eval(text.value).split())
    return found


def test_the_phases():
    rows = [
        [
            row.phase,
            row.actors,
            row.proof,
            row.undo or ("forward only" if row.forward_only else "none needed"),
            f"{row.deadline_s:.0f} s",
        ]
        for row in PHASES
    ]
    header = ["phase", "who acts", "what proves it done", "undo", "deadline"]
    assert table_after("phases") == table(header, rows)


def test_the_results():
    texts = meanings(Result)
    rows = [[f"`{result}`", texts[result.name]] for result in Result]
    assert table_after("results") == table(["result", "meaning"], rows)


def test_the_exit_codes():
    texts = meanings(ExitCode)
    rows = [[str(int(code)), texts[code.name]] for code in ExitCode]
    assert table_after("exit codes") == table(["exit code", "meaning"], rows)
