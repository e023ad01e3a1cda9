"""The wheel: which files it holds, and that it runs where nothing else of this tree is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import noisykernels._C as compiled

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "noisykernels"
# What is no module, and easily left out.
DATA = {"py.typed", "__init__.pyi", "_C.pyi", "include/noisykernels/noise.h"}
OPTIONAL = ["cloudpickle", "matplotlib", "pandas", "ray", "sklearn", "tqdm", "xarray"]


def run(command: Sequence[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as pip makes it, but that the compiled module is the one that is there: compiling takes minutes."""
    made = tmp_path_factory.mktemp("wheel")
    settings = made / "settings.cfg"
    settings.write_text(
        f"[build]\nbuild_base = {made}\nbuild_lib = {made / 'lib'}\n[egg_info]\negg_base = {made}\n"
        f"[bdist_wheel]\nskip_build = 1\nbdist_dir = {made / 'unpacked'}\ndist_dir = {made / 'dist'}\n"
    )
    run(["setup.py", "-q", "build_py"], ROOT, DIST_EXTRA_CONFIG=str(settings))
    module = Path(str(compiled.__file__))
    (made / "lib" / "noisykernels" / module.name).write_bytes(module.read_bytes())
    run(["setup.py", "-q", "bdist_wheel"], ROOT, DIST_EXTRA_CONFIG=str(settings))
    (found,) = (made / "dist").glob("*.whl")
    return found


def test_files_of_the_wheel(wheel: Path) -> None:
    """All of the package, and no more: a folder that setuptools does not look into would be missed by no other test."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name.removeprefix("noisykernels/") for name in names if name.startswith("noisykernels/")}
    about = {name.partition("/")[2] for name in names if ".dist-info/" in name}
    wanted = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert len(wanted) > 120
    assert held == wanted | DATA | {Path(str(compiled.__file__)).name}
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert len(held) + len(about) == len(names)


def test_the_wheel_runs_alone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into an empty folder, without any optional package: the command's module, a study, an operator."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL}))  # an import of one of these fails
sys.path.insert(0, {str(tmp_path / "site")!r})
import noisykernels.cli.main, torch
from pathlib import Path
nk = noisykernels
assert Path(nk.__file__).parents[1] == Path({str(tmp_path / "site")!r}), nk.__file__
assert (Path(nk.get_include()) / "noisykernels" / "noise.h").is_file()
x = torch.ones(4, 3)
assert nk.linear(x, torch.ones(2, 3), noise=nk.Noise(add=0.5), seed=1).shape == (4, 2)
data = x, torch.zeros(4, dtype=torch.long)
study = nk.walk(torch.nn.Linear(3, 2), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=2, seed=1)
print(len(study.records))
"""
    assert int(run(["-I", "-c", code], tmp_path)) == 4
