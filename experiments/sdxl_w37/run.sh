#!/bin/sh
# The study; may be killed, and goes on. Arguments go to every stage that takes the model:
#
#     sh experiments/sdxl_w37/run.sh path=PIPELINE prompts.path=... metrics.fid.reference=...
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" experiments/studies/study.py sdxl_w37 "$@"
