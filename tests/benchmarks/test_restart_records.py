"""Benchmarks on restart shards: the bytes and MCUs that are counted, the verdict's storage, the GPU suite, reports."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import prepare_folder
from helpers.restarts import KINDS, MCUS, make_jpeg, needs_transcoder

from loaders import LoaderConfig, Split, TrainTransform, build_loader
from loaders.splice import find_spans
from prep.dataset import Options
from prep.errors import InputError
from prep.segments import parse_records

pytestmark = needs_transcoder
NUM_IMAGES, BATCH_SIZE, SIZE = 24, 8, 32


def part(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs of all subsamplings as restart shards, in `restarts`, and without restart markers, in `originals`."""
    folder = tmp_path_factory.mktemp("restarts")
    (folder / "source" / "train" / "noise").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        content = make_jpeg(KINDS[number % len(KINDS)], 300 + number, 200 - number, seed=number)
        (folder / "source" / "train" / "noise" / f"{number:02}.jpg").write_bytes(content)
    prepare_folder(folder / "source", "train", folder / "originals")
    prepare_folder(folder / "source", "train", folder / "restarts", Options(restarts=True))
    return folder


def test_what_an_epoch_reads_and_decodes_is_counted(shards: Path) -> None:
    split = Split(shards / "restarts", "train")
    found = part("peers.penstock_peer").count_epoch(shards / "restarts", "train", SIZE)

    # The sizes of the spliced images, computed without reading an image.
    loader = build_loader(split, TrainTransform(SIZE), NUM_IMAGES)
    plan = loader.plan(0)
    records = parse_records(split.segments_path(0).read_bytes(), "", NUM_IMAGES)[plan.rows_B]
    heights_B, widths_B = (split.column(name)[plan.rows_B].astype(np.int64) for name in ("height", "width"))
    sizes_B2 = find_spans(records, heights_B, widths_B, plan.windows_B4, plan.damaged_B).sizes_B2
    kinds = [KINDS[(int(width) - 300) % len(KINDS)] for width in widths_B]  # the widths tell the images apart
    mcus_B2 = np.array([MCUS[kind] for kind in kinds])[:, ::-1]
    decoded, complete = (
        (-(-sides_B2 // mcus_B2)).prod(axis=1).sum() for sides_B2 in (sizes_B2, np.stack([heights_B, widths_B], axis=1))
    )
    assert found["mcu_share"] == decoded / complete < 1
    assert found["num_images"] == NUM_IMAGES and found["spliced_share"] == 1
    assert found["decoded_share"] < found["read_share"] < 1
    originals = Split(shards / "originals", "train").column("size").sum()
    assert found["size_ratio"] == split.column("size").sum() / originals
    assert found["index_bytes_per_image"] == split.segments_path(0).stat().st_size / NUM_IMAGES


def test_stages_show_the_bytes_that_are_read(shards: Path) -> None:
    stages = part("stages")
    shares = {}
    for splice in ("auto", "off"):
        config = LoaderConfig(splice=splice)
        loader = build_loader(Split(shards / "restarts", "train"), TrainTransform(SIZE), BATCH_SIZE, config=config)
        with stages.open_stages("read", loader, stages.Setting(seconds=0.02)) as opened:
            windows = stages.run_rounds(opened, 1, lambda *_: None)
        stage = stages.describe_stages(windows, loader.world)["read warm"]
        each = shares[splice] = stage["bytes_per_image"]
        assert stage["megabytes_per_second"]["median"] == pytest.approx(
            each["read"] * stage["images_per_second"]["median"] / 1e6
        )
        assert part("probes").find_read_share(stage) == each["read"] / each["stored"]
    assert shares["auto"]["decoded"] < shares["auto"]["read"] < shares["auto"]["stored"]
    assert shares["off"]["decoded"] == shares["off"]["read"] == shares["off"]["stored"]


def test_smaller_files_are_probed_with_complete_images(shards: Path) -> None:
    stages, probes = part("stages"), part("probes")
    loader = build_loader(Split(shards / "restarts", "train"), TrainTransform(SIZE), BATCH_SIZE)
    whole, spliced = stages.hold_batches(loader, splices=False), stages.hold_batches(loader)
    assert probes.mean_image_bytes(spliced) < probes.mean_image_bytes(whole)
    assert np.array_equal(whole[0][0].windows_B4, loader.plan(0).windows_B4)
    with stages.Decoding(loader, spliced) as stage:
        stage.take()  # windows are inside the spliced images


def test_storage_must_deliver_only_what_is_read() -> None:
    verdict, test_verdict = part("verdict"), part("test_verdict")
    slow = test_verdict.build(read_cold=100.0, fits_memory=False, train=99.0)
    spliced = replace(slow, read_share=0.7)
    needed = []
    for figures in (slow, spliced):
        probes = {verdict.SMALLER_FILES: verdict.Probe(rate=1.5, cpu=0.7, value=55_000.0)}
        found = verdict.advise(figures, probes, verdict.Scaling(2.0, 2.0))
        needed += [each.change["megabytes_per_second"] for each in found if "megabytes_per_second" in each.change]
        (files,) = (each.what for each in found if "max_side" in each.change)
        assert ("--restarts" in files) == (figures is spliced)
        said = list(verdict._describe_storage(figures))
        assert ("Of an image's 110 KB, 70% are read" in said[0]) == (figures is spliced)
    assert needed[1] == pytest.approx(0.7 * needed[0])


def test_the_suites_cases_need_restart_shards(tmp_path: Path) -> None:
    cases, suite = part("gpu.cases"), part("test_gpu_suite")
    options = suite.options(tmp_path, "cuda")
    found = {case.name: case for case in cases.build_cases(options, True)}
    chosen = [case for name, case in found.items() if name.startswith(cases.RESTARTS)]
    assert not any(case.unable for case in chosen) and chosen[-1].path == "roi-0.99"
    assert cases.estimate_seconds(cases.choose_cases(list(found.values()), ("restarts-*",), {}))[0] < 240
    for case in chosen:
        job = cases.resolve_job(case, {})
        assert job["loader"]["splice"] == ("off" if case.name.endswith(("-off", "-rows")) else "auto")
        assert LoaderConfig(**job["loader"]).placement == ("cpu" if case.path == "cpu" else "gpu")
    skipped = [case.unable for case in cases.build_cases(options, False) if case.name.startswith(cases.RESTARTS)]
    assert skipped == ["needs --data that was prepared with --restarts"] * len(chosen)


def test_spliced_pixels_and_rates_are_measured(shards: Path, tmp_path: Path) -> None:
    job = part("test_gpu_suite_cases").SMALL | {"data": str(shards / "restarts"), "work": str(tmp_path)}
    job |= {"batch_size": BATCH_SIZE, "num_images": NUM_IMAGES}
    del job["resize"]
    results = {}
    for splice in ("off", "rows", "auto"):
        job |= {"splice": splice, "loader": {"decode": "full", "splice": "auto" if splice == "auto" else "off"}}
        (right,) = part("gpu.pixels").compare_with_reference(job)
        assert right["verdict"] == "right" and set(right) >= {"train"} and "evaluation" not in right
        (rates,) = part("gpu.rates").measure_decoding(job)
        results[f"restarts-decode-full-0-{splice}"] = {"status": "done", "result": rates}
    wrong = {"status": "done", "result": right | {"verdict": "wrong"}}
    lines = list(part("reports.gpu_runs")._conclude_restarts(results | {"restarts-parity-full-0": wrong}))
    assert len(lines) == 3 and all(line.endswith("whole ones") for line in lines[:2])
    assert "restarts-decode-full-0: rows only " in lines[0] and "restarts-decode-full-0: spliced " in lines[1]
    assert lines[2] == "restarts-parity-full-0: NO-GO, spliced images are wrong"


def test_a_pack_without_segments_is_refused(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "train"
    copy.mkdir()
    for path in (shards / "restarts" / "train").iterdir():
        if path.suffix != ".seg":
            (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"train-000000\.seg is missing: prepare the dataset again"):
        part("gpu_pack").check_shards(tmp_path)


def test_preparation_races_with_and_without_restart_markers(shards: Path, tmp_path: Path) -> None:
    prepare, race = part("prepare"), "original bytes, checked"
    options = prepare.Write(source=str(shards / "source"), smaller_images=NUM_IMAGES, race=race, repetitions=1)
    results, unable = prepare.run_races(options, tmp_path)
    contenders = results[race]["contenders"]
    ours, restarts = contenders["penstock"], contenders["penstock-restarts"]
    assert unable["failed"] == {} and restarts["output_bytes"] != ours["output_bytes"]
    cost = ours["images_per_second"]["median"] / restarts["images_per_second"]["median"]
    assert restarts["ours_in_images_per_second"]["median"] == pytest.approx(cost)
