"""The table of bad input as docs/data.md shows it: `python -m tests.bad_inputs_table` prints it.

A test holds the two together.
"""

from __future__ import annotations

from tests.bad_inputs import ROWS, Accepted, Quarantined, Refused, Warned


def table() -> str:
    """The table in Markdown: every row, under what comes of it."""
    said = {
        Quarantined: lambda outcome: f"quarantined: {outcome.reason}",
        Accepted: lambda outcome: (
            "accepted" if outcome.case == "bad" else f"accepted as `{_short(outcome.case)}`"
        ),
        Refused: lambda outcome: f"status 2: {outcome.line}",
        Warned: lambda outcome: f"warning: {outcome.text}",
    }
    lines = ["| input | outcome |", "|---|---|"]
    for kind, words in said.items():
        lines += [
            f"| {name} | {words(row.outcome).strip()} |"
            for name, row in ROWS.items()
            if isinstance(row.outcome, kind)
        ]
    return "\n".join(lines)


def _short(case: str) -> str:
    return case if len(case) < 40 else f"{case[:8]}...{case[-12:]}"


if __name__ == "__main__":
    print(table())  # noqa: T201
