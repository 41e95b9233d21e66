//! The resource management agent's state machine: Fig. 5, allocation. Depends on wire, session, crt, fabric::link.
