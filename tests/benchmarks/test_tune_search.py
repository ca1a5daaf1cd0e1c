"""The search for a loader's settings, on made-up machines: what it returns is not slower, and it keeps to its time."""

import importlib
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import LoaderConfig, World
from loaders.config import share_cores
from loaders.placement import choose_placement
from prep.errors import InputError

Rate = Callable[[LoaderConfig], float]  # images/s of a made-up machine
START = LoaderConfig(placement="cpu", decode="roi")
GPU_START = LoaderConfig(placement="gpu", decode="full")
GPU_WORLD = World(device=torch.device("cuda", 0))
VALUES = {
    "num_threads": (1, 2, 0, 6),
    "decode": ("roi", "full"),
    "batches_ahead": (1, 2, 3, 4, 6, 8),
    "pin_threads": (False, True),
}
GPU_VALUES = {**VALUES, "decode": ("full",), "hw_decoder_load": (0.0, 0.65, 0.99)}
factors = st.floats(0.5, 2)
machines = st.fixed_dictionaries(  # how each value of each setting changes the rate
    {
        name: st.lists(factors, min_size=len(values), max_size=len(values))
        for name, values in {**VALUES, **GPU_VALUES, "decode": VALUES["decode"], "placement": ("cpu", "gpu")}.items()
    }
)
many = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import everything before hypothesis measures how long an example takes."""
    part("tune")


def part(name: str) -> Any:
    return importlib.import_module(name)


def _always() -> bool:
    return True


def _compare(rate: Rate, noise: Callable[[], float]) -> Any:
    """Comparisons on a made-up machine, by the real rule."""

    def compare(candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: Callable[[], bool]) -> Any:
        measure_one = lambda: (rate(candidate) * noise(), rate(other) * noise())  # noqa: E731
        pairs = part("timing").measure_pairs(measure_one, least, has_time)
        return part("tune").Comparison(candidate, other, tuple(pairs))

    return compare


def _space(*, has_gpu: bool = False, start: LoaderConfig = START) -> Any:
    tables = {"cpu": VALUES, "gpu": GPU_VALUES} if has_gpu else {"cpu": VALUES}
    return part("tune").Space(tables, start)


def _rate(machine: dict[str, list[float]], space: Any) -> Rate:
    def rate(config: LoaderConfig) -> float:
        product_of_all = 600.0
        for name in space.names:
            values = space.find_values(name, config.placement)
            product_of_all *= machine[name][values.index(getattr(config, name))] if values else 1.0
        return product_of_all

    return rate


def _search(rate: Rate, noise: Callable[[], float], start: LoaderConfig = START, space: Any = None) -> Any:
    return part("tune").search(start, space or _space(), _compare(rate, noise), _always, _always)


@many
@given(machine=machines, has_gpu=st.booleans())
def test_without_noise_it_climbs_until_no_neighbour_is_faster(machine: dict[str, list[float]], has_gpu: bool) -> None:
    space, least_gain = _space(has_gpu=has_gpu), part("timing").LEAST_GAIN
    rate = _rate(machine, space)
    found = _search(rate, lambda: 1.0, space=space)
    assert rate(found.config) >= rate(START)
    assert found.config == START or rate(found.config) >= rate(START) * (1 + least_gain)
    for name, step in product(space.names, (-1, 1)):
        neighbour = space.find_neighbour(found.config, name, step)
        assert neighbour is None or rate(neighbour) < rate(found.config) * (1 + least_gain) * (1 + 1e-9)


@many
@given(machine=machines, seed=st.integers(0, 2**32), amplitude=st.floats(0, 0.5), has_gpu=st.booleans())
def test_what_it_returns_is_never_slower_than_the_start_by_more_than_the_noise(
    machine: dict[str, list[float]], seed: int, amplitude: float, has_gpu: bool
) -> None:
    space, draw = _space(has_gpu=has_gpu), random.Random(seed)
    rate = _rate(machine, space)
    found = _search(rate, lambda: 1 + draw.uniform(-amplitude, amplitude), space=space)
    assert rate(found.config) / rate(START) > (1 - amplitude) / (1 + amplitude) - 1e-9
    if found.config != START:  # it won separate pairs after the search
        ratios = [candidate / other for candidate, other in found.last.pairs]
        assert (found.last.candidate, found.last.other) == (found.config, START)
        assert len(ratios) >= 5 and statistics.median(ratios) >= 1.01
        assert sum(ratio <= 1 for ratio in ratios) <= 1


def test_equally_fast_settings_are_taken_for_faster_in_5_of_100_cases() -> None:
    accepted = 0
    for tosses in product((1.05, 0.95), repeat=8):
        pairs = iter([(each, 1.0) for each in tosses])
        taken = part("timing").measure_pairs(lambda pairs=pairs: next(pairs), 0, _always)
        verdict = part("timing").is_faster(taken)
        assert verdict is not None
        accepted += verdict
    assert accepted / 2**8 == 1 / 32 + 5 / 256


def test_where_all_settings_are_equally_fast_the_start_stays() -> None:
    draw = random.Random(113)
    changed = [_search(lambda _: 600.0, lambda: draw.lognormvariate(0, 0.1)).config != START for _ in range(400)]
    assert sum(changed) / len(changed) < 0.04  # a false step, and a false last comparison


def test_a_gain_that_is_sure_but_tiny_is_not_taken() -> None:
    assert _search(lambda config: 600 + config.batches_ahead, lambda: 1.0).config == START
    assert _search(lambda config: 600 + 10 * config.batches_ahead, lambda: 1.0).config.batches_ahead > 2


def test_a_bad_start_is_improved_in_spite_of_noise() -> None:
    draw, start = random.Random(7), replace(START, num_threads=1, batches_ahead=1)

    def rate(config: LoaderConfig) -> float:  # two cores; a queue of one stalls now and then
        return 310 * min(config.num_threads or 2, 2) * (0.85 if config.batches_ahead == 1 else 1)

    space = part("tune").Space({"cpu": {**VALUES, "num_threads": (1, 0)}}, start)
    compare = _compare(rate, lambda: draw.lognormvariate(0, 0.03))
    found = part("tune").search(start, space, compare, _always, _always)
    assert found.config.num_threads == 0 and found.config.batches_ahead > 1
    assert rate(found.config) == rate(START)


def test_settings_that_cannot_run_are_passed_over() -> None:
    compare = _compare(lambda config: 600.0 * config.batches_ahead, lambda: 1.0)

    def failing(candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: Callable[[], bool]) -> Any:
        if candidate.decode == "full":
            return part("tune").Comparison(candidate, other, (), "no memory")
        return compare(candidate, other, least, has_time)

    found = part("tune").search(START, _space(), failing, _always, _always)
    assert found.config == replace(START, batches_ahead=8)
    failed = [step for step in found.steps if step.failure]
    assert failed and not any(step.is_better for step in failed)
    assert part("tune").describe_step(failed[0]) == "decode full instead of roi: cannot run here (no memory)"


class FakeTurns:
    """Comparisons that take time on a simulated clock."""

    def __init__(self, rate: Rate, seed: int, pair_seconds: float) -> None:
        self.now, self.pair_seconds = 0.0, pair_seconds
        self.work = part("tune").Workload(None, World(), 8, 24)
        self.rate, self.draw = rate, random.Random(seed)

    def compare(self, *arguments: Any) -> Any:
        return _compare(self.rate, self._noise)(*arguments)

    def _noise(self) -> float:
        self.now += self.pair_seconds / 2
        return self.draw.lognormvariate(0, 0.05)


@many
@given(machine=machines, seed=st.integers(0, 2**32), budget=st.floats(1, 400), pair_seconds=st.floats(0.5, 9))
def test_the_time_limit_is_kept(machine: dict[str, list[float]], seed: int, budget: float, pair_seconds: float) -> None:
    command = part("tune")
    turns = FakeTurns(_rate(machine, _space()), seed, pair_seconds)
    found = command.Tuner(turns, budget / 60, 0.0, lambda: turns.now).find(START, _space())
    assert len(found.last.pairs) >= 5  # whatever the time
    tail = command.SIZES_PAIRS * pair_seconds  # what the batch sizes need afterwards
    assert turns.now <= max(budget - tail, 5 * pair_seconds) + 1e-6
    if budget > 200 * pair_seconds:
        assert len(found.steps) > 3  # and it is used


@pytest.mark.parametrize("placement", ["cpu", "gpu"])
@pytest.mark.parametrize("local_size", [1, 2, 4])
@pytest.mark.parametrize("cores", [1, 2, 6, 16, 64, 96])
def test_threads_keep_to_the_cores_where_training_needs_them(
    monkeypatch: pytest.MonkeyPatch, placement: str, local_size: int, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    world = World(local_size=local_size, size=local_size)
    share, numbers = len(share_cores(world)), part("tune").find_threads(world, placement)
    meant = [number or min(16, share) for number in numbers]
    assert meant == sorted(set(meant)) and numbers.count(0) == 1
    assert max(meant) <= (2 * share if placement == "gpu" else share)


def test_a_given_number_of_threads_is_inserted_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    starts = [replace(START, num_threads=number) for number in (0, 5, 8, 10)]
    spaces = [part("tune").find_space(start, World()) for start in starts]
    assert [space.find_values("num_threads", "cpu") for space in spaces] == [
        (1, 2, 3, 4, 6, 0),
        (1, 2, 3, 4, 5, 6, 0),
        (1, 2, 3, 4, 6, 8),
        (1, 2, 3, 4, 6, 0, 10),
    ]


def test_the_space_holds_where_the_search_starts() -> None:
    find_space = part("tune").find_space
    for number in (0, 1, 5, len(share_cores(World()))):
        space = find_space(replace(START, num_threads=number, batches_ahead=5), World())
        threads = space.find_values("num_threads", "cpu")
        assert threads.count(number) == 1 and space.find_values("batches_ahead", "cpu") == (1, 2, 3, 4, 5, 6, 8)
        assert len({each or len(share_cores(World())) for each in threads}) == len(threads)
        # There is neither another placement nor a hardware decoder on a machine without a GPU.
        assert space.names == ("num_threads", "decode", "batches_ahead", "pin_threads")
    reference = replace(START, backend="reference")
    for world in (World(), GPU_WORLD):
        assert find_space(reference, world).names == ("num_threads", "batches_ahead")
    with pytest.raises(InputError, match="synthetic returns the same batch endlessly"):
        find_space(replace(START, backend="synthetic"), World())


GPU_STARTS = st.builds(
    LoaderConfig,
    placement=st.sampled_from(["auto", "cpu", "gpu"]),
    decode=st.sampled_from(["auto", "roi", "full"]),
    num_threads=st.integers(0, 40),
    batches_ahead=st.integers(1, 9),
    hw_decoder_load=st.sampled_from([0.0, 0.5, 0.65, 1.0]),
    pin_threads=st.booleans(),
)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["placement", "hw_decoder_load", "num_threads", "decode", "batches_ahead", "pin_threads"]),
        st.sampled_from([-1, 1]),
    ),
    max_size=40,
)


@many
@given(asked=GPU_STARTS, cores=st.integers(1, 40), moves=MOVES)
def test_on_a_gpu_every_candidate_can_be_built_and_means_what_it_says(
    asked: LoaderConfig, cores: int, moves: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
        start = choose_placement(asked, GPU_WORLD).config
        space = part("tune").find_space(start, GPU_WORLD)
        assert space.names[:2] == ("placement", "hw_decoder_load")
        config = start
        for name, step in moves:
            before, config = config, space.find_neighbour(config, name, step) or config
            if config == before:
                continue
            assert choose_placement(config, GPU_WORLD).config == config  # explicit, and valid here
            changed = {each for each, value in vars(config).items() if getattr(before, each) != value}
            if name == "placement":
                assert config.decode == {"cpu": "roi", "gpu": "full"}[config.placement]
                assert config.placement == "gpu" or config.hw_decoder_load == start.hw_decoder_load
            else:
                assert changed == {name}
            assert name != "hw_decoder_load" or config.placement == "gpu"
            if (config.placement, config.decode) == ("gpu", "roi"):  # it may end the process
                assert (start.placement, start.decode) == ("gpu", "roi")
            most = max(cores * (2 if config.placement == "gpu" else 1), start.num_threads)
            assert config.num_threads <= most


def test_a_search_finds_the_other_placement_and_its_settings() -> None:
    def rate(config: LoaderConfig) -> float:  # a GPU with a fast hardware decoder, on a machine with few cores
        return 3_000 + 4_000 * config.hw_decoder_load if config.placement == "gpu" else 2_500

    space = part("tune").find_space(START, GPU_WORLD)
    found = _search(rate, lambda: 1.0, space=space)
    assert found.config == replace(START, placement="gpu", decode="full", hw_decoder_load=0.99)
    first = found.steps[0]
    assert part("tune").describe_step(first).startswith("placement gpu instead of cpu, decode full instead of roi: ")
    assert "roi" not in [each.candidate.decode for each in found.steps if each.candidate.placement == "gpu"]

    def slow(config: LoaderConfig) -> float:  # a GPU that decodes slowly, which the search starts with
        return 1_000 + config.hw_decoder_load if config.placement == "gpu" else 2_500

    start = replace(GPU_START, hw_decoder_load=0.3, num_threads=2)
    back = _search(slow, lambda: 1.0, start, part("tune").find_space(start, GPU_WORLD))
    assert (back.config.placement, back.config.decode, back.config.hw_decoder_load) == ("cpu", "roi", 0.3)


def test_a_placement_that_cannot_run_is_passed_over() -> None:
    compare = _compare(lambda config: 600.0 * config.batches_ahead, lambda: 1.0)

    def failing(candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: Callable[[], bool]) -> Any:
        if candidate.placement == "gpu":
            return part("tune").Comparison(candidate, other, (), "nvJPEG is not there")
        return compare(candidate, other, least, has_time)

    found = part("tune").search(START, _space(has_gpu=True), failing, _always, _always)
    assert found.config == replace(START, batches_ahead=8)
    assert {step.candidate.placement for step in found.steps if step.failure} == {"gpu"}
    assert "placement gpu instead of cpu" in part("tune").describe_step(found.steps[0])


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_time_limit_of_zero_is_refused(minutes: float) -> None:
    work = part("tune").Workload(None, World(), 8, 24)
    with pytest.raises(InputError, match=f"--minutes must be greater than 0 .*, got {minutes:g}"):
        part("tune").run_search(work, START, minutes)
