"""The other end of a guest's serial line: terminal, file, pseudo-terminal, a program, or nothing."""
