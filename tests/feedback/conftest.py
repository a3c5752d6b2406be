"""The databases that every test of the store runs on."""

import glob
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="pip install 'rlhf_jax[label]'")
pytest.importorskip("fastapi", reason="pip install 'rlhf_jax[label]'")

from some_items import PAIRS, Clock  # noqa: E402

from rlhf_jax.feedback.store import Store  # noqa: E402


@pytest.fixture(scope="session")
def postgresql():
  """The URL of a PostgreSQL server of this test run, from Debian's package; skipped where it is not installed."""
  found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
  initdb = shutil.which("initdb") or (found[-1] if found else None)
  if initdb is None:
    pytest.skip("PostgreSQL is not installed; apt-get install postgresql runs these tests too.")
  folder = Path(tempfile.mkdtemp(prefix="rlhf_jax_pg"))
  alone = []
  if os.geteuid() == 0:  # it refuses to run as root
    shutil.chown(folder, "postgres")
    alone = ["runuser", "-u", "postgres", "--"]
  run = lambda *words: subprocess.run([*alone, *words], check=True, capture_output=True, cwd=folder)
  control = str(Path(initdb).with_name("pg_ctl"))
  run(
    initdb, "-D", f"{folder}/data", "-A", "trust", "-U", "tests", "-E", "UTF8", "--locale=C", "-N"
  )
  options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
  run(control, "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start")
  yield f"postgresql+psycopg://tests@/{{name}}?host={folder}"
  run(control, "-D", f"{folder}/data", "-m", "immediate", "stop")
  shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path) -> str:
  """The URL of an empty database."""
  if request.param == "sqlite":
    return f"sqlite:///{tmp_path}/labels.sqlite"
  import sqlalchemy as sa

  url, name = request.getfixturevalue("postgresql"), f"t{uuid.uuid4().hex}"
  engine = sa.create_engine(url.format(name="postgres"), isolation_level="AUTOCOMMIT")
  with engine.connect() as db:
    db.execute(sa.text(f"CREATE DATABASE {name}"))
  engine.dispose()
  return url.format(name=name)


@pytest.fixture
def clock() -> Clock:
  return Clock()


@pytest.fixture
def store(database, clock):
  made = Store(database, PAIRS, clock=clock)
  yield made
  made.close()
