//! The hooks: each is the real call, with a step before or after it.

mod accept;
mod connect;
mod listen;
mod recv;
mod send;
mod setsockopt;
mod socket;
mod syscall;
