#!/usr/bin/env bash
# Inside vLLM: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# vllm_speed_specialist.json: commit 671ee5f, 6 min, AMD EPYC, 2 cores, 1 thread.
python experiments/vllm_speed/vllm_speed.py --pair bundled:specialist --arbiter bundled \
    -k 16 --num-problems 200 --num-trials 3 --num-turns 2 \
    --json runs/vllm_speed_specialist.json

# vllm_guesses_specialist.json: 16 min, AMD EPYC, 2 cores with AVX-512, 1 thread.
VLLM_CPU_KVCACHE_SPACE=1 python experiments/vllm_speed/vllm_speed.py --pair bundled:specialist \
    --arbiter bundled -k 16 --num-problems 200 --num-trials 20 \
    --plugin '{"end_blocks_at_stop": true, "cascade": true}' --json runs/vllm_guesses_specialist.json

# vllm_guesses_eight.json: 5 min, AMD EPYC, 2 cores with AVX-512, 1 thread.
VLLM_CPU_KVCACHE_SPACE=1 python experiments/vllm_speed/vllm_speed.py --pair bundled:specialist \
    --arbiter bundled -k 16 --num-problems 200 --num-trials 60 --concurrency 8 \
    --plugin '{"end_blocks_at_stop": true, "cascade": true}' --json runs/vllm_guesses_eight.json

# vllm_speed_real.json: commit 6810fe2, 17 min, AMD EPYC, 2 cores, 2 threads. Texts of 64 tokens.
OMP_NUM_THREADS=2 VLLM_CPU_KVCACHE_SPACE=1 python experiments/vllm_speed/vllm_speed.py \
    --target "$TARGET" --draft "$DRAFT" --arbiter gap:max_gap=1 --task gsm8k --data-dir "$DATA" -k 4 \
    --dtype bfloat16 --num-problems 12 --num-timed 6 --num-trials 3 --concurrency 1 \
    --max-new-tokens 64 --max-model-len 2048 --json runs/vllm_speed_real.json

# vllm_sql_1.json, vllm_sql_8.json: 18 min, AMD EPYC, 2 cores with AVX-512, 2 threads.
VLLM_CPU_OMP_THREADS_BIND=0-1 python experiments/vllm_speed/sql.py --target "$TARGET" \
    --draft "$THREE" --data-dir "$DATA" --arbiter experiments/text_to_sql/known_arbiter_three \
    --ids-of experiments/speed_real/sql_databases.json.gz --per-database 1 --json runs/vllm_sql.json

# vllm_three_1.json: 56 min. THREE_W8 is the draft THREE after quantize_draft.py.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$THREE_W8" --data-dir "$DATA" --per-database 3 --cascade -k 8 \
    --arbiter experiments/text_to_sql/known_arbiter_three --concurrency 1 \
    --ids-of experiments/text_to_sql/test_three_passes.json.gz --json runs/vllm_three.json

# vllm_three_rest_8.json: 27 min. REST has the ids of that test which are not in vllm_three_1.json.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$THREE_W8" --data-dir "$DATA" --per-database 999 --cascade \
    --arbiter experiments/text_to_sql/known_arbiter_three --concurrency 8 --arms exact cospec \
    --ids-of "$REST" --json runs/vllm_three_rest.json

# vllm_turns_1.json, vllm_turns_8.json: 22 min, AMD EPYC, 2 cores with AVX-512, 2 threads.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$TURNS" --data-dir "$DATA" --per-database 1 \
    --arbiter experiments/text_to_sql/known_arbiter_turns --shots 8 --nearest --rotate 5 \
    --ids-of experiments/speed_real/sql_turns.json.gz --json runs/vllm_turns.json

# vllm_turns_compiled_1.json: 14 min. Two compiled engines do not fit into 24 GB, so no stock.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$TURNS" --data-dir "$DATA" --per-database 1 \
    --arbiter experiments/text_to_sql/known_arbiter_turns --shots 8 --nearest --rotate 5 \
    --ids-of experiments/speed_real/sql_turns.json.gz --compile --arms exact cospec \
    --concurrency 1 --json runs/vllm_turns_compiled.json

# vllm_load_1.json, vllm_load_8.json: 17 min. TURNS_W8 is the draft after
# quantize_draft.py; it reads guesses. Short blocks under load.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$TURNS_W8" --data-dir "$DATA" --per-database 1 \
    --arbiter experiments/text_to_sql/known_arbiter_turns --shots 8 --nearest --rotate 5 --cascade \
    --draft-options '{"num_speculative_tokens_per_batch_size": [[1, 1, 64], [2, 8, 4]]}' \
    --ids-of experiments/speed_real/sql_turns.json.gz --json runs/vllm_load.json

# vllm_busy_8.json: 29 min. The same, as on a busy server.
VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=2 python experiments/vllm_speed/sql.py \
    --target "$TARGET" --draft "$TURNS_W8" --data-dir "$DATA" --per-database 3 \
    --arbiter experiments/text_to_sql/known_arbiter_turns --shots 8 --nearest --rotate 5 --cascade \
    --draft-options '{"num_speculative_tokens_per_batch_size": [[1, 1, 64], [2, 8, 4]]}' \
    --concurrency 8 --turn 30 --ids-of experiments/speed_real/sql_turns_more.json.gz \
    --json runs/vllm_busy.json

# vllm_fly.json: 40 min beside other jobs, AMD EPYC, 1 core. vLLM 0.34, in an environment of its own.
bash tools/vllm_overlay.sh .venv-vllm-0.34 0.34.0
HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm-0.34/bin/python \
    experiments/vllm_speed/vllm_speed.py --pair bundled:specialist --arbiter bundled-scalar -k 16 \
    --num-problems 200 --num-trials 0 --num-timed 1 --concurrency 8 \
    --arms target stock fly fly_rule cospec --json runs/vllm_fly.json

# draft_alone.json: three runs of a minute; W8 and W4 are the draft after quantize_draft.py.
python experiments/vllm_speed/draft_alone.py "$TURNS" --json runs/draft_alone.json
