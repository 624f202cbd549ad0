"""The command line: what may stand there, what is said of what may not, and the settings that it becomes."""
