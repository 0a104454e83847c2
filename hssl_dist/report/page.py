"""Self-contained HTML pages from the templates; everything put into one is escaped unless it is markup.

Names of cases, classes and files come from whoever made the data. Should one slip through nevertheless, the
pages' Content-Security-Policy lets no script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hssl_dist import __version__

_UNSEEN = frozenset("\N{ARABIC LETTER MARK}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}")
"""With the bidirectional embeddings and isolates, what turns the order of the text around it."""
_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hssl_dist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "score": score}
    return environment


def visible(text: str) -> str:
    """`text` with a replacement character for each that is not seen but changes what is: controls (line
    breaks and tabs aside), and marks that reverse the order of letters.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    hidden = (
        (unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t")
        or unicodedata.bidirectional(character) in _REORDERING
        or character in _UNSEEN
    )
    return "\N{REPLACEMENT CHARACTER}" if hidden else character


def _finalize(value: Any) -> Any:
    """What is put into a page: plain text without hidden characters."""
    return visible(value) if type(value) is str else value


def render(template: str, **values: Any) -> str:
    """The page made of a template and its values. A value that the template needs and lacks is an error."""
    return _environment().get_template(template).render(version=__version__, **values)


def png_source(data: bytes) -> str:
    """A PNG as the `src` of an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten; an en dash for None."""
    if value is None:
        return "–"  # noqa: RUF001
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.{digits + 3}f}".rstrip("0")


def percent(share: float) -> str:
    """A share as a percentage, with a digit more where it is small."""
    return f"{share:.0%}" if share == 0 or share >= 0.1 else f"{share:.1%}"


def score(value: float | None) -> str:
    """A score in 0..1 with three decimals; an en dash for None."""
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001


def with_sign(value: float, size: str, *, plus: bool = True) -> str:
    """`size`, how a number's absolute value is written, with its sign (`+` if wanted); zero has none."""
    if not any(digit in size for digit in "123456789"):
        return size
    return f"{'−' if value < 0 else '+' if plus else ''}{size}"  # noqa: RUF001


def flat_pairs(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values, such as a lineage, as pairs of name and text; what is empty is left out."""
    pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs += flat_pairs(value, f"{name}, ")
        elif value not in (None, [], (), ""):
            pairs.append(
                (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
            )
    return pairs
