"""`report.html`: one file, nothing loaded from elsewhere, readable on a phone and in the dark."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2

from rlhf_jax.report import calibration, charts, intervals, tables
from rlhf_jax.report.run import read_run
from rlhf_jax.report.words import title

FACTS = {  # of the config, where it has them
  "algorithm.name": "algorithm",
  "model.source": "model",
  "data.source": "data",
  "seed": "seed",
}


def write_report(workdir: str | os.PathLike) -> Path:
  """Writes `report.html` into `workdir` from whatever the run has left there so far, and returns its path."""
  run = read_run(workdir)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  groups = [charts.stage_charts(metrics, stage) for stage, metrics in run.metrics.items()]
  html = environment.get_template("page.html").render(
    run=run,
    facts=[(label, run.config[name]) for name, label in FACTS.items() if name in run.config],
    headlines=tables.headlines(run),
    policies=tables.policy_table(run.results),
    figures=[f for f in (drawn(run.results) for drawn in intervals.FIGURES) if f],
    reliability=calibration.reliability(run.calibration),
    stages=tables.stage_table(run),
    groups=[group for group in groups if group.named or group.others],
    samples=tables.evaluation_samples(run.answers),
    training_samples=tables.training_samples(run.samples),
    latest=title(list(run.metrics)[-1]) if run.metrics else None,
    geometry=charts,
  )
  path = Path(workdir) / "report.html"
  temporary = path.with_suffix(".tmp")
  temporary.write_text(html, encoding="utf-8")
  temporary.replace(path)  # a reader never sees half a page
  return path
