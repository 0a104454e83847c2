#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes, from a plain checkout: no Ray, no installation of ours.
#
#   bash benchmarks/gpu.sh [--out FOLDER] [--minutes 7.5] [--device cuda|cpu] [--quick]
#
# In FOLDER (gpu-results) there is, once it ends: step_gpu.json (benchmarks.step: samples/s, share of the GPU's
# matrix products, where the time goes, data waits, peers), trace_encoder.json and trace_decoder.json
# (benchmarks.trace: which kernels take the time), tests.txt (the tests marked gpu), checkpoint_gpu.json
# (benchmarks.checkpoint) and summary.md, the tables of it all. The most important comes first; what the time does
# not reach is said, and the status is 1 then, as it is if a piece fails. To commit what a GPU gave:
#
#   cp gpu-results/step_gpu.json benchmarks/results/ && python -m benchmarks.step_table
#
# $PYTHON is the interpreter (python3). --device cpu --quick is a dry run of the script itself on a tiny network.
set -uo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

out=gpu-results minutes=7.5 device=cuda quick=()
while [ $# -gt 0 ]; do
    case $1 in
        --out | --minutes | --device)
            [ $# -gt 1 ] || { echo "$1 needs a value; see --help" >&2; exit 2; }
            declare "${1#--}=$2"
            shift
            ;;
        --quick) quick=(--quick) ;;
        --help) usage; exit 0 ;;
        *) echo "unknown argument $1; see --help" >&2; exit 2 ;;
    esac
    shift
done
[[ $device =~ ^(cuda|cpu)$ ]] || { echo "--device is cuda or cpu, not $device" >&2; exit 2; }
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "--minutes is a number, not $minutes" >&2; exit 2; }

mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
# So is compiled code kept between the arms of one run, and not beyond it.
export TORCHINDUCTOR_CACHE_DIR=$out/compiled

"$python" - "$device" <<'PYTHON' || exit 2
import importlib.util
import sys

needed = {
    "torch": "torch", "numpy": "numpy", "scipy": "scipy", "pydantic": "pydantic", "yaml": "PyYAML",
    "pydantic_settings": "pydantic-settings", "jaxtyping": "jaxtyping", "safetensors": "safetensors",
    "tensorstore": "tensorstore", "zarr": "zarr", "numcodecs": "numcodecs", "google_crc32c": "google-crc32c",
    "fsspec": "fsspec", "nibabel": "nibabel", "isal": "isal", "psutil": "psutil",
}
missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit(f"missing: {' '.join(missing)}; pip install --constraint constraints.txt {' '.join(missing)}")
import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device; --device cpu --quick is a dry run without one")
peers = {"monai": "MONAI", "lightly": "lightly", "einops": "einops (for SwinUNETR)", "pytest": "pytest"}
absent = [name for module, name in peers.items() if importlib.util.find_spec(module) is None]
if absent:
    print(f"not installed, and left out: {', '.join(absent)}", file=sys.stderr)
PYTHON

seconds=$("$python" -c "print(int(60 * $minutes))")
begun=$SECONDS
failed=()

left() { echo $((seconds - SECONDS + begun)); }

# piece NAME SECONDS FILE COMMAND...: the command's output goes to the file; no longer than that, nor than is left.
piece() {
    local name=$1 most=$2 file=$out/$3
    shift 3
    [ "$most" -le "$(left)" ] || most=$(left)
    if [ "$most" -lt 5 ]; then
        echo "$name: no time was left" >&2
        failed+=("$name: no time was left")
        return
    fi
    echo "$name: at most $most s" >&2
    local before=$SECONDS status
    timeout --kill-after=10 "$most" "$@" >"$file.part" 2>"$out/$name.log"
    status=$?
    # The step's benchmark ends with 1 where a requirement is missed; what it measured counts all the same.
    if [ "$status" -eq 0 ] || { [ "$name" = step ] && [ "$status" -eq 1 ] && [ -s "$file.part" ]; }; then
        mv "$file.part" "$file"
        echo "$name: $((SECONDS - before)) s" >&2
    else
        tail -n 3 "$out/$name.log" >&2
        echo "$name: failed with status $status after $((SECONDS - before)) s; $out/$name.log has more" >&2
        failed+=("$name: status $status")
    fi
}

config=() workload=()
if [ "$device" = cuda ]; then
    config=(--config benchmarks/gpu.yaml)
    workload=(--rounds 3 --turn-s 2)
fi
# No arm or round begins once the step's benchmark has had its time, so that what it has is written.
piece step 330 step_gpu.json "$python" -m benchmarks.step --json --device "$device" --time-s 270 \
    "${config[@]}" "${workload[@]}" "${quick[@]}"
for stage in encoder decoder; do
    piece "trace_$stage" 60 "trace_$stage.json" "$python" -m benchmarks.trace --json --device "$device" \
        --stage "$stage" "${config[@]}" "${quick[@]}"
done
if "$python" -c 'import pytest, pytest_timeout, beartype' 2>/dev/null; then
    piece tests 90 tests.txt "$python" -m pytest -q -m gpu tests/gpu
else
    echo "tests: pytest, pytest-timeout and beartype are not all installed" >&2
    failed+=("tests: pytest, pytest-timeout and beartype are not all installed")
fi
piece checkpoint 60 checkpoint_gpu.json "$python" -m benchmarks.checkpoint --json --device "$device" --rounds 1 \
    "${quick[@]}"

"$python" -m benchmarks.gpu_summary "$out" "${failed[@]}" >"$out/summary.md" || failed+=("summary")
rm -rf "$out/compiled"
cat "$out/summary.md"
[ ${#failed[@]} -eq 0 ]
