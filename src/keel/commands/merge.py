"""`keel merge`: an adapter and its base as one plain checkpoint."""

from __future__ import annotations

from typing import Literal

from keel.config import Machine, MergeConfig
from keel.errors import InputError
from keel.files.disk import whole_folder, writing
from keel.files.target import refuse_existing
from keel.models import adapters, checkpoints, folders
from keel.records import Result
from keel.says import say


def merge_adapter(config: MergeConfig) -> Result:
    """Write the model that an adapter makes of its base, in bf16 if the base is, else in fp32."""
    refuse_existing(config.out)
    folder = checkpoints.resolve(config.model)
    if not adapters.is_adapter(folder):
        raise InputError(f"{config.model}: no adapter but a whole model, which needs no merging; use it as it is")
    base = checkpoints.resolve(adapters.base_of(folder))
    told = folders.config_of(base, base)
    precision: Literal["bf16", "fp32"] = (
        "bf16" if "bfloat16" in (told.get("dtype"), told.get("torch_dtype")) else "fp32"
    )
    machine = Machine(device="cpu", precision=precision, trust_remote_code=config.trust_remote_code)
    text = checkpoints.load_text(config.model, config)
    scores = checkpoints.is_reward_folder(config.model)
    model = (checkpoints.load_reward if scores else checkpoints.load_policy)(config.model, machine)
    if scores:
        checkpoints.set_pad(model, checkpoints.ensure_pad(text))
    with writing(config.out), whole_folder(config.out) as partial:
        checkpoints.save(model, text, partial)
        checkpoints.require_reload(model, partial)
    say(f"{config.out}: {base} with {folder} in its weights, {precision}")
    return Result(config.out, {"base": base, "adapter": folder, "precision": precision})
