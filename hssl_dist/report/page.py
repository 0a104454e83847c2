"""Self-contained HTML pages from the templates; everything put into one is escaped unless it is markup."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hssl_dist import __version__


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hssl_dist.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "score": score}
    return environment


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
