"""To the Hub and back: pushed, pulled, described, told of; with the real clients and a Hub on loopback."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from kdshrink.data.load import load_data
from kdshrink.data.registry import MASSIVE
from kdshrink.data.request import DataRequest
from kdshrink.publishing.card import model_card

from ..helpers import hub_data
from ..helpers.hub import READER, WRITER, Blob, Desk, Fault, Hub, content

# --- push and pull


@pytest.mark.parametrize("large", [(".safetensors",), ()], ids=["lfs", "all-regular"])
def test_push_push_again_and_pull_by_revision(
    large: tuple[str, ...], desk: Desk, hub: Hub, model_dir: Path
) -> None:
    hub.large = large
    first = desk.json("push", "model", "--hub-model-id", "org/model")
    assert first["changed"]
    assert first["hub_model_id"] == "org/model"
    pushed = hub.files("org/model")
    pushed.pop(".gitattributes")
    assert pushed == content(model_dir)
    assert len(hub.sent("^PUT /lfs")) == len(large)

    hub.requests.clear()
    again = desk.json("push", "model", "--hub-model-id", "org/model")
    assert not again["changed"]
    assert again["commit"] == first["commit"]
    assert hub.sent("^PUT|/commit/") == []

    (model_dir / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    second = desk.json("push", "model", "--hub-model-id", "org/model")
    assert second["commit"] != first["commit"]
    assert hub.sent("^PUT") == []

    script = (
        "import sys; from transformers import pipeline;"
        "classify = pipeline('text-classification', model='org/model', revision=sys.argv[1]);"
        "print(classify('wecke mich um sieben')[0]['label'])"
    )
    shutil.rmtree(desk.home, ignore_errors=True)
    answer = desk.python("-c", script, first["commit"], token=None)
    assert answer.stdout.strip() in MASSIVE.labels, answer.stderr
    assert hub.sent(f"GET /org/model/resolve/{first['commit']}/model.safetensors")


def test_a_branch_a_pull_request_and_a_private_repository(
    desk: Desk, hub: Hub, model_dir: Path
) -> None:
    branch = desk.json(
        "push", "model", "--hub-model-id", "org/m", "--private", "--hub-revision", "b"
    )
    repo = hub.repos["models", "org/m"]
    assert repo.private
    assert repo.refs["b"] == branch["commit"]
    assert "model.safetensors" not in hub.files("org/m")

    request = desk.json("push", "model", "--hub-model-id", "org/m", "--create-pr")
    assert request["pull_request"] == f"{hub.url}/org/m/discussions/1"
    assert "model.safetensors" not in hub.files("org/m")
    assert "model.safetensors" in hub.files("org/m", "refs/pr/1")

    # A stranger's token may open a request where it must not write.
    (model_dir / "README.md").write_text("# Mine\n")
    request = desk.json("push", "model", "--hub-model-id", "org/m", "--create-pr", token=READER)
    assert request["pull_request"].endswith("/2")


def test_without_a_name_it_goes_to_one_s_own_account(desk: Desk, hub: Hub, model_dir: Path) -> None:
    assert desk.json("push", "model")["hub_model_id"] == "tester/model"
    assert desk.json("push", "./model", "--hub-model-id", "x")["hub_model_id"] == "tester/x"


def test_what_is_no_model_is_not_pushed(desk: Desk, hub: Hub, model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    for directory, message in (("model", "no weights"), ("nowhere", "no such directory")):
        done = desk("push", directory)
        assert done.returncode == 1
        assert message in done.stderr
    (model_dir / "config.json").unlink()
    assert "not a model" in desk("push", "model").stderr
    assert hub.requests == []


def test_checkpoints_and_hidden_files_stay_here(desk: Desk, hub: Hub, model_dir: Path) -> None:
    for name in ("checkpoints/checkpoint-1/optimizer.pt", ".env", "onnx/model.onnx"):
        (model_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (model_dir / name).write_bytes(b"x")
    desk.json("push", "model", "--hub-model-id", "org/m")
    names = set(hub.files("org/m"))
    assert "onnx/model.onnx" in names
    assert not any(name.startswith(("checkpoints", ".env")) for name in names)


def test_distill_massive_as_typed(desk: Desk, hub: Hub, massive_teacher: Path) -> None:
    teacher = hub.add("org/teacher", massive_teacher)
    data = hub.add(
        "AmazonScience/massive",
        hub_data.write_massive(desk.folder / "source"),
        kind="datasets",
        ref="refs/convert/parquet",
    )
    hub.repos["datasets", "AmazonScience/massive"].commit("main", {"massive.py": Blob(b"", False)})
    typed = (
        *("distill", "--teacher", "org/teacher", "--data", "massive", "--push-to-hub"),
        *("--languages", "de,en", "--max-steps", "2"),
    )
    result = desk.json(*typed)
    directory = desk.folder / result["output_dir"]
    assert result["hub"]["hub_model_id"] == "tester/teacher-student"
    pushed = hub.files("tester/teacher-student")
    assert {name for name in pushed if name != ".gitattributes"} == set(content(directory))

    record = json.loads(pushed["kdshrink.json"])
    assert record["teacher"] == {"model": "org/teacher", "revision": teacher}
    assert record["data"]["revision"] == data
    assert record["training_languages"] == ["de-DE", "en-US"]
    (step,) = record["chain"]
    assert step["command"] == (
        "kdshrink distill --teacher org/teacher --data massive --languages de,en --max-steps 2"
    )
    assert step["data"]["revision"] == data

    # Nothing of the data set was asked for twice, and no language that was not asked for.
    fetched = [str(request) for request in hub.sent("^GET /datasets/.*parquet$")]
    assert len(fetched) == len(set(fetched)) == 4
    assert not hub.sent("resolve/.*/es-ES/")

    # Without a connection, from the cache; by HF_HUB_OFFLINE, or because nothing answers.
    evaluate = (
        "eval",
        "org/teacher",
        "--data",
        "massive",
        "--languages",
        "de",
        "--split",
        "validation",
    )
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        hub.requests.clear()
        assert desk.json(*evaluate, **environment)["examples"] == 6
        assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "languages", "units"),
    [("tsm", "de,en", ["german", "english"]), ("universal-ner", "da", ["da_ddt"])],
)
def test_the_other_data_sets_of_the_hub(
    data: str, languages: str, units: list[str], desk: Desk, hub: Hub, massive_teacher: Path
) -> None:
    hub.add("org/base", massive_teacher)
    tsm = hub_data.write_tsm(desk.folder / "a")
    hub.add(
        "cardiffnlp/tweet_sentiment_multilingual", tsm, kind="datasets", ref="refs/convert/parquet"
    )
    ner = hub_data.write_universal_ner(desk.folder / "b")
    hub.add("BramVanroy/universal_ner", ner, kind="datasets")
    typed = ("--data", data, "--languages", languages)
    result = desk.json("finetune", "org/base", *typed, "--max-steps", "2", "-o", "out")
    assert set(result["per_language"]) == set(units)
    record = json.loads((desk.folder / "out/kdshrink.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", record["data"]["revision"])
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        score = desk.json("eval", "out", *typed, "--split", "validation", **environment)["score"]
        assert score == pytest.approx(result["score"])


@pytest.mark.slow
def test_a_data_set_of_one_s_own_on_the_hub(desk: Desk, hub: Hub, massive_teacher: Path) -> None:
    hub.add("org/base", massive_teacher)
    commit = hub.add("me/reviews", hub_data.write_reviews(desk.folder / "r"), kind="datasets")
    desk.json("finetune", "org/base", "--data", "me/reviews", "--max-steps", "2", "-o", "out")
    record = json.loads((desk.folder / "out/kdshrink.json").read_text())
    assert record["data"]["hub_id"] == "me/reviews"
    assert record["data"]["revision"] == commit
    assert ModelCard.load(desk.folder / "out/README.md").data.datasets == ["me/reviews"]
    for typed, message in (("me/reviewz", "no such data set"), ("a b", "possible Hub id")):
        done = desk("eval", "out", "--data", typed)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_push_that_is_stopped_says_how_to_go_on(
    number: int, code: int, desk: Desk, hub: Hub, model_dir: Path
) -> None:
    hub.faults = [Fault("PUT /lfs", "stall", seconds=20)]
    # A test run that was started in the background passes an ignored SIGINT on to its children.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['kdshrink', 'push', 'model', '--hub-model-id', 'org/model']\n"
        "from kdshrink.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=hub.environment(desk.home),
        cwd=desk.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not hub.sent("PUT /lfs"):
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.endswith("Push it again with:\nkdshrink push model --hub-model-id org/model\n")
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_failed_push_is_no_reason_to_train_again(
    desk: Desk, hub: Hub, model_dir: Path, text_data: Path
) -> None:
    typed = ("finetune", "model", "--data", str(text_data), "--max-steps", "2", "-o", "out")
    typed = (*typed, "--push-to-hub", "--hub-model-id", "org/out")
    hub.faults = [Fault("/commit/", status=504)]
    failed = desk(*typed, "--json")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.endswith("Push it again with:\nkdshrink push out --hub-model-id org/out\n")
    weights = (desk.folder / "out/model.safetensors").read_bytes()
    hub.faults = []
    resumed = desk.json(*typed, "--resume")
    assert resumed["hub"]["changed"]
    assert hub.files("org/out")["model.safetensors"] == weights
    assert len(hub.sent("PUT /lfs")) == 1


# --- checked before any work


@pytest.mark.parametrize(
    ("name", "token", "code", "message"),
    [
        ("org/student", READER, 1, "403, forbidden"),
        ("org/student", "hf_nonsense", 1, "401, it does not accept this token"),
        ("org/student", None, 1, "it needs a token"),
        ("theirs/student", WRITER, 1, "403, forbidden"),
        ("org/a b", WRITER, 2, "cannot be a repository's name"),
        ("org/public", WRITER, 1, "exists already and is public"),
    ],
)
def test_name_and_permission_are_checked_before_the_work(
    name: str, token: str | None, code: int, message: str, desk: Desk, hub: Hub, model_dir: Path
) -> None:
    hub.add("org/public", model_dir)
    typed = ("--layers", "2", "-o", "out", "--push-to-hub", "--private", "--hub-model-id", name)
    done = desk("shrink", "model", *typed, token=token)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not (desk.folder / "out").exists()


def test_options_of_pushing_that_contradict_each_other(desk: Desk) -> None:
    for typed, message in (
        (("shrink", "model", "--private"), "--private needs --push-to-hub"),
        (("shrink", "model", "--hub-model-id", "a/b"), "--hub-model-id needs --push-to-hub"),
        (("push", "model", "--create-pr", "--hub-revision", "b"), "exclude each other"),
    ):
        done = desk(*typed)
        assert done.returncode == 2
        assert message in done.stderr


# --- pull


@pytest.mark.parametrize(
    ("model", "token", "message"),
    [
        ("org/gated", READER, "access to this model is gated"),
        ("org/private", None, "or it is private"),
        ("org/mistyped", WRITER, "no such model on the Hub, or this token may not see it"),
        ("org/model@nowhere", WRITER, "no such revision"),
        ("org/mo del", WRITER, "nor a possible Hub id"),
        ("org/model", "hf_nonsense", "it does not accept this token"),
        ("org/empty", WRITER, "there is no config.json"),
    ],
)
def test_each_way_not_to_get_a_model_has_its_message(
    model: str, token: str | None, message: str, desk: Desk, hub: Hub, model_dir: Path
) -> None:
    hub.add("org/model", model_dir)
    hub.add("org/gated", model_dir, gated=True)
    hub.add("org/private", model_dir, private=True)
    (desk.folder / "nothing").mkdir()
    (desk.folder / "nothing/README.md").write_text("# Empty\n")
    hub.add("org/empty", desk.folder / "nothing")
    done = desk("info", model, token=token)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_revisions_by_option_and_by_name(desk: Desk, hub: Hub, model_dir: Path) -> None:
    first = hub.add("org/model", model_dir)
    settings = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**settings, "num_attention_heads": 2}))
    second = hub.add("org/model", model_dir)
    for typed, revision, heads in (
        (["org/model"], second, 2),
        ([f"org/model@{first}"], first, 4),
        (["org/model", "--revision", first], first, 4),
    ):
        told = desk.json("info", *typed)
        assert (told["revision"], told["heads"]) == (revision, heads)


def test_offline_without_a_cache_says_so(desk: Desk) -> None:
    done = desk("info", "org/model", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_offline_with_the_small_files_alone_says_so(desk: Desk, hub: Hub, model_dir: Path) -> None:
    hub.add("org/model", model_dir)
    desk.json("info", "org/model")
    done = desk("shrink", "org/model", "--layers", "2", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "not in the cache" in done.stderr


def test_a_pickle_on_the_hub_is_read_as_tensors_and_said_so(
    desk: Desk, hub: Hub, model_dir: Path
) -> None:
    weights = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    torch.save(weights, model_dir / "pytorch_model.bin")
    hub.add("org/pickled", model_dir)
    done = desk("shrink", "org/pickled", "--layers", "2", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert "pytorch_model.bin" in done.stderr
    assert (desk.folder / "out/model.safetensors").exists()
    assert desk.json("info", "org/pickled")["parameters"] is None

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("I ran",)

    torch.save({**weights, "x": Code()}, model_dir / "pytorch_model.bin")
    hub.add("org/poisoned", model_dir)
    done = desk("shrink", "org/poisoned", "--layers", "2", "-o", "out2")
    assert done.returncode == 1
    assert "I ran" not in done.stdout + done.stderr
    assert "pytorch_model.bin" in done.stderr
    assert not (desk.folder / "out2").exists()


def test_code_comes_only_when_it_is_asked_for(desk: Desk, hub: Hub, model_dir: Path) -> None:
    (model_dir / "modeling.py").write_text("print('I ran')\n")
    hub.add("org/model", model_dir)
    desk.json("info", "org/model")
    assert not hub.sent("modeling.py")
    desk.json("info", "org/model", "--trust-remote-code")
    assert hub.sent("modeling.py")


# --- card, record, info


@pytest.fixture
def chain(desk: Desk, hub: Hub, massive_teacher: Path) -> Path:
    """A student in three steps from a model on the Hub, on data of its own."""
    hub.add("org/base", massive_teacher)
    data = hub_data.write_massive(desk.folder / "source")
    hub.add("AmazonScience/massive", data, kind="datasets", ref="refs/convert/parquet")
    common = ("--data", "massive", "--languages", "de,en", "--max-steps", "2")
    for typed in (
        ("finetune", "org/base", *common, "-o", "teacher", "--learning-rate", "1e-3"),
        ("shrink", "teacher", "--layers", "2", "-o", "copy", "--token", WRITER),
        ("distill", "--teacher", "teacher", "--student", "copy", *common, "--weight", "task=0"),
    ):
        done = desk(*typed)
        assert done.returncode == 0, done.stderr
    return desk.folder / "copy-distilled"


@pytest.mark.slow
def test_record_card_and_info_of_a_chain(chain: Path, desk: Desk, hub: Hub) -> None:
    record = json.loads((chain / "kdshrink.json").read_text())
    commands = [step["command"] for step in record["chain"]]
    shared = "--data massive --languages de,en"
    assert commands == [
        f"kdshrink finetune org/base {shared} --max-steps 2 --learning-rate 0.001 --output-dir teacher",
        "kdshrink shrink teacher --layers 2 --output-dir copy",
        f"kdshrink distill --teacher teacher --student copy {shared} --max-steps 2 --weight task=0",
    ]
    assert record["chain"][0]["models"] == [
        {"model": "org/base", "revision": hub.repos["models", "org/base"].refs["main"]}
    ]

    card = ModelCard.load(chain / "README.md")
    card.data.to_yaml()
    assert card.data.license == "other"
    assert card.data.license_name == "tea-licence"
    assert card.data.base_model == "org/base"
    assert card.data.base_model_relation == "finetune"
    assert card.data.language == ["de", "en"]
    assert card.data.datasets == ["AmazonScience/massive"]
    scores = {result.dataset_config: result.metric_value for result in card.data.eval_results}
    results = record["results"]
    assert scores[None] == round(results["score"], 4)
    assert scores["de-DE"] == round(results["per_language"]["de-DE"]["score"], 4)
    text = card.text
    for command in commands:
        assert f"$ {command}" in text
    assert "no label was used" in text
    assert "Never trained on for this task: af-ZA" in text
    assert "| this model | 2 |" in text

    told = desk.json("info", str(chain))
    assert told["chain"] == record["chain"]
    assert told["hub_base"] == "org/base"
    assert (told["layers"], told["layer_map"], told["layers_of"]) == (2, [2, 4], 4)
    assert told["score"] == results["score"]
    assert told["training_languages"] == ["de-DE", "en-US"]
    assert told["parameters"] == record["sizes"]["this model"]["parameters"]
    assert told["bytes"] == 4 * told["parameters"]
    shown = desk("info", str(chain)).stdout
    assert all(command in shown for command in commands)

    # The commands are there to be typed: the chain, replayed elsewhere, gives the same weights.
    replay = desk.folder / "replay"
    replay.mkdir()
    for command in commands:
        again = Desk(hub, replay)(*shlex.split(command)[1:])
        assert again.returncode == 0, again.stderr
    weights = (replay / "copy-distilled/model.safetensors").read_bytes()
    assert weights == (chain / "model.safetensors").read_bytes()


def test_the_card_has_the_repository_s_name_unless_it_was_edited(
    desk: Desk, hub: Hub, model_dir: Path
) -> None:
    desk.json("shrink", "model", "--layers", "2", "-o", "out")
    record = json.loads((desk.folder / "out/kdshrink.json").read_text())
    mine = (desk.folder / "out/README.md").read_text()
    assert mine == model_card("out", record)
    assert 'model="out"' in mine
    desk.json("push", "out", "--hub-model-id", "org/m")
    assert 'model="org/m"' in hub.files("org/m")["README.md"].decode()
    assert (desk.folder / "out/README.md").read_text() == mine
    (desk.folder / "out/README.md").write_text("# By hand\n")
    desk.json("push", "out", "--hub-model-id", "org/m")
    assert hub.files("org/m")["README.md"] == b"# By hand\n"


def test_no_licence_is_invented(desk: Desk, model_dir: Path) -> None:
    (model_dir / "README.md").unlink()
    desk.json("shrink", "model", "--layers", "2", "-o", "out")
    card = ModelCard.load(desk.folder / "out/README.md")
    assert card.data.license is None
    assert "names no licence" in card.text


def test_info_of_a_model_on_the_hub_reads_headers_alone(
    desk: Desk, hub: Hub, model_dir: Path
) -> None:
    hub.add("org/model", model_dir)
    here, there = desk.json("info", "model"), desk.json("info", "org/model")
    for key in ("parameters", "bytes", "layers", "labels", "licences"):
        assert here[key] == there[key]
    assert not any(path.name == "model.safetensors" for path in desk.home.rglob("*"))


def test_local_data_has_fingerprints(text_data: Path) -> None:
    def description() -> dict[str, Any]:
        request = DataRequest(data=str(text_data))
        return load_data(request, ("train", "validation"), purpose="train").reference

    first = description()
    with (text_data / "de/train.jsonl").open("a") as file:
        file.write('{"text": "mehr", "label": "cold"}\n')
    second = description()
    changed = {name for name in first["files"] if first["files"][name] != second["files"][name]}
    assert changed == {"de/train.jsonl"}
    assert first["fingerprint"] != second["fingerprint"]
