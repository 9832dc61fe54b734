"""Memory of GPUs, on the double of the CUDA driver: handles, events, and a round between two processes' agents."""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

import tensorbus

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "native" / "build" / "doubles" / "libcuda.so"
KERNELS = ROOT / "native" / "build" / "doubles" / "kernels.ptx"
DEVICE = "GPU-63756461-2d64-6f75-626c-652d64657630"

pytestmark = pytest.mark.skipif(not DOUBLE.exists(), reason="the double of libcuda is not built (npm run build:native)")

# An array as other libraries than torch hand theirs out, on memory of the double. Everything else is the product's own.
_ARRAY = """
import ctypes, os, sys
import numpy as np
import tensorbus
from tensorbus import _cuda

cuda = _cuda.driver()
library = ctypes.CDLL(os.environ["TENSOR_BUS_LIBCUDA"])
context = ctypes.c_void_p()
cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
cuda.call("cuCtxSetCurrent", context)


def allocate(bytes, function="cuMemAlloc_v2"):
    pointer = ctypes.c_uint64()
    assert getattr(library, function)(ctypes.byref(pointer), ctypes.c_size_t(bytes)) == 0
    return pointer.value


def put(address, array):
    data = array.tobytes()
    assert library.cuMemcpyHtoD_v2(ctypes.c_uint64(address), data, ctypes.c_size_t(len(data))) == 0


def take(address, count):
    array = np.zeros(count, np.float32)
    to, size = array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(4 * count)
    assert library.cuMemcpyDtoH_v2(to, ctypes.c_uint64(address), size) == 0
    return array


class Array:
    def __init__(self, address, shape, strides=None, typestr="<f4"):
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": typestr, "data": (address, False), "version": 3
        }
"""

_HANDLES = """
base = allocate(4096)
known = {}
first, second = _cuda.find_allocation(base + 64, known), _cuda.find_allocation(base + 1024, known)
assert first is second and (first.address, first.size) == (base, 4096), first
assert first.device == sys.argv[1], first.device
assert len(first.handle) == 64 and first.message["kind"] == "cuda"
before = ctypes.c_void_p()
cuda.call("cuCtxGetCurrent", ctypes.byref(before))
assert before.value == context.value
pair = _cuda.EventPair(0)
assert {len(handle) for handle in pair.message.values()} == {64} and pair.message["ready"] != pair.message["free"]
pair.record_ready(0)
pair.wait_free(0)
del pair
try:
    _cuda.find_allocation(allocate(4096, "cuda_double_allocate_expandable"), known)
    raise SystemExit("memory without a handle was taken")
except tensorbus.TensorBusError as error:
    assert error.code == "TB_UNSUPPORTED", error
    assert any("expandable_segments:False" in note and "TENSORBUS_CUDA=copy" in note for note in error.__notes__)
try:
    _cuda.find_allocation(4096, known)
    raise SystemExit("an address of nothing was taken")
except tensorbus.TensorBusError as error:
    assert error.code == "TB_CUDA" and "CUDA_ERROR_INVALID_VALUE" in str(error), error
"""

_ROUND = """
rank = int(sys.argv[1])
role = "source" if rank == 0 else "target"
base = allocate(4096)
# A matrix that lies transposed in the middle of an allocation, and a row behind it.
matrix = Array(base + 256, (3, 4), (4, 12))
row = Array(base + 1024, (5,))
put(base, np.zeros(1024, np.float32))
if role == "source":
    put(base + 256, np.arange(12, dtype=np.float32))
    put(base + 1024, np.arange(5, dtype=np.float32) + 100)
paths = tensorbus.default_paths(rank)
client = tensorbus.TensorBusClient(rank, paths.command_queue_path, paths.agent_state_path, 20)
weights = tensorbus.Weights("gpu", {"m": matrix, "r": row}, role=role, client=client, rank=0, world_size=1, timeout=30)
assert weights.copied_bytes == 0
for step in (1, 2):
    if role == "source":
        weights.send(version=step, timeout=30)
        put(base + 1024, np.arange(5, dtype=np.float32) + 200)
    else:
        assert weights.recv(timeout=30) == step
        assert take(base + 256, 12).tolist() == list(range(12))
        assert take(base + 1024, 5).tolist() == [100 * step + at for at in range(5)]
# If the allocation moves, what was registered is not the caller's any more.
matrix.__cuda_array_interface__ = {**matrix.__cuda_array_interface__, "data": (base + 512, False)}
try:
    weights.send(timeout=1) if role == "source" else weights.recv(timeout=1)
    raise SystemExit("a tensor that lies elsewhere was taken")
except tensorbus.TensorBusError as error:
    assert error.code == "TB_REGION" and "lies elsewhere on the GPU" in str(error), error
weights.close()
client.close()
print("received" if role == "target" else "sent")
"""

# What becomes of events and memory when rounds fail. The driver's calls are noted; the agents' GPUs are slow.
_FAILURES = """
import gc, signal, time
from tensorbus import _link

rank = int(sys.argv[1])
calls = []


def note(name):
    real = cuda._functions[name]

    def noted(*arguments):
        calls.append((name, last is None or last.is_released))
        return real(*arguments)

    cuda._functions[name] = noted


last = None
note("cuEventDestroy_v2")
note("cuStreamWaitEvent")
waits = lambda: sum(name == "cuStreamWaitEvent" for name, _ in calls)
base = allocate(4096)
put(base, np.zeros(1024, np.float32))
paths = tensorbus.default_paths(rank)
client = tensorbus.TensorBusClient(rank, paths.command_queue_path, paths.agent_state_path, 20)
role = "source" if rank == 0 else "target"
weights = tensorbus.Weights(
    "gpu", {"w": Array(base, (1024,))}, role=role, client=client, rank=0, world_size=1, timeout=30
)
# The batch of another client, which gives its round up.
other = tensorbus.TensorBusClient(rank, paths.command_queue_path, paths.agent_state_path, 20)
given_up = tensorbus.Weights(
    "given up", {"w": Array(base, (1024,))}, role=role, client=other, rank=0, world_size=1, timeout=30
)
if role == "target":
    input()
    try:
        print("got", weights.recv(timeout=60))
    except tensorbus.TensorBusError as error:
        print(error.code)
    weights.close()
    client.close()
    raise SystemExit
try:
    weights.send(timeout=0.2)
    raise SystemExit("there was a target")
except TimeoutError:
    # What comes into the stream after a round that failed comes after it all the same.
    assert waits() == 1, calls
# An agent that does not answer may still touch the memory: it is held as long as that is so.
pid = client.agent["pid"]
semaphore = weights.send(timeout=0.5, wait=False)
os.kill(pid, signal.SIGSTOP)
try:
    semaphore.acquire()
    raise SystemExit("a stopped agent has answered")
except tensorbus.TensorBusError as error:
    assert error.code == "TB_AGENT_UNRESPONSIVE", error
assert semaphore._call.memory is not None
os.kill(pid, signal.SIGCONT)
end = time.monotonic() + 30
while semaphore._call.memory is not None and time.monotonic() < end:
    semaphore._link.look()
    time.sleep(0.01)
assert semaphore._call.memory is None
# A call that was given up, of a round that its agent has for a minute yet: a client that closes ends it.
semaphore = given_up.send(timeout=60, wait=False)
link = semaphore._link
link._give_up(semaphore._call, link._unresponsive(semaphore._call))
assert not semaphore._call.is_released
other.close()
assert _link._never_quiet == []
assert semaphore._call.is_released
del given_up, other, semaphore, link
gc.collect()
calls.clear()
# A round that moves, when its client closes: the events go when the agent has let go of them.
print("moving", flush=True)
semaphore = weights.send(timeout=60, wait=False)
registration = weights._open._registration
while (client._query(registration, 30).get("progress") or {}).get("round") is None and not semaphore.done():
    time.sleep(0.001)
assert not semaphore.done()
last = semaphore._call
weights.close()
client.close()
del weights, registration, semaphore
gc.collect()
destroyed = [released for name, released in calls if name == "cuEventDestroy_v2"]
assert destroyed == [True, True], calls
assert _link._never_quiet == []
print("closed")
"""


def _environment(**more: str) -> dict[str, str]:
    kernels = ROOT / "dist" / "cuda" / "kernels.ptx"
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "python" / "src"),
        "TENSOR_BUS_LIBCUDA": str(DOUBLE),
        "TENSOR_BUS_CUDA_KERNELS": str(kernels if kernels.exists() else KERNELS),
        **more,
    }


def test_handles_and_events_of_the_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ARRAY + _HANDLES, DEVICE],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_round_between_two_processes() -> None:
    namespace = "cuda"
    flags = ["--log", "error", "--device", DEVICE, "--transport", "cuda-ipc"]
    with tensorbus.start_agents(2, namespace=namespace, flags=flags, env=_environment()) as started:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _ARRAY + _ROUND, str(rank)],
                env=_environment(TENSOR_BUS_NAMESPACE=namespace),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        told = [process.communicate(timeout=90) for process in processes]
        assert [out.strip() for out, _ in told] == ["sent", "received"], (told, started.log)


def test_events_and_memory_of_rounds_that_fail() -> None:
    namespace = "cuda-failures"
    flags = ["--log", "error", "--device", DEVICE, "--transport", "cuda-ipc"]
    slow = _environment(CUDA_DOUBLE_DELAY_US="300000")
    with tensorbus.start_agents(2, namespace=namespace, flags=flags, env=slow) as started:
        source, target = (
            subprocess.Popen(
                [sys.executable, "-c", _ARRAY + _FAILURES, str(rank)],
                env=_environment(TENSOR_BUS_NAMESPACE=namespace),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        )
        assert source.stdout is not None
        said = source.stdout.readline()
        told = target.communicate("\n", timeout=90), source.communicate(timeout=90)
        assert said == "moving\n", (told, started.log)
        assert told[1][0] == "closed\n", (told, started.log)
        assert told[0][0].strip() in ("TB_CANCELLED", "TB_CLOSED", "TB_PEER_LOST", "TB_INVALIDATED"), told


def test_without_a_driver_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorbus import _cuda

    monkeypatch.setenv("TENSOR_BUS_LIBCUDA", "/nowhere/libcuda.so")
    with pytest.raises(tensorbus.TensorBusError, match=r"the CUDA driver /nowhere/libcuda.so cannot be used"):
        _cuda.Driver()
    monkeypatch.setenv("TENSORBUS_CUDA", "copy")
    assert not _cuda.takes_handles()
    assert ctypes.sizeof(_cuda._Handle) == 64
