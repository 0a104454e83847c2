from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import MissingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import start_run
from hssl_dist.tracking.history import metric_history


def test_metrics_come_back_in_order_of_steps_and_values_logged_again_win(tmp_path: Path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")
    run = start_run(tracking, "history", {}, {}, Lineage(config_hash="c" * 64, code_version="0.1.0"))
    for step, loss in ((20, 2.0), (10, 3.0), (30, 1.0)):
        run.log_metrics(step, {"loss": loss, "level/accuracy": 0.5})
    run.flush()
    run.log_metrics(20, {"loss": 7.0})  # a resumed run repeats the steps after its checkpoint
    run.flush()
    run.log_metrics(30, {"loss": 0.25}, again=True)
    run.finish("done")

    history = metric_history(tracking, run.id)

    assert history == {
        "level/accuracy": [(10, 0.5), (20, 0.5), (30, 0.5)],
        "loss": [(10, 3.0), (20, 2.0), (30, 0.25)],
    }
    with pytest.raises(MissingError, match=r"no run 'nowhere' at sqlite:///.*; check the id"):
        metric_history(tracking, "nowhere")
