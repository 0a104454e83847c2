"""What tests of object storage share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faulty_proxy import FaultyProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.s3.server import S3Server


@pytest.fixture
def proxy(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the session's server, which the environment leads to."""
    with FaultyProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
