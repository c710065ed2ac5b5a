"""The viewer's side: finds runs and asks their hubs for views."""
