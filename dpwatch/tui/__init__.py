"""The Textual dashboard: screens over frozen snapshots."""
