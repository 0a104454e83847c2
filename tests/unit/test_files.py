"""Files by path or URL: the same contract on local disk and on an object store's semantics."""

import hashlib
import os
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist.errors import StorageError


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"


def test_write_read_list_remove(root: str) -> None:
    url = files.join(root, "a", "b.bin")
    assert not files.exists(url)
    files.write(url, b"one")
    files.write(url, b"two")
    files.write(files.join(root, "a", "c d.bin"), b"x")
    assert files.read(url) == b"two"
    assert files.listing(files.join(root, "a")) == ["b.bin", "c d.bin"]
    assert list(files.walk(root)) == [url, files.join(root, "a", "c d.bin")]
    assert files.is_folder(files.join(root, "a"))
    assert files.sha256(url) == (hashlib.sha256(b"two").hexdigest(), 3)
    files.remove(files.join(root, "a"))
    files.remove(files.join(root, "a"))
    assert not files.exists(url)
    assert files.listing(files.join(root, "a")) == []


def test_reading_what_is_not_there(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(files.join(root, "none"))


def test_a_failed_write_leaves_the_old_bytes(tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    files.write(url, b"old")
    with pytest.raises(TypeError):
        files.write(url, "not bytes")  # type: ignore[arg-type]
    assert files.read(url) == b"old"


def test_relative_and_local() -> None:
    assert files.relative("s3://b/p/x/y", "s3://b/p") == "x/y"
    assert files.is_local("/a/b")
    assert not files.is_local("s3://b/p")


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="it is a pipe or a device"):
            files.open_read(str(tmp_path / name))


def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    with pytest.raises(StorageError) as caught, files.writing("/proc/x/y"):
        files.write("/proc/x/y/scores.csv", b"")
    assert str(caught.value) == (
        "/proc/x/y cannot be written: No such file or directory; make room or choose another output"
    )
    with pytest.raises(StorageError, match=r"^the server"), files.writing("/proc/x/y"):
        raise StorageError("the server does not answer")
