"""`python serve/publish.py ARTIFACT --out SPACE_DIR [--push OWNER/NAME]`: a Space on which anyone can try a model.

ARTIFACT is a folder written by train/export.py. SPACE_DIR gets all that the app needs, and nothing of training; it is
started once and must answer a picture before it gets its name. --push-model pushes ARTIFACT itself to the hub, in the
layout that timm loads.
"""

# ruff: noqa: PLC0415 - torch and huggingface_hub take seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, run
from prep.files import write_folder

if TYPE_CHECKING:
    from serve.artifact import Served


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/publish.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder written by train/export.py")
    add("--out", type=Path, required=True, metavar="SPACE_DIR", help="new, empty or an earlier Space")
    add("--push", metavar="OWNER/NAME", help="push the Space to the hub")
    add("--push-model", metavar="OWNER/NAME", help="push the model to the hub, and link the Space to it")
    return parser.parse_args()


def main() -> None:
    """Check the artifact, assemble and try the Space, give it its name; push if asked to."""
    arguments = parse_arguments()
    from serve.hub import check_push, push_folder

    # Refuse what could not be pushed before the slow part.
    out: Path = arguments.out.absolute()
    for repo in filter(None, (arguments.push_model, arguments.push)):
        check_push(repo)

    from serve.artifact import load_artifact
    from serve.smoke_test import try_space
    from serve.space import MODEL_FILES, check_replaceable, write_space

    # Check the artifact, and that `out` holds nothing of the user's.
    served = load_artifact(arguments.artifact)
    check_publishable(arguments.artifact, served)
    replaces = check_replaceable(out)

    # Assemble the Space and try it; it gets its name only if it answers.
    with write_folder(out) as partial:
        write_space(partial, arguments.artifact, served, arguments.push_model)
        name, percent = try_space(partial, served)[0]
    print(f"tried: it starts, computes the recorded logits, and predicts {name}, {percent:.1f}%, for its first example")
    print(f"Space: {arguments.out}{' (the earlier one was replaced)' if replaces else ''}")

    # Push the model first, because the Space links to it.
    if arguments.push_model:
        print(f"model: {push_folder(arguments.artifact, arguments.push_model, 'model', MODEL_FILES)}")
    if arguments.push:
        print(f"pushed: {push_folder(out, arguments.push, 'space', ('*',))}")


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


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
