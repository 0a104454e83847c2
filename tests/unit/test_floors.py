"""The house's rules that a machine can read: imports go down only, each outside library has one owner."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hssl_dist

PACKAGE = Path(hssl_dist.__file__).parent

FLOORS = {
    **dict.fromkeys(("config", "errors", "records", "files", "dicom", "console", "memory", "watchdog"), 0),
    **dict.fromkeys(
        (
            "datasets",
            "imaging",
            "store",
            "synthetic",
            "augment",
            "networks",
            "collectives",
            "segmentation",
            "tracking",
            "report",
        ),
        1,
    ),
    **dict.fromkeys(("sampling", "losses", "interchange"), 2),
    "training": 3,
    "jobs": 4,
    **dict.fromkeys(
        (
            "cli",
            "preprocess",
            "pretrain",
            "finetune",
            "evaluate",
            "predict",
            "export",
            "promote",
            "sync",
            "study",
            "demo",
        ),
        5,
    ),
}

OWNERS = {
    "ray": {"jobs"},
    "mlflow": {"tracking"},
    "zarr": {"store"},
    "tensorstore": {"store"},
    "s3fs": {"store"},
    "nibabel": {"imaging"},
    "SimpleITK": {"imaging"},
    "fsspec": {"files"},
    "isal": {"imaging"},
    "numcodecs": {"store"},
    "google_crc32c": {"store"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_part_has_a_floor() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for name in imported_names(path):
        words = name.split(".")
        if words[0] != "hssl_dist" or len(words) == 1 or words[1] not in FLOORS or words[1] == part:
            continue
        lower = FLOORS[words[1]] < FLOORS[part]
        ground = FLOORS[words[1]] == FLOORS[part] == 0
        entry = FLOORS[part] == 5 and words[1] == "cli"
        assert lower or ground or entry, f"{part} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_outside_library_has_one_owner(path: Path) -> None:
    for name in imported_names(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or part_of(path) in owners, f"{part_of(path)} imports {name}"
