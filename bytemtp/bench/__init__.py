"""Speed, memory and quality, ours and the peers', measured in turn: `python -m bytemtp.bench --help`.

Contestants take turns over several rounds, so that a machine that slows down slows all of them.  Of other libraries
and of training steps every measurement is a process of its own (`worker.py`): none warms another's caches.

Imports all folders but the commands.
"""
