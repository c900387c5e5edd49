#!/bin/sh
# Make recipes/ again, from what ships in a checkout alone:
#
#     sh experiments/shelf/run.sh [STORE] [--models NAME...]
set -eu
cd "$(dirname "$0")/../.."
store=${1:-store}
[ $# -eq 0 ] || shift
python=${PYTHON:-python}
for model in emoji_unet emoji_mmdit emoji_pixart; do
    [ -e "$store/$model/graph.json" ] || "$python" -m qsdm.trace "+model=$model" "store=$store"
    for space in traced wide; do
        [ -e "$store/$model/calibration/$space/table.safetensors" ] ||
            "$python" -m qsdm.calibrate "+model=$model" "space=$space" "store=$store"
    done
done
exec "$python" experiments/shelf/make.py --store "$store" "$@"
