"""The tensors that transformers saves for small configs, asked for one JSON line each.

A line {"config": …, "architecture": …} is answered by {"checkpoint": {name: [type, shape]}, "state_dict": …}: what
save_pretrained writes with and without save_original_format. Names of types are those of safetensors.
"""

import json
import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers


def saved(model, original):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_original_format=original)
        tensors = {}
        for name in sorted(os.listdir(folder)):
            if not name.endswith(".safetensors"):
                continue
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            tensors.update((key, [value["dtype"], value["shape"]]) for key, value in header.items())
        return tensors


for line in sys.stdin:
    question = json.loads(line)
    config = transformers.CONFIG_MAPPING[question["config"]["model_type"]].from_dict(question["config"])
    model = getattr(transformers, question["architecture"])._from_config(config, dtype=torch.bfloat16)
    answer = {"checkpoint": saved(model, True), "state_dict": saved(model, False)}
    print(json.dumps(answer), flush=True)
