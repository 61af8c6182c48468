#!/bin/bash
# slurm/pipeline.sh configs/data/beauty.yaml configs/model/tone.yaml out=runs/beauty
#   DISTREC_CPU   options of sbatch for stages that need no GPU, e.g. "--partition=cpu --mem=32G"
#   DISTREC_GPU   of stages on many processes, e.g. "--nodes=2 --gpus-per-node=8 --cpus-per-task=64" (cores of a node, 8 a GPU)
# Models that count (popularity, item_knn, markov) are trained and evaluated by DISTREC_CPU, all others by DISTREC_GPU.
# Each stage as a job of its own, which starts when the one before has ended well: prepare, embed and quantize (models that
# generate codes), train, evaluate.  Prints the jobs' ids; cancel the first to cancel all.
set -euo pipefail

bin=${DISTREC_BIN:-.venv/bin}
model=$("$bin/distrec" config "$@" | sed -n '/^model:/,/^[a-z]*:$/s/^  name: //p' | head -n 1)
quoted() { # for sbatch --wrap, whose shell knows no $'…'
    local quote="'\\''" word
    for word in "$@"; do printf "'%s' " "${word//"'"/$quote}"; done
}
run=
for word in "$@"; do case $word in out=*) run=$word ;; esac; done
[ -n "$run" ] || { echo "error: give out=DIR" >&2; exit 2; }
read -ra cpu <<< "${DISTREC_CPU:-}"
read -ra gpu <<< "${DISTREC_GPU:-}"
last=

queue() { # NAME OPTIONS_AND_SCRIPT…: after the job before
    local name=$1
    shift
    last=$(sbatch --parsable --job-name "distrec-$name" ${last:+--dependency=afterok:$last --kill-on-invalid-dep=yes} "$@")
    echo "$name $last"
}

queue prepare "${cpu[@]}" --wrap "$(quoted "$bin/distrec" prepare "$@")"
device=("${gpu[@]}")
case $model in
    tiger | tone)
        DISTREC_JOB=embed queue embed "${gpu[@]}" slurm/train.sbatch "$@"
        queue quantize "${gpu[@]}" slurm/quantize.sbatch "$@"
        ;;
    popularity | item_knn | markov) device=("${cpu[@]}") ;;
esac
queue train "${device[@]}" slurm/train.sbatch "$@"
DISTREC_JOB=evaluate queue evaluate "${device[@]}" slurm/train.sbatch "$run"
