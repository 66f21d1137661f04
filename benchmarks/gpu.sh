#!/usr/bin/env bash
# What a GPU is asked for: the speed of a gradient, then ResNet-20 at 99 %, then at 90 % sparsity.
#
#   benchmarks/gpu.sh OUT [DATA]
#
# Results and checkpoints go to the folder OUT. DATA is CIFAR-10 (see load_cifar10), else digits. When
# its seconds are over, what runs is killed: the next call goes on from the last checkpoint, and runs
# nothing twice. To see that it works without a GPU:
#
#   DEVICE=cpu SCALE=smoke SPARSITIES=0.9 CASES=mlp benchmarks/gpu.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
data=(${2:+--data "$2"})
ends=$((SECONDS + ${LIMIT:-540}))
mkdir -p "$out"

# Run a command for the time that is left.
within() {
    local left=$((ends - SECONDS))
    ((left > 10)) || exit 0
    timeout --kill-after=10 "$left" "$@" || { (($? == 124)) && exit 0 || exit 1; }
}

if [[ ! -e $out/speed.json ]]; then
    within python -m benchmarks.speed.gradient --device "${DEVICE:-cuda}" "${data[@]}" \
        --cases "${CASES:-resnet90,resnet99}" --batch-size 512 --json "$out/speed.part"
    mv "$out/speed.part" "$out/speed.json"
fi
for sparsity in ${SPARSITIES:-0.99 0.9}; do
    within python -m benchmarks.paper.fig4 --scale "${SCALE:-paper}" --device "${DEVICE:-cuda}" \
        "${data[@]}" --seeds 0 --rows DeepZero --at "$sparsity" --checkpoints "$out" \
        --out "$out/fig4.json"
done
