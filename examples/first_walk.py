"""The first study, run by `make walk`: how much additive noise each site of LeNet-5-BN can stand.

Obtains Fashion-MNIST (installed package; the system's package manager; a checksummed download; and
only if all fail scikit-learn's digits with the MLP), trains for three epochs or loads the cached
checkpoint, searches the midpoint of all sites on the whole test set, prints the table and writes the picture.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from noisykernels.cli.main import main
from noisykernels.datasets import DataNotFound, load

PACKAGE = "dataset-fashion-mnist"


def installed_by_package_manager() -> bool:
    """Installs Debian's data package where that needs no question: as root, or by a silent sudo."""
    if shutil.which("apt-get") is None:
        return False
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and (
        shutil.which("sudo") is None or subprocess.run([*as_root, "true"], capture_output=True).returncode != 0
    ):
        return False
    print(f"installing the system's package {PACKAGE}", flush=True)
    install = [*as_root, "apt-get", "install", "-y", "--no-install-recommends", PACKAGE]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(install, capture_output=True, env=environment).returncode == 0:
        return True
    subprocess.run([*as_root, "apt-get", "update"], capture_output=True, env=environment)  # its lists may be old
    return subprocess.run(install, capture_output=True, env=environment).returncode == 0


def has_fashion_mnist() -> bool:
    """Whether Fashion-MNIST is installed or in the cache, or can be installed or downloaded."""
    for download in (False, True):
        try:
            load("fashion-mnist", "test", limit=1, download=download)
            return True
        except DataNotFound as error:
            if not download:
                installed_by_package_manager()
            else:
                print(f"Fashion-MNIST cannot be had: {error}", file=sys.stderr)
    return False


def run(out: Path = Path("results"), *extra: str) -> int:
    """The study; `extra` are flags of `python -m noisykernels walk`, instead of those here or besides."""
    out.mkdir(exist_ok=True)
    files = {"--picture": str(out / "walk.png"), "--out": str(out / "walk.json")}
    if has_fashion_mnist():
        study = {"--model": "lenet5-bn", "--data": "fashion-mnist", "--epochs": "3"}
    else:
        print(
            "falling back to the MLP on scikit-learn's digits: other numbers than the README's",
            file=sys.stderr,
        )
        study = {"--model": "mlp", "--data": "digits", "--epochs": "30"}
    flags = [word for flag, value in {**study, **files}.items() if flag not in extra for word in (flag, value)]
    return main(["walk", *flags, *extra])


if __name__ == "__main__":
    sys.exit(run(Path("results"), *sys.argv[1:]))
