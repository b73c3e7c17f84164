"""Run programs that nobody has read, and decide outside their reach whether they are right.

Each worker has two long-lived bubblewrap sandboxes.  In the candidate's, a server forks every program into its own
process and mount namespace; in the referee's, another forks a process that has the tests and calls the program's
functions by messages of plain values.  The host starts both, owns the clock, watches the memory, and ends them.

Covered; each line has a test in tests/test_sandbox.py or a program in tests/programs:

- Verdict: exiting, printing, forged messages, answers sent in advance, objects equal to everything, tracing, patched
  builtins, patched clocks, raised control flow (StopIteration, SystemExit): none passes a wrong program.
- Tests: they are never in the program's process or one it was forked from, so frames, the garbage collector and raw
  memory do not have them.
- Files: it sees /usr, five devices, and an empty /tmp and /dev/shm of limited size, the only ones it can write to.
- Other processes and the environment: it sees none; root's privileges, capabilities, ptrace, new namespaces, mounts,
  keys and some forty system calls are refused.
- Network: none, and no socket families but local ones and IP.
- Limits: wall-clock time, resident memory of all processes with shared memory and files, processes and threads,
  descriptors, size of files and number of files, output.
- Endings: all descendants die with the program, and everything dies with the host.
- Carry-over: files, processes, sockets, modules and source of a program are gone before the next one starts.
- Stability: killing, stopping, closing, flooding and malformed messages cost a program its verdict, not the worker its
  life; killed servers are replaced.
- Honest programs: threads, processes, temporary files, memory, recursion, Unicode, `__main__`, values of many types.
- Missing isolation: refused, unless the user says --unsafe.

Not covered:

- Faults of the kernel, of bubblewrap or of the processor (side channels).
- Problem files: their tests are trusted, though they run in a sandbox, too.
- Problems judged `together` (tests that need the solution's classes or variables): marked, because the program shares
  a process with the tests and can forge the result.
- A function that recognises the arguments of the tests and answers by rote: it cannot see what is expected, though.
- Kernel memory (pipes, sockets): bounded by the number of processes and descriptors only.
- Memory taken between two looks (20 ms) beyond the limit; each process's address space ends 1 GiB above it.
- Packages: programs have the standard library and no /proc.
- Processors other than x86-64 and aarch64 (refused); aarch64 has not been tried.
"""
