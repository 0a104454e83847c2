"""Readers of what may be damaged: a value, or one of the package's errors, in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hssl_dist.errors import HsslError

Value = TypeVar("Value")


def value_or_refusal(read: Callable[[], Value], *expected: type[HsslError]) -> Value | HsslError:
    """What reading gives, or its error, which must be one of those expected and have one line to say."""
    try:
        return read()
    except expected as error:
        text = str(error)
        text.encode()  # or it could not be printed
        if not text.strip() or len(text.splitlines()) > 1:
            raise AssertionError(f"not one line: {text!r}") from error
        return error
