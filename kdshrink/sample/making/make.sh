#!/usr/bin/env bash
# Make the sample's data and models. About an hour on two CPU cores.
#
#     bash make.sh MASSIVE_DIR E5_DIR
#
# MASSIVE_DIR holds MASSIVE 1.1 as <locale>/<split>.jsonl (id, utt, intent); E5_DIR is
# multilingual-e5-small as a plain XLM-RoBERTa checkpoint with its tokenizer, and a README.md that says
# `license: mit` in its metadata.
set -euo pipefail
massive=$(realpath "$1") e5=$(realpath "$2")
sample=$(realpath "$(dirname "$0")/..")
cd "$(mktemp -d)"
ln -s "$massive" massive
ln -s "$e5" multilingual-e5-small

python "$sample/making/choose_data.py" massive whole "$sample/data"
kdshrink shrink ./multilingual-e5-small --vocab-from whole -o trimmed
kdshrink shrink ./trimmed --hidden-size 120 -o narrow
kdshrink distill --teacher ./trimmed --student ./narrow --weight attention=0 \
    --data massive --data-dir massive --languages de,en,es,ru,nl,pt,sv --max-eval-samples 40 \
    --learning-rate 2e-3 --warmup-steps 60 --max-steps 1400 --eval-steps 350 -o base
kdshrink finetune ./base --data whole \
    --learning-rate 3e-4 --warmup-steps 100 --num-train-epochs 16 --eval-steps 150 -o teacher
python "$sample/making/store_half.py" base "$sample/base"
python "$sample/making/store_half.py" teacher "$sample/teacher"
