"""Task and group levels: the sum over ranks may be known, and classes are counted on the device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hssl_dist.losses.hierarchy import classification

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 0, 0, 2, 2, 3])


@pytest.mark.parametrize("total_rows", [None, 6])
def test_it_is_the_mean_cross_entropy(total_rows: int | None) -> None:
    found = classification(LOGITS, TARGETS, total_rows=total_rows)
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, TARGETS))


def test_balanced_it_is_the_mean_over_classes_of_their_means() -> None:
    costs = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    expected = torch.stack([costs[k == TARGETS].mean() for k in (0, 2, 3)]).mean()
    torch.testing.assert_close(classification(LOGITS, TARGETS, balanced=True), expected)


def test_rows_of_other_ranks_count() -> None:
    torch.testing.assert_close(
        classification(LOGITS, TARGETS, total_rows=12), F.cross_entropy(LOGITS, TARGETS) / 2
    )
