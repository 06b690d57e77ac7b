"""What good input gives today, to be compared with what it gives after a change.

    python tests/benchmarks/golden.py OUT.json massive=DIR tsm=DIR universal-ner=DIR [--only data|runs]
    python tests/benchmarks/golden.py --compare A.json B.json

The first writes one JSON. `data`: for the sample and the named data sets given (DIR as --data-dir takes it;
of massive a few languages), and for custom data made of them as JSON lines, CSV, TSV, parquet and IOB2, by
groups of languages, --max-samples, --max-eval-samples and --train-fraction: the number of rows of each split
and the SHA-256 of its texts, labels and languages in their order, and the names of the labels in theirs.
`runs`: what short commands on one thread end with: scores, losses, predictions, weights, records and what
cards say for machines, to the bit: finetune, eval, zero-shot, shrink (copied, scratch, calibrated, of a trimmed
vocabulary, of each family), distill (each start, both tasks, resumed after SIGTERM), reproduce at sample scale.
The second lists what differs, and exits 1 if anything does.

Which kdshrink is measured is what this Python imports: PYTHONPATH chooses another checkout.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

MASSIVE_LANGUAGES = ("az-AZ", "de-DE", "en-US", "sw-KE", "th-TH", "zh-CN")
CUSTOM = {
    "massive": ("de-DE", "sw-KE", "zh-CN"),
    "tsm": ("arabic", "german", "portuguese"),
    "universal-ner": ("da_ddt", "sr_set", "zh_gsd"),
}
SPLITS = ("train", "validation", "test")
SELECTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_samples": 50},
    {"max_samples": 70, "max_eval_samples": 30},
    {"train_fraction": 0.05},
    {"train_fraction": 0.3, "max_samples": 90},
)
NOT_OF_THE_RESULT = {
    *("output_dir", "train_seconds", "seconds", "examples_per_second", "peak_memory_bytes"),
    *("train_examples_per_second", "time", "elapsed", "began", "schema"),
}
"""What no two runs share, or what says where they were run."""


def digest(values: Iterable[Any]) -> str:
    """The SHA-256 of values, each a JSON line."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return sha.hexdigest()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- data ---------------------------------------------------------------------------------------


def read(purpose: str, splits: Sequence[str], **options: Any) -> dict[str, Any]:
    """What load_data makes of these options; where it refuses, the kind of error."""
    from kdshrink import EvalConfig
    from kdshrink.data.load import load_data
    from kdshrink.errors import KdshrinkError

    request: Any = EvalConfig(model="unused", **options)
    with suppress(ImportError):  # a checkout whose load_data takes the config itself
        from kdshrink.commands.inputs import data_request

        request = data_request(request)
    try:
        data = load_data(request, splits, purpose=purpose)  # type: ignore[arg-type]
    except KdshrinkError as error:
        return {"error": type(error).__name__}
    return {
        "task": data.task,
        "labels": data.labels,
        "languages": data.languages,
        "seen": data.seen,
        "unseen": data.unseen,
        "splits": {
            split: {
                "rows": len(table),
                "texts": digest(table["text"]),
                "labels": digest(table["label"]),
                "languages": digest(table["language"]),
            }
            for split, table in data.splits.items()
        },
    }


def named_cases(name: str, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in ("seen", "unseen", "all", None):
        for selection in SELECTIONS:
            options = {"data": name, "data_dir": folder, **selection}
            if group is not None:
                options["languages"] = (group,)
            said = ", ".join(f"{key}={value}" for key, value in selection.items())
            for purpose, splits in (("train", ("train", "validation")), ("evaluate", ("test",))):
                yield (
                    f"{name} {group} {purpose} {said}".rstrip(),
                    read(purpose, splits, **options),
                )
    dev = {"data": name, "data_dir": folder, "languages": ("seen",)}
    yield f"{name} seen evaluate validation", read("evaluate", ("validation",), **dev)


def custom_cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every directory of `folder` as custom data, and its single files."""
    for place in sorted(folder.iterdir()):
        for selection in SELECTIONS:
            said = ", ".join(f"{key}={value}" for key, value in selection.items())
            for purpose, splits in (("train", ("train", "validation")), ("evaluate", ("test",))):
                case = read(purpose, splits, data=str(place), **selection)
                yield f"custom {place.name} {purpose} {said}".rstrip(), case
        first = sorted(path.name for path in place.iterdir() if path.is_dir())[0]
        one = read("evaluate", ("test",), data=str(place), languages=(first,))
        yield f"custom {place.name} {first}", one
        for file in sorted((place / first).glob("test.*")):
            yield f"custom {place.name} {file.name}", read("evaluate", ("test",), data=str(file))


def plain(row: Mapping[str, Any], text: str) -> bool:
    """Whether a row stands in CSV and TSV as it stands in JSON, whichever way these are read."""
    value = row[text]
    missing = {"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "n/a", "<NA>", "NaT"}
    return not set('"\t\r\n') & set(value) and value not in missing and value == value.strip()


def make_custom(name: str, source: Path, folder: Path) -> None:
    """A few languages of a named data set as custom data, once in each format that can hold it."""
    words = name == "universal-ner"
    text = {"massive": "utt", "tsm": "text", "universal-ner": "tokens"}[name]
    for language in CUSTOM[name]:
        for file in sorted((source / language).glob("*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            rows = [row for row in rows if words or plain(row, text)]
            for kind in ("jsonl", "parquet", *(("iob2",) if words else ("csv", "tsv"))):
                path = folder / f"{name}-{kind}" / language / f"{file.stem}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                WRITERS[kind](path, rows)


Rows = Sequence[Mapping[str, Any]]


def write_json_lines(path: Path, rows: Rows) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(rows)), path)


def write_separated(path: Path, rows: Rows, separator: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_iob2(path: Path, rows: Rows) -> None:
    """As the files that Universal NER publishes: number, word, tag, and two columns more."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(f"# sent_id = {number}\n")
            words = zip(row["tokens"], row["ner_tags"], strict=True)
            for place, (word, tag) in enumerate(words, 1):
                file.write(f"{place}\t{word}\t{tag}\t-\t-\n")
            file.write("\n")


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_json_lines,
    "parquet": write_parquet,
    "csv": partial(write_separated, separator=","),
    "tsv": partial(write_separated, separator="\t"),
    "iob2": write_iob2,
}


# --- runs ---------------------------------------------------------------------------------------


def command(work: Path, *words: str) -> Any:
    """The JSON that a command prints, less what no two runs share."""
    line = [sys.executable, "-m", "kdshrink", *words, "--json"]
    done = subprocess.run(line, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
    return comparable(json.loads(done.stdout))


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: comparable(item)
            for key, item in sorted(value.items())
            if key not in NOT_OF_THE_RESULT
        }
    return [comparable(item) for item in value] if isinstance(value, list) else value


def training(folder: Path) -> dict[str, Any]:
    """The losses and scores of a training run as logged, and its weights."""
    lines = (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "log": [comparable(json.loads(line)) for line in lines],
        "weights": sha256_of(folder / "model.safetensors"),
    }


def predictions(path: Path) -> str:
    keys = ("language", "gold", "predicted", "probability")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return digest([row[key] for key in keys] for row in rows)


def sample_runs(work: Path) -> Iterator[tuple[str, Any]]:
    on_sample = ("sample", "--data", "sample")
    yield (
        "eval sample",
        command(work, "eval", *on_sample, "--per-class", "--predictions", "p.jsonl"),
    )
    yield "eval sample predictions", predictions(work / "p.jsonl")
    yield "zero-shot sample", command(work, "zero-shot", *on_sample)
    yield (
        "distill sample",
        command(
            work,
            *("distill", "--teacher", *on_sample, "--max-steps", "20", "--logging-steps", "5"),
            *("--compare", "-o", "distilled"),
        ),
    )
    yield "distill sample log", training(work / "distilled")
    yield (
        "shrink sample",
        command(
            work,
            *("shrink", "sample", "--layers", "2", "--vocab-from", "sample", "-o", "shrunk"),
        ),
    )
    yield "shrink sample weights", sha256_of(work / "shrunk" / "model.safetensors")


INITS = ("from-teacher", "from-base", "from-scratch", "calibrated")
FAMILIES = ("xlm-roberta", "roberta", "bert", "deberta-v2", "electra")
CALIBRATED = FAMILIES[:-1]


def written(folder: Path, work: Path) -> dict[str, Any]:
    """What a command left in a directory, without what names the place of this run."""
    from huggingface_hub import metadata_load

    record = (folder / "kdshrink.json").read_text(encoding="utf-8").replace(str(work), "WORK")
    return {
        "weights": sha256_of(folder / "model.safetensors"),
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "record": comparable(json.loads(record)),
        "card": json.loads(json.dumps(metadata_load(folder / "README.md"), default=str)),
    }


def make_model(family: str, folder: Path) -> None:
    """A small classifier of a family with drawn weights, and the sample's tokenizer."""
    import transformers

    import kdshrink

    base = Path(str(kdshrink.__file__)).parent / "sample" / "base"
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=json.loads((base / "config.json").read_text())["vocab_size"],
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=130,
        pad_token_id=1,
        num_labels=3,
    )
    transformers.set_seed(7)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(base / name, folder)


def family_runs(work: Path) -> Iterator[tuple[str, Any]]:
    for family in FAMILIES:
        make_model(family, work / family)
        for init in ("copy", "scratch", *(("calibrated",) if family in CALIBRATED else ())):
            place = f"{family}-{init}"
            data = ("--data", "sample") if init == "calibrated" else ()
            shape = ("--layers", "2", "--hidden-size", "12")
            line = ("shrink", family, *shape, "--init", init, *data, "-o", place)
            yield f"shrink {family} {init}", command(work, *line)
            yield f"shrink {family} {init} files", written(work / place, work)


def distill_runs(teacher: Sequence[str], what: str, work: Path) -> Iterator[tuple[str, Any]]:
    """A few steps of distillation from each start, of a given student, and of a run that was stopped."""
    steps = ("--max-steps", "12", "--logging-steps", "4", "--eval-steps", "6", "--batch-size", "8")
    line = ("distill", "--teacher", *teacher, *steps)
    for init in INITS:
        place = f"{what}-{init}"
        base = ("--base", "sample-base") if init == "from-base" else ()
        yield (
            f"distill {what} {init}",
            command(work, *line, "--init", init, *base, "--layers", "2", "-o", place),
        )
        yield f"distill {what} {init} log", training(work / place)
        yield f"distill {what} {init} files", written(work / place, work)
    given = (*line, "--student", f"{what}-from-teacher", "-o", f"{what}-given")
    yield f"distill {what} student", command(work, *given)
    yield f"distill {what} student files", written(work / f"{what}-given", work)
    place = f"{what}-stopped"
    stopped = (*line, "--layers", "2", "--save-steps", "3", "-o", place)
    stop_at_a_checkpoint(work, place, *stopped)
    yield f"distill {what} resumed", command(work, *stopped, "--resume")
    yield f"distill {what} resumed log", training(work / place)


def stop_at_a_checkpoint(work: Path, place: str, *words: str) -> None:
    """Run a command until it has written a checkpoint, and stop it by SIGTERM."""
    run = subprocess.Popen(
        [sys.executable, "-m", "kdshrink", *words], cwd=work, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and not [*(work / place / "checkpoints").glob("checkpoint-*/*.json")]:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    run.wait()


def reproduce_runs(work: Path) -> Iterator[tuple[str, Any]]:
    line = ("reproduce", "no-finetune", "--scale", "sample", "--max-steps", "8")
    yield "reproduce", command(work, *line, "--teacher-steps", "8", "-o", "reproduced")
    path = work / "reproduced" / "no-finetune" / "results.json"
    yield "reproduce results", comparable(json.loads(path.read_text(encoding="utf-8")))


def named_runs(name: str, folder: Path, work: Path) -> Iterator[tuple[str, Any]]:
    """A few steps on a few hundred rows, and the scores of what they make."""
    model = f"model-{name}"
    data = ("--data", name, "--data-dir", str(folder), "--max-length", "64")
    yield (
        f"finetune {name}",
        command(
            work,
            *("finetune", "sample-base", *data, "--languages", "seen", "--max-samples", "60"),
            *("--max-steps", "20", "--batch-size", "8", "--learning-rate", "1e-3"),
            *("--logging-steps", "5", "--eval-steps", "10", "-o", model),
        ),
    )
    yield f"finetune {name} log", training(work / model)
    scored = (model, *data, "--max-samples", "60", "--predictions", f"{name}.jsonl")
    yield f"eval {name}", command(work, "eval", *scored)
    yield f"eval {name} predictions", predictions(work / f"{name}.jsonl")
    yield f"zero-shot {name}", command(work, "zero-shot", model, *data, "--max-samples", "30")


# --- the whole ----------------------------------------------------------------------------------


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            where = f"{place} / {key}" if place else key
            if key not in a or key not in b:
                yield f"{where}: only in {'the first' if key in a else 'the second'}"
            else:
                yield from differences(a[key], b[key], where)
    elif a != b:
        yield f"{place}: {json.dumps(a)[:200]} -> {json.dumps(b)[:200]}"


def run(folders: Mapping[str, Path], only: str | None) -> dict[str, Any]:
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    result: dict[str, Any] = {"data": {}, "runs": {}}

    def note(part: str, cases: Iterable[tuple[str, Any]]) -> None:
        for name, case in cases:
            print(name, file=sys.stderr, flush=True)
            result[part][name] = case

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        os.environ["HF_HOME"] = str(work / "cache")
        folders = dict(folders)
        if massive := folders.get("massive"):
            folders["massive"] = work / "massive"
            for language in MASSIVE_LANGUAGES:
                shutil.copytree(massive / language, work / "massive" / language)
        if only != "runs":
            note("data", named_cases("sample", None))
            for name, folder in folders.items():
                note("data", named_cases(name, folder))
                make_custom(name, folder, work / "custom")
            if folders:
                note("data", custom_cases(work / "custom"))
        if only != "data":
            note("runs", sample_runs(work))
            note("runs", family_runs(work))
            note("runs", distill_runs(("sample", "--data", "sample"), "sample", work))
            note("runs", reproduce_runs(work))
            for name, folder in folders.items():
                note("runs", named_runs(name, folder, work))
                if name == "universal-ner":
                    data = ("--data", name, "--data-dir", str(folder), "--max-length", "64")
                    few = ("--languages", "en_ewt,da_ddt", "--max-samples", "40")
                    note("runs", distill_runs((f"model-{name}", *data, *few), "entities", work))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"))
    parser.add_argument("--only", choices=("data", "runs"))
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("folders", nargs="*", metavar="NAME=DIR")
    options = parser.parse_intermixed_args()
    if options.compare:
        first, second = (json.loads(path.read_text(encoding="utf-8")) for path in options.compare)
        found = list(differences(first, second))
        print("\n".join(found) or "no difference")
        sys.exit(bool(found))
    if options.out is None:
        parser.error("name the file to write, or --compare A.json B.json")
    pairs = (item.partition("=") for item in options.folders)
    result = run({name: Path(folder).resolve() for name, _, folder in pairs}, options.only)
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
