"""Students that are made, by the processes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALIBRATED = """
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from kdshrink.calibration.texts import CalibrationData
from kdshrink.data.load import load_data
from kdshrink.data.request import DataRequest
from kdshrink.distillation.student import make_student
from kdshrink.files import sha256_of
from kdshrink.models.loading import load_tokenizer
from kdshrink.models.source import find_model
from kdshrink.progress import silent
from kdshrink.shrinking.plan import Shape

teacher, text = sys.argv[1:]
torch.set_num_threads(1)
distributed.init_process_group("gloo")
source = find_model(teacher)
data = load_data(DataRequest(data=text), ("train",), purpose="train", labels="unused")
# Each process would calibrate on other texts, and come to other weights.
part = range(distributed.get_rank(), 40, 2)
data = replace(data, splits={"train": data.splits["train"].select(part)})
texts = CalibrationData.sample(data, 20, max_length=64, copies=0, multilingual=1.0)
with tempfile.TemporaryDirectory() as folder:
    student = make_student(
        source, source, load_tokenizer(source), Shape(layers=2, hidden_size=12), "calibrated",
        Path(folder), seed=0, calibration=texts, device=torch.device("cpu"), progress=silent,
    )
    mine = sha256_of(Path(folder, "model.safetensors")), student.heads, student.basis.sum().item()
    everyones = [None, None]
    distributed.all_gather_object(everyones, mine)
    assert everyones[0] == everyones[1], everyones
    student.load(None, 0)
"""


@pytest.mark.slow
def test_processes_have_the_student_that_the_first_calibrated(
    encoder_dir: Path, text_data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(CALIBRATED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, "--standalone", str(script), str(encoder_dir), str(text_data)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
