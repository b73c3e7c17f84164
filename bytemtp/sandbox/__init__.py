"""Run programs that nobody has read, and decide outside their reach whether they are right.

Each worker has two long-lived bubblewrap sandboxes.  In the candidate's, a server forks every program into its own
process and mount namespace; in the referee's, another forks a process that has the tests and calls the program's
functions by messages of plain values.  Functions, iterators, coroutines and objects stay where they are and are used
from the other side by messages, too.  The host starts both, owns the clock, watches the memory, and ends them.

Covered; each line has a test in tests/test_sandbox.py or a program in tests/programs:

- Verdict: exiting, printing, forged messages, answers sent in advance, objects equal to everything, tracing, patched
  builtins, patched clocks, raised control flow (StopIteration, SystemExit, SkipTest): none passes a wrong program.
- Tests: they are never in the program's process or one it was forked from, so frames, the garbage collector and raw
  memory do not have them.  Functions that tests hand to it can be called there, and iterators advanced, no more.
- Files: it sees /usr, four devices, and an empty /tmp and /dev/shm of limited size, the only ones it can write to.
- Other processes and the environment: it sees none; root's privileges, capabilities, ptrace, new namespaces, mounts,
  keys and some forty system calls are refused.
- Network: none, and no socket families but local ones and IP.
- Limits: wall-clock time, resident memory of all processes (also of threads whose first has ended) with shared memory
  and files, processes and threads, descriptors, size of files and number of files, output.
- Endings: all descendants die with the program, and everything dies with the host.
- Carry-over: files, processes, sockets, modules and source of a program are gone before the next one starts.
- Stability: killing, stopping, closing, flooding, malformed messages and sources of any size and shape cost a program
  its verdict, not the worker its life; killed servers are replaced.  To judge a program the host does not parse it.
- Honest programs: threads, processes, temporary files, memory, recursion, Unicode, `__main__`, values of many types,
  generators without an end, objects with methods, functions of the tests, arguments changed in place, random numbers
  that tests seed.
- Missing isolation: refused, unless the user says --unsafe.

Not covered:

- Faults of the kernel, of bubblewrap or of the processor (side channels).
- Problem files: their tests are trusted, though they run in a sandbox, too.
- Problems judged `together` (tests that share classes or variables with the solution, or look at what it prints):
  marked, because the program shares a process with the tests and can forge the result.
- Objects that a program returns: they can be used, but what compares them or adds to them fails the test, and so do
  `in` without iteration and a context manager that swallows what the tests raise.
- A function that recognises the arguments of the tests and answers by rote: it cannot see what is expected, though.
- Kernel memory (pipes, sockets): bounded by the number of processes and descriptors only.
- Memory taken between two looks (20 ms) beyond the limit; each process's address space ends 1 GiB above it.
- Shared memory without a file (MAP_SHARED with MAP_ANONYMOUS): refused; `mmap.mmap(-1, n)` gets a file instead.
- Packages: programs have the standard library and no /proc.
- Processors other than x86-64 and aarch64 (refused); aarch64 has not been tried.
"""
