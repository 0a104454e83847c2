"""From a source file to a prepared volume and back: pure functions on `Volume`. Sole importer of
nibabel and SimpleITK.

volume = load_case(case, classes, max_voxels)      # read, check, orient
survey = survey_case(case.id, volume)              # ... of every case, then
recipe = resolve_recipe(dataset, classes, modalities, surveys, storage)
stored, intensities = prepare(volume, recipe)      # crop, normalise, resample
prediction_xyz = restore_scores(slabs, stored.geometry)   # back on the source's grid
"""

from hssl_dist.imaging.label_maps import label_map
from hssl_dist.imaging.loading import load_case
from hssl_dist.imaging.nifti import write_nifti
from hssl_dist.imaging.preparing import prepare
from hssl_dist.imaging.recipe import CaseSurvey, ChannelRecipe, ChannelSurvey, Recipe, resolve_recipe
from hssl_dist.imaging.restoring import restore_scores
from hssl_dist.imaging.source import declared_voxels
from hssl_dist.imaging.survey import foreground_samples, survey_case
from hssl_dist.imaging.unit import unit_doubts

__all__ = [
    "CaseSurvey",
    "ChannelRecipe",
    "ChannelSurvey",
    "Recipe",
    "declared_voxels",
    "foreground_samples",
    "label_map",
    "load_case",
    "prepare",
    "resolve_recipe",
    "restore_scores",
    "survey_case",
    "unit_doubts",
    "write_nifti",
]
