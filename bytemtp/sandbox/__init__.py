"""Run programs that nobody has read, and decide outside their reach whether they are right.

Each worker has two long-lived bubblewrap sandboxes.  In the candidate's, a server forks every program into its own
process and mount namespace; in the referee's, another forks a process that has the tests and calls the program's
functions by messages of plain values.  The host starts both, owns the clock, watches the memory, and ends them.
What is covered and what is not: `docs/sandbox.md`.

Imports common; what runs inside imports the standard library only.
"""
