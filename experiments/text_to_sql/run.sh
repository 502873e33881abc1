#!/usr/bin/env bash
# Branches of the real pair on Spider's train questions. Usage: run.sh TARGET DRAFT DATA OUT
set -euo pipefail
cd "$(dirname "$0")/../.."
python experiments/text_to_sql/collect.py "$@" --questions 512 --threads 2
