//! `rmad`.
fn main() {}
