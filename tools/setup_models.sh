#!/usr/bin/env bash
# Makes the environment $2 beside $1 for the tests with models of others: the extra `models` of pyproject.toml on top of
# what $1 holds. A package that cannot be installed is named and left out; the tests that need it skip themselves.
set -euo pipefail
beside=$1
venv=$2
python=$(realpath "$beside")/bin/python

shared=()
if grep -qi "include-system-site-packages = true" "$beside/pyvenv.cfg"; then shared=(--system-site-packages); fi
"$python" -m venv "${shared[@]}" "$venv"
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# addsitedir, as a path alone would leave out what is installed there by .pth files, which editable packages are
echo "import site; site.addsitedir('$(site "$python")')" > "$(site "$venv/bin/python")/beside.pth"

pip=("$venv/bin/python" -m pip install --quiet)
torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
echo "torch==$torch" > "$venv/constraints.txt" # never a second torch
configured=$("$venv/bin/python" -m pip config list)
if [[ $torch == *+cpu ]] && ! grep -qE 'index-url|find-links' <<< "$configured"; then
  pip+=(--extra-index-url https://download.pytorch.org/whl/cpu) # where torchvision is built for this torch
fi
mapfile -t packages < <("$venv/bin/python" - << 'EOP'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"]["models"]))
EOP
)
for package in "${packages[@]}"; do
  "${pip[@]}" --constraint "$venv/constraints.txt" "$package" 2> "$venv/pip.log" \
    || echo "setup: $package cannot be installed ($venv/pip.log); tests that need it are skipped" >&2
done
