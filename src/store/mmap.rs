//! A file under a shared mapping, locked by its one writer.
