"""Code blocks of Markdown files, to be run as written."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any


def blocks(path: Path, language: str) -> list[str]:
    """The contents of the file's fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run_python(code: str, folder: Path) -> dict[str, Any]:
    """Run code in a folder, and return the variables it leaves."""
    variables: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code, variables)
    return variables
