"""Plain weights: `model.safetensors`, `model.json` and how to load them without any job.

The folder is one of our models (`networks.weights`), so the verbs take it too.
"""

from __future__ import annotations

from pathlib import Path

from hssl_dist.interchange.portable import Portable
from hssl_dist.interchange.preparation import Preparation
from hssl_dist.interchange.verification import Verification, Written, compare, load_strictly, versions
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.weights import load_model, network_config, save_model

_README = """\
# {title}

`model.safetensors` has the weights, `model.json` the card: the network's config, where it comes from, and
what the label values mean. Axes are z y x; sizes must be multiples of {reduction}. In this folder:

```python
{code}
```

Without hssl_dist the weights are tensors by name, and the card is JSON:

```python
import json
from pathlib import Path

from safetensors.torch import load_file

weights = load_file("model.safetensors")
card = json.loads(Path("model.json").read_text())["card"]
```

`export.json` accounts for every parameter of {uri}.
"""

_SEGMENTATION = """\
from pathlib import Path

import torch

from hssl_dist.networks.weights import build_from_card, load_model, load_state

card, weights = load_model(Path("."))
network = build_from_card(card).eval()
load_state(network, weights)
with torch.inference_mode():
    logits = network(torch.zeros({shape}))  # batch, class, z, y, x"""

_PRETRAINED = """\
from pathlib import Path

import torch

from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.transfer import transfer
from hssl_dist.networks.weights import load_model, network_config

card, weights = load_model(Path("."))
network = build_segmentation_network(network_config(card), card.in_channels, classes=3).eval()
print(transfer(network, weights, ("encoder", "decoder")).summary)  # the heads are new
with torch.inference_mode():
    features = network.encoder(torch.zeros({shape}))  # of every stage, finest first"""


def write_plain(portable: Portable, preparation: Preparation, uri: str, folder: Path) -> Written:
    """Write the folder. `preparation` goes into the card as far as it is known."""
    recipe = preparation.recipe
    card = portable.card.model_copy(
        update={
            "in_channels": portable.in_channels,
            "recipe": recipe.model_dump(mode="json") if recipe else None,
            "modalities": preparation.modalities,
            "patch_size": preparation.patch_size,
        }
    )
    save_model(folder, portable.state, card)
    z, y, x = portable.config.reduction
    code = _SEGMENTATION if portable.has_heads else _PRETRAINED
    text = _README.format(
        title=f"A {card.kind} U-Net of hssl_dist",
        code=code.format(shape=f"1, {portable.in_channels}, {2 * z}, {2 * y}, {2 * x}"),
        reduction=f"{z} x {y} x {x} voxels",
        uri=uri,
    )
    (folder / "README.md").write_text(text)
    return Written(names={name: (name,) for name in portable.state}, new={}, assumed={})


def verify_plain(portable: Portable, folder: Path) -> Verification:
    """Read the folder back, build its network and compare. Raises CheckpointError."""
    card, weights = load_model(folder)
    network = build_segmentation_network(network_config(card), card.in_channels, portable.classes)
    load_strictly(network, weights, portable, "heads")
    return compare(portable, network, versions("safetensors"), deep_supervision=True)
