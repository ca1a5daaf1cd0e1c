"""The pictures show the figures of the record, have the same bytes each time, and agree with the terminal."""

import hashlib
import importlib
import io
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded
from helpers.commands import CHECKOUT, run_command
from PIL import Image
from rich.console import Console

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "pictures.py"
PICTURES = CHECKOUT / "docs" / "pictures"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command's module."""
    return importlib.import_module("pictures")


def show(pictures: Any, content: dict[str, Any]) -> list[Any]:
    """A record's pictures before they are drawn."""
    return list(pictures.SHOWN[content["what"]](content))


def print_it(picture: Any, width: int = 80) -> list[str]:
    """Its lines in a terminal."""
    lines = io.StringIO()
    importlib.import_module("drawing.terminal").print_picture(picture, Console(file=lines, width=width))
    return lines.getvalue().splitlines()


def test_bars_are_as_long_as_the_peers_rates(pictures: Any) -> None:
    content = recorded.read("peers.json")
    (picture,) = show(pictures, content)
    ax = pictures.draw_marks(picture).axes[0]
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


def test_a_batchs_time_is_stacked_by_thread(pictures: Any) -> None:
    (picture,) = show(pictures, recorded.throughput())
    stacks = {stack.label: stack for stack in picture.marks}
    assert list(stacks) == ["the loader alone", "training: its loop", "training: the loader"]
    assert stacks["training: its loop"].parts == {"wait": 20.0, "take": 2.0, "step": 100.0}
    assert stacks["training: the loader"].parts == {"read": 5.0, "decode": 110.0, "copy": 6.0}
    assert stacks["the loader alone"].period == pytest.approx(1000 * 64 * (1 / 500 + 1 / 512 + 1 / 520) / 3)
    ax = pictures.draw_marks(picture).axes[0]
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches if patch.get_y() == ax.patches[0].get_y()]
    assert ends == pytest.approx([stacks["the loader alone"].period, 5.0, 115.0, 121.0])
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        *("wait", "take", "step", "read", "decode", "copy", "idle")
    }


def test_a_single_point_is_no_curve(pictures: Any) -> None:
    content = recorded.sweeps()
    assert [each.name for each in show(pictures, {**content, "threads": content["threads"][:1]})] == ["-sizes"]


def test_sweeps_are_curves_from_zero(pictures: Any) -> None:
    threads, sizes = show(pictures, recorded.sweeps())
    assert (threads.name, sizes.name) == ("-threads", "-sizes")
    ax = pictures.draw_marks(threads).axes[0]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(ax.lines[0].get_ydata()) == [700, 1300, 1310, 1290]
    assert ax.get_ylim()[0] == 0 and "2 cores" in [text.get_text() for text in ax.texts]
    ax = pictures.draw_marks(sizes).axes[0]
    assert list(ax.lines[0].get_xdata()) == [28.0, 54.0, 112.0]
    assert list(ax.lines[0].get_ydata()) == [2700, 2000, 1300]


def test_the_command_writes_and_prints_each_the_same_each_time(pictures: Any, tmp_path: Path) -> None:
    kinds = (recorded.throughput, recorded.sweeps)
    paths = [recorded.write(tmp_path, f"{kind.__name__}.json", kind()) for kind in kinds]
    paths.append(recorded.RECORDS / "peers.json")
    done = run_command(SCRIPT, *paths, "--out", tmp_path / "once")
    assert done.returncode == 0, done.stderr
    assert "Penstock" in done.stdout and "2 threads" in done.stdout and "decode 110.0" in done.stdout
    names = ["peers.png", "sweeps-sizes.png", "sweeps-threads.png", "throughput.png"]
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == names
    (tmp_path / "twice").mkdir()
    for record in pictures.choose_records(paths):
        pictures.draw_record(record, tmp_path / "twice", Console(file=io.StringIO()))
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
        with Image.open(tmp_path / "once" / name) as image:
            assert image.width == 1200 and len(image.convert("RGB").getcolors(1_000_000) or []) > 100
            assert set(image.info) <= {"Record", "Record-SHA256", "dpi"}


def test_the_committed_pictures_are_of_the_records_as_they_are(pictures: Any, tmp_path: Path) -> None:
    committed = sorted(PICTURES.glob("*.png"))
    assert PICTURES / "peers.png" in committed
    digest = hashlib.sha256((recorded.RECORDS / "peers.json").read_bytes()).hexdigest()
    with Image.open(PICTURES / "peers.png") as image:
        assert (image.info["Record"], image.info["Record-SHA256"]) == ("peers.json", digest)
    drawn = {
        path.name
        for record in pictures.choose_records([])
        for path in pictures.draw_record(record, tmp_path, Console(file=io.StringIO()))
    }
    assert drawn <= {path.name for path in committed}, "run `python benchmarks/pictures.py`"


def test_the_terminal_shows_the_same_figures_in_80_columns(pictures: Any) -> None:
    content = recorded.read("peers.json")
    (picture,) = show(pictures, content)
    lines = print_it(picture)
    bars = [line for line in lines if "█" in line]
    assert len(bars) == 13 and all(len(line) <= 80 for line in bars)
    fastest, slowest = (next(line for line in bars if figure in line) for figure in ("2,026 (", "529 ("))
    assert fastest.count("█") / slowest.count("█") == pytest.approx(2026 / 529, rel=0.35)
    assert "Penstock is 2.58 ×" in slowest
    wide = [line for line in print_it(picture, 200) if "█" in line]
    assert max(line.count("█") for line in wide) == 60
    assert any("wait 20.0, take 2.0, step 100.0" in line for line in print_it(*show(pictures, recorded.throughput())))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("startup.json", None, "which has no pictures: choose one of feeding, throughput, sweeps"),
        ("sweeps.json", {"what": "sweeps", "threads": []}, "written by another version of the benchmark of sweeps"),
        ("nowhere.json", None, "does not exist"),
    ],
)
def test_what_has_no_picture_is_refused(
    pictures: Any, tmp_path: Path, name: str, content: dict[str, Any] | None, complaint: str
) -> None:
    path = recorded.RECORDS / name if content is None else recorded.write(tmp_path, name, content)
    with pytest.raises(pictures.InputError, match=complaint):
        for record in pictures.choose_records([path]):
            pictures.draw_record(record, tmp_path, Console(file=io.StringIO()))
