"""Who comes when too many are waiting already is told so, and nobody else loses an answer."""

import time
from pathlib import Path

from app_gated import NUM_WAITING
from app_visitors import Visitor, encode, read_guesses, read_html, serving
from conftest import CHECKOUT
from PIL import Image
from served import Exported

pytest_plugins = ["serve_fixtures"]


def read_entered(folder: Path) -> str:
    return (folder / "entered").read_text() if (folder / "entered").exists() else ""


def test_a_full_queue_says_so_and_loses_nobody(exported: Exported, tmp_path: Path) -> None:
    folder, picture = tmp_path / "gated", encode(Image.new("RGB", (32, 32), "red"))
    folder.mkdir()
    (folder / "red.png").write_bytes(picture)
    script = CHECKOUT / "tests" / "app_gated.py"
    with serving(exported.artifact, tmp_path / "log", "--examples", folder, script=script) as server:
        visitor = Visitor(server.url)
        path = visitor.upload(picture)
        for number in range(1 + NUM_WAITING):
            visitor.join({"upload": path}).raise_for_status()
            while number == 0 and not read_entered(folder):
                time.sleep(0.02)
        refused = Visitor(server.url).join({"upload": path})
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("Queue is full")  # which the page says in words of its own
        assert read_entered(folder) == "x"
        (folder / "gate").touch()
        answers = visitor.listen(1 + NUM_WAITING)
        assert [len(read_guesses(read_html(each))) for each in answers] == [5] * (1 + NUM_WAITING)
        assert len(read_guesses(Visitor(server.url).ask(picture))) == 5
    assert read_entered(folder) == "x." * (2 + NUM_WAITING)  # one at a time
