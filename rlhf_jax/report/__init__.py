"""What a run did, on one page: `report.html` in its workdir, and one picture for a README.

`run` reads a workdir, `tables`, `intervals` and `charts` turn it into rows and geometry, `page.html` lays them out.
"""

from rlhf_jax.report.page import write_report
from rlhf_jax.report.picture import write_picture

__all__ = ["write_picture", "write_report"]
