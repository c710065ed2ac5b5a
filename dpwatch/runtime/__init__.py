"""This host's files and environment: runtime directory, launcher, cgroups, keys."""
