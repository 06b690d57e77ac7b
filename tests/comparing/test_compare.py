"""compare on small real models: its figures, its reports in all forms, and what it refuses before any work."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from kdshrink import CompareConfig, EvalConfig, ExportConfig, compare, evaluate, export
from kdshrink.cli import tables
from kdshrink.comparing import latency
from kdshrink.comparing.latency import BATCH, Classify, draw_texts, measure
from kdshrink.comparing.memory import Probe
from kdshrink.comparing.report import report_files, write_report
from kdshrink.comparing.results import CompareResult
from kdshrink.comparing.sheets import short_names
from kdshrink.errors import UsageError
from kdshrink.evaluation.evaluator import Evaluator
from kdshrink.exporting.runtime import Output, Runnable
from kdshrink.models.source import find_model

from ..evaluation.test_evaluation import classifier, reorder
from ..exporting.students import make_student, write_student
from ..helpers.models import LABELS, TAGS, make_model, make_tokenizer
from ..helpers.runner import run

CPU = torch.device("cpu")


def spoil(folder: Path, to: Path) -> Path:
    """A copy of a classifier that always gives its first class."""
    shutil.copytree(folder, to)
    model: Any = AutoModelForSequenceClassification.from_pretrained(to)
    with torch.no_grad():
        model.classifier.out_proj.bias[0] += 1000
    model.save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, the same with its classes in another order, a worse one, and data that the teacher labelled."""
    folder = tmp_path_factory.mktemp("compare")
    student, _ = write_student(make_student(), folder)
    student.rename(folder / "teacher")
    shutil.copytree(folder / "teacher", folder / "same")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "same")
    reorder(model, [2, 0, 1]).save_pretrained(folder / "same")
    spoil(folder / "teacher", folder / "worse")
    return folder


@pytest.fixture(scope="module")
def compared(workplace: Path) -> CompareResult:
    names = [str(workplace / name) for name in ("teacher", "same", "worse")]
    return compare(
        CompareConfig(
            models=tuple(names),
            data=str(workplace / "data"),
            split="validation",
            seen_languages=("aa",),
            threads=1,
            output_file=workplace / "report.html",
        )
    )


def of(result: CompareResult, name: str) -> Any:
    return next(one for model, one in result.models.items() if Path(model).name == name)


def test_scores_are_those_of_eval(compared: CompareResult, workplace: Path) -> None:
    for name in ("teacher", "worse"):
        config = EvalConfig(
            model=str(workplace / name), data=str(workplace / "data"), split="validation"
        )
        expected = evaluate(config)
        scores = of(compared, name).scores
        assert scores.pooled.score == pytest.approx(expected.score, abs=1e-12)
        for language, row in expected.per_language.items():
            found = scores.per_language[language]
            assert found.score == pytest.approx(row.score, abs=1e-12)
            assert found.examples == row.examples
        assert scores.seen == scores.per_language["aa"]
        assert scores.unseen == scores.per_language["bb"]


def test_classes_in_another_order_make_no_difference_and_a_worse_model_is_found(
    compared: CompareResult,
) -> None:
    same, worse = (of(compared, name).scores for name in ("same", "worse"))
    assert (same.pooled.difference.low, same.pooled.difference.high) == (0, 0)
    assert same.agreement == 1
    assert worse.pooled.difference.high < 0
    assert worse.agreement < 1
    assert worse.worst[1] < 1


def test_the_keys_of_json(compared: CompareResult, workplace: Path) -> None:
    result = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert result["baseline"] == str(workplace / "teacher")
    assert result["metric"] == "macro_f1"
    assert (result["seen_languages"], result["unseen_languages"]) == (["aa"], ["bb"])
    assert (result["split"], result["examples"], result["threads"]) == ("validation", 120, 1)
    row = result["models"][str(workplace / "worse")]
    assert row["file"] == "model.safetensors"
    assert row["bytes"] == (workplace / "worse/model.safetensors").stat().st_size
    model = AutoModelForSequenceClassification.from_pretrained(workplace / "worse")
    assert row["parameters"] == model.num_parameters()
    assert set(row["worst_language"]) == {"language", "share"}
    assert set(row["difference"]) == {"value", "interval", "more_than_chance"}
    assert row["difference"]["value"] == pytest.approx(
        row["score"] - result["models"][result["baseline"]]["score"]
    )
    for times in (row["latency"]["one_text"], row["latency"]["batch_of_32"]):
        assert 0 < times["tokenizing_ms"] < times["median_ms"] <= times["p95_ms"]
        assert times["times_as_fast"] > 0
    assert row["texts_per_second"] > 0
    assert row["peak_memory_bytes"] > row["model_memory_bytes"] > 0


def test_the_report_is_one_file_that_needs_no_network(
    compared: CompareResult, workplace: Path
) -> None:
    text = (workplace / "report.html").read_text(encoding="utf-8")
    page = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))  # well-formed
    loaded = [
        value
        for element in page.iter()
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] in ("src", "href", "srcset", "data")
    ]
    assert loaded  # the charts use their own markers
    assert all(value.startswith("#") for value in loaded)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    titles = [one.text for one in page.iter("{http://www.w3.org/2000/svg}title")]
    for name in ("teacher", "same", "worse"):
        for score in of(compared, name).scores.per_language.values():
            assert (
                sum(f"{score.score:.4f}" in str(title) for title in titles) >= 2
            )  # in both charts
    assert 'name="viewport"' in text
    assert "worse scores" in text


def test_names_in_the_report_are_text(compared: CompareResult, tmp_path: Path) -> None:
    content = compared.to_dict()
    named = "<b>$x$ & Co|"
    models = {**content["models"], named: next(iter(content["models"].values()))}

    class Renamed:
        def to_dict(self) -> dict[str, Any]:
            return {**content, "models": models}

    result: Any = Renamed()
    for ending in ("html", "md"):
        write_report(result, tmp_path / f"report.{ending}")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;$x$ &amp; Co|" in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    rows = [
        line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| 4")
    ]
    assert rows
    assert all(re.split(r"(?<!\\)\|", row)[1].strip().endswith("Co\\|") for row in rows)


def test_the_report_in_markdown_links_its_charts(compared: CompareResult, tmp_path: Path) -> None:
    path = tmp_path / "my report.md"
    write_report(compared, path)
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert [link.replace("%20", " ") for link in links] == [
        file.name for file in report_files(path)[1:]
    ]
    for file in report_files(path)[1:]:
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    sections = [part.splitlines() for part in text.split("\n## ")]
    for lines in sections[1:5]:
        widths = {line.count("|") for line in lines if line.startswith("|")}
        assert len(widths) == 1


def test_what_a_person_sees(compared: CompareResult, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_compared(compared.to_dict())
    shown = capsys.readouterr().out
    assert shown.index("bb (unseen)") < shown.index("yes, worse") < shown.index("1.0×")
    assert "the baseline is teacher" in shown
    assert "1 thread" in shown
    assert f"written to {compared.to_dict()['report']}" in shown


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    given = ["a/b/student", "c/b/student", "org/teacher@main#int8", "sample"]
    assert [*short_names(given).values()] == [
        *("a/b/student", "c/b/student", "teacher@main#int8", "sample")
    ]


# --- graphs and words


@pytest.mark.slow
def test_graphs_beside_their_model(workplace: Path) -> None:
    pytest.importorskip("onnxruntime")
    data: dict[str, Any] = {"data": str(workplace / "data")}
    export(
        ExportConfig(
            model=str(workplace / "teacher"),
            precision=("fp32", "fp16", "int8"),
            max_drop=100,
            output_dir=workplace / "shipped",
            **data,
        )
    )
    names = [str(workplace / "shipped") + end for end in ("", "#onnx", "#int8", "#fp16")]
    result = compare(
        CompareConfig(
            models=(names[2], names[1], names[3]), baseline=names[0], split="validation", **data
        )
    )
    assert [*result.models] == [names[0], names[2], names[1], names[3]]
    whole, int8, fp32, fp16 = result.models.values()
    files = [workplace / "shipped/onnx" / name for name in ("model_quantized.onnx", "model.onnx")]
    assert [int8.candidate.bytes, fp32.candidate.bytes] == [file.stat().st_size for file in files]
    assert int8.candidate.file == "onnx/model_quantized.onnx"
    assert int8.candidate.parameters == whole.candidate.parameters
    assert (whole.candidate.backend, fp32.candidate.backend) == ("torch", "onnxruntime")
    assert fp32.scores.agreement == 1
    assert fp16.candidate.file == "onnx/model_fp16.onnx"
    assert fp16.candidate.bytes < fp32.candidate.bytes
    scored = evaluate(
        EvalConfig(
            model=str(workplace / "shipped"), split="validation", backend="onnx:int8", **data
        )
    )
    assert int8.scores.pooled.score == pytest.approx(scored.score, abs=1e-12)
    # Nothing says what the model was trained on.
    assert result.to_dict()["seen_from"] is int8.scores.seen is None


@pytest.mark.slow
def test_words_are_compared_by_their_entities(tmp_path: Path, word_data: Path) -> None:
    names = []
    for seed in (0, 1):
        folder = tmp_path / f"tagger{seed}"
        classifier("token", TAGS, seed=seed, layers=2).save_pretrained(folder)
        make_tokenizer("xlm-roberta").save_pretrained(folder)
        names.append(str(folder))
    result = compare(CompareConfig(models=tuple(names), data=str(word_data), max_eval_samples=5))
    assert result.conditions.metric == "entity_f1"
    assert result.conditions.examples == 10
    for name, model in result.models.items():
        expected = evaluate(EvalConfig(model=name, data=str(word_data), max_eval_samples=5))
        assert model.scores.pooled.score == pytest.approx(expected.score, abs=1e-12)
    assert 0 < [*result.models.values()][1].scores.agreement < 1


# --- time and memory


class Sleeper(nn.Module):
    """Takes a time for each call, and notes its turn."""

    def __init__(self, name: str, seconds: float, turns: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.seconds, self.turns = name, seconds, turns

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
        self.turns.append((self.name, len(input_ids)))
        time.sleep(self.seconds)
        return Output(torch.zeros(len(input_ids), 3))


def test_models_take_turns_and_are_timed_by_the_call(
    monkeypatch: pytest.MonkeyPatch, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    turns: list[tuple[str, int]] = []
    models = {
        name: Classify(Runnable(Sleeper(name, seconds, turns), xlmr_tokenizer), "sequence", 64, CPU)
        for name, seconds in (("slow", 0.02), ("fast", 0.004))
    }
    monkeypatch.setattr(latency, "_SINGLES", 12)
    monkeypatch.setattr(latency, "_BATCHES", 4)
    monkeypatch.setattr(latency, "_TURN", 4)
    calls = draw_texts([f"wetter {i}" for i in range(50)], seed=0)
    assert [len(texts) for texts in calls] == [1] * 12 + [BATCH] * 4
    found = measure(models, calls, "slow")

    in_turn = 3 + 4  # three of them untimed
    assert [name for name, _ in turns[::in_turn]] == [
        *("slow", "fast", "fast", "slow"),
        *("slow", "fast", "fast", "slow"),
    ]
    assert [size for _, size in turns] == [1] * (3 * 2 * in_turn) + [BATCH] * (2 * in_turn)
    assert (found["slow"].one.times_as_fast, found["slow"].batch.times_as_fast) == (1, 1)
    assert 20 <= found["slow"].one.median < 60
    assert 4 <= found["fast"].one.median < 20
    assert 1.5 < found["fast"].one.times_as_fast < 6
    assert found["fast"].texts_per_second < BATCH / 0.004


def test_the_figures_of_calls_are_plain_statistics() -> None:
    rng = np.random.default_rng(0)
    seconds, baseline = rng.uniform(0.001, 0.1, (101, 2)), rng.uniform(0.001, 0.1, 101)
    found = latency._latency(seconds, baseline)
    whole = seconds[:, 1].tolist()
    assert found.median == pytest.approx(1000 * statistics.median(whole))
    assert found.p95 == pytest.approx(1000 * sorted(whole)[95])  # of 101: five are above it
    assert found.tokenizing == pytest.approx(1000 * statistics.median(seconds[:, 0].tolist()))
    ratios = [b / own for b, own in zip(baseline, whole, strict=True)]
    assert found.times_as_fast == pytest.approx(statistics.median(ratios))


@pytest.mark.slow
def test_memory_is_that_of_the_model_s_own_process() -> None:
    ballast = np.ones(2**27)  # a gibibyte that this process holds, and the other must not count
    source = find_model("sample")
    memory = Probe(source, "sequence", None, 64, "cpu", 1, ["wecke mich"] * BATCH).measure()
    assert memory is not None
    weights = 4 * 3_196_820  # parameters in float32
    assert weights < memory.peak - memory.libraries < 2**30
    assert memory.peak < ballast.nbytes


@pytest.mark.slow
def test_memory_that_cannot_be_measured_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(find_model("sample").directory, tmp_path / "m")
    source = find_model(str(tmp_path / "m"))
    (tmp_path / "m/model.safetensors").unlink()
    assert Probe(source, "sequence", None, 64, "cpu", 1, ["a"]).measure() is None
    assert "its memory was not measured" in caplog.text
    assert "there are no weights" in caplog.text


# --- what is refused, before any work


def other_labels(folder: Path) -> list[str]:
    shutil.copytree(folder / "teacher", folder / "other")
    config = json.loads((folder / "other/config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate([*LABELS[:2], "hot"])}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (folder / "other/config.json").write_text(json.dumps(config))
    return ["teacher", "other"]


def more_labels(folder: Path) -> list[str]:
    model = classifier("sequence", [*LABELS, "hot"], layers=2)
    shutil.copytree(folder / "teacher", folder / "more")
    model.save_pretrained(folder / "more")
    return ["teacher", "more"]


def bare_encoder(folder: Path) -> list[str]:
    shutil.copytree(folder / "teacher", folder / "bare")
    make_model("xlm-roberta", None).save_pretrained(folder / "bare")
    return ["teacher", "bare"]


def tagger(folder: Path) -> list[str]:
    shutil.copytree(folder / "teacher", folder / "tagger")
    make_model("xlm-roberta", "token").save_pretrained(folder / "tagger")
    return ["teacher", "tagger"]


def cut_off(folder: Path) -> list[str]:
    shutil.copytree(folder / "teacher", folder / "cut")
    weights = folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return ["teacher", "cut"]


def not_finite(folder: Path) -> list[str]:
    shutil.copytree(folder / "teacher", folder / "nan")
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "nan")
    with torch.no_grad():
        model.classifier.dense.weight[0, 0] = float("nan")
    model.save_pretrained(folder / "nan")
    return ["teacher", "nan"]


def damaged_graph(folder: Path) -> list[str]:
    (folder / "teacher/onnx").mkdir()
    (folder / "teacher/onnx/model.onnx").write_bytes(b"no graph")
    return ["teacher", "teacher#onnx"]


BAD: list[tuple[str | Callable[[Path], list[str]], int, str]] = [
    ("teacher missing", 1, "missing"),
    ("teacher ./missing", 1, "there is no such model directory"),
    ("teacher", 2, "MODELS teacher: give two or more models"),
    ("teacher teacher", 2, "each may be given only once"),
    ("teacher ./teacher", 2, "teacher and ./teacher are the same model"),
    ("teacher worse --baseline ./worse", 2, "./worse and worse are the same model"),
    ("teacher teacher#foo", 2, "MODELS teacher#foo: behind the #"),
    ("teacher #int8", 2, "MODELS #int8: behind the #"),
    ("teacher teacher#int8", 1, "there is no onnx/model_quantized.onnx"),
    ("teacher worse#int8 --device cuda", 2, "--device cuda: the graphs"),
    ("teacher worse -o report.pdf", 2, "its ending must be .html or .md"),
    ("teacher worse -o no/report.html", 1, "there is no directory"),
    ("teacher worse -o old.html", 1, "old.html exists already"),
    ("teacher worse -o charts.md", 1, "charts-size.svg exists already"),
    ("teacher worse -o worse/README.md --overwrite", 1, "which the command reads"),
    ("teacher worse#onnx -o worse/README.md --overwrite", 1, "which the command reads"),
    ("teacher worse --split nonsense", 2, "--split nonsense"),
    ("teacher worse --threads 0", 2, "--threads 0"),
    ("teacher worse --languages xx", 1, "xx"),
    (other_labels, 1, "hot"),
    (more_labels, 1, "more has classes that teacher does not have: hot."),
    (bare_encoder, 1, "bare has no head"),
    (tagger, 1, "teacher classifies texts, and tagger words"),
    (cut_off, 1, "model.safetensors"),
    (not_finite, 1, "classifier.dense.weight"),
    (damaged_graph, 1, "onnxruntime cannot load it"),
]


@pytest.mark.parametrize(("typed", "code", "said"), BAD)
def test_what_cannot_be_compared_is_refused_before_any_work(
    typed: str | Callable[[Path], list[str]],
    code: int,
    said: str,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "onnx" in said or (isinstance(typed, str) and "#onnx" in typed):
        pytest.importorskip("onnxruntime")
    for name in ("teacher", "worse"):
        shutil.copytree(workplace / name, tmp_path / name)
    (tmp_path / "worse/README.md").write_text("mine")
    for name in ("old.html", "charts-size.svg"):
        (tmp_path / name).write_text("mine")

    def work(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(Evaluator, "predict", work)
    words = typed.split() if isinstance(typed, str) else typed(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = ["--data", str(workplace / "data")]
    if "--split" not in words:
        data += ["--split", "validation"]
    for more in ((), ("--dry-run",)):
        done = run("compare", *words, *data, "--json", *more, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in " ".join(done.stderr.split())
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) <= 4
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old.html").read_text() == "mine"


@pytest.mark.parametrize("as_json", [True, False])
def test_figures_are_printed_where_the_report_cannot_be_written(
    as_json: bool, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of the report is removed during the work."""
    folder = tmp_path / "reports"
    folder.mkdir()

    def measured(_: Probe) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(Probe, "measure", measured)
    typed = ("compare", "teacher", "worse", "--data", "data", "--split", "validation")
    more = ["--json"] if as_json else []
    done = run(*typed, "-o", str(folder / "report.html"), *more, cwd=workplace)
    assert done.returncode == 1
    assert "the report could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        found = json.loads(done.stdout)
        assert [*found["models"]] == ["teacher", "worse"]
        assert found["report"] is None
    else:
        assert "worse" in done.stdout
        assert "written to" not in done.stdout


def test_a_report_needs_matplotlib_before_any_work(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    config = CompareConfig(
        models=("no-such", "model"), data="sample", output_file=tmp_path / "report.html"
    )
    with pytest.raises(UsageError, match=r"kdshrink\[plots\]"):
        compare(config)


def test_it_runs_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        compare(CompareConfig(models=("a", "b"), data="sample"))


def test_options_come_from_a_file_too(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text(
        f"models: [{workplace / 'teacher'}, {workplace / 'missing'}]\nmax-eval-samples: 7\n"
        f"data: {workplace / 'data'}\nthreads: 1\n"
    )
    done = run("compare", "--config", "compare.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert f"{workplace / 'missing'}: there is no such model directory" in done.stderr
