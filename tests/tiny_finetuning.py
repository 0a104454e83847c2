"""A place for fine-tuning in seconds: blobs in a store, a pretrained network in a registry."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.console import Console
from hssl_dist.jobs import evaluate, finetune
from hssl_dist.networks.pretraining import build_pretraining_network
from hssl_dist.networks.weights import ModelCard, save_model
from hssl_dist.records import Lineage, Outcome
from hssl_dist.tracking import start_run
from tests.tiny_network import NETWORK
from tests.tiny_store import write_blobs

LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0")
TRAINING = {"steps": 4, "patch_size": (4, 8, 8), "validate_every": 2, "log_every_steps": 2}


class Place:
    """A folder with a store of blobs, a registry with a pretrained network, and the jobs run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = str(folder / "store")
        self.tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        self.manifest = write_blobs(self.store)
        torch.manual_seed(1)
        network = build_pretraining_network(NETWORK, ObjectiveConfig(), tasks=2, groups=2)
        self.pretrained = network.state_dict()
        card = ModelCard(
            kind="pretrained", network=NETWORK.model_dump(mode="json"), in_channels=1, lineage=LINEAGE
        )
        save_model(folder / "pretrained", self.pretrained, card)
        with start_run(self.tracking, "pretrain", {}, {}, LINEAGE) as run:
            run.register(str(folder / "pretrained"), "hssl-unet", LINEAGE)
            self.pretraining_run = run.id

    def config(self, name: str, **changes: Any) -> FinetuneConfig:
        values: dict[str, Any] = {
            "name": name,
            "dataset": "blobs",
            "store": {"url": self.store},
            "runs": str(self.folder / "runs"),
            "tracking": self.tracking,
            "network": NETWORK,
            "split": {"test": 0.25, "validation": 0.25},
            "training": TRAINING,
            "threads": 1,
        }
        return FinetuneConfig.model_validate(values | changes)

    def finetune(self, name: str, **changes: Any) -> Outcome:
        return finetune.run(self.config(name, **changes), Console(io.StringIO()))

    def evaluate(self, model: str, **changes: Any) -> Outcome:
        values: dict[str, Any] = {
            "model": model,
            "store": {"url": self.store},
            "output": str(self.folder / "evaluation"),
            "overwrite": True,
            "runs": str(self.folder / "runs"),
            "tracking": self.tracking,
            "threads": 1,
        }
        return evaluate.run(EvaluateConfig.model_validate(values | changes), Console(io.StringIO()))
