"""A debugger's way into a running machine: the GDB remote serial protocol.

server    one TCP client at a time, on a thread of its own; carries every packet to the machine's thread
stub      packets to answers; knows no socket
packets   framing, checksums, escapes        registers   target description, numbering
monitor   commands behind gdb's `monitor`    paging      linear to physical addresses, without side effects
target    what all of them ask of a machine (`machine.debugging` is the real one)
"""
