"""What `dpwatch doctor` looks at, a module a subject. A check tells what it found; none raises."""
