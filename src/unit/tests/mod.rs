//! Stories of a unit on a wire that misbehaves, in virtual time.
