"""Logs of training runs that are damaged: what is good in them is read, and what is not is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdshrink import CurvesConfig, curves
from kdshrink.errors import DataError
from kdshrink.training.log import Point, last_entry, read_curve

GOOD = [{"step": 5, "loss": 2.0, "task": 1.5}, {"step": 10, "loss": 1.0, "metric": "macro_f1"}]
DAMAGED = [
    b'{"step": 6, "lo',
    b"\x00\x00\x00\x00",
    b"\xff\xfe junk",
    b"[1, 2]",
    b'"loss"',
    b"17",
    b"null",
    b'{"loss": 1.0}',
    b'{"step": null, "loss": 1.0}',
    b'{"step": true, "loss": 1.0}',
    b'{"step": -1, "loss": 1.0}',
    b'{"step": 7.5, "loss": 1.0}',
    b'{"step": 1' + b"0" * 30 + b', "loss": 1.0}',
    b'{"step": 1' + b"0" * 5000 + b"}",
    b'{"step": 7, "loss": NaN}',
    b'{"step": 7, "loss": Infinity}',
    b'{"step": 7, "loss": 1' + b"0" * 400 + b"}",
    b'{"step": 7, "loss": "1.0"}',
    b'{"step": 7, "loss": [1.0]}',
    b'{"step": 7, "loss": true}',
    b"[" * 100_000,
]


def write(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train_log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def good_lines() -> list[bytes]:
    return [json.dumps(entry).encode() for entry in GOOD]


@pytest.mark.defect("T22")
@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out_and_counted(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = good_lines()
    folder = write(tmp_path / "run", first, line, b"", second)
    with caplog.at_level(logging.WARNING, "kdshrink"):
        logging.getLogger("kdshrink").addHandler(caplog.handler)
        found = read_curve(folder)
    logging.getLogger("kdshrink").removeHandler(caplog.handler)
    assert found == [Point(5, 2.0), Point(10, 1.0)]
    assert "left out in whole or in part: 1" in caplog.text
    last = last_entry(folder)
    assert (last["step"], last["loss"], last["task"]) == (10, 1.0, 1.5)


@pytest.mark.defect("T22")
def test_a_line_under_way_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "run", *good_lines())
    log = folder / "train_log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": 15, "lo')
    assert len(read_curve(folder)) == 2
    assert caplog.text == ""


@pytest.mark.defect("T22")
def test_a_damaged_figure_leaves_the_others_of_its_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", b'{"step": 7, "loss": NaN, "task": 0.5}')
    assert read_curve(folder, "task") == [Point(7, 0.5)]
    assert last_entry(folder) == {"step": 7, "task": 0.5}


@pytest.mark.defect("T22")
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\n", b'{"step": 1, "loss": NaN}\n'])
def test_a_log_without_a_good_line_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train_log.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="it has no 'loss'") as caught:
        curves(CurvesConfig(directories=(tmp_path,)))
    assert len(str(caught.value).splitlines()) == 2
    assert ("; damaged lines: 1." in str(caught.value)) is (content.strip() != b"")


@pytest.mark.defect("T22")
def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "train_log.jsonl").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="it cannot be read: Is a directory"):
        read_curve(tmp_path / "run")
    assert last_entry(tmp_path / "run") == {}
    for missing in ("nowhere", "file"):
        with pytest.raises(DataError, match=r"there is no train_log\.jsonl here"):
            read_curve(tmp_path / missing)
        assert last_entry(tmp_path / missing) == {}


@pytest.mark.defect("T22")
@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.one_of(st.sampled_from(good_lines()), st.binary(max_size=30))))
def test_any_bytes_are_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = write(tmp_path_factory.mktemp("run"), *lines)
    losses = {entry["step"]: entry["loss"] for entry in GOOD}
    try:
        found = read_curve(folder)
    except DataError:
        assert not any(line in good_lines() for line in lines)
    else:
        assert all(losses[point.step] == point.value for point in found)
        assert len(found) == sum(line in good_lines() for line in lines)
    last_entry(folder)


def test_directories_of_any_name_are_drawn(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, *good_lines()) for name in ("$x^$", "_run", "größe 名")]
    image = tmp_path / "c.svg"
    curves(CurvesConfig(directories=tuple(folders), output_file=image))
    assert image.read_bytes().startswith(b"<?xml")
    assert {path.name for path in tmp_path.iterdir()} == {"$x^$", "_run", "größe 名", "c.svg"}
