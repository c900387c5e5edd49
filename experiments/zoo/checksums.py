"""Write the checksums of everything that ships with qsdm, after any of it was made again.

python experiments/zoo/checksums.py
"""

from __future__ import annotations

from qsdm.store import ZOO
from qsdm.store.manifest import NAME, write_checksums

if __name__ == "__main__":
    files = [
        path for path in ZOO.rglob("*") if path.is_file() and path.suffix not in (".md", ".png")
    ]
    write_checksums(ZOO, [path for path in files if path.name != NAME])
