"""nnU-Net's own code, as far as it imports where its dependencies are not all installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def plans_handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module with nnU-Net's PlansManager.

    It imports one function of acvl_utils, which pastes a crop into an image and which reading plans never
    calls. Where acvl_utils is not installed, an empty function of that name stands in for it.
    """
    pytest.importorskip("nnunetv2")
    name = "nnunetv2.utilities.plans_handling.plans_handler"
    if importlib.util.find_spec("acvl_utils") is not None:
        yield importlib.import_module(name)
        return
    folder = tmp_path_factory.mktemp("stand_in")
    _stand_in(folder / "acvl_utils" / "cropping_and_padding")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "acvl_utils"]:
        del sys.modules[name]


def _stand_in(package: Path) -> None:
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "bounding_boxes.py").write_text("def insert_crop_into_image(): ...\n")
