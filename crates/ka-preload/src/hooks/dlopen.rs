//! dlopen(3)
//!
//! The real dlopen takes its return address for the caller's, whose search path it uses. The hook jumps to it.

use super::stub::{self, Arguments};
use crate::rebind;

stub::before! {
    /// From here on, the dlsym hook looks for libraries that were opened.
    dlopen, before
}

extern "C" fn before(_: &Arguments) {
    rebind::opening();
}
