"""python -m tests.nnunet_side FOLDER

nnU-Net itself, from raw images to a label: it plans and preprocesses a dataset of phantoms, fine-tunes a
pretrained export for two steps, and segments with a fine-tuned one. Needs all of nnunetv2's dependencies. Its
last line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

DATASET = "Dataset004_Blobs"
PATCH = (14, 34, 30)
"""The whole image: nnU-Net's windows lie elsewhere than ours, and one window has one place."""


def main(folder: Path) -> None:
    """All of it, below an empty folder."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    torch.set_num_threads(1)
    write_raw(folder / "raw" / DATASET)
    told = {**fine_tune(folder), **segment(folder)}
    print(json.dumps(told))  # noqa: T201


def write_raw(root: Path) -> None:
    """Six cases with a bright and a dark box."""
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        label = np.zeros((30, 34, 14), np.uint8)
        label[5:15, 5:15, 3:9], label[18:26, 18:28, 4:10] = 1, 2
        image = 100 + 50.0 * (label == 1) - 40 * (label == 2) + rng.normal(0, 10, label.shape)
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        image_path = root / "imagesTr" / f"b{number}_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), image_path)
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labelsTr" / f"b{number}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "bright": 1, "dark": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))


def export(folder: Path, name: str, model: Any, *words: str) -> Path:
    """A model exported by the command line."""
    from hssl_dist import cli
    from hssl_dist.networks.weights import save_model

    card, state = model
    save_model(folder / f"{name}-model", state, card)
    output = folder / name
    flags = ("--model", str(folder / f"{name}-model"), "--to", "nnunet", "--output", str(output))
    assert cli.main(["export", *flags, *words]) == 0
    return output


def fine_tune(folder: Path) -> dict[str, Any]:
    """nnU-Net's planner, preprocessing, trainer and `-pretrained_weights`, as `nnUNetv2_train` calls them."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from tests.models import NETWORKS, pretrained_model

    extract_fingerprints([4], num_processes=1)
    plan_experiments([4])
    preprocess([4], configurations=["3d_fullres"], num_processes=[1])
    prepared = folder / "preprocessed" / DATASET
    model = pretrained_model(NETWORKS["anisotropic"])
    output = export(folder, "pretrained", model, "--plans", str(prepared / "nnUNetPlans.json"))
    (prepared / "hsslPlans.json").write_bytes((output / "plans.json").read_bytes())
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    cpu = torch.device("cpu")
    trainer = get_trainer_from_args("4", "3d_fullres_hssl", 0, "nnUNetTrainer", "hsslPlans", device=cpu)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.initialize()
    maybe_load_checkpoint(trainer, False, False, str(output / "fold_all" / "checkpoint_final.pth"))
    loaded, state = trainer.network.state_dict(), model[1]
    stem = torch.equal(loaded["encoder.stem.convs.0.conv.weight"], state["encoder.stem.conv.weight"])
    last = torch.equal(loaded["decoder.transpconvs.2.weight"], state["decoder.upsampling.2.weight"])
    trainer.run_training()
    trained = list((folder / "results" / DATASET).rglob("checkpoint_final.pth"))
    return {"loaded": stem and last, "trained": len(trained)}


def segment(folder: Path) -> dict[str, Any]:
    """nnU-Net's predictor on an exported model's folder, and our own network on the same image."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from hssl_dist.imaging import load_case
    from hssl_dist.interchange.portable import portable
    from hssl_dist.records import Case
    from tests.models import MR, NETWORKS, recipe, segmentation_model

    card, state = segmentation_model(
        NETWORKS["two stages"], recipe=recipe(MR), modalities=("mr",), patch_size=PATCH
    )
    weight = torch.randn(state["heads.0.weight"].shape, generator=torch.Generator().manual_seed(1))
    state |= {"heads.0.weight": weight, "heads.0.bias": torch.zeros_like(state["heads.0.bias"])}
    # Features that follow the image, so that the labels do.
    state |= {name: torch.ones_like(tensor) for name, tensor in state.items() if name.endswith("norm.weight")}
    state |= {name: torch.zeros_like(tensor) for name, tensor in state.items() if name.endswith("norm.bias")}
    output = export(folder, "fine-tuned", (card, state))
    cpu = torch.device("cpu")
    predictor = nnUNetPredictor(
        use_mirroring=False, device=cpu, perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(output), ("all",), "checkpoint_final.pth")
    path = str(folder / "raw" / DATASET / "imagesTr" / "b0_0000.nii.gz")
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images([path])
    label = predictor.predict_single_npy_array(image, properties, None, None, False)
    planned = predictor.configuration_manager
    prepared, *_ = planned.preprocessor_class(verbose=False).run_case_npy(
        image, None, properties, predictor.plans_manager, planned, predictor.dataset_json
    )
    volume = load_case(Case("d", "b0", "b0", (path,), None, ("mr",)), {}, 1 << 20)
    whole = (volume.image - volume.image.mean()) / volume.image.std()  # nnU-Net's z-score, not ours
    with torch.inference_mode():
        theirs = predictor.network.eval()(torch.as_tensor(prepared)[None])[0]
        ours = portable(card, state).network.eval()(torch.from_numpy(whole)[None])[0]
    return {
        "labels": len(np.unique(label)),
        "difference": float((ours - theirs).abs().max() / ours.abs().max()),
        # nnU-Net sums windows in half precision, which decides where two classes are close.
        "agreement": float((ours.argmax(0).numpy() == label).mean()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
