//! What the fuzz targets share: how bytes become arguments, memory whose ends are guarded, sockets of every kind and
//! what the kernel says of them, and the rules of ka written a second time, in another way, to be compared.

pub mod allocations;
pub mod input;
pub mod kernel;
pub mod memory;
pub mod policy;
pub mod rule;
pub mod sockets;
