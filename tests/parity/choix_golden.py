"""Golden numbers from choix: Plackett-Luce, top-one and Bradley-Terry losses of scores, and abilities of players.

  pip install choix==0.4.1
  python tests/parity/choix_golden.py

choix sums over observations; here losses are recorded one observation at a time and the mean is the sum it gives
over their number, gradients likewise. No regularisation: its penalty is 0.
"""

from __future__ import annotations

import choix
import numpy as np
import record
from choix import opt

GOLDEN = record.Recorder("choix", "choix", "numpy", "scipy")

N = 5
SCORES = record.grid([0.75, -1.5, 2.25, 0.0, -0.375])
FULL = [[2, 0, 3, 4, 1], [0, 2, 4, 3, 1], [1, 4, 3, 0, 2]]
PARTIAL = [[2, 0], [1, 3, 2], [4, 0, 1, 3], [3, 0, 2, 1, 4]]


def padded(rows) -> np.ndarray:
  """Items in order, −1 behind the last."""
  return np.array([[*row, *[-1] * (N - len(row))] for row in rows])


def ranks(rankings) -> np.ndarray:
  """Places by item, [R, n]: 1 is best, 0 was not ranked."""
  places = np.zeros((len(rankings), N), int)
  for row, ranking in zip(places, rankings, strict=True):
    row[ranking] = np.arange(1, len(ranking) + 1)
  return places


def observations(functions, data: list) -> tuple[dict, dict]:
  """Losses of each observation, their mean and its gradient; `functions` makes choix's object for some data."""
  whole = functions(data)
  outputs = dict(
    mean_loss=whole.objective(SCORES) / len(data),
    losses=[functions([observation]).objective(SCORES) for observation in data],
  )
  return outputs, dict(scores=whole.gradient(SCORES) / len(data))


def record_plackett_luce():
  for name, rankings, note in (
    ("full rankings", FULL, "mean over rankings"),
    (
      "rankings of some items",
      PARTIAL,
      "items that a ranking does not name take no part in it; mean over rankings",
    ),
  ):
    outputs, gradients = observations(lambda data: opt.Top1Fcts.from_rankings(data, 0.0), rankings)
    GOLDEN.case(
      "plackett_luce",
      name,
      "choix.opt.Top1Fcts.from_rankings",
      dict(scores=SCORES, rankings=padded(rankings), ranks=ranks(rankings)),
      outputs,
      gradients=gradients,
      note=note,
    )


def record_top_k():
  """The best few in order, all other items behind them in no order."""
  rankings = [[2, 0], [1, 3, 2], [4]]

  def choices(rankings):
    left = lambda ranking, place: [item for item in range(N) if item not in ranking[: place + 1]]
    return opt.Top1Fcts(
      [(item, left(r, place)) for r in rankings for place, item in enumerate(r)], 0.0
    )

  outputs, gradients = observations(choices, rankings)
  GOLDEN.case(
    "plackett_luce_top_k",
    "the best one to three of five",
    "choix.opt.Top1Fcts",
    dict(scores=SCORES, rankings=padded(rankings), ranks=ranks(rankings)),
    outputs,
    gradients=gradients,
    note="items that a ranking does not name are behind those it does, in no order; mean over rankings",
  )


def record_top_one():
  data = [(2, [0, 1]), (0, [2, 3, 4, 1]), (4, [1]), (3, [0, 2, 4])]
  outputs, gradients = observations(lambda data: opt.Top1Fcts(data, 0.0), data)
  offered = np.zeros((len(data), N), int)
  for row, (winner, losers) in zip(offered, data, strict=True):
    row[[winner, *losers]] = 1
  GOLDEN.case(
    "top_one",
    "the best of two to five",
    "choix.opt.Top1Fcts",
    dict(
      scores=SCORES,
      winners=np.array([winner for winner, _ in data]),
      choices=padded([winner, *losers] for winner, losers in data),
      offered=offered,
    ),
    outputs,
    gradients=gradients,
    note="choices has the winner first; mean over observations",
  )


def record_pairs():
  data = [(2, 0), (0, 2), (2, 1), (2, 1), (4, 3), (1, 0), (3, 2)]
  outputs, gradients = observations(lambda data: opt.PairwiseFcts(data, 0.0), data)
  GOLDEN.case(
    "bradley_terry_pairs",
    "seven comparisons of five items",
    "choix.opt.PairwiseFcts",
    dict(scores=SCORES, pairs=np.array(data)),
    outputs,
    gradients=gradients,
    note="pairs are (winner, loser); mean over comparisons",
  )


def record_abilities():
  rng = np.random.default_rng(19)
  crowd = rng.integers(1, 12, (7, 7)) * (1 - np.eye(7, dtype=int))
  tables = {
    "three players": [[0, 7, 4], [3, 0, 6], [1, 4, 0]],
    "five players, some never met": [
      [0, 4, 0, 0, 3],
      [2, 0, 5, 0, 0],
      [0, 1, 0, 8, 0],
      [0, 0, 2, 0, 1],
      [1, 0, 0, 6, 0],
    ],
    "seven players": crowd,
  }
  for name, wins in tables.items():
    wins = np.asarray(wins)
    data = [(i, j) for i, j in np.argwhere(wins) for _ in range(wins[i, j])]
    abilities = choix.ilsr_pairwise(len(wins), data, max_iter=10_000, tol=1e-13)
    abilities = abilities - abilities.mean()
    other = choix.opt_pairwise(len(wins), data, alpha=0.0, tol=1e-10)
    np.testing.assert_allclose(other - other.mean(), abilities, atol=1e-7)
    assert np.abs(opt.PairwiseFcts(data, 0.0).gradient(abilities)).max() < 1e-10
    GOLDEN.case(
      "abilities",
      name,
      "choix.ilsr_pairwise",
      dict(wins=wins),
      dict(abilities=abilities),
      note="wins[i, j]: how often i beat j; choix.opt_pairwise agrees to 1e-7",
    )


if __name__ == "__main__":
  record_plackett_luce()
  record_top_k()
  record_top_one()
  record_pairs()
  record_abilities()
  GOLDEN.write()
