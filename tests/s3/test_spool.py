"""A spool on real object storage: conditional puts, takeover, order."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from hssl_dist import files
from hssl_dist.errors import BusyError
from hssl_dist.files.ownership import Ownership
from hssl_dist.tracking.operations import Metrics, points
from hssl_dist.tracking.spool import Entry, Spool, waiting
from tests.faulty_proxy import Close, FaultyProxy
from tests.s3.server import S3Server


def test_a_file_that_is_there_is_not_created_again(s3_bucket: str) -> None:
    url = files.join(s3_bucket, "one")
    assert files.create(url, b"first")
    assert not files.create(url, b"second")
    assert files.read(url) == b"first"


def test_one_of_many_that_claim_a_spool_at_once_owns_it(s3_bucket: str) -> None:
    owners = [Ownership(files.join(s3_bucket, "claimed", "tracking"), "sync") for _ in range(6)]
    together = threading.Barrier(len(owners), timeout=60)
    owning: list[Ownership] = []

    def attempt(owner: Ownership) -> None:
        together.wait()
        with suppress(BusyError):
            owner.claim()
            owning.append(owner)

    threads = [threading.Thread(target=attempt, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(owning) == 1
    owning[0].check()
    owning[0].release()


def test_who_gets_no_answer_to_its_claim_owns_what_it_claimed(
    s3_bucket: str, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put is tried again and finds its own record, which must not be taken for another's."""
    folder = files.join(s3_bucket, "lost", "tracking")
    with FaultyProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        rule = proxy.inject(Close(arrives=True), times=1, method="PUT", path="owner-00000001.json")
        owner, other = Ownership(folder, "job"), Ownership(folder, "sync")
        owner.claim()
        assert rule.hits == 1
        owner.check()
        with pytest.raises(BusyError):
            other.claim()
        owner.release()
        other.claim()
        other.release()


def test_a_spool_is_owned_by_one_and_taken_over_by_the_same_run(s3_bucket: str) -> None:
    folder = files.join(s3_bucket, "runs", "a")
    spool = Spool(folder, "http://mlflow:5000")
    older, newer, sync = (Ownership(spool.folder, kind) for kind in ("run", "run", "sync"))
    older.claim()
    spool.append([Entry(Metrics(run="r", points=points(1, {"loss": 1.0}, 1)))])
    with pytest.raises(BusyError):
        sync.claim()
    newer.claim()
    with pytest.raises(BusyError, match="was taken over"):
        older.check()
    newer.check()
    spool.append([Entry(Metrics(run="r", points=points(2, {"loss": 0.5}, 2)))])
    newer.release()
    sync.claim()
    assert waiting(s3_bucket) == [folder]
    assert [spool.read(number)[0].operation.points[0].step for number in spool.numbers()] == [1, 2]
    for number in spool.numbers():
        spool.remove(number)
    sync.release()
    assert waiting(s3_bucket) == []
