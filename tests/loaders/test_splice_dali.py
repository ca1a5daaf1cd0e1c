# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (DALI builds its operators at run time; its stubs do not know them)
"""DALI on the CPU sees the same pixels in spliced JPEGs, decoded in full and by region."""

from dataclasses import replace
from typing import Any

import numpy as np
from helpers.restart_jpegs import USUAL, Kind, divisors, encoders_of
from helpers.splices import Window, cut, decode, restart
from nvidia.dali import Pipeline, fn, pipeline_def, types


def decode_by_dali(images: list[bytes], windows: list[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what DALI decodes of each image on the CPU: all of it, and a window's region."""

    @pipeline_def(batch_size=len(images), num_threads=2, device_id=None)  # no GPU
    def define() -> Any:
        encoded, corners, shapes = fn.external_source(
            lambda: (
                [np.frombuffer(each, np.uint8) for each in images],
                [np.array(each[:2], np.int32) for each in windows],
                [np.array(each[2:], np.int32) for each in windows],
            ),
            num_outputs=3,
            dtype=[types.UINT8, types.INT32, types.INT32],
        )
        full = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        region = fn.decoders.image_slice(encoded, corners, shapes, device="cpu", output_type=types.RGB, axes=[0, 1])
        return full, region

    pipeline: Pipeline = define()
    pipeline.build()
    full, regions = (output.as_cpu() for output in pipeline.run())
    return [np.array(full.at(i)) for i in range(len(images))], [np.array(regions.at(i)) for i in range(len(images))]


def test_dali_sees_the_same_pixels() -> None:
    """Seven windows of each of 18 images: one batch of complete and one of spliced JPEGs."""
    files, spliced, windows, moved = [], [], [], []
    whole: list[np.ndarray] = []
    for number, colours in enumerate(3 * USUAL):
        height, width = (41 + 7 * number, 90 + 3 * number) if number % 2 else (130 + number, 61 + number)
        kind = Kind(colours, height, width, 0, encoders_of(colours)[number % len(encoders_of(colours))])
        kind = replace(kind, interval=divisors(kind.num_mcus[1])[number % 2])
        restarted = restart(kind)
        step = kind.mcu_size[1] * kind.interval
        chosen: list[Window] = [
            *((height // 3, width // 3, height // 4, width // 4), (16, 16, 16, 32), (0, 0, height, width)),
            *((15, min(step, width - 17), 18, 17), (height - 3, width - 3, 3, 3), (8, 32, 9, 8), (0, 31, 5, 2)),
        ]
        spans = restarted.spans(*chosen)
        for i, window in enumerate(chosen):
            files.append(restarted.data)
            spliced.append(restarted.splice(spans, i))
            windows.append(window)
            moved.append(spans.windows_B4[i])
            whole.append(decode(restarted.data))
    full, regions = decode_by_dali(files, windows)
    full_spliced, regions_spliced = decode_by_dali(spliced, moved)
    assert len(full) == 7 * 3 * len(USUAL)
    assert sum(pixels.size for pixels in full_spliced) < sum(pixels.size for pixels in full) / 2
    for i, pixels in enumerate(whole):
        pixels_HWC = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
        assert np.array_equal(full[i], pixels_HWC), i
        window = cut(full[i], windows[i])
        assert np.array_equal(cut(full_spliced[i], moved[i]), window), i
        assert np.array_equal(regions_spliced[i], regions[i]), i
