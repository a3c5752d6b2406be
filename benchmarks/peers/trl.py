"""Times a case in TRL, or in transformers.generate for generation, and prints one JSON line.

  python -m benchmarks.peers.trl dpo S --dtype=mixed --cached-reference

Rewards of pairs, DPO and SFT go through their trainers, GRPO and PPO through theirs with the writing of responses. PPO was
taken out of TRL after 1.12: put the unpacked wheel of that version first on PYTHONPATH. README.md says what a step does.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile

os.environ |= {
  "HF_HUB_OFFLINE": "1",
  "HF_DATASETS_OFFLINE": "1",
  "TOKENIZERS_PARALLELISM": "false",
  "TRANSFORMERS_VERBOSITY": "error",
  "TRL_EXPERIMENTAL_SILENCE": "1",
}

import datasets
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import ragged
from benchmarks.peers import measure
from benchmarks.peers.measure import EOS, PAD, Case, Clock, Ids

DTYPES = ("float32", "bfloat16", "mixed")
KL_COEF = 0.05


def main() -> None:
  case = measure.parse(
    __doc__,
    tuple(TASKS),
    DTYPES,
    attention="sdpa",
    packing="",
    threads=measure.THREADS,
    low_memory=False,
    random=False,
  )
  torch.set_num_threads(case.options["threads"])
  torch.manual_seed(0)
  transformers.utils.logging.disable_progress_bar()
  datasets.disable_progress_bars()
  clock = Clock(case)
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    tokens = TASKS[case.task](case, clock, folder)
  version = (
    f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
  )
  library = "transformers" if case.task == "gen" else "trl"
  gpu = None
  if case.device == "cuda":
    gpu = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
  measure.report(case, library, version, clock, tokens, gpu)


def sft(case: Case, clock: Clock, folder: str) -> int | None:
  """Language modelling on whole texts. `--packing` is TRL's packing_strategy; without it rows are sorted by length.

  Packed rows are as long as the longest text may be, and as many as make the tokens of the fixed set.
  """
  ids, shape, packing = Ids(case), case.shape, case.options["packing"]
  rows, longer = case.rows() if packing else case.sorted_rows(), 1 + case.ragged
  batch = [{"input_ids": ids(row.longest)} for rows_ in rows for row in rows_]
  config = _config(
    case,
    trl.SFTConfig,
    folder,
    shape["batch"] // longer if packing else shape["batch"],
    max_length=longer * shape["seq"],
    **({"packing": True, "packing_strategy": packing} if packing else {}),
  )
  trainer = trl.SFTTrainer(_lm(case), config, train_dataset=_dataset(batch), **_common(case, clock))
  counted = _count_tokens(trainer)
  trainer.train()
  return _of_timed(case, counted) if packing else None


def rm(case: Case, clock: Clock, folder: str) -> None:
  ids = Ids(case)
  pairs = [
    {"chosen_ids": prompt + ids(row.responses[0]), "rejected_ids": prompt + ids(row.responses[1])}
    for rows in case.sorted_rows()
    for row in rows
    for prompt in [ids(row.prompt)]
  ]
  longest = (1 + case.ragged) * case.shape["seq"]
  config = _config(case, trl.RewardConfig, folder, case.shape["pairs"], max_length=longest)
  trainer = trl.RewardTrainer(
    _scorer(case), config, train_dataset=_dataset(pairs), **_common(case, clock)
  )
  trainer.train()


def dpo(case: Case, clock: Clock, folder: str) -> None:
  """The reference is computed in the step, or for all rows before the first with --cached-reference."""
  ids, shape = Ids(case), case.shape
  end = lambda length: f" {ids.text(length - 1)} "  # TRL adds the end mark
  pairs = [
    {"prompt": ids.text(row.prompt), "chosen": end(chosen), "rejected": end(rejected)}
    for rows in case.sorted_rows()
    for row in rows
    for chosen, rejected in [row.responses]
  ]
  config = _config(
    case,
    trl.DPOConfig,
    folder,
    shape["pairs"],
    max_length=(1 + case.ragged) * (shape["prompt"] + shape["completion"]),
    precompute_ref_log_probs=case.cached_reference,
  )
  trainer = trl.DPOTrainer(
    _lm(case),
    None if case.cached_reference else _lm(case),
    config,
    train_dataset=_dataset(pairs),
    **_common(case, clock),
  )
  counted = _count_tokens(trainer)
  trainer.train()
  assert _of_timed(case, counted) == case.tokens()


def gen(case: Case, clock: Clock, folder: str) -> None:
  ids, model = Ids(case), _lm(case).eval()
  stop = _StopAt(case)
  model.generate = stop.wrap(model.generate)
  sampling = transformers.GenerationConfig(
    do_sample=True, top_k=0, max_new_tokens=stop.longest, pad_token_id=PAD, eos_token_id=EOS
  )
  clock.tick()
  for rows in case.rows():
    prompts, mask = _left_padded([ids(row.prompt) for row in rows])
    prompts, mask = prompts.to(case.device), mask.to(case.device)
    with torch.no_grad():
      model.generate(input_ids=prompts, attention_mask=mask, generation_config=sampling)
    _finish(case)
    clock.tick()


def grpo(case: Case, clock: Clock, folder: str) -> None:
  """Groups are written, scored by a function that costs nothing, and learned from once."""
  ids, shape, stop = Ids(case), case.shape, _StopAt(case)
  prompts = [{"prompt": ids.text(row.prompt)} for rows in case.rows() for row in rows]

  def reward(completion_ids, **_) -> list[float]:
    return [sum(i % 2 for i in ids) / len(ids) for ids in completion_ids]

  config = _config(
    case,
    trl.GRPOConfig,
    folder,
    shape["prompts"] * shape["group"],
    num_generations=shape["group"],
    max_completion_length=stop.longest,
    temperature=1.0,
    beta=0.04,
    num_iterations=shape["iterations"],
    steps_per_generation=_parts(case, shape["prompts"] * shape["group"]),
    shuffle_dataset=False,
    model_init_kwargs={"dtype": _weights_dtype(case), "attn_implementation": _attention(case)},
  )
  source = case.folder
  if case.options["random"]:  # TRL reads the reference from a folder
    source = f"{folder}/model"
    _lm(case).save_pretrained(source)
  trainer = trl.GRPOTrainer(
    str(source), reward, config, train_dataset=_dataset(prompts), **_common(case, clock)
  )
  trainer.model.generate = stop.wrap(trainer.model.generate)
  trainer.train()


def ppo(case: Case, clock: Clock, folder: str) -> None:
  """Four models of one size: policy, critic, reward model and reference."""
  from trl.experimental.ppo import PPOConfig, PPOTrainer

  ids, shape, stop = Ids(case), case.shape, _StopAt(case)
  prompts = [{"input_ids": ids(row.prompt)} for rows in case.rows() for row in rows]
  config = _config(
    case,
    PPOConfig,
    folder,
    shape["batch"],
    num_ppo_epochs=shape["epochs"],
    num_mini_batches=shape["minibatches"],
    local_rollout_forward_batch_size=shape["batch"],
    total_episodes=len(prompts),
    response_length=stop.longest,
    stop_token="eos",
    temperature=1.0,
    kl_coef=KL_COEF,
    num_sample_generations=0,
    logging_steps=10**6,
  )
  policy, reference, reward_model, critic = _lm(case), _lm(case), _scorer(case), _scorer(case)
  policy.generate = stop.wrap(policy.generate)
  # TRL puts the update under autocast and leaves what comes before it in float32.
  for module in (reference, reward_model.model, critic.model):
    module.forward = _autocast(case)(module.forward)
  trainer = PPOTrainer(
    args=config,
    model=policy,
    ref_model=reference,
    reward_model=reward_model,
    value_model=critic,
    train_dataset=_dataset(prompts),
    **_common(case, clock),
  )
  trainer.log = lambda *_, **__: None
  trainer.train()


TASKS = {"sft": sft, "rm": rm, "dpo": dpo, "gen": gen, "grpo": grpo, "ppo": ppo}


class _Ticks(transformers.TrainerCallback):
  """A tick as training begins and after each step."""

  def __init__(self, case: Case, clock: Clock):
    self._case, self._clock = case, clock

  def on_train_begin(self, *_, **__):
    self._clock.tick()

  def on_step_end(self, *_, **__):
    _finish(self._case)
    self._clock.tick()


class _StopAt(transformers.LogitsProcessor):
  """Row i of a call of `generate` ends, by its end mark, at its own length, whatever the model would say.

  The whole call is put under one autocast, so that weights are cast once; TRL would cast them for every token.
  """

  def __init__(self, case: Case):
    self._case = case
    self._batches = iter(case.rows())
    self.longest = max(max(row.responses) for rows in case.rows() for row in rows)

  def wrap(self, generate):
    def wrapped(*args, **kwargs):
      lengths = [length for row in next(self._batches) for length in row.responses]
      self._lengths, self._written = torch.tensor(lengths, device=self._case.device), 0
      processors = transformers.LogitsProcessorList([self])
      with _autocast(self._case):
        return generate(*args, logits_processor=processors, **kwargs)

    return wrapped

  def __call__(self, input_ids, scores):
    self._written += 1
    ends = self._lengths == self._written
    scores[:, EOS] = -torch.inf
    end = torch.full_like(scores[:1], -torch.inf)
    end[:, EOS] = 0.0
    return torch.where(ends[:, None], end, scores)


def _config(case: Case, cls, folder: str, batch: int, **options):
  """`batch` rows to a step; the low-memory setting recomputes activations and takes a step's rows in parts."""
  options = {"logging_strategy": "no"} | options
  if case.task not in ("grpo", "ppo"):
    options["train_sampling_strategy"] = "sequential"
  return cls(
    output_dir=folder,
    per_device_train_batch_size=batch // _parts(case, batch),
    gradient_accumulation_steps=_parts(case, batch),
    max_steps=case.warmup + case.steps,
    use_cpu=case.device == "cpu",
    bf16=case.dtype == "mixed",
    gradient_checkpointing=case.options["low_memory"],
    learning_rate=1e-5,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
    **options,
  )


def _parts(case: Case, batch: int) -> int:
  return math.gcd(batch, 4) if case.options["low_memory"] else 1


def _common(case: Case, clock: Clock) -> dict:
  tokenizer = AutoTokenizer.from_pretrained(case.folder)
  return {"processing_class": tokenizer, "callbacks": [_Ticks(case, clock)]}


def _weights_dtype(case: Case) -> torch.dtype:
  return torch.bfloat16 if case.dtype == "bfloat16" else torch.float32


def _autocast(case: Case) -> torch.autocast:
  return torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "mixed")


def _attention(case: Case) -> str:
  return case.options["attention"]


def _lm(case: Case):
  return _made(AutoModelForCausalLM, case)


def _scorer(case: Case):
  return _made(AutoModelForSequenceClassification, case, num_labels=1)


def _made(cls, case: Case, **options):
  """A model with the weights of the case's folder, or with random ones."""
  how = {"dtype": _weights_dtype(case), "attn_implementation": _attention(case)}
  if not case.options["random"]:
    return cls.from_pretrained(case.folder, **how, **options).to(case.device)
  config = transformers.AutoConfig.from_pretrained(case.folder, **options)
  with torch.device(case.device):
    return cls.from_config(config, **how)


def _finish(case: Case) -> None:
  """Waits for what a GPU was given to do."""
  if case.device == "cuda":
    torch.cuda.synchronize()


def _dataset(rows: list[dict]) -> datasets.Dataset:
  return datasets.Dataset.from_list(rows)


def _count_tokens(trainer) -> list[int]:
  """Tokens of each batch that the trainer collates, without padding; filled while it trains."""
  collate, counted = trainer.data_collator, []

  def counting(examples):
    batch = collate(examples)
    mask = batch.get("attention_mask")
    counted.append(batch["input_ids"].numel() if mask is None else int(mask.sum()))
    return batch

  trainer.data_collator = counting
  return counted


def _of_timed(case: Case, counted: list[int]) -> int:
  """Of what `_count_tokens` counted, the tokens of the timed steps."""
  parts = _parts(case, ragged.per_step(case.task, case.shape))
  return sum(counted[case.warmup * parts :][: case.steps * parts])


def _left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
  width = max(map(len, prompts))
  ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
  return ids, (ids != PAD).long()


if __name__ == "__main__":
  main()
