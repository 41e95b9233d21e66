//! An I/O unit: UMS and I/O controller state machines. Depends on wire and session.
