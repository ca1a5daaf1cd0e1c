"""The verdict as a function of figures: the bottleneck, the expected rate, the promises, and the sentences."""

import importlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.recipe import seed_113

NAMES = ("storage", "decode", "model", "cores")
RATES = st.floats(1.0, 1e6)
CPU_SECONDS = st.floats(1e-6, 1.0)
MACHINES = (  # a CPU; a GPU that is fed by the CPU; a GPU that decodes too
    {"shares_cores": True, "decodes_on_gpu": False},
    {"shares_cores": False, "decodes_on_gpu": False},
    {"shares_cores": False, "decodes_on_gpu": True},
)


def part(name: str) -> Any:
    return importlib.import_module(name)


def build(**changes: Any) -> Any:
    """A GPU that trains 1,000 images/s on a machine that could feed it 3,000."""
    verdict = part("verdict")
    figures = {
        "read_warm": 50_000.0,
        "decode": 3_000.0,
        "model": 1_000.0,
        "loader": 2_900.0,
        "train": 990.0,
        "read_cold": 5_000.0,
        "fits_memory": True,
        "cpu_read": 2e-5,
        "cpu_decode": 1e-3,
        "cpu_model": 1e-3,
        "num_cores": 16.0,
        "shares_cores": False,
        "decodes_on_gpu": False,
        "mean_bytes": 110_000.0,
    }
    return verdict.Figures(**figures | changes)


@st.composite
def figures(draw: st.DrawFn) -> Any:
    rates = {name: draw(RATES) for name in ("read_warm", "decode", "model", "loader", "train")}
    costs = {name: draw(CPU_SECONDS) for name in ("cpu_read", "cpu_decode", "cpu_model")}
    return build(
        **rates,
        **costs,
        read_cold=draw(st.none() | RATES),
        fits_memory=draw(st.booleans()),
        num_cores=draw(st.floats(0.5, 256)),
        **draw(st.sampled_from(MACHINES)),
    )


@given(figures())
def test_what_is_expected_is_the_lowest_bound_and_removing_the_bottleneck_never_lowers_it(each: Any) -> None:
    verdict = part("verdict")
    found, binds = verdict.find_bounds(each), verdict.find_bottleneck(each)
    assert verdict.expected_rate(each) == min(found.values()) and binds in NAMES
    for name in NAMES:
        assert verdict.expected_rate(verdict.remove_limit(each, name)) >= verdict.expected_rate(each)
    if not each.shares_cores:
        assert binds != "cores" and "cores" not in found


@given(figures(), st.floats(0.01, 100))
def test_a_machine_that_is_faster_by_a_factor_has_the_same_verdict(each: Any, times: float) -> None:
    verdict = part("verdict")
    rates = ("read_warm", "read_cold", "decode", "model", "loader", "train")
    changes = {name: times * getattr(each, name) for name in rates if getattr(each, name) is not None}
    changes |= {name: getattr(each, name) / times for name in ("cpu_read", "cpu_decode", "cpu_model")}
    faster = replace(each, **changes)
    assert verdict.expected_rate(faster) == pytest.approx(times * verdict.expected_rate(each))
    found = sorted(verdict.find_bounds(each).values())
    if found[1] > 1.001 * found[0] and verdict.find_bottleneck(each) != "cores":  # not where rounding decides
        shares = verdict.share_cores(each)
        if all(abs(share - verdict.DOMINANT) > 1e-6 for share in shares.values()):
            assert verdict.find_bottleneck(faster) == verdict.find_bottleneck(each)


@given(figures(), st.sampled_from(["storage", "decode", "model"]))
def test_a_stage_throttled_to_a_tenth_of_all_others_is_named(each: Any, name: str) -> None:
    verdict = part("verdict")
    slow = verdict.expected_rate(verdict.remove_limit(each, name)) / 10
    fields = {"storage": ("read_warm", "read_cold"), "decode": ("decode",), "model": ("model",)}[name]
    throttled = replace(each, **dict.fromkeys(fields, slow), **{f"cpu_{name}": 1e-9} if name != "storage" else {})
    assert verdict.find_bottleneck(throttled) == name
    assert verdict.expected_rate(throttled) == pytest.approx(slow)


@given(figures())
def test_too_few_cores_are_named_unless_one_stage_takes_most_of_them(each: Any) -> None:
    verdict = part("verdict")
    costs = each.cpu_read + each.cpu_decode + each.cpu_model
    others = min(rate for name, rate in verdict.find_bounds(each).items() if name != "cores")
    few = replace(each, shares_cores=True, num_cores=costs * others / 10)
    shares = verdict.share_cores(few)
    heaviest = max(shares, key=lambda name: shares[name])
    assert verdict.find_bottleneck(few) == (heaviest if shares[heaviest] >= 2 / 3 else "cores")


@given(figures(), st.floats(0.2, 5), st.floats(0.2, 5), st.floats(0.1, 1))
def test_promises_beat_what_is_and_never_what_the_other_stages_allow(
    each: Any, rate: float, cpu: float, share: float
) -> None:
    verdict = part("verdict")
    probe = verdict.Probe(rate, cpu, share * each.mean_bytes)
    probes = dict.fromkeys(verdict.WANTED[verdict.find_bottleneck(each)], probe)
    found = verdict.advise(each, probes, verdict.Scaling(2.0, 2.0))
    promises = [one.images_per_second for one in found]
    assert promises == sorted(promises, reverse=True)
    assert all(promise >= 1.03 * each.train for promise in promises)


@given(figures(), st.floats(0.2, 1), st.floats(1, 5))
def test_a_change_without_gain_is_not_advised(each: Any, rate: float, cpu: float) -> None:
    verdict = part("verdict")
    each = replace(each, train=verdict.expected_rate(each))
    probes = dict.fromkeys(("threads", "smaller files", "smaller images"), verdict.Probe(rate, cpu, each.mean_bytes))
    found = [name for one in verdict.advise(each, probes, verdict.Scaling(1.0, 1.0)) for name in one.change]
    assert not {"num_threads", "max_side", "size"} & set(found)


def test_data_that_does_not_fit_into_memory_is_read_cold_in_every_epoch() -> None:
    verdict = part("verdict")
    assert verdict.find_bottleneck(build(read_cold=100.0)) == "model"
    outgrown = build(read_cold=100.0, fits_memory=False)
    assert verdict.find_bottleneck(outgrown) == "storage" and verdict.expected_rate(outgrown) == 100
    assert verdict.find_bottleneck(build(read_cold=None, fits_memory=False)) == "model"  # nothing is known of it


def test_a_slow_disk_gets_advice_about_disk_memory_and_files() -> None:
    verdict = part("verdict")
    slow = build(read_cold=200.0, fits_memory=False, train=200.0)
    probes = {"smaller files": verdict.Probe(1.5, 0.7, 55_000.0)}
    found = {next(iter(each.change)): each for each in verdict.advise(slow, probes, verdict.Scaling(1.0, 1.0))}
    assert set(found) == {"megabytes_per_second", "memory", "max_side"}
    assert found["megabytes_per_second"].images_per_second == found["memory"].images_per_second == 1_000
    assert found["megabytes_per_second"].change["megabytes_per_second"] == pytest.approx(1_000 * 0.11 * 1.2)
    assert found["max_side"].images_per_second == pytest.approx(400)


def test_what_is_lost_between_the_stages_is_not_promised() -> None:
    verdict = part("verdict")
    lossy = build(decode=500.0, train=400.0)
    (threads,) = verdict.advise(lossy, {"threads": verdict.Probe(1.6, 1.0, 16)}, verdict.Scaling(1.0, 1.0))
    assert threads.images_per_second == pytest.approx(0.8 * 800) and threads.change == {"num_threads": 16}


def test_behind_slow_storage_the_promise_is_what_training_from_memory_reached() -> None:
    verdict = part("verdict")
    slow = build(read_warm=200.0, train=200.0)
    (disk, *_) = verdict.advise(slow, {"training from memory": verdict.Probe(4.0, 1.0, 0.0)}, verdict.Scaling(1.0, 1.0))
    assert disk.images_per_second == pytest.approx(800)  # not the 1,000 of the model alone


def test_twice_the_cores_give_nothing_to_threads_whose_number_is_set() -> None:
    verdict = part("verdict")
    tight = build(shares_cores=True, num_cores=1.0, decode=900.0, model=950.0, train=490.0)
    free = verdict.advise(tight, {}, verdict.Scaling(2.0, 2.0))
    held = verdict.advise(tight, {}, verdict.Scaling(2.0, 1.0))
    assert verdict.find_bottleneck(tight) == "cores"
    assert free[0].change == held[0].change == {"cores": 2.0}
    assert held[0].images_per_second < free[0].images_per_second
    assert held[0].images_per_second == pytest.approx(490 / (1 / 0.00202) * 950)


def test_twice_the_cores_are_advised_where_the_cpu_decodes_for_a_gpu() -> None:
    verdict = part("verdict")
    scaling = verdict.Scaling(decode=2.0, model=2.0)
    (cores,) = verdict.advise(build(decode=500.0, train=500.0), {}, scaling)
    assert cores.change == {"cores": 32.0}
    assert cores.images_per_second == pytest.approx(1_000)  # the model's rate, which does not grow with the cores
    assert verdict.advise(build(decode=500.0, train=500.0, decodes_on_gpu=True), {}, scaling) == []
    assert "cores" not in [
        name for one in verdict.advise(build(), {}, scaling) for name in one.change
    ]  # the model binds


def other_placement(rate: float | None, failure: str = "") -> Any:
    verdict = part("verdict")
    return verdict.OtherPlacement("cpu", "gpu", "full", rate, failure)


@given(figures(), st.floats(0.1, 10))
def test_another_placement_is_advised_whenever_training_gains_3_percent(each: Any, rate: float) -> None:
    verdict = part("verdict")
    bill = verdict.Cost(seed_113(), None)
    other, scaling = other_placement(rate), verdict.Scaling(1.0, 1.0)
    found = verdict.advise(each, {}, scaling, other)
    placed = [one for one in found if "placement" in one.change]
    without = [one for one in found if "placement" not in one.change]
    assert without == verdict.advise(each, {}, scaling)  # nothing else changes
    says = "\n".join(verdict.write_verdict(each, found, bill, other))
    assert ("Decoding on the GPU instead of the CPU:" in says) != bool(placed)  # one of the two, always
    assert ("--loader.placement gpu" in says) == bool(placed) == (each.train * rate >= 1.03 * each.train)
    assert [one.images_per_second for one in placed] == [each.train * rate] * len(placed)


def test_another_placement_is_reported_with_its_figures() -> None:
    verdict = part("verdict")
    bill = verdict.Cost(seed_113(), None)

    def say(other: Any, **changes: Any) -> str:
        figures = build(**changes)
        found = verdict.advise(figures, {}, verdict.Scaling(1.0, 1.0), other)
        return "\n".join(verdict.write_verdict(figures, found, bill, other))

    slower = say(other_placement(2_310 / 2_450), train=2_450.0, model=2_500.0)
    assert "Decoding on the GPU instead of the CPU: 2,310 instead of 2,450 images/s." in slower
    faster = say(other_placement(1.25), train=800.0)
    assert "Possible change: --loader.placement gpu (decode full): 1,000 images/s (1.25 x); seed_113 in " in faster
    back = say(verdict.OtherPlacement("gpu", "cpu", "roi", 1.5), decodes_on_gpu=True)
    assert "Possible change: --loader.placement cpu (decode roi): 1,485 images/s" in back
    failed = say(other_placement(None, "nvJPEG is not there"))
    assert "Decoding on the GPU instead of the CPU cannot run here: nvJPEG is not there." in failed
    assert "placement" not in say(None) and "Decoding on the" not in say(None)


def test_the_words_hold_the_figures() -> None:
    verdict = part("verdict")
    recipe = seed_113()
    each = build()
    found = verdict.advise(each, {"smaller images": verdict.Probe(1.9, 0.5, 160)}, verdict.Scaling(1.0, 1.0))
    says = "\n".join(verdict.write_verdict(each, found, verdict.Cost(recipe, 5.67)))
    assert "The bottleneck is the model: at most 1,000 images/s." in says
    assert "training would reach 3,000 images/s (3.00 x); the next bottleneck is decoding." in says
    assert "2.9 x as many as the model consumes: it could feed 2 such GPUs" in says
    assert "990 images/s, 99% of that limit" in says
    assert "--transform.size 160): 1,881 images/s (1.90 x)" in says and "a GPU twice as fast: 1,980" in says
    assert "40.6 hours, 230.32 dollars" in says


def test_a_loss_is_located_and_noise_is_reported() -> None:
    verdict = part("verdict")
    bill = verdict.Cost(seed_113(), None)

    def say(**changes: Any) -> str:
        return "\n".join(verdict.write_verdict(build(**changes), [], bill))

    assert "30% is lost between the loader and the model" in say(train=700.0)
    assert "inside the loader, which alone reaches 50%" in say(train=700.0, loader=1_500.0)
    assert "other processes disturbed the measurement" in say(train=1_200.0)
    assert "could not be dropped from the page cache" in say(read_cold=None)
    assert "No change that was tried would gain 3% or more; storage 50,000, decode 3,000, model 1,000" in say()
