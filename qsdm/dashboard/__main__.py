"""``python -m qsdm.dashboard``."""

from qsdm import run
from qsdm.dashboard import dashboard

if __name__ == "__main__":
    run.main(dashboard)
