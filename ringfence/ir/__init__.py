"""The value language: what instruction bodies are written in, and its reference interpreter.

A body is a plain Python function that is *traced* once per instruction form.  While it runs it emits operations on typed
bit-vectors; the resulting `Trace` is the one meaning of the instruction.  Consumers: `interpret` (the living definition)
and, in `ringfence.translate`, the compiler to machine code.

**A body is a transaction.**  Reads see the state at instruction entry; writes go to a list that is committed in program
order at the end; a fault drops the list.
"""
