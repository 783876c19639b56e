//! dlopen(3)
//!
//! The real dlopen identifies its caller by the return address, and uses the caller's search path. So the hook jumps to
//! the real function.

use super::stub::{self, Arguments};
use crate::rebind;

stub::before! {
    /// After this call, the dlsym hook looks for newly opened libraries.
    dlopen, before
}

extern "C" fn before(_: &Arguments) {
    rebind::opening();
}
