"""Completion scripts, a module per shell: `script(command_line)` returns the script."""
