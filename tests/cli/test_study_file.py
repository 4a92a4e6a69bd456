"""Studies from YAML: paths, overrides, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError
from cli.study_file import load_study, parse_assignment, set_value


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_paths_are_found_from_here_and_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    study = write(
        tmp_path / "elsewhere",
        "model: {source: model}\ntext: {kind: file, path: a.txt}\n"
        "evaluation: {datasets: [{kind: file, path: b.txt}, {kind: stdlib}]}\n",
    )
    (tmp_path / "elsewhere" / "a.txt").touch()
    monkeypatch.chdir(tmp_path / "here")
    config = load_study(study)
    assert config["model"]["source"] == str(tmp_path / "here" / "model")
    assert config["text"]["path"] == str(tmp_path / "elsewhere" / "a.txt")
    # found nowhere: it may be the server's
    assert config["evaluation"]["datasets"] == [{"kind": "file", "path": "b.txt"}, {"kind": "stdlib"}]


def test_a_hub_id_needs_its_commit(tmp_path: Path) -> None:
    study = write(tmp_path, "model: {source: Qwen/Qwen2-1.5B}")
    with pytest.raises(CliError, match="needs the commit") as caught:
        load_study(study)
    assert "--set model.revision=" in str(caught.value.cure)
    assert load_study(study, ["model.revision='" + "0" * 40 + "'"])["model"]["revision"] == "0" * 40


def test_overrides_reach_into_the_study(tmp_path: Path) -> None:
    study = write(tmp_path, "model: {source: ./m}\ngrid: {b_q: [2]}")
    config = load_study(study, ["grid.b_q=[2, 3]", "evaluation.windows=8"])
    assert config["grid"]["b_q"] == [2, 3]
    assert config["evaluation"] == {"windows": 8}


@pytest.mark.parametrize(
    ("text", "says"), [("[1, 2]", "holds no study"), ("a: [", "is not valid YAML"), ("", "holds no study")]
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CliError, match=says):
        load_study(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"cannot read .*nowhere\.yaml"):
        load_study(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [("a=1", "a", 1), ("a.b=[1, 2]", "a.b", [1, 2]), ("a=", "a", None), ("a=x=y", "a", "x=y"), ("a=true", "a", True)],
)
def test_values_are_yaml(text: str, key: str, value: Any) -> None:
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a=["])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(CliError):
        parse_assignment(text)


def test_a_path_through_a_number_is_refused() -> None:
    with pytest.raises(CliError, match=r"cannot set a\.b"):
        set_value({"a": 1}, "a.b", 2)


@pytest.mark.parametrize("text", ["name: 2020-99-99", "a: !!bool maybe", "a: !!int x", "[" * 20_000])
def test_yaml_that_breaks_its_reader_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(CliError, match="not valid YAML"):
        load_study(write(tmp_path, text))


def test_a_value_that_breaks_the_reader_is_named() -> None:
    with pytest.raises(CliError, match="is not valid YAML"):
        parse_assignment("name=2020-99-99")


def test_a_repeated_key_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: one\nmodel: {source: x}\nname: two\n", encoding="utf-8")
    with pytest.raises(CliError, match=r"'name' appears twice \(line 3\)"):
        load_study(path)
