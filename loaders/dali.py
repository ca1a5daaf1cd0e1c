"""The DALI backend: decode the windows of each plan on a GPU or the CPU, and finish the batch.

If a GPU decodes, DALI's graph does all of the work there. If the CPU decodes, DALI only decodes; torch resizes and
Pillow augments (loaders/resize.py), and the finished batch is uploaded to the model's device.

Three rules hold for memory and order:

* Inputs are passed to DALI without a copy (`no_copy`), so they must stay alive until DALI has read them.
* Outputs pass from DALI to torch through DLPack, without a copy.
* If a GPU decodes, its work is ordered by the loader's CUDA stream, not by waiting on the host.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from loaders.augment_dali import DALI_OPS, augment_arrays
from loaders.backends import Backend, BackendSpec, Pixels
from loaders.batch import upload
from loaders.dali_graph import build_pipeline
from loaders.plan import Plan
from loaders.quarantine import explain_shortage, find_bad_images
from loaders.reader import Encoded
from loaders.reference import PILLOW_OPS
from loaders.resize import Resizer

Pair = tuple[Plan, Encoded]


class Running(NamedTuple):
    """A batch that DALI has begun, with the arrays that it reads."""

    plan: Plan
    encoded: Encoded
    arrays: list[Any]


class DaliBackend(Backend):
    """Executes plans with NVIDIA DALI."""

    placements = ("cpu", "gpu")

    @classmethod
    def supported_ops(cls, decodes_on_gpu: bool) -> Collection[int]:
        return DALI_OPS if decodes_on_gpu else PILLOW_OPS

    def decode(self, pairs: Iterable[Pair]) -> Iterator[Pixels]:
        # DALI requests inputs some batches ahead of its outputs; `running` keeps what it may still read, in order.
        running: deque[Running] = deque()

        def inputs() -> Iterator[list[Any]]:
            for plan, encoded in pairs:
                arrays = make_inputs(plan, encoded, self.spec)
                running.append(Running(plan, encoded, arrays))
                yield arrays

        pipeline = build_pipeline(self.spec, inputs())

        def run() -> Any:
            return self._run_pipeline(pipeline, running)

        yield from self._finish_on_gpu(run, running) if self.spec.decodes_on_gpu else self._finish_on_cpu(run, running)

    def _finish_on_cpu(self, run: Callable[[], Any], running: deque[Running]) -> Iterator[Pixels]:
        """Resize and augment what DALI decoded on the CPU, and upload it.

        A batch is resized while this thread passes the next one to DALI and waits for its windows.
        """
        with Resizer(self.spec.num_threads, self.spec.device) as resizer:
            pending: deque[tuple[Plan, Future[torch.Tensor]]] = deque()
            while (windows := run()) is not None:
                # The CPU has decoded the batch, so its buffer is free.
                plan, encoded, _ = running.popleft()
                self.release(encoded)
                pending.append((plan, resizer.start(plan, windows)))
                if len(pending) > 1:
                    yield self._upload(*pending.popleft())
            while pending:
                yield self._upload(*pending.popleft())

    def _upload(self, plan: Plan, finished: "Future[torch.Tensor]") -> Pixels:
        """Wait for a finished batch, and copy it to the model's device."""
        started = time.perf_counter()
        host_BHWC = finished.result()
        self.counters.decode_seconds += time.perf_counter() - started
        return Pixels(plan, upload(host_BHWC, self.spec.device).permute(0, 3, 1, 2))

    def _finish_on_gpu(self, run: Callable[[], Any], running: deque[Running]) -> Iterator[Pixels]:
        """Pass DALI's finished batches to torch, and release the inputs that the GPU has read."""
        reading: deque[tuple[torch.cuda.Event, Running]] = deque()  # inputs that the GPU may still be reading
        while (outputs := run()) is not None:
            images_BCHW = torch.from_dlpack(outputs.as_tensor()).permute(0, 3, 1, 2)  # NHWC in memory

            # The work is only queued. When this event is reached, the GPU has read the inputs.
            decoded = torch.cuda.Event()
            decoded.record(self.spec.stream)
            inputs = running.popleft()
            reading.append((decoded, inputs))
            while reading and reading[0][0].query():
                _, oldest = reading.popleft()
                self.release(oldest.encoded)
            yield Pixels(inputs.plan, images_BCHW)

    def _run_pipeline(self, pipeline: Any, running: deque[Running]) -> Any:
        """Return DALI's output for the next batch, None after the last one.

        Raises:
            InputError: decoding failed, see `find_bad_images`.
        """
        started = time.perf_counter()
        try:
            return pipeline.run(_output_stream(self.spec))[0]
        except StopIteration:
            return None
        except RuntimeError as error:
            batches = [(each.plan, each.encoded) for each in running]
            raise find_bad_images(batches, self._find_failing, error, _describe_error(error)) from error
        finally:
            self.counters.decode_seconds += time.perf_counter() - started

    def _find_failing(self, plan: Plan, encoded: Encoded) -> list[int]:
        """Return the indices of the images of a batch that fail to decode alone.

        DALI reports that a batch failed, but not which image. So the images are decoded again with a batch size of 1.
        A pipeline cannot run again after an error: for the image after a failing one, a new pipeline is built.
        """
        failing, arrays = [], make_inputs(plan, encoded, self.spec)
        spec, first = replace(self.spec, batch_size=1, batches_ahead=1), 0
        while first < len(encoded.images):
            # A pipeline for all images from `first` on.
            singles = iter([[array[i : i + 1] for array in arrays] for i in range(first, len(encoded.images))])
            pipeline = build_pipeline(spec, singles)
            try:
                while True:
                    pipeline.run(_output_stream(spec))
                    first += 1
            except StopIteration:
                break
            except RuntimeError as error:
                if shortage := explain_shortage(error):
                    raise shortage from error
                failing.append(first)
                first += 1
        return failing


def _output_stream(spec: BackendSpec) -> torch.cuda.Stream | None:
    """Return the stream that waits for a pipeline's output; None for a pipeline on the CPU."""
    return spec.stream if spec.decodes_on_gpu else None


def _describe_error(error: RuntimeError) -> str:
    """Return the reason in DALI's error: between the definition of the pipeline and the C++ source location."""
    return " ".join(str(error).rpartition("encountered:")[2].partition("C++ context")[0].split())


def make_inputs(plan: Plan, encoded: Encoded, spec: BackendSpec) -> list[Any]:
    """Return the inputs of DALI's graph for one batch, in the order of `dali_graph.list_inputs`."""
    anchors_B2, shapes_B2 = np.ascontiguousarray(plan.windows_B4[:, :2]), np.ascontiguousarray(plan.windows_B4[:, 2:])
    arrays = [encoded.images, anchors_B2, shapes_B2]
    if not spec.decodes_on_gpu:
        return arrays
    signed_sizes_B2 = plan.resized_B2.astype(np.float32)
    signed_sizes_B2[plan.flips_B, 1] *= -1  # fn.resize flips if the width is negative
    arrays.append(signed_sizes_B2)
    if spec.crops_after_resize:
        arrays.append(plan.crops_B2.astype(np.int32))
    return arrays + augment_arrays(plan) if spec.num_layers else arrays
