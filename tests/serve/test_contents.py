"""What Penstock wrote is told from what is the user's, by content."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from serve.contents import (
    ALL,
    check_replaceable,
    format_contents,
    parse_contents,
    plan_push,
    write_contents,
)

PATHS = st.sampled_from(["README.md", "app.py", "serve/a.py", "serve/b.py", "examples/dog.jpg"])
DIGESTS = st.dictionaries(PATHS, st.sampled_from(["1" * 64, "2" * 64, "3" * 64]))
CHOICES = st.sets(st.one_of(PATHS, st.just(ALL)))


@settings(max_examples=200, deadline=None)
@given(DIGESTS, DIGESTS, DIGESTS, CHOICES, CHOICES)
def test_a_push_loses_nothing_that_penstock_did_not_write(
    new: dict[str, str], earlier: dict[str, str], remote: dict[str, str], replace: set[str], keep: set[str]
) -> None:
    theirs = {path for path in remote if remote[path] != earlier.get(path) and remote[path] != new.get(path)}
    agreed = set(new) if ALL in replace else replace & set(new)
    try:
        plan = plan_push(new, earlier, remote, replace, keep)
    except InputError as error:
        undecided = (theirs & new.keys()) - agreed - (new.keys() if ALL in keep else keep)
        assert any(path in str(error) for path in undecided)
        return
    after = apply(remote, new, plan.written, plan.deleted)
    for path in theirs - agreed:
        assert after[path] == remote[path] and path in plan.kept
    assert all(after[path] == digest or path in plan.kept for path, digest in new.items())
    assert not set(plan.kept) & {*plan.written, *plan.deleted} and set(plan.kept) <= theirs
    assert after.keys() == new.keys() | set(plan.kept)


def apply(remote: Mapping[str, str], new: Mapping[str, str], written: object, deleted: object) -> dict[str, str]:
    assert isinstance(written, tuple) and isinstance(deleted, tuple)
    after = {path: digest for path, digest in remote.items() if path not in deleted}
    return after | {path: new[path] for path in written}


@given(DIGESTS)
def test_contents_are_read_as_they_were_written(digests: dict[str, str]) -> None:
    assert parse_contents(format_contents(digests).encode()) == digests


@pytest.mark.parametrize("content", [b"", b"[1]", b"7", b"\xff", b'{"a": 1}', b'{"a": "not a SHA-256"}', b"null"])
def test_the_contents_file_of_another_program_is_not_ours(content: bytes) -> None:
    assert parse_contents(content) is None


def test_what_is_replaced_is_what_was_written_down(tmp_path: Path) -> None:
    assert not check_replaceable(tmp_path / "new")
    assert not check_replaceable(tmp_path)
    (tmp_path / "a").write_text("a")
    with pytest.raises(InputError, match="holds a, which is yours"):
        check_replaceable(tmp_path)
    write_contents(tmp_path)
    assert check_replaceable(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="holds link"):
        check_replaceable(tmp_path)
    with pytest.raises(InputError, match="is a link, which is not a folder"):
        check_replaceable(tmp_path / "link")


def test_pictures_that_the_user_added_are_kept_by_giving_them_as_examples(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "two.png").write_text("ours")
    write_contents(tmp_path)
    mine = tmp_path / "examples" / "my_dog.jpg"
    mine.write_text("mine")
    with pytest.raises(InputError, match=f"holds examples/my_dog.jpg, .* give --examples {tmp_path}/examples to keep"):
        check_replaceable(tmp_path)
    assert check_replaceable(tmp_path, taken_over=[mine])
