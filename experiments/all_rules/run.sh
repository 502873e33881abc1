#!/usr/bin/env bash
# Every rule beside the trained arbiters: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# The arbiters that are not trained here are of rounds_alone, trained_arbiters and the log
# (`git show f2c4389:dev/LOG.md`, runs/t1, 2026-11-26).
set -euo pipefail
mkdir -p runs

# Commit d01e0a1.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 \
    --method autojudge --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/family-k16-autojudge

# Commit d01e0a1.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 --method gold \
    --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/family-k16-gold

# Commit 3e4009d, d01e0a1.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 --method r2r \
    --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/family-k16-r2r
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 --method r2r \
    --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed 1 \
    --out runs/family-k16-r2r-seed1
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 --method r2r \
    --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed 2 \
    --out runs/family-k16-r2r-seed2

# Commit 3e4009d, d01e0a1.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 \
    --method reinforce --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/family-k16-reinforce
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 \
    --method reinforce --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --seed 1 --out runs/family-k16-reinforce-seed1
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 \
    --method reinforce --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --seed 2 --out runs/family-k16-reinforce-seed2

# Commit 3e4009d, d01e0a1.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method r2r --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/specialist-k16-r2r
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method r2r --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed 1 \
    --out runs/specialist-k16-r2r-seed1
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method r2r --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed 2 \
    --out runs/specialist-k16-r2r-seed2

# Commit 3e4009d.
for seed in 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
        --method reinforce --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 \
        --threads 1 --seed "$seed" --out "runs/specialist-k16-reinforce-seed$seed"
done

# Commit 3e4009d, ae9bc78.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --out runs/family-hidden-autojudge
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --seed 1 --out runs/family-hidden-autojudge-seed1
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --seed 2 --out runs/family-hidden-autojudge-seed2

# Commit 3e4009d, ae9bc78.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --out runs/specialist-hidden-autojudge
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --seed 1 --out runs/specialist-hidden-autojudge-seed1
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
    --method autojudge --num-rounds 5 --features hidden --kind linear --num-speculative-tokens 16 \
    --tune-every 1 --threads 1 --seed 2 --out runs/specialist-hidden-autojudge-seed2

# bench_family.json: commit b57f4d7, 56 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 600 --seed 51 \
    -k 16 --batch-sizes 128 --temperatures 0 --repeats 1 --tune-knobs --num-tune-problems 200 \
    --threads 1 --json runs/bench_family.json --arms rules gap runs/family-corrected-seed0 \
    runs/family-corrected-seed1 runs/family-corrected-seed2 runs/family-seed0 runs/family-seed1 \
    runs/family-seed2 runs/family-hidden-autojudge runs/family-hidden-autojudge-seed1 \
    runs/family-hidden-autojudge-seed2 runs/family-k16-reinforce runs/family-k16-reinforce-seed1 \
    runs/family-k16-reinforce-seed2 runs/family-k16-r2r runs/family-k16-r2r-seed1 \
    runs/family-k16-r2r-seed2 random:match=family-corrected-seed2 oracle --tune-k 8 16

# bench_specialist.json: commit a338059, 56 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 600 \
    --seed 52 -k 16 --batch-sizes 128 --temperatures 0 --repeats 1 --tune-knobs \
    --num-tune-problems 200 --threads 1 --json runs/bench_specialist.json --arms rules gap \
    runs/specialist-corrected-seed0 runs/specialist-corrected-seed1 \
    runs/specialist-corrected-seed2 runs/specialist-k16-seed0 runs/specialist-k16-seed1 \
    runs/specialist-k16-seed2 runs/specialist-hidden-autojudge \
    runs/specialist-hidden-autojudge-seed1 runs/specialist-hidden-autojudge-seed2 \
    runs/specialist-k16-reinforce runs/specialist-k16-reinforce-seed1 \
    runs/specialist-k16-reinforce-seed2 runs/specialist-k16-r2r runs/specialist-k16-r2r-seed1 \
    runs/specialist-k16-r2r-seed2 random:match=specialist-corrected-seed2 oracle --tune-k 8 16

# bench_family_sampled.json: commit b57f4d7, 51 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 600 --seed 53 \
    -k 16 --batch-sizes 128 --temperatures 1 --repeats 1 --tune-knobs --num-tune-problems 150 \
    --threads 1 --json runs/bench_family_sampled.json --arms rules gap runs/family-corrected-seed0 \
    runs/family-corrected-seed1 runs/family-corrected-seed2 runs/family-seed0 runs/family-seed1 \
    runs/family-seed2 runs/family-hidden-autojudge runs/family-hidden-autojudge-seed1 \
    runs/family-hidden-autojudge-seed2 runs/family-k16-reinforce runs/family-k16-reinforce-seed1 \
    runs/family-k16-reinforce-seed2 runs/family-k16-r2r runs/family-k16-r2r-seed1 \
    runs/family-k16-r2r-seed2 random:match=family-corrected-seed2

# bench_specialist_sampled.json: commit a338059, 51 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 600 \
    --seed 54 -k 16 --batch-sizes 128 --temperatures 1 --repeats 1 --tune-knobs \
    --num-tune-problems 150 --threads 1 --json runs/bench_specialist_sampled.json --arms rules gap \
    runs/specialist-corrected-seed0 runs/specialist-corrected-seed1 \
    runs/specialist-corrected-seed2 runs/specialist-k16-seed0 runs/specialist-k16-seed1 \
    runs/specialist-k16-seed2 runs/specialist-hidden-autojudge \
    runs/specialist-hidden-autojudge-seed1 runs/specialist-hidden-autojudge-seed2 \
    runs/specialist-k16-reinforce runs/specialist-k16-reinforce-seed1 \
    runs/specialist-k16-reinforce-seed2 runs/specialist-k16-r2r runs/specialist-k16-r2r-seed1 \
    runs/specialist-k16-r2r-seed2 random:match=specialist-corrected-seed2

# bench_family_sampled_trained.json: commit f79e12a, 28 min, AMD EPYC, 2 cores, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 800 --seed 61 \
    -k 16 --batch-sizes 128 --temperatures 1 --repeats 1 --tune-knobs --num-tune-problems 150 \
    --threads 1 --json runs/bench_family_sampled_trained.json --arms cosd cascade_diff ensemble \
    runs/t1/family-sampled-seed0 runs/t1/family-sampled-seed1 runs/t1/family-sampled-seed2 \
    runs/family-corrected-seed0 runs/family-corrected-seed1 runs/family-corrected-seed2

# bench_specialist_sampled_trained.json: commit f79e12a, 26 min, AMD EPYC, 2 cores, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 800 \
    --seed 62 -k 16 --batch-sizes 128 --temperatures 1 --repeats 1 --tune-knobs \
    --num-tune-problems 150 --threads 1 --json runs/bench_specialist_sampled_trained.json \
    --arms cosd cascade_diff ensemble runs/t1/specialist-sampled-seed0 \
    runs/t1/specialist-sampled-seed1 runs/t1/specialist-sampled-seed2 \
    runs/specialist-corrected-seed0 runs/specialist-corrected-seed1 \
    runs/specialist-corrected-seed2

# bench_specialist_law.json: commit 1292158, 6 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1500 \
    --seed 46 -k 16 --batch-sizes 128 --temperatures 1 --repeats 1 --num-tune-problems 0 \
    --threads 1 --json runs/bench_specialist_law.json \
    --arms runs/specialist-corrected-seed0:threshold=1

# speed_all_family.json: commit 566c5b6, 19 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 40 --seed 25 \
    -k 16 --batch-sizes 1 4 16 --temperatures 0 --repeats 3 --num-tune-problems 0 --threads 1 \
    --json runs/speed_all_family.json --arms assisted fly:window=6,min_entropy=0.6 \
    typical:threshold=0.36,alpha=0.6 mars:theta=0.95 top_k:k=10,delta=0.2 \
    top_k_ratio:k=3,ratio=0.5 sglang:threshold_single=0.3,threshold_acc=1 \
    bild:fallback=0.6,rollback=2 cascade_chow:alpha=0.2 cascade_diff:alpha=0 cascade_opt:alpha=0 \
    fsd_js:threshold=0.2 fsd_kl:threshold=0.4 mentored:max_kl=0.05 cosd:alpha=0.9,beta=0.5 \
    ensemble:draft_weight=0.4 gap:max_gap=1 runs/family-seed0:threshold=0.5 \
    runs/family-seed1:threshold=0.5 runs/family-seed2:threshold=0.7 random:rate=0.3772

# speed_all_specialist.json: commit 566c5b6, 19 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 40 \
    --seed 25 -k 16 --batch-sizes 1 4 16 --temperatures 0 --repeats 3 --num-tune-problems 0 \
    --threads 1 --json runs/speed_all_specialist.json --arms assisted fly:window=6,min_entropy=0.3 \
    typical:threshold=0.36,alpha=0.6 mars:theta=0.98 top_k:k=10,delta=0.2 \
    top_k_ratio:k=3,ratio=0.1 sglang:threshold_single=1,threshold_acc=0.5 \
    bild:fallback=0.6,rollback=3 cascade_chow:alpha=0.1 cascade_diff:alpha=-0.2 \
    cascade_opt:alpha=-0.2 fsd_js:threshold=0.05 fsd_kl:threshold=0.4 mentored:max_kl=0.05 \
    cosd:alpha=0.9,beta=0.5 ensemble:draft_weight=0.4 gap:max_gap=1 \
    runs/specialist-k16-seed0:threshold=0.7 runs/specialist-k16-seed1:threshold=0.7 \
    runs/specialist-k16-seed2:threshold=0.9 runs/specialist-k16-gold:threshold=0.8 \
    runs/specialist-k16-autojudge:threshold=0.9 runs/specialist-k16-reinforce:threshold=0.5 \
    random:rate=0.2848
