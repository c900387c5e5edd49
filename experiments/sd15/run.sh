#!/bin/sh
# The study; may be killed, and goes on. Arguments go to every stage that takes the model:
#
#     sh experiments/sd15/run.sh path=PIPELINE prompts.path=... metrics.fid.reference=...
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" experiments/studies/study.py sd15 "$@"
