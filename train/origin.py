"""The weights from elsewhere that a new run starts from: which ones the flags name, and where they are.

  --run.from PATH         go on from another run: its model and EMA, and with --run.from-optimizer its optimizer
  --model.init PATH       one set of weights for both: an export, the EMA of a run, a file of timm or torchvision
  --model.pretrained TAG  the same with weights that timm publishes

Rank 0 finds them (`find_origin`); `train/transfer.py` loads them. The clock starts at 0. All of it is also in the new
run's own first checkpoint, so that neither PATH nor the hub is needed again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError
from prep.files import sha256_of_file
from train.checkpoint import MODEL, find_checkpoint, read_meta
from train.config import Recipe
from train.pretrained import describe_weights, fetch_weights, resolve_tag

ARTIFACT = "artifact.json"  # a file that every export has


@dataclass(frozen=True)
class Origin:
    """The source of a run's first weights."""

    path: str  # folder of a checkpoint or an export, or a file
    files: dict[str, str]  # SHA-256 by name
    clock: int | None  # images seen in their own training; None: not recorded
    model: str | None  # timm's name, with the tag of published weights; None: not recorded
    classes_sha256: str | None  # of the names of their classes; None: not recorded
    asked: dict[str, Any]  # the flags, as `list_origin_flags` returns them
    new_head: bool = False
    optimizer: str | None = None  # the optimizer with a saved state in the folder
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std; None: not recorded
    notes: tuple[str, ...] = ()  # what was changed or assumed to load them

    @property
    def continues(self) -> bool:
        """True for --run.from: another run's model, EMA and optimizer; False for one set of weights."""
        return bool(self.asked["start_from"])

    def to_dict(self) -> dict[str, Any]:
        """Return the origin as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        head = "a new classifier" if self.new_head else "the classifier too"
        state = ", the optimizer's state" if self.asked["from_optimizer"] else ""
        clock = "" if self.clock is None else f", image {self.clock:,} of its training"
        which = "weights and EMA" if self.continues else "weights"
        source = f"{self.model} ({self.path})" if self.asked["pretrained"] else self.path
        return f"{which} of {source}{clock}; {'; '.join((head + state, *self.notes))}"


# Flags.


def check_origin_flags(recipe: Recipe) -> None:
    """Check the flags that name weights, before anything is read.

    Raises:
        InputError: two of them are given, a flag that needs one of them is given alone, timm has no such weights, or
            the run would start from its own folder.
    """
    run, model = recipe.run, recipe.model
    paths = {"--run.from": run.start_from, "--model.init": model.init}
    given = [flag for flag, value in {**paths, "--model.pretrained": model.pretrained}.items() if value]
    if len(given) > 1:
        raise InputError(f"a run starts from one set of weights, and {' and '.join(given)} are given: remove one")
    if run.start_from is None and run.from_optimizer:
        raise InputError("--run.from-optimizer needs --run.from PATH: give it, or remove --run.from-optimizer")
    if not given and run.from_head != "auto":
        raise InputError(
            "--run.from-head needs --run.from PATH, --model.init PATH or --model.pretrained TAG: give one, or remove "
            "--run.from-head"
        )
    if model.pretrained:
        resolve_tag(model.name, model.pretrained)
    folder = recipe.run_dir.resolve()
    for flag, path in paths.items():
        if path is not None and (path.resolve() == folder or folder in path.resolve().parents):
            raise InputError(
                f"{flag} {path} is in this run's own folder: remove it to continue that run, or choose another "
                "--run.dir for a new one"
            )


def list_origin_flags(recipe: Recipe) -> dict[str, Any]:
    """Return the flags that decide which weights a new run starts from."""
    run, model = recipe.run, recipe.model
    return {
        "start_from": run.start_from and str(run.start_from.resolve()),
        "from_optimizer": run.from_optimizer,
        "from_head": run.from_head,
        "init": model.init and str(model.init.resolve()),
        "pretrained": model.pretrained,
    }


def check_origin(recipe: Recipe, origin: dict[str, Any] | None) -> None:
    """Check that a resumed run started as `--run.from` says; without the flag there is nothing to check.

    --model.init and --model.pretrained are fields of the recipe's model, which must not change at all. With them
    another --run.from-head is ignored, because the classifier has been chosen.

    Raises:
        InputError: it started from random weights, or from others.
    """
    if recipe.run.start_from is None:
        return
    if origin is None:
        raise InputError(
            f"{recipe.run_dir} holds a run that did not start from {recipe.run.start_from}: choose another --run.dir, "
            "or remove --run.from to continue it"
        )
    asked = origin["asked"]
    # Runs of older versions have not recorded all flags.
    if field := next(
        (name for name, value in list_origin_flags(recipe).items() if asked.get(name, value) != value), None
    ):
        raise InputError(
            f"{recipe.run_dir} holds a run that started from {asked['start_from']}, {field} differs: choose another "
            "--run.dir, or remove --run.from to continue it"
        )


def hash_classes(names: Sequence[str]) -> str:
    """Return a digest of class names, in the order of their labels."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


# Find the weights.


def find_origin(recipe: Recipe) -> Origin | None:
    """Find the weights that the flags name, and download published ones; return None without such a flag.

    Raises:
        InputError: there are no such weights, or --model.freeze would freeze random ones.
    """
    flags = list_origin_flags(recipe)
    path = recipe.run.start_from or recipe.model.init
    if path is not None:
        if path.is_file() and recipe.run.start_from is None:
            return Origin(str(path.resolve()), {path.name: sha256_of_file(path)}, None, None, None, flags)
        if (path / ARTIFACT).is_file():
            return _find_export(path, flags)
        if recipe.run.start_from is None and not path.is_dir():
            raise InputError(
                f"--model.init {path} does not exist: give a run folder, a checkpoint, an export, or a .pth, .pth.tar "
                "or .safetensors file"
            )
        return _find_checkpoint(path, flags)
    if recipe.model.pretrained:
        return _find_published(recipe, flags)
    if recipe.model.freeze:
        raise InputError(
            "--model.freeze keeps weights as they start, and this run starts from random ones: give --model.pretrained "
            "TAG, --model.init PATH or --run.from PATH"
        )
    return None


def _find_export(path: Path, flags: dict[str, Any]) -> Origin:
    try:
        about = json.loads((path / ARTIFACT).read_text())
        digest = sha256_of_file(path / MODEL)
        if digest != about["weights_sha256"]:
            raise ValueError(f"{MODEL} has changed")
        normalize = about["preprocessing"]
        return Origin(
            path=str(path.resolve()),
            files={MODEL: digest},
            clock=about["images_seen"],
            model=about["architecture"],
            classes_sha256=hash_classes(about["class_names"]) if about["class_names"] else None,
            asked=flags,
            normalization=(tuple(normalize["mean"]), tuple(normalize["std"])),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a complete export ({error}): export it again") from error


def _find_checkpoint(path: Path, flags: dict[str, Any]) -> Origin:
    checkpoint = find_checkpoint(path)
    meta = read_meta(checkpoint)
    model = meta["recipe"]["model"]
    return Origin(
        path=str(checkpoint.resolve()),
        files=meta["files"],
        clock=meta["clock"],
        model=model["name"],
        classes_sha256=meta.get("classes_sha256"),
        asked=flags,
        optimizer=meta["recipe"]["optim"].get("name", "sgd"),
        normalization=(tuple(model["mean"]), tuple(model["std"])),
    )


def _find_published(recipe: Recipe, flags: dict[str, Any]) -> Origin:
    tag = resolve_tag(recipe.model.name, recipe.model.pretrained)
    name = f"{recipe.model.name}.{tag}"
    path, config = fetch_weights(recipe.model.name, tag), describe_weights(name)
    return Origin(
        path=str(path),
        files={path.name: sha256_of_file(path)},
        clock=None,
        model=name,
        classes_sha256=None,
        asked=flags,
        normalization=(tuple(config.mean), tuple(config.std)),
    )
