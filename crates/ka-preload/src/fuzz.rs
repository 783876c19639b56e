//! The functions that the hooks call, for the fuzz target `shim`, which replaces the hooks.
//!
//! This module is not part of the API. The fuzz target uses no other module of this crate.

pub use crate::guard::{Decision, follow_up, judge};
pub use crate::shim::{Shim, active, publish, read};
pub use crate::sockets::{connecting, created};
