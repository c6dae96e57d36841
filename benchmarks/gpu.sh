#!/bin/sh
# Everything that a GPU can show, in the order of its worth, in at most five minutes: sh benchmarks/gpu.sh OUT [--dry]
# Needs no set-up beside torch: wheels of `make gpu-wheels` in build/gpu-wheels are installed into OUT/site. Each part has its own
# time limit, OUT/PART.json and OUT/PART.log; one that fails does not stop the rest. --dry runs tiny shapes on a CPU.
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
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # for the steps with deterministic kernels
rm -f "$OUT"/*.json
if [ -n "$DRY" ]; then
    exec "$PYTHON" -m benchmarks.gpu dry --out "$OUT"
fi
failed=""
part() { # name, seconds; the limits add up to 290
    echo "$1 (at most $2 s)"
    if ! timeout -k 2 "$2" "$PYTHON" -m benchmarks.gpu "$1" --out "$OUT/$1.json" >"$OUT/$1.log" 2>&1; then
        echo "  failed: $(tail -n 1 "$OUT/$1.log")"
        failed="$failed $1"
    fi
}
part tests 45
part train 90
part trainer 40
part checks 30
part ratios 50
part decode 25
if timeout 10 "$PYTHON" -m benchmarks.gpu summary --out "$OUT/summary.json" --note "$OUT/gpu.md"; then
    mkdir -p benchmarks/results
    cp "$OUT/summary.json" "benchmarks/results/gpu_$(date +%F).json"
    cp "$OUT/gpu.md" docs/results/gpu.md
else
    failed="$failed summary"
fi
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
