"""One script for each published result, and the raw tables of the lab notebook (`python -m experiments.results`)."""
