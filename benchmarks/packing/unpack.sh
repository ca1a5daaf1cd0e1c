# (gpu_pack.py writes the values above this line.)
#
#     . unpack.sh FOLDER [TO]
#
# Source this file in bash on the GPU machine. FOLDER holds the pieces, as part-0, part-1, ... or as piece-0/part-0, ...
# It unpacks the packages to TO/site and the shards to TO/data (default of TO: /tmp), and sets PYTHONPATH and
# PENSTOCK_DATA to them. An error is one line on standard error, and status 1.

_pack_say() { echo "$1" >&2; }

# Print the path of a part, which is in FOLDER or in its piece's folder.
_pack_find() {
    local place
    for place in "$1/part-$2" "$1/piece-$2/part-$2"; do
        if [ -f "$place" ]; then echo "$place"; return 0; fi
    done
    return 1
}

_pack_check_machine() {
    local found
    found=$(uname -m)
    if [ "$found" != "$PACK_MACHINE" ]; then
        _pack_say "error: this pack is for $PACK_MACHINE, this machine is $found: make the pack for it"; return 1
    fi
    found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found="none"
    if [ "$found" != "$PACK_PYTHON" ]; then
        _pack_say "error: this pack is for Python $PACK_PYTHON, python3 here is $found: make it with gpu_pack.py --python"; return 1
    fi
    # Machine code for 8.0 runs on 8.6 too, but not on 9.0.
    for found in $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null); do
        if [ "${found%.*}" != "${PACK_CAPABILITY%.*}" ] || [ "${found#*.}" -lt "${PACK_CAPABILITY#*.}" ]; then
            _pack_say "warning: this pack's GPU code is for compute capability $PACK_CAPABILITY, a GPU here has $found: DALI will not run on it. Decode on the CPU, or make the pack with gpu_pack.py --compute-capability $found"
            break
        fi
    done
}

# Empty TO/site and TO/data; refuse if they exist and no pack made them.
_pack_make_room() {
    local name
    for name in site data; do
        if [ -e "$1/$name" ] && [ ! -e "$1/.penstock-pack" ]; then
            _pack_say "error: $1/$name exists and is not from a pack: move it away, or unpack to another folder (. unpack.sh FOLDER TO)"; return 1
        fi
    done
    mkdir -p "$1" && rm -rf "$1/site" "$1/data" && touch "$1/.penstock-pack" && mkdir "$1/data" || {
        _pack_say "error: cannot write to $1: unpack to another folder (. unpack.sh FOLDER TO)"; return 1
    }
}

# Extract the .tar.xz of the packages; Python does it if xz is missing.
_pack_extract() {
    if command -v xz >/dev/null; then
        XZ_OPT=-T0 tar -C "$2" -xJf "$1"
    else
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' "$1" "$2"
    fi
}

_pack_unpack() {
    local folder=${1:-} to=${2:-/tmp} number=0 part sum parts=()
    # Check everything before anything is written.
    _pack_check_machine || return 1
    for sum in $PACK_SUMS; do
        part=$(_pack_find "$folder" $number) || {
            _pack_say "error: part-$number of this pack is not in $folder: copy all pieces into one folder"; return 1
        }
        if [ "$(sha256sum <"$part")" != "$sum  -" ]; then
            _pack_say "error: $part is damaged or from another pack: copy it again"; return 1
        fi
        parts+=("$part") number=$((number + 1))
    done
    _pack_make_room "$to" || return 1
    # The concatenated parts are the packages (.tar.xz), then the shards (.tar).
    cat "${parts[@]}" | { head -c "$PACK_SITE_BYTES" >"$to/.site.tar.xz" && tar -C "$to/data" -xf -; } &&
        _pack_extract "$to/.site.tar.xz" "$to" && rm "$to/.site.tar.xz" || {
        _pack_say "error: the pack cannot be unpacked into $to: check that 1 GB is free there"; return 1
    }
    to=$(cd "$to" && pwd)
    export PYTHONPATH="$to/site${PYTHONPATH:+:$PYTHONPATH}" PENSTOCK_DATA="$to/data"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    _pack_say "error: this script sets variables, so source it: . unpack.sh FOLDER"; exit 1
fi
_pack_status=0
_pack_unpack "$@" || _pack_status=1
unset -f _pack_say _pack_find _pack_check_machine _pack_make_room _pack_extract _pack_unpack
unset "${!PACK_@}"
return $_pack_status
