"""Plain progress lines where no terminal watches."""

import io

from hssl_dist.console import Console


def test_plain_lines() -> None:
    stream = io.StringIO()
    console = Console(stream)
    with console.track("cases", total=3) as advance:
        for _ in range(3):
            advance(1)
    console.warn("odd")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("cases: 3 of 3 in ")
    assert lines[1:] == ["warning: odd"]
    assert not console.is_terminal
