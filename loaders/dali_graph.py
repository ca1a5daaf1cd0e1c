# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (DALI builds its operators at run time; its stubs do not describe them)
"""DALI's graph. On the CPU it returns decoded windows; on a GPU it returns finished batches.

    external source    encoded JPEG, window (anchor, shape)          | on a GPU also: signed size, crop, operations
      -> _check_windows  fails if a window ends beyond the size in its image's header
      -> _decode         uint8 [height, width, 3] of each window
      -> _finish         on a GPU: resize and flip the window; then augment (training) or crop the centre (evaluation)

A window is the part of the stored image that is used: the random crop in training, (almost) the full image in
evaluation. Signed size: the size after resizing; a negative width also flips.

The functions below are called once, when the pipeline is built: they describe the graph, and DALI runs it for each
batch. Variables here stand for one image, so they have no suffix `_B` as elsewhere.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from loaders.augment_dali import apply_ops
from loaders.backends import BackendSpec

# Bytes per decoder thread, DALI's default for device memory. A larger image makes the decoder allocate again.
NVJPEG_PADDING_BYTES = 16 << 20
# Environment variable with one core per pipeline thread; DALI reads it when a thread starts.
AFFINITY = "DALI_AFFINITY_MASK"


def build_pipeline(spec: BackendSpec, inputs: Iterator[list[Any]]) -> Pipeline:
    """Build the pipeline. It requests the inputs of a batch (see `list_inputs`) with `next(inputs)`."""

    def next_inputs() -> list[Any]:
        """Return the next batch's inputs. DALI calls this in the thread that runs it; StopIteration ends the stream."""
        return next(inputs)

    @pipeline_def(
        batch_size=spec.batch_size,
        num_threads=spec.num_threads,
        device_id=spec.device.index if spec.decodes_on_gpu else None,
        prefetch_queue_depth=spec.batches_ahead,
        exec_dynamic=True,  # the other executors would overwrite outputs that torch still holds
        set_affinity=bool(spec.cores),
        # `apply_ops` runs each image only through the branch of its operation.
        enable_conditionals=spec.decodes_on_gpu and spec.num_layers > 0,
    )
    def graph() -> Any:
        # Inputs, without a copy: `DaliBackend` keeps them until DALI, and then the GPU, has read them.
        kinds, ndims = list_inputs(spec)
        encoded, anchors, shapes, *gpu_inputs = fn.external_source(
            source=next_inputs, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds, ndim=ndims
        )
        # Decode. On the CPU, loaders/resize.py finishes the windows.
        windows = _decode(spec, encoded, _check_windows(encoded, anchors, shapes), shapes)
        return _finish(spec, windows, *gpu_inputs) if spec.decodes_on_gpu else windows

    if spec.cores:
        _pin_threads(spec.cores, spec.num_threads)
    pipeline = graph()
    pipeline.build()
    return pipeline


def list_inputs(spec: BackendSpec) -> tuple[list[Any], list[int]]:
    """Return the type, and the number of dimensions per image, of each input of the graph."""
    # Encoded image; anchor (top, left) and shape (height, width) of its window.
    kinds, ndims = [types.UINT8, types.INT64, types.INT64], [1, 1, 1]
    if spec.decodes_on_gpu:
        # Size after resizing (height, width); a negative width flips.
        kinds, ndims = [*kinds, types.FLOAT], [*ndims, 1]
        if spec.crops_after_resize:
            # Top and left of the crop.
            kinds, ndims = [*kinds, types.INT32], [*ndims, 1]
        if spec.num_layers:
            # `augment_arrays`: branch, argument and matrix of each operation.
            kinds, ndims = [*kinds, types.INT32, types.FLOAT, types.FLOAT], [*ndims, 1, 1, 3]
    return kinds, ndims


def _check_windows(encoded: Any, anchors: Any, shapes: Any) -> Any:
    """Return the anchors, unchanged; make DALI fail if a header cannot be parsed or a window ends beyond its size.

    A window ends beyond the size in the header if the file differs from the index. Without this check the decoder
    sometimes ends the process by a segmentation fault (DALI 2.4, CPU). With it, the batch fails with a Python
    exception, and the backend finds the image.

    `peek_image_shape` fails on a bad header. For windows DALI has no assertion. So `sides` (2 elements) is sliced:
    2 elements if the window is inside, which succeeds; 3 if not, which fails.
    """
    sides = fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)[:2]
    is_outside = fn.reductions.min(sides - anchors - shapes, keep_dims=True) < 0
    checked = fn.slice(sides, np.zeros(1, np.int32), fn.cast(2 + is_outside, dtype=types.INT32), axes=[0])
    # DALI removes operators without a used result. The sum makes the decoder depend on the check.
    return anchors + 0 * checked


def _decode(spec: BackendSpec, encoded: Any, anchors: Any, shapes: Any) -> Any:
    """Return the windows: decode only them (roi), or decode the full images and cut the windows out."""
    # Windows are in stored pixels: ignore the EXIF orientation, as torchvision does.
    options = {"output_type": types.RGB, "adjust_orientation": False, **_device_options(spec)}
    if spec.roi:
        return fn.decoders.image_slice(encoded, anchors, shapes, axis_names="HW", **options)
    return fn.slice(fn.decoders.image(encoded, **options), anchors, shapes, axis_names="HW")


def _device_options(spec: BackendSpec) -> dict[str, Any]:
    """Return the decoder's device; on a GPU also the memory to allocate at the start.

    Allocating in the middle of an epoch would make training wait.
    """
    if not spec.decodes_on_gpu:
        return {"device": "cpu"}
    return {
        "device": "mixed",
        "hw_decoder_load": spec.hw_decoder_load,
        "preallocate_width_hint": spec.width_hint,
        "preallocate_height_hint": spec.height_hint,
        "device_memory_padding": NVJPEG_PADDING_BYTES,
        "host_memory_padding": NVJPEG_PADDING_BYTES,
    }


def _finish(spec: BackendSpec, windows: Any, sizes: Any, *others: Any) -> Any:
    """Return the finished images: resize and flip; then augment or crop, never both: evaluation has no operations."""
    # A triangular filter with antialias is Pillow's bilinear. A negative width also flips.
    images = fn.resize(windows, size=sizes, interp_type=types.INTERP_TRIANGULAR, antialias=True)
    if spec.num_layers:
        return apply_ops(images, *others, spec.num_layers)
    if spec.crops_after_resize:
        # The shape is a constant. An input would be on the GPU, and DALI would have to wait to read it.
        (crops,) = others
        images = fn.slice(images, start=crops, shape=[spec.size, spec.size], axis_names="HW")
    return images


def _pin_threads(cores: tuple[int, ...], num_threads: int) -> None:
    """Set the environment variable that tells DALI the cores of its threads.

    DALI has no other way. The variable stays set, since some threads start after the pipeline is built.
    """
    os.environ[AFFINITY] = ",".join(str(cores[i % len(cores)]) for i in range(num_threads))
