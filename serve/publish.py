"""`python serve/publish.py ARTIFACT --out SPACE_DIR [--push OWNER/NAME]`: a Space on which anyone can try a model.

ARTIFACT is a folder written by train/export.py. SPACE_DIR gets all that the app needs, and nothing of training; it is
started once and must answer a picture before it gets its name. --push-model pushes ARTIFACT itself to the hub, in the
layout that timm loads. A push overwrites and deletes only files that an earlier push wrote.
"""

# ruff: noqa: PLC0415 - torch and huggingface_hub take seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, run
from prep.files import sha256_of_file, write_folder

if TYPE_CHECKING:
    from serve.artifact import Served
    from serve.hub import Push


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/publish.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="exported artifact, or hf-hub:OWNER/NAME of one")
    add("--out", type=Path, required=True, metavar="SPACE_DIR", help="new, empty or an earlier Space")
    add("--title", metavar="TEXT", help="heading of the Space on the hub")
    add("--examples", type=Path, metavar="FOLDER", help="pictures to offer as examples (default: photographs that fit)")
    add("--push", metavar="OWNER/NAME", help="push the Space to the hub")
    add("--push-model", metavar="OWNER/NAME", help="push the model to the hub, and link the Space to it")
    add("--private", action="store_true", help="create what is pushed as private (default: public)")
    add("--hardware", metavar="FLAVOR", help="run the Space on it, e.g. t4-small (default: as the hub decides)")
    add("--replace", action="append", default=[], metavar="FILE", help="on the hub, overwrite your FILE; or all")
    add(
        "--keep",
        action="append",
        default=[],
        metavar="FILE",
        help="on the hub, leave your FILE as it is; or all",
    )
    return parser.parse_args()


def main() -> None:
    """Check the artifact, assemble and try the Space, give it its name; push if asked to."""
    arguments = parse_arguments()

    # Refuse what could not be pushed before the slow part.
    out: Path = arguments.out.absolute()
    check_flags(arguments)

    from serve.app.examples import list_examples
    from serve.artifact import load_artifact
    from serve.loading import find_model
    from serve.outputs import check_folder
    from serve.smoke_test import try_space
    from serve.space import TITLE, Wishes, write_space

    # Check the artifact, the wishes, and that `out` holds nothing of the user's.
    artifact = find_model(arguments.artifact)
    served = load_artifact(artifact)
    check_publishable(artifact, served)
    if arguments.push_model:
        check_portable(artifact)
    wishes = Wishes(TITLE if arguments.title is None else arguments.title, arguments.examples, arguments.push_model)
    wishes.validate()
    copied = list_examples(arguments.examples) if arguments.examples else ()
    replaces = check_folder(out, "app.py", taken_over=copied)

    # Assemble the Space and try it; it gets its name only if it answers. `out` is checked again, because it may have
    # got other files since.
    with write_folder(out) as partial:
        write_space(partial, artifact, served, wishes)
        name, percent = try_space(partial, served)[0]
        check_folder(out, "app.py", taken_over=copied)
    print(f"tried: it starts, computes the recorded logits, and predicts {name}, {percent:.1f}%, for its first example")
    print(f"Space: {arguments.out}{' (the earlier one was replaced)' if replaces else ''}")
    push_all(list_pushes(arguments, artifact, out), arguments.hardware)


def check_flags(arguments: argparse.Namespace) -> None:
    """Check the flags for a push, without sending a request.

    Raises:
        InputError: nothing could be pushed, or a flag has no effect.
    """
    from serve.hub import check_hardware, check_push
    from serve.hub_models import is_hub_name

    if arguments.push_model and is_hub_name(str(arguments.artifact)):
        raise InputError(
            f"--push-model pushes an artifact on this machine, and {arguments.artifact} is on the hub already: "
            "remove --push-model, or give the folder of train/export.py"
        )
    repos = list(filter(None, (arguments.push_model, arguments.push)))
    for repo in repos:
        check_push(repo)
    given = {f"--{name}" for name in ("private", "replace", "keep", "hardware") if getattr(arguments, name)}
    if given and not repos:
        raise InputError(f"{min(given)} is for a push: give --push OWNER/NAME too")
    if arguments.hardware is not None:
        if arguments.push is None:
            raise InputError("--hardware is for a Space: give --push OWNER/NAME too")
        check_hardware(arguments.hardware)
    both = set(arguments.replace) & set(arguments.keep)
    if both:
        raise InputError(f"--replace and --keep both name {min(both)}: give one of them")


def list_pushes(arguments: argparse.Namespace, artifact: Path, space: Path) -> list[Push]:
    """Return what to push: the model first, because the Space links to it.

    Raises:
        InputError: --replace or --keep names a file that is not pushed.
    """
    from serve.contents import ALL, digest_folder
    from serve.hub import Push
    from serve.space import MODEL_FILES, PORTABLE

    options = (arguments.private, frozenset(arguments.replace), frozenset(arguments.keep))
    pushes = []
    if arguments.push_model:
        model = {name: artifact / name for name in (*MODEL_FILES, *PORTABLE.values()) if (artifact / name).is_file()}
        pushes.append(Push(arguments.push_model, "model", model, *options))
    if arguments.push:
        files = {name: space / name for name in digest_folder(space)}
        pushes.append(Push(arguments.push, "space", files, *options))
    known = {ALL}.union(*(push.files for push in pushes))
    for flag, names in (("--replace", arguments.replace), ("--keep", arguments.keep)):
        for name in names:
            if name not in known:
                raise InputError(f"nothing was pushed: {flag} {name} is not a file of the push, e.g. README.md")
    return pushes


def push_all(pushes: list[Push], hardware: str | None) -> None:
    """Push, once it is known that nothing of the user's would be overwritten in any of the repositories.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    from serve.hub import commit_push, prepare_push, request_hardware

    prepared = [prepare_push(push) for push in pushes]
    for each in prepared:
        pushed = commit_push(each)
        print(f"{'model' if each.push.kind == 'model' else 'pushed'}: {pushed.url}")
        for note in pushed.notes:
            print(f"  {note}")
        if each.push.kind == "space" and hardware is not None:
            request_hardware(each.push.repo, hardware)
            print(f"  hardware: {hardware}")


def check_publishable(artifact: Path, served: Served) -> None:
    """Check that an artifact is complete, and that its recorded accuracy is better than chance.

    Raises:
        InputError: it is not.
    """
    from serve.accuracy_check import count_recorded, find_doubts
    from serve.space import MODEL_FILES

    missing = [name for name in MODEL_FILES if not (artifact / name).is_file()]
    if missing:
        raise InputError(f"{artifact} has no {missing[0]}: export it again")
    if served.recorded is not None:
        for doubt in find_doubts(count_recorded(served.recorded), served.num_classes, None):
            raise InputError(f"nothing was assembled: {doubt}")


def check_portable(artifact: Path) -> None:
    """Check that an artifact holds the files for other runtimes that it records, so that a push does not delete them.

    Raises:
        InputError: one is missing, or is not the one that was exported.
    """
    from serve.artifact import ARTIFACT
    from serve.space import PORTABLE

    facts = json.loads((artifact / ARTIFACT).read_bytes())
    for key, name in PORTABLE.items():
        recorded, path = facts.get(key), artifact / name
        if not recorded:
            continue
        if not path.is_file():
            found = "is missing"
        elif sha256_of_file(path) != recorded["sha256"]:
            found = "has another SHA-256"
        else:
            continue
        raise InputError(
            f"nothing was pushed: {artifact / ARTIFACT} records {name}, which {found}: put the exported file back, or "
            "export the model again"
        )


if __name__ == "__main__":
    run(main, interrupted="no incomplete folder was left; run the same command again")
