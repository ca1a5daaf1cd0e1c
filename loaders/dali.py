# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (DALI builds its operators at run time; its stubs do not know them)
"""The DALI backend: one graph for GPU and CPU that decodes each plan's windows, resizes and flips them.

Rules it keeps: `no_copy` inputs stay alive until their batch is consumed; outputs pass to torch through DLPack
without a copy; on a GPU nothing synchronises with the host, an event says when a batch is usable.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from loaders.backend import Backend, BackendSpec, Pixels
from loaders.blame import explain_decode_error
from loaders.plan import Plan
from loaders.reader import Encoded

Pair = tuple[Plan, Encoded]
NVJPEG_PADDING_BYTES = 16 << 20  # spare decoder memory, so that a batch of large files does not stall to grow it


class DaliBackend(Backend):
    """Executes plans with NVIDIA DALI."""

    def decode(self, pairs: Iterable[Pair]) -> Iterator[Pixels]:
        running: deque[tuple[Pair, list[Any]]] = deque()  # inputs of batches that DALI has begun
        remaining = iter(pairs)

        def feed() -> list[Any]:
            pair = next(remaining)
            arrays = _arrays(*pair, self.spec.crops)
            running.append((pair, arrays))
            return arrays

        pipeline = build_pipeline(self.spec, feed)
        on_gpu = self.spec.device.type == "cuda"
        yield from self._run_on_gpu(pipeline, running) if on_gpu else self._run_on_cpu(pipeline, running)

    def _run_on_cpu(self, pipeline: Pipeline, running: deque[Any]) -> Iterator[Pixels]:
        while (outputs := self._run(pipeline, running, None)) is not None:
            (plan, encoded), _ = running.popleft()
            self.release(encoded)
            yield Pixels(plan, _as_torch(outputs))

    def _run_on_gpu(self, pipeline: Pipeline, running: deque[Any]) -> Iterator[Pixels]:
        stream = torch.cuda.Stream(self.spec.device)
        reading: deque[tuple[torch.cuda.Event, Any]] = deque()  # inputs that the GPU may still be reading
        with torch.cuda.stream(stream):
            while (outputs := self._run(pipeline, running, stream)) is not None:
                images_BCHW = _as_torch(outputs)
                ready = torch.cuda.Event()
                ready.record(stream)
                inputs = running.popleft()
                reading.append((ready, inputs))
                while reading and reading[0][0].query():
                    _, ((_, encoded), _) = reading.popleft()
                    self.release(encoded)
                yield Pixels(inputs[0][0], images_BCHW, ready)

    def _run(self, pipeline: Pipeline, running: deque[Any], stream: torch.cuda.Stream | None) -> Any:
        started = time.perf_counter()
        try:
            return pipeline.run(stream)[0]
        except StopIteration:
            return None
        except RuntimeError as error:
            raise explain_decode_error([pair for pair, _ in running], error) from error
        finally:
            self.stats.decode_seconds += time.perf_counter() - started


def _arrays(plan: Plan, encoded: Encoded, crops: bool) -> list[Any]:
    """The graph's inputs: encoded images, window anchors and shapes, signed sizes, and crops where there are any."""
    signed_sizes_B2 = plan.resized_B2.astype(np.float32)
    signed_sizes_B2[plan.flips_B, 1] *= -1
    anchors_B2, shapes_B2 = np.ascontiguousarray(plan.windows_B4[:, :2]), np.ascontiguousarray(plan.windows_B4[:, 2:])
    arrays = [encoded.images, anchors_B2, shapes_B2, signed_sizes_B2]
    return [*arrays, plan.crops_B2.astype(np.int32)] if crops else arrays


def _as_torch(outputs: Any) -> torch.Tensor:
    """NHWC in DALI's memory -> BCHW, channels_last, in the same memory."""
    return torch.from_dlpack(outputs.as_tensor()).permute(0, 3, 1, 2)


def build_pipeline(spec: BackendSpec, feed: Callable[[], list[Any]]) -> Pipeline:
    """The graph; `feed` gives one batch's inputs and raises StopIteration when there are no more."""
    on_gpu = spec.device.type == "cuda"

    @pipeline_def(
        batch_size=spec.batch_size,
        num_threads=spec.num_threads,
        device_id=spec.device.index if on_gpu else None,
        prefetch_queue_depth=spec.batches_ahead,
        exec_dynamic=True,  # otherwise outputs kept by torch are overwritten
    )
    def graph() -> Any:
        kinds = [types.UINT8, types.INT64, types.INT64, types.FLOAT] + [types.INT32] * spec.crops
        inputs = fn.external_source(
            source=feed, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds, ndim=[1] * len(kinds)
        )
        encoded, anchors, shapes, sizes, *crops = inputs
        # A header that cannot be parsed must fail here: in the decoder it ends the process now and then (DALI 2.4).
        anchors += 0 * fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)[:2]
        images = fn.decoders.image_slice(
            encoded,
            anchors,
            shapes,
            axis_names="HW",
            output_type=types.RGB,
            adjust_orientation=False,  # windows are in stored pixels, and torchvision ignores EXIF too
            **(_gpu_decoder_options(spec) if on_gpu else {"device": "cpu"}),
        )
        # A negative width flips in the same pass. Triangular with antialias is Pillow's bilinear.
        images = fn.resize(images, size=sizes, interp_type=types.INTERP_TRIANGULAR, antialias=True)
        if not crops:
            return images
        square = (spec.size, spec.size)
        return fn.slice(images, crops[0], square, axis_names="HW", normalized_anchor=False, normalized_shape=False)

    pipeline = graph()
    pipeline.build()
    return pipeline


def _gpu_decoder_options(spec: BackendSpec) -> dict[str, Any]:
    """Decoder memory from the index's own maxima: pools that grow in the middle of an epoch are stalls."""
    return {
        "device": "mixed",
        "hw_decoder_load": spec.hw_decoder_load,
        "preallocate_width_hint": spec.max_width,
        "preallocate_height_hint": spec.max_height,
        "device_memory_padding": NVJPEG_PADDING_BYTES,
        "host_memory_padding": NVJPEG_PADDING_BYTES,
    }
