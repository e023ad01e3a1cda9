#!/usr/bin/env bash
# Feeds the raw words of our generator, in the orders our counter layout delivers them, to a test battery through a pipe, and
# prints a table. A few minutes a walk; --full runs the whole of `dieharder -a` on each, some 20 minutes of processor time a walk.
#   run.sh [--full] [--walks|--controls] [WALK ...]   with dieharder; only the walks, only the controls, or both
#   run.sh --pipe 'COMMAND' [WALK ...]                with any program that reads 32-bit words from stdin, for instance
#                                                     'RNG_test stdin32 -tlmax 64GB' (PractRand), or one's own main around
#                                                     TestU01's unif01_CreateExternGenBits and bbattery_BigCrush
# Exit status: 1 if a walk has a FAILED result (p below 1e-6), or if a control that must fail does not.
set -eu # no pipefail: a stream ends when its reader closes the pipe
cd "$(dirname "$0")/../../.."

walks=(element row draw site operand seed)
# What is known to be bad, and Philox with too few rounds: each must FAIL somewhere in a shorter list.
controls=("--bad randu" "--bad counter" "--bad short_table" "--bad added_seed" "element --rounds 4" "row --rounds 5" "seed --rounds 4")
short=(8 100 102 203:3 207)
# The quick list: number of the test, or number:ntuple. 203:3 adds up every fourth word: one output word of successive counters.
quick=(0 2 3 8 9 15 16 100 101 102 200:1 200:4 200:8 201:2 202:5 203:0 203:3 203:7 205 206 207 208 209)
repeats=3 # of a test that was WEAK or FAILED, with other seeds
full='' pipe='' with_walks=1 with_controls=1 chosen=()

while (($#)); do
  case $1 in
    --full) full=1 ;;
    --walks) with_controls='' ;;
    --controls) with_walks='' ;;
    --pipe) pipe=$2 && shift ;;
    *) chosen+=("$1") ;;
  esac
  shift
done
((${#chosen[@]})) && walks=("${chosen[@]}")

out=${OUT:-build/battery}
mkdir -p "$out"
${CXX:-g++} -std=c++20 -O2 -ffp-contract=off tests/native/battery/stream.cpp -o "$out/stream"

if [[ $pipe ]]; then
  for walk in "${walks[@]}"; do
    echo "== $walk"
    "$out/stream" "$walk" | $pipe | tee "$out/$walk.pipe.txt"
  done
  exit
fi

if ! command -v dieharder >/dev/null; then
  echo "dieharder is not installed (Debian, Ubuntu: apt-get install dieharder)" >&2
  exit 2
fi

# One test; the words come from stdin, so that tests run one after another go on along the same stream.
one_test() { # number[:ntuple]
  local arguments=(-d "${1%:*}")
  [[ $1 == *:* ]] && arguments+=(-n "${1#*:}")
  dieharder -g 200 "${arguments[@]}" -D test_name -D show_num -D ntuple -D tsamples -D psamples -D pvalues -D assessment
}

# A stream's arguments -> a file of results and a row of the table; sets $failed.
judge() {
  local name=${1//--/} again='' results
  local file=$out/${name// /_}.txt
  local tests=("${quick[@]}")
  [[ $1 == *--* ]] && tests=("${short[@]}")
  if [[ $full && $1 != *--* ]]; then
    "$out/stream" $1 | dieharder -a -g 200 -D default -D show_num >"$file"
  else
    "$out/stream" $1 | for test in "${tests[@]}"; do one_test "$test"; done >"$file"
  fi
  local counts
  counts=$(awk -F'|' '/PASSED|WEAK|FAILED/ {gsub(/ /, "", $NF); n[$NF]++; t++}
                      END {printf "%d | %d | %d | %d", t, n["PASSED"], n["WEAK"], n["FAILED"]}' "$file")
  failed=${counts##* }
  if [[ $1 != *--* ]]; then
    rm -f "$file.again"
    while IFS='|' read -r test number ntuple _ _ p assessment; do
      results=''
      for ((seed = 1; seed <= repeats; seed++)); do
        echo "# seed $seed" >>"$file.again"
        results+=" $("$out/stream" $1 --seed "$seed" | one_test "$((number)):$((ntuple))" | tee -a "$file.again" |
          awk -F'|' -v n="$((ntuple))" '$3 + 0 == n {gsub(/ /, "", $NF); printf "%s%s", sep, $NF; sep = "/"}')"
      done
      again+=" ${test// /}(${ntuple// /}) p=$p ${assessment// /}, with seeds 1 to $repeats:$results;"
    done < <(grep -E 'WEAK|FAILED' "$file" | sort -t'|' -u -k2,3)
  fi
  echo "| \`$1\` | $counts |$again |"
}

status=0
echo "| stream | results | PASSED | WEAK | FAILED | not PASSED |"
echo "|---|---|---|---|---|---|"
if [[ $with_walks ]]; then
  for walk in "${walks[@]}"; do
    judge "$walk"
    ((failed == 0)) || status=1
  done
fi
if [[ $with_controls ]]; then
  for control in "${controls[@]}"; do
    judge "$control"
    ((failed > 0)) || { status=1 && echo "$control should have failed" >&2; }
  done
fi
exit $status
