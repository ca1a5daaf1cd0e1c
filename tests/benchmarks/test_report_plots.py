"""The pictures show the figures of the record, and have the same bytes each time."""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT, run_command
from PIL import Image

SCRIPT = CHECKOUT / "benchmarks" / "report.py"
PICTURES = CHECKOUT / "docs" / "pictures"


@pytest.fixture
def plots() -> Any:
    """The module that draws."""
    return importlib.import_module("reports.plots")


def draw(plots: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The axes of a record's pictures, by the names of their files."""
    record = importlib.import_module("reports.records").Record(Path("record.json"), "record.json", content)
    return {picture.name: picture.draw().axes[0] for picture in plots.list_pictures(record)}


def test_bars_are_as_long_as_the_peers_rates(plots: Any) -> None:
    content = recorded.read("peers.json")
    ax = draw(plots, content)["record.png"]
    races = [{k: v for k, v in race.items() if k != "penstock-original"} for race in content["races"].values()]
    rates = [sorted((each["images_per_second"]["median"] for each in race.values()), reverse=True) for race in races]
    assert [patch.get_width() for patch in ax.patches] == [rate for race in rates for rate in race]
    spreads = sorted(tuple(line.get_xdata()) for line in ax.lines)
    assert spreads == sorted(
        (each["images_per_second"]["min"], each["images_per_second"]["max"]) for race in races for each in race.values()
    )
    colors = [patch.get_facecolor() for patch in ax.patches]
    assert colors.count(colors[0]) == len(races) and len(set(colors)) == 2  # Penstock once per race; the others alike
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == "Penstock" and len(names) == sum(map(len, races))
    texts = [text.get_text() for text in ax.texts]
    for ratio in (each["ours_in_images_per_second"] for name, each in races[0].items() if name != "penstock"):
        assert f"{ratio:.2f} ×" in texts


def test_bars_of_restart_shards_are_compared_with_the_original_ones(plots: Any) -> None:
    ax = draw(plots, recorded.restarts())["record.png"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    ours, reader, peer = (names.index(each) for each in ("Penstock, restarts", "webdataset, restarts", "LitData"))
    colors = [patch.get_facecolor() for patch in ax.patches]
    assert colors[ours] == colors[names.index("Penstock")] != colors[reader] == colors[peer]
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("Penstock is") == 1  # the readers' race has no such ratios
    assert {"1.25 × originals", "0.96 × originals"} <= set(texts)


def test_a_batchs_time_is_stacked_by_thread(plots: Any) -> None:
    content = recorded.throughput()
    threads = {name: (parts, period) for name, parts, period in plots.list_threads(content)}
    assert list(threads) == ["the loader alone", "training: its loop", "training: the loader"]
    assert threads["training: its loop"][0] == {"wait": 20.0, "take": 2.0, "step": 100.0}
    parts, period = threads["the loader alone"]
    assert threads["training: the loader"][0] == parts == {"read": 5.0, "decode": 110.0, "copy": 6.0}
    assert period == pytest.approx(1000 * 64 * (1 / 500 + 1 / 512 + 1 / 520) / 3)
    ax = draw(plots, content)["record.png"]
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches if patch.get_y() == ax.patches[0].get_y()]
    assert ends == pytest.approx([period, 5.0, 115.0, 121.0])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        *("wait", "take", "step", "read", "decode", "copy", "idle")
    }


def test_a_single_point_is_no_curve(plots: Any) -> None:
    content = recorded.sweeps()
    assert list(draw(plots, {**content, "threads": content["threads"][:1]})) == ["record-sizes.png"]


def test_sweeps_are_curves_from_zero(plots: Any) -> None:
    drawn = draw(plots, recorded.sweeps())
    ax = drawn["record-threads.png"]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(ax.lines[0].get_ydata()) == [700, 1300, 1310, 1290]
    assert ax.get_ylim()[0] == 0 and "2 cores" in [text.get_text() for text in ax.texts]
    ax = drawn["record-sizes.png"]
    assert list(ax.lines[0].get_xdata()) == [28.0, 54.0, 112.0]
    assert list(ax.lines[0].get_ydata()) == [2700, 2000, 1300]


def test_the_command_draws_the_same_each_time(plots: Any, tmp_path: Path) -> None:
    kinds = (recorded.throughput, recorded.sweeps)
    paths = [recorded.write(tmp_path, f"{kind.__name__}.json", kind()) for kind in kinds]
    paths.append(recorded.RECORDS / "peers.json")
    done = run_command(SCRIPT, *paths, "--pictures", tmp_path / "once")
    assert done.returncode == 0, done.stderr
    names = ["peers.png", "sweeps-sizes.png", "sweeps-threads.png", "throughput.png"]
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == names
    report, records = (importlib.import_module(name) for name in ("report", "reports.records"))
    report.draw_pictures([records.read_record(path) for path in paths], tmp_path / "twice")
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
        with Image.open(tmp_path / "once" / name) as image:
            assert image.width == 1200 and len(image.convert("RGB").getcolors(1_000_000) or []) > 100
            assert set(image.info) <= {"Record", "Record-SHA256", "dpi"}


def test_the_committed_pictures_are_of_the_records_as_they_are(plots: Any) -> None:
    digest = hashlib.sha256((recorded.RECORDS / "peers.json").read_bytes()).hexdigest()
    with Image.open(PICTURES / "peers.png") as image:
        assert (image.info["Record"], image.info["Record-SHA256"]) == ("peers.json", digest)
    records = importlib.import_module("reports.records").read_records(recorded.RECORDS)
    assert list(plots.find_stale(PICTURES, records)) == []


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("startup.json", None, "which has no pictures: choose one of feeding, throughput, sweeps"),
        ("sweeps.json", {"what": "sweeps", "threads": []}, "written by another version of the benchmark of sweeps"),
        ("nowhere.json", None, "does not exist"),
    ],
)
def test_what_has_no_picture_is_refused(
    tmp_path: Path, name: str, content: dict[str, Any] | None, complaint: str
) -> None:
    path = recorded.RECORDS / name if content is None else recorded.write(tmp_path, name, content)
    done = run_command(SCRIPT, path, "--pictures", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and complaint in done.stderr
    assert not (tmp_path / "out").exists()
