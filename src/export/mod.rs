//! Owned devices for the operating system: NBD server, udev rules.
