"""What the guest sees.  A device is one file; it imports bus, memory, core and backends.api, never an engine or a machine."""
