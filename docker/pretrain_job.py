"""python pretrain_job.py: preprocess what /data holds, or phantoms if that is empty, and pretrain on it.

Runs as a Ray job on the head. Doing it again does what is missing: a stored case is not stored again, a run
that was stopped goes on, one that is done says so.

/data is the folder of a challenge that describes itself in a dataset.json (Decathlon, nnU-Net raw), or holds
several; each is then a group of its own. For other layouts, or to say more, there is /data/preprocess.yaml,
with sources relative to it. HSSL_PRETRAIN names the pretraining's config, HSSL_FLAGS has flags for it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

DATA = Path("/data")
CONFIGS = Path("/srv/hssl/configs/pretrain")
_PHANTOMS = Path("/tmp/phantoms")
_PATIENTS = 12


def main() -> None:
    """Preprocess, then become `hssl pretrain`."""
    config, root = preprocess_config()
    command = ["hssl", "preprocess", "--config", str(config), "--source_root", str(root)]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)
    default = CONFIGS / ("phantoms.yaml" if root == _PHANTOMS else "real.yaml")
    pretrain = Path(os.environ.get("HSSL_PRETRAIN") or default)
    flags = shlex.split(os.environ.get("HSSL_FLAGS", ""))
    # The store may hold others from before.
    if not (yaml.safe_load(pretrain.read_text()).get("sampling") or {}).get("datasets"):
        names = [dataset["name"] for dataset in yaml.safe_load(config.read_text())["datasets"]]
        flags = ["--sampling.datasets", json.dumps(names), *flags]
    command = ["hssl", "pretrain", "--config", str(pretrain), *flags]
    os.execvp(command[0], command)


def preprocess_config() -> tuple[Path, Path]:
    """The config to preprocess by, and the folder its sources are in."""
    own = DATA / "preprocess.yaml"
    if own.exists():
        return own, DATA
    root = DATA if any(DATA.iterdir()) else _PHANTOMS
    found = described(DATA) if root == DATA else phantoms()
    if not found:
        sys.exit(f"{DATA} holds no dataset.json, nor a folder with one; put a preprocess.yaml there")
    config = Path("/tmp/preprocess.yaml")
    config.write_text(yaml.safe_dump({"datasets": found}))
    return config, root


def phantoms() -> list[dict[str, Any]]:
    """Write the phantoms; equal files each time."""
    from hssl_dist.imaging import write_nifti
    from hssl_dist.synthetic import write_phantoms

    made = write_phantoms(_PHANTOMS, seed=0, write=write_nifti, patients=_PATIENTS)
    print(f"{DATA} is empty: phantoms of {len(made)} challenges, {_PATIENTS} patients each")
    return [dataset.model_dump(mode="json", exclude_defaults=True) for dataset in made]


def described(root: Path) -> list[dict[str, Any]]:
    """The challenge `root` is the folder of, or those it holds."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    found = [dataset for folder in folders if (dataset := describe(folder, root)) is not None]
    return found[:1] if found and found[0]["source"] == "." else found


def describe(folder: Path, root: Path) -> dict[str, Any] | None:
    """What a folder's dataset.json says it is; None if there is none."""
    description = folder / "dataset.json"
    if not description.exists():
        return None
    about = json.loads(description.read_text())
    title = str(about.get("name") or "data") if folder == root else folder.name
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "data"
    layout = "nnunet" if "channel_names" in about else "msd"
    return {"name": name, "layout": layout, "source": str(folder.relative_to(root)), "group": name}


if __name__ == "__main__":
    main()
