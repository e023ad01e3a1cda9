#!/usr/bin/env bash
# Builds and runs the native tests, digests among them, in every configuration whose noise must be the same bit for bit, and
# under the sanitizers. What is missing is installed through apt where that needs no question, else named.
#   cross.sh [CONFIGURATION ...]       all of them, or those whose name begins with one of the words, for instance "gcc aarch64"
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-build/cross}

need() { # command, Debian package
  command -v "$1" >/dev/null && return
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"; } >&2 && return
  fi
  echo "cross.sh: $1 is missing and could not be installed; on Debian or Ubuntu: apt-get install $2" >&2
  return 1
}

wanted() { # name
  for word in "${chosen[@]}"; do [[ $1 == "$word"* ]] && return; done
  return 1
}

failed=() done=()
configuration() { # name, compiler, flags, more arguments for cmake
  local name=$1 compiler=$2 flags=$3
  shift 3
  wanted "$name" || return 0
  local start=$SECONDS log=$out/$name.log
  if cmake -S . -B "$out/$name" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="$flags" "$@" >"$log" 2>&1 &&
    cmake --build "$out/$name" --target test_native ${more:-} --parallel 2 >>"$log" 2>&1 &&
    ctest --test-dir "$out/$name" -R "${only:-.}" -E "${without:-cuda_}" -j 2 --output-on-failure >>"$log" 2>&1; then
    done+=("$name")
    echo "ok      $name ($((SECONDS - start)) s): $(grep -o '[0-9]* tests passed\|.*tests passed.*' "$log" | tail -1)"
  else
    failed+=("$name")
    grep -m 5 -i "error\|\*\*\*Failed\|value .* is" "$log" || tail -n 20 "$log"
    echo "FAILED  $name (log: $log)"
  fi
}

chosen=("$@")
((${#chosen[@]})) || chosen=('')
mkdir -p "$out"

for flags in -O0 -O1 -O2 -O3 -Os "-O2 -march=native" "-O3 -march=native"; do
  configuration "gcc${flags// /}" g++ "$flags"
done
if command -v clang++ >/dev/null; then
  for flags in -O0 -O2 -O3 "-O3 -march=native"; do configuration "clang${flags// /}" clang++ "$flags"; done
else
  echo "skipped clang: no clang++ (apt-get install clang libomp-dev)"
fi

for flags in -O0 -O2 -O3; do
  if wanted "aarch64$flags"; then
    need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
    need qemu-aarch64 qemu-user
  fi
  configuration "aarch64$flags" aarch64-linux-gnu-g++ "$flags" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
done

# With the CUDA kernels on the host.
more=test_simt without=cuda_check
configuration sanitize-address-undefined g++ -O1 -DNOISYKERNELS_SANITIZE=address,undefined
# Only the tests with threads: plain ones (check.h says why), and those of CUDA, which are threads to this sanitizer alone.
only='threads|max_pool|cuda' configuration sanitize-thread g++ -O1 -DNOISYKERNELS_SANITIZE=thread

echo "${#done[@]} configurations passed, ${#failed[@]} failed: ${failed[*]:-none}"
((${#failed[@]} == 0 && ${#done[@]} > 0))
