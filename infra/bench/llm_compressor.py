"""int4 by llm-compressor, the peer of our GPTQ: the same model, windows, bits and group.

llm-compressor wants versions of its own of what other parts use. `quantize_in` writes the windows
to a file and runs this file as a program in an environment that has it (`make bench-peers`).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Weights that share a scale. The library's preset has 128, which does not divide 576.
GROUP = 64

_TIMEOUT_S = 3600


def quantize_in(python: Path, model: Path, windows: "Tensor", folder: Path) -> Path:
    """Have that Python's llm-compressor quantize the model to 4 bits; return the folder, made once.

    Args:
        windows: token ids to calibrate on, int64 `[n, length]`.

    Raises:
        EngineFailure: the library is not there, or fails.
    """
    from turnmill.schemas.errors import EngineFailure
    from turnmill.schemas.process.dependent import run_dependent

    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = folder.with_name(f"{folder.name}-windows.json")
        data.write_text(json.dumps(windows.tolist()), encoding="utf-8")
        # By its path: the environment has no Turnmill.
        command = [str(python), __file__, str(model), str(data), str(folder)]
        ran = run_dependent(command, timeout_s=_TIMEOUT_S)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineFailure(f"llm-compressor in {python} failed: {last}")
    return folder


def main(model_folder: str, windows: str, target: str) -> None:
    """Quantize the checkpoint with the library's own defaults, and save it."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows: list[list[int]] = json.loads(Path(windows).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    weights: dict[str, object] = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(
            {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        ),
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(target, save_compressed=True)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
