"""JSON for people and programs under a hash of its own: a flipped bit that would change a value is an error.

The hash, the last key, is of the content, not of the text: spaces and the order of keys are free. Files of
before they were sealed are read as they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hssl_dist.errors import CorruptError
from hssl_dist.records import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

SEAL = "content_sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content and, under `SEAL`, its hash; what to write, in whatever layout."""
    as_read = json.loads(json.dumps(content))  # whose keys are all text, and sorted as such
    return {**content, SEAL: content_hash(as_read)}


def read_sealed(name: str, data: bytes) -> Any:
    """The content of a file called `name`, see `unsealed`. Raises CorruptError if it is no JSON, too."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CorruptError(f"{name} is no JSON ({reason}): it is damaged, or cut off") from None
    return unsealed(name, content)


def unsealed(name: str, content: Any) -> Any:
    """The content without its seal; whatever has none is as it is.

    So who reads must refuse keys that are not known: a seal under a damaged name is none. Raises CorruptError
    if it is not what was sealed.
    """
    if not isinstance(content, dict) or SEAL not in content:
        return content
    bare = {key: value for key, value in content.items() if key != SEAL}
    try:
        whole = content_hash(bare) == content[SEAL]
    except ValueError:  # what no JSON of ours holds: NaN, half of a character
        whole = False
    if not whole:
        raise CorruptError(f"{name} does not have the SHA-256 that is in it: it is damaged, or was changed")
    return bare
