"""How parts of a machine are wired: address spaces and interrupt lines."""
