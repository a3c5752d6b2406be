"""A case of the benchmark as a run of this library: its config, its rows, and the stage that is timed.

The stages are those of `rlhf-jax train`, on rows of random ids in place of texts: model, train step, optimizer, clipping,
metrics, log and late fetch are the library's. Only checkpoints are not reached.
"""

from __future__ import annotations

import ast
import contextlib
import random
import re
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import ragged
from benchmarks.cases import SHAPES, Case
from benchmarks.gauge import Clock, Enough
from benchmarks.ragged import Row
from rlhf_jax.data.examples import Example, Pair
from rlhf_jax.data.task import Task
from rlhf_jax.models import heads
from rlhf_jax.rollout import refill
from rlhf_jax.training import loop, sampling, setup, stages

HERE = Path(__file__).parent
STAGES = {"sft": "sft", "rm": "reward_model"}  # of the library; others are its stage policy
FIRST = 4  # ids below are marks and are not drawn
NEVER = 10**6  # steps


def case(
  *, task, model, dtype, set, warmup, steps, cached_reference, low_memory, scale="", config=()
) -> Case:
  """Raises ValueError where the table has no such shape."""
  table = SHAPES["tasks" if jax.default_backend() == "cpu" else "gpu"][task]
  if model not in table:
    raise ValueError(
      f"shapes.json has no shape of {task} for {model} here; it has {', '.join(table)}."
    )
  shape = dict(table[model])
  for item in filter(None, scale.split(",")):
    name, _, value = item.partition("=")
    if name not in shape:
      raise ValueError(f"{task} has no size {name!r}; it has {', '.join(shape)}.")
    shape[name] = int(value)
  counts = SHAPES["steps"][model]
  if task in ("ppo", "grpo"):
    counts = SHAPES["steps"]["slow"].get(model, counts)
  return Case(
    task=task,
    model=model,
    dtype=dtype,
    set=set,
    warmup=max(counts["warmup"], 2) if warmup is None else warmup,
    steps=counts["timed"] if steps is None else steps,
    shape=shape,
    cached_reference=cached_reference,
    low_memory=low_memory,
    scale=scale,
    config=config,
  )


def run(case: Case, workdir: Path) -> Clock:
  """Runs the case's stage until all steps are timed."""
  clock = Clock(case.warmup, case.steps)
  with contextlib.ExitStack() as within:
    for patch in _patches(case, clock):
      within.enter_context(patch)
    made = setup.make_setup(config_of(case), workdir)
    within.enter_context(jax.set_mesh(made.mesh))
    with contextlib.suppress(Enough):
      _stage(case, made, clock)
      raise RuntimeError(f"{case.task} ended before all of its steps were timed.")
  return clock


def batches(case: Case) -> list[list[Row]]:
  """What there is to learn from or to answer, over and over: as many batches as steps are timed."""
  draw = ragged.rows if case.ragged else ragged.fixed_rows
  return draw(case.task, case.shape, case.warmup + case.steps)[case.warmup :]


def tokens(case: Case, rows: list[Row]) -> int:
  return sum(ragged.tokens(case.task, row) for row in rows)


def config_of(case: Case) -> dict:
  """The run's config, as an experiment would say it."""
  prompt, longest = ragged.limits(case.task, case.shape)
  written = longest if case.ragged else case.shape.get("new", 1)
  rows = ragged.per_step(case.task, case.shape)
  # Packed rows are as long as the longest text may be, and as many as make the fixed set's tokens.
  width = prompt + longest if case.ragged else case.shape.get("seq", 2)
  packed = max(rows * case.shape.get("seq", 0) // width, 1)
  # As many as a fixed step writes at once: a queue in `gen` goes through them, and they become fewer where answers end early.
  slots = rows * case.shape.get("group", 1) if case.ragged and case.writes else 0
  offline_ = dict(epochs=100.0, batch_size=rows, checkpoint_every=NEVER, learning_rate=1e-5)
  offline_ |= dict(widths=1) if case.ragged else {}  # rows are packed, unsorted
  online_ = dict(steps=1000, prompts=rows, checkpoint_every=NEVER, learning_rate=1e-6)
  updates = dict(epochs=case.shape.get("epochs", 1), minibatches=case.shape.get("minibatches", 1))
  config = dict(
    seed=0,
    stages=(STAGES.get(case.task, "policy"),),
    model=dict(
      source=case.architecture["source"], random=_random(case.architecture), dtype=case.dtype
    ),
    lora=dict(rank=0),
    data=dict(max_tokens=width),
    rollout=dict(max_new_tokens=written, stop_tokens=(), temperature=1.0, slots=slots),
    algorithm=dict(name=case.task if case.task in ("dpo", "ppo", "grpo") else "dpo"),
    answers=dict(source="human"),
    sft=offline_ | dict(batch_size=packed),
    reward_model=offline_,
    dpo=offline_ | dict(beta=0.1),
    ppo=online_ | updates | dict(critic="separate", kl_coef=0.05),
    grpo=online_ | dict(kl_coef=0.04, group=case.shape.get("group", 2)),
    rewards=dict(terms=(f"{HERE / 'odd.py'}:odd",)) if case.task == "grpo" else {},
  )
  if case.low_memory:
    config["model"]["remat"] = True
    section = config[STAGES.get(case.task, case.task if case.task in config else "dpo")]
    section["optimizer"] = "adafactor"
  for override in case.config:
    _override(config, *override.split("=", 1))
  return config


def _random(a: dict) -> dict:
  """The architecture as a config.json."""
  return dict(
    model_type="llama",
    vocab_size=a["vocab"],
    hidden_size=a["d"],
    intermediate_size=a["ffn"],
    num_hidden_layers=a["layers"],
    num_attention_heads=a["heads"],
    num_key_value_heads=a["kv_heads"],
    max_position_embeddings=4096,
    tie_word_embeddings=a["tie"],
    rms_norm_eps=1e-5,
    rope_theta=a["rope_theta"],
    hidden_act="silu",
  )


def _override(config: dict, path: str, value: str) -> None:
  *sections, name = path.split(".")
  for section in sections:
    config = config.setdefault(section, {})
  try:
    config[name] = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    config[name] = {"true": True, "false": False}.get(value.lower(), value)


def _patches(case: Case, clock: Clock):
  """What stands in for texts on disk, and what starts the clock."""
  yield mock.patch.object(setup.tasks, "load_task", lambda *_, **__: _task(case))
  yield mock.patch.object(setup, "learned_tokenizer", lambda data, size, seed: _words(size))
  yield mock.patch.object(loop, "run", _timed(loop.run, case, clock))
  if case.ragged and case.writes:
    ending = _ending_as_drawn(refill.write, case)
    yield mock.patch.object(refill, "write", ending)
    yield mock.patch.object(sampling, "_write", jax.jit(ending, static_argnums=0))


def _timed(run, case: Case, clock: Clock):
  """The library's loop with a tick before every iteration."""

  def timed(state, iterate, *, row_ids, **others):
    if case.ragged:  # four epochs, so that nearly every size has been compiled, and long enough ago
      clock.warmup = max(clock.warmup, 4 * case.steps)

    def ticking(state, step):
      clock.tick()
      if len(clock.times) < clock.steps and step >= clock.warmup:
        clock.rows += [rows[int(re.match(r"\d+", name)[0])] for name in row_ids(step)]
      state, metrics, samples = iterate(state, step)
      clock.first_done((state, metrics))
      if case.writes and step == 0:
        asked = [rows[int(re.match(r"\d+", name)[0])] for name in row_ids(step)]
        _assert_written(case, asked, float(metrics["rollout/length"].sum))
      return state, metrics, samples

    rows = [row for batch in batches(case) for row in batch]
    return run(state, ticking, row_ids=row_ids, **others)

  return timed


def _ending_as_drawn(write, case: Case):
  """`refill.write` whose answers have the lengths of the case's rows: the first id of a prompt says which row it is."""
  drawn = jnp.asarray([row.responses for batch in batches(case) for row in batch], jnp.int32)

  def ending(model, weights, prompts, mask, keys, settings):
    first = jnp.argmax(mask > 0, axis=1)
    row = jnp.take_along_axis(prompts, first[:, None], axis=1)[:, 0] - FIRST
    answer = jnp.arange(len(prompts)) % drawn.shape[1]
    return write(model, weights, prompts, mask, keys, settings, drawn[row, answer])

  return ending


def _task(case: Case) -> Task:
  """Rows of random ids."""
  rng = random.Random(0)
  vocab = case.architecture["vocab"]
  draw = lambda size: [rng.randrange(FIRST, vocab) for _ in range(size)]
  rows = [row for batch in batches(case) for row in batch]
  prompts = [
    Example.prompt(str(i), [FIRST + i, *draw(row.prompt - 1)]) for i, row in enumerate(rows)
  ]
  answered = [
    [prompt.continued(f"{prompt.id}{'ab'[k]}", draw(size)) for k, size in enumerate(row.responses)]
    for prompt, row in zip(prompts, rows, strict=True)
    if not case.writes
  ]
  texts = [
    Example.text(prompt.id, answers[0].tokens)
    for prompt, answers in zip(prompts, answered, strict=False)
  ]
  pairs = [Pair(*answers) for answers in answered if len(answers) == 2]
  return Task(
    sft=texts,
    feedback=lambda form, epoch: pairs,
    held_out_feedback=lambda form: [],
    attributes=(),
    prompts=prompts,
    test_prompts=[],
    held_out=None,
    train=None,
    judge=None,
    verifier=None,
    notes=(),
  )


def _words(size: int) -> PreTrainedTokenizerFast:
  """A word a token: "w17" is id 17."""
  model = models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w3")
  words = Tokenizer(model)
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2"
  )


def _stage(case: Case, made: setup.Setup, clock: Clock) -> None:
  if case.task == "sft":
    stages.sft(made)
  elif case.task == "rm":
    stages.reward_model(made, made.pretrained)
  elif case.task == "gen":
    _write(case, made, clock)
  else:
    scored = _reward_model(made) if case.task == "ppo" else None
    doing = stages.TRAINING
    if not case.cached_reference:  # then each step computes it
      doing = doing._replace(reference_logps=lambda *_: None)
    stages.policy(made, made.pretrained, scored, doing=doing)


def _reward_model(made: setup.Setup):
  """A reward model of the model's size with weights of its own."""
  size = made.model.config.hidden_size
  return {
    "model": made.place(jax.tree.map(np.array, made.pretrained())),
    "reward_head": heads.init_head(made.key("reward head"), size, std=(size + 1) ** -0.5),
    "normalization": heads.unnormalized(),
  }


def _write(case: Case, made: setup.Setup, clock: Clock) -> None:
  """A batch of prompts is answered in each step; in the ragged set all wait in one queue."""
  weights = made.frozen(made.pretrained())
  prompts = made.task.prompts
  batch = len(prompts) if case.ragged else case.shape["batch"]
  if case.ragged:
    clock.warmup, clock.steps = 1, 1
  clock.rows = sum(batches(case), [])
  step = 0
  while True:
    clock.tick()
    first = step * batch % len(prompts)
    chosen = prompts[first : first + batch]
    written = sampling.sample(made, {}, weights, chosen, f"step {step}", batch_size=batch)
    clock.first_done(written)
    if step == 0:
      _assert_written(case, clock.rows[:batch], written.sequences.response_mask.sum())
    step += 1


def _assert_written(case: Case, asked: list[Row], found: float) -> None:
  """Raises RuntimeError unless every answer is as long as was drawn for it, all together."""
  if tokens(case, asked) != found:
    raise RuntimeError(f"{found:g} tokens were written where {tokens(case, asked)} were asked for.")
