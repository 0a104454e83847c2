"""Stores as hypothesis makes them up: datasets with few patients, who share scans and have several cases."""

from __future__ import annotations

from hypothesis import strategies as st

from hssl_dist.config.parts import SplitConfig
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.records import CaseRecord, Manifest
from tests.case_records import header, record

seeds = st.integers(-3, 2**40)
steps = st.integers(0, 10**7)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
names = st.text(min_size=1, max_size=6)


@st.composite
def cases(draw: st.DrawFn, dataset: str, name: str, channels: int = 0) -> CaseRecord:
    """A case of one of four patients per dataset, with at most two of six scans, and maybe some tissue."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)))
    voxels = st.tuples(*(st.integers(0, side - 1) for side in shape))
    kinds = draw(st.sets(st.sampled_from(["any", "1", "2"])))
    modalities = ("mr",) * (channels or draw(st.integers(1, 2)))
    return record(
        name,
        dataset=dataset,
        patient=f"p{draw(st.integers(0, 3))}",
        task=draw(st.sampled_from([dataset, "heart"])),
        group=draw(st.sampled_from(["chest", "head"])),
        labelled=draw(st.booleans()),
        modalities=modalities,
        intensities=record().intensities * len(modalities),
        geometry={"shape": shape},
        foreground={kind: tuple(draw(st.lists(voxels, max_size=3))) for kind in sorted(kinds)},
        fingerprints=tuple(draw(st.lists(st.sampled_from("stuvwx"), max_size=2))),
    )


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Manifest]:
    """One to three datasets by name, of one to eight cases each."""
    chosen = draw(st.lists(st.sampled_from(["brain", "heart", "lung"]), min_size=1, unique=True))
    return {name: manifest([draw(cases(name, f"{name}{n}")) for n in range(draw(counts))]) for name in chosen}


counts = st.integers(1, 8)


def manifest(records: list[CaseRecord]) -> Manifest:
    """A manifest in memory, in the order given."""
    return Manifest(header(dataset=records[0].dataset), tuple(records), "sha")


@st.composite
def splits(draw: st.DrawFn) -> SplitConfig:
    """Shares that leave something to train on."""
    test = draw(st.integers(0, 6)) / 10
    return SplitConfig(test=test, validation=draw(st.integers(0, 3)) / 10, seed=draw(seeds))


@st.composite
def sampling_configs(draw: st.DrawFn) -> SamplingConfig:
    """Any config that names no dataset."""
    return SamplingConfig(
        patch_size=draw(sizes),
        margin=draw(st.integers(0, 4)) / 4,
        task_exponent=draw(st.integers(0, 4)) / 4,
        block_size=draw(st.integers(1, 6)),
        foreground=draw(st.sampled_from([0.0, 0.5, 1.0])),
        exclude_test=draw(st.none() | splits()),
        prefetch_batches=draw(st.integers(1, 3)),
    )
