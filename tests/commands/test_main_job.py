"""finetune → shrink → distill → eval → zero-shot on small real models, as the library runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from kdshrink import (
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    ShrinkConfig,
    ZeroShotConfig,
    distill,
    evaluate,
    finetune,
    shrink,
    zero_shot,
)
from kdshrink.errors import DataError, ModelError, OutputError, TrainingError, UsageError
from kdshrink.models.source import find_model

from ..helpers.logs import logged, logged_losses
from ..helpers.models import FAMILIES, LABELS, make_config, make_model, make_tokenizer
from ..helpers.processes import die_in_step

FAST: dict[str, Any] = {"device": "cpu", "batch_size": 8, "learning_rate": 3e-3, "logging_steps": 2}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


def make_teacher(
    folder: Path, tokenizer: PreTrainedTokenizerFast, family: str = "xlm-roberta", **changes: Any
) -> Path:
    """A classifier with random weights on disk."""
    make_model(family, "sequence", **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_chain_for_texts(encoder_dir: Path, text_data: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"data": str(text_data)}
    teacher = finetune(
        FinetuneConfig(
            model=str(encoder_dir), output_dir=tmp_path / "t", num_train_epochs=24, **data, **FAST
        )
    )
    assert teacher.development.score > 0.5  # the majority class scores 0.17
    assert teacher.to_dict()["metric"] == "macro_f1"
    assert set(teacher.to_dict()["per_language"]) == {"de", "es"}

    shrink(ShrinkConfig(model=str(tmp_path / "t"), layers=2, output_dir=tmp_path / "copy"))
    student = distill(
        DistillConfig(
            teacher=str(tmp_path / "t"),
            student=str(tmp_path / "copy"),
            output_dir=tmp_path / "s",
            languages=("de",),
            num_train_epochs=16,
            compare=True,
            **data,
            **FAST,
        )
    )
    assert student.development.score > 0.5
    models = student.to_dict()["comparison"]["models"]
    assert list(models) == ["teacher", "untrained student", "distilled student"]
    assert list(models["teacher"]["seen"]["per_language"]) == ["de"]
    assert list(models["teacher"]["unseen"]["per_language"]) == ["es"]

    scored = evaluate(EvalConfig(model=str(tmp_path / "s"), device="cpu", **data)).to_dict()
    assert set(scored["per_language"]) == {"de", "es"}
    # The copy kept what its teacher learnt of Spanish, so both count as trained on.
    with pytest.raises(DataError, match="--unseen-languages"):
        zero_shot(ZeroShotConfig(model=str(tmp_path / "s"), device="cpu", **data))
    result = zero_shot(
        ZeroShotConfig(model=str(tmp_path / "s"), device="cpu", seen_languages=("de",), **data)
    ).to_dict()
    assert list(result["unseen"]["per_language"]) == ["es"]
    assert result["gap"] == pytest.approx(result["seen"]["score"] - result["unseen"]["score"])
    assert result["majority_accuracy"] == pytest.approx(1 / 3)

    first = logged_losses(tmp_path / "s")[0]
    terms = ("embedding", "hidden", "attention", "prediction", "task")
    assert first["loss"] == pytest.approx(sum(first[term] for term in terms), rel=1e-4)
    # A copy's embeddings are its teacher's, and nothing is dropped.
    assert first["embedding"] == 0
    assert all(first[term] > 0 for term in terms[1:])
    scored = [row["step"] for row in logged(tmp_path / "s") if "score" in row]
    assert len(scored) == len(set(scored)) == 17  # before the first epoch, and after each
    assert not (tmp_path / "s" / "checkpoints").exists()
    sizes = json.loads((tmp_path / "s" / "kdshrink.json").read_text())["sizes"]
    for name, folder in (("the teacher", "t"), ("this model", "s")):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert sizes[name]["parameters"] == model.num_parameters()


def test_the_chain_for_words(encoder_dir: Path, word_data: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"data": str(word_data)}
    finetune(
        FinetuneConfig(
            model=str(encoder_dir), output_dir=tmp_path / "t", num_train_epochs=8, **data, **FAST
        )
    )
    student = distill(
        DistillConfig(
            teacher=str(tmp_path / "t"),
            hidden_size=12,
            layers=2,
            output_dir=tmp_path / "s",
            num_train_epochs=8,
            **data,
            **FAST,
        )
    ).to_dict()
    assert student["metric"] == "entity_f1"
    scored = evaluate(EvalConfig(model=str(tmp_path / "s"), device="cpu", **data)).to_dict()
    assert scored["score"] > 0.5
    assert "projection" not in " ".join(load_file(tmp_path / "s" / "model.safetensors"))


def test_output_needs_no_kdshrink(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    distill(
        DistillConfig(
            teacher=str(teacher),
            data=str(text_data),
            output_dir=tmp_path / "s",
            max_steps=2,
            **FAST,
        )
    )
    script = (
        "import sys; sys.modules['kdshrink'] = None\n"
        "from transformers import pipeline, AutoModel\n"
        f"AutoModel.from_pretrained({str(tmp_path / 's')!r})\n"
        f"print(pipeline('text-classification', model={str(tmp_path / 's')!r})('musik 3')[0]['label'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] in LABELS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["scores", "probabilities"])
def test_a_teacher_distilled_into_itself_has_nothing_to_learn(
    tmp_path: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    text_data: Path,
    family: str,
    target: str,
) -> None:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer, family, **quiet)
    distill(
        DistillConfig(
            teacher=str(teacher),
            student=str(teacher),
            data=str(text_data),
            output_dir=tmp_path / "s",
            attention_target=target,
            weights={"task": 0.0, "prediction": 0.0},
            max_steps=1,
            **{**FAST, "logging_steps": 1},
        )
    )
    line = logged_losses(tmp_path / "s")[0]
    assert line["embedding"] + line["hidden"] + line["attention"] < 1e-9


def test_dropout_is_off_in_training_alone(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer, "xlm-roberta")
    losses = {}
    ways: dict[str, dict[str, Any]] = {
        "own": {"recipe": "paper"},
        "off": {"recipe": "paper", "dropout": 0.0},
        "best": {},
    }
    for name, options in ways.items():
        distill(
            DistillConfig(
                teacher=str(teacher),
                student=str(teacher),
                data=str(text_data),
                output_dir=tmp_path / name,
                weights={"task": 0.0, "prediction": 0.0},
                max_steps=1,
                **options,
                **{**FAST, "logging_steps": 1},
            )
        )
        losses[name] = logged_losses(tmp_path / name)[0]["loss"]
    assert losses["off"] < 1e-9 < 1e-3 < losses["own"]
    assert losses["best"] < 1e-9
    made, was = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "off", teacher))
    assert made["hidden_dropout_prob"] == was["hidden_dropout_prob"] == 0.1


@pytest.mark.parametrize("init", ["from-teacher", "from-base", "from-scratch"])
def test_students_made_on_the_fly(
    encoder_dir: Path, text_data: Path, tmp_path: Path, init: str
) -> None:
    data: dict[str, Any] = {"data": str(text_data), "languages": ("de",)}
    finetune(
        FinetuneConfig(
            model=str(encoder_dir), output_dir=tmp_path / "t", max_steps=2, **data, **FAST
        )
    )
    config = DistillConfig(
        teacher=str(tmp_path / "t"),
        init=init,
        output_dir=tmp_path / "s",
        max_steps=1,
        **data,
        **{**FAST, "learning_rate": 1e-9},
    )
    result = distill(config)
    student = load_file(tmp_path / "s" / "model.safetensors")
    teacher = load_file(tmp_path / "t" / "model.safetensors")
    base = load_file(encoder_dir / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensor = student[f"roberta.{name}"]
    source = name.replace("layer.1", "layer.3")
    distances = {
        "from-teacher": (tensor - teacher[f"roberta.{source}"]).abs().max(),
        "from-base": (tensor - base[source]).abs().max(),
    }
    near = {label for label, distance in distances.items() if distance < 1e-6}
    assert near == ({init} & set(distances))
    record = json.loads((tmp_path / "s" / "kdshrink.json").read_text())
    assert record["start"] == init
    assert record["layers"] == [2, 4]

    encoder_dir.rename(tmp_path / "elsewhere")  # a finished run needs no base
    assert distill(replace(config, resume=True)).to_dict() == result.to_dict()


def test_labels_are_matched_by_name(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    """The same classifier with its classes in another order scores the same, and teaches the same."""
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    turned = tmp_path / "turned"
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    order = [2, 0, 1]
    with torch.no_grad():
        model.classifier.out_proj.weight.copy_(model.classifier.out_proj.weight[order])
        model.classifier.out_proj.bias.copy_(model.classifier.out_proj.bias[order])
    model.config.id2label = {i: LABELS[old] for i, old in enumerate(order)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.save_pretrained(turned)
    xlmr_tokenizer.save_pretrained(turned)
    results = [
        evaluate(EvalConfig(model=str(m), data=str(text_data), device="cpu", per_class=True))
        for m in (teacher, turned)
    ]
    assert results[0].score == results[1].score
    assert results[0].per_class == results[1].per_class

    losses = []
    for name in (teacher, turned):
        out = tmp_path / f"from-{name.name}"
        distill(
            DistillConfig(
                teacher=str(name),
                student=str(teacher),
                data=str(text_data),
                output_dir=out,
                max_steps=2,
                **FAST,
            )
        )
        losses.append(logged_losses(out)[0]["prediction"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_unknown_labels_are_listed(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    path = text_data / "de" / "test.jsonl"
    path.write_text(path.read_text().replace('"cold"', '"freezing"'))
    with pytest.raises(DataError, match=r"freezing[\s\S]*cold, mild, warm"):
        evaluate(EvalConfig(model=str(teacher), data=str(text_data), device="cpu"))


@pytest.mark.parametrize(
    ("job", "save_steps", "dies_at", "cache"),
    [
        ("finetune", 3, 5, None),
        ("distill", 3, 5, "none"),
        ("distill", 3, 5, "all"),
        ("distill", 2, 7, "all"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    encoder_dir: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    text_data: Path,
    tmp_path: Path,
    job: str,
    save_steps: int,
    dies_at: int,
    cache: str | None,
) -> None:
    """Killed within a step, an epoch (of 6 steps) and a group of the teacher's targets (of 4)."""
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    options: dict[str, Any] = {"data": str(text_data), "max_steps": 9, **FAST}
    options |= {"save_steps": save_steps, "weight_decay": 0.1}

    def make_config(out: Path, resume: bool = False) -> Any:
        if job == "finetune":
            return FinetuneConfig(model=str(encoder_dir), output_dir=out, resume=resume, **options)
        kept: dict[str, Any] = {"hidden_size": 12, "cache_teacher": cache}
        return DistillConfig(teacher=str(teacher), output_dir=out, resume=resume, **kept, **options)

    run = finetune if job == "finetune" else distill
    run(make_config(tmp_path / "whole"))
    out = tmp_path / "killed"
    config = make_config(out)
    assert die_in_step(dies_at, lambda: run(config)) == 9
    assert not (out / "config.json").exists()
    with pytest.raises(OutputError, match="--resume"):
        run(make_config(out))
    run(make_config(out, resume=True))
    expected, got = (load_file(d / "model.safetensors") for d in (tmp_path / "whole", out))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    lines = [[row for row in logged(d) if "loss" in row] for d in (tmp_path / "whole", out)]
    assert [row["step"] for row in lines[0]] == [row["step"] for row in lines[1]]

    before = (out / "model.safetensors").stat().st_mtime_ns
    run(make_config(out, resume=True))
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_a_resumed_run_does_not_calibrate_again(
    xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path, tmp_path: Path
) -> None:
    """And ends with the same bits, the same scores of the untrained student and the same account."""
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)

    def run(out: str, *, resume: bool = False) -> set[str]:
        """Distil into a directory; what was reported of the way there."""
        config = DistillConfig(
            teacher=str(teacher),
            data=str(text_data),
            init="calibrated",
            layers=2,
            hidden_size=12,
            output_dir=tmp_path / out,
            resume=resume,
            compare=True,
            max_steps=6,
            save_steps=2,
            **FAST,
        )
        stages: set[str] = set()
        distill(config, lambda what, *_: stages.add(what))
        return stages

    assert "calibrate" in run("whole")
    assert die_in_step(5, lambda: run("killed")) == 9
    assert "calibrate" not in run("killed", resume=True)
    expected, got = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    records = [
        json.loads((tmp_path / name / "kdshrink.json").read_text()) for name in ("whole", "killed")
    ]
    assert records[1]["resumed_from"] == 4
    for told in ("calibration", "heads", "layers", "start", "training_languages"):
        assert records[0].get(told) == records[1].get(told)
    scores = [
        {
            name: (model["seen"]["score"], model["seen"]["per_language"])
            for name, model in record["results"]["comparison"]["models"].items()
        }
        for record in records
    ]
    assert scores[0] == scores[1]
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_damaged_start_is_calibrated_again(
    xlmr_tokenizer: PreTrainedTokenizerFast,
    text_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DistillConfig(
        teacher=str(make_teacher(tmp_path / "t", xlmr_tokenizer)),
        data=str(text_data),
        init="calibrated",
        output_dir=tmp_path / "out",
        max_steps=4,
        save_steps=2,
        **FAST,
    )
    assert die_in_step(3, lambda: distill(config)) == 9
    (tmp_path / "out" / "checkpoints" / "start" / "model.safetensors").write_bytes(b"")
    stages: set[str] = set()
    distill(replace(config, resume=True), lambda what, *_: stages.add(what))
    assert "calibrate" in stages
    assert "calibrated again" in caplog.text


def test_same_seed_same_result(encoder_dir: Path, text_data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(
            FinetuneConfig(
                model=str(encoder_dir),
                data=str(text_data),
                output_dir=tmp_path / name,
                max_steps=3,
                seed=seed,
                **FAST,
            )
        )
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_loss_that_is_not_finite_is_named(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    options: dict[str, Any] = {
        "teacher": str(teacher),
        "data": str(text_data),
        "output_dir": tmp_path / "out",
        "max_steps": 4,
        **FAST,
    }
    with pytest.raises(TrainingError, match=r"term .* step 2[\s\S]*no checkpoint"):
        distill(DistillConfig(**{**options, "learning_rate": 1e38}))
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_student_that_predicts_nothing_finite_is_not_trained(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    student = make_teacher(tmp_path / "s", xlmr_tokenizer)
    tensors = load_file(student / "model.safetensors")
    tensors["classifier.out_proj.bias"][0] = float("nan")
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no finite prediction for text 1"):
        distill(
            DistillConfig(
                teacher=str(teacher),
                student=str(student),
                data=str(text_data),
                output_dir=tmp_path / "out",
                max_steps=4,
                **FAST,
            )
        )
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_start_that_training_does_not_better_is_kept(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    """A good start is ruined at once by such a learning rate; patience does not count the start."""
    teacher = tmp_path / "t"
    data: dict[str, Any] = {"data": str(text_data)}
    finetune(
        FinetuneConfig(
            model=str(make_teacher(tmp_path / "base", xlmr_tokenizer)),
            output_dir=teacher,
            num_train_epochs=24,
            **data,
            **FAST,
        )
    )
    options: dict[str, Any] = {**FAST, "learning_rate": 10.0, "eval_steps": 2, "max_steps": 8}
    result = distill(
        DistillConfig(
            teacher=str(teacher),
            student=str(teacher),
            output_dir=tmp_path / "s",
            early_stopping_patience=2,
            **data,
            **options,
        )
    )
    assert result.best_step == 0
    scores = {row["step"]: row["score"] for row in logged(tmp_path / "s") if "score" in row}
    assert result.development.score == scores[0] > max(scores[step] for step in scores if step)
    assert result.steps > 2
    was, kept = (load_file(folder / "model.safetensors") for folder in (teacher, tmp_path / "s"))
    assert all(torch.equal(was[name], kept[name]) for name in was)
    assert "the model before training" in (tmp_path / "s" / "README.md").read_text()


def test_text_without_labels(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, encoder_dir: Path
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"{word} day {i}" for i in range(20) for word in ("warm", "cold")))
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    # A calibrated start has nothing to learn from so few texts.
    options: dict[str, Any] = {"data": str(lines), "max_steps": 6, "eval_steps": 3, **FAST}
    options["init"] = "from-teacher"
    with pytest.raises(DataError, match=r"no labels[\s\S]*--weight task=0"):
        distill(DistillConfig(teacher=str(teacher), output_dir=tmp_path / "no", **options))
    for name, source in (("labelled", teacher), ("bare", encoder_dir)):
        result = distill(
            DistillConfig(
                teacher=str(source), output_dir=tmp_path / name, weights={"task": 0}, **options
            )
        ).to_dict()
        assert result["metric"] == "negative_loss"
        scores = [row["score"] for row in logged(tmp_path / name) if "score" in row]
        assert scores[2] > scores[1]


def test_a_student_with_a_part_of_the_vocabulary(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    """Trimmed and whole student see the same teacher: the same first losses, to rounding."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer, **quiet)
    for name, options in (("whole", {}), ("trimmed", {"vocab_from": str(text_data)})):
        shrink(ShrinkConfig(model=str(teacher), layers=2, output_dir=tmp_path / name, **options))
        distill(
            DistillConfig(
                teacher=str(teacher),
                student=str(tmp_path / name),
                data=str(text_data),
                output_dir=tmp_path / f"{name}-out",
                multilingual=0,  # of which the trimmed tokenizer knows fewer
                max_steps=1,
                **{**FAST, "logging_steps": 1},
            )
        )
    sizes = [len(AutoTokenizer.from_pretrained(tmp_path / n)) for n in ("whole", "trimmed")]
    assert sizes[1] < sizes[0]
    whole, trimmed = (logged_losses(tmp_path / f"{n}-out")[0] for n in ("whole", "trimmed"))
    assert trimmed["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_another_tokenizer_is_refused(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    student = make_teacher(tmp_path / "s", make_tokenizer("bert"), "bert")
    with pytest.raises(ModelError, match="tokens that the teacher does not have"):
        distill(
            DistillConfig(
                teacher=str(teacher),
                student=str(student),
                data=str(text_data),
                output_dir=tmp_path / "out",
                **FAST,
            )
        )


def test_unequal_heads_and_widths_distil(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, text_data: Path
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    sizes = {"hidden_size": 18, "num_attention_heads": 6, "num_hidden_layers": 2}
    student = make_teacher(tmp_path / "s", xlmr_tokenizer, **sizes)
    result = distill(
        DistillConfig(
            teacher=str(teacher),
            student=str(student),
            data=str(text_data),
            output_dir=tmp_path / "out",
            max_steps=2,
            **FAST,
        )
    )
    assert result.steps == 2


def test_wrong_uses_are_told_early(
    encoder_dir: Path, tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    teacher = make_teacher(tmp_path / "t", xlmr_tokenizer)
    options: dict[str, Any] = {"data": str(text_data), "output_dir": tmp_path / "out", **FAST}
    with pytest.raises(ModelError, match="finetune"):
        evaluate(EvalConfig(model=str(encoder_dir), data=str(text_data)))
    with pytest.raises(UsageError, match="has weight 0"):
        distill(
            DistillConfig(
                teacher=str(encoder_dir),
                weights=dict.fromkeys(("embedding", "hidden", "attention"), 0.0),
                **options,
            )
        )
    with pytest.raises(UsageError, match="--base"):
        distill(DistillConfig(teacher=str(teacher), init="from-base", **options))
    with pytest.raises(ModelError, match="no such model directory"):
        find_model("./nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", ["finetune", "shrink", "distill"])
def test_a_repository_with_a_pickle_and_a_sentencepiece_model(
    tmp_path: Path, text_data: Path, job: str
) -> None:
    """The layout of microsoft/mdeberta-v3-base: config.json, pytorch_model.bin and spm.model only."""
    import sentencepiece

    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(p.read_text() for p in text_data.glob("*/*.jsonl")))
    folder = tmp_path / "mdeberta"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=90,
        pad_id=0,
        pad_piece="[PAD]",
        bos_id=1,
        bos_piece="[CLS]",
        eos_id=2,
        eos_piece="[SEP]",
        unk_id=3,
        unk_piece="[UNK]",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spm.vocab").unlink()
    config = make_config("deberta-v2", vocab_size=120)
    task = None if job == "finetune" else "sequence"
    model = make_model("deberta-v2", task, vocab_size=120)
    plain = {"vocab_size": 120, **{k: v for k, v in config.to_dict().items() if v is not None}}
    if task:
        plain |= {
            "architectures": [type(model).__name__],
            "id2label": dict(enumerate(LABELS)),
            "label2id": {name: i for i, name in enumerate(LABELS)},
        }
    (folder / "config.json").write_text(json.dumps(plain, default=str))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert {p.name for p in folder.iterdir()} == {"config.json", "pytorch_model.bin", "spm.model"}

    out = tmp_path / "out"
    if job == "finetune":
        finetune(
            FinetuneConfig(
                model=str(folder), data=str(text_data), output_dir=out, max_steps=1, **FAST
            )
        )
    elif job == "shrink":
        shrink(ShrinkConfig(model=str(folder), layers=2, output_dir=out))
    else:
        distill(
            DistillConfig(
                teacher=str(folder), data=str(text_data), output_dir=out, max_steps=1, **FAST
            )
        )
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer.tokenize("musik de tag")
    assert len(tokens) > 2
    assert tokenizer.unk_token not in tokens
    assert (out / "model.safetensors").exists()
