"""Where the tests lay datasets out."""

import pytest


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"


@pytest.fixture
def disk(tmp_path) -> str:
    return str(tmp_path)
