//! The hooks: each is the real call, with a step before or after it.

#![expect(unsafe_code, reason = "each hook is called from C, and passes its arguments on")]

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
