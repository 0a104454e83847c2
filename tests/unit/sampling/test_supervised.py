import collections

import numpy as np
import pytest
import torch

from hssl_dist.augment import sample_seed
from hssl_dist.errors import ConfigError, CorruptError, StoreError
from hssl_dist.records import Region
from hssl_dist.sampling import SupervisedLoader

PATCH = (2, 6, 6)


def loader(records, reader, batch_size=3, foreground=0.5, seed=0):
    return SupervisedLoader(records, reader, PATCH, batch_size, foreground, seed)


def found(record, image, reader):
    """Where in the volume a patch lies."""
    volume = reader.image(record)[0]
    places = [
        start
        for start in np.ndindex(*(n - p + 1 for n, p in zip(record.shape, PATCH, strict=True)))
        if volume[start] == image[0, 0, 0]
    ]
    assert len(places) == 1
    return places[0]


def test_patches_are_cut_from_image_and_label_alike(record, memory_reader):
    case, reader = record("a", channels=3, shape=(5, 9, 8)), memory_reader()

    batches = list(loader([case], reader).batches(1, 4))

    assert [batch.step for batch in batches] == [1, 2, 3]
    for batch in batches:
        assert batch.image.shape == (3, 3, *PATCH)
        assert batch.label.shape == (3, *PATCH)
        assert batch.label.dtype == torch.uint8
        assert batch.seeds == tuple(sample_seed(0, batch.step, index) for index in range(3))
        for image, label in zip(batch.image.numpy(), batch.label.numpy(), strict=True):
            start = found(case, image[0], reader)
            for channel in range(3):
                region = Region("heart", "a", channel, start, PATCH)
                np.testing.assert_array_equal(image[channel], reader.region(case, region))
            np.testing.assert_array_equal(label, reader.label_region(case, region))


def test_small_volumes_are_padded(record, memory_reader):
    case = record("a", shape=(2, 4, 9))

    (batch,) = loader([case], memory_reader()).batches(0, 1)

    assert batch.image[:, :, :, [0, 5]].eq(-7).all()
    assert batch.label[:, :, [0, 5]].eq(0).all()
    assert not batch.image[:, :, :, 1:5].eq(-7).any()


def test_patients_are_drawn_evenly_whatever_their_number_of_cases(record, memory_reader):
    shapes = {f"many{n}": (2, 6, 6) for n in range(4)} | {"one": (2, 6, 6)}
    records = [record(name, name[:4], shape=shape) for name, shape in shapes.items()]
    reader = memory_reader()
    whose = {reader.image(case)[0, 0, 0, 0].item(): case.patient for case in records}

    counts = collections.Counter(
        whose[image[0, 0, 0, 0].item()]
        for batch in loader(records, reader, batch_size=10).batches(0, 40)
        for image in batch.image
    )

    assert abs(counts["one"] / 400 - 0.5) < 0.08


def test_foreground_patches_are_balanced_over_classes(record, memory_reader):
    case = record("a", shape=(2, 6, 60), foreground={"1": ((0, 3, 50),) * 9, "2": ((1, 3, 10),)})
    reader = memory_reader()

    places = [
        found(case, image[0].numpy(), reader)[2]
        for batch in loader([case], reader, foreground=1.0, batch_size=20).batches(0, 10)
        for image in batch.image
    ]

    assert set(places) <= {*range(6, 9), *range(46, 49)}
    assert abs(np.mean([place < 20 for place in places]) - 0.5) < 0.1


def test_equal_seeds_give_equal_batches(record, memory_reader):
    records = [record(f"case{n}") for n in range(4)]

    def run(records, seed, start):
        batches = list(loader(records, memory_reader(), seed=seed).batches(start, 6))[-2:]
        return torch.stack([batch.image for batch in batches])

    assert torch.equal(run(records, 3, 0), run(records[::-1], 3, 4))
    assert not torch.equal(run(records, 3, 0), run(records, 4, 0))


def test_an_unreadable_label_is_named(record, memory_reader):
    class Broken(type(memory_reader())):
        def label_region(self, record, region):
            raise self.error

    with pytest.raises(StoreError, match=r"^case 'a' of dataset 'heart' cannot be read: disk on fire$"):
        list(loader([record("a")], Broken()).batches(0, 1))
    with pytest.raises(CorruptError, match=r"^a label is gone$"):
        list(loader([record("a")], Broken(error=CorruptError("a label is gone"))).batches(0, 1))


def test_nothing_to_train_on_is_refused(record, memory_reader):
    with pytest.raises(ConfigError) as error:
        loader([], memory_reader())

    assert str(error.value) == (
        "there is no labelled case to train on; raise labels.fraction or check the split"
    )


def test_unlabelled_cases_are_refused(record, memory_reader):
    with pytest.raises(ConfigError) as error:
        loader([record("a"), record("b", labelled=False)], memory_reader())

    assert str(error.value) == "case 'b' of dataset 'heart' has no label to train on"


def test_differing_channels_are_refused(record, memory_reader):
    with pytest.raises(ConfigError) as error:
        loader([record("a"), record("b", channels=2)], memory_reader())

    assert str(error.value) == (
        "case 'b' has the channels ('mr', 'mr'), 'a' has ('mr',); a network takes one set of channels"
    )
