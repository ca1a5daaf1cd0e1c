#!/usr/bin/env bash
# Build this checkout's .venv for a GPU machine; do nothing if it is current.
#
# It holds uv's own Python 3.13 (Ubuntu 22.04 has 3.10), the packages of constraints.txt, DALI for CUDA 13 and obstore.
# PyTorch brings its own CUDA libraries, so the machine needs a driver alone. EXTRAS (cu13,s3) are those of pyproject.toml.
set -euo pipefail

EXTRAS=${EXTRAS:-cu13,s3}
PYTHON_VERSION=3.13
UV_VERSION=0.13.9
DRIVER=580 # the oldest that runs CUDA 13
checkout=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
tools=${HOME:-/root}/.local/bin # where uv is installed if the machine has none

fail() {
    echo "error: $*" >&2
    exit 1
}

# The driver. A machine without GPUs (where an image is built, or a test runs) has none.
if command -v nvidia-smi >/dev/null; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1 | head -n 1) || driver=${driver:-nothing}
    [[ $driver =~ ^[0-9]+\. ]] || fail "nvidia-smi answers '$driver' instead of the driver's version: is the driver loaded?"
    [ "${driver%%.*}" -ge "$DRIVER" ] ||
        fail "the NVIDIA driver is $driver, CUDA 13 needs $DRIVER or newer: use a newer image (cloud/README.md names one)"
fi

# Make, and a compiler: torch.compile builds its launchers with it.
for tool in make cc; do
    command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install build-essential"
done
if make --silent --question -C "$checkout" .venv/.installed EXTRAS="$EXTRAS"; then
    exit 0
fi

# uv, its Python, and the environment.
export PATH=$PATH:$tools
if ! command -v uv >/dev/null; then
    curl --fail --silent --show-error --location "https://astral.sh/uv/$UV_VERSION/install.sh" |
        UV_UNMANAGED_INSTALL=$tools sh
fi
uv python install --quiet "$PYTHON_VERSION"
python=$(uv python find --managed-python "$PYTHON_VERSION")
make -C "$checkout" env PYTHON="$python" EXTRAS="$EXTRAS"
