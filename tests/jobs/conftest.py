"""One local Ray cluster for all tests of jobs; jobs run inside it use it, since it is already connected."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.jobs import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with four logical CPUs: enough for two training workers and their controller."""
    with cluster.connect(RayConfig(num_cpus=4), Console(io.StringIO())):
        yield
