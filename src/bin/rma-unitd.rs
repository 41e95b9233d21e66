//! `rma-unitd`.
fn main() {}
