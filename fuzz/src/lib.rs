//! Code that the fuzz targets share: arguments from bytes, guarded memory, sockets of every kind with their settings
//! from the kernel, and a second implementation of ka's rules for comparison.

pub mod allocations;
pub mod input;
pub mod kernel;
pub mod memory;
pub mod policy;
pub mod rule;
pub mod sockets;
