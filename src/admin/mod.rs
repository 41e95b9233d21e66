//! Control socket, verbs, text and JSON output.
