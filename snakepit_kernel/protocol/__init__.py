"""The protocol of a lane: messages, frames, and the pickling of values. No I/O, no clock."""
