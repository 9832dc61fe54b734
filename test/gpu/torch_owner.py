"""A PyTorch process that owns a tensor on the GPU: as owner.ts, the tensor compared and the events made in PyTorch."""
import ctypes
import json
import sys

import torch

bytes_wanted = int(sys.argv[2])
tensor = torch.zeros(bytes_wanted, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
driver = ctypes.CDLL("libcuda.so.1")
base, size = ctypes.c_uint64(), ctypes.c_size_t()
result = driver.cuMemGetAddressRange_v2(
    ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(tensor.data_ptr())
)
assert result == 0, f"cuMemGetAddressRange: {result}"
handle = (ctypes.c_ubyte * 64)()
result = driver.cuIpcGetMemHandle(ctypes.byref(handle), base)
assert result == 0, f"cuIpcGetMemHandle: {result} (expandable segments have no such handle)"
events = {name: torch.cuda.Event(interprocess=True) for name in ("ready", "free")}
uuid = str(torch.cuda.get_device_properties(0).uuid)
print(
    json.dumps(
        {
            "handle": bytes(handle).hex(),
            "offset": tensor.data_ptr() - base.value,
            **{name: event.ipc_handle().hex() for name, event in events.items()},
            "uuid": uuid if uuid.startswith("GPU-") else f"GPU-{uuid}",
        }
    ),
    flush=True,
)
for line in sys.stdin:
    verb, _, name = line.strip().partition(" ")
    if verb == "record":
        # Something for the stream to do first.
        torch.ones(2048, 2048, device="cuda:0").matmul(torch.ones(2048, 2048, device="cuda:0"))
        events[name].record()
        print(json.dumps({"recorded": name}), flush=True)
        continue
    if verb == "wait":
        events[name].synchronize()
        print(json.dumps({"happened": name}), flush=True)
        continue
    torch.cuda.synchronize()
    print(json.dumps({"filled": bool((tensor == int(line)).all().item())}), flush=True)
