"""``python -m tensorbus doctor`` in every bad state: each says what is wrong, and what to do."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import pytest

import tensorbus
from tensorbus import _doctor, _places
from tensorbus.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program(folder: pathlib.Path, text: str) -> str:
    path = folder / "tensorbus"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def told(checks: list[_doctor.Check]) -> str:
    return "\n".join(f"{check.name}: {check.found} -> {check.advice}" for check in checks if not check.ok)


def test_nothing_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBUS_CLI", "/nowhere/tensorbus")
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "nobody-is-here")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "absent  command line" in shown
    assert "TENSORBUS_CLI names /nowhere/tensorbus, which is not there" in shown
    assert "Run `npm ci` in the clone" in shown
    assert "tensorbus agents --side" in shown


def test_a_command_line_that_does_not_work(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBUS_CLI", str(ROOT / "dist" / "cli.js"))
    with monkeypatch.context() as inner:
        inner.setenv("PATH", "/nowhere")
        assert "there is no node on PATH -> Install Node.js 20.19" in told(_doctor._command_line())
    monkeypatch.setenv("TENSORBUS_CLI", program(tmp_path, 'echo "Error: no module x" >&2; echo at y >&2; exit 1'))
    assert "--version ends with exit code 1: Error: no module x -> Node.js 20.19" in told(_doctor._command_line())
    monkeypatch.setenv("TENSORBUS_CLI", program(tmp_path, "echo 0.0.9"))
    shown = told(_doctor._command_line())
    assert f"0.0.9: {tmp_path}/tensorbus -> this package is {tensorbus.__version__}: install the same release" in shown


def test_agents_that_could_not_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is asked what its agents need: it is of this release, and cannot start one all the same."""
    lacks = {"status": "missing", "found": "libtensorbus.so is not built", "advice": "npm run build:native"}
    checks = [
        {"name": "native library", "needed": "transfers", **lacks},
        {"name": "NCCL", "needed": "option", **lacks},
        {"name": "lmdb", "needed": "transfers", "status": "ok", "found": "loads"},
    ]
    answer = json.dumps({"ok": False, "checks": checks})
    text = f"[ $1 = doctor ] || exec echo {tensorbus.__version__}; echo '{answer}'; exit 3"
    monkeypatch.setenv("TENSORBUS_CLI", program(tmp_path, text))
    expected = "native library: libtensorbus.so is not built -> agents do not run: npm run build:native"
    assert told(_doctor._command_line()) == expected
    monkeypatch.setenv("TENSORBUS_CLI", program(tmp_path, f"[ $1 = doctor ] && exit 70; echo {tensorbus.__version__}"))
    assert "doctor --json ends with exit code 70: and says nothing" in told(_doctor._command_line())
    # The names that are read here are those that the real one writes.
    monkeypatch.setenv("TENSORBUS_CLI", str(ROOT / "dist" / "cli.js"))
    assert told(_doctor._command_line()) == ""


def test_a_library_that_does_not_import(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("raise OSError('libgomp.so.1:\\ncannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = _doctor._library("half_installed", "pip install half_installed")
    assert (check.ok, check.found) == (False, "does not import: libgomp.so.1: cannot open")
    assert not _doctor._library("not_installed_at_all", "pip install it").ok


def test_agents_in_other_places(agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    base = os.environ["XDG_RUNTIME_DIR"]
    assert told(_doctor._agents()) == ""
    with monkeypatch.context() as inner:
        inner.setenv("TENSOR_BUS_NAMESPACE", "a b")
        shown = told(_doctor._agents())
        assert f"agents: none in {base}/tensorbus-{os.geteuid()}/a%20b -> " in shown
        assert f"those of ranks 0-3 answer in {base}/tensorbus-{os.geteuid()}/tensorbus -> set TENSOR_BUS_NAM" in shown
        # The client's own error says it too: nobody calls for a doctor first.
        with pytest.raises(ConnectionError) as none:
            tensorbus.TensorBusClient(0, tensorbus.default_paths(0).command_queue_path, None, 0.1)
        assert any("answer in" in note for note in vars(none.value)["__notes__"])
    with monkeypatch.context() as inner:
        inner.setenv("XDG_RUNTIME_DIR", f"{base}/elsewhere")
        inner.setenv("TMPDIR", base)
        assert f"set XDG_RUNTIME_DIR={base} and TENSOR_BUS_NAMESPACE=tensorbus" in told(_doctor._agents())
    with monkeypatch.context() as inner:
        inner.setattr(_doctor, "__version__", "9.0.0")
        shown = told(_doctor._agents())
        assert f"version {tensorbus.__version__}, side trainer -> this package is 9.0.0: install the same" in shown
    # The one that the environment names is looked at, wherever it is.
    with monkeypatch.context() as inner:
        inner.setenv("TENSOR_BUS_NAMESPACE", "a b")
        inner.setenv("TENSOR_BUS_COMMAND_QUEUE_PATH", f"{base}/tensorbus-{os.geteuid()}/tensorbus/rank-2/queue")
        assert [(check.name, check.ok) for check in _doctor._agents()] == [("agent", True)]
        inner.setenv("TENSOR_BUS_CLIENT_SOCKET", f"{base}/nobody.sock")
        assert "no agent answers at" in told(_doctor._agents())


def test_agents_that_have_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for rank in (0, 1, 4):
        queue = pathlib.Path(tensorbus.default_paths(rank).command_queue_path)
        queue.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(queue / "client.sock"))
    assert "in which agents of ranks 0-1, 4 have ended -> " in told(_doctor._agents())


def test_others_are_looked_for_in_bounded_time_and_in_folders_of_their_users(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = tmp_path / f"tensorbus-{os.geteuid()}"
    for number in range(6):
        (own / f"job-{number}" / "rank-0" / "queue").mkdir(parents=True)
        (own / f"job-{number}" / "rank-0" / "queue" / "client.sock").touch()
    asked: list[str] = []
    answering = True
    clock = 0.0

    def connect(path: str, timeout: float) -> socket.socket:
        nonlocal clock
        asked.append(path)
        if answering:
            return socket.socket(socket.AF_UNIX)
        clock += timeout
        raise TimeoutError

    monkeypatch.setattr(_places, "_wire", types.SimpleNamespace(connect=connect))
    monkeypatch.setattr(_places, "time", types.SimpleNamespace(monotonic=lambda: clock))
    found = [line for line, _ in _places.agents_elsewhere() if str(tmp_path) in line]
    assert found == [f"those of ranks 0 answer in {own}/job-{number}" for number in range(4)]
    assert len(asked) == 4
    # Agents that are stopped take no connection: two of a second each are waited for, and no more.
    answering = False
    assert not [line for line, _ in _places.agents_elsewhere() if str(tmp_path) in line]
    assert (len(asked), clock) == (6, 2.0)
    # Nor is one asked in the folder that another user has made under this one's number.
    answering, clock = True, 0.0
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    own.rename(tmp_path / "tensorbus-4242")
    assert not [line for line, _ in _places.agents_elsewhere() if str(tmp_path) in line]
    assert len(asked) == 6


_AS_ANOTHER = """
import os
from tensorbus import _doctor
os.setuid(4242)
print(*(f"{check.found} -> {check.advice}" for check in _doctor._agents()), sep="\\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_agents_of_another_user(agents: tensorbus.Agents) -> None:
    base = pathlib.Path(os.environ["XDG_RUNTIME_DIR"])
    before = base.stat().st_mode
    base.chmod(0o755)
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
        queue = tensorbus.default_paths(0).command_queue_path
        shown = [
            subprocess.run(
                [sys.executable, "-c", _AS_ANOTHER], env=each, capture_output=True, text=True, timeout=60, check=True
            ).stdout
            for each in (environment, {**environment, "TENSOR_BUS_COMMAND_QUEUE_PATH": queue})
        ]
    finally:
        base.chmod(before)
    assert f"{base}/tensorbus-0 is that of user 0 -> run as that user, or have its agents started with --cl" in shown[0]
    assert shown[1].startswith(f"{queue}/client.sock is another user's -> run as its user, or have the agent started")
