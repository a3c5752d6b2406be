"""Who is best of n players from comparisons of two at a time: Bradley-Terry abilities by maximum likelihood.

  P(i beats j) = p_i / (p_i + p_j),  θ_i = log p_i                 (Bradley and Terry, Biometrika 39, 1952)
  P(i beats j) : P(j beats i) : P(tie) = p_i : p_j : ν √(p_i p_j)  (Davidson, JASA 65, 1970)

Players are policies, checkpoints or people. Counts are float[n, n] on the host: `wins[i, j]` is how often i beat j,
`ties[i, j] = ties[j, i]` how often neither did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from rlhf_jax.evaluation.classification import Z95, Estimate

ELO = 400 / np.log(10)  # Elo points of one unit of θ: odds of 10 to 1 are 400 points
STEPS = 1000  # of Newton's method; what has a maximum needs some ten, odds of 10^12 some forty
CLOSE = 1e-8  # the last step, in standard errors; the error after it is of the order of its square
REMEDY = "Compare more, leave such players out, or give a prior, such as 0.1."


class Comparisons(NamedTuple):
  """A table of comparisons, and whose row is whose."""

  names: tuple[str, ...]
  wins: np.ndarray  # float64[n, n]
  ties: np.ndarray  # float64[n, n], symmetric


class Ranking(NamedTuple):
  """Abilities, and how well they are known."""

  names: tuple[str, ...]
  abilities: np.ndarray  # float64[n], θ with mean 0
  covariance: np.ndarray  # float64[n, n], rows sum to 0
  nu: float  # Davidson's ν; 0 where nothing tied


class Chances(NamedTuple):
  """Probabilities of one comparison."""

  win: float
  tie: float
  loss: float


class Standing(NamedTuple):
  """One player's line of a table."""

  rank: int  # from 1; players of equal ability share it
  name: str
  ability: Estimate
  elo: float
  wins: float
  ties: float
  losses: float
  difference: Estimate | None  # ability less that of the baseline, where one was chosen


def bradley_terry(
  wins, ties=None, *, names: Sequence[str] | None = None, prior: float = 0.0
) -> Ranking:
  """Maximum-likelihood abilities of n players, θ with mean 0, and Davidson's ν where some comparisons tied.

  The covariance is the inverse of the observed information, −∂²ℓ/∂(θ, log ν)², on the subspace in which the θ sum to
  zero: with B the n × (n − 1) orthonormal basis of that subspace, B (Bᵀ I B)⁻¹ Bᵀ, and its block of θ. It takes
  comparisons for independent.

  Those of one prompt are not, when one score a player decides all of them: counting each as news makes the variance
  (n + 1) / 3 times too small for n alike players. Give `wins` and `ties` as float[G, n, n], a table a prompt, and the
  covariance is I⁻¹ (Σ_g s_g s_gᵀ) I⁻¹ G / (G − 1), where s_g is the gradient of prompt g's log-likelihood less the
  mean of these (the clustered sandwich: Liang and Zeger, Biometrika 73, 1986). The abilities are the same.

  `prior` adds that many comparisons, half of them won by each, to every pair of players; abilities shrink, and exist
  whatever the counts. It counts as information. To have ties as half a win each instead, add ties / 2 to wins.
  """
  wins, ties, names = _checked(wins, ties, names, prior)
  total_wins, total_ties = (counts.sum(axis=0) for counts in (wins, ties))
  total_wins = total_wins + prior / 2 * (1 - np.eye(len(names)))
  _assert_maximum(total_wins, total_ties, names)

  parameters, inverse = _maximum(total_wins, total_ties)
  if len(wins) > 1:
    scores = _gradient(parameters, wins, ties)  # [G, n + 1]
    scores = scores - scores.mean(axis=0)  # a prior pulls at every prompt alike
    inverse = inverse @ (scores.T @ scores) @ inverse * len(wins) / (len(wins) - 1)
  theta, nu = parameters[:-1], float(np.exp(parameters[-1]))
  return Ranking(names, theta - theta.mean(), inverse[:-1, :-1], nu)


def tabulate(comparisons: Iterable[tuple[str, str, float]]) -> Comparisons:
  """The table of (a, b, outcome), where the outcome is 1 if a won, 0 if b did and 0.5 for a tie.

  Players are in order of their first comparison.
  """
  rows = list(comparisons)
  names = tuple(dict.fromkeys(name for a, b, _ in rows for name in (a, b)))
  index = {name: i for i, name in enumerate(names)}
  wins, ties = np.zeros((2, len(names), len(names)))
  for number, (a, b, outcome) in enumerate(rows, start=1):
    if a == b:
      raise ValueError(f"Comparison {number} is of {a!r} with itself; leave it out.")
    if outcome not in (0, 0.5, 1):
      raise ValueError(
        f"Comparison {number} has outcome {outcome!r}; give 1 where a won, 0 where b did, 0.5 for a tie."
      )
    i, j = index[a], index[b]
    wins[i, j] += outcome == 1
    wins[j, i] += outcome == 0
    ties[i, j] += outcome == 0.5
    ties[j, i] += outcome == 0.5
  return Comparisons(names, wins, ties)


def compare_scores(scores) -> tuple[np.ndarray, np.ndarray]:
  """Wins and ties float64[N, n, n] on each of N prompts, of players with scores float[N, n]: the higher one wins."""
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or not np.isfinite(scores).all():
    raise ValueError(
      f"Scores of shape {scores.shape}; give finite ones, float[N, n] for N prompts and n players."
    )
  margins = scores[:, :, None] - scores[:, None, :]
  ties = (margins == 0) & ~np.eye(scores.shape[1], dtype=bool)
  return (margins > 0).astype(np.float64), ties.astype(np.float64)


def intervals(ranking: Ranking) -> list[Estimate]:
  """Abilities with 95 % intervals, each against the mean of all players: another set of players, another zero."""
  return _estimates(ranking.abilities, np.diag(ranking.covariance))


def differences(ranking: Ranking, baseline: str) -> list[Estimate]:
  """Abilities less that of player `baseline`, with 95 % intervals; the baseline's own is (0, 0, 0).

  These are what to compare players by: two abilities are correlated, and whether their intervals overlap says little.
  """
  b, covariance = _index(ranking, baseline), ranking.covariance
  variances = np.diag(covariance) + covariance[b, b] - 2 * covariance[b]
  return _estimates(ranking.abilities - ranking.abilities[b], variances)


def chances(ranking: Ranking, a: str, b: str) -> Chances:
  """What to expect of the next comparison of players a and b."""
  i, j = _index(ranking, a), _index(ranking, b)
  with np.errstate(divide="ignore"):
    win, tie, loss = _probabilities(ranking.abilities[[i, j]], np.log(ranking.nu))
  return Chances(float(win[0, 1]), float(tie[0, 1]), float(loss[0, 1]))


def standings(ranking: Ranking, wins, ties=None, baseline: str | None = None) -> list[Standing]:
  """The table, best player first. Elo is on the scale of 400 points for odds of 10 to 1, with mean 0."""
  wins, ties, _ = _checked(wins, ties, ranking.names, 0.0)
  won, lost = wins.sum(axis=(0, 2)), wins.sum(axis=(0, 1))
  tied = ties.sum(axis=(0, 2))
  rounded = np.round(ranking.abilities, 9)  # equal players differ by rounding
  ranks = scipy.stats.rankdata(-rounded, method="min").astype(int)
  ability = intervals(ranking)
  against = differences(ranking, baseline) if baseline else [None] * len(ability)
  return [
    Standing(
      int(ranks[i]), ranking.names[i], ability[i], float(ELO * ranking.abilities[i]),
      float(won[i]), float(tied[i]), float(lost[i]), against[i],
    )
    for i in np.argsort(-rounded, kind="stable")
  ]  # fmt: skip


def _maximum(wins, ties) -> tuple[np.ndarray, np.ndarray]:
  """θ and log ν float64[n + 1] of greatest likelihood, by Newton's method, and the inverse of the information there."""
  n, tied = len(wins), ties.any()
  basis = scipy.linalg.helmert(n).T  # [n, n - 1]
  basis = scipy.linalg.block_diag(basis, 1.0) if tied else np.vstack([basis, np.zeros(n - 1)])
  parameters = np.append(np.zeros(n), 0.0 if tied else -np.inf)
  for _ in range(STEPS):
    gradient = _gradient(parameters, wins, ties) @ basis
    information = basis.T @ _information(parameters, wins, ties) @ basis
    step = scipy.linalg.solve(information, gradient, assume_a="pos")
    change = basis @ step
    # The log-odds of two outcomes change by `reach` at most. A step shortened so climbs from anywhere, because the
    # third derivative of ℓ is bounded by the second times that (Sun and Tran-Dinh, arXiv:1703.04599, ν = 2).
    reach = np.ptp(change[:n]) + abs(change[n])
    parameters = parameters + change * (np.log1p(reach) / reach if reach > 0 else 1.0)
    if gradient @ step < CLOSE**2:
      information = basis.T @ _information(parameters, wins, ties) @ basis
      return parameters, basis @ scipy.linalg.inv(information) @ basis.T
  raise FloatingPointError(
    f"Bradley-Terry abilities did not converge in {STEPS} steps; the likelihood has almost no maximum. {REMEDY}"
  )


def _probabilities(theta, log_nu) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """P(i wins), P(tie) and P(j wins), float64[n, n] each."""
  half = (theta[:, None] - theta[None, :]) / 2
  # Divided by √(p_i p_j), the three are exp(half) : ν : exp(−half).
  normalizer = np.logaddexp(np.logaddexp(half, -half), log_nu)
  return np.exp(half - normalizer), np.exp(log_nu - normalizer), np.exp(-half - normalizer)


def _gradient(parameters, wins, ties) -> np.ndarray:
  """∂ℓ/∂(θ, log ν) of tables float64[..., n, n], float64[..., n + 1]."""
  win, tie, loss = _probabilities(parameters[:-1], parameters[-1])
  lost = np.swapaxes(wins, -1, -2)
  # (wins − lost − count (win − loss)) / 2, without differences of large numbers.
  surprise = wins * (2 * loss + tie) - lost * (2 * win + tie) - ties * (win - loss)
  theta = surprise.sum(axis=-1) / 2
  surprise = ties * (win + loss) - (wins + lost) * tie  # each pair stands there twice
  log_nu = surprise.sum(axis=(-2, -1)) / 2
  return np.concatenate([theta, np.expand_dims(log_nu, -1)], axis=-1)


def _information(parameters, wins, ties) -> np.ndarray:
  """−∂²ℓ/∂(θ, log ν)², float64[n + 1, n + 1].

  A comparison of i and j adds the covariance of its statistics: x / 2 along e_i − e_j, where x is 1, 0 or −1 as i wins,
  ties or loses, and 1 along log ν if it ties.
  """
  win, tie, loss = _probabilities(parameters[:-1], parameters[-1])
  count = wins + wins.T + ties
  variance = count * (4 * win * loss + tie * (win + loss)) / 4
  np.fill_diagonal(variance, 0.0)
  covariance = -(count * (win - loss) * tie).sum(axis=1) / 2
  of_tie = (count * tie * (win + loss)).sum() / 2
  of_theta = np.diag(variance.sum(axis=1)) - variance
  return np.block([[of_theta, covariance[:, None]], [covariance[None, :], of_tie]])


def _checked(wins, ties, names, prior) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Wins and ties float64[G, n, n], G = 1 for one table, and names. Raises ValueError for what is no such table."""
  wins = np.asarray(wins, np.float64)
  ties = np.zeros_like(wins) if ties is None else np.asarray(ties, np.float64)
  n = wins.shape[-1] if wins.ndim else 0
  if wins.ndim not in (2, 3) or wins.shape[-2] != n or n < 2 or ties.shape != wins.shape:
    raise ValueError(
      f"Wins of shape {wins.shape} and ties of {ties.shape}; give both as [n, n], or [G, n, n], for n ≥ 2 players."
    )
  if wins.ndim == 3 and len(wins) < 2:
    raise ValueError(
      f"{len(wins)} tables; give one a prompt for at least two, or their sum [n, n]."
    )
  names = tuple(f"player {i}" for i in range(n)) if names is None else tuple(names)
  if len(names) != n or len(set(names)) != n:
    raise ValueError(f"{len(set(names))} different names for {n} players; give one each.")
  for what, counts in (("wins", wins), ("ties", ties)):
    bad = np.argwhere(~(np.isfinite(counts) & (counts >= 0)))
    if len(bad):
      place = ", ".join(map(str, bad[0]))
      raise ValueError(
        f"{what}[{place}] = {counts[tuple(bad[0])]}; counts are finite and at least 0."
      )
    if np.diagonal(counts, axis1=-2, axis2=-1).any():
      raise ValueError(f"{what} has counts of a player with itself; set its diagonal to 0.")
  if not np.array_equal(ties, np.swapaxes(ties, -1, -2)):
    raise ValueError("ties is not symmetric; a tie of i and j counts in [i, j] and in [j, i].")
  if not (np.isfinite(prior) and prior >= 0):
    raise ValueError(f"prior={prior} should be at least 0; it is a number of comparisons a pair.")
  wins, ties = wins.reshape(-1, n, n), ties.reshape(-1, n, n)
  idle = np.flatnonzero(~(wins + np.swapaxes(wins, 1, 2) + ties).any(axis=(0, 2)))
  if len(idle):
    raise ValueError(
      f"Nothing compares {_listed(names, idle)} with the others; leave out, or compare."
    )
  return wins, ties, names


def _assert_maximum(wins, ties, names) -> None:
  """Raises ValueError where the likelihood grows without end.

  It has a maximum if a way leads from every player to every other along wins (Ford, American Mathematical Monthly 64,
  1957), a tie leading both ways. With ties that is not all. Let ν grow by a factor e^t, and the θ so that winners
  stand at least 2t above losers, and players who tied at most 2t apart: no comparison seen becomes less likely.
  No such θ exist if, and only if, some cycle along wins and ties has more wins than ties; a player who beat another
  and lost to it is one.
  """
  leads = (wins + ties) > 0
  _, group = scipy.sparse.csgraph.connected_components(leads, directed=False)
  if group.any():
    first, rest = np.flatnonzero(group == group[0]), np.flatnonzero(group != group[0])
    raise ValueError(
      f"Nothing compares {_listed(names, first)} with {_listed(names, rest)}. {REMEDY}"
    )
  count, part = scipy.sparse.csgraph.connected_components(leads, directed=True, connection="strong")
  if count > 1:
    parts = [part == p for p in range(count)]
    top = np.flatnonzero(sum(p for p in parts if not leads[~p][:, p].any()))
    bottom = np.flatnonzero(sum(p for p in parts if not leads[p][:, ~p].any()))
    or_tied = " or tied" if ties.any() else ""
    raise ValueError(
      f"The abilities have no maximum of likelihood (Ford 1957): {_listed(names, top)} never lost{or_tied} against the "
      f"rest, {_listed(names, bottom)} never won{or_tied} against the rest. {REMEDY}"
    )
  if not ties.any():
    return
  if not wins.any():
    raise ValueError(f"Every comparison is a tie, which ranks no one. {REMEDY}")
  try:
    scipy.sparse.csgraph.bellman_ford(
      np.where(wins > 0, -1.0, np.where(ties > 0, 1.0, 0.0)), indices=0
    )
  except scipy.sparse.csgraph.NegativeCycleError:
    return
  raise ValueError(
    "Davidson's ν has no maximum of likelihood: between ties and wins no one ever lost against expectation (no cycle "
    f"of comparisons has more wins than ties). {REMEDY} Or count ties as half wins."
  )


def _estimates(values, variances) -> list[Estimate]:
  halves = Z95 * np.sqrt(np.maximum(variances, 0.0))
  return [
    Estimate(float(v), float(v - h), float(v + h)) for v, h in zip(values, halves, strict=True)
  ]


def _index(ranking: Ranking, name: str) -> int:
  if name not in ranking.names:
    every = range(len(ranking.names))
    raise ValueError(f"{name!r} is not a player; there are {_listed(ranking.names, every)}.")
  return ranking.names.index(name)


def _listed(names, rows, most: int = 8) -> str:
  more = f" and {len(rows) - most} more" if len(rows) > most else ""
  return ", ".join(names[i] for i in rows[:most]) + more
