//! What a unit serves: file, block device, memory.
