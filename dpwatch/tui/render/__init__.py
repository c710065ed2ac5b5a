"""From styled lines to the terminal; what is used of Textual and Rich beyond their API is here."""
