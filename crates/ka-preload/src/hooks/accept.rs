//! accept(2) and accept4(2)

use libc::c_int;

use super::stub;
use crate::settings::active;
use crate::sockets;

stub::around! {
    /// An accepted socket has inherited the policy if its listener had it.
    accept, stub::nothing, after
}

stub::around! {
    /// The same, with flags.
    accept4, stub::nothing, after
}

pub(super) extern "C" fn after(accepted: c_int, listener: c_int) {
    if let Some(settings) = active() {
        sockets::accepted(settings, listener, accepted);
    }
}
