"""A full queue refuses further requests, and every accepted request is answered."""

import time
from pathlib import Path

from helpers.app_gated import NUM_WAITING
from helpers.app_visitors import Visitor, encode, read_guesses, read_html, serving
from helpers.commands import CHECKOUT
from helpers.served import Exported
from PIL import Image


def read_entered(folder: Path) -> str:
    return (folder / "entered").read_text() if (folder / "entered").exists() else ""


def test_a_full_queue_refuses_and_loses_no_request(exported: Exported, tmp_path: Path) -> None:
    folder, picture = tmp_path / "gated", encode(Image.new("RGB", (32, 32), "red"))
    folder.mkdir()
    (folder / "red.png").write_bytes(picture)
    script = CHECKOUT / "tests" / "helpers" / "app_gated.py"
    with serving(exported.artifact, tmp_path / "log", "--examples", folder, script=script) as server:
        visitor = Visitor(server.url)
        path = visitor.upload(picture)
        for number in range(1 + NUM_WAITING):
            visitor.join({"upload": path}).raise_for_status()
            while number == 0 and not read_entered(folder):
                time.sleep(0.02)
        refused = Visitor(server.url).join({"upload": path})
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("Queue is full")  # the page shows its own words for it
        assert read_entered(folder) == "x"
        (folder / "gate").touch()
        answers = visitor.listen(1 + NUM_WAITING)
        assert [len(read_guesses(read_html(each))) for each in answers] == [5] * (1 + NUM_WAITING)
        assert len(read_guesses(Visitor(server.url).ask(picture))) == 5
    assert read_entered(folder) == "x." * (2 + NUM_WAITING)  # one at a time
