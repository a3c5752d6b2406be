"""Rounds of sampling, asking, learning and improving.

In each round the newest policy answers prompts twice, some of these pairs are chosen to be asked about, annotators (people on
the page, simulated ones, or a model) say which answer is better, a reward model is trained on all that was said so far, and the
policy is trained against it from the SFT model anew. `round_1`, `round_2`, … keep everything of a round: `questions.jsonl`, the
project with its store of labels in `labels`, what they come to in `labels.jsonl`, checkpoints, answers of the evaluation;
`rounds.json` what each has reached. Every part that is finished is read back, so the same command goes on where it stopped.

Tokens stay tokens: the reward model learns from the very tokens that the policy wrote, and not from a second reading of their text.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rlhf_jax.config import from_dict
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Pair
from rlhf_jax.data.task import FILES
from rlhf_jax.feedback import export, judge, questions, simulate
from rlhf_jax.feedback.project import FILE, Item, create, read
from rlhf_jax.feedback.store import Store
from rlhf_jax.rewards import judges
from rlhf_jax.rollout.generate import responses
from rlhf_jax.training import (
  disk,
  ensemble,
  evaluate,
  experiment,
  options,
  preflight,
  sampling,
  stages,
)
from rlhf_jax.training.rundir import RunDir
from rlhf_jax.training.setup import Setup, Weights, algorithm_module, make_setup, reward_model_of

POLL = 5.0  # seconds between looks at a store that people fill
PREFERENCES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class Begun(NamedTuple):
  """What loops have in common that differ in their section `loop` alone."""

  setup: Setup
  weights: Weights  # the SFT model, which every round's policy and reward model start from


def run(
  config: Mapping[str, Any],
  workdir: str | os.PathLike,
  *,
  begun: Begun | None = None,
  after_each: Callable = lambda workdir, rounds: None,
) -> list[dict]:
  """Runs the rounds of `config.loop` in `workdir`; what each has reached, as in rounds.json.

  Raises ValueError, with the remedy, before anything is computed.
  """
  config, settings = checked(config)
  run_dir = RunDir(Path(workdir))
  sections = {name: config.get(name) for name in config}
  run_dir.assert_same("loop", sections)
  path = run_dir.workdir / "rounds.json"
  kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
  if run_dir.finished("loop"):
    print(f"{run_dir.workdir}: finished; nothing is left to do.", flush=True)
    return kept
  shared, weights = begun or begin(config, run_dir.workdir)
  setup = shared._replace(config=config, workdir=run_dir.workdir)
  run_dir.save_config(config)
  run_dir.save_data({name: config["data"][name] for name in FILES if config["data"].get(name)})
  with jax.set_mesh(setup.mesh), run_dir.timed("loop", sections):
    base, writer = setup.base(weights), setup.reference(weights)["model"]
    reward_params, asked, rounds = None, [], []
    for number in range(1, settings.rounds + 1):
      folder = run_dir.workdir / f"round_{number}"
      folder.mkdir(exist_ok=True)
      seed = zlib.crc32(f"{setup.seed} {settings.seed} {number}".encode())
      here = setup._replace(workdir=folder, seed=seed)
      questions_path = folder / "questions.jsonl"
      if not questions_path.exists():
        origin = {
          "model": run_dir.workdir.resolve().name,
          "checkpoint": f"round_{number - 1}" if number > 1 else "sft",
          "sampling": config["rollout"],
        }
        found = ask(here, settings, base, writer, reward_params, asked, origin)
        disk.replace_rows(questions_path, found)
      asked += answered(here, settings, disk.rows(questions_path))
      pairs = [_pair(row, said) for row, said in asked if said is not None]
      _assert_enough(config, pairs)
      learning = _with_questions(setup, here, pairs)
      reward_params = stages.reward_model(learning, weights)
      params, frozen = stages.policy(learning, weights, reward_params)
      writer = params["model"]
      if number > len(kept):
        reached = _reached(learning, setup, settings, params, frozen)
        digest = hashlib.sha256((folder / "labels.jsonl").read_bytes()).hexdigest()
        kept.append({"round": number, "labels": len(pairs), "labels_sha256": digest, **reached})
      rounds.append(kept[number - 1])
      disk.replace(path, json.dumps(rounds, indent=2) + "\n")
      after_each(run_dir.workdir, rounds)
  return rounds


def checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], options.Loop]:
  """The config and its section `loop`. Raises ValueError where its rounds could not run."""
  options.check(config)
  config = experiment.at_seed(config)
  settings = from_dict(options.Loop, config.get("loop", {}), where="loop")
  assert_learnable(config, settings)
  return config, settings


def begin(config: Mapping[str, Any], workdir: Path) -> Begun:
  """Loads what the rounds need and fine-tunes the model that they start from, once every check has passed."""
  _, settings = checked(config)
  setup = make_setup(config, workdir)
  if settings.utility == "verifier" and setup.task.verifier is None:
    raise ValueError(
      f"loop.utility='verifier' needs answers that can be checked, and those of data.source={setup.data.source!r} "
      "cannot; use 'sentiment'."
    )
  preflight.assert_ready(_with_questions(setup, setup, [_placeholder(setup)] * settings.questions))
  with jax.set_mesh(setup.mesh):
    return Begun(setup, experiment.starting_weights(setup))


def assert_learnable(config: Mapping[str, Any], settings: options.Loop) -> None:
  """Raises ValueError for a config whose rounds could not run."""
  name = options.reward_algorithm(config)
  if algorithm_module(name).DATA != "pairs":
    raise ValueError(
      f"algorithm.reward_model={name!r} learns from {algorithm_module(name).DATA}, and the questions of a loop give "
      "pairs; use reward_model or reward_odin."
    )
  group = reward_model_of(config).group
  if settings.strategy in ("disagreement", "information"):
    if group.members < 2:
      raise ValueError(
        f"loop.strategy={settings.strategy!r} compares reward models, and there is one; set {name}.members to 3 or more."
      )
    if group.combine == "average":
      raise ValueError(
        f"loop.strategy={settings.strategy!r} compares reward models, and {name}.combine='average' makes them one; use 'mean'."
      )
  if settings.questions > settings.candidates:
    raise ValueError(
      f"loop.questions={settings.questions} exceeds loop.candidates={settings.candidates}; lower it."
    )
  _, learning, *_ = options.stage(config, name)
  if settings.questions < learning.batch_size:
    raise ValueError(
      f"{name}.batch_size={learning.batch_size} exceeds the {settings.questions} pairs of a first round; lower it, or "
      "raise loop.questions."
    )
  faults = [name for name in ("noise", "position", "length") if getattr(settings, name)]
  if settings.labels != "simulated" and faults:
    raise ValueError(
      f"loop.{faults[0]} is a simulated annotator's, and loop.labels={settings.labels!r}; leave it out."
    )
  if settings.labels == "judge" and settings.overlap > 1:
    raise ValueError("loop.labels='judge' asks one model once a question; set loop.overlap to 1.")
  if not {"reward_model", "policy"} <= set(config["stages"]):
    raise ValueError("config.stages of a loop needs reward_model and policy.")


def ask(
  setup: Setup, settings: options.Loop, base, writer, reward_params, asked, origin: Mapping
) -> list[dict]:
  """The questions of a round: prompts with two answers of the newest policy `writer` each, as rows of questions.jsonl.

  `origin` says of the writer what is stored with every answer.
  """
  prompts = setup.task.prompts
  count = min(settings.candidates, len(prompts))
  order = examples.batch_rows(len(prompts), count, setup.order("candidates"), 0)
  chosen = [prompts[i] for i in order]
  size = settings.batch_size
  written = sampling.sample(
    setup, base, writer, chosen, "questions", count=2, batch_size=size
  ).sequences
  differences = None
  if reward_params is not None:
    members = ensemble.each(reward_params)
    scores = [
      sampling.score(setup, member, {"base": base}, written, batch_size=size) for member in members
    ]
    differences = np.stack([s[0::2] - s[1::2] for s in scores])  # [M, N]
  answers = responses(written.tokens, written.response_mask)
  texts = sampling.texts(setup, written)
  seen = Counter(row["prompt_id"] for row, _ in asked)
  differ = np.asarray([texts[2 * i] != texts[2 * i + 1] for i in range(count)])
  if not differ.any():
    raise ValueError(
      "the policy writes the same answer twice to every prompt; raise rollout.temperature."
    )
  open_to = np.flatnonzero(differ)
  picked = questions.choose(
    settings.strategy,
    settings.questions,
    differences=None if differences is None else differences[:, open_to],
    seen=np.asarray([seen[chosen[i].id] for i in open_to]),
    rng=np.random.default_rng((*setup.order("choice"),)),
  )
  prompt_texts = sampling.prompt_texts(setup, written)
  return [
    {
      "id": f"{setup.workdir.name}:{chosen[i].id}",
      "prompt_id": chosen[i].id,
      "prompt": prompt_texts[2 * i],
      "prompt_tokens": list(chosen[i].tokens),
      "answers": texts[2 * i : 2 * i + 2],
      "answer_tokens": answers[2 * i : 2 * i + 2],
      "answers_from": origin,
    }
    for i in open_to[picked].tolist()
  ]


def answered(
  setup: Setup, settings: options.Loop, rows: list[dict]
) -> list[tuple[dict, float | None]]:
  """Each question with the probability that its first answer is better, None where nobody could say."""
  folder = setup.workdir / "labels"
  if not (folder / FILE).exists():
    create(folder, "pairs", overlap=settings.overlap)
  store = Store(f"sqlite:///{(folder / 'labels.sqlite').resolve()}", read(folder))
  try:
    answers = lambda row: tuple({"content": text, **row["answers_from"]} for text in row["answers"])
    store.add_items([Item(row["id"], row["prompt"], answers(row)) for row in rows])
    LABELS[settings.labels](setup, settings, store, rows)
    disk.replace(setup.workdir / "labels.jsonl", export.jsonl(store)[0].decode())
    return _agreed(store, rows)
  finally:
    store.close()


def _simulated(setup: Setup, settings: options.Loop, store: Store, rows: list[dict]) -> None:
  known = {row["id"]: row for row in rows}

  def utility(item: Item) -> np.ndarray:
    row = known[item.id]
    if settings.utility == "verifier":
      values = setup.task.verifier([row["prompt_id"]] * 2, row["answers"])
    else:
      values = judges.sentiment([row["prompt"]] * 2, row["answers"])
    return float(settings.utility_scale) * np.asarray(values, float)

  faults = dict(
    noise=float(settings.noise), position=float(settings.position), length=float(settings.length)
  )
  people = {f"simulated {i}": simulate.Simulated(**faults) for i in range(settings.overlap)}
  simulate.label_all(store, people, utility, seed=setup.seed)


def _people(setup: Setup, settings: options.Loop, store: Store, rows: list[dict]) -> None:
  """Waits until every question is judged as often as it should be, or decided by the administrator."""
  wanted = len(rows) * settings.overlap
  folder = setup.workdir / "labels"
  print(f"waiting for {wanted} judgements: rlhf-jax label --workdir={folder}", flush=True)
  with tqdm(total=wanted, desc="  judgements", dynamic_ncols=True) as bar:
    while True:
      judged = Counter(judgement.item.id for judgement in export.judgements(store))
      judged |= dict.fromkeys(export.adjudicated(store), settings.overlap)
      done = sum(min(count, settings.overlap) for count in judged.values())
      bar.update(done - bar.n)
      if done >= wanted:
        return
      time.sleep(POLL)


def _by_judge(setup: Setup, settings: options.Loop, store: Store, rows: list[dict]) -> None:
  """Asks a model in both orders; what it was not read as stays unjudged and is written down."""
  if export.judgements(store):
    return
  verdicts = judge.label(store, settings.judge, batch_size=settings.batch_size)
  disk.replace_rows(setup.workdir / "unread.jsonl", [{"reply": reply} for reply in verdicts.unread])
  print(f"{setup.workdir.name}: the judge {verdicts.summary()} (unread.jsonl)", flush=True)
  if not any(verdicts.choices):
    raise ValueError(
      f"loop.judge={settings.judge!r} was read on no question; {setup.workdir / 'unread.jsonl'} holds its replies."
    )


LABELS = {"simulated": _simulated, "people": _people, "judge": _by_judge}


def _agreed(store: Store, rows: list[dict]) -> list[tuple[dict, float | None]]:
  """Votes as a probability, or the administrator's word; "both bad" and skipped questions say nothing of which is better."""
  votes: dict[str, list[dict]] = {}
  for judgement in export.judgements(store):
    votes.setdefault(judgement.item.id, []).append(judgement.said)
  votes |= {id: [said] for id, (_, said) in export.adjudicated(store).items()}
  agreed = []
  for row in rows:
    choices = [said["better"]["choice"] for said in votes.get(row["id"], [])]
    known = [PREFERENCES[choice] for choice in choices if choice in PREFERENCES]
    agreed.append((row, float(np.mean(known)) if known else None))
  return agreed


def _assert_enough(config: Mapping[str, Any], pairs: list[Pair]) -> None:
  """Raises ValueError where fewer questions were decided than a step of the reward model takes."""
  name = options.reward_algorithm(config)
  _, settings, *_ = options.stage(config, name)
  if len(pairs) < settings.batch_size:
    raise ValueError(
      f"{len(pairs)} questions have an answer and {name}.batch_size={settings.batch_size}; lower it, or ask more."
    )


def _pair(row: dict, first_is_better: float) -> Pair:
  prompt = Example.prompt(row["prompt_id"], row["prompt_tokens"])
  first, second = (
    prompt.continued(f"{row['id']}#{k}", tokens) for k, tokens in enumerate(row["answer_tokens"])
  )
  if first_is_better < 0.5:
    return Pair(second, first, 1.0 - first_is_better)
  return Pair(first, second, first_is_better)


def _placeholder(setup: Setup) -> Pair:
  """A pair of the size that questions will have, for the checks before a run."""
  prompt = setup.task.prompts[0]
  longest = [0] * setup.sampling.max_new_tokens
  return Pair(prompt.continued("a", longest), prompt.continued("b", longest[:1]))


def _with_questions(setup: Setup, here: Setup, pairs: list[Pair]) -> Setup:
  """`here`, whose people said `pairs`."""
  feedback = lambda form, epoch: pairs if form == "pairs" else []
  return here._replace(task=setup.task._replace(feedback=feedback))


def _reached(learning: Setup, setup: Setup, settings, params, frozen) -> dict[str, float]:
  """What a round has reached; every round is evaluated on the same prompts with the same chance."""
  if "evaluation" not in learning.config["stages"]:
    return {}
  same = learning._replace(seed=setup.seed)
  found = evaluate.evaluate_reward_model(same, frozen) if settings.held_out_feedback else {}
  return found | evaluate.evaluate(same, learning.config["algorithm"]["name"], params, frozen)
