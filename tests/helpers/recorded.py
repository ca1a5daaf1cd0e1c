"""Records for the tests of reports and pictures: the committed ones, and small ones of the other kinds."""

import json
import statistics
from pathlib import Path
from typing import Any

from helpers.commands import CHECKOUT

RECORDS = CHECKOUT / "benchmarks" / "records"
ORIGIN = {
    "command": "python benchmarks/some.py",
    "commit": "0123456789ab",
    "versions": {"torch": "2.15.0"},
    "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None},
    "date": "2026-01-01T00:00:00+00:00",
}
DATASET = {"name": "some-images", "label": "not ImageNet", "num_images": 3000}


def read(name: str) -> dict[str, Any]:
    """A committed record."""
    return json.loads((RECORDS / name).read_text())


def summary(*values: float) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": list(values),
    }


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def throughput() -> dict[str, Any]:
    """Decoding is slower than training in the loader's thread, which waits at its end."""
    rate = {"images_per_second": summary(500, 512, 520), "total": summary(1000, 1024, 1040)}
    loader = rate | {"milliseconds_a_batch": {"wait": 120.0, "take": 2.0, "read": 5.0, "decode": 110.0, "copy": 6.0}}
    train = rate | {"milliseconds_a_batch": loader["milliseconds_a_batch"] | {"wait": 20.0, "step": 100.0}}
    stages = {
        "read cold": rate | {"megabytes_per_second": summary(70, 71, 72), "cpu_seconds_per_1000_images": 0.25},
        "loader": loader,
        "train": train,
    }
    advice = {"what": "smaller files", "images_per_second": 1234.0}
    return ORIGIN | {
        "what": "throughput",
        "stages": stages,
        "efficiency": summary(0.97, 0.98, 0.99),
        "verdict": {"binds": "decode", "says": ["Decoding binds training."], "advice": [advice]},
        "recipe": {"name": "seed_113", "epochs": 113, "hours": 40.0, "dollars": None},
        "dataset": DATASET,
        "batch_size": 64,
        "size": 224,
        "model": "resnet50d",
        "amp": "bf16",
        "num_processes": 2,
        "threads": 1,
        "device": "cpu",
    }


def restarts() -> dict[str, Any]:
    """A race on original bytes and one of other readers, each with contenders that read restart shards."""
    rates = {"penstock": 1400.0, "penstock-restarts": 1750.0, "litdata-v2": 1000.0}
    readers = {"webdataset-v2": 1000.0, "webdataset-v2-restarts": 960.0, "timm-wds": 500.0, "timm-wds-restarts": 490.0}
    races = {"original bytes": rates, "readers of restart shards": readers}

    def describe(name: str, race: dict[str, float]) -> dict[str, Any]:
        rate, original = race[name], race[name.removesuffix("-restarts")]
        ours = {"ours_in_images_per_second": race["penstock"] / rate} if "penstock" in race else {}
        own = {"times_its_rate_on_originals": rate / original} if name.endswith("-restarts") else {}
        figures = {"cpu_seconds_per_1000_images": summary(1, 2, 3), "memory_bytes": summary(1e8, 2e8, 3e8)}
        facts = {"what": "a loader", "data": "shards", "options": {}, "versions": {"python": "3.12"}, "type": "uint8"}
        facts |= {"first_batch_seconds": 0.5, "bytes_per_image": 110_000.0}
        return {"images_per_second": summary(rate - 5, rate, rate + 5)} | figures | facts | ours | own

    epoch = {"num_images": 9984, "spliced_share": 1.0, "read_share": 0.7042, "decoded_share": 0.533}
    epoch |= {"mcu_share": 0.519, "size_ratio": 1.01, "index_bytes_per_image": 686.3}
    return ORIGIN | {
        "what": "feeding",
        "dataset": DATASET | {"restarts": epoch},
        "transform": "random resized crop to 224, horizontal flip",
        "batch_size": 64,
        "workers": 2,
        "seconds": 20.0,
        "device": "cpu",
        "races": {race: {name: describe(name, each) for name in each} for race, each in races.items()},
    }


def profile() -> dict[str, Any]:
    """A step of 200 ms: 120 convolutions, 50 optimizer, 20 other, 10 idle."""
    spent = {"convolution": 120.0, "optimizer": 50.0, "other": 20.0, "idle": 10.0, "wall": 200.0, "overlap": 0.0}
    times = {name: {"milliseconds_a_step": each, "share": each / 200} for name, each in spent.items()}
    classes = {name: times[name] | {"calls_a_step": 10.0} for name in ("convolution", "optimizer", "other")}
    convolution = {"name": "aten::mkldnn_convolution", "class": "convolution"}
    figures = {name: times[name] for name in ("wall", "idle", "overlap")} | {"classes": classes}
    return ORIGIN | {
        "what": "profile of a step",
        "mode": "train",
        "unprofiled": {
            "images_per_second": summary(80, 81, 82),
            "milliseconds_a_step": summary(195, 197, 200),
            "milliseconds_a_batch": {"wait": 1.5, "take": 0.5, "step": 195.0},
        },
        "profile": figures
        | {
            "num_steps": 5,
            "counted": "operations",
            "longest": [convolution | {"milliseconds_a_step": 110.0, "calls_a_step": 9.0}],
        },
        "dataset": DATASET,
        "model": "resnet50d",
        "amp": "bf16",
        "compile": "none",
        "batch_size": 16,
        "size": 224,
        "num_processes": 1,
        "torch_threads": 2,
        "threads": 2,
        "device": "cpu",
    }


def sweeps() -> dict[str, Any]:
    """Four numbers of threads, three sizes."""
    threads = {1: 700, 2: 1300, 3: 1310, 4: 1290}
    sizes = {"original": (112_000, 1300), "max side 500": (54_000, 2000), "short side 256": (28_000, 2700)}
    return ORIGIN | {
        "what": "sweeps",
        "transform": "random resized crop to 224, horizontal flip",
        "dataset": DATASET,
        "threads": [
            {"num_threads": number, "images_per_second": summary(rate - 20, rate, rate + 30)}
            for number, rate in threads.items()
        ],
        "sizes": [
            {"name": name, "bytes_per_image": size, "images_per_second": summary(rate - 20, rate, rate + 30)}
            for name, (size, rate) in sizes.items()
        ],
    }


def certificates() -> dict[str, Any]:
    """One that holds, one that does not."""
    fields = {"expected": "all", "limit": "0: counted", "figures": {}}
    rows = [{"name": "every image once", "passed": True, "measured": "3,000 images"}]
    rows.append({"name": "classes in a batch", "passed": False, "measured": "2 classes"})
    loaders = {"webdataset": {"loader": "webdataset", "buffer": 1000, "certificates": [row | fields for row in rows]}}
    return ORIGIN | {
        "what": "certificates",
        "dataset": DATASET,
        "epochs": 2,
        "batch_size": 256,
        "loaders": loaders,
    }


def proof() -> dict[str, Any]:
    """One case, its promise kept."""
    promise = {
        "what": "two threads",
        "change": {"num_threads": 2},
        "promised_gain": 1.9,
        "measured_gain": 2.0,
        "error": -0.05,
    }
    case = {"throttle": "one thread", "must_bind": "decode", "binds": "decode", "train": summary(400, 410, 420)}
    case |= {"followed": [promise], "lifted_by": "num_threads", "is_named": True, "is_kept": True}
    return ORIGIN | {
        "what": "proof of the verdict",
        "cases": {"one-thread": case},
        "dataset": DATASET,
        "num_named": 1,
        "num_kept": 1,
        "most_error": 0.2,
    }


RATES = {"candidate": summary(110, 120, 130), "other": summary(100, 100, 100), "ratio": summary(1.1, 1.2, 1.3)}
FASTER = RATES | {"changes": {"num_threads": [0, 3]}, "is_better": True}
FAILING = {"changes": {"decode": ["roi", "full"]}, "is_better": False, "failure": "no such decoder"}
FOUND = {"settings": {"num_threads": 3}, "is_changed": True, "best": FASTER, "comparisons": [FASTER, FAILING]}
WORK = {"dataset": DATASET, "batch_size": 64, "size": 224, "num_processes": 1, "device": "cpu"}


def settings() -> dict[str, Any]:
    """A file of tuned settings: a step that is faster, and one that cannot run."""
    sizes = [{"batch_size": 64, "images_per_second": summary(100, 110, 120)}]
    return ORIGIN | WORK | FOUND | {"what": "loader settings", "batch_sizes": sizes}


def tuning() -> dict[str, Any]:
    """A round that changed nothing, and one from a bad start."""
    same = FASTER | {"changes": {}, "ratio": summary(0.98, 0.99, 1.0), "is_better": False}
    first = FOUND | {"best": same, "comparisons": [], "check": same, "outcome": "the defaults"}
    last = FOUND | {"check": FASTER, "outcome": "faster", "start": {"num_threads": 1}}
    proof = {"what": "tuning", "passed": True, "rounds": [first], "bad_start": last}
    return ORIGIN | WORK | proof | {"same_settings_twice": summary(0.97, 0.99, 1.01)}


def suite() -> dict[str, Any]:
    """The GPU suite's stage of rates: the loader, and a case that crashed."""
    gpu = {"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU, 600.1, 80000 MiB"}
    result = {"images_per_second": summary(9000, 9500, 9900), "usage": {"sm_percent": 50.0}}
    done = {"status": "done", "seconds": 12.0, "result": result, "reason": None}
    crashed = {"status": "crashed", "seconds": 3.0, "result": None, "reason": "SIGSEGV; no word"}
    common = ORIGIN | {"hardware": gpu, "job": {}, "asked": None}
    return {
        "what": "gpu suite",
        "stage": "rates",
        "cases": {"loader": done | common, "model-resnet50": crashed | common},
    }


def gpu_model() -> dict[str, Any]:
    """A record of the GPU model: made-up cases of every kind and outcome, two of them profiled."""
    gpu = {"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU, driver 600.1, 79 GiB"}
    settings = {"network": "resnet50", "is_small": False, "size": 224, "batch_size": 256, "amp": "bf16"}
    settings |= {"compile": "none", "ours": False, "fused": False, "graph": False, "profiled": True}
    profile = {"milliseconds_a_step": {"convolution: wgrad": 20.0, "BatchNorm": 30.5}, "kernels_a_step": 900}
    eager = {"images_per_second": summary(3900, 4000, 4010), "seconds_ready": 5.2, "memory_gib": 22.1}
    fused = {"images_per_second": summary(4990, 5000, 5100), "seconds_ready": 3.3, "memory_gib": 18.0}
    other = {"milliseconds_a_step": {"convolution: wgrad": 20.0, "BatchNorm, fused": 12.25}, "kernels_a_step": 700}
    machine = {"copy_terabytes_per_second": summary(2.9, 3.0, 3.1), "matmul_teraflops": summary(700, 710, 720)}
    check = {"errors": {"output": 1e-3, "running mean": 1e-7}, "limits": {"output": 8e-3, "running mean": 1e-4}}
    rate = {"status": "done", "reason": None, "seconds": 8.0, "settings": settings}
    plain = {"status": "done", "reason": None, "seconds": 2.0, "settings": {}}
    skipped = {"status": "skipped", "reason": "needs about 45 s, 3 s were left", "seconds": 0.0, "result": None}
    return ORIGIN | {
        "what": "gpu model",
        "hardware": gpu,
        "device": "cuda",
        "is_rehearsal": False,
        "seconds_to_start": 9.5,
        "minutes": 1.0,
        "seconds": 0.5,
        "repetitions": 3,
        "cases": {
            "machine": plain | {"result": machine},
            "eager-224-bf16": rate | {"result": eager | {"profile": profile}},
            "check-bf16": plain | {"result": check},
            "fused-224-bf16": rate | {"settings": settings | {"fused": True}, "result": fused | {"profile": other}},
            "compile-224-bf16-default": skipped | {"settings": settings | {"compile": "default"}},
        },
    }
