"""`python serve/app.py --artifact DIR`: a web page on which anyone can try a model, and see what it looked at.

DIR is a folder written by train/export.py. The server listens on GRADIO_SERVER_NAME and GRADIO_SERVER_PORT (default:
127.0.0.1, and 7860 or the next free port); behind a proxy that serves it under a path, set GRADIO_ROOT_PATH to that
path. It answers one picture at a time; further visitors wait in a queue. Each uploaded picture is deleted after a few
minutes. --api also answers programs: POST /predict with the token in the environment variable PENSTOCK_API_TOKEN.
"""

# This file is the command alone; the app is the package serve/app/ next to it. When a package and a module have the
# same name, Python imports the package, so `from serve.app import run` below and elsewhere means serve/app/__init__.py.

import argparse
from pathlib import Path

from prep.errors import run as run_command
from serve.app import run
from serve.device import add_device_flag


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--artifact",
        type=Path,
        required=True,
        metavar="DIR",
        help="exported artifact, weights of any trainer, or hf-hub:OWNER/NAME",
    )
    add(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="pictures to offer as examples (default: photographs or drawings that fit the classes)",
    )
    add_device_flag(parser)
    add("--api", action="store_true", help="answer POST /predict; needs PENSTOCK_API_TOKEN, at least 16 characters")
    return parser.parse_args()


def main() -> None:
    """Serve the page until it is interrupted."""
    arguments = parse_arguments()
    run(arguments.artifact, arguments.examples, device=arguments.device, api=arguments.api)


if __name__ == "__main__":
    run_command(main, interrupted="the server was not running yet")
