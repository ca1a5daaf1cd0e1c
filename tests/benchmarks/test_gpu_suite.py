"""The GPU suite's command and its worker processes, run without a GPU: what crashes, hangs or is cut loses nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT, run_command

from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_suite.py"
TINY = ("--device", "cpu", "--batch-size", "16", "--size", "32", "--seconds", "0.05", "--models", "resnet10t")
TINY += ("--amp", "none")
ORIGIN = {"command": "python benchmarks/gpu_suite.py", "commit": None, "versions": {}, "date": "2026-01-01"}
ORIGIN |= {"hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None}}
HARM = """
import atexit, ctypes, os, signal, subprocess, time
from pathlib import Path
from prep.dataset import InputError

def answers(job):
    yield {"process": os.getpid(), **job}

def crashes(job):
    yield {"found": 1}
    ctypes.string_at(0)

def raises(job):
    yield {"found": 2}
    yield {}["no such key"]

def refuses(job):
    raise InputError("give it something else")
    yield

def hangs(job):
    yield {"child": subprocess.Popen(["sleep", "600"]).pid}
    time.sleep(600)

def lets_go(job):
    Path(__file__).with_name("go").touch()
    yield {}

def looks(job):
    yield {"is_ready": Path(__file__).with_name("second").exists()}

def ends_badly(job):
    atexit.register(os.kill, os.getpid(), job["signal"])
    yield {"process": os.getpid()}
    if job.get("raises"):
        raise KeyError("no such key")

def ends_late(job):
    atexit.register(time.sleep, 600)
    yield {}
    if job["error"]:
        raise {"KeyError": KeyError, "SystemExit": SystemExit}[job["error"]]("no such key")
"""

RunHarm = Callable[..., dict[str, dict[str, Any]]]


def part(name: str) -> Any:
    return importlib.import_module(f"gpu.{name}")


def harmful(function: str, name: str = "", *, limit: float = 60, **more: Any) -> Any:
    """A case that runs a function of HARM."""
    options = {"group": "one", "job": {}} | more
    return part("cases").Case(name or function, "smoke", f"harm:{function}", limit=limit, estimate=0, **options)


@pytest.fixture
def run_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHarm:
    """Runs cases in worker processes that import nothing heavy; their records, as they are on disk."""
    (tmp_path / "harm.py").write_text(HARM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(part("runner"), "LEAST_SECONDS", 0.0)

    def run(*cases: Any, seconds: float = 120.0, imports: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
        records = part("runner").CaseRecords(tmp_path, {}, ORIGIN)
        log, deadline = tmp_path / "workers.log", time.monotonic() + seconds
        with part("runner").Runner(records, log, deadline, imports) as runner:
            runner.run_all(list(cases))
        return json.loads((tmp_path / "smoke.json").read_text())["cases"]

    return run


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    stat = Path("/proc", str(pid), "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_case_that_crashes_or_raises_costs_no_other_case(run_harm: RunHarm) -> None:
    names = ("first", "crashes", "second", "refuses", "third", "raises", "fourth")
    kinds = [name if name in ("crashes", "refuses", "raises") else "answers" for name in names]
    found = run_harm(*(harmful(kind, name) for kind, name in zip(kinds, names, strict=True)))
    statuses = ("done", "crashed", "done", "failed", "done", "failed", "done")
    assert [found[name]["status"] for name in names] == list(statuses)
    assert found["crashes"]["reason"].startswith('SIGSEGV; File "ctypes/__init__.py", line ')  # no path of the machine
    assert any("harm.py" in line for line in found["crashes"]["stderr"])
    assert found["crashes"]["result"] == {"found": 1}  # what it had reported
    assert any("Fatal Python error" in line for line in found["crashes"]["stderr"])
    assert found["refuses"]["reason"] == "give it something else"
    assert found["raises"]["reason"] == "KeyError: 'no such key'" and found["raises"]["result"] == {"found": 2}
    first, second, third, fourth = (found[name]["result"]["process"] for name in ("first", "second", "third", "fourth"))
    assert first != second == third != fourth  # a refusal keeps its process, an exception may have spoiled it


def test_a_case_that_hangs_ends_with_all_that_it_started(run_harm: RunHarm, tmp_path: Path) -> None:
    found = run_harm(harmful("hangs", limit=2), harmful("answers"))
    assert (found["hangs"]["status"], found["answers"]["status"]) == ("hung", "done")
    assert found["hangs"]["reason"] == "it ran over its limit of 2 s"
    assert any("in hangs" in line for line in found["hangs"]["stderr"])  # where it stood
    assert not is_running(found["hangs"]["result"]["child"])
    assert "== hangs" in (tmp_path / "workers.log").read_text()


def test_the_deadline_cuts_what_runs_and_skips_what_is_left(run_harm: RunHarm) -> None:
    run_harm(harmful("answers", "measured before"))
    started = time.monotonic()
    cases = [harmful("hangs"), replace(harmful("answers"), estimate=60), harmful("answers", "measured before")]
    found = run_harm(*cases, seconds=4)
    assert time.monotonic() - started < 60  # the case hangs for 600 s
    assert found["hangs"]["status"] == "cut" and found["hangs"]["result"]["child"]
    assert found["answers"]["status"] == "skipped" and found["answers"]["reason"].startswith("no time was left: ")
    assert found["measured before"]["status"] == "done"  # by the call before this one


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])  # SIGKILL: the kernel lacks memory
@pytest.mark.parametrize("raises", [False, True])
def test_a_crash_after_the_last_answer_is_told(run_harm: RunHarm, number: signal.Signals, raises: bool) -> None:
    job = {"signal": number, "raises": raises}
    found = run_harm(harmful("ends_badly", job=job), harmful("answers"), harmful("answers", "other", group="two"))
    assert found["ends_badly"]["status"] == ("failed" if raises else "done")
    told = [name for name, record in found.items() if record.get("end") == f"its process ended by {number.name}"]
    assert told == (["ends_badly"] if raises else ["answers"])  # the last case of the process
    assert not any("end" in record for name, record in found.items() if name not in told)


@pytest.mark.parametrize(("error", "status"), [("", "done"), ("KeyError", "failed"), ("SystemExit", "crashed")])
def test_a_process_that_does_not_exit_is_killed_without_a_word(
    run_harm: RunHarm, monkeypatch: pytest.MonkeyPatch, error: str, status: str
) -> None:
    monkeypatch.setattr(importlib.import_module("worker"), "LONGEST_END_SECONDS", 0.5)
    started = time.monotonic()
    found = run_harm(harmful("ends_late", job={"error": error}), harmful("answers"))
    assert time.monotonic() - started < 60  # its exit would take 600 s
    assert [record["status"] for record in found.values()] == [status, "done"]
    assert not any("end" in record for record in found.values())


def test_a_process_that_hangs_in_its_imports_is_told_with_its_stacks(
    run_harm: RunHarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text("import time\n\ndef wait_forever():\n    time.sleep(600)\n\nwait_forever()\n")
    monkeypatch.setattr(part("runner"), "MOST_START_SECONDS", 5.0)
    found = run_harm(harmful("answers"), imports=("endless",))
    assert found["answers"]["status"] == "failed"
    assert found["answers"]["reason"] == "its process did not start: no answer within 5 s; see workers.log"
    assert "in wait_forever" in (tmp_path / "workers.log").read_text()


def test_a_worker_that_was_killed_is_waited_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process in a driver ends by no signal: 10 s for it are enough, after a kill and in all."""
    module = importlib.import_module("worker")
    worker = module.Worker([sys.executable, "-c", "import sys; sys.stdin.read()"], tmp_path / "errors", {})
    waits: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(worker, "wait", waits.append)  # returns None: the process still runs
        worker.kill()
        worker.close()
    assert waits == [10]
    worker.wait(60)


SLOW = """
from pathlib import Path
import time
folder = Path(__file__).parent
if (folder / "first").exists():
    while not (folder / "go").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    (folder / "second").touch()
(folder / "first").touch()
"""


def test_a_process_starts_while_cases_run_but_not_while_one_is_timed(
    run_harm: RunHarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process gets ready only once the first case has run; the timed one has to find it ready."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setattr(part("runner"), "TIMED", ("harm:looks",))
    cases = [harmful("lets_go"), harmful("looks"), harmful("answers", group="two")]
    started = time.monotonic()
    found = run_harm(*cases, imports=("slow",))
    assert time.monotonic() - started < part("runner").MOST_START_SECONDS
    assert found["looks"]["result"] == {"is_ready": True}


def test_a_case_without_time_tells_its_loader(run_harm: RunHarm) -> None:
    case = replace(harmful("answers", job={"device": "cpu"}, path="full-0"), estimate=1000)
    found = run_harm(case, seconds=10)["answers"]
    assert found["reason"].startswith("no time was left: ")
    assert found["job"]["path"] == "full-0"
    assert found["job"]["loader"] == {"placement": "cpu", "decode": "full", "hw_decoder_load": 0.0}


def test_what_cannot_run_is_skipped_by_name(run_harm: RunHarm) -> None:
    cases = [
        harmful("refuses"),
        harmful("answers", needs=("refuses",)),
        harmful("answers", "else", unable="needs a GPU"),
    ]
    found = run_harm(*cases)
    assert found["answers"]["reason"] == "it needs refuses (failed)"
    assert (found["else"]["status"], found["else"]["reason"]) == ("skipped", "needs a GPU")


def test_without_dali_no_path_of_the_gpu_is_tried_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {case.name: case for case in part("cases").build_cases(options(tmp_path, "cuda"), True)}
    runner = part("runner")
    records = runner.CaseRecords(tmp_path, {}, ORIGIN)
    records.add(cases["dali"], {}, {"status": "failed", "reason": "DALI is not installed"})
    waiting = [case for case in cases.values() if "dali" in case.needs]
    monkeypatch.setattr(runner, "Process", None)  # no process is started
    runner.Runner(records, tmp_path / "workers.log", time.monotonic() + 60).run_all(waiting)
    assert {records.results[case.name]["reason"] for case in waiting} == {"it needs dali (failed)"}
    assert {case.name for case in waiting} >= {"smoke", "engines", "parity-full-0", "parity-roi-0.99"}
    free = [name for name in cases if not cases[name].needs]
    assert {"parity-cpu", "loader-cpu", "model-resnet50", "train-resnet50-cpu", "training", "gpu-tests"} <= set(free)


def options(folder: Path, device: str = "cpu", **more: Any) -> Any:
    return part("cases").Options(data=folder, out=folder / "out", work=folder / "work", device=device, **more)


def test_the_cases_stand_in_order_of_worth_and_fit_into_nine_minutes(tmp_path: Path) -> None:
    module = part("cases")
    cases = module.build_cases(options(tmp_path, "cuda"), False)
    names = [case.name for case in cases]
    order = ["machine", "smoke", "engines", "parity-full-0.99", "decode-full-0.99", "parity-full-0", "parity-roi-0.99"]
    order += ["load-best", "damaged-full-0", "train-resnet50-cpu", "check-fused", "train-resnet50-fused-gpu"]
    order += ["training", "gpu-tests", "profile-fused", "compile-default"]
    assert [name for name in names if name in order] == order and len(set(names)) == len(names)
    to_the_tests = cases[: names.index("gpu-tests") + 1]
    assert module.estimate_seconds(to_the_tests)[0] < 9 * 60 and all(case.limit > case.estimate for case in cases)
    paths = {case.path: case.group for case in cases if case.name.startswith("parity-")}
    assert len(set(paths.values())) == len(paths) == 5  # each decode path in its own process
    assert {case.group for case in cases if case.entry == "gpu.rates:measure_rates"} == {""}  # all rates in one
    assert not any(case.unable for case in cases if not case.name.startswith(module.RESTARTS))
    rows = module.list_cases(cases).rows
    assert [row[0] for row in rows][: len(names)] == names and rows[-1][0] == "sum"


def test_without_a_gpu_its_cases_run_on_the_cpu_or_say_what_they_need(tmp_path: Path) -> None:
    module = part("cases")
    cases = {case.name: case for case in module.build_cases(options(tmp_path), False)}
    assert cases["parity-roi-0.99"].unable == "needs a GPU with JPEG engines"
    assert cases["train-resnet50-gpu"].unable == "needs a GPU" and not cases["parity-full-0"].unable
    job = module.resolve_job(cases["parity-full-0"], {})
    assert job["loader"] == {"placement": "cpu", "decode": "full", "hw_decoder_load": 0.0}


def test_a_suite_that_is_killed_keeps_its_results_and_the_next_call_adds_to_them(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--data", str(digits), "--out", str(out), "--work", str(tmp_path / "work"), *TINY]
    suite = subprocess.Popen([sys.executable, SCRIPT, *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    smoke = out / "smoke.json"
    wait_for(lambda: smoke.exists() and json.loads(smoke.read_text())["cases"]["machine"]["status"] == "done")
    workers = [int(pid) for pid in Path(f"/proc/{suite.pid}/task/{suite.pid}/children").read_text().split()]
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    before = json.loads(smoke.read_text())["cases"]
    assert before["machine"]["result"]["cores"]
    wait_for(lambda: not any(map(is_running, workers)))  # none measures next to the second call

    done = run_command(SCRIPT, *words, "--only", "decode-cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cases = json.loads((out / "decode.json").read_text())["cases"]
    assert set(cases) == {"parity-cpu", "decode-cpu"}  # the second needs the first
    assert all(case["status"] == "done" for case in cases.values()), cases
    assert cases["parity-cpu"]["result"]["verdict"] == "right"
    assert cases["parity-cpu"]["result"]["placement"] == "cpu"
    assert len(cases["decode-cpu"]["result"]["images_per_second"]["repetitions"]) == 3
    assert cases["decode-cpu"]["command"].startswith("python benchmarks/gpu_suite.py --data ")
    assert str(tmp_path) not in json.dumps(cases["decode-cpu"]["job"])  # paths of the machine are not settings
    assert cases["decode-cpu"]["versions"]["torch"] and cases["decode-cpu"]["hardware"]["cpu"]
    assert json.loads(smoke.read_text())["cases"]["machine"] == before["machine"]
    assert "decode cpu: go, " in done.stdout and "machine " in done.stdout and len(done.stdout) < 12_000
    assert len(os.listdir(out)) <= 8


@pytest.fixture
def call(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command in this process."""
    command = importlib.import_module("gpu_suite")
    places = ("--data", str(digits), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))

    def run(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *places, *TINY, *more])
        command.main()

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repetitions", "0"), "--repetitions must be greater than 0, got 0"),
        (("--only", "nothing"), "unknown case nothing: --list names all cases"),
        (("--batch-size", "5000"), "has 1437 images, and a batch needs 5000"),
        (("--batch-size", "1"), "--batch-size must be at least 2, got 1"),
        (("--minutes", "0"), "--minutes must be greater than 0, got 0"),
        (("--minutes", "nan"), "--minutes must be finite and greater than 0, got nan"),
        (("--models",), "--models needs at least one value"),
        (("--models", "resnet18", "resnet18"), "--models names resnet18 twice"),
        (("--data", "/nowhere"), "/nowhere/train/manifest.json does not exist"),
        (("--device", "cuda"), "device cuda was requested, but this machine shows no NVIDIA GPU"),
        (("--work", "/dev/null/x", "--only", "machine"), "/dev/null/x cannot be created"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    call: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match=words) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_the_list_names_every_case_and_touches_nothing(
    call: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("--list")
    shown = capsys.readouterr().out
    assert "train-resnet10t-cpu" in shown and "skipped: needs a GPU" in shown and " minutes" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"smoke\.json holds no records of this suite: delete it or choose another --out"),
        ('{"cases": {}}', r"smoke\.json holds no records of this suite"),
        (
            json.dumps({"settings": {"device": "cuda"}, "cases": {}}),
            r"holds records with device cuda, and this call has cpu: choose another --out, or the same settings",
        ),
    ],
)
def test_other_records_are_not_added_to(call: Callable[..., None], tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "smoke.json").write_text(content)
    with pytest.raises(InputError, match=words):
        call("--only", "machine")
    assert os.listdir(tmp_path / "out") == ["smoke.json"]


def test_the_log_is_shortened_at_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, log = part("runner"), tmp_path / "workers.log"
    monkeypatch.setattr(runner, "MOST_LOG_BYTES", 100)
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    with runner.Runner(runner.CaseRecords(tmp_path, {}, ORIGIN), log, time.monotonic()):
        pass
    assert log.stat().st_size == 100 and log.read_text().endswith("line 99\n")
