"""The real TCPStore of an installed torch, as a server and as a client, for the tests of the stores.

  python tcpstore.py probe                  prints torch's version
  python tcpstore.py serve                  serves a store, prints its port, and ends with its standard input, whose lines are

      client PORT      does every operation against PORT and prints what came of each, as JSON lines
      meet PORT        takes part in the exchange with another client that the tests describe

  and are each answered by lines of which the last is "end": importing torch takes seconds, so it is done once.
"""

import json
import sys
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, TCPStore


def serve():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=True)
    assert store.libuvBackend
    print(store.port, flush=True)
    for line in sys.stdin:
        mode, port = line.split()
        {"client": client, "meet": meet}[mode](int(port))
        print("end", flush=True)


def connect(port, seconds=30):
    return TCPStore(
        "127.0.0.1", port, is_master=False, wait_for_workers=False, use_libuv=True, timeout=timedelta(seconds=seconds)
    )


def plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def client(port):
    store = connect(port)
    short = timedelta(milliseconds=50)
    all_bytes = bytes(range(256))
    steps = [
        ("set", lambda: store.set("key", "value")),
        ("get", lambda: store.get("key")),
        ("set bytes", lambda: store.set("bytes", all_bytes)),
        ("get bytes", lambda: store.get("bytes")),
        ("compare_set absent, expecting a value", lambda: store.compare_set("cas", "old", "new")),
        ("check absent", lambda: store.check(["cas"])),
        ("compare_set absent", lambda: store.compare_set("cas", "", "first")),
        ("compare_set other", lambda: store.compare_set("cas", "other", "second")),
        ("compare_set", lambda: store.compare_set("cas", "first", "second")),
        ("add", lambda: store.add("counter", 5)),
        ("add negative", lambda: store.add("counter", -12)),
        ("get counter", lambda: store.get("counter")),
        ("check", lambda: store.check(["key", "counter"])),
        ("check some", lambda: store.check(["key", "absent"])),
        ("wait", lambda: store.wait(["key", "counter"])),
        ("wait in vain", lambda: store.wait(["key", "absent"], short)),
        ("num_keys", lambda: store.num_keys()),
        ("append", lambda: store.append("key", "-more")),
        ("append absent", lambda: store.append("appended", "x")),
        ("get appended", lambda: store.get("key")),
        ("multi_set", lambda: store.multi_set(["m1", "m2", "m3"], ["1", "22", "333"])),
        ("multi_get", lambda: store.multi_get(["m3", "m1", "m2"])),
        ("queue_len of none", lambda: store.queue_len("queue")),
        ("queue_pop of none", lambda: store.queue_pop("queue", False)),
        ("queue_push", lambda: store.queue_push("queue", "one")),
        ("queue_push again", lambda: store.queue_push("queue", "two")),
        ("queue_len", lambda: store.queue_len("queue")),
        ("queue_pop", lambda: store.queue_pop("queue")),
        ("check a queue", lambda: store.check(["queue"])),
        ("delete a queue", lambda: store.delete_key("queue")),
        ("queue_pop the last", lambda: store.queue_pop("queue", False)),
        ("barrier of one", lambda: store.barrier("barrier", 1)),
        ("barrier in vain", lambda: store.barrier("barrier", 3, short)),
        ("barrier of three, third", lambda: store.barrier("barrier", 3)),
        ("get barrier", lambda: store.get("barrier")),
        *((f"delete_key {key}", lambda key=key: store.delete_key(key))
          for key in ("bytes", "cas", "counter", "appended", "m1", "m2", "m3", "barrier", "absent")),
        ("list_keys", lambda: store.list_keys()),
        ("prefixed", lambda: PrefixStore("space", store).set("key", "prefixed")),
        ("get prefixed", lambda: store.get("space/key")),
    ]
    for name, step in steps:
        try:
            result = plain(step())
        except Exception as error:  # noqa: BLE001: the kind of failure is the result
            result = {"error": type(error).__name__}
        print(json.dumps([name, result]), flush=True)


def meet(port):
    """Both clients work on the same keys: what one writes the other reads, and each wakes the other."""
    store = connect(port)
    space = PrefixStore("tensorbus", store)
    space.wait(["from-tensorbus"])
    seen = [plain(space.get("from-tensorbus")), space.add("counter", 40), plain(space.compare_set("cas", "mine", "theirs"))]
    space.set("from-torch", json.dumps(seen))
    space.wait(["all-done"])
    print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        print(torch.__version__)
    else:
        serve()
