"""From traces to machine code, and the native run time that the code needs.

lower.py     one trace -> LLVM text, in two shapes (stencil, native function); lower_fp.py the floating-point part
native.py    a small typed subset of Python -> LLVM, for the run time: TLB, page walk, dispatch, invalidation
runtime.py   the run time itself;  stubs.py  the glue between stencils and it, in assembly
objects.py   LLVM -> object -> placed bytes with holes;  stencils.py  the cache of both
block.py     guest code -> blocks of patched stencils; recipes.py what it knows about each encoding
native_translate.py   the same natively, from the flat tables of native_tables.py (their formats: native_layout.py)
layout.py    where everything lies in the vCPU block
"""
