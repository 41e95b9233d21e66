//! Block I/O client: splitting, retries, device lists. Depends on wire and session.
