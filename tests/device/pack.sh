#!/usr/bin/env bash
# make device, or in the root of a checkout with a .venv:  bash tests/device/pack.sh [FOLDER_OF_DATA]      (default: $DISTREC_DATA)
# Fills the ignored folder .whl/ with all that a GPU machine without a network lacks (it has Python 3.12, torch 2.11 for CUDA 13), trimmed:
#   site.tar.xz   packages, as they lie in site-packages      data/   Amazon Beauty, MovieLens-100K   
# and prints what will travel.  Needs pip's registry; nothing of it is committed.
set -euo pipefail
data=${1:-${DISTREC_DATA:-../shared/data}}
python=${PYTHON:-python3}
limit=$((62 * 1024 * 1024))
[ -f pyproject.toml ] && [ -d distrec ] || { echo "error: not the root of a checkout" >&2; exit 2; }
rm -rf .whl && mkdir .whl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1. wheels for that machine's python, whatever python is here
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" -d "$work/wheels" \
    transformers==5.24.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 polars==2.1.0 polars-runtime-32==2.1.0 \
    pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 typing-extensions==4.16.0 \
    bitsandbytes==0.50.2 peft==0.21.2 beartype==0.23.1
mkdir "$work/site"
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/site"; done
# DeepSpeed and hjson come as source alone: as they are installed here (no compiled part; its operators are built where they are used)
installed=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for name in deepspeed hjson; do cp -r "$installed/$name" "$installed/$name"-*.dist-info "$work/site/"; done

# 2. what is not needed there
cd "$work/site"
find . -name __pycache__ -type d -prune -exec rm -rf {} +
find . \( -name tests -o -name test \) -type d -not -path './polars/*' -prune -exec rm -rf {} +
rm -rf -- *.data
find bitsandbytes -name 'libbitsandbytes_*' ! -name '*cuda130*' ! -name '*_cpu*' -delete
rm -rf deepspeed/ops/csrc deepspeed/inference/v2/kernels  # sources of operators that are built where they are used; none is
for info in *.dist-info; do find "$info" -type f ! -name METADATA -delete; find "$info" -type d -empty -delete; done
# a run's stamp asks for the version of distrec itself
mkdir distrec-0.1.0.dist-info
printf 'Metadata-Version: 2.1\nName: distrec\nVersion: 0.1.0\n' > distrec-0.1.0.dist-info/METADATA
cd - > /dev/null

# 3. packed as small as it goes: one stream over everything
tar -C "$work/site" --sort=name --owner=0 --group=0 -cf - . | xz -T0 -6 > .whl/site.tar.xz
mkdir .whl/data
for name in amazon_beauty_2014 movielens_100k; do [ ! -d "$data/$name" ] || cp -r "$data/$name" .whl/data/; done

# 4. what will travel
tree=$( (git ls-files -z; git ls-files -zo --exclude-standard) | xargs -0 du -bc 2>/dev/null | awk '/total$/ {sum += $1} END {print sum}')
packed=$(du -sb .whl | cut -f1)
printf '%8.1f MiB  unpacked packages\n' "$(du -sb "$work/site" | awk '{print $1 / 1048576}')"
for path in .whl/site.tar.xz .whl/data; do printf '%8.1f MiB  %s\n' "$(du -sb "$path" | awk '{print $1 / 1048576}')" "$path"; done
printf '%8.1f MiB  the working tree\n%8.1f MiB  in all (limit 64)\n' "$(echo "$tree" | awk '{print $1 / 1048576}')" "$(echo "$((tree + packed))" | awk '{print $1 / 1048576}')"
[ "$((tree + packed))" -lt "$limit" ] || { echo "error: too much" >&2; exit 1; }

# 5. the command there
cat << 'COMMAND'

In the root of the copied tree on that machine, for some nine minutes (OUT: a folder to bring back):

python3 -c "import tarfile; tarfile.open('.whl/site.tar.xz').extractall('.whl/site', filter='data')"
export PYTHONPATH=$PWD:$PWD/.whl/site:$PWD/tests DISTREC_DATA=$PWD/.whl/data HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
set -o pipefail; timeout 545 python3 tests/device/check.py --budget 530 --out "$OUT" 2>&1 | grep -v Warning | tee "$OUT/log.txt"
COMMAND
