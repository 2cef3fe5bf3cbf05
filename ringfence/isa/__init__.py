"""Instruction sets: decoding and the bodies of instructions.  Knows neither LLVM nor engines."""
