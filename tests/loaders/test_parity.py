"""The same plan gives the same pixels: DALI against the reference, and the reference against torchvision.

On the CPU torch resizes what DALI decodes, by Pillow's filter with weights of 16 bits: they differ by rounding alone.
On a GPU DALI resizes: in a window's outermost row and column it repeats the border, where Pillow leaves out what is
beyond it, and single pixels there differ by up to 25 (measured with DALI's CPU resize). Evaluation crops them away.
"""

import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sklearn.datasets
import torch
from helpers.datasets import prepare_folder
from PIL import Image, ImageFile
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms import functional as torchvision

from loaders import Batch, EvalTransform, LoaderConfig, Split, TrainTransform, World, build_loader

BATCH_SIZE = 20
TRANSFORMS = [TrainTransform(), EvalTransform(), TrainTransform(size=64)]
GENERATED_SHAPES = [(37, 53), (201, 333), (3, 5), (5, 3), (20, 600), (600, 20), (64, 64), (1, 1), (1, 40)]
ENCODINGS = {
    "444": {"subsampling": 0},
    "420": {"subsampling": 2},
    "progressive": {"subsampling": 0, "progressive": True},
    "rotated": {"subsampling": 0, "exif": Image.Exif()},
}
ENCODINGS["rotated"]["exif"][0x0112] = 6  # EXIF orientation: rotate by 90 degrees, which every backend must ignore

# What the images of a GPU may differ by on average. nvJPEG repeats subsampled chroma, as DALI asks it to by default,
# where libjpeg interpolates. libjpeg-turbo can do both, so the CPU shows how far apart these are (the tests of simple
# upsampling below; measured): 3.0 of 255 in the worst smooth image, 3.2 in the worst photograph, 12.9 in noise.
GPU_MEANS = {"444": 1.0, "420": 4.0, "grey": 1.0}
# All transforms on one kind of JPEG, and one transform on the others: each case takes two seconds of a GPU.
GPU_CASES = [
    *(("444", GPU_MEANS["444"], transform) for transform in TRANSFORMS),
    *((kind, GPU_MEANS[kind], TRANSFORMS[0]) for kind in ("420", "grey")),
]
LEAST_SUBSAMPLED_SIDE = 16  # pixels: one block of 4:2:0, 8 x 8 chroma samples

with_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=str)


@dataclass(frozen=True)
class Difference:
    """Return the difference of the images of one row, in 255ths."""

    key: str
    mean: float
    most: int


def _encode(pixels_HWC: np.ndarray, encoding: str) -> bytes:
    encoded = io.BytesIO()
    if encoding == "grey":
        Image.fromarray(pixels_HWC).convert("L").save(encoded, "JPEG", quality=90)
    else:
        Image.fromarray(pixels_HWC).save(encoded, "JPEG", quality=90, **ENCODINGS[encoding])
    return encoded.getvalue()


def _smooth_and_noise(shape: tuple[int, int], rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Something like a photograph, and the worst there is for a filter: white noise."""
    height, width = shape
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    yield "smooth", np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    yield "noise", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _prepare(source: Path, out: Path) -> Split:
    prepare_folder(source, "train", out)
    return Split(out, "train")


def _generate(
    folder: Path, encodings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, *, like_photographs: bool = False
) -> Path:
    """Write images of every shape, content and encoding; `like_photographs`: no noise, and nothing tiny."""
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 21)  # Pillow's own buffer is too small for progressive noise
    rng = np.random.default_rng(0)
    for shape in GENERATED_SHAPES:
        for content, pixels_HWC in _smooth_and_noise(shape, rng):
            if like_photographs and (content == "noise" or min(shape) < LEAST_SUBSAMPLED_SIDE):
                continue
            (folder / "train" / content).mkdir(parents=True, exist_ok=True)
            for encoding in encodings:
                name = f"{shape[0]}x{shape[1]}-{encoding}.jpg"
                (folder / "train" / content / name).write_bytes(_encode(pixels_HWC, encoding))
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Odd sizes in every kind of JPEG that prep keeps as it is."""
    folder = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as monkeypatch:
        source = _generate(folder / "source", ("grey", *ENCODINGS), monkeypatch)
    return _prepare(source, folder / "out")


@pytest.fixture(scope="module")
def generated_as(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The same in one kind alone; of subsampled ones, those that a GPU's simple upsampling does not distort."""
    folder = tmp_path_factory.mktemp("generated-as")
    with pytest.MonkeyPatch.context() as monkeypatch:
        source = _generate(folder / "source", (request.param,), monkeypatch, like_photographs=request.param == "420")
    return _prepare(source, folder / "out")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The two photographs that ship inside scikit-learn."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        (folder / "source" / "train" / name).mkdir(parents=True)
        found = Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg"
        shutil.copy(found, folder / "source" / "train" / name)
    return _prepare(folder / "source", folder / "out")


@pytest.fixture(scope="module", params=["digits", "photographs", "generated", "imagenet train", "imagenet validation"])
def split(request: pytest.FixtureRequest) -> Split:
    name: str = request.param
    if name == "digits":
        return Split(request.getfixturevalue("digits"), "validation")
    if name.startswith("imagenet"):
        return Split(request.getfixturevalue("imagenet_samples"), name.removeprefix("imagenet "))
    return request.getfixturevalue(name)


def _differences(
    split: Split, transform: TrainTransform | EvalTransform, config: LoaderConfig, world: World | None = None
) -> list[Difference]:
    """DALI's images of every row (and some twice, in training) against the reference's."""
    dali = build_loader(split, transform, BATCH_SIZE, world, config=config)
    reference = build_loader(split, transform, BATCH_SIZE, config=LoaderConfig("reference"))
    return _compare(split, islice(dali, len(reference)), islice(reference, len(reference)))


def _compare(split: Split, batches: Iterable[Batch], references: Iterable[Batch]) -> list[Difference]:
    differences = []
    for ours, wanted in zip(batches, references, strict=True):
        assert ours.rows_B.tolist() == wanted.rows_B.tolist()
        apart_BCHW = (ours.images_BCHW.cpu().int() - wanted.images_BCHW.int()).abs()
        for key, apart_CHW in zip(split.keys(ours.rows_B), apart_BCHW, strict=True):
            differences.append(Difference(key, apart_CHW.float().mean().item(), int(apart_CHW.max())))
    return differences


@with_transform
@pytest.mark.parametrize("decode", ["roi", "full"])
def test_dali_shows_what_the_reference_shows(
    split: Split, transform: TrainTransform | EvalTransform, decode: Literal["roi", "full"]
) -> None:
    differences = _differences(split, transform, LoaderConfig("dali", decode=decode))
    assert {difference.key for difference in differences} == set(split.keys(range(len(split))))
    assert max(difference.mean for difference in differences) <= 0.3  # measured: 0.24, where a window is enlarged
    assert max(difference.most for difference in differences) <= 2  # measured: 2


def _pillow_image(split: Split, row: int) -> Any:  # torchvision takes it, though it declares a tensor
    """The image of a row, read without our reader."""
    shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
    with split.shard_paths[shard].open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _tensor(image: object) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_evaluation_is_exactly_torchvisions(split: Split) -> None:
    transform = EvalTransform()
    compose = Compose([Resize(transform.resize), CenterCrop(transform.size)])
    for batch in build_loader(split, transform, BATCH_SIZE, config=LoaderConfig("reference")):
        for row, image_CHW in zip(batch.rows_B.tolist(), batch.images_BCHW, strict=True):
            assert torch.equal(image_CHW, _tensor(compose(_pillow_image(split, row)))), split.keys([row])


def test_training_windows_are_exactly_torchvisions_resized_crops(split: Split) -> None:
    transform = TrainTransform()
    loader = build_loader(split, transform, BATCH_SIZE, config=LoaderConfig("reference"))
    for batch in islice(loader, len(loader)):
        plan = loader.plan(batch.position)
        for i, row in enumerate(batch.rows_B.tolist()):
            top, left, height, width = plan.windows_B4[i].tolist()
            size = [transform.size, transform.size]
            expected = torchvision.resized_crop(_pillow_image(split, row), top, left, height, width, size)
            expected = torchvision.hflip(expected) if plan.flips_B[i] else expected
            assert torch.equal(batch.images_BCHW[i], _tensor(expected)), split.keys([row])


def _decode_simply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the reference repeat subsampled chroma, as nvJPEG does, instead of interpolating it."""
    import simplejpeg  # noqa: PLC0415 - the tests of a GPU in this file do without it

    def decode(file: io.BytesIO) -> Image.Image:
        return Image.fromarray(simplejpeg.decode_jpeg(file.getvalue(), "RGB", fastupsample=True))

    monkeypatch.setattr(Image, "open", decode)


def _measure_simple_upsampling(split: Split, transform: TrainTransform | EvalTransform) -> float:
    """Return the worst image's mean difference between repeated and interpolated chroma, in the same windows."""
    exact, simple = (build_loader(split, transform, BATCH_SIZE, config=LoaderConfig("reference")) for _ in range(2))
    wanted = list(islice(exact, len(exact)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        _decode_simply(monkeypatch)
        differences = _compare(split, islice(simple, len(simple)), wanted)
    return max(difference.mean for difference in differences)


@with_transform
@pytest.mark.parametrize("generated_as", ["420"], indirect=True)
def test_simple_upsampling_stays_within_the_bound_of_a_gpu(
    generated_as: Split, transform: TrainTransform | EvalTransform
) -> None:
    assert 0.5 < _measure_simple_upsampling(generated_as, transform) <= GPU_MEANS["420"]


@with_transform
@pytest.mark.parametrize("part", ["train", "validation"])
def test_simple_upsampling_of_photographs_stays_within_the_bound_of_a_gpu(
    imagenet_samples: Path, part: str, transform: TrainTransform | EvalTransform
) -> None:
    assert 0.5 < _measure_simple_upsampling(Split(imagenet_samples, part), transform) <= GPU_MEANS["420"]


@with_transform
def test_simple_upsampling_of_noise_does_not(generated: Split, transform: TrainTransform | EvalTransform) -> None:
    """So the images that `like_photographs` leaves out had to be left out."""
    assert _measure_simple_upsampling(generated, transform) > 2 * GPU_MEANS["420"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("decode", ["full", "roi"])  # conftest runs roi after all other tests
@pytest.mark.parametrize("hw_decoder_load", [0.0, 1.0])
@pytest.mark.parametrize(("generated_as", "most", "transform"), GPU_CASES, ids=str, indirect=["generated_as"])
def test_dali_on_a_gpu_shows_what_the_reference_shows(
    generated_as: Split,
    most: float,
    transform: TrainTransform | EvalTransform,
    decode: Literal["roi", "full"],
    hw_decoder_load: float,
    record_property: Callable[[str, object], None],
) -> None:
    """nvJPEG's inverse transform and colours round otherwise than libjpeg's."""
    config = LoaderConfig("dali", placement="gpu", decode=decode, hw_decoder_load=hw_decoder_load)
    differences = _differences(generated_as, transform, config, World(device=torch.device("cuda", 0)))
    assert len({difference.key for difference in differences}) == len(generated_as)
    worst = max(difference.mean for difference in differences)
    record_property("worst_mean", worst)
    assert worst <= most
