"""What goes between processes: records, their encoding, sockets and where those lie."""
