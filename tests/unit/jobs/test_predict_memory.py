"""What predicting one large case takes: the peak resident set of a process of its own, libraries included."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.preprocess_data import generated_case
from hssl_dist.config.network import NetworkConfig
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.weights import save_model
from tests.tiny_model import LINEAGE, ModelCard, recipe_of

GB = 1_000_000_000
SPACING_MM, TARGET_MM = (1.5, 0.8, 0.8), (1.4, 0.9, 0.9)
NETWORK = NetworkConfig(
    widths=(8, 16, 32),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1),
)
PROGRAM = """
import sys
from pathlib import Path
from hssl_dist import predict
status = predict.main(sys.argv[1:])
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak) * 1024)
sys.exit(status)
"""


def save_network(folder: Path, patch_size: tuple[int, int, int], classes: int = 3) -> str:
    """Residual blocks at work, CT; the background is one of the classes."""
    torch.manual_seed(0)
    network = build_segmentation_network(NETWORK, 1, classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    card = ModelCard(
        kind="segmentation",
        network=NETWORK.model_dump(mode="json"),
        in_channels=1,
        classes={value: f"class {value}" for value in range(1, classes)},
        recipe=recipe_of(("ct",), TARGET_MM).model_dump(mode="json"),
        modalities=("ct",),
        patch_size=patch_size,
        keep_largest="class",
        lineage=LINEAGE,
    )
    folder.mkdir()
    save_model(folder, network.state_dict(), card)
    return str(folder)


def peak_of(model: str, image: str, output: Path) -> int:
    """Peak resident bytes of predicting one file; the label map is checked."""
    words = [
        "--model",
        model,
        "--input",
        image,
        "--output",
        str(output),
        "--overlap",
        "0.25",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--json"],
        capture_output=True, text=True, timeout=1100, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary, peak = done.stdout.splitlines()
    assert json.loads(summary)["predicted"] == 1
    (path,) = output.glob("*.nii.gz")
    found, source = nibabel.load(path), nibabel.load(image)
    assert found.shape == source.shape
    np.testing.assert_array_equal(found.affine, source.affine)
    assert len(np.unique(np.asarray(found.dataobj))) > 2
    return int(peak)


def test_memory_grows_by_the_volume_not_by_its_logits(tmp_path):
    classes = 30
    model = save_network(tmp_path / "model", (16, 64, 64), classes)
    peaks, voxels = [], []
    for depth in (32, 112):
        shape = (depth, 128, 128)
        case = generated_case(tmp_path / "scans", f"d{depth}", shape, SPACING_MM)
        peaks.append(peak_of(model, case.images[0], tmp_path / f"out{depth}"))
        voxels.append(math.prod(shape))
    logits_bytes = 4 * classes * (voxels[1] - voxels[0])
    assert peaks[1] - peaks[0] < logits_bytes / 2


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_large_ct_takes_less_than_4_gb(tmp_path):
    """512 x 512 x 300 voxels, resampled, windows of 64 x 160 x 160, three classes."""
    folder = Path(tempfile.gettempdir(), "hssl-generated")
    case = generated_case(folder, "300x512x512", (300, 512, 512), SPACING_MM)
    peak = peak_of(save_network(tmp_path / "model", (64, 160, 160)), case.images[0], tmp_path / "out")
    assert peak < 4 * GB
    print(f"peak {peak / GB:.2f} GB")  # noqa: T201
