"""python submit.py: run pretrain_job.py as a Ray job, show what it says, end as it ends.

SIGTERM and Ctrl-C stop the job, which saves a checkpoint first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

ADDRESS = "http://ray-head:8265"
_PASSED_ON = ("HSSL_FLAGS", "HSSL_PRETRAIN")
_AGENT_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60
_POLL_S = 0.5


def submit(client: JobSubmissionClient) -> str:
    """Submit it, once the head has an agent to run it, which is a little after its dashboard."""
    settings = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    settings["RAY_JOB_STOP_WAIT_TIME_S"] = str(_STOP_TIMEOUT_S)
    deadline = time.monotonic() + _AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(
                entrypoint="python -I /opt/hssl/docker/pretrain_job.py", runtime_env={"env_vars": settings}
            )
        except RuntimeError as error:
            if time.monotonic() > deadline:
                sys.exit(f"Ray takes no job: {str(error).strip().splitlines()[-1]}")
            time.sleep(_POLL_S)


async def show(client: JobSubmissionClient, job: str) -> None:
    """Print what the job says until it ends."""
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def main() -> None:
    """Exit status 0 if the job succeeded."""
    try:
        client = JobSubmissionClient(ADDRESS)
    except ConnectionError:
        sys.exit(f"no Ray answers at {ADDRESS}; COMPOSE_PROFILES has to have gpu or cpu, to start a head")
    job = submit(client)
    print(f"submitted {job} to {ADDRESS}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: client.stop_job(job))
    try:
        asyncio.run(show(client, job))
    except (RuntimeError, OSError, aiohttp.ClientError) as error:  # the job goes on without a listener
        print(f"lost sight of {job} ({error}); waiting for its end", file=sys.stderr)
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(_POLL_S)
    if status != JobStatus.SUCCEEDED:
        sys.exit(f"the job {status.value.lower()}: {client.get_job_info(job).message}")
    mlflow, ray = os.environ["HSSL_MLFLOW_PORT"], os.environ["HSSL_RAY_PORT"]
    print(
        f"\nRuns and models: http://127.0.0.1:{mlflow}, user admin; the password:\n"
        "    docker compose exec mlflow cat /run/hssl/mlflow/password\n"
        f"Ray's dashboard: http://127.0.0.1:{ray}; the token:\n"
        "    docker compose run --rm --no-deps pretrain cat /run/hssl/ray/token",
        flush=True,
    )


if __name__ == "__main__":
    main()
