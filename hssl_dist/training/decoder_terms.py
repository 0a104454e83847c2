"""The decoder stage's terms, on the first view as it is and the second one corrupted.

    dense        correspondence of voxels of the two views that show the same place
    restoration  squared error of the restored voxels, each view at its own mean and deviation

Without dense correspondence only the corrupted views go through the network; without restoration nothing is
corrupted. Dense correspondence couples the samples only if the batch's other volumes give negatives too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hssl_dist.augment import mask_blocks, matching_points, sample_points, two_views
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig
from hssl_dist.losses.dense import contrasted_rows, dense_contrast, dense_contrast_across
from hssl_dist.losses.restoration import restoration, restoration_target, restored_voxels
from hssl_dist.networks.pretraining import PretrainingOutput
from hssl_dist.training.objective import Kept, Prepared, Samples, StageObjective, Terms


def _weights(objective: ObjectiveConfig) -> Mapping[str, float]:
    return {"dense": objective.dense_weight, "restoration": objective.restoration_weight}


def _prepare(samples: Samples, config: PretrainConfig) -> Prepared:
    objective, patch_size = config.objective, config.sampling.patch_size
    views = two_views(samples.regions.values(), samples.seeds, patch_size, config.views)
    images = views.second
    counts: dict[str, Tensor] = {}
    geometry: dict[str, Tensor] = {}
    if objective.restoration_weight:
        images, mask = mask_blocks(
            views.second, samples.seeds, objective.mask_fraction, objective.restoration_noise
        )
        if objective.restored_voxels == "all":
            mask = torch.ones_like(mask)
        geometry |= {"target": restoration_target(views.second), "mask": mask}
        counts["restoration"] = restored_voxels(views.second, mask)
    if objective.dense_weight:
        images = torch.cat((views.first, images))
        points = matching_points(views, patch_size, objective.dense_points, samples.seeds)
        geometry |= {
            "first": points.first,
            "second": points.second,
            "place": points.region,
            "valid": points.valid,
        }
        if not objective.dense_across_batch:
            counts["dense"] = contrasted_rows(points.region, points.valid, objective.dense_distance)
    return Prepared(images, counts, geometry)


def _keeps(objective: ObjectiveConfig) -> bool:
    return objective.dense_weight > 0 and objective.dense_across_batch


def _points(
    output: PretrainingOutput, prepared: Prepared, patch_size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """The vectors at the matching points of both views."""
    assert output.dense is not None  # the term has a weight
    first, second = output.dense.chunk(2)
    geometry = prepared.geometry
    return (
        sample_points(first, geometry["first"], patch_size),
        sample_points(second, geometry["second"], patch_size),
    )


def _kept(output: PretrainingOutput, prepared: Prepared, config: PretrainConfig) -> Kept:
    if not _keeps(config.objective):
        return {}
    place, valid = (prepared.geometry[name][None] for name in ("place", "valid"))
    points = torch.stack(_points(output, prepared, config.sampling.patch_size))
    return {"points": (points,), "place": (place,), "valid": (valid,)}


def _coupled(
    kept: Kept,
    samples: Samples,
    temperature: Tensor,  # noqa: ARG001  (of the image level: the stages share one signature)
    objective: ObjectiveConfig,
) -> Terms:
    if not kept:
        return {}
    (points,), (place,), (valid,) = kept["points"], kept["place"], kept["valid"]
    dense = dense_contrast_across(
        points[0],
        points[1],
        place[0],
        valid[0],
        samples.numbers,
        samples.relatives,
        objective.dense_temperature,
        objective.dense_distance,
        counts=samples.counts,
    )
    return {"dense": dense}


def _separate(
    output: PretrainingOutput, prepared: Prepared, counts: Mapping[str, Tensor], objective: ObjectiveConfig
) -> Terms:
    terms, geometry = {}, prepared.geometry
    if "dense" in counts:
        size = prepared.images.shape
        terms["dense"] = dense_contrast(
            *_points(output, prepared, (size[2], size[3], size[4])),
            geometry["place"],
            geometry["valid"],
            objective.dense_temperature,
            objective.dense_distance,
            counted=counts["dense"],
        )
    if output.restored is not None:
        target, mask = geometry["target"], geometry["mask"]
        restored = output.restored[-target.shape[0] :]
        terms["restoration"] = restoration(
            restored, target.to(restored.dtype), mask, counted=counts["restoration"]
        )
    return terms


DECODER = StageObjective(_weights, _prepare, _keeps, _kept, _coupled, _separate)
