"""What can go wrong on the way to the Hub and back: each fault told clearly, nothing lost, and a retry.

Each case pushes (or fetches) while the stand-in has a fault, looks at what was said, and then does what
the message says. Faults that the client itself tries again for half a minute are marked slow; they run
at the same time.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ..helpers import hub_data
from ..helpers.hub import WRITER, Desk, Fault, Hub, content

_RETRY = {"Retry-After": "1"}


@dataclass(frozen=True)
class Case:
    """A fault, and what is said of it."""

    name: str
    fault: Fault | None
    says: str
    environment: dict[str, str] = field(default_factory=dict)


def case(name: str, says: str, request: str, kind: str = "status", **details: object) -> Case:
    environment = details.pop("environment", {})
    return Case(name, Fault(request, kind, **details), says, environment)  # type: ignore[arg-type]


SHORT = {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
PUSHES = [
    case("401 on who I am", "401, it does not accept this token", "whoami", status=401),
    case("500 on who I am", "500, a fault on its side", "whoami", status=500),
    case("403 on create", "403, forbidden", "repos/create", status=403),
    case("503 on create", "503, a fault on its side", "repos/create", status=503),
    case("create answers no JSON", "JSON", "repos/create", "garbage"),
    case("404 on the check", "404, not found, or hidden", "auth-check", status=404),
    case(
        "429 for an hour on preupload",
        "429, too many requests; it asks to wait 3600 s",
        "preupload",
        status=429,
        headers={"Retry-After": "3600"},
    ),
    case("401 on preupload", "401, it does not accept", "preupload", status=401),
    case("413 on the list of large files", "413, too large", "objects/batch", status=413),
    case("403 on the storage", "403, forbidden", "PUT /lfs", status=403),
    case("404 on the check of the storage", "404, not found", "lfs-verify", status=404),
    case("409 on commit", "409, a conflict", "/commit/", status=409),
    case("412 on commit", "412, refused", "/commit/", status=412),
    case("504 on commit", "504, a fault on its side", "/commit/", status=504),
    case(
        "429 on commit", "429, too many requests; it asks", "/commit/", status=429, headers=_RETRY
    ),
    case("the commit's connection ends halfway", "no connection", "/commit/", "drop"),
    case("the commit's answer is no JSON", "JSON", "/commit/", "garbage"),
    case("the commit falls silent", "no answer", "/commit/", "stall", environment=SHORT),
    case("the check of the card falls silent", "no answer", "validate", "stall", environment=SHORT),
    Case("no network", None, "no connection", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    Case("no network by choice", None, "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
]
# These the client tries six times before it gives up.
PATIENT_PUSHES = [
    case("500 on preupload", "500, a fault on its side", "preupload", status=500),
    case("429 on preupload", "429, too many requests", "preupload", status=429, headers=_RETRY),
    case("502 on the list of large files", "502, a fault", "objects/batch", status=502),
    case("503 on the storage", "503, a fault on its side", "PUT /lfs", status=503),
    case("the storage's connection ends halfway", "no connection", "PUT /lfs", "drop"),
    case("the storage falls silent", "no answer", "PUT /lfs", "stall", environment=SHORT),
    case("preupload's answer ends halfway", "no connection", "preupload", "drop"),
]


def push_through(desk: Desk, case: Case, kdshrink: Callable[..., Any]) -> None:
    """Push with the fault, check what was said, lift the fault, and do what was said."""
    hub, directory = desk.hub, desk.folder / "model"
    before = content(directory)
    hub.faults = [case.fault] if case.fault else []
    failed = kdshrink("push", "model", "--hub-model-id", "org/model", **case.environment)
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout == ""
    assert "Traceback" not in failed.stderr
    message = failed.stderr[failed.stderr.index("error: ") :]
    assert case.says in message
    assert len(message.splitlines()) == 3
    assert WRITER not in failed.stderr
    assert "model is complete. Push it again with:" in message
    assert content(directory) == before
    if ("models", "org/model") in hub.repos:
        assert set(hub.files("org/model")) in ({".gitattributes"}, {".gitattributes", *before})

    hub.faults = []
    stored, done_before = set(hub.objects), len(hub.requests)
    again = kdshrink(*shlex.split(message.splitlines()[-1])[1:])
    assert again.returncode == 0, again.stderr
    pushed = hub.files("org/model")
    assert {name: data for name, data in pushed.items() if name in before} == before
    for request in hub.requests[done_before:]:
        if request.method == "PUT":
            assert request.path.rpartition("/")[2] not in stored, "it was there already"


@pytest.mark.parametrize("case", PUSHES, ids=lambda case: case.name)
def test_a_push_that_fails(case: Case, hub: Hub, tmp_path: Path, model_dir: Path) -> None:
    desk = Desk(hub, tmp_path)
    push_through(desk, case, desk)


@pytest.fixture(scope="module")
def patient(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    massive_teacher: Path,
) -> Iterator[dict[str, Future[None]]]:
    """The patient cases, all at once, each with a Hub and a process of its own."""

    def run(case: Case) -> None:
        folder = tmp_path_factory.mktemp("patient")
        (folder / "model").mkdir()
        for name, data in content(massive_teacher).items():
            (folder / "model" / name).write_bytes(data)
        with Hub() as own:
            desk = Desk(own, folder)
            push_through(desk, case, partial(desk.python, "-m", "kdshrink"))

    wanted = {
        item.callspec.params["case"].name
        for item in request.session.items
        if hasattr(item, "callspec") and "patient" in getattr(item, "fixturenames", ())
    }
    with ThreadPoolExecutor(len(PATIENT_PUSHES)) as pool:
        yield {c.name: pool.submit(run, c) for c in PATIENT_PUSHES if c.name in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("case", PATIENT_PUSHES, ids=lambda case: case.name)
def test_a_push_that_fails_though_tried_again(case: Case, patient: dict[str, Future[None]]) -> None:
    patient[case.name].result()


PASSING = [
    case("503 once", "503", "PUT /lfs", status=503, times=1),
    case("429 once", "asks to wait 1 s", "preupload", status=429, headers=_RETRY, times=1),
    case("cut once", "", "PUT /lfs", "drop", times=1),
    case("silent for two seconds", "", "/commit/", "stall", seconds=2, times=1),
    case("silent once", "", "PUT /lfs", "stall", times=1, environment=SHORT),
]


@pytest.mark.parametrize("case", PASSING, ids=lambda case: case.name)
def test_a_fault_that_passes_is_got_over(
    case: Case,
    hub: Hub,
    tmp_path: Path,
    model_dir: Path,
) -> None:
    hub.faults = [case.fault] if case.fault else []
    done = Desk(hub, tmp_path)("push", "model", "--hub-model-id", "org/model", **case.environment)
    assert done.returncode == 0, done.stderr
    assert case.says in done.stderr
    assert content(model_dir).items() <= hub.files("org/model").items()


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["PUT /lfs", "/commit/"])
def test_a_silence_of_30_seconds_is_waited_out(
    request_: str,
    hub: Hub,
    tmp_path: Path,
    model_dir: Path,
) -> None:
    hub.faults = [Fault(request_, "stall", seconds=30, times=1)]
    done = Desk(hub, tmp_path)("push", "model", "--hub-model-id", "org/model")
    assert done.returncode == 0, done.stderr
    assert content(model_dir).items() <= hub.files("org/model").items()


# --- on the way back

WEIGHTS = "GET /org/model/resolve/.*safetensors"
FETCHES = [
    case(
        "another ETag than the content has",
        "was damaged on the way",
        "resolve/.*safetensors",
        "etag",
    ),
    case("fewer bytes than the listing tells", "model.safetensors", WEIGHTS, "short"),
    case("500 on the weights", "500, a fault on its side", WEIGHTS, status=500),
    Case("no network", None, "no connection", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
]
MORE_FETCHES = [
    case("401 on the model's page", "401, it does not accept this token", "GET /api", status=401),
    case("403 on the model's page", "403, forbidden", "GET /api/models", status=403),
    case("503 on the model's page", "503, a fault on its side", "GET /api/models", status=503),
    case("the page is no JSON", "JSON", "GET /api/models", "garbage"),
    case("the page falls silent", "no answer", "GET /api/", "stall", environment=SHORT),
    case("403 on the weights", "403, forbidden", WEIGHTS, status=403),
    case("the weights end halfway, always", "no connection", WEIGHTS, "drop"),
]


@pytest.mark.parametrize(
    "case",
    [*FETCHES, *(pytest.param(c, marks=pytest.mark.slow) for c in MORE_FETCHES)],
    ids=lambda case: case.name,
)
def test_a_model_that_does_not_come(case: Case, hub: Hub, tmp_path: Path, model_dir: Path) -> None:
    hub.add("org/model", model_dir)
    hub.faults = [case.fault] if case.fault else []
    desk = Desk(hub, tmp_path)
    typed = ("shrink", "org/model", "--layers", "2", "-o", "out")
    failed = desk(*typed, **case.environment)
    assert failed.returncode == 1, failed.stderr
    message = failed.stderr[failed.stderr.index("error: ") :]
    assert case.says in message
    assert "Traceback" not in failed.stderr
    assert len(message.splitlines()) <= 3
    assert not (tmp_path / "out").exists()

    hub.faults = []
    done = desk(*typed)
    assert done.returncode == 0, done.stderr
    (weights,) = {path.resolve() for path in desk.home.rglob("model.safetensors")}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", weights.name)


def test_weights_that_end_halfway_once_are_gone_on_with(
    hub: Hub,
    tmp_path: Path,
    model_dir: Path,
) -> None:
    hub.add("org/model", model_dir)
    hub.faults = [Fault(WEIGHTS, "drop", times=1)]
    done = Desk(hub, tmp_path)("shrink", "org/model", "--layers", "2", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/config.json").exists()


DATA = [
    case(
        "503 on the data's page", "503, a fault on its side", "api/datasets/.*revision", status=503
    ),
    case(
        "401 on the data's page", "401, it does not accept", "api/datasets/.*revision", status=401
    ),
    case("403 on a file", "403, forbidden", "GET /datasets/.*parquet", status=403),
    case("a file that ends halfway, always", "no connection", "GET /datasets/.*parquet", "drop"),
    case("the page falls silent", "no answer", "api/datasets/", "stall", environment=SHORT),
    Case("no network", None, "no connection", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    Case("no network by choice", None, "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", DATA, ids=lambda case: case.name)
def test_data_that_does_not_come(case: Case, hub: Hub, tmp_path: Path, model_dir: Path) -> None:
    hub.add(
        "AmazonScience/massive",
        hub_data.write_massive(tmp_path / "source", ("de-DE",)),
        kind="datasets",
        ref="refs/convert/parquet",
    )
    hub.faults = [case.fault] if case.fault else []
    desk = Desk(hub, tmp_path)
    typed = ("eval", "model", "--data", "massive", "--languages", "de", "--json")
    failed = desk(*typed, **case.environment)
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout == ""
    assert "Traceback" not in failed.stderr
    message = failed.stderr[failed.stderr.index("error: ") :]
    assert case.says in message
    assert len(message.splitlines()) <= 3
    hub.faults = []
    assert desk.json(*typed)["examples"] == 6
