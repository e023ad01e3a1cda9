#!/usr/bin/env bash
# Makes the virtual environment $1 with everything that building, testing and the examples need.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup: Python 3.10 or newer is needed" >&2; exit 1; }
command -v g++ > /dev/null || command -v clang++ > /dev/null || {
  echo "setup: a C++20 compiler is needed (Debian: apt-get install g++)" >&2
  exit 1
}

if "$python" -c 'import torch' 2> /dev/null; then
  "$python" -m venv --system-site-packages "$venv" # the torch that is there, CUDA or not
else
  "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip install --quiet)
if ! "$venv/bin/python" -c 'import torch' 2> /dev/null; then
  echo "setup: installing torch for the CPU"
  configured=$("$venv/bin/python" -m pip config list) # whole: a pipe that grep closes early would count as a failure
  if grep -qE 'index-url|find-links' <<< "$configured"; then
    "${pip[@]}" 'torch==2.13.0' # as pip is configured here
  else
    "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0'
  fi
fi
echo "setup: installing the packages of pyproject.toml"
mapfile -t packages < <("$venv/bin/python" - << 'EOF'
import re
import sys

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    config = tomllib.load(file)
wanted = list(config["build-system"]["requires"]) + list(config["project"]["dependencies"])
for extra in ("dev", "bench", "plot", "table", "data", "progress", "workers"):
    wanted += config["project"]["optional-dependencies"][extra]
print("\n".join(dict.fromkeys(w for w in wanted if not re.match(r"torch\b", w))))
EOF
)
"${pip[@]}" "${packages[@]}"
