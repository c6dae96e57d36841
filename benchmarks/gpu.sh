#!/bin/sh
# Everything that a GPU can show, in the order of its worth: sh benchmarks/gpu.sh OUT [--dry]
# Needs no set-up beside torch: wheels of `make gpu-wheels` in build/gpu-wheels are installed into OUT/site. Each part has its own
# time limit, OUT/PART.json and OUT/PART.log; one that fails does not stop the rest.
set -u
OUT=${1:?"usage: sh benchmarks/gpu.sh OUT [--dry]"}
DRY=${2:-}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")/.." || exit 1
if ls build/gpu-wheels/*.whl >/dev/null 2>&1 && [ ! -d "$OUT/site" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --target "$OUT/site" build/gpu-wheels/*.whl || rm -rf "$OUT/site"
fi
PYTHONPATH="$PWD/src:$PWD:$OUT/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
SLOWER=1
[ -z "$DRY" ] || SLOWER=5 # the limits are those of a GPU
failed=""
part() { # name, seconds
    echo "$1 (at most $2 s)"
    rm -f "$OUT/$1.json"
    if ! timeout "$(($2 * SLOWER))" "$PYTHON" -m benchmarks.gpu "$1" --out "$OUT/$1.json" $DRY >"$OUT/$1.log" 2>&1; then
        echo "  failed: $(tail -n 1 "$OUT/$1.log")"
        failed="$failed $1"
    fi
}
part checks 60
part train 90
part trainer 90
part ratios 90
part decode 60
"$PYTHON" -m benchmarks.gpu summary --out "$OUT/summary.json" --note docs/results/gpu.md >/dev/null || failed="$failed summary"
[ -n "$DRY" ] || mkdir -p benchmarks/results
[ -n "$DRY" ] || cp "$OUT/summary.json" "benchmarks/results/gpu_$(date +%F).json"
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
