#!/bin/sh
# Measure what choose.py chose, in its order, on noise that nothing has seen; goes on where it was.
#
#     sh experiments/equal_bytes/measure.sh chosen store 512 [KEY=VALUE...]
set -eu
chosen=$1 store=$2 pictures=$3
shift 3
for step in "$chosen"/steps/*.json; do
    name=${step##*-}
    python -m qsdm.measure "+model=${name%.json}" space=wide "configs=$step" "store=$store" \
        seed_set=2 "num_images=$pictures" shard=128 "$@"
done
