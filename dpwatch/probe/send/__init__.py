"""From the queue of records to the hub: who this process is, frames, the socket."""
