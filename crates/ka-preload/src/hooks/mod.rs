//! The hooks: each is the real call, with a step before or after it.

#![expect(unsafe_code, reason = "each hook is what C calls, and hands on what it was given")]

mod accept;
mod connect;
mod dlopen;
mod dlsym;
mod listen;
mod prctl;
mod recv;
mod send;
mod setsockopt;
mod socket;
mod stub;
mod syscall;
