"""Config of `hssl predict`: a fine-tuned model and images in, label maps out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from hssl_dist import files
from hssl_dist.config.finetune import ModelUri
from hssl_dist.config.parts import JobConfig, RayConfig, Runner, TrackingConfig, Url
from hssl_dist.config.preprocess import Endpoint

Axis = Literal["z", "y", "x"]


def _unlisted(value: Any) -> Any:
    """A flag's `true` comes as a list of one, since the flag may be a list."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], bool):
        return value[0]
    return value


def _check_axes(flips: bool | tuple[Axis, ...]) -> bool | tuple[Axis, ...]:
    if isinstance(flips, tuple) and len(set(flips)) != len(flips):
        raise ValueError(f"{flips} names an axis twice; name each once")
    return flips


Flips = Annotated[bool | tuple[Axis, ...], BeforeValidator(_unlisted), AfterValidator(_check_axes)]


class PredictConfig(JobConfig):
    """Predict label maps of images, each on its source file's own grid."""

    model: ModelUri
    """`models:/name@alias`, `models:/name/version`, `runs:/id`, or a model's folder."""
    input: Url
    """A file, a folder of images or a challenge (its imagesTs), as a path, a URL or a tar archive."""
    output: Url = Field(default="hssl/predictions", validate_default=True)
    """Folder or URL for the label maps."""
    layout: Literal["auto", "folder", "nnunet"] = "auto"
    """Whether names that end in four digits are channels of one case (`nnunet`) or cases (`folder`)."""
    anonymous: bool = False
    """Read a public `s3://` input unsigned."""
    endpoint: Endpoint | None = None
    """Server of an `s3://` input, https://host[:port]; the environment's if not given."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows."""
    flips: Flips = False
    """Average over mirror images, along all axes or those named: 2^axes times the work."""
    windows_per_batch: PositiveInt | None = None
    """Windows that go through the network at once; 4 on a GPU and 1 on a CPU if not given."""
    max_voxels: PositiveInt = 1 << 30
    """Largest volume accepted, in voxels of the header; larger ones fail unread."""
    tracking: TrackingConfig = TrackingConfig()
    runner: Runner = "inline"
    """`inline`: this process, one case after the other; `ray`: tasks on a Ray cluster, with its GPUs."""
    ray: RayConfig = RayConfig()
    threads: PositiveInt | None = None
    """CPU threads; torch's choice if not given, one for each task on Ray."""

    @model_validator(mode="after")
    def _access_suits_the_input(self) -> Self:
        files.with_access(self.input, self.anonymous, self.endpoint)
        return self

    @property
    def source(self) -> str:
        """The input's URL, with how it is to be accessed."""
        return files.with_access(self.input, self.anonymous, self.endpoint)

    @property
    def flipped_axes(self) -> tuple[int, ...]:
        """0, 1, 2 for z, y, x."""
        names = ("z", "y", "x")
        if isinstance(self.flips, bool):
            return (0, 1, 2) if self.flips else ()
        return tuple(sorted(names.index(name) for name in self.flips))
