"""The place for secrets and configs: one contract, kept by the real one in memory and by its double."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_agent.agent import tmpfs_files as files_module
from swarm_agent.agent.tmpfs_files import File, Files, FilesError, TmpfsFiles
from tests.lib.fake_files import FakeFiles

UID, GID = os.getuid(), os.getgid()


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, as /run is."""
    made = Path(tempfile.mkdtemp(prefix="swarm-test-", dir="/dev/shm"))
    yield made / "contents"
    shutil.rmtree(made)


@pytest.fixture(params=["real", "fake"])
def place(request: pytest.FixtureRequest, folder: Path) -> Files:
    return TmpfsFiles(folder) if request.param == "real" else FakeFiles()


def a_file(name: str = "secret-0", data: bytes = b"x", mode: int = 0o440) -> File:
    return File(name, data, UID, GID, mode)


def test_what_is_written_is_there_until_it_is_wiped(place: Files) -> None:
    async def story() -> None:
        assert await place.tasks() == []
        paths = await place.write("t1", (a_file(), a_file("config-1")))
        assert [p.rpartition("/")[2] for p in paths] == ["secret-0", "config-1"]
        assert await place.write("t1", (a_file(),)) == paths[:1]
        await place.write("t2", (a_file(),))
        assert await place.tasks() == ["t1", "t2"]
        await place.wipe("t1")
        await place.wipe("t1")
        assert await place.tasks() == ["t2"]

    asyncio.run(story())


def test_only_root_can_look_and_each_file_is_as_asked(folder: Path) -> None:
    owner = (1234, 2345) if UID == 0 else (UID, GID)
    (path,) = asyncio.run(TmpfsFiles(folder).write("t", (File("s", b"hush", *owner, 0o4511),)))
    found = Path(path).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o4511)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, folder / "t")] == [0o700, 0o700]
    assert [p.name for p in (folder / "t").iterdir()] == ["s"]


def test_what_is_right_is_not_touched_and_what_is_not_is_made_anew(folder: Path) -> None:
    place = TmpfsFiles(folder)

    def write(file: File) -> Path:
        (path,) = asyncio.run(place.write("t", (file,)))
        return Path(path)

    inode = write(a_file()).stat().st_ino
    assert write(a_file()).stat().st_ino == inode
    assert write(a_file(data=b"y")).read_bytes() == b"y"
    shutil.rmtree(folder)
    assert stat.S_IMODE(write(a_file(mode=0o400)).stat().st_mode) == 0o400


@pytest.mark.parametrize("name", ["", "../x", "a/b", "."])
def test_no_name_leads_elsewhere(folder: Path, name: str) -> None:
    place = TmpfsFiles(folder)
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        asyncio.run(place.write(name, (a_file(),)))
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        asyncio.run(place.write("t", (a_file(name),)))


def test_a_place_on_disk_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted: list[Path] = []

    def refuse(folder: Path) -> None:
        mounted.append(folder)
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files_module, "_file_system", lambda folder: "ext4")
    monkeypatch.setattr(files_module, "_mount", refuse)
    with pytest.raises(FilesError, match="Operation not permitted"):
        asyncio.run(TmpfsFiles(tmp_path / "c").write("t", (a_file(),)))
    assert mounted == [tmp_path / "c"]
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.host
def test_a_tmpfs_is_mounted_where_there_is_none(tmp_path: Path) -> None:
    """In mounts of its own, which end with it."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    script = (
        "import asyncio, pathlib; from swarm_agent.agent.tmpfs_files import *; from swarm_agent.agent import tmpfs_files as files\n"
        f"folder = pathlib.Path({str(tmp_path / 'c')!r}); place = TmpfsFiles(folder)\n"
        "files._file_system = lambda f, real=files._file_system: 'ext4' if not f.is_mount() else real(f)\n"
        "asyncio.run(place.write('t', (File('s', b'x', 0, 0, 0o400),)))\n"
        "asyncio.run(place.write('u', (File('s', b'x', 0, 0, 0o400),)))\n"
        "print(folder.is_mount(), files._file_system(folder), sorted(p.name for p in folder.iterdir()))\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd=Path(files_module.__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "True tmpfs ['t', 'u']\n", done.stderr
    assert list((tmp_path / "c").iterdir()) == []


def test_a_full_place_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchown", full)
    with pytest.raises(FilesError, match=r"No space left on device\. They are kept in memory: is it full\?"):
        asyncio.run(TmpfsFiles(folder).write("t", (a_file(),)))
