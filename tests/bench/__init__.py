"""The bench: pydrbd beside what it is measured against, in one run. See `python -m tests.bench --help`.

jobs       the rows of the main table and the targets, as tables
stacks     the contenders: starting and ending them, the processes that their work costs
qemu       one of them, qemu's write-blocking mirror
measure    fio's JSON and the processes' CPU time as figures; rounds, medians
board      the main table's cells: what runs in which order
resync     resynchronisation against nbdcopy; a client's latency meanwhile
scale      `up` and memory of very large devices
misses     writes that miss the activity log
table      text and Markdown
facts      what is known about the machine
vm         the short form beside the kernel's DRBD, in a virtual machine
"""
