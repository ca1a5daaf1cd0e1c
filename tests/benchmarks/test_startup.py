"""benchmarks/startup.py: a measurement that fails ends the benchmark in one line, that of its process."""

import importlib
from pathlib import Path

import pytest

from prep.errors import InputError


def test_the_error_line_of_a_measurement_is_that_of_the_benchmark(tmp_path: Path) -> None:
    startup = importlib.import_module("startup")
    with pytest.raises(InputError) as refusal:
        startup.measure_in_process(tmp_path, 0.0)
    assert str(refusal.value).startswith(f"{tmp_path}/train/manifest.json does not exist: ")
    assert "\n" not in str(refusal.value)


def test_a_file_keeps_the_other_measurement_and_its_kind(tmp_path: Path) -> None:
    startup = importlib.import_module("startup")
    assert startup.read_kept(None) == startup.read_kept(tmp_path / "new.json") == {"what": "startup"}
    path = tmp_path / "record.json"
    path.write_text('{"what": "startup", "bucket": {}}')
    assert startup.read_kept(path) == {"what": "startup", "bucket": {}}
    path.write_text('{"what": "feeding"}')
    with pytest.raises(InputError, match="is a record of feeding: choose another --out"):
        startup.read_kept(path)
