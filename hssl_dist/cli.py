"""The `hssl` command and what all verbs share: config, one clear line per error, exit statuses, `--json`.

Exit status: 0 done, 1 failed, 2 bad usage or config, 3 interrupted with a checkpoint saved.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hssl_dist import __version__
from hssl_dist.config.loading import load_config
from hssl_dist.config.parts import JobConfig
from hssl_dist.console import Console
from hssl_dist.errors import HsslError, Interrupted, UsageError
from hssl_dist.jobs.working_copy import refuse_working_copy
from hssl_dist.records import Outcome, canonical_json

Config = TypeVar("Config", bound=JobConfig)

VERBS = {
    "preprocess": "turn challenge datasets into a store of sharded volumes",
    "pretrain": "pretrain a network on a store, without labels, and register it",
    "finetune": "fine-tune a registered network on a dataset's labels",
    "evaluate": "score a fine-tuned network on the test patients, or folders of label maps",
    "predict": "write label maps of images with a fine-tuned network",
    "export": "take a model to nnU-Net, MONAI or plain safetensors",
    "promote": "move an alias of the model registry",
    "sync": "send what runs have kept while the tracking server was down",
    "study": "compare ways of pretraining with training from scratch, with few labels",
    "demo": "run the whole pipe on phantoms and write a report",
}

EXIT_STATUS = {"done": 0, "failed": 1, "interrupted": 3}
USAGE_STATUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `hssl` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        _write(_overview())
        return 0 if words else USAGE_STATUS
    if words[0] == "--version":
        _write(f"hssl {__version__}")
        return 0
    if words[0] not in VERBS:
        Console().say(f"hssl: unknown verb {words[0]!r}; known are {', '.join(VERBS)}")
        return USAGE_STATUS
    module = importlib.import_module(f"hssl_dist.{words[0]}")
    status: int = module.main(words[1:])
    return status


def run_verb(verb: str, schema: type[Config], argv: Sequence[str] | None) -> int:
    """Load the verb's config, run `hssl_dist.jobs.<verb>.run(config, console)` and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    console, start_s = Console(), time.monotonic()
    outcome, status = _attempt(verb, schema, words, console)
    if outcome.silent:
        return status
    for warning in outcome.warnings:
        console.warn(warning)
    if "--json" in words:
        seconds = round(time.monotonic() - start_s, 3)
        _write(
            canonical_json({"verb": verb, "status": outcome.status, "seconds": seconds, **outcome.summary})
        )
    else:
        for line in outcome.lines:
            _write(line)
    return status


def _attempt(verb: str, schema: type[Config], words: list[str], console: Console) -> tuple[Outcome, int]:
    try:
        config = load_config(schema, f"hssl {verb}", words)
        refuse_working_copy(config)
        job: Callable[[Config, Console], Outcome] = importlib.import_module(f"hssl_dist.jobs.{verb}").run
        outcome = job(config, console)
    except UsageError as error:
        return _failed(verb, error, console), USAGE_STATUS
    except HsslError as error:
        return _failed(verb, error, console), EXIT_STATUS["failed"]
    except Interrupted as request:
        console.say(f"hssl {verb}: interrupted: {request}")
        return Outcome({"reason": str(request)}, status="interrupted"), EXIT_STATUS["interrupted"]
    except KeyboardInterrupt:
        return _failed(verb, HsslError("interrupted by the keyboard"), console), EXIT_STATUS["failed"]
    return outcome, EXIT_STATUS[outcome.status]


def _failed(verb: str, error: HsslError, console: Console) -> Outcome:
    console.say(f"hssl {verb}: error: {error}")
    summary: dict[str, Any] = {"error": str(error), "kind": type(error).__name__}
    return Outcome(summary, status="failed")


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: hssl VERB [--config FILE.yaml] [--json] [--key value ...]\n\n"
        f"verbs:\n{verbs}\n\n`hssl VERB --help` lists a verb's keys."
    )


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
