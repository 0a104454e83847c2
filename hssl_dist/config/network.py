"""Config of the network; it travels with every checkpoint, so weights can always be rebuilt."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from hssl_dist.config.parts import Part
from hssl_dist.records import Shape

# Beyond anything that is trained: configs travel with models, and some come from strangers.
_Width = Annotated[int, Field(ge=1, le=65536)]
_Blocks = Annotated[int, Field(ge=1, le=64)]
_Side = Annotated[int, Field(ge=1, le=64)]
_Size = tuple[_Side, _Side, _Side]
_MOST_STAGES = 16


class NetworkConfig(Part):
    """A residual encoder-decoder U-Net; each tuple has one entry per encoder stage, finest first."""

    widths: tuple[_Width, ...] = (16, 32, 64, 128, 128)
    """Feature channels of each stage."""
    strides: tuple[_Size, ...] = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    """Stride z y x with which each stage starts; the first must be (1, 1, 1)."""
    kernels: tuple[_Size, ...] = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    """Kernel size z y x of each stage, odd."""
    encoder_blocks: tuple[_Blocks, ...] = (1, 2, 2, 2, 2)
    """Residual blocks of each encoder stage."""
    decoder_blocks: tuple[_Blocks, ...] = (1, 1, 1, 1)
    """Convolutions of each decoder stage, finest first as in `widths`, one entry fewer."""

    @model_validator(mode="after")
    def _same_depth(self) -> Self:
        depth = len(self.widths)
        for key in ("strides", "kernels", "encoder_blocks"):
            if len(getattr(self, key)) != depth:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries, widths has {depth}; give as many"
                )
        if len(self.decoder_blocks) != depth - 1:
            raise ValueError(f"decoder_blocks has {len(self.decoder_blocks)} entries, give {depth - 1}")
        return self

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if len(self.widths) < 2:
            raise ValueError(f"widths has {len(self.widths)} entries, a U-Net needs at least 2")
        if len(self.widths) > _MOST_STAGES:
            raise ValueError(
                f"widths has {len(self.widths)} entries, a U-Net of more than {_MOST_STAGES} stages "
                "cannot be built"
            )
        if self.strides[0] != (1, 1, 1):
            raise ValueError(
                f"strides start with {self.strides[0]}; the first stage keeps the size, give (1, 1, 1)"
            )
        if even := [kernel for kernel in self.kernels if any(size % 2 == 0 for size in kernel)]:
            raise ValueError(f"kernel {even[0]} has an even size; give odd ones, which keep the image's size")
        return self

    @property
    def reduction(self) -> tuple[int, int, int]:
        """Factor z y x by which the deepest stage is coarser than the input."""
        product = [1, 1, 1]
        for stride in self.strides:
            product = [a * b for a, b in zip(product, stride, strict=True)]
        return product[0], product[1], product[2]

    def misfit(self, patch_size: Shape, key: str) -> str | None:
        """What is wrong with a patch, z y x in voxels, that is called `key`; None if it fits."""
        if not any(size % factor for size, factor in zip(patch_size, self.reduction, strict=True)):
            return None
        return f"{key} {patch_size} is not a multiple of the network's reduction {self.reduction}"
