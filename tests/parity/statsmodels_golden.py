"""Golden numbers from statsmodels: the cumulative-link (proportional-odds) loss of ordered classes.

pip install statsmodels==0.15.0
python tests/parity/statsmodels_golden.py
"""

from __future__ import annotations

import numpy as np
import record
from statsmodels.miscmodels.ordinal_model import OrderedModel

GOLDEN = record.Recorder("statsmodels", "statsmodels", "numpy", "scipy")

SCORES = record.grid([0.75, -1.5, 2.25, 0.125, -0.375, 3.5, -2.0, 0.5])


def record_cumulative_link():
  for name, cutpoints, labels in (
    ("two classes", [0.25], [1, 0, 1, 0, 1, 1, 0, 1]),
    ("five classes", [-2.0, -0.5, 0.25, 1.75], [4, 0, 3, 2, 2, 0, 1, 3]),
  ):
    cutpoints, labels = record.grid(cutpoints), np.array(labels)
    # The model's latent variable is the score: one covariate with the coefficient 1.
    model = OrderedModel(labels, SCORES[:, None], distr="logit")
    # Its parameters are the coefficient, the first cutpoint and the logarithms of the steps between them.
    params = np.concatenate([[1.0], cutpoints[:1], np.log(np.diff(cutpoints))])
    np.testing.assert_allclose(
      model.transform_threshold_params(params)[1:-1], cutpoints, atol=1e-14
    )
    losses = -model.loglikeobs(params)
    # Its derivative with respect to the coefficient is that with respect to the score, times the score.
    gradient = -model.score_obs_(params)[:, 0] / SCORES / len(SCORES)

    def mean_loss(scores, model=model, params=params):
      model.exog = scores[:, None]
      return -model.loglikeobs(params).mean()

    step = 1e-6 * np.eye(len(SCORES))
    numeric = [(mean_loss(SCORES + e) - mean_loss(SCORES - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(numeric, gradient, atol=1e-9)
    GOLDEN.case(
      "cumulative_link",
      name,
      "statsmodels.miscmodels.ordinal_model.OrderedModel.loglikeobs, score_obs_",
      dict(scores=SCORES, cutpoints=cutpoints, labels=labels),
      dict(mean_loss=losses.mean(), losses=losses),
      gradients=dict(scores=gradient),
      note=(
        "P(label ≤ k) = σ(c_k − score), labels 0 … K − 1; statsmodels adds 1e-20 to a probability before its log; "
        "the gradient is its own, checked numerically"
      ),
    )


if __name__ == "__main__":
  record_cumulative_link()
  GOLDEN.write()
