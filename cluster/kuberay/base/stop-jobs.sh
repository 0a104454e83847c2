#!/usr/bin/env bash
# stop-jobs.sh SECONDS: before a head ends, ask its jobs to save a checkpoint, and wait for them so long at most.
# A job is a process `python -m hssl_dist.<verb>` or `hssl <verb>` of this pod.
set -euo pipefail

jobs_here() {
    local folder words
    for folder in /proc/[0-9]*; do
        mapfile -d '' -t words 2>/dev/null <"$folder/cmdline" || continue
        [[ ${words[0]-} == *python* ]] || continue
        if [[ ${words[1]-} == -m && ${words[2]-} == hssl_dist.* || ${words[1]-} == */hssl ]]; then
            echo "${folder#/proc/}"
        fi
    done
}

mapfile -t jobs < <(jobs_here)
for job in "${jobs[@]}"; do
    kill -TERM "$job" || true  # it may have ended by itself
done
deadline=$((SECONDS + $1))
while [[ -n $(jobs_here) ]] && ((SECONDS < deadline)); do
    sleep 0.5
done
