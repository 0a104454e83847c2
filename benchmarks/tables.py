"""Tables of a benchmark's record in Markdown, and the page that shows them between two markers."""

from __future__ import annotations

from typing import Any

VERDICTS = {True: "reached", False: "**missed**", None: "not judged"}


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A table with a heading."""
    lines = [header, ["---"] * len(header), *rows]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between its markers, two lines of their own. Raises ValueError without them."""
    head, found, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"no {begin.strip()} and {end.strip()} in the page; put both where the tables go")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def criteria_table(criteria: list[dict[str, Any]]) -> str:
    """What must be reached, and whether it is."""
    rows = [
        [
            criterion["name"],
            f"{criterion['value']:.3g}",
            f"{'>=' if criterion['at_least'] else '<='} {criterion['bound']:g}",
            VERDICTS[criterion["passed"]],
            criterion["note"],
        ]
        for criterion in criteria
    ]
    return table("What must be reached", ["requirement", "measured", "bound", "verdict", "note"], rows)
