//! Connections: identity, acknowledgement, retransmission, timers. Depends on wire only.
