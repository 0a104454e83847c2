"""The survey cache: exact, whole or not there."""

from __future__ import annotations

from pathlib import Path

from hssl_dist.imaging import CaseSurvey, ChannelSurvey
from hssl_dist.jobs.surveys import read_surveys, write_surveys


def survey(case_id: str) -> CaseSurvey:
    channel = ChannelSurvey(
        voxels=3, minimum=0.1, maximum=1 / 3, mean=0.2, std=0.1, quantiles=(0.1, 0.2, 1 / 3), fingerprint="ab"
    )
    return CaseSurvey(
        id=case_id, shape=(2, 3, 4), spacing_mm=(1.0, 0.1, 0.7), foreground="label", channels=(channel,)
    )


def test_surveys_come_back_bit_for_bit(tmp_path):
    surveys = {"key b": survey("b"), "key a": survey("a")}
    write_surveys(str(tmp_path), "toy", surveys)
    assert read_surveys(str(tmp_path), "toy") == surveys
    first = Path(tmp_path, "toy/survey.jsonl").read_bytes()
    write_surveys(str(tmp_path), "toy", dict(reversed(surveys.items())))
    assert Path(tmp_path, "toy/survey.jsonl").read_bytes() == first


def test_without_a_whole_cache_there_are_no_surveys(tmp_path):
    assert read_surveys(str(tmp_path), "toy") == {}
    write_surveys(str(tmp_path), "toy", {"key": survey("a")})
    path = Path(tmp_path, "toy/survey.jsonl")
    path.write_bytes(path.read_bytes().replace(b"0.2", b"0.3"))
    assert read_surveys(str(tmp_path), "toy") == {}
