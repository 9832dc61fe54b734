"""What PyTorch's `.to()` gives on a CPU, for every pair of element types of tensorbus.

    casts.py golden > test/golden/casts.json    records it, for the checks that run everywhere
    casts.py write FOLDER SEED                  writes FROM.in and FROM.TO.out for a comparison on this machine

Two things differ from torch on purpose (docs/element-types.md), and are put into what it gave: every NaN is the one of
its type, and a float that does not fit an integer saturates, where torch leaves the result to the processor.
"""

import base64
import hashlib
import json
import pathlib
import random
import sys
import zlib

import torch

NAMES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint8", "bool",
]  # fmt: skip
TYPES = {name: getattr(torch, name) for name in NAMES}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NANS = {
    "float64": 0x7FF8000000000000, "float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F,
}  # fmt: skip
WIDE = ["float64", "float32", "int64", "int32"]
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}

inf, nan = float("inf"), float("nan")


def special_reals():
    """Zeros, the ends of every type and what lies around them, halves, subnormals, infinities and NaN."""
    values = [0.0, 0.5, 0.999, 1.0, 1.5, 2.5, 1e-45, 1e-46, 5e-324, 1e300, 1e39, 3.4028234663852886e38, inf, nan]
    for bits in (7, 8, 15, 16, 31, 32, 53, 63, 64):
        values += [2.0**bits - 1, 2.0**bits - 0.5, 2.0**bits, 2.0**bits + 0.5, 2.0**bits + 1]
    for largest in LARGEST.values():
        values += [largest * factor for factor in (1 - 2**-9, 1, 1 + 2**-9, 1 + 2**-5, 1 + 2**-4 + 2**-20, 1.25)]
    for power in (-9, -14, -16, -17, -24, -25, -126, -133, -134, -149, -150):
        values += [2.0**power, 2.0**power * 1.5, 2.0**power * (1 + 2**-20)]
    return values + [-value for value in values]


def special_integers(bits):
    values = [0, 1, 2, 127, 128, 255, 256, 257, 448, 464, 465, 2047, 2048, 2049, 2051, 32767, 32768, 61440, 65504]
    values += [65519, 65520, 65535, 65536, 2**24 + 1, 2**24 + 3, 2**31 - 1, 2**31, 2**53 + 1, 2**53 + 3, 2**62 + 1]
    values += [2**63 - 1, 2**40 + 2**16, 2**40 + 2**16 + 1, 2**55 + 2**31, 2**55 + 2**31 + 1]
    half = 1 << (bits - 1)
    return [(value + half) % (2 * half) - half for value in values + [-value for value in values] + [half]]


def random_reals(source, count):
    """Of every size that some type can hold: random bits alone are nearly all out of range."""
    return [source.choice((-1, 1)) * source.getrandbits(12) * 2.0 ** source.randint(-36, 56) for _ in range(count)]


def wide_input(name, source, count):
    size = TYPES[name].itemsize
    bits = b"".join(source.getrandbits(8 * size).to_bytes(size, "little") for _ in range(count))
    if name.startswith("int"):
        special = b"".join(value.to_bytes(size, "little", signed=True) for value in special_integers(8 * size))
        small = b"".join(source.randint(-70000, 70000).to_bytes(size, "little", signed=True) for _ in range(count))
        return special + small + bits
    reals = torch.tensor(special_reals() + random_reals(source, count), dtype=torch.float64)
    return raw(reals.to(TYPES[name])) + bits


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def input_of(name, source, count):
    """All bit patterns of a type of 8 or 16 bits, else special values and random ones."""
    size = TYPES[name].itemsize
    if name == "bool":
        return bytes([0, 1])
    if size == 1:
        return bytes(range(256))
    if size == 2:
        return b"".join(pattern.to_bytes(2, "little") for pattern in range(65536))
    return wide_input(name, source, count)


def cast(tensor, name):
    result = tensor.to(TYPES[name])
    if name in NANS:
        bits = result.view(INTEGERS[result.element_size()]).clone()
        bits[result.double().isnan()] = NANS[name]
        return bits
    if not tensor.dtype.is_floating_point or name == "bool":
        return result
    limits = torch.iinfo(TYPES[name])
    whole = tensor.double().trunc()
    result = result.clone()
    result[whole.isnan()] = 0
    result[whole < float(limits.min)] = limits.min
    result[whole >= float(limits.max) + (1 if limits.bits < 64 else 0)] = limits.max
    return result


def all_casts(seed, count):
    source = random.Random(seed)
    for name in NAMES:
        data = input_of(name, source, count)
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(TYPES[name])
        yield name, data, {to: raw(cast(tensor, to)) for to in NAMES if to != name}


def packed(data):
    return base64.b64encode(zlib.compress(data, 9)).decode()


def golden():
    recorded = {"torch": torch.__version__, "casts": {}}
    for name, data, outputs in all_casts(seed=1, count=160):
        if name in WIDE:
            entry = {"input": packed(data), "outputs": {to: packed(output) for to, output in outputs.items()}}
        else:
            entry = {"digests": {to: hashlib.sha256(output).hexdigest() for to, output in outputs.items()}}
        recorded["casts"][name] = entry
    json.dump(recorded, sys.stdout, indent=1)
    print()


def write(folder, seed):
    for name, data, outputs in all_casts(seed, count=20_000):
        pathlib.Path(folder, f"{name}.in").write_bytes(data)
        for to, output in outputs.items():
            pathlib.Path(folder, f"{name}.{to}.out").write_bytes(output)


if __name__ == "__main__":
    if sys.argv[1:] == ["golden"]:
        golden()
    elif len(sys.argv) == 4 and sys.argv[1] == "write":
        write(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(__doc__)
