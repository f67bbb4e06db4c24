"""The machinery of a run: options, processes, checkpoints, logs. Nobody reads it to understand the paper."""
