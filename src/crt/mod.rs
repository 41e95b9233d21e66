//! The cluster resource table: rows, stamps, join, ownership rules, file format over a Storage trait. No files.
