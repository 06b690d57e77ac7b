#!/usr/bin/env bash
# Make the sample's data and models. About an hour on two CPU cores.
#
#     bash make.sh MASSIVE_DIR E5_DIR
#
# MASSIVE_DIR holds MASSIVE 1.1 as <locale>/<split>.jsonl (id, utt, intent); E5_DIR is
# multilingual-e5-small as a plain XLM-RoBERTa checkpoint with its tokenizer.
set -euo pipefail
massive=$(realpath "$1") e5=$(realpath "$2")
sample=$(realpath "$(dirname "$0")/..")

python "$sample/making/choose_data.py" "$massive" "$sample/data"
cd "$(mktemp -d)"
ln -s "$e5" multilingual-e5-small
@@MAKE@@
python "$sample/making/store_half.py" base "$sample/base"
python "$sample/making/store_half.py" teacher "$sample/teacher"
