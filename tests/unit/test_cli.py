"""The command line: exit statuses, one clear line per error, `--json`, and a quick `--help`."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hssl_dist import cli


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HSSL_")}
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, cwd=cwd, env=environment
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_is_quick_and_light(verb: str) -> None:
    code = f"""
import contextlib, io, sys
from hssl_dist import {verb} as module
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    module.main(["--help"])
heavy = {{"torch", "ray", "mlflow", "monai", "zarr", "tensorstore", "matplotlib"}}
print(sorted(heavy & set(sys.modules)), "--config FILE.yaml" in out.getvalue())
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.stdout.strip() == "[] True"
    # CPU seconds of the one process are what it takes where nothing else runs.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


def test_overview_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in cli.VERBS)


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrian"]) == 2
    assert capsys.readouterr().err == (
        "hssl: unknown verb 'pretrian'; known are preprocess, pretrain, finetune, evaluate, predict, export, "
        "promote, sync, study, demo\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--store.ulr", "x"), "unknown flag --store.ulr; did you mean --store.url?"),
        (
            ("--workers", "two"),
            "workers: give a number of workers, such as 2, or a range, such as [1, 4]; not 'two'",
        ),
        (("extra",), "unexpected argument 'extra'; values follow a flag, see --help"),
        (("--config", "none.yaml"), "config file none.yaml cannot be read: No such file or directory"),
        (
            ("--workers", "40"),
            "global_batch 32 gives some of 40 workers no region; use at least 40, or fewer",
        ),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words: tuple[str, ...], line: str) -> None:
    finished = run("hssl_dist.pretrain", *words)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"hssl pretrain: error: {line}")
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_beginning_of_a_flag_is_not_taken_for_the_flag(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    flags = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    assert {"--config", "--json"} < flags
    for flag in sorted(flags):
        short = flag[:-1]
        if short not in flags and short != "--":
            assert cli.main([verb, short, "1"]) == 2
            said = capsys.readouterr()
            assert said.err.startswith(f"hssl {verb}: error: unknown flag {short}; "), said.err
            assert said.err.count("\n") == 1
            assert said.out == ""


def test_json_line_also_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("datasets:\n- {name: a, layuot: msd, source: x, group: g}\n")
    finished = run("hssl_dist.preprocess", "--config", "bad.yaml", "--json", cwd=tmp_path)
    assert finished.returncode == 2
    summary = json.loads(finished.stdout)
    assert summary["status"] == "failed"
    assert summary["verb"] == "preprocess"
    assert "datasets.0.layuot: unknown key; did you mean layout?" in summary["error"]


def test_missing_data_is_one_line_and_status_2(tmp_path: Path) -> None:
    datasets = '[{"name": "a", "layout": "msd", "source": "nowhere", "group": "g"}]'
    finished = run("hssl_dist.preprocess", "--datasets", datasets, cwd=tmp_path)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("hssl preprocess: error: ")
    assert "nowhere" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_missing_store_is_one_line_and_status_2(tmp_path: Path) -> None:
    finished = run("hssl_dist.pretrain", "--runner", "inline", cwd=tmp_path)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("hssl pretrain: error: ")
