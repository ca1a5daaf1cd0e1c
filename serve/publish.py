"""`python serve/publish.py ARTIFACT --out SPACE_DIR [--push OWNER/NAME]`: a Space on which anyone can try a model.

ARTIFACT: what train/export.py wrote. SPACE_DIR holds all that the app needs, and nothing of training; it is started
once and has to answer before it gets its name. --push-model pushes ARTIFACT itself, as timm loads it from the hub.
"""

import argparse
from pathlib import Path

from prep.errors import InputError, run
from prep.files import write_folder
from serve.artifact import ARTIFACT, WEIGHTS, Served, load_artifact
from serve.contents import check_replaceable
from serve.honesty import count_recorded, find_doubts
from serve.hub import check_push, push
from serve.space import CARD, CONFIG, write_space
from serve.trial import try_space

MODEL_FILES = (WEIGHTS, CONFIG, ARTIFACT, CARD)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="serve/publish.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="what train/export.py wrote")
    add("--out", type=Path, required=True, metavar="SPACE_DIR", help="new, empty or an earlier Space")
    add("--push", metavar="OWNER/NAME", help="push the Space to the hub")
    add("--push-model", metavar="OWNER/NAME", help="push the model to the hub, and link the Space to it")
    return parser.parse_args()


def main() -> None:
    """Check, assemble, try, name; push if asked."""
    arguments = parse_arguments()
    out: Path = arguments.out.absolute()
    for repo in filter(None, (arguments.push_model, arguments.push)):
        check_push(repo)
    served = load_artifact(arguments.artifact)
    check_publishable(arguments.artifact, served)
    replaces = check_replaceable(out)
    with write_folder(out) as partial:
        write_space(partial, arguments.artifact, served, arguments.push_model)
        name, percent = try_space(partial, served)[0]
    print(f"tried: it starts, computes the recorded logits, and says {name}, {percent:.1f}%, of its first example")
    print(f"Space: {arguments.out}{' (the earlier one was replaced)' if replaces else ''}")
    if arguments.push_model:
        print(f"model: {push(arguments.artifact, arguments.push_model, 'model', MODEL_FILES)}")
    if arguments.push:
        print(f"pushed: {push(out, arguments.push, 'space', ('*',))}")


def check_publishable(artifact: Path, served: Served) -> None:
    """Raises InputError where a part is missing, or the model was measured to be no better than chance."""
    missing = [name for name in MODEL_FILES if not (artifact / name).is_file()]
    if missing:
        raise InputError(f"{artifact} has no {missing[0]}: export it anew")
    if served.recorded is not None:
        for doubt in find_doubts(count_recorded(served.recorded), served.num_classes, None):
            raise InputError(f"nothing was assembled: {doubt}")


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
