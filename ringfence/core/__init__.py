"""Shared vocabulary: errors, state declarations, time, tracing.  Imports nothing of ours."""
