"""Distillation's speed and memory against its peers, at equal work.

    pip install textbrewer==0.2.1
    python tests/benchmarks/distill_speed.py --tokenizer XLMR_DIR --data-dir MASSIVE_DIR [--teacher DIR]

Sides, run in turn, each in a process of its own: kdshrink (batches by length, random, and by length with
the teacher's targets cached in the first epoch), TextBrewer as its examples write it, and a plain Trainer
whose compute_loss has the terms. All take the same teacher, the same copied student of half the layers,
the same training texts, the same batch size, and the same terms: embedding, hidden states and attention
probabilities of every student layer, logits and labels. Two epochs are run and the second is measured, from
the end of the first one's last step: every side then does the work of the same texts, whatever their order,
with its start-up behind it. But for the cached side it is what a first epoch costs.

Without --teacher the shape is XLM-R base's (12 layers, width 768, the tokenizer's vocabulary), with random
weights. The limit is the floating-point operations of the texts' own tokens (teacher forward, student
forward and backward; matrix products alone) over the rate of a large product of matrices on this machine,
measured before every round. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("kdshrink", "kdshrink-random", "kdshrink-cached", "textbrewer", "trainer")
EPOCHS = 2


class Clock:
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> None:
        self.ends.append(time.perf_counter())

    def seconds_a_step(self, first: int, last: int) -> float:
        """Mean over the steps behind `first` up to `last`, counted from 1."""
        return (self.ends[last - 1] - self.ends[first - 1]) / (last - first)


def rate(device: str, dtype: str) -> float:
    """Floating-point operations a second of a large product of matrices."""
    import torch

    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(3):
            a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 3)
    return 2 * size**3 / min(times)


def make_teacher(folder: Path, tokenizer: Path) -> None:
    import torch
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

    from kdshrink.data.registry import NAMED

    torch.manual_seed(0)
    pieces = AutoTokenizer.from_pretrained(tokenizer)
    config = XLMRobertaConfig(
        vocab_size=max(250002, len(pieces)), max_position_embeddings=514, type_vocab_size=1
    )
    config.id2label = dict(enumerate(NAMED["massive"].labels))
    config.label2id = {name: i for i, name in config.id2label.items()}
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    pieces.save_pretrained(folder)


def run_kdshrink(options: argparse.Namespace, side: str, clock: Clock) -> None:
    from kdshrink import DistillConfig, distill

    def progress(what: str, done: int, total: int, figures: Any) -> None:
        if what == "distill" and done == len(clock.ends) + 1 and not figures:
            clock.tick()

    distill(
        DistillConfig(
            teacher=str(options.work / "teacher"),
            student=str(options.work / "student"),
            data="massive",
            data_dir=options.data_dir,
            languages=tuple(options.languages.split(",")),
            max_samples=options.samples,
            max_eval_samples=1,
            max_length=64,
            batch_size=options.batch_size,
            batches="random" if side == "kdshrink-random" else "by-length",
            cache_teacher="all" if side == "kdshrink-cached" else "none",
            num_train_epochs=EPOCHS,
            eval_steps=10**6,
            save_steps=10**6,
            attention_target="probabilities",
            device=options.device,
            output_dir=Path(tempfile.mkdtemp(dir=options.work)) / "out",
        ),
        progress,
    )


def peers_data(options: argparse.Namespace) -> tuple[Any, Any]:
    """The training texts that kdshrink takes, as a tokenised data set, and what pads a batch."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from kdshrink.data.load import load_data
    from kdshrink.data.request import DataRequest, LanguageChoice, Sampling

    tokenizer = AutoTokenizer.from_pretrained(options.work / "teacher")
    data = load_data(
        DataRequest(
            data="massive",
            data_dir=options.data_dir,
            languages=LanguageChoice(wanted=tuple(options.languages.split(","))),
            sampling=Sampling(max_samples=options.samples),
        ),
        ("train",),
        purpose="train",
    ).splits["train"]
    encoded = data.map(
        lambda batch: {
            **tokenizer(batch["text"], truncation=True, max_length=64),
            "labels": batch["label"],
        },
        batched=True,
        remove_columns=data.column_names,
    )
    return encoded, DataCollatorWithPadding(tokenizer)


def peers_models(options: argparse.Namespace) -> list[Any]:
    from transformers import AutoModelForSequenceClassification

    return [
        AutoModelForSequenceClassification.from_pretrained(
            options.work / name,
            attn_implementation="eager",
            output_hidden_states=True,
            output_attentions=True,
            dtype="float32",
        ).to(options.device)
        for name in ("teacher", "student")
    ]


def run_textbrewer(options: argparse.Namespace, clock: Clock) -> None:
    import torch
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    encoded, collate = peers_data(options)
    teacher, student = peers_models(options)
    layers = student.config.num_hidden_layers
    ratio = teacher.config.num_hidden_layers // layers
    matches = [
        {"layer_T": i * ratio, "layer_S": i, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for i in range(layers + 1)
    ] + [
        {
            "layer_T": (i + 1) * ratio - 1,
            "layer_S": i,
            "feature": "attention",
            "loss": "attention_mse",
            "weight": 1,
        }
        for i in range(layers)
    ]

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "attention": outputs.attentions,
            "inputs_mask": batch["attention_mask"],
            "losses": outputs.loss,
        }

    def student_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        clock.tick()  # a step later than it is, and so is the first
        return adaptor(batch, outputs)

    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    loader = DataLoader(
        encoded,
        batch_size=options.batch_size,
        shuffle=True,
        collate_fn=lambda rows: dict(collate(rows)),  # it knows plain dictionaries alone
    )
    distiller = GeneralDistiller(
        train_config=TrainingConfig(device=options.device, output_dir=str(options.work / "tb")),
        distill_config=DistillationConfig(
            temperature=1, hard_label_weight=1, kd_loss_weight=1, intermediate_matches=matches
        ),
        model_T=teacher,
        model_S=student,
        adaptor_T=adaptor,
        adaptor_S=student_adaptor,
    )
    # As its examples have it: steps are counted, and no checkpoint falls due before the end.
    distiller.t_config.ckpt_steps = 10**9
    with distiller:
        distiller.train(
            optimizer,
            dataloader=loader,
            num_epochs=None,
            num_steps=EPOCHS * len(loader),
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": 0, "num_training_steps": EPOCHS * len(loader)},
            max_grad_norm=1.0,
            callback=None,
        )
    clock.tick()
    del clock.ends[0]


def run_trainer(options: argparse.Namespace, clock: Clock) -> None:
    import torch
    from torch.nn.functional import cross_entropy, mse_loss
    from transformers import Trainer, TrainerCallback, TrainingArguments

    encoded, collate = peers_data(options)
    teacher, student = peers_models(options)
    teacher.eval()
    ratio = teacher.config.num_hidden_layers // student.config.num_hidden_layers

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            with torch.no_grad():
                theirs = teacher(**inputs)
            own = model(**inputs)
            loss = own.loss + cross_entropy(own.logits, theirs.logits.softmax(-1))
            for i, state in enumerate(own.hidden_states):
                loss = loss + mse_loss(state, theirs.hidden_states[i * ratio])
            for i, attention in enumerate(own.attentions):
                loss = loss + mse_loss(attention, theirs.attentions[(i + 1) * ratio - 1])
            return loss

    class Ticker(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    arguments = TrainingArguments(
        output_dir=str(options.work / "trainer"),
        use_cpu=options.device == "cpu",
        bf16=options.device != "cpu",
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=EPOCHS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Distiller(
        student, arguments, train_dataset=encoded, data_collator=collate, callbacks=[Ticker()]
    ).train()


def child(options: argparse.Namespace, side: str) -> dict[str, Any]:
    import resource

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    clock = Clock()
    if side == "textbrewer":
        run_textbrewer(options, clock)
    elif side == "trainer":
        run_trainer(options, clock)
    else:
        run_kdshrink(options, side, clock)
    steps = len(clock.ends)
    return {
        "seconds": clock.seconds_a_step(steps // EPOCHS, steps),
        "steps": steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def operations(options: argparse.Namespace) -> float:
    """Of an average step: 2 a weight and token forward, 4 more backward; and attention's products."""
    import numpy as np
    from transformers import AutoConfig

    lengths = np.array([len(ids) for ids in peers_data(options)[0]["input_ids"]])

    def forward(name: str) -> float:
        config = AutoConfig.from_pretrained(options.work / name)
        width, inner = config.hidden_size, config.intermediate_size
        weights = 4 * width**2 + 2 * width * inner
        a_layer = 2.0 * weights * lengths.sum() + 4.0 * width * (lengths.astype(float) ** 2).sum()
        return config.num_hidden_layers * a_layer

    total = forward("teacher") + 3 * forward("student")
    return total / (len(lengths) / options.batch_size)


def in_child(options: argparse.Namespace, task: str) -> Any:
    """Run a part of this script in a process of its own; the last line of its output is the answer."""
    command = [
        sys.executable,
        __file__,
        *sys.argv[1:],
        "--work",
        str(options.work),
        "--child",
        task,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(options: argparse.Namespace) -> None:
    from kdshrink import ShrinkConfig, shrink

    teacher = options.work / "teacher"
    if options.teacher is None:
        make_teacher(teacher, options.tokenizer)
    else:
        teacher.symlink_to(options.teacher.resolve())
    layers = json.loads((teacher / "config.json").read_text())["num_hidden_layers"] // 2
    shrink(ShrinkConfig(model=str(teacher), layers=layers, output_dir=options.work / "student"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--languages", default="de-DE,ru-RU,zh-CN")
    parser.add_argument("--samples", type=int, default=256, help="texts of each language")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child is not None:
        dtype = "float32" if options.device == "cpu" else "bfloat16"
        tasks: dict[str, Any] = {
            "prepare": lambda: prepare(options),
            "rate": lambda: rate(options.device, dtype),
            "operations": lambda: operations(options),
        }
        answer = tasks.get(options.child, lambda: child(options, options.child))()
        print(json.dumps(answer))
        return
    sides = options.sides.split(",")
    with tempfile.TemporaryDirectory() as work:
        options.work = Path(work)
        in_child(options, "prepare")
        step = in_child(options, "operations")
        rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        limits = []
        for number in range(options.rounds):
            limits.append(step / in_child(options, "rate"))
            for side in sides:
                row = in_child(options, side)
                row["of_limit"] = limits[-1] / row["seconds"]
                rows[side].append(row)
                print(number + 1, side, json.dumps(row), file=sys.stderr, flush=True)
    result: dict[str, Any] = {"limit_seconds": round(statistics.median(limits), 3)}
    for side, measured in rows.items():
        seconds = statistics.median(row["seconds"] for row in measured)
        result[side] = {
            "seconds_a_step": round(seconds, 3),
            "examples_per_second": round(options.batch_size / seconds, 1),
            "peak_mib": round(statistics.median(row["peak_mib"] for row in measured)),
            "share_of_limit": round(statistics.median(row["of_limit"] for row in measured), 2),
        }
        for peer in ("textbrewer", "trainer"):
            if peer in rows and side.startswith("kdshrink"):
                pairs = zip(rows[peer], measured, strict=True)
                ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
                result[side][f"times_{peer}"] = round(ratio, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
