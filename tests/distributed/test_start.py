"""A torchrun rank whose others do not start."""

import os
import subprocess
import sys

import torch.distributed as dist

ALONE = """
import sys
from hssl_dist.errors import CollectiveError
from hssl_dist.jobs.pretrain_rank import torchrun_group
from tests.tiny_pretraining import config
try:
    with torchrun_group(config(collective_timeout_s=2.0)):
        print("started")
except CollectiveError as error:
    print(error)
"""


def test_a_rank_that_waits_for_others_to_start_names_them() -> None:
    """The store is torchrun's own, in this process, as it is in the agent's."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    agent = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **ranks, **where, **agent},
        check=True,
    )
    assert done.stdout == (
        "rank 0 of 3 waited 2 s for the others to start, and rank 1, 2 did not; look at their logs, or raise "
        "collective_timeout_s\n"
    ), done.stderr
