"""Imports point down, and what belongs to one layer stays there (docs: the tree and its rules)."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_jax"

# Of each part: the parts of rlhf_jax that it may import, beside its own.
FLOOR = {"types", "config", "ops", "sharding"}
MODELS = FLOOR | {"models", "data", "weights"}
ALLOWED = {
  "types": {"ops"},
  "config": set(),
  "ops": {"sharding"},  # which it asks what it computes for
  "sharding": set(),
  "models": FLOOR,
  "data": FLOOR,
  "weights": FLOOR | {"models", "data"},
  "rollout": FLOOR,
  "algorithms": {"types", "config", "ops"},
  "rewards": FLOOR,
  "evaluation": FLOOR | {"rewards"},
  "training": MODELS | {"rollout", "rewards", "algorithms", "evaluation"},
  "report": set(),
  "plan": MODELS | {"rollout", "rewards", "algorithms", "training"},
  "feedback": MODELS | {"rollout", "rewards", "evaluation", "training"},
  "cli": MODELS | {"rollout", "algorithms", "evaluation", "training", "report", "feedback", "plan"},
}

# Of each library: the parts that may import it. "tests" and notebooks are free.
HOMES = {
  "flax.linen": {"models"},
  "transformers": {"data", "weights"},
  "tokenizers": {"data"},
  "datasets": {"data"},
  "jax.sharding": {"sharding"},
  "ml_collections": {"cli", "experiments"},
  "absl": {"cli"},
  "orbax.checkpoint": {"training"},
  "tensorboardX": {"training"},
  "matplotlib": {"report"},
  "sqlalchemy": {"feedback"},
  "fastapi": {"feedback"},
  "torch": set(),
}

# Words that only some files may say.
MESH_AXES = r"""["'](data|fsdp|tensor)["']\s*,\s*["'](fsdp|tensor)["']"""


def files(folder=PACKAGE):
  return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def part(path: Path) -> str:
  """`ops` of rlhf_jax/ops/kl.py, `types` of rlhf_jax/types.py."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
  """Full names of everything the file imports, at its top or inside a function."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide where they point"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def below(name: str, module: str) -> bool:
  return name == module or name.startswith(f"{module}.")


def inner(path: Path) -> set[str]:
  """The parts of rlhf_jax that the file imports."""
  own = {name for name in imports(path) if below(name, "rlhf_jax") and name != "rlhf_jax"}
  return {name.split(".")[1] for name in own} - {"__version__"}


PARTS = sorted({part(path) for path in files()} - {"__init__", "__main__"})


def test_every_part_has_a_place_in_the_table():
  assert set(PARTS) == set(ALLOWED)


@pytest.mark.parametrize("name", PARTS)
def test_imports_point_down(name):
  above = {
    str(path.relative_to(ROOT)): sorted(inner(path) - ALLOWED[name] - {name})
    for path in files()
    if part(path) == name
  }
  assert {path: parts for path, parts in above.items() if parts} == {}


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_at_home(library):
  strays = [
    str(path.relative_to(ROOT))
    for path in files()
    if part(path) not in HOMES[library] and any(below(name, library) for name in imports(path))
  ]
  assert strays == []


def test_only_sharding_names_mesh_axes():
  says = re.compile(rf"PartitionSpec|NamedSharding|AxisType|{MESH_AXES}")
  strays = [
    str(path.relative_to(ROOT))
    for path in files()
    if part(path) != "sharding" and says.search(path.read_text(encoding="utf-8"))
  ]
  assert strays == []


@pytest.mark.parametrize("path", files(ROOT / "experiments"), ids=lambda path: path.stem)
def test_experiments_import_ml_collections_and_nothing_of_ours(path):
  assert imports(path) == {"ml_collections.ConfigDict"}


def test_nothing_heavy_is_imported_by_the_command_line_itself():
  tree = ast.parse((PACKAGE / "cli" / "__init__.py").read_text(encoding="utf-8"))
  names = {
    alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
  }
  assert not {"jax", "numpy", "transformers"} & names


def test_requirements_are_the_dependencies_of_the_project():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
  assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]
