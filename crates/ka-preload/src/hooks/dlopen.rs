//! dlopen(3)
//!
//! The real dlopen identifies its caller by the return address, and uses the caller's search path. So the hook jumps to
//! the real function.

use super::stub::{self, Arguments};
use crate::rebind;

stub::before! {
    /// From here on, the dlsym hook looks for libraries that were opened.
    dlopen, before
}

extern "C" fn before(_: &Arguments) {
    rebind::opening();
}
