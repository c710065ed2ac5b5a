"""Completion scripts, a module a shell: `script(command_line)` is the whole text of it."""
