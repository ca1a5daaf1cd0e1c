"""Commands parse their flags without torch: modules of loaders/ that they need import it only when it is used."""

import json
import subprocess
import sys

import pytest
from helpers.commands import CHECKOUT

import loaders

TORCH_FREE = ("augment", "backends", "config", "order", "philox", "placement", "plan", "quarantine", "reader", "stats")
TORCH_FREE += ("tuned", "world")
HEAVY = ("torch", "nvidia", "PIL", "cv2", "pyarrow.dataset", "scipy.special")
SCRIPT = """
import importlib, json, sys
for name in {names}: importlib.import_module(name)
from loaders import AugmentConfig, EvalTransform, InputError, LoaderConfig, Sampling, TrainTransform, World
LoaderConfig().check()
print(json.dumps([name for name in {heavy} if name in sys.modules]))
"""


def test_what_flags_need_is_imported_without_torch() -> None:
    names = ["loaders", *(f"loaders.{name}" for name in TORCH_FREE)]
    script = SCRIPT.format(names=names, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", loaders.__all__)
def test_every_public_name_is_imported_when_it_is_used(name: str) -> None:
    assert name in dir(loaders)
    assert getattr(loaders, name) is not None


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'loaders' has no attribute 'Loadr'"):
        loaders.Loadr  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
