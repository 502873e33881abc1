#!/bin/sh
# The commands of the published run; DATA is a data folder that holds spider/.
set -eu
python experiments/sql_judge/left_out.py --data-dir "$1" --json experiments/sql_judge/left_out.json
python experiments/sql_judge/near_misses.py --data-dir "$1" --num-problems 300 \
    --json experiments/sql_judge/near_misses.json
