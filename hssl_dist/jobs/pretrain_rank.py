"""What one rank of a pretraining job does: open its parts, train, report; it knows no Ray.

<runs>/<name>/
  checkpoints/      see `training.checkpoint`
  not-finite/       the samples of a step that was refused, see `training.not_finite`
  stacks/           where each rank was when a collective failed, see `watchdog`
  model/            the final network: model.safetensors, model.json
  done.json         what a finished run registered, and under which trajectory
  tracking/         what MLflow has not been told yet, see `tracking.spool`
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from hssl_dist import collectives, files
from hssl_dist.errors import CollectiveError, Interrupted, StoreError
from hssl_dist.memory import freed_memory_kept, within_memory
from hssl_dist.sampling.split_files import named_datasets
from hssl_dist.store import list_datasets, open_reader, read_manifests
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.export import save_pretrained
from hssl_dist.training.loop import run_pretraining
from hssl_dist.watchdog import Store, watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.records import Lineage, Manifest

_NAMED_RANKS = 4


def run_url(config: PretrainConfig) -> str:
    """Folder of the run."""
    return files.join(config.runs, config.name)


def model_url(config: PretrainConfig) -> str:
    """Folder of the run's final network."""
    return files.join(run_url(config), "model")


def checkpoint_store(config: PretrainConfig) -> CheckpointStore:
    """The run's checkpoints."""
    return CheckpointStore(files.join(run_url(config), "checkpoints"))


class Watch(Protocol):
    """Who knows whether machines are about to be taken away."""

    def is_due(self) -> bool:
        """Whether it is time to ask; one rank decides for all."""

    def going(self) -> str:
        """What is going, such as `the node of rank 1 is`, once for each such event; all ranks ask at once."""


@dataclass(frozen=True)
class RankCallbacks:
    """The training loop's callbacks: metrics to whoever tracks the run, lines and progress to a person."""

    total_steps: int
    log: Callable[[int, Mapping[str, float]], None]
    say: Callable[[str], None]
    warn: Callable[[str], None]
    advance: Callable[[int], None]
    stop_requested: Callable[[], bool]
    watch: Watch | None
    saved: Callable[[float], None] | None

    def on_step(self, step: int) -> None:  # noqa: ARG002
        """One step further."""
        self.advance(1)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log them, and one line."""
        self.log(step, metrics)
        self.say(f"step {step} of {self.total_steps}: {describe(metrics)}")

    def on_warning(self, step: int, text: str) -> None:  # noqa: ARG002
        """One line, also where there is a progress bar."""
        self.warn(text)

    def on_checkpoint(self, step: int, url: str, seconds: float) -> None:  # noqa: ARG002
        """One line, and how long it took."""
        if self.saved is not None:
            self.saved(seconds)
        self.say(f"step {step} of {self.total_steps}: checkpoint saved")

    def should_stop(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.stop_requested()

    def should_look(self) -> bool:
        """Whether to ask what the cluster says."""
        return self.watch is not None and self.watch.is_due()

    def is_losing_ranks(self) -> bool:
        """Whether the cluster says that machines go; one line."""
        going = "" if self.watch is None else self.watch.going()
        if going:
            self.say(f"{going} about to be taken away: saving a checkpoint")
        return bool(going)


def describe(metrics: Mapping[str, float]) -> str:
    """`loss 3.211 (image 2.102, task 1.109), 51.2 samples/s, data wait 3 %`."""
    terms = ", ".join(
        f"{key.removeprefix('loss_')} {value:.3f}"
        for key, value in metrics.items()
        if key.startswith("loss_")
    )
    return (
        f"loss {metrics['loss']:.3f} ({terms}), {metrics['samples_per_s']:.1f} samples/s, "
        f"data wait {100 * metrics['data_wait_share']:.0f} %"
    )


def train_rank(
    config: PretrainConfig,
    lineage: Lineage,
    device: torch.device,
    *,
    log: Callable[[int, Mapping[str, float]], None],
    say: Callable[[str], None],
    warn: Callable[[str], None],
    advance: Callable[[int], None],
    stop_requested: Callable[[], bool],
    watch: Watch | None = None,
    saved: Callable[[float], None] | None = None,
) -> None:
    """Train on this rank to the end; rank 0 then writes the model folder.

    Metrics go to `log`, not to MLflow: a run is logged to by one process, the one that leads it. `saved` is
    told the seconds that each checkpoint took to write.
    Raises Interrupted once a stop is asked for and a checkpoint is saved, OutOfMemoryError with advice, and
    the errors of the loop.
    """
    torch.set_num_threads(config.threads_per_worker)
    callbacks = RankCallbacks(
        total_steps=config.encoder.steps + config.decoder.steps,
        log=log,
        say=say,
        warn=warn,
        advance=advance,
        stop_requested=stop_requested,
        watch=watch,
        saved=saved,
    )
    checkpoints = checkpoint_store(config)
    if collectives.rank() == 0 and (step := checkpoints.latest()) is not None:
        say(f"going on from the checkpoint of step {step}")
    kept = device.type == "cpu" and config.acceleration.keep_freed_memory
    with within_memory("training", _smaller(config)), freed_memory_kept(kept):
        result = run_pretraining(
            config,
            read_same_manifests(config, lineage),
            open_reader(config.store.url, cache=config.cache, warn=warn),
            checkpoints,
            callbacks,
            device,
            run_folder=run_url(config),
        )
    if collectives.rank() == 0:
        save_pretrained(model_url(config), result, config, lineage)
    collectives.barrier(config.collective_timeout_s)


def _smaller(config: PretrainConfig) -> str:
    """What to do where memory does not suffice."""
    share = -(-config.global_batch // collectives.world_size())
    size = min(config.micro_batch or share, share)
    if size == 1:
        return "lower sampling.patch_size (micro_batch is 1 already)"
    whole = ", a rank's whole share of global_batch" if size == share else ""
    return (
        f"set micro_batch to {size // 2} (it is {size}{whole}), which does not change the result, then lower "
        "sampling.patch_size"
    )


def read_sampled(config: PretrainConfig) -> dict[str, Manifest]:
    """The store's manifests of the datasets to draw from, and of those whose test patients are left out too:
    the same scans may be in both. Raises MissingError for one that is not there.
    """
    sampling, names = config.sampling, config.sampling.datasets
    if names and sampling.exclude_test is not None:
        others = sampling.exclude_test_of
        if others is None:
            others = tuple(list_datasets(config.store.url))
            if sampling.exclude_test.file is not None:
                known = named_datasets(sampling.exclude_test.file)
                others = tuple(name for name in others if name in known)
        names = tuple(dict.fromkeys((*names, *others)))
    return read_manifests(config.store.url, names)


def read_same_manifests(config: PretrainConfig, lineage: Lineage) -> dict[str, Manifest]:
    """The store's manifests. Raises StoreError if they are not those the run was started with."""
    manifests = read_sampled(config)
    if {name: manifest.sha256 for name, manifest in manifests.items()} != lineage.manifests:
        raise StoreError(
            f"the manifests of {config.store.url} changed while the run started; "
            "let preprocessing finish, then start it again"
        )
    return manifests


def is_leading() -> bool:
    """Whether this process speaks for the job: torchrun's rank 0, or the only one; known before they meet."""
    return not _under_torchrun() or os.environ["RANK"] == "0"


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def torchrun_group(config: PretrainConfig) -> Iterator[torch.device]:
    """Inside, this process is one of torchrun's ranks, if torchrun started it; yields the rank's device."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not _under_torchrun():
        yield device
        return
    timeout = timedelta(seconds=config.collective_timeout_s)
    store = None
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        store.set(_started(rank), "")
        store.wait([_started(other) for other in range(world_size)], timeout)  # NCCL's group would not
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except RuntimeError as error:
        raise CollectiveError(_not_started(store, config.collective_timeout_s)) from error
    end = dist.destroy_process_group
    try:
        with watched(config):
            yield device
    except BaseException as error:
        # With NCCL that waits for collectives to which the others may not come, and nobody would hear why.
        if dist.get_backend() == "nccl" and not isinstance(error, Interrupted):
            end = dist.distributed_c10d._abort_process_group
        raise
    finally:
        end()


def _started(rank: int) -> str:
    """The key that says that a rank is there."""
    return f"hssl-started/{rank}"


def _not_started(store: Store | None, timeout_s: float) -> str:
    """Which ranks did not come to make the process group; not known if not even the store was there."""
    ranks = range(int(os.environ["WORLD_SIZE"]))
    late = [rank for rank in ranks if store is not None and not store.check([_started(rank)])]
    names = ", ".join(map(str, late[:_NAMED_RANKS])) + (", ..." if len(late) > _NAMED_RANKS else "")
    return (
        f"rank {os.environ['RANK']} of {len(ranks)} waited {timeout_s:g} s for the others to start"
        f"{f', and rank {names} did not' if late else ''}; look at their logs, or raise collective_timeout_s"
    )


def watched(config: PretrainConfig, say: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
    """Inside, this rank's collectives are watched, if it has a process group; see `watchdog.watching`."""
    if not collectives.is_distributed():
        return nullcontext()
    return watching(
        collectives.group_store(),
        collectives.rank(),
        collectives.world_size(),
        config.collective_timeout_s,
        files.join(run_url(config), "stacks"),
        ends_process=dist.get_backend() == "nccl",
        say=say,
    )
