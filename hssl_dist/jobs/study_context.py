"""What a study's outputs say beyond its cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.report.study import Cases, Curve, EmbeddingMap
from hssl_dist.segmentation.study import Questions
from hssl_dist.segmentation.study_pairs import CellKey


@dataclass(frozen=True, slots=True)
class StudyContext:
    """Questions, settings, texts and pictures of a study.

    `titles` are what arms are called on the page (their own names without one), and `arms` has what each of
    them is; `planned` are the cells the study should have (None: all arms crossed with all subsets and
    seeds). `selection` says what was chosen on whom,
    and how often the reporting split was looked at. `health` has metric histories by pretraining run.
    `made_of` is a hash of all that the outputs are made of; empty where some of it was left out.
    """

    title: str
    questions: Questions
    config_hash: str
    intervals: IntervalConfig = field(default_factory=IntervalConfig)
    titles: Mapping[str, str] = field(default_factory=dict)
    arms: Sequence[tuple[str, str]] = ()
    planned: Collection[CellKey] | None = None
    selection: Sequence[tuple[str, str]] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Cases] = ()
    embeddings: Sequence[EmbeddingMap] = ()
    health: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    made_of: str = ""
