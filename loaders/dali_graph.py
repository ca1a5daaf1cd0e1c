# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (DALI builds its operators at run time; its stubs do not know them)
"""DALI's graph: windows of JPEGs on the CPU, whole batches on a GPU."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from loaders.augment_dali import augment
from loaders.backend import BackendSpec

NVJPEG_PADDING_BYTES = 16 << 20  # of decoder memory per thread: DALI's default; a larger image grows it once
AFFINITY = "DALI_AFFINITY_MASK"  # a core for each of a pipeline's threads, read when they start


def build_pipeline(spec: BackendSpec, inputs: Iterator[list[Any]]) -> Pipeline:
    """The graph, and what feeds it: each batch's encoded images, window anchors and shapes, and on a GPU more."""

    def feed() -> list[Any]:
        return next(inputs)

    @pipeline_def(
        batch_size=spec.batch_size,
        num_threads=spec.num_threads,
        device_id=spec.device.index if spec.decodes_on_gpu else None,
        prefetch_queue_depth=spec.batches_ahead,
        exec_dynamic=True,  # otherwise outputs kept by torch are overwritten
        set_affinity=bool(spec.cores),
        enable_conditionals=spec.decodes_on_gpu and spec.num_layers > 0,  # each image goes through its own operations
    )
    def graph() -> Any:
        kinds, ndims = _inputs(spec)
        encoded, anchors, shapes, *others = fn.external_source(
            source=feed, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds, ndim=ndims
        )
        windows = _decode(spec, encoded, _checked(encoded, anchors, shapes), shapes)
        return _finish(spec, windows, *others) if spec.decodes_on_gpu else windows

    if spec.cores:
        _pin(spec.cores, spec.num_threads)
    pipeline = graph()
    pipeline.build()
    return pipeline


def _inputs(spec: BackendSpec) -> tuple[list[Any], list[int]]:
    """Types and dimensions of what the graph is fed for each image."""
    kinds, ndims = [types.UINT8, types.INT64, types.INT64], [1, 1, 1]
    if spec.decodes_on_gpu:
        kinds, ndims = [*kinds, types.FLOAT], [*ndims, 1]
        if spec.crops:
            kinds, ndims = [*kinds, types.INT32], [*ndims, 1]
        if spec.num_layers:
            kinds, ndims = [*kinds, types.INT32, types.FLOAT, types.FLOAT], [*ndims, 1, 1, 3]
    return kinds, ndims


def _checked(encoded: Any, anchors: Any, shapes: Any) -> Any:
    """The anchors, of windows that lie inside their images.

    A header that cannot be parsed and a window beyond its image must fail here: in the decoder either ends the process
    by a segmentation fault now and then (DALI 2.4 on the CPU).
    """
    sides = fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)[:2]
    is_beyond = fn.reductions.min(sides - anchors - shapes, keep_dims=True) < 0
    # DALI has no assertion: where a window is beyond, three of two sides are asked for.
    sides = fn.slice(sides, np.zeros(1, np.int32), fn.cast(2 + is_beyond, dtype=types.INT32), axes=[0])
    return anchors + 0 * sides


def _decode(spec: BackendSpec, encoded: Any, anchors: Any, shapes: Any) -> Any:
    """The windows of the encoded images, either decoded alone or cut out of what is decoded whole."""
    # Windows are in stored pixels, and torchvision ignores EXIF too.
    options = {"output_type": types.RGB, "adjust_orientation": False, **_device_options(spec)}
    if spec.roi:
        return fn.decoders.image_slice(encoded, anchors, shapes, axis_names="HW", **options)
    return fn.slice(fn.decoders.image(encoded, **options), anchors, shapes, axis_names="HW")


def _device_options(spec: BackendSpec) -> dict[str, Any]:
    """Return the decoder's device and memory: pools that grow in the middle of an epoch stall it."""
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
    """Resize; crop or augment. A negative width flips as well. Triangular with antialias is Pillow's bilinear."""
    images = fn.resize(windows, size=sizes, interp_type=types.INTERP_TRIANGULAR, antialias=True)
    if spec.num_layers:
        return augment(images, *others, spec.num_layers)
    if spec.crops:
        # The shape must be an argument: as an input DALI keeps it on the GPU, and waits for the GPU to read it.
        (crops,) = others
        images = fn.slice(images, start=crops, shape=[spec.size, spec.size], axis_names="HW")
    return images


def _pin(cores: tuple[int, ...], num_threads: int) -> None:
    """Tells DALI, by the environment alone, which cores its threads go to. It stays: some start after the build."""
    os.environ[AFFINITY] = ",".join(str(cores[i % len(cores)]) for i in range(num_threads))
