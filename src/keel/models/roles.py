"""A model's role in a method: trained or frozen, and the block in which it computes.

A role is a whole model, or an adapter on a trunk that several roles share; a reference may be the trunk with no adapter
on. Every pass of a role runs in `active`, forward and backward alike: there its adapter is switched on. Methods do not
know which of both a role is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from keel import handed
from keel.config import PPOConfig, Training
from keel.errors import InputError, RunFailed
from keel.models import adapters, checkpoints, scalar, trials
from keel.models.adapters import Settings, Trunk
from keel.models.heads import scalar_head
from keel.text.tokenisation import Text


@dataclass(slots=True)
class Role:
    """A model and its part in a run: `Role("reference", model, trained=False)`."""

    name: str
    """`policy`, `reference`, `value` or `reward`: its name in manifests, checkpoints and metrics."""
    model: nn.Module
    trained: bool = True
    offset: float = 0.0
    """The number that `centred` takes off the model's scalars. A critic that starts as a reward model speaks in raw
    scores, while PPO learns from centred ones."""
    trunk: Trunk | None = None
    """The trunk that the model shares with other roles; None if it is the role's own."""
    adapter: str | None = None
    """The role's adapter on the shared trunk; None for the trunk as it is."""

    def __post_init__(self) -> None:
        if not self.trained and self.trunk is None:
            self.model.requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Yield the model for forward and backward passes; gradients are recorded only if the role is trained."""
        with (
            self.trunk.switched(self.adapter) if self.trunk is not None else nullcontext(),
            torch.set_grad_enabled(self.trained and torch.is_grad_enabled()),
        ):
            yield self.model

    def centred(self, scalars: Tensor) -> Tensor:
        """Return the model's scalars relative to `offset`."""
        return scalars - self.offset if self.offset else scalars

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.model.parameters()).dtype

    # --- its weights

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by the names under which it is saved."""
        if self.trunk is None:
            return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        assert self.adapter is not None
        head = {f"base_model.model.{name}": p for name, p in _head(self.model).items()}
        return {**self.trunk.parameters(self.adapter), **head}

    def identity(self) -> str:
        """Return the hash of the weights as they are now; of an adapter that changes nothing, that of its trunk."""
        if self.trunk is None:
            return checkpoints.weights_hash(self.model)
        head = _head(self.model)
        if not head and (self.adapter is None or self.trunk.changes_nothing(self.adapter)):
            return self.trunk.base
        digest = hashlib.sha256(self.trunk.base.encode())
        for name, tensor in sorted(self.parameters().items()):
            digest.update(name.encode())
            digest.update(checkpoints.bytes_of(tensor).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, text: Text, folder: Path) -> None:
        """Write a plain checkpoint, or a plain PEFT folder."""
        if self.trunk is None:
            checkpoints.save(self.model, text, folder)
            return
        assert self.adapter is not None
        adapters.write_adapter(folder, self.trunk, self.adapter, _head(self.model))
        checkpoints.save_text(text, folder)

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote."""
        if self.trunk is None:
            self.model.load_state_dict(checkpoints.reload(self.model, folder).state_dict())
        else:
            adapters.fill(self.parameters(), folder)

    def require_saved(self, folder: Path) -> None:
        """Raise RunFailed if a folder does not give back the weights in memory, bit for bit."""
        if self.trunk is None:
            checkpoints.require_reload(self.model, folder)
            return
        stored, own = adapters.stored(folder), self.parameters()
        wrong = [n for n, p in own.items() if n not in stored or not torch.equal(stored[n], p.detach().cpu())]
        if wrong or len(stored) != len(own):
            raise RunFailed(f"{folder}: reads back with other weights than were saved: {', '.join(wrong[:3])}")


def _head(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a scalar model's head, by its names in the model; nothing for a language model."""
    try:
        head = scalar_head(model)
    except InputError:
        return {}
    name = next(n for n, module in model.named_modules() if module is head)
    return {f"{name}.{part}": parameter for part, parameter in head.named_parameters()}


# --- loading --------------------------------------------------------------------------------------


def load_policy_and_reference(config: Training, model: str) -> tuple[Role, Role]:
    """Load the policy that is trained, and the frozen model that it starts from: two models, or one with an adapter.

    With `--lora` on an adapter folder the policy goes on with that adapter, and the reference is it as it was.
    """
    policy = load_policy_role(config, model)
    return policy, load_start(config, model, policy)


def load_policy_role(config: Training, model: str) -> Role:
    """Load the policy that is trained, without a reference."""
    if not config.lora:
        return Role("policy", checkpoints.load_policy(model, config))
    folder = checkpoints.resolve(model)
    policy, trunk, settings = _trunk_for(config, model)
    trunk.add("policy", settings, config.seed)
    if adapters.is_adapter(folder):
        adapters.fill(trunk.parameters("policy"), Path(folder))
    return Role("policy", policy, trunk=trunk, adapter="policy")


def load_start(config: Training, model: str, policy: Role) -> Role:
    """Load the model that a policy started from: on its trunk if it has one, else another model beside it."""
    if policy.trunk is None:
        return Role("reference", checkpoints.load_policy(model, config), trained=False)
    folder, frozen = checkpoints.resolve(model), None
    if adapters.is_adapter(folder):
        frozen = "reference"
        policy.trunk.add(frozen, Settings.read(Path(folder)), config.seed)
        weights = policy.trunk.parameters(frozen)
        adapters.fill(weights, Path(folder))
        for weight in weights.values():
            weight.requires_grad_(False)
    return Role("reference", policy.model, trained=False, trunk=policy.trunk, adapter=frozen)


def load_reward_role(config: Training, model: str, text: Text) -> tuple[Role, bool]:
    """Load the reward model that is trained, and say whether its head is new: zero. `text` has its padding token."""
    folder = checkpoints.resolve(model)
    fresh = not checkpoints.is_reward_folder(model)
    if not config.lora:
        pad = checkpoints.ensure_pad(text)
        loaded = checkpoints.new_scalar_model(model, config, pad) if fresh else checkpoints.load_reward(model, config)
        return Role("reward", loaded), fresh
    if not fresh and not adapters.is_adapter(folder):
        raise InputError(f"{model}: a whole reward model; train it on without --lora, or give the model it is made of")
    if fresh and adapters.is_adapter(folder):
        raise InputError(
            f"{model}: a language model's adapter, on which no second one can stand; make it one model "
            f"(keel merge --model {model} --out DIR) and give that"
        )
    base = adapters.base_of(folder) if not fresh else model
    handed.refuse_temporary(base)
    loaded = checkpoints.new_scalar_model(base, config, None)
    trunk = Trunk.of(loaded, checkpoints.resolve(base))
    trunk.add("reward", _settings(config, loaded, folder), config.seed)
    scalar_head(loaded).requires_grad_(True)
    role = Role("reward", loaded, trunk=trunk, adapter="reward")
    if not fresh:
        adapters.require_base(folder, model, trunk.base)
        adapters.fill(role.parameters(), Path(folder))
    return role, fresh


def load_value_role(config: PPOConfig, policy: Role, as_reward: bool) -> Role:
    """Load the critic: as the reward model, or with a head of zeros; on the policy's trunk if that is shared."""
    if policy.trunk is not None:
        return on_trunk("value", policy, config, config.reward if as_reward else None)
    if as_reward:
        critic = checkpoints.load_reward(config.reward, config)
        checkpoints.same_vocabulary(policy.model, critic, config.reward)
    else:
        pad = checkpoints.ensure_pad(checkpoints.load_text(config.model, config))
        critic = checkpoints.new_scalar_model(config.model, config, pad)
    return Role("value", critic)


def shares_trunk(policy: Role, reward: str) -> bool:
    """Say whether a reward model is an adapter on the policy's trunk."""
    if policy.trunk is None or not adapters.is_adapter(folder := checkpoints.resolve(reward)):
        return False
    if not adapters.is_scalar(folder):
        raise InputError(f"{reward} is not a reward model but a language model's adapter; train one with `keel reward`")
    trained = adapters.trained_on(folder)
    if trained is not None:
        return trained == policy.trunk.base
    return os.path.realpath(adapters.base_of(folder)) == os.path.realpath(policy.trunk.name)


def on_trunk(name: str, policy: Role, config: Training, reward: str | None, trained: bool = True) -> Role:
    """Make a scalar role on the policy's trunk: a new adapter under a head of zeros, or a reward folder's of both."""
    trunk = policy.trunk
    assert trunk is not None
    assert policy.adapter is not None
    folder = Path(checkpoints.resolve(reward)) if reward else None
    model = scalar.sharing(policy.model, config.trust_remote_code)
    trials.take_over(model, policy.model)
    trunk.add(name, Settings.read(folder) if folder else trunk.settings[policy.adapter], config.seed)
    with trunk.switched(None):
        if fault := scalar.fault(model):
            raise InputError(f"no {name} model can be made on the policy's trunk: {fault}; train without --lora")
    role = Role(name, model, trained, trunk=trunk, adapter=name)
    if folder is not None:
        adapters.fill(role.parameters(), folder)
    for parameter in role.parameters().values():
        parameter.requires_grad_(trained)
    return role


def _trunk_for(config: Training, model: str) -> tuple[nn.Module, Trunk, Settings]:
    """Load the base of a policy with adapters, freeze it, and read the adapters' shape from the options or a folder."""
    folder = checkpoints.resolve(model)
    if adapters.is_adapter(folder) and adapters.is_scalar(folder):
        raise InputError(f"{model} is a reward model, not a language model: give the one that it was trained from")
    base = adapters.base_of(folder) if adapters.is_adapter(folder) else model
    handed.refuse_temporary(base)
    loaded = checkpoints.load_policy(base, config)
    trunk = Trunk.of(loaded, checkpoints.resolve(base))
    if adapters.is_adapter(folder):
        adapters.require_base(folder, model, trunk.base)
    return loaded, trunk, _settings(config, loaded, folder)


def _settings(config: Training, model: nn.Module, folder: str) -> Settings:
    """Return an adapter folder's shape, else the options'; refuse options that differ from the folder's."""
    if not adapters.is_adapter(folder):
        return Settings.of(config, model)
    found = Settings.read(Path(folder))
    asked = {"rank": config.lora_rank, "alpha": config.lora_alpha}
    own = type(config).model_fields
    if config.lora_targets and {*adapters.targets_asked(config)} != {*found.targets}:
        raise InputError(
            f"--lora-targets {config.lora_targets}: the adapter in {folder} has {','.join(found.targets)}, and is "
            "trained on as it is; leave the option out"
        )
    for name, value in asked.items():
        if value not in (own[f"lora_{name}"].default, getattr(found, name)):
            raise InputError(
                f"--lora-{name} {value:g}: the adapter in {folder} has {getattr(found, name):g}, and is trained on as "
                "it is; leave the option out"
            )
    return found
