"""Tar archives as folders: honest ones are read in place, hostile ones do no harm and are said to be."""

from __future__ import annotations

import gzip
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import dataset_root, discover
from hssl_dist.errors import ConfigError, MissingError
from tests.s3.server import S3Server
from tests.s3.tars import END, folder_tar, header, member, tar

LONG = "Task04/" + "a" * 120 + "/" + "ü" * 60 + ".nii.gz"
FILES = {
    "Task04/dataset.json": b"{}",
    "Task04/imagesTr/x 1.nii.gz": secrets.token_bytes(70_000),
    "Task04/imagesTr/empty": b"",
    LONG: b"long",
}


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_bucket")


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def put(place: str, data: bytes, name: str = "Task04.tar") -> str:
    url = files.join(place, name)
    files.write(url, data)
    return url


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(("name", "compression"), [("a.tar", ""), ("a.tar.gz", "gz"), ("a.tgz", "gz")])
def test_an_archive_is_a_folder(place: str, name: str, compression: str, layout: int) -> None:
    url = put(place, tar(FILES.items(), compression=compression, layout=layout), name)
    root = files.archive_root(url)
    assert root == f"{url}!/Task04"
    assert not files.is_local(root)
    assert files.is_folder(root)
    assert files.listing(root) == sorted({"dataset.json", "imagesTr", "a" * 120})
    assert list(files.walk(root)) == sorted(f"{url}!/{path}" for path in FILES)
    for path, data in FILES.items():
        inside = f"{url}!/{path}"
        assert files.exists(inside)
        assert not files.is_folder(inside)
        assert files.read(inside) == data
        assert files.sha256(inside) == (hashlib.sha256(data).hexdigest(), len(data))
        with files.open_read(inside) as stream:
            stream.seek(3)
            assert stream.read() == data[3:]
    assert files.relative(f"{root}/imagesTr/x 1.nii.gz", root) == "imagesTr/x 1.nii.gz"
    assert files.ignored(root) == []


def test_what_is_not_in_it(place: str) -> None:
    url = put(place, tar(FILES.items()))
    gone = f"{url}!/Task04/gone"
    assert (files.exists(gone), files.is_folder(gone), files.listing(gone)) == (False, False, [])
    assert list(files.walk(gone)) == []
    for read in (files.read, files.open_read, files.sha256):
        with pytest.raises(FileNotFoundError):
            read(gone)
        with pytest.raises(IsADirectoryError):
            read(f"{url}!/Task04")
        with pytest.raises(FileNotFoundError):
            read(f"{place}/none.tar!/Task04/dataset.json")
    assert not files.exists(f"{place}/none.tar!/Task04")
    for change in (lambda: files.write(gone, b""), lambda: files.remove(f"{url}!/Task04")):
        with pytest.raises(ConfigError, match="is in an archive, which is only read"):
            change()


def test_another_archive_in_its_place_is_noticed(place: str) -> None:
    url = put(place, tar([("a/1", b"first")]))
    assert files.read(f"{url}!/a/1") == b"first"
    put(place, tar([("a/0", b"before"), ("a/1", b"second")]))
    assert files.listing(f"{url}!/a") == ["0", "1"]
    assert files.read(f"{url}!/a/1") == b"second"


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["T/a", "T/b/c"], "T"),
        (["./T/a", "./T/b/c"], "T"),
        (["._T", ".DS_Store", "__MACOSX/T/._a", "T/a"], "T"),
        (["T/a", "readme.txt"], ""),
        (["T/a", "U/a"], ""),
        (["a"], ""),
    ],
)
def test_the_root_is_the_only_top_folder(tmp_path: Path, names: list[str], root: str) -> None:
    url = put(str(tmp_path), tar([(name, b"x") for name in names]))
    assert files.archive_root(url) == f"{url}!/{root}"
    assert "a" in files.listing(f"{url}!/{root}") or root == ""


# --------------------------------------------------------------------------------------------------- requests


def test_an_index_takes_few_requests_and_few_bytes(s3_environment: S3Server, s3_bucket: str) -> None:
    small = put(s3_bucket, tar((f"T/{number:03}", bytes(3000)) for number in range(400)), "small.tar")
    before = s3_environment.counts(s3_bucket)
    assert len(files.listing(f"{small}!/T")) == 400
    made = s3_environment.counts(s3_bucket) - before
    assert made.requests["GET"] <= 5  # 1.7 MB, half a MiB at a time
    assert made.requests.total() - made.requests["GET"] <= 2

    large = put(s3_bucket, tar((f"T/{number}", bytes(16 << 20)) for number in range(4)), "large.tar")
    before = s3_environment.counts(s3_bucket)
    assert len(files.listing(f"{large}!/T")) == 4
    made = s3_environment.counts(s3_bucket) - before
    assert made.requests["GET"] <= 6
    assert made.bytes_sent <= 5 * (512 << 10)

    before = s3_environment.counts(s3_bucket)
    files.sha256(f"{large}!/T/2")
    made = s3_environment.counts(s3_bucket) - before
    assert dict(made.requests) == {"HEAD": 1, "GET": 2}  # the index is not made again
    assert made.bytes_sent == 16 << 20


# ---------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tar([("T/a", b"x"), ("../outside", b"x")]), "'../outside' leads out of it"),
        (tar([("T/../../outside", b"x")]), "'T/../../outside' leads out of it"),
        (tar([("/etc/outside", b"x")]), "'/etc/outside' leads out of it"),
        (tar([("T/a", b"x"), ("T/a", b"y")]), "'T/a' stands in it twice"),
        (tar([("T/a", b"x"), ("T/./a", b"y")]), "'T/./a' stands in it twice"),
        (tar([("T/a", b"x"), ("T/a/b", b"y")]), "'T/a/b' needs a folder where a file stands"),
        (tar([("T/a/b", b"x"), ("T/a", b"y")]), "'T/a' stands in it twice"),
        (tar([("d/" * 100 + "a", b"x")]), "a name of 201 characters and 101 folders"),
        (header("T/huge", 1 << 50) + END, "'T/huge' is cut off: it declares 1125899906842624 bytes"),
        (header("T/huge", 1 << 40, tarfile.GNUTYPE_LONGNAME) + END, "headers of more than 262144 bytes"),
        (header("T/huge", 1 << 40, tarfile.XHDTYPE) + END, "headers of more than 262144 bytes"),
        (header("././@LongLink", -512, tarfile.GNUTYPE_LONGNAME) + END, ""),
        (header("T/back", -1024) + END, "leads back into the archive"),
        (header("x", 20, tarfile.XHDTYPE, b"20 size=-1000000000\n") + header("T/a", 0) + END, ""),
        (header("x", 27, tarfile.XHDTYPE, b"27 GNU.sparse.map=a,b,c,d\n\n") + header("T/a", 0) + END, ""),
        (tar([("T/a", bytes(5000)), ("T/b", bytes(5000))])[:7000], "'T/b' is cut off"),
        (header("T/link", 5000, tarfile.SYMTYPE) + header("T/a", 0)[:512], ""),
        (tar([("T/a", bytes(5000)), ("T/b", b"")])[:5632], "after member 1 comes neither"),
        (tar([("T/a", b"x")])[:1024] + b"garbage" * 200, "after member 1 comes neither"),
        (b"", ""),
        (b"no archive at all" * 100, ""),
        (b"\x1f\x8b\x08" + secrets.token_bytes(1000), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_and_damaged_archives_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    inside = tmp_path / "in"
    url = put(str(inside), data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        files.archive_root(url)
    assert str(refused.value).startswith(f"{url} is ")
    assert str(refused.value).endswith("; fetch it again")
    assert reason in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_plain_file_is_left_out_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"not to be read")
    sparse = tarfile.TarInfo("T/sparse")
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1000000000000"}
    url = put(
        str(tmp_path / "in"),
        tar(
            [
                member("T/link", tarfile.SYMTYPE, "../../outside"),
                member("T/absolute", tarfile.SYMTYPE, "/etc/passwd"),
                member("../hard", tarfile.LNKTYPE, "../../outside"),
                member("T/null", tarfile.CHRTYPE),
                member("T/pipe", tarfile.FIFOTYPE),
                sparse,
                ("T/a", b"kept"),
                member("T/link/below", tarfile.SYMTYPE, "x"),
            ]
        ),
    )
    root = files.archive_root(url)
    assert list(files.walk(root)) == [f"{root}/a"]
    assert files.ignored(root) == [
        f"{url}: 2 members are devices and are left out, first 'T/null'",
        f"{url}: 4 members are links and are left out, first 'T/link'",
        f"{url}: 1 members are sparse files and are left out, first 'T/sparse'",
    ]
    for name in ("link", "absolute", "null", "../hard", "../../outside", "a/../../../outside"):
        assert not files.exists(f"{root}/{name}")
        with pytest.raises(FileNotFoundError):
            files.read(f"{root}/{name}")


def test_a_description_that_names_a_place_outside(tmp_path: Path) -> None:
    description = (
        b'{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"},'
        b' "training": [{"image": "./imagesTr/../../x.nii.gz", "label": "./labelsTr/x.nii.gz"}]}'
    )
    put(str(tmp_path), tar([("T/dataset.json", description), ("T/imagesTr/x.nii.gz", b"")]))
    config = DatasetConfig(name="toy", layout="msd", source="Task04.tar", group="g")
    with pytest.raises(ConfigError, match=r"which is outside of the dataset"):
        discover(config, str(tmp_path))


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    config = DatasetConfig(name="toy", layout="msd", source="none.tar", group="g")
    with pytest.raises(MissingError) as missing:
        discover(config, str(tmp_path))
    assert str(missing.value) == f"dataset 'toy': there is no archive {tmp_path}/none.tar; set `source`"


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    config = DatasetConfig(name="toy", layout="msd", source="x.tar", group="g")
    (tmp_path / "x.tar").mkdir()
    assert dataset_root(config, str(tmp_path)) == str(tmp_path / "x.tar")


# ------------------------------------------------------------------------------------------------- compressed


def scratch(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("hssl-scratch-*/*.tar*"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(tar(FILES.items()))[:-9], "is damaged or cut off"),
        (gzip.compress(tar(FILES.items()))[:-4] + b"abcd", "is damaged or cut off"),
        (gzip.compress(tar(FILES.items())) + b"more", "is damaged or cut off"),
        (b"no gzip", "is damaged or cut off"),
        (b"", "is no whole and plain tar"),
        (gzip.compress(bytes(64 << 20)), "grows more than 100 times when decompressed"),
        (gzip.compress(tar([("../outside", b"x")])), "'../outside' leads out of it"),
    ],
    ids=["cut off", "checksum", "trailing", "no gzip", "empty", "bomb", "traversal"],
)
def test_compressed_archives_that_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    url = put(str(tmp_path / "in"), data, "a.tgz")
    with pytest.raises(ConfigError) as refused:
        files.archive_root(url)
    assert str(refused.value).startswith(url)
    assert reason in str(refused.value)
    assert not [name for name in scratch(tmp_path) if name.endswith(".partial")]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.tgz"]


USE = """
import sys, time
from hssl_dist import files
print(files.read(sys.argv[1] + "!/T/a").decode(), flush=True)
sys.stdin.read()
"""


def use(url: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that reads the archive and then waits for the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", USE, url],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "content\n"
    return process


def test_the_last_process_removes_the_scratch_file_and_the_next_what_a_killed_one_left(
    tmp_path: Path,
) -> None:
    url = put(str(tmp_path / "in"), tar([("T/a", b"content")], compression="gz"), "a.tar.gz")
    other = put(str(tmp_path / "in"), tar([("T/a", b"content"), ("T/b", b"")], compression="gz"), "b.tgz")
    first, second = use(url, tmp_path), use(url, tmp_path)
    assert len(scratch(tmp_path)) == 1
    first.communicate(timeout=20)
    assert len(scratch(tmp_path)) == 1
    assert oct((next(tmp_path.glob("hssl-scratch-*"))).stat().st_mode & 0o777) == "0o700"
    second.communicate(timeout=20)
    assert scratch(tmp_path) == []

    killed = use(url, tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (left,) = scratch(tmp_path)
    third = use(other, tmp_path)
    assert left not in scratch(tmp_path)
    assert len(scratch(tmp_path)) == 1
    third.communicate(timeout=20)
    assert scratch(tmp_path) == []


def test_the_decathlons_layout(tmp_path: Path) -> None:
    """`discover` sees the same cases in an archive as in the folder it was made of."""
    folder = tmp_path / "in" / "Task99_Toy"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for number in range(3):
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"toy_{number}.nii.gz").write_bytes(b"x")
    names = ", ".join(
        f'{{"image": "./imagesTr/{hidden}toy_{number}.nii.gz", "label": "./labelsTr/toy_{number}.nii.gz"}}'
        for number in range(3)
        for hidden in ("", "._")
    )
    (folder / "dataset.json").write_text(
        f'{{"modality": {{"0": "MRI"}}, "labels": {{"0": "none", "1": "a"}}, "training": [{names}]}}'
    )
    folder_tar(folder, tmp_path / "in" / "Task99_Toy.tar", hidden=True)
    configs = [
        DatasetConfig(name="toy", layout="msd", source=source, group="g")
        for source in ("Task99_Toy", "Task99_Toy.tar")
    ]
    plain, packed = (discover(config, str(tmp_path / "in")) for config in configs)
    assert len(plain.cases) == 3
    roots = [dataset_root(config, str(tmp_path / "in")) for config in configs]
    for one, other in zip(plain.cases, packed.cases, strict=True):
        assert [files.relative(url, roots[0]) for url in one.images] == [
            files.relative(url, roots[1]) for url in other.images
        ]
        assert (one.id, one.patient, one.split) == (other.id, other.patient, other.split)
