"""The keyring folder and the watching of files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from amo_receiver.errors import ConfigurationError
from amo_receiver.watch import MOST_FILE_BYTES, MOST_FILES, KeyringDirectory, Watch, read_bounded, signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MARK = "MARKEDsecretMARKED"


def content(generation: int = 1, secret: str = MARK, **changes: Any) -> str:
    key = {"kind": "client_secret", "secret": secret, "state": "current", "not_before": None, "not_after": None}
    return json.dumps({"version": 1, "generation": generation, "client_id": "c", "accounts": None, "keys": [key]} | changes)


def replace(path: Path, text: str | bytes) -> None:
    """Write a file as a careful program does: beside it and renamed."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(text.encode() if isinstance(text, str) else text)
    beside.replace(path)


def publish(volume: Path, version: str, files: dict[str, str]) -> None:
    """Lay out and swap a folder as kubelet does for a Secret: data folder, ``..data`` link, a link for each file."""
    (volume / version).mkdir(parents=True)
    for name, text in files.items():
        (volume / version / name).write_text(text)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").replace(volume / "..data")
    for name in files:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")


def held(directory: KeyringDirectory) -> dict[str, int]:
    return {name: source.generation for name, source in directory.sources.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "keyring"
    path.mkdir()
    return path


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="amo_receiver")

    def taken() -> list[str]:
        """Return the warnings since the last call, with the file they name."""
        assert "MARKED" not in caplog.text + repr([record.__dict__ for record in caplog.records])
        lines = [
            f"{vars(record)['fields']['file']}: {record.getMessage()}" for record in caplog.records if record.levelno == logging.WARNING
        ]
        caplog.clear()
        return lines

    return taken


def test_every_visible_file_is_a_source(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """Files are named with or without .json; hidden entries and folders are passed over in silence."""
    (folder / "acme.json").write_text(content(3))
    (folder / "beta").write_text(content(4))
    (folder / ".hidden").write_text("junk")
    (folder / "lost+found").mkdir()
    directory = KeyringDirectory(folder)
    assert directory.load() is True
    assert held(directory) == {"acme": 3, "beta": 4}
    assert directory.poll() is False
    assert warnings() == []


def test_a_swapped_kubernetes_volume_is_picked_up(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """The atomic swap of ..data changes the sources at the next poll, and only then."""
    publish(folder, "..2026_1", {"acme": content(1, "one"), "beta": content(1, "b")})
    directory = KeyringDirectory(folder)
    assert directory.poll() is True
    assert directory.poll() is False
    assert directory.poll() is False
    publish(folder, "..2026_2", {"acme": content(2, "two"), "beta": content(1, "b")})
    assert directory.poll() is True
    assert directory.poll() is False
    assert held(directory) == {"acme": 2, "beta": 1}
    assert directory.sources["acme"].keys[0].secret == b"two"
    assert warnings() == []


def test_a_swap_is_picked_up_when_every_date_and_size_stays_the_same(folder: Path) -> None:
    """The resolved path and the inode tell two versions apart that look alike otherwise."""
    publish(folder, "..2026_1", {"acme": content(1, "one")})
    directory = KeyringDirectory(folder)
    directory.poll()
    directory.poll()
    status = (folder / "acme").stat()
    publish(folder, "..2026_2", {"acme": content(2, "two")})
    os.utime(folder / "acme", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert directory.poll() is True


def test_a_file_rewritten_in_place_within_one_tick_of_the_clock_is_not_missed(folder: Path) -> None:
    """Right after a change the folder is read once more, even if its summary is the same."""
    path = folder / "acme"
    path.write_text(content(1))
    same = ("one", "summary")
    directory = KeyringDirectory(folder, summarise=lambda _: same)
    assert directory.poll() is True
    path.write_text(content(2))
    assert directory.poll() is True
    assert held(directory) == {"acme": 2}


def test_an_unchanged_folder_is_not_read_again(folder: Path) -> None:
    """Once settled, a poll only compares summaries."""
    (folder / "acme").write_text(content(1))
    directory = KeyringDirectory(folder, summarise=lambda _: "same")
    directory.poll()
    directory.poll()
    (folder / "acme").write_text(content(2))
    assert directory.poll() is False
    assert held(directory) == {"acme": 1}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (content(4, "older"), "generation 4 is lower than 5"),
        (content(5, "other"), "raise it above 5"),
        (content(5, accounts=["1"]), "raise it above 5"),
        ("", "the file is empty"),
        (content(6)[:-1], "not JSON"),
        (content(6, version=2), "version must be 1"),
        (" " * (MOST_FILE_BYTES + 1), "larger than"),
        (None, "it is missing"),
    ],
)
def test_a_bad_file_changes_nothing_and_is_said_once(
    folder: Path, warnings: Callable[[], list[str]], bad: str | None, problem: str
) -> None:
    """The last good content stays, other files are still read, and the warning comes again only after the file was good."""
    path = folder / "acme"
    replace(path, content(5))
    replace(folder / "beta", content(1))
    directory = KeyringDirectory(folder)
    directory.poll()
    good = directory.sources["acme"]
    for round_number in (1, 2):
        if bad is None:
            path.unlink()
        else:
            replace(path, bad)
        replace(folder / "beta", content(1 + round_number))
        assert directory.poll() is True
        assert [directory.poll() for _ in range(3)] == [False] * 3
        assert directory.sources["acme"] is good
        assert held(directory)["beta"] == 1 + round_number
        said = warnings()
        assert len(said) == 1
        assert said[0].startswith("acme: Keyring file ignored")
        assert problem in said[0]
        replace(path, content(5))
        assert directory.poll() is False
        assert warnings() == []


def test_another_problem_of_the_same_file_is_said(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """Once per distinct problem, not once per file."""
    directory = KeyringDirectory(folder)
    for text, expected in (("{", "not JSON"), ("", "empty"), ("{", "not JSON")):
        replace(folder / "acme", text)
        directory.poll()
        directory.poll()
        assert [expected in line for line in warnings()] == [True]


def test_a_revoked_source_has_no_keys(folder: Path) -> None:
    """A higher generation without keys takes the keys away; so may one of a different client."""
    replace(folder / "acme", content(1))
    directory = KeyringDirectory(folder)
    directory.poll()
    replace(folder / "acme", content(2, keys=[]))
    assert directory.poll() is True
    assert directory.sources["acme"].keys == ()


def test_a_folder_that_is_missing_or_empty_keeps_what_was_loaded(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """Losing the folder is said once and stops nothing; a folder that comes later is read."""
    directory = KeyringDirectory(folder)
    assert directory.load() is False
    assert directory.poll() is False
    assert warnings() == [f"{folder}: Keyring file ignored, what was loaded before stays in force: the folder is empty"]
    folder.rmdir()
    assert [directory.poll() for _ in range(2)] == [False, False]
    assert ["cannot be read" in line for line in warnings()] == [True]
    folder.mkdir()
    replace(folder / "acme", content(1))
    assert directory.poll() is True
    (folder / "acme").unlink()
    assert directory.poll() is False
    folder.rmdir()
    assert directory.poll() is False
    assert held(directory) == {"acme": 1}
    assert len(warnings()) == 2


def test_a_file_that_is_mended_without_a_visible_change_is_read(folder: Path) -> None:
    """While something is wrong every poll reads, so a passing read error cannot last."""
    path = folder / "acme"
    path.symlink_to(folder / ".target")
    directory = KeyringDirectory(folder, summarise=lambda _: "same")
    assert [directory.poll() for _ in range(3)] == [False] * 3
    (folder / ".target").write_text(content(1))
    assert directory.poll() is True


def test_two_files_of_one_source_are_told_apart(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """The first by name counts and the other is said, so that neither alternates with the other."""
    (folder / "acme").write_text(content(1))
    (folder / "acme.json").write_text(content(2))
    directory = KeyringDirectory(folder)
    directory.poll()
    assert held(directory) == {"acme": 1}
    assert [line.partition(":")[0] for line in warnings()] == ["acme.json"]


def test_reading_is_bounded(folder: Path, warnings: Callable[[], list[str]]) -> None:
    """Neither a named pipe, nor too large a file, nor too many files hold up the service."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    for number in range(MOST_FILES):
        (folder / f"s{number:04}").write_text(content(1))
    directory = KeyringDirectory(folder)
    assert directory.load() is True
    assert len(directory.sources) <= MOST_FILES
    said = "\n".join(warnings())
    assert f"more than {MOST_FILES} files" in said
    assert "pipe: " in said
    with pytest.raises(ConfigurationError, match="larger than 3 bytes"):
        read_bounded(folder / "s0001", 3)
    with pytest.raises(ConfigurationError, match="regular"):
        read_bounded(folder / "zero", 3)


def test_reading_leaves_no_file_open(folder: Path) -> None:
    """Descriptors are closed whatever the entry is."""
    os.mkfifo(folder / "pipe")
    (folder / "acme").write_text(content(1))
    directory = KeyringDirectory(folder)
    directory.load()
    before = psutil.Process().num_fds()
    for _ in range(20):
        directory.load()
        with pytest.raises(ConfigurationError):
            read_bounded(folder, 10)
    assert psutil.Process().num_fds() == before


def test_a_file_of_exactly_the_bound_is_read(folder: Path) -> None:
    """The bound includes its own value."""
    (folder / "f").write_bytes(b"abc")
    assert read_bounded(folder / "f", 3) == b"abc"


def test_the_sources_cannot_be_changed_from_outside(folder: Path) -> None:
    """What a caller holds is a view."""
    with pytest.raises(TypeError):
        KeyringDirectory(folder).sources["acme"] = None  # type: ignore[index]


@pytest.mark.parametrize("change", ["content", "touch", "replace", "remove", "chmod"])
def test_a_signature_changes_with_the_file(folder: Path, change: str) -> None:
    """Size, date, inode, mode and existence are part of it, for a file and for the folder it is in."""
    path = folder / "mapping.toml"
    path.write_text("a = 1")
    before = signature(path), signature(folder)
    assert before == (signature(path), signature(folder))
    match change:
        case "content":
            path.write_text("a = 22")
        case "touch":
            os.utime(path, ns=(1, 1))
        case "replace":
            replace(path, "a = 2")
        case "remove":
            path.unlink()
        case _:
            path.chmod(0o400)
    after = signature(path), signature(folder)
    assert (after[0] != before[0], after[1] != before[1]) == (True, True)


def test_a_change_is_called_back_once(folder: Path) -> None:
    """Nothing at the start, one call for each change, whichever of the paths it is."""
    calls: list[str] = []
    watch = Watch()
    paths = [folder / "a", folder / "b"]
    watch.add(paths, lambda: calls.append("list"))
    watch.add(paths[1], lambda: calls.append("b"))
    watch.add(folder, lambda: calls.append("folder"))
    watch.check()
    assert calls == []
    replace(paths[0], "1")
    watch.check()
    watch.check()
    assert calls == ["list", "folder"]
    replace(paths[1], "1")
    watch.check()
    watch.check()
    assert calls == ["list", "folder", "list", "b", "folder"]


def test_the_keyring_s_revision_is_something_to_watch(folder: Path) -> None:
    """A new generation leads to one call, with the new sources there already; a bad file to none."""
    replace(folder / "acme", content(1))
    directory = KeyringDirectory(folder)
    seen: list[dict[str, int]] = []
    watch = Watch()
    watch.add(directory.revision, lambda: seen.append(held(directory)))
    assert held(directory) == {"acme": 1}
    for text in (content(2), "junk", content(3)):
        replace(folder / "acme", text)
        watch.check()
        watch.check()
    assert seen == [{"acme": 2}, {"acme": 3}]


def test_an_error_of_a_callback_is_logged_and_ends_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other callbacks run, and the broken one runs again at the next change only."""
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise ConfigurationError("mapping.toml: line 3")

    watch = Watch()
    watch.add(folder, broken)
    watch.add(folder, lambda: calls.append(2))
    replace(folder / "f", "1")
    watch.check()
    watch.check()
    assert calls == [1, 2]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "The former one stays in force: mapping.toml: line 3")
    ]
    replace(folder / "f", "2")
    watch.check()
    assert calls == [1, 2, 1, 2]


def test_an_error_of_a_fingerprint_is_logged_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A fingerprint that fails for a while counts as unchanged, and is looked at again; a later failure is said again."""
    answers: list[Any] = [1, OSError("a"), OSError("a"), 1, OSError("a"), 2, 2]
    calls: list[str] = []

    def fingerprint() -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return int(answer)

    watch = Watch()
    watch.add(fingerprint, lambda: calls.append("changed"))
    for expected_calls, expected_lines in ((0, 1), (0, 1), (0, 1), (0, 2), (1, 2), (1, 2)):
        watch.check()
        assert (len(calls), len([record for record in caplog.records if record.levelno == logging.ERROR])) == (
            expected_calls,
            expected_lines,
        )


async def test_run_polls_until_cancelled(folder: Path) -> None:
    """A change made while it runs is called back, and cancelling ends it."""
    changed = asyncio.Event()
    watch = Watch()
    watch.add(folder / "f", changed.set)
    task = asyncio.create_task(watch.run(interval_seconds=0.001))
    replace(folder / "f", "1")
    await asyncio.wait_for(changed.wait(), timeout=20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
