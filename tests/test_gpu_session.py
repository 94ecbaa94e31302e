# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/gpu_session.py`: parts run in order, what is done is not repeated, and what is stopped goes on."""

import json
import sys

import pytest

import gpu_session
from gpu_session import PARTS, Part
from helpers import run_script


@pytest.fixture
def session(tmp_path, monkeypatch, capsys):
    """A session of small programs, which write when they ran."""
    (tmp_path / "work.py").write_text(
        "import sys, time, pathlib\n"
        "pathlib.Path(sys.argv[2]).open('a').write(sys.argv[1] + '\\n')\n"
        "time.sleep(float(sys.argv[3])); sys.exit(int(sys.argv[4]))\n"
    )
    monkeypatch.setattr(gpu_session, "SCRIPTS", tmp_path)
    monkeypatch.setattr(gpu_session.torch.cuda, "is_available", lambda: True)

    def run(*parts, minutes="1"):
        monkeypatch.setattr(gpu_session, "PARTS", parts)
        monkeypatch.setattr(
            sys, "argv", ["gpu_session.py", "--output_dir", str(tmp_path / "out"), "--minutes", minutes]
        )
        gpu_session.main()
        ran = (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []
        return ran, json.loads((tmp_path / "out" / "session.json").read_text())

    return run


def part(name, folder, seconds=0, status=0, least=0.0):
    return Part(name, least, f"work.py {name} {folder / 'log'} {seconds} {status}", None)


def test_what_is_done_is_not_repeated_and_what_failed_is(session, tmp_path):
    parts = part("one", tmp_path), part("two", tmp_path, status=75), part("three", tmp_path)
    assert session(*parts) == (["one", "two", "three"], {"one": True, "three": True, "two": False})
    ran, state = session(parts[0], part("two", tmp_path), parts[2])
    assert ran == ["one", "two", "three", "two"] and all(state.values())


def test_a_part_that_is_at_work_when_time_is_over_is_stopped(session, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "LEAST_SECONDS", 1)
    parts = part("slow", tmp_path, seconds=600), part("long", tmp_path, least=1)
    ran, state = session(*parts, minutes="0.02")
    assert ran == ["slow"] and state == {"slow": False}


def test_it_needs_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_session.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs a GPU, and torch sees none"):
        gpu_session.main()


@pytest.mark.slow  # a minute: every program with an import of everything
def test_every_command_at_a_tiny_size(monkeypatch, tmp_path, capfd):
    run_script(monkeypatch, "gpu_session.py", "--output_dir", tmp_path, "--tiny")
    state = json.loads((tmp_path / "session.json").read_text())
    assert state == {part.name: True for part in PARTS if part.tiny is not None}, capfd.readouterr().out
