//! The mmap'd file, the identity file, SQLite.
