import numpy as np
import torch

from hssl_dist.augment.seeds import normals, sample_seed, stream, uniforms

CPU = torch.device("cpu")


def test_the_seed_of_a_sample_is_the_same_for_ever():
    assert sample_seed(0, 0, 0) == 2602329642018764132
    assert sample_seed(-3, 100, 7) == 2336658472581936743


def test_seeds_of_different_samples_differ():
    seeds = {sample_seed(seed, step, index) for seed in (0, 1) for step in range(20) for index in range(20)}

    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_purposes_are_separate_streams():
    assert stream(5, "map").random() != stream(5, "noise").random()
    assert stream(5, "map").random() == stream(5, "map").random()


def test_rows_do_not_depend_on_the_other_rows():
    seeds = [3, 1, 4, 1, 5]

    together = uniforms(seeds, "test", 4)
    apart = np.concatenate([uniforms([seed], "test", 4) for seed in seeds])

    np.testing.assert_array_equal(together, apart)
    np.testing.assert_array_equal(together[1], together[3])
    assert ((together >= 0) & (together < 1)).all()


def test_noise_is_standard_normal_and_each_seeds_own():
    together = normals([3, 1, 4], "test", (20, 30, 40), CPU)
    apart = torch.cat([normals([seed], "test", (20, 30, 40), CPU) for seed in (3, 1, 4)])

    assert torch.equal(together, apart)
    assert together.mean().abs() < 0.02
    assert abs(together.std() - 1.0) < 0.02
    assert torch.corrcoef(together.flatten(1))[0, 1].abs() < 0.05
