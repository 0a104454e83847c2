"""From a source file to a prepared volume and back: pure functions on `Volume`. Sole importer of nibabel."""

from hssl_dist.imaging.recipe import CaseSurvey, ChannelRecipe, ChannelSurvey, Recipe, resolve_recipe

__all__ = ["CaseSurvey", "ChannelRecipe", "ChannelSurvey", "Recipe", "resolve_recipe"]
