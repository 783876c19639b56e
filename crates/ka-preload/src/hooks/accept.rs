//! accept(2) and accept4(2)

use libc::c_int;

use super::stub::{self, Arguments, int};
use crate::shim::active;
use crate::sockets;

stub::around! {
    /// An accepted socket inherits the policy if its listener has it.
    accept, stub::nothing_before, after
}

stub::around! {
    /// Like accept, with flags.
    accept4, stub::nothing_before, after
}

pub(super) extern "C" fn after(accepted: isize, &[listener, ..]: &Arguments) {
    if let Some(shim) = active() {
        sockets::accepted(shim, int(listener), accepted as c_int);
    }
}
