"""Speed, memory and quality, ours and the peers', measured in turn: `python -m bytemtp.bench --help`.

Every measurement is a process of its own (`worker.py`), so that no contestant warms another's caches or keeps memory,
and contestants take turns over several rounds, so that a machine that slows down slows all of them.

Imports all folders but the commands.
"""
