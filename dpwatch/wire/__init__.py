"""What crosses a socket: records, their encoding, and the sockets themselves."""
