"""The DALI backend: decodes each plan's windows on a GPU or the CPU, resizes and flips them.

Rules it keeps: `no_copy` inputs stay alive until their batch is consumed; outputs pass to torch through DLPack
without a copy; where a GPU takes part nothing synchronises with the host, work is ordered by the loader's stream.
If the CPU decodes, torch resizes and Pillow augments there (`loaders/resize.py`), and the finished batch is uploaded
to the model's device. If a GPU decodes, DALI's graph does all of it there.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from loaders.augment_dali import LOWERINGS, augment_arrays
from loaders.augment_pillow import FUNCTIONS
from loaders.backend import Backend, BackendSpec, Pixels
from loaders.blame import blame, explain_shortage
from loaders.dali_graph import build_pipeline
from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.resize import Resizer
from loaders.upload import upload

Pair = tuple[Plan, Encoded]


class DaliBackend(Backend):
    """Executes plans with NVIDIA DALI."""

    placements = ("cpu", "gpu")

    @classmethod
    def lowered(cls, decodes_on_gpu: bool) -> Collection[int]:
        return LOWERINGS if decodes_on_gpu else FUNCTIONS

    def decode(self, pairs: Iterable[Pair]) -> Iterator[Pixels]:
        running: deque[tuple[Pair, list[Any]]] = deque()  # inputs of batches that DALI has begun

        def inputs() -> Iterator[list[Any]]:
            for pair in pairs:
                arrays = _arrays(*pair, self.spec)
                running.append((pair, arrays))
                yield arrays

        pipeline = build_pipeline(self.spec, inputs())

        def run() -> Any:
            return self._run(pipeline, running)

        yield from self._on_gpu(run, running) if self.spec.decodes_on_gpu else self._on_cpu(run, running)

    def _on_cpu(self, run: Callable[[], Any], running: deque[Any]) -> Iterator[Pixels]:
        with Resizer(self.spec.num_threads, self.spec.device) as resize:
            while (windows := run()) is not None:
                (plan, encoded), _ = running.popleft()
                self.release(encoded)
                started = time.perf_counter()
                host_BHWC = resize(plan, windows)
                self.counters.decode_seconds += time.perf_counter() - started
                images_BHWC = upload(host_BHWC, self.spec.device)
                yield Pixels(plan, images_BHWC.permute(0, 3, 1, 2))

    def _on_gpu(self, run: Callable[[], Any], running: deque[Any]) -> Iterator[Pixels]:
        reading: deque[tuple[torch.cuda.Event, Any]] = deque()  # inputs that the GPU may still be reading
        while (outputs := run()) is not None:
            images_BCHW = torch.from_dlpack(outputs.as_tensor()).permute(0, 3, 1, 2)  # NHWC in memory
            decoded = torch.cuda.Event()
            decoded.record(self.spec.stream)
            inputs = running.popleft()
            reading.append((decoded, inputs))
            while reading and reading[0][0].query():
                _, ((_, encoded), _) = reading.popleft()
                self.release(encoded)
            yield Pixels(inputs[0][0], images_BCHW)

    def _run(self, pipeline: Any, running: deque[Any]) -> Any:
        started = time.perf_counter()
        try:
            return pipeline.run(_stream(self.spec))[0]
        except StopIteration:
            return None
        except RuntimeError as error:
            raise blame([pair for pair, _ in running], self._find_failing, error, _reason(error)) from error
        finally:
            self.counters.decode_seconds += time.perf_counter() - started

    def _find_failing(self, plan: Plan, encoded: Encoded) -> list[int]:
        """The places of the images that fail alone; what fails ends its pipeline, so the next one gets a new one."""
        failing, arrays = [], _arrays(plan, encoded, self.spec)
        spec, first = replace(self.spec, batch_size=1, batches_ahead=1), 0
        while first < len(encoded.images):
            singles = iter([[array[i : i + 1] for array in arrays] for i in range(first, len(encoded.images))])
            pipeline = build_pipeline(spec, singles)
            try:
                while True:
                    pipeline.run(_stream(spec))
                    first += 1
            except StopIteration:
                break
            except RuntimeError as error:
                if shortage := explain_shortage(error):
                    raise shortage from error
                failing.append(first)
                first += 1
        return failing


def _stream(spec: BackendSpec) -> torch.cuda.Stream | None:
    """Return the stream that waits for a pipeline's output; a pipeline of the CPU has none."""
    return spec.stream if spec.decodes_on_gpu else None


def _reason(error: RuntimeError) -> str:
    """DALI's own words, without the definition of the pipeline before and the place in its source after them."""
    return " ".join(str(error).rpartition("encountered:")[2].partition("C++ context")[0].split())


def _arrays(plan: Plan, encoded: Encoded, spec: BackendSpec) -> list[Any]:
    """The graph's inputs: encoded images, windows' anchors and shapes; on a GPU signed sizes, crops, operations."""
    anchors_B2, shapes_B2 = np.ascontiguousarray(plan.windows_B4[:, :2]), np.ascontiguousarray(plan.windows_B4[:, 2:])
    arrays = [encoded.images, anchors_B2, shapes_B2]
    if not spec.decodes_on_gpu:
        return arrays
    signed_sizes_B2 = plan.resized_B2.astype(np.float32)
    signed_sizes_B2[plan.flips_B, 1] *= -1
    arrays.append(signed_sizes_B2)
    if spec.crops:
        arrays.append(plan.crops_B2.astype(np.int32))
    return arrays + augment_arrays(plan) if spec.num_layers else arrays
