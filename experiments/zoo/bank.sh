#!/bin/sh
# Measure the label bank of the given pipelines (all three by default), and ship what is there after each part.
# Killed and started again it goes on; with both cores it takes about an hour and a half per pipeline.
#     sh experiments/zoo/bank.sh emoji_unet
set -e
cd "$(dirname "$0")/../.."
PY=${PY:-.venv/bin/python}
NAMES=${*:-emoji_unet emoji_pixart emoji_mmdit}

for name in $NAMES; do
	$PY -m qsdm.trace +model=$name
	for space in traced wide; do
		$PY -m qsdm.calibrate +model=$name space=$space
	done
done
for part in "num_configs=240" "num_configs=60 seed=1 test=true" "num_configs=60 seed=1 test=true num_images=1024" \
	"num_configs=60 seed=1 test=true seed_set=1" "alone=uaq-3" "space=wide num_configs=100" \
	"num_configs=60 num_images=64 activations=[16,8,6,4]"; do
	for name in $NAMES; do
		$PY -m qsdm.measure +model=$name $part
		$PY experiments/zoo/bank.py --name $name
	done
done
