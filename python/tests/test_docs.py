"""What the pages show in Python is Python, calls what there is, and reads what the command line writes."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest

import tensorbus

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "python/README.md",
    "docs/python.md",
    "docs/python-coming-from.md",
    "docs/models.md",
    "examples/vllm/README.md",
]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_calls_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r"\btensorbus\.([A-Za-z_]\w*)\(", text):
        assert hasattr(tensorbus, name), name
    found = blocks(page)
    assert found
    owners = {"tensorbus": tensorbus, "weights": tensorbus.Weights}
    for block in found:
        for call in ast.walk(ast.parse(block.replace(", …", "").replace("…", "..."))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = call.func.value
            if not isinstance(owner, ast.Name) or owner.id not in owners:
                continue
            parameters = inspect.signature(getattr(owners[owner.id], call.func.attr)).parameters
            assert {keyword.arg for keyword in call.keywords} <= set(parameters), ast.unparse(call)


def test_views_as_the_page_on_models_makes_them(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    program = tmp_path / "tensorbus"
    program.write_text(f'#!/bin/sh\nexec node {ROOT / "dist" / "cli.js"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sizes = {"vocab_size": 130, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", **sizes, **heads}))
    command = ["tensorbus", "layout", "--model", str(tmp_path), "--engine", "vllm:tp=4", "--rank", "1", "--json"]
    layout = json.loads(subprocess.check_output(command))
    parameters = {each["name"]: torch.zeros(each["shape"]) for each in layout["params"]}
    (block,) = blocks("docs/models.md")
    seen: list[Any] = []
    names = {"folder": str(tmp_path), "rank": 1, "parameters": parameters, "seen": seen}
    exec(f"{block}        seen.append((box, view))\n", names)
    for box, view in seen:
        assert list(view.shape) == box["hfLen"]
        view += 1
    # Each element that comes from the checkpoint is in one view; what the engine pads is in none.
    zeros = [part for each in layout["params"] for part in each.get("zero", ())]
    assert zeros
    assert max(int(each.max()) for each in parameters.values()) == 1
    padded = sum(math.prod(part["len"]) for part in zeros)
    assert sum(int((each == 0).sum()) for each in parameters.values()) == padded
