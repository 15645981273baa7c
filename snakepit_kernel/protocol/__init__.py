"""What travels over a lane: messages, frames, values. No I/O, no clock."""
