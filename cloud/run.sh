#!/usr/bin/env bash
# Train on this machine: find its disk, build the environment, train. The one script that all of cloud/ starts.
#
#     export PENSTOCK_DATA=s3://bucket/imagenet PENSTOCK_MIRROR=s3://bucket/runs/first
#     cloud/run.sh seed_113 --epochs 20
#
# Arguments: a recipe, and flags of train/main.py. Environment:
#   PENSTOCK_DATA           the shards: s3://... or a folder
#   PENSTOCK_MIRROR         s3://... where the run outlives this machine
#   PENSTOCK_RUN            the run's folder (default: runs/NAME on the disk; NAME is the last part of PENSTOCK_MIRROR).
#                           Without a mirror it is needed, and must be on storage that outlives the machine
#   PENSTOCK_STAGE=1        copy all shards to the disk before training starts; else they come while it trains
#   PENSTOCK_DISK           a folder to use instead of the disks that nvme.sh finds
#   PENSTOCK_NPROC          processes (default: one per GPU); without GPUs they train on the CPU
#   PENSTOCK_TORCHRUN       torchrun's options for several nodes (default: --standalone)
#   PENSTOCK_SKIP_SETUP=1   .venv is there already: do not run setup.sh
#   PENSTOCK_WHEN_FINISHED  a command to run when the run is finished
#
# Exit status: 0 the run is finished; 75 it was asked to leave (spot notice, SIGTERM, SIGHUP, Ctrl-C) and the same
# command continues it, here or on another machine; anything else is an error. torchrun itself ends with 1 whatever its
# processes say, so a new continue.json in the run's folder decides.
set -euo pipefail

LEFT_EARLY=75
SAVE_SECONDS=110 # for saving and uploading, of the 120 s that a spot notice gives
checkout=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
bin=$checkout/.venv/bin

say() { echo "run.sh: $*" >&2; }

fail() {
    echo "error: $*" >&2
    exit 1
}

# Signals. A command runs in the background, in a session of its own, so that a signal reaches this script first, even
# Ctrl-C; the command and its process group then get one SIGTERM. (torchrun's processes are not in its group.)
signal='' num_signals=0 child=''
end_child() { kill -TERM -- "-$child" 2>/dev/null || kill -TERM "$child" 2>/dev/null || :; }
# shellcheck disable=SC2329 # a trap calls it
on_signal() {
    signal=$1 num_signals=$((num_signals + 1))
    [ -z "$child" ] || end_child
}
for name in TERM HUP INT; do
    # shellcheck disable=SC2064 # the name is meant as it is now
    trap "on_signal $name" "$name"
done

# Run a command, pass signals on to it, and return its status.
follow() {
    local status before=$num_signals seen
    setsid "$@" &
    child=$!
    [ "$num_signals" -eq "$before" ] || end_child # a signal came before `child` was known
    # `wait` also returns when a signal comes: then wait again.
    while seen=$num_signals status=0; do
        wait "$child" || status=$?
        [ "$num_signals" -ne "$seen" ] || break
    done
    child=''
    return "$status"
}

# Run a step that comes before training; end if it fails, or if a signal came.
prepare() {
    local status=0
    leave_if_asked
    follow "$@" || status=$?
    leave_if_asked
    [ "$status" -eq 0 ] || exit "$status"
}

leave_if_asked() {
    [ -n "$signal" ] || return 0
    say "SIG$signal: the same command continues"
    exit "$LEFT_EARLY"
}

# Print what tells one continue.json from another; nothing without one.
identify_marker() { stat --format '%i %.9Y' "$run/continue.json" 2>/dev/null || :; }

# The settings.
[ -n "${PENSTOCK_DATA:-}" ] || fail "PENSTOCK_DATA is not set: s3://BUCKET/PREFIX of the shards, or their folder"
[ -n "${PENSTOCK_MIRROR:-}${PENSTOCK_RUN:-}" ] ||
    fail "neither PENSTOCK_MIRROR (s3://BUCKET/PREFIX) nor PENSTOCK_RUN (a folder) is set: the run would end with the machine"
for flag in "$@"; do
    case ${flag%%=*} in
    --data.root | --data.cache | --run.dir | --run.mirror)
        fail "${flag%%=*} is set by PENSTOCK_DATA, PENSTOCK_DISK, PENSTOCK_RUN or PENSTOCK_MIRROR: $0 says how" ;;
    --dry-run | --help | -h) fail "$flag trains nothing, so that the run would seem to be finished: give it to train/main.py" ;;
    esac
done
recipe=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    recipe=("$1")
    shift
fi

# The processes.
num_gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || :)
num_processes=${PENSTOCK_NPROC:-$num_gpus}
[[ $num_processes =~ ^[1-9][0-9]*$ ]] ||
    fail "nvidia-smi -L lists no GPU: PENSTOCK_NPROC=1 trains on the CPU (it is '${PENSTOCK_NPROC:-}')"
device=()
[ "$num_gpus" -gt 0 ] || device=(--device cpu)

# The disk. Without root, sudo may do.
nvme=("$checkout/cloud/nvme.sh")
if [ "$(id -u)" -ne 0 ] && sudo -n true 2>/dev/null; then
    nvme=(sudo -n "--preserve-env=PENSTOCK_DISK,PENSTOCK_MOUNT" "${nvme[@]}")
fi
disk=''
if [[ -z ${PENSTOCK_RUN:-} || $PENSTOCK_DATA == s3://* ]]; then
    disk=$("${nvme[@]}") || exit
fi

# The environment.
[ "${PENSTOCK_SKIP_SETUP:-}" = 1 ] || prepare "$checkout/cloud/setup.sh" >&2
[ -x "$bin/torchrun" ] || fail "$bin/torchrun is missing: run cloud/setup.sh"

# The data.
data=(--data.root "$PENSTOCK_DATA")
if [[ $PENSTOCK_DATA == s3://* ]]; then
    local_data=$disk/$(basename "$PENSTOCK_DATA")
    if [ "${PENSTOCK_STAGE:-}" = 1 ]; then
        prepare "$bin/python" "$checkout/prep/stage.py" "$PENSTOCK_DATA" --to "$local_data"
        data=(--data.root "$local_data")
    else
        data+=(--data.cache "$local_data")
    fi
fi

# The run.
run=${PENSTOCK_RUN:-$disk/runs/$(basename "${PENSTOCK_MIRROR:-}")}
mirror=()
[ -z "${PENSTOCK_MIRROR:-}" ] || mirror=(--run.mirror "$PENSTOCK_MIRROR")
read -ra options <<<"${PENSTOCK_TORCHRUN:---standalone}"
# torchrun kills its processes 30 s after a signal, which is too early for an upload. Older ones cannot be told.
if grep --quiet --no-messages -- --shutdown-timeout "$checkout"/.venv/lib/python3*/site-packages/torch/distributed/run.py; then
    options+=(--shutdown-timeout "$SAVE_SECONDS")
fi

# Train.
marker_before=$(identify_marker)
leave_if_asked
status=0
follow "$bin/torchrun" "${options[@]}" --nproc-per-node "$num_processes" "$checkout/train/main.py" "${recipe[@]}" \
    "${data[@]}" --run.dir "$run" "${mirror[@]}" "${device[@]}" "$@" || status=$?

if [ "$status" -eq 0 ]; then
    say "the run is finished"
    [ -z "${PENSTOCK_WHEN_FINISHED:-}" ] || bash -c "$PENSTOCK_WHEN_FINISHED" ||
        fail "the run is finished, but PENSTOCK_WHEN_FINISHED failed: $PENSTOCK_WHEN_FINISHED"
    exit 0
fi

# Processes whose torchrun was killed may still save: they hold the lock of the run's folder until they have.
if [ -e "$run/run.lock" ]; then
    flock --timeout "$SAVE_SECONDS" "$run/run.lock" true || say "a process still holds $run after $SAVE_SECONDS s"
fi
marker=$(identify_marker)
if [ -n "$marker" ] && [ "$marker" != "$marker_before" ]; then
    say "the run was asked to leave and has saved: the same command continues"
    exit "$LEFT_EARLY"
fi
leave_if_asked # a signal that came before the first step
say "training failed (torchrun ended with $status)"
exit "$status"
