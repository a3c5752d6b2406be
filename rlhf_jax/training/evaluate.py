"""The evaluation stage: what the policies write on held-out prompts, and what judges make of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rlhf_jax.config import from_dict, hyperparameters, option
from rlhf_jax.data import sentiment, tasks
from rlhf_jax.data.task import LabelledTexts
from rlhf_jax.evaluation import classification, judges, regression, scores, text
from rlhf_jax.ops import stats
from rlhf_jax.rollout.generate import Sampling
from rlhf_jax.sharding import processes
from rlhf_jax.training import disk, held_out, rewarding, sampling
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params, Sequences

COLUMNS = ("reward", "score", "kl", "kl_exact", "length", "logp_base")


@hyperparameters
class Settings:
  best_of: int = option(4, at_least=1)  # answers of the SFT model, the one of most reward counts
  # Each answer is the likeliest token after token, as for pass@1; what needs samples, KL and best-of-n, is left out.
  greedy: bool = False
  batch_size: int = option(128, at_least=1)


def evaluate_reward_model(setup: Setup, frozen: Params) -> dict[str, float]:
  """results.json's rows of the reward model `frozen["reward_model"]`, on feedback that it has not seen."""
  settings = from_dict(Settings, setup.config.get("evaluation", {}), where="evaluation")
  return _reward_model_results(setup, settings, frozen)


def evaluate(setup: Setup, name: str, params: Params, frozen: Params) -> dict[str, float]:
  """results.json's rows of SFT, best-of-n and policy `name`.

  Sampling is at temperature 1, untruncated, unless `evaluation.greedy`. Each answer has the reward of `config.rewards`, unless
  that asks for a reward model and there is none; without rewards there is no best-of-n. Where the task's answers can be
  checked, `score` is what its verifier gives; with a cost model there is `cost`. What each policy wrote is kept in
  `evaluation/` and read back from there, so that a second algorithm is judged on the same answers of the SFT model.
  """
  settings = from_dict(Settings, setup.config.get("evaluation", {}), where="evaluation")
  setup = sampling_plainly(setup, settings)
  own, shared = setup.workdir / "evaluation", setup.shared / "evaluation"
  for folder in (own, shared):
    folder.mkdir(exist_ok=True)
  quiet = not processes.is_first()
  bar = tqdm(total=3, desc="  evaluation", unit="part", dynamic_ncols=True, disable=quiet)

  rewarded = frozen["reward_model"] is not None or not rewarding.asks_model(setup.config)
  count = settings.best_of if rewarded and not settings.greedy else 1
  paths = {"sft": shared / "sft.jsonl"}
  if count > 1:
    paths[f"best_of_{count}"] = shared / f"best_of_{count}.jsonl"
  costed = frozen.get("cost_model") is not None
  if not processes.from_first(lambda: all(_complete(path, costed) for path in paths.values())):
    written, marks = _written(setup, settings, "sft", frozen["reference"], frozen, count, rewarded)
    firsts = np.arange(0, len(written.tokens), count)
    chosen = {"sft": firsts}
    if count > 1:
      chosen[f"best_of_{count}"] = firsts + marks["reward"].reshape(-1, count).argmax(axis=1)
    for policy, rows in chosen.items():
      answers = sampling.take((written, marks), rows)
      disk.replace_rows(paths[policy], _described(setup, settings, *answers))
  bar.update()
  paths[name] = own / f"{name}.jsonl"
  if not processes.from_first(paths[name].exists):
    written, marks = _written(setup, settings, name, params, frozen, 1, rewarded)
    if not settings.greedy:
      marks |= _divergences(setup, settings, written, params, frozen)
    disk.replace_rows(paths[name], _described(setup, settings, written, marks))
  bar.update()

  def judged() -> dict[str, float]:
    policies = {policy: disk.rows(path) for policy, path in paths.items()}
    return _policy_results(setup, policies, name)

  results = processes.from_first(judged)
  bar.update()
  bar.close()
  return results


def sampling_plainly(setup: Setup, settings: Settings) -> Setup:
  """`setup` that samples as an evaluation does: at temperature 1 and untruncated, or without chance."""
  plain = Sampling(
    max_new_tokens=setup.sampling.max_new_tokens,
    stop_tokens=setup.sampling.stop_tokens,
    slots=setup.sampling.slots,
    greedy=settings.greedy,
  )
  return setup._replace(sampling=plain)


@functools.partial(jax.jit, static_argnums=0)
def _compare(policy, params, other, frozen, sequences: Sequences):
  """Per row: k1 and exact KL to `other`, summed over the response; float32[B] each."""
  mine, others, exact = policy.compare(params, other, frozen, sequences, 1.0)
  mask = sequences.response_mask
  return stats.row_sum(mine.logps - others.logps, mask), stats.row_sum(exact, mask)


@functools.partial(jax.jit, static_argnums=0)
def _logps(policy, params, frozen, sequences: Sequences):
  """Mean log-probability of a response token, float32[B]."""
  mask = sequences.response_mask
  logps = policy.evaluate(params, frozen, sequences, 1.0).logps
  return stats.row_sum(logps, mask) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)


def _written(
  setup: Setup, settings: Settings, policy: str, params, frozen, count: int, rewarded: bool
) -> tuple[Sequences, dict[str, np.ndarray]]:
  """`count` answers to each test prompt, an answer a row, with what there is of `reward`, `score` and `cost`, float[rows]."""
  size = settings.batch_size
  written = sampling.sample(
    setup,
    frozen["base"],
    params["model"],
    setup.task.test_prompts,
    f"evaluation {policy}",
    count=count,
    batch_size=size,
  ).sequences
  ids = [prompt.id for prompt in setup.task.test_prompts for _ in range(count)]
  marks = {}
  if rewarded:
    with rewarding.Rewards(setup, f"evaluation of {policy}") as terms:
      marks["reward"] = terms.score(frozen, written, ids, batch_size=size)
  if setup.task.verifier is not None:
    marks["score"] = np.asarray(setup.task.verifier(ids, sampling.texts(setup, written)))
  if frozen.get("cost_model") is not None:
    costs = functools.partial(sampling.score, scorer=setup.cost_scorer, batch_size=size)
    marks["cost"] = costs(setup, frozen["cost_model"], frozen, written)
  return written, marks


def _divergences(setup: Setup, settings: Settings, written: Sequences, params, frozen) -> dict:
  """KL from the reference on the policy's own answers, a nat sum an answer: sampled (k1), and exact."""
  compare = lambda part: _compare(
    setup.policy, {"model": params["model"]}, frozen["reference"], frozen, part
  )
  kl, kl_exact = _over_rows(setup, settings, compare, written)
  return {"kl": kl, "kl_exact": kl_exact}


def _described(setup: Setup, settings: Settings, written: Sequences, marks) -> list[dict]:
  """What is kept of each answer: its text and what was measured."""
  pretrained = {"base": setup.frozen(setup.pretrained())}
  logps = lambda part: _logps(setup.policy, {"model": {}}, pretrained, part)
  columns = {
    **marks,
    "length": written.response_mask.sum(axis=-1),
    "logp_base": _over_rows(setup, settings, logps, written),
  }
  texts = zip(sampling.prompt_texts(setup, written), sampling.texts(setup, written), strict=True)
  return [
    {"prompt": prompt, "response": text, **{name: float(c[i]) for name, c in columns.items()}}
    for i, (prompt, text) in enumerate(texts)
  ]


def _over_rows(setup: Setup, settings: Settings, function: Callable, sequences: Sequences):
  def batch(rows):
    return function(setup.place_batch(sampling.take(sequences, rows)))

  return sampling.in_batches(setup, batch, len(sequences.tokens), settings.batch_size, "measuring")


def _policy_results(setup: Setup, policies: dict[str, list[dict]], name: str) -> dict[str, float]:
  results: dict[str, float] = {}
  texts = {policy: [row["response"] for row in rows] for policy, rows in policies.items()}
  for policy, rows in policies.items():
    for column in COLUMNS:
      if column in rows[0]:
        results[f"{policy}/{column}"] = float(np.mean([row[column] for row in rows]))
    counted = text.text_statistics(texts[policy])
    results |= {f"{policy}/{measure}": value for measure, value in counted.items()}
    if results["sft/distinct_2"]:  # which answers of one word have none of
      results[f"{policy}/distinct_2_ratio"] = counted["distinct_2"] / results["sft/distinct_2"]
  others = [policy for policy in policies if policy != "sft"]
  for best in (policy for policy in others if policy.startswith("best_of_")):
    n = int(best.removeprefix("best_of_"))
    bound = float(np.log(n) - (n - 1) / n)  # an upper bound (arXiv:2401.01879)
    results[f"{best}/kl_bound"] = bound
  if "score" in policies[name][0]:
    results |= _score_results(policies)
  if "cost" in policies[name][0]:
    results |= _cost_results(setup, policies)

  # A lexicon of sentiment has nothing to say of answers that are right or wrong.
  scorers = {} if setup.task.verifier is not None else {"vader": judges.vader}
  if setup.task.judge is not None:
    judge = _judge(tuple(setup.task.judge.texts), tuple(setup.task.judge.labels))
    scorers["judge"] = judge.score
    results |= _judge_results(setup, judge)
  for scorer, score in scorers.items():
    judged = {policy: score(texts[policy]) for policy in policies}
    prefix = "" if scorer == "judge" else f"{scorer}_"
    for policy in others:
      won = judges.win_rate(judged[policy], judged["sft"])
      results |= {
        f"{policy}/{prefix}win_rate": won.rate,
        f"{policy}/{prefix}win_rate_low": won.low,
        f"{policy}/{prefix}win_rate_high": won.high,
      }
    if scorer == "judge" and "reward" in policies[name][0]:
      rewards = {p: [row["reward"] for row in policies[p]] for p in ("sft", name)}
      alike = judges.agreement(judged[name], judged["sft"], rewards[name], rewards["sft"])
      results[f"{name}/judge_agreement"] = alike.pairs
      results[f"{name}/judge_spearman"] = alike.spearman
  return results


def _score_results(policies: dict[str, list[dict]]) -> dict[str, float]:
  """Of what a verifier gave: each policy's mean, and by how much it exceeds that of SFT on the same prompts."""
  marks = {policy: [row["score"] for row in rows] for policy, rows in policies.items()}
  found = {f"{policy}/score": scores.mean(mark) for policy, mark in marks.items()}
  for policy in marks:
    if policy != "sft":
      found[f"{policy}/score_gain"] = scores.gain(marks[policy], marks["sft"])
  results: dict[str, float] = {}
  for name, estimate in found.items():
    results |= held_out.rows(name, estimate)
  return results


def _cost_results(setup: Setup, policies: dict[str, list[dict]]) -> dict[str, float]:
  """Mean costs; and, where a classifier labelled what the cost model learned from, how often it gives the label itself."""
  found = {p: scores.mean([row["cost"] for row in rows]) for p, rows in policies.items()}
  estimates = {f"{policy}/cost": cost for policy, cost in found.items()}
  theirs = RunDir(Path(setup.config["start"]["cost_model"])).config["data"]
  data = from_dict(tasks.Settings, theirs, where="data")
  if data.labels == "vader":
    says = sentiment.above(data.vader_above)
    for policy, rows in policies.items():
      said = [float(says(row["prompt"] + row["response"])) for row in rows]
      estimates[f"{policy}/cost_label"] = classification.fraction(said)
  results: dict[str, float] = {}
  for name, estimate in estimates.items():
    results |= held_out.rows(name, estimate)
  return results


@functools.lru_cache(maxsize=2)  # the runs of a comparison have one judge
def _judge(texts: tuple[str, ...], labels: tuple[int, ...]) -> judges.TfidfJudge:
  return judges.TfidfJudge.fit(texts, labels)


def _complete(path: Path, costed: bool) -> bool:
  """Whether `path` holds answers, with their costs where these are wanted."""
  return path.exists() and not (costed and "cost" not in disk.rows(path)[0])


def _judge_results(setup: Setup, judge: judges.TfidfJudge) -> dict[str, float]:
  """The judge's AUC on held-out text of the length and place of a response."""
  labelled, opening = setup.task.held_out, setup.data.prompt_tokens
  end = opening + setup.sampling.max_new_tokens
  cuts = setup.tokenizer.batch_decode(
    [example.tokens[opening:end] for example in labelled.examples], skip_special_tokens=True
  )
  long_enough = np.asarray([bool(cut.strip()) for cut in cuts])
  scores = judge.score([cut for cut in cuts if cut.strip()])
  return held_out.rows("judge/auc", classification.auc(scores, labelled.labels[long_enough]))


def _reward_model_results(setup: Setup, settings: Settings, frozen) -> dict[str, float]:
  """On people's held-out feedback; the calibration of pairs is kept in `calibration.json`."""
  params, size = frozen["reward_model"], settings.batch_size
  read = held_out.Reader(setup, params, frozen, size)
  results, calibration = held_out.results(read)
  if calibration is not None:
    curve = {name: np.asarray(value).tolist() for name, value in calibration._asdict().items()}
    disk.replace(setup.workdir / "calibration.json", json.dumps(curve, indent=2) + "\n")
  if setup.task.held_out is not None:
    rated = setup.task.held_out.labels.ndim == 2
    beside = _rated_results if rated else _labelled_results
    results |= beside(setup.task.held_out, setup.task.train, read)
  return results


def _rated_results(
  test: LabelledTexts, train: LabelledTexts, read: held_out.Reader
) -> dict[str, float]:
  """Rank correlations beside those of length and of TF-IDF with ridge regression on the same texts, a scale each."""
  setup = read.setup

  def texts(side: LabelledTexts) -> regression.Texts:
    tokens = [example.tokens for example in side.examples]
    seen = setup.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return regression.Texts(side.texts, seen, side.labels)

  scores, scored = read.outputs(test.examples), texts(test)
  others = regression.baselines(texts(train), scored)
  return regression.compare(scores, others, scored, setup.task.attributes)


def _labelled_results(
  test: LabelledTexts, train: LabelledTexts, read: held_out.Reader
) -> dict[str, float]:
  """AUC beside TF-IDF and logistic regression trained on the same reviews; by length."""
  rewards = read.scores(test.examples)
  baseline = judges.TfidfJudge.fit(train.texts, train.labels).score(test.texts)
  results = held_out.rows("reward_model/auc", classification.auc(rewards, test.labels))
  results |= held_out.rows("baseline/auc", classification.auc(baseline, test.labels))
  difference = classification.auc_difference(rewards, baseline, test.labels)
  results |= held_out.rows("reward_model/auc_gain", difference)
  lengths = [len(example.tokens) for example in test.examples]
  for part in classification.auc_by_length(rewards, test.labels, lengths):
    where = f"{part.shortest}_to_{part.longest}_tokens"
    results |= held_out.rows(f"reward_model/auc_{where}", part.auc)
  return results
