"""Raw tables of the lab notebook (NOTES.md), one JSON file for each entry or group of measurements.

    {"title": ..., "date": "YYYY-MM-DD", "command": ..., "commit": ..., "machine": ...,
     "tables": [{"caption": ..., "columns": [...], "rows": [[...], ...]}, ...],
     "notes": [...]}

Cells are strings, exactly as the command printed them; an empty string is a cell that was not measured.  A `command` of
several commands has one a line.  `notes` may be left out.  `python -m experiments.results NAME` prints a file.
"""
