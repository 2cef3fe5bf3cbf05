"""Judges: the reference interpreter, the compiled stencils and the host CPU run the same instructions on the same states."""
