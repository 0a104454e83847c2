"""What the demo does: the config of each job, small enough for minutes on two cores.

Everything is below one folder: phantoms, store, runs, MLflow's database, scores and report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hssl_dist import files
from hssl_dist.config.demo import DemoConfig
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.finetune import FinetuneConfig, LabelsConfig, SupervisedConfig
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import CacheConfig, RayConfig, SplitConfig, StoreConfig, TrackingConfig
from hssl_dist.config.preprocess import DatasetConfig, PreprocessConfig
from hssl_dist.config.pretrain import (
    CheckpointConfig,
    ObjectiveConfig,
    PretrainConfig,
    SamplingConfig,
    StageConfig,
)
from hssl_dist.errors import ConfigError

PATIENTS = 20
DATASET = "phantom-heart"
PATCH_SIZE = (8, 48, 48)
SPLIT = SplitConfig(test=0.3, validation=0.1)
LABELS = LabelsConfig(fraction=0.25)
NETWORK = NetworkConfig(
    widths=(8, 16, 32, 64),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The demo's jobs below `root`, an absolute local folder."""

    root: Path
    seed: int
    workers: int

    @classmethod
    def of(cls, config: DemoConfig) -> Plan:
        """The plan of a config. Raises ConfigError if its output is not a local folder."""
        if not files.is_local(config.output):
            raise ConfigError(
                f"output {config.output!r} is not a local folder; the demo writes its phantoms and its "
                "database there, so choose a path on this machine"
            )
        return cls(Path(config.output), config.seed, config.workers)

    @property
    def store(self) -> StoreConfig:
        """Where the phantoms are stored."""
        return StoreConfig(url=str(self.root / "store"))

    @property
    def cache(self) -> CacheConfig:
        """Decoded phantoms."""
        return CacheConfig(folder=str(self.root / "cache"))

    @property
    def tracking(self) -> TrackingConfig:
        """The demo's own MLflow database."""
        return TrackingConfig(uri=f"sqlite:///{self.root / 'mlflow.db'}", experiment="demo")

    @property
    def ray(self) -> RayConfig:
        """A local cluster with a CPU for each worker, even where cores are fewer."""
        return RayConfig(num_cpus=max(self.workers, os.cpu_count() or 1))

    @property
    def phantoms(self) -> Path:
        """Folder of the raw phantoms."""
        return self.root / "phantoms"

    def preprocess(self, datasets: Sequence[DatasetConfig]) -> PreprocessConfig:
        """All phantoms into the store."""
        return PreprocessConfig(
            store=self.store, source_root=str(self.phantoms), datasets=tuple(datasets), ray=self.ray
        )

    def pretrain(self, name: str) -> PretrainConfig:
        """Both stages on the whole store but the patients that will be tested."""
        return PretrainConfig(
            name=name,
            seed=self.seed,
            store=self.store,
            cache=self.cache,
            runs=str(self.root / "runs"),
            tracking=self.tracking,
            ray=self.ray,
            workers=(self.workers, self.workers),
            global_batch=max(16, 2 * self.workers),
            log_every_steps=5,
            sampling=SamplingConfig(patch_size=PATCH_SIZE, block_size=4, exclude_test=SPLIT),
            network=NETWORK,
            objective=ObjectiveConfig(temperature=0.2),
            encoder=StageConfig(steps=100, learning_rate=2e-3, warmup_steps=6),
            decoder=StageConfig(steps=40, learning_rate=1.5e-3, encoder_rate=0.3, warmup_steps=4),
            checkpoint=CheckpointConfig(every_steps=50),
        )

    def finetune(self, name: str, model: str) -> FinetuneConfig:
        """Few labelled patients, from a model or from scratch."""
        return FinetuneConfig(
            name=name,
            seed=self.seed,
            model=model,
            dataset=DATASET,
            labels=LABELS,
            split=SPLIT,
            training=SupervisedConfig(
                steps=160, batch_size=4, patch_size=PATCH_SIZE, learning_rate=4e-3, validate_every=40
            ),
            network=NETWORK,
            store=self.store,
            cache=self.cache,
            runs=str(self.root / "runs"),
            tracking=self.tracking,
        )

    def evaluate(self, name: str, model: str) -> EvaluateConfig:
        """Dice of a fine-tuned model on the test patients."""
        return EvaluateConfig(
            model=model,
            store=self.store,
            output=str(self.root / "scores" / name),
            overwrite=True,  # a changed demo has other models
            runs=str(self.root / "runs"),
            tracking=self.tracking,
            overlap=0.25,
        )
