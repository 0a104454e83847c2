"""python probe.py: whether HSSL_PROBE answers with 200; the health check of all services.

Ray's token is shown where RAY_AUTH_TOKEN_PATH says where it is.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path

_TIMEOUT_S = 15


def main() -> None:
    """Exit status 0 if it does, or if there is nothing to ask."""
    url = os.environ.get("HSSL_PROBE")
    if not url:
        return
    token = os.environ.get("RAY_AUTH_TOKEN_PATH")
    headers = {"Authorization": f"Bearer {Path(token).read_text()}"} if token else {}
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S).close()
    except OSError as error:
        sys.exit(f"{url}: {error}")


main()
