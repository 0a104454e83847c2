import gc

import torch

from hssl_dist.sampling.buffers import Buffers


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def test_memory_is_used_again_once_nobody_holds_it():
    buffers = Buffers((2, 3), kept=4)
    first = buffers.take()
    assert first.shape == (2, 3)
    assert first.dtype == torch.int16
    place = address(first)

    second = buffers.take()
    assert address(second) != place, "the first is held"
    del first
    gc.collect()
    assert address(buffers.take()) == place


def test_every_kind_of_view_holds_the_memory():
    for view in (
        lambda tensor: tensor[1:, None],
        lambda tensor: tensor.view(torch.float16),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[1],
        lambda tensor: torch.from_numpy(tensor.numpy()[1]),
        lambda tensor: memoryview(tensor.numpy()),
    ):
        buffers = Buffers((2, 3), kept=1)
        tensor = buffers.take()
        place, held = address(tensor), view(tensor)
        del tensor
        gc.collect()
        other = buffers.take()
        assert address(other) != place
        del held, other


def test_no_more_is_kept_than_asked_for():
    buffers = Buffers((4,), kept=2)
    tensors = [buffers.take() for _ in range(5)]
    places = {address(tensor) for tensor in tensors}
    assert len(places) == 5
    tensors.clear()
    gc.collect()
    assert len(buffers._free) == 2
