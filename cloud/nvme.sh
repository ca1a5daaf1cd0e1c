#!/usr/bin/env bash
# Print the folder on this machine's instance-store disks; format and mount the disks first, if that is necessary.
#
#     sudo cloud/nvme.sh                            # all instance-store disks
#     sudo cloud/nvme.sh /dev/nvme1n1 [/dev/...]    # these alone
#
# What is used, in this order: the folder PENSTOCK_DISK; /opt/dlami/nvme, where AWS's Deep Learning AMI mounts the
# disks itself; the disks whose model is "Amazon EC2 NVMe Instance Storage", mounted at /nvme (PENSTOCK_MOUNT). One disk
# becomes xfs, several become a RAID-0 with xfs. Their label is "penstock", so that they are known again.
#
# Only empty disks are formatted. A disk that is mounted, has another signature or is not an instance-store disk (such
# as an EBS volume) is refused by name, and then no disk is changed. To run the script again does no harm.
# Messages go to standard error. Tests set PENSTOCK_SYS, PENSTOCK_DLAMI and PENSTOCK_ARRAY.
set -euo pipefail

SYS=${PENSTOCK_SYS:-/sys}
DLAMI=${PENSTOCK_DLAMI:-/opt/dlami/nvme}
MOUNT=${PENSTOCK_MOUNT:-/nvme}
ARRAY=${PENSTOCK_ARRAY:-/dev/md/penstock}
LABEL=penstock # of the file system, and the name of the array
INSTANCE_STORE="Amazon EC2 NVMe Instance Storage"

fail() {
    echo "error: $*" >&2
    exit 1
}

# Print standard input as words of one line.
one_line() { tr -s '[:space:]' ' ' | sed 's/^ //; s/ $//'; }

# Print the model of the disk NAME; nothing for a device without one.
model_of() {
    local model=
    { [ ! -r "$SYS/block/$1/device/model" ] || read -r model <"$SYS/block/$1/device/model"; } || :
    echo "$model"
}

# Print where DEVICE, one of its partitions or an array on it is mounted; nothing if nowhere.
mount_of() {
    lsblk --noheadings --raw --output MOUNTPOINT "$1" | awk 'NF && !found++'
}

# Print types and labels of all signatures on DEVICE in one line: "xfs penstock", "gpt PMBR"; nothing if it is empty.
signatures_of() {
    wipefs --no-act --noheadings --output TYPE,LABEL "$1" | one_line
}

# Print the device of the array that uses the disk NAME; nothing without one.
array_of() {
    local holder
    for holder in "$SYS/block/$1/holders/"*; do
        [ ! -e "$holder" ] || echo "/dev/${holder##*/}"
    done
}

print_and_exit() {
    [ -w "$1" ] || fail "$1 cannot be written by $(id -un): sudo chmod 1777 $1"
    echo "$1"
    exit 0
}

# A folder that is there already.
if [ -n "${PENSTOCK_DISK:-}" ]; then
    mkdir -p "$PENSTOCK_DISK" 2>/dev/null || fail "PENSTOCK_DISK=$PENSTOCK_DISK cannot be made: name a folder that can be written"
    print_and_exit "$PENSTOCK_DISK"
fi
if mountpoint --quiet "$DLAMI"; then
    [ "$(id -u)" -ne 0 ] || chmod 1777 "$DLAMI"
    print_and_exit "$DLAMI"
fi

# The disks, and only one of these scripts at a time.
exec 9<"${BASH_SOURCE[0]}"
flock 9
disks=() others=()
for device in "$@"; do
    disk=$(basename "$(realpath "$device")")
    [ -d "$SYS/block/$disk" ] || fail "$device is not a disk of this machine: see lsblk"
    model=$(model_of "$disk")
    [ "$model" = "$INSTANCE_STORE" ] ||
        fail "$device is not an instance-store disk (its model is '$model'): this script formats no other"
    disks+=("$disk")
done
if [ $# -eq 0 ]; then
    for folder in "$SYS"/block/*/; do
        disk=$(basename "$folder")
        model=$(model_of "$disk")
        case $model in
        "$INSTANCE_STORE") disks+=("$disk") ;;
        "") ;;
        *) others+=("$disk: $model") ;;
        esac
    done
fi
if [ ${#disks[@]} -eq 0 ]; then
    found=$(IFS=';' && echo "${others[*]:-no NVMe disk}")
    fail "this machine has no instance-store disk ($found): set PENSTOCK_DISK to a folder for shards and run, for example" \
        "on an EBS volume, or choose an instance type that has one (g5, g6, g6e, p4d, p5)"
fi

# Disks that are mounted: where we want them, or refused.
devices=("${disks[@]/#//dev/}")
array=$(for disk in "${disks[@]}"; do array_of "$disk"; done | sort --unique | one_line)
mounted=0
for device in "${devices[@]}"; do
    where=$(mount_of "$device")
    if [ -z "$where" ] && [ -n "$array" ] && [ -b "$array" ]; then
        where=$(mount_of "$array")
    fi
    case $where in
    "$MOUNT") mounted=$((mounted + 1)) ;;
    "") ;;
    *) fail "$device is mounted at $where: PENSTOCK_DISK=$where uses it as it is; or unmount it" ;;
    esac
done
[ "$mounted" -ne ${#disks[@]} ] || print_and_exit "$MOUNT"

# What formatting and mounting need.
[ "$(id -u)" -eq 0 ] || fail "${devices[*]} must be mounted, which needs root: sudo $0"
if mountpoint --quiet "$MOUNT"; then
    fail "$MOUNT is a mount of $(findmnt --noheadings --output SOURCE "$MOUNT"): PENSTOCK_DISK=$MOUNT uses it as it is," \
        "PENSTOCK_MOUNT names another place"
fi
[ -z "$(ls -A "$MOUNT" 2>/dev/null)" ] ||
    fail "$MOUNT is not empty, and a mount would hide what is in it: move it, or set PENSTOCK_MOUNT"
tools=(mkfs.xfs)
[ ${#disks[@]} -eq 1 ] || tools+=(mdadm)
for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install xfsprogs mdadm"
done

# Nothing may be lost: all disks are empty, or all are ours.
num_empty=0
for device in "${devices[@]}"; do
    signatures=$(signatures_of "$device")
    case $signatures in
    "") num_empty=$((num_empty + 1)) ;;
    "xfs $LABEL") [ ${#disks[@]} -eq 1 ] || fail "$device has a file system of its own, made when it was used alone:" \
        "$0 $device uses it again, wipefs --all $device empties it" ;;
    "linux_raid_member "*":$LABEL") [ ${#disks[@]} -gt 1 ] || fail "$device is one of several disks of an array: name all" ;;
    *) fail "$device has data ($signatures): save it, then empty the disk with wipefs --all $device, or name the disks to use" ;;
    esac
done
[ "$num_empty" -eq 0 ] || [ "$num_empty" -eq ${#disks[@]} ] ||
    fail "of ${devices[*]} only some belong to an array: empty the others with wipefs --all"

# Several disks become one device.
target=${devices[0]}
if [ ${#disks[@]} -gt 1 ]; then
    if [ "$num_empty" -gt 0 ]; then
        # "any" is the host's name in the array: with another it would come back as /dev/md/HOST:penstock.
        mdadm --create "$ARRAY" --run --quiet --homehost=any --name="$LABEL" --level=0 \
            --raid-devices=${#disks[@]} "${devices[@]}" >&2
        array=$ARRAY
    elif [ -z "$array" ]; then
        mdadm --assemble --quiet "$ARRAY" "${devices[@]}" >&2
        array=$ARRAY
    fi
    target=$array
fi

# The file system. mkfs.xfs, too, refuses a device with a signature. Without -K it would discard terabytes that EC2 has
# discarded already.
case $(signatures_of "$target") in
"") mkfs.xfs -q -K -L "$LABEL" "$target" >&2 ;;
"xfs $LABEL") ;;
*) fail "$target has data ($(signatures_of "$target")): save it, then empty it with wipefs --all $target" ;;
esac
mkdir -p "$MOUNT"
said=$(mount -o noatime "$target" "$MOUNT" 2>&1 | one_line) ||
    fail "$target has our label but cannot be mounted ($said): wipefs --all $target empties it"
chmod 1777 "$MOUNT"
print_and_exit "$MOUNT"
