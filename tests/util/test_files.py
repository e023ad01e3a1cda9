"""Where files are written: regular ones are replaced, links followed, everything else written to."""

from __future__ import annotations

import functools
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from noisykernels._util.files import check_writable, noting_written, replacing

OLD, NEW = b"old", b"new" * 100_000  # more than a pipe holds


def write(path: Path, content: bytes = NEW) -> None:
    check_writable(path)
    with noting_written() as written, replacing(path) as file:
        file.write(content)
    assert written == [path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_has_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o666 & ~umask and (tmp_path / "a").read_bytes() == NEW


@pytest.mark.parametrize("old", [0o600, 0o644, 0o640, 0o666, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode_and_is_another_file(old: int, umask: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(old)
    with path.open("rb") as reader:
        write(path)
        assert reader.read() == OLD  # whoever reads the old one reads it to its end
    assert mode(path) == old and path.read_bytes() == NEW and names(tmp_path) == ["a"]


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(0o600)
    with replacing(path) as file:
        (part,) = (p for p in tmp_path.iterdir() if p != path)
        assert mode(part) == 0o600 and part.name.endswith(".part")
        file.write(NEW)


@pytest.mark.skipif(os.geteuid() != 0, reason="another owner takes root")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    os.chown(tmp_path / "a", 12345, 54321)
    write(tmp_path / "a")
    assert ((tmp_path / "a").stat().st_uid, (tmp_path / "a").stat().st_gid) == (12345, 54321)


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(OLD)
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(NEW)
        raise ZeroDivisionError
    assert path.read_bytes() == OLD and names(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(there: bool, tmp_path: Path) -> None:
    """Through two folders, also to a file that is not there yet; the links stay."""
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("x/second")
    (tmp_path / "x" / "second").symlink_to("../y/file")
    if there:
        (tmp_path / "y" / "file").write_bytes(OLD)
        (tmp_path / "y" / "file").chmod(0o600)
    with replacing(tmp_path / "link") as file:
        assert Path(file.name).parent == tmp_path / "y"  # where it goes, which may be another disk than the link's
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "x" / "second").is_symlink()
    assert (tmp_path / "y" / "file").read_bytes() == NEW and names(tmp_path / "y") == ["file"]
    assert mode(tmp_path / "y" / "file") == (0o600 if there else 0o644)


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    check_writable(path)  # does not wait for a reader
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    with replacing(path) as file:
        file.write(NEW)
    reader.join(20)
    assert got == [NEW] and stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device takes root")
def test_a_device_is_written_to(tmp_path: Path) -> None:
    """A null of the test's own, so that a mistake does not take away the machine's."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.open("wb").close()
    except OSError:
        pytest.skip("no devices here")
    (tmp_path / "link").symlink_to(path)
    for name in ("null", "link"):
        write(tmp_path / name)
        assert stat.S_ISCHR(path.stat().st_mode) and (tmp_path / name).read_bytes() == b""
    full = tmp_path / "full"
    os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    with pytest.raises(OSError, match="No space left"):
        write(full)


def test_open_files_by_number_and_by_name(tmp_path: Path) -> None:
    """What was written to them before stays; a file on standard output is not replaced."""
    with (tmp_path / "a").open("wb") as file:
        file.write(b"before ")
        file.flush()
        write(Path(f"/dev/fd/{file.fileno()}"))
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        write(tmp_path / "link", b" after")
    assert (tmp_path / "a").read_bytes() == b"before " + NEW + b" after"
    code = "import sys; from pathlib import Path; from noisykernels._util.files import replacing as r\n"
    code += "print('table')\nfor name in ('/dev/stdout', '/dev/fd/1'):\n  with r(Path(name)) as f: f.write(b'x')\n"
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "b").open("wb") as out:
        run(stdout=out, env=environment)
    assert (tmp_path / "b").read_bytes() == b"table\nxx"
    assert run(stdout=subprocess.PIPE, env=environment).stdout == b"table\nxx"


def test_the_shells_own_pipes(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from noisykernels._util.files import replacing as r, check_writable\n"
    code += "p = Path(sys.argv[1]); check_writable(p)\nwith r(p) as f: f.write(b'x' * 100_000)\n"
    line = f'"{sys.executable}" -c "$0" >(wc -c > {tmp_path / "n"}; echo done > {tmp_path / "m"}) && sleep 0'
    subprocess.run(["bash", "-c", f"{line}; wait $!", code], check=True, timeout=60)
    assert (tmp_path / "n").read_text().strip() == "100000"
    line = f'"{sys.executable}" -c "$0" <(true)'  # to be read
    done = subprocess.run(["bash", "-c", line, code], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "cannot be written: no permission" in done.stderr


def test_a_name_of_the_longest_length(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 255))
    with pytest.raises(OSError, match=r"cannot be written: file name too long"):
        check_writable(tmp_path / ("a" * 256))


def bad_paths(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(OLD)
    (folder / "loop").symlink_to("loop")
    (folder / "to_folder").symlink_to("folder")
    listening = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(folder)  # its name may be too long for a socket
    listening.bind("socket")
    os.chdir(before)
    listening.close()
    return {
        "a folder": (folder / "folder", "is a folder, expected a file"),
        "a link to one": (folder / "to_folder", "is a folder, expected a file"),
        "this folder": (Path(), r"\.: is a folder"),
        "the root": (Path("/"), "/: is a folder"),
        "below a file": (folder / "file" / "a", "cannot be written: not a directory"),
        "no such folder": (folder / "no" / "a", "the folder does not exist"),
        "a circle of links": (folder / "loop", "cannot be written: too many levels"),
        "a socket": (folder / "socket", "is a socket"),
        "where nothing can be made": (Path("/proc/noisykernels"), "cannot be written"),
    }


def test_what_cannot_be_written_is_found_before_and_nothing_is_left(tmp_path: Path) -> None:
    cases = bad_paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name, (path, said) in cases.items():
        with pytest.raises(OSError, match=said) as error:
            check_writable(path)
        assert str(error.value).startswith(f"{path}: "), name
        if name != "no such folder":  # which `replacing` makes
            with pytest.raises(OSError), replacing(path):
                pass
    check_writable(tmp_path / "new")
    check_writable(tmp_path / "file")
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")
def test_without_permission() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "file").write_bytes(OLD)
        (folder / "file").chmod(0o444)
        folder.chmod(0o777)
        (folder / "closed").mkdir()
        os.seteuid(65534)
        try:
            for path in (folder / "file", folder / "closed" / "a"):
                with pytest.raises(PermissionError, match=r"cannot be written: (no permission|permission denied)"):
                    check_writable(path)
            write(folder / "new")
        finally:
            os.seteuid(0)
        assert names(folder) == ["closed", "file", "new"] and (folder / "file").read_bytes() == OLD
