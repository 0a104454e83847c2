"""Nothing is kept in the copy of a working directory that Ray makes for a job."""

import pytest

from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.config.predict import PredictConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.errors import ConfigError
from hssl_dist.jobs.working_copy import refuse_working_copy

COPY = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1"
WHY = (
    " would be in the copy of the working directory that Ray unpacks on each node and removes after the job; "
    "give absolute paths that all nodes share, or URLs"
)


def refused(config: PretrainConfig | PredictConfig) -> str:
    with pytest.raises(ConfigError) as error:
        refuse_working_copy(config)
    return str(error.value)


def test_what_would_go_with_the_copy_is_named() -> None:
    store, tracking = StoreConfig(url=f"{COPY}/store"), TrackingConfig(uri=f"sqlite:///{COPY}/mlflow.db")
    runs = f"{COPY}/runs"
    all_of_it = PretrainConfig(store=store, runs=runs, tracking=tracking)
    assert refused(all_of_it) == f"store.url, runs and tracking.uri{WHY}"
    assert refused(PretrainConfig(runs=runs, tracking=tracking)) == f"runs and tracking.uri{WHY}"
    assert refused(PretrainConfig(runs=runs)) == f"runs{WHY}"
    assert refused(PretrainConfig(store=store)) == f"store.url{WHY}"
    assert refused(PredictConfig(model="/m", input="/i", output=f"{COPY}/out")) == f"output{WHY}"


def test_what_is_read_may_come_with_it() -> None:
    refuse_working_copy(PretrainConfig())
    refuse_working_copy(PretrainConfig(runs="s3://bucket/runs", store=StoreConfig(url="/data/store")))
    kept = TrackingConfig(uri="http://mlflow:5000")
    reading = PredictConfig(model=f"{COPY}/model", input=f"{COPY}/images", output="/data/out", tracking=kept)
    refuse_working_copy(reading)
