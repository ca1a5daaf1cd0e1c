"""Per-image augmentation: drawn as timm and torchvision draw it, done as their functions do it."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.datasets import load_sample_images
from timm.data import auto_augment as timm_augment
from torchvision.transforms import InterpolationMode, TrivialAugmentWide, autoaugment

from loaders.augment import FILL, OPS, AugmentConfig, Op, draw_ops
from loaders.reference import PILLOW_OPS

SIZE = 96
NUM_IMAGES = 10_000
UNLIKELY = 0.001
WHOLE = (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)  # their arguments are integers in timm
TIMM_NAMES = dict(zip(timm_augment._RAND_TRANSFORMS, OPS["rand"], strict=True))
TIMM_NAMES |= dict(zip(timm_augment._RAND_INCREASING_TRANSFORMS, OPS["rand"], strict=True))
TORCHVISION_NAMES = {
    "Identity": Op.IDENTITY,
    "TranslateX": Op.TRANSLATE_X,
    "TranslateY": Op.TRANSLATE_Y,
    **{name: op for name, op in TIMM_NAMES.items() if not name.endswith(("Rel", "Increasing"))},
}
Drawn = list[tuple[Op, float]]  # operations and their arguments, one after the other


def _draw(config: AugmentConfig, num_images: int = NUM_IMAGES) -> Drawn:
    """Return the draws of the plan: its uniform numbers are those of any good generator (`test_plan.py`)."""
    draws = np.random.default_rng(0).random((4, num_images, config.num_layers))
    ops, arguments = draw_ops(config, draws, SIZE)
    return [(Op(op), argument) for op, argument in zip(ops.ravel().tolist(), arguments.ravel().tolist(), strict=True)]


@cache
def _draw_as_timm(words: str) -> Drawn:
    """Return the draws of timm, with its functions replaced by ones that record their arguments."""
    transform = timm_augment.rand_augment_transform(words, {"img_mean": FILL})
    drawn: Drawn = []
    for op in transform.ops:
        op.aug_fn = _take_down(drawn, op.name)
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (timm draws from it)
    for _ in range(NUM_IMAGES):
        transform(None)
    random.setstate(state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    return drawn + [(Op.IDENTITY, 0.0)] * (NUM_IMAGES * transform.num_layers - len(drawn))


def _take_down(drawn: Drawn, name: str) -> Callable[..., None]:
    def take_down(_: None, argument: float = 0.0, **options: Any) -> None:
        drawn.append((TIMM_NAMES[name], argument * SIZE if name.startswith("Translate") else float(argument)))

    return take_down


@pytest.fixture
def drawn_by_torchvision(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    drawn: Drawn = []

    def take_down(image: Image.Image, name: str, magnitude: float, **options: Any) -> Image.Image:
        drawn.append((TORCHVISION_NAMES[name], _from_torchvision(name, magnitude)))
        return image

    monkeypatch.setattr(autoaugment, "_apply_op", take_down)
    image = Image.new("RGB", (2, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(NUM_IMAGES):
            TrivialAugmentWide()(image)
    return drawn


def _from_torchvision(name: str, magnitude: float) -> float:
    """Our argument for torchvision's, which moves images where we say where a pixel comes from.

    Its 16 pixels are 15.999999 in float32, of which it takes the 15; we take 16.
    """
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 + magnitude
    return -float(int(round(magnitude, 4))) if name.startswith("Translate") else magnitude


def _assert_alike(ours: Drawn, theirs: Drawn) -> None:
    """The same operations as often (chi-square), with arguments of the same distribution (Kolmogorov and Smirnov)."""
    assert len(ours) == len(theirs)
    counts = [Counter(op for op, _ in drawn) for drawn in (ours, theirs)]
    assert set(counts[0]) == set(counts[1])
    assert chi2_contingency([[count[op] for op in counts[0]] for count in counts]).pvalue > UNLIKELY  # pyright: ignore[reportAttributeAccessIssue]
    for op in counts[0]:
        a, b = (np.array([argument for o, argument in drawn if o == op]) for drawn in (ours, theirs))
        assert np.asarray(ks_2samp(a, b, method="asymp"))[1] > UNLIKELY, op.name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AugmentConfig("rand"), "rand-m9-mstd0.5"),
        (AugmentConfig("rand", increasing=True), "rand-m9-mstd0.5-inc1"),
        (AugmentConfig("rand", 3, 5, 4.0, 0.8), "rand-m5-n3-mstd4-p0.8"),  # clipped at both ends
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rand_is_drawn_as_timm_draws_it(config: AugmentConfig, words: str) -> None:
    _assert_alike(_draw(config), _draw_as_timm(words))


def test_trivial_is_drawn_as_torchvision_draws_it(drawn_by_torchvision: Drawn) -> None:
    ours = _draw(AugmentConfig("trivial"))
    _assert_alike(ours, drawn_by_torchvision)
    for op in OPS["trivial"]:  # each of its magnitudes, and no other
        values = [{round(argument, 4) for o, argument in drawn if o == op} for drawn in (ours, drawn_by_torchvision)]
        assert values[0] == values[1], op.name


def test_without_noise_each_operation_has_its_one_magnitude() -> None:
    drawn = _draw(AugmentConfig("rand", magnitude=10, std=0, probability=1), 1000)
    found = {op: {abs(argument) for o, argument in drawn if o == op} for op in OPS["rand"]}
    expected = dict.fromkeys((Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT), 0.0)
    expected |= {Op.ROTATE: 30, Op.POSTERIZE: 4, Op.SOLARIZE: 256, Op.SOLARIZE_ADD: 110}
    expected |= dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), 1.9)
    expected |= dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), 0.3)
    expected |= dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), 0.45 * SIZE)
    assert {op: min(values) for op, values in found.items()} == pytest.approx(expected)
    assert {op: len(values) for op, values in found.items()} == dict.fromkeys(found, 1)


def test_translations_are_shares_of_the_image() -> None:
    draws = np.random.default_rng(0).random((4, 500, 1))
    (ops, small), (_, large) = (draw_ops(AugmentConfig("rand"), draws, size) for size in (100, 200))
    is_moved = np.isin(ops, (Op.TRANSLATE_X, Op.TRANSLATE_Y))
    assert np.where(is_moved, 2, 1) * small == pytest.approx(large)
    assert np.abs(small[is_moved]).max() > 40


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Photographs, and what histograms and borders are tried by: one colour, two colours, noise."""
    photographs = [Image.fromarray(picture).resize((SIZE, SIZE)) for picture in load_sample_images().images]
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    halves = np.where(np.arange(SIZE)[:, None, None] < SIZE // 3, 30, 200) * np.ones((1, SIZE, 3))
    flat = Image.new("RGB", (SIZE, SIZE), (7, 130, 255))
    return [*photographs, flat, Image.fromarray(noise), Image.fromarray(halves.astype(np.uint8))]


def _of_op(drawn: Drawn, op: Op) -> list[float]:
    """Arguments of an operation, the extreme ones among them."""
    arguments = sorted({argument for o, argument in drawn if o == op})
    return [*arguments[:3], *arguments[3 : -3 : max(1, len(arguments) // 6)], *arguments[-3:]]


def _cases(increasing: bool) -> Iterator[tuple[str, Op, float]]:
    names = timm_augment._RAND_INCREASING_TRANSFORMS if increasing else timm_augment._RAND_TRANSFORMS
    drawn = _draw(AugmentConfig("rand", std=5, increasing=increasing))
    for name in names:
        for argument in _of_op(drawn, TIMM_NAMES[name]):
            yield name, TIMM_NAMES[name], argument


@pytest.mark.parametrize("increasing", [False, True])
def test_operations_are_timms_to_the_bit(pictures: list[Image.Image], increasing: bool) -> None:
    options = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
    for name, op, argument in _cases(increasing):
        if op == Op.POSTERIZE and argument == 0:
            continue  # fails in timm on Pillow 13
        theirs = argument / SIZE if "Translate" in name else argument
        given = () if timm_augment.LEVEL_TO_ARG[name] is None else (int(theirs) if op in WHOLE else theirs,)
        for picture in pictures:
            expected = timm_augment.NAME_TO_OP[name](picture, *given, **options)
            assert PILLOW_OPS[op](picture, argument).tobytes() == expected.tobytes(), (name, argument)


def test_no_bits_are_a_black_image(pictures: list[Image.Image]) -> None:
    """Equal to timm and to Pillow before version 13; at magnitude 0, and at 10 with `increasing`."""
    assert (Op.POSTERIZE, 0.0) in _draw(AugmentConfig("rand", magnitude=0, std=0, probability=1))
    for picture in pictures:
        assert PILLOW_OPS[Op.POSTERIZE](picture, 0.0).getextrema() == ((0, 0),) * 3


def test_trivial_operations_are_torchvisions(pictures: list[Image.Image]) -> None:
    """Bit-identical, except for the last digit of a shear's tangent, which changes few pixels by 1 of 255."""
    space = TrivialAugmentWide()._augmentation_space(31)
    for name, (magnitudes, signed) in space.items():
        for magnitude in {s * float(m) for m in magnitudes.ravel()[::6] for s in ((1, -1) if signed else (1,))}:
            for picture in pictures:
                expected = autoaugment._apply_op(picture, name, magnitude, InterpolationMode.BILINEAR, list(FILL))  # pyright: ignore[reportArgumentType]
                ours = PILLOW_OPS[TORCHVISION_NAMES[name]](picture, _from_torchvision(name, magnitude))
                apart = np.abs(np.asarray(ours, np.int16) - np.asarray(expected, np.int16))
                assert apart.max() <= ("Shear" in name), (name, magnitude)
